/* The routes that people and the command line begin with: the page's files, and accounts. */
#include "chain_client/eth/addr.h"
#include "chain_client/settle/serve_impl.h"
#include "chain_client/settle/site.h"
#include "server/base/check.h"

#include <stdio.h>
#include <string.h>

enum status serve_ask_read(struct serve_ask *q, struct MHD_Connection *c, const char *path,
                           struct errtext *err)
{
    const char *text = MHD_lookup_connection_value(c, MHD_GET_ARGUMENT_KIND, "before");
    u128 before = SERVE_NEWEST;
    *q = (struct serve_ask){
        .path = path, .after = MHD_lookup_connection_value(c, MHD_GET_ARGUMENT_KIND, "after")};
    if (text && (!u128_parse(&before, text) || before > SERVE_NEWEST))
        return err_set(err, STATUS_INVALID, "before: found '%.32s', expected a number", text);
    q->before = (uint64_t)before;
    return STATUS_OK;
}

enum status serve_rewards(struct serve *s, struct db *db, const struct serve_ask *q,
                          const char *what, struct buf *out, struct errtext *err)
{
    char text[ADDR_TEXT_BYTES];
    uint8_t account[20];
    size_t len = strcspn(what, "/");
    snprintf(text, sizeof(text), "%.*s", (int)MIN(len, sizeof(text)), what);
    enum status st = len < sizeof(text) ? addr_parse(account, text, err)
                                        : err_set(err, STATUS_INVALID, "account: too long");
    if (st)
        return st;
    s->rewards.d = s->d;
    s->rewards.rpc = s->rpc;
    if (!what[len])
        return rewards_put(&s->rewards, db, account, out, err);
    if (strcmp(what + len, "/history") == 0)
        return rewards_put_history(&s->rewards, db, account, q->before, out, err);
    if (strcmp(what + len, "/sources") == 0)
        return rewards_put_sources(&s->rewards, db, account, q->after, out, err);
    return err_set(err, STATUS_NOT_FOUND, "no such route");
}

struct MHD_Response *serve_page(const char *path, unsigned *code)
{
    static const char *const header[][2] = {
        {MHD_HTTP_HEADER_CONTENT_SECURITY_POLICY, SITE_POLICY},
        {"X-Content-Type-Options", "nosniff"},
        {"Referrer-Policy", "no-referrer"},
        {MHD_HTTP_HEADER_CACHE_CONTROL, "no-cache"},
    };
    struct site_file file;
    if (!site_find(&file, path))
        return NULL;
    struct MHD_Response *r = MHD_create_response_from_buffer(
        file.bytes, (void *)(uintptr_t)file.data, MHD_RESPMEM_PERSISTENT);
    if (!r)
        return NULL;
    MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, file.type);
    for (size_t i = 0; i < ARRAY_COUNT(header); i++)
        MHD_add_response_header(r, header[i][0], header[i][1]);
    *code = MHD_HTTP_OK;
    return r;
}
