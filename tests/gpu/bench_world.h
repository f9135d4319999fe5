/* A whole model of random weights on the device and a batch of sequences in decode, run by
 * server/engine/forward.c as the engine runs it: what modes step and swap of bench_cuda time. */
#ifndef RS_TESTS_GPU_BENCH_WORLD_H
#define RS_TESTS_GPU_BENCH_WORLD_H

#include "server/engine/forward.h"
#include "tests/gpu/bench_cell.h"

/* Made once for the program: weights, and the adapters and the forward of the last line, kept while
 * they serve. */
struct world {
    struct rig *rig;
    struct model model;
    uint32_t mark_adapters; /* where the adapters begin */
    struct adapters adapters;
    char rank[8];
    struct forward_options opt;
    struct forward *forward;
    bool configured; /* the forward knows of adapters */
};

/* The largest of all lines to come; rank: of one module. */
struct world_limits {
    uint32_t batch, context, adapters, rank;
};
/* NULL: the weights do not fit. */
struct world *world_open(struct rig *r, const struct world_limits *lim);
void world_close(struct world *w);
/* At least count adapters of this rank, resident. */
bool world_adapters(struct world *w, uint32_t count, const char *rank);

struct batch {
    struct world *w;
    uint32_t n, context, page_stride, n_seg, mark;
    int32_t *ids;
    uint32_t *seq, *pos, *page, *out_rows;
    struct lora_seg *seg;
    bool lora; /* some row has an adapter */
    struct sample_row *row;
    struct rig_result sampled; /* struct sample_out [n] */
    /* device */
    float *logits;
    double *norm2;
    void *hidden, *scratch;
    struct kv_cache kv;
};

/* seg: n_seg segments for n rows (taken over), or NULL for base only; configured: adapters exist,
 * used or not. */
struct batch_options {
    uint32_t n, context, n_seg;
    struct lora_seg *seg;
    bool configured;
};
bool batch_open(struct batch *b, struct world *w, const struct batch_options *opt);
void batch_close(struct batch *b);
/* One decode step, given to the stream: tables, pass, logits, sampling. Takes what the step before
 * found; batch_take waits for this one's. */
void batch_step(struct batch *b);
void batch_take(struct batch *b);
/* The bytes that it must read: weights, distinct adapters at true rank, keys and values. */
uint64_t batch_bytes(const struct batch *b);

#endif
