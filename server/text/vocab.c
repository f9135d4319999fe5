/* Linear probing at a load of at most one half. The text hash folds 8 bytes at a time through a
 * multiply; the key of the process comes from the kernel once. */
#include "server/text/vocab.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <pthread.h>
#include <string.h>
#include <sys/random.h>

static uint64_t hash_key;
static pthread_once_t hash_once = PTHREAD_ONCE_INIT;

static void hash_key_init(void)
{
    if (getrandom(&hash_key, sizeof(hash_key), 0) != (ssize_t)sizeof(hash_key))
        hash_key = (uint64_t)(uintptr_t)&hash_key;
}

static uint64_t mix(uint64_t x)
{
    x ^= x >> 32;
    x *= 0xD6E8FEB86659FD93u;
    x ^= x >> 29;
    x *= 0xD6E8FEB86659FD93u;
    return x ^ x >> 32;
}

static uint64_t hash_text(const char *s, size_t len)
{
    uint64_t h = hash_key ^ len * 0x9E3779B97F4A7C15u;
    while (len >= 8) {
        uint64_t word;
        memcpy(&word, s, 8);
        h = mix(h ^ word) + hash_key;
        s += 8;
        len -= 8;
    }
    uint64_t word = 0;
    if (len)
        memcpy(&word, s, len);
    return mix(h ^ word);
}

static size_t slots_for(size_t count_max)
{
    size_t slots = 16;
    while (slots < count_max * 2)
        slots *= 2;
    return slots;
}

bool vocab_init(struct vocab *v, size_t count_max)
{
    pthread_once(&hash_once, hash_key_init);
    size_t n = slots_for(count_max);
    v->slots = mem_try_array(n, sizeof(*v->slots));
    if (!v->slots)
        return false;
    for (size_t i = 0; i < n; i++)
        v->slots[i].id = -1;
    v->mask = n - 1;
    v->count = 0;
    return true;
}

void vocab_fini(struct vocab *v)
{
    mem_free(v->slots);
    *v = (struct vocab){0};
}

static struct vocab_slot *vocab_find(const struct vocab *v, const char *key, size_t len)
{
    size_t i = hash_text(key, len) & v->mask;
    while (v->slots[i].id >= 0) {
        if (v->slots[i].len == len && (len == 0 || memcmp(v->slots[i].key, key, len) == 0))
            break;
        i = (i + 1) & v->mask;
    }
    return &v->slots[i];
}

void vocab_set(struct vocab *v, const char *key, size_t len, int32_t id)
{
    struct vocab_slot *slot = vocab_find(v, key, len);
    if (slot->id < 0) {
        CHECK(v->count <= v->mask / 2);
        v->count++;
    }
    *slot = (struct vocab_slot){.key = key, .len = (uint32_t)len, .id = id};
}

int32_t vocab_get(const struct vocab *v, const char *key, size_t len)
{
    return v->slots ? vocab_find(v, key, len)->id : -1;
}

bool merges_init(struct merges *m, size_t count_max)
{
    pthread_once(&hash_once, hash_key_init);
    size_t n = slots_for(count_max);
    m->slots = mem_try_array(n, sizeof(*m->slots));
    if (!m->slots)
        return false;
    for (size_t i = 0; i < n; i++)
        m->slots[i].id = -1;
    m->mask = n - 1;
    return true;
}

void merges_fini(struct merges *m)
{
    mem_free(m->slots);
    *m = (struct merges){0};
}

static struct merge_slot *merges_find(const struct merges *m, uint64_t pair)
{
    size_t i = mix(pair ^ hash_key) & m->mask;
    while (m->slots[i].id >= 0 && m->slots[i].pair != pair)
        i = (i + 1) & m->mask;
    return &m->slots[i];
}

void merges_set(struct merges *m, int32_t left, int32_t right, uint32_t rank, int32_t id)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    *merges_find(m, pair) = (struct merge_slot){.pair = pair, .rank = rank, .id = id};
}

const struct merge_slot *merges_get(const struct merges *m, int32_t left, int32_t right)
{
    const struct merge_slot *slot =
        merges_find(m, (uint64_t)(uint32_t)left << 32 | (uint32_t)right);
    return slot->id < 0 ? NULL : slot;
}
