/* Announced changes of roles. A stolen admin key can hand out nothing before the notice is over;
 * that helps only whom it is told, so each announcement is a trouble until it is done or cancelled.
 * What was announced is known from events, and each is asked again with roleReadyAt: an event alone
 * says nothing about now. */
#include "chain_client/eth/abi.h"
#include "chain_client/eth/addr.h"
#include "chain_client/eth/keccak.h"
#include "chain_client/settle/watch_impl.h"
#include "server/base/check.h"

#include <inttypes.h>
#include <string.h>

#define LOGS_PER_BLOCK_BITS 16 /* a trouble's number: block, log */

struct role_scan {
    struct role_watch *roles;
    uint32_t contract; /* index below */
};

static const struct {
    const char *name;
    size_t offset;
} contract[] = {{"ledger", offsetof(struct deployment, ledger)},
                {"vault", offsetof(struct deployment, vault)},
                {"Registry", offsetof(struct deployment, registry)}};

static const uint8_t *address_of(const struct guard *g, uint32_t idx)
{
    return (const uint8_t *)&g->w.dep + contract[idx].offset;
}

static const char *role_name(const uint8_t id[32])
{
    static const char *const name[] = {"COMMITTER", "PROPOSER",   "GUARDIAN",
                                       "ATTESTOR",  "LANE_ADMIN", "REGISTRAR"};
    uint8_t zero[32] = {0}, known[32];
    for (size_t i = 0; i < ARRAY_COUNT(name); i++) {
        keccak_256(known, name[i], strlen(name[i]));
        if (memcmp(known, id, 32) == 0)
            return name[i];
    }
    return memcmp(id, zero, 32) == 0 ? "the admin's role" : "an unknown role";
}

static enum status take_announced(void *arg, const struct rpc_log *log, struct errtext *err)
{
    struct role_scan *s = arg;
    struct role_change c = {.contract = s->contract,
                            .number = log->block_number << LOGS_PER_BLOCK_BITS | log->log_index};
    struct abi_reader r = {log->data, log->data_len};
    if (s->roles->count == ROLE_CHANGES_MAX)
        return err_set(err, STATUS_TOO_LARGE, "more than %d changes of roles are announced at once",
                       ROLE_CHANGES_MAX);
    memcpy(c.role, log->topic[1], 32);
    memcpy(c.account, log->topic[2] + 12, 20);
    enum status st = abi_read_bool(&r, 0, &c.grants, "grant", err);
    if (!st)
        st = abi_read_u64(&r, 1, &c.ready_at, "readyAt", err);
    if (!st)
        s->roles->change[s->roles->count++] = c;
    return st;
}

static enum status scan(struct guard *g, uint64_t block, struct errtext *err)
{
    struct role_watch *roles = &g->roles;
    uint8_t topic[32];
    char from[RPC_TAG_BYTES], to[RPC_TAG_BYTES];
    uint32_t known = roles->count;
    enum status st = roles->next_block ? STATUS_OK : trouble_clear_all(&g->w.db, TROUBLE_ROLE, err);
    if (st || block < roles->next_block || block == UINT64_MAX) /* no endpoint is good */
        return st;
    abi_topic(topic, "RoleAnnounced(bytes32,address,bool,uint64)");
    rpc_tag(from, roles->next_block ? roles->next_block : g->w.dep.start_block);
    rpc_tag(to, block);
    for (uint32_t i = 0; i < ARRAY_COUNT(contract) && !st; i++) {
        struct role_scan s = {roles, i};
        struct rpc_log_filter f = {
            .address = address_of(g, i), .from_tag = from, .to_tag = to, .topic = {topic}};
        st = rpc_logs(g->w.view.rpc, &f, take_announced, &s, err);
    }
    if (st)
        roles->count = known; /* all of these blocks again at the next look */
    else
        roles->next_block = block + 1;
    return st;
}

static enum status ready_at(struct guard *g, const struct role_change *c, uint64_t *at,
                            struct errtext *err)
{
    struct view *v = &g->w.view;
    struct abi_tuple t;
    buf_clear(&v->data);
    abi_put_selector(&v->data, "roleReadyAt(bytes32,address,bool)");
    abi_begin(&t, &v->data, 3);
    abi_bytes32(&t, c->role);
    abi_address(&t, c->account);
    abi_bool(&t, c->grants);
    abi_end(&t);
    struct rpc_call call = {
        .to = address_of(g, c->contract), .data = v->data.data, .data_len = v->data.len};
    enum status st = rpc_call(v->rpc, &call, "latest", &v->out, err);
    struct abi_reader r = {(const uint8_t *)v->out.data, v->out.len};
    return st ? st : abi_read_u64(&r, 0, at, "roleReadyAt", err);
}

static enum status say_announced(struct guard *g, const struct role_change *c, struct errtext *err)
{
    char text[ADDR_TEXT_BYTES];
    addr_format(text, c->account);
    return trouble_say(&g->w.db, TROUBLE_ROLE, c->number, err,
                       "%s of the %s is announced to be %s %s, from second %" PRIu64
                       " on: if no admin of yours did this, the admin's key is stolen; cancelRole "
                       "takes it back, and who has something to claim should claim it before then",
                       role_name(c->role), contract[c->contract].name,
                       c->grants ? "given to" : "taken from", text, c->ready_at);
}

enum status watch_roles(struct guard *g, uint64_t block, struct errtext *err)
{
    struct role_watch *roles = &g->roles;
    enum status st = scan(g, block, err);
    for (uint32_t i = 0; i < roles->count && !st;) {
        uint64_t at = 0;
        struct role_change *c = &roles->change[i];
        st = ready_at(g, c, &at, err);
        if (st)
            break;
        if (at == c->ready_at) {
            st = say_announced(g, c, err);
            i++;
            continue;
        }
        st = trouble_clear(&g->w.db, TROUBLE_ROLE, c->number, err);
        *c = roles->change[--roles->count];
    }
    return st;
}
