/* Redis Streams -> database. One consumer of one group per lane; ids are "<seq>-0", one field r.
 *
 *   read       own pending entries first, then new ones; other consumers' after a minute of silence
 *   store      a whole read in one transaction, then XACK: a crash between the two only repeats
 *   trim       up to what is final on the chain, never by length
 *   lost       a stream that was restored or emptied is filled again by the server; the group is
 *              made again from the start, and what we have is skipped by number
 *   taken back the server removes entries it did not sign from the end, and uses their ids again:
 *              a group that is past the end goes back to what we have */
#include "chain_client/settle/worker.h"
#include "server/base/buf.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/spool/redis_link.h"

#include <hiredis/hiredis.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GROUP          "settle"
#define CONSUMER       "settle-1"
#define BACKOFF_MS_MIN 200
#define BACKOFF_MS_MAX 5000
#define CLAIM_IDLE_MS  60000

struct redis {
    struct redis_link link;
    redisContext *ctx;
    uint64_t retry_ns, claim_ns;
    uint32_t backoff_ms;
    struct buf args; /* ids to acknowledge */
};

enum status ingest_open(struct worker *w, struct errtext *err)
{
    struct redis *r = mem_alloc(sizeof(*r));
    w->redis = r;
    r->backoff_ms = BACKOFF_MS_MIN;
    buf_init(&r->args, 1u << 20);
    return redis_link_open(&r->link, w->set->redis_url, w->set->redis_password_file, err);
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
    buf_fini(&r->args);
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

static bool make_groups(struct worker *w)
{
    struct redis *r = w->redis;
    for (uint32_t i = 0; i < w->lane_count; i++) {
        w->lane[i].has_pending = true;
        if (!tell(r,
                  redisCommand(r->ctx, "XGROUP CREATE residual:lane:%u " GROUP " 0 MKSTREAM",
                               w->lane[i].id),
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
        return redisCommand(
            r->ctx, "XREADGROUP GROUP " GROUP " " CONSUMER " COUNT %u STREAMS residual:lane:%u 0",
            (unsigned)w->set->read_count, l->id);
    return redisCommand(r->ctx,
                        "XREADGROUP GROUP " GROUP " " CONSUMER
                        " COUNT %u BLOCK %u STREAMS residual:lane:%u >",
                        (unsigned)w->set->read_count, wait_ms ? wait_ms : 1, l->id);
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

static enum status take_entries(struct worker *w, struct settle_lane *l, const redisReply *list,
                                size_t *held, struct errtext *err)
{
    struct redis *r = w->redis;
    buf_clear(&r->args);
    *held = 0;
    enum status st = db_begin(&w->db, err);
    for (size_t i = 0; i < list->elements && !st; i++) {
        const redisReply *e = list->element[i];
        struct canon_bytes body;
        uint64_t seq = 0;
        enum lanes_verdict verdict = LANES_TAKEN;
        bool good = read_entry(e, &seq, &body);
        if (!good) {
            log_error("ingest", "lane %u: an entry with an id that is no number was dropped",
                      l->id);
            l->met_foreign = true;
        } else if (!body.data && seq > l->ingested) { /* trimmed under us: the gap is refetched */
            log_error("ingest", "lane %u record %" PRIu64 ": gone from the stream", l->id, seq);
            l->top = seq > l->top ? seq : l->top;
        } else if (body.data) {
            st = lanes_take(w, l, seq, &body, &verdict, err);
        }
        if (verdict == LANES_HOLD)
            ++*held;
        else if (e->elements && e->element[0]->str)
            buf_printf(&r->args, "%s ", e->element[0]->str);
    }
    if (!st)
        st = lanes_advance(w, l, err);
    return db_end(&w->db, st, err);
}

static bool acknowledge(struct redis *r, const struct settle_lane *l)
{
    bool good = true;
    for (char *at = r->args.data, *space; at && good && (space = strchr(at, ' ')); at = space + 1) {
        *space = '\0';
        good =
            redisAppendCommand(r->ctx, "XACK residual:lane:%u " GROUP " %s", l->id, at) == REDIS_OK;
        *space = ' ';
    }
    for (char *at = r->args.data; at && good && (at = strchr(at, ' ')); at++) {
        void *reply = NULL;
        good = redisGetReply(r->ctx, &reply) == REDIS_OK;
        if (reply)
            freeReplyObject(reply);
    }
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

/* "<number>-<sub>" in what XINFO answered; false: not there. */
static bool info_id(const redisReply *map, const char *name, uint64_t id[2])
{
    const char *value = redis_link_field(map, name);
    return value && sscanf(value, "%" SCNu64 "-%" SCNu64, &id[0], &id[1]) == 2;
}

/* A group that was given more than the stream ends with would be given nothing until the numbers
 * are past that again. False: Redis did not answer. */
static bool follow_end(struct redis *r, struct settle_lane *l)
{
    uint64_t end[2], given[2];
    redisReply *stream = redisCommand(r->ctx, "XINFO STREAM residual:lane:%u", l->id);
    redisReply *groups = redisCommand(r->ctx, "XINFO GROUPS residual:lane:%u", l->id);
    bool good = stream && groups, is_past = false;
    for (size_t i = 0; good && groups->type == REDIS_REPLY_ARRAY && i < groups->elements; i++) {
        const redisReply *g = groups->element[i];
        bool is_ours = g->elements > 1 && g->element[1]->str && !strcmp(g->element[1]->str, GROUP);
        if (is_ours && info_id(stream, "last-generated-id", end) &&
            info_id(g, "last-delivered-id", given))
            is_past = given[0] > end[0] || (given[0] == end[0] && given[1] > end[1]);
    }
    freeReplyObject(stream);
    freeReplyObject(groups);
    if (!is_past)
        return good;
    log_info("ingest", "lane %u: the stream was taken back; reading again after record %" PRIu64,
             l->id, l->ingested);
    l->met_foreign = false;
    return tell(r,
                redisCommand(r->ctx, "XGROUP SETID residual:lane:%u " GROUP " %" PRIu64 "-0", l->id,
                             l->ingested),
                "NOGROUP");
}

static void claim_and_trim(struct worker *w)
{
    struct redis *r = w->redis;
    if (!r->ctx || clock_mono_ns() < r->claim_ns)
        return;
    r->claim_ns = clock_mono_ns() + CLAIM_IDLE_MS / 4 * 1000000ull;
    for (uint32_t i = 0; i < w->lane_count && r->ctx; i++) {
        struct settle_lane *l = &w->lane[i];
        bool good = tell(r,
                         redisCommand(r->ctx,
                                      "XAUTOCLAIM residual:lane:%u " GROUP " " CONSUMER
                                      " %u 0-0 COUNT %u JUSTID",
                                      l->id, CLAIM_IDLE_MS, (unsigned)w->set->read_count),
                         "NOGROUP");
        l->has_pending = true;
        good = good && follow_end(r, l);
        if (good && l->final > l->trimmed) {
            good = tell(r,
                        redisCommand(r->ctx, "XTRIM residual:lane:%u MINID %" PRIu64 "-0", l->id,
                                     l->final + 1),
                        NULL);
            l->trimmed = good ? l->final : l->trimmed;
        }
        if (!good)
            disconnect(r, "housekeeping failed");
    }
}

enum status ingest_step(struct worker *w, uint32_t wait_ms, bool *busy, struct errtext *err)
{
    struct redis *r = w->redis;
    enum status st = STATUS_OK;
    *busy = false;
    if (!r->ctx && !connect_redis(w)) {
        clock_sleep_ms(wait_ms);
        return STATUS_OK;
    }
    uint32_t share_ms = wait_ms / w->lane_count;
    for (uint32_t i = 0; i < w->lane_count && !st && r->ctx; i++) {
        struct settle_lane *l = &w->lane[i];
        size_t got = 0;
        if (l->stopped) {
            clock_sleep_ms(share_ms);
            continue;
        }
        st = step_lane(w, l, share_ms, &got, err);
        if (r->ctx && !got && l->met_foreign && !follow_end(r, l))
            disconnect(r, "the stream's end was not told");
        if (got == w->set->read_count)
            *busy = true;
    }
    claim_and_trim(w);
    return st;
}
