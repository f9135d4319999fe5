/* A proof is looked for in two places, the worker's answer and the archive's accounts.json, and
 * believed from neither: it counts once it leads to the root that the vault holds. */
#include "chain_client/cli/proof.h"
#include "chain_client/cli/http.h"
#include "chain_client/eth/addr.h"
#include "chain_client/settle/archive.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Is the account's leaf where p says, below the root that the chain has for p->epoch? */
static enum status check(const struct proof *p, const struct node *n, const struct view_epoch *e,
                         const uint8_t account[20], struct errtext *err)
{
    uint8_t dom[32];
    struct tree_node leaf, root = {.sum = e->total};
    memcpy(root.hash, e->root, 32);
    tree_reward_domain(dom, n->d.chain_id, n->d.vault, n->d.token);
    tree_reward_leaf(&leaf, dom, p->idx, account, p->cumulative);
    struct tree_claim claim = {
        .kind = TREE_REWARD, .count = e->leaves, .idx = p->idx, .root = &root, .leaf = &leaf};
    enum status st = tree_verify(&claim, &p->path, err);
    if (!st)
        return STATUS_OK;
    err_prefix(err, "the proof for epoch %" PRIu64 " does not fit the root on the chain", p->epoch);
    return STATUS_CORRUPT;
}

/* ---- from the archive ---- */

static enum status build_tree(struct tree *t, const struct node *n,
                              const struct archive_accounts *a, struct errtext *err)
{
    uint8_t dom[32];
    struct tree_node *leaf = mem_try_array(a->count ? a->count : 1, sizeof(*leaf));
    if (!leaf)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu accounts", a->count);
    tree_reward_domain(dom, n->d.chain_id, n->d.vault, n->d.token);
    for (size_t i = 0; i < a->count; i++)
        tree_reward_leaf(&leaf[i], dom, (uint32_t)i, a->account[i].payee, a->account[i].cumulative);
    enum status st = tree_build(t, TREE_REWARD, dom, leaf, a->count, err);
    mem_free(leaf);
    return st;
}

static enum status from_archive(struct proof *p, struct node *n, const char *dir,
                                const struct view_epoch *e, const uint8_t account[20],
                                struct errtext *err)
{
    struct archive_accounts a;
    struct tree t;
    enum status st = archive_accounts_read(&a, dir, p->epoch, err);
    if (st)
        return st;
    st = build_tree(&t, n, &a, err);
    if (st) {
        archive_accounts_fini(&a);
        return st;
    }
    if (memcmp(tree_root(&t)->hash, e->root, 32) != 0 || tree_root(&t)->sum != e->total)
        st = err_set(err, STATUS_CORRUPT,
                     "accounts.json of epoch %" PRIu64 " does not lead to the root on the chain",
                     p->epoch);
    for (size_t i = 0; i < a.count && !st; i++) {
        if (memcmp(a.account[i].payee, account, 20) != 0)
            continue;
        p->idx = (uint32_t)i;
        p->cumulative = a.account[i].cumulative;
        tree_prove(&t, &p->path, p->idx);
    }
    tree_fini(&t);
    archive_accounts_fini(&a);
    return st;
}

/* ---- from a worker ---- */

static bool read_node(struct tree_node *out, const char *hash, const char *sum)
{
    return hash && sum && hex_decode(out->hash, 32, hash) && u128_parse(&out->sum, sum);
}

/* {"hashes": [..], "sums": [..]} */
static bool read_path(struct tree_proof *path, const json_t *v)
{
    const json_t *hashes = json_object_get(v, "hashes"), *sums = json_object_get(v, "sums");
    size_t n = json_array_size(hashes);
    if (!json_is_array(hashes) || json_array_size(sums) != n || n > TREE_DEPTH_MAX)
        return false;
    path->depth = (uint32_t)n;
    for (size_t i = 0; i < n; i++) {
        if (!read_node(&path->sibling[i], json_string_value(json_array_get(hashes, i)),
                       json_string_value(json_array_get(sums, i))))
            return false;
    }
    return true;
}

static enum status read_rewards(struct proof *p, const json_t *root, struct errtext *err)
{
    const json_t *epoch = json_object_get(root, "epoch"), *idx = json_object_get(root, "index");
    const char *cumulative = json_string_value(json_object_get(root, "cumulative"));
    if (!json_is_integer(epoch) || json_integer_value(epoch) < 0 || !cumulative ||
        !u128_parse(&p->cumulative, cumulative))
        return err_set(err, STATUS_CORRUPT,
                       "the settlement worker's answer lacks epoch or cumulative");
    p->epoch = (uint64_t)json_integer_value(epoch);
    if (p->epoch == 0 || p->cumulative == 0)
        return STATUS_OK;
    if (!json_is_integer(idx) || json_integer_value(idx) < 0 ||
        json_integer_value(idx) >= TREE_LEAVES_MAX ||
        !read_path(&p->path, json_object_get(root, "proof")))
        return err_set(err, STATUS_CORRUPT,
                       "the settlement worker's answer holds no proof of hashes and sums");
    p->idx = (uint32_t)json_integer_value(idx);
    return STATUS_OK;
}

static enum status from_settle(struct proof *p, const struct cli *c, const uint8_t account[20],
                               struct errtext *err)
{
    struct http *h;
    char path[64 + ADDR_TEXT_BYTES], text[ADDR_TEXT_BYTES];
    json_t *answer = NULL;
    addr_format(text, account);
    snprintf(path, sizeof(path), "/v1/rewards/%s", text);
    enum status st = http_open(&h, c->value[OPT_SETTLE], NULL, "settlement worker", err);
    if (!st)
        st = http_call(h, "GET", path, NULL, &answer, err);
    if (st == STATUS_NOT_FOUND &&
        http_answered_json(h)) { /* the worker knows no reward of this account */
        err_clear(err);
        *p = (struct proof){.epoch = p->epoch};
        st = STATUS_OK;
    } else if (!st) {
        st = read_rewards(p, answer, err);
    }
    json_decref(answer);
    http_close(h);
    return st;
}

/* ---- both ---- */

static enum status check_options(const struct cli *c, struct errtext *err)
{
    return cli_has(c, OPT_ARCHIVE) || cli_has(c, OPT_SETTLE)
               ? STATUS_OK
               : err_set(err, STATUS_INVALID,
                         "give --archive DIR or --settle URL: where the proof comes from");
}

/* Only an active epoch pays. */
static enum status check_active(const struct proof *p, struct node *n, const struct view_epoch *e,
                                struct errtext *err)
{
    struct rpc_block head;
    enum status st = rpc_block(n->rpc, "latest", &head, err);
    if (st)
        return st;
    if (e->disabled)
        return err_set(err, STATUS_NOT_FOUND, "epoch %" PRIu64 " was vetoed", p->epoch);
    if (!e->active_at || e->active_at > head.timestamp)
        return err_set(err, STATUS_NOT_FOUND,
                       "epoch %" PRIu64 " cannot be claimed from yet (active at second %" PRIu64
                       ", the chain is at %" PRIu64 ")",
                       p->epoch, e->active_at, head.timestamp);
    return STATUS_OK;
}

enum status proof_find(struct proof *p, struct node *n, const struct cli *c,
                       const uint8_t account[20], struct errtext *err)
{
    struct view_money money;
    struct view_epoch e;
    *p = (struct proof){0};
    enum status st = check_options(c, err);
    if (!st)
        st = view_money(&n->view, "latest", &money, err);
    if (!st)
        st = view_claimed(&n->view, "latest", account, &p->claimed, err);
    if (st || !money.active_epoch)
        return st;
    u128 claimed = p->claimed;
    p->epoch = money.active_epoch;
    if (!cli_has(c, OPT_ARCHIVE))
        st = from_settle(p, c, account, err);
    p->claimed = claimed;
    if (st || !p->epoch)
        return st;
    st = view_epoch(&n->view, "latest", p->epoch, &e, err);
    if (!st && p->epoch != money.active_epoch)
        st = check_active(p, n, &e, err);
    if (!st && cli_has(c, OPT_ARCHIVE))
        st = from_archive(p, n, c->value[OPT_ARCHIVE], &e, account, err);
    return st || !p->cumulative ? st : check(p, n, &e, account, err);
}

const char *proof_hint(const struct cli *c, enum status st)
{
    switch (st) {
    case STATUS_NOT_FOUND:
        return "Wait for the epoch to be active, or fetch the newest archive.";
    case STATUS_CORRUPT:
        return "Do not trust this source; take the proof from another --archive or --settle.";
    case STATUS_IO:
    case STATUS_TIMEOUT:
        return cli_has(c, OPT_SETTLE)
                   ? "Are the chain node (--rpc) and the settlement worker (--settle) running?"
                   : node_hint(st);
    default:
        return node_hint(st);
    }
}
