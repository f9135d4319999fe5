/* The calls: each puts its parameters, asks once, and reads one shape of result. Where a node does
 * not know a method that has a usual substitute, the substitute is used. */
#include "chain_client/eth/rpc.h"
#include "chain_client/eth/rpc_impl.h"
#include "server/base/check.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define TIP_WEI_STANDARD 1000000000u /* 1 gwei, where a node cannot say */

void rpc_tag(char out[RPC_TAG_BYTES], uint64_t block_number)
{
    snprintf(out, RPC_TAG_BYTES, "0x%" PRIx64, block_number);
}

void rpc_pin_finalized(struct rpc *r, const uint64_t *block_number)
{
    r->finalized[0] = '\0';
    if (block_number)
        rpc_tag(r->finalized, *block_number);
}

void rpc_confirm_with(struct rpc *r, struct rpc *witness)
{
    r->witness = witness;
}

static enum status malformed(const char *method, const char *what, struct errtext *err)
{
    return err_set(err, STATUS_CORRUPT, "%s: the node's %s is malformed", method, what);
}

static enum status request_quantity(struct rpc *r, const char *method, size_t bytes_max, u128 *out,
                                    struct errtext *err)
{
    json_t *result;
    enum status st = rpc_request(r, method, &result, err);
    if (!st && !rpc_read_quantity(result, bytes_max, out))
        st = malformed(method, "quantity", err);
    json_decref(result);
    return st;
}

static enum status request_u64(struct rpc *r, const char *method, uint64_t *out,
                               struct errtext *err)
{
    u128 wide = 0;
    enum status st = request_quantity(r, method, 8, &wide, err);
    *out = (uint64_t)wide;
    return st;
}

static enum status request_bytes(struct rpc *r, const char *method, struct buf *out,
                                 struct errtext *err)
{
    json_t *result;
    buf_clear(out);
    enum status st = rpc_request(r, method, &result, err);
    if (!st && !rpc_read_bytes(result, out))
        st = out->failed
                 ? err_set(err, STATUS_TOO_LARGE, "%s: more than %zu bytes", method, out->bytes_max)
                 : malformed(method, "byte string", err);
    json_decref(result);
    return st;
}

static void put_tag(struct rpc *r, const char *tag)
{
    if (r->finalized[0] && strcmp(tag, "finalized") == 0)
        tag = r->finalized;
    buf_put_json_string(&r->params, tag, strlen(tag));
}

static void put_address_and_tag(struct rpc *r, const uint8_t address[20], const char *tag)
{
    buf_clear(&r->params);
    rpc_put_hex(&r->params, address, 20);
    buf_putc(&r->params, ',');
    put_tag(r, tag);
}

/* ---- calls ---- */

enum status rpc_chain_id(struct rpc *r, uint64_t *chain_id, struct errtext *err)
{
    buf_clear(&r->params);
    return request_u64(r, "eth_chainId", chain_id, err);
}

enum status rpc_block_number(struct rpc *r, uint64_t *number, struct errtext *err)
{
    buf_clear(&r->params);
    return request_u64(r, "eth_blockNumber", number, err);
}

enum status rpc_block(struct rpc *r, const char *tag, struct rpc_block *block, struct errtext *err)
{
    json_t *b;
    memset(block, 0, sizeof(*block));
    buf_clear(&r->params);
    put_tag(r, tag);
    buf_puts(&r->params, ",false");
    enum status st = rpc_request(r, "eth_getBlockByNumber", &b, err);
    if (st)
        return st;
    const json_t *fee = json_object_get(b, "baseFeePerGas");
    if (json_is_null(b))
        st = err_set(err, STATUS_NOT_FOUND, "the chain node has no block \"%s\"", tag);
    else if (!rpc_read_u64(json_object_get(b, "number"), &block->number) ||
             !rpc_read_u64(json_object_get(b, "timestamp"), &block->timestamp) ||
             !rpc_read_fixed(json_object_get(b, "hash"), block->hash, 32) ||
             !rpc_read_fixed(json_object_get(b, "parentHash"), block->parent_hash, 32) ||
             !rpc_read_fixed(json_object_get(b, "mixHash"), block->mix_hash, 32) ||
             (fee && !rpc_read_quantity(fee, 16, &block->base_fee)))
        st = malformed("eth_getBlockByNumber", "block", err);
    json_decref(b);
    return st;
}

static void put_call(struct rpc *r, const struct rpc_call *call)
{
    struct buf *out = &r->params;
    buf_clear(out);
    buf_puts(out, "{\"value\":");
    rpc_put_quantity(out, call->value);
    if (call->from) {
        buf_puts(out, ",\"from\":");
        rpc_put_hex(out, call->from, 20);
    }
    if (call->to) {
        buf_puts(out, ",\"to\":");
        rpc_put_hex(out, call->to, 20);
    }
    buf_puts(out, ",\"data\":");
    rpc_put_hex(out, call->data, call->data_len);
    buf_putc(out, '}');
}

static enum status call_once(struct rpc *r, const struct rpc_call *call, const char *tag,
                             struct buf *out, struct errtext *err)
{
    put_call(r, call);
    buf_putc(&r->params, ',');
    put_tag(r, tag);
    return request_bytes(r, "eth_call", out, err);
}

/* Two endpoints that show one block may still answer differently for it: then one lies. */
static enum status confirm(struct rpc *r, const struct rpc_call *call, const char *tag,
                           const struct buf *answer, struct errtext *err)
{
    struct buf other;
    buf_init(&other, answer->bytes_max);
    enum status st = call_once(r->witness, call, tag, &other, err);
    if (st) /* no verdict, whatever the reason */
        st = err_set(err, STATUS_BUSY, "the second endpoint does not confirm a final answer");
    else if (other.len != answer->len ||
             (other.len && memcmp(other.data, answer->data, other.len) != 0))
        st = err_set(err, STATUS_BUSY,
                     "two endpoints answer differently for the same final block: one of them lies "
                     "or is broken; find out which, and take it away");
    buf_fini(&other);
    return st;
}

enum status rpc_call(struct rpc *r, const struct rpc_call *call, const char *tag, struct buf *out,
                     struct errtext *err)
{
    enum status st = call_once(r, call, tag, out, err);
    return st || !r->witness || strcmp(tag, "finalized") != 0 ? st
                                                              : confirm(r, call, tag, out, err);
}

enum status rpc_estimate_gas(struct rpc *r, const struct rpc_call *call, uint64_t *gas,
                             struct errtext *err)
{
    put_call(r, call);
    return request_u64(r, "eth_estimateGas", gas, err);
}

enum status rpc_transaction_count(struct rpc *r, const uint8_t address[20], const char *tag,
                                  uint64_t *nonce, struct errtext *err)
{
    put_address_and_tag(r, address, tag);
    return request_u64(r, "eth_getTransactionCount", nonce, err);
}

enum status rpc_balance(struct rpc *r, const uint8_t address[20], const char *tag, u128 *wei,
                        struct errtext *err)
{
    put_address_and_tag(r, address, tag);
    return request_quantity(r, "eth_getBalance", 16, wei, err);
}

enum status rpc_code(struct rpc *r, const uint8_t address[20], const char *tag, struct buf *out,
                     struct errtext *err)
{
    put_address_and_tag(r, address, tag);
    return request_bytes(r, "eth_getCode", out, err);
}

/* The standard's answer, or where eth_feeHistory is refused the most that the next block may ask:
 * an eighth above the latest (EIP-1559). */
enum status rpc_next_base_fee(struct rpc *r, u128 *wei_per_gas, struct errtext *err)
{
    struct errtext refusal = ERRTEXT_INIT;
    struct rpc_block latest;
    json_t *result;
    buf_clear(&r->params);
    buf_puts(&r->params, "\"0x1\",\"latest\",[]");
    enum status st = rpc_request(r, "eth_feeHistory", &result, &refusal);
    const json_t *fees = json_object_get(result, "baseFeePerGas");
    size_t n = json_array_size(fees);
    if (st == STATUS_INVALID) {
        st = rpc_block(r, "latest", &latest, err);
        *wei_per_gas = latest.base_fee + latest.base_fee / 8 + 1;
    } else if (st) {
        err_set(err, st, "%s", refusal.text);
    } else if (!n || !rpc_read_quantity(json_array_get(fees, n - 1), 16, wei_per_gas)) {
        st = malformed("eth_feeHistory", "baseFeePerGas", err);
    }
    json_decref(result);
    return st;
}

enum status rpc_tip(struct rpc *r, u128 *wei_per_gas, struct errtext *err)
{
    struct errtext refusal = ERRTEXT_INIT;
    struct rpc_block latest;
    u128 price = 0;
    buf_clear(&r->params);
    enum status st = request_quantity(r, "eth_maxPriorityFeePerGas", 16, wei_per_gas, &refusal);
    if (st != STATUS_INVALID)
        return st ? err_set(err, st, "%s", refusal.text) : STATUS_OK;
    st = rpc_block(r, "latest", &latest, err);
    buf_clear(&r->params);
    if (!st)
        st = request_quantity(r, "eth_gasPrice", 16, &price, err);
    if (!st)
        *wei_per_gas = price > latest.base_fee ? price - latest.base_fee : TIP_WEI_STANDARD;
    return st;
}

/* Does the node have this transaction, mined or waiting? */
static bool has_transaction(struct rpc *r, const uint8_t hash[32])
{
    struct errtext ignored = ERRTEXT_INIT;
    uint8_t found[32];
    json_t *v;
    buf_clear(&r->params);
    rpc_put_hex(&r->params, hash, 32);
    bool ok = rpc_request(r, "eth_getTransactionByHash", &v, &ignored) == STATUS_OK &&
              rpc_read_fixed(json_object_get(v, "hash"), found, 32) && memcmp(found, hash, 32) == 0;
    json_decref(v);
    return ok;
}

enum status rpc_send_raw(struct rpc *r, const void *raw, size_t len, const uint8_t hash[32],
                         struct errtext *err)
{
    uint8_t found[32];
    json_t *result;
    buf_clear(&r->params);
    rpc_put_hex(&r->params, raw, len);
    struct errtext refusal = ERRTEXT_INIT;
    enum status st = rpc_request(r, "eth_sendRawTransaction", &result, &refusal);
    if (st == STATUS_INVALID) {
        struct rpc_fault fault = r->fault;
        if (has_transaction(r, hash))
            return STATUS_OK;
        r->fault = fault;
    }
    if (st)
        return err_set(err, st, "%s", refusal.text);
    if (!rpc_read_fixed(result, found, 32) || memcmp(found, hash, 32) != 0)
        st = err_set(err, STATUS_CORRUPT,
                     "eth_sendRawTransaction: the node answered another transaction hash");
    json_decref(result);
    return st;
}

enum status rpc_receipt(struct rpc *r, const uint8_t hash[32], struct rpc_receipt *receipt,
                        struct errtext *err)
{
    uint64_t status = 0;
    json_t *v;
    memset(receipt, 0, sizeof(*receipt));
    buf_clear(&r->params);
    rpc_put_hex(&r->params, hash, 32);
    enum status st = rpc_request(r, "eth_getTransactionReceipt", &v, err);
    if (st)
        return st;
    const json_t *price = json_object_get(v, "effectiveGasPrice");
    const json_t *contract = json_object_get(v, "contractAddress");
    receipt->has_contract = contract && !json_is_null(contract);
    if (json_is_null(v))
        st = err_set(err, STATUS_NOT_FOUND, "the chain node has no receipt of this transaction");
    else if (!rpc_read_fixed(json_object_get(v, "transactionHash"), receipt->tx_hash, 32) ||
             !rpc_read_fixed(json_object_get(v, "blockHash"), receipt->block_hash, 32) ||
             !rpc_read_u64(json_object_get(v, "blockNumber"), &receipt->block_number) ||
             !rpc_read_u64(json_object_get(v, "gasUsed"), &receipt->gas_used) ||
             !rpc_read_u64(json_object_get(v, "status"), &status) || status > 1 ||
             (price && !rpc_read_quantity(price, 16, &receipt->effective_gas_price)) ||
             (receipt->has_contract && !rpc_read_fixed(contract, receipt->contract, 20)) ||
             memcmp(receipt->tx_hash, hash, 32) != 0)
        st = malformed("eth_getTransactionReceipt", "receipt", err);
    receipt->succeeded = status == 1;
    json_decref(v);
    return st;
}

/* ---- logs ---- */

static void put_filter(struct rpc *r, const struct rpc_log_filter *f)
{
    struct buf *out = &r->params;
    size_t count = 4;
    while (count && !f->topic[count - 1])
        count--;
    buf_clear(out);
    buf_puts(out, "{\"address\":");
    rpc_put_hex(out, f->address, 20);
    buf_puts(out, ",\"fromBlock\":");
    put_tag(r, f->from_tag);
    buf_puts(out, ",\"toBlock\":");
    put_tag(r, f->to_tag);
    buf_puts(out, ",\"topics\":[");
    for (size_t i = 0; i < count; i++) {
        if (i)
            buf_putc(out, ',');
        if (f->topic[i])
            rpc_put_hex(out, f->topic[i], 32);
        else
            buf_puts(out, "null");
    }
    buf_puts(out, "]}");
}

static bool read_topics(const json_t *v, struct rpc_log *log)
{
    const json_t *topics = json_object_get(v, "topics");
    size_t n = json_array_size(topics);
    if (!json_is_array(topics) || n > 4)
        return false;
    log->topic_count = (uint32_t)n;
    for (size_t i = 0; i < n; i++) {
        if (!rpc_read_fixed(json_array_get(topics, i), log->topic[i], 32))
            return false;
    }
    return true;
}

static bool matches(const struct rpc_log *log, const struct rpc_log_filter *f)
{
    if (memcmp(log->address, f->address, 20) != 0)
        return false;
    for (size_t i = 0; i < 4; i++) {
        if (f->topic[i] && (i >= log->topic_count || memcmp(log->topic[i], f->topic[i], 32) != 0))
            return false;
    }
    return true;
}

static bool read_log(const json_t *v, struct rpc_log *log, struct buf *data)
{
    const json_t *removed = json_object_get(v, "removed");
    memset(log, 0, sizeof(*log));
    buf_clear(data);
    bool ok = !json_is_true(removed) && read_topics(v, log) &&
              rpc_read_fixed(json_object_get(v, "address"), log->address, 20) &&
              rpc_read_fixed(json_object_get(v, "blockHash"), log->block_hash, 32) &&
              rpc_read_fixed(json_object_get(v, "transactionHash"), log->tx_hash, 32) &&
              rpc_read_u64(json_object_get(v, "blockNumber"), &log->block_number) &&
              rpc_read_u64(json_object_get(v, "logIndex"), &log->log_index) &&
              rpc_read_bytes(json_object_get(v, "data"), data);
    log->data = (const uint8_t *)data->data;
    log->data_len = data->len;
    return ok;
}

enum status rpc_logs(struct rpc *r, const struct rpc_log_filter *filter,
                     enum status (*each)(void *arg, const struct rpc_log *log, struct errtext *err),
                     void *arg, struct errtext *err)
{
    json_t *logs;
    struct buf data;
    put_filter(r, filter);
    enum status st = rpc_request(r, "eth_getLogs", &logs, err);
    if (!st && !json_is_array(logs))
        st = malformed("eth_getLogs", "list", err);
    if (!st && json_array_size(logs) > RPC_LOGS_MAX)
        st = err_set(err, STATUS_TOO_LARGE, "eth_getLogs: %zu logs, at most %d: ask fewer blocks",
                     json_array_size(logs), RPC_LOGS_MAX);
    buf_init(&data, r->response_bytes_max);
    for (size_t i = 0; !st && i < json_array_size(logs); i++) {
        struct rpc_log log;
        if (!read_log(json_array_get(logs, i), &log, &data) || !matches(&log, filter))
            st = malformed("eth_getLogs", "log", err);
        else
            st = each(arg, &log, err);
    }
    buf_fini(&data);
    json_decref(logs);
    return st;
}

static int dump_part(const char *data, size_t len, void *arg)
{
    struct buf *out = arg;
    buf_put(out, data, len);
    return out->failed ? -1 : 0;
}

enum status rpc_raw(struct rpc *r, const char *method, const char *params_json,
                    struct buf *result_json, struct errtext *err)
{
    json_t *result;
    size_t len = strlen(params_json);
    if (len < 2 || params_json[0] != '[' || params_json[len - 1] != ']')
        return err_set(err, STATUS_INVALID, "params of %s are not a JSON array", method);
    buf_clear(&r->params);
    buf_put(&r->params, params_json + 1, len - 2);
    enum status st = rpc_request(r, method, &result, err);
    buf_clear(result_json);
    if (!st && json_dump_callback(result, dump_part, result_json, JSON_COMPACT | JSON_ENCODE_ANY))
        st = err_set(err, STATUS_TOO_LARGE, "%s: the result is longer than %zu bytes", method,
                     result_json->bytes_max);
    json_decref(result);
    return st;
}
