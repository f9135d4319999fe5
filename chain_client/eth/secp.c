/* libsecp256k1 behind six calls. Only recoverable signatures are made, always compact with low s
 * (the library's signer never makes another), and a high s is refused when reading: each signed
 * digest has one valid encoding, so a digest of signed bytes is an identity. */
#include "chain_client/eth/secp.h"
#include "chain_client/eth/addr.h"
#include "chain_client/eth/keccak.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <secp256k1.h>
#include <secp256k1_recovery.h>
#include <sodium.h>
#include <string.h>

struct secp {
    secp256k1_context *ctx;
};

enum status secp_create(struct secp **out, struct errtext *err)
{
    uint8_t seed[32];
    *out = NULL;
    if (sodium_init() < 0)
        return err_set(err, STATUS_IO, "the system gives no random bytes (libsodium)");
    struct secp *c = mem_alloc(sizeof(*c));
    c->ctx = secp256k1_context_create(SECP256K1_CONTEXT_SIGN | SECP256K1_CONTEXT_VERIFY);
    if (!c->ctx) {
        mem_free(c);
        return err_set(err, STATUS_NO_MEMORY, "libsecp256k1 gives no context");
    }
    randombytes_buf(seed, sizeof(seed));
    int randomised = secp256k1_context_randomize(c->ctx, seed);
    mem_wipe(seed, sizeof(seed));
    CHECK(randomised == 1);
    *out = c;
    return STATUS_OK;
}

void secp_destroy(struct secp *c)
{
    if (!c)
        return;
    secp256k1_context_destroy(c->ctx);
    mem_free(c);
}

static void address_of(const struct secp *c, uint8_t address[20], const secp256k1_pubkey *pub)
{
    uint8_t point[65], hash[32];
    size_t len = sizeof(point);
    secp256k1_ec_pubkey_serialize(c->ctx, point, &len, pub, SECP256K1_EC_UNCOMPRESSED);
    CHECK(len == sizeof(point));
    keccak_256(hash, point + 1, 64); /* without the 0x04 prefix */
    memcpy(address, hash + 12, 20);
}

enum status secp_key_init(const struct secp *c, struct secp_key *key, const uint8_t secret[32],
                          struct errtext *err)
{
    secp256k1_pubkey pub;
    memset(key, 0, sizeof(*key));
    if (!secp256k1_ec_seckey_verify(c->ctx, secret))
        return err_set(err, STATUS_INVALID,
                       "private key is not a secp256k1 scalar (expected 1 .. n-1)");
    CHECK(secp256k1_ec_pubkey_create(c->ctx, &pub, secret) == 1);
    memcpy(key->secret, secret, 32);
    address_of(c, key->address, &pub);
    return STATUS_OK;
}

enum status secp_key_random(const struct secp *c, struct secp_key *key, struct errtext *err)
{
    uint8_t secret[32];
    do { /* a draw outside 1 .. n-1 happens once in 2^127 */
        randombytes_buf(secret, sizeof(secret));
    } while (!secp256k1_ec_seckey_verify(c->ctx, secret));
    enum status st = secp_key_init(c, key, secret, err);
    mem_wipe(secret, sizeof(secret));
    return st;
}

void secp_key_fini(struct secp_key *key)
{
    mem_wipe(key, sizeof(*key));
}

enum status secp_sign(const struct secp *c, uint8_t sig[SECP_SIGNATURE_BYTES],
                      const struct secp_key *key, const uint8_t digest[32], struct errtext *err)
{
    secp256k1_ecdsa_recoverable_signature rec;
    uint8_t signer[20];
    int recid = -1;
    if (!secp256k1_ecdsa_sign_recoverable(c->ctx, &rec, digest, key->secret, NULL, NULL))
        return err_set(err, STATUS_INVALID, "signing needs a private key that was initialised");
    secp256k1_ecdsa_recoverable_signature_serialize_compact(c->ctx, sig, &recid, &rec);
    CHECK(recid == 0 || recid == 1); /* 2 and 3 need r >= n: nobody will see one */
    sig[64] = (uint8_t)(27 + recid);
    enum status st = secp_recover(c, signer, sig, digest, err);
    if (st || memcmp(signer, key->address, 20) != 0) {
        memset(sig, 0, SECP_SIGNATURE_BYTES);
        return err_set(err, STATUS_CORRUPT, "a fresh signature does not recover its own key");
    }
    return STATUS_OK;
}

enum status secp_recover(const struct secp *c, uint8_t address[20],
                         const uint8_t sig[SECP_SIGNATURE_BYTES], const uint8_t digest[32],
                         struct errtext *err)
{
    secp256k1_ecdsa_recoverable_signature rec;
    secp256k1_ecdsa_signature plain;
    secp256k1_pubkey pub;
    if (sig[64] != 27 && sig[64] != 28)
        return err_param(err, STATUS_INVALID, "signature", "signature: v is %u, expected 27 or 28",
                         sig[64]);
    if (!secp256k1_ecdsa_recoverable_signature_parse_compact(c->ctx, &rec, sig, sig[64] - 27))
        return err_param(err, STATUS_INVALID, "signature",
                         "signature: r or s is not below the group order");
    secp256k1_ecdsa_recoverable_signature_convert(c->ctx, &plain, &rec);
    if (secp256k1_ecdsa_signature_normalize(c->ctx, NULL, &plain))
        return err_param(err, STATUS_INVALID, "signature",
                         "signature: s is in the upper half of the group order (expected low s)");
    if (!secp256k1_ecdsa_recover(c->ctx, &pub, &rec, digest))
        return err_param(err, STATUS_INVALID, "signature", "signature: recovers no public key");
    address_of(c, address, &pub);
    return STATUS_OK;
}

enum status secp_verify(const struct secp *c, const uint8_t sig[SECP_SIGNATURE_BYTES],
                        const uint8_t digest[32], const uint8_t address[20], struct errtext *err)
{
    uint8_t signer[20];
    char found[ADDR_TEXT_BYTES], expected[ADDR_TEXT_BYTES];
    enum status st = secp_recover(c, signer, sig, digest, err);
    if (st)
        return st;
    if (memcmp(signer, address, 20) == 0)
        return STATUS_OK;
    addr_format(found, signer);
    addr_format(expected, address);
    return err_param(err, STATUS_DENIED, "signature", "signature: signed by %s, expected %s", found,
                     expected);
}
