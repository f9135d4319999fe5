/* Running sequences: a slot, its pages, and its place among the others. Pages are taken as rows are
 * planned and given back at the end, deepest first, so that of a cached chain the end is forgotten
 * before its beginning. Only full pages are ever shared, and rows start at a page's begin after a
 * hit, so a shared page is never written. */
#include "server/base/check.h"
#include "server/base/heap.h"
#include "server/engine/steps.h"

#include <string.h>

/* Base first, then by id: what is equal is adjacent. */
static int compare_comp(const struct composition *a, const struct composition *b)
{
    if ((a->n == 0) != (b->n == 0))
        return a->n == 0 ? -1 : 1;
    return a->n == 0 ? 0 : memcmp(a->id, b->id, sizeof(a->id));
}

/* Equal ones in the order in which they started. */
static bool order_before(const void *seqs, uint32_t a, uint32_t b)
{
    const struct seq *x = (const struct seq *)seqs + a, *y = (const struct seq *)seqs + b;
    int order = compare_comp(x->comp, y->comp);
    return order != 0 ? order < 0 : x->history < y->history;
}

/* Those that have left since go, keeping the order; `ordered` says which list it is. */
static uint32_t order_keep(struct engine *e, uint32_t *list, uint32_t count, bool ordered)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct seq *s = &e->seq[list[i]];
        if (!s->used || s->in_order != ordered)
            continue;
        s->in_order = true;
        list[kept++] = list[i];
    }
    return kept;
}

/* Starts and stops are only noted; here the order is made good in one walk. */
void seq_settle_order(struct engine *e)
{
    uint32_t old = order_keep(e, e->order, e->order_count, true);
    uint32_t fresh = order_keep(e, e->order_new, e->order_new_count, false);
    e->order_count = old + fresh;
    e->order_new_count = 0;
    CHECK(e->order_count <= e->slot_count);
    heap_sort(e->order_new, fresh, order_before, e->seq);
    for (uint32_t at = e->order_count; fresh > 0;) { /* merged from behind */
        bool is_new = old == 0 || !order_before(e->seq, e->order_new[fresh - 1], e->order[old - 1]);
        e->order[--at] = is_new ? e->order_new[--fresh] : e->order[--old];
    }
}

struct seq *seq_start(struct engine *e, uint32_t slot, const struct seq *init)
{
    CHECK(slot < e->slot_count);
    struct seq *s = &e->seq[slot];
    CHECK(!s->used);
    if (slot < e->opt.seqs_max) {
        CHECK(e->slot_free_count > 0);
        CHECK(e->slot_free[--e->slot_free_count] == slot);
    }
    if (e->order_new_count == e->slot_count)
        seq_settle_order(e);
    *s = *init;
    s->used = true;
    s->slot = slot;
    s->history = ++e->histories;
    s->started_ms = e->now_ms;
    e->order_new[e->order_new_count++] = slot;
    return s;
}

static void release_pages(struct engine *e, struct seq *s)
{
    uint32_t *pages = seq_pages(e, s);
    while (s->page_count > 0)
        kv_unref(&e->kv, pages[--s->page_count]);
    s->n_kv = 0;
}

void seq_stop(struct engine *e, struct seq *s)
{
    CHECK(s->used);
    release_pages(e, s);
    s->used = false;
    s->in_order = false;
    s->rows = 0;
    s->job = NULL;
    s->score = NULL;
    if (s->slot < e->opt.seqs_max)
        e->slot_free[e->slot_free_count++] = s->slot;
}

/* What a sequence of a request looks like when it (re)starts; not yet in a slot. */
void seq_start_job(struct engine *e, struct engine_job *j, uint32_t idx, struct seq *s)
{
    struct request *r = j->r;
    struct request_seq *rs = &r->seq[idx];
    struct request_prompt *p = &r->prompt[rs->prompt_idx];
    uint32_t n_out = atomic_load_explicit(&rs->n_out, memory_order_relaxed);
    *s = (struct seq){.job = j,
                      .idx = idx,
                      .serial = j->serial,
                      .comp = &r->comp,
                      .lora_slot = j->lora_slot,
                      .prompt = p->ids,
                      .output = rs->out_id,
                      .n_prompt = p->n_ids,
                      .n_tok = p->n_ids + n_out,
                      .n_known = p->n_ids + n_out};
    s->want_prompt =
        r->params.prompt_top_count >= 0 && rs->choice_idx == 0 && !j->seq[idx].prompt_scored;
    if (e->opt.prefix_cache)
        kv_key_root(s->key, r->comp.id, r->params.cache_salt);
    /* Text emitted before a preemption can be the begin of a stop string, never hold one. */
    stop_search_init(&s->stop, e->model->tokenizer, r->params.show_special);
    for (uint32_t i = 0; r->params.stop_count > 0 && i < n_out; i++)
        (void)stop_search_feed(&s->stop, &r->params, rs->out_id[i], false, &e->text, NULL);
}

void seq_preempt(struct engine *e, struct seq *s)
{
    if (s->score) {
        score_preempt(e, s->score);
        return;
    }
    struct engine_job *j = s->job;
    CHECK(j->seq[s->idx].state == JOB_SEQ_RUN);
    j->seq[s->idx].state = JOB_SEQ_WAIT;
    j->seq[s->idx].preempted = true;
    j->r->preempt_count++;
    j->preempted = true;
    j->since_ms = e->now_ms;
    j->pages_step = 0;
    e->count.preemptions++;
    e->seqs_running--;
    e->sched.key[j->fair].running--;
    seq_stop(e, s);
    CHECK(j->seqs_running > 0);
    if (--j->seqs_running > 0)
        return;
    pins_drop(e, &j->r->comp, j->lora_slot);
    j->pinned = false;
    e->store_epoch++;
    atomic_fetch_add_explicit(&e->waiting, 1, memory_order_relaxed);
}

static void copy_page_tokens(const struct seq *s, uint32_t page, int32_t out[KV_PAGE_TOK])
{
    for (uint32_t i = 0; i < KV_PAGE_TOK; i++) {
        uint32_t pos = page * KV_PAGE_TOK + i;
        out[i] = pos < s->n_prompt ? s->prompt[pos] : s->output[pos - s->n_prompt];
    }
}

/* Take the longest cached chain; at least the last token is left to compute, of scoring each that
 * predicts an output. */
void seq_attach_cached(struct engine *e, struct seq *s)
{
    uint32_t *pages = seq_pages(e, s);
    uint32_t wanted = s->score ? s->score->job->n_prompt : s->n_tok;
    uint32_t pages_max = (wanted - 1) / KV_PAGE_TOK;
    CHECK(s->page_count == 0);
    while (s->page_count < pages_max) {
        uint8_t key[KV_KEY_BYTES];
        int32_t tokens[KV_PAGE_TOK];
        memcpy(key, s->key, sizeof(key));
        copy_page_tokens(s, s->page_count, tokens);
        kv_key_next(key, tokens);
        uint32_t page = kv_find(&e->kv, key);
        if (page == KV_PAGE_NONE)
            break;
        memcpy(s->key, key, sizeof(key));
        pages[s->page_count++] = page;
    }
    s->n_keyed = s->page_count;
    s->n_kv = s->page_count * KV_PAGE_TOK;
}

/* Share the first full prompt pages of another choice of the same prompt. */
void seq_attach_sibling(struct engine *e, struct seq *s, const struct seq *sibling, uint32_t pages)
{
    CHECK(s->page_count == 0);
    CHECK(pages <= sibling->page_count);
    CHECK(pages * KV_PAGE_TOK <= sibling->n_kv);
    for (uint32_t i = 0; i < pages; i++) {
        uint32_t page = seq_pages(e, sibling)[i];
        int32_t tokens[KV_PAGE_TOK];
        kv_ref(&e->kv, page);
        seq_pages(e, s)[i] = page;
        if (e->opt.prefix_cache) {
            copy_page_tokens(s, i, tokens);
            kv_key_next(s->key, tokens);
        }
    }
    s->page_count = pages;
    s->n_keyed = pages;
    s->n_kv = pages * KV_PAGE_TOK;
}

/* Pages for positions below n_pos. false: the pool is empty; what was got is kept. */
bool seq_reserve(struct engine *e, struct seq *s, uint32_t n_pos)
{
    CHECK(pages_for(n_pos) <= e->page_stride);
    while (s->page_count < pages_for(n_pos)) {
        uint32_t page = kv_alloc(&e->kv);
        if (page == KV_PAGE_NONE)
            return false;
        seq_pages(e, s)[s->page_count++] = page;
    }
    return true;
}

void seq_key_pages(struct engine *e, struct seq *s, uint32_t n_pos)
{
    if (!e->opt.prefix_cache)
        return;
    CHECK(n_pos <= s->n_known && n_pos <= s->n_kv);
    while ((s->n_keyed + 1) * KV_PAGE_TOK <= n_pos) {
        int32_t tokens[KV_PAGE_TOK];
        copy_page_tokens(s, s->n_keyed, tokens);
        kv_key_next(s->key, tokens);
        kv_set_key(&e->kv, seq_pages(e, s)[s->n_keyed], s->key);
        s->n_keyed++;
    }
}
