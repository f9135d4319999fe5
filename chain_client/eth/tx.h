/* EIP-1559 transactions (type 2), without an access list: build, sign, and read back what a signer
 * returned. Pure but for the signature. Thread: any. */
#ifndef RS_CHAIN_ETH_TX_H
#define RS_CHAIN_ETH_TX_H

#include "chain_client/eth/secp.h"
#include "server/base/buf.h"
#include "server/base/hex.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TX_DATA_BYTES_MAX (96u * 1024) /* below the pools' 128 KiB for a whole transaction */
#define TX_RAW_BYTES_MAX  (TX_DATA_BYTES_MAX + 512)

struct tx {
    uint64_t chain_id;
    uint64_t nonce;
    u128 tip_max; /* wei per gas: maxPriorityFeePerGas */
    u128 fee_max; /* wei per gas: maxFeePerGas, at least tip_max */
    uint64_t gas_limit;
    bool is_create; /* no `to`: data is init code */
    uint8_t to[20];
    u128 value;
    const uint8_t *data; /* caller's; after tx_decode it points into raw */
    size_t data_len;
};

/* tx_sign - append the raw signed transaction to raw (whatever was there is cleared) and give its
 * hash.
 *
 * Before  raw was made with a maximum of at least TX_RAW_BYTES_MAX
 * Errors  INVALID: data too long, fee_max below tip_max, chain_id 0; NO_MEMORY
 * After   the result was decoded again, compared field by field, and recovers key->address
 */
MUST_CHECK enum status tx_sign(const struct secp *c, struct buf *raw, uint8_t hash[32],
                               const struct tx *tx, const struct secp_key *key,
                               struct errtext *err);

/* tx_decode - read a raw signed transaction: strict RLP, type 2, empty access list, low s.
 *
 * Owns    tx->data points into raw
 * Errors  UNSUPPORTED for another type or a non-empty access list, INVALID for everything malformed
 */
MUST_CHECK enum status tx_decode(const struct secp *c, struct tx *tx, uint8_t sender[20],
                                 const uint8_t *raw, size_t len, struct errtext *err);

/* True if every field, data included, is equal. */
bool tx_equal(const struct tx *a, const struct tx *b);

#endif
