/* Live entries are a sorted array (infSeq -> place): appended in rising order,
 * found by bisection. */
#include "server/influence/jobstore.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/hex.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/base/order.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HEAD_BYTES      12u /* length, seq */
#define NONCE_BYTES     crypto_aead_xchacha20poly1305_ietf_NPUBBYTES
#define MAC_BYTES       crypto_aead_xchacha20poly1305_ietf_ABYTES
#define FILE_BYTES_MAX  (16u << 20)
#define ENTRY_BYTES_MAX (80u << 20)

struct job_place {
    uint64_t inf_seq, file, offset;
    uint32_t bytes; /* after the head */
    bool live;
};

struct jobstore {
    char dir[PATH_MAX - 64];
    uint8_t key[32];
    uint64_t bytes_max, live_bytes, live_count;
    struct job_place *place;
    size_t place_count, place_cap, place_first; /* before place_first all are erased */
    int fd;                                     /* newest file, -1: none */
    uint64_t file;                              /* its number */
    uint64_t file_bytes;
};

static void path_of(const struct jobstore *s, uint64_t file, char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "%s/jobs-%020" PRIu64 ".bin", s->dir, file);
}

/* Zero n bytes at offset, best effort: what stays is ciphertext that fails its check. */
static void zero_range(const char *path, uint64_t offset, uint32_t n)
{
    static const uint8_t zeros[4096];
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    for (uint32_t done = 0; done < n;) {
        uint32_t part = MIN(n - done, (uint32_t)sizeof(zeros));
        ssize_t wrote = pwrite(fd, zeros, part, (off_t)(offset + done));
        if (wrote <= 0)
            break;
        done += (uint32_t)wrote;
    }
    close(fd);
}

static enum status io_error(const struct jobstore *s, const char *what, struct errtext *err)
{
    return err_set(err, errno == ENOSPC || errno == EDQUOT ? STATUS_FULL : STATUS_IO,
                   "job store %s: %s: %s", s->dir, what, strerror(errno));
}

static void push_place(struct jobstore *s, struct job_place p)
{
    if (s->place_count == s->place_cap) {
        size_t cap = s->place_cap ? 2 * s->place_cap : 256;
        struct job_place *grown = mem_try_realloc(s->place, cap * sizeof(*grown));
        CHECK(grown);
        s->place = grown;
        s->place_cap = cap;
    }
    s->place[s->place_count++] = p;
    s->live_bytes += p.bytes;
    s->live_count++;
}

/* Drop the erased front of the array once it is the larger half. */
static void compact(struct jobstore *s)
{
    while (s->place_first < s->place_count && !s->place[s->place_first].live)
        s->place_first++;
    if (s->place_first < 1024 || s->place_first * 2 < s->place_count)
        return;
    s->place_count -= s->place_first;
    memmove(s->place, s->place + s->place_first, s->place_count * sizeof(*s->place));
    s->place_first = 0;
}

/* ---- open ---- */

struct opening {
    struct jobstore *s;
    jobstore_visit visit;
    void *arg;
};

static enum status visit_entry(const struct opening *o, const uint8_t *head, uint32_t bytes,
                               uint64_t seq)
{
    unsigned long long n;
    uint8_t *plain = mem_alloc(bytes);
    const uint8_t *body = head + HEAD_BYTES;
    enum status st = STATUS_CORRUPT;
    if (crypto_aead_xchacha20poly1305_ietf_decrypt(plain, &n, NULL, body + NONCE_BYTES,
                                                   bytes - NONCE_BYTES, head, HEAD_BYTES, body,
                                                   o->s->key) != 0)
        log_error("jobs", "%s: the job of record %" PRIu64 " fails its check; it is erased",
                  o->s->dir, seq);
    else
        st = o->visit(o->arg, seq, plain, (size_t)n, NULL);
    mem_wipe(plain, bytes);
    mem_free(plain);
    return st;
}

/* Walk one file; a torn or damaged tail is cut. A job that fails its check, or that nobody wants
 * any more, is erased: nothing private stays behind. */
static enum status open_file(const struct opening *o, uint64_t file, struct errtext *err)
{
    struct jobstore *s = o->s;
    char path[PATH_MAX], *data;
    size_t len, at = 0;
    path_of(s, file, path);
    enum status st =
        file_read(path, FILE_BYTES_MAX + ENTRY_BYTES_MAX + HEAD_BYTES, &data, &len, err);
    if (st)
        return st;
    const uint8_t *p = (const uint8_t *)data;
    bool any_live = false;
    while (len - at >= HEAD_BYTES) {
        uint32_t bytes = (uint32_t)be_get(p + at, 4);
        uint64_t seq = (uint64_t)be_get(p + at + 4, 8);
        if (bytes < NONCE_BYTES + MAC_BYTES || bytes > ENTRY_BYTES_MAX ||
            bytes > len - at - HEAD_BYTES)
            break;
        struct job_place place = {
            .inf_seq = seq, .file = file, .offset = at, .bytes = bytes, .live = true};
        bool is_erased = sodium_is_zero(p + at + HEAD_BYTES, bytes);
        bool is_wanted = !is_erased && visit_entry(o, p + at, bytes, seq) == STATUS_OK;
        if (is_wanted)
            push_place(s, place);
        else if (!is_erased)
            zero_range(path, at + HEAD_BYTES, bytes);
        any_live |= is_wanted;
        at += HEAD_BYTES + bytes;
    }
    mem_wipe(data, len);
    mem_free(data);
    if (at < len && truncate(path, (off_t)at) != 0)
        return io_error(s, "cut the torn tail", err);
    if (!any_live)
        (void)unlink(path);
    s->file = MAX(s->file, file);
    return STATUS_OK;
}

static enum status open_files(const struct opening *o, struct errtext *err)
{
    uint64_t *file = mem_array(65536, sizeof(*file));
    size_t count = 0;
    enum status st = STATUS_OK;
    DIR *d = opendir(o->s->dir);
    if (!d)
        st = io_error(o->s, "open folder", err);
    for (struct dirent *e; d && (e = readdir(d)) && count < 65536;) {
        int end = 0;
        if (sscanf(e->d_name, "jobs-%20" SCNu64 ".bin%n", &file[count], &end) == 1 && end > 0 &&
            !e->d_name[end])
            count++;
    }
    if (d)
        closedir(d);
    qsort(file, count, sizeof(*file), order_u64);
    for (size_t i = 0; !st && i < count; i++)
        st = open_file(o, file[i], err);
    mem_free(file);
    return st;
}

enum status jobstore_open(struct jobstore **out, const char *dir, const uint8_t key[32],
                          uint64_t bytes_max, jobstore_visit visit, void *arg, struct errtext *err)
{
    struct jobstore *s = mem_alloc(sizeof(*s));
    struct opening o = {.s = s, .visit = visit, .arg = arg};
    *out = NULL;
    s->fd = -1;
    s->bytes_max = bytes_max;
    memcpy(s->key, key, 32);
    snprintf(s->dir, sizeof(s->dir), "%s", dir);
    enum status st = file_mkdirs(dir, 0700, err);
    if (!st)
        st = open_files(&o, err);
    if (st)
        jobstore_close(s);
    else
        *out = s;
    return st;
}

void jobstore_close(struct jobstore *s)
{
    if (!s)
        return;
    if (s->fd >= 0)
        close(s->fd);
    mem_free(s->place);
    mem_wipe(s, sizeof(*s));
    mem_free(s);
}

/* ---- append, erase ---- */

static enum status next_file(struct jobstore *s, struct errtext *err)
{
    char path[PATH_MAX];
    if (s->fd >= 0 && s->file_bytes < FILE_BYTES_MAX)
        return STATUS_OK;
    enum status st = jobstore_sync(s, err);
    if (st)
        return st;
    path_of(s, s->file + 1, path);
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return io_error(s, "create", err);
    int dir = open(s->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir >= 0) {
        (void)fsync(dir);
        close(dir);
    }
    if (s->fd >= 0)
        close(s->fd);
    s->fd = fd;
    s->file++;
    s->file_bytes = 0;
    return STATUS_OK;
}

/* At the end of the newest file; cut back on failure. */
static enum status write_all(const struct jobstore *s, const uint8_t *data, size_t len,
                             struct errtext *err)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = pwrite(s->fd, data + done, len - done, (off_t)(s->file_bytes + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            enum status st = io_error(s, "write", err);
            (void)!ftruncate(s->fd, (off_t)s->file_bytes);
            return st;
        }
        done += (size_t)n;
    }
    return STATUS_OK;
}

enum status jobstore_append(struct jobstore *s, uint64_t inf_seq, const void *plain, size_t len,
                            struct errtext *err)
{
    size_t bytes = NONCE_BYTES + len + MAC_BYTES;
    if (bytes > ENTRY_BYTES_MAX || s->live_bytes + bytes > s->bytes_max)
        return err_set(err, STATUS_FULL,
                       "job store %s: %" PRIu64 " of %" PRIu64 " bytes used (score_bytes_max)",
                       s->dir, s->live_bytes, s->bytes_max);
    enum status st = next_file(s, err);
    if (st)
        return st;
    uint8_t *entry = mem_try_alloc(HEAD_BYTES + bytes);
    if (!entry)
        return err_set(err, STATUS_NO_MEMORY, "job store: no memory for %zu bytes", bytes);
    be_put(entry, bytes, 4);
    be_put(entry + 4, inf_seq, 8);
    uint8_t *nonce = entry + HEAD_BYTES;
    randombytes_buf(nonce, NONCE_BYTES);
    crypto_aead_xchacha20poly1305_ietf_encrypt(nonce + NONCE_BYTES, NULL, plain, len, entry,
                                               HEAD_BYTES, NULL, nonce, s->key);
    st = write_all(s, entry, HEAD_BYTES + bytes, err);
    if (!st) {
        push_place(s, (struct job_place){.inf_seq = inf_seq,
                                         .file = s->file,
                                         .offset = s->file_bytes,
                                         .bytes = (uint32_t)bytes,
                                         .live = true});
        s->file_bytes += HEAD_BYTES + bytes;
    }
    mem_free(entry);
    return st;
}

enum status jobstore_sync(struct jobstore *s, struct errtext *err)
{
    return s->fd < 0 || fdatasync(s->fd) == 0 ? STATUS_OK : io_error(s, "fdatasync", err);
}

static bool file_has_live(const struct jobstore *s, uint64_t file)
{
    for (size_t i = s->place_first; i < s->place_count && s->place[i].file <= file; i++) {
        if (s->place[i].file == file && s->place[i].live)
            return true;
    }
    return false;
}

static void zero_entry(const struct jobstore *s, const struct job_place *p)
{
    char path[PATH_MAX];
    path_of(s, p->file, path);
    if (p->file != s->file && !file_has_live(s, p->file)) {
        (void)unlink(path);
        return;
    }
    zero_range(path, p->offset + HEAD_BYTES, p->bytes);
}

void jobstore_erase(struct jobstore *s, uint64_t inf_seq)
{
    size_t lo = s->place_first, hi = s->place_count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (s->place[mid].inf_seq < inf_seq)
            lo = mid + 1;
        else
            hi = mid;
    }
    /* a number may stand twice: a job whose record could not be written was erased, then the number
     * was used again */
    while (lo < s->place_count && s->place[lo].inf_seq == inf_seq && !s->place[lo].live)
        lo++;
    if (lo == s->place_count || s->place[lo].inf_seq != inf_seq)
        return;
    s->place[lo].live = false;
    s->live_bytes -= s->place[lo].bytes;
    s->live_count--;
    zero_entry(s, &s->place[lo]);
    compact(s);
}

uint64_t jobstore_bytes(const struct jobstore *s)
{
    return s->live_bytes;
}

uint64_t jobstore_count(const struct jobstore *s)
{
    return s->live_count;
}
