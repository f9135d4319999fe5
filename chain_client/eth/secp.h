/* Ethereum signatures: recoverable ECDSA on secp256k1, deterministic (RFC 6979), low s, 65 bytes
 * r ‖ s ‖ v with v = 27 or 28. The only user of libsecp256k1. A context is randomised once when
 * it is made and constant afterwards: one context may sign on any number of threads.
 *
 *   struct secp *c;
 *   st = secp_create(&c, err);
 *   st = secp_key_init(c, &key, secret, err);
 *   st = secp_sign(c, sig, &key, digest, err);
 *   secp_key_fini(&key);
 *   secp_destroy(c);
 */
#ifndef RS_CHAIN_ETH_SECP_H
#define RS_CHAIN_ETH_SECP_H

#include "server/base/errtext.h"

#include <stdint.h>

#define SECP_SIGNATURE_BYTES 65

struct secp;

struct secp_key {
    uint8_t secret[32];
    uint8_t address[20]; /* last 20 bytes of Keccak-256 of the public key */
};

/* Errors: NO_MEMORY, IO when the system gives no randomness. */
MUST_CHECK enum status secp_create(struct secp **out, struct errtext *err);
void secp_destroy(struct secp *c); /* NULL is fine */

/* Check the scalar (1 .. n-1) and derive the address. INVALID otherwise, and key is zero. */
MUST_CHECK enum status secp_key_init(const struct secp *c, struct secp_key *key,
                                     const uint8_t secret[32], struct errtext *err);
/* A fresh key from the system's randomness. */
MUST_CHECK enum status secp_key_random(const struct secp *c, struct secp_key *key,
                                       struct errtext *err);
void secp_key_fini(struct secp_key *key); /* overwrites the secret */

/* Sign, then recover from the result and compare with key->address: a fault in the computation
 * cannot leak the key through a wrong signature. INVALID if key was not initialised. */
MUST_CHECK enum status secp_sign(const struct secp *c, uint8_t sig[SECP_SIGNATURE_BYTES],
                                 const struct secp_key *key, const uint8_t digest[32],
                                 struct errtext *err);

/* address = who signed digest. INVALID for v other than 27 or 28, a high s, r or s out of range, or
 * no such point. */
MUST_CHECK enum status secp_recover(const struct secp *c, uint8_t address[20],
                                    const uint8_t sig[SECP_SIGNATURE_BYTES],
                                    const uint8_t digest[32], struct errtext *err);
/* OK if address signed digest; DENIED, naming both addresses, if someone else did. */
MUST_CHECK enum status secp_verify(const struct secp *c, const uint8_t sig[SECP_SIGNATURE_BYTES],
                                   const uint8_t digest[32], const uint8_t address[20],
                                   struct errtext *err);

#endif
