/* The page of GET /metrics. First vLLM's names, old and new spellings, so that routers, autoscalers
 * and dashboards work as they are; then HTTP's and our own. Exactly one vllm:lora_requests_info is
 * always there: it lists the adapters that are resident, because a warm idle adapter is what a
 * router wants to know. Series are bounded: adapters are the first METRICS_TOP by tokens and one
 * `_other`. */
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/hex.h"
#include "server/http/route.h"
#include "server/http/state.h"
#include "server/http/tinker.h"
#include "server/influence/indexes.h"
#include "server/train/factory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define METRICS_TOP       20
#define RESIDENT_NAME_MAX 256
#define PAGE_TOKENS       16

struct page {
    struct buf *out;
    struct http_server *s;
    bool openmetrics;
    char labels[2 * CATALOG_NAME_MAX + 64]; /* model_name="...",engine="0" */
};

/* HELP and TYPE. OpenMetrics names a counter's family without its _total. */
static void family(struct page *p, const char *name, const char *type, const char *help)
{
    size_t len = strlen(name);
    if (p->openmetrics && strcmp(type, "counter") == 0 && len > 6 &&
        strcmp(name + len - 6, "_total") == 0)
        len -= 6;
    buf_printf(p->out, "# HELP %.*s %s\n# TYPE %.*s %s\n", (int)len, name, help, (int)len, name,
               type);
}

static void gauge(struct page *p, const char *name, const char *help, double value)
{
    family(p, name, "gauge", help);
    buf_printf(p->out, "%s{%s} %.10g\n", name, p->labels, value);
}

static void counter(struct page *p, const char *name, const char *help, uint64_t value)
{
    family(p, name, "counter", help);
    buf_printf(p->out, "%s{%s} %llu\n", name, p->labels, (unsigned long long)value);
}

/* Our own families have no model label: one server, one base. */
static void plain(struct page *p, const char *name, const char *type, const char *help,
                  double value)
{
    family(p, name, type, help);
    buf_printf(p->out, "%s %.17g\n", name, value);
}

static void histogram(struct page *p, enum metrics_histogram h)
{
    const struct metrics_shape *shape = metrics_shape(h);
    const struct metrics_bins *b = &p->s->metrics.histogram[h];
    bool labelled = strncmp(shape->name, "vllm:", 5) == 0;
    const char *labels = labelled ? p->labels : "", *comma = labelled ? "," : "";
    uint64_t sum = 0;
    family(p, shape->name, "histogram", shape->help);
    for (uint32_t i = 0; i <= shape->bound_count; i++) {
        sum += metrics_get(&b->bucket[i]);
        if (i < shape->bound_count)
            buf_printf(p->out, "%s_bucket{%s%sle=\"%g\"} %llu\n", shape->name, labels, comma,
                       shape->bound[i], (unsigned long long)sum);
        else
            buf_printf(p->out, "%s_bucket{%s%sle=\"+Inf\"} %llu\n", shape->name, labels, comma,
                       (unsigned long long)sum);
    }
    const char *open = labelled ? "{" : "", *close_brace = labelled ? "}" : "";
    buf_printf(p->out, "%s_sum%s%s%s %.6f\n%s_count%s%s%s %llu\n", shape->name, open, labels,
               close_brace, (double)metrics_get(&b->sum_micro) * 1e-6, shape->name, open, labels,
               close_brace, (unsigned long long)sum);
}

static void put_label(struct buf *out, const char *text)
{
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            buf_putc(out, '\\');
        buf_putc(out, *text == '\n' ? ' ' : *text);
    }
}

/* ---- adapters ---- */

struct top_adapter {
    char name[CATALOG_NAME_MAX + 1];
    uint64_t requests, tokens;
};

struct adapters {
    struct page *p;
    struct top_adapter top[METRICS_TOP];
    uint32_t top_count;
    uint64_t other_requests, other_tokens;
    uint64_t state[ADAPTER_STATE_COUNT];
    uint32_t resident_count;
    struct buf resident; /* comma-joined names */
};

static void keep_top(struct adapters *a, const struct adapter_entry *e)
{
    struct top_adapter mine = {
        .requests = atomic_load_explicit(&e->request_count, memory_order_relaxed),
        .tokens = atomic_load_explicit(&e->token_count, memory_order_relaxed)};
    uint32_t at = a->top_count;
    if (mine.requests == 0)
        return;
    while (at > 0 && a->top[at - 1].tokens < mine.tokens)
        at--;
    if (at == METRICS_TOP) {
        a->other_requests += mine.requests;
        a->other_tokens += mine.tokens;
        return;
    }
    if (a->top_count == METRICS_TOP) {
        a->top_count--;
        a->other_requests += a->top[METRICS_TOP - 1].requests;
        a->other_tokens += a->top[METRICS_TOP - 1].tokens;
    }
    memmove(&a->top[at + 1], &a->top[at], (a->top_count - at) * sizeof(a->top[0]));
    snprintf(mine.name, sizeof(mine.name), "%s", e->name);
    a->top[at] = mine;
    a->top_count++;
}

static bool visit(void *arg, struct adapter_entry *e)
{
    struct adapters *a = arg;
    uint32_t state = atomic_load_explicit(&e->state, memory_order_relaxed);
    a->state[state < ADAPTER_STATE_COUNT ? state : 0]++;
    if ((state == ADAPTER_HOST || state == ADAPTER_DEVICE) &&
        a->resident_count < RESIDENT_NAME_MAX) {
        if (a->resident_count++ > 0)
            buf_putc(&a->resident, ',');
        buf_puts(&a->resident, e->name);
    }
    keep_top(a, e);
    return true;
}

static void put_waiting(struct page *p, const struct engine_stats *e)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < e->adapter_waiting_count && i < ENGINE_RUNNING_ADAPTERS_MAX; i++) {
        struct adapter_entry *a = catalog_find_id(p->s->deps.catalog, e->adapter_waiting[i]);
        if (!a)
            continue;
        buf_puts(p->out, n++ ? "," : "");
        put_label(p->out, a->name);
        catalog_release(a);
    }
}

static void put_adapters(struct page *p, const struct engine_stats *e)
{
    struct adapters a = {.p = p};
    buf_init(&a.resident, (size_t)RESIDENT_NAME_MAX * (CATALOG_NAME_MAX + 2));
    catalog_each(p->s->deps.catalog, visit, &a);
    family(p, "vllm:lora_requests_info", "gauge",
           "Resident adapters, those waited for, and how many one batch holds; the value is the "
           "time.");
    buf_printf(p->out, "vllm:lora_requests_info{max_lora=\"%u\",running_lora_adapters=\"",
               p->s->opt.adapters_per_batch_max);
    put_label(p->out, a.resident.data ? a.resident.data : "");
    buf_puts(p->out, "\",waiting_lora_adapters=\"");
    put_waiting(p, e);
    buf_printf(p->out, "\"} %.3f\n", (double)clock_wall_ms() * 1e-3);
    buf_fini(&a.resident);
    family(p, "residual_adapters", "gauge", "Registered adapters by state.");
    for (int s = 0; s < ADAPTER_STATE_COUNT; s++)
        buf_printf(p->out, "residual_adapters{state=\"%s\"} %llu\n",
                   adapter_state_name((enum adapter_state)s), (unsigned long long)a.state[s]);
    plain(p, "residual_adapters_refused", "gauge", "Adapters of adapter_dir that are not served.",
          catalog_refused_count(p->s->deps.catalog));
    family(p, "residual_adapters_resident", "gauge", "Registered adapters by tier.");
    uint64_t total = 0;
    for (int s = 0; s < ADAPTER_STATE_COUNT; s++)
        total += a.state[s];
    uint64_t host = a.state[ADAPTER_HOST] + a.state[ADAPTER_DRAINING];
    buf_printf(p->out,
               "residual_adapters_resident{tier=\"device\"} %llu\n"
               "residual_adapters_resident{tier=\"host\"} %llu\n"
               "residual_adapters_resident{tier=\"disk\"} %llu\n",
               (unsigned long long)a.state[ADAPTER_DEVICE], (unsigned long long)host,
               (unsigned long long)(total - host - a.state[ADAPTER_DEVICE]));
    for (int which = 0; which < 2; which++) {
        const char *name =
            which ? "residual_adapter_tokens_total" : "residual_adapter_requests_total";
        family(p, name, "counter",
               which ? "Tokens by adapter: the busiest, and _other."
                     : "Answers by adapter: the busiest, and _other.");
        for (uint32_t i = 0; i < a.top_count; i++) {
            buf_printf(p->out, "%s{adapter=\"", name);
            put_label(p->out, a.top[i].name);
            buf_printf(p->out, "\"} %llu\n",
                       (unsigned long long)(which ? a.top[i].tokens : a.top[i].requests));
        }
        buf_printf(p->out, "%s{adapter=\"_other\"} %llu\n", name,
                   (unsigned long long)(which ? a.other_tokens : a.other_requests));
    }
}

/* ---- groups ---- */

static void put_engine(struct page *p, const struct engine_stats *e)
{
    static const char *const reason[] = {NULL, "stop", "length", "abort", "error"};
    double used = e->kv_pages ? (double)e->kv_pages_used / e->kv_pages : 0;
    gauge(p, "vllm:num_requests_running", "Sequences in the batch.", e->running_seqs);
    gauge(p, "vllm:num_requests_waiting", "Requests waiting.", e->waiting_requests);
    gauge(p, "vllm:num_requests_swapped", "Sequences preempted.", e->swapped);
    gauge(p, "vllm:kv_cache_usage_perc", "KV pages in use, 0 to 1.", used);
    gauge(p, "vllm:gpu_cache_usage_perc", "KV pages in use, 0 to 1 (old name).", used);
    family(p, "vllm:cache_config_info", "gauge", "KV pages.");
    buf_printf(p->out,
               "vllm:cache_config_info{block_size=\"%d\",num_gpu_blocks=\"%u\",engine=\"0\"} 1\n",
               PAGE_TOKENS, e->kv_pages);
    counter(p, "vllm:prompt_tokens_total", "Prompt tokens.", e->prompt_tokens);
    counter(p, "vllm:generation_tokens_total", "Generated tokens.", e->generation_tokens);
    counter(p, "vllm:num_preemptions_total", "Preemptions.", e->preemptions);
    counter(p, "vllm:prefix_cache_queries_total", "Tokens looked up.", e->prefix_queries);
    counter(p, "vllm:prefix_cache_hits_total", "Tokens found.", e->prefix_hits);
    counter(p, "vllm:gpu_prefix_cache_queries_total", "Old name.", e->prefix_queries);
    counter(p, "vllm:gpu_prefix_cache_hits_total", "Old name.", e->prefix_hits);
    family(p, "vllm:request_success_total", "counter", "Finished sequences by reason.");
    for (int i = FINISH_STOP; i <= FINISH_ERROR; i++)
        buf_printf(p->out, "vllm:request_success_total{%s,finished_reason=\"%s\"} %llu\n",
                   p->labels, reason[i], (unsigned long long)e->finished[i]);
    plain(p, "residual_engine_steps_total", "counter", "Steps.", (double)e->steps);
    plain(p, "residual_engine_decode_step_seconds", "gauge",
          "What a step takes that only decodes as many sequences as the last.",
          (double)e->decode_step_ns * 1e-9);
    plain(p, "residual_engine_steps_beside_total", "counter",
          "Steps with prompts or scoring beside decodes.", (double)e->steps_beside);
    plain(p, "residual_engine_steps_over_total", "counter",
          "Of these, longer than step_stretch_max allows.", (double)e->steps_over);
    plain(p, "residual_share_preemptions_total", "counter",
          "Sequences paused because another API key had waited for its share.",
          (double)e->share_preemptions);
    plain(p, "residual_passes_unrecorded", "gauge",
          "Shapes of a pass launched kernel by kernel: a recording failed.", e->passes_unrecorded);
    plain(p, "residual_score_tokens_total", "counter", "Tokens scored.", (double)e->score_tokens);
    plain(p, "residual_score_shared_tokens_total", "counter",
          "Tokens that scoring found in the prefix cache.", (double)e->score_shared_tokens);
    plain(p, "residual_score_queue", "gauge", "Scoring jobs queued.", e->score_queued);
}

/* Where the backend is a device. */
static void put_device_tier(struct page *p, const struct store_stats *t)
{
    if (t->device_bytes_max == 0)
        return;
    plain(p, "residual_adapter_device_bytes", "gauge", "Bytes of adapters on the device.",
          (double)t->device_bytes);
    plain(p, "residual_adapter_device_bytes_max", "gauge", "Budget.", (double)t->device_bytes_max);
    plain(p, "residual_adapter_on_device", "gauge", "Adapters on the device.", t->on_device);
    plain(p, "residual_adapter_uploading", "gauge", "Copies to the device under way.",
          t->uploading);
    plain(p, "residual_adapter_uploads_total", "counter", "Copies to the device.",
          (double)t->uploads);
    plain(p, "residual_adapter_device_evictions_total", "counter",
          "Adapters that left the device for others and stay in memory.",
          (double)t->device_evictions);
}

static void put_store(struct page *p, const struct store_stats *t)
{
    plain(p, "residual_adapter_host_bytes", "gauge", "Resident bytes of adapters.",
          (double)t->host_bytes);
    plain(p, "residual_adapter_host_bytes_max", "gauge", "Budget.", (double)t->host_bytes_max);
    plain(p, "residual_adapter_slots_used", "gauge", "Slots in use.", t->resident);
    plain(p, "residual_adapter_slots_pinned", "gauge", "Slots pinned by running requests.",
          t->pinned);
    plain(p, "residual_adapter_slots_max", "gauge", "Slots.", t->slots_max);
    plain(p, "residual_adapter_loading", "gauge", "Loads under way.", t->loading);
    plain(p, "residual_adapter_loads_total", "counter", "Loads.", (double)t->loads);
    plain(p, "residual_adapter_loads_verified_total", "counter",
          "Loads whose content was hashed; the others read a file that was hashed before and not "
          "touched since.",
          (double)t->loads_verified);
    plain(p, "residual_adapter_evictions_total", "counter", "Evictions.", (double)t->evictions);
    plain(p, "residual_adapter_load_failures_total", "counter", "Failed loads.",
          (double)t->load_failures);
    plain(p, "residual_adapter_load_seconds_total", "counter", "Time spent loading.",
          (double)t->load_ns_sum * 1e-9);
    plain(p, "residual_adapter_load_cpu_seconds_total", "counter",
          "Processor time spent loading, by the loader thread.", (double)t->load_cpu_ns_sum * 1e-9);
}

static void put_registry(struct page *p)
{
    struct book_stats b;
    if (!p->s->deps.book)
        return;
    book_get_stats(p->s->deps.book, &b);
    uint64_t now_s = clock_wall_ms() / 1000;
    plain(p, "residual_registry_block", "gauge",
          "Final block that prices and owners were read at; 0: none yet.", (double)b.block);
    plain(p, "residual_registry_age_seconds", "gauge", "Age of that block.",
          b.block && now_s > b.time_s ? (double)(now_s - b.time_s) : 0);
    plain(p, "residual_registry_failures_total", "counter", "Readings that failed.",
          (double)b.failures);
    plain(p, "residual_registry_unread", "gauge", "Adapters not read from the Registry yet.",
          b.unread);
}

static void put_indexes(struct page *p)
{
    struct indexes_stats i;
    if (!p->s->deps.indexes)
        return;
    indexes_get_stats(p->s->deps.indexes, &i);
    plain(p, "residual_indexes_ready", "gauge", "Attribution indexes in use.", i.ready);
    plain(p, "residual_indexes_waiting", "gauge", "Indexes that are being made.", i.waiting);
    plain(p, "residual_indexes_failed", "gauge", "Indexes that cannot be made; the log says why.",
          i.failed);
    plain(p, "residual_indexes_built_total", "counter", "Indexes built.", (double)i.built);
    plain(p, "residual_indexes_rebuilt_total", "counter",
          "Index files that failed their check and were built again.", (double)i.rebuilt);
    plain(p, "residual_index_bytes", "gauge", "Bytes of index files.", (double)i.bytes);
}

static void put_files(struct page *p)
{
    if (!p->s->deps.files)
        return;
    struct file_store_stats f = file_store_stats(p->s->deps.files);
    plain(p, "residual_files", "gauge", "Files of /v1/files.", f.files);
    plain(p, "residual_file_bytes", "gauge", "Their bytes.", (double)f.bytes);
}

static void put_factory(struct page *p)
{
    struct factory_stats f;
    if (!p->s->deps.factory)
        return;
    factory_get_stats(p->s->deps.factory, &f);
    plain(p, "residual_train_jobs_waiting", "gauge", "Training jobs that wait.", f.queued);
    plain(p, "residual_train_jobs_running", "gauge", "Training jobs that train.", f.running);
    plain(p, "residual_train_jobs_paused", "gauge", "Training jobs that are paused.", f.paused);
    plain(p, "residual_train_learners", "gauge", "Adapters that clients train step by step.",
          f.learners);
    family(p, "residual_train_jobs_total", "counter", "Training jobs by how they ended.");
    buf_printf(p->out, "residual_train_jobs_total{status=\"succeeded\"} %llu\n",
               (unsigned long long)f.succeeded);
    buf_printf(p->out, "residual_train_jobs_total{status=\"failed\"} %llu\n",
               (unsigned long long)f.failed);
    buf_printf(p->out, "residual_train_jobs_total{status=\"cancelled\"} %llu\n",
               (unsigned long long)f.cancelled);
    plain(p, "residual_train_tokens_total", "counter", "Tokens that training passes read.",
          (double)f.tokens);
    plain(p, "residual_train_room_total", "counter", "Tokens that these passes had room for.",
          (double)f.pass_room);
    plain(p, "residual_train_passes_total", "counter", "Training passes.", (double)f.passes);
    plain(p, "residual_train_steps_total", "counter", "Steps of training jobs.", (double)f.steps);
    plain(p, "residual_train_works_total", "counter", "Works of adapters that clients train.",
          (double)f.works);
}

static void put_tinker(struct page *p)
{
    struct tinker_stats t;
    tinker_get_stats(p->s->tinker, &t);
    plain(p, "residual_tinker_sessions", "gauge", "Sessions of Tinker's API.", (double)t.sessions);
    plain(p, "residual_tinker_models", "gauge", "Their models.", (double)t.models);
    plain(p, "residual_tinker_futures", "gauge", "Their requests that run or are kept.",
          (double)t.futures);
    plain(p, "residual_tinker_datums_total", "counter", "Datums of passes.", (double)t.datums);
    plain(p, "residual_tinker_samples_total", "counter", "Sampled sequences.", (double)t.samples);
}

static void put_recorder(struct page *p)
{
    struct recorder_stats r;
    recorder_get_stats(p->s->deps.recorder, &r);
    uint64_t durable = r.seq_durable, shipped = r.seq_shipped;
    plain(p, "residual_lane", "gauge", "Lane id.", r.lane);
    plain(p, "residual_lane_bound", "gauge", "1: bound to a chain.", r.bound);
    plain(p, "residual_redis_connected", "gauge", "1: records can be shipped.", r.redis_connected);
    plain(p, "residual_lane_seq_next", "gauge", "Next record number.", (double)r.seq_next);
    plain(p, "residual_lane_seq_durable", "gauge", "Last durable record.", (double)durable);
    plain(p, "residual_lane_seq_shipped", "gauge", "Last record shipped.", (double)shipped);
    plain(p, "residual_ship_lag_records", "gauge", "Durable records not shipped.",
          r.bound && durable > shipped ? (double)(durable - shipped) : 0);
    plain(p, "residual_lane_seq_final", "gauge",
          "Last record that the settlement worker says is final.", (double)r.seq_final);
    plain(p, "residual_lane_seq_first", "gauge", "First record that is kept.", (double)r.seq_first);
    plain(p, "residual_spool_bytes", "gauge", "Bytes of the spool.", (double)r.spool_bytes);
    plain(p, "residual_spool_bytes_max", "gauge", "Maximum.", (double)r.spool_bytes_max);
    plain(p, "residual_score_job_bytes", "gauge", "Bytes of jobs to score.", (double)r.job_bytes);
    plain(p, "residual_shares_computed_total", "counter",
          "Answers whose keys, spans and shares were computed.", (double)r.computed);
    plain(p, "residual_shares_seconds_total", "counter", "What that took, of one thread.",
          (double)r.compute_ns * 1e-9);
    plain(p, "residual_evidence_bytes", "gauge", "Bytes of kept evidence.",
          (double)r.evidence_bytes);
    plain(p, "residual_evidence_dropped_total", "counter",
          "Answers attributed whose explanation is not kept: no room on disk.",
          (double)r.evidence_dropped);
    plain(p, "residual_score_jobs", "gauge", "Jobs to score.", (double)r.job_count);
    plain(p, "residual_records_ready", "gauge",
          "0: /readyz says why: no room for records, or scoring that is owed stands still.",
          recorder_ready(p->s->deps.recorder, NULL) == STATUS_OK);
    plain(p, "residual_inferences_total", "counter", "Inference records.", (double)r.inferences);
    plain(p, "residual_attributions_total", "counter", "Attribution records.",
          (double)r.attributions);
    plain(p, "residual_voids_total", "counter", "Void records met at the start.", (double)r.voids);
    plain(p, "residual_outcomes_lost_total", "counter", "Attributions whose inputs were lost.",
          (double)r.outcomes_lost);
    plain(p, "residual_spool_fsyncs_total", "counter", "Group fsyncs.", (double)r.fsyncs);
    plain(p, "residual_spool_append_failures_total", "counter", "Failed appends.",
          (double)r.append_failures);
}

static void put_sockets(struct page *p)
{
    struct http_server *s = p->s;
    struct connections_stats c;
    connections_get_stats(&s->connections, &c);
    plain(p, "residual_http_sockets", "gauge", "Open connections.", c.open);
    plain(p, "residual_http_sockets_reserved", "gauge",
          "Open connections in the places kept for health and metrics.", c.reserved);
    plain(p, "residual_http_sockets_reaped_total", "counter",
          "Idle connections closed for a newcomer.", (double)c.reaped);
    plain(p, "residual_http_sockets_refused_total", "counter",
          "Connections beyond a maximum: 503, but for health and metrics.", (double)c.refused);
    plain(p, "residual_http_timeouts_total", "counter",
          "Headers and bodies that took too long: 408.", (double)c.timed_out);
    plain(p, "residual_http_bodies_bytes", "gauge", "Memory of request bodies.",
          (double)metrics_get(&s->bodies_bytes));
    plain(p, "residual_http_bodies_refused_total", "counter",
          "Requests refused because bodies needed more than bodies_bytes_max.",
          (double)metrics_get(&s->metrics.bodies_refused));
}

static void put_http(struct page *p)
{
    const struct metrics *m = &p->s->metrics;
    family(p, "http_requests_total", "counter", "HTTP requests.");
    for (uint32_t r = 0; r <= METRICS_ROUTES_MAX; r++) {
        for (int c = 0; c < 6; c++) {
            uint64_t n = metrics_get(&m->http_requests[r][c]);
            if (n == 0)
                continue;
            bool known = r < route_count();
            buf_printf(
                p->out, "http_requests_total{handler=\"%s\",method=\"%s\",status=\"%dxx\"} %llu\n",
                known ? route_at(r)->path : "none",
                known ? route_method_name(route_at(r)->method) : "none", c, (unsigned long long)n);
        }
    }
    plain(p, "residual_http_connections", "gauge", "Requests on connections now.",
          http_live_count(p->s));
    plain(p, "residual_http_active_requests", "gauge", "Generations not yet answered.",
          atomic_load(&p->s->active));
    put_sockets(p);
    plain(p, "residual_http_streams", "gauge", "Event streams that have begun.",
          atomic_load(&p->s->streams));
    plain(p, "residual_http_stream_writes_total", "counter",
          "Writes of event streams; each carries the tokens since the last.",
          (double)metrics_get(&m->stream_writes));
    plain(p, "residual_http_disconnects_total", "counter", "Clients gone before their answer.",
          (double)metrics_get(&m->disconnects));
    plain(p, "residual_http_refused_full_total", "counter", "Requests refused as full.",
          (double)metrics_get(&m->refused_full));
    plain(p, "residual_http_retried_total", "counter", "Requests that said they are retries.",
          (double)metrics_get(&m->retried));
    plain(p, "residual_http_idempotent_hits_total", "counter", "Repeated Idempotency-Keys.",
          (double)metrics_get(&m->idempotent_hits));
    plain(p, "residual_http_auth_failures_total", "counter", "Unknown or missing keys.",
          (double)metrics_get(&m->auth_failures));
    plain(p, "residual_http_request_bytes_total", "counter", "Body bytes received.",
          (double)metrics_get(&m->http_request_bytes));
    plain(p, "residual_http_reply_bytes_total", "counter", "Body bytes sent.",
          (double)metrics_get(&m->http_reply_bytes));
}

static void put_process(struct page *p)
{
    struct rusage u;
    long pages = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f) {
        if (fscanf(f, "%*s %ld", &pages) != 1)
            pages = 0;
        fclose(f);
    }
    if (getrusage(RUSAGE_SELF, &u) == 0)
        plain(p, "process_cpu_seconds_total", "counter", "CPU time.",
              (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
                  (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6);
    plain(p, "process_resident_memory_bytes", "gauge", "Resident memory.",
          (double)pages * (double)sysconf(_SC_PAGESIZE));
    plain(p, "process_start_time_seconds", "gauge", "Start time.",
          (double)p->s->start_wall_ms * 1e-3);
}

void metrics_render(struct http_server *s, bool openmetrics, struct buf *out)
{
    struct engine_stats e;
    struct page p = {.out = out, .s = s, .openmetrics = openmetrics};
    struct buf name;
    buf_init(&name, sizeof(p.labels) - 32);
    put_label(&name, s->opt.model_name);
    snprintf(p.labels, sizeof(p.labels), "model_name=\"%s\",engine=\"0\"",
             name.data ? name.data : "");
    buf_fini(&name);
    engine_get_stats(s->deps.engine, &e);
    put_engine(&p, &e);
    put_adapters(&p, &e);
    for (int h = 0; h < METRICS_HISTOGRAM_COUNT; h++)
        histogram(&p, (enum metrics_histogram)h);
    put_store(&p, &e.store);
    put_device_tier(&p, &e.store);
    put_recorder(&p);
    put_indexes(&p);
    put_factory(&p);
    put_tinker(&p);
    put_files(&p);
    put_registry(&p);
    put_http(&p);
    put_process(&p);
    if (openmetrics)
        buf_puts(out, "# EOF\n");
}
