/* A straight forward pass for tests: one model, a few adapters, one sequence, pages handed out in
 * descending order. It calls server/engine/forward.c exactly as the engine does, without the
 * engine, so it is also the example of how to drive the ops table. */
#ifndef RS_TESTS_LOGITS_RIG_H
#define RS_TESTS_LOGITS_RIG_H

#include "server/adapter/peft/peft.h"
#include "server/engine/forward.h"
#include "server/engine/resident.h"

#define RIG_ADAPTERS_MAX 8

struct logits_rig_options {
    const char *model_dir, *backend;
    enum dtype_choice dtype;
    uint32_t thread_count, chunk, context_max;
};

struct logits_rig {
    struct logits_rig_options opt;
    struct model *model;
    struct backend *backend;
    struct resident *resident;
    void *weights;           /* on a device */
    struct forward *forward; /* made by the first run, when all adapters are known */
    struct kv_cache kv;
    uint64_t kv_bytes;
    uint32_t page_stride, *page_table, *seq, *pos, *rows;
    void *hidden;  /* these three in the backend's memory */
    float *logits; /* [chunk, n_vocab] */
    double *norm2;
    double *norm2_host;
    struct lora_table table;
    struct lora_slot slot[RIG_ADAPTERS_MAX];
    struct lora_layout layout[RIG_ADAPTERS_MAX];
    uint32_t rank_sum_max;
};

MUST_CHECK enum status logits_rig_open(struct logits_rig *r, const struct logits_rig_options *opt,
                                       struct errtext *err);
/* Its slot is the number of adapters added before. */
MUST_CHECK enum status logits_rig_add(struct logits_rig *r, const char *dir, struct errtext *err);
/* Logits of rows [from, n) of ids, the cache holding those before from; logits [n - from, n_vocab].
 * norm2_sum, when given, gets the delta and base norms summed over these rows. */
MUST_CHECK enum status logits_rig_run(struct logits_rig *r, const struct lora_part *part,
                                      uint32_t part_count, const int32_t *ids, uint32_t from,
                                      uint32_t n, float *logits, double norm2_sum[2]);
void logits_rig_close(struct logits_rig *r);

#endif
