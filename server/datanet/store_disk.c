/* Folders of the store. The order of writes is what a crash relies on: the list, then held.json
 * without "complete", the texts as they come without a sync of their own, then one sync of the file
 * system and held.json again. Until that stands, a start reads every text and drops what a crash
 * has left half written. To forget, held.json goes first. */
#include "server/base/check.h"
#include "server/base/hex.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/datanet/store_impl.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define HELD_BYTES_MAX 4096u
#define UNFINISHED     ".text-" /* a text that is being written */

void store_disk_dir(char dir[PATH_MAX], const char *root_dir, const uint8_t root[32])
{
    char hex[65];
    hex_encode(hex, root, 32);
    snprintf(dir, PATH_MAX, "%.*s/%s", PATH_MAX - 70, root_dir, hex);
}

static void text_path(char path[PATH_MAX], const char *dir, const uint8_t digest[32])
{
    char hex[65];
    hex_encode(hex, digest, 32);
    snprintf(path, PATH_MAX, "%.*s/%s.txt", PATH_MAX - 72, dir, hex);
}

static enum status write_json(const char *dir, const char *name, const json_t *root,
                              struct errtext *err)
{
    char path[PATH_MAX];
    char *text = root ? json_dumps(root, JSON_COMPACT) : NULL;
    snprintf(path, sizeof(path), "%.*s/%s", PATH_MAX - 32, dir, name);
    enum status st = text ? file_write_atomic(path, text, strlen(text), 0600, err)
                          : err_set(err, STATUS_NO_MEMORY, "no memory for %s", name);
    mem_free(text);
    return st;
}

/* What the store keeps of a list: known keys alone, and where it has the texts itself. */
static json_t *kept_document(const json_t *doc)
{
    static const char *const keys[] = {"docId",   "owner",  "licence",       "terms",
                                       "display", "since",  "kind",          "bytes",
                                       "digest",  "copyOf", "ownerSignature"};
    json_t *out = json_object();
    for (size_t i = 0; i < ARRAY_COUNT(keys); i++) {
        json_t *v = json_object_get(doc, keys[i]);
        if (v)
            json_object_set(out, keys[i], v);
    }
    const char *digest = json_string_value(json_object_get(doc, "digest"));
    char file[70];
    if (!digest)
        return out; /* its reader says so */
    snprintf(file, sizeof(file), "%.64s.txt", digest + (strncmp(digest, "0x", 2) ? 0 : 2));
    for (char *c = file; *c; c++)
        *c = (char)(*c >= 'A' && *c <= 'F' ? *c + 'a' - 'A' : *c);
    json_object_set_new(out, "file", json_string(file));
    return out;
}

static json_t *kept_list(const json_t *datanet)
{
    static const char *const keys[] = {"version", "name", "tokenizerDigest", "datanetId"};
    size_t i;
    const json_t *doc;
    json_t *out = json_object(), *list = json_array();
    for (i = 0; i < ARRAY_COUNT(keys); i++) {
        json_t *v = json_object_get(datanet, keys[i]);
        if (v)
            json_object_set(out, keys[i], v);
    }
    json_array_foreach(json_object_get(datanet, "documents"), i, doc)
        json_array_append_new(list, kept_document(doc));
    json_object_set_new(out, "documents", list);
    return out;
}

enum status store_disk_write(const char *dir, const json_t *datanet, struct errtext *err)
{
    json_t *list = kept_list(datanet);
    enum status st = file_mkdirs(dir, 0700, err);
    if (!st)
        st = file_spare(dir, 0, err);
    if (!st)
        st = write_json(dir, "datanet.json", list, err);
    json_decref(list);
    return st;
}

static enum status sync_texts(const char *dir, struct errtext *err)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool synced = fd >= 0 && syncfs(fd) == 0;
    enum status st = synced ? STATUS_OK : err_set(err, STATUS_IO, "%s: %s", dir, strerror(errno));
    if (fd >= 0)
        close(fd);
    return st;
}

enum status store_disk_hold(const struct store_list *h, bool complete, struct errtext *err)
{
    enum status st = complete ? sync_texts(h->dir, err) : STATUS_OK;
    json_t *held = json_pack("{s:s, s:I, s:b}", "publisher", h->head.publisher, "created",
                             (json_int_t)h->head.created_ms, "complete", (int)complete);
    if (!st)
        st = write_json(h->dir, "held.json", held, err);
    json_decref(held);
    return st;
}

enum status store_disk_put_text(const char *dir, const uint8_t digest[32], const char *text,
                                size_t len, struct errtext *err)
{
    char path[PATH_MAX], tmp[PATH_MAX];
    enum status st = file_spare(dir, len, err);
    if (st)
        return st;
    text_path(path, dir, digest);
    snprintf(tmp, sizeof(tmp), "%.*s/" UNFINISHED "XXXXXX", PATH_MAX - 32, dir);
    int fd = mkostemp(tmp, O_CLOEXEC);
    bool good = fd >= 0;
    for (size_t done = 0; good && done < len;) {
        ssize_t n = write(fd, text + done, len - done);
        good = n > 0 || (n < 0 && errno == EINTR);
        done += n > 0 ? (size_t)n : 0;
    }
    good = good && rename(tmp, path) == 0;
    st = good ? STATUS_OK : err_set(err, STATUS_IO, "%s: %s", path, strerror(errno));
    if (fd >= 0)
        close(fd);
    if (st)
        (void)unlink(tmp);
    return st;
}

bool store_disk_link(const char *from, const char *to, const uint8_t digest[32])
{
    char a[PATH_MAX], b[PATH_MAX];
    text_path(a, from, digest);
    text_path(b, to, digest);
    return link(a, b) == 0 || errno == EEXIST;
}

/* Files whose names begin so. */
static void unlink_files(const char *dir, const char *prefix)
{
    char path[PATH_MAX + 260];
    struct dirent *e;
    DIR *d = opendir(dir);
    while (d && (e = readdir(d))) {
        snprintf(path, sizeof(path), "%s/%s", dir, e->d_name);
        if (strncmp(e->d_name, prefix, strlen(prefix)) == 0 && strcmp(e->d_name, ".") != 0 &&
            strcmp(e->d_name, "..") != 0)
            (void)unlink(path);
    }
    if (d)
        closedir(d);
}

/* ---- a restart ---- */

/* Sized as the list says and, where nobody has made sure of it yet, of that digest. */
static bool text_is_here(const char *dir, const struct store_text *t, bool complete)
{
    char path[PATH_MAX], *text;
    struct stat sb;
    size_t len;
    uint8_t digest[32];
    text_path(path, dir, t->digest);
    if (stat(path, &sb) != 0 || !S_ISREG(sb.st_mode))
        return false;
    bool same = (uint64_t)sb.st_size == t->bytes;
    if (same && complete)
        return true;
    same = same && file_read(path, DOCUMENT_BYTES_MAX, &text, &len, NULL) == STATUS_OK;
    if (same) {
        crypto_generichash(digest, 32, (const uint8_t *)text, len, NULL, 0);
        same = memcmp(digest, t->digest, 32) == 0;
        mem_free(text);
    }
    if (!same)
        (void)unlink(path);
    return same;
}

static enum status read_held(struct store_list *h, bool *complete, struct errtext *err)
{
    char path[PATH_MAX];
    json_t *held = NULL;
    snprintf(path, sizeof(path), "%.*s/held.json", PATH_MAX - 32, h->dir);
    enum status st = json_doc_load(&held, path, HELD_BYTES_MAX, 0, err);
    struct json_reader r = {.obj = held, .where = path, .st = st, .err = err};
    snprintf(h->head.publisher, sizeof(h->head.publisher), "%s", json_need_string(&r, "publisher"));
    h->head.created_ms = json_need_int(&r, "created", (struct json_range){0, INT64_MAX});
    *complete = json_read_bool(&r, "complete", false);
    json_decref(held);
    return r.st;
}

enum status store_disk_read(struct store_list **out, const char *root_dir, const char *name,
                            struct errtext *err)
{
    char dir[PATH_MAX], path[PATH_MAX + 16], hex[65];
    bool complete = false;
    snprintf(dir, sizeof(dir), "%.*s/%s", PATH_MAX - 70, root_dir, name);
    snprintf(path, sizeof(path), "%s/held.json", dir);
    *out = NULL;
    if (!file_exists(path)) {
        store_disk_remove(dir);
        return STATUS_OK;
    }
    struct store_list *h = NULL;
    enum status st = store_list_open(&h, dir, NULL, err);
    if (st)
        return st;
    h->head.own = true;
    hex_encode(hex, h->head.root, 32);
    st = strcmp(hex, name) == 0
             ? read_held(h, &complete, err)
             : err_set(err, STATUS_CORRUPT, "%s/datanet.json: its documents have the root %s", dir,
                       hex);
    unlink_files(dir, UNFINISHED);
    h->head.missing = 0;
    for (uint32_t i = 0; !st && i < h->head.documents; i++) {
        h->text[i].here = text_is_here(dir, &h->text[i], complete);
        h->head.missing += !h->text[i].here;
    }
    if (st) {
        store_list_free(h);
        return st;
    }
    if (complete && h->head.missing)
        log_warn("datanets", "%s: %u texts are missing or have another size; publish it again", dir,
                 h->head.missing);
    *out = h;
    return STATUS_OK;
}

void store_disk_remove(const char *dir)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%.*s/held.json", PATH_MAX - 32, dir);
    (void)unlink(path);
    unlink_files(dir, "");
    (void)rmdir(dir);
}
