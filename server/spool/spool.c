/* The owner keeps the newest segment open for appending; the segment list and the
 * durable mark are what readers share with it, under one lock. A reader opens segments by their
 * name and never sees past the durable mark, so it can read with plain pread beside the writer. */
#include "server/spool/spool.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/spool/crc32c.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SPOOL_MAGIC        0x31505352u /* "RSP1" */
#define SPOOL_SEGMENTS_MAX 65536u
#define PROBE_BYTES        (64u << 10)

struct segment {
    uint64_t first_seq, bytes;
};

struct spool {
    char dir[PATH_MAX - 64];
    uint64_t segment_bytes_max, bytes_max;
    int fd; /* newest segment, or -1 before the first append */
    uint64_t next_seq;
    bool broken;             /* a sync failed: what is on disk is unknown */
    pthread_mutex_t lock;    /* below */
    struct segment *segment; /* ascending */
    size_t segment_count, segment_cap;
    uint64_t durable_seq, bytes;
};

/* ---- frames ---- */

static void le_put(uint8_t *out, uint64_t v, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (uint8_t)(v >> (8 * i));
}

static uint64_t le_get(const uint8_t *in, size_t n)
{
    uint64_t v = 0;
    for (size_t i = 0; i < n; i++)
        v |= (uint64_t)in[i] << (8 * i);
    return v;
}

static uint32_t frame_crc(const uint8_t head[SPOOL_FRAME_HEAD_BYTES], const void *body, size_t len)
{
    return crc32c(crc32c(0, head + 4, 12), body, len);
}

static void frame_head(uint8_t head[SPOOL_FRAME_HEAD_BYTES], uint64_t seq, const void *body,
                       size_t len)
{
    le_put(head, SPOOL_MAGIC, 4);
    le_put(head + 4, len, 4);
    le_put(head + 8, seq, 8);
    le_put(head + 16, frame_crc(head, body, len), 4);
}

/* Body length of a frame head, or SIZE_MAX if it cannot be one. */
static size_t head_body_len(const uint8_t head[SPOOL_FRAME_HEAD_BYTES])
{
    size_t len = (size_t)le_get(head + 4, 4);
    return le_get(head, 4) == SPOOL_MAGIC && len <= SPOOL_BODY_BYTES_MAX ? len : SIZE_MAX;
}

size_t spool_frame_parse(const void *data, size_t len, uint64_t *seq, const uint8_t **body,
                         size_t *body_len)
{
    const uint8_t *p = data;
    if (len < SPOOL_FRAME_HEAD_BYTES)
        return 0;
    size_t n = head_body_len(p);
    if (n == SIZE_MAX || n > len - SPOOL_FRAME_HEAD_BYTES)
        return 0;
    if (le_get(p + 16, 4) != frame_crc(p, p + SPOOL_FRAME_HEAD_BYTES, n))
        return 0;
    *seq = le_get(p + 8, 8);
    *body = p + SPOOL_FRAME_HEAD_BYTES;
    *body_len = n;
    return SPOOL_FRAME_HEAD_BYTES + n;
}

void spool_frame_put(struct buf *out, uint64_t seq, const void *body, size_t len)
{
    uint8_t head[SPOOL_FRAME_HEAD_BYTES];
    frame_head(head, seq, body, len);
    buf_put(out, head, sizeof(head));
    buf_put(out, body, len);
}

/* ---- recovery ---- */

static void segment_path(const struct spool *s, uint64_t first_seq, char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "%s/seg-%020" PRIu64 ".log", s->dir, first_seq);
}

static enum status io_error(const char *path, const char *what, struct errtext *err)
{
    enum status st = errno == ENOSPC || errno == EDQUOT ? STATUS_FULL : STATUS_IO;
    return err_set(err, st, "spool %s: %s: %s", path, what, strerror(errno));
}

static int compare_segments(const void *a, const void *b)
{
    uint64_t x = ((const struct segment *)a)->first_seq, y = ((const struct segment *)b)->first_seq;
    return x < y ? -1 : x > y;
}

static void push_segment(struct spool *s, uint64_t first_seq)
{
    if (s->segment_count == s->segment_cap) {
        size_t cap = s->segment_cap ? 2 * s->segment_cap : 16;
        struct segment *grown = mem_try_realloc(s->segment, cap * sizeof(*grown));
        CHECK(grown);
        s->segment = grown;
        s->segment_cap = cap;
    }
    s->segment[s->segment_count++] = (struct segment){.first_seq = first_seq};
}

static enum status list_segments(struct spool *s, struct errtext *err)
{
    DIR *d = opendir(s->dir);
    if (!d)
        return io_error(s->dir, "open folder", err);
    for (struct dirent *e; (e = readdir(d));) {
        uint64_t first;
        int end = 0;
        if (sscanf(e->d_name, "seg-%20" SCNu64 ".log%n", &first, &end) != 1 || end == 0 ||
            e->d_name[end] != '\0' || first == 0)
            continue;
        if (s->segment_count == SPOOL_SEGMENTS_MAX) {
            closedir(d);
            return err_set(err, STATUS_TOO_LARGE, "spool %s: more than %u segments", s->dir,
                           SPOOL_SEGMENTS_MAX);
        }
        push_segment(s, first);
    }
    closedir(d);
    if (s->segment_count)
        qsort(s->segment, s->segment_count, sizeof(*s->segment), compare_segments);
    return STATUS_OK;
}

/* Walk the frames of data from seq *next; returns the bytes of the good prefix. */
static size_t walk_frames(const char *data, size_t len, uint64_t *next)
{
    size_t at = 0;
    for (;;) {
        uint64_t seq;
        const uint8_t *body;
        size_t body_len;
        size_t n = spool_frame_parse(data + at, len - at, &seq, &body, &body_len);
        if (n == 0 || seq != *next)
            return at;
        at += n;
        (*next)++;
    }
}

static enum status recover_segment(struct spool *s, size_t idx, struct errtext *err)
{
    char path[PATH_MAX], *data;
    size_t len;
    bool newest = idx + 1 == s->segment_count;
    struct segment *seg = &s->segment[idx];
    segment_path(s, seg->first_seq, path);
    enum status st =
        file_read(path, s->segment_bytes_max + 2 * (size_t)SPOOL_BODY_BYTES_MAX, &data, &len, err);
    if (st)
        return st;
    uint64_t next = seg->first_seq;
    size_t good = walk_frames(data, len, &next);
    mem_free(data);
    if (good < len && !newest)
        return err_set(err, STATUS_CORRUPT,
                       "spool %s: damaged at byte %zu (record %" PRIu64
                       "), and later segments exist: restore the file "
                       "from the archive or the chain's holders",
                       path, good, next);
    if (!newest && next != s->segment[idx + 1].first_seq)
        return err_set(err, STATUS_CORRUPT,
                       "spool %s: ends before record %" PRIu64
                       ", the next segment begins at %" PRIu64,
                       path, next, s->segment[idx + 1].first_seq);
    if (good < len && truncate(path, (off_t)good) != 0)
        return io_error(path, "cut the torn tail", err);
    seg->bytes = good;
    s->bytes += good;
    s->next_seq = next;
    return STATUS_OK;
}

static enum status open_newest(struct spool *s, struct errtext *err)
{
    char path[PATH_MAX];
    if (s->segment_count == 0)
        return STATUS_OK;
    segment_path(s, s->segment[s->segment_count - 1].first_seq, path);
    s->fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (s->fd < 0)
        return io_error(path, "open", err);
    return fsync(s->fd) == 0 ? STATUS_OK : io_error(path, "fsync", err);
}

enum status spool_open(struct spool **out, const struct spool_options *opt, struct errtext *err)
{
    *out = NULL;
    struct spool *s = mem_alloc(sizeof(*s));
    s->fd = -1;
    s->next_seq = 1;
    s->segment_bytes_max = opt->segment_bytes_max;
    s->bytes_max = opt->bytes_max;
    CHECK(pthread_mutex_init(&s->lock, NULL) == 0);
    enum status st = STATUS_OK;
    if ((size_t)snprintf(s->dir, sizeof(s->dir), "%s", opt->dir) >= sizeof(s->dir))
        st = err_set(err, STATUS_INVALID, "spool folder: path longer than %zu bytes",
                     sizeof(s->dir) - 1);
    if (!st)
        st = file_mkdirs(s->dir, 0700, err);
    if (!st)
        st = list_segments(s, err);
    for (size_t i = 0; !st && i < s->segment_count; i++)
        st = recover_segment(s, i, err);
    if (!st)
        st = open_newest(s, err);
    if (st) {
        spool_close(s);
        return st;
    }
    s->durable_seq = s->next_seq - 1;
    *out = s;
    return STATUS_OK;
}

void spool_close(struct spool *s)
{
    if (!s)
        return;
    if (s->fd >= 0)
        close(s->fd);
    pthread_mutex_destroy(&s->lock);
    mem_free(s->segment);
    mem_free(s);
}

/* ---- marks ---- */

uint64_t spool_next_seq(const struct spool *s)
{
    return s->next_seq;
}

uint64_t spool_durable_seq(struct spool *s)
{
    pthread_mutex_lock(&s->lock);
    uint64_t v = s->durable_seq;
    pthread_mutex_unlock(&s->lock);
    return v;
}

uint64_t spool_first_seq(struct spool *s)
{
    pthread_mutex_lock(&s->lock);
    uint64_t v = s->segment_count ? s->segment[0].first_seq : s->durable_seq + 1;
    pthread_mutex_unlock(&s->lock);
    return v;
}

uint64_t spool_bytes(struct spool *s)
{
    pthread_mutex_lock(&s->lock);
    uint64_t v = s->bytes;
    pthread_mutex_unlock(&s->lock);
    return v;
}

/* ---- append ---- */

static enum status sync_fd(struct spool *s, struct errtext *err)
{
    if (s->fd >= 0 && fdatasync(s->fd) != 0) {
        s->broken = true;
        return io_error(s->dir, "fdatasync", err);
    }
    return STATUS_OK;
}

static enum status start_segment(struct spool *s, uint64_t first_seq, struct errtext *err)
{
    char path[PATH_MAX];
    enum status st = sync_fd(s, err);
    if (st)
        return st;
    segment_path(s, first_seq, path);
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return io_error(path, "create", err);
    int dir = open(s->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0 || fsync(dir) != 0) {
        st = io_error(s->dir, "fsync of the folder", err);
        close(fd);
        (void)unlink(path);
    }
    if (dir >= 0)
        close(dir);
    if (st)
        return st;
    if (s->fd >= 0)
        close(s->fd);
    s->fd = fd;
    pthread_mutex_lock(&s->lock);
    push_segment(s, first_seq);
    pthread_mutex_unlock(&s->lock);
    return STATUS_OK;
}

/* Write all or cut back to `before`. */
static enum status write_frame(struct spool *s, uint64_t before, const uint8_t *frame, size_t len,
                               struct errtext *err)
{
    size_t done = 0;
    while (done < len) {
        ssize_t n = write(s->fd, frame + done, len - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            enum status st = io_error(s->dir, "write", err);
            if (ftruncate(s->fd, (off_t)before) != 0)
                s->broken = true;
            return st;
        }
        done += (size_t)n;
    }
    return STATUS_OK;
}

enum status spool_append(struct spool *s, uint64_t seq, const void *body, size_t len,
                         struct errtext *err)
{
    CHECK(seq == s->next_seq);
    if (s->broken)
        return err_set(err, STATUS_IO,
                       "spool %s: an earlier sync failed; restart the server to recover it",
                       s->dir);
    if (len > SPOOL_BODY_BYTES_MAX)
        return err_set(err, STATUS_TOO_LARGE, "spool record of %zu bytes, at most %u", len,
                       SPOOL_BODY_BYTES_MAX);
    size_t frame_len = SPOOL_FRAME_HEAD_BYTES + len;
    if (spool_bytes(s) + frame_len > s->bytes_max)
        return err_set(err, STATUS_FULL,
                       "spool %s: %" PRIu64 " of %" PRIu64 " bytes used (spool_bytes_max)", s->dir,
                       spool_bytes(s), s->bytes_max);
    struct segment *newest = s->segment_count ? &s->segment[s->segment_count - 1] : NULL;
    if (!newest || (newest->bytes + frame_len > s->segment_bytes_max && newest->bytes > 0)) {
        enum status st = start_segment(s, seq, err);
        if (st)
            return st;
        newest = &s->segment[s->segment_count - 1];
    }
    uint8_t *frame = mem_alloc(frame_len);
    frame_head(frame, seq, body, len);
    memcpy(frame + SPOOL_FRAME_HEAD_BYTES, body, len);
    enum status st = write_frame(s, newest->bytes, frame, frame_len, err);
    mem_free(frame);
    if (st)
        return st;
    pthread_mutex_lock(&s->lock);
    newest->bytes += frame_len;
    s->bytes += frame_len;
    pthread_mutex_unlock(&s->lock);
    s->next_seq++;
    return STATUS_OK;
}

enum status spool_sync(struct spool *s, struct errtext *err)
{
    if (s->broken)
        return err_set(err, STATUS_IO,
                       "spool %s: an earlier sync failed; restart the server to recover it",
                       s->dir);
    enum status st = sync_fd(s, err);
    if (st)
        return st;
    pthread_mutex_lock(&s->lock);
    s->durable_seq = s->next_seq - 1;
    pthread_mutex_unlock(&s->lock);
    return STATUS_OK;
}

enum status spool_probe(struct spool *s, struct errtext *err)
{
    static const char zeros[PROBE_BYTES];
    char path[PATH_MAX];
    if (s->broken)
        return err_set(err, STATUS_IO,
                       "spool %s: an earlier sync failed; restart the server to recover it",
                       s->dir);
    snprintf(path, sizeof(path), "%s/probe", s->dir);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return io_error(s->dir, "write", err);
    ssize_t n = write(fd, zeros, sizeof(zeros));
    if (n >= 0 && n < (ssize_t)sizeof(zeros))
        errno = ENOSPC;
    bool good = n == (ssize_t)sizeof(zeros) && fdatasync(fd) == 0;
    enum status st = good ? STATUS_OK : io_error(s->dir, "write", err);
    close(fd);
    unlink(path);
    return st;
}

void spool_trim(struct spool *s, uint64_t final_seq, uint64_t age_s_min)
{
    char path[PATH_MAX];
    for (;;) {
        struct stat sb;
        pthread_mutex_lock(&s->lock);
        bool whole = s->segment_count >= 2 && s->segment[1].first_seq - 1 <= final_seq;
        struct segment oldest = s->segment_count ? s->segment[0] : (struct segment){0};
        pthread_mutex_unlock(&s->lock);
        if (!whole)
            return;
        segment_path(s, oldest.first_seq, path);
        if (stat(path, &sb) != 0 || (uint64_t)time(NULL) < (uint64_t)sb.st_mtime + age_s_min ||
            unlink(path) != 0)
            return;
        pthread_mutex_lock(&s->lock);
        s->bytes -= oldest.bytes;
        s->segment_count--;
        memmove(s->segment, s->segment + 1, s->segment_count * sizeof(*s->segment));
        pthread_mutex_unlock(&s->lock);
    }
}

/* ---- reading ---- */

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
    segment_path(c->spool, first_seq, path);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? err_set(err, STATUS_NOT_FOUND,
                                         "spool record %" PRIu64 " is trimmed", first_seq)
                               : io_error(path, "open", err);
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
    size_t len = head_body_len(head);
    if (len == SIZE_MAX || le_get(head + 8, 8) != c->next_seq)
        return err_set(err, STATUS_CORRUPT, "spool record %" PRIu64 ": bad frame", c->next_seq);
    if (body) {
        buf_clear(body);
        if (!buf_reserve(body, len))
            return err_set(err, STATUS_NO_MEMORY, "spool record %" PRIu64 ": %zu bytes",
                           c->next_seq, len);
        if (pread(c->fd, body->data, len, (off_t)(c->offset + sizeof(head))) != (ssize_t)len ||
            frame_crc(head, body->data, len) != le_get(head + 16, 4))
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
