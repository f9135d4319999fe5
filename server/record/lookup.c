/* A ring of entries and an open-addressing table from request id to ring place. The private log is
 * a spool of its own with two kinds of bodies:
 *
 *   1  request id 32 | salt 32 | fair key u64 | account 20 | seq u64 | adapter count u8
 *   2  seq u64 | attribution's seq u64                                                        */
#include "server/record/lookup.h"
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/spool/spool.h"

#include <pthread.h>
#include <string.h>

#define TABLE_SLOTS    (4u * LOOKUP_MAX)
#define LOG_ANSWER     1u
#define LOG_RECORDED   2u
#define ANSWER_BYTES   (1 + 32 + 32 + 8 + 20 + 8 + 1)
#define RECORDED_BYTES (1 + 8 + 8)
#define LOG_SEG_BYTES  (4u << 20)
#define TAIL_WALK      1024 /* entries looked at without a pause */

struct lookup {
    pthread_mutex_t lock;
    struct lookup_entry *ring; /* [LOOKUP_MAX] */
    uint64_t put_count;        /* ring place = count % LOOKUP_MAX */
    uint32_t *table;           /* [TABLE_SLOTS] place + 1 */
    struct spool *log;
};

static uint32_t hash_of(const uint8_t id[32])
{
    uint32_t h;
    memcpy(&h, id, sizeof(h)); /* ids are random */
    return h & (TABLE_SLOTS - 1);
}

static struct lookup_entry *find(struct lookup *l, const uint8_t id[32])
{
    for (uint32_t i = hash_of(id); l->table[i]; i = (i + 1) & (TABLE_SLOTS - 1)) {
        struct lookup_entry *e = &l->ring[l->table[i] - 1];
        if (memcmp(e->request_id, id, 32) == 0)
            return e;
    }
    return NULL;
}

static void table_insert(struct lookup *l, uint32_t place)
{
    uint32_t i = hash_of(l->ring[place].request_id);
    while (l->table[i])
        i = (i + 1) & (TABLE_SLOTS - 1);
    l->table[i] = place + 1;
}

static void table_remove(struct lookup *l, uint32_t place)
{
    uint32_t i = hash_of(l->ring[place].request_id);
    while (l->table[i] != place + 1)
        i = (i + 1) & (TABLE_SLOTS - 1);
    l->table[i] = 0;
    for (i = (i + 1) & (TABLE_SLOTS - 1); l->table[i]; i = (i + 1) & (TABLE_SLOTS - 1)) {
        uint32_t moved = l->table[i] - 1;
        l->table[i] = 0;
        table_insert(l, moved);
    }
}

static void put_locked(struct lookup *l, const struct lookup_entry *e)
{
    uint32_t place = (uint32_t)(l->put_count % LOOKUP_MAX);
    if (l->put_count >= LOOKUP_MAX)
        table_remove(l, place);
    l->ring[place] = *e;
    table_insert(l, place);
    l->put_count++;
}

/* The newest entry but those after it, by its number; NULL: not remembered. */
static struct lookup_entry *find_seq(struct lookup *l, uint64_t seq)
{
    uint64_t hi = l->put_count, lo = hi > LOOKUP_MAX ? hi - LOOKUP_MAX : 0, end = hi;
    while (lo < hi) {
        uint64_t mid = lo + (hi - lo) / 2;
        if (l->ring[mid % LOOKUP_MAX].seq < seq)
            lo = mid + 1;
        else
            hi = mid;
    }
    struct lookup_entry *e = &l->ring[lo % LOOKUP_MAX];
    return lo < end && e->seq == seq ? e : NULL;
}

/* false: it was known already, or nobody asks for it any more */
static bool mark_locked(struct lookup *l, uint64_t seq, uint64_t att_seq)
{
    struct lookup_entry *e = find_seq(l, seq);
    bool is_news = e && (e->state != LOOKUP_RECORDED || e->att_seq != att_seq);
    if (is_news) {
        e->att_seq = att_seq;
        e->state = LOOKUP_RECORDED;
    }
    return is_news;
}

/* ---- the private log ---- */

/* Twice as many bodies as entries: each answer has two at most. */
static void append_log(struct lookup *l, const void *body, size_t len)
{
    const struct spool_keep none = {.seq_max = UINT64_MAX};
    uint64_t seq = spool_next_seq(l->log);
    if (spool_append(l->log, seq, body, len, NULL) == STATUS_OK && seq > 2 * LOOKUP_MAX) {
        spool_note_final(l->log, seq - 2 * LOOKUP_MAX);
        spool_trim(l->log, &none);
    }
}

static void log_answer(struct lookup *l, const struct lookup_entry *e)
{
    uint8_t body[ANSWER_BYTES] = {LOG_ANSWER};
    memcpy(body + 1, e->request_id, 32);
    memcpy(body + 33, e->salt, 32);
    be_put(body + 65, e->fair_key, 8);
    memcpy(body + 73, e->account, 20);
    be_put(body + 93, e->seq, 8);
    body[101] = e->adapter_count;
    append_log(l, body, sizeof(body));
    mem_wipe(body, sizeof(body));
}

static void replay_answer(struct lookup *l, const uint8_t *p)
{
    struct lookup_entry e = {.state = LOOKUP_NOT_SCORED,
                             .fair_key = (uint64_t)be_get(p + 65, 8),
                             .seq = (uint64_t)be_get(p + 93, 8),
                             .adapter_count = p[101]};
    memcpy(e.request_id, p + 1, 32);
    memcpy(e.salt, p + 33, 32);
    memcpy(e.account, p + 73, 20);
    if (e.adapter_count <= LORA_PARTS_MAX && !find(l, e.request_id))
        put_locked(l, &e);
}

static void replay_log(struct lookup *l)
{
    struct spool_cursor c;
    struct buf body;
    uint64_t seq;
    buf_init(&body, SPOOL_BODY_BYTES_MAX);
    if (spool_cursor_open(&c, l->log, spool_first_seq(l->log), NULL) == STATUS_OK) {
        while (spool_cursor_next(&c, &seq, &body, NULL) == STATUS_OK) {
            const uint8_t *p = (const uint8_t *)body.data;
            if (body.len == ANSWER_BYTES && p[0] == LOG_ANSWER)
                replay_answer(l, p);
            else if (body.len == RECORDED_BYTES && p[0] == LOG_RECORDED)
                (void)mark_locked(l, (uint64_t)be_get(p + 1, 8), (uint64_t)be_get(p + 9, 8));
        }
        spool_cursor_close(&c);
    }
    mem_wipe(body.data, body.len);
    buf_fini(&body);
}

enum status lookup_open(struct lookup **out, const char *dir, struct errtext *err)
{
    struct lookup *l = mem_alloc(sizeof(*l));
    struct spool_options opt = {
        .dir = dir, .segment_bytes_max = LOG_SEG_BYTES, .bytes_max = 256u << 20, .is_cache = true};
    *out = NULL;
    CHECK(pthread_mutex_init(&l->lock, NULL) == 0);
    l->ring = mem_array(LOOKUP_MAX, sizeof(*l->ring));
    l->table = mem_array(TABLE_SLOTS, sizeof(*l->table));
    enum status st = spool_open(&l->log, &opt, err);
    if (st) {
        lookup_close(l);
        return st;
    }
    replay_log(l);
    *out = l;
    return STATUS_OK;
}

void lookup_close(struct lookup *l)
{
    if (!l)
        return;
    if (l->log)
        lookup_flush(l);
    spool_close(l->log);
    pthread_mutex_destroy(&l->lock);
    mem_wipe(l->ring, LOOKUP_MAX * sizeof(*l->ring));
    mem_free(l->ring);
    mem_free(l->table);
    mem_free(l);
}

void lookup_put(struct lookup *l, const struct lookup_entry *e)
{
    pthread_mutex_lock(&l->lock);
    put_locked(l, e);
    log_answer(l, e);
    pthread_mutex_unlock(&l->lock);
}

void lookup_flush(struct lookup *l)
{
    pthread_mutex_lock(&l->lock);
    (void)!spool_flush(l->log, NULL);
    pthread_mutex_unlock(&l->lock);
}

bool lookup_get(struct lookup *l, const uint8_t request_id[32], struct lookup_entry *out)
{
    pthread_mutex_lock(&l->lock);
    const struct lookup_entry *e = find(l, request_id);
    if (e)
        *out = *e;
    pthread_mutex_unlock(&l->lock);
    return e != NULL;
}

bool lookup_find_tail(struct lookup *l, const uint8_t *tail, size_t tail_bytes, uint8_t id[32])
{
    bool found = false;
    pthread_mutex_lock(&l->lock);
    uint64_t at = l->put_count, lo = at > LOOKUP_MAX ? at - LOOKUP_MAX : 0;
    while (!found && at > lo) {
        const struct lookup_entry *e = &l->ring[--at % LOOKUP_MAX];
        found = memcmp(e->request_id + 32 - tail_bytes, tail, tail_bytes) == 0;
        if (found)
            memcpy(id, e->request_id, 32);
        if (at % TAIL_WALK == 0) { /* the recorder must not wait for a curious client */
            pthread_mutex_unlock(&l->lock);
            pthread_mutex_lock(&l->lock);
        }
    }
    pthread_mutex_unlock(&l->lock);
    return found;
}

void lookup_update(struct lookup *l, const struct lookup_entry *e)
{
    pthread_mutex_lock(&l->lock);
    struct lookup_entry *at = find(l, e->request_id);
    if (at)
        *at = *e;
    pthread_mutex_unlock(&l->lock);
}

void lookup_mark_recorded(struct lookup *l, uint64_t seq, uint64_t att_seq)
{
    uint8_t body[RECORDED_BYTES] = {LOG_RECORDED};
    be_put(body + 1, seq, 8);
    be_put(body + 9, att_seq, 8);
    pthread_mutex_lock(&l->lock);
    if (mark_locked(l, seq, att_seq))
        append_log(l, body, sizeof(body));
    pthread_mutex_unlock(&l->lock);
}
