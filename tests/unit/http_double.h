/* Test doubles of what the HTTP server calls: an engine thread that emits the tokens of a given
 * text, a recorder that makes every finished request "durable", a publisher that only records its
 * calls. The tokenizer, the catalog, requests and stop strings are the real ones. Included by one
 * test program each.
 * lint: waive file - the double of four modules and a world to put them in, one program each. */
#ifndef RS_TESTS_HTTP_DOUBLE_H
#define RS_TESTS_HTTP_DOUBLE_H

#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/file.h"
#include "server/base/hex.h"
#include "server/base/mem.h"
#include "server/engine/stop.h"
#include "server/http/server.h"
#include "server/influence/indexes.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DOUBLE_RUNNING_MAX 2048
#define DOUBLE_EOS         "<|end|>"

struct engine { /* the double's */
    const struct model *model;
    pthread_t thread;
    pthread_mutex_t lock;
    struct request *running[DOUBLE_RUNNING_MAX];
    uint32_t count;
    atomic_bool stopping;
    atomic_uint step_ms;
    struct token_list script; /* what every sequence says, eos at its end */
    /* what the next submits answer */
    enum status submit_status;
    enum status finish_status; /* not OK: requests end in FINISH_ERROR after fail_after tokens */
    uint32_t fail_after;
    bool draining;
    atomic_uint submitted, cancelled, unloads;
};

struct recorder {
    enum status admit_status;
    bool never_records;
    const struct keylog_entry *remembered; /* a key of the last run; NULL: none */
    uint64_t remembered_ms;
    atomic_uint admitted, unadmitted, finished;
};

struct publisher {
    enum status status;
    char name[CATALOG_NAME_MAX + 1];
    size_t config_bytes, tensor_bytes;
    bool dry_run, had_manifest;
    struct catalog *catalog;
    atomic_uint forgotten;
};

static void double_say(struct engine *e, const char *text)
{
    e->script.n = 0;
    enum status st = tokenizer_encode(e->model->tokenizer, text, strlen(text),
                                      TOKENIZE_PARSE_SPECIAL, &e->script, NULL);
    if (st)
        PANIC("the script does not tokenize");
}

/* One token for one sequence; true when it has ended. */
static bool double_seq_step(struct engine *e, struct request *r, struct request_seq *s)
{
    uint32_t n = atomic_load(&s->n_out);
    const struct model_config *c = &e->model->config;
    if (atomic_load(&s->finish))
        return true;
    enum finish_reason finish = FINISH_NONE;
    if (atomic_load(&r->cancel)) {
        finish = FINISH_CANCELLED;
    } else if (e->finish_status && n >= e->fail_after) {
        finish = FINISH_ERROR;
        r->status = e->finish_status;
        snprintf(r->error.text, sizeof(r->error.text), "the double fails");
    } else {
        int32_t id = n < e->script.n ? e->script.ids[n] : c->eos_id[0];
        struct stop_search search;
        struct stop_hit hit;
        struct buf text;
        s->out_id[n] = id;
        s->out_logprob[n] = -0.25f - (float)(n % 7) * 0.125f;
        for (uint32_t k = 0; s->out_top && k < SAMPLE_TOP_MAX; k++) {
            s->out_top[n].top_id[k] = k == 0 ? id : (id + (int32_t)k) % (int32_t)c->n_vocab;
            s->out_top[n].top_logprob[k] = s->out_logprob[n] - (float)k;
        }
        if (id == c->eos_id[0] && !r->params.ignore_eos) {
            finish = FINISH_STOP;
            s->stop_token = id;
        }
        buf_init(&text, 1u << 16);
        stop_search_init(&search, e->model->tokenizer, r->params.show_special);
        for (uint32_t t = 0; t <= n && !finish; t++) {
            if (stop_search_feed(&search, &r->params, s->out_id[t], true, &text, &hit)) {
                finish = FINISH_STOP;
                s->stop_index = (int32_t)hit.index;
                s->cut_byte = (uint32_t)hit.begin;
            }
        }
        buf_fini(&text);
        if (!finish && n + 1 == r->params.max_tokens)
            finish = FINISH_LENGTH;
        atomic_store_explicit(&s->end_tokens, finish ? n + 1 : 0, memory_order_release);
        atomic_store_explicit(&s->n_out, n + 1, memory_order_release);
    }
    atomic_store_explicit(&s->finish, finish, memory_order_release);
    return finish != FINISH_NONE;
}

/* True when the request has ended; then the chain's reference is gone. */
static bool double_step(struct engine *e, struct request *r)
{
    bool over = true;
    uint64_t now = clock_mono_ns();
    if (!r->first_token_ns) {
        r->admit_ns = now;
        r->first_token_ns = now;
    }
    for (uint32_t i = 0; i < r->seq_count; i++)
        over = double_seq_step(e, r, &r->seq[i]) && over;
    if (r->wake)
        r->wake(r->wake_arg);
    if (!over)
        return false;
    if (atomic_load(&r->cancel))
        atomic_fetch_add(&e->cancelled, 1);
    r->finish_ns = clock_mono_ns();
    r->on_finish(r, r->on_finish_arg);
    request_finish(r);
    request_release(r);
    return true;
}

static void *double_main(void *arg)
{
    struct engine *e = arg;
    while (!atomic_load(&e->stopping)) {
        pthread_mutex_lock(&e->lock);
        uint32_t n = e->count;
        pthread_mutex_unlock(&e->lock);
        for (uint32_t i = 0; i < n;) {
            if (!double_step(e, e->running[i])) {
                i++;
                continue;
            }
            pthread_mutex_lock(&e->lock);
            e->running[i] = e->running[--e->count];
            pthread_mutex_unlock(&e->lock);
            n--;
        }
        clock_sleep_ms(atomic_load(&e->step_ms));
    }
    return NULL;
}

__attribute__((unused)) static void double_start(struct engine *e, const struct model *m)
{
    *e = (struct engine){.model = m};
    atomic_store(&e->step_ms, 1);
    pthread_mutex_init(&e->lock, NULL);
    if (pthread_create(&e->thread, NULL, double_main, e))
        PANIC("no thread");
}

static void double_stop(struct engine *e)
{
    atomic_store(&e->stopping, true);
    pthread_join(e->thread, NULL);
    if (e->count)
        PANIC("%u requests are still running", e->count);
    pthread_mutex_destroy(&e->lock);
    mem_free(e->script.ids);
}

enum status engine_submit(struct engine *e, struct request *r, struct errtext *err)
{
    if (e->submit_status)
        return err_set(err, e->submit_status, "the double refuses");
    pthread_mutex_lock(&e->lock);
    bool room = e->count < DOUBLE_RUNNING_MAX;
    if (room)
        e->running[e->count++] = r;
    pthread_mutex_unlock(&e->lock);
    atomic_fetch_add(&e->submitted, 1);
    for (uint32_t i = 0; r->params.prompt_top_count >= 0 && i < r->prompt_count; i++) {
        for (uint32_t t = 1; t < r->prompt[i].n_ids; t++) {
            struct sample_out *o = &r->prompt[i].top[t];
            o->id = r->prompt[i].ids[t];
            r->prompt[i].logprob[t] = o->logprob = -1.5f - (float)t;
            for (int32_t k = 0; k < SAMPLE_TOP_MAX; k++) {
                o->top_id[k] = k == 0 ? o->id : k;
                o->top_logprob[k] = o->logprob - (float)k;
            }
        }
    }
    return room ? STATUS_OK : err_set(err, STATUS_FULL, "the double is full");
}

enum status engine_unload_adapter(struct engine *e, const uint8_t id[32], uint32_t wait_ms,
                                  struct errtext *err)
{
    (void)id, (void)wait_ms, (void)err;
    atomic_fetch_add(&e->unloads, 1);
    return STATUS_OK;
}

void engine_get_stats(struct engine *e, struct engine_stats *out)
{
    pthread_mutex_lock(&e->lock);
    *out = (struct engine_stats){
        .running_seqs = e->count,
        .kv_pages = 100,
        .kv_pages_used = 25,
        .draining = e->draining,
        .store = {.device_bytes = 3 << 20, .device_bytes_max = 8 << 20, .uploads = 7}};
    pthread_mutex_unlock(&e->lock);
}

void engine_get_id(const struct engine *e, uint8_t id[32])
{
    (void)e;
    memset(id, 0xE1, 32);
}

enum status recorder_admit(struct recorder *r, struct request *req, struct errtext *err)
{
    (void)req;
    if (r->admit_status)
        return err_set(err, r->admit_status, "the spool's disk is full");
    atomic_fetch_add(&r->admitted, 1);
    return STATUS_OK;
}

enum status recorder_ready(struct recorder *r, struct errtext *err)
{
    return r->admit_status ? err_set(err, r->admit_status, "the spool's disk is full") : STATUS_OK;
}

void recorder_visit_keys(struct recorder *r,
                         void (*visit)(void *arg, const struct keylog_entry *e, uint64_t age_ms),
                         void *arg)
{
    if (r->remembered)
        visit(arg, r->remembered, r->remembered_ms);
}

void recorder_unadmit(struct recorder *r, const struct request *req)
{
    (void)req;
    atomic_fetch_add(&r->unadmitted, 1);
}

void recorder_on_finish(struct request *req, void *arg)
{
    struct recorder *r = arg;
    req->receipt.recorded = !r->never_records;
    req->receipt.lane = 1;
    req->receipt.seq = atomic_fetch_add(&r->finished, 1) + 1;
}

void recorder_residual_json(const struct recorder *r, const struct request *req, struct buf *out)
{
    (void)r;
    buf_printf(out, "{\"request_id\":\"%s\",\"lane\":%u,\"seq\":%llu}", req->id_hex,
               req->receipt.lane, (unsigned long long)req->receipt.seq);
}

bool recorder_find_id(struct recorder *r, const uint8_t tail[RECORDER_ID_TAIL_BYTES],
                      uint8_t id[32])
{
    (void)r, (void)tail, (void)id;
    return false;
}

enum status recorder_receipt_json(struct recorder *r, const uint8_t id[32],
                                  const struct recorder_viewer *who, struct buf *out,
                                  struct errtext *err)
{
    (void)r;
    if (id[0] != 0xAA)
        return err_set(err, STATUS_NOT_FOUND, "no such request");
    buf_printf(out, "{\"receipt\":true,\"admin\":%s}", who->admin ? "true" : "false");
    return STATUS_OK;
}

enum status recorder_attribution_json(struct recorder *r, const uint8_t id[32],
                                      const struct recorder_viewer *who, struct buf *out,
                                      struct errtext *err)
{
    return recorder_receipt_json(r, id, who, out, err);
}

enum status recorder_inputs_json(struct recorder *r, const uint8_t id[32],
                                 const struct recorder_viewer *who, struct buf *out,
                                 struct errtext *err)
{
    return recorder_receipt_json(r, id, who, out, err);
}

/* There are none here. */
struct index *indexes_by_root(struct indexes *x, const uint8_t root[32])
{
    (void)x;
    (void)root;
    return NULL;
}

void index_release(struct index *index)
{
    (void)index;
}

void indexes_get_stats(struct indexes *x, struct indexes_stats *out)
{
    (void)x;
    *out = (struct indexes_stats){0};
}

void indexes_expect(struct indexes *x, const uint8_t adapter_id[32])
{
    (void)x;
    (void)adapter_id;
}

enum status recorder_read_range(struct recorder *r, uint64_t first, uint64_t last, struct buf *out,
                                struct errtext *err)
{
    (void)r, (void)err;
    buf_printf(out, "range %llu %llu", (unsigned long long)first, (unsigned long long)last);
    return STATUS_OK;
}

void recorder_get_stats(struct recorder *r, struct recorder_stats *out)
{
    *out = (struct recorder_stats){
        .lane = 1, .inferences = atomic_load(&r->finished), .spool_bytes = 4096};
}

static enum status double_register(struct publisher *p, const char *name, uint8_t id_byte,
                                   bool replace, struct errtext *err)
{
    struct adapter_entry *e = catalog_entry_new(), *old = NULL;
    snprintf(e->name, sizeof(e->name), "%s", name);
    memset(e->id, id_byte, sizeof(e->id));
    snprintf(e->publisher, sizeof(e->publisher), "pub");
    enum status st = catalog_put(p->catalog, e, replace, &old, err);
    if (old)
        catalog_release(old);
    catalog_release(e);
    return st;
}

enum status publisher_load_dir(struct publisher *p, const char *name, const char *path,
                               bool trusted, bool replace, struct errtext *err)
{
    if (strcmp(path, "/adapters/none") == 0)
        return err_param(err, STATUS_NOT_FOUND, "lora_path", "no such directory");
    return trusted ? STATUS_DENIED : double_register(p, name, (uint8_t)strlen(path), replace, err);
}

enum status publisher_upload(struct publisher *p, const struct publish_upload *u,
                             struct buf *report, struct errtext *err)
{
    snprintf(p->name, sizeof(p->name), "%s", u->name);
    p->config_bytes = u->config_bytes;
    p->tensor_bytes = u->tensor_bytes;
    p->dry_run = u->dry_run;
    p->had_manifest = u->manifest != NULL;
    if (p->status)
        return err_param(err, p->status, "adapter_model.safetensors", "tensor x has a NaN");
    buf_puts(report, "{\"id\":\"00\",\"checks\":[]}");
    return u->dry_run ? STATUS_OK : double_register(p, u->name, 0x77, u->replace, err);
}

const struct file_roots *publisher_roots(const struct publisher *p)
{
    (void)p;
    return NULL;
}

enum status publisher_check_licences(const struct publisher *p, const uint8_t datanet_id[32],
                                     const struct documents *documents, struct errtext *err)
{
    (void)datanet_id;
    (void)documents;
    return p->status ? err_param(err, p->status, "documents", "a licence is not signed")
                     : STATUS_OK;
}

void publisher_forget(struct publisher *p, const struct adapter_entry *e)
{
    (void)e;
    atomic_fetch_add(&p->forgotten, 1);
}

/* ---- a world ---- */

struct world {
    struct model model;
    struct engine engine;
    struct recorder recorder;
    struct publisher publisher;
    struct catalog *catalog;
    struct datanet_store *datanets;
    char datanets_dir[32];
    struct http_options opt;
    struct http_server *server;
};

static char *double_read(const char *path, size_t *len)
{
    char *data = NULL;
    struct errtext err = ERRTEXT_INIT;
    if (file_read(path, 64u << 20, &data, len, &err))
        PANIC("%s: %s", path, err.text);
    return data;
}

__attribute__((unused)) static void world_model(struct model *m)
{
    size_t len = 0;
    struct errtext err = ERRTEXT_INIT;
    char *text = double_read(RS_TEST_ROOT "/configs/demo/base/tokenizer.json", &len);
    if (tokenizer_load(&m->tokenizer, text, len, &err))
        PANIC("%s", err.text);
    mem_free(text);
    m->chat_text = double_read(RS_TEST_ROOT "/configs/demo/base/chat_template.jinja", &len);
    if (chat_template_parse(&m->chat, m->chat_text, len, &err))
        PANIC("%s", err.text);
    m->config.n_vocab = tokenizer_vocab_size(m->tokenizer);
    m->config.pos_max = 512;
    m->config.eos_count = 1;
    m->config.eos_id[0] = tokenizer_token_to_id(m->tokenizer, DOUBLE_EOS);
    m->config.default_temperature = m->config.default_top_p = -1;
    m->config.default_min_p = m->config.default_repetition = -1;
    m->config.default_top_k = -1;
    static char eos_name[] = "eos_token", eos_text[] = DOUBLE_EOS;
    static struct model_special eos = {eos_name, eos_text};
    m->special = &eos;
    m->special_count = 1;
}

__attribute__((unused)) static void world_init(struct world *w)
{
    struct errtext err = ERRTEXT_INIT;
    *w = (struct world){0};
    world_model(&w->model);
    w->catalog = catalog_create(64);
    catalog_reserve_name(w->catalog, "base");
    w->publisher.catalog = w->catalog;
    if (double_register(&w->publisher, "alpha", 0xA1, false, &err) ||
        double_register(&w->publisher, "org/beta", 0xB2, false, &err))
        PANIC("%s", err.text);
    snprintf(w->datanets_dir, sizeof(w->datanets_dir), "/tmp/rs-datanets-XXXXXX");
    if (!mkdtemp(w->datanets_dir) ||
        datanet_store_open(&w->datanets, w->datanets_dir, 1u << 20, &err))
        PANIC("%s", err.text);
    double_start(&w->engine, &w->model);
    double_say(&w->engine, " The lighthouse keeper counts nine ships." DOUBLE_EOS);
    w->opt = (struct http_options){.listen = {.host = "127.0.0.1"},
                                   .thread_count = 2,
                                   .connections_max = 2048,
                                   .idle_timeout_s = 30,
                                   .stream_rest_ms = 40,
                                   .header_timeout_s = 30,
                                   .body_timeout_s = 60,
                                   .body_bytes_max = 1u << 20,
                                   .n_max = 8,
                                   .upload_bytes_max = 1ull << 30,
                                   .drain_s = 5,
                                   .model_name = "base",
                                   .adapters_per_batch_max = 8,
                                   .allow_runtime_loading = true,
                                   .page = true};
}

__attribute__((unused)) static void world_serve(struct world *w)
{
    struct errtext err = ERRTEXT_INIT;
    struct http_deps deps = {.model = &w->model,
                             .engine = &w->engine,
                             .catalog = w->catalog,
                             .publisher = &w->publisher,
                             .recorder = &w->recorder,
                             .datanets = w->datanets};
    int fd = -1;
    if (http_bind(&fd, &w->opt, &err) || http_start(&w->server, &w->opt, &deps, fd, &err))
        PANIC("%s", err.text);
}

__attribute__((unused)) static void world_fini(struct world *w)
{
    if (w->server)
        http_stop(w->server);
    double_stop(&w->engine);
    datanet_store_close(w->datanets);
    char command[64];
    snprintf(command, sizeof(command), "rm -rf %s", w->datanets_dir);
    if (system(command) != 0)
        PANIC("%s", command);
    catalog_destroy(w->catalog);
    tokenizer_free(w->model.tokenizer);
    chat_template_free(w->model.chat);
    mem_free(w->model.chat_text);
}

#endif
