/* The table is in the order in which files came. A place is taken before the bytes are written, so
 * that two uploads at once cannot pass a bound together; it is shown when they are durable. */
#include "server/train/file_store.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/file.h"
#include "server/base/hex.h"
#include "server/base/json.h"
#include "server/base/log.h"
#include "server/base/mem.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FACTS_BYTES_MAX  4096u
#define FACTS_SUFFIX     ".json"
#define RANDOM_BYTES     12u
#define QUOTA_CODE       "file_quota_exceeded"
#define ID_PREFIX        "file-"
#define ID_CHARACTERS    (sizeof(ID_PREFIX) - 1 + 2 * RANDOM_BYTES)
#define TABLE_FIRST_SIZE 64u

struct file_entry {
    struct stored_file file;
    bool ready; /* its bytes are durable */
};

struct file_store {
    struct file_store_options opt;
    char dir[PATH_MAX - 64];
    pthread_mutex_t lock;
    struct file_entry **entry; /* ascending by created_ms */
    uint32_t count, cap;
};

/* ---- names ---- */

static bool is_id(const char *text)
{
    size_t prefix = sizeof(ID_PREFIX) - 1;
    return strncmp(text, ID_PREFIX, prefix) == 0 && strlen(text) == ID_CHARACTERS &&
           strspn(text + prefix, "0123456789abcdef") == 2 * RANDOM_BYTES;
}

static void path_of(const struct file_store *s, const char *id, const char *suffix,
                    char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "%s/%s%s", s->dir, id, suffix);
}

static void new_id(char id[FILE_STORE_ID_BYTES])
{
    uint8_t random[RANDOM_BYTES];
    randombytes_buf(random, sizeof(random));
    snprintf(id, FILE_STORE_ID_BYTES, ID_PREFIX);
    hex_encode(id + strlen(id), random, sizeof(random));
}

/* What stands in replies and in the log: characters, none of them for control. */
static enum status check_name(const char *name, struct errtext *err)
{
    for (const char *p = name; *p; p++) {
        if ((unsigned char)*p < 0x20 || *p == 0x7F)
            return err_param(err, STATUS_INVALID, "filename",
                             "filename: found the control character %u, expected a file's name",
                             (unsigned)(unsigned char)*p);
    }
    return *name ? STATUS_OK
                 : err_param(err, STATUS_INVALID, "filename",
                             "filename: found none, expected the file's name");
}

/* ---- the table; the lock is held ---- */

static uint32_t place_of(const struct file_store *s, const char *id)
{
    for (uint32_t i = 0; i < s->count; i++) {
        if (strcmp(s->entry[i]->file.id, id) == 0)
            return i;
    }
    return UINT32_MAX;
}

static struct file_entry *find(const struct file_store *s, const char *owner, const char *id)
{
    uint32_t i = place_of(s, id);
    return i != UINT32_MAX && s->entry[i]->ready && strcmp(s->entry[i]->file.owner, owner) == 0
               ? s->entry[i]
               : NULL;
}

static void grow(struct file_store *s)
{
    if (s->count < s->cap)
        return;
    uint32_t cap = s->cap ? 2 * s->cap : TABLE_FIRST_SIZE;
    struct file_entry **grown = mem_try_realloc(s->entry, cap * sizeof(*grown));
    CHECK(grown);
    s->entry = grown;
    s->cap = cap;
}

static void drop(struct file_store *s, uint32_t place)
{
    mem_free(s->entry[place]);
    s->count--;
    memmove(s->entry + place, s->entry + place + 1, (s->count - place) * sizeof(*s->entry));
}

static enum status check_room(const struct file_store *s, const struct stored_file *f,
                              struct errtext *err)
{
    uint64_t all = 0, own = 0;
    uint32_t files = 0;
    for (uint32_t i = 0; i < s->count; i++) {
        const struct stored_file *e = &s->entry[i]->file;
        bool is_own = strcmp(e->owner, f->owner) == 0;
        all += e->bytes;
        own += is_own ? e->bytes : 0;
        files += is_own;
    }
    if (files >= s->opt.owner_files_max)
        return err_coded(err, STATUS_TOO_LARGE, QUOTA_CODE, "file",
                         "%u files of this key are kept, the maximum; delete some first", files);
    if (own > s->opt.owner_bytes_max || f->bytes > s->opt.owner_bytes_max - own)
        return err_coded(err, STATUS_TOO_LARGE, QUOTA_CODE, "file",
                         "%" PRIu64 " bytes of this key's files are kept; with these %" PRIu64
                         " they exceed the quota of %" PRIu64 "; delete some first",
                         own, f->bytes, s->opt.owner_bytes_max);
    if (s->count >= FILE_STORE_FILES_MAX || all > s->opt.bytes_max ||
        f->bytes > s->opt.bytes_max - all)
        return err_coded(err, STATUS_TOO_LARGE, QUOTA_CODE, "file",
                         "there is no room for %" PRIu64 " bytes more: %u files of all keys have "
                         "%" PRIu64 " of %" PRIu64 " bytes",
                         f->bytes, s->count, all, s->opt.bytes_max);
    return STATUS_OK;
}

/* ---- the facts of a file ---- */

static enum status write_facts(const struct file_store *s, const struct stored_file *f,
                               struct errtext *err)
{
    char path[PATH_MAX], hex[65];
    hex_encode(hex, f->digest, sizeof(f->digest));
    json_t *root = json_pack("{ss ss ss sI sI ss}", "owner", f->owner, "name", f->name, "purpose",
                             f->purpose, "bytes", (json_int_t)f->bytes, "createdMs",
                             (json_int_t)f->created_ms, "digest", hex);
    char *text = root ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    if (!text)
        return err_param(err, STATUS_INVALID, "filename",
                         "filename: found bytes that are no UTF-8, expected a file's name");
    path_of(s, f->id, FACTS_SUFFIX, path);
    enum status st = file_write_atomic(path, text, strlen(text), 0600, err);
    mem_free(text);
    return st;
}

static void take_text(struct json_reader *r, const char *key, char *out, size_t out_bytes)
{
    const char *text = json_need_string(r, key);
    if (strlen(text) >= out_bytes)
        json_fail(r, STATUS_CORRUPT, key, "longer than %zu bytes", out_bytes - 1);
    snprintf(out, out_bytes, "%s", text);
}

static enum status read_facts(const struct file_store *s, struct stored_file *f,
                              struct errtext *err)
{
    char path[PATH_MAX];
    json_t *root;
    path_of(s, f->id, FACTS_SUFFIX, path);
    enum status st = json_doc_load(&root, path, FACTS_BYTES_MAX, 0, err);
    if (st)
        return st;
    struct json_reader r = {.obj = root, .where = path, .err = err};
    take_text(&r, "owner", f->owner, sizeof(f->owner));
    take_text(&r, "name", f->name, sizeof(f->name));
    take_text(&r, "purpose", f->purpose, sizeof(f->purpose));
    f->bytes = (uint64_t)json_need_int(&r, "bytes", (struct json_range){0, INT64_MAX});
    f->created_ms = json_need_int(&r, "createdMs", (struct json_range){0, INT64_MAX});
    json_need_hex(&r, "digest", f->digest, sizeof(f->digest));
    json_decref(root);
    path_of(s, f->id, "", path);
    return r.st || file_exists(path)
               ? r.st
               : err_set(err, STATUS_NOT_FOUND, "%s: its bytes are not there", path);
}

/* ---- open ---- */

static int by_age(const void *a, const void *b)
{
    const struct stored_file *x = &(*(struct file_entry *const *)a)->file;
    const struct stored_file *y = &(*(struct file_entry *const *)b)->file;
    return x->created_ms != y->created_ms ? (x->created_ms > y->created_ms ? 1 : -1)
                                          : strcmp(x->id, y->id);
}

static void take_found(struct file_store *s, const char *id)
{
    struct errtext why = ERRTEXT_INIT;
    struct file_entry *e = mem_alloc(sizeof(*e));
    snprintf(e->file.id, sizeof(e->file.id), "%s", id);
    e->ready = true;
    if (read_facts(s, &e->file, &why)) {
        log_warn("files", "%s; the file is left out", why.text);
        mem_free(e);
        return;
    }
    grow(s);
    s->entry[s->count++] = e;
}

/* Facts name a file; bytes without them, and what was being written, go. */
static void look_at(struct file_store *s, const char *name)
{
    char id[FILE_STORE_ID_BYTES], path[PATH_MAX];
    size_t len = strlen(name), end = sizeof(FACTS_SUFFIX) - 1;
    if (strncmp(name, ID_PREFIX, sizeof(ID_PREFIX) - 1) != 0 || len < ID_CHARACTERS)
        return;
    snprintf(id, sizeof(id), "%.*s", (int)ID_CHARACTERS, name);
    if (!is_id(id))
        return;
    if (len == ID_CHARACTERS + end && strcmp(name + ID_CHARACTERS, FACTS_SUFFIX) == 0) {
        take_found(s, id);
        return;
    }
    path_of(s, id, FACTS_SUFFIX, path);
    if (len == ID_CHARACTERS && file_exists(path))
        return;
    snprintf(path, sizeof(path), "%s/%.64s", s->dir, name);
    log_info("files", "%s: of an upload that did not end; removed", name);
    (void)unlink(path);
}

enum status file_store_open(struct file_store **out, const struct file_store_options *opt,
                            struct errtext *err)
{
    *out = NULL;
    enum status st = file_mkdirs(opt->dir, 0700, err);
    DIR *dir = st ? NULL : opendir(opt->dir);
    if (!st && !dir)
        st = err_set(err, STATUS_IO, "%s: %s", opt->dir, strerror(errno));
    if (st)
        return st;
    struct file_store *s = mem_alloc(sizeof(*s));
    s->opt = *opt;
    snprintf(s->dir, sizeof(s->dir), "%s", opt->dir);
    CHECK(pthread_mutex_init(&s->lock, NULL) == 0);
    for (struct dirent *d; (d = readdir(dir));)
        look_at(s, d->d_name);
    closedir(dir);
    if (s->count)
        qsort(s->entry, s->count, sizeof(*s->entry), by_age);
    *out = s;
    return STATUS_OK;
}

void file_store_close(struct file_store *s)
{
    if (!s)
        return;
    for (uint32_t i = 0; i < s->count; i++)
        mem_free(s->entry[i]);
    mem_free(s->entry);
    pthread_mutex_destroy(&s->lock);
    mem_free(s);
}

/* ---- put ---- */

static enum status take_place(struct file_store *s, const struct stored_file *f,
                              struct file_entry **out, struct errtext *err)
{
    pthread_mutex_lock(&s->lock);
    enum status st = place_of(s, f->id) != UINT32_MAX
                         ? err_set(err, STATUS_EXISTS, "the file %s is here already", f->id)
                         : check_room(s, f, err);
    if (!st) {
        grow(s);
        *out = mem_alloc(sizeof(**out));
        (*out)->file = *f;
        s->entry[s->count++] = *out;
    }
    pthread_mutex_unlock(&s->lock);
    return st;
}

static void leave_place(struct file_store *s, const char *id)
{
    char path[PATH_MAX];
    path_of(s, id, "", path);
    (void)unlink(path);
    pthread_mutex_lock(&s->lock);
    drop(s, place_of(s, id));
    pthread_mutex_unlock(&s->lock);
}

enum status file_store_put(struct file_store *s, struct stored_file *f, const void *data,
                           size_t len, struct errtext *err)
{
    char path[PATH_MAX];
    struct file_entry *e;
    if (!f->id[0])
        new_id(f->id);
    CHECK(is_id(f->id) && len <= FILE_STORE_BYTES_MAX);
    f->bytes = len;
    f->created_ms = (int64_t)clock_wall_ms();
    crypto_generichash(f->digest, sizeof(f->digest), data, len, NULL, 0);
    enum status st = check_name(f->name, err);
    if (!st)
        st = file_spare(s->dir, len, err);
    if (!st)
        st = take_place(s, f, &e, err);
    if (st)
        return st;
    path_of(s, f->id, "", path);
    st = file_write_atomic(path, data, len, 0600, err);
    if (!st)
        st = write_facts(s, f, err);
    if (st) {
        leave_place(s, f->id);
        return st;
    }
    pthread_mutex_lock(&s->lock);
    e->ready = true;
    pthread_mutex_unlock(&s->lock);
    return STATUS_OK;
}

/* ---- what there is ---- */

static enum status not_here(const char *id, struct errtext *err)
{
    return err_param(err, STATUS_NOT_FOUND, "file_id", "there is no file '%.40s' of this key", id);
}

bool file_store_get(struct file_store *s, const char *owner, const char *id,
                    struct stored_file *out)
{
    pthread_mutex_lock(&s->lock);
    const struct file_entry *e = find(s, owner, id);
    if (e)
        *out = e->file;
    pthread_mutex_unlock(&s->lock);
    return e != NULL;
}

static bool is_on(const struct file_entry *e, const struct file_page *page)
{
    return e->ready && strcmp(e->file.owner, page->owner) == 0 &&
           (!page->purpose || strcmp(e->file.purpose, page->purpose) == 0);
}

enum status file_store_list(struct file_store *s, const struct file_page *page,
                            struct stored_file *out, uint32_t max, uint32_t *count, bool *more,
                            struct errtext *err)
{
    bool begun = !page->after;
    *count = 0;
    *more = false;
    pthread_mutex_lock(&s->lock);
    if (page->after && !find(s, page->owner, page->after)) {
        pthread_mutex_unlock(&s->lock);
        return err_param(err, STATUS_NOT_FOUND, "after", "after: there is no file '%.40s' here",
                         page->after);
    }
    for (uint32_t k = 0; k < s->count && !*more; k++) {
        const struct file_entry *e = s->entry[page->oldest_first ? k : s->count - 1 - k];
        if (begun && is_on(e, page)) {
            *more = *count == max;
            if (!*more)
                out[(*count)++] = e->file;
        }
        begun = begun || strcmp(e->file.id, page->after) == 0;
    }
    pthread_mutex_unlock(&s->lock);
    return STATUS_OK;
}

enum status file_store_read(struct file_store *s, const struct stored_file *f, char **data,
                            size_t *len, struct errtext *err)
{
    char path[PATH_MAX];
    uint8_t digest[32];
    path_of(s, f->id, "", path);
    enum status st = file_read(path, FILE_STORE_BYTES_MAX, data, len, err);
    if (st)
        return st;
    crypto_generichash(digest, sizeof(digest), (const uint8_t *)*data, *len, NULL, 0);
    if (memcmp(digest, f->digest, sizeof(digest)) == 0)
        return STATUS_OK;
    mem_free(*data);
    *data = NULL;
    return err_set(err, STATUS_CORRUPT,
                   "the bytes of %s on this server's disk are not those that came; upload the file "
                   "again",
                   f->id);
}

enum status file_store_remove(struct file_store *s, const char *owner, const char *id,
                              struct errtext *err)
{
    char path[PATH_MAX];
    enum status st = STATUS_OK;
    pthread_mutex_lock(&s->lock);
    if (!find(s, owner, id)) {
        pthread_mutex_unlock(&s->lock);
        return not_here(id, err);
    }
    path_of(s, id, FACTS_SUFFIX, path); /* first: what is left then is swept */
    if (unlink(path) != 0 && errno != ENOENT)
        st = err_set(err, STATUS_IO, "the file cannot be deleted: %s", strerror(errno));
    path_of(s, id, "", path);
    if (!st)
        (void)unlink(path);
    if (!st)
        drop(s, place_of(s, id));
    pthread_mutex_unlock(&s->lock);
    return st;
}

struct file_store_stats file_store_stats(struct file_store *s)
{
    struct file_store_stats out = {0};
    pthread_mutex_lock(&s->lock);
    for (uint32_t i = 0; i < s->count; i++)
        out.bytes += s->entry[i]->file.bytes;
    out.files = s->count;
    pthread_mutex_unlock(&s->lock);
    return out;
}
