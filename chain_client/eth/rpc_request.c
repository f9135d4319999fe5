/* One JSON-RPC request and its answer. An answer must carry our id and exactly one of result and
 * error; quantities are 0x-hex without leading zeros; byte strings have an even number of digits.
 * Every other shape is CORRUPT: money is never decided on a guess about what a node meant. A node
 * that is busy (HTTP 429 or 503, or the code of EIP-1474) is asked again, after Retry-After where
 * it says so, within busy_ms_max; a request it turned away so was not carried out. */
#include "chain_client/eth/rpc_impl.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/json.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define RESPONSE_BYTES_STANDARD (16u << 20)
#define REQUEST_BYTES_MAX       (1u << 20)
#define BUSY_MS_STANDARD        30000u
#define BUSY_MS_FIRST           250u
#define FAULT_LIMIT_EXCEEDED    (-32005) /* EIP-1474 */

/* ---- life ---- */

enum status rpc_open(struct rpc **out, const struct rpc_config *config, struct errtext *err)
{
    *out = NULL;
    struct rpc *r = mem_alloc(sizeof(*r));
    r->response_bytes_max =
        config->response_bytes_max ? config->response_bytes_max : RESPONSE_BYTES_STANDARD;
    r->busy_ms_max = config->busy_ms_max ? config->busy_ms_max : BUSY_MS_STANDARD;
    buf_init(&r->request, REQUEST_BYTES_MAX);
    buf_init(&r->params, REQUEST_BYTES_MAX);
    enum status st = fetch_open(&r->fetch,
                                &(struct fetch_config){.base = config->url,
                                                       .authorization = config->authorization,
                                                       .what = "chain node",
                                                       .timeout_ms = config->timeout_ms,
                                                       .answer_bytes_max = r->response_bytes_max},
                                err);
    if (st)
        rpc_close(r);
    else
        *out = r;
    return st;
}

void rpc_close(struct rpc *r)
{
    if (!r)
        return;
    fetch_close(r->fetch);
    buf_fini(&r->request);
    buf_fini(&r->params);
    mem_free(r);
}

const struct rpc_fault *rpc_last_fault(const struct rpc *r)
{
    return &r->fault;
}

/* ---- values ---- */

bool rpc_read_quantity(const json_t *v, size_t bytes_max, u128 *out)
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

bool rpc_read_u64(const json_t *v, uint64_t *out)
{
    u128 wide = 0;
    bool ok = rpc_read_quantity(v, 8, &wide);
    *out = (uint64_t)wide;
    return ok;
}

bool rpc_read_fixed(const json_t *v, uint8_t *out, size_t len)
{
    const char *s = json_string_value(v);
    return s && s[0] == '0' && s[1] == 'x' && strlen(s) == 2 + 2 * len && hex_decode(out, len, s);
}

/* Append the bytes of a 0x string; false if malformed or past the buffer's maximum. */
bool rpc_read_bytes(const json_t *v, struct buf *out)
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

void rpc_put_hex(struct buf *out, const void *data, size_t len)
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

void rpc_put_quantity(struct buf *out, u128 v)
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
    if (rpc_read_bytes(data, &bytes)) {
        memcpy(f->data, bytes.data, bytes.len);
        f->data_len = bytes.len;
    }
    buf_fini(&bytes);
}

/* Some proxies answer a number as its text. */
static bool is_our_id(const json_t *found, uint64_t id)
{
    char text[24];
    snprintf(text, sizeof(text), "%" PRIu64, id);
    return json_is_string(found)
               ? strcmp(json_string_value(found), text) == 0
               : json_is_integer(found) && (uint64_t)json_integer_value(found) == id;
}

static enum status read_answer(struct rpc *r, uint64_t id, const struct fetch_answer *a,
                               json_t **result, struct errtext *err)
{
    json_t *all;
    bool is_object =
        !json_doc_parse(&all, "chain node", a->body.data, a->body.len, JSON_DOC_NUL, NULL);
    const json_t *found = json_object_get(all, "id"), *error = json_object_get(all, "error");
    json_t *value = json_object_get(all, "result");
    enum status st = STATUS_OK;
    bool refused = error && !json_is_null(error);
    if (a->code != 200 && !refused)
        st = err_set(err, STATUS_IO, "chain node: HTTP status %ld, expected 200", a->code);
    else if (!is_object)
        st = err_set(err, STATUS_CORRUPT, "chain node: the answer is not a JSON object");
    else if (!is_our_id(found, id))
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

static bool is_busy(const struct rpc *r, long http_code)
{
    return http_code == 429 || http_code == 503 || r->fault.code == FAULT_LIMIT_EXCEEDED;
}

/* One exchange. *busy_s: the node wants to be asked later, in so many seconds if it said. */
static enum status exchange(struct rpc *r, uint64_t id, json_t **result, bool *busy,
                            uint32_t *busy_s, struct errtext *err)
{
    const struct fetch_request q = {
        .method = "POST", .path = "", .body = r->request.data, .body_bytes = r->request.len};
    memset(&r->fault, 0, sizeof(r->fault));
    *busy = false;
    enum status st = fetch_perform(r->fetch, &q, err);
    if (st)
        return st;
    const struct fetch_answer *a = fetch_answer(r->fetch);
    st = read_answer(r, id, a, result, err);
    *busy = st && is_busy(r, a->code);
    *busy_s = a->retry_after_s;
    return st;
}

enum status rpc_request(struct rpc *r, const char *method, json_t **result, struct errtext *err)
{
    uint64_t id = ++r->next_id, waited_ms = 0, wait_ms = BUSY_MS_FIRST;
    bool busy = false;
    uint32_t busy_s = 0;
    enum status st;
    *result = NULL;
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
    for (;; wait_ms *= 2) {
        struct errtext why = ERRTEXT_INIT;
        st = exchange(r, id, result, &busy, &busy_s, &why);
        uint64_t next_ms = MAX(wait_ms, 1000ull * busy_s);
        if (!busy) {
            if (st)
                err_set(err, st, "%s: %s", method, why.text);
            return st;
        }
        if (waited_ms + next_ms > r->busy_ms_max)
            return err_set(err, STATUS_BUSY,
                           "%s: the chain node wants to be asked later (%s), after %" PRIu64
                           " ms of waiting",
                           method, why.text, waited_ms);
        clock_sleep_ms((uint32_t)next_ms);
        waited_ms += next_ms;
    }
}
