/* Log-probabilities in the two OpenAI shapes and in vLLM's for prompts. A value is printed from the
 * same float wherever it appears, so that "is this token the most likely" can be answered by
 * comparing texts. A token's text is its bytes with bad UTF-8 replaced; in chat the bytes are there
 * too. In text-keyed maps the first of two ids that decode alike wins: it is the likelier. */
#include "server/base/check.h"
#include "server/http/reply.h"
#include "server/text/utf8.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

void reply_put_number(struct buf *out, float logprob)
{
    buf_printf(out, "%.9g", isfinite(logprob) ? (double)logprob : REPLY_NO_LOGPROB);
}

static void put_token(struct buf *out, const struct generation *g, int32_t id)
{
    size_t len = 0;
    const char *bytes = tokenizer_token_bytes(g->rules.model->tokenizer, id, &len);
    if (g->spec.tokens_as_ids || !bytes)
        buf_printf(out, "\"token_id:%d\"", id);
    else
        buf_put_json_string(out, bytes, len);
}

static void put_bytes(struct buf *out, const struct generation *g, int32_t id)
{
    size_t len = 0;
    const char *bytes = tokenizer_token_bytes(g->rules.model->tokenizer, id, &len);
    if (!bytes) {
        buf_puts(out, "null");
        return;
    }
    buf_putc(out, '[');
    for (size_t i = 0; i < len; i++)
        buf_printf(out, i ? ",%u" : "%u", (unsigned char)bytes[i]);
    buf_putc(out, ']');
}

static void put_chat_entry(struct buf *out, const struct generation *g, int32_t id, float logprob)
{
    buf_puts(out, "{\"token\":");
    put_token(out, g, id);
    buf_puts(out, ",\"logprob\":");
    reply_put_number(out, logprob);
    buf_puts(out, ",\"bytes\":");
    put_bytes(out, g, id);
}

/* Alternative k of a token: the likeliest, but the chosen token has the last place where it is not
 * among them (a bias or a temperature chose it). */
static void put_chat_top(struct buf *out, const struct generation *g, const struct sample_out *top,
                         int32_t id, float logprob)
{
    uint32_t count = g->req->params.top_count;
    bool listed = false;
    for (uint32_t k = 0; k < count; k++) {
        listed = listed || top->top_id[k] == id;
        bool swap = k + 1 == count && !listed;
        if (k > 0)
            buf_putc(out, ',');
        put_chat_entry(out, g, swap ? id : top->top_id[k], swap ? logprob : top->top_logprob[k]);
        buf_putc(out, '}');
    }
}

void logprobs_put_chat(struct buf *out, const struct generation *g, const struct request_seq *s,
                       struct logprob_range range)
{
    buf_puts(out, "{\"content\":[");
    for (uint32_t t = range.from; t < range.to; t++) {
        const struct sample_out *top = s->out_top ? &s->out_top[t] : NULL;
        if (t > range.from)
            buf_putc(out, ',');
        put_chat_entry(out, g, s->out_id[t], s->out_logprob[t]);
        buf_puts(out, ",\"top_logprobs\":[");
        if (top)
            put_chat_top(out, g, top, s->out_id[t], s->out_logprob[t]);
        buf_puts(out, "]}");
    }
    buf_puts(out, "],\"refusal\":null}");
}

/* One walk over prompt (if asked) and output tokens; `what` picks the array. */
struct logprob_walk {
    struct generation *g;
    const struct request_seq *s;
    struct logprob_range range;
    const struct request_prompt *prompt; /* NULL without the prompt's tokens */
    uint32_t n;
};

static int32_t walk_id(const struct logprob_walk *w, uint32_t i)
{
    uint32_t n_prompt = w->prompt ? w->prompt->n_ids : 0;
    return i < n_prompt ? w->prompt->ids[i] : w->s->out_id[w->range.from + i - n_prompt];
}

/* The logprob and alternatives of item i; false where there are none (the first prompt token). */
static bool walk_logprob(const struct logprob_walk *w, uint32_t i, float *logprob,
                         const struct sample_out **top)
{
    uint32_t n_prompt = w->prompt ? w->prompt->n_ids : 0;
    if (i < n_prompt) {
        *logprob = w->prompt->logprob ? w->prompt->logprob[i] : 0;
        *top = w->prompt->top ? &w->prompt->top[i] : NULL;
        return i > 0 && w->prompt->logprob;
    }
    uint32_t t = w->range.from + i - n_prompt;
    *logprob = w->s->out_logprob[t];
    *top = w->s->out_top ? &w->s->out_top[t] : NULL;
    return true;
}

static bool same_text(const struct generation *g, int32_t a, int32_t b)
{
    size_t a_len = 0, b_len = 0;
    if (a == b)
        return true;
    if (g->spec.tokens_as_ids)
        return false;
    const char *x = tokenizer_token_bytes(g->rules.model->tokenizer, a, &a_len);
    const char *y = tokenizer_token_bytes(g->rules.model->tokenizer, b, &b_len);
    if (!x || !y)
        return false;
    /* Anything that is not a character prints as U+FFFD: compare what will be printed. */
    bool x_bad = utf8_valid_prefix(x, a_len) != a_len, y_bad = utf8_valid_prefix(y, b_len) != b_len;
    return (a_len == b_len && memcmp(x, y, a_len) == 0) || (x_bad && y_bad);
}

static void put_top_map(struct buf *out, const struct generation *g, int32_t id, float logprob,
                        const struct sample_out *top)
{
    uint32_t count = top ? g->req->params.top_count : 0, kept = 0;
    int32_t shown[SAMPLE_TOP_MAX];
    buf_putc(out, '{');
    for (uint32_t k = 0; k <= count; k++) {
        int32_t candidate = k < count ? top->top_id[k] : id;
        bool seen = false;
        for (uint32_t i = 0; i < kept; i++)
            seen = seen || same_text(g, shown[i], candidate);
        if (seen)
            continue;
        if (kept > 0)
            buf_putc(out, ',');
        put_token(out, g, candidate);
        buf_putc(out, ':');
        reply_put_number(out, k < count ? top->top_logprob[k] : logprob);
        if (kept < SAMPLE_TOP_MAX)
            shown[kept++] = candidate;
    }
    buf_putc(out, '}');
}

/* Where the tokens' texts begin, in characters of the answer's. */
static void put_offsets(struct buf *out, const struct logprob_walk *w, uint32_t idx)
{
    const struct choice *c = &w->g->choice[idx];
    const uint32_t *output = (const uint32_t *)(const void *)c->offsets.data, *prompt = NULL;
    uint32_t n_prompt = w->prompt ? w->prompt->n_ids : 0;
    struct buf offsets;
    buf_init(&offsets, n_prompt * sizeof(uint32_t));
    if (w->prompt) {
        const struct gen_text *text = &w->g->spec.echo_text[w->s->prompt_idx];
        struct textout_echo echo = {.text = text->data, .len = text->len, .sent = text->sent};
        if (!textout_prompt_offsets(&w->g->rules, w->prompt->ids, n_prompt, &echo, &offsets))
            out->failed = true;
        prompt = (const uint32_t *)(const void *)offsets.data;
    }
    buf_puts(out, "[");
    for (uint32_t i = 0; i < w->n && !out->failed; i++)
        buf_printf(out, i ? ",%llu" : "%llu",
                   (unsigned long long)(i < n_prompt ? prompt[i]
                                                     : c->echo_characters + output[i - n_prompt]));
    buf_putc(out, ']');
    buf_fini(&offsets);
}

void logprobs_put_completion(struct buf *out, struct generation *g, uint32_t idx,
                             struct logprob_range range)
{
    const struct sample_out *top = NULL;
    float lp = 0;
    struct logprob_walk w = {.g = g, .s = &g->req->seq[idx], .range = range};
    if (range.with_prompt)
        w.prompt = &g->req->prompt[w.s->prompt_idx];
    w.n = (w.prompt ? w.prompt->n_ids : 0) + range.to - range.from;
    buf_puts(out, "{\"tokens\":[");
    for (uint32_t i = 0; i < w.n; i++) {
        buf_puts(out, i ? "," : "");
        put_token(out, g, walk_id(&w, i));
    }
    buf_puts(out, "],\"token_logprobs\":[");
    for (uint32_t i = 0; i < w.n; i++) {
        buf_puts(out, i ? "," : "");
        if (walk_logprob(&w, i, &lp, &top))
            reply_put_number(out, lp);
        else
            buf_puts(out, "null");
    }
    buf_puts(out, "],\"top_logprobs\":[");
    for (uint32_t i = 0; i < w.n; i++) {
        buf_puts(out, i ? "," : "");
        if (walk_logprob(&w, i, &lp, &top))
            put_top_map(out, g, walk_id(&w, i), lp, top);
        else
            buf_puts(out, "null");
    }
    buf_puts(out, "],\"text_offset\":");
    put_offsets(out, &w, idx);
    buf_putc(out, '}');
}

static void put_prompt_entry(struct buf *out, const struct generation *g, int32_t id, float logprob,
                             int rank)
{
    buf_printf(out, "\"%d\":{\"logprob\":", id);
    reply_put_number(out, logprob);
    if (rank > 0)
        buf_printf(out, ",\"rank\":%d", rank);
    else
        buf_puts(out, ",\"rank\":null");
    buf_puts(out, ",\"decoded_token\":");
    put_token(out, g, id);
    buf_putc(out, '}');
}

void logprobs_put_prompt(struct buf *out, const struct generation *g,
                         const struct request_prompt *prompt)
{
    uint32_t count = (uint32_t)MAX(g->spec.prompt_logprobs, 0);
    buf_puts(out, "[null");
    for (uint32_t i = 1; i < prompt->n_ids && prompt->logprob && prompt->top; i++) {
        const struct sample_out *top = &prompt->top[i];
        int rank = 0;
        for (uint32_t k = 0; k < count; k++)
            rank = top->top_id[k] == prompt->ids[i] ? (int)k + 1 : rank;
        buf_puts(out, ",{");
        put_prompt_entry(out, g, prompt->ids[i], prompt->logprob[i], rank);
        for (uint32_t k = 0; k < count; k++) {
            if (top->top_id[k] == prompt->ids[i])
                continue;
            buf_putc(out, ',');
            put_prompt_entry(out, g, top->top_id[k], top->top_logprob[k], (int)k + 1);
        }
        buf_putc(out, '}');
    }
    buf_putc(out, ']');
}

void reply_put_ids(struct buf *out, const int32_t *ids, uint32_t n)
{
    buf_putc(out, '[');
    for (uint32_t i = 0; i < n; i++)
        buf_printf(out, i ? ",%d" : "%d", ids[i]);
    buf_putc(out, ']');
}
