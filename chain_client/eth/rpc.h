/* Ethereum JSON-RPC over HTTP: one request, one bounded answer. No retries but one kind: a node
 * that says it is busy is asked again for up to busy_ms_max, so a call may last that long beside
 * timeout_ms. One client is used by one thread at a time; each thread has its own.
 *
 * What the statuses mean for every call below:
 *   IO          no answer, or not an answer (connection, HTTP status, a proxy's page)
 *   TIMEOUT     timeout_ms passed; the node may have acted
 *   TOO_LARGE   the answer is longer than response_bytes_max
 *   CORRUPT     an answer that is not JSON-RPC, has another id, or a malformed result
 *   INVALID     the node refused: rpc_fault says how (code, message, revert data)
 *   BUSY        the node would not answer now (429, 503 or -32005), for all of busy_ms_max
 *   NOT_FOUND   the node answered null: no such block, or no receipt yet
 * A send that ends in anything but OK is an unknown outcome, never a proof of either.
 */
#ifndef RS_CHAIN_ETH_RPC_H
#define RS_CHAIN_ETH_RPC_H

#include "server/base/buf.h"
#include "server/base/errtext.h"
#include "server/base/hex.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RPC_FAULT_DATA_MAX 1024
#define RPC_LOGS_MAX       10000
#define RPC_TAG_BYTES      20

struct rpc;

struct rpc_config {
    const char *url;           /* http:// or https:// */
    const char *authorization; /* value of that header, or NULL; copied, never logged */
    uint32_t timeout_ms;       /* 0: 10 000 */
    size_t response_bytes_max; /* 0: 16 MiB */
    uint32_t busy_ms_max;      /* 0: 30 000 */
};

MUST_CHECK enum status rpc_open(struct rpc **out, const struct rpc_config *config,
                                struct errtext *err);
void rpc_close(struct rpc *r); /* NULL is fine */

/* The node's last refusal. Valid until the next call. */
struct rpc_fault {
    int64_t code;
    char message[256];
    uint8_t data[RPC_FAULT_DATA_MAX]; /* revert bytes: selector and arguments */
    size_t data_len;                  /* 0 when there were none, or more than the maximum */
};
const struct rpc_fault *rpc_last_fault(const struct rpc *r);

/* A tag is "latest", "safe", "finalized", "earliest", "pending", or what rpc_tag writes. */
void rpc_tag(char out[RPC_TAG_BYTES], uint64_t block_number);
/* From now on "finalized" means this block, for whoever knows better than one node what is final;
 * NULL: what the node calls so. */
void rpc_pin_finalized(struct rpc *r, const uint64_t *block_number);
/* From now on every eth_call at "finalized" is asked of `witness` too, and BUSY where it answers
 * other bytes; NULL: of nobody. */
void rpc_confirm_with(struct rpc *r, struct rpc *witness);

MUST_CHECK enum status rpc_chain_id(struct rpc *r, uint64_t *chain_id, struct errtext *err);
MUST_CHECK enum status rpc_block_number(struct rpc *r, uint64_t *number, struct errtext *err);

struct rpc_block {
    uint64_t number;
    uint64_t timestamp; /* seconds of Unix time */
    uint8_t hash[32], parent_hash[32], mix_hash[32];
    u128 base_fee; /* 0 before EIP-1559 */
};
MUST_CHECK enum status rpc_block(struct rpc *r, const char *tag, struct rpc_block *block,
                                 struct errtext *err);

struct rpc_call {
    const uint8_t *from; /* [20], or NULL */
    const uint8_t *to;   /* [20], or NULL to create */
    u128 value;
    const void *data;
    size_t data_len;
};
/* eth_call: out (created by the caller with its maximum) gets the returned bytes. */
MUST_CHECK enum status rpc_call(struct rpc *r, const struct rpc_call *call, const char *tag,
                                struct buf *out, struct errtext *err);
MUST_CHECK enum status rpc_estimate_gas(struct rpc *r, const struct rpc_call *call, uint64_t *gas,
                                        struct errtext *err);
MUST_CHECK enum status rpc_transaction_count(struct rpc *r, const uint8_t address[20],
                                             const char *tag, uint64_t *nonce, struct errtext *err);
MUST_CHECK enum status rpc_balance(struct rpc *r, const uint8_t address[20], const char *tag,
                                   u128 *wei, struct errtext *err);
MUST_CHECK enum status rpc_code(struct rpc *r, const uint8_t address[20], const char *tag,
                                struct buf *out, struct errtext *err);
/* Base fee of the next block: from eth_feeHistory, or from the latest block. */
MUST_CHECK enum status rpc_next_base_fee(struct rpc *r, u128 *wei_per_gas, struct errtext *err);
/* eth_maxPriorityFeePerGas; where a node refuses it, its gas price above the latest base fee, or
 * 1 gwei where that is nothing. */
MUST_CHECK enum status rpc_tip(struct rpc *r, u128 *wei_per_gas, struct errtext *err);
/* The hash the node gives back is compared with the bytes' own: CORRUPT if it differs. A refusal
 * ("already known", "nonce too low") of a transaction that the node has is OK: it is found by its
 * hash, whatever the words. */
MUST_CHECK enum status rpc_send_raw(struct rpc *r, const void *raw, size_t len,
                                    const uint8_t hash[32], struct errtext *err);

struct rpc_receipt {
    uint8_t tx_hash[32], block_hash[32];
    uint64_t block_number, gas_used;
    u128 effective_gas_price;
    bool succeeded;
    bool has_contract; /* a creation */
    uint8_t contract[20];
};
MUST_CHECK enum status rpc_receipt(struct rpc *r, const uint8_t hash[32],
                                   struct rpc_receipt *receipt, struct errtext *err);

struct rpc_log {
    uint8_t address[20], topic[4][32];
    uint32_t topic_count;
    const uint8_t *data; /* valid during the callback */
    size_t data_len;
    uint64_t block_number, log_index;
    uint8_t block_hash[32], tx_hash[32];
};
struct rpc_log_filter {
    const uint8_t *address; /* [20] */
    const char *from_tag, *to_tag;
    const uint8_t *topic[4]; /* [32] each; NULL matches all */
};
/* each() is called per log, in the node's order; what it returns other than OK stops and is
 * returned. A log of another address or topic, or marked removed, is CORRUPT; more than
 * RPC_LOGS_MAX is TOO_LARGE (ask for fewer blocks). */
MUST_CHECK enum status rpc_logs(struct rpc *r, const struct rpc_log_filter *filter,
                                enum status (*each)(void *arg, const struct rpc_log *log,
                                                    struct errtext *err),
                                void *arg, struct errtext *err);

/* Any method: params_json is the array's text; result_json gets the result's text. */
MUST_CHECK enum status rpc_raw(struct rpc *r, const char *method, const char *params_json,
                               struct buf *result_json, struct errtext *err);

#endif
