/* config.json of the families we serve -> one const struct. Everything we cannot honour is refused
 * by name. Pure parsing; facts of refs: absent keys take the family's defaults. Thread: any. */
#ifndef RS_MODEL_CONFIG_H
#define RS_MODEL_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/args.h"
#include "server/base/errtext.h"

enum model_family { MODEL_LLAMA, MODEL_MISTRAL, MODEL_QWEN2, MODEL_QWEN3 };
enum rope_kind { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3, ROPE_YARN };

struct rope_config {
    enum rope_kind kind;
    double theta, factor;
    double low_freq_factor, high_freq_factor; /* llama3 */
    double beta_fast, beta_slow;              /* yarn */
    double attention_factor; /* cos/sin multiplier, already resolved; 1 where none */
    uint32_t original_pos_max;
    bool truncate; /* yarn: round the correction range (default true) */
};

#define MODEL_EOS_MAX 16

struct model_config {
    enum model_family family;
    char family_name[16];
    uint32_t n_layer, d_model, d_ff, n_head, n_kv_head, d_head, n_vocab, pos_max;
    float norm_eps;
    bool tied, bias_qkv, bias_o, bias_mlp, qk_norm;
    uint32_t window;             /* sliding window, 0: none */
    uint32_t window_layer_first; /* qwen: layers before this index attend fully */
    enum dtype stored_dtype;     /* as the weights are stored */
    struct rope_config rope;
    int32_t bos_id; /* -1: none */
    int32_t eos_id[MODEL_EOS_MAX];
    uint32_t eos_count; /* union of config.json and generation_config.json */
    /* generation_config.json defaults, NAN or -1 where absent */
    float default_temperature, default_top_p, default_min_p, default_repetition;
    int32_t default_top_k;
};

/* Parse config.json (and, when given, generation_config.json, may be NULL). Errors name the key,
 * found and expected. */
MUST_CHECK enum status model_config_parse(struct model_config *out, const char *json, size_t len,
                                          const char *generation_json, size_t generation_len,
                                          struct errtext *err);

/* cos/sin [pos_count, d_head/2] f32 for the config's rope, attention factor folded in (the formulas
 * of transformers' modeling_rope_utils). Both arrays owned by the caller. */
void model_rope_fill(const struct model_config *c, uint32_t pos_count, float *cos_out,
                     float *sin_out);

#endif
