/* Epoch digests and vault call data, written with the ABI tuple writer. */
#include "chain_client/epoch.h"
#include "chain_client/eth/abi.h"
#include "chain_client/eth/eip712.h"
#include "server/base/check.h"

#define HEADER_TYPE "(uint64,bytes32,bytes32,uint128,uint32,uint64,uint64,bytes32)"
#define BATCH_TYPE  "(uint64,uint8,bytes32,bytes32,bytes32,uint32,uint32,uint128,uint128,uint64)"
#define CLAIM_TYPE  "(uint64,uint32,address,uint128,bytes32[],uint128[])"

void epoch_digest(uint8_t out[32], const struct epoch_header *h, uint64_t chain_id,
                  const uint8_t vault[20])
{
    struct eip712_hasher e;
    uint8_t domain[32], hash[32];
    eip712_begin(&e, "Epoch(uint64 epoch,bytes32 prevRoot,bytes32 root,uint128 total,uint32 leaves,"
                     "uint64 batchPaid,uint64 batchEvidence,bytes32 manifest)");
    eip712_uint(&e, h->epoch);
    eip712_bytes32(&e, h->prev_root);
    eip712_bytes32(&e, h->root);
    eip712_uint(&e, h->total);
    eip712_uint(&e, h->leaves);
    eip712_uint(&e, h->batch_paid);
    eip712_uint(&e, h->batch_evidence);
    eip712_bytes32(&e, h->manifest);
    eip712_end(&e, hash);
    eip712_domain(domain, "residual", "1", chain_id, vault);
    eip712_digest(out, domain, hash);
}

void epoch_put_propose(struct buf *out, const struct epoch_proposal *p)
{
    const struct epoch_header *h = p->header;
    struct abi_tuple t, list;
    abi_put_selector(out, "propose(" HEADER_TYPE "," BATCH_TYPE ",bytes32,bytes[])");
    /* Both headers are static: their words stand in the outer head. */
    abi_begin(&t, out, EPOCH_HEADER_WORDS);
    abi_uint(&t, h->epoch);
    abi_bytes32(&t, h->prev_root);
    abi_bytes32(&t, h->root);
    abi_uint(&t, h->total);
    abi_uint(&t, h->leaves);
    abi_uint(&t, h->batch_paid);
    abi_uint(&t, h->batch_evidence);
    abi_bytes32(&t, h->manifest);
    abi_end(&t);
    batch_put_header(out, p->paid);
    abi_begin(&list, out, 2);
    abi_bytes32(&list, p->lanes_hash);
    abi_uint(&list, ABI_WORD_BYTES * (EPOCH_HEADER_WORDS + BATCH_HEADER_WORDS + 2));
    abi_end(&list);
    abi_count(out, p->signature_count);
    abi_begin(&list, out, p->signature_count);
    for (size_t i = 0; i < p->signature_count; i++) {
        abi_dynamic(&list);
        abi_bytes_tail(out, p->signature[i], SECP_SIGNATURE_BYTES);
    }
    abi_end(&list);
}

static void put_claim_tuple(struct buf *out, const struct epoch_claim *c)
{
    struct abi_tuple t, list;
    CHECK(c->proof->depth <= TREE_DEPTH_MAX);
    abi_begin(&t, out, 6);
    abi_uint(&t, c->epoch);
    abi_uint(&t, c->idx);
    abi_address(&t, c->account);
    abi_uint(&t, c->cumulative);
    abi_dynamic(&t);
    abi_count(out, c->proof->depth);
    abi_begin(&list, out, c->proof->depth);
    for (uint32_t d = 0; d < c->proof->depth; d++)
        abi_bytes32(&list, c->proof->sibling[d].hash);
    abi_end(&list);
    abi_dynamic(&t);
    abi_count(out, c->proof->depth);
    abi_begin(&list, out, c->proof->depth);
    for (uint32_t d = 0; d < c->proof->depth; d++)
        abi_uint(&list, c->proof->sibling[d].sum);
    abi_end(&list);
    abi_end(&t);
}

void epoch_put_claim(struct buf *out, const struct epoch_claim *claim)
{
    abi_put_selector(out, "claim(uint64,uint32,address,uint128,bytes32[],uint128[])");
    put_claim_tuple(out, claim);
}

/* The last word of t, and the list behind it. */
static void put_claims(struct buf *out, struct abi_tuple *t, const struct epoch_claim *claim,
                       size_t count)
{
    struct abi_tuple list;
    abi_dynamic(t);
    abi_count(out, count);
    abi_begin(&list, out, count);
    for (size_t i = 0; i < count; i++) {
        abi_dynamic(&list);
        put_claim_tuple(out, &claim[i]);
    }
    abi_end(&list);
    abi_end(t);
}

void epoch_put_claim_many(struct buf *out, const struct epoch_claim *claim, size_t count)
{
    struct abi_tuple t;
    abi_put_selector(out, "claimMany(" CLAIM_TYPE "[])");
    abi_begin(&t, out, 1);
    put_claims(out, &t, claim, count);
}

void epoch_put_disable(struct buf *out, uint64_t epoch, uint8_t kind,
                       const struct epoch_claim *claim, size_t count)
{
    struct abi_tuple t;
    abi_put_selector(out, "disableByProof(uint64,uint8," CLAIM_TYPE "[])");
    abi_begin(&t, out, 3);
    abi_uint(&t, epoch);
    abi_uint(&t, kind);
    put_claims(out, &t, claim, count);
}
