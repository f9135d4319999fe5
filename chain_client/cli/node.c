/* A transaction is estimated first: what the contract would refuse costs nothing and is explained.
 * The fee allows for the base fee to double while it waits. It is sent once; whoever repeats the
 * command repeats a call of absolute state, which changes nothing the second time. */
#include "chain_client/cli/node.h"
#include "chain_client/cli/place.h"
#include "chain_client/eth/abi.h"
#include "chain_client/eth/addr.h"
#include "chain_client/eth/rpc.h"
#include "chain_client/eth/tx.h"
#include "server/base/check.h"
#include "server/base/clock.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define WAIT_S_STANDARD 180
#define POLL_MS_FIRST   250
#define POLL_MS_MAX     4000

enum status node_open(struct node *n, const struct cli *c, struct errtext *err)
{
    uint64_t range[2] = {1, 86400};
    *n = (struct node){.url = c->value[OPT_RPC]};
    enum status st = args_number(c, OPT_WAIT_S, range, WAIT_S_STANDARD, &n->wait_s, err);
    if (!st)
        st = place_deployment(&n->d, c, err);
    if (!st && !n->url)
        st = err_set(err, STATUS_INVALID, "--rpc URL is missing: a node of the deployment's chain");
    if (!st)
        st = rpc_open(&n->rpc, &(struct rpc_config){.url = n->url}, err);
    view_init(&n->view, n->rpc, &n->d);
    if (!st)
        st = deployment_check(&n->d, n->rpc, err);
    if (st == STATUS_IO || st == STATUS_TIMEOUT)
        err_prefix(err, "%s", n->url);
    if (st)
        node_close(n);
    return st;
}

void node_close(struct node *n)
{
    if (n->url)
        view_fini(&n->view);
    rpc_close(n->rpc);
    *n = (struct node){0};
}

const char *node_hint(enum status st)
{
    switch (st) {
    case STATUS_IO:
    case STATUS_TIMEOUT:
        return "Is a chain node running at the URL of --rpc? Try again once it answers.";
    case STATUS_BUSY:
        return "The node limits how often it is asked: try again later, or name another with "
               "--rpc.";
    case STATUS_CONFLICT:
        return "--rpc and --deployment belong to different chains: use the deployment file that "
               "was written for this chain.";
    default:
        return NULL;
    }
}

enum status node_ask(struct node *n, const uint8_t to[20], const struct buf *data,
                     struct abi_reader *r, struct errtext *err)
{
    struct rpc_call call = {.to = to, .data = data->data, .data_len = data->len};
    enum status st = rpc_call(n->rpc, &call, "latest", &n->view.out, err);
    *r = (struct abi_reader){(const uint8_t *)n->view.out.data, n->view.out.len};
    return st;
}

/* A refusal of the node: the contract's reason in words, or the node's own. */
static enum status explain(struct node *n, const struct node_tx *tx, struct errtext *err)
{
    char why[256], from[ADDR_TEXT_BYTES];
    const struct rpc_fault *f = rpc_last_fault(n->rpc);
    err_clear(err);
    addr_format(from, tx->from->address);
    if (reverts_explain(why, sizeof(why), f->data, f->data_len))
        return err_set(err, STATUS_DENIED, "%s: the contract refuses: %s", tx->what, why);
    return err_set(err, STATUS_DENIED, "%s from %s: %s", tx->what, from, f->message);
}

/* What a node asks for before it takes a transaction: the limit at the highest price. */
static enum status check_gas(struct node *n, const struct node_tx *tx, const struct tx *t,
                             struct errtext *err)
{
    u128 have = 0, need = (u128)t->gas_limit * t->fee_max;
    char from[ADDR_TEXT_BYTES], had[CLI_AMOUNT_BYTES], needs[CLI_AMOUNT_BYTES];
    enum status st = rpc_balance(n->rpc, tx->from->address, "latest", &have, err);
    if (st || have >= need)
        return st;
    addr_format(from, tx->from->address);
    cli_amount(had, have);
    cli_amount(needs, need);
    n->lacks_gas = true;
    return err_set(err, STATUS_DENIED,
                   "%s: %s cannot pay the gas: it holds %s and up to %s is needed", tx->what, from,
                   had, needs);
}

static enum status fill(struct node *n, const struct node_tx *tx, struct tx *t, struct errtext *err)
{
    u128 base = 0;
    struct rpc_call call = {.from = tx->from->address,
                            .to = tx->to,
                            .value = tx->value,
                            .data = tx->data->data,
                            .data_len = tx->data->len};
    *t = (struct tx){.chain_id = n->d.chain_id,
                     .value = tx->value,
                     .data = (const uint8_t *)tx->data->data,
                     .data_len = tx->data->len};
    memcpy(t->to, tx->to, 20);
    enum status st = rpc_estimate_gas(n->rpc, &call, &t->gas_limit, err);
    if (st == STATUS_INVALID)
        return explain(n, tx, err);
    if (!st)
        st = rpc_transaction_count(n->rpc, tx->from->address, "pending", &t->nonce, err);
    if (!st)
        st = rpc_next_base_fee(n->rpc, &base, err);
    if (!st)
        st = rpc_tip(n->rpc, &t->tip_max, err);
    t->gas_limit += t->gas_limit / 4;
    t->fee_max = 2 * base + t->tip_max;
    return st ? st : check_gas(n, tx, t, err);
}

/* What a node says while it indexes, lags or is asked too often is no verdict: it is asked again,
 * less and less often. */
static enum status await(struct node *n, const struct node_tx *tx, struct node_sent *sent,
                         struct errtext *err)
{
    struct rpc_receipt r;
    char hash[65];
    uint64_t end_ns = clock_mono_ns() + n->wait_s * 1000000000u;
    uint32_t poll_ms = POLL_MS_FIRST;
    hex_encode(hash, sent->hash, 32);
    for (;;) {
        struct errtext last = ERRTEXT_INIT;
        enum status st = rpc_receipt(n->rpc, sent->hash, &r, &last);
        if (st == STATUS_OK)
            break;
        if (st == STATUS_CORRUPT || st == STATUS_TOO_LARGE)
            return err_set(err, st, "%s: transaction 0x%s: %s", tx->what, hash, last.text);
        if (clock_mono_ns() > end_ns)
            return err_set(err, STATUS_TIMEOUT,
                           "%s: transaction 0x%s is not in a block after %" PRIu64
                           " s (%s); it may still come",
                           tx->what, hash, n->wait_s, last.text);
        clock_sleep_ms(poll_ms);
        poll_ms = MIN(poll_ms + poll_ms / 2, (uint32_t)POLL_MS_MAX);
    }
    sent->block = r.block_number;
    sent->gas_used = r.gas_used;
    sent->gas_paid = r.effective_gas_price * r.gas_used;
    return r.succeeded ? STATUS_OK
                       : err_set(err, STATUS_DENIED,
                                 "%s: transaction 0x%s failed on the chain (block %" PRIu64 ")",
                                 tx->what, hash, sent->block);
}

enum status node_send(struct node *n, const struct cli *c, const struct node_tx *tx,
                      struct node_sent *sent, struct errtext *err)
{
    struct tx t;
    struct buf raw;
    char hash[65];
    *sent = (struct node_sent){0};
    if (tx->data->failed)
        return err_set(err, STATUS_TOO_LARGE, "%s: the call is too long", tx->what);
    buf_init(&raw, TX_RAW_BYTES_MAX);
    enum status st = fill(n, tx, &t, err);
    if (!st)
        st = tx_sign(tx->secp, &raw, sent->hash, &t, tx->from, err);
    hex_encode(hash, sent->hash, 32);
    if (!st) {
        cli_note(c, "%s: sending transaction 0x%s", tx->what, hash);
        st = rpc_send_raw(n->rpc, raw.data, raw.len, sent->hash, err);
        if (st == STATUS_INVALID)
            st = explain(n, tx, err);
        else if (st && st != STATUS_TIMEOUT)
            err_prefix(err, "%s: transaction 0x%s may have been sent", tx->what, hash);
    }
    buf_fini(&raw);
    if (st && st != STATUS_TIMEOUT) /* after a timeout the node may have it */
        return st;
    err_clear(err);
    return await(n, tx, sent, err);
}
