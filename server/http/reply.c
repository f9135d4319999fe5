/* The one table from status to HTTP, and the bodies that are sent whole. */
#include "server/http/reply.h"
#include "server/base/check.h"
#include "server/http/state.h"

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

static const char *default_code(int code, const char *param)
{
    switch (code) {
    case 401:
        return "invalid_api_key";
    case 403:
        return "permission_denied";
    case 404:
        return param && strcmp(param, "model") == 0 ? "model_not_found" : "not_found";
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

void reply_put_error(struct buf *out, int code, const char *error_code, const char *message,
                     const char *param)
{
    const char *short_code = error_code ? error_code : default_code(code, param);
    buf_puts(out, "{\"error\":{\"message\":");
    buf_put_json_string(out, message, strlen(message));
    buf_printf(out, ",\"type\":\"%s\",\"param\":", error_type(code));
    if (param && *param)
        buf_put_json_string(out, param, strlen(param));
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

void reply_add_echo(struct generation *g, const struct request_seq *s)
{
    struct choice *c = &g->choice[s - g->req->seq];
    if (!g->spec.echo || c->echoed)
        return;
    c->echoed = true;
    buf_put(&c->ready, g->spec.echo_text[s->prompt_idx].data, g->spec.echo_text[s->prompt_idx].len);
}

static void put_text(struct buf *out, struct generation *g, const struct request_seq *s)
{
    struct choice *c = &g->choice[s - g->req->seq];
    reply_add_echo(g, s);
    textout_pull(&c->text, &g->rules, s, &c->ready);
    buf_put_json_string(out, c->ready.data ? c->ready.data : "", c->ready.len);
}

static void put_logprobs(struct buf *out, struct generation *g, const struct request_seq *s)
{
    struct logprob_range all = {.to = atomic_load(&s->n_out), .with_prompt = g->spec.echo};
    buf_puts(out, ",\"logprobs\":");
    if (!g->req->params.logprobs)
        buf_puts(out, "null");
    else if (g->spec.chat)
        logprobs_put_chat(out, g, s, all);
    else
        logprobs_put_completion(out, g, s, all);
}

/* What was asked about the prompt. vLLM has it in each choice of a completion, but beside the
 * choices of a chat, which have one prompt. */
static void put_prompt_fields(struct buf *out, const struct generation *g,
                              const struct request_prompt *prompt)
{
    if (g->spec.prompt_logprobs >= 0) {
        buf_puts(out, ",\"prompt_logprobs\":");
        logprobs_put_prompt(out, g, prompt);
    }
    if (g->spec.return_token_ids) {
        buf_puts(out, ",\"prompt_token_ids\":");
        reply_put_ids(out, prompt->ids, prompt->n_ids);
    }
}

static void put_choice(struct buf *out, struct generation *g, uint32_t idx)
{
    const struct request_seq *s = &g->req->seq[idx];
    buf_printf(out, "{\"index\":%u,", idx);
    if (g->spec.chat) {
        buf_puts(out, "\"message\":{\"role\":\"assistant\",\"content\":");
        put_text(out, g, s);
        buf_puts(out, ",\"refusal\":null}");
    } else {
        buf_puts(out, "\"text\":");
        put_text(out, g, s);
    }
    put_logprobs(out, g, s);
    buf_putc(out, ',');
    reply_put_finish(out, g, s);
    if (!g->spec.chat)
        put_prompt_fields(out, g, &g->req->prompt[s->prompt_idx]);
    if (g->spec.return_token_ids) {
        buf_puts(out, ",\"token_ids\":");
        reply_put_ids(out, s->out_id, atomic_load(&s->n_out));
    }
    buf_putc(out, '}');
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
        put_prompt_fields(out, g, &g->req->prompt[0]);
    reply_put_residual(out, g);
    buf_putc(out, '}');
}
