/* What a record says without showing it (SPEC 2): salted commitments. And which answers must be
 * scored (SPEC 4). Pure. Thread: any.
 *
 * A request has one salt of 32 random bytes; s_k = keccak(salt ‖ u8 k) opens one field and no
 * other.
 *
 *   commit_begin(&k, salt, COMMIT_PROMPT);
 *   commit_ids(&k, ids, count);             once per prompt of a list
 *   commit_end(&k, out);
 */
#ifndef RS_CHAIN_COMMIT_H
#define RS_CHAIN_COMMIT_H

#include "chain_client/eth/keccak.h"
#include "chain_client/tail.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum commit_field { COMMIT_APP = 1, COMMIT_PROMPT = 2, COMMIT_OUTPUT = 3, COMMIT_INPUTS = 4 };

/* s_k, what the holder shows to open one field. */
void commit_opening(uint8_t out[32], const uint8_t salt[32], enum commit_field field);

void commit_begin(struct keccak *k, const uint8_t salt[32], enum commit_field field);
/* The same from an opening instead of the salt: for who checks. */
void commit_begin_opened(struct keccak *k, const uint8_t opening[32]);
void commit_bytes(struct keccak *k, const void *data, size_t len);
void commit_ids(struct keccak *k, const uint32_t *ids, size_t count);
/* One choice of outputCommit: its count, then its ids. */
void commit_choice(struct keccak *k, const uint32_t *ids, uint32_t count);
void commit_end(struct keccak *k, uint8_t out[32]);

/* appCommit = keccak(s_1 ‖ payer) */
void commit_app(uint8_t out[32], const uint8_t salt[32], const uint8_t payer[20]);
void commit_prompt(uint8_t out[32], const uint8_t salt[32], const uint32_t *ids, size_t count);

/* stopHash and biasHash of the params tail. */
struct commit_stop {
    const char *const *text;
    const size_t *text_len;
    uint32_t text_count;
    const uint32_t *token;
    uint32_t token_count;
};
void commit_stop_hash(uint8_t out[32], const struct commit_stop *stop);
/* ids strictly ascending. */
void commit_bias_hash(uint8_t out[32], const uint32_t *ids, const float *bias, uint32_t count);

/* seed = keccak("residual.sample.1" ‖ batch_hash ‖ mix_hash) */
void commit_sample_seed(uint8_t seed[32], const uint8_t batch_hash[32], const uint8_t mix_hash[32]);

struct commit_sample {
    u128 fee;
    uint32_t adapter_count;
    bool has_datanet; /* of the only adapter, at t0; not read for other counts */
    uint32_t lane;
    uint64_t seq;
};
/* True iff the answer must be scored: fee > 0, a mix or an adapter with a datanet, and drawn at
 * rate ppb (of E9) by the seed. At rate E9 seed is not read and may be NULL. */
bool commit_is_required(const struct commit_sample *s, const uint8_t *seed, uint32_t rate_ppb);

#endif
