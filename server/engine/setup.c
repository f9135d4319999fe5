/* Making and unmaking the engine: options checked by name, every byte planned and taken before the
 * thread starts, nothing afterwards. */
#include "server/engine/steps.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/mem.h"

#include <sodium.h>
#include <string.h>
#include <unistd.h>

#define ROWS_MAX_MAX     65536
#define SEQS_MAX_MAX     4096
#define WAITING_MAX_MAX  65536
#define ADAPTERS_MAX_MAX 1024
#define SCHED_IDLE_KEYS  256 /* keys remembered while they ask nothing */

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
                                 struct errtext *err)
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
    if (!st)
        st = check_range("kv_bytes", o->kv_bytes, page_bytes(m),
                         page_bytes(m) * (KV_PAGE_NONE - 1ull), err);
    return st;
}

static const char *token_text(const struct tokenizer *t, int32_t id, size_t *len)
{
    *len = 0;
    if (!t || tokenizer_is_special(t, id))
        return "";
    const char *text = tokenizer_token_bytes(t, id, len);
    return text ? text : "";
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
    e->token_text = token_text;
    e->page_stride = pages_for(opt->context_max);
    e->slot_count = opt->seqs_max + SCORE_RUNS_MAX;
    e->jobs_max = opt->waiting_max + 2 * opt->seqs_max;
    e->kv.page_count = (uint32_t)(opt->kv_bytes / page_bytes(deps->model));
    e->head.tile = MIN(opt->seqs_max, HEAD_TILE_MAX);
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

#define PLAN(ptr, count, what, ...)                                                                \
    memplan_add(&e->plan, (void **)&(ptr), (uint64_t)(count) * sizeof(*(ptr)), what, __VA_ARGS__)

static void plan_head(struct engine *e)
{
    const struct model_config *c = &e->model->config;
    struct head *h = &e->head;
    uint64_t rows = e->opt.rows_max, score = MAX(e->opt.score_rows_max, 1);
    PLAN(h->hidden, rows * c->d_model, "hidden states", "%u rows x %u x f32", e->opt.rows_max,
         c->d_model);
    PLAN(h->logits, (uint64_t)h->tile * c->n_vocab, "logits", "%u rows x %u x f32", h->tile,
         c->n_vocab);
    memplan_add(&e->plan, &h->sample_scratch, backend_sample_scratch_bytes(e->backend, c->n_vocab),
                "sampling scratch", "%u workers, vocabulary %u", e->backend->worker_count,
                c->n_vocab);
    PLAN(h->row, h->tile, "sampling rows", "%u", h->tile);
    PLAN(h->bias, (uint64_t)h->tile * BIAS_ROW_MAX, "sampling biases", "%u rows x %d", h->tile,
         BIAS_ROW_MAX);
    PLAN(h->out, e->opt.seqs_max, "sampled tokens", "%u sequences", e->opt.seqs_max);
    PLAN(h->prompt_out, h->tile, "prompt log-probs", "%u rows", h->tile);
    PLAN(h->target, rows, "targets", "%u rows", e->opt.rows_max);
    PLAN(h->top_count, h->tile, "alternatives", "%u rows", h->tile);
    PLAN(h->logprob, rows, "scores", "%u rows", e->opt.rows_max);
    PLAN(h->score_scratch, score * SCORE_TILE, "scoring scratch", "%u rows x %d x f32",
         e->opt.score_rows_max, SCORE_TILE);
    PLAN(h->norm2, rows * 2, "LoRA telemetry", "%u rows x 2 x f64", e->opt.rows_max);
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
    PLAN(e->order, e->slot_count, "order", "%u slots", e->slot_count);
    PLAN(e->ask, e->slot_count, "asks", "%u slots", e->slot_count);
    PLAN(e->ask_slot, e->slot_count, "asking slots", "%u slots", e->slot_count);
    PLAN(e->job, e->jobs_max, "requests", "%u", e->jobs_max);
    PLAN(e->job_free, e->jobs_max, "free requests", "%u", e->jobs_max);
    PLAN(e->job_live, e->jobs_max, "live requests", "%u", e->jobs_max);
    PLAN(e->pin, e->opt.adapters_per_batch_max, "adapter pins", "%u",
         e->opt.adapters_per_batch_max);
    PLAN(e->sched_key, keys_max, "fairness counters", "%u keys", keys_max);
}

static void plan_batch(struct engine *e)
{
    uint32_t rows = e->opt.rows_max;
    PLAN(e->batch.ids, rows, "row ids", "%u rows", rows);
    PLAN(e->batch.seq, rows, "row sequences", "%u rows", rows);
    PLAN(e->batch.pos, rows, "row positions", "%u rows", rows);
    PLAN(e->batch.out_row, rows, "wanted rows", "%u rows", rows);
    PLAN(e->batch.out, rows, "wanted positions", "%u rows", rows);
    PLAN(e->batch.seg, e->slot_count, "segments", "%u", e->slot_count);
}

static enum status take_memory(struct engine *e, struct errtext *err)
{
    struct forward_options fo = {.rows_max = e->opt.rows_max,
                                 .pos_max = e->opt.context_max,
                                 .rank_sum_max = e->opt.rank_sum_max};
    long pages = sysconf(_SC_PHYS_PAGES), unit = sysconf(_SC_PAGESIZE);
    uint64_t machine = pages > 0 && unit > 0 ? (uint64_t)pages * (uint64_t)unit : 0;
    memplan_add(&e->plan, NULL, e->model->weight_bytes, "model weights", "read by each step");
    memplan_add(&e->plan, NULL, forward_bytes(&e->model->config, &fo), "activations", "%u rows",
                fo.rows_max);
    memplan_add(&e->plan, &e->cache.base, (uint64_t)e->kv.page_count * page_bytes(e->model),
                "KV cache", "%u pages of %d tokens, %u a sequence", e->kv.page_count, KV_PAGE_TOK,
                e->page_stride);
    plan_head(e);
    plan_batch(e);
    plan_tables(e);
    enum status st = memplan_take(&e->plan, machine, err);
    if (!st)
        st = forward_create(&e->forward, e->model, e->backend, &fo, err);
    return st;
}

static void init_state(struct engine *e)
{
    pthread_condattr_t attr;
    kv_init(&e->kv, e->kv_page, e->kv_bucket, e->kv.page_count);
    sched_init(&e->sched, e->sched_key, e->jobs_max + SCHED_IDLE_KEYS);
    for (uint32_t i = 0; i < e->jobs_max; i++)
        e->job_free[i] = e->jobs_max - 1 - i;
    e->job_free_count = e->jobs_max;
    for (uint32_t i = 0; i < e->slot_count; i++)
        e->seq[i].slot = i;
    mailbox_init(&e->mail, e->jobs_max);
    mailbox_init(&e->score_mail, MAX(e->opt.score_queue_max, 1));
    mailbox_init(&e->unload_mail, UNLOADS_MAX);
    CHECK(pthread_mutex_init(&e->stats_lock, NULL) == 0);
    CHECK(pthread_mutex_init(&e->unload_lock, NULL) == 0);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    CHECK(pthread_cond_init(&e->unload_done, &attr) == 0);
    pthread_condattr_destroy(&attr);
}

enum status engine_create(struct engine **out, const struct engine_options *opt,
                          const struct engine_deps *deps, struct errtext *err)
{
    enum status st = check_options(opt, deps->model, err);
    *out = NULL;
    if (st)
        return st;
    if (sodium_init() < 0)
        return err_set(err, STATUS_UNSUPPORTED, "libsodium does not start on this machine");
    struct engine *e = mem_alloc(sizeof(*e));
    set_sizes(e, opt, deps);
    st = take_memory(e, err);
    if (st) {
        memplan_drop(&e->plan);
        mem_free(e);
        return st;
    }
    init_state(e);
    stats_publish(e);
    *out = e;
    return STATUS_OK;
}

void engine_print_plan(const struct engine *e, struct buf *out)
{
    memplan_print(&e->plan, out);
}

void engine_start(struct engine *e)
{
    CHECK(!e->started);
    CHECK(pthread_create(&e->thread, NULL, engine_main, e) == 0);
    e->started = true;
}

void engine_destroy(struct engine *e)
{
    if (!e)
        return;
    CHECK(!e->started);
    CHECK(e->job_live_count == 0);
    CHECK(e->pin_count == 0);
    mailbox_fini(&e->mail);
    mailbox_fini(&e->score_mail);
    mailbox_fini(&e->unload_mail);
    pthread_cond_destroy(&e->unload_done);
    pthread_mutex_destroy(&e->unload_lock);
    pthread_mutex_destroy(&e->stats_lock);
    forward_destroy(e->forward);
    memplan_drop(&e->plan);
    mem_free(e);
}

void engine_get_id(const struct engine *e, uint8_t id[32])
{
    static const char domain[] = "residual.engine.1";
    const char *dtype = e->model->dtype == DTYPE_F32 ? "f32" : "bf16";
    uint8_t deterministic = e->backend->deterministic;
    crypto_generichash_state h;
    crypto_generichash_init(&h, NULL, 0, 32);
    /* Texts go in with their terminating zero, so that their borders cannot move. */
    crypto_generichash_update(&h, (const uint8_t *)domain, sizeof(domain));
    crypto_generichash_update(&h, (const uint8_t *)e->backend->name, strlen(e->backend->name) + 1);
    crypto_generichash_update(&h, (const uint8_t *)dtype, strlen(dtype) + 1);
    crypto_generichash_update(&h, &deterministic, 1);
    crypto_generichash_update(&h, (const uint8_t *)e->backend->version,
                              strlen(e->backend->version) + 1);
    crypto_generichash_final(&h, id, 32);
}
