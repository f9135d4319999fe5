/* Inside the JSON-RPC client: rpc_request.c asks and reads values, rpc.c holds the calls. */
#ifndef RS_CHAIN_ETH_RPC_IMPL_H
#define RS_CHAIN_ETH_RPC_IMPL_H

#include "chain_client/eth/fetch.h"
#include "chain_client/eth/rpc.h"

#include <jansson.h>

struct rpc {
    struct fetch *fetch;
    struct buf request, params;
    size_t response_bytes_max;
    uint32_t busy_ms_max;
    uint64_t next_id;
    struct rpc_fault fault;
    struct rpc *witness;           /* of what is final, or NULL */
    char finalized[RPC_TAG_BYTES]; /* what "finalized" is asked as; "": itself */
};

/* Send method with r->params (an array's inside) and give the result as a new reference; NULL on
 * failure. Statuses as in rpc.h. */
MUST_CHECK enum status rpc_request(struct rpc *r, const char *method, json_t **result,
                                   struct errtext *err);

/* Values of an answer; false if malformed. */
bool rpc_read_quantity(const json_t *v, size_t bytes_max, u128 *out);
bool rpc_read_u64(const json_t *v, uint64_t *out);
bool rpc_read_fixed(const json_t *v, uint8_t *out, size_t len);
/* Appends; also false past the buffer's maximum. */
bool rpc_read_bytes(const json_t *v, struct buf *out);

/* Values of a request, as JSON strings. */
void rpc_put_hex(struct buf *out, const void *data, size_t len);
void rpc_put_quantity(struct buf *out, u128 v);

#endif
