/* The page pool of kv.h: an intrusive doubly linked free list and a chained hash table over arrays
 * the caller owns. Keys are BLAKE2b-256, because tokens are the client's choice and a collision
 * would show one client another's context. */
#include "server/engine/kv.h"
#include "server/base/check.h"

#include <sodium.h>
#include <string.h>

uint32_t kv_bucket_count(uint32_t page_count)
{
    uint32_t n = 16;
    while (n < page_count && n < (1u << 30))
        n *= 2;
    return n;
}

static void list_push_front(struct kv_pool *kv, uint32_t page)
{
    struct kv_page *p = &kv->page[page];
    p->prev = KV_PAGE_NONE;
    p->next = kv->free_first;
    if (kv->free_first != KV_PAGE_NONE)
        kv->page[kv->free_first].prev = page;
    else
        kv->free_last = page;
    kv->free_first = page;
    kv->free_count++;
}

static void list_push_back(struct kv_pool *kv, uint32_t page)
{
    struct kv_page *p = &kv->page[page];
    p->next = KV_PAGE_NONE;
    p->prev = kv->free_last;
    if (kv->free_last != KV_PAGE_NONE)
        kv->page[kv->free_last].next = page;
    else
        kv->free_first = page;
    kv->free_last = page;
    kv->free_count++;
}

static void list_remove(struct kv_pool *kv, uint32_t page)
{
    struct kv_page *p = &kv->page[page];
    CHECK(kv->free_count > 0);
    if (p->prev != KV_PAGE_NONE)
        kv->page[p->prev].next = p->next;
    else
        kv->free_first = p->next;
    if (p->next != KV_PAGE_NONE)
        kv->page[p->next].prev = p->prev;
    else
        kv->free_last = p->prev;
    kv->free_count--;
}

void kv_init(struct kv_pool *kv, struct kv_page *page, uint32_t *bucket, uint32_t page_count)
{
    *kv = (struct kv_pool){.page = page,
                           .bucket = bucket,
                           .page_count = page_count,
                           .bucket_count = kv_bucket_count(page_count),
                           .free_first = KV_PAGE_NONE,
                           .free_last = KV_PAGE_NONE};
    for (uint32_t i = 0; i < kv->bucket_count; i++)
        bucket[i] = KV_PAGE_NONE;
    for (uint32_t i = 0; i < page_count; i++) {
        page[i] = (struct kv_page){.refs = 0, .hash_next = KV_PAGE_NONE};
        list_push_back(kv, i);
    }
}

/* A key is uniform already: its first bytes pick the bucket. */
static uint32_t *bucket_of(const struct kv_pool *kv, const uint8_t key[KV_KEY_BYTES])
{
    uint32_t h;
    memcpy(&h, key, sizeof(h));
    return &kv->bucket[h & (kv->bucket_count - 1)];
}

static void forget_key(struct kv_pool *kv, uint32_t page)
{
    uint32_t *at = bucket_of(kv, kv->page[page].key);
    while (*at != page) {
        CHECK(*at != KV_PAGE_NONE);
        at = &kv->page[*at].hash_next;
    }
    *at = kv->page[page].hash_next;
    kv->page[page].hash_next = KV_PAGE_NONE;
    kv->page[page].keyed = false;
    kv->keyed_count--;
}

uint32_t kv_alloc(struct kv_pool *kv)
{
    uint32_t page = kv->free_first;
    if (page == KV_PAGE_NONE)
        return KV_PAGE_NONE;
    list_remove(kv, page);
    if (kv->page[page].keyed)
        forget_key(kv, page);
    CHECK(kv->page[page].refs == 0);
    kv->page[page].refs = 1;
    return page;
}

void kv_ref(struct kv_pool *kv, uint32_t page)
{
    CHECK(page < kv->page_count);
    if (kv->page[page].refs == 0)
        list_remove(kv, page);
    kv->page[page].refs++;
}

void kv_unref(struct kv_pool *kv, uint32_t page)
{
    CHECK(page < kv->page_count);
    struct kv_page *p = &kv->page[page];
    CHECK(p->refs > 0);
    if (--p->refs > 0)
        return;
    if (p->keyed)
        list_push_back(kv, page);
    else
        list_push_front(kv, page);
}

static uint32_t lookup(const struct kv_pool *kv, const uint8_t key[KV_KEY_BYTES])
{
    uint32_t page = *bucket_of(kv, key);
    while (page != KV_PAGE_NONE && memcmp(kv->page[page].key, key, KV_KEY_BYTES) != 0)
        page = kv->page[page].hash_next;
    return page;
}

void kv_set_key(struct kv_pool *kv, uint32_t page, const uint8_t key[KV_KEY_BYTES])
{
    CHECK(page < kv->page_count);
    struct kv_page *p = &kv->page[page];
    CHECK(p->refs > 0);
    CHECK(!p->keyed);
    if (lookup(kv, key) != KV_PAGE_NONE)
        return;
    uint32_t *at = bucket_of(kv, key);
    memcpy(p->key, key, KV_KEY_BYTES);
    p->hash_next = *at;
    p->keyed = true;
    *at = page;
    kv->keyed_count++;
}

uint32_t kv_find(struct kv_pool *kv, const uint8_t key[KV_KEY_BYTES])
{
    uint32_t page = lookup(kv, key);
    if (page != KV_PAGE_NONE)
        kv_ref(kv, page);
    return page;
}

void kv_key_root(uint8_t key[KV_KEY_BYTES], const uint8_t comp_id[32], const uint8_t salt[16])
{
    static const char domain[16] = "residual.kv.1";
    uint8_t in[sizeof(domain) + 32 + 16];
    memcpy(in, domain, sizeof(domain));
    memcpy(in + sizeof(domain), comp_id, 32);
    memcpy(in + sizeof(domain) + 32, salt, 16);
    crypto_generichash(key, KV_KEY_BYTES, in, sizeof(in), NULL, 0);
}

void kv_key_next(uint8_t key[KV_KEY_BYTES], const int32_t tokens[KV_PAGE_TOK])
{
    uint8_t in[KV_KEY_BYTES + KV_PAGE_TOK * sizeof(int32_t)];
    memcpy(in, key, KV_KEY_BYTES);
    memcpy(in + KV_KEY_BYTES, tokens, KV_PAGE_TOK * sizeof(int32_t));
    crypto_generichash(key, KV_KEY_BYTES, in, sizeof(in), NULL, 0);
}

static void verify_free_list(const struct kv_pool *kv)
{
    uint32_t count = 0, prev = KV_PAGE_NONE;
    for (uint32_t p = kv->free_first; p != KV_PAGE_NONE; p = kv->page[p].next) {
        CHECK(p < kv->page_count);
        CHECK(kv->page[p].refs == 0);
        CHECK(kv->page[p].prev == prev);
        CHECK(++count <= kv->free_count);
        prev = p;
    }
    CHECK(count == kv->free_count);
    CHECK(kv->free_last == prev);
}

void kv_verify(const struct kv_pool *kv, const uint32_t *holders)
{
    uint32_t held = 0, keyed = 0, chained = 0;
    verify_free_list(kv);
    for (uint32_t i = 0; i < kv->page_count; i++) {
        held += kv->page[i].refs > 0;
        keyed += kv->page[i].keyed;
        if (holders)
            CHECK(kv->page[i].refs == holders[i]);
    }
    CHECK(held + kv->free_count == kv->page_count);
    CHECK(keyed == kv->keyed_count);
    for (uint32_t b = 0; b < kv->bucket_count; b++) {
        for (uint32_t p = kv->bucket[b]; p != KV_PAGE_NONE; p = kv->page[p].hash_next) {
            CHECK(kv->page[p].keyed);
            CHECK(bucket_of(kv, kv->page[p].key) == &kv->bucket[b]);
            CHECK(++chained <= keyed);
        }
    }
    CHECK(chained == keyed);
}
