/* The page for people at /, carried in the program: chat, and who made the answer. Everything it
 * shows it asks this origin for, and of a settlement worker (settle_url) where a record stands. */
#ifndef RS_HTTP_PAGE_H
#define RS_HTTP_PAGE_H

#include "server/base/errtext.h"

#include <stddef.h>

#define PAGE_URL_BYTES_MAX    200
#define PAGE_POLICY_BYTES_MAX 512

/* http[s]://HOST[:PORT][/PATH] in plain characters: it goes into a header. INVALID; NULL is good.
 */
MUST_CHECK enum status page_check_url(const char *settle_url, struct errtext *err);
/* The Content-Security-Policy: nothing from elsewhere, nothing inline, in nobody's frame, no text
 * as markup; asks this origin, and settle_url's (checked, or NULL). */
void page_put_policy(char out[PAGE_POLICY_BYTES_MAX], const char *settle_url);

/* page/, embedded by embed.cmake */
extern const char page_index_html[], page_page_css[], page_page_js[], page_api_js[], page_dom_js[],
    page_answer_js[], page_shares_js[], page_chain_js[], page_adapters_js[], page_sign_html[],
    page_sign_js[], page_blake2b_js[], page_wallet_js[], page_datanets_html[], page_datanets_js[];
extern const size_t page_index_html_bytes, page_page_css_bytes, page_page_js_bytes,
    page_api_js_bytes, page_dom_js_bytes, page_answer_js_bytes, page_shares_js_bytes,
    page_chain_js_bytes, page_adapters_js_bytes, page_sign_html_bytes, page_sign_js_bytes,
    page_blake2b_js_bytes, page_wallet_js_bytes, page_datanets_html_bytes, page_datanets_js_bytes;

#endif
