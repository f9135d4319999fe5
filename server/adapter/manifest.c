/* Two forms of one thing: the object that both keys signed, as an upload carries it, and the
 * publish.json of a folder, which nobody signed yet. Every field is checked before a signature is,
 * so that an error names the field; amounts and ids are texts, since JSON's numbers end at 2^53. */
#include "server/adapter/manifest.h"
#include "chain_client/eth/addr.h"
#include "chain_client/eth/secp.h"
#include "chain_client/manifest.h"
#include "server/base/check.h"
#include "server/base/json.h"
#include "server/base/mem.h"

#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#define OWNER_SIGNATURE_MAX 4096

/* ---- fields ---- */

static const struct json_range whole = {0, INT64_MAX};

static struct json_reader reader(const json_t *json, struct errtext *err)
{
    return (struct json_reader){.obj = json, .err = err, .at = "manifest."};
}

static u128 get_price(struct json_reader *prices, const char *key)
{
    const char *text = json_need_string(prices, key);
    u128 v = 0;
    if (!u128_parse(&v, text) || v >> 80)
        json_fail(prices, STATUS_INVALID, key,
                  "found \"%.60s\", expected a decimal string of base units below 2^80", text);
    return v;
}

static void get_prices(struct tariff *out, struct json_reader *r, const char *key)
{
    struct json_reader prices = json_enter(r, key);
    out->in = get_price(&prices, "in");
    out->out = get_price(&prices, "out");
}

static uint8_t role_code(const char *name)
{
    if (!strcmp(name, "author") || !strcmp(name, "owner"))
        return 1;
    return !strcmp(name, "data") ? 2 : !strcmp(name, "other") ? 3 : 0;
}

static int compare_split(const void *a, const void *b)
{
    const struct reward_entry *x = a, *y = b;
    if (x->role != y->role)
        return x->role < y->role ? -1 : 1;
    return memcmp(x->payee, y->payee, 20);
}

static void get_split(struct manifest *m, struct json_reader *r)
{
    const json_t *split = json_need_list(r, "split", REWARD_ENTRIES_MAX);
    size_t n = json_array_size(split);
    uint32_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        struct json_reader e = json_enter_item(r, "split", i, json_array_get(split, i));
        struct reward_entry *s = &m->split[i];
        const char *role = json_need_string(&e, "role");
        addr_need(s->payee, &e, "payee");
        s->bps = (uint16_t)json_need_int(&e, "bps", (struct json_range){1, 10000});
        s->role = role_code(role);
        if (!s->role)
            json_fail(&e, STATUS_INVALID, "role",
                      "found \"%.40s\", expected the role author, data or other", role);
        sum += s->bps;
    }
    if (sum != 10000)
        json_fail(r, STATUS_INVALID, "split", "the bps sum to %u, expected 10000", sum);
    if (r->st)
        return;
    m->split_count = (uint32_t)n;
    qsort(m->split, n, sizeof(m->split[0]), compare_split);
    for (size_t i = 1; i < n; i++) {
        if (compare_split(&m->split[i - 1], &m->split[i]) == 0)
            json_fail(r, STATUS_INVALID, "split", "expected each payee once per role");
    }
}

static int compare_parent(const void *a, const void *b)
{
    const struct reward_parent *x = a, *y = b;
    return memcmp(x->adapter_id, y->adapter_id, sizeof(x->adapter_id));
}

static void get_parents(struct manifest *m, struct json_reader *r)
{
    const json_t *list = json_need_list(r, "parents", REWARD_PARENTS_MAX);
    size_t n = json_array_size(list);
    uint32_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        struct json_reader e = json_enter_item(r, "parents", i, json_array_get(list, i));
        json_need_hex(&e, "adapterId", m->parent[i].adapter_id, 32);
        m->parent[i].bps =
            (uint16_t)json_need_int(&e, "bps", (struct json_range){1, MANIFEST_PARENTS_BPS_MAX});
        sum += m->parent[i].bps;
    }
    if (sum > MANIFEST_PARENTS_BPS_MAX)
        json_fail(r, STATUS_INVALID, "parents", "the bps sum to %u, expected at most %d", sum,
                  MANIFEST_PARENTS_BPS_MAX);
    if (r->st)
        return;
    m->parent_count = (uint32_t)n;
    qsort(m->parent, n, sizeof(m->parent[0]), compare_parent);
    for (size_t i = 0; i < n; i++) {
        if (i && compare_parent(&m->parent[i - 1], &m->parent[i]) == 0)
            json_fail(r, STATUS_INVALID, "parents", "expected each parent once");
        if (memcmp(m->parent[i].adapter_id, m->adapter_id, sizeof(m->adapter_id)) == 0)
            json_fail(r, STATUS_INVALID, "parents", "the adapter names itself as its parent");
    }
}

/* ---- whole manifests ---- */

void manifest_digest(uint8_t out[32], const struct manifest *m)
{
    struct manifest_publish p = {.price_in = m->tariff.in,
                                 .price_out = m->tariff.out,
                                 .split = {m->split, m->split_count},
                                 .datanet_version = m->datanet_version,
                                 .parent = m->parent,
                                 .parent_count = m->parent_count,
                                 .version = m->version};
    memcpy(p.adapter_id, m->adapter_id, 32);
    memcpy(p.model_id, m->model_id, 32);
    memcpy(p.datanet_id, m->datanet_id, 32);
    memcpy(p.owner, m->owner, 20);
    manifest_publish_digest(out, &p, m->chain_id, m->registry);
}

/* By the owner's key, or by the contract that the owner is. */
static enum status check_owner(const struct manifest *m, const struct manifest_expect *x,
                               const uint8_t digest[32], struct json_reader *r)
{
    uint8_t signature[OWNER_SIGNATURE_MAX];
    const char *hex = json_need_string(r, "ownerSignature");
    size_t len = (strlen(hex) - (strncmp(hex, "0x", 2) ? 0 : 2)) / 2;
    struct secp *secp;
    bool yes = false;
    if (!r->st && (!len || len > sizeof(signature) || !hex_decode(signature, len, hex) ||
                   (!x->ask && len != SECP_SIGNATURE_BYTES)))
        json_fail(r, STATUS_INVALID, "ownerSignature", "expected a signature as hex, 65 bytes");
    enum status st = r->st ? r->st : secp_create(&secp, r->err);
    if (st)
        return st;
    st = len == SECP_SIGNATURE_BYTES
             ? secp_verify(secp, signature, digest, m->owner, r->err)
             : err_set(r->err, STATUS_DENIED, "found %zu bytes, a key's signature has 65", len);
    secp_destroy(secp);
    if (st && x->ask && !x->ask(x->ask_arg, m->owner, digest, signature, len, &yes, NULL) && yes) {
        err_clear(r->err);
        return STATUS_OK;
    }
    if (st)
        err_prefix(r->err, "manifest.ownerSignature");
    return st;
}

static enum status check_signatures(const struct manifest *m, const struct manifest_expect *x,
                                    struct json_reader *r)
{
    uint8_t digest[32], key[32], publisher[64];
    manifest_digest(digest, m);
    json_need_hex(r, "publisherKey", key, 32);
    json_need_hex(r, "publisherSignature", publisher, 64);
    if (!r->st && crypto_sign_verify_detached(publisher, digest, 32, key) != 0)
        json_fail(r, STATUS_DENIED, "publisherSignature",
                  "does not match publisherKey and the manifest");
    return check_owner(m, x, digest, r);
}

static enum status check_expected(const struct manifest *m, const struct manifest_expect *x,
                                  struct errtext *err)
{
    char want[65];
    if (memcmp(m->adapter_id, x->adapter_id, 32) != 0) {
        hex_encode(want, x->adapter_id, 32);
        return err_param(err, STATUS_INVALID, "manifest",
                         "manifest.adapterId: the uploaded files are adapter 0x%s", want);
    }
    if (memcmp(m->model_id, x->model_id, 32) != 0) {
        hex_encode(want, x->model_id, 32);
        return err_param(err, STATUS_INVALID, "manifest",
                         "manifest.modelId: this server's base is 0x%s", want);
    }
    if (m->chain_id != x->chain_id || memcmp(m->registry, x->registry, 20) != 0)
        return err_param(
            err, STATUS_INVALID, "manifest",
            "manifest.chainId, registry: found chain %llu, this server settles on chain %llu",
            (unsigned long long)m->chain_id, (unsigned long long)x->chain_id);
    return STATUS_OK;
}

enum status manifest_parse_signed(struct manifest *out, const json_t *json,
                                  const struct manifest_expect *expect, struct errtext *err)
{
    memset(out, 0, sizeof(*out));
    if (!json_is_object(json))
        return err_param(err, STATUS_INVALID, "manifest", "manifest: found %s, expected an object",
                         json_shown(json));
    struct json_reader r = reader(json, err);
    out->version = (uint64_t)json_need_int(&r, "version", whole);
    json_need_hex(&r, "adapterId", out->adapter_id, 32);
    json_need_hex(&r, "modelId", out->model_id, 32);
    json_need_hex(&r, "datanetId", out->datanet_id, 32);
    out->datanet_version = (uint64_t)json_need_int(&r, "datanetVersion", whole);
    addr_need(out->owner, &r, "owner");
    out->chain_id = (uint64_t)json_need_int(&r, "chainId", whole);
    json_need_hex(&r, "registry", out->registry, 20);
    get_prices(&out->tariff, &r, "prices");
    get_split(out, &r);
    get_parents(out, &r);
    if (!r.st && sodium_is_zero(out->datanet_id, 32) != (out->datanet_version == 0))
        json_fail(&r, STATUS_INVALID, "datanetVersion",
                  "expected 0 without a datanet, 1 or more with one");
    if (!r.st)
        r.st = check_expected(out, expect, err);
    if (!r.st && !sodium_is_zero(out->datanet_id, 32))
        documents_need(&out->documents, &r, out->datanet_version);
    enum status st = r.st ? r.st : check_signatures(out, expect, &r);
    if (st)
        manifest_fini(out);
    return st;
}

enum status manifest_parse_local(struct manifest *out, const json_t *publish, struct errtext *err)
{
    memset(out, 0, sizeof(*out));
    struct json_reader r = reader(publish, err);
    out->version = (uint64_t)json_need_int(&r, "version", whole);
    addr_need(out->owner, &r, "owner");
    get_prices(&out->tariff, &r, json_has(&r, "prices") ? "prices" : "pricesPer1000Tokens");
    get_split(out, &r);
    if (json_has(&r, "parents"))
        get_parents(out, &r);
    return r.st;
}

enum status manifest_parse_datanet(struct manifest *m, const json_t *datanet, struct errtext *err)
{
    struct json_reader r = reader(datanet, err);
    if (json_has(&r, "datanetId"))
        json_need_hex(&r, "datanetId", m->datanet_id, 32);
    uint64_t version = (uint64_t)json_read_int(&r, "version", (struct json_range){1, INT64_MAX}, 1);
    documents_need(&m->documents, &r, version);
    return r.st;
}

void manifest_fini(struct manifest *m)
{
    documents_free(m->documents);
    m->documents = NULL;
}
