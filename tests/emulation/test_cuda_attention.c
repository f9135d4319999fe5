/* attention on the emulated device against kernels/ref: head sizes, groups, both cache layouts,
 * windows, contexts around every tile and chunk edge. A row's bits are the same alone, in any
 * company, in chunks of any size, by either kernel, however its past is cut, in any order of
 * blocks. Memory that a row must not see is NaN, page numbers that nobody needs are invalid.
 * Barriers are taken out one by one (attention_faults.cu): each is missed. */
#include "kernels/cuda/attention_plan.h"
#include "tests/emulation/fixture.h"

#define SEQS_MAX 16

/* Sequences of the given lengths; the rows are the last `tail` positions of each. */
struct shape {
    uint32_t d_head, n_kv_head, group, window, n_seq;
    uint32_t len[SEQS_MAX], tail[SEQS_MAX];
    uint32_t sm_count; /* 0: what the fixture has */
    bool is_tight;     /* room for these sequences only, hence for few partial results */
    bool token_major;
};

struct world {
    struct ec e;
    struct attention_args a; /* of ref: host memory */
    void *dev_cache;
    uint16_t *cache;
    float *q;
    uint32_t *seq, *pos, *page_table;
    int32_t *ids;
};

/* What a run gives, for all rows: bits of out, and lse. */
struct result {
    uint16_t *out;
    float *lse;
};

static void set_strides(struct kv_cache *kv, const struct shape *s)
{
    uint32_t n_layer = 2, d = s->d_head, n_kv = s->n_kv_head;
    if (s->token_major) {
        kv->stride_head = d;
        kv->stride_kv = (uint64_t)n_kv * d;
        kv->stride_tok = 2 * kv->stride_kv;
        kv->stride_layer = kv->page_tok * kv->stride_tok;
    } else {
        kv->stride_tok = d;
        kv->stride_head = (uint64_t)kv->page_tok * d;
        kv->stride_kv = n_kv * kv->stride_head;
        kv->stride_layer = 2 * kv->stride_kv;
    }
    kv->stride_page = n_layer * kv->stride_layer;
}

/* Fills what the rows see of a sequence. Pages wholly before the first row's window are not there.
 */
static void fill_sequence(struct world *w, const struct shape *s, uint32_t i, uint32_t *next_page)
{
    struct kv_cache *kv = &w->a.kv;
    uint32_t *page = w->page_table + (size_t)i * w->a.rows.page_stride;
    uint32_t row = s->len[i] - MIN(s->tail[i], s->len[i]);
    uint32_t first = s->window && row + 1 > s->window ? row + 1 - s->window : 0;
    for (uint32_t p = first / 16; p <= (s->len[i] - 1) / 16; p++)
        page[p] = (*next_page)--;
    for (uint32_t j = first / 16 * 16; j < s->len[i]; j++)
        for (uint32_t x = 0; x < 2 * s->n_kv_head; x++) {
            uint64_t off = kv_offset(kv, page[j / 16], w->a.layer, x & 1, x / 2, j % 16);
            for (uint32_t e = 0; e < s->d_head; e++)
                w->cache[off + e] = bf16_from_f32(fx_normal());
        }
    for (uint32_t j = row; j < s->len[i]; j++) {
        w->seq[w->a.n_tok] = i;
        w->pos[w->a.n_tok++] = j;
    }
}

static void fill(struct world *w, const struct shape *s)
{
    struct attention_args *a = &w->a;
    uint32_t n_page = 1, pages_most = 1, n_tok = 0;
    for (uint32_t i = 0; i < s->n_seq; i++) {
        n_page += (s->len[i] + 15) / 16;
        pages_most = MAX(pages_most, (s->len[i] + 15) / 16);
        n_tok += MIN(s->tail[i], s->len[i]);
    }
    set_strides(&a->kv, s);
    a->rows.page_stride = pages_most;
    size_t elems = n_page * a->kv.stride_page;
    w->cache = mem_array(elems, sizeof(*w->cache));
    memset(w->cache, 0xff, elems * sizeof(*w->cache)); /* NaN */
    w->page_table = mem_array((size_t)s->n_seq * pages_most, sizeof(uint32_t));
    memset(w->page_table, 0xff, (size_t)s->n_seq * pages_most * sizeof(uint32_t));
    w->seq = mem_array(n_tok, sizeof(uint32_t));
    w->pos = mem_array(n_tok, sizeof(uint32_t));
    w->ids = mem_array(n_tok, sizeof(int32_t));
    uint32_t next_page = n_page - 1;
    for (uint32_t i = 0; i < s->n_seq; i++)
        fill_sequence(w, s, i, &next_page);
    w->q = fx_floats((size_t)n_tok * a->n_head * a->d_head, 2);
    for (size_t i = 0; i < (size_t)n_tok * a->n_head * a->d_head; i++)
        w->q[i] = bf16_round(w->q[i]);
    a->kv.base = w->cache;
    a->rows.seq = w->seq;
    a->rows.pos = w->pos;
    a->rows.page_table = w->page_table;
    a->q = w->q;
    w->dev_cache = ec_put(&w->e, w->cache, elems * sizeof(*w->cache));
}

static void open_backends(struct world *w, const struct shape *s)
{
    struct backend_limits lim = ec_limits();
    uint32_t sms = emu_device.sm_count;
    lim.seqs_max = s->is_tight ? s->n_seq : SEQS_MAX;
    if (s->is_tight)
        lim.page_stride = w->a.rows.page_stride;
    lim.n_head = w->a.n_head;
    lim.n_kv_head = w->a.n_kv_head;
    lim.d_head = w->a.d_head;
    emu_device.sm_count = s->sm_count ? (int)s->sm_count : emu_device.sm_count;
    ec_open_with(&w->e, &lim, "cuda");
    emu_device.sm_count = (int)sms;
}

static void world_open(struct world *w, const struct shape *s)
{
    memset(w, 0, sizeof(*w));
    w->a = (struct attention_args){
        .kv = {.dtype = DTYPE_BF16, .page_tok = 16},
        .scale = 1.0f / sqrtf((float)s->d_head),
        .layer = 1,
        .n_head = s->n_kv_head * s->group,
        .n_kv_head = s->n_kv_head,
        .d_head = s->d_head,
        .window = s->window,
    };
    open_backends(w, s);
    fill(w, s);
}

/* The same cache and rows on another device. */
static void world_reopen(struct world *w, const struct shape *s, size_t elems)
{
    ec_close(&w->e);
    open_backends(w, s);
    w->dev_cache = ec_put(&w->e, w->cache, elems * sizeof(*w->cache));
}

static size_t cache_elems(const struct world *w, const struct shape *s)
{
    size_t n_page = 1;
    for (uint32_t i = 0; i < s->n_seq; i++)
        n_page += (s->len[i] + 15) / 16;
    return n_page * w->a.kv.stride_page;
}

static void world_close(struct world *w)
{
    ec_close(&w->e);
    mem_free(w->cache);
    mem_free(w->q);
    mem_free(w->seq);
    mem_free(w->pos);
    mem_free(w->page_table);
    mem_free(w->ids);
}

static struct result result_make(const struct world *w)
{
    size_t heads = (size_t)w->a.n_tok * w->a.n_head;
    return (struct result){mem_array(heads * w->a.d_head, 2), mem_array(heads, 4)};
}

static void result_free(struct result *r)
{
    mem_free(r->out);
    mem_free(r->lse);
}

typedef enum status attention_fn(struct backend *b, const struct attention_args *a);

/* Rows first .. first+count-1 in one pass. */
static void run(struct world *w, uint32_t first, uint32_t count, struct result *r, attention_fn *fn)
{
    size_t heads = (size_t)count * w->a.n_head, d = w->a.d_head;
    struct ec *e = &w->e;
    struct attention_args a = w->a;
    a.n_tok = count;
    a.rows.seq += first;
    a.rows.pos += first;
    struct step_args step = {.ids = w->ids, .rows = a.rows, .n_tok = count};
    assert_int_equal(e->cuda->ops->step(e->cuda, &step), STATUS_OK);
    void *q = ec_put_acts(e, w->q + (size_t)first * a.n_head * d, heads * d);
    a.q = q;
    a.kv.base = w->dev_cache;
    a.out = ec_alloc(e, heads * d * 2);
    a.keep_lse = ec_alloc(e, heads * 4);
    assert_int_equal(fn(e->cuda, &a), STATUS_OK);
    ec_get(e, r->out + (size_t)first * a.n_head * d, a.out, heads * d * 2);
    ec_get(e, r->lse + (size_t)first * a.n_head, a.keep_lse, heads * 4);
    ec_free(e, q);
    ec_free(e, a.out);
    ec_free(e, a.keep_lse);
}

static void run_chunks(struct world *w, uint32_t chunk, struct result *r)
{
    for (uint32_t t = 0; t < w->a.n_tok; t += chunk)
        run(w, t, MIN(chunk, w->a.n_tok - t), r, w->e.cuda->ops->attention);
}

static void same_bits(const struct world *w, const struct result *a, const struct result *b)
{
    size_t heads = (size_t)w->a.n_tok * w->a.n_head;
    fx_bits(a->out, b->out, heads * w->a.d_head);
    fx_bits(a->lse, b->lse, heads);
}

static void near_ref(struct world *w, const struct result *r)
{
    size_t row = (size_t)w->a.n_head * w->a.d_head, n = w->a.n_tok * row;
    size_t heads = (size_t)w->a.n_tok * w->a.n_head;
    float *want = fx_poisoned(n), *want_lse = fx_poisoned(heads), *got = fx_poisoned(n);
    struct attention_args a = w->a;
    a.out = want;
    a.keep_lse = want_lse;
    assert_int_equal(w->e.ref->ops->attention(w->e.ref, &a), STATUS_OK);
    for (size_t i = 0; i < n; i++)
        got[i] = bf16_to_f32(r->out[i]);
    for (uint32_t t = 0; t < w->a.n_tok; t++)
        ec_close_to(got + t * row, want + t * row, row, EC_TOL_BF16, "out");
    fx_near(r->lse, want_lse, heads, EC_TOL_F32, "lse");
    mem_free(want);
    mem_free(want_lse);
    mem_free(got);
}

/* ---- against ref, and all ways of cutting ---- */

/* Decode rows of every edge, a few rows at once, and two long runs: both lists have items. */
#define EDGES                                                                                      \
    .n_seq = 15, .len = {1, 15, 16, 17, 63, 64, 65, 255, 256, 257, 511, 513, 100, 300, 70},        \
    .tail = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 80, 5, 70}

static const struct shape shapes[] = {
    {.d_head = 64, .n_kv_head = 2, .group = 7, EDGES},
    {.d_head = 128, .n_kv_head = 1, .group = 4, .token_major = true, EDGES},
    {.d_head = 80, .n_kv_head = 2, .group = 1, EDGES},
    {.d_head = 96, .n_kv_head = 1, .group = 8, EDGES},
    {.d_head = 256, .n_kv_head = 1, .group = 2, EDGES},
    {.d_head = 256, .n_kv_head = 1, .group = 12, .token_major = true, EDGES},
    {.d_head = 64, .n_kv_head = 1, .group = 20, EDGES},
    {.d_head = 24, .n_kv_head = 2, .group = 3, EDGES},
    {.d_head = 112, .n_kv_head = 1, .group = 5, .token_major = true, EDGES},
    {.d_head = 200, .n_kv_head = 1, .group = 16, EDGES},
    {.d_head = 64, .n_kv_head = 2, .group = 4, .window = 1, EDGES},
    {.d_head = 64, .n_kv_head = 2, .group = 4, .window = 7, EDGES},
    {.d_head = 64, .n_kv_head = 1, .group = 7, .window = 64, EDGES},
    {.d_head = 128, .n_kv_head = 1, .group = 2, .window = 65, EDGES},
    {.d_head = 64, .n_kv_head = 1, .group = 8, .window = 300, EDGES},
    {.d_head = 64, .n_kv_head = 2, .group = 7, .n_seq = 1, .len = {4097}, .tail = {1}},
    {.d_head = 128, .n_kv_head = 1, .group = 4, .n_seq = 2, .len = {4097, 512}, .tail = {2, 68}},
};

static void check_shape(const struct shape *s)
{
    struct world w;
    world_open(&w, s);
    struct result all = result_make(&w), other = result_make(&w);
    run_chunks(&w, w.a.n_tok, &all);
    near_ref(&w, &all);
    static const uint32_t chunks[] = {1, 5, 70};
    for (size_t i = 0; i < ARRAY_COUNT(chunks); i++) {
        emu_set_seed(i + 2);
        run_chunks(&w, chunks[i], &other);
        same_bits(&w, &other, &all);
    }
    result_free(&all);
    result_free(&other);
    world_close(&w);
}

static void every_shape_equals_ref_and_itself(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(shapes); i += emu_is_tsan() ? 4 : 1)
        check_shape(&shapes[i]);
}

static void random_shapes_equal_ref_and_themselves(void **state)
{
    static const uint32_t heads[] = {64, 80, 96, 128, 256};
    (void)state;
    for (uint32_t round = 0; round < (emu_is_tsan() ? 1u : 6u); round++) {
        struct shape s = {.d_head = heads[fx_below(5)],
                          .n_kv_head = 1 + fx_below(2),
                          .group = 1 + fx_below(16),
                          .n_seq = 1 + fx_below(6),
                          .window = fx_below(2) * (1 + fx_below(400)),
                          .token_major = fx_below(2),
                          .sm_count = 1 + fx_below(6)};
        for (uint32_t i = 0; i < s.n_seq; i++) {
            s.len[i] = 1 + fx_below(600);
            s.tail[i] = fx_below(2) ? 1 : 1 + fx_below(70);
        }
        check_shape(&s);
    }
}

/* One SM makes first parts long, many make them short, a small workspace makes few: other cuts, the
 * same bits. */
static void bits_do_not_depend_on_the_cut(void **state)
{
    struct shape s = {.d_head = 64,
                      .n_kv_head = 2,
                      .group = 7,
                      .n_seq = 3,
                      .len = {2100, 3000, 1030},
                      .tail = {5, 5, 5}};
    struct world w;
    (void)state;
    world_open(&w, &s);
    struct result first = result_make(&w), other = result_make(&w);
    run_chunks(&w, w.a.n_tok, &first);
    near_ref(&w, &first);
    for (uint32_t i = 0; i < 3; i++) {
        s.sm_count = (const uint32_t[]){1, 40, 40}[i];
        s.is_tight = i == 2;
        world_reopen(&w, &s, cache_elems(&w, &s));
        run_chunks(&w, w.a.n_tok, &other);
        same_bits(&w, &other, &first);
    }
    result_free(&first);
    result_free(&other);
    world_close(&w);
}

static void no_rows_is_no_work(void **state)
{
    struct ec e;
    (void)state;
    ec_open(&e);
    struct attention_args a = {.n_head = 8, .n_kv_head = 2, .d_head = 64};
    assert_int_equal(e.cuda->ops->attention(e.cuda, &a), STATUS_OK);
    ec_close(&e);
}

/* ---- the plan ---- */

struct mark { /* who computes a (row, head, chunk) */
    uint8_t *at;
    uint32_t n_head, chunks;
};

static void mark_item(const struct attn_item *i, const struct attn_rows *rows, struct mark *m,
                      bool is_split)
{
    assert_true(i->n_row >= 1 && i->n_head >= 1 && i->part < i->n_part);
    assert_true((uint32_t)i->n_row * i->n_head <= (is_split ? ATTN_COLS : 128));
    for (uint32_t r = i->row; r < i->row + i->n_row; r++) {
        assert_int_equal(rows->pos[r], i->pos + r - i->row);
        assert_int_equal(rows->seq[r], rows->seq[i->row]);
        for (uint32_t h = i->head; h < (uint32_t)i->head + i->n_head; h++)
            for (uint32_t c = i->chunk_begin; c < i->chunk_end; c++)
                m->at[((size_t)r * m->n_head + h) * m->chunks + c]++;
    }
}

static void check_plan(const struct attn_shape *s, const struct attn_rows *rows)
{
    uint32_t group = s->n_head / s->n_kv_head, chunks = 0, slots = 0;
    for (uint32_t r = 0; r < rows->n_tok; r++)
        chunks = MAX(chunks, rows->pos[r] / ATTN_CHUNK + 1);
    struct mark m = {mem_array((size_t)rows->n_tok * group * chunks + 1, 1), group, chunks};
    struct attn_list *list = mem_alloc(attn_list_bytes_max(s));
    size_t bytes = attn_plan(s, rows, list);
    const struct attn_item *item = (const struct attn_item *)(const void *)(list + 1);
    uint32_t n = list->n_split + list->n_prefill;
    assert_true(bytes <= attn_list_bytes_max(s));
    assert_int_equal(bytes, sizeof(*list) + n * sizeof(*item));
    for (uint32_t i = 0; i < n; i++) {
        mark_item(&item[i], rows, &m, i < list->n_split);
        assert_int_equal(item[i].page, bytes / 4 + rows->page_begin[rows->seq[item[i].row]]);
        if (item[i].n_part > 1) {
            slots = MAX(slots,
                        item[i].slot + (uint32_t)item[i].n_part * item[i].n_row * item[i].n_head);
            assert_true((item[i].block + 1) * (size_t)s->n_kv_head * 4 <= attn_count_bytes(s));
        }
    }
    assert_true(slots <= s->slots_max);
    for (uint32_t r = 0; r < rows->n_tok; r++)
        for (uint32_t x = 0; x < group * chunks; x++) {
            uint32_t c = x % chunks, first = 0;
            if (s->window && rows->pos[r] + 1 > s->window)
                first = (rows->pos[r] + 1 - s->window) / ATTN_CHUNK;
            if (rows->seq[r] != UINT32_MAX && c >= first && c <= rows->pos[r] / ATTN_CHUNK)
                assert_int_equal(m.at[(size_t)r * group * chunks + x], 1);
            else
                assert_true(m.at[(size_t)r * group * chunks + x] <= (rows->seq[r] != UINT32_MAX));
        }
    mem_free(m.at);
    mem_free(list);
}

static void plan_covers_every_row_once(void **state)
{
    uint32_t seq[600], pos[600], begin[64];
    (void)state;
    for (uint32_t i = 0; i < 64; i++)
        begin[i] = 100 * i;
    for (uint32_t round = 0; round < 200; round++) {
        struct attn_shape s = {.n_kv_head = 1 + fx_below(8),
                               .d_head = fx_below(2) ? 64 : 256,
                               .window = fx_below(3) ? 0 : 1 + fx_below(3000),
                               .sm_count = 1 + fx_below(132),
                               .rows_max = 600,
                               .chunks_max = 1 + fx_below(4000)};
        uint32_t group = 1 + fx_below(24), n = 0;
        s.n_head = s.n_kv_head * group;
        s.slots_max = fx_below(2) ? attn_slots_default(&s) : fx_below(400);
        for (uint32_t q = 0; q < 64; q++) {
            uint32_t count = fx_below(3) ? 1 : 1 + fx_below(120);
            uint32_t p = fx_below(2) ? fx_below(300) : fx_below(20000);
            if (fx_below(8) == 0)
                count = 0;
            for (uint32_t i = 0; i < count && n < 600; i++) {
                seq[n] = q;
                pos[n++] = p + i;
            }
            if (fx_below(8) == 0 && n < 600) {
                seq[n] = UINT32_MAX;
                pos[n++] = 0;
            }
        }
        check_plan(&s, &(struct attn_rows){seq, pos, begin, n});
    }
}

/* ---- planted faults ---- */

#ifndef RS_ON_DEVICE
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "tests/emulation/attention_faults.h"

#define EXIT_NUMBERS 3

extern char **environ;

static const struct shape fault_shape = {.d_head = 64,
                                         .n_kv_head = 1,
                                         .group = 4,
                                         .n_seq = 2,
                                         .len = {700, 130},
                                         .tail = {1, 100},
                                         .sm_count = 2};

/* Computes with the given barrier missing. */
static int child(uint32_t barrier)
{
    struct world w;
    world_open(&w, &fault_shape);
    struct result want = result_make(&w), got = result_make(&w);
    run(&w, 0, w.a.n_tok, &want, w.e.cuda->ops->attention);
    assert_int_equal(attention_fault_allow(), STATUS_OK);
    attention_fault_barrier = barrier;
    run(&w, 0, w.a.n_tok, &got, attention_fault);
    size_t heads = (size_t)w.a.n_tok * w.a.n_head;
    bool same = memcmp(want.out, got.out, heads * w.a.d_head * 2) == 0 &&
                memcmp(want.lse, got.lse, heads * 4) == 0;
    result_free(&want);
    result_free(&got);
    world_close(&w);
    return same ? 0 : EXIT_NUMBERS;
}

static int run_child(uint32_t barrier)
{
    char number[16], name[] = "test_cuda_attention";
    snprintf(number, sizeof(number), "%u", barrier);
    char *argv[] = {name, number, NULL};
    posix_spawn_file_actions_t quiet;
    pid_t pid;
    int status;
    posix_spawn_file_actions_init(&quiet);
    posix_spawn_file_actions_addopen(&quiet, 2, "/dev/null", 1, 0);
    assert_int_equal(posix_spawn(&pid, "/proc/self/exe", &quiet, NULL, argv, environ), 0);
    posix_spawn_file_actions_destroy(&quiet);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* The barriers between blocks (those before and after the counter) order memory that emulated
 * blocks, one after another, see in order anyway: the race detector alone can miss them. */
static void a_missing_barrier_is_caught(void **state)
{
    (void)state;
    assert_int_equal(run_child(0), 0);
    for (uint32_t i = 1; i <= ATTENTION_BARRIERS; i++) {
        bool needs_race = attention_barrier_is_between_blocks(i);
        int code = run_child(i);
        if (code == 0 && (emu_is_tsan() || !needs_race))
            fail_msg("barrier %u is missing and nobody noticed", i);
    }
}
#endif

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plan_covers_every_row_once),
        cmocka_unit_test(no_rows_is_no_work),
        cmocka_unit_test(every_shape_equals_ref_and_itself),
        cmocka_unit_test(random_shapes_equal_ref_and_themselves),
        cmocka_unit_test(bits_do_not_depend_on_the_cut),
#ifndef RS_ON_DEVICE
        cmocka_unit_test(a_missing_barrier_is_caught),
#endif
    };
#ifndef RS_ON_DEVICE
    if (argc > 1)
        return child((uint32_t)strtoul(argv[1], NULL, 10));
#endif
    (void)argc;
    (void)argv;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
