/* config.json of the families we serve -> one const struct. Everything we cannot honour is refused
 * by name. Pure parsing; facts of refs: absent keys take the family's defaults. Thread: any. */
#ifndef RS_MODEL_CONFIG_H
#define RS_MODEL_CONFIG_H

#include "kernels/args.h"
#include "server/base/errtext.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

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

#define MODEL_EOS_MAX    16
#define MODEL_LAYERS_MAX 512

struct model_config {
    enum model_family family;
    char family_name[16];
    uint32_t n_layer, d_model, d_ff, n_head, n_kv_head, d_head, n_vocab, pos_max;
    float norm_eps;
    bool tied, bias_qkv, bias_o, bias_mlp, qk_norm;
    uint32_t window; /* sliding window of the layers marked below, 0: none */
    uint8_t window_layers[MODEL_LAYERS_MAX / 8]; /* bit i: layer i attends to the window only */
    enum dtype stored_dtype; /* what config.json claims; model_load replaces it by the truth */
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

/* The window of a layer, 0: full attention. */
static inline uint32_t model_config_window(const struct model_config *c, uint32_t layer)
{
    return c->window_layers[layer / 8] >> (layer % 8) & 1 ? c->window : 0;
}

/* What attention multiplies scores by: 1/sqrt(d_head). */
float model_attention_scale(const struct model_config *c);

/* Shape of one linear module: what weights and adapters are checked against. */
void model_module_shape(const struct model_config *c, enum lora_module module, uint32_t *d_out,
                        uint32_t *d_in);
/* Path of a linear module without prefix, such as "model.layers.3.self_attn.q_proj". */
void model_module_path(uint32_t layer, enum lora_module module, char *out, size_t out_bytes);

/* cos/sin [pos_count, d_head/2] f32 for the config's rope, attention factor folded in (the formulas
 * of transformers' modeling_rope_utils). Both arrays owned by the caller. */
void model_rope_fill(const struct model_config *c, uint32_t pos_count, float *cos_out,
                     float *sin_out);

#endif
