/* The adapter that is trained: its matrices in f32 in the layout that the ops take, made new from
 * an adapter_config.json or read from a folder, and written back as `peft` saves it. Thread: one.
 */
#ifndef RS_TRAIN_TRAIN_LORA_H
#define RS_TRAIN_TRAIN_LORA_H

#include "server/adapter/peft/peft.h"
#include "server/base/buf.h"

struct train_lora {
    char *config_json; /* adapter_config.json, as it is written */
    size_t config_bytes;
    const struct model_config *base;
    struct lora_entry *entry; /* [n_layer][LORA_MODULE_COUNT] */
    uint64_t blob_bytes;
    float *blob; /* 64-byte aligned; zeros between the matrices */
    size_t n;    /* floats of the blob */
    uint32_t modules, rank_sum_max;
    uint64_t weights; /* that are trained */
    uint8_t from[32]; /* adapterId of what was read; zeros: new */
};

/* New: A uniform in +-1/sqrt(d_in) from seed (what peft's kaiming_uniform with a = sqrt 5 is), B
 * zeros. config: an adapter_config.json, whose rank_pattern, alpha_pattern, use_rslora and modules
 * hold. Errors name the field; INVALID where it adapts nothing of this base. */
MUST_CHECK enum status train_lora_new(struct train_lora *out, const char *config, size_t len,
                                      const struct model_config *base, uint64_t seed,
                                      struct errtext *err);
/* From a folder, to go on from. Errors as peft_read_dir. */
MUST_CHECK enum status train_lora_read(struct train_lora *out, const char *dir,
                                       const struct model_config *base, struct errtext *err);
void train_lora_fini(struct train_lora *l);
/* adapter_model.safetensors of the weights as they are, f32, at the end of out. NO_MEMORY. */
MUST_CHECK enum status train_lora_render(const struct train_lora *l, struct buf *out,
                                         struct errtext *err);

#endif
