/* A reader opens segments by their name and never sees past the durable mark, so it can read with
 * plain pread beside the writer. */
#include "server/spool/spool_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <unistd.h>

/* First seq of the segment that holds seq, 0 if none. */
static uint64_t segment_of(struct spool *s, uint64_t seq)
{
    uint64_t first = 0;
    pthread_mutex_lock(&s->lock);
    for (size_t i = s->segment_count; i-- > 0 && !first;) {
        if (s->segment[i].first_seq <= seq)
            first = s->segment[i].first_seq;
    }
    pthread_mutex_unlock(&s->lock);
    return first;
}

static enum status cursor_switch(struct spool_cursor *c, uint64_t first_seq, struct errtext *err)
{
    char path[PATH_MAX];
    spool_segment_path(c->spool->dir, first_seq, path);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? err_set(err, STATUS_NOT_FOUND,
                                         "spool record %" PRIu64 " is trimmed", first_seq)
                               : spool_io_error(path, "open", err);
    if (c->fd >= 0)
        close(c->fd);
    c->fd = fd;
    c->segment_first = first_seq;
    c->offset = 0;
    c->next_seq = first_seq;
    return STATUS_OK;
}

/* Read the frame at the cursor; body NULL skips it. */
static enum status read_frame(struct spool_cursor *c, struct buf *body, struct errtext *err)
{
    uint8_t head[SPOOL_FRAME_HEAD_BYTES];
    if (pread(c->fd, head, sizeof(head), (off_t)c->offset) != (ssize_t)sizeof(head))
        return err_set(err, STATUS_CORRUPT, "spool record %" PRIu64 ": short frame", c->next_seq);
    size_t len = spool_head_body_len(head);
    if (len == SIZE_MAX || spool_le_get(head + 8, 8) != c->next_seq)
        return err_set(err, STATUS_CORRUPT, "spool record %" PRIu64 ": bad frame", c->next_seq);
    if (body) {
        buf_clear(body);
        if (!buf_reserve(body, len))
            return err_set(err, STATUS_NO_MEMORY, "spool record %" PRIu64 ": %zu bytes",
                           c->next_seq, len);
        if (pread(c->fd, body->data, len, (off_t)(c->offset + sizeof(head))) != (ssize_t)len ||
            spool_head_crc(head, body->data, len) != spool_le_get(head + 16, 4))
            return err_set(err, STATUS_CORRUPT, "spool record %" PRIu64 ": checksum does not match",
                           c->next_seq);
        body->len = len;
        body->data[len] = '\0';
    }
    c->offset += sizeof(head) + len;
    c->next_seq++;
    return STATUS_OK;
}

enum status spool_cursor_open(struct spool_cursor *c, struct spool *s, uint64_t seq,
                              struct errtext *err)
{
    *c = (struct spool_cursor){.spool = s, .fd = -1};
    uint64_t durable = spool_durable_seq(s);
    uint64_t first = seq >= 1 && seq <= durable + 1 ? segment_of(s, seq) : 0;
    if (!first && seq == durable + 1) {
        c->next_seq = seq; /* empty log: positioned before its first record */
        return STATUS_OK;
    }
    if (!first)
        return err_set(err, STATUS_NOT_FOUND,
                       "spool record %" PRIu64 ": not kept (have %" PRIu64 " to %" PRIu64 ")", seq,
                       spool_first_seq(s), durable);
    enum status st = cursor_switch(c, first, err);
    while (!st && c->next_seq < seq)
        st = read_frame(c, NULL, err);
    if (st)
        spool_cursor_close(c);
    return st;
}

enum status spool_cursor_next(struct spool_cursor *c, uint64_t *seq, struct buf *body,
                              struct errtext *err)
{
    if (c->next_seq > spool_durable_seq(c->spool))
        return STATUS_NOT_FOUND;
    uint64_t first = segment_of(c->spool, c->next_seq);
    if (c->fd < 0 || first != c->segment_first) {
        uint64_t want = c->next_seq;
        enum status st = first == want ? cursor_switch(c, first, err)
                                       : err_set(err, STATUS_CORRUPT,
                                                 "spool record %" PRIu64 ": no segment", want);
        if (st)
            return st;
    }
    *seq = c->next_seq;
    return read_frame(c, body, err);
}

void spool_cursor_close(struct spool_cursor *c)
{
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
}
