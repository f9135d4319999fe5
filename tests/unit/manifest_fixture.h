/* A publish manifest with both signatures, as the command line makes it. */
#ifndef RS_TESTS_MANIFEST_FIXTURE_H
#define RS_TESTS_MANIFEST_FIXTURE_H

#include "chain_client/eth/addr.h"
#include "chain_client/eth/secp.h"
#include "server/adapter/manifest.h"
#include "server/base/hex.h"

#include <jansson.h>

struct manifest_keys {
    struct secp *secp;
    struct secp_key owner;
    uint8_t publisher_public[32], publisher_secret[64];
};

static inline void keys_create(struct manifest_keys *k, uint8_t seed)
{
    uint8_t secret[32];
    memset(secret, seed, 32);
    assert_int_equal(secp_create(&k->secp, NULL), STATUS_OK);
    assert_int_equal(secp_key_init(k->secp, &k->owner, secret, NULL), STATUS_OK);
    crypto_sign_seed_keypair(k->publisher_public, k->publisher_secret, secret);
}

static inline void keys_destroy(struct manifest_keys *k)
{
    secp_key_fini(&k->owner);
    secp_destroy(k->secp);
}

static inline json_t *hex_json(const uint8_t *data, size_t n)
{
    char text[200] = "0x";
    hex_encode(text + 2, data, n);
    return json_string(text);
}

static inline json_t *address_json(const uint8_t a[20])
{
    char text[ADDR_TEXT_BYTES];
    addr_format(text, a);
    return json_string(text);
}

static inline json_t *split_json(const uint8_t payee[20], const char *role, int bps)
{
    return json_pack("{s:o, s:s, s:i}", "payee", address_json(payee), "role", role, "bps", bps);
}

/* Sign what m holds into a fresh JSON manifest (m's split is two entries: author, data). */
static inline json_t *manifest_json(struct manifest *m, const struct manifest_keys *k)
{
    uint8_t digest[32], owner_sig[65], publisher_sig[64];
    char in[40], out[40];
    u128_format(in, m->tariff.in);
    u128_format(out, m->tariff.out);
    memcpy(m->owner, k->owner.address, 20);
    m->split_count = 2;
    memset(&m->split[0], 0, 2 * sizeof(m->split[0]));
    m->split[0] = (struct reward_entry){.role = 1, .bps = 4000};
    memcpy(m->split[0].payee, m->owner, 20);
    m->split[1] = (struct reward_entry){.role = 2, .bps = 6000};
    memset(m->split[1].payee, 0x22, 20);
    manifest_digest(digest, m);
    assert_int_equal(secp_sign(k->secp, owner_sig, &k->owner, digest, NULL), STATUS_OK);
    crypto_sign_detached(publisher_sig, NULL, digest, 32, k->publisher_secret);
    return json_pack(
        "{s:I, s:o, s:o, s:o, s:I, s:o, s:{s:s, s:s}, s:[o, o], s:[], s:I, s:o, s:o, s:o, "
        "s:o}",
        "version", (json_int_t)m->version, "adapterId", hex_json(m->adapter_id, 32), "modelId",
        hex_json(m->model_id, 32), "datanetId", hex_json(m->datanet_id, 32), "datanetVersion",
        (json_int_t)m->datanet_version, "owner", address_json(m->owner), "prices", "in", in, "out",
        out, "split", split_json(m->split[1].payee, "data", 6000), /* any order: it is sorted */
        split_json(m->split[0].payee, "author", 4000), "parents", "chainId",
        (json_int_t)m->chain_id, "registry", hex_json(m->registry, 20), "publisherKey",
        hex_json(k->publisher_public, 32), "publisherSignature", hex_json(publisher_sig, 64),
        "ownerSignature", hex_json(owner_sig, 65));
}

static inline json_t *document_json(uint32_t id, uint8_t owner_byte)
{
    uint8_t owner[20], digest[32];
    memset(owner, owner_byte, 20);
    memset(digest, (int)id, 32);
    return json_pack("{s:i, s:o, s:s, s:i, s:o}", "docId", id, "owner", address_json(owner),
                     "licence", "CC-BY-4.0", "bytes", 100, "digest", hex_json(digest, 32));
}

#endif
