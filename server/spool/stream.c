/* The end of the stream is judged from its last entries backwards: what the lane did not sign is
 * removed, and the stream's last id moved back with it, in one transaction. */
#include "server/spool/stream.h"
#include "server/base/log.h"
#include "server/spool/redis_link.h"
#include "server/spool/ship.h"

#include <hiredis/hiredis.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE_ENTRIES  64
#define PAGES_MAX     256
#define ID_BYTES      48
#define COMMAND_WORDS (PAGE_ENTRIES + 2)

void stream_init(struct stream *s, const struct ship_options *opt)
{
    *s = (struct stream){.is_own = opt->is_own, .arg = opt->arg};
    snprintf(s->key, sizeof(s->key), "residual:lane:%" PRIu32, opt->lane);
    buf_init(&s->entry, SPOOL_BODY_BYTES_MAX);
    buf_init(&s->foreign, PAGE_ENTRIES * ID_BYTES);
}

void stream_fini(struct stream *s)
{
    buf_fini(&s->entry);
    buf_fini(&s->foreign);
}

static bool fail(struct errtext *err, const char *command, const redisReply *r)
{
    (void)err_set(err, STATUS_IO, "%s: %s", command,
                  r && r->type == REDIS_REPLY_ERROR ? r->str : "no answer of use");
    return false;
}

/* The last id the stream gave, "0-0" where there is no stream. */
static bool read_last_id(const struct stream *s, redisContext *redis, char id[ID_BYTES],
                         struct errtext *err)
{
    redisReply *r = redisCommand(redis, "XINFO STREAM %s", s->key);
    const char *last = r ? redis_link_field(r, "last-generated-id") : NULL;
    bool good = last || (r && r->type == REDIS_REPLY_ERROR && strstr(r->str, "no such key"));
    snprintf(id, ID_BYTES, "%s", last ? last : "0-0");
    if (!good)
        (void)fail(err, "XINFO STREAM", r);
    freeReplyObject(r);
    return good;
}

/* [id, [r, entry]] that this lane signed under that id. */
static bool is_own(const struct stream *s, const redisReply *e, uint64_t *seq)
{
    char *end;
    *seq = 0;
    if (e->type != REDIS_REPLY_ARRAY || e->elements != 2 || !e->element[0]->str)
        return false;
    *seq = strtoull(e->element[0]->str, &end, 10);
    const redisReply *f = e->element[1];
    return *seq && strcmp(end, "-0") == 0 && f->type == REDIS_REPLY_ARRAY && f->elements == 2 &&
           f->element[0]->str && f->element[1]->str && strcmp(f->element[0]->str, "r") == 0 &&
           f->element[1]->len <= SPOOL_BODY_BYTES_MAX &&
           s->is_own(s->arg, *seq, f->element[1]->str, f->element[1]->len);
}

/* Looks at the last `count` entries: *end is the newest own one among them, foreign holds the ids
 * of those after it, newest first. */
static bool read_page(struct stream *s, redisContext *redis, unsigned count, struct stream_end *end,
                      struct errtext *err)
{
    redisReply *r = redisCommand(redis, "XREVRANGE %s + - COUNT %u", s->key, count);
    bool good = r && r->type == REDIS_REPLY_ARRAY;
    *end = (struct stream_end){0};
    buf_clear(&s->entry);
    buf_clear(&s->foreign);
    for (size_t i = 0; good && i < r->elements && !end->has_record; i++) {
        const redisReply *e = r->element[i];
        end->has_record = is_own(s, e, &end->seq);
        if (end->has_record)
            buf_put(&s->entry, e->element[1]->element[1]->str, e->element[1]->element[1]->len);
        else if (e->elements == 2 && e->element[0]->str)
            buf_put(&s->foreign, e->element[0]->str, strlen(e->element[0]->str) + 1);
    }
    if (!end->has_record)
        end->seq = 0;
    good = good && !s->entry.failed && !s->foreign.failed;
    if (!good)
        (void)fail(err, "XREVRANGE", r);
    freeReplyObject(r);
    return good;
}

/* XDEL of the ids in foreign but the first `skip`. Returns how many. */
static unsigned append_delete(const struct stream *s, redisContext *redis, unsigned skip)
{
    const char *word[COMMAND_WORDS] = {"XDEL", s->key};
    int words = 2;
    unsigned i = 0;
    for (size_t at = 0; at < s->foreign.len && words < COMMAND_WORDS; i++) {
        const char *id = s->foreign.data + at;
        at += strlen(id) + 1;
        if (i >= skip)
            word[words++] = id;
    }
    if (words > 2)
        (void)redisAppendCommandArgv(redis, words, word, NULL);
    return (unsigned)words - 2;
}

static bool take_replies(redisContext *redis, unsigned count, const char *what, struct errtext *err)
{
    bool good = true;
    for (unsigned i = 0; i < count; i++) {
        redisReply *r = NULL;
        bool got = redisGetReply(redis, (void **)&r) == REDIS_OK && r;
        bool taken = got && r->type != REDIS_REPLY_ERROR && r->type != REDIS_REPLY_NIL;
        for (size_t j = 0; taken && r->type == REDIS_REPLY_ARRAY && j < r->elements; j++)
            taken = r->element[j]->type != REDIS_REPLY_ERROR;
        if (good && !taken)
            good = fail(err, what, got ? r : NULL);
        if (got)
            freeReplyObject(r);
        else
            break;
    }
    return good;
}

/* The foreign entries after the last own one go, and with them, in one transaction, the last id:
 * else their numbers would stay taken. */
static bool end_at(struct stream *s, redisContext *redis, uint64_t seq, struct errtext *err)
{
    (void)redisAppendCommand(redis, "MULTI");
    unsigned deleted = append_delete(s, redis, 0);
    (void)redisAppendCommand(redis, "XSETID %s %llu-0", s->key, (unsigned long long)seq);
    (void)redisAppendCommand(redis, "EXEC");
    if (!take_replies(redis, deleted ? 4 : 3, "a foreign entry could not be removed", err))
        return false;
    log_warn(
        "ship",
        "stream %s: %u entries that this lane did not sign were removed behind record %" PRIu64,
        s->key, deleted, seq);
    return true;
}

bool stream_find_end(struct stream *s, struct redisContext *redis, uint64_t refill,
                     struct stream_end *end, struct errtext *err)
{
    char last[ID_BYTES], own[ID_BYTES];
    unsigned count = 1; /* nearly always enough */
    for (unsigned i = 0; i < PAGES_MAX; i++, count = PAGE_ENTRIES) {
        if (!read_last_id(s, redis, last, err) || !read_page(s, redis, count, end, err))
            return false;
        if (!end->has_record && s->foreign.len == 0) { /* empty: trimmed, or never written */
            end->seq = strtoull(last, NULL, 10);
            return true;
        }
        snprintf(own, sizeof(own), "%" PRIu64 "-0", end->seq);
        if (end->has_record && strcmp(own, last) == 0)
            return true;
        if (count == 1 && !end->has_record)
            continue;
        bool is_full = !end->has_record && s->foreign.len > 0 && append_delete(s, redis, 1) > 0;
        if (is_full && !take_replies(redis, 1, "XDEL", err))
            return false;
        if (!is_full && !end_at(s, redis, end->has_record ? end->seq : refill, err))
            return false;
    }
    (void)err_set(err, STATUS_BUSY, "the stream is filled with foreign entries");
    return false;
}
