/* EIP-712: hashes of typed structs under a domain, and the digest that is signed. Pure. Thread:
 * any.
 *
 *   eip712_domain(domain, "residual", "1", chain_id, ledger);
 *   eip712_begin(&h, "Void(uint8 spec,uint32 lane,uint64 seq,uint8 reason)");
 *   eip712_uint(&h, spec); ...
 *   eip712_end(&h, struct_hash);
 *   eip712_digest(digest, domain, struct_hash);
 */
#ifndef RS_CHAIN_ETH_EIP712_H
#define RS_CHAIN_ETH_EIP712_H

#include "chain_client/eth/keccak.h"
#include "server/base/hex.h"

#include <stddef.h>
#include <stdint.h>

struct eip712_hasher {
    struct keccak k;
};

void eip712_begin(struct eip712_hasher *h, const char *type); /* the full encodeType string */
void eip712_begin_hashed(struct eip712_hasher *h, const uint8_t type_hash[32]); /* its Keccak-256 */
void eip712_uint(struct eip712_hasher *h, u128 v);
void eip712_bytes32(struct eip712_hasher *h, const uint8_t v[32]); /* and nested struct hashes */
void eip712_address(struct eip712_hasher *h, const uint8_t v[20]);
void eip712_bytes(struct eip712_hasher *h, const void *data, size_t len); /* bytes and string */
void eip712_end(struct eip712_hasher *h, uint8_t out[32]);

/* Domain separator of EIP712Domain(name, version, chainId, verifyingContract). */
void eip712_domain(uint8_t out[32], const char *name, const char *version, uint64_t chain_id,
                   const uint8_t contract[20]);
/* keccak(0x19 ‖ 0x01 ‖ domain ‖ struct_hash) */
void eip712_digest(uint8_t out[32], const uint8_t domain[32], const uint8_t struct_hash[32]);

#endif
