/* The audit: recompute what was committed and paid, from the published archive, the registry and
 * the chain, and say what does not agree. One library (target rs_audit) for the worker, which asks
 * it before it proposes, and for `residual audit`. It trusts nothing in the archive: every file is
 * either hashed into something on the chain or rendered again and compared byte for byte.
 *
 *   deployment_load(&d, "deployment.json", err);           chain_client/settle/deployment.h
 *   rpc_open(&rpc, &(struct rpc_config){.url = url}, err);
 *   opt = (struct audit_options){.archive_dir = dir, .rpc = rpc, .deployment = &d};
 *   st = audit_epoch(&report, &opt, 3, err);
 *   if (st) ...              the audit could not be made: say err.text; nothing was shown
 *   audit_report_json(&report, &out);
 *   exit(report.finding_count ? 1 : 0);
 *
 * Thread: one at a time per rpc; blocks on disk and on the node. */
#ifndef RS_SETTLE_AUDIT_H
#define RS_SETTLE_AUDIT_H

#include "chain_client/epoch.h"
#include "chain_client/eth/rpc.h"
#include "chain_client/settle/deployment.h"
#include "server/base/buf.h"
#include "server/base/errtext.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AUDIT_FINDINGS_MAX 64
#define AUDIT_TEXT_BYTES   512

struct audit_options {
    const char *archive_dir;
    struct rpc *rpc;
    const struct deployment *deployment;
    uint32_t threads; /* that check signatures; 0: one a processor */
    /* Progress for people, or NULL: text is one line without a newline. */
    void (*progress)(void *arg, const char *text);
    void *arg;
};

/* A required answer that no valid evidence scored. */
struct audit_missing {
    uint64_t epoch;
    uint32_t lane;
    uint64_t seq;
    u128 fee;
};

struct audit_report {
    uint64_t batch_first, batch_last; /* audited, both included */
    uint64_t epoch_last;              /* 0 for an audit of a batch */
    uint64_t batches, epochs, epochs_vetoed;
    uint64_t records, inferences, attributions, voids;
    uint64_t required, scored, missing_count; /* answers, over all audited epochs */
    u128 fee_required, fee_scored, fee_missing;
    u128 fee_sum;                  /* of the audited batches */
    u128 total, claimed, held;     /* of the vault: promised by epoch_last, paid out, in hand */
    uint32_t accounts;             /* leaves of epoch_last */
    struct audit_missing *missing; /* [missing_count], by epoch, lane, seq */
    size_t missing_cap;
    /* What does not agree, in the order it was found; none: all right. */
    char (*finding)[AUDIT_TEXT_BYTES]; /* [MIN(finding_count, AUDIT_FINDINGS_MAX)] */
    size_t finding_count;
    /* Of the findings: records that break a rule of pairs or of the Registry, for which the money
     * is right all the same (SPEC 2). What was committed and proposed is right iff there are no
     * others. */
    size_t fault_count;
    size_t owners_absent;              /* of the faults: owners' lists that an archive lacks */
    char difference[AUDIT_TEXT_BYTES]; /* the first of the others; "" when there is none */
    uint64_t refused;                  /* answers, over all audited epochs, and what they paid */
    u128 fee_refused;
};

/* audit_batch - batch seq alone: header against the chain, manifest, record file, every record's
 * rules, fee and signature under the lane key valid at its number, tree, sums, lane ranges that
 * follow batch seq - 1's.
 *
 * After   OK: report is filled, all right iff finding_count is 0. audit_report_fini either way.
 * Errors  NOT_FOUND (no such batch on the chain), CONFLICT (another chain or contract code than the
 *         deployment names), IO, TIMEOUT (node), NO_MEMORY. A missing or damaged archive file is a
 *         finding, not an error.
 */
MUST_CHECK enum status audit_batch(struct audit_report *report, const struct audit_options *opt,
                                   uint64_t seq, struct errtext *err);

/* audit_epoch - everything up to epoch `epoch`: every batch from 1 to its E as audit_batch does,
 * with the pairing of records across batches, and every epoch from 1 on: registry snapshot at T,
 * Reward recomputed, accounts, missing answers, manifest, root, total, fundings and claims. */
MUST_CHECK enum status audit_epoch(struct audit_report *report, const struct audit_options *opt,
                                   uint64_t epoch, struct errtext *err);

/* audit_alone - a batch as audit_batch does, without those before it: what links them the ledger
 * checked when it took the commit. Its archive needs to hold no other. */
MUST_CHECK enum status audit_alone(struct audit_report *report, const struct audit_options *opt,
                                   uint64_t seq, struct errtext *err);

/* A result that is not final on the chain: what a worker wants to propose, or what was proposed. */
struct audit_candidate {
    const struct epoch_header *header; /* compared with what is found */
    uint64_t previous;                 /* e' */
    struct epoch_header found;         /* filled: zeros unless the epoch could be computed */
};
/* audit_candidate - the batches M'+1 to E of the candidate as audit_batch does, then its epoch:
 * every number of its header again, from records, registry and chain. M' is the vault's word. */
MUST_CHECK enum status audit_candidate(struct audit_report *report, const struct audit_options *opt,
                                       struct audit_candidate *c, struct errtext *err);

void audit_report_fini(struct audit_report *r);
/* One JSON object: {"ok", "findings": [..], "fault_count", counts, "missing": [..]}; amounts are
 * strings. */
void audit_report_json(const struct audit_report *r, struct buf *out);

#endif
