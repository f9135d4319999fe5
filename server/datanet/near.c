/* A table from the hash of a shingle to the first documents that have it. Shingles that everybody
 * has keep their first NEAR_HOLDERS documents only: the earliest are those that can be copied. When
 * the table is full, every second hash is dropped, of all documents alike. */
#include "server/datanet/near.h"
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/base/order.h"

#include <sodium.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define NEAR_HOLDERS  16u
#define NEAR_DIGEST   16u
#define NONE          UINT32_MAX
#define TABLE_FIRST   4096u
#define MOST_OF(most) ((uint32_t)((uint64_t)(most)*9 / 10))

struct near_entry {
    uint64_t hash;
    uint32_t document; /* in order of coming */
    uint32_t next;     /* of this slot, in order of coming */
};
struct near_document {
    uint8_t digest[NEAR_DIGEST]; /* of the words */
    uint8_t owner[20];
    uint32_t name, next; /* next: of this slot */
    uint32_t shared;     /* with the text asked about */
};
struct near {
    struct near_entry *entry;
    uint32_t n_entry, cap_entry, entries_max;
    uint32_t *slot; /* [slots] first entry */
    uint32_t slots;
    struct near_document *document;
    uint32_t n_document, cap_document;
    uint32_t *whole; /* [wholes] first document by digest */
    uint32_t wholes;
    uint64_t mask;    /* a hash is kept if it has none of these bits */
    uint64_t *hashes; /* of the text at hand, kept ones, ascending */
    uint32_t *met;    /* documents that share with it */
    uint32_t n_hash, cap_hash, n_met;
    uint32_t words; /* of the text at hand */
};

static enum status near_no_memory(struct errtext *err)
{
    return err_set(err, STATUS_NO_MEMORY, "no memory to look for copies");
}

enum status near_create(struct near **out, uint32_t entries_max, struct errtext *err)
{
    struct near *n = mem_try_alloc(sizeof(*n));
    *out = NULL;
    if (n) {
        n->entries_max = entries_max;
        n->slots = n->wholes = TABLE_FIRST;
        n->slot = mem_try_array(n->slots, sizeof(*n->slot));
        n->whole = mem_try_array(n->wholes, sizeof(*n->whole));
    }
    if (!n || !n->slot || !n->whole) {
        near_free(n);
        return near_no_memory(err);
    }
    memset(n->slot, 0xff, n->slots * sizeof(*n->slot));
    memset(n->whole, 0xff, n->wholes * sizeof(*n->whole));
    *out = n;
    return STATUS_OK;
}

void near_free(struct near *n)
{
    if (!n)
        return;
    mem_free(n->entry);
    mem_free(n->slot);
    mem_free(n->document);
    mem_free(n->whole);
    mem_free(n->hashes);
    mem_free(n->met);
    mem_free(n);
}

static uint64_t hash_of(const void *data, size_t len)
{
    static const uint8_t key[crypto_shorthash_KEYBYTES] = "residual.near.1";
    uint64_t h;
    crypto_shorthash((uint8_t *)&h, data, len, key);
    return h;
}

/* A letter of a script that is written without blanks is a word of its own: Thai to Lao, Burmese,
 * Khmer, kana, Han. */
static bool stands_alone(const uint8_t *p, size_t left)
{
    if (left >= 4 && p[0] == 0xf0)
        return p[1] >= 0xa0;
    if (left < 3 || (p[0] & 0xf0) != 0xe0)
        return false;
    uint32_t cp = (p[0] & 15u) << 12 | (p[1] & 63u) << 6 | (p[2] & 63u);
    return (cp >= 0x0e00 && cp < 0x0f00) || (cp >= 0x1000 && cp < 0x10a0) ||
           (cp >= 0x1780 && cp < 0x1800) || (cp >= 0x3040 && cp < 0xa000);
}

/* The length of the word at p; blanks do not belong to it. */
static size_t word_length(const uint8_t *p, size_t left)
{
    if (stands_alone(p, left))
        return p[0] == 0xf0 ? 4 : 3;
    size_t n = 1;
    while (n < left && p[n] != ' ' && !stands_alone(p + n, left - n))
        n++;
    return n;
}

static enum status keep_hash(struct near *n, uint64_t hash, struct errtext *err)
{
    if (hash & n->mask)
        return STATUS_OK;
    if (n->n_hash == n->cap_hash) {
        uint32_t cap = n->cap_hash * 2 + 1024;
        uint64_t *p = mem_try_realloc(n->hashes, (size_t)cap * sizeof(*p));
        if (!p)
            return near_no_memory(err);
        n->hashes = p;
        n->cap_hash = cap;
    }
    n->hashes[n->n_hash++] = hash;
    return STATUS_OK;
}

/* A form that comes again and again ("Q: Tell me how people here ...") counts once; what is said a
 * few times counts as often, or else a copied part could be hidden behind as much of one's own. */
static void count_forms_once(struct near *n)
{
    uint32_t kept = 0;
    if (n->n_hash)
        qsort(n->hashes, n->n_hash, sizeof(*n->hashes), order_u64);
    for (uint32_t i = 0, times; i < n->n_hash; i += times) {
        for (times = 1; i + times < n->n_hash && n->hashes[i + times] == n->hashes[i];)
            times++;
        for (uint32_t k = 0; k < (times < NEAR_FORM ? times : 1); k++)
            n->hashes[kept++] = n->hashes[i];
    }
    n->n_hash = kept;
}

/* Fill hashes with the text's kept shingles. */
static enum status cut(struct near *n, const char *words, size_t len, struct errtext *err)
{
    uint64_t last[NEAR_SHINGLE] = {0};
    const uint8_t *p = (const uint8_t *)words, *end = len ? p + len : p; /* NULL: no words */
    n->n_hash = n->words = 0;
    for (size_t step; p < end; p += step) {
        step = *p == ' ' ? 1 : word_length(p, (size_t)(end - p));
        if (*p == ' ')
            continue;
        memmove(last, last + 1, sizeof(last) - sizeof(*last));
        last[NEAR_SHINGLE - 1] = hash_of(p, step);
        if (++n->words < NEAR_SHINGLE)
            continue;
        enum status st = keep_hash(n, hash_of(last, sizeof(last)), err);
        if (st)
            return st;
    }
    count_forms_once(n);
    return STATUS_OK;
}

static uint32_t *slot_of(const struct near *n, uint64_t hash)
{
    return &n->slot[hash >> 32 & (n->slots - 1)];
}

/* Entries hang behind their slots anew, in their order; those whose hash the mask refuses are
 * dropped. */
static enum status hang(struct near *n, uint32_t slots, struct errtext *err)
{
    uint32_t *slot = mem_try_realloc(n->slot, (size_t)slots * sizeof(*slot)), kept = 0;
    if (!slot)
        return near_no_memory(err);
    n->slot = slot;
    n->slots = slots;
    memset(slot, 0xff, (size_t)slots * sizeof(*slot));
    for (uint32_t i = 0; i < n->n_entry; i++) {
        if ((n->entry[i].hash & n->mask) == 0)
            n->entry[kept++] = n->entry[i];
    }
    n->n_entry = kept;
    for (uint32_t i = kept; i-- > 0;) { /* put in front, from the last on: in order */
        uint32_t *head = slot_of(n, n->entry[i].hash);
        n->entry[i].next = *head;
        *head = i;
    }
    return STATUS_OK;
}

static enum status make_room(struct near *n, struct errtext *err)
{
    while (n->n_entry == n->entries_max) {
        n->mask = n->mask << 1 | 1;
        enum status st = hang(n, n->slots, err);
        if (st)
            return st;
    }
    if (n->n_entry == n->cap_entry) {
        uint32_t cap = MIN(n->cap_entry * 2 + TABLE_FIRST, n->entries_max);
        struct near_entry *p = mem_try_realloc(n->entry, (size_t)cap * sizeof(*p));
        if (!p)
            return near_no_memory(err);
        n->entry = p;
        n->cap_entry = cap;
    }
    return n->n_entry < n->slots ? STATUS_OK : hang(n, n->slots * 2, err);
}

static enum status add_hash(struct near *n, uint64_t hash, uint32_t document, struct errtext *err)
{
    enum status st = make_room(n, err);
    if (st || (hash & n->mask))
        return st;
    uint32_t *at = slot_of(n, hash), holders = 0;
    for (; *at != NONE; at = &n->entry[*at].next) {
        const struct near_entry *e = &n->entry[*at];
        if (e->hash == hash && (e->document == document || ++holders == NEAR_HOLDERS))
            return STATUS_OK;
    }
    *at = n->n_entry;
    n->entry[n->n_entry++] = (struct near_entry){.hash = hash, .document = document, .next = NONE};
    return STATUS_OK;
}

static uint32_t *whole_of(const struct near *n, const uint8_t digest[NEAR_DIGEST])
{
    uint32_t at;
    memcpy(&at, digest, sizeof(at));
    return &n->whole[at & (n->wholes - 1)];
}

static enum status grow_documents(struct near *n, struct errtext *err)
{
    if (n->n_document < n->cap_document)
        return STATUS_OK;
    uint32_t cap = n->cap_document * 2 + TABLE_FIRST;
    struct near_document *d = mem_try_realloc(n->document, (size_t)cap * sizeof(*d));
    n->document = d ? d : n->document;
    uint32_t *met = mem_try_realloc(n->met, (size_t)cap * sizeof(*met));
    n->met = met ? met : n->met;
    uint32_t wholes = n->wholes;
    while (wholes < cap)
        wholes *= 2;
    uint32_t *whole = mem_try_realloc(n->whole, (size_t)wholes * sizeof(*whole));
    n->whole = whole ? whole : n->whole;
    if (!d || !met || !whole)
        return near_no_memory(err);
    n->cap_document = cap;
    n->wholes = wholes;
    memset(whole, 0xff, (size_t)wholes * sizeof(*whole));
    for (uint32_t i = n->n_document; i-- > 0;) {
        uint32_t *head = whole_of(n, d[i].digest);
        d[i].next = *head;
        *head = i;
    }
    return STATUS_OK;
}

static void digest_of(uint8_t digest[NEAR_DIGEST], const char *words, size_t len)
{
    crypto_generichash(digest, NEAR_DIGEST, (const uint8_t *)words, len, NULL, 0);
}

enum status near_add(struct near *n, uint32_t document, const struct near_text *t,
                     struct errtext *err)
{
    enum status st = grow_documents(n, err);
    if (!st)
        st = cut(n, t->words, t->len, err);
    if (st)
        return st;
    uint32_t place = n->n_document++;
    struct near_document *d = &n->document[place];
    *d = (struct near_document){.name = document, .next = NONE};
    memcpy(d->owner, t->owner, sizeof(d->owner));
    digest_of(d->digest, t->words, t->len);
    uint32_t *at = whole_of(n, d->digest);
    while (*at != NONE)
        at = &n->document[*at].next;
    *at = place;
    for (uint32_t i = 0; i < n->n_hash && !st && n->words >= NEAR_WORDS_MIN; i++)
        st = add_hash(n, n->hashes[i], place, err);
    return st;
}

/* Count what each document of another owner shares with the text, shingle by shingle. */
static void meet(struct near *n, const uint8_t owner[20])
{
    n->n_met = 0;
    for (uint32_t i = 0; i < n->n_hash; i++) {
        for (uint32_t at = *slot_of(n, n->hashes[i]); at != NONE; at = n->entry[at].next) {
            const struct near_entry *e = &n->entry[at];
            if (e->hash != n->hashes[i] || memcmp(n->document[e->document].owner, owner, 20) == 0)
                continue;
            if (n->document[e->document].shared++ == 0)
                n->met[n->n_met++] = e->document;
        }
    }
}

/* Shingles that stand in a document that shares enough to have been copied from. */
static uint32_t covered(const struct near *n, uint32_t shared_min)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < n->n_hash; i++) {
        uint32_t at = *slot_of(n, n->hashes[i]);
        while (at != NONE && (n->entry[at].hash != n->hashes[i] ||
                              n->document[n->entry[at].document].shared < shared_min))
            at = n->entry[at].next;
        count += at != NONE;
    }
    return count;
}

enum status near_find(struct near *n, const struct near_text *t, struct near_found *out,
                      struct errtext *err)
{
    uint8_t digest[NEAR_DIGEST];
    *out = (struct near_found){.document = NONE};
    digest_of(digest, t->words, t->len);
    for (uint32_t at = *whole_of(n, digest); at != NONE; at = n->document[at].next) {
        if (memcmp(n->document[at].digest, digest, NEAR_DIGEST) == 0) {
            *out = (struct near_found){.document = n->document[at].name, .ppm = NEAR_SAME_PPM};
            return STATUS_OK;
        }
    }
    enum status st = cut(n, t->words, t->len, err);
    if (st || n->words < NEAR_WORDS_MIN || n->n_hash == 0)
        return st;
    uint32_t shared_min = (uint32_t)MAX(NEAR_SHARED_MIN / (n->mask + 1), 2), most = 0;
    shared_min = MAX(shared_min, n->n_hash / NEAR_SHARED_PART);
    meet(n, t->owner);
    for (uint32_t i = 0; i < n->n_met; i++)
        most = MAX(most, n->document[n->met[i]].shared);
    if (most >= shared_min) {
        uint32_t first = NONE;
        for (uint32_t i = 0; i < n->n_met; i++) {
            if (n->document[n->met[i]].shared >= MOST_OF(most))
                first = MIN(first, n->met[i]);
        }
        /* below NEAR_SAME_PPM: a sample of the words is not all of them */
        uint64_t ppm = (uint64_t)covered(n, shared_min) * 1000000 / n->n_hash;
        *out = (struct near_found){.document = n->document[first].name,
                                   .ppm = (uint32_t)MIN(ppm, NEAR_SAME_PPM - 1)};
    }
    for (uint32_t i = 0; i < n->n_met; i++)
        n->document[n->met[i]].shared = 0;
    return STATUS_OK;
}
