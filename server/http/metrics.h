/* Counters and histograms of the HTTP side. Relaxed atomics only: a scrape reads them one by one
 * and never stops a writer. The label set is fixed at compile time (routes x status classes), so
 * nothing a client sends can make a new series. Rendering reads engine, catalog and recorder
 * snapshots and takes no lock of the step loop. */
#ifndef RS_HTTP_METRICS_H
#define RS_HTTP_METRICS_H

#include "server/engine/request.h"

#include <stdatomic.h>
#include <stdint.h>

#define METRICS_BUCKETS_MAX 32
#define METRICS_ROUTES_MAX  96

enum metrics_histogram {
    METRICS_TTFT,
    METRICS_ITL,
    METRICS_TPOT, /* mean over one request */
    METRICS_E2E,
    METRICS_QUEUE,
    METRICS_INFERENCE,
    METRICS_PREFILL,
    METRICS_DECODE,
    METRICS_PROMPT_TOKENS,
    METRICS_GENERATION_TOKENS,
    METRICS_MAX_GENERATION_TOKENS,
    METRICS_PARAMS_N,
    METRICS_PARAMS_MAX_TOKENS,
    METRICS_HTTP_SECONDS,
    METRICS_RENDER_SECONDS,
    METRICS_HISTOGRAM_COUNT
};

struct metrics_bins {
    _Atomic uint64_t bucket[METRICS_BUCKETS_MAX + 1]; /* not cumulative; the last is +Inf */
    _Atomic uint64_t sum_micro;                       /* sum x 1e6 */
};

struct metrics {
    struct metrics_bins histogram[METRICS_HISTOGRAM_COUNT];
    _Atomic uint64_t http_requests[METRICS_ROUTES_MAX + 1][6]; /* [route, last: none][class] */
    _Atomic uint64_t http_request_bytes, http_reply_bytes;
    _Atomic uint64_t disconnects, wakes, refused_full, retried, stream_writes;
    _Atomic uint64_t idempotent_hits, auth_failures, bodies_refused;
};

void metrics_observe(struct metrics *m, enum metrics_histogram h, double value);
void metrics_http(struct metrics *m, uint32_t route_idx, int code, double seconds);
/* All histograms of one finished request. */
void metrics_request(struct metrics *m, const struct request *r);
static inline void metrics_add(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}
static inline uint64_t metrics_get(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

struct metrics_shape {
    const char *name, *help;
    const double *bound;
    uint32_t bound_count;
};
const struct metrics_shape *metrics_shape(enum metrics_histogram h);

/* The body of GET /metrics: Prometheus text 0.0.4, or OpenMetrics 1.0. */
struct http_server;
struct buf;
void metrics_render(struct http_server *s, bool openmetrics, struct buf *out);

#endif
