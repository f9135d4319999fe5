/* Names, folders and addresses: looked at in the order of the table of keys. */
#include "server/values.h"
#include "server/adapter/publish.h"
#include "server/base/hex.h"
#include "server/spool/ship.h"

#include <string.h>

enum status values_check(const struct config *c, struct errtext *err)
{
    if (strcmp(c->dtype, "auto") != 0 && strcmp(c->dtype, "f32") != 0 &&
        strcmp(c->dtype, "bf16") != 0)
        return err_param(err, STATUS_INVALID, "dtype",
                         "dtype: found '%s', expected auto, f32 or bf16", c->dtype);
    if (c->adapter_roots.count + (c->adapter_dir ? 1 : 0) > PUBLISH_ROOTS_MAX)
        return err_param(err, STATUS_TOO_LARGE, "adapter_roots",
                         "adapter_roots: %u folders, at most %d with adapter_dir",
                         c->adapter_roots.count, PUBLISH_ROOTS_MAX);
    if (c->adapter_dir && !file_exists(c->adapter_dir))
        return err_param(err, STATUS_NOT_FOUND, "adapter_dir", "adapter_dir %s: no such folder",
                         c->adapter_dir);
    for (uint32_t i = 0; i < c->adapter.count; i++) {
        const char *item = c->adapter.item[i], *eq = strchr(item, '=');
        if (!eq || eq == item || (size_t)(eq - item) > CATALOG_NAME_MAX || !eq[1])
            return err_param(err, STATUS_INVALID, "adapter",
                             "adapter: found '%s', expected NAME=DIR", item);
        if (!file_exists(eq + 1))
            return err_param(err, STATUS_NOT_FOUND, "adapter", "adapter %s: no such folder", item);
    }
    struct ship_options ship = {.redis_url = c->redis_url,
                                .password_file = c->redis_password_file,
                                .ca_file = c->redis_ca_file};
    return c->redis_url ? ship_check(&ship, err) : STATUS_OK;
}

static enum status parse_address(uint8_t out[20], const char *text, const char *key,
                                 struct errtext *err)
{
    memset(out, 0, 20);
    if (!text || !*text || hex_decode(out, 20, text))
        return STATUS_OK;
    return err_param(err, STATUS_INVALID, key, "%s: found '%.64s', expected 0x and 40 hex digits",
                     key, text);
}

static enum status parse_price(u128 *out, const char *text, const char *key, struct errtext *err)
{
    if (u128_parse(out, text) && *out < (u128)1 << 80)
        return STATUS_OK;
    return err_param(err, STATUS_INVALID, key,
                     "%s: found '%.48s', expected a whole number of base units below 2^80", key,
                     text);
}

enum status values_read(struct values *out, const struct config *c, struct errtext *err)
{
    enum status st = parse_address(out->ledger, c->ledger, "ledger", err);
    if (!st)
        st = parse_address(out->registry, c->registry, "registry", err);
    if (!st)
        st = parse_price(&out->base_tariff.in, c->base_price_in, "base_price_in", err);
    if (!st)
        st = parse_price(&out->base_tariff.out, c->base_price_out, "base_price_out", err);
    if (!st && c->chain_id && !c->ledger)
        st = err_param(err, STATUS_INVALID, "ledger",
                       "ledger: missing; chain_id %llu is set and needs the ledger's address",
                       (unsigned long long)c->chain_id);
    return st;
}
