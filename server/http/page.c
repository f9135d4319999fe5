/* The page's files, and the facts it begins with. Their sizes are constants of other objects: the
 * table is filled when it is asked. */
#include "server/http/page.h"
#include "chain_client/eth/addr.h"
#include "server/base/check.h"
#include "server/http/handlers.h"
#include "server/http/keyring.h"
#include "server/http/state.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define HTML "text/html; charset=utf-8"
#define CSS  "text/css; charset=utf-8"
#define JS   "text/javascript; charset=utf-8"

#define PLAIN "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-"

/* The length of "http[s]://HOST[:PORT]", 0 for anything else. */
static size_t origin_len(const char *url)
{
    size_t scheme = strncmp(url, "http://", 7) == 0 ? 7 : strncmp(url, "https://", 8) == 0 ? 8 : 0;
    size_t host = scheme ? strspn(url + scheme, PLAIN ":[]") : 0;
    return host ? scheme + host : 0;
}

enum status page_check_url(const char *settle_url, struct errtext *err)
{
    size_t len = settle_url ? origin_len(settle_url) : 0;
    if (!settle_url)
        return STATUS_OK;
    if (len && settle_url[len] == '/')
        len += strspn(settle_url + len, PLAIN "_~/");
    if (len == 0 || settle_url[len] || len > PAGE_URL_BYTES_MAX)
        return err_param(err, STATUS_INVALID, "settle_url",
                         "settle_url: found '%.80s', expected the settlement worker's address as "
                         "browsers reach it, http[s]://HOST[:PORT][/PATH], at most %d characters",
                         settle_url, PAGE_URL_BYTES_MAX);
    return STATUS_OK;
}

void page_put_policy(char out[PAGE_POLICY_BYTES_MAX], const char *settle_url)
{
    int n = snprintf(out, PAGE_POLICY_BYTES_MAX,
                     "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
                     "connect-src 'self'%s%.*s; base-uri 'none'; form-action 'none'; "
                     "frame-ancestors 'none'; require-trusted-types-for 'script'; "
                     "trusted-types 'none'",
                     settle_url ? " " : "", settle_url ? (int)origin_len(settle_url) : 0,
                     settle_url ? settle_url : "");
    CHECK(n > 0 && n < PAGE_POLICY_BYTES_MAX);
}

static void not_here(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    (void)err_set(&err, STATUS_NOT_FOUND,
                  "there is no GET %.200s on this server%s; GET /openapi.json lists what is",
                  x->path, x->server->opt.page ? "" : ", its page is switched off (page)");
    exchange_fail_as(x, 404, &err);
}

/* What the page has to know before it asks anything. */
static void put_settings(struct exchange *x)
{
    const struct http_options *o = &x->server->opt;
    char registry[ADDR_TEXT_BYTES];
    buf_puts(&x->out, "{\"model\":");
    buf_put_json_string(&x->out, o->model_name, strlen(o->model_name));
    buf_printf(&x->out, ",\"key_needed\":%s,\"settle_url\":", x->keys->count ? "true" : "false");
    if (o->settle_url)
        buf_put_json_string(&x->out, o->settle_url, strlen(o->settle_url));
    else
        buf_puts(&x->out, "null");
    if (o->chain_id) {
        addr_format(registry, o->registry);
        buf_printf(&x->out, ",\"chain_id\":%" PRIu64 ",\"registry\":\"%s\"", o->chain_id, registry);
    }
    buf_putc(&x->out, '}');
    exchange_json(x, 200);
}

/* "/" and "/page/...". */
void handle_page(struct exchange *x)
{
    const struct {
        const char *name, *type, *data;
        size_t bytes;
    } file[] = {
        {"", HTML, page_index_html, page_index_html_bytes},
        {"page.css", CSS, page_page_css, page_page_css_bytes},
        {"page.js", JS, page_page_js, page_page_js_bytes},
        {"api.js", JS, page_api_js, page_api_js_bytes},
        {"dom.js", JS, page_dom_js, page_dom_js_bytes},
        {"answer.js", JS, page_answer_js, page_answer_js_bytes},
        {"shares.js", JS, page_shares_js, page_shares_js_bytes},
        {"chain.js", JS, page_chain_js, page_chain_js_bytes},
        {"adapters.js", JS, page_adapters_js, page_adapters_js_bytes},
        {"datanets.html", HTML, page_datanets_html, page_datanets_html_bytes},
        {"datanets.js", JS, page_datanets_js, page_datanets_js_bytes},
        {"sign.html", HTML, page_sign_html, page_sign_html_bytes},
        {"sign.js", JS, page_sign_js, page_sign_js_bytes},
        {"blake2b.js", JS, page_blake2b_js, page_blake2b_js_bytes},
        {"wallet.js", JS, page_wallet_js, page_wallet_js_bytes},
    };
    x->policy = x->server->page_policy;
    if (x->server->opt.page && strcmp(x->tail, "settings") == 0) {
        put_settings(x);
        return;
    }
    for (size_t i = 0; i < ARRAY_COUNT(file) && x->server->opt.page; i++) {
        if (strcmp(x->tail, file[i].name) != 0)
            continue;
        buf_put(&x->out, file[i].data, file[i].bytes);
        x->content_type = file[i].type;
        x->code = 200;
        return;
    }
    not_here(x);
}
