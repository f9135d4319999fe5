/* A flight is back: what was computed is accounted, tokens are appended to their requests, and what
 * ends a sequence is looked for, in this order: end-of-text and stop ids, stop strings, the token
 * limit. A sequence that has left its slot since is passed over. A token is visible to readers when
 * n_out has been stored, so everything else of it is written before. */
#include "server/base/check.h"
#include "server/engine/steps.h"

#include <string.h>

/* The sequence whose rows these were, NULL: gone. */
static struct seq *seq_of(struct engine *e, const struct flight *f, uint32_t slot)
{
    struct seq *s = &e->seq[slot];
    return s->used && s->history == f->seq[slot].history ? s : NULL;
}

static void add_telemetry(struct engine *e, struct seq *s, const struct flight_seq *done)
{
    struct engine_job_seq *js = &s->job->seq[s->idx];
    struct request_seq *rs = &s->job->r->seq[s->idx];
    if (s->comp->n == 0)
        return;
    for (uint32_t i = 0; i < done->rows; i++) {
        if (done->first + i < js->counted)
            continue; /* recomputed after a preemption */
        const double *norm2 = e->head.norm2_host + (size_t)(done->row_first + i) * 2;
        rs->delta2 += norm2[0];
        rs->base2 += norm2[1];
    }
    js->counted = MAX(js->counted, done->first + done->rows);
}

static void advance(struct engine *e, struct seq *s, const struct flight_seq *done)
{
    uint32_t n_done = done->first + done->rows;
    if (s->score) {
        score_advance(e, s, done);
        return;
    }
    add_telemetry(e, s, done);
    seq_key_pages(e, s, n_done);
    if (n_done >= s->n_prompt)
        s->job->seq[s->idx].prompt_scored = true;
    if (n_done == s->n_tok && s->job->r->params.max_tokens == 0)
        job_finish_seq(e, s->job, s->idx, FINISH_LENGTH);
}

static bool is_stop_id(const struct engine *e, const struct request_params *p, int32_t id)
{
    const struct model_config *c = &e->model->config;
    for (uint32_t i = 0; i < c->eos_count && !p->ignore_eos; i++) {
        if (c->eos_id[i] == id)
            return true;
    }
    for (uint32_t i = 0; i < p->stop_id_count; i++) {
        if (p->stop_id[i] == id)
            return true;
    }
    return false;
}

static bool has_stop_string(struct engine *e, struct seq *s, int32_t id, uint32_t n_out)
{
    const struct request_params *p = &s->job->r->params;
    struct request_seq *rs = &s->job->r->seq[s->idx];
    struct stop_hit hit;
    /* Up to min_tokens the text is remembered but cannot end. */
    if (p->stop_count == 0 ||
        !stop_search_feed(&s->stop, p, id, n_out > p->min_tokens, &e->text, &hit))
        return false;
    rs->stop_index = (int32_t)hit.index;
    rs->cut_byte = (uint32_t)hit.begin;
    return true;
}

static enum finish_reason why_finished(struct engine *e, struct seq *s, int32_t id, uint32_t n_out)
{
    const struct request_params *p = &s->job->r->params;
    if (is_stop_id(e, p, id)) {
        s->job->r->seq[s->idx].stop_token = id;
        return FINISH_STOP;
    }
    if (has_stop_string(e, s, id, n_out))
        return FINISH_STOP;
    return n_out >= p->max_tokens ? FINISH_LENGTH : FINISH_NONE;
}

/* row: of the wanted ones, the samples first. */
static void take_token(struct engine *e, struct seq *s, uint32_t row)
{
    const struct sample_out *out = &e->head.out[row];
    struct engine_job *j = s->job;
    struct request_seq *rs = &j->r->seq[s->idx];
    uint32_t n_out = s->n_known - s->n_prompt;
    CHECK(s->n_known < s->n_tok && n_out < j->r->params.max_tokens);
    rs->out_id[n_out] = out->id;
    rs->out_logprob[n_out] = out->logprob;
    if (rs->out_top)
        rs->out_top[n_out] = *out;
    if (rs->out_key)
        memcpy(rs->out_key + (size_t)n_out * SKETCH_DIM, keys_row(e, row), SKETCH_DIM);
    n_out++;
    s->n_known++;
    j->dirty = true;
    e->count.generation_tokens++;
    sched_charge(&e->sched, j->fair, SCHED_COST_OUTPUT);
    if (j->r->first_token_ns == 0)
        j->r->first_token_ns = e->now_ns;
    enum finish_reason why = why_finished(e, s, out->id, n_out);
    if (why != FINISH_NONE)
        atomic_store_explicit(&rs->end_tokens, n_out, memory_order_release);
    atomic_store_explicit(&rs->n_out, n_out, memory_order_release);
    if (why != FINISH_NONE)
        job_finish_seq(e, j, s->idx, why);
}

void deliver_step(struct engine *e, const struct flight *f)
{
    uint32_t scored = f->n_sample + f->n_prompt;
    struct seq *s;
    for (uint32_t i = scored; i < scored + f->n_score; i++) {
        if ((s = seq_of(e, f, f->out[i].slot)))
            score_deliver(e, s, f, i);
    }
    for (uint32_t i = 0; i < e->slot_count; i++) {
        if (f->seq[i].rows > 0 && (s = seq_of(e, f, i)))
            advance(e, s, &f->seq[i]);
    }
    for (uint32_t i = 0; i < f->n_sample; i++) {
        if ((s = seq_of(e, f, f->out[i].slot)))
            take_token(e, s, i);
    }
    for (uint32_t i = e->job_live_count; i-- > 0;) {
        struct engine_job *j = &e->job[e->job_live[i]];
        job_wake(e, j);
        job_end_if_done(e, j);
    }
}
