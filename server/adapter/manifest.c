#include "server/adapter/manifest.h"
#include "chain_client/eth/addr.h"
#include "chain_client/eth/eip712.h"
#include "chain_client/eth/keccak.h"
#include "chain_client/eth/secp.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#define PUBLISH_TYPE                                                                               \
    "Publish(bytes32 adapterId,bytes32 modelId,bytes32 datanetId,address owner,uint128 "           \
    "priceIn,uint128 priceOut,bytes32 splitHash,"                                                  \
    "uint64 version)"

/* ---- fields ---- */

static enum status field_error(struct errtext *err, const char *field, const char *expected)
{
    return err_param(err, STATUS_INVALID, "manifest", "manifest.%s: expected %s", field, expected);
}

static enum status get_hex(uint8_t *out, size_t n, const json_t *json, const char *field,
                           struct errtext *err)
{
    const char *text = json_string_value(json_object_get(json, field));
    char expected[48];
    snprintf(expected, sizeof(expected), "0x and %zu hex digits", 2 * n);
    return text && hex_decode(out, n, text) ? STATUS_OK : field_error(err, field, expected);
}

static enum status get_address(uint8_t out[20], const json_t *json, const char *field,
                               struct errtext *err)
{
    const char *text = json_string_value(json_object_get(json, field));
    return text && addr_parse(out, text, NULL) == STATUS_OK
               ? STATUS_OK
               : field_error(err, field, "a chain address (0x, 40 digits, EIP-55)");
}

static enum status get_u64(uint64_t *out, const json_t *json, const char *field,
                           struct errtext *err)
{
    const json_t *v = json_object_get(json, field);
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return field_error(err, field, "a whole number");
    *out = (uint64_t)json_integer_value(v);
    return STATUS_OK;
}

static enum status get_prices(struct tariff *out, const json_t *prices, struct errtext *err)
{
    const char *in = json_string_value(json_object_get(prices, "in")),
               *o = json_string_value(json_object_get(prices, "out"));
    if (!in || !o || !u128_parse(&out->in, in) || !u128_parse(&out->out, o) || out->in >> 80 ||
        out->out >> 80)
        return field_error(err, "prices",
                           "{\"in\", \"out\"}: decimal strings of base units below 2^80");
    return STATUS_OK;
}

static uint8_t role_code(const char *name)
{
    if (!name)
        return 0;
    if (!strcmp(name, "author") || !strcmp(name, "owner"))
        return 1;
    return !strcmp(name, "data") ? 2 : !strcmp(name, "other") ? 3 : 0;
}

static int compare_split(const void *a, const void *b)
{
    const struct split_entry *x = a, *y = b;
    if (x->role != y->role)
        return x->role < y->role ? -1 : 1;
    return memcmp(x->payee, y->payee, 20);
}

static enum status get_split(struct manifest *m, const json_t *split, struct errtext *err)
{
    size_t n = json_array_size(split);
    uint32_t sum = 0;
    if (!json_is_array(split) || n == 0 || n > CATALOG_SPLIT_MAX)
        return field_error(err, "split", "1 to 64 entries {payee, role, bps}");
    for (size_t i = 0; i < n; i++) {
        const json_t *e = json_array_get(split, i);
        struct split_entry *s = &m->split[i];
        uint64_t bps = 0;
        enum status st = get_address(s->payee, e, "payee", err);
        if (!st)
            st = get_u64(&bps, e, "bps", err);
        s->role = role_code(json_string_value(json_object_get(e, "role")));
        if (!st && (!s->role || bps == 0 || bps > 10000))
            st = field_error(err, "split", "role author, data or other, and bps 1 to 10000");
        if (st)
            return st;
        s->bps = (uint16_t)bps;
        sum += s->bps;
    }
    if (sum != 10000)
        return err_param(err, STATUS_INVALID, "manifest",
                         "manifest.split: the bps sum to %u, expected 10000", sum);
    m->split_count = (uint32_t)n;
    qsort(m->split, n, sizeof(m->split[0]), compare_split);
    for (size_t i = 1; i < n; i++) {
        if (compare_split(&m->split[i - 1], &m->split[i]) == 0)
            return field_error(err, "split", "each payee once per role");
    }
    return STATUS_OK;
}

/* ---- documents ---- */

static enum status count_document(struct manifest *m, const json_t *doc, struct errtext *err)
{
    uint8_t owner[20];
    enum status st = get_address(owner, doc, "owner", err);
    if (st)
        return st;
    uint32_t at = 0;
    while (at < m->contributor_count && memcmp(m->contributor[at].payee, owner, 20) < 0)
        at++;
    if (at < m->contributor_count && memcmp(m->contributor[at].payee, owner, 20) == 0) {
        m->contributor[at].document_count++;
        return STATUS_OK;
    }
    if (m->contributor_count == CATALOG_CONTRIB_MAX)
        return field_error(err, "documents", "at most 64 distinct owners");
    memmove(m->contributor + at + 1, m->contributor + at,
            (m->contributor_count - at) * sizeof(m->contributor[0]));
    memcpy(m->contributor[at].payee, owner, 20);
    m->contributor[at].document_count = 1;
    m->contributor_count++;
    return STATUS_OK;
}

static enum status count_documents(struct manifest *m, const json_t *documents, struct errtext *err)
{
    size_t i;
    const json_t *doc;
    if (!json_is_array(documents) || json_array_size(documents) == 0 ||
        json_array_size(documents) > MANIFEST_DOCUMENTS_MAX)
        return field_error(err, "documents",
                           "1 to 1000000 entries {docId, owner, licence, bytes, digest}");
    json_array_foreach(documents, i, doc)
    {
        enum status st = count_document(m, doc, err);
        if (st)
            return st;
    }
    return STATUS_OK;
}

static int compare_52(const void *a, const void *b)
{
    return memcmp(a, b, 52);
}

enum status manifest_documents_root(uint8_t out[32], const json_t *documents, struct errtext *err)
{
    size_t n = json_array_size(documents), i;
    const json_t *doc;
    enum status st = STATUS_OK;
    uint8_t(*row)[52] = mem_try_array(n ? n : 1, sizeof(*row));
    if (!row)
        return err_set(err, STATUS_NO_MEMORY, "manifest: %zu documents", n);
    json_array_foreach(documents, i, doc)
    {
        if (!st)
            st = get_hex(row[i], 32, doc, "digest", err);
        if (!st)
            st = get_address(row[i] + 32, doc, "owner", err);
    }
    qsort(row, n, sizeof(*row), compare_52);
    if (!st)
        keccak_256(out, row, n * sizeof(*row));
    mem_free(row);
    return st;
}

/* ---- whole manifests ---- */

void manifest_digest(uint8_t out[32], const struct manifest *m)
{
    struct eip712_hasher h;
    struct keccak k;
    uint8_t word[32] = {0}, split_hash[32], domain[32], body[32];
    keccak_init(&k); /* keccak(abi.encode(SplitEntry[])): offset, count, then three words each */
    word[31] = 0x20;
    keccak_update(&k, word, 32);
    be_put(word, m->split_count, 32);
    keccak_update(&k, word, 32);
    for (uint32_t i = 0; i < m->split_count; i++) {
        memset(word, 0, 32);
        memcpy(word + 12, m->split[i].payee, 20);
        keccak_update(&k, word, 32);
        be_put(word, m->split[i].role, 32);
        keccak_update(&k, word, 32);
        be_put(word, m->split[i].bps, 32);
        keccak_update(&k, word, 32);
    }
    keccak_final(&k, split_hash);
    eip712_begin(&h, PUBLISH_TYPE);
    eip712_bytes32(&h, m->adapter_id);
    eip712_bytes32(&h, m->model_id);
    eip712_bytes32(&h, m->datanet_id);
    eip712_address(&h, m->owner);
    eip712_uint(&h, m->tariff.in);
    eip712_uint(&h, m->tariff.out);
    eip712_bytes32(&h, split_hash);
    eip712_uint(&h, m->version);
    eip712_end(&h, body);
    eip712_domain(domain, "residual", "1", m->chain_id, m->registry);
    eip712_digest(out, domain, body);
}

static enum status check_signatures(const struct manifest *m, const json_t *json,
                                    struct errtext *err)
{
    uint8_t digest[32], key[32], publisher[64], owner[65];
    struct secp *secp;
    manifest_digest(digest, m);
    enum status st = get_hex(key, 32, json, "publisherKey", err);
    if (!st)
        st = get_hex(publisher, 64, json, "publisherSignature", err);
    if (!st)
        st = get_hex(owner, 65, json, "ownerSignature", err);
    if (!st && crypto_sign_verify_detached(publisher, digest, 32, key) != 0)
        st = err_param(err, STATUS_DENIED, "manifest",
                       "manifest.publisherSignature: does not match publisherKey and the manifest");
    if (!st)
        st = secp_create(&secp, err);
    if (st)
        return st;
    st = secp_verify(secp, owner, digest, m->owner, err);
    if (st)
        err_prefix(err, "manifest.ownerSignature");
    secp_destroy(secp);
    return st;
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
        return err_param(err, STATUS_INVALID, "manifest", "manifest: expected a JSON object");
    enum status st = get_u64(&out->version, json, "version", err);
    if (!st)
        st = get_hex(out->adapter_id, 32, json, "adapterId", err);
    if (!st)
        st = get_hex(out->model_id, 32, json, "modelId", err);
    if (!st)
        st = get_hex(out->datanet_id, 32, json, "datanetId", err);
    if (!st)
        st = get_address(out->owner, json, "owner", err);
    if (!st)
        st = get_u64(&out->chain_id, json, "chainId", err);
    if (!st)
        st = get_hex(out->registry, 20, json, "registry", err);
    if (!st)
        st = get_prices(&out->tariff, json_object_get(json, "prices"), err);
    if (!st)
        st = get_split(out, json_object_get(json, "split"), err);
    if (!st)
        st = check_expected(out, expect, err);
    if (!st && !sodium_is_zero(out->datanet_id, 32))
        st = count_documents(out, json_object_get(json, "documents"), err);
    return st ? st : check_signatures(out, json, err);
}

enum status manifest_parse_local(struct manifest *out, const json_t *publish, struct errtext *err)
{
    memset(out, 0, sizeof(*out));
    const json_t *prices = json_object_get(publish, "prices");
    enum status st = get_u64(&out->version, publish, "version", err);
    if (!st)
        st = get_address(out->owner, publish, "owner", err);
    if (!st)
        st = get_prices(&out->tariff,
                        prices ? prices : json_object_get(publish, "pricesPer1000Tokens"), err);
    if (!st)
        st = get_split(out, json_object_get(publish, "split"), err);
    return st;
}

enum status manifest_parse_datanet(struct manifest *m, const json_t *datanet, struct errtext *err)
{
    const json_t *documents = json_object_get(datanet, "documents");
    enum status st = count_documents(m, documents, err);
    return st ? st : manifest_documents_root(m->datanet_id, documents, err);
}
