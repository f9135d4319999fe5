/* The vault as its owner sees it: is the money there that the answers earned, who may do what, and
 * paying what is owed with a key that can do nothing else.
 *
 * fundTo takes a total, so a repeat moves nothing. A token's allowance is exactly what is paid, and
 * goes back to 0 whatever happens in between. */
#include "chain_client/cli/node.h"
#include "chain_client/cli/prompt.h"
#include "chain_client/eth/abi.h"
#include "chain_client/eth/addr.h"
#include "chain_client/settle/events.h"
#include "chain_client/settle/roles.h"
#include "server/base/check.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct vault_state {
    struct view_vault vault;
    struct view_money money;
    struct view_head head; /* finalized: what is owed is what is final */
    u128 day_cap, day_paid;
};

static enum status read_state(struct vault_state *s, struct node *n, struct errtext *err)
{
    enum status st = view_vault(&n->view, "latest", &s->vault, err);
    if (!st)
        st = view_money(&n->view, "latest", &s->money, err);
    if (!st)
        st = view_day(&n->view, "latest", &s->day_cap, &s->day_paid, err);
    if (!st)
        st = view_head(&n->view, "finalized", &s->head, err);
    if (!st && s->head.cum_fee < s->vault.start_cum_fee)
        s->head.cum_fee = s->vault.start_cum_fee;
    return st;
}

/* ---- fund ---- */

struct fund {
    struct cli *c;
    struct node node;
    struct secp *secp;
    struct secp_key key;
    struct vault_state state;
    u128 cum_fee, need; /* the target as fundTo takes it, and what is missing */
    uint64_t batch;
    struct node_sent sent;
};

struct commit_match {
    uint8_t hash[32];
    u128 cum_fee;
    bool found;
};

static enum status match_commit(void *arg, const struct event_commit *e, struct errtext *err)
{
    struct commit_match *m = arg;
    (void)err;
    if (memcmp(e->hash, m->hash, 32) == 0) {
        m->cum_fee = e->header.cum_fee;
        m->found = true;
    }
    return STATUS_OK;
}

static enum status batch_target(struct fund *f, struct errtext *err)
{
    struct commit_match m = {.found = false};
    struct rpc_block last;
    uint64_t range[2] = {1, INT64_MAX};
    struct view *v = &f->node.view;
    enum status st = args_number(f->c, OPT_TO_BATCH, range, 0, &f->batch, err);
    if (!st && f->batch > f->state.head.seq)
        return err_set(err, STATUS_NOT_FOUND,
                       "batch %" PRIu64 ": the finalized chain has batches 1 to %" PRIu64, f->batch,
                       f->state.head.seq);
    if (!st)
        st = rpc_block(f->node.rpc, "finalized", &last, err);
    if (!st)
        st = view_batch_hash(v, "finalized", f->batch, m.hash, err);
    struct event_range where = {
        .from = f->node.d.start_block, .to = last.number, .number = f->batch};
    if (!st)
        st = events_commits(v, &where, match_commit, &m, err);
    if (!st && !m.found)
        st = err_set(err, STATUS_CORRUPT, "the node shows no commit of batch %" PRIu64, f->batch);
    f->cum_fee = m.cum_fee;
    return st;
}

static enum status find_target(struct fund *f, struct errtext *err)
{
    const struct vault_state *s = &f->state;
    if (cli_has(f->c, OPT_ALL) == cli_has(f->c, OPT_TO_BATCH))
        return err_set(err, STATUS_INVALID, "say --all or --to-batch N");
    enum status st = STATUS_OK;
    f->batch = s->head.seq;
    f->cum_fee = s->head.cum_fee;
    if (cli_has(f->c, OPT_TO_BATCH))
        st = batch_target(f, err);
    u128 total = f->cum_fee > s->vault.start_cum_fee ? f->cum_fee - s->vault.start_cum_fee : 0;
    f->need = total > s->money.funded ? total - s->money.funded : 0;
    return st;
}

static enum status send_approve(struct fund *f, u128 amount, const char *what, struct errtext *err)
{
    struct buf data;
    struct abi_tuple t;
    struct node_sent sent;
    buf_init(&data, 256);
    abi_put_selector(&data, "approve(address,uint256)");
    abi_begin(&t, &data, 2);
    abi_address(&t, f->node.d.vault);
    abi_uint(&t, amount);
    abi_end(&t);
    struct node_tx tx = {
        .secp = f->secp, .from = &f->key, .to = f->node.d.token, .data = &data, .what = what};
    enum status st = node_send(&f->node, f->c, &tx, &sent, err);
    buf_fini(&data);
    return st;
}

static enum status send_fund(struct fund *f, struct errtext *err)
{
    struct buf data;
    struct abi_tuple t;
    buf_init(&data, 256);
    abi_put_selector(&data, "fundTo(uint128)");
    abi_begin(&t, &data, 1);
    abi_uint(&t, f->cum_fee);
    abi_end(&t);
    struct node_tx tx = {.secp = f->secp,
                         .from = &f->key,
                         .to = f->node.d.vault,
                         .value = addr_is_zero(f->node.d.token) ? f->need : 0,
                         .data = &data,
                         .what = "vault fund"};
    enum status st = node_send(&f->node, f->c, &tx, &f->sent, err);
    buf_fini(&data);
    return st;
}

/* Some tokens refuse to change an allowance that is not 0. */
static enum status pay_token(struct fund *f, struct errtext *err)
{
    u128 allowed = 0;
    struct errtext after = ERRTEXT_INIT;
    enum status st = view_allowance(&f->node.view, "latest", f->key.address, &allowed, err);
    if (!st && allowed && allowed != f->need)
        st = send_approve(f, 0, "approve 0", err);
    if (!st && allowed != f->need)
        st = send_approve(f, f->need, "approve", err);
    if (st)
        return st;
    st = send_fund(f, err);
    enum status left = view_allowance(&f->node.view, "latest", f->key.address, &allowed, &after);
    if (!left && allowed)
        left = send_approve(f, 0, "approve 0", &after);
    return st || !left ? st
                       : err_set(err, left, "the allowance was not taken back: %s", after.text);
}

static enum status pay(struct fund *f, struct errtext *err)
{
    enum status st = secp_create(&f->secp, err);
    if (!st)
        st = prompt_load_key(f->secp, &f->key, f->c, err);
    if (!st)
        st = role_alone(&f->node.view, f->key.address, "", err); /* it can pay, nothing else */
    if (st || !f->need)
        return st;
    return addr_is_zero(f->node.d.token) ? send_fund(f, err) : pay_token(f, err);
}

static int print_fund(const struct fund *f)
{
    struct buf out;
    char amount[CLI_AMOUNT_BYTES];
    buf_init(&out, 4096);
    cli_amount(amount, f->need);
    if (cli_has(f->c, OPT_JSON)) {
        buf_printf(&out, "{\"ok\":true,\"batch\":%" PRIu64 ",", f->batch);
        cli_put_amount(&out, "paid", f->need);
        if (f->need) {
            buf_putc(&out, ',');
            buf_put_json_hex(&out, "transaction", f->sent.hash, 32);
        }
        buf_putc(&out, '}');
    } else if (!f->need) {
        buf_printf(&out, "the vault has what the batches up to %" PRIu64 " earned", f->batch);
    } else {
        buf_printf(&out, "paid %s\n  for the batches up to %" PRIu64 ", transaction ", amount,
                   f->batch);
        buf_put_hex(&out, f->sent.hash, 32);
    }
    int code = cli_print(&out, f->need ? CLI_FINE : CLI_NOTHING);
    buf_fini(&out);
    return code;
}

int verb_vault_fund(struct cli *c)
{
    struct fund f = {.c = c};
    struct errtext err = ERRTEXT_INIT;
    enum status st = node_open(&f.node, c, &err);
    if (!st)
        st = read_state(&f.state, &f.node, &err);
    if (!st)
        st = find_target(&f, &err);
    if (!st)
        st = pay(&f, &err);
    int code = st ? cli_fail(c, st, &err, node_hint(st)) : print_fund(&f);
    secp_key_fini(&f.key);
    secp_destroy(f.secp);
    node_close(&f.node);
    return code;
}

/* ---- status ---- */

static const struct role_row {
    const char *contract, *role, *what; /* what whoever steals its key can do */
} role_rows[] = {
    {"ledger", ROLE_ADMIN, "changes roles and rates, after the notice"},
    {"ledger", "COMMITTER", "commits batches"},
    {"ledger", "LANE_ADMIN", "registers and seals lanes"},
    {"ledger", "GUARDIAN", "pauses commits, drops one that nobody paid"},
    {"registry", ROLE_ADMIN, "changes policy and methods, after the notice"},
    {"registry", "REGISTRAR", "registers bases"},
    {"vault", ROLE_ADMIN, "retires epochs, takes surplus, changes roles after the notice"},
    {"vault", "PROPOSER", "proposes what attestors signed"},
    {"vault", "ATTESTOR", "signs epochs"},
    {"vault", "GUARDIAN", "vetoes and pauses"},
};

static const uint8_t *address_of(const struct deployment *d, const char *contract)
{
    return contract[0] == 'l' ? d->ledger : contract[0] == 'r' ? d->registry : d->vault;
}

static enum status put_roles(struct buf *out, struct node *n, bool json, struct errtext *err)
{
    enum status st = STATUS_OK;
    buf_puts(out, json ? ",\"roles\":[" : "\nwho may do what");
    for (size_t i = 0; i < ARRAY_COUNT(role_rows) && !st; i++) {
        const struct role_row *row = &role_rows[i];
        const char *name = row->role[0] ? row->role : "ADMIN";
        struct role_holders h;
        st = role_list(&n->view, address_of(&n->d, row->contract), row->role, &h, err);
        if (json)
            buf_printf(out, "%s{\"contract\":\"%s\",\"role\":\"%s\",\"accounts\":[", i ? "," : "",
                       row->contract, name);
        else
            buf_printf(out, "\n  %-8s %-11s %s:%s", row->contract, name, row->what,
                       h.count ? "" : " nobody");
        for (size_t k = 0; k < h.count && !st; k++) {
            char text[ADDR_TEXT_BYTES];
            addr_format(text, h.account[k]);
            buf_printf(out, json ? "%s\"%s\"" : "%s%s", json ? k ? "," : "" : "\n      ", text);
        }
        if (json)
            buf_puts(out, "]}");
    }
    if (json)
        buf_putc(out, ']');
    return st;
}

static void put_line(struct buf *out, const char *label, u128 v)
{
    char text[CLI_AMOUNT_BYTES];
    cli_amount(text, v);
    buf_printf(out, "\n  %-18s %s", label, text);
}

static void put_money(struct buf *out, const struct vault_state *s, bool json)
{
    const struct view_money *m = &s->money;
    u128 earned = s->head.cum_fee - s->vault.start_cum_fee;
    const struct {
        const char *key, *label;
        u128 value;
    } row[] = {{"earned", "earned by answers", earned},
               {"funded", "paid in", m->funded},
               {"owed", "owed to the vault", earned > m->funded ? earned - m->funded : 0},
               {"claimed", "claimed", m->total_claimed},
               {"held", "held", m->held},
               {"daily_cap", "a day may pay out", s->day_cap},
               {"paid_today", "paid out today", s->day_paid}};
    if (!json)
        buf_printf(out,
                   "batches 1 to %" PRIu64 " are final, epoch %" PRIu64
                   " is the last, claims are from %" PRIu64,
                   s->head.seq, m->last_epoch, m->active_epoch);
    for (size_t i = 0; i < ARRAY_COUNT(row); i++) {
        if (!json) {
            put_line(out, row[i].label, row[i].value);
            continue;
        }
        buf_putc(out, ',');
        cli_put_amount(out, row[i].key, row[i].value);
    }
    if (json)
        buf_printf(out,
                   ",\"last_epoch\":%" PRIu64 ",\"active_epoch\":%" PRIu64
                   ",\"attestors_min\":%" PRIu32 ",\"wait_s\":%" PRIu64 ",\"window_s\":%" PRIu64,
                   m->last_epoch, m->active_epoch, s->vault.attestors_min, s->vault.wait,
                   s->vault.window);
    else
        buf_printf(out,
                   "\n  an epoch needs %" PRIu32 " attestor(s), waits %" PRIu64
                   " s before and %" PRIu64 " s after its proposal",
                   s->vault.attestors_min, s->vault.wait, s->vault.window);
}

int verb_vault_status(struct cli *c)
{
    struct node n = {.url = NULL};
    struct vault_state s;
    struct errtext err = ERRTEXT_INIT;
    struct buf out;
    bool json = cli_has(c, OPT_JSON);
    buf_init(&out, 1u << 16);
    enum status st = node_open(&n, c, &err);
    if (!st)
        st = read_state(&s, &n, &err);
    if (!st && json)
        buf_puts(&out, "{\"ok\":true");
    if (!st)
        put_money(&out, &s, json);
    if (!st)
        st = put_roles(&out, &n, json, &err);
    if (json)
        buf_putc(&out, '}');
    int code = st ? cli_fail(c, st, &err, node_hint(st)) : cli_print(&out, CLI_FINE);
    buf_fini(&out);
    node_close(&n);
    return code;
}
