/* A spool that is a cache (its own numbers promise nothing), synced where keys are owed. Bodies:
 * key 16 | body 16 | request id 32 | seq u64 | wall ms u64. */
#include "server/record/keylog.h"
#include "server/base/hex.h"
#include "server/base/mem.h"
#include "server/spool/spool.h"

#include <string.h>

#define BODY_BYTES    80u
#define SEGMENT_BYTES (1u << 20)
#define BYTES_MAX     (64u << 20)

struct keylog {
    struct spool *log;
};

enum status keylog_open(struct keylog **out, const char *dir, struct errtext *err)
{
    struct keylog *k = mem_alloc(sizeof(*k));
    const struct spool_options opt = {
        .dir = dir, .segment_bytes_max = SEGMENT_BYTES, .bytes_max = BYTES_MAX, .is_cache = true};
    *out = NULL;
    enum status st = spool_open(&k->log, &opt, err);
    if (st)
        mem_free(k);
    else
        *out = k;
    return st;
}

void keylog_close(struct keylog *k)
{
    if (!k)
        return;
    spool_close(k->log);
    mem_free(k);
}

enum status keylog_append(struct keylog *k, const struct keylog_entry *e, struct errtext *err)
{
    uint8_t body[BODY_BYTES];
    memcpy(body, e->key, 16);
    memcpy(body + 16, e->body, 16);
    memcpy(body + 32, e->request_id, 32);
    be_put(body + 64, e->seq, 8);
    be_put(body + 72, e->wall_ms, 8);
    return spool_append(k->log, spool_next_seq(k->log), body, sizeof(body), err);
}

enum status keylog_sync(struct keylog *k, struct errtext *err)
{
    return spool_sync(k->log, err);
}

void keylog_trim(struct keylog *k)
{
    const struct spool_keep keep = {.seq_max = UINT64_MAX,
                                    .any = true,
                                    .age_s_min = KEYLOG_AGE_MS / 1000,
                                    .bytes_full = BYTES_MAX};
    spool_trim(k->log, &keep);
}

void keylog_visit(struct keylog *k, void (*visit)(void *arg, const struct keylog_entry *e),
                  void *arg)
{
    struct spool_cursor c;
    struct buf body;
    uint64_t number;
    buf_init(&body, SPOOL_BODY_BYTES_MAX);
    enum status st = spool_cursor_open(&c, k->log, spool_first_seq(k->log), NULL);
    while (!st && !(st = spool_cursor_next(&c, &number, &body, NULL))) {
        const uint8_t *p = (const uint8_t *)body.data;
        struct keylog_entry e;
        if (body.len != BODY_BYTES)
            continue;
        memcpy(e.key, p, 16);
        memcpy(e.body, p + 16, 16);
        memcpy(e.request_id, p + 32, 32);
        e.seq = (uint64_t)be_get(p + 64, 8);
        e.wall_ms = (uint64_t)be_get(p + 72, 8);
        visit(arg, &e);
    }
    spool_cursor_close(&c);
    buf_fini(&body);
}
