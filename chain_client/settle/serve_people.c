/* The routes that people and the command line begin with: the page's files, accounts, and where a
 * record stands. */
#include "chain_client/eth/addr.h"
#include "chain_client/settle/serve_impl.h"
#include "chain_client/settle/site.h"
#include "chain_client/settle/states.h"
#include "server/base/check.h"

#include <inttypes.h>
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

/* "LANE/SEQ" */
static enum status read_place(const char *what, uint64_t *lane, uint64_t *seq, struct errtext *err)
{
    char text[24];
    size_t len = strcspn(what, "/");
    u128 l, s;
    snprintf(text, sizeof(text), "%.*s", (int)MIN(len, sizeof(text) - 1), what);
    if (!what[len] || !u128_parse(&l, text) || !u128_parse(&s, what + len + 1) || l > UINT32_MAX ||
        s == 0 || s > SERVE_NEWEST)
        return err_set(err, STATUS_INVALID, "found '%.64s', expected LANE/SEQ, two numbers", what);
    *lane = (uint64_t)l;
    *seq = (uint64_t)s;
    return STATUS_OK;
}

/* The last epoch that pays batch; a vetoed one pays nothing, and another will follow it. */
static enum status put_payer(struct db *db, uint64_t batch, struct buf *out, struct errtext *err)
{
    struct db_rows q;
    enum epoch_state state;
    enum status st = db_query(db, &q, err,
                              "SELECT epoch, state FROM epochs WHERE paid_from < ? AND paid >= ?"
                              " AND state <> ? ORDER BY epoch DESC LIMIT 1",
                              "uut", batch, batch, epoch_state_name(EPOCH_VETOED));
    if (!st)
        st = db_next(&q, err);
    if (!st)
        st = epoch_state_get(&state, &q, 1, err);
    if (!st)
        buf_printf(out, ",\"epoch\":%" PRIu64 ",\"epoch_state\":\"%s\"", db_u64(&q, 0),
                   epoch_state_name(state));
    db_done(&q);
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

static enum status put_batch_of(struct db *db, uint64_t lane, uint64_t seq, struct buf *out,
                                struct errtext *err)
{
    struct db_rows q;
    enum batch_state state;
    uint64_t batch = 0;
    enum status st =
        db_query(db, &q, err,
                 "SELECT b.seq, b.state, l.last FROM batch_lanes l JOIN batches b ON b.seq = l.seq"
                 " WHERE l.lane = ? AND l.first <= ? ORDER BY l.first DESC LIMIT 1",
                 "uu", lane, seq);
    if (!st)
        st = db_next(&q, err);
    if (!st)
        st = batch_state_get(&state, &q, 1, err);
    if (!st && db_u64(&q, 2) >= seq) {
        batch = db_u64(&q, 0);
        buf_printf(out, ",\"batch\":%" PRIu64 ",\"batch_state\":\"%s\"", batch,
                   batch_state_name(state));
    }
    db_done(&q);
    if (!st && batch)
        st = put_payer(db, batch, out, err);
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

enum status serve_record(struct db *db, const char *what, struct buf *out, struct errtext *err)
{
    uint64_t lane, seq, ingested = 0;
    enum status st = read_place(what, &lane, &seq, err);
    if (!st)
        st =
            db_value(db, &ingested, 0, err, "SELECT ingested FROM lanes WHERE lane = ?", "u", lane);
    if (st)
        return st;
    buf_printf(out, "{\"lane\":%" PRIu64 ",\"seq\":%" PRIu64 ",\"taken_in\":%s", lane, seq,
               seq <= ingested ? "true" : "false");
    st = put_batch_of(db, lane, seq, out, err);
    buf_putc(out, '}');
    return st;
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
