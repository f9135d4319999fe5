/* The book's thread. A round reads the head, marks what the events since the last round name, and
 * reads what is marked, all as of that block; only when nothing is left unread does the book say
 * that it is as of it. One entry a round is read though nothing named it, so that an event that a
 * node kept to itself is not missed for ever. */
#include "chain_client/eth/abi.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/base/thread.h"
#include "server/terms/book_impl.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static enum status ask(struct book *b, const struct witness_question *q, uint64_t block,
                       struct errtext *err)
{
    return b->opt.chain.ask(b->opt.chain.arg, q, block, &b->answer, err);
}

/* ---- one adapter ---- */

static enum status ask_terms(struct book *b, const uint8_t id[32], uint64_t t, uint64_t block,
                             struct terms **out, struct errtext *err)
{
    struct witness_question q = {.view = WITNESS_ADAPTER_AT, .id = id, .t = t};
    *out = NULL;
    enum status st = ask(b, &q, block, err);
    if (st)
        return st;
    struct terms *made = terms_new();
    st = registry_decode_terms(&made->r, b->answer.data, b->answer.len, err);
    if (!st && made->r.registered) {
        made->answer_len = b->answer.len;
        made->answer = mem_alloc(b->answer.len);
        memcpy(made->answer, b->answer.data, b->answer.len);
    } else {
        memset(&made->r, 0, sizeof(made->r));
    }
    if (st)
        terms_release(made);
    else
        *out = made;
    return st;
}

/* The datanet version that t names: asked for once, it never changes. */
static enum status need_net(struct book *b, struct terms *t, uint64_t block, struct errtext *err)
{
    if (!terms_has_datanet(t))
        return STATUS_OK;
    pthread_mutex_lock(&b->lock);
    bool is_here = book_find_net(b, t->r.datanet_id, t->r.datanet_version) != NULL;
    pthread_mutex_unlock(&b->lock);
    struct witness_question q = {
        .view = WITNESS_DATANET_VERSION, .id = t->r.datanet_id, .t = t->r.datanet_version};
    enum status st = is_here ? STATUS_OK : ask(b, &q, block, err);
    pthread_mutex_lock(&b->lock);
    if (!st && !is_here && !book_add_net(b, t->r.datanet_id, b->answer.data, b->answer.len))
        log_warn("registry", "version %" PRIu64 " of a datanet is not registered, or too many are",
                 t->r.datanet_version);
    if (!st)
        book_complete(b, t);
    pthread_mutex_unlock(&b->lock);
    if (!st)
        t->contributors = owners_find(b->owners, t->owner_root);
    return st;
}

static enum status need_owner(struct book *b, const uint8_t id[32], struct terms *t, uint64_t block,
                              struct errtext *err)
{
    struct witness_question q = {.view = WITNESS_ADAPTER_OWNER, .id = id};
    if (!t || !t->r.registered)
        return STATUS_OK;
    enum status st = ask(b, &q, block, err);
    struct abi_reader answer = {(const uint8_t *)b->answer.data, b->answer.len};
    return st ? st : abi_read_address(&answer, 0, t->owner, "adapters.owner", err);
}

/* now: in force at the block's time; next: what will be, or NULL. */
static enum status read_pair(struct book *b, const uint8_t id[32], const struct witness_head *head,
                             struct terms **now, struct terms **next, struct errtext *err)
{
    struct terms *newest;
    *now = *next = NULL;
    enum status st = ask_terms(b, id, UINT64_MAX, head->number, &newest, err);
    if (st)
        return st;
    uint64_t active_at = newest->r.active_at;
    if (newest->r.registered && active_at > head->time_s) {
        *next = newest;
        st = ask_terms(b, id, active_at - 1, head->number, now, err);
    } else {
        *now = newest;
    }
    struct terms *both[2] = {*now, *next};
    for (int i = 0; i < 2 && !st; i++) {
        st = need_owner(b, id, both[i], head->number, err);
        if (!st && both[i])
            st = need_net(b, both[i], head->number, err);
    }
    if (st) {
        terms_release(*now);
        terms_release(*next);
    }
    return st;
}

static bool is_same(const struct terms *a, const struct terms *b)
{
    if (!a || !b)
        return a == b;
    return a->answer_len == b->answer_len && memcmp(a->owner, b->owner, 20) == 0 &&
           memcmp(a->owner_root, b->owner_root, 32) == 0 &&
           (!a->answer_len || memcmp(a->answer, b->answer, a->answer_len) == 0);
}

static void put_entry(struct book *b, const uint8_t id[32], struct terms *now, struct terms *next)
{
    struct terms *old_now = now, *old_next = next;
    pthread_mutex_lock(&b->lock);
    struct book_entry *e = book_find(b, id);
    if (e) {
        b->is_changed |= !is_same(e->now, now) || !is_same(e->next, next);
        old_now = e->now;
        old_next = e->next;
        e->now = now;
        e->next = next;
        e->is_stale = false;
    }
    pthread_cond_broadcast(&b->read);
    pthread_mutex_unlock(&b->lock);
    terms_release(old_now);
    terms_release(old_next);
}

/* ---- one round ---- */

static void mark(void *arg, const uint8_t id[32])
{
    struct book *b = arg;
    pthread_mutex_lock(&b->lock);
    struct book_entry *e = book_find(b, id);
    if (e)
        e->is_stale = true;
    pthread_mutex_unlock(&b->lock);
}

static enum status mark_changed(struct book *b, const struct witness_head *head,
                                struct errtext *err)
{
    enum status st = STATUS_OK;
    uint64_t seen = b->seen_block;
    if (!seen || head->number - seen > BOOK_LOG_BLOCKS) {
        pthread_mutex_lock(&b->lock);
        for (uint32_t i = 0; i < b->count; i++)
            b->entry[i]->is_stale = true;
        pthread_mutex_unlock(&b->lock);
    } else if (head->number > seen) {
        st = b->opt.chain.changed(b->opt.chain.arg, seen + 1, head->number, mark, b, err);
    }
    pthread_mutex_lock(&b->lock);
    if (!st && head->number > seen && b->count)
        b->entry[b->turn++ % b->count]->is_stale = true;
    if (!st)
        b->seen_block = head->number;
    pthread_mutex_unlock(&b->lock);
    return st;
}

static bool next_stale(struct book *b, uint8_t id[32])
{
    bool found = false;
    pthread_mutex_lock(&b->lock);
    for (uint32_t i = 0; i < b->count && !found && !b->stop; i++) {
        found = b->entry[i]->is_stale;
        if (found)
            memcpy(id, b->entry[i]->id, 32);
    }
    pthread_mutex_unlock(&b->lock);
    return found;
}

static enum status read_stale(struct book *b, const struct witness_head *head, struct errtext *err)
{
    uint8_t id[32];
    struct terms *now, *next;
    enum status st = STATUS_OK;
    while (!st && next_stale(b, id)) {
        st = read_pair(b, id, head, &now, &next, err);
        if (!st)
            put_entry(b, id, now, next);
    }
    return st;
}

/* Once: the operator's flags against what is registered. */
static void tell_tariff(struct book *b, const struct registry_tariff *t)
{
    char in[40], out[40];
    const struct tariff *w = &b->opt.base_wanted;
    bool said = w->in || w->out;
    if (b->tariff_told)
        return;
    b->tariff_told = true;
    u128_format(in, t->price_in);
    u128_format(out, t->price_out);
    if (!t->active_at)
        log_warn("registry",
                 "no tariff is registered for lane %u and this base, so the base costs 0: the "
                 "lane's operator sets one with `residual lane tariff`",
                 b->opt.lane);
    else if (said && (t->price_in != w->in || t->price_out != w->out))
        log_warn("registry",
                 "base_price_in and base_price_out differ from lane %u's registered tariff, which "
                 "counts: %s and %s",
                 b->opt.lane, in, out);
}

static enum status ask_tariff(struct book *b, uint64_t t, uint64_t block,
                              struct registry_tariff *out, struct errtext *err)
{
    struct witness_question q = {
        .view = WITNESS_TARIFF_AT, .id = b->opt.model_id, .t = t, .lane = b->opt.lane};
    enum status st = ask(b, &q, block, err);
    return st ? st : registry_decode_tariff(out, b->answer.data, b->answer.len, err);
}

static enum status read_base(struct book *b, const struct witness_head *head, struct errtext *err)
{
    struct registry_tariff now = {0}, next = {0};
    enum status st = ask_tariff(b, UINT64_MAX, head->number, &now, err);
    if (!st && now.active_at > head->time_s) {
        next = now;
        st = ask_tariff(b, next.active_at - 1, head->number, &now, err);
    }
    if (st)
        return st;
    pthread_mutex_lock(&b->lock);
    bool changed =
        memcmp(&b->base_now, &now, sizeof(now)) || memcmp(&b->base_next, &next, sizeof(next));
    b->base_now = now;
    b->base_next = next;
    b->is_changed |= changed;
    pthread_mutex_unlock(&b->lock);
    b->tariff_told &= !changed;
    tell_tariff(b, &now);
    return STATUS_OK;
}

static enum status read_notice(struct book *b, uint64_t block, struct errtext *err)
{
    struct witness_question q = {.view = WITNESS_NOTICE};
    uint64_t notice_s = 0;
    enum status st = ask(b, &q, block, err);
    struct abi_reader answer = {(const uint8_t *)b->answer.data, b->answer.len};
    if (!st)
        st = abi_read_u64(&answer, 0, &notice_s, "notice", err);
    if (st)
        return st;
    pthread_mutex_lock(&b->lock);
    b->notice_s = notice_s;
    pthread_mutex_unlock(&b->lock);
    return STATUS_OK;
}

static enum status round_once(struct book *b, struct errtext *err)
{
    struct witness_head head = {0};
    uint64_t before = b->block;
    enum status st = b->opt.chain.head(b->opt.chain.arg, &head, err);
    if (!st && head.number < b->seen_block)
        st = err_set(err, STATUS_BUSY,
                     "the nodes are at final block %" PRIu64 ", block %" PRIu64 " was read before",
                     head.number, b->seen_block);
    if (!st && !before)
        st = read_notice(b, head.number, err);
    if (!st && (head.number > before || !before))
        st = read_base(b, &head, err);
    if (!st)
        st = mark_changed(b, &head, err);
    if (!st)
        st = read_stale(b, &head, err);
    if (st)
        return st;
    pthread_mutex_lock(&b->lock);
    if (!b->stop) {
        b->block = head.number;
        b->time_s = head.time_s;
    }
    pthread_mutex_unlock(&b->lock);
    return STATUS_OK;
}

/* ---- the thread ---- */

/* One line when reading begins to fail or fails for another reason, one when it works again. */
static void tell(struct book *b, enum status st, const struct errtext *err)
{
    pthread_mutex_lock(&b->lock);
    bool is_news = st && strcmp(b->why, err->text) != 0;
    b->failures += st != STATUS_OK;
    snprintf(b->why, sizeof(b->why), "%s", st ? err->text : "");
    pthread_mutex_unlock(&b->lock);
    if (is_news)
        log_warn("registry", "the Registry could not be read: %s", err->text);
    else if (!st && b->is_failing)
        log_info("registry", "the Registry is read again");
    b->is_failing = st != STATUS_OK;
}

static void save_if_due(struct book *b)
{
    struct errtext err = ERRTEXT_INIT;
    pthread_mutex_lock(&b->lock);
    bool due = b->block && (b->is_changed || b->time_s > b->saved_s + BOOK_FILE_EVERY_S);
    pthread_mutex_unlock(&b->lock);
    if (due && book_save(b, &err))
        log_warn("registry", "the cache of the Registry could not be written: %s", err.text);
}

static void tell_first(struct book *b)
{
    pthread_mutex_lock(&b->lock);
    uint32_t count = b->count;
    pthread_mutex_unlock(&b->lock);
    log_info("registry", "read as of block %" PRIu64 ", %u adapters", b->block, count);
}

void *book_main(void *book)
{
    struct book *b = book;
    bool stop = false;
    while (!stop) {
        struct errtext err = ERRTEXT_INIT;
        uint64_t before = b->block;
        enum status st = round_once(b, &err);
        tell(b, st, &err);
        if (!st && !before && b->block)
            tell_first(b);
        save_if_due(b);
        struct timespec until = thread_deadline(b->opt.poll_ms);
        pthread_mutex_lock(&b->lock);
        int timed_out = 0;
        while (!b->stop && !timed_out && (!b->kicked || st)) /* a failure is not hurried */
            timed_out = pthread_cond_timedwait(&b->kick, &b->lock, &until);
        b->kicked = false;
        stop = b->stop;
        pthread_mutex_unlock(&b->lock);
    }
    return NULL;
}
