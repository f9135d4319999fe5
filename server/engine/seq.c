/* Running sequences: a slot, its pages, and its place among the others. Pages are taken as rows are
 * planned and given back at the end, deepest first, so that of a cached chain the end is forgotten
 * before its beginning. Only full pages are ever shared, and rows start at a page's begin after a
 * hit, so a shared page is never written. */
#include "server/base/check.h"
#include "server/engine/steps.h"

#include <string.h>

/* Base first, then by id: what is equal is adjacent. */
static int compare_comp(const struct composition *a, const struct composition *b)
{
    if ((a->n == 0) != (b->n == 0))
        return a->n == 0 ? -1 : 1;
    return a->n == 0 ? 0 : memcmp(a->id, b->id, sizeof(a->id));
}

static void order_insert(struct engine *e, const struct seq *s)
{
    uint32_t i = e->order_count++;
    CHECK(e->order_count <= e->slot_count);
    while (i > 0 && compare_comp(e->seq[e->order[i - 1]].comp, s->comp) > 0) {
        e->order[i] = e->order[i - 1];
        i--;
    }
    e->order[i] = s->slot;
}

static void order_remove(struct engine *e, uint32_t slot)
{
    uint32_t i = 0;
    while (i < e->order_count && e->order[i] != slot)
        i++;
    CHECK(i < e->order_count);
    e->order_count--;
    memmove(&e->order[i], &e->order[i + 1], (e->order_count - i) * sizeof(e->order[0]));
}

struct seq *seq_start(struct engine *e, uint32_t slot, const struct seq *init)
{
    CHECK(slot < e->slot_count);
    struct seq *s = &e->seq[slot];
    CHECK(!s->used);
    *s = *init;
    s->used = true;
    s->slot = slot;
    s->history = ++e->histories;
    order_insert(e, s);
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
    order_remove(e, s->slot);
    s->used = false;
    s->rows = 0;
    s->job = NULL;
    s->score = NULL;
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
    stop_init(&s->stop);
    for (uint32_t i = 0; r->params.stop_count > 0 && i < n_out; i++) {
        size_t len;
        const char *text = e->token_text(e->model->tokenizer, rs->out_id[i], &len);
        stop_feed(&s->stop, NULL, 0, text, len, NULL);
    }
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
    j->pages_step = 0;
    e->count.preemptions++;
    e->seqs_running--;
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

/* Take the longest cached chain; at least the last token is left to compute. */
void seq_attach_cached(struct engine *e, struct seq *s)
{
    uint32_t *pages = seq_pages(e, s);
    uint32_t pages_max = (s->n_tok - 1) / KV_PAGE_TOK;
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

/* Scoring has no salt and stays out. */
void seq_key_pages(struct engine *e, struct seq *s, uint32_t n_pos)
{
    if (!e->opt.prefix_cache || s->score)
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
