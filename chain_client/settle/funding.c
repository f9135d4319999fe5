/* Money into the vault. fundTo takes a total, so a repeat moves nothing. With a token the vault is
 * allowed exactly what it lacks, and nothing afterwards: some tokens refuse to change an
 * allowance that is not 0, so one that is too small goes to 0 first. Without the funder's key it is
 * said what a person must pay. */
#include "chain_client/eth/abi.h"
#include "chain_client/eth/addr.h"
#include "chain_client/settle/gauges.h"
#include "chain_client/settle/worker.h"

#include <inttypes.h>

static enum status raise_approve(struct worker *w, const char *kind, uint64_t key, u128 amount,
                                 struct errtext *err)
{
    struct buf data;
    struct abi_tuple t;
    buf_init(&data, 256);
    abi_put_selector(&data, "approve(address,uint256)");
    abi_begin(&t, &data, 2);
    abi_address(&t, w->dep.vault);
    abi_uint(&t, amount);
    abi_end(&t);
    struct sender_call call = {
        .role = SENDER_FUNDER, .kind = kind, .key = key, .to = w->dep.token, .data = &data};
    enum status st = sender_raise(&w->sender, &call, err);
    buf_fini(&data);
    return st;
}

static enum status raise_fund(struct worker *w, const struct funding *f, u128 value,
                              struct errtext *err)
{
    struct buf data;
    struct abi_tuple t;
    buf_init(&data, 256);
    abi_put_selector(&data, "fundTo(uint128)");
    abi_begin(&t, &data, 1);
    abi_uint(&t, f->total + w->vault.start_cum_fee);
    abi_end(&t);
    struct sender_call call = {.role = SENDER_FUNDER,
                               .kind = "fund",
                               .key = f->paid,
                               .to = w->dep.vault,
                               .data = &data,
                               .value = value};
    enum status st = sender_raise(&w->sender, &call, err);
    buf_fini(&data);
    return st;
}

/* Said, where the key is not here. */
static enum status ask_a_person(struct worker *w, const struct funding *f, u128 need,
                                struct errtext *err)
{
    char vault[ADDR_TEXT_BYTES], amount[40], total[40];
    addr_format(vault, w->dep.vault);
    u128_format(amount, need);
    u128_format(total, f->total + w->vault.start_cum_fee);
    return trouble_say(&w->db, TROUBLE_VAULT_UNFUNDED, f->paid, err,
                       "the vault %s lacks %s wei for the batches up to %" PRIu64
                       ", and this worker "
                       "has no funder key: whoever owes the fees sends fundTo(%s), with `residual "
                       "vault fund`; the epoch goes on by itself",
                       vault, amount, f->paid, total);
}

static enum status fund_token(struct worker *w, const struct funding *f, u128 need,
                              struct errtext *err)
{
    const uint8_t *funder = w->sender.signer[SENDER_FUNDER].key.address;
    u128 allowed = 0;
    enum status st = view_allowance(&w->view, "latest", funder, &allowed, err);
    if (st)
        return st;
    if (allowed >= need)
        return raise_fund(w, f, 0, err);
    return allowed ? raise_approve(w, "unapprove", f->paid, 0, err)
                   : raise_approve(w, "approve", f->paid, need, err);
}

enum status funding_step(struct worker *w, const struct funding *f, bool *ready,
                         struct errtext *err)
{
    u128 need = f->funded < f->total ? f->total - f->funded : 0;
    *ready = !need;
    enum status st = gauge_set(&w->db, "funding_needed_wei", "", need, err);
    if (st || !need)
        return st ? st : trouble_clear(&w->db, TROUBLE_VAULT_UNFUNDED, f->paid, err);
    if (!w->sender.signer[SENDER_FUNDER].present)
        return ask_a_person(w, f, need, err);
    return addr_is_zero(w->dep.token) ? raise_fund(w, f, need, err) : fund_token(w, f, need, err);
}

enum status funding_reset(struct worker *w, uint64_t paid, struct errtext *err)
{
    const struct sender_signer *funder = &w->sender.signer[SENDER_FUNDER];
    u128 allowed = 0;
    if (addr_is_zero(w->dep.token) || !funder->present)
        return STATUS_OK;
    enum status st = view_allowance(&w->view, "latest", funder->key.address, &allowed, err);
    return st || !allowed ? st : raise_approve(w, "unapprove", paid, 0, err);
}
