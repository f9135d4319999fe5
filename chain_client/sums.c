/* Linear probing at a load of at most one half. */
#include "chain_client/sums.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#define SLOTS_FIRST 1024

enum status sums_init(struct sums *s)
{
    memset(s, 0, sizeof(*s));
    randombytes_buf(s->hash_key, sizeof(s->hash_key));
    s->slot_count = SLOTS_FIRST;
    s->slot = mem_try_array(s->slot_count, sizeof(*s->slot));
    return s->slot ? STATUS_OK : STATUS_NO_MEMORY;
}

void sums_fini(struct sums *s)
{
    mem_free(s->slot);
    memset(s, 0, sizeof(*s));
}

/* The slot of key, or the empty one where it belongs. */
static struct sums_entry *find(const struct sums *s, const struct sums_key *key)
{
    uint64_t hash;
    uint8_t digest[crypto_shorthash_BYTES];
    crypto_shorthash(digest, (const uint8_t *)key, sizeof(*key), s->hash_key);
    memcpy(&hash, digest, sizeof(hash));
    size_t i = (size_t)hash & (s->slot_count - 1);
    while (s->slot[i].used && memcmp(&s->slot[i].key, key, sizeof(*key)) != 0)
        i = (i + 1) & (s->slot_count - 1);
    return &s->slot[i];
}

static bool grow(struct sums *s)
{
    struct sums larger = *s;
    larger.slot_count *= 2;
    larger.slot = mem_try_array(larger.slot_count, sizeof(*larger.slot));
    if (!larger.slot)
        return false;
    for (size_t i = 0; i < s->slot_count; i++) {
        if (s->slot[i].used)
            *find(&larger, &s->slot[i].key) = s->slot[i];
    }
    mem_free(s->slot);
    *s = larger;
    return true;
}

struct u256 *sums_at(struct sums *s, uint32_t tag, const uint8_t *id, size_t id_len)
{
    struct sums_key key = {.tag = tag};
    CHECK(id_len <= sizeof(key.id));
    memcpy(key.id, id, id_len);
    struct sums_entry *e = find(s, &key);
    if (e->used)
        return &e->sum;
    if (2 * (s->used + 1) > s->slot_count) {
        if (!grow(s))
            return NULL;
        e = find(s, &key);
    }
    *e = (struct sums_entry){.key = key, .used = 1};
    s->used++;
    return &e->sum;
}

static int entry_order(const void *a, const void *b)
{
    const struct sums_entry *x = a, *y = b;
    if (x->key.tag != y->key.tag)
        return x->key.tag < y->key.tag ? -1 : 1;
    return memcmp(x->key.id, y->key.id, sizeof(x->key.id));
}

struct sums_entry *sums_sorted(const struct sums *s)
{
    struct sums_entry *out = mem_try_array(s->used ? s->used : 1, sizeof(*out));
    size_t n = 0;
    if (!out)
        return NULL;
    for (size_t i = 0; i < s->slot_count; i++) {
        if (s->slot[i].used)
            out[n++] = s->slot[i];
    }
    CHECK(n == s->used);
    qsort(out, n, sizeof(*out), entry_order);
    return out;
}
