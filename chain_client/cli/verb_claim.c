/* residual claim and residual rewards. */
#include "chain_client/cli/books.h"
#include "chain_client/cli/prompt.h"
#include "chain_client/cli/proof.h"
#include "chain_client/epoch.h"
#include "chain_client/eth/abi.h"
#include "chain_client/eth/addr.h"
#include "server/base/check.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define PRINT_BYTES_MAX (4u << 20)

/* A view of one address that answers one word. */
static enum status ask_account(struct node *n, const uint8_t to[20], const char *signature,
                               const uint8_t account[20], struct abi_reader *r, struct errtext *err)
{
    struct buf data;
    struct abi_tuple t;
    buf_init(&data, 64);
    abi_put_selector(&data, signature);
    abi_begin(&t, &data, 1);
    abi_address(&t, account);
    abi_end(&t);
    enum status st = node_ask(n, to, &data, r, err);
    buf_fini(&data);
    return st;
}

/* Who gets the coins: the account, or the payout address it named. */
static enum status payee_of(struct node *n, const uint8_t account[20], uint8_t payee[20],
                            struct errtext *err)
{
    struct abi_reader r;
    enum status st = ask_account(n, n->d.vault, "payoutOf(address)", account, &r, err);
    if (!st)
        st = abi_read_address(&r, 0, payee, "payoutOf", err);
    if (!st && addr_is_zero(payee))
        memcpy(payee, account, 20);
    return st;
}

static enum status balance_of(struct node *n, const uint8_t payee[20], u128 *v, struct errtext *err)
{
    struct abi_reader r;
    if (addr_is_zero(n->d.token))
        return rpc_balance(n->rpc, payee, "latest", v, err);
    enum status st = ask_account(n, n->d.token, "balanceOf(address)", payee, &r, err);
    return st ? st : abi_read_uint(&r, 0, 16, v, "balanceOf", err);
}

struct claim {
    struct cli *c;
    struct node node;
    struct secp *secp;
    struct secp_key key;
    uint8_t account[20], payee[20];
    struct proof proof;
    u128 before, after;
    u128 claimed; /* so far, once it is sent: less than earned where the day's cap was near */
    struct node_sent sent;
    bool is_sent;
    struct books books; /* of `rewards` with --settle */
};

static u128 claimable(const struct proof *p)
{
    return p->cumulative > p->claimed ? p->cumulative - p->claimed : 0;
}

static u128 paid_now(const struct claim *k)
{
    return k->claimed > k->proof.claimed ? k->claimed - k->proof.claimed : 0;
}

static u128 left_over(const struct claim *k)
{
    return k->proof.cumulative > k->claimed ? k->proof.cumulative - k->claimed : 0;
}

static void put_json(struct buf *out, const struct claim *k)
{
    buf_puts(out, "{\"ok\":true,");
    cli_put_json_address(out, "account", k->account);
    buf_printf(out, ",\"epoch\":%" PRIu64 ",\"index\":%" PRIu32 ",", k->proof.epoch, k->proof.idx);
    cli_put_amount(out, "cumulative", k->proof.cumulative);
    buf_putc(out, ',');
    cli_put_amount(out, "claimed_before", k->proof.claimed);
    buf_putc(out, ',');
    cli_put_amount(out, k->is_sent ? "paid" : "claimable",
                   k->is_sent ? paid_now(k) : claimable(&k->proof));
    if (k->is_sent) {
        buf_putc(out, ',');
        cli_put_amount(out, "left", left_over(k));
        buf_putc(out, ',');
        cli_put_json_address(out, "paid_to", k->payee);
        buf_putc(out, ',');
        cli_put_amount(out, "balance_before", k->before);
        buf_putc(out, ',');
        cli_put_amount(out, "balance_after", k->after);
        buf_putc(out, ',');
        buf_put_json_hex(out, "transaction", k->sent.hash, 32);
        buf_printf(out, ",\"block\":%" PRIu64 ",\"gas_used\":%" PRIu64, k->sent.block,
                   k->sent.gas_used);
    }
    if (k->books.sources)
        books_put_json(out, &k->books);
    buf_putc(out, '}');
}

static void put_row(struct buf *out, const char *label, u128 v)
{
    char text[CLI_AMOUNT_BYTES];
    cli_amount(text, v);
    buf_printf(out, "\n  %-15s %s", label, text);
}

static void put_text(struct buf *out, const struct claim *k)
{
    char account[ADDR_TEXT_BYTES], payee[ADDR_TEXT_BYTES];
    addr_format(account, k->account);
    addr_format(payee, k->payee);
    if (!k->proof.epoch) {
        buf_printf(out, "%s: no epoch is active yet", account);
        books_put_text(out, &k->books);
        return;
    }
    buf_printf(out, "%s, epoch %" PRIu64 " (proof checked against the chain)", account,
               k->proof.epoch);
    put_row(out, "earned", k->proof.cumulative);
    put_row(out, "paid before", k->proof.claimed);
    if (k->is_sent)
        put_row(out, "paid now", paid_now(k));
    else
        put_row(out, "to be claimed", claimable(&k->proof));
    if (k->is_sent && left_over(k)) {
        put_row(out, "left", left_over(k));
        buf_puts(out, ": the vault pays no more today, claim again tomorrow");
    }
    books_put_text(out, &k->books);
    if (!k->is_sent)
        return;
    put_row(out, "balance before", k->before);
    put_row(out, "balance after", k->after);
    if (memcmp(k->payee, k->account, 20) != 0)
        buf_printf(out, "\n  %-15s %s", "paid to", payee);
    buf_printf(out, "\n  %-15s ", "transaction");
    buf_put_hex(out, k->sent.hash, 32);
    buf_printf(out, ", block %" PRIu64, k->sent.block);
}

static int print(const struct claim *k, int code)
{
    struct buf out;
    buf_init(&out, PRINT_BYTES_MAX);
    if (cli_has(k->c, OPT_JSON))
        put_json(&out, k);
    else
        put_text(&out, k);
    code = cli_print(&out, code);
    buf_fini(&out);
    return code;
}

static enum status send(struct claim *k, struct errtext *err)
{
    struct buf data;
    struct epoch_claim call = {.epoch = k->proof.epoch,
                               .idx = k->proof.idx,
                               .cumulative = k->proof.cumulative,
                               .proof = &k->proof.path};
    memcpy(call.account, k->account, 20);
    buf_init(&data, EPOCH_CLAIM_BYTES_MAX);
    epoch_put_claim(&data, &call);
    struct node_tx tx = {
        .secp = k->secp, .from = &k->key, .to = k->node.d.vault, .data = &data, .what = "claim"};
    enum status st = payee_of(&k->node, k->account, k->payee, err);
    if (!st)
        st = balance_of(&k->node, k->payee, &k->before, err);
    if (!st)
        st = node_send(&k->node, k->c, &tx, &k->sent, err);
    if (!st)
        st = balance_of(&k->node, k->payee, &k->after, err);
    if (!st)
        st = view_claimed(&k->node.view, "latest", k->account, &k->claimed, err);
    k->is_sent = !st;
    buf_fini(&data);
    return st;
}

static enum status open_all(struct claim *k, struct errtext *err)
{
    const struct cli *c = k->c;
    const char *account = c->operand_count ? c->operand[0] : c->value[OPT_ACCOUNT];
    enum status st = secp_create(&k->secp, err);
    if (!st && cli_has(c, OPT_KEY_FILE))
        st = prompt_load_key(k->secp, &k->key, c, err);
    if (!st && account) {
        st = addr_parse(k->account, account, err);
        if (st)
            err_prefix(err, "account");
    } else {
        memcpy(k->account, k->key.address, 20);
    }
    return st ? st : node_open(&k->node, c, err);
}

static void close_all(struct claim *k)
{
    secp_key_fini(&k->key);
    secp_destroy(k->secp);
    node_close(&k->node);
    books_fini(&k->books);
}

/* Whoever has coins may send it: the call is the same, and the account is paid. */
static const char *claim_hint(const struct claim *k, enum status st, char *text, size_t text_bytes)
{
    char account[ADDR_TEXT_BYTES];
    if (!k->node.lacks_gas)
        return proof_hint(k->c, st);
    addr_format(account, k->account);
    snprintf(text, text_bytes,
             "Send it that much, or let anyone who has it claim for you: residual claim --account "
             "%s with their --key-file; the account is paid whoever sends it.",
             account);
    return text;
}

int verb_claim(struct cli *c)
{
    struct claim k = {.c = c};
    struct errtext err = ERRTEXT_INIT;
    char hint[256];
    int code = CLI_FINE;
    enum status st = open_all(&k, &err);
    if (!st)
        st = proof_find(&k.proof, &k.node, c, k.account, &err);
    if (!st && claimable(&k.proof) == 0)
        code = CLI_NOTHING;
    else if (!st)
        st = send(&k, &err);
    if (st)
        code = cli_fail(c, st, &err, claim_hint(&k, st, hint, sizeof(hint)));
    else
        code = print(&k, code);
    close_all(&k);
    return code;
}

int verb_rewards(struct cli *c)
{
    struct claim k = {.c = c};
    struct errtext err = ERRTEXT_INIT;
    enum status st = open_all(&k, &err);
    if (!st)
        st = proof_find(&k.proof, &k.node, c, k.account, &err);
    if (!st && cli_has(c, OPT_SETTLE))
        st = books_read(&k.books, c, k.account, &err);
    int code = st ? cli_fail(c, st, &err, proof_hint(c, st)) : print(&k, CLI_FINE);
    close_all(&k);
    return code;
}
