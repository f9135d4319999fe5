/* A chain node, checked against the deployment file, and transactions sent through it. */
#ifndef RS_CLI_NODE_H
#define RS_CLI_NODE_H

#include "chain_client/cli/cli.h"
#include "chain_client/eth/secp.h"
#include "chain_client/settle/view.h"

struct node {
    const char *url;
    struct rpc *rpc;
    struct deployment d;
    struct view view;
    uint64_t wait_s;
    bool lacks_gas; /* the last node_send was not sent for it */
};

/* --rpc and the deployment of c (place.h), compared with each other (deployment_check). */
MUST_CHECK enum status node_open(struct node *n, const struct cli *c, struct errtext *err);
void node_close(struct node *n); /* a zeroed one is fine */
/* What to do about the last error, or NULL. */
const char *node_hint(enum status st);

struct node_sent {
    uint8_t hash[32];
    uint64_t block, gas_used;
    u128 gas_paid;
};
/* A call of a contract as `from`.
 *
 * After   OK: in a block, and it succeeded
 * Errors  DENIED: the contract would refuse, in words, or the gas is lacking; INVALID;
 *         IO and TIMEOUT: *sent->hash says which transaction may still come, if it was sent
 */
struct node_tx {
    const struct secp *secp;
    const struct secp_key *from;
    const uint8_t *to; /* [20] */
    u128 value;        /* in the native coin */
    const struct buf *data;
    const char *what; /* "claim" */
};
MUST_CHECK enum status node_send(struct node *n, const struct cli *c, const struct node_tx *tx,
                                 struct node_sent *sent, struct errtext *err);
/* A view: data is selector and arguments, the answer is in n->view.out. */
struct abi_reader;
MUST_CHECK enum status node_ask(struct node *n, const uint8_t to[20], const struct buf *data,
                                struct abi_reader *r, struct errtext *err);

/* reverts.c: a contract's error as a sentence; false if it is none of ours. */
bool reverts_explain(char *out, size_t out_bytes, const uint8_t *data, size_t len);

#endif
