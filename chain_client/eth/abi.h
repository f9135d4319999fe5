/* The Solidity ABI: call data out, return data and event data in. Words are 32 bytes; a dynamic
 * value leaves an offset in its tuple's head and its bytes behind it. Pure. Thread: any.
 *
 * commit((uint64 a, bytes32 b), uint32[] c):
 *
 *   abi_put_selector(&out, "commit((uint64,bytes32),uint32[])");
 *   abi_begin(&t, &out, 3);                 three head words: a, b, offset of c
 *   abi_uint(&t, a);
 *   abi_bytes32(&t, b);
 *   abi_dynamic(&t);
 *   abi_count(&out, n);
 *   abi_begin(&items, &out, n);
 *   ... abi_uint(&items, c[i]) n times
 *   abi_end(&items); abi_end(&t);
 */
#ifndef RS_CHAIN_ETH_ABI_H
#define RS_CHAIN_ETH_ABI_H

#include "server/base/buf.h"
#include "server/base/errtext.h"
#include "server/base/hex.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ABI_WORD_BYTES 32

/* One tuple being written at the end of out. Filling more words than announced is a panic; abi_end
 * checks that none is missing. */
struct abi_tuple {
    struct buf *out;
    size_t start;      /* where the head begins: offsets count from here */
    size_t word_count; /* announced */
    size_t word_idx;   /* filled so far */
};

void abi_begin(struct abi_tuple *t, struct buf *out, size_t word_count);
void abi_end(const struct abi_tuple *t);
void abi_uint(struct abi_tuple *t, u128 v);
void abi_bool(struct abi_tuple *t, bool v);
void abi_bytes32(struct abi_tuple *t, const uint8_t v[32]);
void abi_address(struct abi_tuple *t, const uint8_t v[20]);
/* The next head word points at the end of out: write the dynamic value there right after. */
void abi_dynamic(struct abi_tuple *t);
/* A dynamic array's element count, or any lone word, at the end of out. */
void abi_count(struct buf *out, size_t count);
/* bytes and string: length, data, zero padding; after abi_dynamic. */
void abi_bytes_tail(struct buf *out, const void *data, size_t len);

/* First four bytes of Keccak-256 of the signature, such as "claim(uint64,address)". */
void abi_selector(uint8_t out[4], const char *signature);
void abi_put_selector(struct buf *out, const char *signature);
/* Keccak-256 of an event's or error's signature. */
void abi_topic(uint8_t out[32], const char *signature);

/* A tuple being read: word i of its head is data[32 i]. Points into the caller's bytes. name in the
 * calls below is the field's, for the error text; a missing word or dirty padding is INVALID. */
struct abi_reader {
    const uint8_t *data;
    size_t len;
};

/* An integer of `bytes` (1..16) bytes: the rest of the word must be zero. */
MUST_CHECK enum status abi_read_uint(const struct abi_reader *r, size_t word_idx, size_t bytes,
                                     u128 *v, const char *name, struct errtext *err);
MUST_CHECK enum status abi_read_u64(const struct abi_reader *r, size_t word_idx, uint64_t *v,
                                    const char *name, struct errtext *err);
MUST_CHECK enum status abi_read_bool(const struct abi_reader *r, size_t word_idx, bool *v,
                                     const char *name, struct errtext *err);
MUST_CHECK enum status abi_read_bytes32(const struct abi_reader *r, size_t word_idx, uint8_t v[32],
                                        const char *name, struct errtext *err);
MUST_CHECK enum status abi_read_address(const struct abi_reader *r, size_t word_idx, uint8_t v[20],
                                        const char *name, struct errtext *err);
/* bytes or string behind the offset in word_idx. */
MUST_CHECK enum status abi_read_bytes(const struct abi_reader *r, size_t word_idx,
                                      const uint8_t **data, size_t *len, const char *name,
                                      struct errtext *err);
struct abi_array {
    struct abi_reader items; /* its elements; offsets of dynamic elements count from here */
    size_t count;
};
/* A dynamic array of static elements of element_words words each (1 for dynamic elements). */
MUST_CHECK enum status abi_read_array(const struct abi_reader *r, size_t word_idx,
                                      size_t element_words, struct abi_array *array,
                                      const char *name, struct errtext *err);
/* A dynamic tuple behind the offset in word_idx. */
MUST_CHECK enum status abi_read_tuple(const struct abi_reader *r, size_t word_idx,
                                      struct abi_reader *inner, const char *name,
                                      struct errtext *err);

#endif
