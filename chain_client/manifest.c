/* Digests of manifests. The split is hashed as the ABI encodes it, so the contract can hash its
 * call data directly. */
#include "chain_client/manifest.h"
#include "chain_client/eth/abi.h"
#include "chain_client/eth/addr.h"
#include "chain_client/eth/eip712.h"
#include "chain_client/eth/keccak.h"
#include "server/base/check.h"

#include <string.h>

static bool is_zero(const uint8_t id[32])
{
    static const uint8_t zero[32];
    return memcmp(id, zero, 32) == 0;
}

static enum status check_parents(const struct manifest_publish *m, struct errtext *err)
{
    uint32_t bps = 0;
    if (m->parent_count > REWARD_PARENTS_MAX)
        return err_param(err, STATUS_INVALID, "parents", "parents: %zu, expected at most %d",
                         m->parent_count, REWARD_PARENTS_MAX);
    for (size_t i = 0; i < m->parent_count; i++) {
        const struct reward_parent *p = &m->parent[i];
        bps += p->bps;
        if (!p->bps || memcmp(p->adapter_id, m->adapter_id, 32) == 0)
            return err_param(err, STATUS_INVALID, "parents",
                             "parents: entry %zu has no bps or is the adapter itself", i);
        if (i && memcmp(p[-1].adapter_id, p->adapter_id, 32) >= 0)
            return err_param(err, STATUS_INVALID, "parents",
                             "parents: entry %zu is not above the one before by id", i);
    }
    if (bps > MANIFEST_PARENTS_BPS_MAX)
        return err_param(err, STATUS_INVALID, "parents", "parents: bps sum to %u, at most %d", bps,
                         MANIFEST_PARENTS_BPS_MAX);
    return STATUS_OK;
}

enum status manifest_publish_check(const struct manifest_publish *m, struct errtext *err)
{
    uint32_t bps = 0;
    if (is_zero(m->datanet_id) != (m->datanet_version == 0))
        return err_param(err, STATUS_INVALID, "datanetVersion",
                         "datanetVersion: expected 0 without a datanet, 1 or more with one");
    if (m->price_in >> TAIL_PRICE_BITS || m->price_out >> TAIL_PRICE_BITS)
        return err_param(err, STATUS_INVALID, "prices", "prices: expected less than 2^%d",
                         TAIL_PRICE_BITS);
    if (!m->version)
        return err_param(err, STATUS_INVALID, "version", "version: found 0, expected 1 or more");
    if (addr_is_zero(m->owner))
        return err_param(err, STATUS_INVALID, "owner", "owner: the zero address");
    if (!m->split.count || m->split.count > REWARD_ENTRIES_MAX)
        return err_param(err, STATUS_INVALID, "split", "split: %zu entries, expected 1 to %d",
                         m->split.count, REWARD_ENTRIES_MAX);
    for (size_t i = 0; i < m->split.count; i++) {
        const struct reward_entry *e = &m->split.entry[i];
        bps += e->bps;
        if (!e->bps || addr_is_zero(e->payee) || e->role < REWARD_ROLE_AUTHOR ||
            e->role > REWARD_ROLE_OTHER)
            return err_param(err, STATUS_INVALID, "split",
                             "split: entry %zu: zero payee or bps, or role %u (expected 1 to 3)", i,
                             e->role);
        if (i && (e[-1].role > e->role ||
                  (e[-1].role == e->role && memcmp(e[-1].payee, e->payee, 20) >= 0)))
            return err_param(err, STATUS_INVALID, "split",
                             "split: entry %zu is not above the one before (role, then payee)", i);
    }
    if (bps != REWARD_BPS)
        return err_param(err, STATUS_INVALID, "split", "split: bps sum to %u, expected %d", bps,
                         REWARD_BPS);
    return check_parents(m, err);
}

void manifest_split_hash(uint8_t out[32], const struct reward_split *split)
{
    struct buf bytes;
    struct abi_tuple t;
    CHECK(split->count <= REWARD_ENTRIES_MAX);
    buf_init(&bytes, ABI_WORD_BYTES * (3 + 3 * REWARD_ENTRIES_MAX));
    abi_begin(&t, &bytes, 1);
    abi_dynamic(&t);
    abi_end(&t);
    abi_count(&bytes, split->count);
    abi_begin(&t, &bytes, 3 * split->count);
    for (size_t i = 0; i < split->count; i++) {
        abi_address(&t, split->entry[i].payee);
        abi_uint(&t, split->entry[i].role);
        abi_uint(&t, split->entry[i].bps);
    }
    abi_end(&t);
    CHECK(!bytes.failed);
    keccak_256(out, bytes.data, bytes.len);
    buf_fini(&bytes);
}

void manifest_parents_hash(uint8_t out[32], const struct reward_parent *parent, size_t count)
{
    struct buf bytes;
    struct abi_tuple t;
    CHECK(count <= REWARD_PARENTS_MAX);
    buf_init(&bytes, ABI_WORD_BYTES * (3 + 2 * REWARD_PARENTS_MAX));
    abi_begin(&t, &bytes, 1);
    abi_dynamic(&t);
    abi_end(&t);
    abi_count(&bytes, count);
    abi_begin(&t, &bytes, 2 * count);
    for (size_t i = 0; i < count; i++) {
        abi_bytes32(&t, parent[i].adapter_id);
        abi_uint(&t, parent[i].bps);
    }
    abi_end(&t);
    CHECK(!bytes.failed);
    keccak_256(out, bytes.data, bytes.len);
    buf_fini(&bytes);
}

void manifest_publish_digest(uint8_t out[32], const struct manifest_publish *m, uint64_t chain_id,
                             const uint8_t registry[20])
{
    struct eip712_hasher h;
    uint8_t split[32], parents[32], hash[32], domain[32];
    manifest_split_hash(split, &m->split);
    manifest_parents_hash(parents, m->parent, m->parent_count);
    eip712_begin(&h, "Publish(bytes32 adapterId,bytes32 modelId,bytes32 datanetId,"
                     "uint64 datanetVersion,address owner,uint128 priceIn,uint128 priceOut,"
                     "bytes32 splitHash,bytes32 parentsHash,uint64 version)");
    eip712_bytes32(&h, m->adapter_id);
    eip712_bytes32(&h, m->model_id);
    eip712_bytes32(&h, m->datanet_id);
    eip712_uint(&h, m->datanet_version);
    eip712_address(&h, m->owner);
    eip712_uint(&h, m->price_in);
    eip712_uint(&h, m->price_out);
    eip712_bytes32(&h, split);
    eip712_bytes32(&h, parents);
    eip712_uint(&h, m->version);
    eip712_end(&h, hash);
    eip712_domain(domain, "residual", "1", chain_id, registry);
    eip712_digest(out, domain, hash);
}

void manifest_commitment(uint8_t out[32], const uint8_t adapter_id[32], const uint8_t owner[20],
                         const uint8_t salt[32])
{
    uint8_t bytes[96] = {0};
    memcpy(bytes, adapter_id, 32);
    memcpy(bytes + 44, owner, 20);
    memcpy(bytes + 64, salt, 32);
    keccak_256(out, bytes, sizeof(bytes));
}

void manifest_datanet_id(uint8_t out[32], const struct manifest_datanet *d)
{
    static const char label[] = "residual.datanet.1";
    struct buf bytes;
    struct abi_tuple t;
    buf_init(&bytes, 512);
    abi_begin(&t, &bytes, 5);
    abi_dynamic(&t);
    abi_uint(&t, d->chain_id);
    abi_address(&t, d->registry);
    abi_address(&t, d->owner);
    abi_bytes32(&t, d->salt);
    abi_bytes_tail(&bytes, label, sizeof(label) - 1);
    abi_end(&t);
    CHECK(!bytes.failed);
    keccak_256(out, bytes.data, bytes.len);
    buf_fini(&bytes);
}

void manifest_consent_digest(uint8_t out[32], const struct manifest_publish *m, uint64_t chain_id,
                             const uint8_t registry[20])
{
    struct eip712_hasher h;
    uint8_t hash[32], domain[32];
    eip712_begin(&h, "DatanetConsent(bytes32 datanetId,uint64 datanetVersion,bytes32 adapterId)");
    eip712_bytes32(&h, m->datanet_id);
    eip712_uint(&h, m->datanet_version);
    eip712_bytes32(&h, m->adapter_id);
    eip712_end(&h, hash);
    eip712_domain(domain, "residual", "1", chain_id, registry);
    eip712_digest(out, domain, hash);
}

void manifest_licence_digest(uint8_t out[32], const struct manifest_licence *l, uint64_t chain_id,
                             const uint8_t registry[20])
{
    struct eip712_hasher h;
    uint8_t hash[32], domain[32];
    eip712_begin(&h, "DocumentLicence(bytes32 datanetId,bytes32 digest,string licence,"
                     "string terms,bool display,address registry)");
    eip712_bytes32(&h, l->datanet_id);
    eip712_bytes32(&h, l->digest);
    eip712_bytes(&h, l->licence, strlen(l->licence));
    eip712_bytes(&h, l->terms, strlen(l->terms));
    eip712_uint(&h, l->display);
    eip712_address(&h, registry);
    eip712_end(&h, hash);
    eip712_domain(domain, "residual", "1", chain_id, registry);
    eip712_digest(out, domain, hash);
}
