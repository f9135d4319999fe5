/* Several JSON-RPC endpoints of one chain, none of them believed alone.
 *
 * A round (nodes_refresh) asks each for its head and its finalized block. One that does not answer,
 * answers nonsense, serves another chain, or whose head is old is left out, with the reason, and
 * asked again later. Reads go to the first good one; sends go to all. What is final is the newest
 * block that agree_min endpoints call finalized under the same hash: to every call through these
 * endpoints the tag "finalized" means that very block, and what an eth_call reads there a second
 * endpoint confirms. It never moves back unless as many endpoints show another block in its place
 * (NODES_REORG).
 *
 * One answer is no proof of absence: nodes_receipt says NONE only where agree_min endpoints say so
 * and no other contradicts. Thread: one. */
#ifndef RS_CHAIN_ETH_NODES_H
#define RS_CHAIN_ETH_NODES_H

#include "chain_client/eth/rpc.h"

#define NODES_MAX       8
#define NODES_WHY_BYTES 256

struct endpoint {
    struct rpc *rpc;
    bool is_known; /* it showed our chain id and genesis hash */
    bool is_other; /* it showed another's */
    bool is_good;  /* this round: it answered, and its head is fresh */
    struct rpc_block head, final;
    char why[NODES_WHY_BYTES]; /* why it is not good; "" while it is */
    uint64_t retry_ns;         /* not asked before this */
    uint32_t wait_ms;
    uint64_t watch_ns, watch_time; /* an old head: since when it is watched, what it said then */
};

struct nodes_config {
    uint64_t chain_id;
    uint8_t genesis_hash[32];
    uint64_t head_age_max_s;
};

struct nodes {
    struct nodes_config config;
    struct endpoint endpoint[NODES_MAX];
    uint32_t count, agree_min; /* 1 of one endpoint, else 2 */
    uint32_t first;            /* the good one that is read */
    bool has_final;
    struct rpc_block final;     /* agreed; "finalized" */
    struct rpc_block other;     /* after NODES_REORG: what is final now */
    char held[NODES_WHY_BYTES]; /* why `final` does not move; "" while it does */
};

enum nodes_verdict {
    NODES_AGREED,
    NODES_HELD,  /* `final` stays; n->held says why */
    NODES_REORG, /* the block in n->final is gone: undo what was final in it, then nodes_moved */
};

/* Opens nothing yet: add endpoints, then refresh. */
void nodes_init(struct nodes *n, const struct nodes_config *config);
/* Takes the client. FULL past NODES_MAX. */
MUST_CHECK enum status nodes_add(struct nodes *n, struct rpc *rpc, struct errtext *err);
void nodes_fini(struct nodes *n);

/* Errors: CONFLICT when every endpoint serves another chain, BUSY with the reasons when none is
 * good or nothing was ever agreed to be final. */
MUST_CHECK enum status nodes_refresh(struct nodes *n, enum nodes_verdict *verdict,
                                     struct errtext *err);
/* What was final in an earlier life of the program; the next refresh compares. */
void nodes_remember(struct nodes *n, uint64_t number, const uint8_t hash[32]);
/* After NODES_REORG: n->other is final from now on. */
void nodes_moved(struct nodes *n);

/* The endpoint that is read, by the last refresh. */
struct rpc *nodes_rpc(struct nodes *n);

/* To every endpoint that is reached. OK when one took it, else the last refusal. */
MUST_CHECK enum status nodes_send(struct nodes *n, const void *raw, size_t len,
                                  const uint8_t hash[32], struct errtext *err);

enum nodes_sight {
    NODES_SEEN,     /* enough endpoints show the same receipt */
    NODES_GLIMPSED, /* some show one */
    NODES_NONE,     /* enough say there is none, and none contradicts */
    NODES_UNSURE,   /* nobody shows one, too few deny it */
};
MUST_CHECK enum status nodes_receipt(struct nodes *n, const uint8_t hash[32],
                                     struct rpc_receipt *receipt, enum nodes_sight *sight,
                                     struct errtext *err);
/* Nonces used in the agreed final block, by the lowest of the endpoints' answers. BUSY when fewer
 * than agree_min answer. */
MUST_CHECK enum status nodes_final_nonce(struct nodes *n, const uint8_t address[20],
                                         uint64_t *nonce, struct errtext *err);
/* Nonces used in the latest block, by the highest of the endpoints' answers. BUSY without any. */
MUST_CHECK enum status nodes_latest_nonce(struct nodes *n, const uint8_t address[20],
                                          uint64_t *nonce, struct errtext *err);
/* Is this block in the chain that ends in the agreed final block? By agree_min endpoints. */
MUST_CHECK enum status nodes_has_block(struct nodes *n, uint64_t number, const uint8_t hash[32],
                                       bool *has, struct errtext *err);

#endif
