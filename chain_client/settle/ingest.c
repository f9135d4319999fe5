/* Redis Streams -> database. One consumer of one group per lane; ids are "<seq>-0", one field r.
 * The group belongs to this database (its name is drawn once): a second worker beside it has its
 * own, and reads every record too; a database that was lost reads from the start.
 *
 *   read       own pending entries first, then new ones; other consumers' after a minute of silence
 *   store      a whole read in one transaction, then XACK: a crash between the two only repeats
 *   trim       up to what is final on the chain, never by length
 *   lost       a stream that was restored or emptied is filled again by the server; the group is
 *              made again from the start, and what we have is skipped by number
 *   behind     a group that was given more than we have, or a stream that ends past what we have
 *              and holds nothing more (an old backup; trimmed unread): read again after what we
 *              have, and what then still does not come is a gap for refetch.c
 *   taken back the server removes entries it did not sign from the end, and uses their ids again:
 *              a group that is past the end goes back to what we have */
#include "chain_client/settle/worker.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/spool/redis_link.h"

#include <hiredis/hiredis.h>
#include <inttypes.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONSUMER       "settle-1"
#define BACKOFF_MS_MIN 200
#define BACKOFF_MS_MAX 5000
#define CLAIM_IDLE_MS  60000
#define GROUP_BYTES    32
#define READ_MAX       4096 /* read_count's */
#define ACK_WORDS      3
#define LOOK_NS        3000000000ull /* between two looks at an idle stream's end */

struct redis {
    struct redis_link link;
    redisContext *ctx;
    uint64_t retry_ns, claim_ns;
    uint32_t backoff_ms;
    char group[GROUP_BYTES];
    struct lanes_entry entry[READ_MAX]; /* of one read, with the ids they came under */
    const char *id[READ_MAX];
    const char *ack[ACK_WORDS + READ_MAX]; /* XACK stream group id.. */
    size_t ack_count;
};

enum status ingest_open(struct worker *w, struct errtext *err)
{
    struct redis *r = mem_alloc(sizeof(*r));
    w->redis = r;
    r->backoff_ms = BACKOFF_MS_MIN;
    return redis_link_open(&r->link, w->set->redis_url, w->set->redis_password_file,
                           w->set->redis_ca_file, err);
}

static void disconnect(struct redis *r, const char *why)
{
    log_warn("ingest", "Redis %s: %s; trying again in %u ms, nothing is lost",
             redis_link_name(&r->link), why, r->backoff_ms);
    if (r->ctx)
        redisFree(r->ctx);
    r->ctx = NULL;
    r->retry_ns = clock_mono_ns() + r->backoff_ms * 1000000ull;
    r->backoff_ms = 2 * r->backoff_ms < BACKOFF_MS_MAX ? 2 * r->backoff_ms : BACKOFF_MS_MAX;
}

void ingest_close(struct worker *w)
{
    struct redis *r = w->redis;
    if (!r)
        return;
    if (r->ctx)
        redisFree(r->ctx);
    redis_link_close(&r->link);
    mem_free(r);
    w->redis = NULL;
}

/* A command whose answer does not matter beyond being one; false when the connection is gone. */
static bool tell(struct redis *r, redisReply *reply, const char *accepted_error)
{
    if (!reply)
        return false;
    bool good =
        reply->type != REDIS_REPLY_ERROR || (accepted_error && strstr(reply->str, accepted_error));
    if (!good)
        log_warn("ingest", "Redis %s: %s", redis_link_name(&r->link), reply->str);
    freeReplyObject(reply);
    return good;
}

static enum status name_group(struct worker *w, struct errtext *err)
{
    struct redis *r = w->redis;
    enum status st = db_meta_get(&w->db, "group", r->group, sizeof(r->group), err);
    if (st || r->group[0])
        return st;
    uint8_t id[8];
    char hex[17];
    randombytes_buf(id, sizeof(id));
    hex_encode(hex, id, sizeof(id));
    snprintf(r->group, sizeof(r->group), "settle-%s", hex);
    return db_meta_set(&w->db, "group", r->group, err);
}

static bool make_groups(struct worker *w)
{
    struct redis *r = w->redis;
    for (uint32_t i = 0; i < w->lane_count; i++) {
        w->lane[i].has_pending = true;
        if (!tell(r,
                  redisCommand(r->ctx, "XGROUP CREATE residual:lane:%u %s 0 MKSTREAM",
                               w->lane[i].id, r->group),
                  "BUSYGROUP"))
            return false;
    }
    return true;
}

static bool connect_redis(struct worker *w)
{
    struct redis *r = w->redis;
    struct errtext err = ERRTEXT_INIT;
    if (clock_mono_ns() < r->retry_ns)
        return false;
    if (redis_link_connect(&r->link, &r->ctx, &err)) {
        disconnect(r, err.text);
        return false;
    }
    if (!make_groups(w)) {
        disconnect(r, "the consumer group could not be made");
        return false;
    }
    r->backoff_ms = BACKOFF_MS_MIN;
    log_info("ingest", "Redis %s: connected", redis_link_name(&r->link));
    return true;
}

/* ---- one read ---- */

static redisReply *read_lane(struct worker *w, struct settle_lane *l, bool pending,
                             uint32_t wait_ms)
{
    struct redis *r = w->redis;
    if (pending)
        return redisCommand(r->ctx,
                            "XREADGROUP GROUP %s " CONSUMER " COUNT %u STREAMS residual:lane:%u 0",
                            r->group, (unsigned)w->set->read_count, l->id);
    return redisCommand(
        r->ctx, "XREADGROUP GROUP %s " CONSUMER " COUNT %u BLOCK %u STREAMS residual:lane:%u >",
        r->group, (unsigned)w->set->read_count, wait_ms ? wait_ms : 1, l->id);
}

/* "<seq>-0" and [r, bytes]; false for anything else. */
static bool read_entry(const redisReply *e, uint64_t *seq, struct canon_bytes *body)
{
    char *end;
    *body = (struct canon_bytes){NULL, 0};
    if (e->type != REDIS_REPLY_ARRAY || e->elements != 2 || !e->element[0]->str)
        return false;
    *seq = strtoull(e->element[0]->str, &end, 10);
    const redisReply *f = e->element[1];
    if (f->type == REDIS_REPLY_ARRAY && f->elements == 2 && f->element[1]->str &&
        f->element[0]->str && strcmp(f->element[0]->str, "r") == 0)
        *body = (struct canon_bytes){(const uint8_t *)f->element[1]->str, f->element[1]->len};
    return *seq && strcmp(end, "-0") == 0;
}

/* What has a record goes to be judged; the ids of all others, and of what was taken, are
 * acknowledged. */
static size_t sort_entries(struct redis *r, struct settle_lane *l, const redisReply *list)
{
    size_t count = 0;
    r->ack_count = 0;
    for (size_t i = 0; i < list->elements && i < READ_MAX; i++) {
        const redisReply *e = list->element[i];
        struct canon_bytes body;
        uint64_t seq = 0;
        const char *id = e->elements && e->element[0]->str ? e->element[0]->str : NULL;
        bool good = read_entry(e, &seq, &body);
        if (good && body.data) {
            r->id[count] = id;
            r->entry[count++] = (struct lanes_entry){.seq = seq, .bytes = body};
            continue;
        }
        if (id)
            r->ack[ACK_WORDS + r->ack_count++] = id;
        if (!good) {
            log_error("ingest", "lane %u: an entry with an id that is no number was dropped",
                      l->id);
            l->met_foreign = true;
        } else if (seq > l->ingested) { /* trimmed under us: the gap is refetched */
            log_error("ingest", "lane %u record %" PRIu64 ": gone from the stream", l->id, seq);
            l->top = MAX(l->top, seq);
        }
    }
    return count;
}

static enum status take_entries(struct worker *w, struct settle_lane *l, const redisReply *list,
                                size_t *held, struct errtext *err)
{
    struct redis *r = w->redis;
    size_t count = sort_entries(r, l, list);
    *held = 0;
    enum status st = db_begin(&w->db, err);
    if (!st)
        st = lanes_take(w, l, r->entry, count, err);
    if (!st)
        st = lanes_advance(w, l, err);
    st = db_end(&w->db, st, err);
    for (size_t i = 0; i < count; i++) {
        if (r->entry[i].verdict == LANES_HOLD)
            ++*held;
        else
            r->ack[ACK_WORDS + r->ack_count++] = r->id[i];
    }
    return st;
}

static bool acknowledge(struct redis *r, const struct settle_lane *l)
{
    char stream[40];
    if (!r->ack_count)
        return true;
    snprintf(stream, sizeof(stream), "residual:lane:%u", l->id);
    r->ack[0] = "XACK";
    r->ack[1] = stream;
    r->ack[2] = r->group;
    redisReply *reply = redisCommandArgv(r->ctx, (int)(ACK_WORDS + r->ack_count), r->ack, NULL);
    bool good = reply != NULL;
    freeReplyObject(reply);
    return good;
}

/* *got: entries read. A failure of Redis disconnects and is not an error. */
static enum status step_lane(struct worker *w, struct settle_lane *l, uint32_t wait_ms, size_t *got,
                             struct errtext *err)
{
    struct redis *r = w->redis;
    bool pending = l->has_pending;
    size_t held = 0;
    enum status st = STATUS_OK;
    *got = 0;
    redisReply *reply = read_lane(w, l, pending, wait_ms);
    if (!reply) {
        disconnect(r, r->ctx->errstr);
        return STATUS_OK;
    }
    if (reply->type == REDIS_REPLY_ERROR) {
        bool lost = strstr(reply->str, "NOGROUP") != NULL;
        log_warn("ingest", "Redis %s: %s", redis_link_name(&r->link), reply->str);
        if (!lost || !make_groups(w))
            disconnect(r, "reading failed");
    } else if (reply->type == REDIS_REPLY_ARRAY && reply->elements == 1 &&
               reply->element[0]->elements == 2) {
        const redisReply *list = reply->element[0]->element[1];
        *got = list->elements;
        if (*got)
            st = take_entries(w, l, list, &held, err);
        if (!st && *got && !acknowledge(r, l))
            disconnect(r, "acknowledging failed");
    }
    freeReplyObject(reply);
    /* What is held stays pending: it is read again once something has changed. */
    l->has_pending = pending ? *got > held : held > 0;
    if (held) {
        *got = 0;
        clock_sleep_ms(wait_ms); /* reading pending entries does not wait */
    }
    return st;
}

/* ---- housekeeping ---- */

static bool parse_id(const char *text, uint64_t id[2])
{
    return text && sscanf(text, "%" SCNu64 "-%" SCNu64, &id[0], &id[1]) == 2;
}

/* The value of `name` in what XINFO answered; NULL: not there. */
static const redisReply *info(const redisReply *map, const char *name)
{
    for (size_t i = 0; map->type == REDIS_REPLY_ARRAY && i + 1 < map->elements; i += 2)
        if (map->element[i]->str && strcmp(map->element[i]->str, name) == 0)
            return map->element[i + 1];
    return NULL;
}

/* Where the lane's stream ends, what it holds last, and what our group was given last. */
struct given_end {
    uint64_t end[2], last[2], given[2];
    bool is_pending; /* given, and not acknowledged */
};

static bool is_before(const uint64_t a[2], const uint64_t b[2])
{
    return a[0] != b[0] ? a[0] < b[0] : a[1] < b[1];
}

static bool parse_end(struct given_end *s, const redisReply *stream, const redisReply *group)
{
    const redisReply *last = info(stream, "last-entry"), *pending = info(group, "pending");
    *s = (struct given_end){.is_pending = pending && pending->integer > 0};
    if (last && last->type == REDIS_REPLY_ARRAY && last->elements == 2 &&
        !parse_id(last->element[0]->str, s->last))
        return false;
    const redisReply *end = info(stream, "last-generated-id");
    const redisReply *given = info(group, "last-delivered-id");
    return end && given && parse_id(end->str, s->end) && parse_id(given->str, s->given);
}

/* False: Redis did not answer. *known: it said all of it. */
static bool read_end(struct redis *r, const struct settle_lane *l, struct given_end *s, bool *known)
{
    redisReply *stream = redisCommand(r->ctx, "XINFO STREAM residual:lane:%u", l->id);
    redisReply *groups = redisCommand(r->ctx, "XINFO GROUPS residual:lane:%u", l->id);
    bool good = stream && groups;
    *known = false;
    for (size_t i = 0; good && groups->type == REDIS_REPLY_ARRAY && i < groups->elements; i++) {
        const redisReply *name = info(groups->element[i], "name");
        if (name && name->str && strcmp(name->str, r->group) == 0)
            *known = parse_end(s, stream, groups->element[i]);
    }
    freeReplyObject(stream);
    freeReplyObject(groups);
    return good;
}

static bool read_again(struct redis *r, struct settle_lane *l)
{
    return tell(r,
                redisCommand(r->ctx, "XGROUP SETID residual:lane:%u %s %" PRIu64 "-0", l->id,
                             r->group, l->ingested),
                "NOGROUP");
}

/* A group that was given more than the stream ends with would be given nothing until the numbers
 * are past that again. One that was given all, and yet we have less, is read again once after what
 * we have; what does not come then is a gap. False: Redis did not answer. */
static bool follow_end(struct redis *r, struct settle_lane *l)
{
    struct given_end s;
    bool known;
    l->look_ns = clock_mono_ns() + LOOK_NS;
    if (!read_end(r, l, &s, &known))
        return false;
    if (!known)
        return true;
    if (is_before(s.end, s.given)) {
        log_info("ingest",
                 "lane %u: the stream was taken back; reading again after record %" PRIu64, l->id,
                 l->ingested);
        l->met_foreign = false;
        return read_again(r, l);
    }
    if (s.is_pending || is_before(s.given, s.last) || s.end[0] <= l->top || s.end[1] ||
        s.end[0] > l->ingested + LANES_AHEAD_MAX)
        return true;
    if (s.given[0] > l->ingested && l->read_after != l->ingested + 1) {
        l->read_after = l->ingested + 1;
        return read_again(r, l);
    }
    log_warn("ingest",
             "lane %u: the stream ends at record %" PRIu64 ", but those after %" PRIu64
             " are gone from it",
             l->id, s.end[0], l->top);
    l->top = s.end[0];
    return true;
}

/* The lane's server deletes by it what it need not keep. */
static bool tell_final(struct redis *r, const struct settle_lane *l)
{
    char text[ENTRY_FINAL_BYTES];
    entry_final_format(text, l->transport_key, l->id, l->final);
    return tell(r, redisCommand(r->ctx, "SET residual:lane:%u:final %s", l->id, text), NULL);
}

static void claim_and_trim(struct worker *w)
{
    struct redis *r = w->redis;
    if (!r->ctx || clock_mono_ns() < r->claim_ns)
        return;
    r->claim_ns = clock_mono_ns() + CLAIM_IDLE_MS / 4 * 1000000ull;
    for (uint32_t i = 0; i < w->lane_count && r->ctx; i++) {
        struct settle_lane *l = &w->lane[i];
        bool good =
            tell(r,
                 redisCommand(r->ctx,
                              "XAUTOCLAIM residual:lane:%u %s " CONSUMER " %u 0-0 COUNT %u JUSTID",
                              l->id, r->group, CLAIM_IDLE_MS, (unsigned)w->set->read_count),
                 "NOGROUP");
        l->has_pending = true;
        if (good && l->final > l->trimmed) {
            good = tell(r,
                        redisCommand(r->ctx, "XTRIM residual:lane:%u MINID %" PRIu64 "-0", l->id,
                                     l->final + 1),
                        NULL);
            good = good && tell_final(r, l);
            l->trimmed = good ? l->final : l->trimmed;
        }
        if (!good)
            disconnect(r, "housekeeping failed");
    }
}

static enum status say_away(struct worker *w, struct errtext *err)
{
    char text[512];
    snprintf(text, sizeof(text),
             "Redis %s is not reached: records wait in their servers' spools; is it up, and does "
             "its ACL let this user read and trim residual:lane:*?",
             redis_link_name(&w->redis->link));
    return trouble_set(&w->db, TROUBLE_REDIS, 0, text, err);
}

enum status ingest_step(struct worker *w, uint32_t wait_ms, bool *busy, struct errtext *err)
{
    struct redis *r = w->redis;
    enum status st = STATUS_OK;
    *busy = false;
    if (!r->group[0])
        st = name_group(w, err);
    if (st)
        return st;
    if (!r->ctx && !connect_redis(w)) {
        clock_sleep_ms(wait_ms);
        return say_away(w, err);
    }
    st = trouble_clear(&w->db, TROUBLE_REDIS, 0, err);
    uint32_t share_ms = wait_ms / w->lane_count;
    for (uint32_t i = 0; i < w->lane_count && !st && r->ctx; i++) {
        struct settle_lane *l = &w->lane[i];
        size_t got = 0;
        if (l->stopped) {
            clock_sleep_ms(share_ms);
            continue;
        }
        st = step_lane(w, l, share_ms, &got, err);
        bool look = l->met_foreign || clock_mono_ns() >= l->look_ns;
        if (r->ctx && !got && look && !follow_end(r, l))
            disconnect(r, "the stream's end was not told");
        if (got == w->set->read_count)
            *busy = true;
    }
    claim_and_trim(w);
    return st;
}
