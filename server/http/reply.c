/* The one table from status to HTTP, and the bodies that are sent whole. */
#include "server/http/reply.h"
#include "server/base/check.h"
#include "server/http/state.h"
#include "server/text/utf8.h"

#include <stdio.h>
#include <string.h>

int reply_code(enum status st)
{
    static const int code[] = {
        [STATUS_OK] = 200,        [STATUS_INVALID] = 400,     [STATUS_NOT_FOUND] = 404,
        [STATUS_EXISTS] = 400,    [STATUS_UNSUPPORTED] = 400, [STATUS_DENIED] = 403,
        [STATUS_TOO_LARGE] = 413, [STATUS_FULL] = 429,        [STATUS_BUSY] = 503,
        [STATUS_TIMEOUT] = 504,   [STATUS_CANCELLED] = 503,   [STATUS_CORRUPT] = 422,
        [STATUS_IO] = 503,        [STATUS_NO_MEMORY] = 503,   [STATUS_CONFLICT] = 409};
    _Static_assert(ARRAY_COUNT(code) == STATUS_COUNT, "a status lacks its HTTP code");
    return code[st];
}

static const char *error_type(int code)
{
    switch (code) {
    case 401:
        return "authentication_error";
    case 403:
        return "permission_error";
    case 404:
        return "not_found_error";
    case 429:
        return "rate_limit_error";
    case 500:
        return "server_error";
    case 503:
    case 504:
        return "service_unavailable_error";
    default:
        return "invalid_request_error";
    }
}

static const char *default_code(int code)
{
    switch (code) {
    case 401:
        return "invalid_api_key";
    case 403:
        return "permission_denied";
    case 404:
        return "not_found";
    case 405:
        return "method_not_allowed";
    case 413:
        return "request_too_large";
    case 429:
        return "rate_limit_exceeded";
    case 503:
        return "service_unavailable";
    default:
        return NULL;
    }
}

void reply_put_error(struct buf *out, int code, const struct errtext *err)
{
    const char *message = err->text[0] ? err->text : "the request failed";
    const char *short_code = err->code ? err->code : default_code(code);
    buf_puts(out, "{\"error\":{\"message\":");
    buf_put_json_string(out, message, strlen(message));
    buf_printf(out, ",\"type\":\"%s\",\"param\":", error_type(code));
    if (err->param[0])
        buf_put_json_string(out, err->param, strlen(err->param));
    else
        buf_puts(out, "null");
    buf_puts(out, ",\"code\":");
    if (short_code)
        buf_printf(out, "\"%s\"", short_code);
    else
        buf_puts(out, "null");
    buf_puts(out, "}}");
}

const char *reply_finish_name(uint32_t finish)
{
    /* A cancelled sequence is only ever shown to a client whose server is stopping. */
    return finish == FINISH_LENGTH ? "length" : "stop";
}

void reply_put_finish(struct buf *out, const struct generation *g, const struct request_seq *s)
{
    uint32_t finish = atomic_load_explicit(&s->finish, memory_order_acquire);
    const struct model_config *c = &g->rules.model->config;
    bool eos = false;
    buf_printf(out, "\"finish_reason\":\"%s\",\"stop_reason\":", reply_finish_name(finish));
    for (uint32_t i = 0; i < c->eos_count; i++)
        eos = eos || c->eos_id[i] == s->stop_token;
    if (finish == FINISH_STOP && s->stop_index >= 0) {
        const struct request_stop *stop = &g->req->params.stop[s->stop_index];
        buf_put_json_string(out, stop->text, stop->len);
    } else if (finish == FINISH_STOP && s->stop_token >= 0 && !eos) {
        buf_printf(out, "%d", s->stop_token);
    } else {
        buf_puts(out, "null");
    }
}

void reply_put_usage(struct buf *out, const struct generation *g)
{
    uint64_t prompt = 0, completion = 0, cached = 0;
    for (uint32_t i = 0; i < g->req->prompt_count; i++) {
        prompt += g->req->prompt[i].n_ids;
        cached += g->req->prompt[i].cached_tokens;
    }
    for (uint32_t i = 0; i < g->req->seq_count; i++)
        completion += atomic_load_explicit(&g->req->seq[i].n_out, memory_order_acquire);
    buf_printf(out,
               "{\"prompt_tokens\":%llu,\"completion_tokens\":%llu,\"total_tokens\":%llu,"
               "\"prompt_tokens_details\":{\"cached_tokens\":%llu},"
               "\"completion_tokens_details\":{\"reasoning_tokens\":0}}",
               (unsigned long long)prompt, (unsigned long long)completion,
               (unsigned long long)(prompt + completion), (unsigned long long)cached);
}

void reply_put_residual(struct buf *out, const struct generation *g)
{
    buf_puts(out, ",\"residual\":");
    recorder_residual_json(g->server->deps.recorder, g->req, out);
}

void reply_put_id(struct buf *out, const struct generation *g)
{
    buf_printf(out, "\"%s-%s\"", g->spec.chat ? "chatcmpl" : "cmpl", g->req->id_hex);
}

static void add_echo(struct generation *g, uint32_t idx)
{
    struct choice *c = &g->choice[idx];
    if (!g->spec.echo || c->echoed)
        return;
    const struct gen_text *echo = &g->spec.echo_text[g->req->seq[idx].prompt_idx];
    c->echoed = true;
    c->echo_characters = utf8_count(echo->data, echo->len);
    buf_put(&c->ready, echo->data, echo->len);
}

bool reply_pull(struct generation *g, uint32_t idx)
{
    struct choice *c = &g->choice[idx];
    const struct request_seq *s = &g->req->seq[idx];
    bool offsets = !g->spec.chat && g->req->params.logprobs;
    /* With the first token, so that a client measures the truth. */
    if (atomic_load_explicit(&s->n_out, memory_order_acquire) == 0 &&
        atomic_load_explicit(&s->finish, memory_order_acquire) == FINISH_NONE)
        return true;
    add_echo(g, idx);
    textout_pull(&c->text, &g->rules, s, &c->ready, offsets ? &c->offsets : NULL);
    return !c->ready.failed && !c->offsets.failed;
}

void reply_put_logprobs(struct buf *out, struct generation *g, uint32_t idx)
{
    const struct choice *c = &g->choice[idx];
    struct logprob_range range = {
        .from = c->sent, .to = c->text.given, .with_prompt = g->spec.echo && !c->begun};
    buf_puts(out, ",\"logprobs\":");
    if (!g->req->params.logprobs)
        buf_puts(out, "null");
    else if (g->spec.chat)
        logprobs_put_chat(out, g, &g->req->seq[idx], range);
    else
        logprobs_put_completion(out, g, idx, range);
}

void reply_put_token_ids(struct buf *out, const struct generation *g, uint32_t idx)
{
    const struct choice *c = &g->choice[idx];
    if (!g->spec.return_token_ids)
        return;
    buf_puts(out, ",\"token_ids\":");
    reply_put_ids(out, g->req->seq[idx].out_id + c->sent, c->text.given - c->sent);
}

void reply_put_prompt_ids(struct buf *out, const struct generation *g, uint32_t idx)
{
    const struct request_prompt *prompt = &g->req->prompt[g->req->seq[idx].prompt_idx];
    if (!g->spec.return_token_ids)
        return;
    buf_puts(out, ",\"prompt_token_ids\":");
    reply_put_ids(out, prompt->ids, prompt->n_ids);
}

/* What was asked about the prompt. vLLM has it in each choice of a completion, but beside the
 * choices of a chat, which have one prompt. */
static void put_prompt_fields(struct buf *out, const struct generation *g, uint32_t idx)
{
    if (g->spec.prompt_logprobs >= 0) {
        buf_puts(out, ",\"prompt_logprobs\":");
        logprobs_put_prompt(out, g, &g->req->prompt[g->req->seq[idx].prompt_idx]);
    }
    reply_put_prompt_ids(out, g, idx);
}

static void put_choice(struct buf *out, struct generation *g, uint32_t idx)
{
    const struct buf *text = &g->choice[idx].ready;
    bool ok = reply_pull(g, idx);
    buf_printf(out, "{\"index\":%u,", idx);
    buf_puts(out, g->spec.chat ? "\"message\":{\"role\":\"assistant\",\"content\":" : "\"text\":");
    buf_put_json_string(out, text->data ? text->data : "", text->len);
    if (g->spec.chat)
        buf_puts(out, ",\"refusal\":null}");
    reply_put_logprobs(out, g, idx);
    buf_putc(out, ',');
    reply_put_finish(out, g, &g->req->seq[idx]);
    if (!g->spec.chat)
        put_prompt_fields(out, g, idx);
    reply_put_token_ids(out, g, idx);
    buf_putc(out, '}');
    out->failed = out->failed || !ok;
}

void reply_put_completion(struct buf *out, struct generation *g)
{
    buf_puts(out, "{\"id\":");
    reply_put_id(out, g);
    buf_printf(out, ",\"object\":\"%s\",\"created\":%lld,\"model\":",
               g->spec.chat ? "chat.completion" : "text_completion", (long long)g->created_unix);
    buf_put_json_string(out, g->spec.model, strlen(g->spec.model));
    buf_puts(out, ",\"choices\":[");
    for (uint32_t i = 0; i < g->req->seq_count; i++) {
        if (i > 0)
            buf_putc(out, ',');
        put_choice(out, g, i);
    }
    buf_puts(out, "],\"usage\":");
    reply_put_usage(out, g);
    buf_puts(out, ",\"system_fingerprint\":null");
    if (g->spec.chat)
        put_prompt_fields(out, g, 0);
    reply_put_residual(out, g);
    buf_putc(out, '}');
}
