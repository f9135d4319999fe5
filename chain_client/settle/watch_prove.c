/* A proposal that lowers an account, forgets one or is out of order falls to whoever shows it: no
 * role is needed. Both trees must be known: the accounts of e' and, as far as the archive shows
 * them, those of the proposal, each with the root that the vault has. */
#include "chain_client/settle/watch_impl.h"
#include "server/base/mem.h"

#include <string.h>

enum proof_kind { PROOF_NONE, PROOF_LOWERED, PROOF_MISSING, PROOF_UNSORTED }; /* the vault's */

struct side {
    struct archive_accounts accounts;
    struct tree tree;
    uint64_t epoch;
    bool good;
};

static void side_fini(struct side *s)
{
    archive_accounts_fini(&s->accounts);
    if (s->good)
        tree_fini(&s->tree);
}

/* Not good: the archive does not show the accounts of that root. */
static enum status side_load(struct guard *g, struct side *s, uint64_t epoch,
                             const uint8_t root[32], struct errtext *err)
{
    const struct deployment *d = &g->w.dep;
    uint8_t dom[32];
    struct errtext why = ERRTEXT_INIT;
    *s = (struct side){.epoch = epoch};
    if (mirror_epoch(&g->mirror, epoch, &why) ||
        archive_accounts_read(&s->accounts, g->set->mirror_dir, epoch, &why) || !s->accounts.count)
        return STATUS_OK;
    struct tree_node *leaf = mem_try_array(s->accounts.count, sizeof(*leaf));
    if (!leaf)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the accounts of an epoch");
    tree_reward_domain(dom, d->chain_id, d->vault, d->token);
    for (size_t i = 0; i < s->accounts.count; i++)
        tree_reward_leaf(&leaf[i], dom, (uint32_t)i, s->accounts.account[i].payee,
                         s->accounts.account[i].cumulative);
    bool built = tree_build(&s->tree, TREE_REWARD, dom, leaf, s->accounts.count, &why) == STATUS_OK;
    s->good = built && memcmp(tree_root(&s->tree)->hash, root, 32) == 0;
    if (built && !s->good)
        tree_fini(&s->tree);
    mem_free(leaf);
    return STATUS_OK;
}

struct found {
    enum proof_kind kind;
    size_t before, now; /* places; of MISSING: where it should stand in the new tree */
};

static struct found look(const struct side *before, const struct side *now)
{
    const struct reward_account *b = before->accounts.account, *n = now->accounts.account;
    size_t i = 0, j = 0;
    for (size_t k = 1; k < now->accounts.count; k++)
        if (memcmp(n[k - 1].payee, n[k].payee, 20) >= 0)
            return (struct found){PROOF_UNSORTED, 0, k};
    while (before->good && i < before->accounts.count) {
        int order =
            j < now->accounts.count ? memcmp(n[j].payee, b[i].payee, 20) : 1; /* 1: behind it */
        if (order > 0)
            return (struct found){PROOF_MISSING, i, j};
        if (order == 0 && n[j].cumulative < b[i].cumulative)
            return (struct found){PROOF_LOWERED, i, j};
        i += order == 0;
        j++;
    }
    return (struct found){PROOF_NONE, 0, 0};
}

static void put_claim(struct epoch_claim *c, struct tree_proof *proof, const struct side *s,
                      size_t idx)
{
    const struct reward_account *a = &s->accounts.account[idx];
    tree_prove(&s->tree, proof, (uint32_t)idx);
    *c = (struct epoch_claim){
        .epoch = s->epoch, .idx = (uint32_t)idx, .cumulative = a->cumulative, .proof = proof};
    memcpy(c->account, a->payee, 20);
}

static enum status raise_proof(struct guard *g, const struct side *before, const struct side *now,
                               struct found f, struct errtext *err)
{
    struct epoch_claim claim[3];
    struct tree_proof proof[3];
    struct buf data;
    size_t n = 0;
    if (f.kind != PROOF_UNSORTED) {
        put_claim(&claim[n], &proof[n], before, f.before);
        n++;
    }
    if (f.kind != PROOF_LOWERED && f.now > 0) {
        put_claim(&claim[n], &proof[n], now, f.now - 1);
        n++;
    }
    if (f.now < now->accounts.count) {
        put_claim(&claim[n], &proof[n], now, f.now);
        n++;
    }
    buf_init(&data, 3 * EPOCH_CLAIM_BYTES_MAX + 1024);
    epoch_put_disable(&data, now->epoch, (uint8_t)f.kind, claim, n);
    struct sender_call call = {.role = SENDER_GUARDIAN,
                               .kind = "disable",
                               .key = now->epoch,
                               .to = g->w.dep.vault,
                               .data = &data};
    enum status st = sender_raise(&g->w.sender, &call, err);
    buf_fini(&data);
    return st;
}

enum status watch_prove(struct guard *g, uint64_t epoch, struct errtext *err)
{
    struct watch_subject s;
    struct side before = {.good = false}, now = {.good = false};
    bool there;
    enum status st = watch_subject_read(g, true, epoch, &s, &there, err);
    if (st || !there)
        return st;
    st = side_load(g, &now, epoch, s.header.root, err);
    if (!st && s.previous)
        st = side_load(g, &before, s.previous, s.header.prev_root, err);
    struct found f = now.good ? look(&before, &now) : (struct found){PROOF_NONE, 0, 0};
    if (!st && f.kind != PROOF_NONE)
        st = raise_proof(g, &before, &now, f, err);
    side_fini(&now);
    side_fini(&before);
    return st;
}
