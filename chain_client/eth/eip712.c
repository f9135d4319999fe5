/* A struct hash is Keccak-256 of the type's hash and one 32-byte word per member: integers and
 * addresses padded on the left, bytes32 as is, dynamic members by their own Keccak-256. */
#include "chain_client/eth/eip712.h"

#include <string.h>

void eip712_begin(struct eip712_hasher *h, const char *type)
{
    uint8_t type_hash[32];
    keccak_256(type_hash, type, strlen(type));
    eip712_begin_hashed(h, type_hash);
}

void eip712_begin_hashed(struct eip712_hasher *h, const uint8_t type_hash[32])
{
    keccak_init(&h->k);
    keccak_update(&h->k, type_hash, 32);
}

void eip712_uint(struct eip712_hasher *h, u128 v)
{
    uint8_t word[32];
    be_put(word, v, sizeof(word));
    keccak_update(&h->k, word, sizeof(word));
}

void eip712_bytes32(struct eip712_hasher *h, const uint8_t v[32])
{
    keccak_update(&h->k, v, 32);
}

void eip712_address(struct eip712_hasher *h, const uint8_t v[20])
{
    uint8_t word[32] = {0};
    memcpy(word + 12, v, 20);
    keccak_update(&h->k, word, sizeof(word));
}

void eip712_bytes(struct eip712_hasher *h, const void *data, size_t len)
{
    uint8_t hash[32];
    keccak_256(hash, data, len);
    keccak_update(&h->k, hash, sizeof(hash));
}

void eip712_end(struct eip712_hasher *h, uint8_t out[32])
{
    keccak_final(&h->k, out);
}

void eip712_domain(uint8_t out[32], const char *name, const char *version, uint64_t chain_id,
                   const uint8_t contract[20])
{
    struct eip712_hasher h;
    eip712_begin(&h, "EIP712Domain(string name,string version,uint256 chainId,"
                     "address verifyingContract)");
    eip712_bytes(&h, name, strlen(name));
    eip712_bytes(&h, version, strlen(version));
    eip712_uint(&h, chain_id);
    eip712_address(&h, contract);
    eip712_end(&h, out);
}

void eip712_digest(uint8_t out[32], const uint8_t domain[32], const uint8_t struct_hash[32])
{
    static const uint8_t prefix[2] = {0x19, 0x01};
    struct keccak k;
    keccak_init(&k);
    keccak_update(&k, prefix, sizeof(prefix));
    keccak_update(&k, domain, 32);
    keccak_update(&k, struct_hash, 32);
    keccak_final(&k, out);
}
