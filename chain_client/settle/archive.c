/* Writing and reading the archive's folders and files; texts are in archive_text.c. */
#include "chain_client/settle/archive.h"
#include "chain_client/eth/keccak.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/mem.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

const char *const archive_batch_files[ARCHIVE_BATCH_FILES] = {"header.json", "manifest.json",
                                                              "records.bin"};
const char *const archive_epoch_files[ARCHIVE_EPOCH_FILES] = {"accounts.json", "manifest.json",
                                                              "missing.json",  "owners.json",
                                                              "refused.json",  "snapshot.json"};

void archive_batch_name(char out[ARCHIVE_NAME_BYTES], uint64_t seq)
{
    snprintf(out, ARCHIVE_NAME_BYTES, "batch-%08" PRIu64, seq);
}

void archive_epoch_name(char out[ARCHIVE_NAME_BYTES], uint64_t epoch)
{
    snprintf(out, ARCHIVE_NAME_BYTES, "epoch-%08" PRIu64, epoch);
}

/* ---- folders ---- */

/* Remove a folder of plain files that never became, or no longer is, part of the archive. */
static void drop_folder(const char *path)
{
    DIR *d = opendir(path);
    if (!d)
        return;
    for (struct dirent *e; (e = readdir(d));)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            unlinkat(dirfd(d), e->d_name, 0);
    closedir(d);
    rmdir(path);
}

void archive_drop(const char *dir, const char *name)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    drop_folder(path);
}

static enum status sync_folder(const char *path, struct errtext *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool good = fd >= 0 && fsync(fd) == 0;
    int why = errno;
    if (fd >= 0)
        close(fd);
    return good ? STATUS_OK : err_set(err, STATUS_IO, "%s: %s", path, strerror(why));
}

/* OK when every file is there with these bytes. */
static enum status compare(const struct archive_folder *f, struct errtext *err)
{
    enum status st = STATUS_OK;
    for (size_t i = 0; i < f->file_count && !st; i++) {
        struct canon_bytes found;
        st = archive_read(f->dir, f->name, f->file[i].name, f->file[i].len + 1, &found, err);
        if (st)
            break;
        if (found.len != f->file[i].len || memcmp(found.data, f->file[i].data, found.len) != 0)
            st = err_set(err, STATUS_CORRUPT, "%s/%s: holds other bytes than were written", f->name,
                         f->file[i].name);
        mem_free((void *)(uintptr_t)found.data);
    }
    return st;
}

static enum status write_folder(const struct archive_folder *f, const char *path,
                                struct errtext *err)
{
    drop_folder(path);
    enum status st = file_mkdirs(path, 0755, err);
    for (size_t i = 0; i < f->file_count && !st; i++) {
        char file[PATH_MAX];
        snprintf(file, sizeof(file), "%s/%s", path, f->file[i].name);
        st = file_write_atomic(file, f->file[i].data, f->file[i].len, 0644, err);
    }
    return st ? st : sync_folder(path, err);
}

enum status archive_publish(const struct archive_folder *f, struct errtext *err)
{
    char fresh[PATH_MAX], old[PATH_MAX], final[PATH_MAX];
    snprintf(fresh, sizeof(fresh), "%s/.new-%s", f->dir, f->name);
    snprintf(old, sizeof(old), "%s/.old-%s", f->dir, f->name);
    snprintf(final, sizeof(final), "%s/%s", f->dir, f->name);
    if (file_exists(final)) {
        if (compare(f, NULL) == STATUS_OK)
            return STATUS_OK;
        if (!f->may_replace)
            return err_set(err, STATUS_CONFLICT,
                           "%s: already published with other bytes; a person must look", final);
    }
    enum status st = file_mkdirs(f->dir, 0755, err);
    if (!st)
        st = write_folder(f, fresh, err);
    if (st)
        return st;
    drop_folder(old);
    if (file_exists(final) && rename(final, old) != 0)
        return err_set(err, STATUS_IO, "%s: %s", final, strerror(errno));
    if (rename(fresh, final) != 0)
        return err_set(err, STATUS_IO, "%s: %s", final, strerror(errno));
    drop_folder(old);
    st = sync_folder(f->dir, err);
    return st ? st : compare(f, err);
}

enum status archive_read(const char *dir, const char *folder, const char *file, size_t bytes_max,
                         struct canon_bytes *out, struct errtext *err)
{
    char path[PATH_MAX], *data = NULL;
    snprintf(path, sizeof(path), "%s/%s/%s", dir, folder, file);
    *out = (struct canon_bytes){NULL, 0};
    enum status st = file_read(path, bytes_max, &data, &out->len, err);
    out->data = (uint8_t *)data;
    return st;
}

/* ---- batches ---- */

enum status archive_batch_seal(struct archive_batch *b, struct errtext *err)
{
    enum status st = batch_lanes_hash(b->lanes_hash, b->lane, b->lane_count, err);
    if (!st)
        batch_hash(b->hash, &b->place, &b->header, b->lanes_hash);
    return st;
}

static void free_bytes(struct canon_bytes *b)
{
    mem_free((void *)(uintptr_t)b->data);
    *b = (struct canon_bytes){NULL, 0};
}

void archive_batch_fini(struct archive_batch *b)
{
    mem_free(b->lane);
    free_bytes(&b->records);
    *b = (struct archive_batch){0};
}

void archive_put_record(struct buf *out, const void *body, size_t len)
{
    uint8_t head[4];
    be_put(head, len, 4);
    buf_put(out, head, 4);
    buf_put(out, body, len);
}

enum status archive_next_record(const struct canon_bytes *records, size_t *offset,
                                struct canon_bytes *body, struct errtext *err)
{
    if (*offset == records->len)
        return STATUS_NOT_FOUND;
    size_t room = records->len - *offset;
    size_t len = room < 4 ? 0 : (size_t)be_get(records->data + *offset, 4);
    if (room < 4 || len > room - 4)
        return err_set(err, STATUS_CORRUPT,
                       "records.bin: byte %zu: a record of %zu bytes does not fit in the %zu left",
                       *offset, len, room);
    *body = (struct canon_bytes){records->data + *offset + 4, len};
    *offset += 4 + len;
    return STATUS_OK;
}

static enum status count_records(const struct canon_bytes *records, uint32_t *count,
                                 struct errtext *err)
{
    struct canon_bytes body;
    size_t offset = 0;
    enum status st;
    *count = 0;
    while ((st = archive_next_record(records, &offset, &body, err)) == STATUS_OK)
        ++*count;
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

enum status archive_batch_records(struct archive_batch *b, const char *dir, struct errtext *err)
{
    char name[ARCHIVE_NAME_BYTES];
    struct canon_bytes found = {NULL, 0};
    struct buf expected;
    uint8_t digest[32];
    uint32_t count;
    archive_batch_name(name, b->header.seq);
    free_bytes(&b->records);
    buf_init(&expected, ARCHIVE_TEXT_BYTES_MAX);
    enum status st =
        archive_read(dir, name, "records.bin", ARCHIVE_RECORDS_BYTES_MAX, &b->records, err);
    if (!st)
        st = archive_read(dir, name, "manifest.json", ARCHIVE_TEXT_BYTES_MAX, &found, err);
    if (!st)
        st = count_records(&b->records, &count, err);
    if (!st)
        archive_put_batch_manifest(&expected, b, count, &b->records);
    keccak_256(digest, found.data, found.len);
    if (!st && memcmp(digest, b->header.manifest, 32) != 0)
        st = err_set(err, STATUS_CORRUPT, "%s/manifest.json: its Keccak-256 is not the header's",
                     name);
    if (!st && (expected.failed || expected.len != found.len ||
                memcmp(expected.data, found.data, found.len) != 0))
        st = err_set(err, STATUS_CORRUPT,
                     "%s/records.bin: size, count or Keccak-256 is not what manifest.json says",
                     name);
    free_bytes(&found);
    buf_fini(&expected);
    return st;
}
