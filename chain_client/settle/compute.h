/* An epoch from the archive: load the batches that it pays and those that hold its evidence, take
 * the registry as of T (snapshot.h), and compute Reward. The worker and the audit run these same
 * lines, and both from the published files. Thread: one at a time per object; blocks on disk.
 *
 *   compute_load(&c, &range, err)
 *   snapshot_read(&snap, &c, view, err)
 *   owner_lists_read(&owners, &snap, source, err)
 *   compute_reward(&out, &c, epoch, &snap, &owners, &prev, err)
 */
#ifndef RS_SETTLE_COMPUTE_H
#define RS_SETTLE_COMPUTE_H

#include "chain_client/settle/archive.h"
#include "chain_client/settle/owner_lists.h"
#include "chain_client/settle/snapshot.h"
#include "chain_client/tree.h"

struct compute_range {
    const char *archive_dir;
    struct batch_place place;
    uint64_t paid_from, paid, evidence; /* M', M, E */
};

struct compute {
    struct compute_range range;
    struct archive_batch *batch; /* M'+1 .. E; the arrays below point into their files */
    size_t batch_count;
    struct reward_record *record; /* of M'+1 .. M, ascending by (lane, seq) */
    size_t record_count, record_cap;
    uint64_t *record_batch;           /* [record_count] index into the batches of M'+1 .. M */
    struct reward_evidence *evidence; /* of M'+1 .. E, ascending by (lane, seq) */
    size_t evidence_count, evidence_cap;
    uint8_t (*digest)[32]; /* one block; record[].digest points into it */
    /* reward_input's; set after compute_load by whoever wants to hear every payment. */
    enum status (*on_share)(void *arg, const struct reward_share *share);
    void *on_share_arg;
};

/* Headers and files are checked against each other; whether a header is the chain's is for the
 * caller to ask (compute.batch[].hash). Errors: NOT_FOUND, CORRUPT (naming the file), NO_MEMORY,
 * TOO_LARGE past REWARD_RECORDS_MAX. */
MUST_CHECK enum status compute_load(struct compute *c, const struct compute_range *range,
                                    struct errtext *err);
void compute_fini(struct compute *c);

struct compute_result {
    struct reward_result reward;
    /* Ascending by (lane, seq). */
    struct archive_answer *missing; /* required and not scored */
    struct archive_answer *refused;
    size_t missing_count, refused_count;
    struct buf accounts_text, missing_text, owners_text, refused_text,
        snapshot_text; /* the files */
};

/* prev are the accounts of epoch e' (count 0 for the first). Fills records' seeds, rates, flags and
 * evidence, and the evidence's faults. Errors as reward_compute; TOO_LARGE past TREE_LEAVES_MAX
 * accounts. */
MUST_CHECK enum status compute_reward(struct compute_result *out, struct compute *c, uint64_t epoch,
                                      const struct snapshot *snap, const struct owner_lists *owners,
                                      const struct archive_accounts *prev, struct errtext *err);
/* The records' refusals alone, as their epoch will find them: whoever looks at a batch before its
 * epoch comes. c is of batches that are final; no other flag of its records means anything. */
MUST_CHECK enum status compute_refusals(struct compute *c, struct view *v, struct errtext *err);
/* The epoch's files but manifest.json, in the order of archive_epoch. */
void compute_files(struct archive_file file[5], const struct compute_result *r);
void compute_result_fini(struct compute_result *r);

/* The root of a reward tree over accounts as they stand. */
MUST_CHECK enum status compute_root(struct tree_node *root, const struct deployment *d,
                                    const struct reward_account *account, size_t count,
                                    struct errtext *err);

#endif
