/* What the parts of the HTTP server share: options, dependencies, and one member for each part.
 * Made by http_start, const afterwards but for what each part locks itself. */
#ifndef RS_HTTP_STATE_H
#define RS_HTTP_STATE_H

#include "server/base/mailbox.h"
#include "server/http/audit.h"
#include "server/http/connections.h"
#include "server/http/exchange.h"
#include "server/http/feed.h"
#include "server/http/idempotency.h"
#include "server/http/metrics.h"
#include "server/http/page.h"
#include "server/http/upload.h"
#include "server/http/watch.h"

#define HTTP_WATCHES_MAX    64
#define HTTP_WORK_THREADS   2
#define HTTP_WORK_QUEUE_MAX 256

struct keyring;
struct listener;
struct tinker;

/* Work that a polling thread must not do. Two lanes, so that what waits for a disk never waits for
 * somebody's long prompt. */
enum http_lane_kind {
    HTTP_LANE_TEXT, /* large bodies: parsing and tokenizing */
    HTTP_LANE_DISK, /* routes that may wait for disk or engine */
    HTTP_LANE_COUNT
};

struct http_lane {
    struct http_server *server;
    struct mailbox box; /* of struct exchange */
    pthread_t thread[HTTP_WORK_THREADS];
    uint32_t thread_count;
};

struct http_server {
    struct http_options opt;
    struct http_deps deps;
    uint32_t context_max;
    struct metrics metrics;
    struct idempotency idem;
    struct uploads uploads;
    struct feeds feeds;
    struct watch *watch[HTTP_WATCHES_MAX];
    uint32_t watch_count;
    atomic_uint watch_next; /* whose turn it is to get an exchange */
    struct listener *listener;
    struct tinker *tinker;
    struct keyring *keys; /* behind keys_lock: a reload replaces it */
    pthread_mutex_t keys_lock;
    struct audit_log audit;
    struct connections connections;
    struct http_lane lane[HTTP_LANE_COUNT];
    atomic_bool work_closed;
    uint64_t start_wall_ms;
    uint64_t (*clock_ns)(void);
    char page_policy[PAGE_POLICY_BYTES_MAX];
    uint8_t chat_digest[32]; /* of the chat template's text */
    atomic_bool draining, refusing, drain_over, stopping;
    _Atomic uint64_t drain_ns;     /* when the drain began */
    _Atomic uint64_t bodies_bytes; /* memory of the bodies that are kept now */
    atomic_uint streams;           /* exchanges that flow */
    atomic_uint active;            /* exchanges with a generation not yet answered */
};

/* Hand an exchange to a worker thread; false when the queue is full. */
bool http_work_push(struct http_server *s, struct exchange *x);
/* Exchanges whose reply is not out yet. */
uint32_t http_live_count(struct http_server *s);
/* What time brings: overdue connections are cut, a drain goes on. One watch calls it. */
void http_tick(struct http_server *s, uint64_t now_ns);

#endif
