/* config.json: what each family reads, defaults of absent keys, and refusals that name the key. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "server/model/config.h"

#define DIMS                                                                                       \
    "\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":4,\"num_attention_heads\":" \
    "4,\"vocab_size\":300"

static enum status parse(struct model_config *c, const char *family, const char *extra,
                         const char *generation, struct errtext *err)
{
    char text[4096];
    snprintf(text, sizeof(text), "{\"model_type\":\"%s\"," DIMS "%s%s}", family, *extra ? "," : "",
             extra);
    return model_config_parse(c, text, strlen(text), generation,
                              generation ? strlen(generation) : 0, err);
}

static struct model_config good(const char *family, const char *extra)
{
    struct model_config c;
    struct errtext err = ERRTEXT_INIT;
    if (parse(&c, family, extra, NULL, &err))
        fail_msg("%s {%s}: %s", family, extra, err.text);
    return c;
}

static void bad(const char *family, const char *extra, enum status want, const char *param,
                const char *says)
{
    struct model_config c;
    struct errtext err = ERRTEXT_INIT;
    enum status st = parse(&c, family, extra, NULL, &err);
    if (st != want || strcmp(err.param, param) || !strstr(err.text, says))
        fail_msg("%s {%s}\n  found %s, param '%s': %s\n  wanted %s, param '%s': ...%s...", family,
                 extra, status_name(st), err.param, err.text, status_name(want), param, says);
}

static void test_families(void **state)
{
    struct model_config c = good("llama", "");
    assert_int_equal(c.n_kv_head, 4);
    assert_int_equal(c.d_head, 16);
    assert_int_equal(c.pos_max, 2048);
    assert_true(c.norm_eps == 1e-6f);
    assert_false(c.tied || c.bias_qkv || c.bias_o || c.bias_mlp || c.qk_norm);
    assert_int_equal(c.window, 0);
    assert_int_equal(c.bos_id, -1);
    c = good("llama", "\"attention_bias\":true,\"mlp_bias\":true,\"tie_word_embeddings\":true,"
                      "\"num_key_value_heads\":2,\"head_dim\":8,\"rms_norm_eps\":1e-5");
    assert_true(c.tied && c.bias_qkv && c.bias_o && c.bias_mlp);
    assert_int_equal(c.d_head, 8);
    assert_int_equal(c.n_kv_head, 2);
    c = good("qwen2", "\"num_key_value_heads\":2");
    assert_true(c.bias_qkv && !c.bias_o);
    assert_int_equal(c.window, 0);
    c = good("qwen3", "\"num_key_value_heads\":null");
    assert_true(c.qk_norm && !c.bias_qkv);
    assert_int_equal(c.d_head, 128);
    assert_int_equal(c.n_kv_head, 4);
    c = good("mistral", "\"num_key_value_heads\":4,\"sliding_window\":null");
    assert_int_equal(c.window, 0);
}

static void test_window(void **state)
{
    struct model_config c = good("mistral", "\"num_key_value_heads\":2");
    assert_int_equal(c.window, 4096);
    assert_int_equal(model_config_window(&c, 0), 4096);
    c = good("qwen2", "\"num_key_value_heads\":2,\"use_sliding_window\":true,\"sliding_window\":32,"
                      "\"max_window_layers\":2");
    assert_int_equal(model_config_window(&c, 1), 0);
    assert_int_equal(model_config_window(&c, 2), 32);
    c = good("qwen3", "\"num_key_value_heads\":2,\"use_sliding_window\":true,\"sliding_window\":32,"
                      "\"layer_types\":[\"sliding_attention\",\"full_attention\","
                      "\"sliding_attention\",\"full_attention\"]");
    assert_int_equal(model_config_window(&c, 0), 32);
    assert_int_equal(model_config_window(&c, 1), 0);
    c = good("qwen2",
             "\"num_key_value_heads\":2,\"use_sliding_window\":true,\"sliding_window\":32");
    assert_int_equal(c.window, 0); /* max_window_layers 28 leaves no layer */
    bad("llama", "\"sliding_window\":32", STATUS_UNSUPPORTED, "sliding_window", "llama");
    bad("qwen2", "\"num_key_value_heads\":2,\"layer_types\":[\"sliding_attention\"]",
        STATUS_INVALID, "layer_types", "list of 4");
    bad("qwen2",
        "\"num_key_value_heads\":2,\"layer_types\":[\"sliding_attention\",\"full_attention\","
        "\"full_attention\",\"full_attention\"]",
        STATUS_INVALID, "layer_types", "no sliding_window");
    bad("qwen2",
        "\"num_key_value_heads\":2,\"layer_types\":[\"chunked_attention\",\"full_attention\","
        "\"full_attention\",\"full_attention\"]",
        STATUS_UNSUPPORTED, "layer_types", "chunked_attention");
}

static void test_refusals(void **state)
{
    bad("gemma2", "", STATUS_UNSUPPORTED, "model_type", "gemma2");
    bad("llama", "\"quantization_config\":{\"bits\":4}", STATUS_UNSUPPORTED, "quantization_config",
        "quantised");
    bad("llama", "\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":4}",
        STATUS_UNSUPPORTED, "quantization_config", "(gptq): ");
    bad("llama", "\"quantization\":{\"group_size\":64,\"bits\":4}", STATUS_UNSUPPORTED,
        "quantization", "take the model that it was quantised from");
    bad("llama", "\"auto_map\":{\"AutoModel\":\"x.Y\"}", STATUS_UNSUPPORTED, "auto_map", "");
    bad("llama", "\"final_logit_softcapping\":30.0", STATUS_UNSUPPORTED, "final_logit_softcapping",
        "30");
    bad("llama", "\"hidden_act\":\"gelu\"", STATUS_UNSUPPORTED, "hidden_act", "gelu");
    bad("llama", "\"architectures\":[\"LlamaForSequenceClassification\"]", STATUS_UNSUPPORTED,
        "architectures", "LlamaForCausalLM");
    bad("llama", "\"num_key_value_heads\":3", STATUS_INVALID, "num_key_value_heads", "divisor");
    bad("llama", "\"head_dim\":7", STATUS_INVALID, "head_dim", "even");
    bad("llama", "\"head_dim\":\"7\"", STATUS_INVALID, "head_dim", "found \"7\"");
    bad("llama", "\"rms_norm_eps\":-1", STATUS_INVALID, "rms_norm_eps", "found -1");
    bad("llama", "\"tie_word_embeddings\":1", STATUS_INVALID, "tie_word_embeddings",
        "true or false");
    bad("llama", "\"max_position_embeddings\":0", STATUS_INVALID, "max_position_embeddings", "");
    good("llama", "\"final_logit_softcapping\":null,\"auto_map\":{},\"num_experts\":0,"
                  "\"residual_multiplier\":1.0,\"some_trainer_note\":{\"a\":[1]}");
}

static void test_rope_keys(void **state)
{
    bad("llama", "\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2.0}", STATUS_UNSUPPORTED,
        "rope_scaling.type", "length of each sequence");
    bad("llama", "\"rope_scaling\":{\"rope_type\":\"longrope\",\"short_factor\":[1]}",
        STATUS_UNSUPPORTED, "rope_scaling.rope_type", "short-context variant");
    bad("llama", "\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":2,\"short_factor\":[1]}",
        STATUS_UNSUPPORTED, "rope_scaling.short_factor", "not known");
    bad("llama", "\"rope_scaling\":{\"rope_type\":\"linear\"}", STATUS_INVALID,
        "rope_scaling.factor", "missing");
    bad("llama", "\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0}", STATUS_INVALID,
        "rope_scaling.low_freq_factor", "missing");
    bad("llama", "\"rope_scaling\":7", STATUS_INVALID, "rope_scaling", "expected an object");
    bad("llama", "\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"default\"}}",
        STATUS_UNSUPPORTED, "rope_parameters.full_attention", "per layer type");
    bad("llama", "\"rope_parameters\":{\"rope_type\":\"default\",\"partial_rotary_factor\":0.5}",
        STATUS_UNSUPPORTED, "rope_parameters.partial_rotary_factor", "0.5");
    bad("llama", "\"partial_rotary_factor\":0.5", STATUS_UNSUPPORTED, "partial_rotary_factor", "");
    bad("llama", "\"rope_theta\":\"1e4\"", STATUS_INVALID, "rope_theta", "");
    struct model_config c = good("llama", "\"rope_theta\":500000,\"rope_scaling\":null");
    assert_true(c.rope.theta == 500000);
    assert_int_equal(c.rope.kind, ROPE_DEFAULT);
    c = good("llama", "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0,"
                      "\"original_max_position_embeddings\":1024}");
    assert_int_equal(c.rope.kind, ROPE_YARN);
    assert_true(fabs(c.rope.attention_factor - (0.1 * log(4.0) + 1)) < 1e-12);
    assert_int_equal(c.rope.original_pos_max, 1024);
    /* a key that transformers knows nothing of; vLLM would multiply */
    c = good("llama", "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0,\"attn_factor\":0.5,"
                      "\"original_max_position_embeddings\":1024}");
    assert_true(fabs(c.rope.attention_factor - (0.1 * log(4.0) + 1)) < 1e-12);
    bad("llama", "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0,\"attn_factor\":\"x\"}",
        STATUS_INVALID, "rope_scaling.attn_factor", "");
}

static void test_generation(void **state)
{
    struct model_config c;
    struct errtext err = ERRTEXT_INIT;
    assert_int_equal(
        parse(&c, "llama", "\"eos_token_id\":[5,6],\"bos_token_id\":1",
              "{\"eos_token_id\":[6,7],\"temperature\":0.6,\"top_p\":0.9,\"top_k\":50}", &err),
        STATUS_OK);
    assert_int_equal(c.eos_count, 3);
    assert_int_equal(c.eos_id[2], 7);
    assert_int_equal(c.bos_id, 1);
    assert_true(c.default_temperature == 0.6f && c.default_top_k == 50);
    assert_true(isnan(c.default_min_p) && isnan(c.default_repetition));
    assert_int_equal(parse(&c, "llama", "", "{\"top_p\":\"x\"}", &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "generation_config.json: top_p"));
    err_clear(&err);
    assert_int_equal(parse(&c, "llama", "", "[", &err), STATUS_INVALID);
    bad("llama", "\"eos_token_id\":\"</s>\"", STATUS_INVALID, "eos_token_id", "token id");
    bad("llama", "\"eos_token_id\":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]", STATUS_INVALID,
        "eos_token_id", "more than 16");
}

static void test_malformed(void **state)
{
    static const char *const texts[] = {"",
                                        "{",
                                        "[]",
                                        "null",
                                        "{\"model_type\":1}",
                                        "{}",
                                        "{\"model_type\":\"llama\"}",
                                        "{\"model_type\":\"llama\",\"model_type\":\"llama\"}"};
    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
        struct model_config c;
        struct errtext err = ERRTEXT_INIT;
        assert_int_equal(model_config_parse(&c, texts[i], strlen(texts[i]), NULL, 0, &err),
                         STATUS_INVALID);
        assert_non_null(strstr(err.text, "config.json"));
    }
}

static void test_module_shapes(void **state)
{
    struct model_config c = good("llama", "\"num_key_value_heads\":2,\"head_dim\":24");
    uint32_t d_out, d_in;
    char path[96];
    model_module_shape(&c, LORA_MODULE_O, &d_out, &d_in);
    assert_int_equal(d_out, 64);
    assert_int_equal(d_in, 96);
    model_module_shape(&c, LORA_MODULE_V, &d_out, &d_in);
    assert_int_equal(d_out, 48);
    model_module_path(3, LORA_MODULE_DOWN, path, sizeof(path));
    assert_string_equal(path, "model.layers.3.mlp.down_proj");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_families),      cmocka_unit_test(test_window),
        cmocka_unit_test(test_refusals),      cmocka_unit_test(test_rope_keys),
        cmocka_unit_test(test_generation),    cmocka_unit_test(test_malformed),
        cmocka_unit_test(test_module_shapes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
