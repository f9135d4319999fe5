/* Admission of adapters: everything is checked before anything is kept (kept.h). A name belongs to
 * the key that published it first, a key has a quota of bytes, and a name only ever moves forward:
 * to other content if asked, to a manifest of a higher version. The last section finds again what
 * an earlier process kept. */
#include "server/adapter/publish.h"
#include "server/adapter/device_form.h"
#include "server/adapter/kept.h"
#include "server/adapter/publish_impl.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/file.h"
#include "server/base/log.h"
#include "server/base/mem.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum status publisher_create(struct publisher **out, const struct publish_options *opt,
                             struct catalog *c, struct errtext *err)
{
    *out = NULL;
    enum status st = file_mkdirs(opt->adapters_dir, 0700, err);
    if (st)
        return st;
    struct publisher *p = mem_alloc(sizeof(*p));
    p->opt = *opt;
    p->catalog = c;
    p->adapters_dir = mem_strdup(opt->adapters_dir);
    p->near = near_table_create(opt->adapters_dir, opt->adapters_max);
    CHECK(pthread_mutex_init(&p->lock, NULL) == 0);
    CHECK(pthread_mutex_init(&p->near_lock, NULL) == 0);
    for (uint32_t i = 0; i < opt->root_count; i++) {
        char *real = realpath(opt->root[i], NULL);
        if (!real) {
            st = err_param(err, STATUS_NOT_FOUND, "adapter_roots", "adapter_roots: %s: %s",
                           opt->root[i], strerror(errno));
            publisher_destroy(p);
            return st;
        }
        p->roots.root[p->roots.count++] = real;
    }
    *out = p;
    return STATUS_OK;
}

void publisher_destroy(struct publisher *p)
{
    if (!p)
        return;
    for (uint32_t i = 0; i < p->roots.count; i++)
        mem_free((char *)(uintptr_t)p->roots.root[i]);
    mem_free(p->adapters_dir);
    near_table_destroy(p->near);
    pthread_mutex_destroy(&p->lock);
    pthread_mutex_destroy(&p->near_lock);
    mem_free(p);
}

const struct file_roots *publisher_roots(const struct publisher *p)
{
    return &p->roots;
}

/* ---- one adapter, checked ---- */

void publish_fill_entry(const struct publisher *p, struct adapter_entry *e, const char *name,
                        const char *dir, const struct peft_adapter *a)
{
    struct lora_entry *layout =
        mem_array((size_t)p->opt.model->n_layer * LORA_MODULE_COUNT, sizeof(*layout));
    snprintf(e->name, sizeof(e->name), "%s", name);
    memcpy(e->id, a->id, 32);
    e->seal = a->seal;
    mem_free(e->dir);
    e->dir = mem_strdup(dir);
    e->rank_max = a->rank_max;
    peft_layout(a, p->opt.model->n_layer, p->opt.dtype, layout, &e->blob_bytes);
    if (p->opt.form)
        e->blob_bytes = device_form_layout(p->opt.form, p->opt.model, layout, layout);
    mem_free(layout);
    snprintf(e->warning, sizeof(e->warning), "%s", a->warning);
    e->created_unix = (int64_t)(clock_wall_ms() / 1000);
    if (p->opt.book)
        book_want(p->opt.book, e->id);
}

struct same_chat {
    const struct chat_own *own;
    struct chat_own *found; /* a reference */
};

static bool find_same_chat(void *arg, struct adapter_entry *e)
{
    struct same_chat *s = arg;
    if (e->chat && e->chat->chat && s->own->chat && !strcmp(e->chat->text, s->own->text))
        s->found = chat_own_ref(e->chat);
    return !s->found;
}

void publish_set_chat(struct publisher *p, struct adapter_entry *e, struct chat_own *own)
{
    struct same_chat s = {.own = own};
    bool is_base = own && own->chat && p->opt.chat_text && !strcmp(own->text, p->opt.chat_text);
    if (!own || is_base)
        return;
    catalog_each(p->catalog, find_same_chat, &s);
    e->chat = s.found ? s.found : chat_own_ref(own);
    if (e->chat->refusal) {
        size_t used = strlen(e->warning);
        snprintf(e->warning + used, sizeof(e->warning) - used,
                 "%sits chat template cannot be used: %s", used ? "; " : "", e->chat->refusal);
        log_warn("adapters", "'%s': no chat is served with it: %s", e->name, e->chat->refusal);
    }
}

/* Of an upload: one that cannot be used is refused, since who sends it is there to be told. */
static enum status take_chat(struct publisher *p, const char *text, bool must,
                             struct adapter_entry *e, struct errtext *err)
{
    struct chat_own *own;
    if (!text)
        return STATUS_OK;
    enum status st = chat_own_make(&own, text, strlen(text), "chat_template", err);
    if (st)
        return st;
    if (must && own->refusal)
        st = err_param(err, STATUS_INVALID, "chat_template", "%s", own->refusal);
    else
        publish_set_chat(p, e, own);
    chat_own_release(own);
    return st;
}

static void apply_manifest(struct adapter_entry *e, const struct manifest *m)
{
    e->has_manifest = true;
    e->manifest_version = m->version;
    manifest_digest(e->manifest_digest, m);
}

enum status publish_register(struct publisher *p, struct adapter_entry *e, bool replace,
                             struct errtext *err)
{
    struct adapter_entry *old;
    enum status st = catalog_put(p->catalog, e, replace, &old, err);
    catalog_release(old);
    return st;
}

/* ---- uploads ---- */

struct quota {
    const char *publisher, *except; /* the name that this upload replaces */
    uint64_t bytes;
};

static bool add_bytes(void *arg, struct adapter_entry *e)
{
    struct quota *q = arg;
    struct stat sb;
    char path[PATH_MAX];
    if (q->publisher[0] && strcmp(e->publisher, q->publisher) == 0 &&
        strcmp(e->name, q->except) != 0) {
        snprintf(path, sizeof(path), "%s/adapter_model.safetensors", e->dir);
        q->bytes += stat(path, &sb) == 0 ? (uint64_t)sb.st_size : 0;
    }
    return true;
}

static enum status check_quota(struct publisher *p, const struct publish_upload *u,
                               struct errtext *err)
{
    struct quota q = {.publisher = u->key_name, .except = u->name};
    uint64_t bytes_max = u->quota_bytes ? u->quota_bytes : p->opt.publisher_bytes_max;
    if (u->tensor_bytes > p->opt.limits.bytes_max)
        return err_set(err, STATUS_TOO_LARGE,
                       "adapter_model.safetensors: %zu bytes, at most %llu (adapter_bytes_max)",
                       u->tensor_bytes, (unsigned long long)p->opt.limits.bytes_max);
    catalog_each(p->catalog, add_bytes, &q);
    if (q.bytes + u->tensor_bytes > bytes_max)
        return err_set(err, STATUS_TOO_LARGE,
                       "this key has published %llu bytes, with %zu more they exceed its quota of "
                       "%llu",
                       (unsigned long long)q.bytes, u->tensor_bytes, (unsigned long long)bytes_max);
    return STATUS_OK;
}

/* A name belongs to the key that published it first; start-up adapters to the operator. */
static enum status check_name_owner(struct publisher *p, const struct publish_upload *u,
                                    struct errtext *err)
{
    struct adapter_entry *e = catalog_find(p->catalog, u->name);
    if (!e)
        return STATUS_OK;
    bool own = strcmp(e->publisher, u->key_name) == 0;
    catalog_release(e);
    return own ? STATUS_OK
               : err_param(err, STATUS_DENIED, "name",
                           "adapter name '%s' belongs to another publisher", u->name);
}

/* What the name holds now, against what would take its place. */
static enum status check_successor(const struct publish_upload *u, const struct adapter_entry *old,
                                   const struct adapter_entry *e, struct errtext *err)
{
    bool same = memcmp(old->id, e->id, 32) == 0;
    if (!same && !u->replace)
        return err_param(err, STATUS_EXISTS, "name",
                         "adapter '%s' is already published with other content; set replace to "
                         "move the name",
                         u->name);
    if (!old->has_manifest)
        return STATUS_OK;
    if (!e->has_manifest && u->dry_run) /* asked for the id that the next manifest will name */
        return STATUS_OK;
    if (!e->has_manifest)
        return err_param(err, STATUS_INVALID, "manifest",
                         "manifest: missing; '%s' was published with one (version %llu)", u->name,
                         (unsigned long long)old->manifest_version);
    bool again = same && memcmp(old->manifest_digest, e->manifest_digest, 32) == 0;
    return again || e->manifest_version > old->manifest_version
               ? STATUS_OK
               : err_param(err, STATUS_INVALID, "manifest",
                           "manifest.version: found %llu, expected more than %llu, which '%s' was "
                           "published with",
                           (unsigned long long)e->manifest_version,
                           (unsigned long long)old->manifest_version, u->name);
}

static enum status check_predecessor(struct publisher *p, const struct publish_upload *u,
                                     const struct adapter_entry *e, struct errtext *err)
{
    struct adapter_entry *old = catalog_find(p->catalog, u->name);
    enum status st = old ? check_successor(u, old, e, err) : STATUS_OK;
    catalog_release(old);
    return st;
}

/* The same content under another publisher's name: its files serve both, and stay as they are. */
static bool is_kept_by_other(struct publisher *p, const struct publish_upload *u,
                             const struct adapter_entry *e)
{
    struct adapter_entry *other = catalog_find_id(p->catalog, e->id);
    bool yes = other && strcmp(other->dir, e->dir) == 0 && strcmp(other->publisher, u->key_name);
    catalog_release(other);
    return yes;
}

static void write_report(const struct publisher *p, const struct publish_upload *u,
                         const struct peft_adapter *a, const struct adapter_entry *e,
                         struct buf *out)
{
    char id[65];
    hex_encode(id, a->id, 32);
    buf_printf(out, "{\"object\":\"adapter.admission\",\"admitted\":true,\"dry_run\":%s,\"name\":",
               u->dry_run ? "true" : "false");
    buf_put_json_string(out, u->name, strlen(u->name));
    buf_printf(out,
               ",\"id\":\"0x%s\",\"rank_max\":%u,\"modules\":%u,\"file_bytes\":%zu,\"resident_"
               "bytes\":%llu,",
               id, a->rank_max, a->module_count, u->tensor_bytes,
               (unsigned long long)e->blob_bytes);
    buf_puts(out, "\"checks\":[\"config fields\",\"tensor header\",\"shapes against the "
                  "base\",\"finite values\",\"non-zero effect\"");
    if (p->opt.book)
        buf_puts(out, ",\"no copy of a registered adapter\"");
    if (e->has_manifest)
        buf_puts(out, ",\"manifest fields\",\"publisher signature\",\"owner signature\"");
    if (p->opt.book && e->has_manifest)
        buf_puts(out, ",\"document licences\"");
    buf_printf(out, "],\"training\":%s,\"warning\":", u->training ? "true" : "false");
    buf_put_json_string(out, a->warning, strlen(a->warning));
    buf_putc(out, ',');
    book_put_json(p->opt.book, a->id, clock_wall_ms() / 1000, PUBLISH_REGISTRY_WAIT_MS, out);
    buf_putc(out, '}');
}

static enum status copy_and_parse(const struct publisher *p, const struct publish_upload *u,
                                  struct peft_adapter *a, struct errtext *err)
{
    char *config = mem_try_strndup(u->config_json, u->config_bytes),
         *tensors = mem_try_alloc(u->tensor_bytes + 1);
    if (!config || !tensors) {
        mem_free(config);
        mem_free(tensors);
        return err_set(err, STATUS_NO_MEMORY, "no memory for an adapter of %zu bytes",
                       u->tensor_bytes);
    }
    memcpy(tensors, u->tensors, u->tensor_bytes);
    enum status st =
        peft_from_bytes(a, config, u->config_bytes, tensors, u->tensor_bytes, p->opt.model, err);
    if (st) {
        mem_free(config);
        mem_free(tensors);
    }
    return st;
}

/* What was kept was asked when it came in: a restart needs no node for it. */
static enum status was_asked(void *arg, const uint8_t account[20], const uint8_t digest[32],
                             const void *signature, size_t len, bool *yes, struct errtext *err)
{
    *yes = true;
    return STATUS_OK;
}

/* *out (manifest_fini, mem_free), or NULL: none was given. */
static enum status take_manifest(const struct publisher *p, const json_t *manifest,
                                 documents_ask_1271 *ask, struct adapter_entry *e,
                                 struct manifest **out, struct errtext *err)
{
    struct manifest_expect x = {.ask = ask,
                                .ask_arg = p->opt.ask_1271_arg,
                                .adapter_id = e->id,
                                .model_id = p->opt.model_id,
                                .chain_id = p->opt.chain_id,
                                .registry = p->opt.registry};
    *out = NULL;
    if (!manifest)
        return STATUS_OK;
    struct manifest *m = mem_alloc(sizeof(*m));
    enum status st = manifest_parse_signed(m, manifest, &x, err);
    if (st) {
        mem_free(m);
        return st;
    }
    apply_manifest(e, m);
    *out = m;
    return STATUS_OK;
}

static void drop_manifest(struct manifest *m)
{
    if (m)
        manifest_fini(m);
    mem_free(m);
}

/* Keep and register; what stood under the name before is forgotten last. */
static enum status keep_and_register(struct publisher *p, const struct publish_upload *u,
                                     struct adapter_entry *e, struct errtext *err)
{
    struct adapter_entry *old = catalog_find(p->catalog, u->name), *replaced = NULL;
    bool known = old && memcmp(old->id, e->id, 32) == 0;
    struct kept_files files = {u->config_json, u->tensors, u->config_bytes, u->tensor_bytes};
    struct kept_name n = {u->name, u->key_name, e->created_unix, u->manifest, u->chat_template};
    enum status st = kept_write(e->dir, &n, is_kept_by_other(p, u, e) ? NULL : &files, err);
    if (!st)
        st = catalog_put(p->catalog, e, u->replace || known, &replaced, err);
    if (st && !known)
        kept_forget(p->adapters_dir, e->id, u->name);
    if (!st && replaced && memcmp(replaced->id, e->id, 32) != 0)
        kept_forget(p->adapters_dir, replaced->id, u->name);
    catalog_release(replaced);
    catalog_release(old);
    return st;
}

/* Rows of other documents than those that are paid would pay nobody. */
static enum status check_training(const struct publish_upload *u, const struct manifest *m,
                                  struct errtext *err)
{
    return !u->training_root || !m || !m->documents ||
                   memcmp(u->training_root, m->documents->document_root, 32) == 0
               ? STATUS_OK
               : err_param(err, STATUS_INVALID, "training",
                           "training.documentRoot: another than that of manifest.documents");
}

static enum status upload_locked(struct publisher *p, const struct publish_upload *u,
                                 struct buf *report, struct errtext *err)
{
    struct peft_adapter a;
    struct manifest *m = NULL;
    char dir[PATH_MAX];
    enum status st = catalog_check_name(p->catalog, u->name, err);
    if (!st)
        st = check_quota(p, u, err);
    if (!st)
        st = check_name_owner(p, u, err);
    if (!st)
        st = copy_and_parse(p, u, &a, err);
    if (st)
        return st;
    struct adapter_entry *e = catalog_entry_new();
    kept_dir(p->adapters_dir, a.id, dir);
    st = admit_adapter(&a, &p->opt.limits, err);
    if (!st) {
        publish_fill_entry(p, e, u->name, dir, &a);
        snprintf(e->publisher, sizeof(e->publisher), "%s", u->key_name);
        st = take_manifest(p, u->manifest, p->opt.ask_1271, e, &m, err);
    }
    if (!st)
        st = take_chat(p, u->chat_template, true, e, err);
    if (!st)
        st = check_predecessor(p, u, e, err);
    if (!st && m && m->documents)
        st = publisher_check_licences(p, m->datanet_id, m->documents, err);
    if (!st)
        st = check_training(u, m, err);
    if (!st)
        st = publish_check_terms(p, a.id, m, err);
    if (!st)
        st = publish_check_near(p, &a, m, err);
    if (!st && !u->dry_run)
        st = publish_keep_owners(p, m ? m->documents : NULL, err);
    if (!st && !u->dry_run)
        st = keep_and_register(p, u, e, err);
    if (!st && !u->dry_run)
        publish_note_near(p, &a);
    if (!st)
        write_report(p, u, &a, e, report);
    if (!st && u->id)
        memcpy(u->id, a.id, 32);
    drop_manifest(m);
    catalog_release(e);
    peft_fini(&a);
    return st;
}

enum status publisher_upload(struct publisher *p, const struct publish_upload *u,
                             struct buf *report, struct errtext *err)
{
    pthread_mutex_lock(&p->lock);
    enum status st = upload_locked(p, u, report, err);
    pthread_mutex_unlock(&p->lock);
    return st;
}

/* ---- after a restart ---- */

static enum status read_kept(struct publisher *p, const char *dir, struct peft_adapter *a,
                             struct errtext *err)
{
    char want[65];
    enum status st = peft_read_dir(a, dir, NULL, p->opt.model, p->opt.limits.bytes_max, err);
    if (st)
        return st;
    hex_encode(want, a->id, 32);
    st = strcmp(strrchr(dir, '/') + 1, want) == 0
             ? admit_ranks(a, &p->opt.limits, err)
             : err_set(err, STATUS_CORRUPT, "%s: its files are adapter %.16s, not what was kept",
                       dir, want);
    if (st)
        peft_fini(a);
    return st;
}

/* A crash while a name moved leaves it in two folders: the later one is the name's. */
static enum status register_newest(struct publisher *p, struct adapter_entry *e,
                                   struct errtext *err)
{
    struct adapter_entry *old = catalog_find(p->catalog, e->name);
    bool keep = old && old->created_unix > e->created_unix;
    if (old)
        kept_forget(p->adapters_dir, keep ? e->id : old->id, e->name);
    catalog_release(old);
    return keep ? STATUS_OK : publish_register(p, e, true, err);
}

static enum status recover_name(struct publisher *p, const char *dir, const char *file,
                                const struct peft_adapter *a, struct errtext *err)
{
    json_t *root = NULL;
    struct kept_name n;
    enum status st = kept_read(&n, &root, dir, file, err);
    if (!st)
        st = catalog_check_name(p->catalog, n.name, err);
    if (!st) {
        struct adapter_entry *e = catalog_entry_new();
        publish_fill_entry(p, e, n.name, dir, a);
        snprintf(e->publisher, sizeof(e->publisher), "%s", n.publisher);
        e->created_unix = n.created_unix;
        struct manifest *m;
        st = take_manifest(p, n.manifest, was_asked, e, &m, err);
        if (!st)
            st = publish_keep_owners(p, m ? m->documents : NULL, err);
        drop_manifest(m);
        if (!st)
            st = take_chat(p, n.chat_template, false, e, err);
        if (!st)
            st = register_newest(p, e, err);
        catalog_release(e);
    }
    json_decref(root);
    return st;
}

/* Every name of one kept folder; says what is not served, and why. */
static void recover_dir(struct publisher *p, const char *dir, uint32_t *count)
{
    struct errtext why = ERRTEXT_INIT;
    struct peft_adapter a;
    struct dirent **list;
    int n = scandir(dir, &list, kept_is_name, alphasort);
    enum status st = n > 0 ? read_kept(p, dir, &a, &why) : STATUS_OK;
    if (st)
        log_warn("adapters", "published adapter %.16s is not served: %s", strrchr(dir, '/') + 1,
                 why.text);
    for (int i = 0; i < n; i++) {
        why = (struct errtext)ERRTEXT_INIT;
        if (!st && recover_name(p, dir, list[i]->d_name, &a, &why) == STATUS_OK)
            (*count)++;
        else if (!st)
            log_warn("adapters", "a published adapter is not served: %s", why.text);
        free(list[i]); /* lint: waive banned - scandir's memory */
    }
    if (n > 0 && !st) {
        publish_note_near(p, &a);
        peft_fini(&a);
    }
    if (n >= 0)
        free(list); /* lint: waive banned - scandir's memory */
    if (n == 0)
        kept_sweep(dir);
}

enum status publisher_recover(struct publisher *p, uint32_t *count, struct errtext *err)
{
    char dir[PATH_MAX];
    struct dirent **list;
    *count = 0;
    int n = scandir(p->adapters_dir, &list, NULL, alphasort);
    if (n < 0)
        return err_set(err, STATUS_IO, "%s: %s", p->adapters_dir, strerror(errno));
    for (int i = 0; i < n; i++) {
        if (strlen(list[i]->d_name) == 64) {
            snprintf(dir, sizeof(dir), "%s/%s", p->adapters_dir, list[i]->d_name);
            recover_dir(p, dir, count);
        }
        free(list[i]); /* lint: waive banned - scandir's memory */
    }
    free(list); /* lint: waive banned - scandir's memory */
    return STATUS_OK;
}

void publisher_forget(struct publisher *p, const struct adapter_entry *e)
{
    char dir[PATH_MAX];
    kept_dir(p->adapters_dir, e->id, dir);
    if (strcmp(dir, e->dir) != 0)
        return; /* not ours: an operator's directory */
    pthread_mutex_lock(&p->lock);
    kept_forget(p->adapters_dir, e->id, e->name);
    pthread_mutex_unlock(&p->lock);
}
