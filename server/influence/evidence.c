/* A table from number to place with one slot for each of the newest numbers: a later answer takes
 * the slot of one that is EVIDENCE_PLACES older, so nothing has to be looked for. */
#include "server/influence/evidence.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/hex.h"
#include "server/base/log.h"
#include "server/base/mem.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define HEAD_BYTES  12u /* length, seq */
#define NONCE_BYTES crypto_aead_xchacha20poly1305_ietf_NPUBBYTES
#define MAC_BYTES   crypto_aead_xchacha20poly1305_ietf_ABYTES
#define KEY_LABEL   "residual.evidence.1"

struct evidence_place {
    uint64_t inf_seq, offset;
    uint32_t file, bytes; /* bytes: after the head; 0: none */
};

struct evidence {
    pthread_mutex_t lock; /* below */
    char dir[PATH_MAX - 64];
    uint8_t key[32];
    uint64_t bytes_max, bytes;
    struct evidence_place *place; /* [EVIDENCE_PLACES] */
    uint32_t first, file;         /* the oldest file and the newest, which is written */
    uint64_t file_bytes;
    int fd; /* of the newest, -1: none */
    uint64_t dropped;
    bool dropping; /* the last one was */
};

static void path_of(const struct evidence *e, uint32_t file, char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "%s/evidence-%010" PRIu32 ".bin", e->dir, file);
}

static enum status io_error(const struct evidence *e, const char *what, struct errtext *err)
{
    return err_set(err, errno == ENOSPC || errno == EDQUOT ? STATUS_FULL : STATUS_IO,
                   "evidence %s: %s: %s", e->dir, what, strerror(errno));
}

static struct evidence_place *slot_of(struct evidence *e, uint64_t inf_seq)
{
    return &e->place[inf_seq % EVIDENCE_PLACES];
}

static void note_place(struct evidence *e, const struct evidence_place *p)
{
    struct evidence_place *slot = slot_of(e, p->inf_seq);
    if (p->inf_seq >= slot->inf_seq)
        *slot = *p;
}

/* ---- open ---- */

/* Heads alone are read; where one cannot be, the file ends. */
static enum status scan_file(struct evidence *e, uint32_t file, struct errtext *err)
{
    char path[PATH_MAX];
    uint8_t head[HEAD_BYTES];
    uint64_t at = 0;
    path_of(e, file, path);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    off_t size = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
    if (size < 0) {
        enum status st = io_error(e, path, err);
        if (fd >= 0)
            close(fd);
        return st;
    }
    while (pread(fd, head, HEAD_BYTES, (off_t)at) == (ssize_t)HEAD_BYTES) {
        struct evidence_place p = {.inf_seq = (uint64_t)be_get(head + 4, 8),
                                   .offset = at,
                                   .file = file,
                                   .bytes = (uint32_t)be_get(head, 4)};
        if (p.bytes < NONCE_BYTES + MAC_BYTES || p.bytes > EVIDENCE_ENTRY_BYTES_MAX ||
            at + HEAD_BYTES + p.bytes > (uint64_t)size)
            break;
        note_place(e, &p);
        at += HEAD_BYTES + p.bytes;
    }
    enum status st = at < (uint64_t)size && ftruncate(fd, (off_t)at) != 0
                         ? io_error(e, "cut the torn tail", err)
                         : STATUS_OK;
    close(fd);
    e->bytes += at;
    e->file = file;
    e->file_bytes = at;
    return st;
}

static int compare_u32(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static enum status scan_files(struct evidence *e, struct errtext *err)
{
    uint32_t file[4 * EVIDENCE_FILES], count = 0;
    DIR *d = opendir(e->dir);
    for (struct dirent *entry; d && (entry = readdir(d)) && count < ARRAY_COUNT(file);) {
        int end = 0;
        if (sscanf(entry->d_name, "evidence-%10" SCNu32 ".bin%n", &file[count], &end) == 1 &&
            end > 0 && !entry->d_name[end])
            count++;
    }
    if (d)
        closedir(d);
    qsort(file, count, sizeof(*file), compare_u32);
    e->first = count ? file[0] : 1;
    enum status st = STATUS_OK;
    for (uint32_t i = 0; !st && i < count; i++)
        st = scan_file(e, file[i], err);
    return st;
}

enum status evidence_open(struct evidence **out, const char *dir, const uint8_t key[32],
                          uint64_t bytes_max, struct errtext *err)
{
    struct evidence *e = mem_alloc(sizeof(*e));
    *out = NULL;
    CHECK(pthread_mutex_init(&e->lock, NULL) == 0);
    e->fd = -1;
    e->bytes_max = bytes_max;
    e->place = mem_array(EVIDENCE_PLACES, sizeof(*e->place));
    CHECK(crypto_generichash(e->key, 32, (const uint8_t *)KEY_LABEL, strlen(KEY_LABEL), key, 32) ==
          0);
    snprintf(e->dir, sizeof(e->dir), "%s", dir);
    enum status st = file_mkdirs(dir, 0700, err);
    if (!st)
        st = scan_files(e, err);
    if (st)
        evidence_close(e);
    else
        *out = e;
    return st;
}

void evidence_close(struct evidence *e)
{
    if (!e)
        return;
    if (e->fd >= 0)
        close(e->fd);
    pthread_mutex_destroy(&e->lock);
    mem_free(e->place);
    mem_wipe(e, sizeof(*e));
    mem_free(e);
}

/* ---- append ---- */

/* The oldest files go until there is room; their places are void by their number. */
static void make_room(struct evidence *e, uint64_t more)
{
    char path[PATH_MAX];
    while (e->bytes + more > e->bytes_max && e->first <= e->file) {
        struct stat s = {0};
        path_of(e, e->first, path);
        if (stat(path, &s) == 0)
            (void)unlink(path);
        e->bytes -= MIN(e->bytes, (uint64_t)s.st_size);
        if (e->first == e->file && e->fd >= 0) {
            close(e->fd);
            e->fd = -1;
        }
        e->first++;
    }
}

static enum status open_newest(struct evidence *e, uint64_t more, struct errtext *err)
{
    char path[PATH_MAX];
    bool is_full = e->file_bytes + more > e->bytes_max / EVIDENCE_FILES;
    if (e->fd >= 0 && !is_full)
        return STATUS_OK;
    if (e->fd >= 0)
        close(e->fd);
    if (e->fd >= 0 || is_full || e->file < e->first) {
        e->file++;
        e->file_bytes = 0;
    }
    path_of(e, e->file, path);
    e->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    return e->fd < 0 ? io_error(e, "create", err) : STATUS_OK;
}

static enum status append(struct evidence *e, uint64_t inf_seq, const uint8_t *entry, size_t len,
                          struct errtext *err)
{
    make_room(e, len);
    enum status st = file_spare(e->dir, len, err);
    if (!st)
        st = open_newest(e, len, err);
    if (st)
        return st;
    if (pwrite(e->fd, entry, len, (off_t)e->file_bytes) != (ssize_t)len) {
        st = io_error(e, "write", err);
        (void)!ftruncate(e->fd, (off_t)e->file_bytes);
        return st;
    }
    struct evidence_place p = {.inf_seq = inf_seq,
                               .offset = e->file_bytes,
                               .file = e->file,
                               .bytes = (uint32_t)(len - HEAD_BYTES)};
    note_place(e, &p);
    e->file_bytes += len;
    e->bytes += len;
    return STATUS_OK;
}

enum status evidence_put(struct evidence *e, uint64_t inf_seq, const void *plain, size_t len,
                         struct errtext *err)
{
    size_t bytes = NONCE_BYTES + len + MAC_BYTES;
    uint64_t most = MIN((uint64_t)EVIDENCE_ENTRY_BYTES_MAX, e->bytes_max / EVIDENCE_FILES);
    if (HEAD_BYTES + bytes > most)
        return err_set(err, STATUS_TOO_LARGE,
                       "evidence of record %" PRIu64 ": %zu bytes, at most %" PRIu64
                       " are kept of one answer (an eighth of evidence_bytes_max)",
                       inf_seq, bytes, most);
    uint8_t *entry = mem_try_alloc(HEAD_BYTES + bytes);
    if (!entry)
        return err_set(err, STATUS_NO_MEMORY, "evidence: no memory for %zu bytes", bytes);
    uint8_t *nonce = entry + HEAD_BYTES;
    be_put(entry, bytes, 4);
    be_put(entry + 4, inf_seq, 8);
    randombytes_buf(nonce, NONCE_BYTES);
    crypto_aead_xchacha20poly1305_ietf_encrypt(nonce + NONCE_BYTES, NULL, plain, len, entry,
                                               HEAD_BYTES, NULL, nonce, e->key);
    pthread_mutex_lock(&e->lock);
    enum status st = append(e, inf_seq, entry, HEAD_BYTES + bytes, err);
    if (st && !e->dropping)
        log_warn("evidence", "%s; answers are attributed and paid, their explanation is not kept",
                 err->text);
    e->dropping = st != STATUS_OK;
    e->dropped += e->dropping;
    pthread_mutex_unlock(&e->lock);
    mem_free(entry);
    return st;
}

/* ---- read ---- */

static enum status read_entry(struct evidence *e, uint64_t inf_seq, uint8_t **entry,
                              uint32_t *bytes, struct errtext *err)
{
    char path[PATH_MAX];
    struct evidence_place p;
    pthread_mutex_lock(&e->lock);
    p = *slot_of(e, inf_seq);
    bool known = p.bytes > 0 && p.inf_seq == inf_seq && p.file >= e->first;
    pthread_mutex_unlock(&e->lock);
    path_of(e, p.file, path);
    int fd = known ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return err_set(err, STATUS_NOT_FOUND,
                       "evidence of record %" PRIu64 " is not kept any more (evidence_bytes_max)",
                       inf_seq);
    *bytes = p.bytes;
    *entry = mem_try_alloc(HEAD_BYTES + p.bytes);
    enum status st = *entry ? STATUS_OK
                            : err_set(err, STATUS_NO_MEMORY, "evidence: no memory for %u bytes",
                                      (unsigned)p.bytes);
    if (!st &&
        pread(fd, *entry, HEAD_BYTES + p.bytes, (off_t)p.offset) != (ssize_t)(HEAD_BYTES + p.bytes))
        st = io_error(e, "read", err);
    close(fd);
    return st;
}

enum status evidence_get(struct evidence *e, uint64_t inf_seq, struct buf *out, struct errtext *err)
{
    uint8_t *entry = NULL;
    uint32_t bytes = 0;
    enum status st = read_entry(e, inf_seq, &entry, &bytes, err);
    size_t len = st ? 0 : bytes - NONCE_BYTES - MAC_BYTES;
    if (!st && !buf_reserve(out, len))
        st = err_set(err, STATUS_NO_MEMORY, "evidence: no memory for %zu bytes", len);
    const uint8_t *nonce = entry + HEAD_BYTES;
    if (!st && crypto_aead_xchacha20poly1305_ietf_decrypt(
                   (uint8_t *)out->data + out->len, NULL, NULL, nonce + NONCE_BYTES,
                   bytes - NONCE_BYTES, entry, HEAD_BYTES, nonce, e->key) != 0)
        st = err_set(err, STATUS_CORRUPT,
                     "evidence of record %" PRIu64 " fails its check: the file was changed",
                     inf_seq);
    if (!st) {
        out->len += len;
        out->data[out->len] = 0;
    }
    mem_free(entry);
    return st;
}

void evidence_get_stats(struct evidence *e, uint64_t *bytes, uint64_t *dropped)
{
    pthread_mutex_lock(&e->lock);
    *bytes = e->bytes;
    *dropped = e->dropped;
    pthread_mutex_unlock(&e->lock);
}
