/* residual audit attribution: every number of an attribution from the integers that the server
 * logged and the index files. The server is believed in nothing that the record commits to: its
 * digests open the inputs and name the indexes, and the shares follow (SPEC 10). */
#include "chain_client/canon.h"
#include "chain_client/cli/http.h"
#include "chain_client/eth/addr.h"
#include "chain_client/eth/keccak.h"
#include "chain_client/eth/secp.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/json.h"
#include "server/base/mem.h"
#include "server/influence/gain.h"

#include <inttypes.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define INDEXES_GIVEN_MAX 16
#define CHOICES_MAX       4096
#define LINES_BYTES_MAX   (1u << 20)

struct attribution_audit {
    struct cli *c;
    struct http *http;
    json_t *shown, *logged;
    struct buf lines; /* one a check */
    uint32_t checks, wrong;
    struct events *index[INDEXES_GIVEN_MAX];
    uint32_t index_count;
    uint8_t salt[32];
    struct gain_in in;
    struct gain_choice *choice; /* owned arrays behind const pointers */
    uint32_t *prior[TAIL_ADAPTERS_MAX];
    uint64_t *spans[TAIL_ADAPTERS_MAX];
    int8_t **key[TAIL_ADAPTERS_MAX];
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

static enum status fetch_index(struct attribution_audit *a, const char *hex, struct errtext *err)
{
    char path[128], temporary[] = "/tmp/residual-index-XXXXXX";
    const char *data;
    size_t len;
    snprintf(path, sizeof(path), "/v1/indexes/%.70s", hex);
    enum status st = http_call_bytes(a->http, path, &data, &len, err);
    if (st)
        return st;
    int fd = mkstemp(temporary);
    if (fd < 0)
        return err_set(err, STATUS_IO, "%s: cannot be created", temporary);
    bool wrote = write(fd, data, len) == (ssize_t)len;
    close(fd);
    st = wrote ? open_index(a, temporary, err)
               : err_set(err, STATUS_IO, "%s: cannot be written", temporary);
    (void)unlink(temporary);
    return st;
}

/* ---- the logged inputs ---- */

static enum status malformed(struct errtext *err, const char *what)
{
    return err_set(err, STATUS_CORRUPT, "the logged inputs: %s is not as SPEC 10 has it", what);
}

/* n NULL: whatever there are. */
static int32_t *read_ints(const json_t *list, uint32_t *n, bool *bad)
{
    size_t count = json_array_size(list);
    if (!json_is_array(list) || count > EVENTS_QUERY_MAX || (*n != UINT32_MAX && count != *n)) {
        *bad = true;
        return NULL;
    }
    *n = (uint32_t)count;
    int32_t *out = mem_array(count, sizeof(*out));
    for (size_t i = 0; i < count; i++) {
        const json_t *item = json_array_get(list, i);
        json_int_t v = json_integer_value(item);
        *bad |= !json_is_integer(item) || v < INT32_MIN || v > INT32_MAX;
        out[i] = (int32_t)v;
    }
    return out;
}

static void read_choice(struct attribution_audit *a, struct gain_choice *c, const json_t *from,
                        bool *bad)
{
    const json_t *alone = json_object_get(from, "alone"), *less = json_object_get(from, "without");
    c->n = UINT32_MAX;
    c->target = read_ints(json_object_get(from, "target"), &c->n, bad);
    c->set = read_ints(json_object_get(from, "set"), &c->n, bad);
    c->row[0] = read_ints(json_object_get(from, "base"), &c->n, bad);
    int32_t *wide = read_ints(json_object_get(from, "in_prompt"), &c->n, bad);
    uint8_t *in_prompt = mem_array(wide ? c->n : 0, 1);
    for (uint32_t t = 0; wide && t < c->n; t++) {
        *bad |= wide[t] != 0 && wide[t] != 1;
        in_prompt[t] = (uint8_t)wide[t];
    }
    c->in_prompt = in_prompt;
    mem_free(wide);
    uint32_t rows = gain_row_count(a->in.adapter_count), end = MIN(rows, 1 + a->in.adapter_count);
    *bad |= json_array_size(alone) != end - 1 || json_array_size(less) != rows - end;
    for (uint32_t r = 1; r < rows && !*bad; r++)
        c->row[r] = read_ints(
            r < end ? json_array_get(alone, r - 1) : json_array_get(less, r - end), &c->n, bad);
}

static enum status read_choices(struct attribution_audit *a, struct errtext *err)
{
    const json_t *list = json_object_get(a->logged, "choices");
    size_t n = json_array_size(list);
    bool bad = n == 0 || n > CHOICES_MAX;
    a->choice = mem_array(bad ? 0 : n, sizeof(*a->choice));
    a->in.choice = a->choice;
    for (size_t i = 0; i < n && !bad; i++) {
        a->in.choice_count++;
        read_choice(a, &a->choice[i], json_array_get(list, i), &bad);
    }
    return bad ? malformed(err, "choices") : STATUS_OK;
}

static enum status read_keys(struct attribution_audit *a, uint32_t k, const json_t *list,
                             struct errtext *err)
{
    if (json_array_size(list) != a->in.choice_count)
        return malformed(err, "keys");
    a->key[k] = mem_array(a->in.choice_count, sizeof(*a->key[k]));
    for (uint32_t i = 0; i < a->in.choice_count; i++) {
        size_t want = (size_t)a->in.choice[i].n * EVENTS_KEY, got = 0;
        const char *text = json_string_value(json_array_get(list, i));
        a->key[k][i] = mem_array(want, 1);
        if (!text ||
            sodium_base642bin((unsigned char *)a->key[k][i], want, text, strlen(text), NULL, &got,
                              NULL, sodium_base64_VARIANT_ORIGINAL) ||
            got != want)
            return malformed(err, "a key");
    }
    a->in.adapter[k].key = (const int8_t *const *)a->key[k];
    return STATUS_OK;
}

static enum status read_spans(struct attribution_audit *a, uint32_t k, const json_t *list,
                              struct errtext *err)
{
    uint32_t owners = events_head(a->in.adapter[k].events)->n_owners;
    const json_t *entry;
    size_t i;
    a->spans[k] = mem_array(owners, sizeof(*a->spans[k]));
    a->in.adapter[k].spans = a->spans[k];
    json_array_foreach(list, i, entry)
    {
        json_int_t owner = json_integer_value(json_array_get(entry, 0));
        const char *text = json_string_value(json_array_get(entry, 1));
        u128 weight = 0;
        if (owner < 0 || owner >= owners || !text || !u128_parse(&weight, text) ||
            weight > UINT64_MAX)
            return malformed(err, "spans");
        a->spans[k][owner] = (uint64_t)weight;
    }
    return STATUS_OK;
}

static enum status read_adapter(struct attribution_audit *a, uint32_t k, const json_t *from,
                                struct errtext *err)
{
    struct gain_adapter *to = &a->in.adapter[k];
    const char *hex = json_string_value(json_object_get(from, "root"));
    uint8_t root[32];
    if (!hex)
        return json_is_null(json_object_get(from, "root")) ? STATUS_OK : malformed(err, "root");
    if (strncmp(hex, "0x", 2) != 0 || !hex_decode(root, 32, hex + 2))
        return malformed(err, "root");
    enum status st = find_index(a, root) ? STATUS_OK : fetch_index(a, hex, err);
    to->events = find_index(a, root);
    if (!st && !to->events)
        return err_set(err, STATUS_CORRUPT, "the index that the server gave is not %s", hex);
    if (st)
        return st;
    uint32_t owners = events_head(to->events)->n_owners;
    uint32_t *documents = mem_array(owners, sizeof(*documents));
    a->prior[k] = mem_array(owners, sizeof(*a->prior[k]));
    to->prior_ppb = a->prior[k];
    for (uint32_t i = 0; i < owners; i++)
        documents[i] = events_owner(to->events, i)->documents;
    st = shares_prior(a->prior[k], documents, owners);
    mem_free(documents);
    if (!st)
        st = read_keys(a, k, json_object_get(from, "keys"), err);
    return st ? st : read_spans(a, k, json_object_get(from, "spans"), err);
}

static enum status read_inputs(struct attribution_audit *a, struct errtext *err)
{
    const json_t *set = json_object_get(a->logged, "set");
    const json_t *adapters = json_object_get(a->logged, "adapters");
    struct json_reader in = {.obj = a->logged, .where = "the logged inputs", .err = err};
    const char *method = json_read_string(&in, "method");
    json_need_hex(&in, "salt", a->salt, 32);
    if (in.st)
        return in.st;
    if (!method || strcmp(method, GAIN_METHOD) != 0)
        return err_set(err, STATUS_UNSUPPORTED, "method %.60s: this program knows %s",
                       method ? method : "", GAIN_METHOD);
    a->in.adapter_count = (uint32_t)json_array_size(set);
    if (a->in.adapter_count == 0 || a->in.adapter_count > TAIL_ADAPTERS_MAX ||
        json_array_size(adapters) != a->in.adapter_count)
        return malformed(err, "set");
    for (uint32_t k = 0; k < a->in.adapter_count; k++)
        a->in.adapter[k].weight_q16 =
            (int32_t)json_integer_value(json_object_get(json_array_get(set, k), "weight"));
    enum status st = read_choices(a, err);
    for (uint32_t k = 0; !st && k < a->in.adapter_count; k++)
        st = read_adapter(a, k, json_array_get(adapters, k), err);
    return st;
}

/* ---- checks ---- */

static void check_shown(struct attribution_audit *a)
{
    const json_t *list = json_object_get(a->shown, "adapters");
    for (uint32_t k = 0; k < a->in.adapter_count; k++) {
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
    gain_inputs_digest(want, &a->in, a->salt);
    note(a, memcmp(want, r->inputs_digest, 32) == 0, "inputsDigest commits to the logged inputs");
    gain_index_hash(want, &a->in);
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
    return st ? st : read_inputs(a, err);
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
    for (uint32_t i = 0; i < a->in.choice_count; i++) {
        mem_free((void *)a->choice[i].target);
        mem_free((void *)a->choice[i].set);
        mem_free((void *)a->choice[i].in_prompt);
        for (uint32_t r = 0; r <= TAIL_ADAPTERS_MAX; r++)
            mem_free((void *)a->choice[i].row[r]);
    }
    for (uint32_t k = 0; k < TAIL_ADAPTERS_MAX; k++) {
        for (uint32_t i = 0; a->key[k] && i < a->in.choice_count; i++)
            mem_free(a->key[k][i]);
        mem_free(a->key[k]);
        mem_free(a->prior[k]);
        mem_free(a->spans[k]);
    }
    for (uint32_t i = 0; i < a->index_count; i++)
        events_release(a->index[i]);
    gain_result_fini(&a->result);
    http_close(a->http);
    json_decref(a->shown);
    json_decref(a->logged);
    buf_fini(&a->lines);
    mem_free(a->choice);
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
        st = gain_compute(&a->result, &a->in, &err);
    if (!st) {
        check_shown(a);
        check_record(a);
    }
    int code = st ? cli_fail(c, st, &err, http_hint(st)) : print(a);
    audit_free(a);
    return code;
}
