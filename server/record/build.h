/* Records from what happened: a finished request -> inference record; a scored job -> attribution
 * record. Pure but for the lane's signature. Thread: the recorder's. */
#ifndef RS_RECORD_BUILD_H
#define RS_RECORD_BUILD_H

#include "chain_client/canon.h"
#include "server/influence/gain.h"
#include "server/influence/job.h"
#include "server/model/model.h"
#include "server/record/lane.h"

struct built_record {
    uint8_t digest[32], signature[SECP_SIGNATURE_BYTES];
    u128 fee;
    uint8_t bytes[CANON_RECORD_BYTES_MAX];
    size_t len;
};

struct build_context {
    const struct lane *lane;
    const struct model *model;
    uint8_t engine_id[32];
};

/* Status of the record a request leaves, or 0: it leaves none (it failed before any output). */
uint8_t build_record_status(const struct request *r);
/* The prices that the request was entitled to when it began: the base's, then each adapter's. */
void build_tariff(struct tail_tariff *out, const struct request *r);
/* Is one of them not 0? */
bool build_is_priced(const struct request *r);
void build_token_counts(const struct request *r, uint64_t *tokens_in, uint64_t *tokens_out);
/* Errors: INVALID with the field of the record that cannot be encoded. */
MUST_CHECK enum status build_inference(struct built_record *out, const struct build_context *c,
                                       const struct request *r, uint64_t seq,
                                       const uint8_t salt[32], struct errtext *err);
/* scored NULL: outcome says why not. */
struct build_attribution_args {
    const struct job *job;
    uint64_t seq;
    uint8_t outcome; /* enum record_outcome */
    const struct gain_result *scored;
    const uint8_t *inputs_digest, *index_hash; /* 32 each, with scored */
};
MUST_CHECK enum status build_attribution(struct built_record *out, const struct build_context *c,
                                         const struct build_attribution_args *a,
                                         struct errtext *err);

#endif
