/* Checkpoints, which only their owner finds again:
 *
 *     <train_dir>/tinker/<owner>/<model>/<name>/state          the learner's own file
 *                                               meta.json      what it is, when it expires
 *                                               training.json  rows so far, where there are any
 *
 * owner: 16 digits of a digest of the key's name. A checkpoint is written beside its place, in
 * <name>.new, and moved there when it is whole. */
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/file.h"
#include "server/base/hex.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/http/auth.h"
#include "server/http/handlers.h"
#include "server/http/tinker_parts.h"

#include <dirent.h>
#include <errno.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define META       "/meta.json"
#define STATE      "/state"
#define TRAINING   "/" TRAINING_FILE
#define META_BYTES 4096u
#define TTL_RANGE                                                                                  \
    (struct json_range)                                                                            \
    {                                                                                              \
        3600, 10ll * 366 * 86400                                                                   \
    }

static void owner_dir(const struct exchange *x, char out[PATH_MAX])
{
    uint8_t digest[8];
    char hex[17];
    const char *name = auth_key_name(x->key);
    crypto_generichash(digest, sizeof(digest), (const uint8_t *)name, strlen(name), NULL, 0);
    hex_encode(hex, digest, sizeof(digest));
    snprintf(out, PATH_MAX, "%s/tinker/%s", x->server->opt.train_dir, hex);
}

static void checkpoint_dir(const struct exchange *x, const char *model, const char *name,
                           char out[PATH_MAX])
{
    char owner[PATH_MAX];
    owner_dir(x, owner);
    snprintf(out, PATH_MAX, "%.3000s/%s/%s", owner, model, name);
}

/* ---- folders of checkpoints ---- */

static void remove_checkpoint(const char *dir)
{
    static const char *const file[] = {STATE, META, TRAINING};
    char path[PATH_MAX];
    for (size_t i = 0; i < ARRAY_COUNT(file); i++) {
        snprintf(path, sizeof(path), "%.4000s%s", dir, file[i]);
        if (unlink(path) != 0 && errno != ENOENT)
            log_warn("tinker", "%s: %s", path, strerror(errno));
    }
    (void)rmdir(dir);
}

struct meta {
    struct tinker_lora lora;
    int64_t expires_ms; /* 0: never */
    bool stepped;
};

static enum status read_meta(struct meta *out, const char *dir, struct errtext *err)
{
    char path[PATH_MAX];
    json_t *root = NULL;
    snprintf(path, sizeof(path), "%.4000s" META, dir);
    enum status st = json_doc_load(&root, path, META_BYTES, 0, err);
    struct json_reader in = {.obj = root, .where = path, .st = st, .err = err};
    out->lora.rank = (uint32_t)json_need_int(&in, "rank", (struct json_range){1, 1024});
    out->lora.mlp = json_read_bool(&in, "train_mlp", false);
    out->lora.attn = json_read_bool(&in, "train_attn", false);
    out->stepped = json_read_bool(&in, "stepped", false);
    out->expires_ms = json_read_int(&in, "expires_ms", (struct json_range){0, INT64_MAX}, 0);
    json_decref(root);
    return in.st;
}

/* Bytes of a checkpoint; one whose time is over is removed and has none. */
static uint64_t weigh_checkpoint(const char *dir)
{
    char path[PATH_MAX];
    struct stat about;
    struct meta meta;
    if (!read_meta(&meta, dir, NULL) && meta.expires_ms &&
        meta.expires_ms < (int64_t)clock_wall_ms()) {
        remove_checkpoint(dir);
        return 0;
    }
    snprintf(path, sizeof(path), "%.4000s" STATE, dir);
    return stat(path, &about) == 0 ? (uint64_t)about.st_size : 0;
}

/* Of an owner's models (depth 0) or of one's checkpoints (depth 1). */
static uint64_t weigh_folder(const char *dir, int depth)
{
    char path[PATH_MAX];
    uint64_t bytes = 0;
    const struct dirent *e;
    DIR *d = opendir(dir);
    while (d && (e = readdir(d))) {
        if (e->d_name[0] == '.')
            continue;
        snprintf(path, sizeof(path), "%.3500s/%s", dir, e->d_name);
        bytes += depth ? weigh_checkpoint(path) : weigh_folder(path, depth + 1);
    }
    if (d)
        closedir(d);
    return bytes;
}

static enum status check_quota(const struct exchange *x, struct errtext *err)
{
    char dir[PATH_MAX];
    uint64_t most = x->key && x->key->publish_bytes_max ? x->key->publish_bytes_max
                                                        : x->server->opt.upload_bytes_max;
    owner_dir(x, dir);
    uint64_t bytes = weigh_folder(dir, 0);
    return bytes < most ? STATUS_OK
                        : err_set(err, STATUS_TOO_LARGE,
                                  "the checkpoints of this key have %llu bytes, its quota is %llu; "
                                  "save over old ones, or give them a ttl_seconds",
                                  (unsigned long long)bytes, (unsigned long long)most);
}

/* ---- save_weights ---- */

static enum status write_meta(const struct tinker_future *f, struct errtext *err)
{
    const struct tinker_lora *lora = &f->model->lora;
    char path[PATH_MAX], text[256];
    int n = snprintf(text, sizeof(text),
                     "{\"rank\":%u,\"train_mlp\":%s,\"train_attn\":%s,\"stepped\":%s,"
                     "\"expires_ms\":%lld}\n",
                     lora->rank, lora->mlp ? "true" : "false", lora->attn ? "true" : "false",
                     f->model->stepped ? "true" : "false", (long long)f->files->expires_ms);
    snprintf(path, sizeof(path), "%.4000s" META, f->files->from_dir);
    return file_write_atomic(path, text, (size_t)n, 0600, err);
}

/* What it holds is known when its turn has come: what was asked for before has not all run. */
static enum status prepare_save(struct exchange *x, struct tinker_future *f, struct json_reader *in)
{
    const char *name = json_need_string(in, "path");
    bool over = json_read_bool(in, "overwrite", false);
    int64_t ttl = json_read_int(in, "ttl_seconds", TTL_RANGE, 0);
    enum status st = in->st ? in->st : tinker_check_name(name, "path", in->err);
    if (!st)
        st = check_quota(x, in->err);
    if (st)
        return st;
    f->files = mem_alloc(sizeof(*f->files));
    checkpoint_dir(x, f->model->id, name, f->files->to_dir);
    snprintf(f->files->from_dir, sizeof(f->files->from_dir), "%.4000s" TINKER_NEW,
             f->files->to_dir);
    tinker_put_path(f, TINKER_WEIGHTS, name);
    if (!over && file_exists(f->files->to_dir))
        return err_param(in->err, STATUS_EXISTS, "path",
                         "path: %s is there already; set overwrite, or take another name", f->path);
    remove_checkpoint(f->files->from_dir);
    st = file_mkdirs(f->files->from_dir, 0700, in->err);
    f->files->expires_ms = ttl ? (int64_t)clock_wall_ms() + ttl * 1000 : 0;
    snprintf(f->files->state, sizeof(f->files->state), "%.4000s" STATE, f->files->from_dir);
    f->work = (struct factory_work){.kind = FACTORY_SAVE, .path = f->files->state};
    return st;
}

void handle_tinker_save(struct exchange *x)
{
    tinker_call(x, TINKER_SAVE, prepare_save);
}

/* The rows so far, as they are when the work before has run. Thread rs-tinker. */
static enum status model_training(struct tinker_future *f, size_t *len, struct errtext *err)
{
    struct tinker *t = f->t;
    struct tinker_rows copy = {.row = NULL};
    pthread_mutex_lock(&t->lock);
    enum status st = tinker_rows_add(&copy, &f->model->rows, err);
    pthread_mutex_unlock(&t->lock);
    if (!st)
        st = tinker_rows_render(&f->training, len, &copy, t->server, err);
    tinker_rows_fini(&copy);
    return st;
}

enum status tinker_finish_save(struct tinker_future *f, struct errtext *err)
{
    char path[PATH_MAX];
    size_t len = 0;
    enum status st = model_training(f, &len, err);
    snprintf(path, sizeof(path), "%.4000s" TRAINING, f->files->from_dir);
    if (!st && f->training)
        st = file_write_atomic(path, f->training, len, 0600, err);
    if (!st)
        st = write_meta(f, err);
    if (st)
        return st;
    remove_checkpoint(f->files->to_dir);
    if (rename(f->files->from_dir, f->files->to_dir) != 0)
        return err_set(err, STATUS_IO, "%s: %s", f->path, strerror(errno));
    buf_printf(&f->out, "{\"type\":\"save_weights\",\"path\":\"%s\"}", f->path);
    return STATUS_OK;
}

void tinker_drop_save(struct tinker_future *f)
{
    remove_checkpoint(f->files->from_dir);
}

/* ---- load_weights ---- */

/* The folder of a path of x's key, and what it holds. */
static enum status find_checkpoint(const struct exchange *x, const char *path, char dir[PATH_MAX],
                                   struct meta *meta, struct errtext *err)
{
    char model[TINKER_ID_BYTES], name[TINKER_NAME_MAX + 1];
    struct errtext why = ERRTEXT_INIT;
    enum status st = tinker_path_parse(path, TINKER_WEIGHTS, model, name, err);
    if (st)
        return st;
    checkpoint_dir(x, model, name, dir);
    st = read_meta(meta, dir, &why);
    if (st == STATUS_NOT_FOUND || (!st && weigh_checkpoint(dir) == 0))
        return err_param(err, STATUS_NOT_FOUND, "path", "path: there is no %.200s of this key",
                         path);
    return st ? err_set(err, st, "%s", why.text) : STATUS_OK;
}

/* Rows that the checkpoint was trained on are the model's when it is loaded. */
static enum status prepare_load_from(struct exchange *x, struct tinker_future *f,
                                     const struct meta *meta, struct json_reader *in)
{
    char file[PATH_MAX], *text = NULL;
    size_t len;
    snprintf(file, sizeof(file), "%.4000s" TRAINING, f->files->from_dir);
    enum status st = STATUS_OK;
    if (file_exists(file))
        st = file_read(file, TRAINING_BYTES_MAX, &text, &len, in->err);
    if (!st && text)
        st = tinker_rows_read(&f->rows, text, len, x->server, in->err);
    mem_free(text);
    snprintf(f->files->state, sizeof(f->files->state), "%.4000s" STATE, f->files->from_dir);
    f->stepped = meta->stepped;
    f->work = (struct factory_work){.kind = FACTORY_LOAD,
                                    .path = f->files->state,
                                    .with_optim = json_read_bool(in, "optimizer", false)};
    return st ? st : in->st;
}

static enum status prepare_load(struct exchange *x, struct tinker_future *f, struct json_reader *in)
{
    struct meta meta;
    const char *path = json_need_string(in, "path");
    f->files = mem_alloc(sizeof(*f->files));
    enum status st = in->st ? in->st : find_checkpoint(x, path, f->files->from_dir, &meta, in->err);
    const struct tinker_lora *has = &f->model->lora;
    if (!st &&
        (meta.lora.rank != has->rank || meta.lora.mlp != has->mlp || meta.lora.attn != has->attn))
        st = err_param(in->err, STATUS_INVALID, "path",
                       "path: %.200s has rank %u and other modules or another rank than this model "
                       "(%u)",
                       path, meta.lora.rank, has->rank);
    snprintf(f->path, sizeof(f->path), "%.*s", (int)sizeof(f->path) - 1, path);
    return st ? st : prepare_load_from(x, f, &meta, in);
}

/* The model is made by the load: its first request. It is there if the load was refused before. */
static void create_by_load(struct exchange *x, struct json_reader *in, struct tinker_session *s)
{
    char id[TINKER_ID_BYTES], dir[PATH_MAX];
    struct meta meta;
    int64_t seq = json_need_int(in, "model_seq_id", (struct json_range){0, INT32_MAX});
    const char *path = json_need_string(in, "path");
    const char *base = json_read_string(in, "base_model");
    enum status st = in->st ? in->st : find_checkpoint(x, path, dir, &meta, in->err);
    if (!st && base && strcmp(base, x->server->opt.model_name) != 0)
        st = err_param(in->err, STATUS_NOT_FOUND, "base_model",
                       "base_model: found \"%.128s\", this server trains \"%s\"", base,
                       x->server->opt.model_name);
    if (st) {
        tinker_fail(x, st, in->err);
        return;
    }
    snprintf(id, sizeof(id), "%s:train:%u", s->id, (unsigned)seq);
    struct tinker_future *f = tinker_open(x, s, TINKER_LOAD, id, 0);
    if (!f)
        return;
    f->files = mem_alloc(sizeof(*f->files));
    snprintf(f->files->from_dir, sizeof(f->files->from_dir), "%s", dir);
    snprintf(f->path, sizeof(f->path), "%.*s", (int)sizeof(f->path) - 1, path);
    st = prepare_load_from(x, f, &meta, in);
    if (!st && !tinker_has_model(x->server->tinker, s, id, &f->model))
        st = tinker_new_model(x, s, (uint32_t)seq, &meta.lora, &f->model, in->err);
    if (!st) {
        tinker_begin_work(x, f);
        return;
    }
    tinker_drop(f);
    tinker_fail(x, st, in->err);
}

void handle_tinker_load(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    struct json_reader in;
    json_t *root = NULL;
    if (tinker_is_off(x))
        return;
    tinker_body(x, &root, &in, &err);
    enum status st = in.st;
    const char *session = json_read_string(&in, "session_id");
    if (!st && !session) {
        tinker_call(x, TINKER_LOAD, prepare_load);
    } else if (st) {
        tinker_fail(x, st, &err);
    } else {
        struct tinker_session *s = tinker_hold(x, session);
        if (s) {
            create_by_load(x, &in, s);
            tinker_release(x->server->tinker, s);
        }
    }
    json_decref(root);
}

void tinker_finish_load(struct tinker_future *f)
{
    struct tinker *t = f->t;
    pthread_mutex_lock(&t->lock);
    struct tinker_rows before = f->model->rows;
    f->model->rows = f->rows;
    f->model->stepped = f->stepped;
    f->rows = before;
    pthread_mutex_unlock(&t->lock);
    buf_puts(&f->out, "{\"type\":\"load_weights\",\"path\":");
    buf_put_json_string(&f->out, f->path, strlen(f->path));
    buf_printf(&f->out, ",\"model_id\":\"%s\"}", f->model->id);
}

void handle_tinker_weights_info(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    char dir[PATH_MAX];
    struct meta meta;
    struct json_reader in;
    json_t *root = NULL;
    const char *base = x->server->opt.model_name;
    if (tinker_is_off(x))
        return;
    tinker_body(x, &root, &in, &err);
    const char *path = json_need_string(&in, "tinker_path");
    enum status st = in.st ? in.st : find_checkpoint(x, path, dir, &meta, &err);
    if (st) {
        tinker_fail(x, st, &err);
    } else {
        buf_puts(&x->out, "{\"base_model\":");
        buf_put_json_string(&x->out, base, strlen(base));
        buf_printf(&x->out,
                   ",\"is_lora\":true,\"lora_rank\":%u,\"train_unembed\":false,\"train_mlp\":%s,"
                   "\"train_attn\":%s}",
                   meta.lora.rank, meta.lora.mlp ? "true" : "false",
                   meta.lora.attn ? "true" : "false");
        exchange_json(x, 200);
    }
    json_decref(root);
}
