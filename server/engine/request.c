/* The memory of a request: one allocation per array, all made by the submitter's thread before the
 * engine sees it, so that the engine only ever writes into what is there. A client chooses the
 * sizes, so every allocation may be refused. Freed by whoever lets go last: submitter or chain. */
#include "server/engine/request.h"
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/engine/basis.h"

static void drop_keys(struct request *r)
{
    for (uint32_t i = 0; i < r->seq_count; i++) {
        mem_free(r->seq[i].out_key);
        r->seq[i].out_key = NULL;
    }
    if (r->basis)
        basis_keys_give(r->basis, r->key_bytes);
    engine_basis_release(r->basis);
    r->basis = NULL;
}

static void request_free(struct request *r)
{
    if (r->seq)
        drop_keys(r);
    for (uint32_t i = 0; r->prompt && i < r->prompt_count; i++) {
        mem_free(r->prompt[i].ids);
        mem_free(r->prompt[i].logprob);
        mem_free(r->prompt[i].top);
    }
    for (uint32_t i = 0; r->seq && i < r->seq_count; i++) {
        mem_free(r->seq[i].out_id);
        mem_free(r->seq[i].out_logprob);
        mem_free(r->seq[i].out_top);
    }
    for (uint32_t i = 0; i < LORA_PARTS_MAX; i++) {
        if (r->entry[i])
            catalog_release(r->entry[i]);
        terms_release(r->terms[i]);
    }
    mem_free(r->prompt);
    mem_free(r->seq);
    mem_free(r->params.stop);
    mem_free(r->params.bias);
    mem_free(r);
}

static bool seq_arrays_create(struct request_seq *s, uint32_t max_tokens, bool with_top)
{
    s->stop_token = -1;
    s->stop_index = -1;
    s->out_id = mem_try_array(max_tokens, sizeof(*s->out_id));
    s->out_logprob = mem_try_array(max_tokens, sizeof(*s->out_logprob));
    if (with_top)
        s->out_top = mem_try_array(max_tokens, sizeof(*s->out_top));
    return s->out_id && s->out_logprob && (s->out_top || !with_top);
}

static void params_default(struct request_params *p, uint32_t n, uint32_t max_tokens)
{
    p->temperature = 1.0f;
    p->top_p = 1.0f;
    p->repetition = 1.0f;
    p->n = n;
    p->max_tokens = max_tokens;
    p->prompt_top_count = -1;
}

struct request *request_create(uint32_t prompt_count, uint32_t n, uint32_t max_tokens,
                               bool with_top)
{
    if (prompt_count == 0 || n == 0 || prompt_count > REQUEST_PROMPTS_MAX ||
        n > REQUEST_SEQS_MAX / prompt_count)
        return NULL;
    struct request *r = mem_try_alloc(sizeof(*r));
    if (!r)
        return NULL;
    bool ok = true;
    atomic_init(&r->refs, 2);
    params_default(&r->params, n, max_tokens);
    r->prompt_count = prompt_count;
    r->seq_count = prompt_count * n;
    r->prompt = mem_try_array(prompt_count, sizeof(*r->prompt));
    r->seq = mem_try_array(r->seq_count, sizeof(*r->seq));
    ok = r->prompt && r->seq;
    for (uint32_t i = 0; ok && i < r->seq_count; i++) {
        r->seq[i].prompt_idx = i / n;
        r->seq[i].choice_idx = i % n;
        ok = seq_arrays_create(&r->seq[i], max_tokens, with_top);
    }
    if (!ok) {
        request_free(r);
        return NULL;
    }
    return r;
}

bool request_want_keys(struct request *r, struct engine_basis *basis)
{
    CHECK(!r->basis);
    size_t row = SKETCH_DIM * sizeof(*r->seq[0].out_key);
    uint64_t bytes = (uint64_t)r->seq_count * r->params.max_tokens * row;
    if (bytes == 0 || !basis_keys_take(basis, bytes))
        return false;
    r->basis = engine_basis_ref(basis);
    r->key_bytes = bytes;
    bool ok = true;
    for (uint32_t i = 0; i < r->seq_count && ok; i++) {
        r->seq[i].out_key = mem_try_array(r->params.max_tokens, row);
        ok = r->seq[i].out_key != NULL;
    }
    if (!ok)
        drop_keys(r);
    return ok;
}

void request_release(struct request *r)
{
    uint32_t before = atomic_fetch_sub_explicit(&r->refs, 1, memory_order_acq_rel);
    CHECK(before > 0);
    if (before == 1)
        request_free(r);
}

void request_finish(struct request *r)
{
    CHECK(!atomic_load_explicit(&r->done, memory_order_relaxed));
    atomic_store_explicit(&r->done, true, memory_order_release);
    if (r->wake)
        r->wake(r->wake_arg);
}
