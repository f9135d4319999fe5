/* A file per adapter beside the lists; for folders only where they are. */
#include "server/datanet/store_training.h"
#include "server/base/check.h"
#include "server/base/hex.h"
#include "server/base/mem.h"
#include "server/datanet/training.h"

#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define NOTES_MAX 65536u

struct note {
    uint8_t id[32];
    char *path;
};

struct training_shelf {
    char dir[PATH_MAX];
    pthread_mutex_t lock;
    struct note *note;
    uint32_t count, cap;
};

enum status training_shelf_open(struct training_shelf **out, const char *store_dir,
                                struct errtext *err)
{
    struct training_shelf *t = mem_alloc(sizeof(*t));
    *out = NULL;
    snprintf(t->dir, sizeof(t->dir), "%.*s/training", PATH_MAX - 96, store_dir);
    enum status st = file_mkdirs(t->dir, 0700, err);
    if (st) {
        mem_free(t);
        return st;
    }
    CHECK(pthread_mutex_init(&t->lock, NULL) == 0);
    *out = t;
    return STATUS_OK;
}

void training_shelf_close(struct training_shelf *t)
{
    if (!t)
        return;
    for (uint32_t i = 0; i < t->count; i++)
        mem_free(t->note[i].path);
    mem_free(t->note);
    pthread_mutex_destroy(&t->lock);
    mem_free(t);
}

static void path_of(const struct training_shelf *t, const uint8_t id[32], char path[PATH_MAX])
{
    char hex[65];
    hex_encode(hex, id, 32);
    snprintf(path, PATH_MAX, "%.*s/%s.json", PATH_MAX - 72, t->dir, hex);
}

/* The lock is held. */
static struct note *find_note(struct training_shelf *t, const uint8_t id[32])
{
    for (uint32_t i = 0; i < t->count; i++) {
        if (memcmp(t->note[i].id, id, 32) == 0)
            return &t->note[i];
    }
    return NULL;
}

static enum status add_note(struct training_shelf *t, const uint8_t id[32], const char *path,
                            struct errtext *err)
{
    struct note *n = find_note(t, id);
    if (!n && t->count == t->cap) {
        uint32_t cap = t->cap ? 2 * t->cap : 64;
        struct note *grown =
            cap > NOTES_MAX ? NULL : mem_try_realloc(t->note, cap * sizeof(*t->note));
        if (!grown)
            return err_set(err, STATUS_FULL, "%s: %u training manifests are known, no more fit",
                           path, t->count);
        t->note = grown;
        t->cap = cap;
    }
    if (!n) {
        n = &t->note[t->count++];
        memcpy(n->id, id, 32);
    } else {
        mem_free(n->path);
    }
    n->path = mem_strdup(path);
    return STATUS_OK;
}

enum status training_shelf_note(struct training_shelf *t, const uint8_t adapter_id[32],
                                const char *dir, struct errtext *err)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%.*s/" TRAINING_FILE, PATH_MAX - 32, dir);
    if (!file_exists(path))
        return STATUS_OK;
    pthread_mutex_lock(&t->lock);
    enum status st = add_note(t, adapter_id, path, err);
    pthread_mutex_unlock(&t->lock);
    return st;
}

enum status training_shelf_root(uint8_t root[32], const char *text, size_t len, struct errtext *err)
{
    json_t *doc;
    enum status st = json_doc_parse(&doc, "training", text, len, 0, err);
    struct json_reader r = {.obj = doc, .where = "training", .st = st, .err = err};
    json_need_hex(&r, "documentRoot", root, 32);
    json_decref(doc);
    return r.st;
}

static bool is_same(const char *path, const char *text, size_t len)
{
    char *old;
    size_t old_len;
    if (file_read(path, TRAINING_BYTES_MAX, &old, &old_len, NULL))
        return false;
    bool same = old_len == len && memcmp(old, text, len) == 0;
    mem_free(old);
    return same;
}

enum status training_shelf_put(struct training_shelf *t, const uint8_t adapter_id[32],
                               const char *text, size_t len, bool replace, struct errtext *err)
{
    char path[PATH_MAX];
    enum status st = STATUS_OK;
    path_of(t, adapter_id, path);
    pthread_mutex_lock(&t->lock);
    bool there = file_exists(path), same = there && is_same(path, text, len);
    if (there && !same && !replace)
        st = err_param(err, STATUS_CONFLICT, "training",
                       "training: this adapter has another training manifest here; what it was "
                       "trained on is said once");
    else if (!same)
        st = file_spare(t->dir, len, err);
    if (!st && !same)
        st = file_write_atomic(path, text, len, 0600, err);
    pthread_mutex_unlock(&t->lock);
    return st;
}

void training_shelf_drop(struct training_shelf *t, const uint8_t adapter_id[32])
{
    char path[PATH_MAX];
    path_of(t, adapter_id, path);
    pthread_mutex_lock(&t->lock);
    (void)unlink(path);
    pthread_mutex_unlock(&t->lock);
}

/* Where the adapter's is; false: nowhere. */
static bool find_file(struct training_shelf *t, const uint8_t id[32], char path[PATH_MAX])
{
    path_of(t, id, path);
    pthread_mutex_lock(&t->lock);
    const struct note *n = file_exists(path) ? NULL : find_note(t, id);
    if (n)
        snprintf(path, PATH_MAX, "%s", n->path);
    pthread_mutex_unlock(&t->lock);
    return file_exists(path);
}

bool training_shelf_has(struct training_shelf *t, const uint8_t adapter_id[32])
{
    char path[PATH_MAX];
    return find_file(t, adapter_id, path);
}

enum status training_shelf_get(struct training_shelf *t, const uint8_t adapter_id[32],
                               struct buf *out, struct errtext *err)
{
    char path[PATH_MAX], *text;
    size_t len;
    if (!find_file(t, adapter_id, path))
        return err_set(err, STATUS_NOT_FOUND, "no training manifest");
    enum status st = file_read(path, TRAINING_BYTES_MAX, &text, &len, err);
    if (st)
        return st;
    buf_put(out, text, len);
    mem_free(text);
    return out->failed ? err_set(err, STATUS_NO_MEMORY, "%s: no memory for %zu bytes", path, len)
                       : STATUS_OK;
}
