/* Every answer opens its own reader: SQLite in WAL mode shows it one consistent state while the
 * worker goes on. */
#include "chain_client/settle/serve.h"
#include "chain_client/eth/addr.h"
#include "chain_client/settle/archive.h"
#include "chain_client/settle/candidate.h"
#include "chain_client/settle/gauges.h"
#include "chain_client/settle/records.h"
#include "chain_client/settle/serve_impl.h"
#include "chain_client/settle/site.h"
#include "chain_client/settle/states.h"
#include "chain_client/settle/trouble.h"
#include "chain_client/settle/worker.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/hostport.h"
#include "server/base/log.h"
#include "server/base/mem.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BODY_BYTES_MAX  (4u << 20)
#define CONNECTIONS_MAX 64
#define LIST_MAX        100

/* ---- status ---- */

static enum status put_lanes(struct db *db, struct buf *out, struct errtext *err)
{
    struct db_rows q;
    const char *comma = "";
    enum status st = db_query(
        db, &q, err, "SELECT lane, ingested, closed, final, stopped FROM lanes ORDER BY lane", "");
    buf_puts(out, "\"lanes\":[");
    while (!st && (st = db_next(&q, err)) == STATUS_OK) {
        buf_printf(out,
                   "%s{\"lane\":%" PRIu64 ",\"ingested\":%" PRIu64 ",\"closed\":%" PRIu64
                   ",\"final\":%" PRIu64 ",\"stopped\":",
                   comma, db_u64(&q, 0), db_u64(&q, 1), db_u64(&q, 2), db_u64(&q, 3));
        if (db_text(&q, 4)[0])
            buf_put_json_string(out, db_text(&q, 4), strlen(db_text(&q, 4)));
        else
            buf_puts(out, "null");
        buf_putc(out, '}');
        comma = ",";
    }
    db_done(&q);
    buf_putc(out, ']');
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

static void put_hash(struct buf *out, const char *name, struct db_rows *q, int col)
{
    uint8_t hash[32];
    db_bytes(q, col, hash, 32);
    buf_printf(out, ",\"%s\":", name);
    archive_put_hex(out, hash, 32);
}

/* Only batches below `before`; the last one's number is the `before` of the next page. */
static enum status put_batches(struct db *db, uint64_t before, struct buf *out, struct errtext *err)
{
    struct db_rows q;
    const char *comma = "";
    enum status st =
        db_query(db, &q, err,
                 "SELECT b.seq, b.state, b.closed_at, b.leaf_count, b.inferences,"
                 " b.fee_sum, b.cum_fee, b.hash, coalesce(b.tx, (SELECT coalesce(i.mined,"
                 " a.hash) FROM intents i JOIN attempts a ON a.intent = i.id WHERE i.kind"
                 " = 'commit' AND i.key = b.seq ORDER BY i.id DESC, a.n DESC LIMIT 1))"
                 " FROM batches b WHERE b.seq < ? ORDER BY b.seq DESC LIMIT ?",
                 "uu", before, (uint64_t)LIST_MAX);
    buf_puts(out, "\"batches\":[");
    while (!st && (st = db_next(&q, err)) == STATUS_OK) {
        enum batch_state state;
        st = batch_state_get(&state, &q, 1, err);
        if (st)
            break;
        buf_printf(out,
                   "%s{\"batch\":%" PRIu64 ",\"state\":\"%s\",\"closed_at\":%" PRIu64
                   ",\"records\":%" PRIu64 ",\"inferences\":%" PRIu64 ",\"fee_sum\":\"%s\"",
                   comma, db_u64(&q, 0), batch_state_name(state), db_u64(&q, 2), db_u64(&q, 3),
                   db_u64(&q, 4), db_text(&q, 5));
        buf_printf(out, ",\"cum_fee\":\"%s\"", db_text(&q, 6));
        put_hash(out, "hash", &q, 7);
        put_hash(out, "tx", &q, 8);
        buf_putc(out, '}');
        comma = ",";
    }
    db_done(&q);
    buf_putc(out, ']');
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

static enum status put_epochs(struct db *db, uint64_t before, struct buf *out, struct errtext *err)
{
    struct db_rows q;
    const char *comma = "";
    enum status st =
        db_query(db, &q, err,
                 "SELECT e.epoch, e.state, e.paid_from, e.paid, e.evidence, e.leaves,"
                 " e.required, e.missing, e.active_at, e.total, e.root, coalesce(e.tx,"
                 " (SELECT coalesce(i.mined, a.hash) FROM intents i JOIN attempts a ON"
                 " a.intent = i.id WHERE i.kind = 'propose' AND i.key = e.epoch ORDER BY"
                 " i.id DESC, a.n DESC LIMIT 1)) FROM epochs e WHERE e.epoch < ? ORDER BY"
                 " e.epoch DESC LIMIT ?",
                 "uu", before, (uint64_t)LIST_MAX);
    buf_puts(out, "\"epochs\":[");
    while (!st && (st = db_next(&q, err)) == STATUS_OK) {
        enum epoch_state state;
        st = epoch_state_get(&state, &q, 1, err);
        if (st)
            break;
        buf_printf(out,
                   "%s{\"epoch\":%" PRIu64 ",\"state\":\"%s\",\"batch_paid_before\":%" PRIu64
                   ",\"batch_paid\":%" PRIu64 ",\"batch_evidence\":%" PRIu64 ",\"leaves\":%" PRIu64,
                   comma, db_u64(&q, 0), epoch_state_name(state), db_u64(&q, 2), db_u64(&q, 3),
                   db_u64(&q, 4), db_u64(&q, 5));
        buf_printf(out,
                   ",\"required\":%" PRIu64 ",\"missing\":%" PRIu64 ",\"active_at\":%" PRIu64
                   ",\"total\":\"%s\"",
                   db_u64(&q, 6), db_u64(&q, 7), db_u64(&q, 8), db_text(&q, 9));
        put_hash(out, "root", &q, 10);
        put_hash(out, "tx", &q, 11);
        buf_putc(out, '}');
        comma = ",";
    }
    db_done(&q);
    buf_putc(out, ']');
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

struct totals {
    uint64_t lag_s, waiting, quarantined, stopped, bound, batches_final, epochs;
};

/* lag: age of the oldest record that is not in a final batch. */
static enum status read_totals(struct db *db, struct totals *t, struct errtext *err)
{
    uint64_t oldest, now = clock_wall_ms() / 1000;
    enum status st = records_oldest(db, now, &oldest, err);
    t->lag_s = oldest < now ? now - oldest : 0;
    if (!st)
        st = db_value(db, &t->waiting, 0, err, "SELECT sum(ingested - final) FROM lanes", "");
    if (!st)
        st = db_value(db, &t->quarantined, 0, err, "SELECT count(*) FROM quarantine", "");
    if (!st)
        st =
            db_value(db, &t->stopped, 0, err, "SELECT count(*) FROM lanes WHERE stopped <> ''", "");
    if (!st)
        st = db_value(db, &t->bound, 0, err, "SELECT count(*) FROM intents WHERE state = ?", "t",
                      intent_state_name(INTENT_BOUND));
    if (!st)
        st = db_value(db, &t->batches_final, 0, err, "SELECT count(*) FROM batches WHERE state = ?",
                      "t", batch_state_name(BATCH_FINAL));
    if (!st)
        st = db_value(db, &t->epochs, 0, err, "SELECT count(*) FROM epochs WHERE state IN (?, ?)",
                      "tt", epoch_state_name(EPOCH_FINAL), epoch_state_name(EPOCH_ACTIVE));
    return st;
}

enum status serve_status_json(struct db *db, struct buf *out, struct errtext *err)
{
    struct totals t;
    enum status st = read_totals(db, &t, err);
    if (st)
        return st;
    buf_printf(out,
               "{\"lag_s\":%" PRIu64 ",\"waiting\":%" PRIu64 ",\"quarantined\":%" PRIu64
               ",\"in_flight\":%" PRIu64 ",",
               t.lag_s, t.waiting, t.quarantined, t.bound);
    buf_puts(out, "\"troubles\":");
    st = trouble_put_json(db, out, err);
    buf_putc(out, ',');
    if (!st)
        st = put_lanes(db, out, err);
    buf_putc(out, ',');
    if (!st)
        st = put_batches(db, SERVE_NEWEST, out, err);
    buf_putc(out, ',');
    if (!st)
        st = put_epochs(db, SERVE_NEWEST, out, err);
    buf_putc(out, '}');
    return st;
}

static enum status say_batches(struct db *db, struct buf *out, struct errtext *err)
{
    struct db_rows q;
    enum batch_state state;
    enum status st = db_query(
        db, &q, err, "SELECT seq, state, leaf_count FROM batches ORDER BY seq DESC LIMIT 5", "");
    while (!st && (st = db_next(&q, err)) == STATUS_OK) {
        st = batch_state_get(&state, &q, 1, err);
        if (!st)
            buf_printf(out, "batch %" PRIu64 ": %s, %" PRIu64 " records\n", db_u64(&q, 0),
                       batch_state_name(state), db_u64(&q, 2));
    }
    db_done(&q);
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

static enum status say_epochs(struct db *db, struct buf *out, struct errtext *err)
{
    struct db_rows q;
    enum epoch_state state;
    enum status st = db_query(
        db, &q, err, "SELECT epoch, state, total FROM epochs ORDER BY epoch DESC LIMIT 5", "");
    while (!st && (st = db_next(&q, err)) == STATUS_OK) {
        st = epoch_state_get(&state, &q, 1, err);
        if (!st)
            buf_printf(out, "epoch %" PRIu64 ": %s, total %s\n", db_u64(&q, 0),
                       epoch_state_name(state), db_text(&q, 2));
    }
    db_done(&q);
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

enum status serve_status_text(struct db *db, struct buf *out, struct errtext *err)
{
    struct totals t;
    struct db_rows q;
    enum status st = read_totals(db, &t, err);
    if (st)
        return st;
    buf_printf(out,
               "%" PRIu64 " records wait for finality, the oldest for %" PRIu64 " s; %" PRIu64
               " batches and %" PRIu64 " epochs are final;\n%" PRIu64
               " transactions on their way, %" PRIu64 " entries in quarantine\n",
               t.waiting, t.lag_s, t.batches_final, t.epochs, t.bound, t.quarantined);
    st = db_query(db, &q, err, "SELECT lane, ingested, closed, final, stopped FROM lanes", "");
    while (!st && (st = db_next(&q, err)) == STATUS_OK)
        buf_printf(out,
                   "lane %" PRIu64 ": taken in %" PRIu64 ", in batches %" PRIu64 ", final %" PRIu64
                   "%s%s\n",
                   db_u64(&q, 0), db_u64(&q, 1), db_u64(&q, 2), db_u64(&q, 3),
                   db_text(&q, 4)[0] ? ", STOPPED: " : "", db_text(&q, 4));
    db_done(&q);
    st = st == STATUS_NOT_FOUND ? say_batches(db, out, err) : st;
    if (!st)
        st = say_epochs(db, out, err);
    return st ? st : trouble_put_text(db, out, err);
}

/* ---- metrics ---- */

static enum status put_metrics(struct db *db, struct buf *out, struct errtext *err)
{
    struct totals t;
    struct db_rows q;
    enum status st = read_totals(db, &t, err);
    if (st)
        return st;
    const struct {
        const char *name, *help;
        uint64_t value;
    } gauge[] = {
        {"lag_seconds", "Age of the oldest record that is not final.", t.lag_s},
        {"records_waiting", "Records taken in and not final.", t.waiting},
        {"records_quarantined", "Entries that were refused.", t.quarantined},
        {"lanes_stopped", "Lanes that wait for a person.", t.stopped},
        {"transactions_in_flight", "Transactions bound to a nonce and not final.", t.bound},
        {"batches_final", "Batches final on the chain.", t.batches_final},
        {"epochs_final", "Epochs final on the chain.", t.epochs},
    };
    for (size_t i = 0; i < ARRAY_COUNT(gauge); i++)
        buf_printf(out,
                   "# HELP residual_settle_%s %s\n# TYPE residual_settle_%s gauge\n"
                   "residual_settle_%s %" PRIu64 "\n",
                   gauge[i].name, gauge[i].help, gauge[i].name, gauge[i].name, gauge[i].value);
    st = gauges_put(db, out, err);
    if (st)
        return st;
    static const char *const stage[] = {"ingested", "closed", "final"};
    buf_puts(out, "# HELP residual_settle_lane_seq Last sequence number of a lane at each stage.\n"
                  "# TYPE residual_settle_lane_seq gauge\n");
    st = db_query(db, &q, err, "SELECT lane, ingested, closed, final FROM lanes", "");
    while (!st && (st = db_next(&q, err)) == STATUS_OK)
        for (int i = 0; i < 3; i++)
            buf_printf(out,
                       "residual_settle_lane_seq{lane=\"%" PRIu64 "\",stage=\"%s\"} %" PRIu64 "\n",
                       db_u64(&q, 0), stage[i], db_u64(&q, i + 1));
    db_done(&q);
    if (st == STATUS_NOT_FOUND)
        st = candidate_put_metrics(out, db, err);
    return st ? st : trouble_put_metrics(db, out, err);
}

/* ---- HTTP ---- */

/* *code: of an answer that is none of an error. */
static enum status answer(struct serve *s, const struct serve_ask *q, struct buf *out,
                          unsigned *code, struct errtext *err)
{
    static const char rewards[] = "/v1/rewards/";
    struct db db;
    const char *path = q->path;
    bool healthy = true;
    enum status st = STATUS_OK;
    if (strcmp(path, "/v1/deployment") == 0)
        site_put_deployment(out, s->d, s->set);
    else
        st = db_open_reader(&db, s->set->state_dir, err);
    if (st || out->len)
        return st;
    if (strncmp(path, rewards, sizeof(rewards) - 1) == 0) {
        st = serve_rewards(s, &db, q, path + sizeof(rewards) - 1, out, err);
    } else if (strncmp(path, SERVE_RECORDS, sizeof(SERVE_RECORDS) - 1) == 0) {
        st = serve_record(&db, path + sizeof(SERVE_RECORDS) - 1, out, err);
    } else if (strcmp(path, "/health") == 0) {
        st = trouble_put_health(&db, out, &healthy, err);
        *code = healthy ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE;
    } else if (strcmp(path, "/metrics") == 0) {
        st = put_metrics(&db, out, err);
    } else if (strcmp(path, "/v1/epochs/candidate") == 0) {
        st = candidate_put_json(out, &db, s->d, err);
    } else if (strcmp(path, "/v1/batches") == 0 || strcmp(path, "/v1/epochs") == 0) {
        buf_putc(out, '{');
        st = strcmp(path, "/v1/batches") == 0 ? put_batches(&db, q->before, out, err)
                                              : put_epochs(&db, q->before, out, err);
        buf_putc(out, '}');
    } else {
        st = err_set(err, STATUS_NOT_FOUND, "no such route");
    }
    db_close(&db);
    return st;
}

static unsigned http_code(enum status st)
{
    switch (st) {
    case STATUS_INVALID:
        return MHD_HTTP_BAD_REQUEST;
    case STATUS_NOT_FOUND:
        return MHD_HTTP_NOT_FOUND;
    case STATUS_DENIED:
        return MHD_HTTP_FORBIDDEN;
    case STATUS_EXISTS:
    case STATUS_FULL:
        return MHD_HTTP_CONFLICT;
    case STATUS_TOO_LARGE:
        return MHD_HTTP_CONTENT_TOO_LARGE;
    default:
        return MHD_HTTP_SERVICE_UNAVAILABLE;
    }
}

/* The answer to a request whose body is here: JSON, the archive's file, or the error's sentence. */
static struct MHD_Response *respond(struct serve *s, struct MHD_Connection *c, const char *url,
                                    const struct buf *body, unsigned *code)
{
    static const char archive[] = "/v1/archive/";
    struct errtext err = ERRTEXT_INIT;
    struct MHD_Response *r = NULL;
    struct buf out;
    size_t len;
    struct serve_ask q;
    enum status st = serve_ask_read(&q, c, url, &err);
    bool is_metrics = strcmp(url, "/metrics") == 0;
    bool is_file = !body && strncmp(url, archive, sizeof(archive) - 1) == 0;
    buf_init(&out, BODY_BYTES_MAX);
    *code = MHD_HTTP_OK;
    if (st)
        is_file = false;
    else if (is_file)
        r = serve_archive(s, url + sizeof(archive) - 1, &st, &err);
    else if (body && strcmp(url, "/v1/attestations") != 0)
        st = err_set(&err, STATUS_NOT_FOUND, "no such route");
    else if (body && body->failed)
        st = err_set(&err, STATUS_TOO_LARGE, "more than %u bytes", SERVE_POST_BYTES_MAX);
    else
        st = body ? serve_attest(s, body, &out, &err) : answer(s, &q, &out, code, &err);
    if (st) {
        *code = http_code(st);
        if (*code == MHD_HTTP_SERVICE_UNAVAILABLE) /* the next one is answered by another node */
            s->rpc = s->endpoint[++s->rpc_at % s->rpc_count];
        buf_clear(&out);
        buf_puts(&out, "{\"error\":{\"message\":");
        buf_put_json_string(&out, err.text, strlen(err.text));
        buf_puts(&out, "}}");
    }
    char *text = r ? NULL : buf_steal(&out, &len);
    if (text)
        r = MHD_create_response_from_buffer(len, text, MHD_RESPMEM_MUST_COPY);
    mem_free(text);
    buf_fini(&out);
    if (r)
        MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE,
                                is_metrics && !st ? "text/plain; version=0.0.4"
                                : is_file && !st  ? "application/octet-stream"
                                                  : "application/json");
    if (r && strncmp(url, SERVE_RECORDS, sizeof(SERVE_RECORDS) - 1) == 0)
        MHD_add_response_header(r, MHD_HTTP_HEADER_ACCESS_CONTROL_ALLOW_ORIGIN, "*");
    return r;
}

/* Called once without the body, then with its pieces, then at its end; *state keeps them. */
static enum MHD_Result handle(void *arg, struct MHD_Connection *c, const char *url,
                              const char *method, const char *version, const char *upload,
                              size_t *upload_len, void **state)
{
    /* lint: waive parameters - the HTTP library's callback */
    bool is_post = strcmp(method, MHD_HTTP_METHOD_POST) == 0;
    struct buf *body = *state;
    unsigned code;
    if (!is_post && strcmp(method, MHD_HTTP_METHOD_GET) != 0)
        return MHD_NO;
    if (is_post && !body) {
        *state = body = mem_alloc(sizeof(*body));
        buf_init(body, SERVE_POST_BYTES_MAX);
        return MHD_YES;
    }
    if (is_post && *upload_len) {
        buf_put(body, upload, *upload_len);
        *upload_len = 0;
        return MHD_YES;
    }
    struct MHD_Response *r = is_post ? NULL : serve_page(url, &code);
    if (!r)
        r = respond(arg, c, url, is_post ? body : NULL, &code);
    if (!r)
        return MHD_NO;
    enum MHD_Result good = MHD_queue_response(c, code, r);
    MHD_destroy_response(r);
    return good;
}

static void completed(void *arg, struct MHD_Connection *c, void **state,
                      enum MHD_RequestTerminationCode why)
{
    struct buf *body = *state;
    (void)arg, (void)c, (void)why;
    if (body)
        buf_fini(body);
    mem_free(body);
    *state = NULL;
}

static enum status start_daemon(struct serve *s, const char *listen, struct errtext *err)
{
    struct hostport hp;
    struct hostport_address at;
    int fd = -1;
    enum status st = hostport_parse(&hp, "listen", listen, err);
    if (!st)
        st = hostport_resolve(&at, &hp, "listen", err);
    if (!st)
        st = hostport_bind(&fd, &at, &hp, "listen", err);
    if (!st)
        st = hostport_listen(fd, CONNECTIONS_MAX, &hp, "listen", err);
    if (!st) {
        at = hostport_bound(fd);
        unsigned six = at.at.ss_family == AF_INET6 ? MHD_USE_IPv6 : 0;
        s->daemon =
            MHD_start_daemon(MHD_USE_EPOLL_INTERNAL_THREAD | six, hostport_port(&at), NULL, NULL,
                             handle, s, MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT,
                             (unsigned)CONNECTIONS_MAX, MHD_OPTION_CONNECTION_TIMEOUT, 30u,
                             MHD_OPTION_NOTIFY_COMPLETED, completed, NULL, MHD_OPTION_END);
        if (!s->daemon)
            st = err_set(err, STATUS_IO, "the HTTP library did not start: %s", strerror(errno));
    }
    if (st && fd >= 0)
        close(fd);
    if (!st)
        log_info("serve", "http://%s:%u", hp.host, hostport_port(&at));
    return st;
}

enum status serve_start(struct serve **out, const struct settings *set, const struct deployment *d,
                        struct errtext *err)
{
    struct serve *s = mem_alloc(sizeof(*s));
    *s = (struct serve){.set = set, .d = d};
    enum status st = STATUS_OK;
    for (uint32_t i = 0; i < MIN(set->rpc_url.count, NODES_MAX) && !st; i++) {
        st = chain_rpc_open(&s->endpoint[i], set, i, err);
        s->rpc_count += !st;
    }
    s->rpc = s->endpoint[0];
    if (!st)
        st = start_daemon(s, set->listen, err);
    if (st) {
        serve_stop(s);
        return st;
    }
    *out = s;
    return STATUS_OK;
}

void serve_stop(struct serve *s)
{
    if (!s)
        return;
    if (s->daemon)
        MHD_stop_daemon(s->daemon);
    for (uint32_t i = 0; i < s->rpc_count; i++)
        rpc_close(s->endpoint[i]);
    rewards_fini(&s->rewards);
    mem_free(s);
}
