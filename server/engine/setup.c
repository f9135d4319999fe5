/* Making and unmaking the engine: options checked by name, every byte planned and taken before the
 * thread starts, nothing afterwards. */
#include "chain_client/ids.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/base/thread.h"
#include "server/engine/steps.h"
#include "server/text/unicode.h"

#include <inttypes.h>
#include <sodium.h>
#include <string.h>

#define ROWS_MAX_MAX     65536
#define SEQS_MAX_MAX     4096
#define WAITING_MAX_MAX  65536
#define ADAPTERS_MAX_MAX 1024
#define SCHED_IDLE_KEYS  256 /* keys remembered while they ask nothing */
#define KV_SPARE_PART    128 /* of what is left of a device, one stays free when it is shared out */

static enum status check_range(const char *name, uint64_t value, uint64_t lo, uint64_t hi,
                               struct errtext *err)
{
    if (value >= lo && value <= hi)
        return STATUS_OK;
    return err_param(err, STATUS_INVALID, name, "%s is %llu, expected %llu to %llu", name,
                     (unsigned long long)value, (unsigned long long)lo, (unsigned long long)hi);
}

static uint64_t page_bytes(const struct model *m)
{
    const struct model_config *c = &m->config;
    return (uint64_t)KV_PAGE_TOK * c->n_layer * 2 * c->n_kv_head * c->d_head *
           dtype_bytes(m->dtype);
}

static enum status check_options(const struct engine_options *o, const struct model *m,
                                 bool is_device, struct errtext *err)
{
    enum status st = check_range("rows_max", o->rows_max, 1, ROWS_MAX_MAX, err);
    if (!st)
        st = check_range("seqs_max", o->seqs_max, 1, SEQS_MAX_MAX, err);
    if (!st && o->seqs_max > o->rows_max)
        st =
            err_param(err, STATUS_INVALID, "seqs_max",
                      "seqs_max is %u, more than rows_max (%u): every running sequence needs a row "
                      "in each step",
                      o->seqs_max, o->rows_max);
    if (!st)
        st = check_range("waiting_max", o->waiting_max, 1, WAITING_MAX_MAX, err);
    if (!st)
        st = check_range("context_max", o->context_max, 2, m->config.pos_max, err);
    if (!st)
        st = check_range("adapters_per_batch_max", o->adapters_per_batch_max, 0, ADAPTERS_MAX_MAX,
                         err);
    if (!st)
        st = check_range("score_rows_max", o->score_rows_max, 0, o->rows_max, err);
    if (!st && o->score_rows_max > 0)
        st = check_range("score_queue_max", o->score_queue_max, 1, 1u << 20, err);
    if (!st && o->kv_bytes == 0 && is_device)
        return st; /* chosen by the plan */
    if (!st)
        st = check_range("kv_bytes", o->kv_bytes, page_bytes(m),
                         page_bytes(m) * (KV_PAGE_NONE - 1ull), err);
    return st;
}

static const char *dtype_name(enum dtype t)
{
    return t == DTYPE_F32 ? "f32" : "bf16";
}

static void set_sizes(struct engine *e, const struct engine_options *opt,
                      const struct engine_deps *deps)
{
    const struct model_config *c = &deps->model->config;
    e->opt = *opt;
    if (!e->opt.clock_ns)
        e->opt.clock_ns = clock_mono_ns;
    e->model = deps->model;
    e->backend = deps->backend;
    e->store = deps->store;
    e->page_stride = pages_for(opt->context_max);
    e->slot_count = opt->seqs_max + SCORE_RUNS_MAX;
    e->jobs_max = opt->waiting_max + 2 * opt->seqs_max;
    e->pin_buckets = 16;
    while (e->pin_buckets < opt->adapters_per_batch_max)
        e->pin_buckets *= 2;
    e->kv.page_count = (uint32_t)(opt->kv_bytes / page_bytes(deps->model));
    e->basis_places = (uint32_t)MIN(opt->basis_bytes_max / basis_place_bytes(c->d_model), 1u << 20);
    e->head.tile = MIN(opt->seqs_max, HEAD_TILE_MAX);
    e->overlaps = e->backend->ops->sample_begin != NULL;
    e->batch.rows_max = opt->rows_max;
    e->batch.segs_max = e->slot_count;
    e->cache.dtype = e->model->dtype;
    e->cache.page_tok = KV_PAGE_TOK;
    /* page | layer | K, V | head | token | d_head: what a head reads of a page is contiguous */
    e->cache.stride_tok = c->d_head;
    e->cache.stride_head = (uint64_t)KV_PAGE_TOK * c->d_head;
    e->cache.stride_kv = e->cache.stride_head * c->n_kv_head;
    e->cache.stride_layer = e->cache.stride_kv * 2;
    e->cache.stride_page = e->cache.stride_layer * c->n_layer;
}

#define PLAN_IN(place_, key_, ptr, count, what_, ...)                                              \
    memplan_add(&e->plan,                                                                          \
                &(struct memplan_block){.at = (void **)&(ptr),                                     \
                                        .bytes = (uint64_t)(count) * sizeof(*(ptr)),               \
                                        .place = (place_),                                         \
                                        .what = (what_),                                           \
                                        .key = (key_)},                                            \
                __VA_ARGS__)
#define PLAN(ptr, count, what, ...) PLAN_IN(MEMPLAN_HOST, NULL, ptr, count, what, __VA_ARGS__)
#define PLAN_ON_DEVICE(key, ptr, count, what, ...)                                                 \
    PLAN_IN(MEMPLAN_DEVICE, key, ptr, count, what, __VA_ARGS__)

/* What is taken elsewhere, or has no type. */
static void plan_bytes(struct engine *e, const struct memplan_block *b, const char *formula)
{
    if (b->bytes > 0)
        memplan_add(&e->plan, b, "%s", formula);
}

static void plan_head(struct engine *e)
{
    const struct model_config *c = &e->model->config;
    struct head *h = &e->head;
    enum dtype act = e->backend->act;
    uint64_t rows = e->opt.rows_max;
    memplan_add(&e->plan,
                &(struct memplan_block){.at = &h->hidden,
                                        .bytes = rows * c->d_model * dtype_bytes(act),
                                        .place = MEMPLAN_DEVICE,
                                        .what = "hidden states",
                                        .key = "rows_max"},
                "%u rows x %u x %s", e->opt.rows_max, c->d_model, dtype_name(act));
    PLAN_ON_DEVICE("seqs_max", h->logits, (uint64_t)h->tile * c->n_vocab, "logits",
                   "%u rows x %u x f32", h->tile, c->n_vocab);
    memplan_add(
        &e->plan,
        &(struct memplan_block){.at = &h->sample_scratch,
                                .bytes = backend_sample_scratch_bytes(e->backend, c->n_vocab),
                                .place = MEMPLAN_DEVICE,
                                .what = "sampling scratch"},
        "%u workers, vocabulary %u", e->backend->worker_count, c->n_vocab);
    PLAN_ON_DEVICE("score_rows_max", h->score_scratch,
                   (uint64_t)MAX(e->opt.score_rows_max, 1) * SCORE_TILE, "scoring scratch",
                   "%u rows x %d x f32", e->opt.score_rows_max, SCORE_TILE);
    PLAN_ON_DEVICE("rows_max", h->norm2, rows * 2, "LoRA telemetry", "%u rows x 2 x f64",
                   e->opt.rows_max);
    if (e->overlaps)
        PLAN(h->norm2_host, rows * 2, "telemetry read back", "%u rows x 2 x f64", e->opt.rows_max);
    PLAN(h->key, rows * SKETCH_DIM, "keys of a step", "%u rows x %d", e->opt.rows_max, SKETCH_DIM);
    PLAN(h->key_seg, e->slot_count, "rows of bases", "%u slots", e->slot_count);
    PLAN(h->row, h->tile, "sampling rows", "%u", h->tile);
    PLAN(h->bias, (uint64_t)h->tile * BIAS_ROW_MAX, "sampling biases", "%u rows x %d", h->tile,
         BIAS_ROW_MAX);
    PLAN(h->out, e->opt.seqs_max, "sampled tokens", "%u sequences", e->opt.seqs_max);
    PLAN(h->prompt_out, h->tile, "prompt log-probs", "%u rows", h->tile);
    PLAN(h->target, rows, "targets", "%u rows", e->opt.rows_max);
    PLAN(h->top_count, h->tile, "alternatives", "%u rows", h->tile);
    PLAN(h->logprob, rows, "scores", "%u rows", e->opt.rows_max);
}

static void plan_tables(struct engine *e)
{
    uint32_t keys_max = e->jobs_max + SCHED_IDLE_KEYS;
    PLAN(e->kv_page, e->kv.page_count, "KV page table", "%u pages", e->kv.page_count);
    PLAN(e->kv_bucket, kv_bucket_count(e->kv.page_count), "prefix cache table", "%u buckets",
         kv_bucket_count(e->kv.page_count));
    PLAN(e->kv_holders, RS_CHECKING ? e->kv.page_count : 1, "KV checks", "checking builds only");
    PLAN(e->page_table, (uint64_t)e->slot_count * e->page_stride, "page rows",
         "%u slots x %u pages", e->slot_count, e->page_stride);
    PLAN(e->seq, e->slot_count, "sequences", "%u slots", e->slot_count);
    PLAN(e->slot_free, e->opt.seqs_max, "free slots", "%u", e->opt.seqs_max);
    PLAN(e->order, e->slot_count, "order", "%u slots", e->slot_count);
    PLAN(e->order_new, e->slot_count, "new in the order", "%u slots", e->slot_count);
    PLAN(e->scratch, e->slot_count, "to sort slots", "%u slots", e->slot_count);
    PLAN(e->share.victim, e->opt.seqs_max, "who pauses", "%u sequences", e->opt.seqs_max);
    PLAN(e->share.key, e->opt.seqs_max, "whose pause", "%u keys", e->opt.seqs_max);
    PLAN(e->ask, e->slot_count, "asks", "%u slots", e->slot_count);
    PLAN(e->ask_slot, e->slot_count, "asking slots", "%u slots", e->slot_count);
    PLAN(e->job, e->jobs_max, "requests", "%u", e->jobs_max);
    PLAN(e->job_free, e->jobs_max, "free requests", "%u", e->jobs_max);
    PLAN(e->job_live, e->jobs_max, "live requests", "%u", e->jobs_max);
    PLAN(e->queue, e->jobs_max, "who is next", "%u requests", e->jobs_max);
    PLAN(e->pin, e->opt.adapters_per_batch_max, "adapter pins", "%u",
         e->opt.adapters_per_batch_max);
    PLAN(e->pin_bucket, e->pin_buckets, "pins by id", "%u buckets", e->pin_buckets);
    PLAN(e->sched_key, keys_max, "fairness counters", "%u keys", keys_max);
    e->text.bytes_max = detok_step_bytes_max(e->model->tokenizer, e->opt.context_max);
    e->text.cap = e->text.bytes_max + 1;
    PLAN(e->text.data, e->text.cap, "a step's text", "%zu bytes", e->text.cap);
}

static void plan_batch(struct engine *e)
{
    uint32_t rows = e->opt.rows_max;
    PLAN(e->batch.ids, rows, "row ids", "%u rows", rows);
    PLAN(e->batch.seq, rows, "row sequences", "%u rows", rows);
    PLAN(e->batch.pos, rows, "row positions", "%u rows", rows);
    PLAN(e->batch.out_row, rows, "wanted rows", "%u rows", rows);
    for (uint32_t i = 0; i < 2; i++) {
        PLAN(e->flight[i].out, rows, "wanted positions", "%u rows", rows);
        PLAN(e->flight[i].seq, e->slot_count, "rows of sequences", "%u", e->slot_count);
        PLAN(e->flight[i].ticket, e->opt.seqs_max, "results", "%u", e->opt.seqs_max);
    }
    PLAN(e->batch.seg, e->slot_count, "segments", "%u", e->slot_count);
}

static struct forward_options forward_options_of(const struct engine *e)
{
    const struct lora_table *table = e->store ? store_table(e->store) : NULL;
    return (struct forward_options){.rows_max = e->opt.rows_max,
                                    .pos_max = e->opt.context_max,
                                    .rank_sum_max = e->opt.rank_sum_max,
                                    .seqs_max = e->slot_count,
                                    .segs_max = e->slot_count,
                                    .slots_max = table ? table->n_slot : 0,
                                    .layouts_max = table ? table->n_layout : 0,
                                    .logits_rows_max = e->head.tile};
}

/* The packed copies stand for the mapped weights, of which only the embedding's rows are still
 * read. */
static bool plan_packed(struct engine *e)
{
    const struct model *m = e->model;
    uint64_t need = resident_packed_bytes(m, e->backend), most = e->opt.packed_bytes_max;
    if (need == 0)
        return false;
    if (most == 0)
        most = mem_available_bytes() / 2;
    if (need > most) {
        log_warn("engine",
                 "base not packed for products: a copy needs %" PRIu64 " MiB, packed_bytes_max "
                 "allows %" PRIu64 " MiB; products read the mapped files, slower, same results",
                 need >> 20, most >> 20);
        return false;
    }
    memplan_add(&e->plan,
                &(struct memplan_block){.at = &e->weights,
                                        .bytes = need,
                                        .place = MEMPLAN_HOST,
                                        .what = "model weights",
                                        .key = "packed_bytes_max"},
                "packed once, read by each step");
    memplan_add(&e->plan,
                &(struct memplan_block){.bytes = (uint64_t)m->embed.d_out * m->embed.d_in *
                                                 dtype_bytes(m->embed.dtype),
                                        .place = MEMPLAN_HOST,
                                        .what = "embedding",
                                        .key = "model (choose a smaller one)"},
                "rows read by each step");
    return true;
}

static void plan_base(struct engine *e)
{
    if (plan_packed(e))
        return;
    struct memplan_block b = {.bytes = e->model->weight_bytes,
                              .place = MEMPLAN_HOST,
                              .what = "model weights",
                              .key = "model (choose a smaller one)"};
    if (e->backend->is_device) {
        b.at = &e->weights;
        b.bytes = resident_bytes(e->model);
        b.place = MEMPLAN_DEVICE;
    }
    memplan_add(&e->plan, &b, "%s", b.at ? "copied once, stay" : "read by each step");
}

/* The backend's own. The driver's memory for recorded passes is not known before; device_bytes
 * leaves it room. */
static void plan_workspace(struct engine *e, const struct backend_limits *lim)
{
    static const char key[] = "rows_max, seqs_max or context_max";
    struct backend_workspace w = e->backend->ops->workspace(e->backend, lim);
    plan_bytes(e,
               &(struct memplan_block){
                   .bytes = w.bytes, .place = MEMPLAN_DEVICE, .what = "workspace", .key = key},
               "tables of a step, partial results");
    plan_bytes(e,
               &(struct memplan_block){
                   .bytes = w.pinned_bytes, .place = MEMPLAN_HOST, .what = "staging", .key = key},
               "page-locked: tables of three steps, uploads, results");
    e->passes_max = w.passes_max;
    if (w.passes_max > 0)
        memplan_add(&e->plan, &(struct memplan_block){.place = MEMPLAN_DEVICE, .what = "graphs"},
                    "at most %u, in what device_bytes leaves to the driver", w.passes_max);
}

/* Requests take theirs of the host's as they come. */
static void plan_bases(struct engine *e)
{
    uint64_t place = basis_place_bytes(e->model->config.d_model);
    if (e->basis_places == 0)
        return;
    memplan_add(&e->plan,
                &(struct memplan_block){.at = &e->basis_memory,
                                        .bytes = e->basis_places * place,
                                        .place = MEMPLAN_DEVICE,
                                        .what = "bases of indexes",
                                        .key = "basis_bytes_max"},
                "%u of %.1f KiB", e->basis_places, (double)place / 1024.0);
    plan_bytes(e,
               &(struct memplan_block){.bytes = e->opt.keys_bytes_max,
                                       .place = MEMPLAN_HOST,
                                       .what = "keys of answers",
                                       .key = "keys_bytes_max"},
               "64 bytes a token of max_tokens, as requests come");
}

/* Everything but the KV cache. */
static void plan_compute(struct engine *e, const struct forward_options *fo)
{
    const struct model_config *c = &e->model->config;
    struct backend_limits lim = forward_limits(c, fo);
    plan_bytes(e,
               &(struct memplan_block){.bytes = e->opt.adapters_device_bytes,
                                       .place = MEMPLAN_DEVICE,
                                       .what = "adapter pool",
                                       .key = "adapters_device_bytes_max"},
               "of the adapters in use");
    plan_bytes(e,
               &(struct memplan_block){.bytes = e->opt.adapters_host_bytes,
                                       .place = MEMPLAN_HOST,
                                       .what = "adapters in memory",
                                       .key = "adapters_host_bytes_max"},
               "page-locked, in the device's form");
    plan_bases(e);
    memplan_add(&e->plan,
                &(struct memplan_block){.bytes = forward_bytes(e->backend, c, fo),
                                        .place = MEMPLAN_DEVICE,
                                        .what = "activations",
                                        .key = "rows_max or adapter_rank_max"},
                "%u rows", fo->rows_max);
    plan_workspace(e, &lim);
    plan_head(e);
    plan_batch(e);
}

/* What is left of a device, in whole pages, at most the whole context of every sequence. */
static enum status choose_kv(struct engine *e, struct errtext *err)
{
    uint64_t page = page_bytes(e->model), used = memplan_total(&e->plan, MEMPLAN_DEVICE);
    uint64_t left = e->plan.device_max > used ? e->plan.device_max - used : 0;
    uint64_t want = page * e->page_stride * e->opt.seqs_max;
    left -= left / KV_SPARE_PART; /* runs of memory end where others begin */
    e->opt.kv_bytes = MIN(want, left) / page * page;
    if (e->opt.kv_bytes < page)
        return err_param(err, STATUS_TOO_LARGE, "device_bytes",
                         "the memory plan does not fit: the lines before the KV cache need %.1f of "
                         "the device's %.1f MiB, a page of it %.1f MiB; lower rows_max or "
                         "adapters_device_bytes_max, or raise device_bytes",
                         (double)used / 1048576.0, (double)e->plan.device_max / 1048576.0,
                         (double)page / 1048576.0);
    e->kv.page_count = (uint32_t)MIN(e->opt.kv_bytes / page, KV_PAGE_NONE - 1ull);
    return STATUS_OK;
}

static enum status make_plan(struct engine *e, const struct forward_options *fo,
                             struct errtext *err)
{
    enum status st = STATUS_OK;
    memplan_init(&e->plan, e->backend, mem_machine_bytes());
    plan_base(e);
    plan_compute(e, fo);
    if (e->kv.page_count == 0) {
        st = memplan_check(&e->plan, err);
        if (!st)
            st = choose_kv(e, err);
    }
    if (st)
        return st;
    memplan_add(&e->plan,
                &(struct memplan_block){.at = &e->cache.base,
                                        .bytes = (uint64_t)e->kv.page_count * page_bytes(e->model),
                                        .place = MEMPLAN_DEVICE,
                                        .what = "KV cache",
                                        .key = "kv_bytes"},
                "%u pages of %d tokens, %u a sequence", e->kv.page_count, KV_PAGE_TOK,
                e->page_stride);
    plan_tables(e);
    return STATUS_OK;
}

static enum status take_memory(struct engine *e, struct errtext *err)
{
    struct forward_options fo = forward_options_of(e);
    enum status st = make_plan(e, &fo, err);
    if (!st)
        st = memplan_take(&e->plan, err);
    if (!st)
        st = resident_create(&e->resident, e->model, e->backend, e->weights, err);
    if (!st)
        st = forward_create(&e->forward, resident_model(e->resident), e->backend, &fo, err);
    if (!e->overlaps)
        e->head.norm2_host = e->head.norm2;
    return st;
}

static void drop_memory(struct engine *e)
{
    forward_destroy(e->forward);
    resident_destroy(e->resident);
    memplan_drop(&e->plan);
}

static void init_state(struct engine *e)
{
    kv_init(&e->kv, e->kv_page, e->kv_bucket, e->kv.page_count);
    sched_init(&e->sched, e->sched_key, e->jobs_max + SCHED_IDLE_KEYS);
    for (uint32_t i = 0; i < e->jobs_max; i++)
        e->job_free[i] = e->jobs_max - 1 - i;
    e->job_free_count = e->jobs_max;
    for (uint32_t i = 0; i < e->slot_count; i++)
        e->seq[i].slot = i;
    for (uint32_t i = 0; i < e->opt.seqs_max; i++)
        e->slot_free[i] = e->opt.seqs_max - 1 - i;
    e->slot_free_count = e->opt.seqs_max;
    for (uint32_t i = 0; i < e->pin_buckets; i++)
        e->pin_bucket[i] = PIN_NONE;
    e->basis_pool =
        basis_pool_create(&(struct basis_pool_options){.memory = e->basis_memory,
                                                       .places = e->basis_places,
                                                       .d_model = e->model->config.d_model,
                                                       .is_device = e->backend->is_device,
                                                       .keys_bytes_max = e->opt.keys_bytes_max});
    pace_init(&e->pace, e->opt.step_stretch_max);
    mailbox_init(&e->mail, e->jobs_max);
    mailbox_init(&e->score_mail, MAX(e->opt.score_queue_max, 1));
    mailbox_init(&e->unload_mail, UNLOADS_MAX);
    CHECK(pthread_mutex_init(&e->stats_lock, NULL) == 0);
    CHECK(pthread_mutex_init(&e->unload_lock, NULL) == 0);
    thread_cond_init(&e->unload_done);
}

enum status engine_create(struct engine **out, const struct engine_options *opt,
                          const struct engine_deps *deps, struct errtext *err)
{
    enum status st = check_options(opt, deps->model, deps->backend->is_device, err);
    *out = NULL;
    if (st)
        return st;
    if (sodium_init() < 0)
        return err_set(err, STATUS_UNSUPPORTED, "libsodium does not start on this machine");
    struct engine *e = mem_alloc(sizeof(*e));
    set_sizes(e, opt, deps);
    st = take_memory(e, err);
    if (st) {
        drop_memory(e);
        mem_free(e);
        return st;
    }
    init_state(e);
    stats_publish(e);
    *out = e;
    return STATUS_OK;
}

const struct resident *engine_resident(const struct engine *e)
{
    return e->resident;
}

void engine_print_plan(const struct engine *e, struct buf *out)
{
    memplan_print(&e->plan, out);
}

void engine_start(struct engine *e)
{
    CHECK(!e->started);
    CHECK(thread_start(&e->thread, "rs-engine", engine_main, e, NULL) == STATUS_OK);
    e->started = true;
}

void engine_destroy(struct engine *e)
{
    if (!e)
        return;
    CHECK(!e->started);
    CHECK(e->job_live_count == 0);
    CHECK(e->pin_count == 0);
    if (e->flying) /* nobody waits for what it finds */
        (void)run_collect(e, e->flying);
    basis_pool_release(e->basis_pool);
    mailbox_fini(&e->mail);
    mailbox_fini(&e->score_mail);
    mailbox_fini(&e->unload_mail);
    pthread_cond_destroy(&e->unload_done);
    pthread_mutex_destroy(&e->unload_lock);
    pthread_mutex_destroy(&e->stats_lock);
    drop_memory(e);
    mem_free(e);
}

void engine_get_id(const struct engine *e, uint8_t id[32])
{
    ids_engine(id, &(struct ids_engine_parts){.backend = e->backend->name,
                                              .dtype = dtype_name(e->model->dtype),
                                              .deterministic = e->backend->deterministic,
                                              .kernel_version = e->backend->version,
                                              .unicode = unicode_version()});
}
