/* The event stream. Each call turns what the engine has published since the last one into chunks.
 * Rules, each for a client that broke without it: choices begin in index order (openai-python
 * appends by arrival); the role comes once, with the first text; nothing private is in `delta`;
 * a finish chunk is separate and carries no text; the last of them waits until the record is
 * durable, because it carries the receipt; the usage chunk has an empty `choices`. */
#include "server/base/check.h"
#include "server/http/reply.h"

#include <string.h>

static void put_head(struct buf *out, const struct generation *g)
{
    buf_puts(out, "data: {\"id\":");
    reply_put_id(out, g);
    buf_printf(out, ",\"object\":\"%s\",\"created\":%lld,\"model\":",
               g->spec.chat ? "chat.completion.chunk" : "text_completion",
               (long long)g->created_unix);
    buf_put_json_string(out, g->spec.model, strlen(g->spec.model));
}

static void put_tail(struct buf *out, const struct generation *g)
{
    if (g->spec.continuous_usage) {
        buf_puts(out, ",\"usage\":");
        reply_put_usage(out, g);
    } else if (g->spec.include_usage) {
        buf_puts(out, ",\"usage\":null");
    }
}

/* One chunk with text and what there is to say of its tokens. */
static void put_text_chunk(struct buf *out, struct generation *g, uint32_t idx)
{
    struct choice *c = &g->choice[idx];
    put_head(out, g);
    buf_printf(out, ",\"choices\":[{\"index\":%u,", idx);
    if (g->spec.chat)
        buf_printf(out, "\"delta\":{%s\"content\":", c->begun ? "" : "\"role\":\"assistant\",");
    else
        buf_puts(out, "\"text\":");
    buf_put_json_string(out, c->ready.data ? c->ready.data : "", c->ready.len);
    if (g->spec.chat)
        buf_putc(out, '}');
    reply_put_logprobs(out, g, idx);
    buf_puts(out, ",\"finish_reason\":null");
    if (!c->begun && !g->spec.chat)
        reply_put_prompt_ids(out, g, idx);
    reply_put_token_ids(out, g, idx);
    buf_puts(out, "}]");
    if (!c->begun && g->spec.chat)
        reply_put_prompt_ids(out, g, idx);
    put_tail(out, g);
    buf_puts(out, "}\n\n");
    buf_clear(&c->ready);
    buf_clear(&c->offsets);
    c->sent = c->text.given;
    g->begun_count += !c->begun;
    c->begun = true;
}

static void put_finish_chunk(struct buf *out, struct generation *g, uint32_t idx)
{
    put_head(out, g);
    buf_printf(out, ",\"choices\":[{\"index\":%u,%s,\"logprobs\":null,", idx,
               g->spec.chat ? "\"delta\":{}" : "\"text\":\"\"");
    reply_put_finish(out, g, &g->req->seq[idx]);
    buf_puts(out, "}]");
    put_tail(out, g);
    g->choice[idx].finished = true;
    g->finished_count++;
    if (g->finished_count == g->req->seq_count)
        reply_put_residual(out, g);
    buf_puts(out, "}\n\n");
}

static void put_end(struct buf *out, struct generation *g)
{
    if (g->spec.include_usage) {
        put_head(out, g);
        buf_puts(out, ",\"choices\":[],\"usage\":");
        reply_put_usage(out, g);
        reply_put_residual(out, g);
        buf_puts(out, "}\n\n");
    }
    buf_puts(out, "data: [DONE]\n\n");
}

static bool lost_text(const struct generation *g)
{
    bool lost = false;
    for (uint32_t i = 0; i < g->req->seq_count; i++)
        lost = lost || g->choice[i].ready.failed || g->choice[i].offsets.failed;
    return lost;
}

static void put_failure(struct buf *out, const struct generation *g)
{
    const struct request *r = g->req;
    struct errtext err = r->error;
    int code = r->status ? reply_code(r->status) : 503;
    if (atomic_load(&g->drained) || !r->status)
        err_clear(&err);
    if (atomic_load(&g->drained))
        (void)err_set(&err, r->status, "the server is shutting down; this answer is incomplete");
    else if (!r->status && lost_text(g))
        (void)err_set(&err, r->status, "there is no memory for the answer's text");
    else if (!r->status)
        (void)err_set(&err, r->status, "the answer's record could not be made durable");
    (void)err_set(&err, r->status, "the engine failed"); /* where it said nothing */
    buf_puts(out, "data: ");
    reply_put_error(out, code, &err);
    buf_puts(out, "\n\ndata: [DONE]\n\n");
}

static bool has_failed(const struct generation *g)
{
    if (!g->req->receipt.recorded || lost_text(g))
        return true;
    for (uint32_t i = 0; i < g->req->seq_count; i++) {
        uint32_t finish = atomic_load_explicit(&g->req->seq[i].finish, memory_order_acquire);
        if (finish == FINISH_ERROR || finish == FINISH_CANCELLED)
            return true;
    }
    return false;
}

/* Text (and, once all text is out, the finish) of one choice. */
static void fill_choice(struct generation *g, uint32_t idx, bool done, struct buf *out)
{
    struct choice *c = &g->choice[idx];
    if (c->finished || idx > g->begun_count || !reply_pull(g, idx))
        return;
    bool tells = g->req->params.logprobs || g->spec.return_token_ids;
    bool has_news =
        c->ready.len > 0 || (c->text.ended && (!c->begun || (tells && c->text.given > c->sent)));
    if (has_news)
        put_text_chunk(out, g, idx);
    uint32_t finish = atomic_load_explicit(&g->req->seq[idx].finish, memory_order_acquire);
    bool good = finish == FINISH_STOP || finish == FINISH_LENGTH;
    bool last = g->finished_count + 1 == g->req->seq_count;
    if (c->text.ended && good && (!last || done))
        put_finish_chunk(out, g, idx);
}

bool sse_fill(struct generation *g, struct buf *out)
{
    /* done first: once it is seen, everything else is final. */
    bool done = atomic_load_explicit(&g->req->done, memory_order_acquire);
    bool good = done && !has_failed(g);
    for (uint32_t i = 0; i < g->req->seq_count; i++) {
        if (out->len > SSE_BACKLOG_BYTES)
            return false;
        fill_choice(g, i, good, out);
    }
    if (done && has_failed(g))
        put_failure(out, g);
    else if (done)
        put_end(out, g);
    return done;
}
