/* Near copies. Who changes a few bits of somebody's adapter, scales it or factors it anew has new
 * content that nobody registered: it would earn for the thief, or cost nothing. So a newcomer is
 * held against every adapter that is known here: first by sketches, all of them, then exactly the
 * few that are likely. The table forgets its oldest sketch when it is full. */
#include "chain_client/eth/addr.h"
#include "server/adapter/peft/likeness.h"
#include "server/adapter/publish_impl.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/log.h"
#include "server/base/mem.h"

#include <dirent.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define COSINE_MAX     0.95
#define CANDIDATES_MAX 8
#define NEWEST_TERMS   UINT64_MAX /* those that are registered and not yet in force too */

struct near_row {
    uint8_t id[32];
    struct likeness likeness;
};
struct near_table {
    struct near_row *row;
    uint32_t count, next, max;
    uint32_t files; /* in the folder of sketches, or more */
};

/* The files of a folder; how many are left. */
static uint32_t remove_all(const char *dir)
{
    char path[PATH_MAX + 256];
    struct dirent *e;
    uint32_t left = 0;
    DIR *d = opendir(dir);
    while (d && (e = readdir(d))) {
        snprintf(path, sizeof(path), "%s/%s", dir, e->d_name);
        left += e->d_name[0] != '.' && unlink(path) != 0;
    }
    if (d)
        closedir(d);
    return left;
}

static uint32_t count_files(const char *dir)
{
    uint32_t count = 0;
    struct dirent *e;
    DIR *d = opendir(dir);
    while (d && (e = readdir(d)))
        count += e->d_name[0] != '.';
    if (d)
        closedir(d);
    return count;
}

struct near_table *near_table_create(const char *adapters_dir, uint32_t rows_max)
{
    char dir[PATH_MAX];
    struct near_table *t = mem_alloc(sizeof(*t));
    snprintf(dir, sizeof(dir), "%.*s/likeness", (int)(PATH_MAX - 80), adapters_dir);
    t->files = count_files(dir);
    t->max = MAX(rows_max, 1u);
    t->row = mem_array(t->max, sizeof(*t->row));
    return t;
}

void near_table_destroy(struct near_table *t)
{
    if (t)
        mem_free(t->row);
    mem_free(t);
}

/* ---- sketches, kept on disk so that a restart reads them ---- */

static void sketch_path(const struct publisher *p, const uint8_t id[32], char path[PATH_MAX])
{
    char hex[65];
    hex_encode(hex, id, 32);
    snprintf(path, PATH_MAX, "%.*s/likeness/%s", (int)(PATH_MAX - 80), p->adapters_dir, hex);
}

static bool read_sketch(const struct publisher *p, struct near_row *row)
{
    char path[PATH_MAX], *bytes;
    size_t len;
    sketch_path(p, row->id, path);
    if (file_read(path, sizeof(row->likeness), &bytes, &len, NULL))
        return false;
    bool whole = len == sizeof(row->likeness);
    if (whole)
        memcpy(&row->likeness, bytes, len);
    mem_free(bytes);
    return whole;
}

/* More files than adapters that can be known: all go, and those in use are made again. */
static void write_sketch(struct publisher *p, const struct near_row *row)
{
    char path[PATH_MAX], dir[PATH_MAX];
    struct errtext err = ERRTEXT_INIT;
    snprintf(dir, sizeof(dir), "%.*s/likeness", (int)(PATH_MAX - 80), p->adapters_dir);
    if (p->near->files++ > 2 * p->near->max)
        p->near->files = remove_all(dir);
    sketch_path(p, row->id, path);
    enum status st = file_mkdirs(dir, 0700, &err);
    if (!st)
        st = file_spare(dir, sizeof(row->likeness), &err);
    if (!st)
        st = file_write_atomic(path, &row->likeness, sizeof(row->likeness), 0600, &err);
    if (st)
        log_warn("adapters", "the sketch of an adapter is not kept: %s", err.text);
}

void publish_note_near(struct publisher *p, const struct peft_adapter *a)
{
    struct near_row row;
    struct errtext err = ERRTEXT_INIT;
    struct near_table *t = p->near;
    if (!p->opt.book)
        return;
    memcpy(row.id, a->id, 32);
    bool kept = read_sketch(p, &row);
    if (!kept && likeness_of(&row.likeness, a, &err)) {
        log_warn("adapters", "near copies of an adapter will not be noticed: %s", err.text);
        return;
    }
    pthread_mutex_lock(&p->near_lock);
    uint32_t at = 0;
    while (at < t->count && memcmp(t->row[at].id, a->id, 32) != 0)
        at++;
    if (at == t->count && t->count == t->max)
        at = t->next++ % t->max;
    t->count = MAX(t->count, at + 1);
    t->row[at] = row;
    if (!kept)
        write_sketch(p, &row);
    pthread_mutex_unlock(&p->near_lock);
}

/* ---- candidates ---- */

struct near_candidate {
    uint8_t id[32];
    float estimate;
};

/* The likeliest, most alike first. */
static uint32_t find_candidates(struct publisher *p, const uint8_t id[32], const struct likeness *l,
                                struct near_candidate out[CANDIDATES_MAX])
{
    uint32_t count = 0;
    pthread_mutex_lock(&p->near_lock);
    for (uint32_t i = 0; i < p->near->count; i++) {
        const struct near_row *row = &p->near->row[i];
        float e = fabsf(likeness_estimate(l, &row->likeness)); /* a weight may be -1 */
        uint32_t at = MIN(count, CANDIDATES_MAX - 1u);
        if (e < LIKENESS_CANDIDATE || memcmp(row->id, id, 32) == 0 ||
            (count == CANDIDATES_MAX && out[at].estimate >= e))
            continue;
        for (; at > 0 && out[at - 1].estimate < e; at--)
            out[at] = out[at - 1];
        out[at].estimate = e;
        memcpy(out[at].id, row->id, 32);
        count = MIN(count + 1, (uint32_t)CANDIDATES_MAX);
    }
    pthread_mutex_unlock(&p->near_lock);
    return count;
}

static bool names_parent(const struct terms *mine, const uint8_t id[32])
{
    for (size_t i = 0; mine && i < mine->r.parent_count; i++) {
        if (memcmp(mine->r.parent[i].adapter_id, id, 32) == 0)
            return true;
    }
    return false;
}

struct newcomer {
    const struct peft_adapter *a;
    const struct terms *terms; /* or NULL */
    const uint8_t *owner;      /* NULL: nobody says */
};

static enum status compare(struct publisher *p, const struct newcomer *n,
                           const struct terms *theirs, const uint8_t id[32], struct errtext *err)
{
    struct errtext unread = ERRTEXT_INIT;
    struct peft_adapter other;
    double cosine;
    char owner[ADDR_TEXT_BYTES];
    struct adapter_entry *e = catalog_find_id(p->catalog, id);
    enum status st = STATUS_OK;
    if (!e ||
        peft_read_dir(&other, e->dir, &p->roots, p->opt.model, p->opt.limits.bytes_max, &unread)) {
        catalog_release(e); /* it left meanwhile */
        return STATUS_OK;
    }
    st = likeness_exact(&cosine, n->a, &other, err);
    addr_format(owner, theirs->owner);
    if (!st && fabs(cosine) > COSINE_MAX)
        st =
            err_param(err, STATUS_DENIED, "adapter",
                      "what this adapter adds to the base is that of '%s' (cosine %.4f), which is "
                      "registered to %s: register it with that adapter as a parent, and publish it "
                      "once the registration is final",
                      e->name, cosine, owner);
    peft_fini(&other);
    catalog_release(e);
    return st;
}

/* Registered adapters of the newcomer's own owner, and its parents, may be as near as they like. */
static enum status check_candidate(struct publisher *p, const struct newcomer *n,
                                   const uint8_t id[32], struct errtext *err)
{
    struct errtext unread = ERRTEXT_INIT;
    struct terms *theirs = NULL;
    enum status st = STATUS_OK;
    if (book_terms(p->opt.book, id, NEWEST_TERMS, &theirs, &unread))
        return STATUS_OK;
    bool own = n->owner && memcmp(n->owner, theirs->owner, 20) == 0;
    if (theirs->r.registered && !own && !names_parent(n->terms, id))
        st = compare(p, n, theirs, id, err);
    terms_release(theirs);
    return st;
}

enum status publish_check_near(struct publisher *p, const struct peft_adapter *a,
                               const struct manifest *m, struct errtext *err)
{
    struct likeness mine;
    struct near_candidate near[CANDIDATES_MAX];
    struct errtext unread = ERRTEXT_INIT;
    struct terms *terms = NULL;
    if (!p->opt.book)
        return STATUS_OK;
    enum status st = likeness_of(&mine, a, err);
    uint32_t count = st ? 0 : find_candidates(p, a->id, &mine, near);
    if (count)
        (void)!book_terms_wait(p->opt.book, a->id, NEWEST_TERMS, PUBLISH_REGISTRY_WAIT_MS, &terms,
                               &unread);
    bool registered = terms && terms->r.registered;
    struct newcomer n = {a, registered ? terms : NULL,
                         registered ? terms->owner
                         : m        ? m->owner
                                    : NULL};
    for (uint32_t i = 0; i < count && !st; i++)
        st = check_candidate(p, &n, near[i].id, err);
    terms_release(terms);
    return st;
}
