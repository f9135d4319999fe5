/* The order is: cheap refusals first (fields we do not do, types, ranges), then what costs (the
 * tokenizer), then memory in the size the request asked for. */
#include "server/http/request_parse.h"
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/http/parse_state.h"

#include <sodium.h>
#include <string.h>

static void state_fini(struct parse_state *p)
{
    for (uint32_t i = 0; i < LORA_PARTS_MAX; i++) {
        if (p->entry[i])
            catalog_release(p->entry[i]);
    }
    for (uint32_t i = 0; i < p->prompt_count; i++)
        mem_free(p->prompt[i].ids);
    mem_free(p->params.stop);
    mem_free(p->params.bias);
}

/* max_tokens against the context: the prompt must leave room for one token unless none is asked
 * for, an explicit maximum must fit, an absent one becomes 16 (completions) or what is left (chat).
 */
static enum status resolve_max_tokens(struct parse_state *p)
{
    uint32_t context = p->env->context_max, longest = 0;
    const char *field = p->env->chat ? "messages" : "prompt", *limit = "max_tokens";
    if (p->env->chat && json_field(p->root, "max_completion_tokens"))
        limit = "max_completion_tokens";
    for (uint32_t i = 0; i < p->prompt_count; i++) {
        uint32_t n = (uint32_t)p->prompt[i].n;
        if (n == 0)
            return err_param(p->err, STATUS_INVALID, field,
                             "'%s' is empty: it has no tokens; at least 1 is needed", field);
        longest = MAX(longest, n);
    }
    uint32_t prompt_max = p->has_max_tokens && p->params.max_tokens == 0 ? context : context - 1;
    if (longest > prompt_max)
        return err_coded(p->err, STATUS_INVALID, "context_length_exceeded", field,
                         "This model's maximum context length is %u tokens. However, your prompt "
                         "has %u tokens; shorten it to at most %u.",
                         context, longest, prompt_max);
    uint32_t left = context - longest;
    if (!p->has_max_tokens)
        p->params.max_tokens = p->env->chat ? left : MIN(left, REQUEST_COMPLETION_TOKENS_DEFAULT);
    if (p->params.max_tokens > left)
        return err_coded(p->err, STATUS_INVALID, "context_length_exceeded", limit,
                         "This model's maximum context length is %u tokens. However, you requested "
                         "%u tokens (%u in the prompt, %u in the completion).",
                         context, longest + p->params.max_tokens, longest, p->params.max_tokens);
    if (p->params.min_tokens > p->params.max_tokens)
        return err_param(p->err, STATUS_INVALID, "min_tokens",
                         "'min_tokens' is %u, above max_tokens %u", p->params.min_tokens,
                         p->params.max_tokens);
    return STATUS_OK;
}

static enum status check_totals(struct parse_state *p)
{
    uint64_t seqs = (uint64_t)p->prompt_count * p->params.n;
    if (seqs > REQUEST_SEQS_MAX)
        return err_param(p->err, STATUS_INVALID, "n",
                         "%u prompts x n = %u are %llu choices; at most %u are accepted",
                         p->prompt_count, p->params.n, (unsigned long long)seqs, REQUEST_SEQS_MAX);
    if (seqs * p->params.max_tokens > REQUEST_OUTPUT_TOKENS_MAX)
        return err_param(p->err, STATUS_INVALID, "max_tokens",
                         "%llu choices x max_tokens %u are %llu tokens; at most %u are accepted",
                         (unsigned long long)seqs, p->params.max_tokens,
                         (unsigned long long)seqs * p->params.max_tokens,
                         REQUEST_OUTPUT_TOKENS_MAX);
    return STATUS_OK;
}

/* Room for the log-probabilities of prompt tokens, which the engine writes. */
static bool add_prompt_logprobs(struct request *r)
{
    for (uint32_t i = 0; r->params.prompt_top_count >= 0 && i < r->prompt_count; i++) {
        struct request_prompt *q = &r->prompt[i];
        q->logprob = mem_try_array(q->n_ids, sizeof(*q->logprob));
        q->top = mem_try_array(q->n_ids, sizeof(*q->top));
        if (!q->logprob || !q->top)
            return false;
    }
    return true;
}

/* Choice k draws from seed + k, so that choice 0 equals the same request with n = 1. Without a
 * seed of the client's, prompts get different ones too. */
static void fill_seeds(struct request *r)
{
    if (!r->params.has_seed)
        randombytes_buf(&r->params.seed, sizeof(r->params.seed));
    for (uint32_t i = 0; i < r->seq_count; i++)
        r->seq[i].seed = r->params.seed + (r->params.has_seed ? r->seq[i].choice_idx : i);
}

static enum status build(struct parse_state *p, struct request **out)
{
    struct request *r =
        request_create(p->prompt_count, p->params.n, p->params.max_tokens, p->params.logprobs);
    if (!r)
        return err_set(p->err, STATUS_NO_MEMORY, "there is no memory for this request now");
    r->params = p->params;
    p->params.stop = NULL;
    p->params.bias = NULL;
    r->comp = p->comp;
    memcpy(r->entry, p->entry, sizeof(r->entry));
    memset(p->entry, 0, sizeof(p->entry));
    for (uint32_t i = 0; i < p->prompt_count; i++) {
        r->prompt[i].ids = p->prompt[i].ids;
        r->prompt[i].n_ids = (uint32_t)p->prompt[i].n;
        p->prompt[i].ids = NULL;
    }
    if (p->env->chat && p->env->chat_digest)
        memcpy(r->template_digest, p->env->chat_digest, sizeof(r->template_digest));
    fill_seeds(r);
    if (!add_prompt_logprobs(r)) {
        request_discard(r);
        return err_set(p->err, STATUS_NO_MEMORY, "there is no memory for prompt logprobs now");
    }
    *out = r;
    return STATUS_OK;
}

void request_discard(struct request *r)
{
    request_release(r);
    request_release(r);
}

void gen_spec_fini(struct gen_spec *spec)
{
    for (uint32_t i = 0; i < spec->echo_count; i++)
        mem_free(spec->echo_text[i].data);
    mem_free(spec->echo_text);
    spec->echo_text = NULL;
    spec->echo_count = 0;
}

enum status request_parse(const struct parse_env *env, const char *body, size_t len,
                          struct gen_spec *spec, struct request **out, struct errtext *err)
{
    json_t *root = NULL;
    struct parse_state *p = mem_try_alloc(sizeof(*p));
    if (!p)
        return err_set(err, STATUS_NO_MEMORY, "there is no memory for this request now");
    *p = (struct parse_state){.env_own = *env, .spec = spec, .err = err};
    p->env = &p->env_own;
    *spec = (struct gen_spec){.chat = env->chat, .prompt_logprobs = -1};
    enum status st = json_doc_parse(&root, "the body", body, len, JSON_DOC_NUL, err);
    p->root = root;
    p->in = (struct json_reader){.obj = root, .err = err};
    if (!st)
        st = parse_refusals(p);
    if (!st)
        st = parse_target(p);
    if (!st && env->chat)
        st = target_chat(&p->env_own, p->entry, p->comp.n, err);
    if (!st)
        st = parse_params(p);
    if (!st)
        st = env->chat ? parse_messages(p) : parse_prompts(p);
    if (!st)
        st = resolve_max_tokens(p);
    if (!st)
        st = check_totals(p);
    if (!st)
        st = build(p, out);
    if (st)
        gen_spec_fini(spec);
    state_fini(p);
    json_decref(root);
    mem_free(p);
    return st;
}
