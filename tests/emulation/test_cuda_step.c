/* The tables of a step on the device, and passes that are recorded and replayed while everything in
 * them varies. */
#include "tests/emulation/fixture.h"

enum { ROWS = 40, SEQS = 12, STRIDE = 70, D = 32, VOCAB = 50, SLOTS = 3, LAYERS = 2 };

struct world {
    struct ec e;
    int32_t ids[ROWS];
    uint32_t seq[ROWS], pos[ROWS], out_rows[ROWS], page_table[SEQS * STRIDE];
    struct lora_seg seg[ROWS];
    struct lora_slot slot[SLOTS];
    struct lora_layout layout[2];
    struct lora_entry entry[2][LAYERS * LORA_MODULE_COUNT];
    struct lora_table table;
    struct step_args args;
};

static void world_make(struct world *w, const char *backend)
{
    struct backend_limits lim = ec_limits();
    memset(w, 0, sizeof(*w));
    lim.rows_max = ROWS;
    lim.seqs_max = SEQS;
    lim.page_stride = STRIDE;
    lim.segs_max = ROWS;
    lim.slots_max = SLOTS;
    lim.layouts_max = 2;
    lim.n_layer = LAYERS;
    lim.d_model = D;
    lim.n_vocab = VOCAB;
    ec_open_with(&w->e, &lim, backend);
    for (int i = 0; i < 2; i++)
        w->layout[i].entry = w->entry[i];
    w->table = (struct lora_table){w->slot, w->layout, SLOTS, 2, LAYERS, DTYPE_BF16};
}

/* Some sequences, each with a run of rows somewhere in its context; segments over all rows. */
static void draw_step(struct world *w, uint32_t rows_max, bool lora)
{
    struct step_args *a = &w->args;
    uint32_t first = fx_below(SEQS), row = 0;
    *a = (struct step_args){.ids = w->ids,
                            .rows = {w->seq, w->pos, w->page_table, STRIDE},
                            .out_rows = w->out_rows,
                            .lora = lora ? &w->table : NULL,
                            .seg = w->seg};
    for (uint32_t i = 0; i < SEQS * STRIDE; i++)
        w->page_table[i] = fx_u32();
    for (uint32_t s = 0; s < SEQS && row < rows_max; s++) {
        uint32_t n = fx_below(4) ? 1 : 1 + fx_below(30);
        n = MIN(n, rows_max - row);
        uint32_t pos = fx_below(STRIDE * 16 - n);
        for (uint32_t i = 0; i < n; i++, row++) {
            w->ids[row] = (int32_t)fx_below(VOCAB);
            w->seq[row] = (first + s) % SEQS;
            w->pos[row] = pos + i;
        }
    }
    a->n_tok = row;
    for (uint32_t begin = 0; lora && begin < row; begin += w->seg[a->n_seg++].tok_count) {
        struct lora_seg *g = &w->seg[a->n_seg];
        memset(g, 0, sizeof(*g));
        g->tok_begin = begin;
        g->tok_count = 1 + fx_below(row - begin);
        g->part_count = fx_below(3);
        for (uint32_t p = 0; p < g->part_count; p++)
            g->part[p] = (struct lora_part){fx_below(SLOTS), (int32_t)fx_below(70000)};
    }
    for (uint32_t i = 0; i < SLOTS; i++)
        w->slot[i] = (struct lora_slot){w->slot + fx_below(100), fx_below(2)};
    if (fx_below(2))
        for (uint32_t i = 0; i < LAYERS * LORA_MODULE_COUNT; i++)
            w->entry[fx_below(2)][i] = (struct lora_entry){fx_below(64), 0.5f, fx_u32(), fx_u32()};
    a->n_out = fx_below(row + 1);
    for (uint32_t i = 0; i < a->n_out; i++)
        w->out_rows[i] = fx_below(row);
}

/* ---- tables ---- */

static void check_rows(struct world *w, const struct cuda_counts *n)
{
    const struct cuda_step *s = &cuda_of(w->e.cuda)->step;
    uint32_t seq[ROWS], pos[ROWS], out[ROWS], begin[SEQS];
    int32_t ids[ROWS];
    ec_get(&w->e, seq, s->seq, sizeof(seq));
    ec_get(&w->e, pos, s->pos, sizeof(pos));
    ec_get(&w->e, ids, s->ids, sizeof(ids));
    ec_get(&w->e, out, s->out_rows, sizeof(out));
    ec_get(&w->e, begin, s->page_begin, sizeof(begin));
    assert_int_equal(n->n_tok, w->args.n_tok);
    assert_int_equal(n->n_out, w->args.n_out);
    assert_memory_equal(ids, w->ids, n->n_tok * 4);
    assert_memory_equal(pos, w->pos, n->n_tok * 4);
    if (n->n_out > 0)
        assert_memory_equal(out, w->out_rows, n->n_out * 4);
    for (uint32_t r = 0; r < ROWS; r++) {
        if (r >= n->n_tok) {
            assert_int_equal(seq[r], CUDA_NONE);
            continue;
        }
        assert_true(seq[r] < n->n_seq);
        for (uint32_t q = 0; q < r; q++)
            assert_true((seq[q] == seq[r]) == (w->seq[q] == w->seq[r]));
        uint32_t pages[STRIDE], count = w->pos[r] / 16 + 1;
        ec_get(&w->e, pages, s->page + begin[seq[r]], count * 4);
        assert_memory_equal(pages, w->page_table + w->seq[r] * STRIDE, count * 4);
    }
}

/* Rows of segment g beside row r, and with it, that are its sequence's. */
static uint32_t rows_of_sequence(const struct world *w, const struct lora_seg *g, uint32_t r)
{
    uint32_t begin = r, end = r + 1;
    while (begin > g->tok_begin && w->seq[begin - 1] == w->seq[r])
        begin--;
    while (end < g->tok_begin + g->tok_count && w->seq[end] == w->seq[r])
        end++;
    return end - begin;
}

static bool has_adapters(const struct world *w)
{
    for (uint32_t i = 0; w->args.lora && i < w->args.n_seg; i++)
        if (w->seg[i].part_count > 0)
            return true;
    return false;
}

static void check_list(struct world *w, const struct cuda_item *list, uint32_t count, bool wide,
                       uint32_t covered[ROWS])
{
    const struct cuda_step *s = &cuda_of(w->e.cuda)->step;
    for (uint32_t i = 0; i < count; i++) {
        struct cuda_item item;
        struct lora_seg g;
        ec_get(&w->e, &item, list + i, sizeof(item));
        ec_get(&w->e, &g, s->seg + item.seg, sizeof(g));
        assert_true(item.count >= 1 && item.count <= (wide ? CUDA_PREFILL_ROWS : CUDA_DECODE_ROWS));
        assert_true(item.begin >= g.tok_begin &&
                    item.begin + item.count <= g.tok_begin + g.tok_count);
        for (uint32_t r = item.begin; r < item.begin + item.count; r++) {
            assert_true((rows_of_sequence(w, &g, r) >= CUDA_PREFILL_MIN) == wide);
            covered[r]++;
        }
    }
}

static void check_adapters(struct world *w, const struct cuda_counts *n)
{
    const struct cuda_step *s = &cuda_of(w->e.cuda)->step;
    struct lora_slot slot[SLOTS];
    assert_int_equal(n->n_seg, w->args.n_seg);
    ec_get(&w->e, slot, s->slot, sizeof(slot));
    for (uint32_t i = 0; i < w->args.n_seg; i++) {
        struct lora_seg g;
        ec_get(&w->e, &g, s->seg + i, sizeof(g));
        assert_memory_equal(&g, &w->seg[i], sizeof(g));
        for (uint32_t p = 0; p < g.part_count; p++) {
            const struct lora_slot *at = &slot[g.part[p].slot];
            struct lora_layout layout;
            struct lora_entry entry[LAYERS * LORA_MODULE_COUNT];
            assert_ptr_equal(at->blob, w->slot[g.part[p].slot].blob);
            ec_get(&w->e, &layout, s->layout + at->layout, sizeof(layout));
            ec_get(&w->e, entry, layout.entry, sizeof(entry));
            assert_memory_equal(entry, w->entry[at->layout], sizeof(entry));
        }
    }
}

static void tables_say_what_the_step_is(void **state)
{
    (void)state;
    struct world w;
    world_make(&w, "cuda");
    const struct cuda_step *s = &cuda_of(w.e.cuda)->step;
    for (int round = 0; round < (emu_is_tsan() ? 20 : 200); round++) {
        draw_step(&w, 1 + fx_below(ROWS), round % 3 > 0);
        assert_int_equal(w.e.cuda->ops->step(w.e.cuda, &w.args), STATUS_OK);
        if (fx_below(3)) /* often nobody waits, and the next step overtakes it */
            continue;
        struct cuda_counts n;
        uint32_t covered[ROWS] = {0};
        ec_get(&w.e, &n, s->counts, sizeof(n));
        check_rows(&w, &n);
        check_list(&w, s->lora_decode, n.n_lora_decode, false, covered);
        check_list(&w, s->lora_prefill, n.n_lora_prefill, true, covered);
        for (uint32_t r = 0; r < ROWS; r++)
            assert_int_equal(covered[r], has_adapters(&w) && r < n.n_tok);
        if (w.args.lora)
            check_adapters(&w, &n);
    }
    ec_close(&w.e);
}

/* ---- passes ---- */

struct buffers {
    void *table, *h, *gain, *x, *hidden;
};

static struct buffers buffers_make(struct world *w, const uint16_t *table, const float *gain)
{
    return (struct buffers){.table = ec_put(&w->e, table, VOCAB * D * 2),
                            .h = ec_alloc(&w->e, ROWS * D * 4),
                            .gain = ec_put(&w->e, gain, D * 4),
                            .hidden = ec_alloc(&w->e, ROWS * D * 2)};
}

/* embed and the final norm; returns whether it was a replay. */
static bool run_pass(struct world *w, const struct buffers *m, float *hidden)
{
    struct backend *b = w->e.cuda;
    struct pass_args a = {.owner = m,
                          .hidden = m->hidden,
                          .lora = w->args.lora != NULL,
                          .n_tok = w->args.n_tok,
                          .n_out = w->args.n_out};
    struct pass p;
    assert_int_equal(b->ops->mem_zero(b, m->hidden, ROWS * D * 2), STATUS_OK);
    assert_int_equal(b->ops->step(b, &w->args), STATUS_OK);
    assert_int_equal(b->ops->pass_begin(b, &a, &p), STATUS_OK);
    enum status st = STATUS_OK;
    for (p.again = !p.replayed; p.again && !st;) {
        struct embed_args embed = {m->h, {m->table, DTYPE_BF16, VOCAB, D, NULL}, w->ids, p.n_tok};
        struct norm_args norm = {.out = m->hidden,
                                 .x = m->h,
                                 .gain = m->gain,
                                 .rows = w->out_rows,
                                 .eps = 1e-6f,
                                 .n_tok = p.n_out,
                                 .d_model = D};
        assert_true(p.n_tok >= w->args.n_tok && p.n_tok <= ROWS);
        st = b->ops->embed(b, &embed);
        if (!st && p.n_out > 0)
            st = b->ops->norm(b, &norm);
        st = b->ops->pass_end(b, &p, st);
    }
    if (p.replayed)
        st = b->ops->pass_end(b, &p, st);
    assert_int_equal(st, STATUS_OK);
    float *got = ec_get_acts(&w->e, m->hidden, ROWS * D);
    memcpy(hidden, got, ROWS * D * sizeof(float));
    mem_free(got);
    return p.replayed;
}

/* Eager and recorded, the same steps: the same bits, though lists and rows vary from replay to
 * replay; and most of many passes are replays. */
static void replays_follow_the_tables(void **state)
{
    (void)state;
    struct world w, eager;
    uint32_t replays = 0, rounds = emu_is_tsan() ? 60 : 300;
    float got[ROWS * D], want[ROWS * D];
    world_make(&w, "cuda");
    world_make(&eager, "cuda:eager");
    uint16_t *table = fx_tensor(VOCAB * D, DTYPE_BF16, 1, 0);
    float *gain = fx_floats(D, 1);
    struct buffers m = buffers_make(&w, table, gain), me = buffers_make(&eager, table, gain);
    for (uint32_t round = 0; round < rounds; round++) {
        draw_step(&w, 1 + fx_below(round % 2 ? 4 : ROWS), round % 3 == 0);
        eager.args = w.args;
        memcpy(eager.ids, w.ids, sizeof(w.ids));
        replays += run_pass(&w, &m, got);
        assert_false(run_pass(&eager, &me, want));
        fx_bits(got, want, ROWS * D);
        for (uint32_t i = w.args.n_out * D; i < ROWS * D; i++)
            assert_true(got[i] == 0); /* padding wrote nothing */
    }
    assert_true(replays > rounds / 3);
    mem_free(table);
    mem_free(gain);
    ec_close(&w.e);
    ec_close(&eager.e);
}

/* Whatever refuses the recording, its begin, its end, the graph made of it: the pass and all of its
 * shape are launched op by op, with the same bits, and counted once. */
static void what_cannot_be_recorded_is_launched(void **state)
{
    (void)state;
    for (int refuse = 1; refuse <= 3; refuse++) {
        struct world w;
        float first[ROWS * D], again[ROWS * D];
        world_make(&w, "cuda");
        uint16_t *table = fx_tensor(VOCAB * D, DTYPE_BF16, 1, 0);
        float *gain = fx_floats(D, 1);
        struct buffers m = buffers_make(&w, table, gain);
        draw_step(&w, 4, false);
        emu_device.refuse_capture = refuse;
        assert_false(run_pass(&w, &m, first));
        for (int i = 0; i < 3; i++) {
            assert_false(run_pass(&w, &m, again));
            fx_bits(again, first, ROWS * D);
        }
        assert_int_equal(w.e.cuda->passes_unrecorded, 1);
        emu_reset();
        draw_step(&w, ROWS, false); /* another shape */
        for (int i = 0; i < 3; i++)
            assert_int_equal(run_pass(&w, &m, again), i == 2);
        assert_int_equal(w.e.cuda->passes_unrecorded, 1);
        mem_free(table);
        mem_free(gain);
        ec_close(&w.e);
    }
}

/* An op that fails while a pass is recorded may have failed of that: it is asked once more. */
static void failed_recording_is_dropped(void **state)
{
    (void)state;
    struct world w;
    float first[ROWS * D], again[ROWS * D];
    world_make(&w, "cuda");
    uint16_t *table = fx_tensor(VOCAB * D, DTYPE_BF16, 1, 0);
    float *gain = fx_floats(D, 1);
    struct buffers m = buffers_make(&w, table, gain);
    draw_step(&w, 4, false);
    assert_false(run_pass(&w, &m, first));
    struct pass_args a = {
        .owner = &m, .hidden = m.hidden, .n_tok = w.args.n_tok, .n_out = w.args.n_out};
    struct pass p;
    assert_int_equal(w.e.cuda->ops->pass_begin(w.e.cuda, &a, &p), STATUS_OK);
    assert_false(p.replayed);
    assert_int_equal(w.e.cuda->ops->pass_end(w.e.cuda, &p, STATUS_IO), STATUS_OK);
    assert_true(p.again);
    assert_int_equal(w.e.cuda->ops->pass_end(w.e.cuda, &p, STATUS_IO), STATUS_IO);
    assert_false(p.again);
    for (int i = 0; i < 3; i++) {
        run_pass(&w, &m, again);
        fx_bits(again, first, ROWS * D);
    }
    mem_free(table);
    mem_free(gain);
    ec_close(&w.e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tables_say_what_the_step_is),
        cmocka_unit_test(replays_follow_the_tables),
        cmocka_unit_test(what_cannot_be_recorded_is_launched),
        cmocka_unit_test(failed_recording_is_dropped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
