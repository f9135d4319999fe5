/* A token that may be a stop token is left in the sequence until the engine has said whether it
 * ended there; its text is not part of the answer. A stop string is found here only to hold text
 * back: where it ends the text is the engine's word (stop_text_bytes), checked against our own
 * bytes, because with skip_special_tokens off ours can hold text that the engine's do not. */
#include "server/http/textout.h"
#include "server/base/check.h"

#include <string.h>

void textout_init(struct textout *t, const struct textout_rules *rules)
{
    *t = (struct textout){0};
    detok_init_continued(&t->detok, rules->model->tokenizer, rules->skip_special);
    stop_init(&t->match);
    buf_init(&t->pending, TEXTOUT_BYTES_MAX);
}

void textout_fini(struct textout *t)
{
    buf_fini(&t->pending);
}

static bool may_end(const struct textout_rules *rules, int32_t id)
{
    const struct request_params *p = rules->params;
    const struct model_config *c = &rules->model->config;
    for (uint32_t i = 0; i < p->stop_id_count; i++) {
        if (p->stop_id[i] == id)
            return true;
    }
    for (uint32_t i = 0; !p->ignore_eos && i < c->eos_count; i++) {
        if (c->eos_id[i] == id)
            return true;
    }
    return false;
}

static void push(struct textout *t, const struct textout_rules *rules, int32_t id)
{
    const struct request_params *p = rules->params;
    size_t before = t->pending.len;
    detok_push(&t->detok, id, &t->pending);
    t->consumed++;
    if (p->stop_count == 0)
        return;
    if (t->has_hit && t->consumed > t->hit_tokens) { /* the engine went on: min_tokens */
        t->has_hit = false;
        stop_init(&t->match);
        t->match.bytes = t->passed + before;
    }
    if (!t->has_hit && stop_feed(&t->match, p->stop, p->stop_count, t->pending.data + before,
                                 t->pending.len - before, &t->hit)) {
        t->has_hit = true;
        t->hit_tokens = t->consumed;
    }
}

/* Where the answer's text ends within pending, once the sequence has ended on a stop string. */
static size_t cut_at_stop(const struct textout *t, const struct textout_rules *rules,
                          const struct request_seq *s)
{
    const struct request_stop *stop = &rules->params->stop[s->stop_index];
    const char *text = t->pending.data;
    size_t len = t->pending.len, at = len;
    CHECK((uint32_t)s->stop_index < rules->params->stop_count);
    if (len < stop->len)
        return len;
    if (s->stop_text_bytes >= t->passed && s->stop_text_bytes - t->passed <= len - stop->len &&
        memcmp(text + (s->stop_text_bytes - t->passed), stop->text, stop->len) == 0) {
        at = s->stop_text_bytes - t->passed;
    } else {
        const char *found = memmem(text, len, stop->text, stop->len);
        if (!found)
            return len;
        at = (size_t)(found - text);
    }
    return rules->include_stop ? at + stop->len : at;
}

static void hand_out(struct textout *t, size_t n, struct buf *out)
{
    if (n == 0)
        return;
    buf_put(out, t->pending.data, n);
    buf_drop_front(&t->pending, n);
    t->passed += n;
}

static size_t releasable(const struct textout *t, const struct textout_rules *rules)
{
    size_t hold = 0;
    if (rules->params->stop_count == 0)
        return t->pending.len;
    if (t->has_hit)
        return t->hit.begin > t->passed ? (size_t)(t->hit.begin - t->passed) : 0;
    hold = stop_hold(&t->match, rules->params->stop, rules->params->stop_count);
    return hold < t->pending.len ? t->pending.len - hold : 0;
}

void textout_pull(struct textout *t, const struct textout_rules *rules, const struct request_seq *s,
                  struct buf *out)
{
    /* finish first: once it is seen, n_out is final. */
    uint32_t finish = atomic_load_explicit(&s->finish, memory_order_acquire);
    uint32_t n = atomic_load_explicit(&s->n_out, memory_order_acquire);
    if (t->ended)
        return;
    if (finish == FINISH_NONE && n > t->consumed && may_end(rules, s->out_id[n - 1]))
        n--;
    while (t->consumed < n) {
        bool is_stop = finish == FINISH_STOP && s->stop_token >= 0 && t->consumed + 1 == n;
        if (is_stop && !rules->include_stop)
            t->consumed++;
        else
            push(t, rules, s->out_id[t->consumed]);
    }
    if (finish == FINISH_NONE) {
        hand_out(t, releasable(t, rules), out);
        return;
    }
    detok_finish(&t->detok, &t->pending);
    hand_out(t, s->stop_index >= 0 && t->pending.len ? cut_at_stop(t, rules, s) : t->pending.len,
             out);
    t->ended = true;
}
