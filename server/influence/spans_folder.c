/* Which files are worth opening is seen from their list of documents alone, before they are read
 * whole: the one that has the most of what is still missing comes first. A file of which more than
 * half is withdrawn is passed over, so that a folder of many small versions ends in one new file,
 * and the old ones go by age. */
#include "server/influence/spans_folder.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/hex.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/influence/spans_impl.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SUFFIX_BYTES 39 /* "-", 32 digits, ".spans" */
#define LEAST_PART   16 /* a segment adds one in so many documents of the version at least */

struct gathered {
    struct spans *part[SPANS_SEGMENTS_MAX];
    uint32_t n;
    char own[PATH_MAX], suffix[SUFFIX_BYTES + 1];
};

/* How many of the list's documents that no part has are in the file; 0 where it is not worth its
 * place, or no segment. The version's own file is worth it always. */
static uint32_t worth(const struct spans_folder *f, const struct gathered *g, const char *path)
{
    struct spans_segment *s;
    uint32_t fresh = 0, listed = 0;
    if (spans_map(&s, path, NULL))
        return 0;
    for (uint32_t d = 0; d < s->h->n_document; d++) {
        const uint8_t *digest = s->document[d].digest;
        if (spans_listed(f->list, digest) == UINT32_MAX)
            continue;
        listed++;
        bool held = false;
        for (uint32_t i = 0; i < g->n && !held; i++)
            held = spans_holds(g->part[i]->part[0].seg, digest);
        fresh += !held;
    }
    bool worthy =
        strcmp(path, g->own) == 0 ||
        (2ull * listed >= s->h->n_document && (uint64_t)fresh * LEAST_PART >= f->list->n_document);
    spans_unmap(s);
    return worthy ? fresh : 0;
}

/* The path of the file that has the most of what is missing; false: none is worth it. */
static bool find_best(const struct spans_folder *f, const struct gathered *g, char path[PATH_MAX])
{
    uint32_t most = worth(f, g, g->own);
    snprintf(path, PATH_MAX, "%s", g->own);
    DIR *dir = most ? NULL : opendir(f->dir);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        char other[PATH_MAX];
        size_t len = strlen(e->d_name);
        if (len < SUFFIX_BYTES || strcmp(e->d_name + len - SUFFIX_BYTES, g->suffix) != 0 ||
            snprintf(other, sizeof(other), "%s/%s", f->dir, e->d_name) >= (int)sizeof(other))
            continue;
        uint32_t fresh = worth(f, g, other);
        if (fresh > most || (fresh && fresh == most && strcmp(other, path) < 0)) {
            most = fresh;
            memcpy(path, other, sizeof(other));
        }
    }
    if (dir)
        closedir(dir);
    return most > 0;
}

static void drop_parts(struct gathered *g)
{
    while (g->n > 0)
        spans_release(g->part[--g->n]);
}

/* Open what is there; a file that fails its check is removed, and looked for no more. */
static enum status gather(struct spans_folder *f, struct gathered *g, struct errtext *err)
{
    const struct spans_expect expect = {.tokenizer_digest = f->tokenizer_digest};
    char path[PATH_MAX];
    while (g->n < SPANS_SEGMENTS_MAX - 1 && find_best(f, g, path)) {
        struct errtext why = ERRTEXT_INIT;
        enum status st = spans_open(&g->part[g->n], path, &expect, &why);
        if (st == STATUS_CORRUPT) {
            f->corrupt++;
            if (unlink(path) != 0)
                return err_set(err, STATUS_IO, "%s; it cannot be removed: %s", why.text,
                               strerror(errno));
            log_error("index", "%s; it was removed, what is needed of it is built again", why.text);
            continue;
        }
        if (st)
            return err_set(err, st, "%s", why.text);
        g->n++;
        (void)utimensat(AT_FDCWD, path, NULL, 0);
    }
    return STATUS_OK;
}

struct picked {
    const struct spans_folder *f;
    const uint32_t *place; /* NULL: all */
};

static enum status give_picked(void *arg, uint32_t i, struct spans_document *out,
                               struct errtext *err)
{
    const struct picked *p = arg;
    uint32_t place = p->place ? p->place[i] : i;
    enum status st = p->f->document(p->f->arg, place, out, err);
    out->digest = p->f->list->digest[place];
    out->owner = p->f->list->owner[place];
    return st;
}

/* Build a segment of those places (NULL: of all) and open it as one more part. */
static enum status add_built(struct spans_folder *f, struct gathered *g, const uint32_t *place,
                             uint32_t n, struct errtext *err)
{
    struct picked p = {.f = f, .place = place};
    const struct spans_source src = {.document_root = f->document_root,
                                     .tokenizer_digest = f->tokenizer_digest,
                                     .n_document = n,
                                     .n_owner = f->list->n_owner,
                                     .n_vocab = f->n_vocab,
                                     .document = give_picked,
                                     .arg = &p};
    const struct spans_expect expect = {.document_root = f->document_root,
                                        .tokenizer_digest = f->tokenizer_digest};
    f->built = n;
    enum status st = file_spare(f->dir, 0, err);
    if (!st)
        st = spans_build(g->own, &src, err);
    if (!st)
        st = spans_open(&g->part[g->n], g->own, &expect, err);
    if (!st)
        g->n++;
    return st;
}

static enum status complete(struct spans_folder *f, struct gathered *g, struct errtext *err)
{
    uint32_t n = f->list->n_document, *missing = mem_try_array(MAX(n, 1), sizeof(*missing));
    if (!missing)
        return err_set(err, STATUS_NO_MEMORY, "spans: no memory for %u documents", n);
    uint32_t lacking = spans_missing(g->part, g->n, f->list, missing);
    enum status st = STATUS_OK;
    if (lacking > 0 || g->n == 0) {
        /* the version's own file is never replaced by a part of it */
        bool whole = 2ull * lacking > n || access(g->own, F_OK) == 0;
        if (whole)
            drop_parts(g);
        st = add_built(f, g, whole ? NULL : missing, whole ? n : lacking, err);
    }
    mem_free(missing);
    return st;
}

enum status spans_folder_open(struct spans **out, struct spans_folder *f, struct errtext *err)
{
    struct gathered g = {.n = 0};
    char root[65], tokenizer[65];
    *out = NULL;
    f->built = f->corrupt = 0;
    hex_encode(root, f->document_root, 32);
    hex_encode(tokenizer, f->tokenizer_digest, 32);
    snprintf(g.suffix, sizeof(g.suffix), "-%.32s.spans", tokenizer);
    if (snprintf(g.own, sizeof(g.own), "%s/%.32s%s", f->dir, root, g.suffix) >= (int)sizeof(g.own))
        return err_set(err, STATUS_INVALID, "%s: path too long", f->dir);
    enum status st = gather(f, &g, err);
    if (!st)
        st = complete(f, &g, err);
    if (!st)
        st = spans_join(out, g.part, g.n, f->list, err);
    drop_parts(&g);
    return st;
}
