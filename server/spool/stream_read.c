/* One question a record: a repair is rare, and what it takes back is checked by its caller. */
#include "server/spool/stream_read.h"

#include <hiredis/hiredis.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum status stream_reader_open(struct stream_reader *r, const char *url, const char *password_file,
                               uint32_t lane, struct errtext *err)
{
    *r = (struct stream_reader){.redis = NULL};
    snprintf(r->key, sizeof(r->key), "residual:lane:%" PRIu32, lane);
    enum status st = redis_link_open(&r->link, url, password_file, NULL, err);
    if (!st)
        st = redis_link_connect(&r->link, &r->redis, err);
    if (st == STATUS_IO)
        err_prefix(err, "Redis %s", redis_link_name(&r->link));
    return st;
}

void stream_reader_close(struct stream_reader *r)
{
    if (r->redis)
        redisFree(r->redis);
    r->redis = NULL;
    redis_link_close(&r->link);
}

static enum status fail(const struct stream_reader *r, const redisReply *reply, struct errtext *err)
{
    return err_set(err, STATUS_IO, "Redis %s: %s: %s", redis_link_name(&r->link), r->key,
                   reply && reply->type == REDIS_REPLY_ERROR ? reply->str : "no answer of use");
}

enum status stream_reader_last(struct stream_reader *r, uint64_t *seq, struct errtext *err)
{
    redisReply *reply = redisCommand(r->redis, "XINFO STREAM %s", r->key);
    const char *last = reply ? redis_link_field(reply, "last-generated-id") : NULL;
    bool none = reply && reply->type == REDIS_REPLY_ERROR && strstr(reply->str, "no such key");
    *seq = last ? strtoull(last, NULL, 10) : 0;
    enum status st = last || none ? STATUS_OK : fail(r, reply, err);
    freeReplyObject(reply);
    return st;
}

enum status stream_reader_take(struct stream_reader *r, uint64_t seq, struct buf *entry,
                               struct errtext *err)
{
    redisReply *reply =
        redisCommand(r->redis, "XRANGE %s %" PRIu64 "-0 %" PRIu64 "-0", r->key, seq, seq);
    enum status st = STATUS_NOT_FOUND;
    if (!reply || reply->type != REDIS_REPLY_ARRAY)
        st = fail(r, reply, err);
    bool has = st == STATUS_NOT_FOUND && reply->elements == 1;
    const redisReply *e = has ? reply->element[0] : NULL;
    const redisReply *f = e && e->elements == 2 ? e->element[1] : NULL;
    if (f && f->elements == 2 && f->element[1]->str) {
        buf_put(entry, f->element[1]->str, f->element[1]->len);
        st = STATUS_OK;
    }
    freeReplyObject(reply);
    return st;
}
