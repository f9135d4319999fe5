/* In the order in which they came, each document is held against those before it that are no
 * copies themselves (near.h): so a copy that came later never takes what the first one earns, and
 * copies of copies name the first. Who says another thing in the same words is no copy (differ.h);
 * what his rows restate all the same joins the first one's in the index. Nor is one's own text in
 * other words: what its rows restate joins one's own earlier rows there. */
#include "server/datanet/copies.h"
#include "server/base/mem.h"
#include "server/datanet/differ.h"
#include "server/datanet/near.h"
#include "server/text/unicode.h"

#include <inttypes.h>
#include <stdlib.h>

struct copies_finding {
    const struct datanet *d;
    const struct documents *list;
    struct near *near;
    uint32_t *order;
    struct buf text, words, earlier;
    struct differ_common common; /* read when it is needed first */
    struct copies *out;
    struct errtext *err;
};

static int by_since(const void *a, const void *b, void *arg)
{
    const struct documents_facts *f = arg;
    const struct documents_facts *x = &f[*(const uint32_t *)a], *y = &f[*(const uint32_t *)b];
    if (x->since != y->since)
        return x->since < y->since ? -1 : 1;
    return (x->doc_id > y->doc_id) - (x->doc_id < y->doc_id);
}

static enum status read_words(struct copies_finding *f, uint32_t place)
{
    buf_clear(&f->words);
    enum status st = datanet_text(f->d, place, &f->text, f->err);
    if (!st)
        st = unicode_words(&f->words, f->text.data, f->text.len, f->err);
    if (!st && !f->words.len) /* marks alone: its own text stands for it */
        buf_put(&f->words, f->text.data, f->text.len);
    return st;
}

static enum status read_common(struct copies_finding *f)
{
    uint32_t n = f->list->count, step = n / DIFFER_TEXTS_MAX + 1;
    enum status st = STATUS_OK;
    for (uint32_t i = 0; i < n && !st; i += step) {
        st = datanet_text(f->d, i, &f->earlier, f->err);
        if (!st)
            st = differ_common_add(&f->common, f->earlier.data, f->earlier.len, f->err);
    }
    differ_common_close(&f->common);
    return st;
}

/* Near enough to be a copy: unless it says something else in the same words. */
static enum status is_copy(struct copies_finding *f, uint32_t place, const struct near_found *found,
                           bool *copy)
{
    bool other = false;
    *copy = found->ppm >= NEAR_COPY_PPM;
    if (!*copy || found->ppm == NEAR_SAME_PPM)
        return STATUS_OK;
    enum status st = f->common.texts ? STATUS_OK : read_common(f);
    if (!st)
        st = datanet_text(f->d, found->document, &f->earlier, f->err);
    const struct differ_text mine = {f->list->facts[place].kind, f->text.data, f->text.len};
    const struct differ_text first = {f->list->facts[found->document].kind, f->earlier.data,
                                      f->earlier.len};
    if (!st)
        st = differ_find(&other, &mine, &first, &f->common, f->err);
    *copy = !other;
    return st;
}

static enum status look(struct copies_finding *f, uint32_t place)
{
    struct near_found found;
    bool copy = false;
    enum status st = read_words(f, place);
    const struct near_text t = {f->list->item[place].owner, f->words.data, f->words.len};
    if (!st)
        st = near_find(f->near, &t, &found, f->err);
    if (!st)
        st = is_copy(f, place, &found, &copy);
    if (!st && copy)
        f->out->item[f->out->count++] = (struct copy_found){place, found.document, found.ppm};
    else if (!st)
        st = near_add(f->near, place, &t, f->err);
    if (st)
        err_prefix(f->err, "document %" PRIu64, f->list->facts[place].doc_id);
    return st;
}

static enum status prepare(struct copies_finding *f)
{
    uint32_t n = f->list->count;
    f->order = mem_try_array(n, sizeof(*f->order));
    f->out->item = mem_try_array(n, sizeof(*f->out->item));
    if (!f->order || !f->out->item)
        return err_set(f->err, STATUS_NO_MEMORY, "no memory for %u documents", n);
    for (uint32_t i = 0; i < n; i++)
        f->order[i] = i;
    qsort_r(f->order, n, sizeof(*f->order), by_since, f->list->facts);
    return near_create(&f->near, NEAR_ENTRIES_MAX, f->err);
}

enum status copies_find(struct copies *out, const struct datanet *d, struct errtext *err)
{
    struct copies_finding f = {.d = d, .list = datanet_documents(d), .out = out, .err = err};
    *out = (struct copies){0};
    buf_init(&f.text, 4 * (size_t)DOCUMENT_BYTES_MAX);
    buf_init(&f.words, 8 * (size_t)DOCUMENT_BYTES_MAX);
    buf_init(&f.earlier, 4 * (size_t)DOCUMENT_BYTES_MAX);
    enum status st = prepare(&f);
    for (uint32_t i = 0; i < f.list->count && !st; i++)
        st = look(&f, f.order[i]);
    near_free(f.near);
    mem_free(f.order);
    buf_fini(&f.text);
    buf_fini(&f.words);
    buf_fini(&f.earlier);
    differ_common_fini(&f.common);
    if (st)
        copies_fini(out);
    return st;
}

void copies_fini(struct copies *c)
{
    mem_free(c->item);
    *c = (struct copies){0};
}

enum status copies_drop_rows(const struct copies *c, struct training *t, const struct datanet *d,
                             uint32_t *dropped, struct errtext *err)
{
    uint32_t n = datanet_head(d)->n, kept = 0;
    bool *copy = mem_try_array(n, sizeof(*copy));
    if (!copy)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %u documents", n);
    for (uint32_t i = 0; i < c->count; i++)
        copy[c->item[i].place] = true;
    for (uint32_t i = 0; i < t->n; i++) {
        if (!copy[t->row[i].document])
            t->row[kept++] = t->row[i];
    }
    *dropped = t->n - kept;
    t->n = kept;
    mem_free(copy);
    return kept ? STATUS_OK
                : err_set(err, STATUS_INVALID,
                          "every row of the training manifest is of a copy of an earlier document");
}
