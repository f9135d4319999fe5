/* Idempotency-Key: an account's (or, without one, an API key's) repeat of a request within 24 hours
 * is answered with the first one's id instead of being served and charged again, also when the
 * server was killed in between: the recorder keeps the keys of what it recorded. Bounded: when
 * every place is held by a key younger than 24 hours, a new keyed request is refused (FULL) rather
 * than left unprotected. Keys and bodies are kept as digests only. Thread: any; one lock. */
#ifndef RS_HTTP_IDEMPOTENCY_H
#define RS_HTTP_IDEMPOTENCY_H

#include "server/base/errtext.h"

#include <pthread.h>
#include <stdint.h>

#define IDEMPOTENCY_COUNT_MAX (1u << 16)
#define IDEMPOTENCY_TTL_MS    (24ull * 3600 * 1000)

struct idempotency_entry {
    uint8_t key[16], body[16], request_id[32];
    uint64_t time_ms;
    int32_t next; /* in its bucket, or in the free list; -1: none */
};

struct idempotency {
    pthread_mutex_t lock;
    struct idempotency_entry *entry; /* [count_max] */
    int32_t *bucket;                 /* [count_max] heads */
    uint32_t count_max, used;
    int32_t free_head;
    uint32_t sweep; /* bucket to look for expired entries next */
};

void idempotency_init(struct idempotency *t, uint32_t count_max);
void idempotency_fini(struct idempotency *t);

struct idempotency_ask {
    const uint8_t *key, *body; /* [16] digests */
    uint64_t now_ms;           /* of a clock that does not jump */
    const uint8_t *request_id; /* [32] of this request */
};
/* Whose key it is: the account where there is one, else the API key. */
void idempotency_digest_key(uint8_t out[16], const uint8_t *account, uint64_t fair_key,
                            const char *key);
void idempotency_digest_body(uint8_t out[16], const void *body, size_t body_bytes);
/* Monotonic, and far enough from 0 for the age of any entry. */
uint64_t idempotency_now_ms(void);
/* OK: registered. EXISTS: a repeat, first_id filled. CONFLICT: the same key with another body,
 * first_id filled. FULL. */
MUST_CHECK enum status idempotency_put(struct idempotency *t, const struct idempotency_ask *ask,
                                       uint8_t first_id[32]);
/* Forget a registration whose request came to nothing, so that a retry is served. */
void idempotency_drop(struct idempotency *t, const uint8_t key[16], const uint8_t request_id[32]);

#endif
