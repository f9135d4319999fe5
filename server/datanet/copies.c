/* Two texts with the same words have the same digest of them, whatever their case, width, white
 * space and punctuation are. The first in order stays, so that a copy that came later never takes
 * what the first one earns. */
#include "server/datanet/copies.h"
#include "server/base/mem.h"
#include "server/text/unicode.h"

#include <inttypes.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

struct words_known { /* a slot of the table of digests */
    uint8_t digest[32];
    uint32_t place; /* UINT32_MAX: empty */
};
struct finding {
    const struct datanet *d;
    const struct documents *list;
    struct words_known *table;
    uint32_t slots; /* a power of two, twice the documents */
    uint32_t *order;
    struct buf text, words;
    struct copies *out;
    struct errtext *err;
};

static int by_since(const void *a, const void *b, void *arg)
{
    const struct documents_facts *x = (const struct documents_facts *)arg + *(const uint32_t *)a,
                                 *y = (const struct documents_facts *)arg + *(const uint32_t *)b;
    if (x->since != y->since)
        return x->since < y->since ? -1 : 1;
    return (x->doc_id > y->doc_id) - (x->doc_id < y->doc_id);
}

/* The place of the first document with these words; this one's own if it is the first. */
static uint32_t first_with(struct finding *f, const uint8_t digest[32], uint32_t place)
{
    uint32_t slot;
    memcpy(&slot, digest, sizeof(slot));
    for (slot &= f->slots - 1; f->table[slot].place != UINT32_MAX;
         slot = (slot + 1) & (f->slots - 1)) {
        if (memcmp(f->table[slot].digest, digest, 32) == 0)
            return f->table[slot].place;
    }
    memcpy(f->table[slot].digest, digest, 32);
    f->table[slot].place = place;
    return place;
}

static enum status look(struct finding *f, uint32_t place)
{
    uint8_t digest[32];
    buf_clear(&f->words);
    enum status st = datanet_text(f->d, place, &f->text, f->err);
    if (!st)
        st = unicode_words(&f->words, f->text.data, f->text.len, f->err);
    if (st) {
        err_prefix(f->err, "document %" PRIu64, f->list->facts[place].doc_id);
        return st;
    }
    if (!f->words.len) /* marks alone: its own text stands for it */
        buf_put(&f->words, f->text.data, f->text.len);
    crypto_generichash(digest, 32, (const uint8_t *)f->words.data, f->words.len, NULL, 0);
    uint32_t first = first_with(f, digest, place);
    if (first != place)
        f->out->item[f->out->count++] = (struct copy_found){place, first, COPY_EXACT_PPM};
    return STATUS_OK;
}

static enum status prepare(struct finding *f)
{
    uint32_t n = f->list->count;
    f->slots = 2;
    while (f->slots < 2 * n)
        f->slots *= 2;
    f->table = mem_try_array(f->slots, sizeof(*f->table));
    f->order = mem_try_array(n, sizeof(*f->order));
    f->out->item = mem_try_array(n, sizeof(*f->out->item));
    if (!f->table || !f->order || !f->out->item)
        return err_set(f->err, STATUS_NO_MEMORY, "no memory for %u documents", n);
    for (uint32_t i = 0; i < f->slots; i++)
        f->table[i].place = UINT32_MAX;
    for (uint32_t i = 0; i < n; i++)
        f->order[i] = i;
    qsort_r(f->order, n, sizeof(*f->order), by_since, f->list->facts);
    return STATUS_OK;
}

enum status copies_find(struct copies *out, const struct datanet *d, struct errtext *err)
{
    struct finding f = {.d = d, .list = datanet_documents(d), .out = out, .err = err};
    *out = (struct copies){0};
    buf_init(&f.text, 4 * (size_t)DOCUMENT_BYTES_MAX);
    buf_init(&f.words, 8 * (size_t)DOCUMENT_BYTES_MAX);
    enum status st = prepare(&f);
    for (uint32_t i = 0; i < f.list->count && !st; i++)
        st = look(&f, f.order[i]);
    mem_free(f.table);
    mem_free(f.order);
    buf_fini(&f.text);
    buf_fini(&f.words);
    if (st)
        copies_fini(out);
    return st;
}

void copies_fini(struct copies *c)
{
    mem_free(c->item);
    *c = (struct copies){0};
}
