/* residual audit attribution: every number of an attribution from the integers that the server
 * logged and the index files. The server is believed in nothing that the record commits to: its
 * digests open the inputs and name the indexes, and the shares follow (SPEC 10). */
#include "chain_client/canon.h"
#include "chain_client/cli/attribution_inputs.h"
#include "chain_client/cli/http.h"
#include "chain_client/eth/addr.h"
#include "chain_client/eth/fetch.h"
#include "chain_client/eth/keccak.h"
#include "chain_client/eth/secp.h"
#include "server/base/check.h"
#include "server/base/env.h"
#include "server/base/file.h"
#include "server/base/json.h"
#include "server/base/mem.h"
#include "server/influence/gain.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define INDEXES_GIVEN_MAX 16
#define INDEX_BYTES_MAX   (1ull << 36)
#define LINES_BYTES_MAX   (1u << 20)

struct attribution_audit {
    struct cli *c;
    struct http *http;
    json_t *shown, *logged;
    struct buf lines; /* one a check */
    uint32_t checks, wrong;
    struct events *index[INDEXES_GIVEN_MAX];
    uint32_t index_count;
    struct attribution_inputs inputs;
    struct gain_result result;
};

static void note(struct attribution_audit *a, bool ok, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static void note(struct attribution_audit *a, bool ok, const char *fmt, ...)
{
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    a->checks++;
    a->wrong += !ok;
    if (!cli_has(a->c, OPT_JSON)) {
        buf_printf(&a->lines, "  %-5s %s\n", ok ? "right" : "WRONG", text);
    } else if (!ok) {
        buf_puts(&a->lines, a->wrong > 1 ? "," : "");
        buf_put_json_string(&a->lines, text, strlen(text));
    }
}

/* ---- the indexes ---- */

static struct events *find_index(const struct attribution_audit *a, const uint8_t root[32])
{
    for (uint32_t i = 0; i < a->index_count; i++) {
        if (memcmp(events_root(a->index[i]), root, 32) == 0)
            return a->index[i];
    }
    return NULL;
}

static enum status open_index(struct attribution_audit *a, const char *path, struct errtext *err)
{
    if (a->index_count == INDEXES_GIVEN_MAX)
        return err_set(err, STATUS_TOO_LARGE, "at most %d index files", INDEXES_GIVEN_MAX);
    enum status st = events_open(&a->index[a->index_count], path, NULL, err);
    a->index_count += !st;
    return st;
}

/* An index may be larger than what is held of an answer: it goes to a file, which is gone as soon
 * as it is open. */
static enum status fetch_index(struct attribution_audit *a, const char *hex, struct errtext *err)
{
    char path[128], temporary[PATH_MAX];
    const char *dir = env_get("TMPDIR");
    snprintf(path, sizeof(path), "/v1/indexes/0x%.64s", hex);
    snprintf(temporary, sizeof(temporary), "%.4000s/residual-index-XXXXXX", dir ? dir : "/tmp");
    int fd = mkstemp(temporary);
    if (fd < 0)
        return err_set(err, STATUS_IO, "%s: cannot be created (%s); TMPDIR names another directory",
                       temporary, strerror(errno));
    const struct fetch_file into = {fd, temporary, INDEX_BYTES_MAX};
    enum status st = http_call_file(a->http, path, &into, err);
    close(fd);
    if (!st)
        st = open_index(a, temporary, err);
    (void)unlink(temporary);
    return st;
}

static enum status find_or_fetch(void *arg, const uint8_t root[32], const struct events **out,
                                 struct errtext *err)
{
    struct attribution_audit *a = arg;
    char hex[65];
    hex_encode(hex, root, 32);
    enum status st = find_index(a, root) ? STATUS_OK : fetch_index(a, hex, err);
    *out = st ? NULL : find_index(a, root);
    if (!st && !*out)
        return err_set(err, STATUS_CORRUPT, "the index that the server gave is not 0x%s", hex);
    return st;
}

/* ---- checks ---- */

static void check_shown(struct attribution_audit *a)
{
    const json_t *list = json_object_get(a->shown, "adapters");
    for (uint32_t k = 0; k < a->inputs.in.adapter_count; k++) {
        const struct tail_credit *want = &a->result.influence.adapter[k];
        const json_t *adapter = json_array_get(list, k);
        const json_t *people = json_object_get(adapter, "contributors");
        json_int_t gain = json_integer_value(json_object_get(adapter, "gain_ppb"));
        note(a, gain == want->gain, "adapter %u of the set: gain %lld, recomputed %u", k,
             (long long)gain, want->gain);
        note(a, json_array_size(people) == want->share_count,
             "adapter %u: %zu shares, recomputed %u", k, json_array_size(people),
             want->share_count);
        for (uint32_t i = 0; i < want->share_count; i++) {
            const json_t *c = json_array_get(people, i);
            const char *payee = json_string_value(json_object_get(c, "payee"));
            json_int_t ppb = json_integer_value(json_object_get(c, "ppb"));
            char text[ADDR_TEXT_BYTES];
            addr_format(text, want->share[i].payee);
            note(a, payee && strcmp(payee, text) == 0 && ppb == want->share[i].ppb,
                 "adapter %u: %.42s has %lld, recomputed %s with %u", k, payee ? payee : "nobody",
                 (long long)ppb, text, want->share[i].ppb);
        }
    }
}

static void check_signer(struct attribution_audit *a, const union record *rec)
{
    uint8_t ledger[20], signer[20], who[20], domain[32], digest[32];
    struct errtext why = ERRTEXT_INIT;
    struct json_reader in = {.obj = a->shown, .where = "the attribution", .err = &why};
    struct secp *secp = NULL;
    addr_need(ledger, &in, "ledger");
    addr_need(signer, &in, "signer");
    uint64_t chain = (uint64_t)json_need_int(&in, "chain_id", (struct json_range){0, INT64_MAX});
    enum status st = in.st ? in.st : secp_create(&secp, &why);
    if (!st) {
        canon_domain(domain, chain, ledger);
        canon_digest(digest, rec, domain);
        st = secp_recover(secp, who, rec->attribution.signature, digest, &why);
    }
    note(a, !st && memcmp(who, signer, 20) == 0, "the record is signed by the signer it names%s%s",
         st ? ": " : "", st ? why.text : "");
    secp_destroy(secp);
}

static void check_fields(struct attribution_audit *a, const struct record_attribution *r)
{
    uint8_t want[32], tail[TAIL_INFLUENCE_BYTES_MAX];
    size_t len = 0;
    keccak_256(want, GAIN_METHOD, strlen(GAIN_METHOD));
    note(a, memcmp(want, r->method_hash, 32) == 0, "methodHash is %s", GAIN_METHOD);
    gain_inputs_digest(want, &a->inputs.in, a->inputs.salt);
    note(a, memcmp(want, r->inputs_digest, 32) == 0, "inputsDigest commits to the logged inputs");
    gain_index_hash(want, &a->inputs.in);
    note(a, memcmp(want, r->index_hash, 32) == 0, "indexHash names the indexes used here");
    bool good = tail_influence_encode(tail, &len, &a->result.influence, NULL) == STATUS_OK;
    keccak_256(want, tail, len);
    note(a, good && memcmp(want, r->influence_hash, 32) == 0,
         "influenceHash is that of the recomputed gains and shares");
}

static void check_record(struct attribution_audit *a)
{
    const char *hex = json_string_value(json_object_get(a->shown, "record"));
    size_t len = hex && strlen(hex) > 2 ? strlen(hex) / 2 - 1 : 0;
    struct errtext why = ERRTEXT_INIT;
    union record rec;
    if (!hex) {
        cli_note(a->c, "a preview: no record commits to it");
        return;
    }
    uint8_t *body = mem_array(len, 1);
    bool good = len <= CANON_RECORD_BYTES_MAX && hex_decode(body, len, hex + 2) &&
                canon_decode(&rec, body, len, &why) == STATUS_OK &&
                rec.prefix.type == RECORD_ATTRIBUTION;
    note(a, good, "the record is an attribution, every field and tail hash right%s%s",
         why.text[0] ? ": " : "", why.text);
    if (good) {
        check_fields(a, &rec.attribution);
        check_signer(a, &rec);
    }
    mem_free(body);
}

/* ---- whole ---- */

static enum status load(struct attribution_audit *a, struct errtext *err)
{
    char path[256];
    const char *id = a->c->operand[0];
    if (strspn(id, "0123456789abcdefABCDEFx") != strlen(id) || strlen(id) > 80)
        return err_set(err, STATUS_INVALID, "found '%.60s', expected an answer's id in hex", id);
    enum status st =
        http_open(&a->http, a->c->value[OPT_SERVER], a->c->value[OPT_API_KEY_FILE], "server", err);
    snprintf(path, sizeof(path), "/v1/attribution/%s", id);
    if (!st)
        st = http_call(a->http, "GET", path, NULL, &a->shown, err);
    snprintf(path, sizeof(path), "/v1/attribution/%s/inputs", id);
    if (!st)
        st = http_call(a->http, "GET", path, NULL, &a->logged, err);
    for (uint32_t i = 1; !st && i < a->c->operand_count; i++)
        st = open_index(a, a->c->operand[i], err);
    return st ? st : attribution_inputs_read(&a->inputs, a->logged, find_or_fetch, a, err);
}

static int print(struct attribution_audit *a)
{
    struct buf out;
    buf_init(&out, 2 * LINES_BYTES_MAX);
    if (cli_has(a->c, OPT_JSON))
        buf_printf(&out, "{\"ok\":%s,\"checks\":%u,\"differences\":[%s]}",
                   a->wrong ? "false" : "true", a->checks, a->lines.data ? a->lines.data : "");
    else
        buf_printf(&out, "%s%s", a->lines.data ? a->lines.data : "",
                   a->wrong ? "NOT RIGHT" : "every share follows from the logged inputs");
    int code = cli_print(&out, a->wrong ? CLI_WRONG : CLI_FINE);
    buf_fini(&out);
    return code;
}

static void audit_free(struct attribution_audit *a)
{
    attribution_inputs_fini(&a->inputs);
    for (uint32_t i = 0; i < a->index_count; i++)
        events_release(a->index[i]);
    gain_result_fini(&a->result);
    http_close(a->http);
    json_decref(a->shown);
    json_decref(a->logged);
    buf_fini(&a->lines);
    mem_free(a);
}

int verb_audit_attribution(struct cli *c)
{
    struct attribution_audit *a = mem_alloc(sizeof(*a));
    struct errtext err = ERRTEXT_INIT;
    a->c = c;
    buf_init(&a->lines, LINES_BYTES_MAX);
    enum status st = load(a, &err);
    if (!st)
        st = gain_compute(&a->result, &a->inputs.in, &err);
    if (!st) {
        check_shown(a);
        check_record(a);
    }
    int code = st ? cli_fail(c, st, &err, http_hint(st)) : print(a);
    audit_free(a);
    return code;
}
