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

/* The batch of this hash, out of one store, checked in a folder beside the archive before it takes
 * its place there. */
static enum status fetch_from(struct worker *w, struct depot *s, const char *folder, uint64_t seq,
                              const uint8_t hash[32], struct errtext *err)
{
    static const char *const names[] = {"header.json", "manifest.json", "records.bin"};
    struct canon_bytes got[ARRAY_COUNT(names)] = {{NULL, 0}};
    struct archive_file file[ARRAY_COUNT(names)];
    struct archive_batch b = {.lane = NULL};
    char name[STORE_NAME_BYTES], check[PATH_MAX];
    enum status st = STATUS_OK;
    store_name(name, folder, hash);
    snprintf(check, sizeof(check), "%s/.check", w->set->archive_dir);
    for (size_t i = 0; i < ARRAY_COUNT(names) && !st; i++) {
        st = store_get(s, name, names[i], &got[i], err);
        file[i] = (struct archive_file){names[i], got[i].data, got[i].len};
    }
    struct archive_folder f = {check, folder, file, ARRAY_COUNT(file), true};
    if (!st)
        st = archive_publish(&f, err);
    if (!st)
        st = archive_batch_read(&b, check, seq, err);
    if (!st && memcmp(b.hash, hash, 32) != 0)
        st = err_set(err, STATUS_CORRUPT, "%s: another batch", name);
    if (!st)
        st = archive_batch_records(&b, check, err);
    archive_drop(check, folder);
    f.dir = w->set->archive_dir;
    if (!st)
        st = archive_publish(&f, err);
    archive_batch_fini(&b);
    for (size_t i = 0; i < ARRAY_COUNT(names); i++)
        mem_free((void *)(uintptr_t)got[i].data);
    return st;
}

enum status stores_fetch_batch(struct worker *w, uint64_t seq, const uint8_t hash[32],
                               struct errtext *err)
{
    char folder[ARCHIVE_NAME_BYTES];
    archive_batch_name(folder, seq);
    for (uint32_t i = 0; i < w->store_count; i++) {
        struct errtext why = ERRTEXT_INIT;
        enum status st = fetch_from(w, w->store[i], folder, seq, hash, &why);
        if (!st) {
            log_info("archive", "batch %" PRIu64 ": from %s", seq, store_place(w->store[i]));
            return STATUS_OK;
        }
        log_debug("archive", "batch %" PRIu64 " from %s: %s", seq, store_place(w->store[i]),
                  why.text);
    }
    return err_set(err, STATUS_NOT_FOUND, "no store has batch %" PRIu64, seq);
}
