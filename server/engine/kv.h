/* KV pages: who holds which page of the pool, and which full pages can be shared. No tensors here,
 * only page numbers; the owner is the engine thread.
 *
 *   free list:  front [unkeyed pages] ... [cached pages, oldest released first] back
 *   key table:  32-byte key -> page, for full pages whose content is computed
 *
 * A page's key is the end of a hash chain over (composition id, cache salt, every token up to the
 * page's end), so two equal keys mean equal bits in the cache: a hit changes no result. A page with
 * no holder stays findable until its turn in the free list comes; then its key is forgotten. When
 * the pool is empty kv_alloc says so and the engine preempts.
 * Invariants (kv_verify): a page is in the free list exactly when refs is 0; keyed pages are in the
 * table once; free + held = all. */
#ifndef RS_ENGINE_KV_H
#define RS_ENGINE_KV_H

#include <stdbool.h>
#include <stdint.h>

#define KV_PAGE_TOK  16
#define KV_PAGE_NONE UINT32_MAX
#define KV_KEY_BYTES 32

struct kv_page {
    uint32_t refs;
    uint32_t prev, next; /* free list, when refs is 0 */
    uint32_t hash_next;  /* bucket chain, when keyed */
    bool keyed;
    uint8_t key[KV_KEY_BYTES];
};

struct kv_pool {
    struct kv_page *page; /* [page_count], caller's memory */
    uint32_t *bucket;     /* [bucket_count] first page of the chain */
    uint32_t page_count, bucket_count;
    uint32_t free_first, free_last, free_count;
    uint32_t keyed_count;
};

/* Buckets for page_count pages: a power of two. */
uint32_t kv_bucket_count(uint32_t page_count);
/* page [page_count] and bucket [kv_bucket_count] are the caller's and outlive the pool. */
void kv_init(struct kv_pool *kv, struct kv_page *page, uint32_t *bucket, uint32_t page_count);

/* A page with refs 1 and no key, or KV_PAGE_NONE. */
uint32_t kv_alloc(struct kv_pool *kv);
void kv_ref(struct kv_pool *kv, uint32_t page);
/* The last unref returns it to the free list: keyed at the back, else at the front. */
void kv_unref(struct kv_pool *kv, uint32_t page);
/* Pages kv_alloc can still hand out. */
static inline uint32_t kv_free_count(const struct kv_pool *kv)
{
    return kv->free_count;
}

/* Give a held, full, computed page its key. If the key is taken the page stays private. */
void kv_set_key(struct kv_pool *kv, uint32_t page, const uint8_t key[KV_KEY_BYTES]);
/* The page with this key, one reference taken, or KV_PAGE_NONE. */
uint32_t kv_find(struct kv_pool *kv, const uint8_t key[KV_KEY_BYTES]);

/* The chain: the root of a composition and salt, then one link per full page of tokens. */
void kv_key_root(uint8_t key[KV_KEY_BYTES], const uint8_t comp_id[32], const uint8_t salt[16]);
void kv_key_next(uint8_t key[KV_KEY_BYTES], const int32_t tokens[KV_PAGE_TOK]);

/* Walk everything and panic on the first broken invariant. holders [page_count] is how often each
 * page is in somebody's table, or NULL. */
void kv_verify(const struct kv_pool *kv, const uint32_t *holders);

#endif
