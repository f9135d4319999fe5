/* OpenAI's /v1/files: what a fine-tuning job trains on, and what it leaves behind. A file is seen
 * by the API key that brought it and by nobody else. A file to train on is read before it is kept,
 * so that its sender hears of a bad line at once. All of it waits for a disk: it runs on that lane.
 */
#include "server/http/files.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/datanet/documents.h"
#include "server/http/audit.h"
#include "server/http/auth.h"
#include "server/http/handlers.h"
#include "server/http/state.h"
#include "server/http/upload.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PAGE_FILES_MAX 10000u
#define CONTENT_SUFFIX "/content"

/* ---- paging ---- */

enum status files_read_limit(const struct exchange *x, uint32_t lo, uint32_t max, uint32_t absent,
                             uint32_t *out, struct errtext *err)
{
    size_t len = strlen(x->query_limit);
    uint32_t n = 0;
    for (size_t i = 0; i < len && n <= max; i++)
        n = x->query_limit[i] >= '0' && x->query_limit[i] <= '9'
                ? 10 * n + (uint32_t)(x->query_limit[i] - '0')
                : UINT32_MAX;
    *out = len ? n : absent;
    return *out >= lo && *out <= max
               ? STATUS_OK
               : err_param(err, STATUS_INVALID, "limit",
                           "limit: found '%s', expected a number from %u to %u", x->query_limit, lo,
                           max);
}

/* ---- what there is ---- */

static void put_file(struct buf *out, const struct stored_file *f)
{
    buf_printf(out,
               "{\"id\":\"%s\",\"object\":\"file\",\"bytes\":%" PRIu64 ",\"created_at\":%" PRId64
               ",\"filename\":",
               f->id, f->bytes, f->created_ms / 1000);
    buf_put_json_string(out, f->name, strlen(f->name));
    buf_printf(out, ",\"purpose\":\"%s\",\"status\":\"processed\",\"status_details\":null}",
               f->purpose);
}

static enum status read_page(const struct exchange *x, struct file_page *page, uint32_t *max,
                             struct errtext *err)
{
    bool known = !*x->query_order || strcmp(x->query_order, "asc") == 0 ||
                 strcmp(x->query_order, "desc") == 0;
    *page = (struct file_page){.owner = auth_key_name(x->key),
                               .purpose = *x->query_purpose ? x->query_purpose : NULL,
                               .after = *x->query_after ? x->query_after : NULL,
                               .oldest_first = strcmp(x->query_order, "asc") == 0};
    if (!known)
        return err_param(err, STATUS_INVALID, "order", "order: found '%s', expected asc or desc",
                         x->query_order);
    return files_read_limit(x, 1, PAGE_FILES_MAX, PAGE_FILES_MAX, max, err);
}

static void put_list(struct buf *out, const struct stored_file *f, uint32_t count, bool more)
{
    buf_puts(out, "{\"object\":\"list\",\"data\":[");
    for (uint32_t i = 0; i < count; i++) {
        buf_puts(out, i ? "," : "");
        put_file(out, &f[i]);
    }
    if (count)
        buf_printf(out, "],\"first_id\":\"%s\",\"last_id\":\"%s\"", f[0].id, f[count - 1].id);
    else
        buf_puts(out, "],\"first_id\":null,\"last_id\":null");
    buf_printf(out, ",\"has_more\":%s}", more ? "true" : "false");
}

void handle_files_list(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    struct file_page page;
    struct stored_file *f = NULL;
    uint32_t max, count = 0;
    bool more = false;
    enum status st = read_page(x, &page, &max, &err);
    if (!st && !(f = mem_try_array(max, sizeof(*f))))
        st = err_set(&err, STATUS_NO_MEMORY, "there is no memory for %u files now", max);
    if (!st)
        st = file_store_list(x->server->deps.files, &page, f, max, &count, &more, &err);
    if (st) {
        exchange_fail(x, st, &err);
    } else {
        put_list(&x->out, f, count, more);
        exchange_json(x, 200);
    }
    mem_free(f);
}

/* ID or ID/content. */
static bool split_tail(const char *tail, char id[FILE_STORE_ID_BYTES])
{
    size_t len = strcspn(tail, "/");
    snprintf(id, FILE_STORE_ID_BYTES, "%.*s", (int)MIN(len, FILE_STORE_ID_BYTES - 1), tail);
    return tail[len] != '\0';
}

static enum status find_file(struct exchange *x, struct stored_file *f, bool *content,
                             struct errtext *err)
{
    char id[FILE_STORE_ID_BYTES];
    *content = split_tail(x->tail, id);
    bool known = !*content || strcmp(x->tail + strlen(id), CONTENT_SUFFIX) == 0;
    return known && file_store_get(x->server->deps.files, auth_key_name(x->key), id, f)
               ? STATUS_OK
               : err_param(err, STATUS_NOT_FOUND, "file_id", "there is no file '%.60s' of this key",
                           x->tail);
}

static enum status put_content(struct exchange *x, const struct stored_file *f, struct errtext *err)
{
    char *data;
    size_t len;
    enum status st = file_store_read(x->server->deps.files, f, &data, &len, err);
    if (st)
        return st;
    buf_put(&x->out, data, len);
    mem_free(data);
    return x->out.failed ? err_set(err, STATUS_NO_MEMORY, "there is no memory for this reply now")
                         : STATUS_OK;
}

void handle_file_get(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    struct stored_file f;
    bool content;
    enum status st = find_file(x, &f, &content, &err);
    if (!st && content)
        st = put_content(x, &f, &err);
    else if (!st)
        put_file(&x->out, &f);
    if (st) {
        exchange_fail(x, st, &err);
        return;
    }
    exchange_json(x, 200);
    if (content)
        x->content_type = "application/octet-stream";
}

void handle_file_delete(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    struct stored_file f;
    bool content;
    enum status st = find_file(x, &f, &content, &err);
    if (!st && content)
        st = err_param(&err, STATUS_NOT_FOUND, "file_id", "DELETE /v1/files/ID");
    if (!st)
        st = file_store_remove(x->server->deps.files, auth_key_name(x->key), f.id, &err);
    audit_action(x, "delete file", x->tail, st, &err);
    if (st) {
        exchange_fail(x, st, &err);
        return;
    }
    buf_printf(&x->out, "{\"id\":\"%s\",\"object\":\"file\",\"deleted\":true}", f.id);
    exchange_json(x, 200);
}

/* ---- what comes in ---- */

static bool ends_in(const char *name, const char *end)
{
    size_t n = strlen(name), k = strlen(end);
    return n > k && strcmp(name + n - k, end) == 0;
}

static enum status count_row(void *arg, size_t offset, size_t bytes, struct errtext *err)
{
    uint32_t *rows = arg;
    (void)offset, (void)bytes, (void)err;
    (*rows)++;
    return STATUS_OK;
}

/* Is it what adapters are trained on? */
static enum status check_rows(const char *name, const char *text, size_t len, struct errtext *err)
{
    uint32_t rows = 0;
    struct buf normal;
    if (!ends_in(name, ".jsonl") && !ends_in(name, ".txt") && !ends_in(name, ".md"))
        return err_param(err, STATUS_INVALID, "file",
                         "file: found '%.100s', expected a file to train on: .jsonl with a row a "
                         "line, or a text (.txt, .md) whose sentences are rows",
                         name);
    buf_init(&normal, 4 * (size_t)DOCUMENT_BYTES_MAX);
    enum status st = document_normal(&normal, text, len, err);
    if (!st)
        st = rows_each(rows_kind_guess(name, normal.data, normal.len), normal.data, normal.len,
                       count_row, &rows, err);
    buf_fini(&normal);
    if (!st && rows == 0)
        st = err_set(err, STATUS_INVALID, "no row in it");
    if (st) {
        err_prefix(err, "%.100s", name);
        snprintf(err->param, sizeof(err->param), "file");
    }
    return st;
}

static enum status read_purpose(const struct multipart_part *p, struct stored_file *f,
                                struct errtext *err)
{
    if (p && p->len == strlen(FILES_TO_TRAIN) && memcmp(p->data, FILES_TO_TRAIN, p->len) == 0) {
        snprintf(f->purpose, sizeof(f->purpose), FILES_TO_TRAIN);
        return STATUS_OK;
    }
    return err_param(err, STATUS_INVALID, "purpose",
                     "purpose: found '%.*s', expected " FILES_TO_TRAIN
                     ", the one this server has a use for",
                     p ? (int)MIN(p->len, 40) : 0, p ? p->data : "");
}

/* The fields of the form; *file: the one with the bytes. */
static enum status read_form(const struct multipart_part *part, uint32_t count,
                             struct stored_file *f, const struct multipart_part **file,
                             struct errtext *err)
{
    *file = multipart_find(part, count, "file");
    for (uint32_t i = 0; i < count; i++) {
        if (strcmp(part[i].name, "file") != 0 && strcmp(part[i].name, "purpose") != 0)
            return err_param(err, STATUS_UNSUPPORTED, part[i].name,
                             "%s: found a field that is not understood here, expected file and "
                             "purpose; files stay until they are deleted",
                             part[i].name);
    }
    if (!*file || !(*file)->filename[0])
        return err_param(err, STATUS_INVALID, "file",
                         "file: expected one part named file, with a filename");
    if ((*file)->len > FILE_STORE_BYTES_MAX)
        return err_param(err, STATUS_TOO_LARGE, "file", "file: %zu bytes, at most %u are kept",
                         (*file)->len, FILE_STORE_BYTES_MAX);
    snprintf(f->name, sizeof(f->name), "%s", (*file)->filename);
    return read_purpose(multipart_find(part, count, "purpose"), f, err);
}

static enum status keep_form(struct exchange *x, const char *body, size_t len,
                             struct stored_file *f, struct errtext *err)
{
    struct multipart_part *part = mem_array(MULTIPART_PARTS_MAX, sizeof(*part));
    const struct multipart_part *file = NULL;
    uint32_t count;
    snprintf(f->owner, sizeof(f->owner), "%s", auth_key_name(x->key));
    enum status st = multipart_parse(body, len, x->upload->boundary, part, &count, err);
    if (!st)
        st = read_form(part, count, f, &file, err);
    if (!st)
        st = check_rows(f->name, file->data, file->len, err);
    if (!st)
        st = file_store_put(x->server->deps.files, f, file->data, file->len, err);
    mem_free(part);
    return st;
}

void handle_file_upload(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    struct stored_file f = {.id = ""};
    char *body = NULL;
    size_t len = 0;
    CHECK(x->upload);
    enum status st =
        lseek(x->upload->fd, 0, SEEK_SET) == 0
            ? file_read_fd(x->upload->fd, "the form", UPLOAD_FORM_BYTES_MAX, &body, &len, &err)
            : err_set(&err, STATUS_IO, "the form cannot be read: %s", strerror(errno));
    if (!st)
        st = keep_form(x, body, len, &f, &err);
    mem_free(body);
    uploads_detach(x);
    audit_action(x, "upload file", st ? NULL : f.id, st, &err);
    if (st) {
        exchange_fail(x, st, &err);
        return;
    }
    put_file(&x->out, &f);
    exchange_json(x, 200);
}
