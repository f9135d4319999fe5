/* Two kinds behind two calls: read a key, write a key. What was written is always read again. */
#include "chain_client/settle/store.h"
#include "chain_client/eth/fetch.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/mem.h"

#include <sodium.h>
#include <stdio.h>
#include <string.h>

#define CREDENTIAL_BYTES_MAX 512
#define REQUEST_MS_MAX       120000
#define KEY_BYTES            512

struct depot {
    char *place;
    char *root;           /* the directory, or "/bucket/prefix" */
    struct fetch *bucket; /* NULL: a directory */
};

/* ---- opening ---- */

/* What a key may hold is what a URL shows as it is. */
static bool is_plain(const char *text)
{
    return strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._/") ==
               strlen(text) &&
           !strstr(text, "..") && !strstr(text, "//");
}

static enum status open_bucket(struct depot *s, const char *path, const struct store_config *c,
                               struct errtext *err)
{
    char sigv4[128], *key = NULL;
    size_t len = 0;
    if (!*path || *path == '/' || !is_plain(path))
        return err_param(err, STATUS_INVALID, "archive",
                         "archive: found s3://%.100s, expected s3://BUCKET/PREFIX of letters, "
                         "digits, - . _ and /",
                         path);
    if (!c->key_file)
        return err_param(err, STATUS_INVALID, "s3_key_file",
                         "s3_key_file: missing; name the file with ID:SECRET of %s", s->place);
    enum status st = file_read_secret(c->key_file, CREDENTIAL_BYTES_MAX, &key, &len, err);
    if (!st && (!strchr(key, ':') || strpbrk(key, "\r\n")))
        st = err_param(err, STATUS_INVALID, "s3_key_file", "%s: expected ID:SECRET on one line",
                       c->key_file);
    snprintf(sigv4, sizeof(sigv4), "aws:amz:%s:s3", c->region);
    const struct fetch_config config = {.base = c->endpoint,
                                        .sigv4 = sigv4,
                                        .credential = key,
                                        .what = "archive's bucket",
                                        .timeout_ms = REQUEST_MS_MAX,
                                        .connect_ms = 5000,
                                        .answer_bytes_max = ARCHIVE_RECORDS_BYTES_MAX};
    if (!st)
        st = fetch_open(&s->bucket, &config, err);
    if (key)
        mem_wipe(key, len);
    mem_free(key);
    s->root = mem_alloc(strlen(path) + 2);
    snprintf(s->root, strlen(path) + 2, "/%s", path);
    return st;
}

enum status store_open(struct depot **out, const char *place, const struct store_config *config,
                       struct errtext *err)
{
    struct depot *s = mem_alloc(sizeof(*s));
    enum status st = STATUS_OK;
    s->place = mem_strdup(place);
    if (strncmp(place, "s3://", 5) == 0) {
        st = open_bucket(s, place + 5, config, err);
    } else {
        s->root = mem_strdup(place);
        st = file_mkdirs(place, 0755, err);
    }
    for (size_t n = s->root ? strlen(s->root) : 0; n > 1 && s->root[n - 1] == '/'; n--)
        s->root[n - 1] = '\0';
    if (st)
        store_close(s);
    *out = st ? NULL : s;
    return st;
}

void store_close(struct depot *s)
{
    if (!s)
        return;
    fetch_close(s->bucket);
    mem_free(s->place);
    mem_free(s->root);
    mem_free(s);
}

const char *store_place(const struct depot *s)
{
    return s->place;
}

void store_name(char out[STORE_NAME_BYTES], const char *folder, const uint8_t hash[32])
{
    char hex[65];
    hex_encode(hex, hash, 32);
    snprintf(out, STORE_NAME_BYTES, "%s-%s", folder, hex);
}

/* ---- one key ---- */

static enum status request(struct depot *s, const char *method, const char *key,
                           const struct archive_file *body, struct errtext *err)
{
    uint8_t digest[crypto_hash_sha256_BYTES];
    char hex[2 * sizeof(digest) + 1], header[128];
    crypto_hash_sha256(digest, body ? body->data : NULL, body ? body->len : 0);
    hex_encode(hex, digest, sizeof(digest));
    snprintf(header, sizeof(header), "x-amz-content-sha256: %s", hex);
    const struct fetch_request q = {.method = method,
                                    .path = key,
                                    .body = body ? body->data : NULL,
                                    .body_bytes = body ? body->len : 0,
                                    .header = header};
    enum status st = fetch_perform(s->bucket, &q, err);
    if (st)
        return st;
    const struct fetch_answer *a = fetch_answer(s->bucket);
    if (a->code == 404)
        return err_set(err, STATUS_NOT_FOUND, "%s: not there", key);
    if (a->code / 100 != 2)
        return err_set(err, a->code == 403 ? STATUS_DENIED : STATUS_IO,
                       "%s %s: HTTP status %ld: %.200s", method, key, a->code,
                       a->body.len ? a->body.data : "");
    return STATUS_OK;
}

enum status store_get(struct depot *s, const char *name, const char *file, struct canon_bytes *out,
                      struct errtext *err)
{
    char key[KEY_BYTES], *data = NULL;
    *out = (struct canon_bytes){NULL, 0};
    snprintf(key, sizeof(key), "%s/%s/%s", s->root, name, file);
    if (!s->bucket) {
        enum status st = file_read(key, ARCHIVE_RECORDS_BYTES_MAX, &data, &out->len, err);
        out->data = (uint8_t *)data;
        return st;
    }
    enum status st = request(s, "GET", key, NULL, err);
    if (st)
        return st;
    const struct buf *body = &fetch_answer(s->bucket)->body;
    data = mem_alloc(body->len + 1);
    if (body->len)
        memcpy(data, body->data, body->len);
    *out = (struct canon_bytes){(uint8_t *)data, body->len};
    return STATUS_OK;
}

static enum status write_key(struct depot *s, const char *name, const struct archive_file *file,
                             struct errtext *err)
{
    char key[KEY_BYTES];
    if (s->bucket) {
        snprintf(key, sizeof(key), "%s/%s/%s", s->root, name, file->name);
        return request(s, "PUT", key, file, err);
    }
    snprintf(key, sizeof(key), "%s/%s", s->root, name);
    enum status st = file_mkdirs(key, 0755, err);
    snprintf(key, sizeof(key), "%s/%s/%s", s->root, name, file->name);
    return st ? st : file_write_atomic(key, file->data, file->len, 0644, err);
}

/* *same: it is there with these bytes. */
static enum status compare(struct depot *s, const char *name, const struct archive_file *file,
                           bool *same, struct errtext *err)
{
    struct canon_bytes found;
    struct errtext why = ERRTEXT_INIT;
    enum status st = store_get(s, name, file->name, &found, &why);
    *same = !st && found.len == file->len && memcmp(found.data, file->data, found.len) == 0;
    mem_free((void *)(uintptr_t)found.data);
    return st && st != STATUS_NOT_FOUND ? err_set(err, st, "%s", why.text) : STATUS_OK;
}

enum status store_put(struct depot *s, const char *name, const struct archive_file *file,
                      size_t count, struct errtext *err)
{
    enum status st = STATUS_OK;
    for (size_t i = 0; i < count && !st; i++) {
        bool same = false;
        st = compare(s, name, &file[i], &same, err);
        if (st || same)
            continue;
        st = write_key(s, name, &file[i], err);
        if (!st)
            st = compare(s, name, &file[i], &same, err);
        if (!st && !same)
            st = err_set(err, STATUS_CORRUPT, "%s/%s: gives other bytes back than were put", name,
                         file[i].name);
    }
    return st;
}
