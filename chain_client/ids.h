/* Content identities (SPEC 1): BLAKE2b-256 with a label, through libsodium. Pure. Thread: any.
 *
 * Adapter and model ids are computed where the bytes are (server/adapter, server/model) with the
 * incremental digest here:
 *
 *   ids_begin(&d, "residual.adapter.1");
 *   ids_text(&d, path);            u32 length, bytes
 *   ids_u32(&d, rank); ids_f64(&d, scale); ids_bytes(&d, a, len);
 *   ids_end(&d, id);
 */
#ifndef RS_CHAIN_IDS_H
#define RS_CHAIN_IDS_H

#include "chain_client/tail.h"

#include <sodium.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ids_digest {
    crypto_generichash_state state;
};

/* label's bytes come first, without a NUL; "" for a plain BLAKE2b-256. */
void ids_begin(struct ids_digest *d, const char *label);
void ids_bytes(struct ids_digest *d, const void *data, size_t len);
void ids_u8(struct ids_digest *d, uint8_t v);
void ids_u32(struct ids_digest *d, uint32_t v); /* integers are big-endian */
void ids_u64(struct ids_digest *d, uint64_t v);
void ids_f64(struct ids_digest *d, double v);                   /* IEEE bits, big-endian */
void ids_text(struct ids_digest *d, const char *s, size_t len); /* u32 length, bytes */
void ids_end(struct ids_digest *d, uint8_t out[32]);

/* Plain BLAKE2b-256 of one block. */
void ids_hash(uint8_t out[32], const void *data, size_t len);

/* "residual.set.1" and every (id, weight i32), ascending by id: the set must be canonical. The
 * empty set (the base alone) has an id too. */
void ids_composition(uint8_t out[32], const struct tail_set *set);

/* BLAKE2b-256 of "residual.engine.1", backend, dtype (u32 length and bytes each), deterministic u8,
 * kernel version, Unicode version (likewise): what decides an answer's bits beside the model. The
 * Unicode version counts because the ids of a prompt depend on its tables. */
struct ids_engine_parts {
    const char *backend, *dtype, *kernel_version, *unicode;
    bool deterministic;
};
void ids_engine(uint8_t out[32], const struct ids_engine_parts *parts);

#endif
