/* The epoch that waits for attestors: what they sign, and the signatures that came. The worker's
 * thread computes it and takes the signatures out; the HTTP thread shows it and puts them in, each
 * with a database handle of its own. Thread: the handle's. */
#ifndef RS_SETTLE_CANDIDATE_H
#define RS_SETTLE_CANDIDATE_H

#include "chain_client/epoch.h"
#include "chain_client/settle/db.h"
#include "chain_client/settle/deployment.h"
#include "chain_client/settle/roles.h"
#include "chain_client/settle/states.h"

struct epoch_candidate {
    struct epoch_header header;
    uint64_t previous, paid_from;
    uint64_t planned_block; /* the finalized block whose last batch is E */
    enum epoch_state state;
    uint8_t digest[32];
};

/* NOT_FOUND unless the newest epoch is computed and not on its way to the vault. */
MUST_CHECK enum status candidate_load(struct epoch_candidate *c, struct db *db,
                                      const struct deployment *d, struct errtext *err);

struct candidate_signature {
    uint8_t signer[20], signature[SECP_SIGNATURE_BYTES];
};
struct candidate_signatures {
    struct candidate_signature item[EPOCH_SIGNATURES_MAX];
    size_t count;
};
/* Those stored for this digest, ascending by signer. */
MUST_CHECK enum status candidate_signatures(struct candidate_signatures *out, struct db *db,
                                            uint64_t epoch, const uint8_t digest[32],
                                            struct errtext *err);
/* One more, by an account that holds ATTESTOR. The same signer again replaces nothing and is OK.
 * FULL: as many as a proposal can carry. */
MUST_CHECK enum status candidate_sign(struct db *db, const struct epoch_candidate *c,
                                      const struct candidate_signature *s, struct errtext *err);

/* Who could sign, as the worker last read it, and how many the vault asks for. */
struct candidate_quorum {
    struct role_holders attestors;
    uint32_t needed;
};
MUST_CHECK enum status candidate_quorum_set(struct db *db, const struct candidate_quorum *q,
                                            struct errtext *err);
MUST_CHECK enum status candidate_quorum_get(struct candidate_quorum *q, struct db *db,
                                            struct errtext *err);

/* For people: "0xaa.., 0xbb..": the attestors without a signature in s. */
void candidate_put_absent(struct buf *out, const struct candidate_quorum *q,
                          const struct candidate_signatures *s, const char *quote);
/* The JSON of GET /v1/epochs/candidate. */
MUST_CHECK enum status candidate_put_json(struct buf *out, struct db *db,
                                          const struct deployment *d, struct errtext *err);

/* The gauge of what the epoch in hand still lacks. */
MUST_CHECK enum status candidate_put_metrics(struct buf *out, struct db *db, struct errtext *err);

#endif
