/* residual receipt verify: does the record say what the receipt says, is the signature the signer's
 * and, with a chain, is the signer the lane's key? Each check is one line; the first failure makes
 * the whole verdict. What was not checked is said too. */
#include "chain_client/canon.h"
#include "chain_client/cli/http.h"
#include "chain_client/cli/node.h"
#include "chain_client/eth/addr.h"
#include "server/base/check.h"
#include "server/base/json.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define INPUT_BYTES_MAX (64u << 20)
#define CHECKS_MAX      12

struct check {
    const char *name;
    char text[192];
    bool ok;
};

struct receipt {
    struct cli *c;
    struct secp *secp;
    json_t *input, *object; /* object: borrowed from input, or from fetched */
    json_t *fetched;
    uint8_t digest[32], signature[SECP_SIGNATURE_BYTES], signer[20];
    uint32_t lane;
    uint64_t seq, chain_id;
    uint8_t ledger[20];
    bool has_place; /* chain_id and ledger are known */
    uint8_t *body;  /* the record, or NULL */
    size_t body_len;
    union record record;
    struct check check[CHECKS_MAX];
    uint32_t check_count;
    const char *hint;
};

static bool note(struct receipt *r, const char *name, bool ok, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

static bool note(struct receipt *r, const char *name, bool ok, const char *fmt, ...)
{
    va_list ap;
    CHECK(r->check_count < CHECKS_MAX);
    struct check *k = &r->check[r->check_count++];
    k->name = name;
    k->ok = ok;
    va_start(ap, fmt);
    vsnprintf(k->text, sizeof(k->text), fmt, ap);
    va_end(ap);
    return ok;
}

/* ---- input ---- */

/* Standard input is a pipe as often as a file. */
static enum status read_stdin(char **text, size_t *len, struct errtext *err)
{
    struct buf all;
    char block[65536];
    size_t n;
    buf_init(&all, INPUT_BYTES_MAX);
    while ((n = fread(block, 1, sizeof(block), stdin)) > 0)
        buf_put(&all, block, n);
    bool failed = all.failed || ferror(stdin);
    *text = failed ? NULL : buf_steal(&all, len);
    buf_fini(&all);
    if (failed)
        return err_set(err, STATUS_TOO_LARGE, "stdin: not readable, or more than %u bytes",
                       INPUT_BYTES_MAX);
    return *text ? STATUS_OK : err_set(err, STATUS_INVALID, "stdin: empty, expected a JSON object");
}

static enum status read_input(const char *path, json_t **out, struct errtext *err)
{
    char *text;
    size_t len;
    if (strcmp(path, "-") != 0)
        return json_doc_load(out, path, INPUT_BYTES_MAX, 0, err);
    enum status st = read_stdin(&text, &len, err);
    if (st)
        return st;
    st = json_doc_parse(out, "stdin", text, len, 0, err);
    mem_free(text);
    return st;
}

static void read_body(struct receipt *r, struct json_reader *in)
{
    const char *hex = json_read_string(in, "record");
    size_t digits = hex ? strlen(hex) : 0;
    if (!hex)
        return;
    if (digits < 4 || digits % 2 || digits / 2 - 1 > CANON_RECORD_BYTES_MAX) {
        json_fail(in, STATUS_INVALID, "record",
                  "found %zu characters, expected 0x and the record's bytes in hex", digits);
        return;
    }
    r->body_len = digits / 2 - 1;
    r->body = mem_alloc(r->body_len);
    json_need_hex(in, "record", r->body, r->body_len);
}

static enum status read_fields(struct receipt *r, struct errtext *err)
{
    struct json_reader in = {.obj = r->object, .where = "the receipt", .err = err};
    struct json_range whole = {0, INT64_MAX};
    if (json_is_false(json_object_get(r->object, "recorded")))
        return err_set(err, STATUS_NOT_FOUND, "this answer was not recorded: there is no receipt");
    r->lane = (uint32_t)json_need_int(&in, "lane", (struct json_range){0, UINT32_MAX});
    r->seq = (uint64_t)json_need_int(&in, "seq", whole);
    json_need_hex(&in, "record_digest", r->digest, 32);
    json_need_hex(&in, json_has(&in, "receipt") ? "receipt" : "signature", r->signature,
                  SECP_SIGNATURE_BYTES);
    if (json_has(&in, "signer"))
        addr_need(r->signer, &in, "signer");
    r->has_place = json_has(&in, "ledger");
    if (r->has_place) {
        addr_need(r->ledger, &in, "ledger");
        r->chain_id = (uint64_t)json_need_int(&in, "chain_id", whole);
    }
    read_body(r, &in);
    return in.st;
}

/* The receipt of the answer, from the server that gave it. */
static enum status fetch(struct receipt *r, struct errtext *err)
{
    struct http *h;
    char path[256];
    struct json_reader in = {.obj = r->object, .where = "the receipt", .err = err};
    const char *id = json_need_string(&in, "request_id");
    if (strspn(id, "0123456789abcdefABCDEF") != strlen(id) || strlen(id) > 128)
        json_fail(&in, STATUS_INVALID, "request_id", "found \"%.60s\", expected hex digits", id);
    if (in.st)
        return in.st;
    snprintf(path, sizeof(path), "/v1/receipts/%s", id);
    enum status st =
        http_open(&h, r->c->value[OPT_SERVER], r->c->value[OPT_API_KEY_FILE], "server", err);
    if (!st)
        st = http_call(h, "GET", path, NULL, &r->fetched, err);
    http_close(h);
    r->hint = st ? http_hint(st) : NULL;
    return st;
}

static enum status read_all(struct receipt *r, struct errtext *err)
{
    uint8_t digest[32];
    enum status st = read_input(r->c->operand[0], &r->input, err);
    if (st)
        return st;
    r->object = json_object_get(r->input, "residual");
    if (!json_is_object(r->object))
        r->object = r->input;
    st = read_fields(r, err);
    if (st || r->body || !cli_has(r->c, OPT_SERVER))
        return st;
    memcpy(digest, r->digest, 32);
    st = fetch(r, err);
    if (st)
        return st;
    r->object = r->fetched;
    st = read_fields(r, err);
    if (!st)
        note(r, "same record", memcmp(digest, r->digest, 32) == 0,
             "the server's receipt is of the record that the answer names");
    return st;
}

/* ---- checks ---- */

static void check_body(struct receipt *r)
{
    uint8_t domain[32], digest[32];
    struct errtext why = ERRTEXT_INIT;
    if (canon_decode(&r->record, r->body, r->body_len, &why)) {
        note(r, "record", false, "%s", why.text);
        return;
    }
    const struct canon_layout *l = canon_layout(r->record.prefix.type);
    note(r, "record", true, "%s record of %zu bytes, every field and tail hash right", l->name,
         r->body_len);
    note(r, "place", r->record.prefix.lane == r->lane && r->record.prefix.seq == r->seq,
         "the record is lane %" PRIu32 ", number %" PRIu64, r->record.prefix.lane,
         r->record.prefix.seq);
    if (!r->has_place) {
        note(r, "digest", false, "the receipt names no ledger and chain_id");
        return;
    }
    canon_domain(domain, r->chain_id, r->ledger);
    canon_digest(digest, &r->record, domain);
    note(r, "digest", memcmp(digest, r->digest, 32) == 0,
         "record_digest is the digest of these bytes on chain %" PRIu64, r->chain_id);
    const uint8_t *signature = (const uint8_t *)&r->record + l->signature_member;
    note(r, "same signature", memcmp(signature, r->signature, SECP_SIGNATURE_BYTES) == 0,
         "the receipt is the record's own signature");
}

static void check_signature(struct receipt *r)
{
    uint8_t who[20];
    char text[ADDR_TEXT_BYTES];
    struct errtext why = ERRTEXT_INIT;
    if (secp_recover(r->secp, who, r->signature, r->digest, &why)) {
        note(r, "signature", false, "%s", why.text);
        return;
    }
    addr_format(text, who);
    bool named = !addr_is_zero(r->signer);
    note(r, "signature", !named || memcmp(who, r->signer, 20) == 0, "%s %s",
         named ? "made by the signer it names; the key is" : "made by", text);
    memcpy(r->signer, who, 20);
}

static enum status check_chain(struct receipt *r, struct errtext *err)
{
    struct node n = {0};
    uint8_t key[20] = {0};
    uint64_t next = 0;
    char text[ADDR_TEXT_BYTES];
    enum status st = node_open(&n, r->c, err);
    if (!st)
        st = view_lane_key(&n.view, "latest", r->lane, r->seq, key, err);
    if (!st)
        st = view_lane_next(&n.view, "latest", r->lane, &next, err);
    r->hint = st ? node_hint(st) : NULL;
    if (!st) {
        addr_format(text, key);
        if (r->has_place)
            note(r, "ledger", r->chain_id == n.d.chain_id && memcmp(r->ledger, n.d.ledger, 20) == 0,
                 "bound to the ledger of the deployment file");
        note(r, "lane key", memcmp(key, r->signer, 20) == 0,
             "the chain's key of lane %" PRIu32 " at number %" PRIu64 " is %s", r->lane, r->seq,
             addr_is_zero(key) ? "none: the lane is not registered" : text);
        cli_note(r->c, "%s",
                 next > r->seq ? "committed: the record's number is in a batch on chain"
                               : "not committed on the chain yet");
    }
    node_close(&n);
    return st;
}

/* ---- verdict ---- */

static bool all_right(const struct receipt *r)
{
    for (uint32_t i = 0; i < r->check_count; i++) {
        if (!r->check[i].ok)
            return false;
    }
    return true;
}

static void put_json(struct buf *out, const struct receipt *r)
{
    buf_printf(out,
               "{\"ok\":%s,\"lane\":%" PRIu32 ",\"seq\":%" PRIu64
               ",\"record_checked\":%s,\"lane_key_checked\":%s,",
               all_right(r) ? "true" : "false", r->lane, r->seq, r->body ? "true" : "false",
               cli_has(r->c, OPT_RPC) ? "true" : "false");
    cli_put_json_address(out, "signer", r->signer);
    buf_putc(out, ',');
    buf_put_json_hex(out, "record_digest", r->digest, 32);
    buf_puts(out, ",\"checks\":[");
    for (uint32_t i = 0; i < r->check_count; i++) {
        const struct check *k = &r->check[i];
        buf_printf(out, "%s{\"name\":\"%s\",\"ok\":%s,\"text\":", i ? "," : "", k->name,
                   k->ok ? "true" : "false");
        buf_put_json_string(out, k->text, strlen(k->text));
        buf_putc(out, '}');
    }
    buf_puts(out, "]}");
}

static void put_facts(struct buf *out, const struct receipt *r)
{
    char fee[CLI_AMOUNT_BYTES];
    const struct record_inference *inf = &r->record.inference;
    if (!r->body || r->record.prefix.type != RECORD_INFERENCE)
        return;
    cli_amount(fee, inf->fee);
    buf_printf(out, "  %" PRIu32 " prompt and %" PRIu32 " output tokens, fee %s\n", inf->tokens_in,
               inf->tokens_out, fee);
}

static void put_text(struct buf *out, const struct receipt *r)
{
    for (uint32_t i = 0; i < r->check_count; i++)
        buf_printf(out, "  %-5s %-14s %s\n", r->check[i].ok ? "right" : "WRONG", r->check[i].name,
                   r->check[i].text);
    put_facts(out, r);
    if (!r->body)
        buf_puts(out, "  not checked: the record's bytes are not in this file (--server URL "
                      "fetches them)\n");
    if (!cli_has(r->c, OPT_RPC))
        buf_puts(out,
                 "  not checked: whether the signer is the lane's key (--rpc, --deployment)\n");
    buf_puts(out, all_right(r) ? "the receipt is good" : "the receipt is NOT good");
}

static int print(const struct receipt *r)
{
    struct buf out;
    buf_init(&out, 1u << 16);
    if (cli_has(r->c, OPT_JSON))
        put_json(&out, r);
    else
        put_text(&out, r);
    int code = cli_print(&out, all_right(r) ? CLI_FINE : CLI_WRONG);
    buf_fini(&out);
    return code;
}

int verb_receipt_verify(struct cli *c)
{
    struct receipt *r = mem_alloc(sizeof(*r));
    struct errtext err = ERRTEXT_INIT;
    r->c = c;
    enum status st = STATUS_OK;
    if (cli_has(c, OPT_RPC) != cli_has(c, OPT_DEPLOYMENT))
        st = err_set(&err, STATUS_INVALID, "--rpc and --deployment go together");
    if (!st)
        st = secp_create(&r->secp, &err);
    if (!st)
        st = read_all(r, &err);
    if (!st && r->body)
        check_body(r);
    if (!st)
        check_signature(r);
    if (!st && cli_has(c, OPT_RPC))
        st = check_chain(r, &err);
    int code = st ? cli_fail(c, st, &err, r->hint) : print(r);
    json_decref(r->input);
    json_decref(r->fetched);
    secp_destroy(r->secp);
    mem_free(r->body);
    mem_free(r);
    return code;
}
