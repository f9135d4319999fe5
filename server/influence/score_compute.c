/* What follows the last row of a task: whole keys, spans, then the integers of the record, then the
 * evidence of them. Thread: the scorer's computing one. */
#include "chain_client/canon.h"
#include "server/base/check.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/influence/explain.h"
#include "server/influence/index_make.h"
#include "server/influence/score.h"

#include <string.h>

struct text_ids { /* prompt and output of one sequence */
    int32_t *ids;
    uint8_t *in_prompt; /* [n - n_prompt] */
    uint32_t n, n_prompt;
};

struct token_set { /* a bit for each id of the vocabulary */
    uint8_t *bit;
    uint32_t n_vocab;
};

static bool is_known(const struct token_set *s, int32_t id)
{
    return id >= 0 && (uint32_t)id < s->n_vocab;
}

/* Which tokens of the output stand in the prompt. The set is empty, and again afterwards. */
static void mark_prompt(struct text_ids *t, struct token_set *seen)
{
    for (uint32_t i = 0; i < t->n_prompt; i++) {
        if (is_known(seen, t->ids[i]))
            seen->bit[t->ids[i] / 8] |= (uint8_t)(1u << t->ids[i] % 8);
    }
    for (uint32_t i = t->n_prompt; i < t->n; i++)
        t->in_prompt[i - t->n_prompt] =
            is_known(seen, t->ids[i]) && seen->bit[t->ids[i] / 8] >> t->ids[i] % 8 & 1;
    for (uint32_t i = 0; i < t->n_prompt; i++) {
        if (is_known(seen, t->ids[i]))
            seen->bit[t->ids[i] / 8] = 0;
    }
}

static bool text_init(struct text_ids *t, const struct job *j, uint32_t seq, struct token_set *seen)
{
    const struct job_prompt *p = &j->prompt[j->seq[seq].prompt_idx];
    *t = (struct text_ids){.n = p->n_ids + j->seq[seq].n_out, .n_prompt = p->n_ids};
    t->ids = job_text(j, seq);
    t->in_prompt = mem_try_array(j->seq[seq].n_out, 1);
    if (!t->ids || !t->in_prompt)
        return false;
    mark_prompt(t, seen);
    return true;
}

static void text_fini(struct text_ids *t)
{
    if (t->ids)
        mem_wipe(t->ids, t->n * sizeof(*t->ids));
    mem_free(t->ids);
    mem_free(t->in_prompt);
}

/* Half 1 as it came, half 2 of the tokens before. */
static enum status whole_keys(int8_t **out, const struct score_part *p, uint32_t seq,
                              const struct text_ids *text, const struct model *model,
                              struct errtext *err)
{
    uint32_t n = text->n - text->n_prompt;
    const struct events_tokens tokens = {
        .ids = text->ids, .n_ids = text->n, .n_prompt = text->n_prompt};
    int8_t *context = mem_try_array(n, EVENTS_HALF), *key = mem_try_array(n, EVENTS_KEY);
    enum status st =
        context && key ? STATUS_OK : err_set(err, STATUS_NO_MEMORY, "keys: no memory for %u", n);
    if (!st && n)
        st = events_context_keys(p->index->events, index_embed, (void *)model, &tokens, context,
                                 err);
    for (uint32_t t = 0; !st && t < n; t++) {
        memcpy(key + (size_t)t * EVENTS_KEY, p->head[seq] + (size_t)t * EVENTS_HALF, EVENTS_HALF);
        memcpy(key + (size_t)t * EVENTS_KEY + EVENTS_HALF, context + (size_t)t * EVENTS_HALF,
               EVENTS_HALF);
    }
    mem_free(context);
    *out = key;
    return st;
}

/* Of several choices the spans that say the most are kept, and all weigh. */
static void keep_hits(struct score_part *p, uint32_t choice, const struct spans_hit *hit,
                      uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = p->hit_count;
        if (p->hit_count < SCORE_HITS_MAX) {
            p->hit_count++;
        } else {
            at = 0;
            for (uint32_t k = 1; k < SCORE_HITS_MAX; k++)
                at = p->hit[k].hit.info_q8 <= p->hit[at].hit.info_q8 ? k : at;
            if (p->hit[at].hit.info_q8 >= hit[i].info_q8)
                continue;
        }
        p->hit[at] = (struct score_hit){.choice = choice, .hit = hit[i]};
    }
}

static enum status add_spans(struct score_part *p, uint32_t choice, const struct text_ids *text,
                             uint64_t *weight, struct errtext *err)
{
    struct spans_hit hit[SPANS_COUNTED_MAX];
    uint32_t n = 0, owners = events_head(p->index->events)->n_owners;
    const struct spans *s = p->index->spans;
    enum status st = spans_find(s, text->ids, text->n, text->n_prompt, hit, ARRAY_COUNT(hit), &n);
    if (!st)
        st = spans_owner_weights(s, hit, n, text->n_prompt, weight);
    if (st)
        return err_set(err, st, "spans: no memory");
    for (uint32_t o = 0; !st && o < owners; o++) {
        if (__builtin_add_overflow(p->spans[o], weight[o], &p->spans[o]))
            p->spans[o] = UINT64_MAX;
    }
    if (!st)
        keep_hits(p, choice, hit, n);
    return st;
}

static enum status part_signals(struct score_part *p, const struct job *j,
                                const struct text_ids *text, const struct model *model,
                                struct errtext *err)
{
    uint32_t owners = events_head(p->index->events)->n_owners;
    uint64_t *weight = mem_try_array(owners, sizeof(*weight));
    p->key = mem_try_array(j->seq_count, sizeof(*p->key));
    p->spans = p->index->spans ? mem_try_array(owners, sizeof(*p->spans)) : NULL;
    enum status st = weight && p->key && (p->spans || !p->index->spans)
                         ? STATUS_OK
                         : err_set(err, STATUS_NO_MEMORY, "signals: no memory");
    for (uint32_t i = 0; !st && i < j->seq_count; i++) {
        st = whole_keys(&p->key[i], p, i, &text[i], model, err);
        if (!st && p->spans && text[i].n > text[i].n_prompt)
            st = add_spans(p, i, &text[i], weight, err);
    }
    mem_free(weight);
    return st;
}

static void fill_in(struct gain_in *in, struct gain_choice *choice, const struct score_task *t,
                    const struct text_ids *text)
{
    const struct job *j = t->job;
    uint32_t kinds = gain_row_count(j->adapter_count);
    *in = (struct gain_in){
        .adapter_count = j->adapter_count, .choice_count = j->seq_count, .choice = choice};
    for (uint32_t i = 0; i < j->seq_count; i++) {
        choice[i] = (struct gain_choice){.n = j->seq[i].n_out,
                                         .target = j->seq[i].ids,
                                         .set = j->seq[i].set_q8,
                                         .in_prompt = text[i].in_prompt};
        for (uint32_t r = 0; r < kinds; r++)
            choice[i].row[r] = t->q8[i * kinds + r];
    }
    for (uint32_t k = 0; k < j->adapter_count; k++) {
        const struct score_part *p = &t->part[k];
        in->adapter[k] = (struct gain_adapter){.weight_q16 = j->adapter[k].weight_q16};
        if (!p->index)
            continue;
        in->adapter[k].events = p->index->events;
        in->adapter[k].prior_ppb = p->index->prior_ppb;
        in->adapter[k].spans = p->spans;
        in->adapter[k].key = (const int8_t *const *)p->key;
    }
}

static void keep_evidence(const struct score_task *t, const struct gain_in *in,
                          const struct scorer_options *opt)
{
    struct buf out;
    struct errtext err = ERRTEXT_INIT;
    if (!opt->evidence)
        return;
    buf_init(&out, EVIDENCE_ENTRY_BYTES_MAX);
    explain_put(&out, t, in);
    if (out.failed || evidence_put(opt->evidence, t->job->inf_seq, out.data, out.len, &err))
        log_debug("score", "record %llu: no evidence is kept: %s",
                  (unsigned long long)t->job->inf_seq, out.failed ? "too large" : err.text);
    mem_wipe(out.data, out.len);
    buf_fini(&out);
}

void score_compute(struct score_task *t, const struct scorer_options *opt)
{
    const struct job *j = t->job;
    struct errtext err = ERRTEXT_INIT;
    struct text_ids *text = mem_array(j->seq_count, sizeof(*text));
    struct gain_choice *choice = mem_array(j->seq_count, sizeof(*choice));
    struct token_set seen = {.n_vocab = opt->model->config.n_vocab};
    struct gain_in in;
    enum status st = STATUS_OK;
    seen.bit = mem_array(seen.n_vocab / 8 + 1, 1);
    for (uint32_t i = 0; !st && i < j->seq_count; i++)
        st = text_init(&text[i], j, i, &seen) ? STATUS_OK : STATUS_NO_MEMORY;
    for (uint32_t k = 0; !st && k < j->adapter_count; k++) {
        if (t->part[k].index)
            st = part_signals(&t->part[k], j, text, opt->model, &err);
    }
    fill_in(&in, choice, t, text);
    if (!st)
        st = gain_compute(&t->result, &in, &err);
    if (!st) {
        gain_inputs_digest(t->inputs_digest, &in, j->salt);
        gain_index_hash(t->index_hash, &in);
        keep_evidence(t, &in, opt);
    } else {
        t->outcome = RECORD_OUTCOME_SCORER_FAILED;
        log_error("score", "record %llu: %s", (unsigned long long)j->inf_seq, err.text);
    }
    for (uint32_t i = 0; i < j->seq_count; i++)
        text_fini(&text[i]);
    mem_free(seen.bit);
    mem_free(text);
    mem_free(choice);
}
