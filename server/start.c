/* Start order: model -> backend -> book -> catalog, publisher, adapters -> datanets -> store ->
 * engine -> recorder -> http. Each part gets what it needs and nothing else; a failure undoes what
 * stands. Stop order: readiness off and drain (http), engine, recorder (flushes), http's last
 * replies, then memory. */
#include "server/start.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/file.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/factory_make.h"
#include "server/http/server.h"
#include "server/influence/indexes.h"
#include "server/keys.h"
#include "server/memory.h"
#include "server/record/lane.h"
#include "server/registry.h"
#include "server/spool/ship.h"
#include "server/text/unicode.h"
#include "server/train/file_store.h"
#include "server/values.h"

#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LAYOUTS_MAX 256

struct server {
    const struct config *config;
    struct model *model;
    struct backend *backend;
    struct catalog *catalog;
    struct publisher *publisher;
    struct datanet_store *datanets;
    struct file_store *files;
    struct registry_from registry_from; /* no book without a chain */
    struct store *store;
    struct engine *engine;
    struct indexes *indexes; /* NULL: scoring is off */
    struct recorder *recorder;
    struct factory_parts train;
    struct http_server *http;
    struct http_key *keys;
    uint32_t key_count;
    struct values values;
    char adapters_dir[PATH_MAX];
    uint64_t pool_bytes; /* of adapters, on a device */
    int lock_fd;         /* data_dir/lock: one server per data folder */
    int listen_fd;       /* bound; the HTTP server's once it runs */
    struct http_options http_opt;
    struct logfile access_log;
    _Atomic bool lost; /* the device is */
};

#define LOST_S_MAX 20 /* to tell everybody and flush the records, once the device is lost */

/* ---- parts ---- */

static enum status read_values(struct server *s, struct errtext *err)
{
    const struct config *c = s->config;
    enum status st = values_check(c, err);
    if (!st)
        st = values_read(&s->values, c, err);
    if (!st)
        st = registry_check(c, err);
    return st ? st : keys_load(&s->keys, &s->key_count, c, err);
}

/* The address is taken before the model is loaded: what it is refused for is known at once. */
static enum status take_address(struct server *s, struct errtext *err)
{
    const struct config *c = s->config;
    struct http_options *opt = &s->http_opt;
    *opt = (struct http_options){.thread_count = (uint32_t)c->http_threads,
                                 .connections_max = (uint32_t)c->connections_max,
                                 .connections_per_ip_max = (uint32_t)c->connections_per_ip_max,
                                 .idle_timeout_s = (uint32_t)c->idle_timeout_s,
                                 .stream_rest_ms = (uint32_t)c->stream_rest_ms,
                                 .header_timeout_s = (uint32_t)c->header_timeout_s,
                                 .body_timeout_s = (uint32_t)c->body_timeout_s,
                                 .bodies_bytes_max = c->bodies_bytes_max,
                                 .body_bytes_max = c->body_bytes_max,
                                 .n_max = (uint32_t)c->n_max,
                                 .context_max = (uint32_t)c->context_max,
                                 .upload_bytes_max = c->adapter_bytes_max,
                                 .train_price = c->train_price,
                                 .drain_s = (uint32_t)c->drain_s,
                                 .lame_duck_s = (uint32_t)c->lame_duck_s,
                                 .key = s->keys,
                                 .key_count = s->key_count,
                                 .access_log = c->access_log ? &s->access_log : NULL,
                                 .model_path = c->model,
                                 .adapters_per_batch_max = (uint32_t)c->adapters_per_batch_max,
                                 .allow_runtime_loading = c->allow_runtime_loading,
                                 .page = c->page,
                                 .chain_id = c->chain_id,
                                 .settle_url = c->settle_url};
    memcpy(opt->registry, s->values.registry, 20);
    snprintf(opt->model_name, sizeof(opt->model_name), "%s", c->model_name);
    enum status st = hostport_parse(&opt->listen, "listen", c->listen, err);
    if (!st)
        st = http_bind(&s->listen_fd, opt, err);
    if (!st && c->access_log)
        st = logfile_open(&s->access_log, c->access_log, err);
    return st;
}

static enum status lock_data_dir(struct server *s, struct errtext *err)
{
    enum status st = file_mkdirs(s->config->data_dir, 0700, err);
    return st ? st : lane_lock(s->config->data_dir, &s->lock_fd, err);
}

static void show_progress(void *arg, const char *what, uint64_t done, uint64_t total)
{
    uint64_t *last_ns = arg;
    uint64_t now = clock_mono_ns();
    if (done < total && now - *last_ns < 1000000000u)
        return;
    *last_ns = now;
    log_info("model", "%s: %llu of %llu MiB", what, (unsigned long long)(done >> 20),
             (unsigned long long)(total >> 20));
}

/* A plan for a device whose size is given needs none. */
static const char *backend_name(const struct config *c)
{
    bool cuda = !strcmp(c->backend, "cuda") || !strcmp(c->backend, "cuda:eager");
    bool has_bytes = c->device_bytes && !budget_is_percent(c->device_bytes);
    return c->plan && cuda && has_bytes ? "cuda:plan" : c->backend;
}

static enum status make_backend(struct server *s, struct errtext *err)
{
    const struct config *c = s->config;
    struct backend_options opt = {
        .name = backend_name(c),
        .thread_count = (uint32_t)c->threads,
        .deterministic = c->deterministic,
        .device_bytes = budget_bytes(c->device_bytes, 0),
        .device_percent =
            (uint32_t)(budget_is_percent(c->device_bytes) ? c->device_bytes % BUDGET_PERCENT : 0),
        .device = (uint32_t)c->device};
    enum status st = backend_create(&s->backend, &opt, err);
    if (st)
        return st;
    log_info("backend", "%s (%s), %u threads%s", s->backend->name, s->backend->version,
             s->backend->worker_count, s->backend->deterministic ? ", deterministic" : "");
    if (s->backend->choice[0])
        log_info("backend", "%s", s->backend->choice);
    return STATUS_OK;
}

static enum status make_model(struct server *s, struct errtext *err)
{
    const struct config *c = s->config;
    uint64_t last_ns = 0;
    struct model_options opt = {.cpu_has_bf16 = s->backend->has_bf16,
                                .strict = c->strict,
                                .progress = show_progress,
                                .progress_arg = &last_ns};
    if (!strcmp(c->dtype, "f32"))
        opt.dtype = DTYPE_CHOICE_F32;
    else if (!strcmp(c->dtype, "bf16"))
        opt.dtype = DTYPE_CHOICE_BF16;
    log_info("model", "loading %s", c->model);
    enum status st = model_load(&s->model, c->model, &opt, err);
    if (st)
        return st;
    char id[65];
    hex_encode(id, s->model->id, 32);
    log_info("model", "'%s': %s, %u layers, d %u, vocabulary %u, %s, id %.16s", c->model_name,
             s->model->config.family_name, s->model->config.n_layer, s->model->config.d_model,
             s->model->config.n_vocab, s->model->dtype == DTYPE_F32 ? "f32" : "bf16", id);
    log_info("model", "the tokenizer's Unicode tables: %s; part of the engine id",
             unicode_version());
    return STATUS_OK;
}

static enum status load_named_adapters(struct server *s, struct errtext *err)
{
    const struct config *c = s->config;
    for (uint32_t i = 0; i < c->adapter.count; i++) {
        char name[CATALOG_NAME_MAX + 1];
        const char *item = c->adapter.item[i], *eq = strchr(item, '=');
        snprintf(name, sizeof(name), "%.*s", (int)(eq - item), item);
        enum status st = publisher_load_dir(s->publisher, name, eq + 1, true, false, err);
        if (st)
            return st;
    }
    return STATUS_OK;
}

/* What lies in the folder of an adapter that the operator named: its datanet's list and texts, and
 * what it was trained on. A damaged one keeps no adapter from being served. */
static bool note_datanet(void *arg, struct adapter_entry *e)
{
    struct server *s = arg;
    struct errtext why = ERRTEXT_INIT;
    if (datanet_store_add_dir(s->datanets, e->dir, publisher_roots(s->publisher), e->id, &why))
        log_warn("datanets", "'%s': %s", e->name, why.text);
    return true;
}

static enum status make_datanets(struct server *s, struct errtext *err)
{
    char dir[PATH_MAX];
    snprintf(dir, sizeof(dir), "%s/datanets", s->config->data_dir);
    enum status st = datanet_store_open(&s->datanets, dir, s->config->datanet_bytes_max, err);
    if (!st)
        catalog_each(s->catalog, note_datanet, s);
    snprintf(dir, sizeof(dir), "%s/files", s->config->data_dir);
    const struct file_store_options files = {.dir = dir,
                                             .bytes_max = s->config->files_bytes_max,
                                             .owner_bytes_max = s->config->files_key_bytes_max,
                                             .owner_files_max = (uint32_t)s->config->files_key_max};
    return st ? st : file_store_open(&s->files, &files, err);
}

static enum status make_adapters(struct server *s, struct errtext *err)
{
    const struct config *c = s->config;
    uint32_t count = 0;
    s->catalog = catalog_create((uint32_t)c->adapters_registered_max);
    catalog_reserve_name(s->catalog, c->model_name);
    snprintf(s->adapters_dir, sizeof(s->adapters_dir), "%s/adapters", c->data_dir);
    struct publish_options opt = {
        .model = &s->model->config,
        .dtype = s->model->dtype,
        .form = s->backend->ops->adapters,
        .adapters_dir = s->adapters_dir,
        .chat_text = s->model->chat_text,
        .limits = {.bytes_max = c->adapter_bytes_max, .rank_max = (uint32_t)c->adapter_rank_max},
        .publisher_bytes_max = c->publisher_bytes_max,
        .adapters_max = (uint32_t)c->adapters_registered_max,
        .chain_id = c->chain_id,
        .book = s->registry_from.book,
        .ask_1271 = registry_ask_1271,
        .ask_1271_arg = &s->registry_from};
    memcpy(opt.model_id, s->model->id, 32);
    memcpy(opt.registry, s->values.registry, 20);
    for (uint32_t i = 0; i < c->adapter_roots.count; i++)
        opt.root[opt.root_count++] = c->adapter_roots.item[i];
    if (c->adapter_dir)
        opt.root[opt.root_count++] = c->adapter_dir;
    enum status st = publisher_create(&s->publisher, &opt, s->catalog, err);
    if (!st)
        st = publisher_recover(s->publisher, &count, err);
    if (!st && c->adapter_dir)
        st = publisher_load_all(s->publisher, c->adapter_dir, c->strict, &count, err);
    if (!st)
        st = load_named_adapters(s, err);
    if (!st)
        log_info("adapters", "%u registered, %u refused", catalog_count(s->catalog),
                 catalog_refused_count(s->catalog));
    return st;
}

static void wake_engine(void *arg)
{
    struct server *s = arg;
    if (s->engine)
        engine_wake(s->engine);
}

/* Engine thread: every request has been told. Main stops the server and says that it failed; a
 * thread that hangs in the driver must not keep the process. */
static void device_lost(void *arg)
{
    struct server *s = arg;
    atomic_store(&s->lost, true);
    alarm(LOST_S_MAX);
    kill(getpid(), SIGTERM);
}

static enum status make_engine(struct server *s, struct errtext *err)
{
    const struct config *c = s->config;
    struct store_options store_opt = {.slots_max = (uint32_t)c->adapters_resident_max,
                                      .layouts_max = LAYOUTS_MAX,
                                      .host_bytes_max = memory_host_adapters(c),
                                      .dtype = s->model->dtype,
                                      .model = &s->model->config,
                                      .backend = s->backend,
                                      .roots = publisher_roots(s->publisher),
                                      .wake = wake_engine,
                                      .wake_arg = s};
    uint32_t context = c->context_max ? (uint32_t)c->context_max : s->model->config.pos_max;
    if (context > s->model->config.pos_max)
        return err_param(err, STATUS_INVALID, "context_max",
                         "context_max: found %u, the model allows at most %u tokens", context,
                         s->model->config.pos_max);
    uint32_t rows = memory_rows(c, s->backend);
    struct engine_options opt = {.rows_max = rows,
                                 .seqs_max = (uint32_t)c->seqs_max,
                                 .waiting_max = (uint32_t)c->waiting_max,
                                 .context_max = context,
                                 .kv_bytes = memory_kv(c, s->model, s->backend, context),
                                 .packed_bytes_max =
                                     budget_bytes(c->packed_bytes_max, mem_machine_bytes()),
                                 .adapters_per_batch_max = (uint32_t)c->adapters_per_batch_max,
                                 .rank_sum_max = 3 * (uint32_t)c->adapter_rank_max * LORA_PARTS_MAX,
                                 .prefix_cache = c->prefix_cache,
                                 .score_rows_max = (uint32_t)MIN(c->score_rows_max, rows),
                                 .score_queue_max = (uint32_t)c->score_queue_max,
                                 .basis_bytes_max = c->basis_bytes_max,
                                 .keys_bytes_max = c->keys_bytes_max,
                                 .adapter_wait_ms_max = (uint32_t)c->adapter_wait_ms_max,
                                 .step_stretch_max = (uint32_t)c->step_stretch_max,
                                 .share_wait_ms_max = (uint32_t)c->share_wait_ms_max,
                                 .on_device_lost = device_lost,
                                 .on_device_lost_arg = s};
    enum status st = memory_adapter_pool(&s->pool_bytes, c, s->model, s->backend, err);
    opt.adapters_device_bytes = s->pool_bytes;
    opt.adapters_host_bytes = s->backend->is_device ? store_opt.host_bytes_max : 0;
    store_opt.device_bytes_max = s->pool_bytes;
    if (s->pool_bytes > store_opt.host_bytes_max)
        log_warn("adapters",
                 "adapters_host_bytes_max (%llu MiB) is less than the pool on the device (%llu "
                 "MiB): every adapter there has a copy in memory, so part of the pool stays empty",
                 (unsigned long long)(store_opt.host_bytes_max >> 20),
                 (unsigned long long)(s->pool_bytes >> 20));
    if (!st)
        st = store_create(&s->store, &store_opt, err);
    struct engine_deps deps = {.model = s->model, .backend = s->backend, .store = s->store};
    return st ? st : engine_create(&s->engine, &opt, &deps, err);
}

static enum status make_indexes(struct server *s, struct errtext *err)
{
    char dir[PATH_MAX];
    snprintf(dir, sizeof(dir), "%s/indexes", s->config->data_dir);
    const struct indexes_options opt = {.dir = dir,
                                        .bytes_max = s->config->index_bytes_max,
                                        .ahead_max = (uint32_t)s->config->index_ahead,
                                        .roots = publisher_roots(s->publisher)};
    const struct indexes_deps deps = {
        .engine = s->engine, .catalog = s->catalog, .model = s->model, .store = s->datanets};
    return s->config->score_rows_max ? indexes_create(&s->indexes, &opt, &deps, err) : STATUS_OK;
}

static enum status make_recorder(struct server *s, struct errtext *err)
{
    const struct config *c = s->config;
    struct recorder_options opt = {.data_dir = c->data_dir,
                                   .lane = (uint32_t)c->lane,
                                   .chain_id = c->chain_id,
                                   .base_tariff = s->values.base_tariff,
                                   .score_bytes_max = c->score_bytes_max,
                                   .evidence_bytes_max = c->evidence_bytes_max,
                                   .score_age_s_max = (uint32_t)c->score_age_s_max,
                                   .score_rate_ppb =
                                       c->score_rows_max ? (uint32_t)c->score_rate_ppb : 0,
                                   .scoring_off = c->score_rows_max == 0,
                                   .score_stuck_s = (uint32_t)c->score_stuck_s,
                                   .spool_bytes_max = c->spool_bytes_max,
                                   .spool_keep_bytes = c->spool_keep_bytes,
                                   .spool_keep_s = c->spool_keep_s,
                                   .group_max = (uint32_t)c->group_max,
                                   .redis_url = c->redis_url,
                                   .redis_password_file = c->redis_password_file,
                                   .redis_ca_file = c->redis_ca_file};
    struct recorder_deps deps = {.model = s->model,
                                 .engine = s->engine,
                                 .catalog = s->catalog,
                                 .book = s->registry_from.book,
                                 .indexes = s->indexes};
    memcpy(opt.ledger, s->values.ledger, 20);
    if (c->chain_id)
        opt.ledger_used = registry_lane_used(&s->registry_from, c, s->values.ledger);
    if (!c->chain_id)
        log_info("records",
                 "no chain settings: records stay unbound in the local spool (%s), "
                 "adapters cost 0",
                 c->data_dir);
    if (!c->chain_id && c->redis_url)
        log_warn("records", "redis_url is not used without chain settings: an unbound lane is "
                            "never shipped");
    else if (c->chain_id && !c->redis_url)
        log_info("records", "no redis_url: records stay in the local spool (%s)", c->data_dir);
    return recorder_create(&s->recorder, &opt, &deps, err);
}

static enum status make_http(struct server *s, struct errtext *err)
{
    struct http_deps deps = {.model = s->model,
                             .engine = s->engine,
                             .catalog = s->catalog,
                             .publisher = s->publisher,
                             .recorder = s->recorder,
                             .book = s->registry_from.book,
                             .datanets = s->datanets,
                             .indexes = s->indexes,
                             .files = s->files,
                             .factory = s->train.factory};
    s->http_opt.train_dir = s->train.factory ? s->train.dir : NULL;
    enum status st = http_start(&s->http, &s->http_opt, &deps, s->listen_fd, err);
    if (st)
        return st;
    s->listen_fd = -1;
    char text[256];
    server_describe(s, text, sizeof(text));
    log_info("http", "%s", text);
    return STATUS_OK;
}

/* ---- whole ---- */

static void destroy(struct server *s)
{
    factory_parts_destroy(&s->train);
    if (s->engine)
        engine_destroy(s->engine);
    recorder_destroy(s->recorder);
    indexes_destroy(s->indexes);
    store_destroy(s->store);
    datanet_store_close(s->datanets);
    file_store_close(s->files);
    publisher_destroy(s->publisher);
    catalog_destroy(s->catalog);
    registry_end(&s->registry_from);
    model_free(s->model);
    if (s->backend)
        backend_destroy(s->backend);
    mem_free(s->keys);
    if (s->lock_fd >= 0)
        close(s->lock_fd);
    if (s->listen_fd >= 0)
        close(s->listen_fd);
    logfile_close(&s->access_log);
    mem_free(s);
}

enum status server_start(struct server **out, const struct config *c, struct errtext *err)
{
    struct server *s = mem_alloc(sizeof(*s));
    *out = NULL;
    s->config = c;
    s->lock_fd = -1;
    s->listen_fd = -1;
    s->access_log = LOGFILE_STDERR;
    enum status st = read_values(s, err);
    if (!st)
        st = take_address(s, err);
    if (!st)
        st = lock_data_dir(s, err);
    if (!st)
        st = make_backend(s, err);
    if (!st)
        st = make_model(s, err);
    if (!st && c->chain_id)
        st = registry_begin(&s->registry_from, c, s->values.registry, s->model->id,
                            &s->values.base_tariff, err);
    if (!st)
        st = make_adapters(s, err);
    if (!st)
        st = make_datanets(s, err);
    if (!st)
        st = make_engine(s, err);
    if (!st)
        st = engine_record(s->engine, ENGINE_RECORD_MS_MAX, err);
    if (!st) {
        engine_start(s->engine);
        st = make_indexes(s, err);
        if (!st)
            st = make_recorder(s, err);
        if (!st)
            st = factory_parts_make(
                &s->train, c, s->backend, s->engine, s->model,
                &(struct publish_indexed){s->publisher, s->catalog, s->datanets, s->indexes}, err);
    }
    if (!st)
        st = make_http(s, err);
    if (!st) {
        *out = s;
        return STATUS_OK;
    }
    if (s->engine)
        engine_stop(s->engine, 0);
    factory_parts_stop(&s->train);
    indexes_stop(s->indexes);
    if (s->recorder)
        recorder_stop(s->recorder, 0);
    destroy(s);
    return st;
}

void server_describe(const struct server *s, char *out, size_t out_bytes)
{
    snprintf(out, out_bytes, "ready on http://%s:%u (model '%s', %u adapters)",
             s->http_opt.listen.host, http_port(s->http), s->http_opt.model_name,
             catalog_count(s->catalog));
}

static enum status reload_keys(struct server *s, struct errtext *err)
{
    const struct config *c = s->config;
    struct http_key *keys;
    uint32_t count;
    if (!c->api_keys_file)
        return STATUS_OK;
    enum status st = keys_load(&keys, &count, c, err);
    if (st)
        return st;
    st = http_set_keys(s->http, keys, count, err);
    mem_free(keys);
    if (!st)
        log_audit("main", "%u API keys read from %s", count, c->api_keys_file);
    return st;
}

void server_reload(struct server *s)
{
    struct errtext err = ERRTEXT_INIT;
    if (log_reopen(&err))
        log_error("main", "reload: %s; the old file stays in use", err.text);
    err_clear(&err);
    if (logfile_reopen(&s->access_log, &err))
        log_error("main", "reload: %s; the old file stays in use", err.text);
    err_clear(&err);
    if (reload_keys(s, &err))
        log_audit("main", "reload: API keys refused: %s; the old keys stay in force", err.text);
    else
        log_info("main", "reloaded: log files%s", s->config->api_keys_file ? " and API keys" : "");
}

bool server_failed(const struct server *s)
{
    return atomic_load(&s->lost);
}

void server_stop(struct server *s)
{
    uint32_t drain_ms = (uint32_t)s->config->drain_s * 1000;
    http_begin_drain(s->http);
    clock_sleep_ms(server_failed(s)
                       ? 0
                       : (uint32_t)s->config->lame_duck_s *
                             1000); /* routers notice, late requests are still served */
    factory_parts_stop(&s->train);
    engine_stop(s->engine, drain_ms);
    indexes_stop(s->indexes);
    recorder_stop(s->recorder, 5000);
    http_stop(s->http);
    destroy(s);
}

enum status server_print_plan(const struct config *c)
{
    struct server *s = mem_alloc(sizeof(*s));
    struct errtext err = ERRTEXT_INIT;
    struct buf text;
    buf_init(&text, 1 << 20);
    s->config = c;
    s->lock_fd = -1;
    s->listen_fd = -1;
    s->access_log = LOGFILE_STDERR;
    enum status st = values_check(c, &err);
    if (!st)
        st = make_backend(s, &err);
    if (!st)
        st = make_model(s, &err);
    if (!st)
        st = make_engine(s, &err);
    if (st) {
        fprintf(stderr, "residuald: %s\n", err.text);
    } else {
        engine_print_plan(s->engine, &text);
        memory_print_adapters(&text, c, s->model, s->backend, s->pool_bytes);
        fputs(text.data ? text.data : "", stdout);
    }
    buf_fini(&text);
    destroy(s);
    return st;
}
