/* Type 2: 0x02 ‖ rlp([chainId, nonce, tip, cap, gas, to, value, data, accessList]) is hashed and
 * signed; the sent bytes carry yParity (0 or 1), r and s as integers behind the nine. Every signed
 * transaction is decoded again before it leaves: the store keeps raw bytes and resends them for
 * days, so a wrong field must be found here. */
#include "chain_client/eth/tx.h"
#include "chain_client/eth/keccak.h"
#include "chain_client/eth/rlp.h"

#include <string.h>

#define TX_TYPE 0x02

static void put_fields(struct buf *out, const struct tx *tx)
{
    rlp_put_uint(out, tx->chain_id);
    rlp_put_uint(out, tx->nonce);
    rlp_put_uint(out, tx->tip_max);
    rlp_put_uint(out, tx->fee_max);
    rlp_put_uint(out, tx->gas_limit);
    rlp_put_bytes(out, tx->to, tx->is_create ? 0 : 20);
    rlp_put_uint(out, tx->value);
    rlp_put_bytes(out, tx->data, tx->data_len);
    rlp_list_end(out, rlp_list_begin(out)); /* the access list */
}

/* sig NULL: the bytes that are hashed for signing. */
static void put_transaction(struct buf *out, const struct tx *tx, const uint8_t *sig)
{
    buf_clear(out);
    buf_putc(out, TX_TYPE);
    size_t list = rlp_list_begin(out);
    put_fields(out, tx);
    if (sig) {
        rlp_put_uint(out, (u128)(sig[64] - 27));
        rlp_put_uint_bytes(out, sig, 32);
        rlp_put_uint_bytes(out, sig + 32, 32);
    }
    rlp_list_end(out, list);
}

static enum status check_fields(const struct tx *tx, struct errtext *err)
{
    if (!tx->chain_id)
        return err_param(err, STATUS_INVALID, "chainId", "chainId: found 0, expected a chain");
    if (tx->fee_max < tx->tip_max)
        return err_param(err, STATUS_INVALID, "maxFeePerGas",
                         "maxFeePerGas is below maxPriorityFeePerGas");
    if (tx->data_len > TX_DATA_BYTES_MAX)
        return err_param(err, STATUS_INVALID, "data", "data: %zu bytes, at most %u", tx->data_len,
                         TX_DATA_BYTES_MAX);
    return STATUS_OK;
}

bool tx_equal(const struct tx *a, const struct tx *b)
{
    bool same = a->chain_id == b->chain_id && a->nonce == b->nonce && a->tip_max == b->tip_max &&
                a->fee_max == b->fee_max && a->gas_limit == b->gas_limit && a->value == b->value &&
                a->is_create == b->is_create && a->data_len == b->data_len;
    if (same && !a->is_create)
        same = memcmp(a->to, b->to, 20) == 0;
    return same && (a->data_len == 0 || memcmp(a->data, b->data, a->data_len) == 0);
}

enum status tx_sign(const struct secp *c, struct buf *raw, uint8_t hash[32], const struct tx *tx,
                    const struct secp_key *key, struct errtext *err)
{
    uint8_t sig[SECP_SIGNATURE_BYTES], sender[20];
    struct tx back;
    enum status st = check_fields(tx, err);
    if (st)
        return st;
    put_transaction(raw, tx, NULL);
    if (raw->failed)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a transaction");
    keccak_256(hash, raw->data, raw->len);
    st = secp_sign(c, sig, key, hash, err);
    if (st)
        return st;
    put_transaction(raw, tx, sig);
    if (raw->failed)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a transaction");
    st = tx_decode(c, &back, sender, (const uint8_t *)raw->data, raw->len, err);
    if (st || !tx_equal(tx, &back) || memcmp(sender, key->address, 20) != 0)
        return err_set(err, STATUS_CORRUPT, "a signed transaction does not read back as it was");
    keccak_256(hash, raw->data, raw->len);
    return STATUS_OK;
}

static enum status read_u64(struct rlp_reader *r, uint64_t *v, const char *name,
                            struct errtext *err)
{
    u128 wide = 0;
    enum status st = rlp_next_uint(r, &wide, 8, name, err);
    *v = (uint64_t)wide;
    return st;
}

static enum status read_to(struct rlp_reader *r, struct tx *tx, struct errtext *err)
{
    struct rlp_item item;
    enum status st = rlp_next(r, &item, err);
    if (st)
        return st;
    if (item.is_list || (item.len != 0 && item.len != 20))
        return err_param(err, STATUS_INVALID, "to", "to: expected 20 bytes, or none");
    tx->is_create = item.len == 0;
    if (item.len)
        memcpy(tx->to, item.data, 20);
    return STATUS_OK;
}

static enum status read_data(struct rlp_reader *r, struct tx *tx, struct errtext *err)
{
    struct rlp_item item;
    enum status st = rlp_next(r, &item, err);
    if (st)
        return st;
    if (item.is_list)
        return err_param(err, STATUS_INVALID, "data", "data: found a list, expected bytes");
    tx->data = item.data;
    tx->data_len = item.len;
    return STATUS_OK;
}

static enum status read_fields(struct rlp_reader *r, struct tx *tx, struct errtext *err)
{
    struct rlp_reader access;
    enum status st = read_u64(r, &tx->chain_id, "chainId", err);
    if (!st)
        st = read_u64(r, &tx->nonce, "nonce", err);
    if (!st)
        st = rlp_next_uint(r, &tx->tip_max, 16, "maxPriorityFeePerGas", err);
    if (!st)
        st = rlp_next_uint(r, &tx->fee_max, 16, "maxFeePerGas", err);
    if (!st)
        st = read_u64(r, &tx->gas_limit, "gasLimit", err);
    if (!st)
        st = read_to(r, tx, err);
    if (!st)
        st = rlp_next_uint(r, &tx->value, 16, "value", err);
    if (!st)
        st = read_data(r, tx, err);
    if (!st)
        st = rlp_next_list(r, &access, err);
    if (!st && access.len)
        st = err_param(err, STATUS_UNSUPPORTED, "accessList", "accessList: expected an empty list");
    return st ? st : check_fields(tx, err);
}

/* r or s: at most 32 bytes without a leading zero, right-aligned in out. */
static enum status read_scalar(struct rlp_reader *r, uint8_t out[32], const char *name,
                               struct errtext *err)
{
    struct rlp_item item;
    enum status st = rlp_next(r, &item, err);
    if (st)
        return st;
    if (item.is_list || item.len > 32 || (item.len && !item.data[0]))
        return err_param(err, STATUS_INVALID, name, "%s: expected an integer of at most 32 bytes",
                         name);
    memset(out, 0, 32);
    memcpy(out + 32 - item.len, item.data, item.len);
    return STATUS_OK;
}

static enum status read_signature(struct rlp_reader *r, uint8_t sig[SECP_SIGNATURE_BYTES],
                                  struct errtext *err)
{
    u128 parity = 0;
    enum status st = rlp_next_uint(r, &parity, 1, "yParity", err);
    if (!st && parity > 1)
        st = err_param(err, STATUS_INVALID, "yParity", "yParity: found %u, expected 0 or 1",
                       (unsigned)parity);
    if (!st)
        st = read_scalar(r, sig, "r", err);
    if (!st)
        st = read_scalar(r, sig + 32, "s", err);
    sig[64] = (uint8_t)(27 + parity);
    return st ? st : rlp_end(r, err);
}

enum status tx_decode(const struct secp *c, struct tx *tx, uint8_t sender[20], const uint8_t *raw,
                      size_t len, struct errtext *err)
{
    struct rlp_reader r = {.data = raw + 1, .len = len ? len - 1 : 0}, list;
    uint8_t sig[SECP_SIGNATURE_BYTES], digest[32];
    memset(tx, 0, sizeof(*tx));
    if (!len || raw[0] != TX_TYPE)
        return err_param(err, STATUS_UNSUPPORTED, "type", "type: found %d, expected 2 (EIP-1559)",
                         len ? raw[0] : -1);
    enum status st = rlp_next_list(&r, &list, err);
    if (!st)
        st = rlp_end(&r, err);
    if (!st)
        st = read_fields(&list, tx, err);
    if (!st)
        st = read_signature(&list, sig, err);
    if (st)
        return st;
    struct buf unsigned_tx;
    buf_init(&unsigned_tx, TX_RAW_BYTES_MAX);
    put_transaction(&unsigned_tx, tx, NULL);
    if (unsigned_tx.failed)
        st = err_set(err, STATUS_NO_MEMORY, "no memory for a transaction");
    else
        keccak_256(digest, unsigned_tx.data, unsigned_tx.len);
    buf_fini(&unsigned_tx);
    return st ? st : secp_recover(c, sender, sig, digest, err);
}
