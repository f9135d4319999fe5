/* JSON-RPC against a scripted node: a thread that serves one prepared answer per connection on
 * loopback. The scripts are what real and hostile nodes were seen to send. */
#include "chain_client/eth/rpc.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/mem.h"

struct node {
    int listen_fd;
    uint16_t port;
    pthread_t thread;
    const char *status; /* "200 OK" */
    const char *body;   /* ID is replaced by the request's id */
    const char *extra;  /* more header lines, each with CRLF */
    uint32_t delay_ms;
    size_t body_repeat;  /* this many blanks are sent before the body */
    const char *refused; /* a request for this method gets refusal instead */
    const char *refusal;
    uint32_t busy_left; /* so many more requests get HTTP 429 first */
    uint32_t exchanges;
    char request[65536];
    pthread_mutex_t lock; /* held by the node for a whole exchange, by the test while it scripts */
};
static struct node node = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* Read one request: headers, then as many bytes as Content-Length says. */
static void read_request(int fd)
{
    size_t used = 0;
    for (;;) {
        ssize_t n = read(fd, node.request + used, sizeof(node.request) - 1 - used);
        if (n <= 0)
            return;
        used += (size_t)n;
        node.request[used] = '\0';
        const char *end = strstr(node.request, "\r\n\r\n");
        const char *len = strcasestr(node.request, "content-length:");
        if (end && len && used >= (size_t)(end + 4 - node.request) + strtoul(len + 15, NULL, 10))
            return;
    }
}

static void send_all(int fd, const char *data, size_t len)
{
    while (len) {
        ssize_t n = send(fd, data, len, MSG_NOSIGNAL);
        if (n <= 0)
            return;
        data += n;
        len -= (size_t)n;
    }
}

static void send_answer(int fd)
{
    char head[512];
    struct buf body;
    const char *text = node.body, *status = node.status, *extra = node.extra;
    if (node.refused && strstr(node.request, node.refused))
        text = node.refusal;
    if (node.busy_left) {
        node.busy_left--;
        status = "429 Too Many Requests";
        extra = "Retry-After: 1\r\n";
        text = "{\"id\":ID,\"error\":{\"code\":-32005,\"message\":\"rate limit\"}}";
    }
    node.exchanges++;
    const char *id = strstr(node.request, "\"id\":"), *mark = strstr(text, "ID");
    static char blanks[65536];
    memset(blanks, ' ', sizeof(blanks));
    buf_init(&body, 1 << 27);
    for (size_t left = node.body_repeat; left; left -= MIN(left, sizeof(blanks)))
        buf_put(&body, blanks, MIN(left, sizeof(blanks)));
    if (id && mark) {
        buf_put(&body, text, (size_t)(mark - text));
        buf_put(&body, id + 5, strspn(id + 5, "0123456789"));
        buf_puts(&body, mark + 2);
    } else {
        buf_puts(&body, text);
    }
    int n = snprintf(head, sizeof(head),
                     "HTTP/1.1 %s\r\nContent-Length: %zu\r\nConnection: close\r\n%s\r\n", status,
                     body.len, extra);
    clock_sleep_ms(node.delay_ms);
    send_all(fd, head, (size_t)n);
    send_all(fd, body.data, body.len);
    buf_fini(&body);
}

static void *serve(void *arg)
{
    for (;;) {
        int fd = accept(node.listen_fd, NULL, NULL);
        if (fd < 0)
            return NULL;
        pthread_mutex_lock(&node.lock);
        read_request(fd);
        if (node.body)
            send_answer(fd);
        pthread_mutex_unlock(&node.lock);
        close(fd);
    }
}

static int setup(void **state)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);
    node.listen_fd = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(node.listen_fd, (struct sockaddr *)&a, sizeof(a)) || listen(node.listen_fd, 8) ||
        getsockname(node.listen_fd, (struct sockaddr *)&a, &len))
        return 1;
    node.port = ntohs(a.sin_port);
    return pthread_create(&node.thread, NULL, serve, NULL);
}

static int teardown(void **state)
{
    shutdown(node.listen_fd, SHUT_RDWR);
    pthread_join(node.thread, NULL);
    close(node.listen_fd);
    return 0;
}

/* The next answers. Waits until the node is done with the exchange before. */
static void script_more(const char *status, const char *body, const char *extra, uint32_t delay_ms,
                        size_t body_repeat)
{
    pthread_mutex_lock(&node.lock);
    node.status = status;
    node.body = body;
    node.extra = extra;
    node.delay_ms = delay_ms;
    node.body_repeat = body_repeat;
    pthread_mutex_unlock(&node.lock);
}

static void script(const char *status, const char *body)
{
    script_more(status, body, "", 0, 0);
}

static void script_refusal(const char *method, const char *refusal)
{
    pthread_mutex_lock(&node.lock);
    node.refused = method;
    node.refusal = refusal;
    pthread_mutex_unlock(&node.lock);
}

static void script_busy(uint32_t exchanges)
{
    pthread_mutex_lock(&node.lock);
    node.busy_left = exchanges;
    node.exchanges = 0;
    pthread_mutex_unlock(&node.lock);
}

/* Did the last request hold this text? */
static bool asked(const char *part)
{
    pthread_mutex_lock(&node.lock);
    bool found = strstr(node.request, part) != NULL;
    pthread_mutex_unlock(&node.lock);
    return found;
}

static struct rpc *client(uint32_t timeout_ms, size_t bytes_max)
{
    char url[64];
    struct rpc *r;
    snprintf(url, sizeof(url), "http://127.0.0.1:%u/", node.port);
    struct rpc_config config = {.url = url,
                                .authorization = "Bearer s3cret",
                                .timeout_ms = timeout_ms,
                                .response_bytes_max = bytes_max,
                                .busy_ms_max = 2600};
    assert_int_equal(rpc_open(&r, &config, NULL), STATUS_OK);
    return r;
}

#define RESULT(x) "{\"jsonrpc\":\"2.0\",\"id\":ID,\"result\":" x "}"
#define H32       "\"0x1111111111111111111111111111111111111111111111111111111111111111\""
#define A20       "\"0x2222222222222222222222222222222222222222\""

static void test_quantities(void **state)
{
    static const struct {
        const char *body;
        enum status st;
        uint64_t value;
    } cases[] = {
        {RESULT("\"0x7a69\""), STATUS_OK, 31337},
        {RESULT("\"0x0\""), STATUS_OK, 0},
        {RESULT("\"0xffffffffffffffff\""), STATUS_OK, UINT64_MAX},
        {RESULT("\"0x10000000000000000\""), STATUS_CORRUPT, 0},
        {RESULT("\"0x01\""), STATUS_CORRUPT, 0},
        {RESULT("\"0x\""), STATUS_CORRUPT, 0},
        {RESULT("\"7a69\""), STATUS_CORRUPT, 0},
        {RESULT("\"0xzz\""), STATUS_CORRUPT, 0},
        {RESULT("31337"), STATUS_CORRUPT, 0},
        {RESULT("null"), STATUS_CORRUPT, 0},
        {RESULT("[]"), STATUS_CORRUPT, 0},
    };
    struct rpc *r = client(2000, 0);
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        uint64_t v = 9;
        struct errtext err = ERRTEXT_INIT;
        script("200 OK", cases[i].body);
        assert_int_equal(rpc_chain_id(r, &v, &err), cases[i].st);
        if (!cases[i].st)
            assert_true(v == cases[i].value);
        else
            assert_non_null(strstr(err.text, "eth_chainId"));
    }
    rpc_close(r);
}

static void test_what_is_no_answer(void **state)
{
    static const struct {
        const char *status, *body;
        enum status st;
    } cases[] = {
        {"200 OK", "", STATUS_CORRUPT},
        {"200 OK", "<html>proxy</html>", STATUS_CORRUPT},
        {"200 OK", "{\"jsonrpc\":\"2.0\",\"id\":ID,\"result\":\"0x1\"", STATUS_CORRUPT},
        {"200 OK", "[" RESULT("\"0x1\"") "]", STATUS_CORRUPT},
        {"200 OK", "{\"jsonrpc\":\"2.0\",\"id\":987654,\"result\":\"0x1\"}", STATUS_CORRUPT},
        {"200 OK", "{\"jsonrpc\":\"2.0\",\"id\":\"x\",\"result\":\"0x1\"}", STATUS_CORRUPT},
        {"200 OK", "{\"jsonrpc\":\"2.0\",\"id\":\"ID\",\"result\":\"0x1\"}", STATUS_OK},
        {"200 OK", "{\"jsonrpc\":\"2.0\",\"id\":null,\"result\":\"0x1\"}", STATUS_CORRUPT},
        {"200 OK", "{\"jsonrpc\":\"2.0\",\"id\":ID}", STATUS_CORRUPT},
        {"200 OK", "{\"id\":ID,\"result\":\"0x1\",\"error\":{\"code\":1,\"message\":\"x\"}}",
         STATUS_CORRUPT},
        {"200 OK", "{\"id\":ID,\"error\":\"text\"}", STATUS_CORRUPT},
        {"502 Bad Gateway", "upstream", STATUS_IO},
        {"429 Too Many Requests", "{\"message\":\"slow down\"}", STATUS_BUSY},
        {"500 Oops", RESULT("\"0x1\""), STATUS_IO},
    };
    struct rpc *r = client(2000, 0);
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        uint64_t v;
        struct errtext err = ERRTEXT_INIT;
        script(cases[i].status, cases[i].body);
        enum status st = rpc_block_number(r, &v, &err);
        if (st != cases[i].st || (st && !strstr(err.text, "eth_blockNumber: ")))
            fail_msg("case %zu: %s (%s)", i, status_name(st), err.text);
    }
    rpc_close(r);
}

/* 80 MB, and lists in lists in lists: refused at a bounded cost, and the client goes on. */
static void test_answers_without_measure(void **state)
{
    struct rpc *r = client(20000, 0);
    struct errtext err = ERRTEXT_INIT;
    struct rpc_block b;
    struct buf deep;
    uint64_t v;
    script_more("200 OK", RESULT("\"0x1\""), "", 0, 80u << 20);
    assert_int_equal(rpc_chain_id(r, &v, &err), STATUS_TOO_LARGE);
    assert_non_null(strstr(err.text, "longer than 16777216 bytes"));
    buf_init(&deep, 1 << 22);
    buf_puts(&deep, "{\"jsonrpc\":\"2.0\",\"id\":ID,\"result\":");
    for (size_t i = 0; i < 1000000; i++)
        buf_putc(&deep, '[');
    for (size_t i = 0; i < 1000000; i++)
        buf_putc(&deep, ']');
    buf_putc(&deep, '}');
    script("200 OK", deep.data);
    err_clear(&err);
    assert_int_equal(rpc_block(r, "latest", &b, &err), STATUS_CORRUPT);
    assert_non_null(strstr(err.text, "eth_getBlockByNumber: "));
    script("200 OK", RESULT("\"0x1\""));
    assert_int_equal(rpc_chain_id(r, &v, NULL), STATUS_OK);
    buf_fini(&deep);
    rpc_close(r);
}

static void test_refusals_carry_revert_bytes(void **state)
{
    uint8_t to[20] = {1};
    struct rpc_call call = {.to = to, .data = "\x01\x02", .data_len = 2};
    struct rpc *r = client(2000, 0);
    struct buf out;
    struct errtext err = ERRTEXT_INIT;
    buf_init(&out, 1024);
    script("200 OK", "{\"jsonrpc\":\"2.0\",\"id\":ID,\"error\":{\"code\":3,\"message\":"
                     "\"execution reverted\\n: Already \\u0000\",\"data\":\"0xdeadbeef00\"}}");
    assert_int_equal(rpc_call(r, &call, "latest", &out, &err), STATUS_INVALID);
    assert_int_equal(rpc_last_fault(r)->code, 3);
    assert_int_equal(rpc_last_fault(r)->data_len, 5);
    assert_memory_equal(rpc_last_fault(r)->data, "\xde\xad\xbe\xef", 5);
    assert_null(strchr(rpc_last_fault(r)->message, '\n'));
    assert_non_null(strstr(err.text, "execution reverted"));
    assert_true(asked("\"to\":\"0x0100000000000000000000000000000000000000\""));
    assert_true(asked("\"data\":\"0x0102\""));
    assert_true(asked("Authorization: Bearer s3cret"));
    script("400 Bad Request", "{\"id\":ID,\"error\":{\"code\":-32000,\"message\":\"nonce too low\","
                              "\"data\":{\"data\":\"0x11223344\"}}}");
    assert_int_equal(rpc_call(r, &call, "latest", &out, NULL), STATUS_INVALID);
    assert_string_equal(rpc_last_fault(r)->message, "nonce too low");
    assert_int_equal(rpc_last_fault(r)->data_len, 4);
    script("200 OK", RESULT("\"0x\""));
    assert_int_equal(rpc_call(r, &call, "latest", &out, NULL), STATUS_OK);
    assert_int_equal(rpc_last_fault(r)->code, 0);
    buf_fini(&out);
    rpc_close(r);
}

static void test_bytes_are_bounded(void **state)
{
    uint8_t to[20] = {1};
    struct rpc_call call = {.to = to};
    struct rpc *r = client(2000, 0), *small = client(2000, 4096);
    struct buf out;
    struct errtext err = ERRTEXT_INIT;
    uint64_t v;
    buf_init(&out, 4);
    script("200 OK", RESULT("\"0x0102\""));
    assert_int_equal(rpc_call(r, &call, "safe", &out, NULL), STATUS_OK);
    assert_int_equal(out.len, 2);
    assert_memory_equal(out.data, "\x01\x02", 2);
    script("200 OK", RESULT("\"0x010\""));
    assert_int_equal(rpc_call(r, &call, "safe", &out, NULL), STATUS_CORRUPT);
    buf_fini(&out);
    buf_init(&out, 4);
    script("200 OK", RESULT("\"0x0102030405060708\""));
    assert_int_equal(rpc_call(r, &call, "safe", &out, NULL), STATUS_TOO_LARGE);
    buf_fini(&out);
    script_more("200 OK", RESULT("\"0x1\""), "", 0, 100000);
    assert_int_equal(rpc_chain_id(small, &v, &err), STATUS_TOO_LARGE);
    assert_non_null(strstr(err.text, "4096"));
    script("200 OK", RESULT("\"0x1\""));
    assert_int_equal(rpc_chain_id(small, &v, NULL), STATUS_OK); /* the client still works */
    rpc_close(r);
    rpc_close(small);
}

static void test_outages(void **state)
{
    uint64_t v;
    struct errtext err = ERRTEXT_INIT;
    struct rpc *r = client(200, 0);
    script_more("200 OK", RESULT("\"0x1\""), "", 600, 0);
    assert_int_equal(rpc_chain_id(r, &v, NULL), STATUS_TIMEOUT);
    script("200 OK", NULL); /* closes without an answer */
    assert_int_equal(rpc_chain_id(r, &v, NULL), STATUS_IO);
    script_more("302 Found", "", "Location: http://127.0.0.1:1/\r\n", 0, 0);
    assert_int_equal(rpc_chain_id(r, &v, &err), STATUS_IO); /* not followed */
    assert_non_null(strstr(err.text, "302"));
    rpc_close(r);
    struct rpc_config config = {.url = "http://127.0.0.1:1/", .timeout_ms = 500};
    assert_int_equal(rpc_open(&r, &config, NULL), STATUS_OK);
    assert_int_equal(rpc_chain_id(r, &v, NULL), STATUS_IO);
    rpc_close(r);
    config.url = "file:///etc/passwd";
    assert_int_equal(rpc_open(&r, &config, NULL), STATUS_INVALID);
    config.url = "http://127.0.0.1/";
    config.authorization = "a\r\nX: b";
    assert_int_equal(rpc_open(&r, &config, NULL), STATUS_INVALID);
}

/* Two nodes of one chain: what is final must be the same bytes. */
static void test_a_final_answer_is_confirmed(void **state)
{
    char url[64];
    uint8_t to[20] = {1};
    struct rpc_call call = {.to = to};
    struct rpc *r = client(2000, 0), *other;
    struct errtext err = ERRTEXT_INIT;
    struct buf out;
    uint64_t number = 0x77;
    snprintf(url, sizeof(url), "http://127.0.0.1:%u/other", node.port);
    assert_int_equal(rpc_open(&other, &(struct rpc_config){.url = url}, NULL), STATUS_OK);
    buf_init(&out, 1024);
    rpc_pin_finalized(r, &number);
    rpc_pin_finalized(other, &number);
    rpc_confirm_with(r, other);
    script("200 OK", RESULT("\"0x01\""));
    assert_int_equal(rpc_call(r, &call, "finalized", &out, NULL), STATUS_OK);
    assert_true(asked("POST /other") && asked("\"0x77\""));
    script_refusal("POST /other", RESULT("\"0x02\""));
    assert_int_equal(rpc_call(r, &call, "latest", &out, NULL), STATUS_OK); /* not asked there */
    assert_int_equal(rpc_call(r, &call, "finalized", &out, &err), STATUS_BUSY);
    assert_non_null(strstr(err.text, "answer differently"));
    script_refusal("POST /other", "<html>");
    assert_int_equal(rpc_call(r, &call, "finalized", &out, NULL), STATUS_BUSY);
    rpc_confirm_with(r, NULL);
    assert_int_equal(rpc_call(r, &call, "finalized", &out, NULL), STATUS_OK);
    script_refusal(NULL, NULL);
    buf_fini(&out);
    rpc_close(r);
    rpc_close(other);
}

#define BLOCK(extra)                                                                               \
    RESULT("{\"number\":\"0x10\",\"timestamp\":\"0x65\",\"hash\":" H32 ",\"parentHash\":" H32      \
           ",\"mixHash\":" H32 extra "}")

static void test_blocks(void **state)
{
    struct rpc *r = client(2000, 0);
    struct rpc_block b;
    char tag[RPC_TAG_BYTES];
    rpc_tag(tag, UINT64_MAX);
    assert_string_equal(tag, "0xffffffffffffffff");
    script("200 OK", BLOCK(",\"baseFeePerGas\":\"0x3b9aca00\",\"extra\":[1,{}]"));
    assert_int_equal(rpc_block(r, "finalized", &b, NULL), STATUS_OK);
    assert_true(b.number == 16 && b.timestamp == 101 && b.base_fee == 1000000000);
    assert_int_equal(b.mix_hash[31], 0x11);
    assert_true(asked("[\"finalized\",false]"));
    script("200 OK", RESULT("null"));
    assert_int_equal(rpc_block(r, "finalized", &b, NULL), STATUS_NOT_FOUND);
    script("200 OK", BLOCK(",\"baseFeePerGas\":7"));
    assert_int_equal(rpc_block(r, "latest", &b, NULL), STATUS_CORRUPT);
    script("200 OK", RESULT("{\"number\":\"0x1\"}"));
    assert_int_equal(rpc_block(r, "latest", &b, NULL), STATUS_CORRUPT);
    rpc_close(r);
}

#define RECEIPT(status)                                                                            \
    RESULT("{\"transactionHash\":" H32 ",\"blockHash\":" H32                                       \
           ",\"blockNumber\":\"0x5\",\"gasUsed\":\"0x5208\",\"contractAddress\":null,"             \
           "\"effectiveGasPrice\":\"0x1\",\"status\":" status "}")

static void test_receipts_and_sends(void **state)
{
    struct rpc *r = client(2000, 0);
    struct rpc_receipt receipt;
    uint8_t hash[32];
    memset(hash, 0x11, sizeof(hash));
    script("200 OK", RECEIPT("\"0x1\""));
    assert_int_equal(rpc_receipt(r, hash, &receipt, NULL), STATUS_OK);
    assert_true(receipt.succeeded && receipt.gas_used == 21000 && !receipt.has_contract);
    script("200 OK", RECEIPT("\"0x0\""));
    assert_int_equal(rpc_receipt(r, hash, &receipt, NULL), STATUS_OK);
    assert_false(receipt.succeeded);
    script("200 OK", RECEIPT("\"0x2\""));
    assert_int_equal(rpc_receipt(r, hash, &receipt, NULL), STATUS_CORRUPT);
    script("200 OK", RESULT("null"));
    assert_int_equal(rpc_receipt(r, hash, &receipt, NULL), STATUS_NOT_FOUND);
    script("200 OK", RESULT(H32));
    assert_int_equal(rpc_send_raw(r, "\x02\xc0", 2, hash, NULL), STATUS_OK);
    assert_true(asked("[\"0x02c0\"]"));
    hash[0]++;
    assert_int_equal(rpc_send_raw(r, "\x02\xc0", 2, hash, NULL), STATUS_CORRUPT);
    script("200 OK", RECEIPT("\"0x1\"")); /* a receipt of another transaction */
    assert_int_equal(rpc_receipt(r, hash, &receipt, NULL), STATUS_CORRUPT);
    rpc_close(r);
}

static void test_the_small_calls(void **state)
{
    struct rpc *r = client(2000, 0);
    struct rpc_call call = {.value = (u128)1 << 100};
    struct buf out;
    uint8_t address[20] = {0xab};
    uint64_t n = 0;
    u128 wei = 0;
    buf_init(&out, 4096);
    script("200 OK", RESULT("\"0x100000000000000000000\""));
    assert_int_equal(rpc_balance(r, address, "latest", &wei, NULL), STATUS_OK);
    assert_true(wei == (u128)1 << 80);
    script("200 OK", RESULT("\"0x5208\""));
    assert_int_equal(rpc_estimate_gas(r, &call, &n, NULL), STATUS_OK);
    assert_true(asked("\"value\":\"0x10000000000000000000000000\""));
    assert_int_equal(n, 21000);
    assert_int_equal(rpc_transaction_count(r, address, "pending", &n, NULL), STATUS_OK);
    script("200 OK", RESULT("\"0x6001\""));
    assert_int_equal(rpc_code(r, address, "latest", &out, NULL), STATUS_OK);
    assert_int_equal(out.len, 2);
    script("200 OK", RESULT("{\"oldestBlock\":\"0x1\",\"baseFeePerGas\":[\"0x1\",\"0x2\"]}"));
    assert_int_equal(rpc_next_base_fee(r, &wei, NULL), STATUS_OK);
    assert_true(wei == 2);
    script("200 OK", RESULT("{\"baseFeePerGas\":[]}"));
    assert_int_equal(rpc_next_base_fee(r, &wei, NULL), STATUS_CORRUPT);
    script("200 OK", RESULT("\"0x3b9aca00\""));
    assert_int_equal(rpc_tip(r, &wei, NULL), STATUS_OK);
    script("200 OK", RESULT("{\"a\":[1,2]}"));
    assert_int_equal(rpc_raw(r, "anvil_mine", "[\"0x1\"]", &out, NULL), STATUS_OK);
    assert_string_equal(out.data, "{\"a\":[1,2]}");
    assert_int_equal(rpc_raw(r, "anvil_mine", "{}", &out, NULL), STATUS_INVALID);
    buf_fini(&out);
    rpc_close(r);
}

#define UNKNOWN_METHOD                                                                             \
    "{\"id\":ID,\"error\":{\"code\":-32601,\"message\":\"the method does not exist\"}}"

/* Half of the nodes have no eth_maxPriorityFeePerGas, some no eth_feeHistory. */
static void test_a_method_that_is_missing_has_a_substitute(void **state)
{
    struct rpc *r = client(2000, 0);
    struct errtext err = ERRTEXT_INIT;
    u128 wei = 0;
    script("200 OK", BLOCK(",\"baseFeePerGas\":\"0x800\""));
    script_refusal("eth_feeHistory", UNKNOWN_METHOD);
    assert_int_equal(rpc_next_base_fee(r, &wei, &err), STATUS_OK);
    assert_true(wei == 2048 + 256 + 1);
    script_refusal("eth_maxPriorityFeePerGas", UNKNOWN_METHOD);
    assert_int_equal(rpc_tip(r, &wei, &err), STATUS_CORRUPT); /* a block is no price */
    assert_non_null(strstr(err.text, "eth_gasPrice"));
    script_refusal(NULL, NULL);
    rpc_close(r);
}

static void test_a_busy_node_is_asked_again(void **state)
{
    struct rpc *r = client(2000, 0);
    struct errtext err = ERRTEXT_INIT;
    uint64_t n = 0, begin = clock_mono_ns();
    script("200 OK", RESULT("\"0x7\""));
    script_busy(2);
    assert_int_equal(rpc_block_number(r, &n, &err), STATUS_OK);
    assert_int_equal(n, 7);
    assert_int_equal(node.exchanges, 3);
    assert_true(clock_mono_ns() - begin >= 2000000000u); /* Retry-After: 1, twice */
    script_busy(UINT32_MAX);
    assert_int_equal(rpc_block_number(r, &n, &err), STATUS_BUSY);
    assert_non_null(strstr(err.text, "rate limit"));
    script_busy(0);
    rpc_close(r);
}

/* "already known", "nonce too low": the words differ, the hash does not. */
static void test_a_refused_send_is_found_by_its_hash(void **state)
{
    struct rpc *r = client(2000, 0);
    uint8_t hash[32];
    memset(hash, 0x11, sizeof(hash));
    script("200 OK", RESULT("{\"hash\":" H32 "}"));
    script_refusal("eth_sendRawTransaction",
                   "{\"id\":ID,\"error\":{\"code\":-32000,\"message\":\"already known\"}}");
    assert_int_equal(rpc_send_raw(r, "\x02\xc0", 2, hash, NULL), STATUS_OK);
    script("200 OK", RESULT("null"));
    assert_int_equal(rpc_send_raw(r, "\x02\xc0", 2, hash, NULL), STATUS_INVALID);
    assert_string_equal(rpc_last_fault(r)->message, "already known");
    script_refusal(NULL, NULL);
    rpc_close(r);
}

static enum status count_log(void *arg, const struct rpc_log *log, struct errtext *err)
{
    size_t *seen = arg;
    assert_int_equal(log->data_len, 2);
    assert_int_equal(log->topic_count, 1);
    return ++*seen == 3 ? err_set(err, STATUS_CANCELLED, "enough") : STATUS_OK;
}

#define LOG(address, removed)                                                                      \
    "{\"address\":" address ",\"topics\":[" H32 "],\"data\":\"0x0102\",\"blockNumber\":\"0x5\","   \
    "\"blockHash\":" H32 ",\"transactionHash\":" H32 ",\"logIndex\":\"0x0\",\"removed\":" removed  \
    "}"

static void test_logs(void **state)
{
    struct rpc *r = client(2000, 0);
    uint8_t address[20], topic[32], other[32] = {0};
    size_t seen = 0;
    memset(address, 0x22, 20);
    memset(topic, 0x11, 32);
    struct rpc_log_filter f = {.address = address,
                               .from_tag = "0x1",
                               .to_tag = "finalized",
                               .topic = {topic, NULL, NULL, NULL}};
    script("200 OK", RESULT("[" LOG(A20, "false") "," LOG(A20, "false") "]"));
    assert_int_equal(rpc_logs(r, &f, count_log, &seen, NULL), STATUS_OK);
    assert_int_equal(seen, 2);
    assert_true(asked("\"topics\":[\"0x1111"));
    assert_int_equal(rpc_logs(r, &f, count_log, &seen, NULL), STATUS_CANCELLED);
    script("200 OK", RESULT("[" LOG(A20, "true") "]"));
    assert_int_equal(rpc_logs(r, &f, count_log, &seen, NULL), STATUS_CORRUPT);
    script("200 OK",
           RESULT("[" LOG("\"0x3333333333333333333333333333333333333333\"", "false") "]"));
    assert_int_equal(rpc_logs(r, &f, count_log, &seen, NULL), STATUS_CORRUPT);
    script("200 OK", RESULT("[" LOG(A20, "false") "]"));
    f.topic[0] = other;
    assert_int_equal(rpc_logs(r, &f, count_log, &seen, NULL), STATUS_CORRUPT);
    script("200 OK", RESULT("{}"));
    assert_int_equal(rpc_logs(r, &f, count_log, &seen, NULL), STATUS_CORRUPT);
    assert_int_equal(seen, 3);
    rpc_close(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quantities),
        cmocka_unit_test(test_what_is_no_answer),
        cmocka_unit_test(test_answers_without_measure),
        cmocka_unit_test(test_refusals_carry_revert_bytes),
        cmocka_unit_test(test_bytes_are_bounded),
        cmocka_unit_test(test_outages),
        cmocka_unit_test(test_a_final_answer_is_confirmed),
        cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_receipts_and_sends),
        cmocka_unit_test(test_the_small_calls),
        cmocka_unit_test(test_logs),
        cmocka_unit_test(test_a_method_that_is_missing_has_a_substitute),
        cmocka_unit_test(test_a_busy_node_is_asked_again),
        cmocka_unit_test(test_a_refused_send_is_found_by_its_hash),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
