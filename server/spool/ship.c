/* A loop of three moves: connect, find the stream's end, send what is durable after it. Whatever
 * fails goes back to the first; explicit ids make a repeat harmless. */
#include "server/spool/ship.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/base/thread.h"
#include "server/spool/redis_link.h"
#include "server/spool/stream.h"

#include <hiredis/hiredis.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PIPELINE_MAX   64
#define BACKOFF_MS_MIN 100
#define BACKOFF_MS_MAX 5000
#define CHECK_MS                                                                                   \
    1000 /* an idle connection is probed this often: Redis may have been restored behind our back  \
          */

struct ship {
    struct spool *spool;
    struct redis_link link;
    struct ship_options opt;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool kicked, stopping;
    uint64_t stop_ns;
    redisContext *redis;
    struct stream stream;
    struct spool_cursor cursor;
    bool cursor_open;
    bool is_away; /* an outage is told once */
    struct buf body;
    _Atomic bool is_foreign;      /* the stream holds records that this spool never wrote */
    _Atomic bool connected;       /* relaxed: telemetry */
    _Atomic uint64_t shipped_seq; /* relaxed: telemetry */
    _Atomic uint64_t final_seq;
};

/* ---- the thread's sleep ---- */

static bool is_stopping(struct ship *s)
{
    pthread_mutex_lock(&s->lock);
    bool stop = s->stopping && clock_mono_ns() >= s->stop_ns;
    pthread_mutex_unlock(&s->lock);
    return stop;
}

static bool is_asked_to_stop(struct ship *s)
{
    pthread_mutex_lock(&s->lock);
    bool stop = s->stopping;
    pthread_mutex_unlock(&s->lock);
    return stop;
}

/* After a failure new records must not cut the pause short: a Redis that is away or refuses would
 * be asked as often as clients are. */
static void sleep_ms(struct ship *s, uint32_t ms, bool until_kicked)
{
    struct timespec until = thread_deadline(ms);
    pthread_mutex_lock(&s->lock);
    while (!(s->kicked && until_kicked) && !s->stopping) {
        if (pthread_cond_timedwait(&s->wake, &s->lock, &until) != 0)
            break;
    }
    s->kicked = false;
    pthread_mutex_unlock(&s->lock);
}

/* ---- Redis ---- */

static void disconnect(struct ship *s, const char *why)
{
    atomic_store_explicit(&s->connected, false, memory_order_relaxed);
    if (!s->is_away)
        log_warn("ship", "Redis %s: %s; records wait in the spool", redis_link_name(&s->link), why);
    s->is_away = true;
    if (s->redis)
        redisFree(s->redis);
    s->redis = NULL;
    if (s->cursor_open)
        spool_cursor_close(&s->cursor);
    s->cursor_open = false;
}

/* Is the stream's last record the spool's of that number? */
static bool is_in_spool(struct ship *s, const struct stream_end *end)
{
    struct spool_cursor c;
    uint64_t got;
    if (spool_cursor_open(&c, s->spool, end->seq, NULL) != STATUS_OK)
        return true; /* trimmed here: it was final */
    bool same = spool_cursor_next(&c, &got, &s->body, NULL) != STATUS_OK ||
                (s->stream.entry.len == s->body.len &&
                 memcmp(s->stream.entry.data, s->body.data, s->body.len) == 0);
    spool_cursor_close(&c);
    return same;
}

/* The cursor on the record after `last`. */
static bool stand_after(struct ship *s, uint64_t last)
{
    struct errtext err = ERRTEXT_INIT;
    uint64_t first = spool_first_seq(s->spool);
    if (s->cursor_open && s->cursor.next_seq == last + 1)
        return true;
    if (last + 1 < first) { /* trimmed segments hold only final records: nobody waits for them */
        log_warn("ship", "stream %s ends at %" PRIu64 ", the spool begins at %" PRIu64,
                 s->stream.key, last, first);
        last = first - 1;
    }
    if (s->cursor_open)
        spool_cursor_close(&s->cursor);
    s->cursor_open = spool_cursor_open(&s->cursor, s->spool, last + 1, &err) == STATUS_OK;
    if (!s->cursor_open) {
        log_error("ship", "%s", err.text);
        disconnect(s, "the spool no longer holds the next record");
        return false;
    }
    atomic_store_explicit(&s->shipped_seq, last, memory_order_relaxed);
    return true;
}

/* Records that this lane signed and the spool does not hold mean that the spool was rolled back or
 * that another server has the lane: a person decides. */
static enum status judge_end(struct ship *s, const struct stream_end *end, uint64_t durable,
                             struct errtext *err)
{
    char source[96];
    snprintf(source, sizeof(source), "the stream %s", s->stream.key);
    if (end->seq > durable)
        return spool_check_used(s->spool, end->seq, source, err);
    if (end->has_record && !is_in_spool(s, end))
        return err_set(err, STATUS_CONFLICT,
                       "%s holds another record %" PRIu64
                       " than this spool: another server has the "
                       "lane, or an old copy was restored and its numbers were used again; a "
                       "person must look",
                       source, end->seq);
    return STATUS_OK;
}

/* Stand on the record after the stream's last. */
static bool position(struct ship *s)
{
    struct stream_end end;
    struct errtext err = ERRTEXT_INIT;
    uint64_t durable = spool_durable_seq(s->spool), first = spool_first_seq(s->spool);
    uint64_t refill = s->cursor_open ? s->cursor.next_seq - 1 : first - 1;
    if (!stream_find_end(&s->stream, s->redis, refill, &end, &err)) {
        disconnect(s, err.text);
        return false;
    }
    bool is_foreign = judge_end(s, &end, durable, &err) != STATUS_OK;
    if (is_foreign && !atomic_exchange(&s->is_foreign, true))
        log_error("ship", "%s; no record is signed until then", err.text);
    if (is_foreign) {
        disconnect(s, "the stream is not this spool's");
        return false;
    }
    atomic_store(&s->is_foreign, false);
    return stand_after(s, end.seq);
}

static bool connect_redis(struct ship *s)
{
    struct errtext err = ERRTEXT_INIT;
    if (redis_link_connect(&s->link, &s->redis, &err)) {
        disconnect(s, err.text);
        return false;
    }
    if (!position(s))
        return false;
    atomic_store_explicit(&s->connected, true, memory_order_relaxed);
    s->is_away = false;
    log_info("ship", "Redis %s: %s goes on after record %" PRIu64, redis_link_name(&s->link),
             s->stream.key, atomic_load(&s->shipped_seq));
    return true;
}

/* One XADD reply. *refused: somebody else's entry has the number ("equal or smaller than the target
 * stream top item"). */
static bool take_reply(struct ship *s, bool *refused)
{
    redisReply *r = NULL;
    if (redisGetReply(s->redis, (void **)&r) != REDIS_OK || !r)
        return false;
    bool taken = r->type != REDIS_REPLY_ERROR;
    bool smaller = !taken && strstr(r->str, "equal or smaller") != NULL;
    if (!taken && !smaller)
        log_error("ship", "XADD %s: %s", s->stream.key, r->str);
    *refused |= smaller;
    freeReplyObject(r);
    return taken || smaller;
}

/* Send up to PIPELINE_MAX records. Returns how many, or -1 when the connection broke. */
static int ship_some(struct ship *s)
{
    struct errtext err = ERRTEXT_INIT;
    uint64_t seq = 0;
    int sent = 0;
    bool refused = false;
    enum status st = STATUS_OK;
    while (sent < PIPELINE_MAX && !(st = spool_cursor_next(&s->cursor, &seq, &s->body, &err))) {
        if (redisAppendCommand(s->redis, "XADD %s %llu-0 r %b", s->stream.key,
                               (unsigned long long)seq, s->body.data, s->body.len) != REDIS_OK)
            return -1;
        sent++;
    }
    for (int i = 0; i < sent; i++) {
        if (!take_reply(s, &refused))
            return -1;
    }
    if (sent > 0)
        atomic_store_explicit(&s->shipped_seq, seq, memory_order_relaxed);
    if (refused && !position(s))
        return -1;
    if (st && st != STATUS_NOT_FOUND) {
        log_error("ship", "%s", err.text);
        return -1;
    }
    return sent;
}

/* What the worker says is final; what was never shipped cannot be. A Redis that does not answer is
 * met by the next move. */
static void ask_final(struct ship *s)
{
    redisReply *r = redisCommand(s->redis, "GET %s:final", s->stream.key);
    uint64_t seq = 0;
    if (r && r->type == REDIS_REPLY_STRING)
        seq = s->opt.read_final(s->opt.arg, r->str);
    if (seq > atomic_load(&s->final_seq) && seq <= atomic_load(&s->shipped_seq))
        atomic_store(&s->final_seq, seq);
    freeReplyObject(r);
}

static void *ship_main(void *arg)
{
    struct ship *s = arg;
    uint32_t backoff_ms = BACKOFF_MS_MIN;
    uint64_t checked_ns = 0, asked_ns = 0;
    while (!is_stopping(s)) {
        if (!s->redis && !connect_redis(s)) {
            if (is_asked_to_stop(s))
                break;
            sleep_ms(s, backoff_ms, false);
            backoff_ms = MIN(2 * backoff_ms, BACKOFF_MS_MAX);
            continue;
        }
        if (clock_mono_ns() - asked_ns > (uint64_t)CHECK_MS * 1000000u) {
            asked_ns = clock_mono_ns();
            ask_final(s);
        }
        int sent = ship_some(s);
        if (sent < 0) { /* broken, or Redis refuses to store: out of memory, read only */
            disconnect(s, "records were not taken");
            sleep_ms(s, backoff_ms, false);
            backoff_ms = MIN(2 * backoff_ms, BACKOFF_MS_MAX);
            continue;
        }
        if (sent > 0) {
            backoff_ms = BACKOFF_MS_MIN;
            continue;
        }
        if (is_asked_to_stop(s))
            break;
        sleep_ms(s, CHECK_MS, true);
        uint64_t now = clock_mono_ns();
        if (now - checked_ns > (uint64_t)CHECK_MS * 1000000u) {
            checked_ns = now;
            (void)position(s);
        }
    }
    if (s->redis)
        redisFree(s->redis);
    if (s->cursor_open)
        spool_cursor_close(&s->cursor);
    return NULL;
}

/* ---- life ---- */

enum status ship_check(const struct ship_options *opt, struct errtext *err)
{
    struct redis_link link;
    enum status st = redis_link_open(&link, opt->redis_url, opt->password_file, opt->ca_file, err);
    redis_link_close(&link);
    return st;
}

/* What the stream knows before anything is signed. A Redis that is away knows nothing: its word is
 * asked as soon as it is back. */
static enum status ask_first(struct ship *s, struct errtext *err)
{
    struct stream_end end;
    if (redis_link_connect(&s->link, &s->redis, NULL))
        return STATUS_OK;
    uint64_t durable = spool_durable_seq(s->spool), refill = spool_first_seq(s->spool) - 1;
    enum status st = STATUS_OK;
    if (stream_find_end(&s->stream, s->redis, refill, &end, NULL))
        st = judge_end(s, &end, durable, err);
    redisFree(s->redis);
    s->redis = NULL;
    return st;
}

enum status ship_start(struct ship **out, const struct ship_options *opt, struct spool *spool,
                       struct errtext *err)
{
    struct ship *s = mem_alloc(sizeof(*s));
    *out = NULL;
    s->spool = spool;
    s->opt = *opt;
    buf_init(&s->body, SPOOL_BODY_BYTES_MAX);
    stream_init(&s->stream, opt);
    enum status st =
        redis_link_open(&s->link, opt->redis_url, opt->password_file, opt->ca_file, err);
    if (!st)
        st = ask_first(s, err);
    if (st) {
        redis_link_close(&s->link);
        stream_fini(&s->stream);
        buf_fini(&s->body);
        mem_free(s);
        return st;
    }
    CHECK(pthread_mutex_init(&s->lock, NULL) == 0);
    thread_cond_init(&s->wake);
    CHECK(thread_start(&s->thread, "rs-shipper", ship_main, s, NULL) == STATUS_OK);
    *out = s;
    return STATUS_OK;
}

void ship_kick(struct ship *s)
{
    pthread_mutex_lock(&s->lock);
    s->kicked = true;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

void ship_stop(struct ship *s, uint32_t wait_ms)
{
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    s->stopping = true;
    s->stop_ns = clock_mono_ns() + (uint64_t)wait_ms * 1000000u;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    pthread_cond_destroy(&s->wake);
    pthread_mutex_destroy(&s->lock);
    redis_link_close(&s->link);
    stream_fini(&s->stream);
    buf_fini(&s->body);
    mem_free(s);
}

bool ship_is_connected(struct ship *s)
{
    return atomic_load_explicit(&s->connected, memory_order_relaxed);
}

uint64_t ship_shipped_seq(struct ship *s)
{
    return atomic_load_explicit(&s->shipped_seq, memory_order_relaxed);
}

uint64_t ship_final_seq(struct ship *s)
{
    return atomic_load(&s->final_seq);
}

bool ship_is_foreign(struct ship *s)
{
    return atomic_load(&s->is_foreign);
}
