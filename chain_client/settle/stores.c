/* What the worker does with its stores: all of them take what is published before it counts, and
 * any of them gives a folder back that the archive has lost. */
#include "chain_client/settle/worker.h"
#include "server/base/check.h"
#include "server/base/log.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum status stores_open(struct worker *w, struct errtext *err)
{
    const struct settings *s = w->set;
    const struct store_config c = {s->s3_endpoint, s->s3_region, s->s3_key_file};
    enum status st = STATUS_OK;
    if (s->archive.count > STORES_MAX)
        return err_param(err, STATUS_INVALID, "archive", "archive: %u places, at most %d",
                         s->archive.count, STORES_MAX);
    for (uint32_t i = 0; i < s->archive.count && !st; i++) {
        st = store_open(&w->store[i], s->archive.item[i], &c, err);
        w->store_count += !st;
    }
    return st;
}

void stores_close(struct worker *w)
{
    for (uint32_t i = 0; i < w->store_count; i++)
        store_close(w->store[i]);
    w->store_count = 0;
}

enum status stores_publish(struct worker *w, const struct archive_folder *f, const uint8_t hash[32],
                           struct errtext *err)
{
    char name[STORE_NAME_BYTES], text[512];
    enum status st = STATUS_OK;
    store_name(name, f->name, hash);
    for (uint32_t i = 0; i < w->store_count && !st; i++) {
        struct errtext why = ERRTEXT_INIT;
        enum status put = store_put(w->store[i], name, f->file, f->file_count, &why);
        if (!put) {
            st = trouble_clear(&w->db, TROUBLE_ARCHIVE_STORE, i + 1, err);
            continue;
        }
        snprintf(text, sizeof(text),
                 "archive %s does not take %s: %.300s; what is published waits for it: mend it, or "
                 "start without it",
                 store_place(w->store[i]), f->name, why.text);
        st = trouble_set(&w->db, TROUBLE_ARCHIVE_STORE, i + 1, text, err);
        return st ? st : err_set(err, put == STATUS_CORRUPT ? STATUS_IO : put, "%s", text);
    }
    return st;
}

bool stores_have(struct worker *w, const char *folder, const uint8_t hash[32],
                 const struct archive_file *last)
{
    char name[STORE_NAME_BYTES];
    bool all = true;
    store_name(name, folder, hash);
    for (uint32_t i = 0; i < w->store_count && all; i++) {
        struct canon_bytes got;
        all = store_get(w->store[i], name, last->name, &got, NULL) == STATUS_OK &&
              got.len == last->len && memcmp(got.data, last->data, got.len) == 0;
        mem_free((void *)(uintptr_t)got.data);
    }
    return all;
}

struct kept { /* a folder that stores have */
    const char *what, *const *file;
    size_t count;
    void (*name)(char out[ARCHIVE_NAME_BYTES], uint64_t number);
    enum status (*check)(const char *dir, uint64_t number, const uint8_t hash[32],
                         struct errtext *err);
};

static enum status check_batch(const char *dir, uint64_t seq, const uint8_t hash[32],
                               struct errtext *err)
{
    struct archive_batch b = {.lane = NULL};
    enum status st = archive_batch_read(&b, dir, seq, err);
    if (!st && memcmp(b.hash, hash, 32) != 0)
        st = err_set(err, STATUS_CORRUPT, "another batch");
    if (!st)
        st = archive_batch_records(&b, dir, err);
    archive_batch_fini(&b);
    return st;
}

static enum status check_epoch(const char *dir, uint64_t epoch, const uint8_t hash[32],
                               struct errtext *err)
{
    char folder[ARCHIVE_NAME_BYTES];
    size_t bytes;
    archive_epoch_name(folder, epoch);
    return archive_epoch_check(dir, folder, hash, &bytes, err);
}

/* The folder of this hash, out of one store, checked in a folder beside the archive before it takes
 * its place there. */
static enum status fetch_from(struct worker *w, struct depot *s, const struct kept *k,
                              uint64_t number, const uint8_t hash[32], struct errtext *err)
{
    struct canon_bytes got[ARCHIVE_FILES_MAX] = {{NULL, 0}};
    struct archive_file file[ARCHIVE_FILES_MAX];
    char folder[ARCHIVE_NAME_BYTES], name[STORE_NAME_BYTES], check[PATH_MAX];
    enum status st = STATUS_OK;
    k->name(folder, number);
    store_name(name, folder, hash);
    snprintf(check, sizeof(check), "%s/.check", w->set->archive_dir);
    for (size_t i = 0; i < k->count && !st; i++) {
        st = store_get(s, name, k->file[i], &got[i], err);
        file[i] = (struct archive_file){k->file[i], got[i].data, got[i].len};
    }
    struct archive_folder f = {check, folder, file, k->count, true};
    if (!st)
        st = archive_publish(&f, err);
    if (!st)
        st = k->check(check, number, hash, err);
    archive_drop(check, folder);
    f.dir = w->set->archive_dir;
    if (!st)
        st = archive_publish(&f, err);
    for (size_t i = 0; i < k->count; i++)
        mem_free((void *)(uintptr_t)got[i].data);
    return st;
}

static enum status fetch(struct worker *w, const struct kept *k, uint64_t number,
                         const uint8_t hash[32], struct errtext *err)
{
    for (uint32_t i = 0; i < w->store_count; i++) {
        struct errtext why = ERRTEXT_INIT;
        enum status st = fetch_from(w, w->store[i], k, number, hash, &why);
        if (!st) {
            log_info("archive", "%s %" PRIu64 ": from %s", k->what, number,
                     store_place(w->store[i]));
            return STATUS_OK;
        }
        log_debug("archive", "%s %" PRIu64 " from %s: %s", k->what, number,
                  store_place(w->store[i]), why.text);
    }
    return err_set(err, STATUS_NOT_FOUND, "no store has %s %" PRIu64, k->what, number);
}

enum status stores_fetch_batch(struct worker *w, uint64_t seq, const uint8_t hash[32],
                               struct errtext *err)
{
    static const struct kept batch = {"batch", archive_batch_files, ARCHIVE_BATCH_FILES,
                                      archive_batch_name, check_batch};
    return fetch(w, &batch, seq, hash, err);
}

enum status stores_fetch_epoch(struct worker *w, uint64_t epoch, const uint8_t manifest[32],
                               struct errtext *err)
{
    static const struct kept kept = {"epoch", archive_epoch_files, ARCHIVE_EPOCH_FILES,
                                     archive_epoch_name, check_epoch};
    return fetch(w, &kept, epoch, manifest, err);
}
