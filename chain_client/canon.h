/* Canonical records (SPEC 2): one table of every field, used to encode, decode and hash.
 *
 *   bytes = prefix, fixed fields, tails (u32 length + bytes each), 65-byte signature
 *
 * Decoded records hold tails as pointers into the caller's bytes (tail.h reads them). A record has
 * one encoding; decode refuses every other byte string and names the field. Pure but for signing.
 * Thread: any.
 *
 *   canon_domain(domain, chain_id, ledger);
 *   record.inference = (struct record_inference){...};
 *   canon_fill_hashes(&record);
 *   st = canon_sign(&record, digest, domain, secp, key, err);   // the receipt of type 1
 *   st = canon_encode(out, &len, &record, err);
 */
#ifndef RS_CHAIN_CANON_H
#define RS_CHAIN_CANON_H

#include "chain_client/eth/secp.h"
#include "chain_client/tail.h"
#include "server/base/errtext.h"
#include "server/base/hex.h"

#include <stddef.h>
#include <stdint.h>

#define CANON_SPEC              1
#define CANON_PREFIX_BYTES      14
#define CANON_INFERENCE_BYTES   343 /* fixed part, prefix included */
#define CANON_ATTRIBUTION_BYTES 183
#define CANON_VOID_BYTES        15
#define CANON_FIELDS_MAX        19
#define CANON_TAILS_MAX         3
#define CANON_RECORD_BYTES_MAX                                                                     \
    (CANON_ATTRIBUTION_BYTES + 4 + TAIL_INFLUENCE_BYTES_MAX + SECP_SIGNATURE_BYTES)

enum record_type { RECORD_INFERENCE = 1, RECORD_ATTRIBUTION = 2, RECORD_VOID = 3 };
enum record_status {
    RECORD_STATUS_COMPLETE = 1,
    RECORD_STATUS_CLIENT_LEFT = 2, /* delivered tokens are charged */
    RECORD_STATUS_FAILED = 3,      /* after output began: fee 0 */
};
enum record_outcome {
    RECORD_OUTCOME_SCORED = 0,
    RECORD_OUTCOME_INPUTS_LOST = 1,
    RECORD_OUTCOME_MODEL_GONE = 2, /* or an adapter */
    RECORD_OUTCOME_TOO_LONG = 3,
    RECORD_OUTCOME_SCORER_FAILED = 4,
};
enum record_void_reason { RECORD_VOID_LOST = 1, RECORD_VOID_DAMAGED = 2 };

struct canon_bytes {
    const uint8_t *data;
    size_t len;
};

struct record_prefix {
    uint8_t spec; /* CANON_SPEC */
    uint8_t type; /* enum record_type */
    uint32_t lane;
    uint64_t seq; /* from 1 */
};

struct record_inference {
    struct record_prefix prefix;
    uint8_t request_id[32], app_commit[32], model_id[32], adapter_set_hash[32];
    uint32_t tokens_in, tokens_out;
    u128 fee;
    uint8_t tariff_hash[32], params_hash[32], engine_id[32];
    uint64_t start_ms, end_ms;
    uint8_t status; /* enum record_status */
    uint8_t prompt_commit[32], output_commit[32];
    struct canon_bytes set, tariff, params;
    uint8_t signature[SECP_SIGNATURE_BYTES];
};

struct record_attribution {
    struct record_prefix prefix;
    uint64_t inf_seq;
    uint8_t inf_digest[32], method_hash[32], index_hash[32], inputs_digest[32];
    uint8_t outcome; /* enum record_outcome */
    uint8_t influence_hash[32];
    struct canon_bytes influence; /* empty unless scored */
    uint8_t signature[SECP_SIGNATURE_BYTES];
};

struct record_void {
    struct record_prefix prefix;
    uint8_t reason; /* enum record_void_reason */
    uint8_t signature[SECP_SIGNATURE_BYTES];
};

/* prefix.type says which. */
union record {
    struct record_prefix prefix;
    struct record_inference inference;
    struct record_attribution attribution;
    struct record_void voided;
};

/* The table. offset is in the encoded record, member in the struct; width 1, 4, 8 and 16 are
 * unsigned integers, 32 is bytes32. A `type` field is not part of the EIP-712 struct. */
struct canon_field {
    const char *name;
    uint16_t offset;
    uint8_t width;
    const char *unit;
    size_t member;
};

struct canon_tail {
    const char *name;
    size_t member;      /* of the struct canon_bytes */
    size_t hash_member; /* of the field that holds its Keccak-256 */
    size_t bytes_max;
};

struct canon_layout {
    const char *name; /* "Inference" */
    const char *type; /* the EIP-712 type string */
    const struct canon_field *field;
    size_t field_count;
    const struct canon_tail *tail;
    size_t tail_count;
    size_t fixed_bytes;
    size_t signature_member;
};

/* NULL for an unknown type. The table lives for ever. */
const struct canon_layout *canon_layout(uint8_t type);

/* Set every tail's hash field from the tail's bytes. prefix.type must be known. */
void canon_fill_hashes(union record *r);

/* canon_encode - the record's canonical bytes, signature included.
 *
 * Shapes  out [CANON_RECORD_BYTES_MAX]; *len is what was written
 * Errors  INVALID: as canon_check
 */
MUST_CHECK enum status canon_encode(uint8_t *out, size_t *len, const union record *r,
                                    struct errtext *err);

/* canon_decode - read exactly one record from data[0..len) and check it (canon_check).
 *
 * Owns    tails point into data
 * Errors  INVALID, naming the field, the found and the expected value. The signature is copied,
 *         not verified: canon_verify does.
 */
MUST_CHECK enum status canon_decode(union record *r, const uint8_t *data, size_t len,
                                    struct errtext *err);
/* The layout alone: lengths and tail hashes, no rule about values. For an auditor who must read a
 * signed record that breaks a rule in order to report it. */
MUST_CHECK enum status canon_decode_layout(union record *r, const uint8_t *data, size_t len,
                                           struct errtext *err);
/* Every rule that one record can break by itself: spec, seq >= 1, tail contents and hashes, tariff
 * of 1 + K prices, fee = formula (0 for status 3), enums in range, infSeq < seq, end >= start. */
MUST_CHECK enum status canon_check(const union record *r, struct errtext *err);
/* Rules of a pair: same lane, infSeq and infDigest name `inf`, one credit per adapter when scored.
 */
MUST_CHECK enum status canon_check_pair(const struct record_attribution *att,
                                        const struct record_inference *inf,
                                        const uint8_t inf_digest[32], struct errtext *err);

/* Domain {"residual", "1", chain_id, ledger}; an unbound lane has 0 and the zero address. */
void canon_domain(uint8_t domain[32], uint64_t chain_id, const uint8_t ledger[20]);
/* The EIP-712 digest that the lane key signs and the log tree carries. */
void canon_digest(uint8_t digest[32], const union record *r, const uint8_t domain[32]);
/* digest, and the signature into the record. */
MUST_CHECK enum status canon_sign(union record *r, uint8_t digest[32], const uint8_t domain[32],
                                  const struct secp *c, const struct secp_key *key,
                                  struct errtext *err);
/* DENIED if another key signed. digest is always set. */
MUST_CHECK enum status canon_verify(const union record *r, uint8_t digest[32],
                                    const uint8_t domain[32], const struct secp *c,
                                    const uint8_t lane_address[20], struct errtext *err);

#endif
