/* Each view is one eth_call: selector, argument words, and a decoder of the words that come back.
 * Counts and offsets of an answer are bounded by abi.h; the maxima of the Registry are checked
 * here, so that what a reader holds always fits. */
#include "chain_client/registry/views.h"
#include "chain_client/eth/abi.h"
#include "chain_client/tail.h"

#include <string.h>

#define ANSWER_BYTES_MAX (1u << 16)

void registry_open(struct registry_reader *r, struct rpc *rpc, const uint8_t address[20])
{
    *r = (struct registry_reader){.rpc = rpc};
    memcpy(r->address, address, sizeof(r->address));
    buf_init(&r->data, 256);
    buf_init(&r->out, ANSWER_BYTES_MAX);
}

void registry_close(struct registry_reader *r)
{
    buf_fini(&r->data);
    buf_fini(&r->out);
}

/* ---- one call ---- */

static void begin(struct registry_reader *r, const char *signature)
{
    buf_clear(&r->data);
    abi_put_selector(&r->data, signature);
}

static void put_uint(struct registry_reader *r, uint64_t value)
{
    abi_count(&r->data, value);
}

static enum status ask(struct registry_reader *r, const char *tag, struct errtext *err)
{
    struct rpc_call call = {.to = r->address, .data = r->data.data, .data_len = r->data.len};
    return rpc_call(r->rpc, &call, tag, &r->out, err);
}

/* ---- answers ---- */

static enum status read_price(const struct abi_reader *r, size_t word_idx, u128 *price,
                              const char *name, struct errtext *err)
{
    return abi_read_uint(r, word_idx, TAIL_PRICE_BITS / 8, price, name, err);
}

static enum status read_split(const struct abi_reader *r, size_t word_idx,
                              struct reward_entry entry[REWARD_ENTRIES_MAX], size_t *count,
                              struct errtext *err)
{
    struct abi_array list;
    enum status st = abi_read_array(r, word_idx, 3, &list, "split", err);
    if (!st && list.count > REWARD_ENTRIES_MAX)
        st = err_set(err, STATUS_CORRUPT, "split: %zu entries, expected at most %d", list.count,
                     REWARD_ENTRIES_MAX);
    if (st)
        return st;
    *count = list.count;
    for (size_t i = 0; i < list.count && !st; i++) {
        u128 role = 0, bps = 0;
        st = abi_read_address(&list.items, 3 * i, entry[i].payee, "split.payee", err);
        if (!st)
            st = abi_read_uint(&list.items, 3 * i + 1, 1, &role, "split.role", err);
        if (!st)
            st = abi_read_uint(&list.items, 3 * i + 2, 2, &bps, "split.bps", err);
        entry[i].role = (uint8_t)role;
        entry[i].bps = (uint16_t)bps;
    }
    return st;
}

static enum status read_parents(const struct abi_reader *r, size_t word_idx,
                                struct registry_terms *out, struct errtext *err)
{
    struct abi_array list;
    enum status st = abi_read_array(r, word_idx, 2, &list, "parents", err);
    if (!st && list.count > REWARD_PARENTS_MAX)
        st = err_set(err, STATUS_CORRUPT, "parents: %zu of them, expected at most %d", list.count,
                     REWARD_PARENTS_MAX);
    if (st)
        return st;
    out->parent_count = list.count;
    for (size_t i = 0; i < list.count && !st; i++) {
        u128 bps = 0;
        st = abi_read_bytes32(&list.items, 2 * i, out->parent[i].adapter_id, "parents.adapterId",
                              err);
        if (!st)
            st = abi_read_uint(&list.items, 2 * i + 1, 2, &bps, "parents.bps", err);
        out->parent[i].bps = (uint16_t)bps;
    }
    return st;
}

enum status registry_decode_terms(struct registry_terms *out, const void *data, size_t len,
                                  struct errtext *err)
{
    struct abi_reader all = {data, len}, r;
    *out = (struct registry_terms){0};
    enum status st = abi_read_tuple(&all, 0, &r, "adapterAt", err);
    if (!st)
        st = abi_read_bool(&r, 0, &out->registered, "adapterAt.registered", err);
    if (!st)
        st = abi_read_u64(&r, 1, &out->active_at, "adapterAt.activeAt", err);
    if (!st)
        st = abi_read_bytes32(&r, 2, out->model_id, "adapterAt.modelId", err);
    if (!st)
        st = abi_read_bytes32(&r, 3, out->datanet_id, "adapterAt.datanetId", err);
    if (!st)
        st = abi_read_u64(&r, 4, &out->datanet_version, "adapterAt.datanetVersion", err);
    if (!st)
        st = read_price(&r, 5, &out->price_in, "adapterAt.priceIn", err);
    if (!st)
        st = read_price(&r, 6, &out->price_out, "adapterAt.priceOut", err);
    if (!st)
        st = read_split(&r, 7, out->entry, &out->entry_count, err);
    return st ? st : read_parents(&r, 8, out, err);
}

enum status registry_adapter_at(struct registry_reader *r, const char *tag,
                                const uint8_t adapter_id[32], uint64_t t,
                                struct registry_terms *out, struct errtext *err)
{
    begin(r, "adapterAt(bytes32,uint64)");
    buf_put(&r->data, adapter_id, 32);
    put_uint(r, t);
    enum status st = ask(r, tag, err);
    return st ? st : registry_decode_terms(out, r->out.data, r->out.len, err);
}

enum status registry_decode_tariff(struct registry_tariff *out, const void *data, size_t len,
                                   struct errtext *err)
{
    struct abi_reader r = {data, len};
    *out = (struct registry_tariff){0};
    enum status st = abi_read_u64(&r, 0, &out->active_at, "tariffAt.activeAt", err);
    if (!st)
        st = read_price(&r, 1, &out->price_in, "tariffAt.priceIn", err);
    return st ? st : read_price(&r, 2, &out->price_out, "tariffAt.priceOut", err);
}

enum status registry_tariff_at(struct registry_reader *r, const char *tag, uint32_t lane,
                               const uint8_t model_id[32], uint64_t t, struct registry_tariff *out,
                               struct errtext *err)
{
    begin(r, "tariffAt(uint32,bytes32,uint64)");
    put_uint(r, lane);
    buf_put(&r->data, model_id, 32);
    put_uint(r, t);
    enum status st = ask(r, tag, err);
    return st ? st : registry_decode_tariff(out, r->out.data, r->out.len, err);
}

enum status registry_decode_base(struct registry_base *out, const void *data, size_t len,
                                 struct errtext *err)
{
    struct abi_reader r = {data, len};
    *out = (struct registry_base){0};
    enum status st = abi_read_bool(&r, 0, &out->registered, "baseAt.registered", err);
    return st ? st : read_split(&r, 1, out->entry, &out->entry_count, err);
}

enum status registry_base_at(struct registry_reader *r, const char *tag, const uint8_t model_id[32],
                             uint64_t t, struct registry_base *out, struct errtext *err)
{
    begin(r, "baseAt(bytes32,uint64)");
    buf_put(&r->data, model_id, 32);
    put_uint(r, t);
    enum status st = ask(r, tag, err);
    return st ? st : registry_decode_base(out, r->out.data, r->out.len, err);
}

enum status registry_decode_datanet(struct registry_datanet *out, const void *data, size_t len,
                                    struct errtext *err)
{
    struct abi_reader r = {data, len};
    u128 documents = 0, owners = 0;
    *out = (struct registry_datanet){0};
    enum status st = abi_read_bool(&r, 0, &out->registered, "datanet.registered", err);
    if (!st)
        st = abi_read_u64(&r, 1, &out->active_at, "datanet.activeAt", err);
    if (!st)
        st = abi_read_u64(&r, 2, &out->version, "datanet.version", err);
    if (!st)
        st = abi_read_bytes32(&r, 3, out->document_root, "datanet.documentRoot", err);
    if (!st)
        st = abi_read_bytes32(&r, 4, out->owner_root, "datanet.ownerRoot", err);
    if (!st)
        st = abi_read_uint(&r, 5, 4, &documents, "datanet.documents", err);
    if (!st)
        st = abi_read_uint(&r, 6, 4, &owners, "datanet.owners", err);
    out->documents = (uint32_t)documents;
    out->owners = (uint32_t)owners;
    return st ? st : abi_read_bytes32(&r, 7, out->tokenizer_digest, "datanet.tokenizerDigest", err);
}

static enum status ask_datanet(struct registry_reader *r, const char *tag, const uint8_t id[32],
                               uint64_t which, struct registry_datanet *out, struct errtext *err)
{
    buf_put(&r->data, id, 32);
    put_uint(r, which);
    enum status st = ask(r, tag, err);
    return st ? st : registry_decode_datanet(out, r->out.data, r->out.len, err);
}

enum status registry_datanet_at(struct registry_reader *r, const char *tag,
                                const uint8_t datanet_id[32], uint64_t t,
                                struct registry_datanet *out, struct errtext *err)
{
    begin(r, "datanetAt(bytes32,uint64)");
    return ask_datanet(r, tag, datanet_id, t, out, err);
}

enum status registry_datanet_version(struct registry_reader *r, const char *tag,
                                     const uint8_t datanet_id[32], uint64_t version,
                                     struct registry_datanet *out, struct errtext *err)
{
    begin(r, "datanetVersion(bytes32,uint64)");
    return ask_datanet(r, tag, datanet_id, version, out, err);
}

enum status registry_decode_policy(struct reward_policy *out, const void *data, size_t len,
                                   struct errtext *err)
{
    struct abi_reader r = {data, len};
    u128 bps[4] = {0};
    enum status st = STATUS_OK;
    for (size_t i = 0; i < 4 && !st; i++)
        st = abi_read_uint(&r, i, 2, &bps[i], "policyAt.bps", err);
    *out = (struct reward_policy){.base_bps = (uint16_t)bps[0],
                                  .adapters_bps = (uint16_t)bps[1],
                                  .operator_bps = (uint16_t)bps[2],
                                  .protocol_bps = (uint16_t)bps[3]};
    return st ? st : abi_read_address(&r, 4, out->treasury, "policyAt.treasury", err);
}

enum status registry_policy_at(struct registry_reader *r, const char *tag, uint64_t t,
                               struct reward_policy *out, struct errtext *err)
{
    begin(r, "policyAt(uint64)");
    put_uint(r, t);
    enum status st = ask(r, tag, err);
    return st ? st : registry_decode_policy(out, r->out.data, r->out.len, err);
}

enum status registry_method_registered_at(struct registry_reader *r, const char *tag,
                                          const uint8_t method[32], uint64_t *at,
                                          struct errtext *err)
{
    begin(r, "methodRegisteredAt(bytes32)");
    buf_put(&r->data, method, 32);
    enum status st = ask(r, tag, err);
    if (st)
        return st;
    struct abi_reader answer = {(const uint8_t *)r->out.data, r->out.len};
    return abi_read_u64(&answer, 0, at, "methodRegisteredAt", err);
}

enum status registry_adapter_owner(struct registry_reader *r, const char *tag,
                                   const uint8_t adapter_id[32], uint8_t owner[20],
                                   struct errtext *err)
{
    begin(r, "adapters(bytes32)");
    buf_put(&r->data, adapter_id, 32);
    enum status st = ask(r, tag, err);
    if (st)
        return st;
    struct abi_reader answer = {(const uint8_t *)r->out.data, r->out.len};
    return abi_read_address(&answer, 0, owner, "adapters.owner", err);
}

enum status registry_notice(struct registry_reader *r, const char *tag, uint64_t *seconds,
                            struct errtext *err)
{
    begin(r, "notice()");
    enum status st = ask(r, tag, err);
    if (st)
        return st;
    struct abi_reader answer = {(const uint8_t *)r->out.data, r->out.len};
    return abi_read_u64(&answer, 0, seconds, "notice", err);
}
