/* Slots and pages between API keys by need. Admission is fair in what is served next, but answers
 * are long: a key that came first could hold every slot for minutes. So a request that has waited
 * for share_wait_ms_max while its key holds less than its share takes a slot of a key that holds
 * more: of such keys the one with most tokens, of its sequences the newest, which pauses and is
 * recomputed later, bit for bit. Where pages are short and not slots, the same is done from the key
 * that holds most pages.
 *
 * Nothing swings: the giver keeps at least the level and the taker gets at most that (pages: the
 * giver keeps at least as many as the taker has then), so neither may claim back what has moved;
 * and each claim waits anew. With more keys than slots the level is 0 and turns are taken: a
 * sequence gives way to a key that is a turn of tokens behind, not before it ran for the bound.
 * Lower priorities never take from higher ones. */
#include "server/base/check.h"
#include "server/base/heap.h"
#include "server/base/log.h"
#include "server/engine/steps.h"

#define TURN_TOKENS 64   /* of the counter: a turn's worth */
#define TAKES_MAX   64   /* sequences that pause in one look */
#define TELL_MS     1000 /* between lines of the log */

static struct sched_key *key_of(struct engine *e, const struct seq *s)
{
    return &e->sched.key[s->job->fair];
}

void share_count_pages(struct engine *e)
{
    uint64_t sum = 0;
    uint32_t keys = 0;
    for (uint32_t i = 0; i < e->sched.active_count; i++) {
        struct sched_key *k = &e->sched.key[e->sched.key[i].active];
        k->pages = 0;
        keys += k->running > 0;
    }
    for (uint32_t i = 0; i < e->opt.seqs_max; i++) {
        struct seq *s = &e->seq[i];
        if (!s->used)
            continue;
        key_of(e, s)->pages += s->page_count;
        sum += s->page_count;
    }
    e->share.page_level = sum / MAX(keys, 1);
}

bool share_exceeds(const struct engine *e, const struct seq *s)
{
    return e->sched.key[s->job->fair].pages > e->share.page_level;
}

bool share_looks(struct engine *e)
{
    if (e->sched.active_count < 2 || e->seqs_running == 0 ||
        e->now_ms - e->share.looked_ms < SHARE_EVERY_MS)
        return false;
    e->share.looked_ms = e->now_ms;
    e->share.level = sched_level(&e->sched, e->opt.seqs_max, e->scratch);
    e->share.is_open = false;
    e->share.takes_left = TAKES_MAX;
    return true;
}

bool share_claims(const struct engine *e, const struct engine_job *j)
{
    uint32_t running = e->sched.key[j->fair].running;
    return e->now_ms - j->since_ms >= e->opt.share_wait_ms_max &&
           (running < e->share.level || running == 0);
}

/* ---- who has to give ---- */

static bool gives_before(const void *seqs, uint32_t a, uint32_t b)
{
    const struct seq *x = (const struct seq *)seqs + a, *y = (const struct seq *)seqs + b;
    if (x->job->fair != y->job->fair)
        return x->job->fair < y->job->fair;
    if (x->job->priority != y->job->priority)
        return x->job->priority < y->job->priority;
    return x->serial != y->serial ? x->serial > y->serial : x->idx > y->idx;
}

static bool has_more_tokens(const void *keys, uint32_t a, uint32_t b)
{
    const struct sched_key *key = keys;
    return key[a].tokens > key[b].tokens;
}

/* The lists of this pass, made when the first asks. */
static void open_lists(struct engine *e)
{
    struct share *h = &e->share;
    uint32_t n = 0;
    if (h->is_open)
        return;
    h->is_open = true;
    h->key_count = 0;
    share_count_pages(e);
    for (uint32_t i = 0; i < e->sched.active_count; i++) /* what an earlier look left there */
        e->sched.key[e->sched.key[i].active].victims = 0;
    for (uint32_t i = 0; i < e->opt.seqs_max; i++) {
        if (e->seq[i].used && e->seq[i].job->seq[e->seq[i].idx].state == JOB_SEQ_RUN)
            h->victim[n++] = i;
    }
    heap_sort(h->victim, n, gives_before, e->seq);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t key = e->seq[h->victim[i]].job->fair;
        struct sched_key *k = &e->sched.key[key];
        if (i == 0 || key != h->key[h->key_count - 1]) {
            h->key[h->key_count++] = key;
            k->victim = i;
            k->victims = 0;
        }
        k->victims++;
    }
    heap_make(h->key, h->key_count, has_more_tokens, e->sched.key);
}

static void tell(struct engine *e)
{
    struct share *h = &e->share;
    h->told_count++;
    if (e->now_ms - h->told_ms < TELL_MS)
        return;
    log_info("engine",
             "%u sequences paused: an API key below its share had waited for %u ms "
             "(share_wait_ms_max)",
             h->told_count, e->opt.share_wait_ms_max);
    h->told_ms = e->now_ms;
    h->told_count = 0;
}

static void pause(struct engine *e, struct sched_key *k, struct seq *s)
{
    CHECK(s->used && key_of(e, s) == k && k->victims > 0);
    k->victim++;
    k->victims--;
    k->pages -= s->page_count;
    e->pages_owed -= seq_owes(s);
    e->share.takes_left--;
    e->count.share_preemptions++;
    seq_preempt(e, s);
    tell(e);
}

bool share_slot(struct engine *e, const struct engine_job *j)
{
    struct share *h = &e->share;
    const struct sched_key *mine = &e->sched.key[j->fair];
    open_lists(e);
    while (h->key_count > 0 && h->takes_left > 0) {
        struct sched_key *k = &e->sched.key[h->key[0]];
        struct seq *s = k->victims > 0 ? &e->seq[h->victim[k->victim]] : NULL;
        bool turns = h->level == 0;
        if (s && turns && k->tokens < mine->tokens + TURN_TOKENS)
            return false; /* and nobody has more */
        if (s && k->running > h->level && s->job->priority <= j->priority &&
            (!turns || e->now_ms - s->started_ms >= e->opt.share_wait_ms_max)) {
            pause(e, k, s);
            return true;
        }
        heap_pop(h->key, &h->key_count, has_more_tokens, e->sched.key);
    }
    return false;
}

static struct sched_key *with_most_pages(struct engine *e)
{
    struct sched_key *best = NULL;
    for (uint32_t i = 0; i < e->sched.active_count; i++) {
        struct sched_key *k = &e->sched.key[e->sched.key[i].active];
        if (k->running > 0 && (!best || k->pages > best->pages))
            best = k;
    }
    return best;
}

bool share_pages(struct engine *e, struct seq *s)
{
    struct share *h = &e->share;
    struct sched_key *mine = key_of(e, s);
    uint32_t need = pages_for(s->n_tok);
    open_lists(e);
    while (!pages_fit(e)) {
        struct sched_key *k = with_most_pages(e);
        if (!k || k == mine || k->victims == 0 || h->takes_left == 0)
            return false;
        struct seq *v = &e->seq[h->victim[k->victim]];
        if (v->job->priority > s->job->priority || k->pages < v->page_count + mine->pages + need)
            return false;
        pause(e, k, v);
    }
    mine->pages += need;
    return true;
}
