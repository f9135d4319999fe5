/* The model, the adapters and the requests of engine_world.h; the store is engine_world_store.c. */
#include "tests/unit/engine_world.h"
#include "kernels/bf16.h"
#include "kernels/cuda/lora_pack.h"
#include "tests/unit/late_backend.h"

#include <math.h>
#include <sodium.h>
#include <stdatomic.h>

#define N_LAYER   2
#define D_MODEL   32
#define D_FF      48
#define N_HEAD    4
#define N_KV_HEAD 2
#define D_HEAD    8

#define WORLD_DEVICE_BYTES ((uint64_t)64 << 20)

const struct world_options world_default = {.backend = "ref",
                                            .thread_count = 1,
                                            .dtype = DTYPE_F32,
                                            .n_vocab = 96,
                                            .context_max = 256,
                                            .rows_max = 64,
                                            .seqs_max = 16,
                                            .waiting_max = 256,
                                            .kv_pages = 128,
                                            .adapter_count = 8,
                                            .store_slots = 8,
                                            .adapters_per_batch_max = 8,
                                            .adapter_wait_ms_max = 10000,
                                            .score_rows_max = 16,
                                            .basis_places = 4,
                                            .keys_bytes_max = 1 << 20,
                                            .step_stretch_max = 300,
                                            .share_wait_ms_max = 1000,
                                            .prefix_cache = true,
                                            .load_polls = 2,
                                            .seed = 1};

/* ---- clock and randomness ---- */

static _Atomic uint64_t clock_ns = 1000000;

static uint64_t fake_clock(void)
{
    return atomic_fetch_add(&clock_ns, 50000) + 50000;
}

void world_advance_ms(uint64_t ms)
{
    clock_ns += ms * 1000000;
}

static const struct backend_ops *untimed;
static uint64_t step_ns, row_ns;

/* The first op of each step: here its time passes. */
static enum status timed_embed(struct backend *b, const struct embed_args *a)
{
    clock_ns += step_ns + a->n_tok * row_ns;
    return untimed->embed(b, a);
}

static void time_steps(struct world *w)
{
    if (w->opt.step_us == 0)
        return;
    untimed = w->backend->ops;
    step_ns = w->opt.step_us * 1000;
    row_ns = w->opt.row_us * 1000;
    w->timed = *untimed;
    w->timed.embed = timed_embed;
    w->backend->ops = &w->timed;
}

uint32_t world_random(uint64_t *state, uint32_t below)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    uint32_t x = (uint32_t)((z ^ (z >> 31)) >> 33);
    return below ? x % below : x;
}

static float random_normal(uint64_t *state)
{
    float sum = 0;
    for (int i = 0; i < 12; i++)
        sum += (float)world_random(state, 0) / 2147483648.0f;
    return sum - 6.0f;
}

/* ---- the model ---- */

static void *keep(struct world *w, void *p)
{
    CHECK(w->block_count < ARRAY_COUNT(w->blocks));
    w->blocks[w->block_count++] = p;
    return p;
}

static void *random_matrix(enum dtype t, size_t n, float scale, uint64_t *state)
{
    char *data = mem_array(n, dtype_bytes(t));
    for (size_t i = 0; i < n; i++)
        elem_store(data, t, i, random_normal(state) * scale);
    return data;
}

static struct weight random_weight(struct world *w, uint32_t d_out, uint32_t d_in, uint64_t *state)
{
    float scale = 1.2f / sqrtf((float)d_in);
    enum dtype t = w->model.dtype;
    return (struct weight){.data = keep(w, random_matrix(t, (size_t)d_out * d_in, scale, state)),
                           .dtype = t,
                           .d_out = d_out,
                           .d_in = d_in};
}

static float *random_gain(struct world *w, uint32_t n, uint64_t *state)
{
    float *g = keep(w, mem_array(n, sizeof(float)));
    for (uint32_t i = 0; i < n; i++)
        g[i] = 1.0f + 0.1f * random_normal(state);
    return g;
}

static void make_layer(struct world *w, struct model_layer *l, uint64_t *state)
{
    l->attn_norm = random_gain(w, D_MODEL, state);
    l->mlp_norm = random_gain(w, D_MODEL, state);
    l->q = random_weight(w, N_HEAD * D_HEAD, D_MODEL, state);
    l->k = random_weight(w, N_KV_HEAD * D_HEAD, D_MODEL, state);
    l->v = random_weight(w, N_KV_HEAD * D_HEAD, D_MODEL, state);
    l->o = random_weight(w, D_MODEL, N_HEAD * D_HEAD, state);
    l->gate = random_weight(w, D_FF, D_MODEL, state);
    l->up = random_weight(w, D_FF, D_MODEL, state);
    l->down = random_weight(w, D_MODEL, D_FF, state);
}

/* Every id has a text of four letters of its own. */
static struct tokenizer *make_tokenizer(uint32_t n_vocab)
{
    struct errtext err = ERRTEXT_INIT;
    struct tokenizer *t = NULL;
    struct buf json;
    CHECK(n_vocab <= 7 * 7 * 7 * 7);
    buf_init(&json, 1u << 20);
    buf_puts(&json, "{\"version\":\"1.0\",\"added_tokens\":[],\"normalizer\":null,"
                    "\"pre_tokenizer\":null,\"post_processor\":null,\"decoder\":{\"type\":"
                    "\"Fuse\"},\"model\":{\"type\":\"BPE\",\"merges\":[],\"vocab\":{");
    for (uint32_t i = 0; i < n_vocab; i++) {
        char text[5];
        world_token_text((int32_t)i, text);
        buf_printf(&json, "%s\"%s\":%u", i ? "," : "", text, i);
    }
    buf_puts(&json, "}}}");
    if (tokenizer_load(&t, json.data, json.len, &err))
        fail_msg("%s", err.text);
    buf_fini(&json);
    return t;
}

void world_token_text(int32_t id, char text[5])
{
    for (int i = 0; i < 4; i++, id /= 7)
        text[i] = (char)('a' + id % 7);
    text[4] = '\0';
}

static void make_model(struct world *w)
{
    uint64_t state = w->opt.seed * 977 + 5;
    struct model *m = &w->model;
    m->config = (struct model_config){
        .family = MODEL_LLAMA,
        .family_name = "llama",
        .n_layer = N_LAYER,
        .d_model = D_MODEL,
        .d_ff = D_FF,
        .n_head = N_HEAD,
        .n_kv_head = N_KV_HEAD,
        .d_head = D_HEAD,
        .n_vocab = w->opt.n_vocab,
        .pos_max = 4096,
        .norm_eps = 1e-5f,
        .bos_id = -1,
        .eos_id = {0},
        .eos_count = 1,
        .rope = {
            .theta = 10000.0, .factor = 1.0, .attention_factor = 1.0, .original_pos_max = 4096}};
    m->dtype = w->opt.dtype;
    m->tokenizer = make_tokenizer(w->opt.n_vocab);
    m->embed = random_weight(w, w->opt.n_vocab, D_MODEL, &state);
    m->lm_head = random_weight(w, w->opt.n_vocab, D_MODEL, &state);
    m->final_norm = random_gain(w, D_MODEL, &state);
    m->layer = w->layers = mem_array(N_LAYER, sizeof(*m->layer));
    for (uint32_t i = 0; i < N_LAYER; i++)
        make_layer(w, &w->layers[i], &state);
}

/* ---- adapters ---- */

static void module_shape(enum lora_module m, uint32_t *d_in, uint32_t *d_out)
{
    static const uint32_t in[LORA_MODULE_COUNT] = {D_MODEL, D_MODEL, D_MODEL, N_HEAD * D_HEAD,
                                                   D_MODEL, D_MODEL, D_FF};
    static const uint32_t out[LORA_MODULE_COUNT] = {
        N_HEAD * D_HEAD, N_KV_HEAD * D_HEAD, N_KV_HEAD * D_HEAD, D_MODEL, D_FF, D_FF, D_MODEL};
    *d_in = in[m];
    *d_out = out[m];
}

static uint32_t group_rank_sum(const struct lora_entry *e)
{
    uint32_t qkv = e[LORA_MODULE_Q].rank + e[LORA_MODULE_K].rank + e[LORA_MODULE_V].rank;
    uint32_t mlp = e[LORA_MODULE_GATE].rank + e[LORA_MODULE_UP].rank;
    return MAX(MAX(qkv, mlp), MAX(e[LORA_MODULE_O].rank, e[LORA_MODULE_DOWN].rank));
}

static void fill_blob(struct world *w, struct world_adapter *a, uint64_t *state)
{
    enum dtype t = w->model.dtype;
    a->blob = mem_alloc_aligned(a->blob_bytes);
    for (uint32_t i = 0; i < N_LAYER * LORA_MODULE_COUNT; i++) {
        const struct lora_entry *e = &a->layout[i];
        uint32_t d_in, d_out;
        module_shape((enum lora_module)(i % LORA_MODULE_COUNT), &d_in, &d_out);
        for (uint32_t k = 0; k < e->rank * d_in; k++)
            elem_store((char *)a->blob + e->a_off, t, k, random_normal(state) * 0.2f);
        for (uint32_t k = 0; k < e->rank * d_out; k++)
            elem_store((char *)a->blob + e->b_off, t, k, random_normal(state) * 0.2f);
    }
}

static void make_adapter(struct world *w, uint32_t idx)
{
    struct world_adapter *a = &w->adapter[idx];
    uint64_t state = w->opt.seed * 131 + idx * 7919 + 3;
    enum dtype t = w->model.dtype;
    a->entry = mem_alloc(sizeof(*a->entry));
    atomic_init(&a->entry->refs, 1);
    snprintf(a->entry->name, sizeof(a->entry->name), "adapter-%u", idx);
    crypto_generichash(a->entry->id, 32, (const uint8_t *)&idx, sizeof(idx), NULL, 0);
    a->layout = mem_array(N_LAYER * LORA_MODULE_COUNT, sizeof(*a->layout));
    for (uint32_t i = 0; i < N_LAYER * LORA_MODULE_COUNT; i++) {
        struct lora_entry *e = &a->layout[i];
        uint32_t d_in, d_out;
        module_shape((enum lora_module)(i % LORA_MODULE_COUNT), &d_in, &d_out);
        e->rank = world_random(&state, 6);
        e->scale = 1.0f + 0.25f * (float)world_random(&state, 5);
        e->a_off = a->blob_bytes;
        a->blob_bytes += (e->rank * d_in * dtype_bytes(t) + 63) / 64 * 64;
        e->b_off = a->blob_bytes;
        a->blob_bytes += (e->rank * d_out * dtype_bytes(t) + 63) / 64 * 64;
    }
    a->blob_bytes = MAX(a->blob_bytes, 64);
    for (uint32_t i = 0; i < N_LAYER; i++)
        a->rank_sum = MAX(a->rank_sum, group_rank_sum(a->layout + i * LORA_MODULE_COUNT));
    fill_blob(w, a, &state);
}

struct lora_dims world_dims(void)
{
    struct lora_dims d = {.n_layer = N_LAYER};
    for (int m = 0; m < LORA_MODULE_COUNT; m++)
        module_shape((enum lora_module)m, &d.d_in[m], &d.d_out[m]);
    return d;
}

/* The device's layout of an adapter. */
static void make_device_layout(struct world *w, struct world_adapter *a)
{
    struct lora_dims dims = world_dims();
    if (!w->backend->is_device)
        return;
    a->device_layout = mem_array(N_LAYER * LORA_MODULE_COUNT, sizeof(*a->device_layout));
    a->device_bytes = w->backend->ops->adapters->layout(a->device_layout, a->layout, &dims);
    a->device_bytes = MAX(a->device_bytes, 64);
}

/* ---- the world ---- */

void world_open(struct world *w, const struct world_options *opt)
{
    struct errtext err = ERRTEXT_INIT;
    memset(w, 0, sizeof(*w));
    w->opt = *opt;
    CHECK(sodium_init() >= 0);
    struct backend_options bo = {.name = opt->backend,
                                 .thread_count = opt->thread_count,
                                 .deterministic = true,
                                 .device = opt->device,
                                 .device_bytes = WORLD_DEVICE_BYTES};
    if (backend_create(&w->backend, &bo, &err))
        fail_msg("backend: %s", err.text);
    if (opt->late)
        late_backend_wrap(w->backend);
    time_steps(w);
    make_model(w);
    for (uint32_t i = 0; i < opt->adapter_count; i++) {
        make_adapter(w, i);
        make_device_layout(w, &w->adapter[i]);
    }
    w->store = world_store_open(w);
    struct engine_options eo = {.rows_max = opt->rows_max,
                                .seqs_max = opt->seqs_max,
                                .waiting_max = opt->waiting_max,
                                .context_max = opt->context_max,
                                .kv_bytes = (uint64_t)opt->kv_pages * KV_PAGE_TOK * N_LAYER * 2 *
                                            N_KV_HEAD * D_HEAD * dtype_bytes(opt->dtype),
                                .adapters_per_batch_max = opt->adapters_per_batch_max,
                                .rank_sum_max = 15 * LORA_PARTS_MAX,
                                .prefix_cache = opt->prefix_cache,
                                .score_rows_max = opt->score_rows_max,
                                .score_queue_max = 64,
                                .basis_bytes_max =
                                    opt->basis_places * basis_place_bytes(w->model.config.d_model),
                                .keys_bytes_max = opt->keys_bytes_max,
                                .adapter_wait_ms_max = opt->adapter_wait_ms_max,
                                .step_stretch_max = opt->step_stretch_max,
                                .share_wait_ms_max = opt->share_wait_ms_max,
                                .clock_ns = opt->real_clock ? NULL : fake_clock};
    struct engine_deps deps = {.model = &w->model, .backend = w->backend, .store = w->store};
    if (engine_create(&w->engine, &eo, &deps, &err))
        fail_msg("engine: %s", err.text);
    w->engine->overlaps = w->engine->overlaps && !opt->in_turn;
}

void world_close(struct world *w)
{
    struct engine *e = w->engine;
    seq_settle_order(e);
    assert_int_equal(e->job_live_count, 0);
    assert_int_equal(e->seqs_running, 0);
    assert_int_equal(e->order_count, 0);
    assert_int_equal(e->pin_count, 0);
    assert_int_equal(kv_free_count(&e->kv), e->kv.page_count);
    assert_int_equal(atomic_load(&e->waiting), 0);
    assert_int_equal(atomic_load(&e->score_backlog), 0);
    assert_int_equal(world_store_pins(w), 0);
    engine_verify(e);
    engine_destroy(e);
    world_store_evict_all(w);
    if (w->opt.step_us)
        w->backend->ops = untimed;
    if (w->opt.late)
        late_backend_unwrap(w->backend);
    backend_destroy(w->backend);
    tokenizer_free(w->model.tokenizer);
    mem_free(w->store);
    for (uint32_t i = 0; i < w->opt.adapter_count; i++) {
        assert_int_equal(atomic_load(&w->adapter[i].entry->refs), 1);
        catalog_release(w->adapter[i].entry);
        mem_free(w->adapter[i].layout);
        mem_free(w->adapter[i].device_layout);
        mem_free_aligned(w->adapter[i].blob, w->adapter[i].blob_bytes);
    }
    for (uint32_t i = 0; i < w->block_count; i++)
        mem_free(w->blocks[i]);
    mem_free(w->layers);
}

static void seal(struct composition *c)
{
    crypto_generichash(c->id, 32, (const uint8_t *)c->part, c->n * sizeof(c->part[0]), NULL, 0);
}

void world_mix(struct world *w, struct request *r, uint32_t adapter, int32_t weight_q16)
{
    uint32_t at = r->comp.n++;
    CHECK(at < LORA_PARTS_MAX);
    struct adapter_entry *e = w->adapter[adapter].entry;
    atomic_fetch_add(&e->refs, 1);
    while (at > 0 && memcmp(r->comp.part[at - 1].adapter, e->id, 32) > 0) {
        r->comp.part[at] = r->comp.part[at - 1];
        r->entry[at] = r->entry[at - 1];
        at--;
    }
    memcpy(r->comp.part[at].adapter, e->id, 32);
    r->comp.part[at].weight_q16 = weight_q16;
    r->entry[at] = e;
    seal(&r->comp);
}

struct request *world_request(struct world *w, uint64_t seed, uint32_t n_prompt,
                              uint32_t max_tokens, uint32_t n, uint32_t adapter)
{
    uint64_t state = seed * 2654435761u + 17;
    struct request *r = request_create(1, n, max_tokens, true);
    CHECK(r);
    r->params.temperature = 0.0f;
    r->params.top_count = 5;
    r->params.logprobs = true;
    r->prompt[0].ids = mem_array(n_prompt, sizeof(int32_t));
    r->prompt[0].n_ids = n_prompt;
    for (uint32_t i = 0; i < n_prompt; i++)
        r->prompt[0].ids[i] = (int32_t)(1 + world_random(&state, w->opt.n_vocab - 1));
    for (uint32_t i = 0; i < n; i++)
        r->seq[i].seed = seed * 1000 + i;
    seal(&r->comp);
    if (adapter != WORLD_BASE)
        world_mix(w, r, adapter, COMPOSITION_WEIGHT_ONE);
    return r;
}

void world_basis_numbers(const struct world *w, uint64_t seed, uint16_t *m, float *bias)
{
    for (uint32_t i = 0; i < SKETCH_DIM * w->model.config.d_model; i++)
        m[i] = bf16_from_f32(random_normal(&seed));
    for (uint32_t j = 0; j < SKETCH_DIM; j++)
        bias[j] = random_normal(&seed);
}

struct engine_basis *world_basis(struct world *w, uint64_t seed)
{
    struct errtext err = ERRTEXT_INIT;
    struct engine_basis *basis;
    uint16_t *m = mem_array((size_t)SKETCH_DIM * w->model.config.d_model, sizeof(*m));
    float bias[SKETCH_DIM];
    world_basis_numbers(w, seed, m, bias);
    if (engine_basis_create(w->engine, &basis, m, bias, &err))
        fail_msg("basis: %s", err.text);
    mem_free(m);
    return basis;
}

void world_submit(struct world *w, struct request *r)
{
    struct errtext err = ERRTEXT_INIT;
    if (engine_submit(w->engine, r, &err))
        fail_msg("submit: %s", err.text);
}

void world_step(struct world *w)
{
    engine_step(w->engine);
    engine_verify(w->engine);
}

static bool busy(const struct world *w)
{
    bool any = w->engine->job_live_count > 0 || mailbox_used(&w->engine->mail) > 0 ||
               mailbox_used(&w->engine->score_mail) > 0;
    for (uint32_t i = 0; i < SCORE_RUNS_MAX; i++)
        any = any || w->engine->score[i].state != SCORE_FREE;
    return any;
}

void world_run(struct world *w)
{
    uint32_t steps = 0;
    do {
        world_step(w);
        if (++steps > 200000)
            fail_msg("the engine does not come to an end");
    } while (busy(w));
}

bool world_done(const struct request *r)
{
    return atomic_load_explicit(&r->done, memory_order_acquire);
}

uint32_t world_out_count(const struct request *r, uint32_t i)
{
    return atomic_load_explicit(&r->seq[i].n_out, memory_order_acquire);
}

enum finish_reason world_finish(const struct request *r, uint32_t i)
{
    return (enum finish_reason)atomic_load_explicit(&r->seq[i].finish, memory_order_acquire);
}

void world_release_all(struct request **r, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        request_release(r[i]);
}

void assert_same_seq(const struct request *a, uint32_t ia, const struct request *b, uint32_t ib)
{
    const struct request_seq *x = &a->seq[ia], *y = &b->seq[ib];
    uint32_t n = atomic_load(&x->n_out);
    assert_int_equal(n, atomic_load(&y->n_out));
    assert_int_equal(atomic_load(&x->finish), atomic_load(&y->finish));
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(x->out_id[i], y->out_id[i]);
        assert_memory_equal(&x->out_logprob[i], &y->out_logprob[i], sizeof(float));
        for (uint32_t k = 0; k < a->params.top_count; k++) {
            assert_int_equal(x->out_top[i].top_id[k], y->out_top[i].top_id[k]);
            assert_memory_equal(&x->out_top[i].top_logprob[k], &y->out_top[i].top_logprob[k],
                                sizeof(float));
        }
    }
}
