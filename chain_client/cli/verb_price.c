/* Prices, as their owners set them in the Registry: of an adapter (residual adapter price), and of
 * a base on a lane (residual lane tariff), which the lane's operator sets. Without new prices both
 * show what is registered. A change comes into force after the notice. */
#include "chain_client/cli/http.h"
#include "chain_client/cli/node.h"
#include "chain_client/cli/prompt.h"
#include "chain_client/eth/abi.h"
#include "chain_client/registry/views.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct price {
    struct cli *c;
    struct node node;
    struct registry_reader reader;
    struct secp *secp;
    struct secp_key key;
    uint8_t id[32]; /* the adapter's, or the base's */
    uint32_t lane;  /* of a tariff */
    u128 in, out;   /* new */
    bool is_tariff, is_change;
    bool registered;
    struct registry_tariff now, newest;
    const char *hint;
};

/* ---- what was asked ---- */

static enum status read_price(u128 *out, const struct cli *c, enum cli_option o, const char *name,
                              struct errtext *err)
{
    const char *text = c->value[o];
    return text && u128_parse(out, text) && *out < (u128)1 << TAIL_PRICE_BITS
               ? STATUS_OK
               : err_set(err, STATUS_INVALID,
                         "--%s: found '%.48s', expected a whole number of base units below 2^%d",
                         name, text ? text : "", TAIL_PRICE_BITS);
}

static enum status read_prices(struct price *p, struct errtext *err)
{
    const struct cli *c = p->c;
    p->is_change = cli_has(c, OPT_PRICE_IN) || cli_has(c, OPT_PRICE_OUT);
    if (!p->is_change)
        return STATUS_OK;
    enum status st = read_price(&p->in, c, OPT_PRICE_IN, "price-in", err);
    if (!st)
        st = read_price(&p->out, c, OPT_PRICE_OUT, "price-out", err);
    if (!st && !cli_has(c, OPT_KEY_FILE))
        st = err_set(err, STATUS_INVALID, "new prices need --key-file, the key of %s",
                     p->is_tariff ? "the lane's operator" : "the adapter's owner");
    return st;
}

/* What the server says at `key` of this path: a base's or an adapter's id. */
static enum status ask_id(struct price *p, const char *path, const char *key, struct errtext *err)
{
    struct http *h;
    json_t *answer = NULL;
    enum status st =
        http_open(&h, p->c->value[OPT_SERVER], p->c->value[OPT_API_KEY_FILE], "server", err);
    if (!st)
        st = http_call(h, "GET", path, NULL, &answer, err);
    p->hint = st ? http_hint(st) : NULL;
    const char *id = json_string_value(json_object_get(answer, key));
    if (!st && (!id || !hex_decode(p->id, 32, id)))
        st = err_set(err, STATUS_CORRUPT, "the server's %s names no %s: is it residuald?", path,
                     key);
    json_decref(answer);
    http_close(h);
    return st;
}

static enum status find_adapter(struct price *p, struct errtext *err)
{
    char path[256];
    const char *word = p->c->operand[0];
    if (hex_decode(p->id, 32, word))
        return STATUS_OK;
    if (!cli_has(p->c, OPT_SERVER))
        return err_set(err, STATUS_INVALID,
                       "'%.80s' is no content id (64 hex digits); a name needs --server", word);
    snprintf(path, sizeof(path), "/v1/adapters/%.128s", word);
    return ask_id(p, path, "id", err);
}

static enum status find_lane(struct price *p, struct errtext *err)
{
    u128 lane = 0;
    if (!u128_parse(&lane, p->c->operand[0]) || lane > UINT32_MAX)
        return err_set(err, STATUS_INVALID, "'%.40s': expected the number of a lane",
                       p->c->operand[0]);
    p->lane = (uint32_t)lane;
    return ask_id(p, "/version", "model_id", err);
}

/* ---- the Registry ---- */

static enum status read_at(struct price *p, uint64_t t, struct registry_tariff *out,
                           struct errtext *err)
{
    struct registry_terms terms;
    if (p->is_tariff)
        return registry_tariff_at(&p->reader, "latest", p->lane, p->id, t, out, err);
    enum status st = registry_adapter_at(&p->reader, "latest", p->id, t, &terms, err);
    *out = (struct registry_tariff){terms.active_at, terms.price_in, terms.price_out};
    p->registered |= !st && terms.registered;
    return st;
}

static enum status read_now(struct price *p, struct errtext *err)
{
    struct rpc_block head;
    enum status st = rpc_block(p->node.rpc, "latest", &head, err);
    if (!st)
        st = read_at(p, UINT64_MAX, &p->newest, err);
    if (!st)
        st = read_at(p, head.timestamp, &p->now, err);
    if (!st && !p->is_tariff && !p->registered)
        st = err_set(err, STATUS_NOT_FOUND,
                     "the adapter is not registered: it costs 0 and pays nobody");
    return st;
}

static enum status send(struct price *p, struct errtext *err)
{
    struct buf data;
    struct abi_tuple t;
    struct node_sent sent;
    enum status st = secp_create(&p->secp, err);
    if (!st)
        st = prompt_load_key(p->secp, &p->key, p->c, err);
    if (st)
        return st;
    buf_init(&data, 256);
    abi_put_selector(&data, p->is_tariff ? "setTariff(uint32,bytes32,uint128,uint128)"
                                         : "setPrice(bytes32,uint128,uint128)");
    abi_begin(&t, &data, p->is_tariff ? 4 : 3);
    if (p->is_tariff)
        abi_uint(&t, p->lane);
    abi_bytes32(&t, p->id);
    abi_uint(&t, p->in);
    abi_uint(&t, p->out);
    abi_end(&t);
    struct node_tx tx = {.secp = p->secp,
                         .from = &p->key,
                         .to = p->node.d.registry,
                         .data = &data,
                         .what = p->is_tariff ? "setTariff" : "setPrice"};
    st = node_send(&p->node, p->c, &tx, &sent, err);
    buf_fini(&data);
    return st;
}

/* ---- the answer ---- */

static void put_prices(struct buf *out, bool json, const char *name,
                       const struct registry_tariff *t)
{
    char in[40], price_out[40];
    u128_format(in, t->price_in);
    u128_format(price_out, t->price_out);
    if (json)
        buf_printf(out, "\"%s\":{\"active_at\":%" PRIu64 ",\"in\":\"%s\",\"out\":\"%s\"}", name,
                   t->active_at, in, price_out);
    else
        buf_printf(out, "%-8s %s in, %s out (base units per 1000 tokens), from second %" PRIu64,
                   name, in, price_out, t->active_at);
}

static int print_prices(struct price *p)
{
    struct buf out;
    bool json = cli_has(p->c, OPT_JSON), pending = p->newest.active_at > p->now.active_at;
    buf_init(&out, 4096);
    buf_puts(&out, json ? "{\"ok\":true," : "");
    if (!json && !p->now.active_at && !pending)
        buf_puts(&out, "none registered: it costs 0");
    else
        put_prices(&out, json, "now", &p->now);
    if (pending) {
        buf_puts(&out, json ? "," : "\n");
        put_prices(&out, json, "then", &p->newest);
    }
    buf_puts(&out, json ? "}" : "");
    int code = cli_print(&out, CLI_FINE);
    buf_fini(&out);
    return code;
}

static int run(struct price *p, enum status (*find)(struct price *p, struct errtext *err))
{
    struct errtext err = ERRTEXT_INIT;
    enum status st = read_prices(p, &err);
    if (!st)
        st = find(p, &err);
    if (!st) {
        st = node_open(&p->node, p->c, &err);
        p->hint = st ? node_hint(st) : NULL;
    }
    if (!st)
        registry_open(&p->reader, p->node.rpc, p->node.d.registry);
    if (!st && p->is_change)
        st = send(p, &err);
    if (!st)
        st = read_now(p, &err);
    int code = st ? cli_fail(p->c, st, &err, p->hint) : print_prices(p);
    registry_close(&p->reader);
    secp_key_fini(&p->key);
    secp_destroy(p->secp);
    node_close(&p->node);
    return code;
}

int verb_lane_tariff(struct cli *c)
{
    struct price p = {.c = c, .is_tariff = true};
    return run(&p, find_lane);
}

int verb_adapter_price(struct cli *c)
{
    struct price p = {.c = c};
    return run(&p, find_adapter);
}
