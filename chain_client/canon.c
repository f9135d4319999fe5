/* Records from one table. A field is written here once, with its offset and width; encode, decode,
 * the EIP-712 struct hash and the type string's test all walk the table, so no two of them can
 * disagree. Solidity and JavaScript check the same offsets through tests/data/fields.json.
 *
 * The digest covers the fixed fields only. Tails are bound by the Keccak-256 fields, which decode
 * and encode both recompute: a record whose tail was exchanged does not read.
 *
 * Struct integers are read through memcpy at their natural width (static_assert below). */
#include "chain_client/canon.h"
#include "chain_client/eth/eip712.h"
#include "chain_client/eth/keccak.h"
#include "chain_client/fee.h"
#include "server/base/check.h"

#include <pthread.h>
#include <string.h>

#define INF(name, at, width, member, unit)                                                         \
    {                                                                                              \
        name, at, width, unit, offsetof(struct record_inference, member)                           \
    }
#define ATT(name, at, width, member, unit)                                                         \
    {                                                                                              \
        name, at, width, unit, offsetof(struct record_attribution, member)                         \
    }
#define VOI(name, at, width, member, unit)                                                         \
    {                                                                                              \
        name, at, width, unit, offsetof(struct record_void, member)                                \
    }

static const struct canon_field inference_fields[] = {
    INF("spec", 0, 1, prefix.spec, "version"),
    INF("type", 1, 1, prefix.type, "record type"),
    INF("lane", 2, 4, prefix.lane, "lane id"),
    INF("seq", 6, 8, prefix.seq, "number in the lane, from 1"),
    INF("requestId", 14, 32, request_id, "random"),
    INF("appCommit", 46, 32, app_commit, "keccak"),
    INF("modelId", 78, 32, model_id, "BLAKE2b"),
    INF("adapterSetHash", 110, 32, adapter_set_hash, "keccak"),
    INF("tokensIn", 142, 4, tokens_in, "tokens"),
    INF("tokensOut", 146, 4, tokens_out, "tokens"),
    INF("fee", 150, 16, fee, "base units"),
    INF("tariffHash", 166, 32, tariff_hash, "keccak"),
    INF("paramsHash", 198, 32, params_hash, "keccak"),
    INF("engineId", 230, 32, engine_id, "BLAKE2b"),
    INF("startMs", 262, 8, start_ms, "ms of Unix time"),
    INF("endMs", 270, 8, end_ms, "ms of Unix time"),
    INF("status", 278, 1, status, "1 complete, 2 client left, 3 failed"),
    INF("promptCommit", 279, 32, prompt_commit, "keccak"),
    INF("outputCommit", 311, 32, output_commit, "keccak"),
};
static const struct canon_tail inference_tails[] = {
    {"set", offsetof(struct record_inference, set),
     offsetof(struct record_inference, adapter_set_hash), TAIL_SET_BYTES_MAX},
    {"tariff", offsetof(struct record_inference, tariff),
     offsetof(struct record_inference, tariff_hash), TAIL_TARIFF_BYTES_MAX},
    {"params", offsetof(struct record_inference, params),
     offsetof(struct record_inference, params_hash), TAIL_PARAMS_BYTES},
};

static const struct canon_field attribution_fields[] = {
    ATT("spec", 0, 1, prefix.spec, "version"),
    ATT("type", 1, 1, prefix.type, "record type"),
    ATT("lane", 2, 4, prefix.lane, "lane id"),
    ATT("seq", 6, 8, prefix.seq, "number in the lane, from 1"),
    ATT("infSeq", 14, 8, inf_seq, "number in the lane"),
    ATT("infDigest", 22, 32, inf_digest, "EIP-712"),
    ATT("methodHash", 54, 32, method_hash, "keccak"),
    ATT("indexHash", 86, 32, index_hash, "keccak"),
    ATT("inputsDigest", 118, 32, inputs_digest, "keccak"),
    ATT("outcome", 150, 1, outcome, "0 scored, else why not"),
    ATT("influenceHash", 151, 32, influence_hash, "keccak"),
};
static const struct canon_tail attribution_tails[] = {
    {"influence", offsetof(struct record_attribution, influence),
     offsetof(struct record_attribution, influence_hash), TAIL_INFLUENCE_BYTES_MAX},
};

static const struct canon_field void_fields[] = {
    VOI("spec", 0, 1, prefix.spec, "version"),
    VOI("type", 1, 1, prefix.type, "record type"),
    VOI("lane", 2, 4, prefix.lane, "lane id"),
    VOI("seq", 6, 8, prefix.seq, "number in the lane, from 1"),
    VOI("reason", 14, 1, reason, "1 lost, 2 damaged"),
};

static const struct canon_layout layouts[] = {
    {"Inference",
     "Inference(uint8 spec,uint32 lane,uint64 seq,bytes32 requestId,bytes32 appCommit,"
     "bytes32 modelId,bytes32 adapterSetHash,uint32 tokensIn,uint32 tokensOut,uint128 fee,"
     "bytes32 tariffHash,bytes32 paramsHash,bytes32 engineId,uint64 startMs,uint64 endMs,"
     "uint8 status,bytes32 promptCommit,bytes32 outputCommit)",
     inference_fields, ARRAY_COUNT(inference_fields), inference_tails, ARRAY_COUNT(inference_tails),
     CANON_INFERENCE_BYTES, offsetof(struct record_inference, signature)},
    {"Attribution",
     "Attribution(uint8 spec,uint32 lane,uint64 seq,uint64 infSeq,bytes32 infDigest,"
     "bytes32 methodHash,bytes32 indexHash,bytes32 inputsDigest,uint8 outcome,"
     "bytes32 influenceHash)",
     attribution_fields, ARRAY_COUNT(attribution_fields), attribution_tails,
     ARRAY_COUNT(attribution_tails), CANON_ATTRIBUTION_BYTES,
     offsetof(struct record_attribution, signature)},
    {"Void", "Void(uint8 spec,uint32 lane,uint64 seq,uint8 reason)", void_fields,
     ARRAY_COUNT(void_fields), NULL, 0, CANON_VOID_BYTES, offsetof(struct record_void, signature)},
};

_Static_assert(ARRAY_COUNT(inference_fields) == CANON_FIELDS_MAX, "the longest table");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "member_get and member_put rely on it");

const struct canon_layout *canon_layout(uint8_t type)
{
    return type >= RECORD_INFERENCE && type <= RECORD_VOID ? &layouts[type - 1] : NULL;
}

static const struct canon_layout *known_layout(const union record *r)
{
    const struct canon_layout *l = canon_layout(r->prefix.type);
    CHECK(l);
    return l;
}

static u128 member_get(const union record *r, const struct canon_field *f)
{
    u128 v = 0;
    CHECK(f->width <= 16);
    memcpy(&v, (const char *)r + f->member, f->width);
    return v;
}

static void member_put(union record *r, const struct canon_field *f, u128 v)
{
    memcpy((char *)r + f->member, &v, f->width);
}

static const struct canon_bytes *tail_bytes(const union record *r, const struct canon_tail *t)
{
    return (const void *)((const char *)r + t->member);
}

void canon_fill_hashes(union record *r)
{
    const struct canon_layout *l = known_layout(r);
    for (size_t i = 0; i < l->tail_count; i++) {
        const struct canon_bytes *bytes = tail_bytes(r, &l->tail[i]);
        keccak_256((uint8_t *)r + l->tail[i].hash_member, bytes->data, bytes->len);
    }
}

/* Every tail within its maximum and equal to its hash field. */
static enum status check_hashes(const union record *r, struct errtext *err)
{
    const struct canon_layout *l = known_layout(r);
    for (size_t i = 0; i < l->tail_count; i++) {
        const struct canon_tail *t = &l->tail[i];
        const struct canon_bytes *bytes = tail_bytes(r, t);
        uint8_t hash[32];
        if (bytes->len > t->bytes_max)
            return err_param(err, STATUS_INVALID, t->name, "%s: %zu bytes, at most %zu", t->name,
                             bytes->len, t->bytes_max);
        keccak_256(hash, bytes->data, bytes->len);
        if (memcmp(hash, (const uint8_t *)r + t->hash_member, 32) != 0)
            return err_param(err, STATUS_INVALID, t->name,
                             "%s: Keccak-256 of its bytes is not the record's hash field", t->name);
    }
    return STATUS_OK;
}

enum status canon_encode(uint8_t *out, size_t *len, const union record *r, struct errtext *err)
{
    enum status st = canon_check(r, err);
    if (st)
        return st;
    const struct canon_layout *l = known_layout(r);
    for (size_t i = 0; i < l->field_count; i++) {
        const struct canon_field *f = &l->field[i];
        if (f->width == 32)
            memcpy(out + f->offset, (const char *)r + f->member, 32);
        else
            be_put(out + f->offset, member_get(r, f), f->width);
    }
    uint8_t *p = out + l->fixed_bytes;
    for (size_t i = 0; i < l->tail_count; i++) {
        const struct canon_bytes *bytes = tail_bytes(r, &l->tail[i]);
        be_put(p, bytes->len, 4);
        if (bytes->len)
            memcpy(p + 4, bytes->data, bytes->len);
        p += 4 + bytes->len;
    }
    memcpy(p, (const char *)r + l->signature_member, SECP_SIGNATURE_BYTES);
    *len = (size_t)(p - out) + SECP_SIGNATURE_BYTES;
    VERIFY(*len <= CANON_RECORD_BYTES_MAX);
    return STATUS_OK;
}

static enum status read_tails(union record *r, const struct canon_layout *l, const uint8_t *p,
                              size_t left, struct errtext *err)
{
    for (size_t i = 0; i < l->tail_count; i++) {
        const struct canon_tail *t = &l->tail[i];
        struct canon_bytes *bytes = (void *)((char *)r + t->member);
        size_t len = left >= 4 ? (size_t)be_get(p, 4) : 0;
        if (left < 4 || len > left - 4 || len > t->bytes_max)
            return err_param(err, STATUS_INVALID, t->name,
                             "%s: length %zu, but %zu bytes are left and at most %zu are allowed",
                             t->name, len, left, t->bytes_max);
        *bytes = (struct canon_bytes){.data = p + 4, .len = len};
        p += 4 + len;
        left -= 4 + len;
    }
    if (left != SECP_SIGNATURE_BYTES)
        return err_param(err, STATUS_INVALID, "signature",
                         "signature: %zu bytes after the tails, expected %d", left,
                         SECP_SIGNATURE_BYTES);
    memcpy((char *)r + l->signature_member, p, SECP_SIGNATURE_BYTES);
    return STATUS_OK;
}

enum status canon_decode_layout(union record *r, const uint8_t *data, size_t len,
                                struct errtext *err)
{
    memset(r, 0, sizeof(*r));
    if (len < CANON_PREFIX_BYTES)
        return err_param(err, STATUS_INVALID, "prefix", "prefix: %zu bytes, expected %d", len,
                         CANON_PREFIX_BYTES);
    if (data[0] != CANON_SPEC)
        return err_param(err, STATUS_INVALID, "spec", "spec: found %u, expected %d", data[0],
                         CANON_SPEC);
    const struct canon_layout *l = canon_layout(data[1]);
    if (!l)
        return err_param(err, STATUS_INVALID, "type", "type: found %u, expected 1 to 3", data[1]);
    if (len < l->fixed_bytes)
        return err_param(err, STATUS_INVALID, l->name, "%s: %zu bytes, expected %zu before tails",
                         l->name, len, l->fixed_bytes);
    for (size_t i = 0; i < l->field_count; i++) {
        const struct canon_field *f = &l->field[i];
        if (f->width == 32)
            memcpy((char *)r + f->member, data + f->offset, 32);
        else
            member_put(r, f, be_get(data + f->offset, f->width));
    }
    enum status st = read_tails(r, l, data + l->fixed_bytes, len - l->fixed_bytes, err);
    return st ? st : check_hashes(r, err);
}

static enum status check_inference(const struct record_inference *r, struct errtext *err)
{
    struct tail_set set;
    struct tail_tariff tariff;
    struct tail_params params;
    char found[40], expected[40];
    enum status st = tail_set_decode(&set, r->set.data, r->set.len, err);
    if (!st)
        st = tail_tariff_decode(&tariff, r->tariff.data, r->tariff.len, err);
    if (!st)
        st = tail_params_decode(&params, r->params.data, r->params.len, err);
    if (st)
        return st;
    if (tariff.count != 1 + set.count)
        return err_param(err, STATUS_INVALID, "tariff", "tariff: %u prices, expected %u",
                         tariff.count, 1 + set.count);
    if (r->status < RECORD_STATUS_COMPLETE || r->status > RECORD_STATUS_FAILED)
        return err_param(err, STATUS_INVALID, "status", "status: found %u, expected 1 to 3",
                         r->status);
    if (r->end_ms < r->start_ms)
        return err_param(err, STATUS_INVALID, "endMs", "endMs: %llu is before startMs %llu",
                         (unsigned long long)r->end_ms, (unsigned long long)r->start_ms);
    u128 fee = r->status == RECORD_STATUS_FAILED ? 0 : fee_of(&tariff, r->tokens_in, r->tokens_out);
    if (fee == r->fee)
        return STATUS_OK;
    u128_format(found, r->fee);
    u128_format(expected, fee);
    return err_param(err, STATUS_INVALID, "fee", "fee: found %s, expected %s", found, expected);
}

static enum status check_attribution(const struct record_attribution *r, struct errtext *err)
{
    struct tail_influence influence;
    if (r->inf_seq < 1 || r->inf_seq >= r->prefix.seq)
        return err_param(err, STATUS_INVALID, "infSeq",
                         "infSeq: found %llu, expected 1 to below seq %llu",
                         (unsigned long long)r->inf_seq, (unsigned long long)r->prefix.seq);
    if (r->outcome > RECORD_OUTCOME_SCORER_FAILED)
        return err_param(err, STATUS_INVALID, "outcome", "outcome: found %u, expected 0 to %d",
                         r->outcome, RECORD_OUTCOME_SCORER_FAILED);
    if (r->outcome == RECORD_OUTCOME_SCORED)
        return tail_influence_decode(&influence, r->influence.data, r->influence.len, err);
    if (r->influence.len)
        return err_param(err, STATUS_INVALID, "influence",
                         "influence: %zu bytes with outcome %u, expected none", r->influence.len,
                         r->outcome);
    return STATUS_OK;
}

/* All but the tails' hashes. */
static enum status check_values(const union record *r, struct errtext *err)
{
    const struct record_prefix *p = &r->prefix;
    if (p->spec != CANON_SPEC)
        return err_param(err, STATUS_INVALID, "spec", "spec: found %u, expected %d", p->spec,
                         CANON_SPEC);
    if (!canon_layout(p->type))
        return err_param(err, STATUS_INVALID, "type", "type: found %u, expected 1 to 3", p->type);
    if (!p->seq)
        return err_param(err, STATUS_INVALID, "seq", "seq: found 0, expected 1 or more");
    if (p->type == RECORD_INFERENCE)
        return check_inference(&r->inference, err);
    if (p->type == RECORD_ATTRIBUTION)
        return check_attribution(&r->attribution, err);
    uint8_t reason = r->voided.reason;
    if (reason != RECORD_VOID_LOST && reason != RECORD_VOID_DAMAGED)
        return err_param(err, STATUS_INVALID, "reason", "reason: found %u, expected 1 or 2",
                         reason);
    return STATUS_OK;
}

enum status canon_decode(union record *r, const uint8_t *data, size_t len, struct errtext *err)
{
    enum status st = canon_decode_layout(r, data, len, err);
    return st ? st : check_values(r, err);
}

enum status canon_check(const union record *r, struct errtext *err)
{
    enum status st = canon_layout(r->prefix.type) ? check_hashes(r, err) : STATUS_OK;
    return st ? st : check_values(r, err);
}

enum status canon_check_pair(const struct record_attribution *att,
                             const struct record_inference *inf, const uint8_t inf_digest[32],
                             struct errtext *err)
{
    struct tail_influence influence;
    if (att->prefix.lane != inf->prefix.lane)
        return err_param(err, STATUS_INVALID, "lane", "lane: found %u, expected %u",
                         att->prefix.lane, inf->prefix.lane);
    if (att->inf_seq != inf->prefix.seq || att->inf_seq >= att->prefix.seq)
        return err_param(err, STATUS_INVALID, "infSeq", "infSeq: found %llu, expected %llu",
                         (unsigned long long)att->inf_seq, (unsigned long long)inf->prefix.seq);
    if (memcmp(att->inf_digest, inf_digest, 32) != 0)
        return err_param(err, STATUS_INVALID, "infDigest",
                         "infDigest: is not the digest of inference record %llu",
                         (unsigned long long)att->inf_seq);
    if (att->outcome != RECORD_OUTCOME_SCORED)
        return STATUS_OK;
    enum status st =
        tail_influence_decode(&influence, att->influence.data, att->influence.len, err);
    if (!st && influence.count != inf->set.len / 36)
        st = err_param(err, STATUS_INVALID, "influence",
                       "influence: lists %u adapters, the set has %zu", influence.count,
                       inf->set.len / 36);
    return st;
}

void canon_domain(uint8_t domain[32], uint64_t chain_id, const uint8_t ledger[20])
{
    eip712_domain(domain, "residual", "1", chain_id, ledger);
}

static uint8_t type_hash[RECORD_VOID + 1][32];
static pthread_once_t type_once = PTHREAD_ONCE_INIT;

static void hash_types(void)
{
    for (uint8_t type = RECORD_INFERENCE; type <= RECORD_VOID; type++)
        keccak_256(type_hash[type], canon_layout(type)->type, strlen(canon_layout(type)->type));
}

void canon_digest(uint8_t digest[32], const union record *r, const uint8_t domain[32])
{
    const struct canon_layout *l = known_layout(r);
    struct eip712_hasher h;
    uint8_t hash[32];
    pthread_once(&type_once, hash_types);
    eip712_begin_hashed(&h, type_hash[r->prefix.type]);
    for (size_t i = 0; i < l->field_count; i++) {
        const struct canon_field *f = &l->field[i];
        if (f->member == offsetof(struct record_prefix, type))
            continue;
        if (f->width == 32)
            eip712_bytes32(&h, (const uint8_t *)r + f->member);
        else
            eip712_uint(&h, member_get(r, f));
    }
    eip712_end(&h, hash);
    eip712_digest(digest, domain, hash);
}

enum status canon_sign(union record *r, uint8_t digest[32], const uint8_t domain[32],
                       const struct secp *c, const struct secp_key *key, struct errtext *err)
{
    canon_digest(digest, r, domain);
    return secp_sign(c, (uint8_t *)r + known_layout(r)->signature_member, key, digest, err);
}

enum status canon_verify(const union record *r, uint8_t digest[32], const uint8_t domain[32],
                         const struct secp *c, const uint8_t lane_address[20], struct errtext *err)
{
    canon_digest(digest, r, domain);
    return secp_verify(c, (const uint8_t *)r + known_layout(r)->signature_member, digest,
                       lane_address, err);
}
