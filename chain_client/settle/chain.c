/* The worker's side of the chain: whose keys, which endpoints, and one round of asking them. What a
 * round finds is said as troubles, so that `status` and /metrics show it too. */
#include "chain_client/eth/addr.h"
#include "chain_client/eth/keystore.h"
#include "chain_client/settle/gauges.h"
#include "chain_client/settle/roles.h"
#include "chain_client/settle/worker.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/file.h"
#include "server/base/log.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define GWEI                1000000000u
#define AUTHORIZATION_BYTES 4096
#define SEVERAL_TIMEOUT_MS  5000 /* of one endpoint of several */
#define SEVERAL_BUSY_MS     2000

/* ---- keys ---- */

static enum status open_keys(struct worker *w, struct errtext *err)
{
    const struct settings *s = w->set;
    const char *file[SENDER_ROLES][2] = {
        [SENDER_COMMITTER] = {s->committer_key_file, s->committer_passphrase_file},
        [SENDER_PROPOSER] = {s->proposer_key_file, s->proposer_passphrase_file},
        [SENDER_FUNDER] = {s->funder_key_file, s->funder_passphrase_file}};
    struct sender_signer *g = w->sender.signer;
    enum status st = STATUS_OK;
    for (uint32_t i = 0; i < SENDER_ROLES && !st; i++) {
        if (!file[i][0])
            continue;
        st = keystore_load(w->secp, &g[i].key, file[i][0], file[i][1], err);
        g[i].present = !st;
        for (uint32_t j = 0; j < i && !st; j++)
            if (g[j].present && memcmp(g[i].key.address, g[j].key.address, 20) == 0)
                st = err_set(err, STATUS_INVALID,
                             "%s_key_file and %s_key_file hold the same key: whoever steals it "
                             "would have both rights; make another with `residual wallet new`",
                             sender_role_name((enum sender_role)j),
                             sender_role_name((enum sender_role)i));
    }
    return st;
}

/* ---- endpoints ---- */

static bool is_loopback(const char *url)
{
    const char *host = strstr(url, "://");
    host = host ? host + 3 : url;
    return strncmp(host, "127.", 4) == 0 || strncmp(host, "localhost", 9) == 0 ||
           strncmp(host, "[::1]", 5) == 0;
}

enum status chain_rpc_open(struct rpc **out, const struct settings *s, uint32_t i,
                           struct errtext *err)
{
    const char *path = s->rpc_authorization_file.count ? s->rpc_authorization_file.item[i] : "none";
    bool several = s->rpc_url.count > 1;
    char *authorization = NULL;
    size_t len = 0;
    enum status st = strcmp(path, "none") == 0
                         ? STATUS_OK
                         : file_read_secret(path, AUTHORIZATION_BYTES, &authorization, &len, err);
    struct rpc_config config = {.url = s->rpc_url.item[i],
                                .authorization = authorization,
                                .timeout_ms = several ? SEVERAL_TIMEOUT_MS : 0,
                                .busy_ms_max = several ? SEVERAL_BUSY_MS : 0};
    if (!st)
        st = rpc_open(out, &config, err);
    if (authorization)
        mem_wipe(authorization, len);
    mem_free(authorization);
    return st;
}

enum status chain_open(struct worker *w, struct errtext *err)
{
    const struct settings *s = w->set;
    struct nodes_config config = {.chain_id = w->dep.chain_id,
                                  .head_age_max_s = s->rpc_head_age_max_s};
    memcpy(config.genesis_hash, w->dep.genesis_hash, 32);
    nodes_init(&w->nodes, &config);
    enum status st = open_keys(w, err);
    for (uint32_t i = 0; i < s->rpc_url.count && !st; i++) {
        struct rpc *rpc;
        st = chain_rpc_open(&rpc, s, i, err);
        if (!st)
            st = nodes_add(&w->nodes, rpc, err);
    }
    if (st)
        return st;
    w->rpc = nodes_rpc(&w->nodes);
    view_init(&w->view, w->rpc, &w->dep);
    w->sender.db = &w->db;
    w->sender.nodes = &w->nodes;
    w->sender.secp = w->secp;
    w->sender.chain_id = w->dep.chain_id;
    w->sender.bump_ms = s->bump_seconds * 1000;
    w->sender.fee_max = (u128)s->fee_max_gwei * GWEI;
    return STATUS_OK;
}

static enum status check_endpoints(struct worker *w, struct errtext *err)
{
    if (w->nodes.count > 1 || is_loopback(w->set->rpc_url.item[0]))
        return trouble_clear(&w->db, TROUBLE_ONE_ENDPOINT, 0, err);
    return trouble_say(&w->db, TROUBLE_ONE_ENDPOINT, 0, err,
                       "what is final is believed of one endpoint, which may lie or lag: name a "
                       "second one, of another operator, with --rpc-url");
}

enum status chain_keys_apart(struct worker *w, struct errtext *err)
{
    static const char *const own[SENDER_ROLES] = {[SENDER_COMMITTER] = "COMMITTER",
                                                  [SENDER_PROPOSER] = "PROPOSER",
                                                  [SENDER_FUNDER] = "",
                                                  [SENDER_GUARDIAN] = "GUARDIAN"};
    enum status st = STATUS_OK;
    for (uint32_t i = 0; i < SENDER_ROLES && !st; i++)
        if (w->sender.signer[i].present)
            st = role_alone(&w->view, w->sender.signer[i].key.address, own[i], err);
    return st;
}

void chain_close(struct worker *w)
{
    view_fini(&w->view);
    nodes_fini(&w->nodes);
    for (uint32_t i = 0; i < SENDER_ROLES; i++)
        secp_key_fini(&w->sender.signer[i].key);
}

/* ---- a round ---- */

static enum status say_endpoint(struct worker *w, uint32_t i, struct errtext *err)
{
    const struct endpoint *k = &w->nodes.endpoint[i];
    char label[32];
    snprintf(label, sizeof(label), "endpoint=\"%u\"", i + 1);
    enum status st = gauge_set(&w->db, "endpoint_good", label, k->is_good, err);
    if (st || k->is_good)
        return st ? st : trouble_clear(&w->db, TROUBLE_ENDPOINT, i + 1, err);
    return trouble_say(
        &w->db, TROUBLE_ENDPOINT, i + 1, err,
        "--rpc-url number %u is left out: %s. It is asked again by itself; replace it "
        "if that lasts",
        i + 1, k->why);
}

static enum status say_all(struct worker *w, struct errtext *err)
{
    const struct nodes *n = &w->nodes;
    enum status st = STATUS_OK;
    for (uint32_t i = 0; i < n->count && !st; i++)
        st = say_endpoint(w, i, err);
    if (st)
        return st;
    return n->held[0] && n->count > 1 ? trouble_say(&w->db, TROUBLE_FINALITY_HELD, 0, err,
                                                    "nothing becomes final: %s", n->held)
                                      : trouble_clear(&w->db, TROUBLE_FINALITY_HELD, 0, err);
}

enum status chain_round(struct worker *w, struct errtext *err)
{
    enum nodes_verdict verdict = NODES_HELD;
    struct errtext ours = ERRTEXT_INIT;
    if (!w->remembered) {
        enum status st = sender_start(&w->sender, err);
        if (!st)
            st = check_endpoints(w, err);
        if (st)
            return st;
        w->remembered = true;
    }
    enum status st = sender_round(&w->sender, &verdict, err), said = say_all(w, &ours);
    if (!st && said)
        return err_set(err, said, "%s", ours.text);
    if (st)
        return st;
    w->rpc = nodes_rpc(&w->nodes);
    view_use(&w->view, w->rpc);
    w->is_held = verdict == NODES_HELD;
    return verdict == NODES_HELD ? STATUS_OK : walk_back(w, verdict == NODES_REORG, err);
}
