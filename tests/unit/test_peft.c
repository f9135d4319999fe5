/* PEFT adapters: what the real peft makes of a config (tests/oracle/peft_golden.py), ids by an
 * independent implementation, the device form, and refusals that name what is wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "server/adapter/peft/peft.h"
#include "server/base/file.h"
#include "server/base/hex.h"
#include "server/base/mem.h"
#include "server/model/convert.h"
#include "tests/lib/st_build.h"

static const char base_json[] =
    "{\"model_type\":\"llama\",\"hidden_size\":16,\"intermediate_size\":24,\"num_hidden_layers\":"
    "12,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":6,\"vocab_size\":32}";

static struct model_config base_config(void)
{
    struct model_config c;
    assert_int_equal(model_config_parse(&c, base_json, strlen(base_json), NULL, 0, NULL),
                     STATUS_OK);
    return c;
}

/* ---- goldens ---- */

static void put_pattern(struct st_build *b, const char *path, size_t n, bool is_b)
{
    size_t start = strlen(path) * 7 + (is_b ? 53 : 0);
    for (size_t k = 0; k < n; k++)
        buf_putc(&b->data, (char)((k * 131 + start) & 255));
}

static void add_module(struct st_build *b, const struct model_config *c, const char *prefix,
                       const char *path, uint32_t rank, const char *dtype)
{
    char name[160];
    uint32_t layer, d_out, d_in;
    enum lora_module m = LORA_MODULE_Q;
    char leaf[96];
    assert_int_equal(sscanf(path, "model.layers.%u.", &layer), 1);
    for (; m < LORA_MODULE_COUNT; m++) {
        model_module_path(layer, m, leaf, sizeof(leaf));
        if (!strcmp(leaf, path))
            break;
    }
    assert_true(m < LORA_MODULE_COUNT);
    model_module_shape(c, m, &d_out, &d_in);
    size_t width = strcmp(dtype, "F32") ? 2 : 4;
    snprintf(name, sizeof(name), "%s%s.lora_A.weight", prefix, path);
    st_build_add(b, name, dtype, rank, d_in, NULL);
    put_pattern(b, path, (size_t)rank * d_in * width, false);
    snprintf(name, sizeof(name), "%s%s.lora_B.weight", prefix, path);
    st_build_add(b, name, dtype, d_out, rank, NULL);
    put_pattern(b, path, (size_t)rank * d_out * width, true);
}

static void check_golden(const json_t *item, const struct model_config *c, const char *prefix)
{
    struct st_build b;
    struct peft_adapter a;
    struct errtext err = ERRTEXT_INIT;
    const char *name = json_string_value(json_object_get(item, "name")), *path;
    json_t *modules = json_object_get(item, "modules"), *facts;
    size_t len;
    st_build_init(&b);
    json_object_foreach(modules, path, facts)
        add_module(&b, c, prefix, path, (uint32_t)json_integer_value(json_array_get(facts, 0)),
                   json_string_value(json_object_get(item, "dtype")));
    char *bytes = st_build_bytes(&b, &len);
    st_build_fini(&b);
    char *dumped = json_dumps(json_object_get(item, "config"), 0);
    char *config = mem_strdup(dumped);
    free(dumped);
    if (peft_from_bytes(&a, config, strlen(config), bytes, len, c, &err))
        fail_msg("%s: %s", name, err.text);
    assert_int_equal(a.module_count, json_object_size(modules));
    for (uint32_t i = 0; i < a.module_count; i++) {
        char found[96], id[65];
        model_module_path(a.module[i].layer, a.module[i].module, found, sizeof(found));
        facts = json_object_get(modules, found);
        assert_non_null(facts);
        double want = json_number_value(json_array_get(facts, 1));
        if (fabs(a.module[i].scale - want) > 1e-15 * fabs(want))
            fail_msg("%s: %s: scale %.17g, peft has %.17g", name, found, a.module[i].scale, want);
        hex_encode(id, a.id, 32);
        assert_string_equal(id, json_string_value(json_object_get(item, "id")));
    }
    peft_fini(&a);
}

static void test_golden(void **state)
{
    struct model_config c = base_config();
    char *text;
    size_t len;
    assert_int_equal(file_read(RS_TEST_DATA "/peft_golden.json", 1u << 24, &text, &len, NULL),
                     STATUS_OK);
    json_t *root = json_loadb(text, len, 0, NULL);
    const json_t *cases = json_object_get(root, "cases");
    assert_true(json_array_size(cases) >= 20);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        check_golden(json_array_get(cases, i), &c, "base_model.model.");
        check_golden(json_array_get(cases, i), &c, "");
    }
    json_decref(root);
    mem_free(text);
}

/* ---- hand-made adapters ---- */

#define LORA_Q3 "model.layers.3.self_attn.q_proj"
#define Q_ONLY                                                                                     \
    "\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,"                                             \
    "\"target_modules\":[\"model.layers.3.self_attn.q_proj\"]"

struct pair { /* A [2, 16], B [24, 2] of layer 3's q */
    float a[32], b[48];
};

static void fill(struct pair *p)
{
    for (int i = 0; i < 32; i++)
        p->a[i] = (float)(i % 7 - 3) / 4;
    for (int i = 0; i < 48; i++)
        p->b[i] = (float)(i % 5 - 2) / 8;
}

static void add_pair(struct st_build *b, const struct pair *p)
{
    st_build_add(b, "base_model.model." LORA_Q3 ".lora_A.weight", "F32", 2, 16, p->a);
    st_build_add(b, "base_model.model." LORA_Q3 ".lora_B.weight", "F32", 24, 2, p->b);
}

static enum status try_build(struct peft_adapter *a, const char *fields, const struct st_build *b,
                             struct errtext *err)
{
    struct model_config c = base_config();
    char config[4096];
    size_t len;
    snprintf(config, sizeof(config), "{%s}", fields);
    char *text = mem_strdup(config), *bytes = st_build_bytes(b, &len);
    enum status st = peft_from_bytes(a, text, strlen(text), bytes, len, &c, err);
    if (st) {
        mem_free(text);
        mem_free(bytes);
    }
    return st;
}

static void refused_config(const char *fields, enum status want, const char *param)
{
    struct pair p;
    struct st_build b;
    struct peft_adapter a;
    struct errtext err = ERRTEXT_INIT;
    fill(&p);
    st_build_init(&b);
    add_pair(&b, &p);
    enum status st = try_build(&a, fields, &b, &err);
    st_build_fini(&b);
    if (st == STATUS_OK)
        peft_fini(&a);
    if (st != want || strcmp(err.param, param) || !strstr(err.text, param))
        fail_msg("{%s}\n  found %s '%s' '%s', wanted %s '%s'", fields, status_name(st), err.param,
                 err.text, status_name(want), param);
}

static void test_refused_fields(void **state)
{
    static const struct {
        const char *field, *value;
    } cases[] = {
        {"use_dora", "true"},
        {"modules_to_save", "[\"lm_head\"]"},
        {"bias", "\"all\""},
        {"bias", "\"lora_only\""},
        {"lora_bias", "true"},
        {"trainable_token_indices", "[1]"},
        {"layer_replication", "[[0,2],[1,3]]"},
        {"use_qalora", "true"},
        {"use_bdlora", "{\"nblocks\":2}"},
        {"target_parameters", "[\"experts.up\"]"},
        {"megatron_config", "{\"a\":1}"},
        {"alora_invocation_tokens", "[5]"},
        {"arrow_config", "{\"top_k\":3}"},
        {"kasa_config", "{\"beta\":1}"},
        {"monteclora_config", "{\"num_samples\":8}"},
        {"init_lora_weights", "\"pissa\""},
        {"init_lora_weights", "\"loftq\""},
        {"task_type", "\"SEQ_CLS\""},
        {"a_field_of_next_year", "3"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        char fields[1024];
        snprintf(fields, sizeof(fields), Q_ONLY ",\"%s\":%s", cases[i].field, cases[i].value);
        refused_config(fields, STATUS_UNSUPPORTED, cases[i].field);
    }
    refused_config("\"peft_type\":\"IA3\"", STATUS_UNSUPPORTED, "peft_type");
    refused_config("\"r\":2", STATUS_UNSUPPORTED, "peft_type");
}

static void test_wrong_values(void **state)
{
    refused_config(Q_ONLY ",\"rank_pattern\":{\"q_proj\":0}", STATUS_INVALID, "rank_pattern");
    refused_config(Q_ONLY ",\"rank_pattern\":[1]", STATUS_INVALID, "rank_pattern");
    refused_config(Q_ONLY ",\"alpha_pattern\":{\"(\":1}", STATUS_INVALID, "alpha_pattern");
    refused_config(Q_ONLY ",\"alpha_pattern\":{\"q\":\"x\"}", STATUS_INVALID, "alpha_pattern");
    refused_config("\"peft_type\":\"LORA\",\"r\":\"2\",\"target_modules\":[\"q_proj\"]",
                   STATUS_INVALID, "r");
    refused_config("\"peft_type\":\"LORA\",\"r\":2,\"target_modules\":7", STATUS_INVALID,
                   "target_modules");
    refused_config("\"peft_type\":\"LORA\",\"r\":2,\"target_modules\":[7]", STATUS_INVALID,
                   "target_modules");
    refused_config("\"peft_type\":\"LORA\",\"r\":2,\"target_modules\":\"(a+)+b|((q+)+)+x\"",
                   STATUS_INVALID, "target_modules");
    refused_config("\"peft_type\":\"LORA\",\"r\":2,\"target_modules\":\"(*COMMIT)q\"",
                   STATUS_INVALID, "target_modules");
    refused_config("\"peft_type\":\"LORA\",\"r\":2,\"target_modules\":\".*q_proj\","
                   "\"layers_to_transform\":[3]",
                   STATUS_INVALID, "layers_to_transform");
}

static void test_cross_checks(void **state)
{
    /* rank of the tensors against the config's */
    refused_config("\"peft_type\":\"LORA\",\"r\":8,\"target_modules\":[\"" LORA_Q3 "\"]",
                   STATUS_INVALID, "r");
    /* tensors that the config leaves out, modules without tensors */
    refused_config("\"peft_type\":\"LORA\",\"r\":2,\"target_modules\":[\"v_proj\"]", STATUS_INVALID,
                   "target_modules");
    refused_config("\"peft_type\":\"LORA\",\"r\":2,\"target_modules\":[\"q_proj\"]", STATUS_INVALID,
                   "target_modules");
    refused_config("\"peft_type\":\"LORA\",\"r\":2,\"target_modules\":[\"" LORA_Q3
                   "\",\"lm_head\"]",
                   STATUS_UNSUPPORTED, "target_modules");
}

static void refused_tensor(const char *name, uint32_t rows, uint32_t columns, bool keep_pair,
                           const char *says)
{
    struct pair p;
    struct st_build b;
    struct peft_adapter a;
    struct errtext err = ERRTEXT_INIT;
    float zeros[64] = {0};
    fill(&p);
    st_build_init(&b);
    if (keep_pair)
        add_pair(&b, &p);
    st_build_add(&b, name, "F32", rows, columns, zeros);
    enum status st = try_build(&a, Q_ONLY, &b, &err);
    st_build_fini(&b);
    if (st == STATUS_OK || !strstr(err.text, says))
        fail_msg("%s: found %s '%s', wanted '%s'", name, status_name(st), err.text, says);
}

#define P "base_model.model."
static void test_refused_tensors(void **state)
{
    refused_tensor(P "lm_head.lora_A.weight", 2, 16, true, "output head");
    refused_tensor(P "model.embed_tokens.lora_embedding_A", 2, 16, true, "embedding");
    refused_tensor(P LORA_Q3 ".lora_magnitude_vector", 0, 24, true, "DoRA");
    refused_tensor(P LORA_Q3 ".lora_B.bias", 0, 24, true, "lora_bias");
    refused_tensor(P "lm_head.weight", 2, 16, true, "modules_to_save");
    refused_tensor(P "model.layers.12.self_attn.q_proj.lora_A.weight", 2, 16, true, "12 layers");
    refused_tensor(P "model.layers.03.self_attn.q_proj.lora_A.weight", 2, 16, true, "spelled");
    refused_tensor(P LORA_Q3 ".lora_A.default.weight", 2, 16, true, "spelled");
    refused_tensor(LORA_Q3 ".lora_A.weight", 2, 16, true, "twice");
    refused_tensor(P LORA_Q3 ".lora_A.weight", 2, 16, false, "no lora_B");
    refused_tensor(P "model.layers.4.self_attn.q_proj.lora_A.weight", 2, 16, true, "no lora_B");
}

static void test_wrong_base(void **state)
{
    struct st_build b;
    struct peft_adapter a;
    struct errtext err = ERRTEXT_INIT;
    float zeros[64] = {0};
    st_build_init(&b);
    st_build_add(&b, P LORA_Q3 ".lora_A.weight", "F32", 2, 20, zeros);
    st_build_add(&b, P LORA_Q3 ".lora_B.weight", "F32", 24, 2, zeros);
    assert_int_equal(try_build(&a, Q_ONLY, &b, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "[2, 20]"));
    assert_non_null(strstr(err.text, "[2, 16]"));
    assert_non_null(strstr(err.text, "another base"));
    st_build_fini(&b);
}

static enum status check_values(const struct pair *p, const char *fields, struct errtext *err)
{
    struct st_build b;
    struct peft_adapter a;
    st_build_init(&b);
    add_pair(&b, p);
    assert_int_equal(try_build(&a, fields, &b, err), STATUS_OK);
    enum status st = peft_check_values(&a, err);
    peft_fini(&a);
    st_build_fini(&b);
    return st;
}

static void test_values(void **state)
{
    struct pair p;
    struct errtext err = ERRTEXT_INIT;
    fill(&p);
    assert_int_equal(check_values(&p, Q_ONLY, &err), STATUS_OK);
    p.b[7] = NAN;
    assert_int_equal(check_values(&p, Q_ONLY, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "lora_B.weight': element [3, 1] is NaN"));
    err_clear(&err);
    p.b[7] = -INFINITY;
    assert_int_equal(check_values(&p, Q_ONLY, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "infinite"));
    err_clear(&err);
    memset(p.b, 0, sizeof(p.b));
    assert_int_equal(check_values(&p, Q_ONLY, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "change nothing"));
    err_clear(&err);
    fill(&p);
    assert_int_equal(check_values(&p,
                                  "\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":0,"
                                  "\"target_modules\":[\"" LORA_Q3 "\"]",
                                  &err),
                     STATUS_INVALID);
}

static void check_packed(const struct peft_adapter *a, const struct pair *p, enum dtype dtype)
{
    struct lora_entry entry[12 * LORA_MODULE_COUNT];
    uint64_t bytes;
    peft_layout(a, 12, dtype, entry, &bytes);
    const struct lora_entry *e = &entry[3 * LORA_MODULE_COUNT + LORA_MODULE_Q];
    assert_int_equal(e->rank, 2);
    assert_true(e->scale == 2.0f);
    assert_int_equal(entry[0].rank, 0);
    assert_true(e->a_off % 64 == 0 && e->b_off % 64 == 0 && e->b_off >= 32 * dtype_bytes(dtype));
    char *blob = mem_alloc_aligned(bytes);
    peft_pack(a, 12, dtype, entry, blob);
    for (size_t r = 0; r < 2; r++) {
        for (size_t k = 0; k < 16; k++)
            assert_true(convert_load(blob + e->a_off, dtype, r * 16 + k) == p->a[r * 16 + k]);
        for (size_t n = 0; n < 24; n++)
            assert_true(convert_load(blob + e->b_off, dtype, r * 24 + n) == p->b[n * 2 + r]);
    }
    mem_free_aligned(blob, bytes);
}

static void test_pack(void **state)
{
    struct pair p;
    struct st_build b;
    struct peft_adapter a;
    struct errtext err = ERRTEXT_INIT;
    fill(&p); /* all values are exact in bf16 */
    st_build_init(&b);
    add_pair(&b, &p);
    assert_int_equal(try_build(&a, Q_ONLY, &b, &err), STATUS_OK);
    assert_int_equal(a.rank_max, 2);
    assert_non_null(strstr(a.warning, "no base fingerprint"));
    check_packed(&a, &p, DTYPE_F32);
    check_packed(&a, &p, DTYPE_BF16);
    peft_fini(&a);
    st_build_fini(&b);
}

/* ---- directories ---- */

static void test_directory(void **state)
{
    struct pair p;
    struct st_build b;
    struct peft_adapter a;
    struct errtext err = ERRTEXT_INIT;
    struct model_config c = base_config();
    char dir[] = "/tmp/rs-peft-XXXXXX", path[256], other[256];
    size_t len;
    assert_non_null(mkdtemp(dir));
    fill(&p);
    st_build_init(&b);
    add_pair(&b, &p);
    char *bytes = st_build_bytes(&b, &len);
    st_build_fini(&b);
    assert_int_equal(peft_read_dir(&a, dir, NULL, &c, 1u << 20, &err), STATUS_NOT_FOUND);
    assert_non_null(strstr(err.text, "adapter_config.json"));
    snprintf(path, sizeof(path), "%s/adapter_config.json", dir);
    assert_int_equal(file_write_atomic(path, "{" Q_ONLY "}", strlen("{" Q_ONLY "}"), 0600, NULL),
                     STATUS_OK);
    snprintf(other, sizeof(other), "%s/adapter_model.bin", dir);
    assert_int_equal(file_write_atomic(other, "x", 1, 0600, NULL), STATUS_OK);
    err_clear(&err);
    assert_int_equal(peft_read_dir(&a, dir, NULL, &c, 1u << 20, &err), STATUS_UNSUPPORTED);
    assert_non_null(strstr(err.text, "pickled"));
    char tensors[256];
    snprintf(tensors, sizeof(tensors), "%s/adapter_model.safetensors", dir);
    assert_int_equal(file_write_atomic(tensors, bytes, len, 0600, NULL), STATUS_OK);
    err_clear(&err);
    assert_int_equal(peft_read_dir(&a, dir, NULL, &c, len - 1, &err), STATUS_TOO_LARGE);
    err_clear(&err);
    assert_int_equal(peft_read_dir(&a, dir, NULL, &c, len, &err), STATUS_OK);
    peft_fini(&a);
    assert_int_equal(truncate(tensors, (off_t)len - 5), 0);
    assert_int_equal(peft_read_dir(&a, dir, NULL, &c, len, &err), STATUS_CORRUPT);
    unlink(tensors);
    unlink(other);
    unlink(path);
    rmdir(dir);
    mem_free(bytes);
}

/* Folders and files that are something else. */
static void test_foreign(void **state)
{
    struct peft_adapter a;
    struct errtext err = ERRTEXT_INIT;
    struct model_config c = base_config();
    char dir[] = "/tmp/rs-peft-XXXXXX", cmd[512];
    static const struct {
        const char *make;
        enum status want;
        const char *says;
    } cases[] = {
        {"printf 'version https://git-lfs.github.com/spec/v1\\n' > adapter_model.safetensors",
         STATUS_CORRUPT, "git lfs pull"},
        {"rm adapter_model.safetensors; touch q8.gguf", STATUS_NOT_FOUND, "q8.gguf: a GGUF file"},
        {"rm *.*; echo {} > config.json", STATUS_NOT_FOUND, "a whole model"},
        {"rm *.*; mkdir -p snapshots/77", STATUS_NOT_FOUND, "/snapshots/77"},
    };
    assert_non_null(mkdtemp(dir));
    snprintf(cmd, sizeof(cmd), "%s/adapter_config.json", dir);
    assert_int_equal(file_write_atomic(cmd, "{" Q_ONLY "}", strlen("{" Q_ONLY "}"), 0600, NULL),
                     STATUS_OK);
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        snprintf(cmd, sizeof(cmd), "cd %s && { %s; }", dir, cases[i].make);
        assert_int_equal(system(cmd), 0);
        err_clear(&err);
        enum status st = peft_read_dir(&a, dir, NULL, &c, 1u << 20, &err);
        if (st != cases[i].want || !strstr(err.text, cases[i].says))
            fail_msg("%s: %s", cases[i].make, err.text);
    }
    err_clear(&err);
    assert_int_equal(peft_read_dir(&a, "org/some-adapter", NULL, &c, 1u << 20, &err),
                     STATUS_NOT_FOUND);
    assert_non_null(strstr(err.text, "hf download org/some-adapter"));
    snprintf(cmd, sizeof(cmd), "rm -r %s", dir);
    assert_int_equal(system(cmd), 0);
}

/* ---- links ---- */

struct
    hub { /* a cache repository with one snapshot of an adapter, as huggingface_hub lays it out */
    char top[32], repo[64], snapshot[96], outside[64];
    char *bytes;
    size_t len;
};

static void put_link(const struct hub *h, const char *to)
{
    char path[256];
    snprintf(path, sizeof(path), "%s/adapter_model.safetensors", h->snapshot);
    (void)unlink(path);
    assert_int_equal(symlink(to, path), 0);
}

static void put_text(const char *dir, const char *name, const void *data, size_t len)
{
    char path[256];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    assert_int_equal(file_write_atomic(path, data, len, 0600, NULL), STATUS_OK);
}

static void make_hub(struct hub *h)
{
    struct pair p;
    struct st_build b;
    char path[256];
    fill(&p);
    st_build_init(&b);
    add_pair(&b, &p);
    h->bytes = st_build_bytes(&b, &h->len);
    st_build_fini(&b);
    snprintf(h->top, sizeof(h->top), "/tmp/rs-hub-XXXXXX");
    assert_non_null(mkdtemp(h->top));
    snprintf(h->repo, sizeof(h->repo), "%s/models--org--a", h->top);
    snprintf(h->snapshot, sizeof(h->snapshot), "%s/snapshots/0a1b", h->repo);
    snprintf(h->outside, sizeof(h->outside), "%s/models--org--b/blobs", h->top);
    snprintf(path, sizeof(path), "%s/blobs", h->repo);
    assert_int_equal(file_mkdirs(h->snapshot, 0700, NULL), STATUS_OK);
    assert_int_equal(file_mkdirs(path, 0700, NULL), STATUS_OK);
    assert_int_equal(file_mkdirs(h->outside, 0700, NULL), STATUS_OK);
    put_text(path, "c0", "{" Q_ONLY "}", strlen("{" Q_ONLY "}"));
    put_text(path, "7e", h->bytes, h->len);
    put_text(h->outside, "7e", h->bytes, h->len);
    snprintf(path, sizeof(path), "%s/adapter_config.json", h->snapshot);
    assert_int_equal(symlink("../../blobs/c0", path), 0);
    put_link(h, "../../blobs/7e");
}

static void drop_hub(struct hub *h)
{
    char cmd[64];
    snprintf(cmd, sizeof(cmd), "rm -rf %s", h->top);
    assert_int_equal(system(cmd), 0);
    mem_free(h->bytes);
}

static enum status read_hub(const char *dir, const struct file_roots *roots, struct errtext *err)
{
    struct peft_adapter a;
    struct model_config c = base_config();
    err_clear(err);
    enum status st = peft_read_dir(&a, dir, roots, &c, 1u << 20, err);
    if (!st)
        peft_fini(&a);
    return st;
}

static void link_refused(const struct hub *h, const char *to, enum status want, const char *words)
{
    struct errtext err = ERRTEXT_INIT;
    put_link(h, to);
    if (read_hub(h->snapshot, NULL, &err) != want || !strstr(err.text, words) ||
        !strstr(err.text, "adapter_model.safetensors"))
        fail_msg("link to %s: %s", to, err.text);
}

static void test_links(void **state)
{
    struct hub h;
    struct errtext err = ERRTEXT_INIT;
    char path[256];
    make_hub(&h);
    if (read_hub(h.snapshot, NULL, &err))
        fail_msg("a snapshot: %s", err.text);
    snprintf(path, sizeof(path), "%s/blobs/7e", h.repo); /* an absolute link to the same place */
    put_link(&h, path);
    if (read_hub(h.snapshot, NULL, &err))
        fail_msg("an absolute link: %s", err.text);
    link_refused(&h, "../../../models--org--b/blobs/7e", STATUS_DENIED, "models--org--b/blobs/7e");
    link_refused(&h, "../../blobs/gone", STATUS_DENIED,
                 "'../../blobs/gone', where there is nothing");
    link_refused(&h, "adapter_model.safetensors", STATUS_DENIED, "circle");
    link_refused(&h, "/dev/zero", STATUS_INVALID, "not a regular file");
    link_refused(&h, "../../blobs", STATUS_INVALID, "not a regular file");
    snprintf(path, sizeof(path), "%s/blobs/pipe", h.repo);
    assert_int_equal(mkfifo(path, 0600), 0);
    link_refused(&h, path, STATUS_INVALID,
                 "not a regular file"); /* and nobody waits for a writer */
    /* what the operator allows is allowed */
    struct file_roots roots = {.root = {"/nowhere", h.top}, .count = 2};
    put_link(&h, "../../../models--org--b/blobs/7e");
    if (read_hub(h.snapshot, &roots, &err))
        fail_msg("beneath a root: %s", err.text);
    roots.count = 1;
    assert_int_equal(read_hub(h.snapshot, &roots, &err), STATUS_DENIED);
    /* a folder that only looks like a snapshot has itself alone */
    snprintf(path, sizeof(path), "mv %s %s/plain", h.repo, h.top);
    assert_int_equal(system(path), 0);
    snprintf(path, sizeof(path), "%s/plain/snapshots/0a1b", h.top);
    assert_int_equal(read_hub(path, NULL, &err), STATUS_DENIED);
    drop_hub(&h);
}

/* Somebody turns the link round while it is opened: what is read is inside, or nothing is. */
static void test_link_race(void **state)
{
    struct hub h;
    struct file_roots roots = {.count = 1};
    char blobs[128], path[256], next[256];
    int fd, opened = 0, denied = 0;
    make_hub(&h);
    snprintf(blobs, sizeof(blobs), "%s/blobs", h.repo);
    snprintf(path, sizeof(path), "%s/turning", h.snapshot);
    snprintf(next, sizeof(next), "%s/next", h.snapshot);
    put_text(blobs, "in", "inside", 6);
    put_text(h.outside, "out", "out", 3);
    assert_int_equal(symlink("../../blobs/in", path), 0);
    roots.root[0] = h.repo;
    pid_t child = fork();
    for (int i = 0; child == 0; i++) {
        const char *to = i % 2 ? "../../../models--org--b/blobs/out" : "../../blobs/in";
        if (symlink(to, next) || rename(next, path) || getppid() == 1)
            _exit(0);
    }
    for (int i = 0; i < 4000 || (i < 400000 && (!opened || !denied)); i++) {
        struct stat sb;
        enum status st = file_open_within(h.snapshot, "turning", &roots, &fd, NULL);
        opened += st == STATUS_OK;
        denied += st == STATUS_DENIED;
        if (!st && (fstat(fd, &sb) || sb.st_size != 6))
            fail_msg("a file outside was opened");
        if (!st)
            close(fd);
    }
    kill(child, SIGKILL);
    (void)waitpid(child, NULL, 0);
    assert_true(opened > 0 && denied > 0);
    drop_hub(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),          cmocka_unit_test(test_refused_fields),
        cmocka_unit_test(test_wrong_values),    cmocka_unit_test(test_cross_checks),
        cmocka_unit_test(test_refused_tensors), cmocka_unit_test(test_wrong_base),
        cmocka_unit_test(test_values),          cmocka_unit_test(test_pack),
        cmocka_unit_test(test_directory),       cmocka_unit_test(test_links),
        cmocka_unit_test(test_link_race),       cmocka_unit_test(test_foreign),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
