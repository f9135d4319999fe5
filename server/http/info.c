/* Health, version, metrics, receipts and the lane: routes that only read. */
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/hex.h"
#include "server/http/auth.h"
#include "server/http/handlers.h"
#include "server/http/openapi.h"
#include "server/http/reply.h"
#include "server/http/request_id.h"
#include "server/http/state.h"
#include "server/influence/indexes.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LANE_RANGE_BYTES_MAX (16u << 20)

static void plain(struct exchange *x, int code, const char *text)
{
    x->content_type = "text/plain; charset=utf-8";
    buf_puts(&x->out, text);
    x->code = code;
}

/* vLLM's: an empty body says healthy. */
void handle_health(struct exchange *x)
{
    if (atomic_load(&x->server->draining))
        plain(x, 503, "draining\n");
    else
        x->code = 200;
}

void handle_livez(struct exchange *x)
{
    plain(x, 200, "ok\n");
}

void handle_readyz(struct exchange *x)
{
    struct engine_stats stats;
    struct errtext err = ERRTEXT_INIT;
    engine_get_stats(x->server->deps.engine, &stats);
    if (atomic_load(&x->server->draining) || stats.draining) {
        plain(x, 503, "draining\n");
    } else if (recorder_ready(x->server->deps.recorder, &err)) {
        plain(x, 503, err.text);
        buf_putc(&x->out, '\n');
    } else {
        plain(x, 200, "ok\n");
    }
}

void handle_version(struct exchange *x)
{
    uint8_t id[32];
    char engine[65], model[65];
    engine_get_id(x->server->deps.engine, id);
    hex_encode(engine, id, sizeof(id));
    hex_encode(model, x->server->deps.model->id, sizeof(x->server->deps.model->id));
    buf_printf(&x->out, "{\"version\":\"%s\",\"model_id\":\"%s\",\"engine_id\":\"%s\"}", RS_VERSION,
               model, engine);
    exchange_json(x, 200);
}

void handle_metrics(struct exchange *x)
{
    uint64_t begin_ns = clock_mono_ns();
    metrics_render(x->server, x->openmetrics, &x->out);
    x->content_type = x->openmetrics ? "application/openmetrics-text; version=1.0.0; charset=utf-8"
                                     : "text/plain; version=0.0.4; charset=utf-8";
    x->code = 200;
    metrics_observe(&x->server->metrics, METRICS_RENDER_SECONDS,
                    (double)(clock_mono_ns() - begin_ns) * 1e-9);
}

void handle_openapi(struct exchange *x)
{
    buf_put(&x->out, openapi_json, openapi_json_bytes);
    exchange_json(x, 200);
}

typedef enum status record_reader(struct recorder *r, const uint8_t id[32],
                                  const struct recorder_viewer *who, struct buf *out,
                                  struct errtext *err);

static void read_record(struct exchange *x, const char *tail, record_reader *read)
{
    uint8_t id[32];
    struct errtext err = ERRTEXT_INIT;
    if (!request_id_read(x, tail, id)) {
        (void)err_param(&err, STATUS_NOT_FOUND, "id",
                        "'%.80s' is neither an answer's id nor an x-request-id that is known here",
                        tail);
        exchange_fail(x, STATUS_NOT_FOUND, &err);
        return;
    }
    const struct recorder_viewer who = {.fair_key = x->fair_key,
                                        .account = auth_account(x->key),
                                        .admin = (x->roles & HTTP_ROLE_ADMIN) != 0};
    enum status st = read(x->server->deps.recorder, id, &who, &x->out, &err);
    if (st)
        exchange_fail(x, st, &err);
    else
        exchange_json(x, 200);
}

void handle_receipt(struct exchange *x)
{
    read_record(x, x->tail, recorder_receipt_json);
}

/* "<id>", or "<id>/inputs" for what its shares are recomputed from. */
void handle_attribution(struct exchange *x)
{
    static const char suffix[] = "/inputs";
    char tail[128];
    size_t n = strlen(x->tail), cut = sizeof(suffix) - 1;
    bool inputs = n > cut && n < sizeof(tail) && strcmp(x->tail + n - cut, suffix) == 0;
    snprintf(tail, sizeof(tail), "%.*s", (int)(inputs ? n - cut : sizeof(tail) - 1), x->tail);
    read_record(x, tail, inputs ? recorder_inputs_json : recorder_attribution_json);
}

/* An index file that attributions name, as it is. */
void handle_index(struct exchange *x)
{
    uint8_t root[32];
    struct errtext err = ERRTEXT_INIT;
    struct indexes *indexes = x->server->deps.indexes;
    const char *hex = strncmp(x->tail, "0x", 2) == 0 ? x->tail + 2 : x->tail;
    struct index *index =
        indexes && hex_decode(root, 32, hex) ? indexes_by_root(indexes, root) : NULL;
    if (!index) {
        (void)err_param(&err, STATUS_NOT_FOUND, "root",
                        "no index of root '%.70s' is open here: an answer of its adapter opens it",
                        x->tail);
        exchange_fail(x, STATUS_NOT_FOUND, &err);
        return;
    }
    buf_put(&x->out, events_file(index->events), events_file_bytes(index->events));
    index_release(index);
    if (x->out.failed) {
        (void)err_set(&err, STATUS_TOO_LARGE,
                      "the index is larger than a reply may be: it lies in data_dir/indexes");
        exchange_fail(x, STATUS_TOO_LARGE, &err);
        return;
    }
    x->content_type = "application/octet-stream";
    x->code = 200;
}

static bool read_seq(const char *text, uint64_t *out)
{
    char *end = NULL;
    errno = 0;
    *out = strtoull(text, &end, 10);
    return *text >= '0' && *text <= '9' && !*end && !errno;
}

void handle_lane_range(struct exchange *x)
{
    uint64_t first = 0, last = 0;
    struct errtext err = ERRTEXT_INIT;
    struct buf part;
    if (!read_seq(x->query_first, &first) || !read_seq(x->query_last, &last) || first == 0 ||
        first > last) {
        (void)err_param(&err, STATUS_INVALID, "first",
                        "give the range as ?first=N&last=M with 1 <= N <= M");
        exchange_fail(x, STATUS_INVALID, &err);
        return;
    }
    buf_init(&part, LANE_RANGE_BYTES_MAX);
    enum status st = recorder_read_range(x->server->deps.recorder, first, last, &part, &err);
    if (st) {
        exchange_fail(x, st, &err);
    } else {
        buf_put(&x->out, part.data, part.len);
        x->content_type = "application/octet-stream";
        x->code = 200;
    }
    buf_fini(&part);
}
