/* RLP, the encoding of Ethereum transactions. The encoder appends to a bounded buf; the decoder is
 * strict: it accepts exactly the one canonical encoding of each value. Pure. Thread: any.
 *
 * Lists: rlp_list_begin notes where the payload starts, rlp_list_end inserts the head.
 *
 *   size_t list = rlp_list_begin(&out);
 *   rlp_put_uint(&out, nonce);
 *   rlp_put_bytes(&out, to, 20);
 *   rlp_list_end(&out, list);
 */
#ifndef RS_CHAIN_ETH_RLP_H
#define RS_CHAIN_ETH_RLP_H

#include "server/base/buf.h"
#include "server/base/errtext.h"
#include "server/base/hex.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void rlp_put_bytes(struct buf *out, const void *data, size_t len);
/* Big-endian without leading zeros; 0 is the empty string (0x80). */
void rlp_put_uint(struct buf *out, u128 v);
/* A big-endian integer of any width as RLP writes it: leading zero bytes are cut. */
void rlp_put_uint_bytes(struct buf *out, const uint8_t *data, size_t len);
size_t rlp_list_begin(struct buf *out);
void rlp_list_end(struct buf *out, size_t begin);

/* A cursor over the items of one payload. Points into the caller's bytes. */
struct rlp_reader {
    const uint8_t *data;
    size_t len; /* what is left */
};

struct rlp_item {
    bool is_list;
    const uint8_t *data; /* payload: the string's bytes, or the list's items */
    size_t len;
};

/* Take the next item. INVALID at the end of the payload, when the item is longer than what is left,
 * or when its head is not the shortest one. */
MUST_CHECK enum status rlp_next(struct rlp_reader *r, struct rlp_item *item, struct errtext *err);
/* The next item must be a list: open it as a reader of its own. */
MUST_CHECK enum status rlp_next_list(struct rlp_reader *r, struct rlp_reader *inner,
                                     struct errtext *err);
/* The next item must be an integer of at most bytes_max (1..16) bytes without a leading zero. name
 * is for the error text. */
MUST_CHECK enum status rlp_next_uint(struct rlp_reader *r, u128 *v, size_t bytes_max,
                                     const char *name, struct errtext *err);
/* The next item must be a string of exactly len bytes. */
MUST_CHECK enum status rlp_next_bytes(struct rlp_reader *r, uint8_t *out, size_t len,
                                      const char *name, struct errtext *err);
/* INVALID unless everything was taken. */
MUST_CHECK enum status rlp_end(const struct rlp_reader *r, struct errtext *err);

#endif
