/* The device work of a step: rows in order of composition through the forward pass, then the rows
 * that were wanted, in three parts of one list: rows to sample from, prompt rows whose next token
 * is to be judged, and scoring rows. What a device finds comes when it is collected; judging prompt
 * rows waits. Logits exist for `tile` rows at a time. Every op here computes each row for itself,
 * so tiles and company do not show in the bits. */
#include "server/base/check.h"
#include "server/engine/steps.h"

#include <math.h>
#include <string.h>

static bool samples(const struct seq *s)
{
    return s->job && s->rows > 0 && s->n_kv + s->rows == s->n_tok &&
           s->job->r->params.max_tokens > 0;
}

static void fill_rows(struct engine *e, struct flight *f)
{
    batch_clear(&e->batch);
    e->batch.out = f->out;
    memset(f->seq, 0, e->slot_count * sizeof(f->seq[0]));
    for (uint32_t i = 0; i < e->order_count; i++) {
        struct seq *s = &e->seq[e->order[i]];
        if (s->rows == 0)
            continue;
        struct batch_run run = {.slot = s->slot,
                                .comp = s->comp,
                                .lora_slot = s->lora_slot,
                                .prompt = s->prompt,
                                .output = s->output,
                                .n_prompt = s->n_prompt,
                                .n_known = s->n_known,
                                .first = s->n_kv,
                                .count = s->rows};
        f->seq[s->slot] = (struct flight_seq){.history = s->history,
                                              .first = s->n_kv,
                                              .rows = s->rows,
                                              .row_first = batch_add(&e->batch, &run)};
    }
}

/* Rows of s whose position is in [from, to) are wanted. */
static void want_positions(struct engine *e, const struct flight_seq *s, uint32_t from, uint32_t to)
{
    from = MAX(from, s->first);
    to = MIN(to, s->first + s->rows);
    for (uint32_t pos = from; pos < to; pos++)
        batch_want(&e->batch, s->row_first + pos - s->first);
}

static void fill_wanted(struct engine *e, struct flight *f)
{
    for (uint32_t i = 0; i < e->order_count; i++) {
        const struct seq *s = &e->seq[e->order[i]];
        if (samples(s))
            want_positions(e, &f->seq[s->slot], s->n_tok - 1, s->n_tok);
    }
    f->n_sample = e->batch.n_out;
    for (uint32_t i = 0; i < e->order_count; i++) {
        const struct seq *s = &e->seq[e->order[i]];
        if (s->rows > 0 && s->want_prompt)
            want_positions(e, &f->seq[s->slot], 0, s->n_prompt - 1);
    }
    f->n_prompt = e->batch.n_out - f->n_sample;
    for (uint32_t i = 0; i < e->order_count; i++) {
        const struct seq *s = &e->seq[e->order[i]];
        if (s->rows > 0 && s->score)
            want_positions(e, &f->seq[s->slot], s->score->job->n_prompt - 1, s->n_tok);
    }
    f->n_score = e->batch.n_out - f->n_sample - f->n_prompt;
}

static enum status run_forward(struct engine *e)
{
    const struct batch *b = &e->batch;
    struct forward_batch f = {.ids = b->ids,
                              .n_tok = b->n_tok,
                              .rows = {.seq = b->seq,
                                       .pos = b->pos,
                                       .page_table = e->page_table,
                                       .page_stride = e->page_stride},
                              .kv = e->cache,
                              .seg = b->seg,
                              .n_seg = b->n_seg,
                              .out_rows = b->out_row,
                              .n_out = b->n_out,
                              .hidden = e->head.hidden};
    enum status st = STATUS_OK;
    if (b->any_lora) {
        f.lora = store_table(e->store);
        f.norm2 = e->head.norm2;
        st = e->backend->ops->mem_zero(e->backend, f.norm2, (size_t)b->n_tok * 2 * sizeof(double));
    }
    return st ? st : forward_run(e->forward, &f);
}

static enum status run_logits(struct engine *e, uint32_t first_out, uint32_t n_row)
{
    struct logits_args a = {.out = e->head.logits,
                            .x = run_hidden_row(e, first_out),
                            .w = resident_model(e->resident)->lm_head,
                            .n_row = n_row};
    return e->backend->ops->logits(e->backend, &a);
}

/* The request's own biases, and -inf for what may not end the text yet. */
static void fill_bias(struct engine *e, const struct request_params *p, uint32_t n_out,
                      struct sample_row *row, struct sample_bias *scratch)
{
    const struct model_config *c = &e->model->config;
    uint32_t n = p->bias_count;
    row->bias = p->bias;
    row->bias_count = n;
    if (n_out >= p->min_tokens)
        return;
    if (n > 0)
        memcpy(scratch, p->bias, n * sizeof(scratch[0]));
    for (uint32_t i = 0; i < c->eos_count && !p->ignore_eos; i++)
        scratch[n++] = (struct sample_bias){.id = c->eos_id[i], .bias = -INFINITY};
    for (uint32_t i = 0; i < p->stop_id_count; i++)
        scratch[n++] = (struct sample_bias){.id = p->stop_id[i], .bias = -INFINITY};
    CHECK(n <= BIAS_ROW_MAX);
    row->bias = scratch;
    row->bias_count = n;
}

static void fill_sample_row(struct engine *e, const struct seq *s, uint32_t i)
{
    struct head *h = &e->head;
    const struct request_params *p = &s->job->r->params;
    uint32_t n_out = s->n_tok - s->n_prompt;
    h->row[i] = (struct sample_row){.temperature = p->temperature,
                                    .top_p = p->top_p,
                                    .min_p = p->min_p,
                                    .repetition = p->repetition,
                                    .frequency = p->frequency,
                                    .presence = p->presence,
                                    .top_k = p->top_k,
                                    .seed = s->job->r->seq[s->idx].seed,
                                    .draw = n_out,
                                    .prompt = s->prompt,
                                    .output = s->output,
                                    .n_prompt = s->n_prompt,
                                    .n_output = n_out,
                                    .top_count = p->top_count,
                                    .history = s->history,
                                    .slot = s->slot};
    fill_bias(e, p, n_out, &h->row[i], &h->bias[(size_t)i * BIAS_ROW_MAX]);
}

static enum status sample_tile(struct engine *e, struct flight *f, const struct sample_args *a)
{
    const struct backend_ops *ops = e->backend->ops;
    return ops->sample_begin ? ops->sample_begin(e->backend, a, &f->ticket[f->n_ticket++])
                             : ops->sample(e->backend, a);
}

static enum status run_sample(struct engine *e, struct flight *f)
{
    struct head *h = &e->head;
    enum status st = STATUS_OK;
    f->n_ticket = 0;
    for (uint32_t first = 0; first < f->n_sample && !st; first += h->tile) {
        uint32_t n = MIN(h->tile, f->n_sample - first);
        st = run_logits(e, first, n);
        for (uint32_t i = 0; i < n; i++)
            fill_sample_row(e, &e->seq[f->out[first + i].slot], i);
        struct sample_args a = {.out = h->out + first,
                                .logits = h->logits,
                                .row = h->row,
                                .scratch = h->sample_scratch,
                                .n_row = n,
                                .n_vocab = e->model->config.n_vocab};
        if (!st)
            st = sample_tile(e, f, &a);
    }
    return st;
}

static void keep_prompt_logprob(struct engine *e, const struct batch_out *o,
                                const struct sample_out *found)
{
    const struct seq *s = &e->seq[o->slot];
    struct request *r = s->job->r;
    struct request_prompt *p = &r->prompt[r->seq[s->idx].prompt_idx];
    p->logprob[o->pos + 1] = found->logprob;
    if (p->top)
        p->top[o->pos + 1] = *found;
}

static enum status run_prompt_logprobs(struct engine *e, const struct flight *f)
{
    struct head *h = &e->head;
    enum status st = STATUS_OK;
    for (uint32_t done = 0; done < f->n_prompt && !st; done += h->tile) {
        uint32_t n = MIN(h->tile, f->n_prompt - done);
        const struct batch_out *o = &f->out[f->n_sample + done];
        st = run_logits(e, f->n_sample + done, n);
        for (uint32_t i = 0; i < n; i++) {
            const struct seq *s = &e->seq[o[i].slot];
            h->target[i] = s->prompt[o[i].pos + 1];
            h->top_count[i] = (uint32_t)s->job->r->params.prompt_top_count;
        }
        struct top_logprobs_args a = {.out = h->prompt_out,
                                      .logits = h->logits,
                                      .target = h->target,
                                      .top_count = h->top_count,
                                      .n_row = n,
                                      .n_vocab = e->model->config.n_vocab};
        if (!st)
            st = e->backend->ops->top_logprobs(e->backend, &a);
        for (uint32_t i = 0; i < n && !st; i++)
            keep_prompt_logprob(e, &o[i], &h->prompt_out[i]);
    }
    return st;
}

static enum status run_score(struct engine *e, struct flight *f)
{
    struct head *h = &e->head;
    uint32_t first = f->n_sample + f->n_prompt;
    f->has_score = f->n_score > 0 && e->backend->ops->score_begin;
    if (f->n_score == 0)
        return STATUS_OK;
    CHECK(f->n_score <= e->opt.score_rows_max);
    for (uint32_t i = 0; i < f->n_score; i++) {
        const struct batch_out *o = &f->out[first + i];
        h->target[i] = e->seq[o->slot].prompt[o->pos + 1];
    }
    struct score_args a = {.logprob = h->logprob,
                           .x = run_hidden_row(e, first),
                           .w = resident_model(e->resident)->lm_head,
                           .target = h->target,
                           .scratch = h->score_scratch,
                           .n_row = f->n_score};
    return f->has_score ? e->backend->ops->score_begin(e->backend, &a, &f->score_ticket)
                        : e->backend->ops->score(e->backend, &a);
}

/* Telemetry comes back from a device only for requests: scoring does not count it. */
static bool needs_telemetry(const struct engine *e)
{
    for (uint32_t i = 0; i < e->order_count; i++) {
        const struct seq *s = &e->seq[e->order[i]];
        if (s->rows > 0 && s->job && s->comp->n > 0)
            return true;
    }
    return false;
}

static enum status read_telemetry(struct engine *e, struct flight *f)
{
    const struct head *h = &e->head;
    size_t bytes = (size_t)e->batch.n_tok * 2 * sizeof(double);
    f->has_norm2 = h->norm2_host != h->norm2 && e->batch.any_lora && needs_telemetry(e);
    return f->has_norm2 ? e->backend->ops->read_begin(e->backend, h->norm2, bytes, &f->norm2_ticket)
                        : STATUS_OK;
}

/* The device has the rows: plans go on from behind them, and behind the token each sample brings.
 */
static void take_off(struct engine *e)
{
    for (uint32_t i = 0; i < e->order_count; i++) {
        struct seq *s = &e->seq[e->order[i]];
        bool sampled = samples(s);
        s->n_kv += s->rows;
        s->n_tok += sampled;
        s->rows = 0;
    }
}

enum status run_launch(struct engine *e, struct flight *f)
{
    f->decodes = e->step_decodes;
    f->others = e->step_others;
    fill_rows(e, f);
    fill_wanted(e, f);
#if RS_CHECKING
    batch_verify(&e->batch, e->model->config.n_vocab, e->opt.context_max);
#endif
    enum status st = run_forward(e);
    if (!st)
        st = read_telemetry(e, f);
    if (!st)
        st = run_sample(e, f);
    if (!st)
        st = run_prompt_logprobs(e, f);
    if (!st)
        st = run_score(e, f);
    if (!st)
        st = keys_run(e, f);
    if (!st)
        st = keys_read_hidden(e, f);
    if (!st)
        take_off(e);
    return st;
}

enum status run_collect(struct engine *e, const struct flight *f)
{
    struct head *h = &e->head;
    const struct backend_ops *ops = e->backend->ops;
    enum status st = STATUS_OK;
    for (uint32_t i = 0; i < f->n_ticket && !st && ops->read_end; i++)
        st = ops->read_end(e->backend, f->ticket[i], h->out + (size_t)i * h->tile);
    if (!st && f->has_norm2)
        st = ops->read_end(e->backend, f->norm2_ticket, h->norm2_host);
    if (!st && f->has_score)
        st = ops->read_end(e->backend, f->score_ticket, h->logprob);
    if (!st && f->has_key)
        st = ops->read_end(e->backend, f->key_ticket, h->key + (size_t)f->key_first * SKETCH_DIM);
    return st;
}
