/* Entries by content id under one lock, which is never held while a node or the disk is asked. A
 * change of the Registry is known before it comes into force, so an entry holds what is in force
 * and what will be; which of the two a request gets is decided by the second it began in. */
#include "server/terms/book.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/base/thread.h"
#include "server/terms/book_impl.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* ---- tables; the lock is held ---- */

static uint32_t locate_id(const struct book *b, const uint8_t id[32], bool *found)
{
    uint32_t lo = 0, hi = b->count;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (memcmp(b->entry[mid]->id, id, 32) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    *found = lo < b->count && memcmp(b->entry[lo]->id, id, 32) == 0;
    return lo;
}

struct book_entry *book_find(struct book *b, const uint8_t id[32])
{
    bool found;
    uint32_t at = locate_id(b, id, &found);
    return found ? b->entry[at] : NULL;
}

static void drop_entry(struct book *b, uint32_t at)
{
    struct book_entry *e = b->entry[at];
    terms_release(e->now);
    terms_release(e->next);
    mem_free(e);
    b->count--;
    memmove(b->entry + at, b->entry + at + 1, (b->count - at) * sizeof(struct book_entry *));
}

static void drop_oldest(struct book *b)
{
    uint32_t oldest = 0;
    for (uint32_t i = 1; i < b->count; i++) {
        if (b->entry[i]->used < b->entry[oldest]->used)
            oldest = i;
    }
    drop_entry(b, oldest);
}

struct book_entry *book_take(struct book *b, const uint8_t id[32])
{
    bool found;
    uint32_t at = locate_id(b, id, &found);
    if (found)
        return b->entry[at];
    if (b->count == b->opt.ids_max) {
        drop_oldest(b);
        at = locate_id(b, id, &found);
    }
    struct book_entry *e = mem_alloc(sizeof(*e));
    memcpy(e->id, id, 32);
    e->is_stale = true;
    e->used = ++b->uses;
    memmove(b->entry + at + 1, b->entry + at, (b->count - at) * sizeof(struct book_entry *));
    b->entry[at] = e;
    b->count++;
    return e;
}

static int compare_net(const struct book_net *n, const uint8_t id[32], uint64_t version)
{
    int order = memcmp(n->id, id, 32);
    return order ? order : n->net.version < version ? -1 : n->net.version > version;
}

static uint32_t locate_net(const struct book *b, const uint8_t id[32], uint64_t version)
{
    uint32_t lo = 0, hi = b->net_count;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (compare_net(&b->net[mid], id, version) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

const struct book_net *book_find_net(const struct book *b, const uint8_t id[32], uint64_t version)
{
    uint32_t at = locate_net(b, id, version);
    return at < b->net_count && compare_net(&b->net[at], id, version) == 0 ? &b->net[at] : NULL;
}

bool book_add_net(struct book *b, const uint8_t id[32], const void *answer, size_t len)
{
    struct book_net n;
    memcpy(n.id, id, 32);
    if (len != sizeof(n.answer) || b->net_count == b->net_max ||
        registry_decode_datanet(&n.net, answer, len, NULL) || !n.net.registered)
        return false;
    memcpy(n.answer, answer, len);
    uint32_t at = locate_net(b, id, n.net.version);
    if (at < b->net_count && compare_net(&b->net[at], id, n.net.version) == 0)
        return true;
    memmove(b->net + at + 1, b->net + at, (b->net_count - at) * sizeof(b->net[0]));
    b->net[at] = n;
    b->net_count++;
    return true;
}

void book_complete(struct book *b, struct terms *t)
{
    const struct book_net *n =
        terms_has_datanet(t) ? book_find_net(b, t->r.datanet_id, t->r.datanet_version) : NULL;
    if (!n)
        return;
    memcpy(t->document_root, n->net.document_root, 32);
    memcpy(t->owner_root, n->net.owner_root, 32);
}

/* ---- what is asked ---- */

static struct terms *in_force(const struct book_entry *e, uint64_t now_s)
{
    return e->next && e->next->r.active_at <= now_s ? e->next : e->now;
}

static enum status look_up(struct book *b, const uint8_t id[32], uint64_t now_s, struct terms **out,
                           struct errtext *err)
{
    struct book_entry *e = book_take(b, id);
    e->used = ++b->uses;
    if (!e->now) {
        b->kicked = true;
        pthread_cond_signal(&b->kick);
        return err_set(err, STATUS_BUSY,
                       "the Registry has not been read for this adapter yet%s%s; retry in a moment",
                       b->why[0] ? ": " : "", b->why);
    }
    *out = terms_ref(in_force(e, now_s));
    return STATUS_OK;
}

enum status book_terms(struct book *b, const uint8_t adapter_id[32], uint64_t now_s,
                       struct terms **out, struct errtext *err)
{
    *out = NULL;
    pthread_mutex_lock(&b->lock);
    enum status st = look_up(b, adapter_id, now_s, out, err);
    pthread_mutex_unlock(&b->lock);
    return st;
}

enum status book_terms_wait(struct book *b, const uint8_t adapter_id[32], uint64_t now_s,
                            uint32_t wait_ms, struct terms **out, struct errtext *err)
{
    struct timespec until = thread_deadline(wait_ms);
    int timed_out = 0;
    *out = NULL;
    pthread_mutex_lock(&b->lock);
    enum status st = look_up(b, adapter_id, now_s, out, err);
    while (st && !timed_out) {
        timed_out = pthread_cond_timedwait(&b->read, &b->lock, &until);
        err_clear(err);
        st = look_up(b, adapter_id, now_s, out, err);
    }
    pthread_mutex_unlock(&b->lock);
    return st;
}

void book_want(struct book *b, const uint8_t adapter_id[32])
{
    pthread_mutex_lock(&b->lock);
    if (!book_take(b, adapter_id)->now) {
        b->kicked = true;
        pthread_cond_signal(&b->kick);
    }
    pthread_mutex_unlock(&b->lock);
}

/* The lock is held. */
static enum status check_read(const struct book *b, struct errtext *err)
{
    return b->block ? STATUS_OK
                    : err_set(err, STATUS_BUSY, "the Registry has not been read yet%s%s",
                              b->why[0] ? ": " : "", b->why);
}

enum status book_base(struct book *b, uint64_t now_s, struct tariff *out, struct errtext *err)
{
    pthread_mutex_lock(&b->lock);
    bool next = b->base_next.active_at && b->base_next.active_at <= now_s;
    const struct registry_tariff *t = next ? &b->base_next : &b->base_now;
    *out = (struct tariff){t->price_in, t->price_out};
    enum status st = check_read(b, err);
    pthread_mutex_unlock(&b->lock);
    return st;
}

/* The lock is held. */
static enum status check_age(const struct book *b, uint64_t now_s, struct errtext *err)
{
    uint64_t age_s = now_s > b->time_s ? now_s - b->time_s : 0;
    uint64_t most_s = MAX(b->notice_s, (uint64_t)BOOK_GRACE_S);
    return age_s <= most_s ? STATUS_OK
                           : err_set(err, STATUS_BUSY,
                                     "the Registry was last read as of block %" PRIu64 ", %" PRIu64
                                     " s ago, and prices may have changed since (%" PRIu64
                                     " s is the most): %s; see registry_rpc_url",
                                     b->block, age_s, most_s,
                                     b->why[0] ? b->why : "the chain's final block is that old");
}

enum status book_check_age(struct book *b, uint64_t now_s, struct errtext *err)
{
    pthread_mutex_lock(&b->lock);
    enum status st = check_age(b, now_s, err);
    pthread_mutex_unlock(&b->lock);
    return st;
}

enum status book_ready(struct book *b, uint64_t now_s, struct errtext *err)
{
    pthread_mutex_lock(&b->lock);
    enum status st = check_read(b, err);
    if (!st)
        st = check_age(b, now_s, err);
    pthread_mutex_unlock(&b->lock);
    return st;
}

void book_get_stats(struct book *b, struct book_stats *out)
{
    pthread_mutex_lock(&b->lock);
    *out = (struct book_stats){
        .block = b->block, .time_s = b->time_s, .failures = b->failures, .ids = b->count};
    for (uint32_t i = 0; i < b->count; i++)
        out->unread += !b->entry[i]->now;
    pthread_mutex_unlock(&b->lock);
}

/* ---- owners ---- */

/* Terms are immutable: an entry whose list has come gets new ones. */
static struct terms *with_contributors(struct terms *t, struct contributors *c)
{
    if (!t || t->contributors || memcmp(t->owner_root, c->owner_root, 32) != 0)
        return t;
    struct terms *n = terms_new();
    n->r = t->r;
    memcpy(n->owner, t->owner, sizeof(n->owner));
    memcpy(n->document_root, t->document_root, 32);
    memcpy(n->owner_root, t->owner_root, 32);
    n->contributors = contributors_ref(c);
    n->answer = mem_alloc(t->answer_len + 1);
    memcpy(n->answer, t->answer, t->answer_len);
    n->answer_len = t->answer_len;
    terms_release(t);
    return n;
}

enum status book_put_owners(struct book *b, const struct datanet_owner *list, size_t count,
                            uint8_t root[32], struct errtext *err)
{
    enum status st = owners_put(b->owners, list, count, root, err);
    struct contributors *c = st ? NULL : owners_find(b->owners, root);
    if (!c)
        return st;
    pthread_mutex_lock(&b->lock);
    for (uint32_t i = 0; i < b->count; i++) {
        struct book_entry *e = b->entry[i];
        e->now = with_contributors(e->now, c);
        e->next = with_contributors(e->next, c);
    }
    pthread_mutex_unlock(&b->lock);
    contributors_release(c);
    return STATUS_OK;
}

enum status book_owners_json(struct book *b, const uint8_t datanet_id[32], uint64_t version,
                             struct buf *out, struct errtext *err)
{
    char hex[65];
    uint8_t root[32] = {0};
    hex_encode(hex, datanet_id, 32);
    pthread_mutex_lock(&b->lock);
    const struct book_net *n = book_find_net(b, datanet_id, version);
    if (n)
        memcpy(root, n->net.owner_root, 32);
    pthread_mutex_unlock(&b->lock);
    if (!n)
        return err_set(err, STATUS_NOT_FOUND,
                       "version %" PRIu64 " of datanet 0x%s: no adapter of this server names it",
                       version, hex);
    buf_printf(out, "{\"datanet\":\"0x%s\",\"version\":%" PRIu64 ",\"owners\":", hex, version);
    enum status st = owners_json(b->owners, root, out, err);
    buf_putc(out, '}');
    return st;
}

/* ---- life ---- */

enum status book_open(struct book **out, const struct book_options *opt, struct errtext *err)
{
    char dir[PATH_MAX];
    *out = NULL;
    struct book *b = mem_alloc(sizeof(*b));
    b->opt = *opt;
    b->opt.ids_max = MAX(opt->ids_max, 1u);
    b->net_max = b->opt.ids_max * BOOK_NETS_PER_ID;
    b->entry = mem_array(b->opt.ids_max, sizeof(struct book_entry *));
    b->net = mem_array(b->net_max, sizeof(*b->net));
    buf_init(&b->answer, 1u << 16);
    CHECK(pthread_mutex_init(&b->lock, NULL) == 0);
    thread_cond_init(&b->kick);
    thread_cond_init(&b->read);
    snprintf(b->path, sizeof(b->path), "%s/registry.json", opt->dir);
    snprintf(dir, sizeof(dir), "%s/owners", opt->dir);
    enum status st = owners_open(&b->owners, dir, err);
    if (!st) {
        book_load(b);
        st = thread_start(&b->thread, "rs-registry", book_main, b, err);
    }
    if (st) {
        b->stop = true;
        book_close(b);
        return st;
    }
    *out = b;
    return STATUS_OK;
}

void book_close(struct book *b)
{
    if (!b)
        return;
    if (!b->stop) {
        pthread_mutex_lock(&b->lock);
        b->stop = true;
        pthread_cond_signal(&b->kick);
        pthread_mutex_unlock(&b->lock);
        pthread_join(b->thread, NULL);
    }
    while (b->count)
        drop_entry(b, b->count - 1);
    owners_close(b->owners);
    pthread_cond_destroy(&b->kick);
    pthread_cond_destroy(&b->read);
    pthread_mutex_destroy(&b->lock);
    buf_fini(&b->answer);
    mem_free(b->entry);
    mem_free(b->net);
    mem_free(b);
}
