/* The transaction sender: announced calls become mined ones, by the states of enum intent_state.
 * One key a role, each with its own nonces; what each may do is the contracts' to say.
 *
 * A call is announced with kind and key ("commit", 7). While it is on its way, or waits to be sent,
 * announcing it again does nothing; after it ended (mined, reverted, or its nonce taken by a
 * transaction of another) announcing it again is its next generation, with a nonce of its own. Who
 * announces looks at the chain first, and every call is one whose contract refuses a repeat. */
#ifndef RS_SETTLE_SENDER_H
#define RS_SETTLE_SENDER_H

#include "chain_client/eth/nodes.h"
#include "chain_client/eth/secp.h"
#include "chain_client/settle/db.h"
#include "server/base/buf.h"

enum sender_role { SENDER_COMMITTER, SENDER_PROPOSER, SENDER_FUNDER, SENDER_GUARDIAN };
#define SENDER_ROLES 4

struct sender_signer {
    struct secp_key key;
    bool present;
    u128 balance; /* when last looked */
    /* A nonce that seems to be used by another's transaction: whose, since when, how often seen. */
    uint64_t foreign_intent, foreign_ns;
    uint32_t foreign_asked;
    uint64_t refused_ns; /* since when the contract refuses what waits; 0: it does not */
};

struct sender {
    struct db *db;
    struct nodes *nodes;
    struct secp *secp;
    uint64_t chain_id, bump_ms;
    u128 fee_max;  /* per gas */
    uint64_t kept; /* number of the final block in the database */
    struct sender_signer signer[SENDER_ROLES];
    uint64_t note_ns; /* what waits says so once a minute */
    bool started;
};

struct sender_call {
    enum sender_role role;
    const char *kind; /* "commit", "fund", "approve", "unapprove", "propose", .. */
    uint64_t key;     /* batch or epoch */
    const uint8_t *to;
    const struct buf *data;
    u128 value;
};

const char *sender_role_name(enum sender_role role);

/* Announce a call, unless it is open or on its way; its own transaction. */
MUST_CHECK enum status sender_raise(struct sender *s, const struct sender_call *call,
                                    struct errtext *err);
/* Of the newest generation that is not another's: the transaction that was mined, else the newest
 * attempt, else zeros. */
MUST_CHECK enum status sender_hash(struct sender *s, const char *kind, uint64_t key,
                                   uint8_t hash[32], struct errtext *err);
/* After db is open: what was final when the program ended, until the endpoints agree on more. */
MUST_CHECK enum status sender_start(struct sender *s, struct errtext *err);
/* A nodes_refresh, and what follows from it here: what is final is kept in the database; after a
 * reorganisation below it (NODES_REORG), what had ended in blocks that are gone is on its way
 * again, with the nonce and the bytes it had. Errors as nodes_refresh and the database's. */
MUST_CHECK enum status sender_round(struct sender *s, enum nodes_verdict *verdict,
                                    struct errtext *err);
/* One look at everything on its way, after a round. */
MUST_CHECK enum status sender_step(struct sender *s, struct errtext *err);
/* A person has looked at transactions of others up to this nonce. NOT_FOUND: there was none. */
MUST_CHECK enum status sender_acknowledge(struct db *db, uint64_t nonce, struct errtext *err);

#endif
