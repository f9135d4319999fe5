/* Where the contracts are: the JSON that contracts/deploy.mjs writes, and the check that a node
 * serves that very chain with that very code. Pure but for the file and the node. Thread: any. */
#ifndef RS_SETTLE_DEPLOYMENT_H
#define RS_SETTLE_DEPLOYMENT_H

#include "chain_client/eth/rpc.h"
#include "server/base/errtext.h"

#include <stdbool.h>
#include <stdint.h>

struct deployment {
    uint64_t chain_id;
    uint8_t genesis_hash[32];
    uint8_t registry[20], ledger[20], vault[20];
    uint8_t token[20];                                          /* zero: the native coin */
    uint8_t registry_code[32], ledger_code[32], vault_code[32]; /* Keccak-256 of deployed code */
    uint64_t start_block;                                       /* no event is older */
};

/* Errors: NOT_FOUND, IO, INVALID naming the field. */
MUST_CHECK enum status deployment_load(struct deployment *d, const char *path, struct errtext *err);
/* The same from text. */
MUST_CHECK enum status deployment_parse(struct deployment *d, const char *json, size_t len,
                                        struct errtext *err);
/* Chain id, genesis hash and code hashes. CONFLICT naming what differs; IO and TIMEOUT from the
 * node. */
MUST_CHECK enum status deployment_check(const struct deployment *d, struct rpc *rpc,
                                        struct errtext *err);

#endif
