/* The owner keeps the newest segment open for appending; the segment list and the durable mark are
 * what readers share with it, under one lock. Frames gather in memory and are written at once: what
 * costs is the sync, and one write of a group beside it is nearly free. */
#include "server/spool/spool.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/mem.h"
#include "server/spool/spool_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PROBE_BYTES (64u << 10)

void spool_close(struct spool *s)
{
    if (!s)
        return;
    if (s->fd >= 0)
        close(s->fd);
    if (s->mark_fd >= 0)
        close(s->mark_fd);
    pthread_mutex_destroy(&s->lock);
    buf_fini(&s->pending);
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

uint64_t spool_final_seq(struct spool *s)
{
    pthread_mutex_lock(&s->lock);
    uint64_t v = s->final_seq;
    pthread_mutex_unlock(&s->lock);
    return v;
}

uint64_t spool_whole_seq(struct spool *s)
{
    pthread_mutex_lock(&s->lock);
    uint64_t v = s->segment_count ? s->segment[s->segment_count - 1].first_seq - 1 : 0;
    pthread_mutex_unlock(&s->lock);
    return v;
}

void spool_note_final(struct spool *s, uint64_t seq)
{
    pthread_mutex_lock(&s->lock);
    s->final_seq = MAX(s->final_seq, MIN(seq, s->durable_seq));
    pthread_mutex_unlock(&s->lock);
}

enum status spool_check_used(const struct spool *s, uint64_t used, const char *source,
                             struct errtext *err)
{
    if (used < s->next_seq)
        return STATUS_OK;
    return err_set(err, STATUS_CONFLICT,
                   "spool %s: ends at record %" PRIu64 ", but %s knows %" PRIu64
                   ": an old copy was restored, or another server has this lane. Restore the "
                   "newest spool, or see with `residual lane void --upto %" PRIu64
                   "` what is lost; no number is signed twice",
                   s->dir, s->next_seq - 1, source, used, used);
}

/* ---- append ---- */

static enum status refuse_broken(const struct spool *s, struct errtext *err)
{
    return err_set(err, STATUS_IO,
                   "spool %s: an earlier sync failed; restart the server to recover it", s->dir);
}

static enum status sync_fd(struct spool *s, struct errtext *err)
{
    if (s->fd >= 0 && fdatasync(s->fd) != 0) {
        s->broken = true;
        return spool_io_error(s->dir, "fdatasync", err);
    }
    return STATUS_OK;
}

/* Write all or cut back to `before`. */
static enum status write_all(struct spool *s, uint64_t before, const void *data, size_t len,
                             struct errtext *err)
{
    size_t done = 0;
    while (done < len) {
        ssize_t n = write(s->fd, (const char *)data + done, len - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            enum status st = spool_io_error(s->dir, "write", err);
            if (ftruncate(s->fd, (off_t)before) != 0)
                s->broken = true;
            return st;
        }
        done += (size_t)n;
    }
    s->unsynced = true;
    return STATUS_OK;
}

/* The newest segment gets its footer. */
static enum status end_segment(struct spool *s, struct errtext *err)
{
    uint8_t footer[SPOOL_FOOTER_BYTES];
    struct segment *newest = s->segment_count ? &s->segment[s->segment_count - 1] : NULL;
    if (!newest || newest->whole)
        return STATUS_OK;
    spool_footer_put(footer, s->next_seq - 1, newest->bytes);
    enum status st = write_all(s, newest->bytes, footer, sizeof(footer), err);
    if (!st)
        st = sync_fd(s, err);
    newest->whole = !st;
    return st;
}

static enum status start_segment(struct spool *s, struct errtext *err)
{
    char path[PATH_MAX];
    enum status st = end_segment(s, err);
    if (st)
        return st;
    spool_segment_path(s->dir, s->next_seq, path);
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return spool_io_error(path, "create", err);
    int dir = open(s->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0 || fsync(dir) != 0) {
        st = spool_io_error(s->dir, "fsync of the folder", err);
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
    spool_push_segment(s, s->next_seq);
    pthread_mutex_unlock(&s->lock);
    return STATUS_OK;
}

/* Segments begin only where nothing is pending, so that a flush writes into one file. */
static enum status choose_segment(struct spool *s, size_t frame_len, struct errtext *err)
{
    const struct segment *newest = s->segment_count ? &s->segment[s->segment_count - 1] : NULL;
    if (s->pending.len > 0)
        return STATUS_OK;
    bool is_full = newest && newest->bytes + frame_len > s->segment_bytes_max && newest->bytes > 0;
    return !newest || newest->whole || is_full ? start_segment(s, err) : STATUS_OK;
}

enum status spool_append(struct spool *s, uint64_t seq, const void *body, size_t len,
                         struct errtext *err)
{
    CHECK(seq == s->next_seq);
    if (s->broken)
        return refuse_broken(s, err);
    if (len > SPOOL_BODY_BYTES_MAX)
        return err_set(err, STATUS_TOO_LARGE, "spool record of %zu bytes, at most %u", len,
                       SPOOL_BODY_BYTES_MAX);
    size_t frame_len = SPOOL_FRAME_HEAD_BYTES + len;
    uint64_t used = spool_bytes(s) + s->pending.len;
    if (used + frame_len > s->bytes_max)
        return err_set(err, STATUS_FULL,
                       "spool %s: %" PRIu64 " of %" PRIu64 " bytes used (spool_bytes_max)", s->dir,
                       used, s->bytes_max);
    if (s->pending.len + frame_len > SPOOL_PENDING_BYTES_MAX)
        return err_set(err, STATUS_FULL, "spool %s: more than %u bytes in one group", s->dir,
                       SPOOL_PENDING_BYTES_MAX);
    enum status st = choose_segment(s, frame_len, err);
    if (st)
        return st;
    if (!buf_reserve(&s->pending, frame_len))
        return err_set(err, STATUS_NO_MEMORY, "spool record of %zu bytes", len);
    spool_frame_put(&s->pending, seq, body, len);
    s->next_seq++;
    return STATUS_OK;
}

enum status spool_flush(struct spool *s, struct errtext *err)
{
    if (s->broken)
        return refuse_broken(s, err);
    if (s->pending.len == 0)
        return STATUS_OK;
    struct segment *newest = &s->segment[s->segment_count - 1];
    enum status st = write_all(s, newest->bytes, s->pending.data, s->pending.len, err);
    if (st) {
        s->next_seq = s->flushed_next;
    } else {
        pthread_mutex_lock(&s->lock);
        newest->bytes += s->pending.len;
        newest->since_ns = clock_mono_ns();
        newest->age_ns_at_open = 0;
        s->bytes += s->pending.len;
        if (s->is_cache)
            s->durable_seq = s->next_seq - 1;
        pthread_mutex_unlock(&s->lock);
        s->flushed_next = s->next_seq;
    }
    buf_clear(&s->pending);
    return st;
}

/* The mark, with what is durable by now and what may go. */
static enum status renew_mark(struct spool *s, uint64_t used, uint64_t first, struct errtext *err)
{
    if (s->is_cache)
        return STATUS_OK;
    s->promise.used = used;
    s->promise.final = spool_final_seq(s);
    s->promise.first = MAX(s->promise.first, first);
    enum status st = spool_mark_write(s->dir, s->mark_fd, &s->promise, err);
    s->broken |= st != STATUS_OK;
    return st;
}

enum status spool_sync(struct spool *s, struct errtext *err)
{
    enum status st = spool_flush(s, err);
    if (st || !s->unsynced)
        return st;
    st = sync_fd(s, err);
    if (!st)
        st = renew_mark(s, s->flushed_next - 1, 0, err);
    if (st)
        return st;
    s->unsynced = false;
    pthread_mutex_lock(&s->lock);
    s->durable_seq = s->flushed_next - 1;
    pthread_mutex_unlock(&s->lock);
    return STATUS_OK;
}

enum status spool_probe(struct spool *s, struct errtext *err)
{
    static const char zeros[PROBE_BYTES];
    char path[PATH_MAX];
    if (s->broken)
        return refuse_broken(s, err);
    snprintf(path, sizeof(path), "%s/probe", s->dir);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return spool_io_error(s->dir, "write", err);
    ssize_t n = write(fd, zeros, sizeof(zeros));
    if (n >= 0 && n < (ssize_t)sizeof(zeros))
        errno = ENOSPC;
    bool good = n == (ssize_t)sizeof(zeros) && fdatasync(fd) == 0;
    enum status st = good ? STATUS_OK : spool_io_error(s->dir, "write", err);
    close(fd);
    unlink(path);
    return st;
}

/* ---- trimming ---- */

/* May the oldest segment go? *next: where the spool begins then. Ages are monotonic since the
 * start: a clock that jumps neither deletes nor keeps. */
static bool may_trim(struct spool *s, const struct spool_keep *keep, uint64_t *next)
{
    pthread_mutex_lock(&s->lock);
    uint64_t seq_max = MIN(keep->seq_max, keep->any ? s->durable_seq : s->final_seq);
    bool yes = s->segment_count >= 2 && s->segment[1].first_seq - 1 <= seq_max;
    if (yes) {
        const struct segment *oldest = &s->segment[0];
        uint64_t age_ns = oldest->age_ns_at_open + (clock_mono_ns() - oldest->since_ns);
        *next = s->segment[1].first_seq;
        yes = s->bytes > keep->bytes_full || (age_ns / 1000000000u >= keep->age_s_min &&
                                              s->bytes - oldest->bytes >= keep->bytes_min);
    }
    pthread_mutex_unlock(&s->lock);
    return yes;
}

void spool_trim(struct spool *s, const struct spool_keep *keep)
{
    char path[PATH_MAX];
    uint64_t next;
    while (!s->broken && may_trim(s, keep, &next)) {
        if (renew_mark(s, s->promise.used, next, NULL))
            return;
        spool_segment_path(s->dir, s->segment[0].first_seq, path);
        if (unlink(path) != 0 && errno != ENOENT)
            return;
        pthread_mutex_lock(&s->lock);
        s->bytes -= s->segment[0].bytes;
        s->segment_count--;
        memmove(s->segment, s->segment + 1, s->segment_count * sizeof(*s->segment));
        pthread_mutex_unlock(&s->lock);
    }
}
