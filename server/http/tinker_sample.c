/* Tinker's asample: the request that /v1/completions would make of the same wishes, recorded,
 * priced and attributed like any, and its tokens as a SampleResponse:
 *
 *   1 sequences {1 stop_reason (0 stop, 1 length), 2 tokens i32, 3 logprobs f32, 4 top-k},
 *   2 prompt_logprobs f32, NaN where there is none, 3 top-k of the prompt, 4 cached tokens
 *   top-k {1 token_ids i32, 2 logprobs f32, 3 k, 4 length}: matrices; empty cells have -99999
 */
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/base/proto.h"
#include "server/http/generate.h"
#include "server/http/handlers.h"
#include "server/http/tinker_parts.h"

#include <math.h>
#include <string.h>

#define NO_LOGPROB (-99999.0F)

/* ---- the request ---- */

/* prompt.chunks as one list of ids; NULL after a fault. */
static json_t *prompt_ids(struct json_reader *in)
{
    size_t idx;
    json_t *item, *ids = json_array();
    struct json_reader prompt = json_enter(in, "prompt");
    const json_t *chunks = json_need_list(&prompt, "chunks", 4096);
    json_array_foreach(chunks, idx, item)
    {
        struct json_reader chunk = json_enter_item(&prompt, "chunks", idx, item);
        const char *type = json_read_string(&chunk, "type");
        if (!in->st && type && strcmp(type, "encoded_text") != 0)
            json_fail(&chunk, STATUS_UNSUPPORTED, "type", "found \"%.40s\", this base takes text",
                      type);
        const json_t *tokens = json_need_list(&chunk, "tokens", REQUEST_TEXT_BYTES_MAX);
        if (tokens)
            json_array_extend(ids, (json_t *)(uintptr_t)tokens);
    }
    if (!in->st)
        return ids;
    json_decref(ids);
    return NULL;
}

/* stop: text or texts; or token ids; [] stops at nothing, not even at the end of text. */
static void put_stop(json_t *out, struct json_reader *params)
{
    json_t *stop = json_object_get(params->obj, "stop");
    if (!stop || json_is_null(stop))
        return;
    if (json_is_array(stop) && json_array_size(stop) == 0)
        json_object_set_new(out, "ignore_eos", json_true());
    else if (json_is_integer(json_array_get(stop, 0)))
        json_object_set(out, "stop_token_ids", stop);
    else
        json_object_set(out, "stop", stop);
}

static void put_number(json_t *out, const char *key, struct json_reader *params, double absent)
{
    json_t *v = json_object_get(params->obj, key);
    if (v && !json_is_null(v))
        json_object_set(out, key, v);
    else
        json_object_set_new(out, key, json_real(absent));
}

static void put_params(const struct exchange *x, json_t *out, struct json_reader *in, size_t n_ids)
{
    struct json_reader params = json_enter(in, "sampling_params");
    uint32_t context = x->server->context_max;
    int64_t n = json_read_int(in, "num_samples", (struct json_range){1, REQUEST_SEQS_MAX}, 1);
    int64_t left = n_ids < context ? (int64_t)(context - n_ids) : 1;
    int64_t most = MIN(left, (int64_t)REQUEST_OUTPUT_TOKENS_MAX / n);
    json_t *max = json_object_get(params.obj, "max_tokens");
    json_t *seed = json_object_get(params.obj, "seed");
    json_object_set_new(out, "n", json_integer(n));
    if (max && !json_is_null(max))
        json_object_set(out, "max_tokens", max);
    else
        json_object_set_new(out, "max_tokens", json_integer(most));
    if (seed && !json_is_null(seed))
        json_object_set(out, "seed", seed);
    put_number(out, "temperature", &params, 1);
    put_number(out, "top_p", &params, 1);
    json_object_set_new(
        out, "top_k",
        json_integer(json_read_int(&params, "top_k", (struct json_range){-1, INT32_MAX}, -1)));
    json_object_set_new(out, "min_p", json_integer(0));
    json_object_set_new(out, "repetition_penalty", json_integer(1));
    put_stop(out, &params);
}

static void put_logprobs(json_t *out, struct json_reader *in)
{
    struct json_range top = {0, SAMPLE_TOP_MAX};
    int64_t of_prompt = json_read_int(in, "topk_prompt_logprobs", top, 0);
    json_object_set_new(out, "logprobs",
                        json_integer(json_read_int(in, "topk_sample_logprobs", top, 0)));
    if (json_read_bool(in, "prompt_logprobs", false) || of_prompt > 0)
        json_object_set_new(out, "prompt_logprobs", json_integer(of_prompt));
}

static void refuse_others(struct json_reader *in)
{
    if (json_has(in, "target_prompt_logprobs"))
        json_fail(in, STATUS_UNSUPPORTED, "target_prompt_logprobs", "is not supported");
    if (json_read_int(in, "prompt_alt_tokens_k", (struct json_range){0, INT32_MAX}, 0) > 0)
        json_fail(in, STATUS_UNSUPPORTED, "prompt_alt_tokens_k", "is not supported");
    if (json_read_bool(in, "record_stability_info", false))
        json_fail(in, STATUS_UNSUPPORTED, "record_stability_info", "is not supported");
}

/* The body that /v1/completions takes. Its text, or NULL after a fault. */
static char *completion_body(const struct exchange *x, const struct tinker_sampler *a,
                             struct json_reader *in)
{
    char *text = NULL;
    json_t *out = json_object(), *ids = prompt_ids(in);
    refuse_others(in);
    if (ids) {
        json_object_set_new(out, "model",
                            json_string(a->adapter[0] ? a->adapter : x->server->opt.model_name));
        json_object_set(out, "prompt", ids);
        put_params(x, out, in, json_array_size(ids));
        put_logprobs(out, in);
    }
    if (!in->st)
        text = json_dumps(out, JSON_COMPACT | JSON_REAL_PRECISION(17));
    if (!in->st && !text)
        in->st = err_set(in->err, STATUS_NO_MEMORY, "there is no memory for this request now");
    json_decref(ids);
    json_decref(out);
    return text;
}

static enum status make_request(struct exchange *x, struct tinker_future *f,
                                const struct tinker_sampler *a, struct json_reader *in)
{
    struct gen_spec spec;
    struct parse_env env = generation_env(x, false);
    env.key = NULL; /* a sampler's adapter is its key's own */
    int64_t last =
        json_read_int(in, "prompt_logprobs_last_n", (struct json_range){1, INT32_MAX}, INT32_MAX);
    char *body = completion_body(x, a, in);
    if (!body)
        return in->st;
    enum status st = request_parse(&env, body, strlen(body), &spec, &f->req, in->err);
    mem_free(body);
    if (st)
        return st;
    gen_spec_fini(&spec);
    generation_fill(x, f->req);
    f->req->wake_arg = f;
    f->samples = f->req->seq_count;
    f->prompt_last = (uint32_t)last;
    return STATUS_OK;
}

/* ---- asample ---- */

/* request.wake: engine or recorder thread. */
static void on_wake(void *arg)
{
    struct tinker_future *f = arg;
    if (atomic_load_explicit(&f->req->done, memory_order_acquire))
        tinker_post(f);
}

static void begin(struct exchange *x, struct tinker_future *f, const struct tinker_sampler *a,
                  struct json_reader *in)
{
    bool submitted = false;
    enum status st = make_request(x, f, a, in);
    if (st) {
        tinker_drop(f);
        tinker_fail(x, st, in->err);
        return;
    }
    f->req->wake = on_wake;
    tinker_begun(x, f);
    if (generation_submit(x, f->req, &submitted))
        return;
    tinker_not_begun(f); /* submit has put its refusal over the id */
}

void handle_tinker_sample(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    struct tinker_sampler a;
    struct json_reader in;
    struct tinker_future *f = NULL;
    json_t *root = NULL;
    tinker_body(x, &root, &in, &err);
    const char *id = json_need_string(&in, "sampling_session_id");
    int64_t seq = json_need_int(&in, "seq_id", (struct json_range){0, INT64_MAX});
    struct tinker_session *s = in.st ? NULL : tinker_hold(x, id);
    if (in.st)
        tinker_fail(x, in.st, &err);
    if (s && !tinker_get_sampler(x->server->tinker, s, id, &a))
        tinker_gone(x, "sampling session", id);
    else if (s)
        f = tinker_open(x, s, TINKER_SAMPLE, a.id, seq);
    if (f)
        begin(x, f, &a, &in);
    if (s)
        tinker_release(x->server->tinker, s);
    json_decref(root);
}

/* ---- the answer ---- */

static void put_top(struct buf *out, uint32_t field, const struct sample_out *top, uint32_t n,
                    uint32_t k)
{
    struct buf ids, logprobs;
    buf_init(&ids, out->bytes_max);
    buf_init(&logprobs, out->bytes_max);
    for (uint32_t i = 0; i < n; i++) {
        buf_put(&ids, top[i].top_id, k * sizeof(int32_t));
        buf_put(&logprobs, top[i].top_logprob, k * sizeof(float));
    }
    out->failed = out->failed || ids.failed || logprobs.failed;
    size_t mark = proto_begin(out, field);
    proto_put_bytes(out, 1, ids.data, ids.len);
    proto_put_bytes(out, 2, logprobs.data, logprobs.len);
    proto_put_int(out, 3, k);
    proto_put_int(out, 4, n);
    proto_end(out, mark);
    buf_fini(&ids);
    buf_fini(&logprobs);
}

static void put_sequence(struct tinker_future *f, const struct request_seq *s)
{
    struct buf *out = &f->out;
    uint32_t n = atomic_load_explicit(&s->n_out, memory_order_acquire);
    uint32_t k = f->req->params.top_count;
    size_t mark = proto_begin(out, 1);
    proto_put_int(out, 1, atomic_load(&s->finish) == FINISH_LENGTH);
    proto_put_bytes(out, 2, s->out_id, n * sizeof(*s->out_id));
    proto_put_bytes(out, 3, s->out_logprob, n * sizeof(*s->out_logprob));
    if (k > 0 && s->out_top)
        put_top(out, 4, s->out_top, n, k);
    proto_end(out, mark);
}

/* Those before the last that were asked for, and the first, are none. */
static void put_prompt(struct tinker_future *f, struct request_prompt *q)
{
    uint32_t n = q->n_ids, skip = n > f->prompt_last ? n - f->prompt_last : 1;
    uint32_t k = (uint32_t)f->req->params.prompt_top_count;
    for (uint32_t i = 0; i < MIN(skip, n); i++) {
        q->logprob[i] = NAN;
        q->top[i] = (struct sample_out){.id = 0};
        for (uint32_t j = 0; j < SAMPLE_TOP_MAX; j++)
            q->top[i].top_logprob[j] = NO_LOGPROB;
    }
    proto_put_bytes(&f->out, 2, q->logprob, n * sizeof(*q->logprob));
    if (k > 0)
        put_top(&f->out, 3, q->top, n, k);
}

static enum status outcome(const struct request *r, struct errtext *err)
{
    *err = r->error;
    if (r->status)
        return r->status;
    for (uint32_t i = 0; i < r->seq_count; i++) {
        if (atomic_load_explicit(&r->seq[i].finish, memory_order_acquire) == FINISH_CANCELLED)
            return err_set(err, STATUS_CANCELLED, "the request was cancelled");
    }
    return r->receipt.recorded
               ? STATUS_OK
               : err_set(err, STATUS_IO, "the answer's record could not be made durable; retry");
}

void tinker_finish_sample(struct tinker_future *f)
{
    struct http_server *s = f->t->server;
    struct request *r = f->req;
    struct errtext err = ERRTEXT_INIT;
    enum status st = outcome(r, &err);
    metrics_request(&s->metrics, r);
    atomic_fetch_sub(&s->active, 1);
    if (st) {
        tinker_put_failure(f, st, &err);
        return;
    }
    f->is_proto = true;
    for (uint32_t i = 0; i < r->seq_count; i++)
        put_sequence(f, &r->seq[i]);
    if (r->params.prompt_top_count >= 0)
        put_prompt(f, &r->prompt[0]);
    proto_put_int(&f->out, 4, r->prompt[0].cached_tokens);
    atomic_fetch_add(&f->t->samples_made, r->seq_count);
}
