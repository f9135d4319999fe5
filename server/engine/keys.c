/* What leaves a step of the head's inputs: keys (kernels/head.h, sketch) of rows whose next token
 * is sampled or scored, where request or job wants them, all of a step in one call; and the inputs
 * themselves, for those who build an index, as f32. A key belongs to the token that its row
 * predicts. Rows stand in order of composition, so those of one basis are neighbours. */
#include "kernels/bf16.h"
#include "server/base/check.h"
#include "server/engine/steps.h"

/* NULL: nobody wants this row's key. */
static struct engine_basis *wanted_basis(const struct engine *e, uint32_t slot)
{
    const struct seq *s = &e->seq[slot];
    if (s->score)
        return s->score->job->key ? s->score->job->basis : NULL;
    const struct request *r = s->job->r;
    return r->seq[s->idx].out_key ? r->basis : NULL;
}

static void add_row(struct engine *e, uint32_t row, const struct sketch_basis *basis)
{
    struct head *h = &e->head;
    struct sketch_seg *last = h->key_seg_count > 0 ? &h->key_seg[h->key_seg_count - 1] : NULL;
    if (last && last->basis == basis && last->row + last->n_row == row) {
        last->n_row++;
        return;
    }
    CHECK(h->key_seg_count < e->slot_count);
    h->key_seg[h->key_seg_count++] = (struct sketch_seg){.row = row, .n_row = 1, .basis = basis};
}

static enum status add_rows(struct engine *e, const struct flight *f, uint32_t from, uint32_t to)
{
    enum status st = STATUS_OK;
    for (uint32_t i = from; i < to && !st; i++) {
        struct engine_basis *basis = wanted_basis(e, f->out[i].slot);
        if (!basis)
            continue;
        st = basis_ready(basis, e->backend);
        add_row(e, i, basis_view(basis));
    }
    return st;
}

enum status keys_run(struct engine *e, struct flight *f)
{
    struct head *h = &e->head;
    const struct backend_ops *ops = e->backend->ops;
    uint32_t scored = f->n_sample + f->n_prompt;
    h->key_seg_count = 0;
    enum status st = add_rows(e, f, 0, f->n_sample);
    if (!st)
        st = add_rows(e, f, scored, scored + f->n_score);
    f->has_key = !st && h->key_seg_count > 0 && ops->sketch_begin;
    if (st || h->key_seg_count == 0)
        return st;
    struct sketch_args a = {.out = h->key,
                            .x = h->hidden,
                            .seg = h->key_seg,
                            .n_seg = h->key_seg_count,
                            .d_model = e->model->config.d_model};
    f->key_first = h->key_seg[0].row;
    return f->has_key ? ops->sketch_begin(e->backend, &a, &f->key_ticket)
                      : ops->sketch(e->backend, &a);
}

/* n rows of one sequence, from wanted row `first` on. A device's are half as wide: they come into
 * the upper half of where they go and are widened from the front. */
static enum status read_rows(struct engine *e, const struct flight *f, uint32_t first, uint32_t n)
{
    const struct batch_out *o = &f->out[first];
    const struct score_job *j = e->seq[o->slot].score->job;
    size_t d = e->model->config.d_model, count = n * d;
    enum dtype act = e->backend->act;
    float *to = j->hidden + (o->pos + 1 - j->n_prompt) * d;
    char *half = (char *)to + count * (sizeof(float) - dtype_bytes(act));
    enum status st = e->backend->ops->mem_read(e->backend, half, run_hidden_row(e, first),
                                               count * dtype_bytes(act));
    for (size_t i = 0; act != DTYPE_F32 && i < count && !st; i++)
        to[i] = elem_load(half, act, i);
    return st;
}

enum status keys_read_hidden(struct engine *e, const struct flight *f)
{
    uint32_t end = f->n_sample + f->n_prompt + f->n_score;
    enum status st = STATUS_OK;
    for (uint32_t i = end - f->n_score, n; i < end && !st; i += n) {
        const struct seq *s = &e->seq[f->out[i].slot];
        for (n = 1; i + n < end && f->out[i + n].slot == s->slot; n++) {
        }
        if (s->score->job->hidden)
            st = read_rows(e, f, i, n);
    }
    return st;
}
