/* config.json -> struct model_config. The rule is transformers' own: a key that the family's model
 * code never reads does not change inference and is ignored; a key it reads is honoured or refused
 * by name; and keys that say "this is not really a llama" (quantisation, softcaps, multipliers,
 * experts, remote code) are refused although transformers would ignore them, because serving such a
 * checkpoint would give wrong answers without a word. Absent keys take the family's defaults. */
#include "server/model/config.h"
#include "server/base/check.h"
#include "server/base/json.h"
#include "server/model/foreign.h"
#include "server/model/rope.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct family_facts {
    const char *name, *architecture;
    uint32_t pos_max, n_kv_head; /* defaults; n_kv_head 0: as many as heads */
    uint32_t d_head;             /* default; 0: hidden / heads */
    bool bias_qkv, qk_norm, reads_attention_bias, reads_mlp_bias;
};

static const struct family_facts families[] = {
    [MODEL_LLAMA] = {"llama", "LlamaForCausalLM", 2048, 0, 0, false, false, true, true},
    [MODEL_MISTRAL] = {"mistral", "MistralForCausalLM", 131072, 8, 0, false, false, false, false},
    [MODEL_QWEN2] = {"qwen2", "Qwen2ForCausalLM", 32768, 32, 0, true, false, false, false},
    [MODEL_QWEN3] = {"qwen3", "Qwen3ForCausalLM", 32768, 32, 128, false, true, true, false},
};

/* Keys of other architectures or of modified checkpoints. Refused unless absent, null, false, 0, an
 * empty list or object, or (for multipliers) 1. */
static const char *const refused_keys[] = {
    "auto_map",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "logit_scale",
    "logits_scaling",
    "embedding_multiplier",
    "residual_multiplier",
    "attention_multiplier",
    "scale_emb",
    "scale_depth",
    "dim_model_base",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_intermediate_size",
    "no_rope_layers",
    "no_rope_layer_interval",
    "attention_chunk_size",
    "attn_temperature_tuning",
    "clip_qkv",
    "use_parallel_residual",
    "rope_local_base_freq",
    "rotary_pct",
    "q_lora_rank",
    "kv_lora_rank",
    "pruned_heads",
    "is_encoder_decoder",
    "add_cross_attention",
    "use_bidirectional_attention",
    "vision_config",
    "audio_config",
    "text_config",
    "mrope_section",
    "mamba_d_state",
    "num_nextn_predict_layers",
    "swiglu_limit",
    "rope_interleaved",
    "layer_norm_epsilon",
    "layernorm_epsilon",
    "attention_sink",
    "use_mup",
    "partial_rotary_factor",
};

static bool is_neutral(const json_t *v)
{
    if (json_is_number(v))
        return json_number_value(v) == 0 || json_number_value(v) == 1;
    if (json_is_array(v))
        return json_array_size(v) == 0;
    if (json_is_object(v))
        return json_object_size(v) == 0;
    return json_is_null(v) || json_is_false(v);
}

/* transformers' key, its old name, and mlx's. */
static void refuse_quantised(struct json_reader *r)
{
    static const char *const names[] = {"quantization_config", "compression_config",
                                        "quantization"};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        const json_t *v = json_object_get(r->obj, names[i]);
        char text[256];
        if (!v || is_neutral(v))
            continue;
        foreign_quantised(json_string_value(json_object_get(v, "quant_method")), text,
                          sizeof(text));
        json_fail(r, STATUS_UNSUPPORTED, names[i], "%s", text);
    }
}

static void refuse_foreign_keys(struct json_reader *r)
{
    refuse_quantised(r);
    for (size_t i = 0; i < ARRAY_COUNT(refused_keys); i++) {
        const json_t *v = json_object_get(r->obj, refused_keys[i]);
        if (v && !is_neutral(v))
            json_fail(r, STATUS_UNSUPPORTED, refused_keys[i],
                      "found %s: it changes inference in a way this server does not compute",
                      json_shown(v));
    }
}

static void parse_family(struct json_reader *r, struct model_config *c)
{
    const char *type = json_read_string(r, "model_type");
    if (!type)
        json_fail(r, STATUS_INVALID, "model_type",
                  "missing, expected llama, mistral, qwen2 or qwen3");
    for (size_t i = 0; type && i < ARRAY_COUNT(families); i++) {
        if (strcmp(families[i].name, type))
            continue;
        c->family = (enum model_family)i;
        snprintf(c->family_name, sizeof(c->family_name), "%s", type);
    }
    if (type && c->family_name[0] == '\0')
        json_fail(r, STATUS_UNSUPPORTED, "model_type",
                  "found \"%.40s\", expected llama, mistral, qwen2 or qwen3", type);
    if (r->st || !json_has(r, "architectures"))
        return;
    const json_t *list = json_object_get(r->obj, "architectures");
    const char *arch = json_string_value(json_array_get(list, 0));
    if (!json_is_array(list) || json_array_size(list) != 1 || !arch ||
        strcmp(arch, families[c->family].architecture))
        json_fail(r, STATUS_UNSUPPORTED, "architectures", "found %s, expected [\"%s\"]",
                  arch ? arch : json_shown(list), families[c->family].architecture);
}

static void parse_dims(struct json_reader *r, struct model_config *c)
{
    const struct family_facts *f = &families[c->family];
    c->d_model = (uint32_t)json_need_int(r, "hidden_size", (struct json_range){1, 65536});
    c->d_ff = (uint32_t)json_need_int(r, "intermediate_size", (struct json_range){1, 1 << 19});
    c->n_layer =
        (uint32_t)json_need_int(r, "num_hidden_layers", (struct json_range){1, MODEL_LAYERS_MAX});
    c->n_head = (uint32_t)json_need_int(r, "num_attention_heads", (struct json_range){1, 1024});
    c->n_vocab = (uint32_t)json_need_int(r, "vocab_size", (struct json_range){1, 1 << 22});
    c->pos_max = (uint32_t)json_read_int(r, "max_position_embeddings",
                                         (struct json_range){1, 1 << 24}, f->pos_max);
    if (r->st)
        return;
    /* null means "as many as heads" everywhere; absent means the class's own default */
    bool kv_null = json_is_null(json_object_get(r->obj, "num_key_value_heads"));
    int64_t kv_absent = f->n_kv_head && !kv_null ? f->n_kv_head : c->n_head;
    c->n_kv_head =
        (uint32_t)json_read_int(r, "num_key_value_heads", (struct json_range){1, 1024}, kv_absent);
    bool has_d_head = json_has(r, "head_dim");
    c->d_head = (uint32_t)json_read_int(r, "head_dim", (struct json_range){2, 512},
                                        f->d_head ? f->d_head : c->d_model / c->n_head);
    if (!has_d_head && !f->d_head && c->d_model % c->n_head)
        json_fail(r, STATUS_INVALID, "hidden_size",
                  "found %u, expected a multiple of num_attention_heads (%u)", c->d_model,
                  c->n_head);
    if (c->n_head % c->n_kv_head)
        json_fail(r, STATUS_INVALID, "num_key_value_heads",
                  "found %u, expected a divisor of num_attention_heads (%u)", c->n_kv_head,
                  c->n_head);
    if (c->d_head < 2 || c->d_head % 2)
        json_fail(r, STATUS_INVALID, "head_dim", "found %u, expected an even number", c->d_head);
}

static void parse_flags(struct json_reader *r, struct model_config *c)
{
    const struct family_facts *f = &families[c->family];
    const char *act = json_read_string(r, "hidden_act");
    if (act && strcmp(act, "silu") && strcmp(act, "swish"))
        json_fail(r, STATUS_UNSUPPORTED, "hidden_act", "found \"%.40s\", expected \"silu\"", act);
    c->norm_eps = (float)json_read_num(r, "rms_norm_eps", 0, 1, 1e-6);
    c->tied = json_read_bool(r, "tie_word_embeddings", false);
    c->qk_norm = f->qk_norm;
    bool attention_bias = f->reads_attention_bias && json_read_bool(r, "attention_bias", false);
    c->bias_qkv = f->bias_qkv || attention_bias;
    c->bias_o = attention_bias;
    c->bias_mlp = f->reads_mlp_bias && json_read_bool(r, "mlp_bias", false);
    const char *dtype = json_read_string(r, json_has(r, "dtype") ? "dtype" : "torch_dtype");
    if (dtype && !strcmp(dtype, "bfloat16"))
        c->stored_dtype = DTYPE_BF16;
    else if (dtype && !strcmp(dtype, "float16"))
        c->stored_dtype = DTYPE_F16;
    else
        c->stored_dtype = DTYPE_F32;
}

static void mark_window_layers(struct json_reader *r, struct model_config *c, const json_t *types)
{
    if (!json_is_array(types) || json_array_size(types) != c->n_layer) {
        json_fail(r, STATUS_INVALID, "layer_types",
                  "found %s, expected a list of %u (num_hidden_layers)", json_shown(types),
                  c->n_layer);
        return;
    }
    for (uint32_t i = 0; i < c->n_layer; i++) {
        const char *type = json_string_value(json_array_get(types, i));
        bool sliding = type && !strcmp(type, "sliding_attention");
        if (!type || (!sliding && strcmp(type, "full_attention")))
            json_fail(r, STATUS_UNSUPPORTED, "layer_types",
                      "entry %u is %s, expected \"full_attention\" or \"sliding_attention\"", i,
                      json_shown(json_array_get(types, i)));
        if (sliding && c->window == 0)
            json_fail(r, STATUS_INVALID, "layer_types",
                      "entry %u is \"sliding_attention\", but no sliding_window is in use", i);
        if (sliding)
            c->window_layers[i / 8] |= (uint8_t)(1u << (i % 8));
    }
}

/* llama has no window; mistral's covers every layer; qwen's is off unless use_sliding_window, and
 * then covers layer_types' sliding layers or those from max_window_layers on. */
static void parse_window(struct json_reader *r, struct model_config *c)
{
    struct json_range range = {1, 1 << 24};
    bool is_qwen = c->family == MODEL_QWEN2 || c->family == MODEL_QWEN3;
    bool is_absent = !json_object_get(r->obj, "sliding_window");
    uint32_t window = (uint32_t)json_read_int(r, "sliding_window", range,
                                              c->family != MODEL_LLAMA && is_absent ? 4096 : 0);
    const json_t *types =
        json_has(r, "layer_types") ? json_object_get(r->obj, "layer_types") : NULL;
    uint32_t first = 0;
    if (r->st)
        return;
    if (c->family == MODEL_LLAMA && window) {
        json_fail(r, STATUS_UNSUPPORTED, "sliding_window", "found %u: llama models have none",
                  window);
        return;
    }
    if (is_qwen) {
        window = json_read_bool(r, "use_sliding_window", false) ? window : 0;
        first =
            (uint32_t)json_read_int(r, "max_window_layers", (struct json_range){0, 1 << 20}, 28);
    }
    c->window = window;
    if (types && !r->st) {
        mark_window_layers(r, c, types);
    } else {
        for (uint32_t i = first; window && i < c->n_layer; i++)
            c->window_layers[i / 8] |= (uint8_t)(1u << (i % 8));
    }
    bool any = false, all = true;
    for (uint32_t i = 0; i < c->n_layer; i++) {
        any = any || model_config_window(c, i);
        all = all && model_config_window(c, i);
    }
    if (c->family == MODEL_MISTRAL && window && !all)
        json_fail(r, STATUS_UNSUPPORTED, "layer_types",
                  "mistral attends through its window in every layer, found a mixture");
    if (!any)
        c->window = 0;
}

static void add_eos(struct json_reader *r, struct model_config *c, const json_t *v)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > INT32_MAX) {
        json_fail(r, STATUS_INVALID, "eos_token_id",
                  "found %s, expected a token id or a list of token ids", json_shown(v));
        return;
    }
    int32_t id = (int32_t)json_integer_value(v);
    for (uint32_t i = 0; i < c->eos_count; i++) {
        if (c->eos_id[i] == id)
            return;
    }
    if (c->eos_count == MODEL_EOS_MAX)
        json_fail(r, STATUS_INVALID, "eos_token_id", "more than %d ids", MODEL_EOS_MAX);
    else
        c->eos_id[c->eos_count++] = id;
}

static void parse_special_ids(struct json_reader *r, struct model_config *c, int32_t bos_absent)
{
    const json_t *eos = json_object_get(r->obj, "eos_token_id");
    if (json_is_array(eos)) {
        for (size_t i = 0; i < json_array_size(eos); i++)
            add_eos(r, c, json_array_get(eos, i));
    } else if (eos && !json_is_null(eos)) {
        add_eos(r, c, eos);
    }
    if (json_has(r, "bos_token_id"))
        c->bos_id = (int32_t)json_read_int(r, "bos_token_id", (struct json_range){-1, INT32_MAX},
                                           bos_absent);
}

static void parse_generation(struct json_reader *r, struct model_config *c)
{
    parse_special_ids(r, c, c->bos_id);
    c->default_temperature = (float)json_read_num(r, "temperature", 0, 100, NAN);
    c->default_top_p = (float)json_read_num(r, "top_p", 0, 1, NAN);
    c->default_min_p = (float)json_read_num(r, "min_p", 0, 1, NAN);
    c->default_repetition = (float)json_read_num(r, "repetition_penalty", 1e-6, 100, NAN);
    c->default_top_k = (int32_t)json_read_int(r, "top_k", (struct json_range){-1, INT32_MAX}, -1);
}

enum status model_config_parse(struct model_config *out, const char *json, size_t len,
                               const char *generation_json, size_t generation_len,
                               struct errtext *err)
{
    struct json_reader r = {.where = "config.json", .err = err};
    json_t *root;
    memset(out, 0, sizeof(*out));
    out->bos_id = -1;
    out->default_temperature = out->default_top_p = NAN;
    out->default_min_p = out->default_repetition = NAN;
    out->default_top_k = -1;
    enum status st = json_doc_parse(&root, r.where, json, len, 0, err);
    if (st)
        return st;
    r.obj = root;
    parse_family(&r, out);
    if (!r.st) {
        refuse_foreign_keys(&r);
        parse_dims(&r, out);
    }
    if (!r.st) {
        parse_flags(&r, out);
        parse_window(&r, out);
        rope_config_parse(&r, out);
        parse_special_ids(&r, out, -1);
    }
    json_decref(root);
    if (r.st || !generation_json)
        return r.st;
    r.where = "generation_config.json";
    st = json_doc_parse(&root, r.where, generation_json, generation_len, 0, err);
    if (st)
        return st;
    r.obj = root;
    parse_generation(&r, out);
    json_decref(root);
    return r.st;
}

float model_attention_scale(const struct model_config *c)
{
    return (float)(1.0 / sqrt((double)c->d_head));
}

void model_module_shape(const struct model_config *c, enum lora_module module, uint32_t *d_out,
                        uint32_t *d_in)
{
    *d_in = module == LORA_MODULE_O      ? c->n_head * c->d_head
            : module == LORA_MODULE_DOWN ? c->d_ff
                                         : c->d_model;
    switch (module) {
    case LORA_MODULE_Q:
        *d_out = c->n_head * c->d_head;
        break;
    case LORA_MODULE_K:
    case LORA_MODULE_V:
        *d_out = c->n_kv_head * c->d_head;
        break;
    case LORA_MODULE_GATE:
    case LORA_MODULE_UP:
        *d_out = c->d_ff;
        break;
    default:
        *d_out = c->d_model;
        break;
    }
}

void model_module_path(uint32_t layer, enum lora_module module, char *out, size_t out_bytes)
{
    static const char *const leaf[LORA_MODULE_COUNT] = {
        [LORA_MODULE_Q] = "self_attn.q_proj", [LORA_MODULE_K] = "self_attn.k_proj",
        [LORA_MODULE_V] = "self_attn.v_proj", [LORA_MODULE_O] = "self_attn.o_proj",
        [LORA_MODULE_GATE] = "mlp.gate_proj", [LORA_MODULE_UP] = "mlp.up_proj",
        [LORA_MODULE_DOWN] = "mlp.down_proj",
    };
    snprintf(out, out_bytes, "model.layers.%u.%s", layer, leaf[module]);
}
