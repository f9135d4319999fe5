/* The page for people, carried in the program, and the facts it and the command line begin with.
 * Everything it shows it asks this same origin for; a wallet in the browser is its only other peer.
 * Pure. Thread: any. */
#ifndef RS_SETTLE_SITE_H
#define RS_SETTLE_SITE_H

#include "chain_client/settle/deployment.h"
#include "chain_client/settle/settings.h"
#include "server/base/buf.h"

struct site_file {
    const char *path, *type;
    const char *data;
    size_t bytes;
};

/* Nothing from elsewhere, nothing inline, in nobody's frame; a wallet's icon is a data: image. */
#define SITE_POLICY                                                                                \
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "              \
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

/* False: no file has this path. */
bool site_find(struct site_file *out, const char *path);

/* The deployment file's facts, and chain_name, public_rpc_url, explorer_url (null unless set) and
 * coin_symbol. Whoever reads it compares chain id, genesis and code with a node of its own. */
void site_put_deployment(struct buf *out, const struct deployment *d, const struct settings *set);

/* page/, and dom.js, wallet.js of server/http/page/, embedded by server/http/embed.cmake */
extern const char page_index_html[], page_page_css[], page_page_js[], page_chart_js[],
    page_wallet_js[], page_money_js[], page_keccak_js[], page_dom_js[];
extern const size_t page_index_html_bytes, page_page_css_bytes, page_page_js_bytes,
    page_chart_js_bytes, page_wallet_js_bytes, page_money_js_bytes, page_keccak_js_bytes,
    page_dom_js_bytes;

#endif
