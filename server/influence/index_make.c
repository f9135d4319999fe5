/* What an index is made from, where its files are, and what becomes of them. A file's name says
 * what it is of; what counts is what it says of itself, and its own check. */
#include "server/influence/index_make.h"
#include "kernels/bf16.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/datanet/copies.h"
#include "server/datanet/store_training.h"
#include "server/influence/events_build.h"
#include "server/influence/shares.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define COPIES_LOGGED_MAX 16
#define EVENT_FILE_BYTES  144

struct making {
    struct index_maker *maker;
    bool ahead;
    struct adapter_entry *entry;
    struct datanet *datanet;
    struct training *training;
    struct index *index;
    char path[PATH_MAX];
};

/* ---- what it is made from ---- */

static enum status own_folder(struct making *k, const uint8_t *root, struct errtext *err)
{
    struct errtext why = ERRTEXT_INIT;
    enum status st = datanet_open(&k->datanet, k->entry->dir, k->maker->opt.roots, &why);
    if (!st && root && memcmp(datanet_head(k->datanet)->document_root, root, 32) != 0)
        st = err_set(&why, STATUS_NOT_FOUND, "the folder's datanet is another version");
    if (!st)
        st = training_load(&k->training, k->datanet, &why);
    if (!st)
        return STATUS_OK;
    datanet_release(k->datanet);
    k->datanet = NULL;
    if (st == STATUS_NOT_FOUND)
        return err_set(err, st,
                       "no index: the training manifest of this adapter, or the texts of the "
                       "datanet version that it names, are not here (%s)",
                       why.text);
    return err_set(err, st, "%s", why.text);
}

/* The manifest that was published for the adapter, with the texts that were. */
static enum status published(struct making *k, const uint8_t *root, struct errtext *err)
{
    struct buf text;
    uint8_t named[32];
    struct datanet_store *store = k->maker->deps.store;
    if (!store)
        return STATUS_NOT_FOUND;
    buf_init(&text, TRAINING_BYTES_MAX);
    enum status st = datanet_store_training(store, k->entry->id, &text, err);
    if (!st)
        st = training_shelf_root(named, text.data, text.len, err);
    if (!st && root && memcmp(named, root, 32) != 0)
        st = err_set(err, STATUS_NOT_FOUND,
                     "no index: the training manifest is of another version of the datanet than "
                     "the one that is registered");
    if (!st && !(k->datanet = datanet_store_find(store, named)))
        st = err_set(err, STATUS_NOT_FOUND,
                     "no index: texts of the datanet version that the training manifest names are "
                     "not here");
    if (!st)
        st = training_parse(&k->training, text.data, text.len, k->datanet, err);
    buf_fini(&text);
    return st;
}

static enum status find_source(struct making *k, const uint8_t adapter_id[32], const uint8_t *root,
                               struct errtext *err)
{
    k->entry = catalog_find_id(k->maker->deps.catalog, adapter_id);
    if (!k->entry)
        return err_set(err, STATUS_NOT_FOUND, "no index: the adapter is not here any more");
    struct errtext why = ERRTEXT_INIT;
    enum status st = published(k, root, &why);
    if (st == STATUS_NOT_FOUND) {
        datanet_release(k->datanet);
        k->datanet = NULL;
        st = own_folder(k, root, err);
    } else if (st) {
        st = err_set(err, st, "%s", why.text);
    }
    const uint8_t *digest = k->maker->deps.model->tokenizer_digest;
    if (!st && memcmp(k->training->tokenizer_digest, digest, 32) != 0)
        return err_set(err, STATUS_INVALID,
                       "training manifest: tokenizerDigest is of another tokenizer than this "
                       "base's");
    return st;
}

/* ---- build ---- */

void index_embed(void *model, int32_t id, float *out)
{
    const struct weight *w = &((const struct model *)model)->embed;
    size_t d = w->d_in, at = (size_t)id * d;
    if (w->dtype == DTYPE_F32) {
        memcpy(out, (const float *)w->data + at, d * sizeof(float));
        return;
    }
    for (size_t i = 0; i < d; i++) {
        uint16_t h;
        memcpy(&h, (const uint16_t *)w->data + at + i, sizeof(h));
        out[i] = bf16_to_f32(h);
    }
}

/* The lists that the builder reads while it is there. */
struct index_lists {
    struct events_source_document *document;
    struct events_source_row *row;
    uint8_t (*payee)[20];
};

static void lists_fini(struct index_lists *s)
{
    mem_free(s->document);
    mem_free(s->row);
    mem_free(s->payee);
}

static bool lists_init(struct index_lists *s, const struct making *k)
{
    const struct documents *list = datanet_documents(k->datanet);
    *s = (struct index_lists){.document = mem_try_array(list->count, sizeof(*s->document)),
                              .row = mem_try_array(k->training->n, sizeof(*s->row)),
                              .payee = mem_try_array(list->owner_count, sizeof(*s->payee))};
    if (!s->document || !s->row || !s->payee)
        return false;
    for (uint32_t i = 0; i < list->count; i++)
        s->document[i] = (struct events_source_document){
            .digest = list->item[i].digest,
            .owner = documents_owner(list, i),
            .since = (uint32_t)MIN(list->facts[i].since, UINT32_MAX),
            .doc_id = list->facts[i].doc_id};
    for (uint32_t i = 0; i < list->owner_count; i++)
        memcpy(s->payee[i], list->owner[i].owner, 20);
    for (uint32_t i = 0; i < k->training->n; i++) {
        const struct training_row *r = &k->training->row[i];
        s->row[i] = (struct events_source_row){
            .document = r->document, .offset = r->offset, .bytes = r->bytes};
    }
    return true;
}

static enum status create_builder(struct events_builder **out, const struct making *k,
                                  const struct index_lists *s, struct errtext *err)
{
    const struct datanet_head *head = datanet_head(k->datanet);
    struct model *model = (struct model *)k->maker->deps.model;
    const struct events_source src = {.adapter_id = k->entry->id,
                                      .model_id = model->id,
                                      .document_root = head->document_root,
                                      .owner_root = head->owner_root,
                                      .training_digest = k->training->digest,
                                      .tokenizer_digest = model->tokenizer_digest,
                                      .document = s->document,
                                      .payee = (const uint8_t(*)[20])s->payee,
                                      .row = s->row,
                                      .n_documents = head->n,
                                      .n_owners = head->owners,
                                      .n_rows = k->training->n,
                                      .n_vocab = model->config.n_vocab,
                                      .d_model = model->config.d_model,
                                      .embed = index_embed,
                                      .embed_arg = model};
    return events_builder_create(out, &src, err);
}

/* A publisher who did not mark the copies in the list (residual datanet build does) has no say in
 * whom their rows pay: they are left out here. */
static enum status leave_copies_out(struct making *k, struct errtext *err)
{
    struct copies copies;
    uint32_t dropped = 0;
    enum status st = copies_find(&copies, k->datanet, err);
    if (!st)
        st = copies_drop_rows(&copies, k->training, k->datanet, &dropped, err);
    for (uint32_t i = 0; dropped && i < copies.count && i < COPIES_LOGGED_MAX; i++) {
        const struct copy_found *c = &copies.item[i];
        log_warn("index",
                 "adapter %s: document %llu says what document %llu says (%u %% alike), which is "
                 "earlier: its rows are not indexed",
                 k->entry->name, (unsigned long long)datanet_facts(k->datanet, c->place)->doc_id,
                 (unsigned long long)datanet_facts(k->datanet, c->of)->doc_id, c->ppm / 10000);
    }
    if (dropped)
        log_warn("index", "adapter %s: %u rows of %u copies are left out", k->entry->name, dropped,
                 copies.count);
    copies_fini(&copies);
    return st;
}

/* What is made ahead takes nobody's room. */
static enum status check_room(const struct making *k, uint64_t bytes, struct errtext *err)
{
    const struct indexes_options *opt = &k->maker->opt;
    if (k->ahead && atomic_load(&k->maker->bytes) + bytes > opt->bytes_max)
        return err_set(err, STATUS_FULL, "index_bytes_max %llu leaves no room for %llu bytes",
                       (unsigned long long)opt->bytes_max, (unsigned long long)bytes);
    return file_spare(opt->dir, bytes, err);
}

static enum status build_events(struct making *k, struct errtext *err)
{
    struct training_rows rows = {0};
    struct index_build build = {.maker = k->maker, .entry = k->entry, .rows = &rows};
    struct index_lists lists;
    uint64_t begin_ns = clock_mono_ns();
    enum status st = leave_copies_out(k, err);
    if (st)
        return st;
    st = lists_init(&lists, k)
             ? training_rows_read(&rows, k->datanet, k->training, k->maker->deps.model,
                                  ROW_MASK_ALL, &k->maker->stop, err)
             : err_set(err, STATUS_NO_MEMORY, "index: no memory for its lists");
    if (!st && rows.cut)
        log_warn("index",
                 "adapter %s: %u rows are longer than %d tokens: what follows is not indexed",
                 k->entry->name, rows.cut, ROW_TOKENS_MAX);
    if (!st)
        st = check_room(k, rows.begin[rows.n] * EVENT_FILE_BYTES, err);
    if (!st)
        st = create_builder(&build.builder, k, &lists, err);
    if (!st)
        st = index_run_rows(&build, err);
    if (!st)
        st = events_builder_finish(build.builder, k->path, err);
    if (!st) {
        atomic_fetch_add(&k->maker->built, 1);
        log_info("index", "adapter %s: %u rows, %llu tokens indexed in %.1f s", k->entry->name,
                 rows.n, (unsigned long long)rows.begin[rows.n],
                 (double)(clock_mono_ns() - begin_ns) * 1e-9);
    }
    events_builder_free(build.builder);
    lists_fini(&lists);
    training_rows_fini(&rows);
    return st;
}

/* ---- open ---- */

static void name_file(struct making *k)
{
    char adapter[65], digest[65];
    hex_encode(adapter, k->entry->id, 32);
    hex_encode(digest, k->training->digest, 32);
    snprintf(k->path, sizeof(k->path), "%s/%.32s-%.32s.events", k->maker->opt.dir, adapter, digest);
}

static enum status open_events(struct making *k, struct errtext *err)
{
    const struct events_expect expect = {.adapter_id = k->entry->id,
                                         .document_root = datanet_head(k->datanet)->document_root,
                                         .training_digest = k->training->digest,
                                         .tokenizer_digest =
                                             k->maker->deps.model->tokenizer_digest};
    struct errtext why = ERRTEXT_INIT;
    enum status st = events_open(&k->index->events, k->path, &expect, &why);
    if (st == STATUS_CORRUPT || st == STATUS_INVALID) {
        log_error("index", "%s; it is built again", why.text);
        atomic_fetch_add(&k->maker->rebuilt, 1);
        (void)unlink(k->path);
    }
    if (st == STATUS_OK)
        return st;
    st = build_events(k, err);
    return st ? st : events_open(&k->index->events, k->path, &expect, err);
}

static enum status fill_prior(struct index *index, struct errtext *err)
{
    uint32_t n = events_head(index->events)->n_owners;
    uint32_t *documents = mem_try_array(n, sizeof(*documents));
    index->prior_ppb = mem_try_array(n, sizeof(*index->prior_ppb));
    enum status st = documents && index->prior_ppb ? STATUS_OK : STATUS_NO_MEMORY;
    for (uint32_t i = 0; !st && i < n; i++)
        documents[i] = events_owner(index->events, i)->documents;
    if (!st)
        st = shares_prior(index->prior_ppb, documents, n);
    mem_free(documents);
    return st ? err_set(err, st, "index: its %u owners have no documents", n) : STATUS_OK;
}

/* Spans add to the influence: an index without them, because there was no room for an hour, would
 * pay otherwise for as long as it lives. */
static enum status make_spans(struct making *k, struct errtext *err)
{
    struct errtext why = ERRTEXT_INIT;
    enum status st = index_open_spans(&k->index->spans, k->maker, k->datanet, &why);
    if (st == STATUS_FULL || st == STATUS_IO || st == STATUS_NO_MEMORY)
        return err_set(err, st == STATUS_FULL ? STATUS_IO : st, "%s", why.text);
    if (st)
        log_warn("index", "adapter %s: no spans: %s", k->entry->name, why.text);
    return STATUS_OK;
}

static enum status make_index(struct making *k, struct errtext *err)
{
    name_file(k);
    k->index = mem_alloc(sizeof(*k->index));
    atomic_init(&k->index->refs, 1);
    k->index->datanet = datanet_ref(k->datanet);
    enum status st = open_events(k, err);
    if (st == STATUS_FULL && !k->ahead) /* the disk; only the engine's bases say so below */
        st = STATUS_IO;
    if (!st)
        st = fill_prior(k->index, err);
    if (!st)
        st = engine_basis_create(k->maker->deps.engine, &k->index->basis,
                                 events_basis_w(k->index->events),
                                 events_basis_bias(k->index->events), err);
    if (!st)
        st = make_spans(k, err);
    if (!st) {
        (void)utimensat(AT_FDCWD, k->path, NULL, 0);
        index_trim(k->maker, k->path);
    }
    return st;
}

bool index_has_source(const struct index_maker *m, const struct adapter_entry *e)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%.*s/" TRAINING_FILE, PATH_MAX - 32, e->dir);
    return file_exists(path) || (m->deps.store && datanet_store_has_training(m->deps.store, e->id));
}

enum status index_make(struct index **out, struct index_maker *m, const struct index_want *want,
                       struct errtext *err)
{
    struct making k = {.maker = m, .ahead = want->ahead};
    *out = NULL;
    enum status st = find_source(&k, want->adapter_id, want->document_root, err);
    if (!st)
        st = make_index(&k, err);
    if (st)
        index_release(k.index);
    else
        *out = k.index;
    training_free(k.training);
    datanet_release(k.datanet);
    catalog_release(k.entry);
    return st;
}

/* ---- room ---- */

struct index_file {
    char path[PATH_MAX];
    struct timespec used;
    uint64_t bytes;
};

/* The bytes of all files, and of them the one used longest ago that may go. */
static uint64_t look_around(const struct index_maker *m, const char *keep,
                            struct index_file *oldest)
{
    uint64_t total = 0;
    DIR *d = opendir(m->opt.dir);
    oldest->path[0] = 0;
    for (struct dirent *e; d && (e = readdir(d));) {
        struct stat s;
        char path[PATH_MAX];
        int n = snprintf(path, sizeof(path), "%s/%s", m->opt.dir, e->d_name);
        if (n >= (int)sizeof(path) || stat(path, &s) || !S_ISREG(s.st_mode))
            continue;
        total += (uint64_t)s.st_size;
        bool older =
            !oldest->path[0] || s.st_mtim.tv_sec < oldest->used.tv_sec ||
            (s.st_mtim.tv_sec == oldest->used.tv_sec && s.st_mtim.tv_nsec < oldest->used.tv_nsec);
        if (!older || (keep && strcmp(path, keep) == 0))
            continue;
        memcpy(oldest->path, path, sizeof(path));
        oldest->used = s.st_mtim;
        oldest->bytes = (uint64_t)s.st_size;
    }
    if (d)
        closedir(d);
    return total;
}

bool index_has_file(const struct index_maker *m, const uint8_t adapter_id[32])
{
    char adapter[65];
    bool found = false;
    DIR *d = opendir(m->opt.dir);
    hex_encode(adapter, adapter_id, 32);
    for (struct dirent *e; d && !found && (e = readdir(d));)
        found = strncmp(e->d_name, adapter, 32) == 0 && strstr(e->d_name, ".events");
    if (d)
        closedir(d);
    return found;
}

void index_trim(struct index_maker *m, const char *keep)
{
    struct index_file oldest;
    uint64_t total = look_around(m, keep, &oldest);
    while (total > m->opt.bytes_max && oldest.path[0]) {
        log_info("index", "%s is given up: index_bytes_max %llu is reached", oldest.path,
                 (unsigned long long)m->opt.bytes_max);
        if (unlink(oldest.path))
            break;
        total = look_around(m, keep, &oldest);
    }
    atomic_store(&m->bytes, total);
}
