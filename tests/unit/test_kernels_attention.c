/* attention: every CPU path against ref over paged caches in both layouts, with windows and grouped
 * heads; bits equal for a row alone, in a chunk of any size, and at any thread count; memory behind
 * a sequence's last position is NaN and must not show. */
#include "tests/unit/kernels_fixture.h"

struct attn_case {
    struct attention_args a;
    char *cache;
    float *q;
    uint32_t *seq, *pos, *page_table;
    uint32_t n_seq, n_layer, len[8];
};

static void fill_cache(struct attn_case *c, uint32_t n_page)
{
    struct kv_cache *kv = &c->a.kv;
    for (uint32_t s = 0; s < c->n_seq; s++)
        for (uint32_t j = 0; j < c->len[s]; j++)
            for (uint32_t x = 0; x < 2 * c->a.n_kv_head; x++) {
                uint32_t page = c->page_table[s * c->a.rows.page_stride + j / kv->page_tok];
                uint64_t off = kv_offset(kv, page, c->a.layer, x & 1, x / 2, j % kv->page_tok);
                assert_true(page < n_page);
                for (uint32_t i = 0; i < c->a.d_head; i++)
                    elem_store(kv->base, kv->dtype, off + i, fx_normal());
            }
}

static void set_strides(struct kv_cache *kv, uint32_t n_layer, uint32_t n_kv, uint32_t d,
                        bool token_major)
{
    if (token_major) {
        kv->stride_head = d;
        kv->stride_kv = (uint64_t)n_kv * d;
        kv->stride_tok = 2 * kv->stride_kv;
        kv->stride_layer = kv->page_tok * kv->stride_tok;
        kv->stride_page = n_layer * kv->stride_layer;
    } else {
        kv->stride_tok = d;
        kv->stride_head = (uint64_t)kv->page_tok * d;
        kv->stride_kv = n_kv * kv->stride_head;
        kv->stride_layer = 2 * kv->stride_kv;
        kv->stride_page = n_layer * kv->stride_layer;
    }
}

/* Rows: for each sequence its last `tail` positions. */
static void case_make(struct attn_case *c, uint32_t d_head, enum dtype dtype, uint32_t tail,
                      uint32_t window)
{
    memset(c, 0, sizeof(*c));
    c->n_seq = 1 + fx_below(5);
    c->n_layer = 2;
    struct attention_args *a = &c->a;
    a->d_head = d_head;
    a->n_kv_head = 1 + fx_below(3);
    a->n_head = a->n_kv_head * (1 + fx_below(7));
    a->window = window;
    a->layer = fx_below(2);
    a->scale = 1.0f / sqrtf((float)d_head);
    a->kv.dtype = dtype;
    a->kv.page_tok = 16;
    a->rows.page_stride = 8;
    uint32_t n_page = c->n_seq * 8;
    set_strides(&a->kv, c->n_layer, a->n_kv_head, d_head, fx_below(2));
    size_t elems = n_page * a->kv.stride_page;
    c->cache = mem_array(elems, dtype_bytes(dtype));
    for (size_t i = 0; i < elems; i++)
        elem_store(c->cache, dtype, i, NAN);
    a->kv.base = c->cache;
    c->page_table = mem_array(n_page, sizeof(uint32_t));
    for (uint32_t i = 0; i < n_page; i++)
        c->page_table[i] = n_page - 1 - i;
    c->seq = mem_array(8 * 128, sizeof(uint32_t));
    c->pos = mem_array(8 * 128, sizeof(uint32_t));
    for (uint32_t s = 0; s < c->n_seq; s++) {
        c->len[s] = 1 + fx_below(128);
        for (uint32_t j = c->len[s] > tail ? c->len[s] - tail : 0; j < c->len[s]; j++) {
            c->seq[a->n_tok] = s;
            c->pos[a->n_tok++] = j;
        }
    }
    a->rows.seq = c->seq;
    a->rows.pos = c->pos;
    a->rows.page_table = c->page_table;
    fill_cache(c, n_page);
    c->q = fx_floats((size_t)a->n_tok * a->n_head * d_head, 2);
    a->q = c->q;
}

static void case_free(struct attn_case *c)
{
    mem_free(c->cache);
    mem_free(c->q);
    mem_free(c->seq);
    mem_free(c->pos);
    mem_free(c->page_table);
}

static void rows_alone(struct backend *b, const struct attn_case *c, const float *got,
                       const float *lse, uint32_t chunk)
{
    uint32_t wide = c->a.n_head * c->a.d_head;
    for (uint32_t t = 0; t < c->a.n_tok; t += chunk) {
        struct attention_args one = c->a;
        one.n_tok = MIN(chunk, c->a.n_tok - t);
        float *out = fx_poisoned((size_t)one.n_tok * wide);
        float *l = fx_poisoned((size_t)one.n_tok * c->a.n_head);
        one.q = (const float *)c->a.q + (size_t)t * wide;
        one.rows.seq += t;
        one.rows.pos += t;
        one.out = out;
        one.keep_lse = l;
        b->ops->attention(b, &one);
        fx_bits(out, got + (size_t)t * wide, (size_t)one.n_tok * wide);
        fx_bits(l, lse + (size_t)t * c->a.n_head, (size_t)one.n_tok * c->a.n_head);
        mem_free(out);
        mem_free(l);
    }
}

static void compare(struct fx_backends *f, struct attn_case *c)
{
    size_t n = (size_t)c->a.n_tok * c->a.n_head * c->a.d_head;
    size_t n_lse = (size_t)c->a.n_tok * c->a.n_head;
    float *want = fx_poisoned(n), *want_lse = fx_poisoned(n_lse), *first = NULL;
    c->a.out = want;
    c->a.keep_lse = want_lse;
    f->ref->ops->attention(f->ref, &c->a);
    for (uint32_t i = 0; i < f->n_cpu; i++) {
        float *got = fx_poisoned(n), *lse = fx_poisoned(n_lse);
        struct attention_args a = c->a;
        a.out = got;
        a.keep_lse = lse;
        assert_int_equal(f->cpu[i]->ops->attention(f->cpu[i], &a), STATUS_OK);
        fx_near(got, want, n, 2e-5, "attention");
        fx_near(lse, want_lse, n_lse, 1e-5, "lse");
        if (i > 0 && fx_same_path(f->cpu[i], f->cpu[i - 1])) {
            fx_bits(got, first, n);
            mem_free(got);
        } else {
            rows_alone(f->cpu[i], c, got, lse, 1);
            rows_alone(f->cpu[i], c, got, lse, 5);
            mem_free(first);
            first = got;
        }
        mem_free(lse);
    }
    mem_free(first);
    mem_free(want);
    mem_free(want_lse);
}

static void test_attention(void **state)
{
    static const uint32_t heads[] = {8, 16, 24, 40, 64, 80, 96, 128, 256};
    static const uint32_t tails[] = {1, 2, 9, 40};
    static const uint32_t windows[] = {0, 1, 7, 16, 33};
    struct fx_backends f;
    int round = 0;
    (void)state;
    fx_open(&f);
    for (size_t h = 0; h < ARRAY_COUNT(heads); h++) {
        for (size_t t = 0; t < ARRAY_COUNT(tails); t++, round++) {
            struct attn_case c;
            case_make(&c, heads[h], round & 1 ? DTYPE_BF16 : DTYPE_F32, tails[t],
                      windows[(size_t)round % ARRAY_COUNT(windows)]);
            compare(&f, &c);
            case_free(&c);
        }
    }
    fx_close(&f);
}

static void test_no_rows(void **state)
{
    struct fx_backends f;
    (void)state;
    fx_open(&f);
    for (uint32_t i = 0; i < f.n_cpu; i++) {
        struct attention_args a = {.n_head = 2, .n_kv_head = 1, .d_head = 16};
        assert_int_equal(f.cpu[i]->ops->attention(f.cpu[i], &a), STATUS_OK);
    }
    fx_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_no_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
