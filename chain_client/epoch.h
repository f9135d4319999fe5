/* The header of an epoch, what attestors sign, and the calls that move it: propose, claim. As the
 * RewardVault contract reads them. Thread: any. */
#ifndef RS_CHAIN_EPOCH_H
#define RS_CHAIN_EPOCH_H

#include "chain_client/batch.h"
#include "chain_client/eth/secp.h"
#include "chain_client/tree.h"
#include "server/base/buf.h"

#include <stddef.h>
#include <stdint.h>

#define EPOCH_HEADER_WORDS    8
#define EPOCH_SIGNATURES_MAX  16
#define EPOCH_CLAIM_BYTES_MAX 2048
#define EPOCH_CLAIMS_MAX      100 /* in one claimMany */

struct epoch_header {
    uint64_t epoch; /* from 1 */
    uint8_t prev_root[32], root[32];
    u128 total; /* sum of the cumulative amounts */
    uint32_t leaves;
    uint64_t batch_paid, batch_evidence; /* M and E */
    uint8_t manifest[32];
};

/* The EIP-712 digest of struct Epoch in domain {"residual", "1", chainId, vault}. */
void epoch_digest(uint8_t out[32], const struct epoch_header *h, uint64_t chain_id,
                  const uint8_t vault[20]);

/* What propose takes beside the header: M's batch header with its lanes' hash, and attestations. */
struct epoch_proposal {
    const struct epoch_header *header;
    const struct batch_header *paid;
    const uint8_t *lanes_hash;                        /* [32] */
    const uint8_t (*signature)[SECP_SIGNATURE_BYTES]; /* [signature_count], may be NULL */
    size_t signature_count;
};
void epoch_put_propose(struct buf *out, const struct epoch_proposal *p);

struct epoch_claim {
    uint64_t epoch;
    uint32_t idx;
    uint8_t account[20];
    u128 cumulative;
    const struct tree_proof *proof;
};
void epoch_put_claim(struct buf *out, const struct epoch_claim *claim);
void epoch_put_claim_many(struct buf *out, const struct epoch_claim *claim, size_t count);
/* disableByProof: kind and order of the claims as the vault says. */
void epoch_put_disable(struct buf *out, uint64_t epoch, uint8_t kind,
                       const struct epoch_claim *claim, size_t count);

#endif
