/* Near copies of the demo's adapters, as a thief would make them, at the door of a publisher whose
 * book knows the original: bits flipped, scaled, negated, factored anew. Honest adapters pass. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "server/adapter/peft/likeness.h"
#include "server/adapter/publish.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/log.h"
#include "server/model/convert.h"
#include "tests/unit/book_fixture.h"
#include "tests/unit/full_disk.h"

#include <math.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>

#define DEMO      RS_TEST_ROOT "/configs/demo/"
#define BYTES_MAX (64u << 20)
#define RECALL_OF 60

static const char *const names[] = {"amber-coast", "birch-vale", "cinder-hills", "dusk-marsh",
                                    "elm-reach",   "frost-gate", "glass-isles",  "hollow-moor"};
static struct model_config base;
static char dir[64];
static struct fake_chain chain;
static struct book *book;
static struct catalog *catalog;
static struct publisher *publisher;

/* ---- an adapter's two files in memory ---- */

struct files {
    char *config, *tensors;
    size_t config_bytes, tensor_bytes;
};

static void read_files(struct files *f, const char *name)
{
    char path[256];
    snprintf(path, sizeof(path), DEMO "adapters/%s/adapter_config.json", name);
    assert_int_equal(file_read(path, BYTES_MAX, &f->config, &f->config_bytes, NULL), STATUS_OK);
    snprintf(path, sizeof(path), DEMO "adapters/%s/adapter_model.safetensors", name);
    assert_int_equal(file_read(path, BYTES_MAX, &f->tensors, &f->tensor_bytes, NULL), STATUS_OK);
}

static void drop_files(struct files *f)
{
    mem_free(f->config);
    mem_free(f->tensors);
}

/* Read from copies: the files stay the caller's. */
static void parse(struct peft_adapter *a, const struct files *f)
{
    struct errtext err = ERRTEXT_INIT;
    char *config = mem_alloc(f->config_bytes + 1), *tensors = mem_alloc(f->tensor_bytes + 1);
    memcpy(config, f->config, f->config_bytes);
    memcpy(tensors, f->tensors, f->tensor_bytes);
    if (peft_from_bytes(a, config, f->config_bytes, tensors, f->tensor_bytes, &base, &err))
        fail_msg("%s", err.text);
}

/* ---- what a thief does ---- */

/* Bits of significands: flipping exponents would break the adapter. */
static void flip_bits(struct files *f, uint32_t count)
{
    struct peft_adapter a;
    parse(&a, f);
    size_t begin = a.tensors.data_begin, n = (f->tensor_bytes - begin) / 2;
    for (uint32_t i = 0; i < count; i++)
        f->tensors[begin + 2 * randombytes_uniform((uint32_t)n)] ^=
            (char)(1 << randombytes_uniform(7));
    peft_fini(&a);
}

static float *load(const struct files *f, const struct st_tensor *t)
{
    size_t n = (size_t)(t->dim[0] * t->dim[1]);
    float *v = mem_array(n, sizeof(*v));
    convert_elements(v, DTYPE_F32, f->tensors + t->begin, DTYPE_BF16, n);
    return v;
}

static void store(struct files *f, const struct st_tensor *t, float *v)
{
    size_t n = (size_t)(t->dim[0] * t->dim[1]);
    uint16_t *half = mem_array(n, sizeof(*half));
    convert_elements(half, DTYPE_BF16, v, DTYPE_F32, n);
    memcpy(f->tensors + t->begin, half, 2 * n);
    mem_free(half);
    mem_free(v);
}

static void scale_b(struct files *f, float by)
{
    struct peft_adapter a;
    parse(&a, f);
    for (uint32_t i = 0; i < a.module_count; i++) {
        const struct st_tensor *t = a.module[i].b;
        float *b = load(f, t);
        for (size_t k = 0; k < t->dim[0] * t->dim[1]; k++)
            b[k] *= by;
        store(f, t, b);
    }
    peft_fini(&a);
}

/* B·R and R^-1·A, R all ones on and above its diagonal. */
static void factor_anew(struct files *f)
{
    struct peft_adapter p;
    parse(&p, f);
    for (uint32_t i = 0; i < p.module_count; i++) {
        const struct peft_module *m = &p.module[i];
        size_t d_in = m->a->dim[1], d_out = m->b->dim[0];
        float *a = load(f, m->a), *b = load(f, m->b);
        for (size_t row = 0; row < d_out; row++) {
            for (uint32_t c = 1; c < m->rank; c++)
                b[row * m->rank + c] += b[row * m->rank + c - 1];
        }
        for (uint32_t r = 0; r + 1 < m->rank; r++) {
            for (size_t c = 0; c < d_in; c++)
                a[r * d_in + c] -= a[(r + 1) * d_in + c];
        }
        store(f, m->a, a);
        store(f, m->b, b);
    }
    peft_fini(&p);
}

/* Noise until the cosine is what the caller wants, about. */
static void blur(struct files *f, float noise)
{
    struct peft_adapter a;
    parse(&a, f);
    for (uint32_t i = 0; i < a.module_count; i++) {
        const struct st_tensor *t = a.module[i].b;
        size_t n = (size_t)(t->dim[0] * t->dim[1]);
        float *b = load(f, t), sum = 0;
        for (size_t k = 0; k < n; k++)
            sum += b[k] * b[k];
        float sigma = noise * sqrtf(3 * sum / (float)n);
        for (size_t k = 0; k < n; k++)
            b[k] += sigma * (2 * (float)randombytes_uniform(1 << 20) / (1 << 20) - 1);
        store(f, t, b);
    }
    peft_fini(&a);
}

/* ---- the cosine ---- */

static double cosine_of(const struct files *x, const struct files *y, float *estimate)
{
    struct peft_adapter a, b;
    struct likeness la, lb;
    double cosine;
    parse(&a, x);
    parse(&b, y);
    assert_int_equal(likeness_of(&la, &a, NULL), STATUS_OK);
    assert_int_equal(likeness_of(&lb, &b, NULL), STATUS_OK);
    assert_int_equal(likeness_exact(&cosine, &a, &b, NULL), STATUS_OK);
    *estimate = likeness_estimate(&la, &lb);
    peft_fini(&a);
    peft_fini(&b);
    return cosine;
}

static void test_the_product_counts_and_not_its_factors(void **state)
{
    struct files f, g;
    float e;
    read_files(&f, names[0]);
    read_files(&g, names[0]);
    assert_true(fabs(cosine_of(&f, &g, &e) - 1) < 1e-9 && fabsf(e - 1) < 1e-5f);
    factor_anew(&g);
    assert_true(cosine_of(&f, &g, &e) > 0.999 && e > 0.99f);
    scale_b(&g, -3);
    assert_true(cosine_of(&f, &g, &e) < -0.999 && e < -0.99f);
    drop_files(&g);
    for (size_t i = 1; i < ARRAY_COUNT(names); i++) {
        read_files(&g, names[i]);
        double c = cosine_of(&f, &g, &e);
        if (fabs(c) > 0.5 || fabsf(e) > LIKENESS_CANDIDATE)
            fail_msg("%s: cosine %.3f, estimate %.3f", names[i], c, (double)e);
        drop_files(&g);
    }
    drop_files(&f);
}

/* How many copies with a cosine of about 0.95 the sketches miss, and how far estimates are off. */
static void test_recall(void **state)
{
    uint32_t found = 0;
    double worst = 0, least = 1, most = 0;
    for (uint32_t i = 0; i < RECALL_OF; i++) {
        struct files f, g;
        float e;
        read_files(&f, names[i % 2 ? 0 : 4]);
        read_files(&g, names[i % 2 ? 0 : 4]);
        blur(&g, 0.39f);
        double c = cosine_of(&f, &g, &e);
        least = fmin(least, c);
        most = fmax(most, c);
        found += e >= LIKENESS_CANDIDATE;
        worst = fmax(worst, fabs(c - (double)e));
        drop_files(&f);
        drop_files(&g);
    }
    print_message("recall %u of %u at cosines %.3f to %.3f, estimates off by %.3f at most\n", found,
                  RECALL_OF, least, most, worst);
    assert_true(least > 0.92 && most < 0.97);
    assert_int_equal(found, RECALL_OF);
}

/* ---- the door ---- */

static char original[96];

static void write_files(const struct files *f)
{
    char path[128];
    snprintf(original, sizeof(original), "%s/original", dir);
    assert_int_equal(file_mkdirs(original, 0700, NULL), STATUS_OK);
    snprintf(path, sizeof(path), "%s/adapter_config.json", original);
    assert_int_equal(file_write_atomic(path, f->config, f->config_bytes, 0600, NULL), STATUS_OK);
    snprintf(path, sizeof(path), "%s/adapter_model.safetensors", original);
    assert_int_equal(file_write_atomic(path, f->tensors, f->tensor_bytes, 0600, NULL), STATUS_OK);
}

static int setup(void **state)
{
    struct errtext err = ERRTEXT_INIT;
    struct files f;
    struct peft_adapter a;
    (void)state;
    snprintf(dir, sizeof(dir), "/tmp/rs-near-XXXXXX");
    assert_non_null(mkdtemp(dir));
    memset(&chain, 0, sizeof(chain));
    pthread_mutex_init(&chain.lock, NULL);
    fake_head(&chain, 100, clock_wall_ms() / 1000);
    read_files(&f, names[0]);
    parse(&a, &f);
    memcpy(fake_add(&chain, 1, (struct fake_entry){.active_at = 1, .price_in = 9})->id, a.id, 32);
    struct book_options o = fake_options(&chain, dir);
    assert_int_equal(book_open(&book, &o, &err), STATUS_OK);
    catalog = catalog_create(16);
    struct publish_options p = {.model = &base,
                                .dtype = DTYPE_F32,
                                .adapters_dir = dir,
                                .limits = {.bytes_max = BYTES_MAX, .rank_max = 64},
                                .publisher_bytes_max = 1u << 30,
                                .adapters_max = 16,
                                .book = book};
    assert_int_equal(publisher_create(&publisher, &p, catalog, &err), STATUS_OK);
    write_files(&f); /* without its datanet, which nobody signed for this Registry */
    if (publisher_load_dir(publisher, "amber", original, true, false, &err))
        fail_msg("%s", err.text);
    peft_fini(&a);
    drop_files(&f);
    return 0;
}

static int teardown(void **state)
{
    char cmd[128];
    (void)state;
    publisher_destroy(publisher);
    catalog_destroy(catalog);
    book_close(book);
    snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
    return system(cmd);
}

static enum status upload(const struct files *f, struct errtext *err)
{
    struct buf report;
    struct publish_upload u = {.name = "thing",
                               .key_name = "thief",
                               .config_json = f->config,
                               .config_bytes = f->config_bytes,
                               .tensors = f->tensors,
                               .tensor_bytes = f->tensor_bytes,
                               .replace = true};
    buf_init(&report, 1 << 16);
    err_clear(err);
    enum status st = publisher_upload(publisher, &u, &report, err);
    buf_fini(&report);
    return st;
}

static bool sketch_is_kept(void)
{
    char path[256], hex[65];
    struct adapter_entry *e = catalog_find(catalog, "amber");
    hex_encode(hex, e->id, 32);
    catalog_release(e);
    snprintf(path, sizeof(path), "%s/likeness/%s", dir, hex);
    return file_exists(path);
}

static void test_copies_are_refused(void **state)
{
    struct errtext err = ERRTEXT_INIT;
    assert_true(sketch_is_kept()); /* a restart reads it */
    for (int kind = 0; kind < 4; kind++) {
        struct files f;
        read_files(&f, names[0]);
        if (kind == 0)
            flip_bits(&f, 500);
        else if (kind == 1)
            factor_anew(&f);
        else
            scale_b(&f, kind == 2 ? 2 : -1);
        if (upload(&f, &err) != STATUS_DENIED)
            fail_msg("kind %d was admitted", kind);
        assert_non_null(strstr(err.text, "'amber'"));
        assert_non_null(strstr(err.text, "parent"));
        drop_files(&f);
    }
}

static int setup_without_room(void **state)
{
    disk_is_full = true;
    int failed = setup(state);
    disk_is_full = false;
    return failed;
}

/* A sketch is made again by the next start: it takes no room of records, and is known meanwhile. */
static void test_copies_are_refused_on_a_full_disk(void **state)
{
    struct errtext err = ERRTEXT_INIT;
    struct files f;
    assert_false(sketch_is_kept());
    read_files(&f, names[0]);
    flip_bits(&f, 500);
    assert_int_equal(upload(&f, &err), STATUS_DENIED);
    drop_files(&f);
}

static void test_honest_adapters_pass(void **state)
{
    struct errtext err = ERRTEXT_INIT;
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) { /* the original itself too */
        struct files f;
        read_files(&f, names[i]);
        if (upload(&f, &err))
            fail_msg("%s: %s", names[i], err.text);
        drop_files(&f);
    }
}

/* Who names the original as parent in the Registry pays it first. */
static void test_a_child_names_its_parent(void **state)
{
    struct errtext err = ERRTEXT_INIT;
    struct files f;
    struct peft_adapter a;
    read_files(&f, names[0]);
    flip_bits(&f, 500);
    parse(&a, &f);
    struct fake_adapter *child =
        fake_add(&chain, 2, (struct fake_entry){.active_at = 1, .price_in = 1});
    memcpy(child->id, a.id, 32);
    assert_int_equal(upload(&f, &err), STATUS_DENIED);
    pthread_mutex_lock(&chain.lock);
    memcpy(child->parent, chain.adapter[0].id, 32);
    pthread_mutex_unlock(&chain.lock);
    fake_change(&chain, child, (struct fake_entry){.active_at = 2, .price_in = 1}, 101);
    fake_head(&chain, 101, clock_wall_ms() / 1000);
    assert_true(fake_wait(book, 101));
    if (upload(&f, &err))
        fail_msg("%s", err.text);
    peft_fini(&a);
    drop_files(&f);
}

static int read_base(void **state)
{
    char *text;
    size_t len;
    (void)state;
    log_set_level((enum log_level) - 1);
    if (sodium_init() < 0 || file_read(DEMO "base/config.json", BYTES_MAX, &text, &len, NULL) ||
        model_config_parse(&base, text, len, NULL, 0, NULL))
        return -1;
    mem_free(text);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_product_counts_and_not_its_factors),
        cmocka_unit_test(test_recall),
        cmocka_unit_test_setup_teardown(test_copies_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_copies_are_refused_on_a_full_disk, setup_without_room,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_honest_adapters_pass, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_child_names_its_parent, setup, teardown),
    };
    return cmocka_run_group_tests(tests, read_base, NULL);
}
