/* Start of a spool. The mark says which numbers were promised: what is torn behind it is cut, what
 * is missing before it stops the start. Whole segments of final records are not read. */
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/file.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/base/order.h"
#include "server/spool/spool_impl.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void spool_segment_path(const char *dir, uint64_t first_seq, char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "%s/seg-%020" PRIu64 ".log", dir, first_seq);
}

enum status spool_io_error(const char *path, const char *what, struct errtext *err)
{
    enum status st = errno == ENOSPC || errno == EDQUOT ? STATUS_FULL : STATUS_IO;
    return err_set(err, st, "spool %s: %s: %s", path, what, strerror(errno));
}

void spool_push_segment(struct spool *s, uint64_t first_seq)
{
    if (s->segment_count == s->segment_cap) {
        size_t cap = s->segment_cap ? 2 * s->segment_cap : 16;
        struct segment *grown = mem_try_realloc(s->segment, cap * sizeof(*grown));
        CHECK(grown);
        s->segment = grown;
        s->segment_cap = cap;
    }
    s->segment[s->segment_count++] =
        (struct segment){.first_seq = first_seq, .since_ns = clock_mono_ns()};
}

/* ---- the folder ---- */

/* 0: not the name of a segment */
static uint64_t name_seq(const char *name)
{
    uint64_t first;
    int end = 0;
    bool good = sscanf(name, "seg-%20" SCNu64 ".log%n", &first, &end) == 1 && end > 0 && !name[end];
    return good ? first : 0;
}

enum status spool_list(const char *dir, uint64_t **first, size_t *count, struct errtext *err)
{
    *count = 0;
    *first = NULL;
    DIR *d = opendir(dir);
    if (!d)
        return spool_io_error(dir, "open folder", err);
    uint64_t *list = mem_array(SPOOL_SEGMENTS_MAX, sizeof(*list));
    for (struct dirent *e; (e = readdir(d));) {
        uint64_t seq = name_seq(e->d_name);
        if (seq && *count == SPOOL_SEGMENTS_MAX) {
            closedir(d);
            mem_free(list);
            return err_set(err, STATUS_TOO_LARGE, "spool %s: more than %u segments", dir,
                           SPOOL_SEGMENTS_MAX);
        }
        if (seq)
            list[(*count)++] = seq;
    }
    closedir(d);
    qsort(list, *count, sizeof(*list), order_u64);
    *first = list;
    return STATUS_OK;
}

static enum status list_segments(struct spool *s, struct errtext *err)
{
    uint64_t *first;
    size_t count;
    enum status st = spool_list(s->dir, &first, &count, err);
    for (size_t i = 0; i < count; i++)
        spool_push_segment(s, first[i]);
    mem_free(first);
    return st;
}

/* ---- one segment ---- */

size_t spool_walk(const uint8_t *data, size_t len, uint64_t *next)
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

/* Says what cannot be read from record `next` at byte `good` on, and what can behind it. */
static enum status refuse_damage(const char *path, const uint8_t *data, size_t len, size_t good,
                                 uint64_t next, struct errtext *err)
{
    uint64_t behind = 0, first_behind = 0, seq = next;
    size_t at = spool_find_frame(data, len, good, next, &seq);
    while (at < len) {
        first_behind = behind ? first_behind : seq;
        behind++;
        at = spool_find_frame(data, len, at + SPOOL_FRAME_HEAD_BYTES, seq + 1, &seq);
    }
    if (!behind)
        return err_set(err, STATUS_CORRUPT,
                       "spool %s: damaged at byte %zu: records from %" PRIu64
                       " on cannot be read, and their receipts have left" SPOOL_WAY_OUT,
                       path, good, next);
    return err_set(err, STATUS_CORRUPT,
                   "spool %s: damaged at byte %zu: %" PRIu64 " records from %" PRIu64
                   " on cannot be read, %" PRIu64 " behind them can" SPOOL_WAY_OUT,
                   path, good, first_behind - next, next, behind);
}

/* A cache owes nothing: the segments from idx on, but for its first `bytes`, go. */
static enum status drop_from(struct spool *s, size_t idx, uint64_t bytes, struct errtext *err)
{
    char path[PATH_MAX];
    for (size_t i = idx + 1; i < s->segment_count; i++) {
        spool_segment_path(s->dir, s->segment[i].first_seq, path);
        (void)unlink(path);
    }
    s->segment_count = idx + 1;
    spool_segment_path(s->dir, s->segment[idx].first_seq, path);
    return truncate(path, (off_t)bytes) == 0 ? STATUS_OK
                                             : spool_io_error(path, "cut what is damaged", err);
}

/* What follows the good frames: nothing, a footer, a torn tail, or damage. */
static enum status judge_end(struct spool *s, size_t idx, const uint8_t *data, size_t len,
                             size_t good, struct errtext *err)
{
    char path[PATH_MAX];
    struct segment *seg = &s->segment[idx];
    bool newest = idx + 1 == s->segment_count;
    uint64_t last, bytes, next = s->next_seq;
    spool_segment_path(s->dir, seg->first_seq, path);
    seg->whole = len - good == SPOOL_FOOTER_BYTES && spool_footer_parse(data + good, &last, &bytes);
    bool ends = newest ? good == len || seg->whole : next == s->segment[idx + 1].first_seq;
    if (ends)
        return STATUS_OK;
    if (s->is_cache)
        return drop_from(s, idx, good, err);
    if (good == len)
        return err_set(err, STATUS_CORRUPT,
                       "spool %s: ends before record %" PRIu64
                       ", the next segment begins at %" PRIu64 SPOOL_WAY_OUT,
                       path, next, s->segment[idx + 1].first_seq);
    if (!newest || next <= s->promise.used)
        return refuse_damage(path, data, len, good, next, err);
    log_warn("spool", "%s: %zu bytes behind record %" PRIu64 " were never released; cut", path,
             len - good, next - 1);
    return truncate(path, (off_t)good) == 0 ? STATUS_OK
                                            : spool_io_error(path, "cut the torn tail", err);
}

static enum status read_segment(struct spool *s, size_t idx, struct errtext *err)
{
    char path[PATH_MAX], *data;
    size_t len;
    struct segment *seg = &s->segment[idx];
    spool_segment_path(s->dir, seg->first_seq, path);
    enum status st = file_read(path, SPOOL_SEGMENT_READ_MAX, &data, &len, err);
    if (st)
        return st;
    s->next_seq = seg->first_seq;
    seg->bytes = spool_walk((const uint8_t *)data, len, &s->next_seq);
    st = judge_end(s, idx, (const uint8_t *)data, len, seg->bytes, err);
    mem_free(data);
    return st;
}

bool spool_footer_read(const char *dir, uint64_t first_seq, uint64_t *last, uint64_t *bytes)
{
    char path[PATH_MAX];
    uint8_t footer[SPOOL_FOOTER_BYTES];
    struct stat sb;
    spool_segment_path(dir, first_seq, path);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    const off_t n = (off_t)sizeof(footer);
    bool good = fstat(fd, &sb) == 0 && sb.st_size >= n &&
                pread(fd, footer, sizeof(footer), sb.st_size - n) == n &&
                spool_footer_parse(footer, last, bytes) && (off_t)*bytes + n == sb.st_size;
    close(fd);
    return good;
}

/* A whole segment of final records is known by its footer alone. */
static bool is_settled(struct spool *s, size_t idx)
{
    uint64_t last, bytes;
    struct segment *seg = &s->segment[idx];
    if (!spool_footer_read(s->dir, seg->first_seq, &last, &bytes) || last > s->promise.final ||
        last + 1 < seg->first_seq ||
        (idx + 1 < s->segment_count && s->segment[idx + 1].first_seq != last + 1))
        return false;
    seg->whole = true;
    seg->bytes = bytes;
    s->next_seq = last + 1;
    return true;
}

static void note_age(struct spool *s, struct segment *seg)
{
    char path[PATH_MAX];
    struct stat sb;
    uint64_t now_s = clock_wall_ms() / 1000;
    spool_segment_path(s->dir, seg->first_seq, path);
    if (stat(path, &sb) == 0 && sb.st_mtime >= 0 && (uint64_t)sb.st_mtime < now_s)
        seg->age_ns_at_open = (now_s - (uint64_t)sb.st_mtime) * 1000000000u;
}

/* ---- the whole ---- */

static enum status check_promise(const struct spool *s, struct errtext *err)
{
    const struct spool_promise *p = &s->promise;
    if (s->segment_count && s->segment[0].first_seq > MAX(p->first, 1))
        return err_set(err, STATUS_CORRUPT,
                       "spool %s: begins at record %" PRIu64 ", but records from %" PRIu64
                       " on were kept: a segment is missing" SPOOL_WAY_OUT,
                       s->dir, s->segment[0].first_seq, MAX(p->first, 1));
    if (s->next_seq <= p->used)
        return err_set(err, STATUS_CORRUPT,
                       "spool %s: ends at record %" PRIu64 ", but its mark says that %" PRIu64
                       " were signed: %" PRIu64 " records are lost" SPOOL_WAY_OUT,
                       s->dir, s->next_seq - 1, p->used, p->used + 1 - s->next_seq);
    return STATUS_OK;
}

static enum status open_mark(struct spool *s, struct errtext *err)
{
    struct errtext why = ERRTEXT_INIT;
    enum status st = spool_mark_open(s->dir, &s->mark_fd, &s->promise, &why);
    if (st == STATUS_NOT_FOUND && s->segment_count == 0)
        return spool_mark_create(s->dir, &s->mark_fd, &s->promise, err);
    if (st == STATUS_NOT_FOUND)
        return err_set(err, STATUS_CORRUPT,
                       "%s, so which numbers were signed is not known. Restore it from a copy, or "
                       "see with `residual lane void` what is there",
                       why.text);
    return st ? err_set(err, st, "%s", why.text) : STATUS_OK;
}

static enum status open_newest(struct spool *s, struct errtext *err)
{
    char path[PATH_MAX];
    if (s->segment_count == 0)
        return STATUS_OK;
    spool_segment_path(s->dir, s->segment[s->segment_count - 1].first_seq, path);
    s->fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (s->fd < 0)
        return spool_io_error(path, "open", err);
    return fsync(s->fd) == 0 ? STATUS_OK : spool_io_error(path, "fsync", err);
}

/* What is readable is promised from here on: it may have been shipped. */
static enum status promise_readable(struct spool *s, struct errtext *err)
{
    s->durable_seq = s->next_seq - 1;
    s->flushed_next = s->next_seq;
    s->final_seq = MIN(s->promise.final, s->durable_seq);
    if (s->is_cache || s->promise.used == s->durable_seq)
        return STATUS_OK;
    s->promise.used = s->durable_seq;
    return spool_mark_write(s->dir, s->mark_fd, &s->promise, err);
}

static enum status recover(struct spool *s, struct errtext *err)
{
    enum status st = list_segments(s, err);
    if (!st && !s->is_cache)
        st = open_mark(s, err);
    for (size_t i = 0; !st && i < s->segment_count; i++) {
        note_age(s, &s->segment[i]);
        if (s->is_cache || !is_settled(s, i))
            st = read_segment(s, i, err);
        s->bytes += s->segment[i].bytes;
    }
    if (!st && !s->is_cache)
        st = check_promise(s, err);
    if (!st)
        st = open_newest(s, err);
    return st ? st : promise_readable(s, err);
}

enum status spool_open(struct spool **out, const struct spool_options *opt, struct errtext *err)
{
    *out = NULL;
    struct spool *s = mem_alloc(sizeof(*s));
    s->fd = s->mark_fd = -1;
    s->next_seq = 1;
    s->segment_bytes_max = opt->segment_bytes_max;
    s->bytes_max = opt->bytes_max;
    s->is_cache = opt->is_cache;
    buf_init(&s->pending, SPOOL_PENDING_BYTES_MAX);
    CHECK(pthread_mutex_init(&s->lock, NULL) == 0);
    enum status st = STATUS_OK;
    if ((size_t)snprintf(s->dir, sizeof(s->dir), "%s", opt->dir) >= sizeof(s->dir))
        st = err_set(err, STATUS_INVALID, "spool folder: path longer than %zu bytes",
                     sizeof(s->dir) - 1);
    if (!st)
        st = file_mkdirs(s->dir, 0700, err);
    if (!st)
        st = recover(s, err);
    if (st)
        spool_close(s);
    else
        *out = s;
    return st;
}
