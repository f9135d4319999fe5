/* The chain as the server asks it: one node, or two of several that must agree. Every question is
 * asked at one final block, of two nodes where two are named; answers that differ are no answer.
 * Read-only. Used by one thread at a time. Statuses are rpc.h's; CONFLICT: the nodes disagree, or
 * serve another chain. */
#ifndef RS_TERMS_WITNESS_H
#define RS_TERMS_WITNESS_H

#include "chain_client/registry/views.h"

#define WITNESS_MAX 8

struct witness;

struct witness_options {
    const char *const *url;
    uint32_t url_count;             /* 1..WITNESS_MAX */
    const char *authorization_file; /* value of that header of every node, mode 0600; or NULL */
    uint64_t chain_id;
    uint8_t registry[20];
};
MUST_CHECK enum status witness_open(struct witness **out, const struct witness_options *opt,
                                    struct errtext *err);
void witness_close(struct witness *n); /* NULL is fine */

/* The newest block that is final for both. Chooses whom the questions after it are asked. */
struct witness_head {
    uint64_t number, time_s;
};
MUST_CHECK enum status witness_head(struct witness *n, struct witness_head *head,
                                    struct errtext *err);

enum witness_view {
    WITNESS_ADAPTER_AT,      /* id, t */
    WITNESS_ADAPTER_OWNER,   /* id */
    WITNESS_DATANET_VERSION, /* id, t is the version */
    WITNESS_TARIFF_AT,       /* id is the model's, t, lane */
    WITNESS_NOTICE
};
struct witness_question {
    enum witness_view view;
    const uint8_t *id; /* 32 */
    uint64_t t;
    uint32_t lane;
};
/* answer: the bytes that the view returned, which decode. */
MUST_CHECK enum status witness_ask(struct witness *n, const struct witness_question *q,
                                   uint64_t block, struct buf *answer, struct errtext *err);
/* each(arg, id) for every indexed argument of every event of the Registry in these blocks: whoever
 * keeps something under such an id asks again. */
MUST_CHECK enum status witness_changed(struct witness *n, uint64_t first_block, uint64_t last_block,
                                       void (*each)(void *arg, const uint8_t id[32]), void *arg,
                                       struct errtext *err);
/* The next number that the ledger takes of this lane, 0 for a lane that is not registered: the
 * lower of two nodes' answers, at their newest block, since what a reorganisation undoes was
 * signed too. */
MUST_CHECK enum status witness_lane_next(struct witness *n, const uint8_t ledger[20], uint32_t lane,
                                         uint64_t *next, struct errtext *err);
/* Does the contract at `account` take this signature of the digest (EIP-1271)? At the newest final
 * block. */
MUST_CHECK enum status witness_signed_by(struct witness *n, const uint8_t account[20],
                                         const uint8_t digest[32], const void *signature,
                                         size_t len, bool *yes, struct errtext *err);

#endif
