/* Reads AccessControl of OpenZeppelin: hasRole, and the events that ever granted a role. */
#include "chain_client/settle/roles.h"
#include "chain_client/eth/abi.h"
#include "chain_client/eth/addr.h"
#include "chain_client/eth/keccak.h"
#include "server/base/check.h"

#include <stdlib.h>
#include <string.h>

static void role_id(uint8_t id[32], const char *role)
{
    memset(id, 0, 32);
    if (role[0])
        keccak_256(id, role, strlen(role));
}

enum status role_has(struct view *v, const uint8_t contract[20], const char *role,
                     const uint8_t account[20], bool *has, struct errtext *err)
{
    uint8_t id[32];
    struct abi_tuple t;
    role_id(id, role);
    buf_clear(&v->data);
    abi_put_selector(&v->data, "hasRole(bytes32,address)");
    abi_begin(&t, &v->data, 2);
    abi_bytes32(&t, id);
    abi_address(&t, account);
    abi_end(&t);
    struct rpc_call call = {.to = contract, .data = v->data.data, .data_len = v->data.len};
    enum status st = rpc_call(v->rpc, &call, "latest", &v->out, err);
    struct abi_reader r = {(const uint8_t *)v->out.data, v->out.len};
    *has = false;
    return st ? st : abi_read_bool(&r, 0, has, "hasRole", err);
}

enum status role_alone(struct view *v, const uint8_t account[20], const char *own,
                       struct errtext *err)
{
    static const struct {
        const char *role, *name;
        bool of_ledger;
    } keys[] = {{"COMMITTER", "COMMITTER", true},       {"GUARDIAN", "GUARDIAN", true},
                {"PROPOSER", "PROPOSER", false},        {"GUARDIAN", "GUARDIAN", false},
                {"ATTESTOR", "ATTESTOR", false},        {ROLE_ADMIN, "the admin's role", true},
                {ROLE_ADMIN, "the admin's role", false}};
    char text[ADDR_TEXT_BYTES];
    for (size_t i = 0; i < ARRAY_COUNT(keys); i++) {
        bool has = false;
        if (own[0] && strcmp(keys[i].role, own) == 0)
            continue;
        enum status st = role_has(v, keys[i].of_ledger ? v->d->ledger : v->d->vault, keys[i].role,
                                  account, &has, err);
        if (st)
            return st;
        if (!has)
            continue;
        addr_format(text, account);
        return err_set(err, STATUS_CONFLICT,
                       "%s holds %s too: whoever steals this key would have both; make a key of "
                       "its own with `residual key new --type chain`",
                       text, keys[i].name);
    }
    return STATUS_OK;
}

static int order(const void *a, const void *b)
{
    return memcmp(a, b, 20);
}

static enum status take_granted(void *arg, const struct rpc_log *log, struct errtext *err)
{
    struct role_holders *h = arg;
    for (size_t i = 0; i < h->count; i++)
        if (memcmp(h->account[i], log->topic[2] + 12, 20) == 0)
            return STATUS_OK;
    if (h->count == ROLE_HOLDERS_MAX)
        return err_set(err, STATUS_TOO_LARGE, "more than %d accounts were granted one role",
                       ROLE_HOLDERS_MAX);
    memcpy(h->account[h->count++], log->topic[2] + 12, 20);
    return STATUS_OK;
}

enum status role_list(struct view *v, const uint8_t contract[20], const char *role,
                      struct role_holders *out, struct errtext *err)
{
    uint8_t topic[32], id[32];
    char from[RPC_TAG_BYTES];
    struct role_holders granted = {.count = 0};
    abi_topic(topic, "RoleGranted(bytes32,address,address)");
    role_id(id, role);
    rpc_tag(from, v->d->start_block);
    struct rpc_log_filter filter = {
        .address = contract, .from_tag = from, .to_tag = "latest", .topic = {topic, id}};
    enum status st = rpc_logs(v->rpc, &filter, take_granted, &granted, err);
    *out = (struct role_holders){.count = 0};
    for (size_t i = 0; i < granted.count && !st; i++) {
        bool has;
        st = role_has(v, contract, role, granted.account[i], &has, err);
        if (!st && has)
            memcpy(out->account[out->count++], granted.account[i], 20);
    }
    if (out->count)
        qsort(out->account, out->count, 20, order);
    return st;
}
