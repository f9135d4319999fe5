/* A hash table with chaining in fixed arrays. Expired entries are swept a few buckets per insert,
 * and a whole turn before FULL is said. */
#include "server/http/idempotency.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/mem.h"

#include <sodium.h>
#include <string.h>

#define SWEEP_BUCKETS 4u

void idempotency_init(struct idempotency *t, uint32_t count_max)
{
    *t = (struct idempotency){.count_max = count_max};
    CHECK(pthread_mutex_init(&t->lock, NULL) == 0);
    t->entry = mem_array(count_max, sizeof(*t->entry));
    t->bucket = mem_array(count_max, sizeof(*t->bucket));
    for (uint32_t i = 0; i < count_max; i++) {
        t->bucket[i] = -1;
        t->entry[i].next = i + 1 < count_max ? (int32_t)(i + 1) : -1;
    }
}

void idempotency_fini(struct idempotency *t)
{
    pthread_mutex_destroy(&t->lock);
    mem_free(t->entry);
    mem_free(t->bucket);
}

void idempotency_digest_key(uint8_t out[16], const uint8_t *account, uint64_t fair_key,
                            const char *key)
{
    crypto_generichash_state st;
    crypto_generichash_init(&st, NULL, 0, 16);
    crypto_generichash_update(&st, (const uint8_t *)(account ? "account" : "key"), 3);
    if (account)
        crypto_generichash_update(&st, account, 20);
    else
        crypto_generichash_update(&st, (const uint8_t *)&fair_key, sizeof(fair_key));
    crypto_generichash_update(&st, (const uint8_t *)key, strlen(key));
    crypto_generichash_final(&st, out, 16);
}

void idempotency_digest_body(uint8_t out[16], const void *body, size_t body_bytes)
{
    crypto_generichash(out, 16, body, body_bytes, NULL, 0);
}

uint64_t idempotency_now_ms(void)
{
    return clock_mono_ns() / 1000000u + IDEMPOTENCY_TTL_MS;
}

static uint32_t bucket_of(const struct idempotency *t, const uint8_t key[16])
{
    uint32_t h;
    memcpy(&h, key, sizeof(h));
    return h % t->count_max;
}

static void unlink_at(struct idempotency *t, int32_t *link)
{
    int32_t idx = *link;
    *link = t->entry[idx].next;
    t->entry[idx].next = t->free_head;
    t->free_head = idx;
    t->used--;
}

static void sweep(struct idempotency *t, uint32_t buckets, uint64_t now_ms)
{
    for (uint32_t i = 0; i < buckets; i++) {
        int32_t *link = &t->bucket[t->sweep];
        t->sweep = (t->sweep + 1) % t->count_max;
        while (*link >= 0) {
            struct idempotency_entry *e = &t->entry[*link];
            if (now_ms - e->time_ms >= IDEMPOTENCY_TTL_MS)
                unlink_at(t, link);
            else
                link = &e->next;
        }
    }
}

static struct idempotency_entry *find(struct idempotency *t, const uint8_t key[16], uint64_t now_ms)
{
    int32_t *link = &t->bucket[bucket_of(t, key)];
    while (*link >= 0) {
        struct idempotency_entry *e = &t->entry[*link];
        if (memcmp(e->key, key, 16) == 0) {
            if (now_ms - e->time_ms < IDEMPOTENCY_TTL_MS)
                return e;
            unlink_at(t, link);
            return NULL;
        }
        link = &e->next;
    }
    return NULL;
}

enum status idempotency_put(struct idempotency *t, const struct idempotency_ask *ask,
                            uint8_t first_id[32])
{
    const uint8_t *key = ask->key, *body = ask->body;
    enum status st = STATUS_OK;
    pthread_mutex_lock(&t->lock);
    struct idempotency_entry *e = find(t, key, ask->now_ms);
    if (e) {
        memcpy(first_id, e->request_id, 32);
        st = memcmp(e->body, body, 16) == 0 ? STATUS_EXISTS : STATUS_CONFLICT;
    } else {
        sweep(t, t->free_head < 0 ? t->count_max : MIN(SWEEP_BUCKETS, t->count_max), ask->now_ms);
        if (t->free_head < 0) {
            st = STATUS_FULL;
        } else {
            int32_t idx = t->free_head, *head = &t->bucket[bucket_of(t, key)];
            e = &t->entry[idx];
            t->free_head = e->next;
            memcpy(e->key, key, 16);
            memcpy(e->body, body, 16);
            memcpy(e->request_id, ask->request_id, 32);
            e->time_ms = ask->now_ms;
            e->next = *head;
            *head = idx;
            t->used++;
        }
    }
    pthread_mutex_unlock(&t->lock);
    return st;
}

void idempotency_drop(struct idempotency *t, const uint8_t key[16], const uint8_t request_id[32])
{
    pthread_mutex_lock(&t->lock);
    int32_t *link = &t->bucket[bucket_of(t, key)];
    while (*link >= 0) {
        struct idempotency_entry *e = &t->entry[*link];
        if (memcmp(e->key, key, 16) == 0 && memcmp(e->request_id, request_id, 32) == 0) {
            unlink_at(t, link);
            break;
        }
        link = &e->next;
    }
    pthread_mutex_unlock(&t->lock);
}
