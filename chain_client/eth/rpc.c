/* JSON-RPC requests and answers. An answer must carry our id and exactly one of result and error;
 * quantities are 0x-hex without leading zeros; byte strings have an even number of digits. Every
 * other shape is CORRUPT: money is never decided on a guess about what a node meant. */
#include "chain_client/eth/rpc.h"
#include "chain_client/eth/rpc_transport.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

const struct rpc_fault *rpc_last_fault(const struct rpc *r)
{
    return &r->fault;
}

void rpc_tag(char out[RPC_TAG_BYTES], uint64_t block_number)
{
    snprintf(out, RPC_TAG_BYTES, "0x%" PRIx64, block_number);
}

/* ---- values ---- */

static bool read_quantity(const json_t *v, size_t bytes_max, u128 *out)
{
    const char *s = json_string_value(v);
    uint8_t word[16] = {0};
    char padded[33];
    size_t digits = s ? strlen(s) : 0;
    if (digits < 3 || s[0] != '0' || s[1] != 'x' || digits - 2 > 2 * bytes_max)
        return false;
    if (s[2] == '0' && digits > 3)
        return false;
    digits -= 2;
    memset(padded, '0', 32);
    memcpy(padded + 32 - digits, s + 2, digits + 1);
    if (!hex_decode(word, 16, padded))
        return false;
    *out = be_get(word, 16);
    return true;
}

static bool read_u64(const json_t *v, uint64_t *out)
{
    u128 wide = 0;
    bool ok = read_quantity(v, 8, &wide);
    *out = (uint64_t)wide;
    return ok;
}

static bool read_fixed(const json_t *v, uint8_t *out, size_t len)
{
    const char *s = json_string_value(v);
    return s && s[0] == '0' && s[1] == 'x' && strlen(s) == 2 + 2 * len && hex_decode(out, len, s);
}

/* Append the bytes of a 0x string; false if malformed or past the buffer's maximum. */
static bool read_bytes(const json_t *v, struct buf *out)
{
    const char *s = json_string_value(v);
    size_t digits = s ? strlen(s) : 0;
    if (digits < 2 || digits % 2 || s[0] != '0' || s[1] != 'x')
        return false;
    size_t len = digits / 2 - 1;
    if (!buf_reserve(out, len + 1))
        return false;
    if (!hex_decode((uint8_t *)out->data + out->len, len, s))
        return false;
    out->len += len;
    out->data[out->len] = '\0';
    return true;
}

static void put_hex(struct buf *out, const void *data, size_t len)
{
    char text[2 * 64 + 1];
    const uint8_t *p = data;
    buf_puts(out, "\"0x");
    for (size_t at = 0; at < len; at += 64) {
        size_t n = MIN(len - at, 64);
        hex_encode(text, p + at, n);
        buf_put(out, text, 2 * n);
    }
    buf_putc(out, '"');
}

static void put_quantity(struct buf *out, u128 v)
{
    uint64_t high = (uint64_t)(v >> 64), low = (uint64_t)v;
    if (high)
        buf_printf(out, "\"0x%" PRIx64 "%016" PRIx64 "\"", high, low);
    else
        buf_printf(out, "\"0x%" PRIx64 "\"", low);
}

/* ---- one request ---- */

/* A fault's data is either the bytes, or an object that holds them under "data". */
static void keep_fault(struct rpc *r, const json_t *error)
{
    const json_t *data = json_object_get(error, "data");
    const char *message = json_string_value(json_object_get(error, "message"));
    struct rpc_fault *f = &r->fault;
    struct buf bytes;
    memset(f, 0, sizeof(*f));
    f->code = json_integer_value(json_object_get(error, "code"));
    snprintf(f->message, sizeof(f->message), "%s", message ? message : "");
    for (char *c = f->message; *c; c++)
        *c = (unsigned char)*c < 0x20 ? ' ' : *c;
    if (json_is_object(data))
        data = json_object_get(data, "data");
    buf_init(&bytes, RPC_FAULT_DATA_MAX);
    if (read_bytes(data, &bytes)) {
        memcpy(f->data, bytes.data, bytes.len);
        f->data_len = bytes.len;
    }
    buf_fini(&bytes);
}

static enum status read_answer(struct rpc *r, uint64_t id, long http_code, json_t **result,
                               struct errtext *err)
{
    json_error_t where;
    json_t *all = r->response.len ? json_loadb(r->response.data, r->response.len,
                                               JSON_REJECT_DUPLICATES, &where)
                                  : NULL;
    const json_t *found = json_object_get(all, "id"), *error = json_object_get(all, "error");
    json_t *value = json_object_get(all, "result");
    enum status st = STATUS_OK;
    bool refused = error && !json_is_null(error);
    if (http_code != 200 && !refused)
        st = err_set(err, STATUS_IO, "chain node: HTTP status %ld, expected 200", http_code);
    else if (!json_is_object(all))
        st = err_set(err, STATUS_CORRUPT, "chain node: the answer is not a JSON object");
    else if (!json_is_integer(found) || (uint64_t)json_integer_value(found) != id)
        st = err_set(err, STATUS_CORRUPT,
                     "chain node: the answer has another id, expected %" PRIu64, id);
    else if (refused == (value != NULL))
        st = err_set(err, STATUS_CORRUPT,
                     "chain node: expected exactly one of result and error in the answer");
    else if (refused && !json_is_object(error))
        st = err_set(err, STATUS_CORRUPT, "chain node: error is not an object");
    else if (refused) {
        keep_fault(r, error);
        st = err_set(err, STATUS_INVALID, "chain node refused: %s (code %" PRId64 ")",
                     r->fault.message, r->fault.code);
    } else {
        *result = json_incref(value);
    }
    json_decref(all);
    return st;
}

/* Send method with r->params (an array's inside) and give the result as a new reference. */
static enum status request(struct rpc *r, const char *method, json_t **result, struct errtext *err)
{
    uint64_t id = ++r->next_id;
    long http_code = 0;
    *result = NULL;
    memset(&r->fault, 0, sizeof(r->fault));
    buf_clear(&r->request);
    buf_printf(&r->request, "{\"jsonrpc\":\"2.0\",\"id\":%" PRIu64 ",\"method\":", id);
    buf_put_json_string(&r->request, method, strlen(method));
    buf_puts(&r->request, ",\"params\":[");
    if (r->params.len)
        buf_put(&r->request, r->params.data, r->params.len);
    buf_puts(&r->request, "]}");
    bool failed = r->request.failed || r->params.failed;
    r->request.failed = r->params.failed = false;
    if (failed)
        return err_set(err, STATUS_TOO_LARGE, "the request to the chain node is too long");
    enum status st = rpc_transport_post(r, &http_code, err);
    if (!st)
        st = read_answer(r, id, http_code, result, err);
    if (st)
        err_prefix(err, "%s", method);
    return st;
}

static enum status malformed(const char *method, const char *what, struct errtext *err)
{
    return err_set(err, STATUS_CORRUPT, "%s: the node's %s is malformed", method, what);
}

static enum status request_quantity(struct rpc *r, const char *method, size_t bytes_max, u128 *out,
                                    struct errtext *err)
{
    json_t *result;
    enum status st = request(r, method, &result, err);
    if (!st && !read_quantity(result, bytes_max, out))
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
    enum status st = request(r, method, &result, err);
    if (!st && !read_bytes(result, out))
        st = out->failed
                 ? err_set(err, STATUS_TOO_LARGE, "%s: more than %zu bytes", method, out->bytes_max)
                 : malformed(method, "byte string", err);
    json_decref(result);
    return st;
}

static void put_tag(struct buf *out, const char *tag)
{
    buf_put_json_string(out, tag, strlen(tag));
}

static void put_address_and_tag(struct rpc *r, const uint8_t address[20], const char *tag)
{
    buf_clear(&r->params);
    put_hex(&r->params, address, 20);
    buf_putc(&r->params, ',');
    put_tag(&r->params, tag);
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
    put_tag(&r->params, tag);
    buf_puts(&r->params, ",false");
    enum status st = request(r, "eth_getBlockByNumber", &b, err);
    if (st)
        return st;
    const json_t *fee = json_object_get(b, "baseFeePerGas");
    if (json_is_null(b))
        st = err_set(err, STATUS_NOT_FOUND, "the chain node has no block \"%s\"", tag);
    else if (!read_u64(json_object_get(b, "number"), &block->number) ||
             !read_u64(json_object_get(b, "timestamp"), &block->timestamp) ||
             !read_fixed(json_object_get(b, "hash"), block->hash, 32) ||
             !read_fixed(json_object_get(b, "parentHash"), block->parent_hash, 32) ||
             !read_fixed(json_object_get(b, "mixHash"), block->mix_hash, 32) ||
             (fee && !read_quantity(fee, 16, &block->base_fee)))
        st = malformed("eth_getBlockByNumber", "block", err);
    json_decref(b);
    return st;
}

static void put_call(struct rpc *r, const struct rpc_call *call)
{
    struct buf *out = &r->params;
    buf_clear(out);
    buf_puts(out, "{\"value\":");
    put_quantity(out, call->value);
    if (call->from) {
        buf_puts(out, ",\"from\":");
        put_hex(out, call->from, 20);
    }
    if (call->to) {
        buf_puts(out, ",\"to\":");
        put_hex(out, call->to, 20);
    }
    buf_puts(out, ",\"data\":");
    put_hex(out, call->data, call->data_len);
    buf_putc(out, '}');
}

enum status rpc_call(struct rpc *r, const struct rpc_call *call, const char *tag, struct buf *out,
                     struct errtext *err)
{
    put_call(r, call);
    buf_putc(&r->params, ',');
    put_tag(&r->params, tag);
    return request_bytes(r, "eth_call", out, err);
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

enum status rpc_next_base_fee(struct rpc *r, u128 *wei_per_gas, struct errtext *err)
{
    json_t *result;
    buf_clear(&r->params);
    buf_puts(&r->params, "\"0x1\",\"latest\",[]");
    enum status st = request(r, "eth_feeHistory", &result, err);
    const json_t *fees = json_object_get(result, "baseFeePerGas");
    size_t n = json_array_size(fees);
    if (!st && (!n || !read_quantity(json_array_get(fees, n - 1), 16, wei_per_gas)))
        st = malformed("eth_feeHistory", "baseFeePerGas", err);
    json_decref(result);
    return st;
}

enum status rpc_tip(struct rpc *r, u128 *wei_per_gas, struct errtext *err)
{
    buf_clear(&r->params);
    return request_quantity(r, "eth_maxPriorityFeePerGas", 16, wei_per_gas, err);
}

enum status rpc_send_raw(struct rpc *r, const void *raw, size_t len, const uint8_t hash[32],
                         struct errtext *err)
{
    uint8_t found[32];
    json_t *result;
    buf_clear(&r->params);
    put_hex(&r->params, raw, len);
    enum status st = request(r, "eth_sendRawTransaction", &result, err);
    if (!st && (!read_fixed(result, found, 32) || memcmp(found, hash, 32) != 0))
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
    put_hex(&r->params, hash, 32);
    enum status st = request(r, "eth_getTransactionReceipt", &v, err);
    if (st)
        return st;
    const json_t *price = json_object_get(v, "effectiveGasPrice");
    const json_t *contract = json_object_get(v, "contractAddress");
    receipt->has_contract = contract && !json_is_null(contract);
    if (json_is_null(v))
        st = err_set(err, STATUS_NOT_FOUND, "the chain node has no receipt of this transaction");
    else if (!read_fixed(json_object_get(v, "transactionHash"), receipt->tx_hash, 32) ||
             !read_fixed(json_object_get(v, "blockHash"), receipt->block_hash, 32) ||
             !read_u64(json_object_get(v, "blockNumber"), &receipt->block_number) ||
             !read_u64(json_object_get(v, "gasUsed"), &receipt->gas_used) ||
             !read_u64(json_object_get(v, "status"), &status) || status > 1 ||
             (price && !read_quantity(price, 16, &receipt->effective_gas_price)) ||
             (receipt->has_contract && !read_fixed(contract, receipt->contract, 20)) ||
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
    put_hex(out, f->address, 20);
    buf_puts(out, ",\"fromBlock\":");
    put_tag(out, f->from_tag);
    buf_puts(out, ",\"toBlock\":");
    put_tag(out, f->to_tag);
    buf_puts(out, ",\"topics\":[");
    for (size_t i = 0; i < count; i++) {
        if (i)
            buf_putc(out, ',');
        if (f->topic[i])
            put_hex(out, f->topic[i], 32);
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
        if (!read_fixed(json_array_get(topics, i), log->topic[i], 32))
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
              read_fixed(json_object_get(v, "address"), log->address, 20) &&
              read_fixed(json_object_get(v, "blockHash"), log->block_hash, 32) &&
              read_fixed(json_object_get(v, "transactionHash"), log->tx_hash, 32) &&
              read_u64(json_object_get(v, "blockNumber"), &log->block_number) &&
              read_u64(json_object_get(v, "logIndex"), &log->log_index) &&
              read_bytes(json_object_get(v, "data"), data);
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
    enum status st = request(r, "eth_getLogs", &logs, err);
    if (!st && !json_is_array(logs))
        st = malformed("eth_getLogs", "list", err);
    if (!st && json_array_size(logs) > RPC_LOGS_MAX)
        st = err_set(err, STATUS_TOO_LARGE, "eth_getLogs: %zu logs, at most %d: ask fewer blocks",
                     json_array_size(logs), RPC_LOGS_MAX);
    buf_init(&data, r->response.bytes_max);
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
    enum status st = request(r, method, &result, err);
    buf_clear(result_json);
    if (!st && json_dump_callback(result, dump_part, result_json, JSON_COMPACT | JSON_ENCODE_ANY))
        st = err_set(err, STATUS_TOO_LARGE, "%s: the result is longer than %zu bytes", method,
                     result_json->bytes_max);
    json_decref(result);
    return st;
}
