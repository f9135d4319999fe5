/* Nothing is searched for here: where a stop string ends the text is the engine's word, published
 * with the token that completes it, so a stop string that the engine has passed over is text. */
#include "server/http/textout.h"
#include "server/base/check.h"
#include "server/text/utf8.h"

#include <string.h>

struct textout_place { /* where the text of a token begins */
    uint32_t byte, character;
};

static void init(struct textout *t)
{
    *t = (struct textout){0};
    buf_init(&t->pending, TEXTOUT_BYTES_MAX);
    buf_init(&t->places, TEXTOUT_BYTES_MAX);
}

void textout_init(struct textout *t, const struct textout_rules *rules)
{
    init(t);
    detok_init_continued(&t->detok, rules->model->tokenizer, !rules->params->show_special);
}

void textout_fini(struct textout *t)
{
    buf_fini(&t->pending);
    buf_fini(&t->places);
}

static bool has_failed(const struct textout *t)
{
    return t->pending.failed || t->places.failed;
}

static struct textout_place *place_of(const struct textout *t, uint32_t token)
{
    VERIFY(token >= t->given && token < t->consumed);
    return (struct textout_place *)(void *)t->places.data + (token - t->given);
}

static void add_place(struct textout *t, uint64_t byte, uint64_t character)
{
    struct textout_place at = {.byte = (uint32_t)byte, .character = (uint32_t)character};
    buf_put(&t->places, &at, sizeof(at));
    t->consumed++;
}

/* Characters of pending from byte `from` on. */
static uint64_t count_pending(const struct textout *t, size_t from, size_t to)
{
    return from < to ? utf8_count(t->pending.data + from, to - from) : 0;
}

/* A run of byte tokens has turned out bad: each of its bytes is a mark of its own. */
static void replace_run(struct textout *t, const int32_t *ids)
{
    struct textout_place at = *place_of(t, t->run_first);
    for (uint32_t i = t->run_first; i < t->consumed; i++) {
        *place_of(t, i) = at;
        if (detok_is_byte(&t->detok, ids[i])) {
            at.byte += 3;
            at.character++;
        }
    }
}

static void push(struct textout *t, const int32_t *ids)
{
    struct detok *d = &t->detok;
    int32_t id = ids[t->consumed];
    size_t before = t->pending.len;
    detok_push(d, id, &t->pending);
    if (t->pending.failed)
        return;
    size_t begin = before - d->taken;
    if (d->taken > 0)
        t->characters = t->characters_given + count_pending(t, 0, begin);
    add_place(t, t->bytes_given + begin + d->lead,
              t->characters + count_pending(t, begin, begin + d->lead));
    t->characters += count_pending(t, begin, t->pending.len);
    if (d->run == 1 && detok_is_byte(d, id))
        t->run_first = t->consumed - 1;
    if (d->spoiled && !t->places.failed)
        replace_run(t, ids);
}

static void finish(struct textout *t, const int32_t *ids)
{
    detok_finish(&t->detok, &t->pending);
    if (has_failed(t))
        return;
    t->characters = t->characters_given + count_pending(t, 0, t->pending.len);
    if (t->detok.spoiled)
        replace_run(t, ids);
}

/* Hand out n bytes, and the tokens whose text is out by then: all of them at the end. */
static void give(struct textout *t, size_t n, struct buf *out, struct buf *offsets)
{
    uint32_t limit = t->detok.run > 0 && !t->ended ? t->run_first : t->consumed, from = t->given;
    uint64_t all = t->bytes_given + t->pending.len;
    if (n > 0) {
        buf_put(out, t->pending.data, n);
        t->characters_given += count_pending(t, 0, n);
        t->bytes_given += n;
        buf_drop_front(&t->pending, n);
    }
    uint32_t to = from;
    while (to < limit) {
        uint64_t end = to + 1 < t->consumed ? place_of(t, to + 1)->byte : all;
        if (!t->ended && end > t->bytes_given)
            break;
        uint32_t at = (uint32_t)MIN(place_of(t, to)->character, t->characters_given);
        if (offsets)
            buf_put(offsets, &at, sizeof(at));
        to++;
    }
    buf_drop_front(&t->places, (to - from) * sizeof(struct textout_place));
    t->given = to;
}

/* How much of pending can no longer change: a loose end may be replaced, and what precedes it may
 * be the begin of a stop string with it or without. */
static size_t final_bytes(const struct textout *t, const struct textout_rules *rules)
{
    const struct request_params *p = rules->params;
    const char *text = t->pending.data ? t->pending.data : "";
    size_t len = t->pending.len, firm = len - t->detok.loose;
    if (p->stop_count == 0)
        return firm;
    len -= stop_hold(text, len, p->stop, p->stop_count);
    firm -= stop_hold(text, firm, p->stop, p->stop_count);
    return MIN(len, firm);
}

/* Where the answer's text ends within pending. */
static size_t cut(const struct textout *t, const struct textout_rules *rules,
                  const struct request_seq *s)
{
    if (s->stop_index < 0)
        return t->pending.len;
    CHECK((uint32_t)s->stop_index < rules->params->stop_count);
    uint64_t end = s->cut_byte;
    if (rules->include_stop)
        end += rules->params->stop[s->stop_index].len;
    VERIFY(s->cut_byte >= t->bytes_given && end <= t->bytes_given + t->pending.len);
    return MIN(MAX(end, t->bytes_given) - t->bytes_given, t->pending.len);
}

void textout_pull(struct textout *t, const struct textout_rules *rules, const struct request_seq *s,
                  struct buf *out, struct buf *offsets)
{
    /* finish first: once it is seen, n_out is final; end_tokens last: it comes with its n_out. */
    bool finished = atomic_load_explicit(&s->finish, memory_order_acquire) != FINISH_NONE;
    uint32_t n = atomic_load_explicit(&s->n_out, memory_order_acquire);
    uint32_t end = atomic_load_explicit(&s->end_tokens, memory_order_acquire);
    if (t->ended)
        return;
    finished = finished || (end > 0 && n >= end);
    bool hide_last = finished && s->stop_token >= 0 && !rules->include_stop;
    while (t->consumed + hide_last < n && !has_failed(t))
        push(t, s->out_id);
    if (finished)
        finish(t, s->out_id);
    if (hide_last && !has_failed(t)) /* the stop token's text is not part of the answer */
        add_place(t, t->bytes_given + t->pending.len, t->characters);
    if (has_failed(t)) {
        out->failed = true;
        return;
    }
    t->ended = finished;
    give(t, finished ? cut(t, rules, s) : final_bytes(t, rules), out, offsets);
    out->failed = out->failed || has_failed(t);
}

/* Where the tokens' own text is not that of the echo, the marks before it count what was sent. */
bool textout_prompt_offsets(const struct textout_rules *rules, const int32_t *ids, uint32_t n,
                            const struct textout_echo *echo, struct buf *offsets)
{
    struct textout t;
    const struct tokenizer *tokenizer = rules->model->tokenizer;
    uint64_t characters = utf8_count(echo->text, echo->len), shift = 0, shift_characters = 0;
    init(&t);
    detok_init(&t.detok, tokenizer, echo->sent || !rules->params->show_special);
    while (t.consumed < n && !has_failed(&t))
        push(&t, ids);
    if (!has_failed(&t))
        finish(&t, ids);
    for (uint32_t i = 0; i < n && !has_failed(&t); i++) {
        const struct textout_place *at = place_of(&t, i);
        uint32_t offset = (uint32_t)MIN(at->character + shift_characters, characters);
        size_t len = 0, begin = at->byte + shift;
        buf_put(offsets, &offset, sizeof(offset));
        if (!echo->sent || !tokenizer_is_special(tokenizer, ids[i]))
            continue;
        const char *bytes = tokenizer_token_bytes(tokenizer, ids[i], &len);
        if (begin + len <= echo->len && memcmp(echo->text + begin, bytes, len) == 0) {
            shift += len;
            shift_characters += utf8_count(bytes, len);
        }
    }
    bool ok = !has_failed(&t) && !offsets->failed;
    textout_fini(&t);
    return ok;
}
