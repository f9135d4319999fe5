/* Loading a model directory: dtypes, shards, ids and their cache, text files, and every way a
 * directory can be wrong. Directories are derived from the logits cases (tests/data/logits). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/base/buf.h"
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/model/convert.h"
#include "server/model/model.h"
#include "tests/lib/st_build.h"

static const char cases_dir[] = RS_TEST_DATA "/logits";
static char dir[64];
static bool strict;

/* ---- a private copy of one case's model, in `dir` ---- */

static void run(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void run(const char *fmt, ...)
{
    char command[4096];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(command, sizeof(command), fmt, ap);
    va_end(ap);
    if (system(command) != 0)
        fail_msg("command failed: %s", command);
}

static void use_case(const char *name)
{
    snprintf(dir, sizeof(dir), "/tmp/rs-model-XXXXXX");
    assert_non_null(mkdtemp(dir));
    run("cp -r %s/%s/model/. %s && chmod -R u+w %s", cases_dir, name, dir, dir);
}

static int drop_case(void **state)
{
    if (dir[0])
        run("rm -r %s", dir);
    dir[0] = '\0';
    return 0;
}

static void write_file(const char *name, const void *data, size_t len)
{
    char path[256];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    assert_int_equal(file_write_atomic(path, data, len, 0644, NULL), STATUS_OK);
}

static char *read_file(const char *name, size_t *len)
{
    char path[256], *data;
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    assert_int_equal(file_read(path, 1u << 26, &data, len, NULL), STATUS_OK);
    return data;
}

static struct model *load(enum dtype_choice dtype, bool cpu_has_bf16)
{
    struct model *m;
    struct errtext err = ERRTEXT_INIT;
    struct model_options opt = {.dtype = dtype, .cpu_has_bf16 = cpu_has_bf16, .strict = strict};
    if (model_load(&m, dir, &opt, &err))
        fail_msg("%s", err.text);
    return m;
}

static void refused(enum status want, const char *says)
{
    struct model *m;
    struct errtext err = ERRTEXT_INIT;
    struct model_options opt = {.dtype = DTYPE_CHOICE_F32, .strict = strict};
    enum status st = model_load(&m, dir, &opt, &err);
    if (st != want || !strstr(err.text, says))
        fail_msg("found %s: %s\n  wanted %s with '%s'", status_name(st), err.text,
                 status_name(want), says);
    assert_null(m);
}

/* ---- what loads ---- */

static void test_dtypes(void **state)
{
    use_case("llama_default"); /* stored in bf16 */
    struct model *m = load(DTYPE_CHOICE_AUTO, true);
    assert_int_equal(m->dtype, DTYPE_BF16);
    assert_int_equal(m->config.stored_dtype, DTYPE_BF16);
    assert_int_equal(m->layer[1].q.dtype, DTYPE_BF16);
    uint16_t first;
    memcpy(&first, m->layer[1].q.data, 2);
    model_free(m);
    m = load(DTYPE_CHOICE_AUTO, false);
    assert_int_equal(m->dtype, DTYPE_F32);
    assert_true(((const float *)m->layer[1].q.data)[0] == convert_load(&first, DTYPE_BF16, 0));
    assert_false(m->config.tied);
    assert_ptr_not_equal(m->lm_head.data, m->embed.data);
    assert_true(m->weight_bytes > 0);
    model_free(m);
    drop_case(NULL);
    use_case("llama_f32");
    m = load(DTYPE_CHOICE_AUTO, true);
    assert_int_equal(m->dtype, DTYPE_F32);
    assert_ptr_equal(m->lm_head.data, m->embed.data); /* tied */
    model_free(m);
    m = load(DTYPE_CHOICE_BF16, false);
    assert_int_equal(m->embed.dtype, DTYPE_BF16);
    model_free(m);
    drop_case(NULL);
    use_case("mistral_f16");
    m = load(DTYPE_CHOICE_AUTO, true);
    assert_int_equal(m->dtype, DTYPE_F32);
    assert_int_equal(m->config.stored_dtype, DTYPE_F16);
    model_free(m);
}

static void test_family_parts(void **state)
{
    use_case("qwen3_qknorm");
    struct model *m = load(DTYPE_CHOICE_F32, false);
    assert_non_null(m->layer[0].q_norm);
    assert_null(m->layer[0].bias_q);
    model_free(m);
    drop_case(NULL);
    use_case("llama_llama3_tied_bias");
    m = load(DTYPE_CHOICE_F32, false);
    assert_true(m->layer[0].bias_q && m->layer[0].bias_o && m->layer[0].bias_down);
    assert_null(m->layer[0].q_norm);
    model_free(m);
}

/* Split the weights over two shards with an index. */
static void shard_it(bool break_index)
{
    struct st_file f;
    struct st_build part[2];
    struct buf index;
    size_t len;
    char *bytes = read_file("model.safetensors", &len);
    assert_int_equal(safetensors_parse(&f, bytes, len, len, 1u << 20, NULL), STATUS_OK);
    buf_init(&index, 1u << 20);
    st_build_init(&part[0]);
    st_build_init(&part[1]);
    buf_puts(&index, "{\"metadata\":{},\"weight_map\":{");
    for (size_t i = 0; i < f.tensor_count; i++) {
        const struct st_tensor *t = &f.tensor[f.tensor_count - 1 - i];
        bool is_vector = t->rank == 1;
        st_build_add(&part[i % 2], t->name, st_dtype_name(t->dtype),
                     is_vector ? 0 : (uint32_t)t->dim[0], (uint32_t)t->dim[is_vector ? 0 : 1],
                     bytes + t->begin);
        if (break_index && i == 3)
            continue;
        buf_printf(&index, "%s\"%s\":\"part-%zu.safetensors\"", i ? "," : "", t->name, i % 2);
    }
    buf_puts(&index, "}}");
    write_file("model.safetensors.index.json", index.data, index.len);
    buf_fini(&index);
    for (int i = 0; i < 2; i++) {
        size_t n;
        char name[32], *file = st_build_bytes(&part[i], &n);
        snprintf(name, sizeof(name), "part-%d.safetensors", i);
        write_file(name, file, n);
        mem_free(file);
        st_build_fini(&part[i]);
    }
    safetensors_fini(&f);
    mem_free(bytes);
    run("rm %s/model.safetensors", dir);
}

static void test_shards_and_id(void **state)
{
    uint8_t id[32];
    use_case("llama_default");
    struct model *m = load(DTYPE_CHOICE_F32, false);
    memcpy(id, m->id, 32);
    model_free(m);
    shard_it(false);
    m = load(DTYPE_CHOICE_F32, false);
    assert_memory_equal(id, m->id, 32); /* sharding and order do not enter */
    model_free(m);
    run("sed -i 's/\"rms_norm_eps\": 1e-06/\"rms_norm_eps\": 1e-05/' %s/config.json", dir);
    m = load(DTYPE_CHOICE_F32, false);
    assert_memory_not_equal(id, m->id, 32);
    model_free(m);
    drop_case(NULL);
    use_case("llama_default");
    shard_it(true);
    refused(STATUS_CORRUPT, "is missing from model.safetensors.index.json");
    run("sed -i 's/part-0.safetensors/..\\/part-0.safetensors/' %s/model.safetensors.index.json",
        dir);
    refused(STATUS_DENIED, "weight_map");
    run("rm %s/part-1.safetensors && sed -i 's/..\\/part-0/part-0/' "
        "%s/model.safetensors.index.json",
        dir, dir);
    refused(STATUS_NOT_FOUND, "part-1.safetensors");
}

struct digest_seen {
    int digests;
};

static void count_digest(void *arg, const char *what, uint64_t done, uint64_t total)
{
    struct digest_seen *seen = arg;
    assert_true(done <= total);
    seen->digests += !strncmp(what, "digesting", 9);
}

static int digests_of_load(uint8_t id[32], const char *cache_dir)
{
    struct digest_seen seen = {0};
    struct model *m;
    struct model_options opt = {.dtype = DTYPE_CHOICE_F32,
                                .progress = count_digest,
                                .progress_arg = &seen,
                                .id_cache_dir = cache_dir};
    assert_int_equal(model_load(&m, dir, &opt, NULL), STATUS_OK);
    memcpy(id, m->id, 32);
    model_free(m);
    return seen.digests;
}

static void test_id_cache(void **state)
{
    uint8_t id[32], again[32];
    char cache[] = "/tmp/rs-cache-XXXXXX";
    assert_non_null(mkdtemp(cache));
    use_case("llama_default");
    assert_true(digests_of_load(id, cache) > 0);
    assert_int_equal(digests_of_load(again, cache), 0);
    assert_memory_equal(id, again, 32);
    assert_true(digests_of_load(again, NULL) > 0); /* beside the model: another cache */
    assert_int_equal(digests_of_load(again, NULL), 0);
    /* one weight byte, same size: mtime changes, and so does the id */
    run("printf '\\001' | dd of=%s/model.safetensors bs=1 seek=$(($(stat -c %%s "
        "%s/model.safetensors)-3)) conv=notrunc status=none",
        dir, dir);
    assert_true(digests_of_load(again, cache) > 0);
    assert_memory_not_equal(id, again, 32);
    /* a damaged cache is not believed */
    run("for f in %s/*; do printf x >> $f; done", cache);
    assert_true(digests_of_load(id, cache) > 0);
    assert_memory_equal(id, again, 32);
    run("rm -r %s", cache);
}

/* ---- text files ---- */

static void test_text(void **state)
{
    static const char config[] =
        "{\"bos_token\":{\"content\":\"A\"},\"eos_token\":\"B\",\"chat_template\":[{\"name\":"
        "\"default\",\"template\":\"one\"},{\"name\":\"tool_use\",\"template\":\"two\"}]}";
    uint8_t without[32];
    use_case("llama_default");
    struct model *m = load(DTYPE_CHOICE_F32, false);
    assert_null(m->chat);
    assert_false(m->add_bos);
    memcpy(without, m->id, 32);
    model_free(m);
    write_file("tokenizer_config.json", config, sizeof(config) - 1);
    m = load(DTYPE_CHOICE_F32, false);
    assert_string_equal(model_special_text(m, "bos_token"), "A");
    assert_string_equal(model_special_text(m, "eos_token"), "B");
    assert_null(model_special_text(m, "pad_token"));
    assert_string_equal(m->chat_text, "one");
    assert_non_null(m->chat);
    assert_non_null(m->chat_tools);
    assert_memory_not_equal(m->id, without, 32);
    model_free(m);
    write_file("chat_template.jinja", "three", 5);
    m = load(DTYPE_CHOICE_F32, false);
    assert_string_equal(m->chat_text, "three");
    assert_null(m->chat_tools); /* .jinja files replace those of tokenizer_config.json */
    model_free(m);
    write_file("chat_template.jinja", "{% if %}", 8);
    m = load(DTYPE_CHOICE_F32, false); /* costs chat, not the model */
    assert_null(m->chat);
    assert_non_null(strstr(m->chat_refusal, "chat_template.jinja"));
    assert_string_equal(m->chat_text, "{% if %}");
    model_free(m);
    strict = true;
    refused(STATUS_INVALID, "chat_template.jinja");
    strict = false;
}

/* Ids and flags as transformers 5.23 gives them for the same files beside this tokenizer (256
 * bytes, no added tokens, config.json's end token 2). */
static void expect_token(const struct model *m, const char *text, int32_t id, bool special)
{
    if (tokenizer_token_to_id(m->tokenizer, text) != id)
        fail_msg("%s is %d, want %d", text, tokenizer_token_to_id(m->tokenizer, text), id);
    assert_int_equal(tokenizer_is_special(m->tokenizer, id), special);
}

static void test_token_files(void **state)
{
    static const char newest[] =
        "{\"model_max_length\":1000000000000000019884624838656,\"add_bos_token\":true,"
        "\"image_token\":\"<i>\",\"pad_token\":\"<p>\",\"eos_token\":{\"__type\":\"AddedToken\","
        "\"content\":\"<e>\"},\"unk_token\":null,\"additional_special_tokens\":[\"<x>\"],"
        "\"added_tokens_decoder\":{\"300\":{\"content\":\"<b>\"},\"260\":{\"content\":\"<e>\","
        "\"special\":false}}}";
    static const char oldest[] = "{\"eos_token\":\"<e>\",\"split_special_tokens\":true}";
    static const char map[] = "{\"eos_token\":{\"content\":\"<m>\"},\"pad_token\":\"<a>\"}";
    static const char added[] = "{\"<c>\":257,\"<a>\":256}";
    struct token_list ids = {0};
    use_case("llama_default");
    write_file("tokenizer_config.json", newest, sizeof(newest) - 1);
    write_file("special_tokens_map.json", map, sizeof(map) - 1); /* not read beside a decoder */
    write_file("added_tokens.json", added, sizeof(added) - 1);
    struct model *m = load(DTYPE_CHOICE_F32, false);
    expect_token(m, "<e>", 256, true); /* by id; special by its name */
    expect_token(m, "<b>", 257, false);
    expect_token(m, "<p>", 258, true);
    expect_token(m, "<i>", 259, true);
    expect_token(m, "<x>", 260, true);
    assert_int_equal(tokenizer_token_to_id(m->tokenizer, "<m>"), -1);
    assert_string_equal(model_special_text(m, "image_token"), "<i>");
    assert_null(model_special_text(m, "unk_token"));
    assert_null(model_special_text(m, "add_bos_token"));
    assert_int_equal(m->config.eos_id[m->config.eos_count - 1], 256); /* ends answers too */
    model_free(m);
    write_file("tokenizer_config.json", oldest, sizeof(oldest) - 1);
    m = load(DTYPE_CHOICE_F32, false);
    expect_token(m, "<a>", 256, true);
    expect_token(m, "<c>", 257, false);
    expect_token(m, "<m>", 258, true); /* the map's name replaces the config's */
    assert_int_equal(tokenizer_token_to_id(m->tokenizer, "<e>"), -1);
    assert_int_equal(
        tokenizer_encode(m->tokenizer, "<a><c>", 6, TOKENIZE_PARSE_SPECIAL, &ids, NULL), STATUS_OK);
    assert_int_equal(ids.n, 4); /* <a> stays text, <c> is no special token */
    mem_free(ids.ids);
    model_free(m);
    struct buf many; /* more tokens than the embedding has rows: served */
    buf_init(&many, 4096);
    buf_puts(&many, "{\"extra_special_tokens\":[\"<0>\"");
    for (int i = 1; i < 30; i++)
        buf_printf(&many, ",\"<%d>\"", i);
    buf_puts(&many, "]}");
    write_file("tokenizer_config.json", many.data, many.len);
    buf_fini(&many);
    m = load(DTYPE_CHOICE_F32, false);
    assert_int_equal(m->config.n_vocab, 272);
    expect_token(m, "<29>", 288, true);
    model_free(m);
    write_file("added_tokens.json", "{\"<a>\":\"x\"}", 11);
    refused(STATUS_INVALID, "added_tokens.json");
    write_file("tokenizer_config.json", "{\"added_tokens_decoder\":{\"x\":{}}}", 33);
    refused(STATUS_INVALID, "added_tokens_decoder.x");
}

static void test_bad_text(void **state)
{
    use_case("llama_default");
    run("rm %s/tokenizer.json", dir);
    refused(STATUS_NOT_FOUND, "tokenizer.json");
    write_file("tokenizer.json", "{", 1);
    refused(STATUS_INVALID, "tokenizer.json");
    write_file("config.json", "{\"model_type\":", 14);
    refused(STATUS_INVALID, "config.json");
}

/* ---- weights that do not fit ---- */

static void test_bad_weights(void **state)
{
    use_case("llama_default");
    run("sed -i 's/\"intermediate_size\": 48/\"intermediate_size\": 40/' %s/config.json", dir);
    refused(STATUS_INVALID, "config.json implies [40, 32]");
    run("sed -i 's/\"intermediate_size\": 40/\"intermediate_size\": 48/' %s/config.json", dir);
    run("sed -i 's/\"num_hidden_layers\": 2/\"num_hidden_layers\": 3/' %s/config.json", dir);
    refused(STATUS_INVALID, "'model.layers.2.");
    run("sed -i 's/\"num_hidden_layers\": 3/\"num_hidden_layers\": 1/' %s/config.json", dir);
    refused(STATUS_UNSUPPORTED, "is no part of this llama model");
    run("sed -i 's/\"num_hidden_layers\": 1/\"num_hidden_layers\": 2/' %s/config.json", dir);
    run("sed -i 's/\"tie_word_embeddings\": false/\"tie_word_embeddings\": true/' %s/config.json",
        dir);
    refused(STATUS_INVALID, "lm_head.weight differs");
    run("truncate -s -7 %s/model.safetensors", dir);
    refused(STATUS_CORRUPT, "model.safetensors");
    run("truncate -s 5 %s/model.safetensors", dir);
    refused(STATUS_CORRUPT, "5 bytes");
    run("rm %s/model.safetensors", dir);
    refused(STATUS_NOT_FOUND, "neither model.safetensors nor");
    write_file("pytorch_model.bin", "x", 1);
    refused(STATUS_UNSUPPORTED, "pickled");
}

/* A file that shrinks while it is read ends in a sentence, not in a signal. */
static void shrink(void *arg, const char *what, uint64_t done, uint64_t total)
{
    char path[256];
    int *at = arg;
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    if ((*at)-- == 0)
        assert_int_equal(truncate(path, 9000), 0);
}

static void test_shrinks(void **state)
{
    static const int when[] = {0, 3, 25, 40};
    for (size_t i = 0; i < sizeof(when) / sizeof(*when); i++) {
        struct model *m;
        struct errtext err = ERRTEXT_INIT;
        int at = when[i];
        struct model_options opt = {
            .dtype = DTYPE_CHOICE_F32, .progress = shrink, .progress_arg = &at};
        use_case("llama_default");
        assert_int_equal(model_load(&m, dir, &opt, &err), STATUS_CORRUPT);
        assert_true(at < 0);
        assert_true(strstr(err.text, "shrank") || strstr(err.text, "changed while"));
        drop_case(NULL);
    }
}

static void test_no_directory(void **state)
{
    snprintf(dir, sizeof(dir), "/tmp/rs-model-none");
    refused(STATUS_NOT_FOUND, "/tmp/rs-model-none");
    snprintf(dir, sizeof(dir), "some-org/Some-Model-1.5B");
    refused(STATUS_NOT_FOUND, "hf download some-org/Some-Model-1.5B");
    dir[0] = '\0';
}

/* Other things than a model in safetensors: named, with what to do. */
static void test_foreign(void **state)
{
    static const char lfs[] = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
    char top[sizeof(dir)];
    use_case("llama_default");
    snprintf(top, sizeof(top), "%s", dir);
    write_file("model.safetensors", lfs, sizeof(lfs) - 1);
    refused(STATUS_CORRUPT, "Git LFS");
    run("rm %s/model.safetensors", dir);
    write_file("q4.gguf", "GGUF", 4);
    refused(STATUS_NOT_FOUND, "q4.gguf: a GGUF file");
    snprintf(dir, sizeof(dir), "%s/q4.gguf", top);
    refused(STATUS_NOT_FOUND, "a GGUF file");
    snprintf(dir, sizeof(dir), "%s", top);
    run("rm %s/q4.gguf", dir);
    write_file("tokenizer.json", lfs, sizeof(lfs) - 1);
    refused(STATUS_INVALID, "tokenizer.json: a Git LFS");
    run("rm %s/tokenizer.json && touch %s/tokenizer.model", dir, dir);
    refused(STATUS_NOT_FOUND, "only tokenizer.model is there; write it once with transformers");
    run("rm %s/*.* && touch %s/adapter_config.json", dir, dir);
    refused(STATUS_NOT_FOUND, "an adapter, not a base model");
    run("rm %s/*.* && mkdir -p %s/snapshots/0f1e", dir, dir);
    refused(STATUS_NOT_FOUND, "/snapshots/0f1e");
}

/* Quantised weights without a word of it in config.json. */
static void test_quantised_names(void **state)
{
    use_case("llama_default");
    run("sed -i 's/layers.0.self_attn.q_proj.weight\"/layers.0.self_attn.q_proj.scales\"/' "
        "%s/model.safetensors",
        dir);
    refused(STATUS_UNSUPPORTED, "q_proj.scales' is there instead");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_dtypes, drop_case),
        cmocka_unit_test_teardown(test_family_parts, drop_case),
        cmocka_unit_test_teardown(test_shards_and_id, drop_case),
        cmocka_unit_test_teardown(test_id_cache, drop_case),
        cmocka_unit_test_teardown(test_text, drop_case),
        cmocka_unit_test_teardown(test_token_files, drop_case),
        cmocka_unit_test_teardown(test_bad_text, drop_case),
        cmocka_unit_test_teardown(test_bad_weights, drop_case),
        cmocka_unit_test_teardown(test_shrinks, drop_case),
        cmocka_unit_test_teardown(test_foreign, drop_case),
        cmocka_unit_test_teardown(test_quantised_names, drop_case),
        cmocka_unit_test(test_no_directory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
