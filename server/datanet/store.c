/* One table under one lock; files are read and written by store_disk.c. A text is normalised,
 * hashed and written outside the lock: only what it changes in the table is done inside. Lists stay
 * in the order in which they came, and the first of two that have a document is the earlier one. */
#include "server/datanet/store.h"
#include "chain_client/eth/addr.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/hex.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/datanet/store_impl.h"
#include "server/datanet/store_training.h"
#include "server/datanet/training.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- one list ---- */

void store_list_free(struct store_list *h)
{
    if (!h)
        return;
    datanet_release(h->open);
    value_report_free(h->value);
    for (uint32_t i = 0; h->text && i < h->head.documents; i++)
        mem_free(h->text[i].copy);
    mem_free(h->text);
    mem_free(h->dir);
    mem_free(h);
}

struct store_text *store_list_text(const struct store_list *h, const uint8_t digest[32])
{
    uint32_t lo = 0, hi = h->head.documents;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        int c = memcmp(h->text[mid].digest, digest, 32);
        if (c == 0)
            return &h->text[mid];
        if (c < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

static void fill_head(struct store_list *h)
{
    const struct datanet_head *d = datanet_head(h->open);
    h->head.version = d->version;
    h->head.documents = d->n;
    h->head.bytes = d->bytes;
    memcpy(h->head.root, d->document_root, 32);
    memcpy(h->head.id, d->id, 32);
    snprintf(h->head.name, sizeof(h->head.name), "%s", d->name);
}

enum status store_list_open(struct store_list **out, const char *dir,
                            const struct file_roots *roots, struct errtext *err)
{
    struct store_list *h = mem_alloc(sizeof(*h));
    *out = NULL;
    h->dir = mem_strdup(dir);
    enum status st = datanet_open(&h->open, dir, roots, err);
    if (!st) {
        fill_head(h);
        h->text = mem_try_array(h->head.documents, sizeof(*h->text));
        if (!h->text)
            st = err_set(err, STATUS_NO_MEMORY, "no memory for %u documents", h->head.documents);
    }
    for (uint32_t i = 0; !st && i < h->head.documents; i++) {
        const struct datanet_document *d = datanet_document(h->open, i);
        memcpy(h->text[i].digest, d->digest, 32);
        memcpy(h->text[i].owner, d->owner, 20);
        h->text[i].bytes = d->bytes;
        h->text[i].here = datanet_facts(h->open, i)->file != NULL;
        h->head.missing += !h->text[i].here;
    }
    if (!st)
        store_value_load(h);
    if (st)
        store_list_free(h);
    else
        *out = h;
    return st;
}

/* ---- the table; the lock is held ---- */

struct store_list *store_find_list(const struct datanet_store *s, const uint8_t root[32],
                                   uint32_t *place)
{
    for (uint32_t i = 0; i < s->count; i++) {
        if (memcmp(s->list[i]->head.root, root, 32) == 0) {
            if (place)
                *place = i;
            return s->list[i];
        }
    }
    return NULL;
}

void store_take_place(struct datanet_store *s, struct store_list *h, uint32_t place)
{
    if (place < s->count) {
        struct store_list *old = s->list[place];
        s->bytes -= old->head.own ? old->head.bytes : 0;
        s->documents -= old->head.documents;
        store_list_free(old);
    } else {
        s->count++;
    }
    s->list[place] = h;
    for (uint32_t i = 0; i < h->head.documents; i++) {
        if (h->text[i].here)
            store_near_came(s, h, i);
    }
    s->bytes += h->head.own ? h->head.bytes : 0;
    s->documents += h->head.documents;
}

enum status store_check_room(const struct datanet_store *s, const struct store_list *h,
                             const struct store_list *old, struct errtext *err)
{
    uint64_t freed = old && old->head.own ? old->head.bytes : 0;
    if (!old && s->count == DATANET_STORE_LISTS_MAX)
        return err_set(err, STATUS_FULL, "%u datanet versions are held, no more fit", s->count);
    if (h->head.own && h->head.bytes > s->bytes_max)
        return err_set(err, STATUS_TOO_LARGE,
                       "documents: %llu bytes in all, this server holds at most %llu "
                       "(datanet_bytes_max)",
                       (unsigned long long)h->head.bytes, (unsigned long long)s->bytes_max);
    if (h->head.own && s->bytes - freed + h->head.bytes > s->bytes_max)
        return err_set(err, STATUS_FULL,
                       "documents: %llu bytes in all, with those of other datanets more than "
                       "datanet_bytes_max (%llu); remove one, or ask the operator for room",
                       (unsigned long long)h->head.bytes, (unsigned long long)s->bytes_max);
    if (s->documents - (old ? old->head.documents : 0) + h->head.documents >
        DATANET_STORE_DOCUMENTS_MAX)
        return err_set(err, STATUS_FULL, "documents: with these the server would hold more than %u",
                       DATANET_STORE_DOCUMENTS_MAX);
    return STATUS_OK;
}

/* ---- start and end ---- */

static int is_root(const struct dirent *e)
{
    uint8_t root[32];
    return strlen(e->d_name) == 64 && hex_decode(root, 32, e->d_name);
}

/* A list that was read aside when the process ended. */
static int is_aside(const struct dirent *e)
{
    return strncmp(e->d_name, STORE_ASIDE, strlen(STORE_ASIDE)) == 0;
}

static void sweep_aside(const char *dir)
{
    char path[PATH_MAX + 260];
    struct dirent **name;
    int n = scandir(dir, &name, is_aside, NULL);
    for (int i = 0; i < n; i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, name[i]->d_name);
        store_disk_remove(path);
        free(name[i]); /* lint: waive banned - scandir's memory */
    }
    if (n >= 0)
        free(name); /* lint: waive banned - scandir's memory */
}

static void read_kept(struct datanet_store *s, const char *name)
{
    struct errtext err = ERRTEXT_INIT;
    struct store_list *h;
    enum status st = store_disk_read(&h, s->dir, name, &err);
    if (!st && h)
        st = store_check_room(s, h, NULL, &err);
    if (st) {
        log_warn("datanets", "%s is not used: %s", name, err.text);
        store_list_free(h);
    } else if (h) {
        store_take_place(s, h, s->count);
    }
}

static int by_age(const void *a, const void *b)
{
    const struct store_list *x = *(struct store_list *const *)a, *y = *(void *const *)b;
    if (x->head.created_ms != y->head.created_ms)
        return x->head.created_ms < y->head.created_ms ? -1 : 1;
    return memcmp(x->head.root, y->head.root, 32);
}

/* Under the lock: whoever compares texts begins when all lists stand in their order. */
static enum status read_all_kept(struct datanet_store *s, struct errtext *err)
{
    struct dirent **name;
    int n = scandir(s->dir, &name, is_root, alphasort);
    if (n < 0)
        return err_set(err, STATUS_IO, "%s: %s", s->dir, strerror(errno));
    pthread_mutex_lock(&s->lock);
    for (int i = 0; i < n; i++) {
        read_kept(s, name[i]->d_name);
        free(name[i]); /* lint: waive banned - scandir's memory */
    }
    qsort(s->list, s->count, sizeof(s->list[0]), by_age);
    pthread_mutex_unlock(&s->lock);
    free(name); /* lint: waive banned - scandir's memory */
    return STATUS_OK;
}

enum status datanet_store_open(struct datanet_store **out, const char *dir, uint64_t bytes_max,
                               struct errtext *err)
{
    *out = NULL;
    enum status st = file_mkdirs(dir, 0700, err);
    if (st)
        return st;
    struct datanet_store *s = mem_alloc(sizeof(*s));
    snprintf(s->dir, sizeof(s->dir), "%s", dir);
    s->bytes_max = bytes_max;
    CHECK(pthread_mutex_init(&s->lock, NULL) == 0);
    sweep_aside(dir);
    st = training_shelf_open(&s->training, dir, err);
    if (!st)
        st = store_near_start(s, err);
    if (!st)
        st = read_all_kept(s, err);
    if (st)
        datanet_store_close(s);
    else
        *out = s;
    return st;
}

void datanet_store_close(struct datanet_store *s)
{
    if (!s)
        return;
    store_near_stop(s);
    for (uint32_t i = 0; i < s->count; i++)
        store_list_free(s->list[i]);
    training_shelf_close(s->training);
    pthread_mutex_destroy(&s->lock);
    mem_free(s);
}

/* ---- looking ---- */

static struct datanet *reference(struct datanet_store *s, const uint8_t root[32], bool whole)
{
    pthread_mutex_lock(&s->lock);
    const struct store_list *h = store_find_list(s, root, NULL);
    struct datanet *found = h && (!whole || !h->head.missing) ? datanet_ref(h->open) : NULL;
    pthread_mutex_unlock(&s->lock);
    return found;
}

struct datanet *datanet_store_find(struct datanet_store *s, const uint8_t root[32])
{
    return reference(s, root, true);
}

struct datanet *datanet_store_peek(struct datanet_store *s, const uint8_t root[32])
{
    return reference(s, root, false);
}

void datanet_store_each(struct datanet_store *s, datanet_store_visit *visit, void *arg)
{
    pthread_mutex_lock(&s->lock);
    for (uint32_t i = 0; i < s->count; i++) {
        if (!visit(arg, &s->list[i]->head, s->list[i]->value))
            break;
    }
    pthread_mutex_unlock(&s->lock);
}

bool datanet_store_get(struct datanet_store *s, const uint8_t root[32], struct datanet_held *out)
{
    pthread_mutex_lock(&s->lock);
    const struct store_list *h = store_find_list(s, root, NULL);
    if (h)
        *out = h->head;
    pthread_mutex_unlock(&s->lock);
    return h != NULL;
}

bool datanet_store_by_id(struct datanet_store *s, const uint8_t id[32], uint64_t version,
                         struct datanet_held *out)
{
    bool found = false;
    pthread_mutex_lock(&s->lock);
    for (uint32_t i = 0; i < s->count && !found; i++) {
        const struct datanet_held *h = &s->list[i]->head;
        found = h->version == version && memcmp(h->id, id, 32) == 0;
        if (found)
            *out = *h;
    }
    pthread_mutex_unlock(&s->lock);
    return found;
}

bool datanet_store_copy(struct datanet_store *s, const uint8_t root[32], uint32_t place,
                        struct datanet_copy *out)
{
    pthread_mutex_lock(&s->lock);
    const struct store_list *h = store_find_list(s, root, NULL);
    bool found = h && place < h->head.documents && h->text[place].copy;
    if (found)
        *out = *h->text[place].copy;
    pthread_mutex_unlock(&s->lock);
    return found;
}

void datanet_store_missing(struct datanet_store *s, const uint8_t root[32],
                           datanet_store_digest *visit, void *arg)
{
    pthread_mutex_lock(&s->lock);
    const struct store_list *h = store_find_list(s, root, NULL);
    for (uint32_t i = 0; h && i < h->head.documents; i++) {
        if (!h->text[i].here)
            visit(arg, h->text[i].digest);
    }
    pthread_mutex_unlock(&s->lock);
}

/* ---- an operator's folder ---- */

enum status datanet_store_add_dir(struct datanet_store *s, const char *dir,
                                  const struct file_roots *roots, const uint8_t *adapter_id,
                                  struct errtext *err)
{
    struct store_list *h;
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%.*s/" DATANET_FILE, PATH_MAX - 32, dir);
    if (!file_exists(path))
        return STATUS_OK;
    enum status st = store_list_open(&h, dir, roots, err);
    if (st)
        return st;
    h->head.created_ms = (int64_t)clock_wall_ms();
    pthread_mutex_lock(&s->lock);
    uint32_t place = s->count;
    const struct store_list *old = store_find_list(s, h->head.root, &place);
    bool better = !old || old->head.missing > h->head.missing;
    if (better)
        st = store_check_room(s, h, old, err);
    if (better && !st)
        store_take_place(s, h, place);
    else
        store_list_free(h);
    pthread_mutex_unlock(&s->lock);
    return st || !adapter_id ? st : training_shelf_note(s->training, adapter_id, dir, err);
}

/* ---- the end of one ---- */

enum status datanet_store_remove(struct datanet_store *s, const uint8_t root[32],
                                 const char *publisher, bool admin, struct errtext *err)
{
    char hex[65];
    uint32_t place = 0;
    enum status st = STATUS_OK;
    hex_encode(hex, root, 32);
    pthread_mutex_lock(&s->lock);
    struct store_list *h = store_find_list(s, root, &place);
    if (!h) {
        st = err_set(err, STATUS_NOT_FOUND, "there is no datanet with the document root 0x%s here",
                     hex);
    } else if (!h->head.own || (!admin && strcmp(h->head.publisher, publisher) != 0)) {
        st = err_set(err, STATUS_DENIED, "the datanet 0x%s was brought by %s", hex,
                     h->head.own ? "another publisher" : "the operator");
    } else {
        store_disk_remove(h->dir);
        s->bytes -= h->head.bytes;
        s->documents -= h->head.documents;
        store_list_free(h);
        memmove(&s->list[place], &s->list[place + 1], (--s->count - place) * sizeof(s->list[0]));
    }
    pthread_mutex_unlock(&s->lock);
    return st;
}

/* ---- training manifests ---- */

enum status datanet_store_check_training(struct datanet_store *s, const char *text, size_t len,
                                         uint8_t root[32], struct errtext *err)
{
    char hex[65];
    struct training *parsed = NULL;
    enum status st = training_shelf_root(root, text, len, err);
    if (st)
        return st;
    struct datanet *d = datanet_store_find(s, root);
    hex_encode(hex, root, 32);
    st = d ? training_parse(&parsed, text, len, d, err)
           : err_param(err, STATUS_NOT_FOUND, "training",
                       "training.documentRoot: the datanet 0x%s is not here with all its texts; "
                       "residual datanet publish brings it",
                       hex);
    training_free(parsed);
    datanet_release(d);
    return st;
}

enum status datanet_store_put_training(struct datanet_store *s, const uint8_t adapter_id[32],
                                       const char *text, size_t len, bool replace,
                                       struct errtext *err)
{
    uint8_t root[32];
    enum status st = datanet_store_check_training(s, text, len, root, err);
    return st ? st : training_shelf_put(s->training, adapter_id, text, len, replace, err);
}

void datanet_store_drop_training(struct datanet_store *s, const uint8_t adapter_id[32])
{
    training_shelf_drop(s->training, adapter_id);
}

bool datanet_store_has_training(struct datanet_store *s, const uint8_t adapter_id[32])
{
    return training_shelf_has(s->training, adapter_id);
}

enum status datanet_store_training(struct datanet_store *s, const uint8_t adapter_id[32],
                                   struct buf *out, struct errtext *err)
{
    return training_shelf_get(s->training, adapter_id, out, err);
}
