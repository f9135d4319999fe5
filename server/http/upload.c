/* Staging and publishing of uploaded adapters; see upload.h for the calls. */
#include "server/http/upload.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/json.h"
#include "server/base/mem.h"
#include "server/datanet/store.h"
#include "server/datanet/training.h"
#include "server/http/audit.h"
#include "server/http/auth.h"
#include "server/http/handlers.h"
#include "server/http/reply.h"
#include "server/http/state.h"
#include "server/influence/publish_indexed.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *const part_name[UPLOAD_PART_COUNT] = {
    "adapter_config.json", "adapter_model.safetensors", TRAINING_FILE};

void uploads_init(struct uploads *u)
{
    CHECK(pthread_mutex_init(&u->lock, NULL) == 0);
    memset(u->slot, 0, sizeof(u->slot));
}

static void slot_clear(struct upload_slot *s)
{
    for (int p = 0; p < UPLOAD_PART_COUNT; p++) {
        if (s->used && s->fd[p] >= 0)
            close(s->fd[p]);
    }
    *s = (struct upload_slot){.fd = {-1, -1, -1}};
}

void uploads_fini(struct uploads *u)
{
    for (uint32_t i = 0; i < UPLOADS_MAX; i++)
        slot_clear(&u->slot[i]);
    pthread_mutex_destroy(&u->lock);
}

static uint64_t quota(const struct exchange *x)
{
    return x->key && x->key->publish_bytes_max ? x->key->publish_bytes_max
                                               : x->server->opt.upload_bytes_max;
}

/* Bytes and slots this key has staged already. The lock is held. */
static uint64_t staged(struct uploads *u, uint64_t fair_key, uint32_t *slots)
{
    uint64_t bytes = 0;
    *slots = 0;
    for (uint32_t i = 0; i < UPLOADS_MAX; i++) {
        const struct upload_slot *s = &u->slot[i];
        if (!s->used || s->fair_key != fair_key)
            continue;
        for (int p = 0; p < UPLOAD_PART_COUNT; p++)
            bytes += s->bytes[p];
        (*slots)++;
    }
    return bytes;
}

static bool tail_is(const char *tail, enum upload_part part)
{
    size_t len = strlen(tail), end = strlen(part_name[part]);
    return len > end && strcmp(tail + len - end, part_name[part]) == 0;
}

uint64_t upload_bytes_max(const struct exchange *x)
{
    if (tail_is(x->tail, UPLOAD_CONFIG))
        return UPLOAD_CONFIG_BYTES_MAX;
    return tail_is(x->tail, UPLOAD_TRAINING) ? MIN(quota(x), TRAINING_BYTES_MAX) : quota(x);
}

/* "NAME/adapter_config.json": NAME may itself hold slashes. */
static bool split_tail(const char *tail, struct upload *up)
{
    const char *slash = strrchr(tail, '/');
    if (!slash || slash == tail || (size_t)(slash - tail) > CATALOG_NAME_MAX)
        return false;
    snprintf(up->name, sizeof(up->name), "%.*s", (int)(slash - tail), tail);
    for (int p = 0; p < UPLOAD_PART_COUNT; p++) {
        if (strcmp(slash + 1, part_name[p]) == 0) {
            up->part = (enum upload_part)p;
            return true;
        }
    }
    return false;
}

static enum status open_staging(const struct exchange *x, struct upload *up, struct errtext *err)
{
    const char *dir = x->server->opt.upload_dir ? x->server->opt.upload_dir : "/var/tmp";
    enum status st = file_spare(dir, 0, err);
    up->fd = st ? -1 : open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    return st || up->fd >= 0
               ? st
               : err_set(err, STATUS_IO, "uploads cannot be staged: %s", strerror(errno));
}

static void take_staging(struct exchange *x, struct upload *up, enum status st,
                         const struct errtext *err)
{
    if (st) {
        mem_free(up);
        exchange_fail(x, st, err);
    } else {
        x->upload = up;
    }
}

void upload_stage_text(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    struct upload *up = mem_try_alloc(sizeof(*up));
    enum status st = up ? open_staging(x, up, &err)
                        : err_set(&err, STATUS_NO_MEMORY, "there is no memory for this text now");
    take_staging(x, up, st, &err);
}

void upload_stage_form(struct exchange *x, const char *content_type)
{
    char boundary[MULTIPART_BOUNDARY_MAX + 1];
    struct errtext err = ERRTEXT_INIT;
    enum status st = multipart_boundary(boundary, content_type, &err);
    if (st)
        exchange_fail(x, st, &err);
    else
        upload_stage_text(x);
    if (x->upload)
        memcpy(x->upload->boundary, boundary, sizeof(boundary));
}

void upload_stage(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    struct upload *up = mem_try_alloc(sizeof(*up));
    enum status st = STATUS_OK;
    if (!up) {
        st = err_set(&err, STATUS_NO_MEMORY, "there is no memory for this upload now");
    } else if (!split_tail(x->tail, up)) {
        st = err_param(&err, STATUS_NOT_FOUND, "name",
                       "upload to /v1/uploads/NAME/%s, /v1/uploads/NAME/%s or "
                       "/v1/uploads/NAME/%s",
                       part_name[UPLOAD_CONFIG], part_name[UPLOAD_TENSORS],
                       part_name[UPLOAD_TRAINING]);
    } else if (!auth_allows_adapter(x->key, up->name)) {
        st = err_param(&err, STATUS_DENIED, "name", "this API key may not publish as '%.128s'",
                       up->name);
    } else {
        st = open_staging(x, up, &err);
    }
    take_staging(x, up, st, &err);
}

void uploads_detach(struct exchange *x)
{
    if (!x->upload)
        return;
    if (x->upload->fd >= 0)
        close(x->upload->fd);
    mem_free(x->upload);
    x->upload = NULL;
}

void upload_write(struct exchange *x, const char *data, size_t len)
{
    struct upload *up = x->upload;
    struct errtext err = ERRTEXT_INIT;
    while (len > 0) {
        ssize_t n = write(up->fd, data, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            (void)err_set(&err, STATUS_IO, "the upload cannot be stored: %s", strerror(errno));
            uploads_detach(x);
            exchange_fail(x, STATUS_IO, &err);
            return;
        }
        data += n;
        len -= (size_t)n;
        up->bytes += (uint64_t)n;
    }
}

static struct upload_slot *find_slot(struct uploads *u, uint64_t fair_key, const char *name)
{
    for (uint32_t i = 0; i < UPLOADS_MAX; i++) {
        struct upload_slot *s = &u->slot[i];
        if (s->used && s->fair_key == fair_key && strcmp(s->name, name) == 0)
            return s;
    }
    return NULL;
}

static struct upload_slot *new_slot(struct uploads *u, uint64_t now_ns)
{
    struct upload_slot *found = NULL;
    for (uint32_t i = 0; i < UPLOADS_MAX; i++) {
        struct upload_slot *s = &u->slot[i];
        if (s->used && !s->busy && now_ns - s->touched_ns > UPLOAD_TTL_NS)
            slot_clear(s);
        if (!s->used && !found)
            found = s;
    }
    return found;
}

/* The complete body becomes part of its (key, name). The lock is held. */
static enum status store(struct exchange *x, struct errtext *err)
{
    struct uploads *u = &x->server->uploads;
    struct upload *up = x->upload;
    uint32_t slots = 0;
    uint64_t now_ns = x->server->clock_ns();
    struct upload_slot *s = find_slot(u, x->fair_key, up->name);
    if (s && s->busy)
        return err_set(err, STATUS_BUSY, "'%.128s' is being published now; retry", up->name);
    uint64_t bytes = staged(u, x->fair_key, &slots) - (s ? s->bytes[up->part] : 0);
    if (bytes + up->bytes > quota(x))
        return err_set(
            err, STATUS_TOO_LARGE, "%llu staged bytes and %llu more exceed the quota of %llu bytes",
            (unsigned long long)bytes, (unsigned long long)up->bytes, (unsigned long long)quota(x));
    if (!s && slots >= UPLOADS_PER_KEY_MAX)
        return err_set(err, STATUS_FULL,
                       "%u uploads of this key wait to be published; publish "
                       "them first",
                       slots);
    if (!s) {
        s = new_slot(u, now_ns);
        if (!s)
            return err_set(err, STATUS_FULL, "too many uploads wait to be published; retry later");
        *s = (struct upload_slot){.used = true, .fair_key = x->fair_key, .fd = {-1, -1, -1}};
        snprintf(s->name, sizeof(s->name), "%s", up->name);
    }
    if (s->fd[up->part] >= 0)
        close(s->fd[up->part]);
    s->fd[up->part] = up->fd;
    s->bytes[up->part] = up->bytes;
    s->touched_ns = now_ns;
    up->fd = -1;
    return STATUS_OK;
}

void handle_upload(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    struct uploads *u = &x->server->uploads;
    CHECK(x->upload);
    pthread_mutex_lock(&u->lock);
    enum status st = store(x, &err);
    pthread_mutex_unlock(&u->lock);
    if (st) {
        exchange_fail(x, st, &err);
    } else {
        buf_puts(&x->out, "{\"name\":");
        buf_put_json_string(&x->out, x->upload->name, strlen(x->upload->name));
        buf_printf(&x->out, ",\"part\":\"%s\",\"bytes\":%llu}", part_name[x->upload->part],
                   (unsigned long long)x->upload->bytes);
        exchange_json(x, 201);
    }
    uploads_detach(x);
}

/* Take the staged bodies for a publish: nobody changes them meanwhile. */
static enum status claim(struct exchange *x, const char *name, struct upload_slot **out,
                         struct errtext *err)
{
    struct uploads *u = &x->server->uploads;
    enum status st = STATUS_OK;
    pthread_mutex_lock(&u->lock);
    struct upload_slot *s = find_slot(u, x->fair_key, name);
    if (!s || s->fd[UPLOAD_CONFIG] < 0 || s->fd[UPLOAD_TENSORS] < 0)
        st = err_param(err, STATUS_INVALID, "name", "'%.128s' is not uploaded: PUT %s%s first",
                       name, !s || s->fd[UPLOAD_CONFIG] < 0 ? part_name[UPLOAD_CONFIG] : "",
                       !s ? " and adapter_model.safetensors"
                       : s->fd[UPLOAD_TENSORS] < 0
                           ? (s->fd[UPLOAD_CONFIG] < 0 ? " and adapter_model.safetensors"
                                                       : part_name[UPLOAD_TENSORS])
                           : "");
    else if (s->busy)
        st = err_set(err, STATUS_BUSY, "'%.128s' is being published already; retry", name);
    else
        s->busy = true;
    pthread_mutex_unlock(&u->lock);
    *out = s;
    return st;
}

static void unclaim(struct exchange *x, struct upload_slot *s, bool published)
{
    pthread_mutex_lock(&x->server->uploads.lock);
    s->busy = false;
    s->touched_ns = x->server->clock_ns();
    if (published)
        slot_clear(s);
    pthread_mutex_unlock(&x->server->uploads.lock);
}

static enum status read_part(const struct upload_slot *s, enum upload_part part, char **data,
                             size_t *len, struct errtext *err)
{
    if (lseek(s->fd[part], 0, SEEK_SET) != 0)
        return err_set(err, STATUS_IO, "the upload cannot be read: %s", strerror(errno));
    return file_read_fd(s->fd[part], part_name[part], (size_t)s->bytes[part], data, len, err);
}

static enum status publish(struct exchange *x, struct upload_slot *s, struct publish_upload *p,
                           struct errtext *err)
{
    char *part[UPLOAD_PART_COUNT] = {NULL};
    size_t bytes[UPLOAD_PART_COUNT] = {0};
    const struct http_deps *d = &x->server->deps;
    const struct publish_indexed to = {d->publisher, d->catalog, d->datanets, d->indexes};
    enum status st = STATUS_OK;
    for (int i = 0; !st && i < UPLOAD_PART_COUNT; i++) {
        if (s->fd[i] >= 0)
            st = read_part(s, (enum upload_part)i, &part[i], &bytes[i], err);
    }
    p->config_json = part[UPLOAD_CONFIG];
    p->config_bytes = bytes[UPLOAD_CONFIG];
    p->tensors = part[UPLOAD_TENSORS];
    p->tensor_bytes = bytes[UPLOAD_TENSORS];
    p->training = part[UPLOAD_TRAINING];
    p->training_bytes = bytes[UPLOAD_TRAINING];
    if (!st)
        st = publish_indexed(&to, p, &x->out, err);
    for (int i = 0; i < UPLOAD_PART_COUNT; i++)
        mem_free(part[i]);
    return st;
}

static enum status read_request(struct exchange *x, json_t *root, struct publish_upload *p,
                                struct errtext *err)
{
    struct json_reader in = {.obj = root, .err = err};
    p->name = json_need_string(&in, "name");
    p->replace = json_read_bool(&in, "replace", p->replace);
    p->dry_run = json_read_bool(&in, "dry_run", p->dry_run);
    p->chat_template = json_read_string(&in, "chat_template");
    p->manifest = json_enter(&in, "manifest").obj;
    if (!in.st && !auth_allows_adapter(x->key, p->name))
        return err_param(err, STATUS_DENIED, "name", "this API key may not publish as '%.128s'",
                         p->name);
    return in.st;
}

void handle_publish(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    struct publish_upload p = {.key_name = auth_key_name(x->key),
                               .quota_bytes = x->key ? x->key->publish_bytes_max : 0};
    struct upload_slot *slot = NULL;
    json_t *root = NULL;
    enum status st =
        json_doc_parse(&root, "the body", x->body.data, x->body.len, JSON_DOC_NUL, &err);
    if (!st)
        st = read_request(x, root, &p, &err);
    if (!st)
        st = claim(x, p.name, &slot, &err);
    if (!st) {
        st = publish(x, slot, &p, &err);
        unclaim(x, slot, !st && !p.dry_run);
    }
    audit_action(x, p.dry_run ? "check adapter" : "publish adapter", p.name, st, &err);
    if (st)
        exchange_fail(x, st, &err);
    else
        exchange_json(x, p.dry_run ? 200 : 201);
    json_decref(root);
}
