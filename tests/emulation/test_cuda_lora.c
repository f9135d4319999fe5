/* Shrink and the three finishes on the emulated device: against ref over shapes, ranks, mixes and
 * segment lengths; and the promise that a row's bits are its own, whoever shares the batch, whether
 * it came in a list of 8 or of 64 rows, on however many SMs and in whatever order blocks run. */
#include "tests/emulation/lora_world.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

/* n_head, n_kv, d_head, d_model, d_ff: heads of every kind, tails of 8 in every width, one to three
 * chunks of d_in. */
static const struct lw_shape shapes[] = {
    {4, 2, 8, 32, 48},    {3, 1, 80, 200, 264},  {2, 1, 128, 1096, 2056}, {4, 2, 64, 64, 1032},
    {2, 2, 96, 136, 520}, {2, 1, 256, 512, 128}, {4, 2, 24, 40, 48},      {9, 3, 40, 256, 304},
};

static size_t shape_count(void)
{
    return emu_is_tsan() ? 3 : ARRAY_COUNT(shapes);
}

/* One segment of every length that matters, adapters in turn, base-only ones between. */
static void fill_lengths(struct lw *w, const uint32_t *rows, size_t n)
{
    lw_clear(w);
    for (size_t i = 0; i < n; i++) {
        if (i % 3 == 1)
            lw_segment(w, 1 + fx_below(20), 0, 0);
        lw_segment(w, rows[i], (uint32_t)i, 1);
    }
}

/* Compositions of 2 to 8 adapters, decode and prefill lengths mixed. */
static void fill_mixes(struct lw *w)
{
    lw_clear(w);
    lw_segment(w, 3, 0, 2);
    lw_segment(w, 0, 1, 1);
    lw_segment(w, 18, 1, 3);
    lw_segment(w, 2, 0, 0);
    lw_segment(w, 9, 2, 8);
    lw_segment(w, 1, 5, 5);
    lw_segment(w, 17, 0, 0);
    lw_segment(w, 20, 4, 8);
}

static void compare(struct lw *w, uint32_t pad)
{
    struct lw_out want, got;
    lw_cache_reset(w);
    lw_run_ref(w, &want);
    lw_run_cuda(w, 0, w->n_tok, pad, &got);
    lw_near(w, &got, &want);
    lw_free(&want);
    lw_free(&got);
}

static void test_lengths_equal_ref(void **state)
{
    static const uint32_t rows[] = {1, 7, 8, 9, 16, 17, 64, 65};
    (void)state;
    for (size_t i = 0; i < shape_count(); i++) {
        struct lw w;
        size_t n = emu_is_tsan() ? 6 : ARRAY_COUNT(rows);
        lw_open(&w, &shapes[i], 300, lw_rank_mixed);
        fill_lengths(&w, rows, n);
        compare(&w, 0);
        w.has_bias = false;
        compare(&w, 5);
        lw_close(&w);
    }
}

static void test_mixes_equal_ref(void **state)
{
    (void)state;
    for (size_t i = 0; i < shape_count(); i++) {
        struct lw w;
        lw_open(&w, &shapes[i], 100, lw_rank_mixed);
        fill_mixes(&w);
        compare(&w, 3);
        lw_close(&w);
    }
}

static struct cuda_counts counts_of(struct lw *w)
{
    struct cuda_counts n;
    ec_get(&w->e, &n, cuda_of(w->e.cuda)->step.counts, sizeof(n));
    return n;
}

/* Rows that decode are work for many blocks however many share an adapter or have none; and they
 * have the bits that they would have in a prompt. */
static void test_rows_that_decode_stay_decode(void **state)
{
    struct lw w;
    struct lw_out decode, prompt;
    (void)state;
    lw_open(&w, &shapes[2], 200, lw_rank_mixed);
    w.decodes = true;
    lw_segment(&w, 64, 1, 1);
    lw_segment(&w, 30, 0, 0);
    for (uint32_t t = 0; t < 94; t++) /* a place of its own also as a prompt's row */
        w.pos[t] = (t < 64 ? t : t - 64) % w.pos_max;
    w.decodes = false;
    lw_segment(&w, 40, 1, 1);
    compare(&w, 2);
    lw_run_cuda(&w, 0, w.n_tok, 0, &decode);
    struct cuda_counts n = counts_of(&w);
    assert_int_equal(n.n_lora_decode, 8 + 4);
    assert_int_equal(n.n_lora_prefill, 1);
    for (uint32_t t = 0; t < 94; t++)
        w.seq[t] = t - w.pos[t]; /* the same rows, told as prompts */
    w.read_kv = false;           /* where k and v of a row go is another page */
    lw_run_cuda(&w, 0, w.n_tok, 0, &prompt);
    n = counts_of(&w);
    assert_int_equal(n.n_lora_decode, 0);
    assert_int_equal(n.n_lora_prefill, 3);
    lw_same_bits(&w, &prompt, &decode, 0);
    lw_free(&decode);
    lw_free(&prompt);
    lw_close(&w);
}

static uint32_t rank_none(uint32_t layout, uint32_t layer, uint32_t module)
{
    (void)layer;
    return layout == 1 && module == LORA_MODULE_V ? 24 : layout == 2 && module == LORA_MODULE_UP;
}

static uint32_t rank_max(uint32_t layout, uint32_t layer, uint32_t module)
{
    (void)layout;
    (void)layer;
    return module % 2 ? LORA_RANK_MAX : 200;
}

/* Modules without rank beside one that has some; layout 0 adapts nothing. Then the largest. */
static void test_extreme_ranks(void **state)
{
    lw_rank_fn *const ranks[] = {rank_none, rank_max};
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(ranks); i++) {
        struct lw w;
        lw_open(&w, &shapes[i], 100, ranks[i]);
        fill_mixes(&w);
        compare(&w, 0);
        lw_close(&w);
    }
}

/* Where nothing is adapted nothing of LoRA is read or written: s stays poisoned, norm2 zero. */
static void test_base_only(void **state)
{
    (void)state;
    for (int with_table = 0; with_table < 2; with_table++)
        for (size_t i = 0; i < 4; i++) {
            struct lw w;
            struct lw_out got;
            lw_open(&w, &shapes[i], 60, lw_rank_mixed);
            lw_segment(&w, 9, 0, 0);
            lw_segment(&w, 30, 0, 0);
            w.has_table = with_table;
            compare(&w, 2);
            lw_run_cuda(&w, 0, w.n_tok, 0, &got);
            for (uint32_t t = 0; t < 2 * w.n_tok; t++)
                assert_true(got.norm2[t] == 0);
            for (size_t k = 0; k < (size_t)w.n_tok * w.s_stride; k++)
                assert_true(isnan(got.t[LW_AX_QKV][k]));
            lw_free(&got);
            lw_close(&w);
        }
}

static void test_empty_batch(void **state)
{
    struct lw w;
    (void)state;
    lw_open(&w, &shapes[0], 20, lw_rank_mixed);
    compare(&w, 0);
    compare(&w, 4);
    lw_segment(&w, 0, 0, 1);
    compare(&w, 0);
    lw_close(&w);
}

/* Telemetry and keep mode off change nothing else. */
static void test_quiet(void **state)
{
    struct lw w;
    struct lw_out loud, quiet;
    (void)state;
    lw_open(&w, &shapes[1], 100, lw_rank_mixed);
    fill_mixes(&w);
    lw_run_cuda(&w, 0, w.n_tok, 0, &loud);
    w.telemetry = w.keep = false;
    lw_run_cuda(&w, 0, w.n_tok, 0, &quiet);
    fx_bits(quiet.t[LW_Q], loud.t[LW_Q], (size_t)w.n_tok * lw_width(&w, LW_Q));
    fx_bits(quiet.t[LW_H], loud.t[LW_H], (size_t)w.n_tok * lw_width(&w, LW_H));
    fx_bits(quiet.t[LW_MLP], loud.t[LW_MLP], (size_t)w.n_tok * lw_width(&w, LW_MLP));
    fx_bits(quiet.kv, loud.kv, lw_kv_elems(&w));
    for (uint32_t t = 0; t < 2 * w.n_tok; t++)
        assert_true(quiet.norm2[t] == 0);
    lw_free(&loud);
    lw_free(&quiet);
    lw_close(&w);
}

/* ---- bits ---- */

/* The batch in runs of so many rows against the whole of it; the cache ends up the same too. */
static void check_runs(struct lw *w, const struct lw_out *all, uint32_t rows)
{
    lw_cache_reset(w);
    for (uint32_t t = 0; t < w->n_tok; t += rows) {
        struct lw_out part;
        uint32_t n = MIN(rows, w->n_tok - t);
        w->read_kv = t + n == w->n_tok;
        lw_run_cuda(w, t, n, t % 3, &part);
        lw_same_bits(w, &part, all, t);
        if (w->read_kv)
            fx_bits(part.kv, all->kv, lw_kv_elems(w));
        lw_free(&part);
    }
    w->read_kv = true;
}

/* First, middle and last row of every segment, alone. */
static void check_alone(struct lw *w, const struct lw_out *all)
{
    w->read_kv = false;
    for (uint32_t i = 0; i < w->n_seg; i++) {
        const struct lora_seg *s = &w->seg[i];
        for (uint32_t k = 0; k < MIN(s->tok_count, 3); k++) {
            struct lw_out part;
            uint32_t t = s->tok_begin + k * (s->tok_count - 1) / 2;
            lw_run_cuda(w, t, 1, 0, &part);
            lw_same_bits(w, &part, all, t);
            lw_free(&part);
        }
    }
    w->read_kv = true;
}

static void test_bits_of_a_row_alone(void **state)
{
    static const uint32_t rows[] = {1, 17, 70};
    (void)state;
    for (size_t i = 0; i < shape_count(); i += emu_is_tsan() ? 2 : 1) {
        struct lw w;
        struct lw_out all;
        emu_device.sm_count = 3;
        lw_open(&w, &shapes[i], 300, lw_rank_mixed);
        if (i % 2)
            fill_mixes(&w);
        else
            fill_lengths(&w, rows, ARRAY_COUNT(rows));
        lw_run_cuda(&w, 0, w.n_tok, 0, &all);
        check_alone(&w, &all);
        check_runs(&w, &all, 13);
        if (!emu_is_tsan())
            check_runs(&w, &all, 31);
        lw_free(&all);
        lw_close(&w);
    }
    emu_reset();
}

static void test_bits_of_any_grid_and_order(void **state)
{
    struct lw w;
    struct lw_out first, again;
    (void)state;
    lw_open(&w, &shapes[2], 100, lw_rank_mixed);
    fill_mixes(&w);
    lw_run_cuda(&w, 0, w.n_tok, 0, &first);
    for (uint64_t seed = 1; seed <= (emu_is_tsan() ? 2 : 6); seed++) {
        emu_set_seed(seed);
        cuda_of(w.e.cuda)->sm_count = 1 + (uint32_t)seed * 3 % 11;
        lw_cache_reset(&w);
        lw_run_cuda(&w, 0, w.n_tok, 0, &again);
        lw_same_bits(&w, &again, &first, 0);
        fx_bits(again.kv, first.kv, lw_kv_elems(&w));
        lw_free(&again);
    }
    lw_free(&first);
    lw_close(&w);
}

/* More items than are planned at once. */
static uint32_t rank_two_tiles(uint32_t layout, uint32_t layer, uint32_t module)
{
    (void)layer;
    return layout == 2 ? 0 : module == LORA_MODULE_Q ? 17 : 3;
}

static void test_many_segments(void **state)
{
    struct lw w;
    (void)state;
    lw_open(&w, &shapes[0], 1100, rank_two_tiles);
    for (uint32_t i = 0; i < 60; i++)
        lw_segment(&w, 1 + (i % 4 == 3 ? 15 : 9), i, i % 5 ? 1 : 0);
    lw_segment(&w, 320, 0, 1);
    w.decodes = true;
    lw_segment(&w, 90, 1, 1);
    struct lw_out all, part;
    compare(&w, 1);
    assert_true(counts_of(&w).n_lora_decode > 128);
    lw_run_cuda(&w, 0, w.n_tok, 0, &all);
    for (uint32_t t = 0; t < w.n_tok; t += 97) {
        lw_run_cuda(&w, t, 1, 0, &part);
        lw_same_bits(&w, &part, &all, t);
        lw_free(&part);
    }
    lw_free(&all);
    lw_close(&w);
}

/* ---- packing ---- */

static uint16_t packed_at(const uint16_t *packed, size_t tile_elems, size_t tile, uint32_t word,
                          uint32_t lane, uint32_t elem)
{
    return packed[tile * tile_elems + ((size_t)word * 32 + lane) * 8 + elem];
}

/* Every element of A where the header says it is, zeros around, nothing else. */
static void check_pack_a(uint32_t rank, uint32_t d_in)
{
    uint32_t units = lora_k_tiles(d_in), tiles = lora_rank_tiles(rank);
    size_t bytes = (size_t)tiles * units * LORA_TILE_A_BYTES;
    uint16_t *a = fx_tensor((size_t)rank * d_in, DTYPE_BF16, 1, 0);
    uint16_t *packed = mem_array(bytes, 1);
    memset(packed, 0xff, bytes);
    lora_pack_a(packed, a, rank, d_in);
    for (uint32_t r = 0; r < tiles * LORA_TILE_RANKS; r++)
        for (uint32_t k = 0; k < units * LORA_TILE_K; k++) {
            uint32_t g = r % 8, t = k % 32 / 8, h = k % 8 / 4, pair = k % 4 / 2;
            uint16_t want = r < rank && k < d_in ? a[(size_t)r * d_in + k] : 0;
            assert_int_equal(packed_at(packed, LORA_TILE_A_BYTES / 2,
                                       (size_t)(r / 16) * units + k / 32, h, g * 4 + t,
                                       pair * 4 + r % 16 / 8 * 2 + k % 2),
                             want);
        }
    mem_free(a);
    mem_free(packed);
}

static void check_pack_b(uint32_t rank, uint32_t d_out)
{
    uint32_t outs = lora_out_tiles(d_out), tiles = lora_rank_tiles(rank);
    size_t bytes = (size_t)tiles * outs * LORA_TILE_B_BYTES;
    uint16_t *bt = fx_tensor((size_t)rank * d_out, DTYPE_BF16, 1, 0);
    uint16_t *packed = mem_array(bytes, 1);
    memset(packed, 0xff, bytes);
    lora_pack_b(packed, bt, rank, d_out);
    for (uint32_t n = 0; n < outs * LORA_TILE_OUT; n++)
        for (uint32_t r = 0; r < tiles * LORA_TILE_RANKS; r++) {
            uint16_t want = r < rank && n < d_out ? bt[(size_t)r * d_out + n] : 0;
            assert_int_equal(packed_at(packed, LORA_TILE_B_BYTES / 2,
                                       (size_t)(n / 16) * tiles + r / 16, 0, n % 8 * 4 + r % 8 / 2,
                                       r % 16 / 8 * 4 + n % 16 / 8 * 2 + r % 2),
                             want);
        }
    mem_free(bt);
    mem_free(packed);
}

static void test_packing_is_exact(void **state)
{
    static const uint32_t ranks[] = {1, 8, 15, 16, 17, 64}, widths[] = {1, 8, 31, 32, 33, 200, 264};
    (void)state;
    for (size_t r = 0; r < ARRAY_COUNT(ranks); r++)
        for (size_t w = 0; w < ARRAY_COUNT(widths); w++) {
            check_pack_a(ranks[r], widths[w]);
            check_pack_b(ranks[r], widths[w]);
        }
}

/* ---- planted faults: a child must not survive them ---- */

typedef void fault_fn(struct lw *w);

static void fault_none(struct lw *w)
{
    (void)w;
}
/* A rank that the blob does not have: tiles past its end. */
static void fault_rank_beyond_blob(struct lw *w)
{
    struct lora_entry *e = &w->packed[0][w->layer * LORA_MODULE_COUNT + LORA_MODULE_DOWN];
    e->rank += 64;
}
/* A rank that s has no columns for. */
static void fault_rank_beyond_s(struct lw *w)
{
    for (uint32_t m = 0; m < LORA_MODULE_COUNT; m++)
        w->packed[0][w->layer * LORA_MODULE_COUNT + m].rank = LORA_RANK_MAX;
}
static void fault_rank_beyond_part(struct lw *w)
{
    w->packed[0][w->layer * LORA_MODULE_COUNT + LORA_MODULE_Q].rank = LORA_RANK_MAX + 1;
}
/* The adapter was evicted, its slot not renewed: memory that has been given back. */
static void fault_slot_stale(struct lw *w)
{
    ec_free(&w->e, (void *)(uintptr_t)w->packed_slot[0].blob);
}
static void fault_slot_empty(struct lw *w)
{
    w->packed_slot[0].blob = NULL;
}
/* The slot was filled with another adapter of the same shape: wrong numbers. */
static void fault_slot_other(struct lw *w)
{
    w->packed_slot[0].blob = w->packed_slot[LW_LAYOUTS].blob;
}

static uint32_t rank_small(uint32_t layout, uint32_t layer, uint32_t module)
{
    (void)layout;
    (void)layer;
    (void)module;
    return 8;
}

/* Whether a child that runs with the fault fails: a device check, a sanitizer, or wrong numbers. */
static bool child_fails(fault_fn *plant)
{
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct lw w;
        struct lw_out want, got;
        if (!freopen("/dev/null", "w", stderr) || !freopen("/dev/null", "w", stdout))
            _exit(0);
        lw_open(&w, &shapes[0], 20, rank_small);
        lw_segment(&w, 5, 0, 1);
        lw_segment(&w, 3, 1, 2);
        lw_run_ref(&w, &want);
        plant(&w);
        lw_run_cuda(&w, 0, w.n_tok, 0, &got);
        bool same =
            ec_distance(got.t[LW_H], want.t[LW_H], (size_t)w.n_tok * lw_width(&w, LW_H)) < 1e-3;
        _exit(same ? 0 : 1);
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void test_planted_faults_are_caught(void **state)
{
    static const struct {
        const char *name;
        fault_fn *plant;
        bool needs_sanitizer;
    } faults[] = {
        {"rank beyond the blob", fault_rank_beyond_blob, true},
        {"rank beyond s", fault_rank_beyond_s, false},
        {"rank beyond a part's maximum", fault_rank_beyond_part, false},
        {"slot of an evicted adapter", fault_slot_stale, true},
        {"slot without a blob", fault_slot_empty, false},
        {"slot with another adapter", fault_slot_other, false},
    };
    (void)state;
    assert_false(child_fails(fault_none));
    for (size_t i = 0; i < ARRAY_COUNT(faults); i++) {
#ifndef __SANITIZE_ADDRESS__
        if (faults[i].needs_sanitizer)
            continue;
#endif
        if (!child_fails(faults[i].plant)) {
            print_error("not caught: %s\n", faults[i].name);
            fail();
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_planted_faults_are_caught), /* first: it forks, before fibers exist */
        cmocka_unit_test(test_packing_is_exact),
        cmocka_unit_test(test_lengths_equal_ref),
        cmocka_unit_test(test_mixes_equal_ref),
        cmocka_unit_test(test_rows_that_decode_stay_decode),
        cmocka_unit_test(test_extreme_ranks),
        cmocka_unit_test(test_base_only),
        cmocka_unit_test(test_empty_batch),
        cmocka_unit_test(test_quiet),
        cmocka_unit_test(test_bits_of_a_row_alone),
        cmocka_unit_test(test_bits_of_any_grid_and_order),
        cmocka_unit_test(test_many_segments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
