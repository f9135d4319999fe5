/* The table of the page's files. Their sizes are constants of other objects: the table is filled
 * when it is asked. */
#include "chain_client/settle/site.h"
#include "chain_client/eth/addr.h"
#include "chain_client/settle/archive.h"
#include "server/base/check.h"

#include <inttypes.h>
#include <string.h>

#define JS "text/javascript; charset=utf-8"

bool site_find(struct site_file *out, const char *path)
{
    const struct site_file file[] = {
        {"/", "text/html; charset=utf-8", page_index_html, page_index_html_bytes},
        {"/page.css", "text/css; charset=utf-8", page_page_css, page_page_css_bytes},
        {"/page.js", JS, page_page_js, page_page_js_bytes},
        {"/dom.js", JS, page_dom_js, page_dom_js_bytes},
        {"/chart.js", JS, page_chart_js, page_chart_js_bytes},
        {"/wallet.js", JS, page_wallet_js, page_wallet_js_bytes},
        {"/money.js", JS, page_money_js, page_money_js_bytes},
        {"/keccak.js", JS, page_keccak_js, page_keccak_js_bytes},
    };
    for (size_t i = 0; i < ARRAY_COUNT(file); i++) {
        if (strcmp(path, file[i].path) == 0) {
            *out = file[i];
            return true;
        }
    }
    return false;
}

static void put_address(struct buf *out, const char *key, const uint8_t address[20])
{
    char text[ADDR_TEXT_BYTES];
    addr_format(text, address);
    buf_printf(out, ",\"%s\":\"%s\"", key, text);
}

static void put_hash(struct buf *out, const char *before, const uint8_t hash[32])
{
    buf_puts(out, before);
    archive_put_hex(out, hash, 32);
}

static void put_text(struct buf *out, const char *key, const char *text)
{
    buf_printf(out, ",\"%s\":", key);
    if (text)
        buf_put_json_string(out, text, strlen(text));
    else
        buf_puts(out, "null");
}

void site_put_deployment(struct buf *out, const struct deployment *d, const struct settings *set)
{
    buf_printf(out, "{\"chain_id\":%" PRIu64, d->chain_id);
    put_hash(out, ",\"genesis_hash\":", d->genesis_hash);
    put_address(out, "registry", d->registry);
    put_address(out, "ledger", d->ledger);
    put_address(out, "vault", d->vault);
    put_address(out, "token", d->token);
    put_hash(out, ",\"code_hash\":{\"registry\":", d->registry_code);
    put_hash(out, ",\"ledger\":", d->ledger_code);
    put_hash(out, ",\"vault\":", d->vault_code);
    buf_printf(out, "},\"start_block\":%" PRIu64, d->start_block);
    put_text(out, "chain_name", set->chain_name);
    put_text(out, "public_rpc_url", set->public_rpc_url);
    put_text(out, "explorer_url", set->explorer_url);
    put_text(out, "coin_symbol", set->coin_symbol);
    buf_putc(out, '}');
}
