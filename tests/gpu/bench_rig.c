/* See bench_rig.h. */
#include "tests/gpu/bench_rig.h"
#include "kernels/bf16.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REPEATS_MAX 400

const char *const group_name[GROUP_COUNT] = {"qkv", "o", "gate_up", "down"};

static const struct shape shapes[] = {
    {"llama-3.1-8b", 32, 4096, 14336, 32, 8, 128, 128256},
    {"qwen2.5-7b", 28, 3584, 18944, 28, 4, 128, 152064},
    {"tiny", 2, 256, 512, 4, 2, 64, 512},
};

const struct shape *shape_find(const char *name)
{
    for (size_t i = 0; i < ARRAY_COUNT(shapes); i++)
        if (strcmp(shapes[i].name, name) == 0)
            return &shapes[i];
    return NULL;
}

struct group_dims group_dims(const struct shape *s, enum group g)
{
    uint32_t q = s->n_head * s->d_head, kv = s->n_kv_head * s->d_head;
    switch (g) {
    case GROUP_QKV:
        return (struct group_dims){s->d_model, q + 2 * kv, LORA_MODULE_Q, 3, {q, kv, kv}};
    case GROUP_O:
        return (struct group_dims){q, s->d_model, LORA_MODULE_O, 1, {s->d_model}};
    case GROUP_GATE_UP:
        return (struct group_dims){
            s->d_model, 2 * s->d_ff, LORA_MODULE_GATE, 2, {s->d_ff, s->d_ff}};
    default:
        return (struct group_dims){s->d_ff, s->d_model, LORA_MODULE_DOWN, 1, {s->d_model}};
    }
}

void must(enum status st, const char *what)
{
    if (st == STATUS_OK)
        return;
    fprintf(stderr, "bench_cuda: %s failed: %s\n", what, status_name(st));
    exit(1);
}

/* ---- random memory ---- */

static uint64_t state = 88172645463325252ull;

static float normal(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    uint64_t s = state;
    float sum = (float)(s & 0xffff) + (float)(s >> 16 & 0xffff) + (float)(s >> 32 & 0xffff) +
                (float)(s >> 48);
    return (sum - 131070.0f) * (1.0f / 37837.0f); /* unit variance */
}

static void make_noise(struct rig *r)
{
    uint16_t *half = mem_array(r->noise_bytes / 2, 2);
    float *full = mem_array(r->noise_bytes / 4, 4);
    for (size_t i = 0; i < r->noise_bytes / 2; i++)
        half[i] = bf16_from_f32(0.03f * normal());
    for (size_t i = 0; i < r->noise_bytes / 4; i++)
        full[i] = normal();
    r->noise = r->b->ops->mem_alloc(r->b, r->noise_bytes);
    r->noise_f32 = r->b->ops->mem_alloc(r->b, r->noise_bytes);
    CHECK(r->noise && r->noise_f32);
    must(r->b->ops->mem_write(r->b, r->noise, half, r->noise_bytes), "copy of random numbers");
    must(r->b->ops->mem_write(r->b, r->noise_f32, full, r->noise_bytes), "copy of random numbers");
    mem_free(half);
    mem_free(full);
}

static char *take(struct rig *r, size_t bytes)
{
    CHECK(r->taken_count < RIG_TAKEN_MAX);
    char *p = r->b->ops->mem_alloc(r->b, bytes);
    if (p) {
        r->taken[r->taken_count] = p;
        r->taken_bytes[r->taken_count++] = bytes;
    }
    return p;
}

/* Copies of the noise from ever other offsets, so that no two runs of memory are alike. */
static void *fill(struct rig *r, char *noise, size_t bytes)
{
    char *p = take(r, bytes);
    size_t half = r->noise_bytes / 2, shift = 0;
    for (size_t at = 0; p && at < bytes; at += half) {
        size_t n = MIN(half, bytes - at);
        must(gpu_copy_within(r->c->stream, p + at, noise + shift, n), "copy within the device");
        shift = (shift + 256 * 977) % (r->noise_bytes - half) / 256 * 256;
    }
    return p;
}

void *rig_bf16(struct rig *r, size_t count)
{
    return fill(r, r->noise, count * 2);
}

void *rig_f32(struct rig *r, size_t count)
{
    return fill(r, r->noise_f32, count * 4);
}

void *rig_zero(struct rig *r, size_t bytes)
{
    void *p = take(r, bytes);
    if (p)
        must(r->b->ops->mem_zero(r->b, p, bytes), "zeroing");
    return p;
}

uint32_t rig_mark(const struct rig *r)
{
    return r->taken_count;
}

void rig_release(struct rig *r, uint32_t mark)
{
    while (r->taken_count > mark) {
        r->taken_count--;
        r->b->ops->mem_free(r->b, r->taken[r->taken_count], r->taken_bytes[r->taken_count]);
    }
}

/* ---- opening ---- */

void rig_open(struct rig *r, const struct rig_options *opt)
{
    struct errtext err = ERRTEXT_INIT;
    struct backend_options bo = {
        .name = opt->eager ? "cuda:eager" : "cuda",
        .deterministic = opt->deterministic,
        .device_bytes = opt->device_bytes,
    };
    const struct shape *s = shape_find(opt->shape);
    memset(r, 0, sizeof(*r));
    if (!s) {
        fprintf(stderr, "bench_cuda: unknown shape '%s'\n", opt->shape);
        exit(2);
    }
    if (backend_create(&r->b, &bo, &err)) {
        fprintf(stderr, "bench_cuda: %s\n", err.text);
        exit(1);
    }
    r->c = cuda_of(r->b);
    r->shape = *s;
    r->eager = opt->eager;
    r->repeats = MAX(2u, MIN(opt->repeats, (uint32_t)REPEATS_MAX));
    r->noise_bytes = (size_t)(s->d_model >= 1024 ? 64 : 1) << 20;
    make_noise(r);
}

struct backend_limits rig_limits(const struct rig *r)
{
    const struct shape *s = &r->shape;
    return (struct backend_limits){.rows_max = 1,
                                   .seqs_max = 1,
                                   .page_stride = 1,
                                   .segs_max = 1,
                                   .logits_rows_max = 1,
                                   .n_layer = s->n_layer,
                                   .d_model = s->d_model,
                                   .d_ff = s->d_ff,
                                   .n_head = s->n_head,
                                   .n_kv_head = s->n_kv_head,
                                   .d_head = s->d_head,
                                   .n_vocab = s->n_vocab};
}

void rig_prepare(struct rig *r, const struct backend_limits *lim)
{
    struct errtext err = ERRTEXT_INIT;
    r->lim = *lim;
    if (r->b->ops->prepare(r->b, lim, &err) == STATUS_OK)
        return;
    fprintf(stderr, "bench_cuda: %s\n", err.text);
    exit(1);
}

void rig_close(struct rig *r)
{
    rig_release(r, 0);
    r->b->ops->mem_free(r->b, r->noise, r->noise_bytes);
    r->b->ops->mem_free(r->b, r->noise_f32, r->noise_bytes);
    backend_destroy(r->b);
}

/* ---- adapters ---- */

static uint32_t mixed_rank(uint32_t i)
{
    static const struct {
        uint32_t rank, percent;
    } mix[] = {{8, 40}, {16, 30}, {32, 15}, {64, 10}, {128, 5}};
    int owed[ARRAY_COUNT(mix)] = {0};
    size_t pick = 0;
    for (uint32_t n = 0; n <= i; n++) {
        for (size_t k = 0; k < ARRAY_COUNT(mix); k++)
            owed[k] += (int)mix[k].percent;
        pick = 0;
        for (size_t k = 1; k < ARRAY_COUNT(mix); k++)
            pick = owed[k] > owed[pick] ? k : pick;
        owed[pick] -= 100;
    }
    return mix[pick].rank;
}

static struct lora_dims lora_dims_of(const struct shape *s, uint32_t n_layer)
{
    struct lora_dims d = {.n_layer = n_layer};
    for (int g = 0; g < GROUP_COUNT; g++) {
        struct group_dims gd = group_dims(s, (enum group)g);
        for (uint32_t m = 0; m < gd.module_count; m++) {
            d.d_in[gd.first + m] = gd.d_in;
            d.d_out[gd.first + m] = gd.width[m];
        }
    }
    return d;
}

/* The layout of a rank, made when first asked for. */
static uint32_t layout_for(struct rig *r, struct adapters *a, uint32_t rank, uint32_t n_layer,
                           enum group only)
{
    for (uint32_t i = 0; i < a->layout_count; i++)
        if (a->layout_rank[i] == rank)
            return i;
    CHECK(a->layout_count < RIG_LAYOUT_MAX);
    struct lora_dims dims = lora_dims_of(&r->shape, n_layer);
    struct lora_entry *entry = mem_array((size_t)n_layer * LORA_MODULE_COUNT, sizeof(*entry));
    for (uint32_t i = 0; i < n_layer * LORA_MODULE_COUNT; i++) {
        uint32_t m = i % LORA_MODULE_COUNT;
        bool wanted = only == GROUP_COUNT;
        if (!wanted) {
            struct group_dims gd = group_dims(&r->shape, only);
            wanted = m >= gd.first && m < gd.first + gd.module_count;
        }
        entry[i] = (struct lora_entry){.rank = wanted ? rank : 0, .scale = 1.0f};
    }
    uint64_t bytes = lora_pack_layout(entry, entry, &dims);
    a->layout_rank[a->layout_count] = rank;
    a->layout[a->layout_count] = (struct lora_layout){entry, bytes};
    return a->layout_count++;
}

bool adapters_make(struct rig *r, struct adapters *a, uint32_t count, const char *rank,
                   uint32_t n_layer, enum group only)
{
    bool mix = strcmp(rank, "mix") == 0;
    uint32_t modules = only == GROUP_COUNT ? 3 : group_dims(&r->shape, only).module_count;
    memset(a, 0, sizeof(*a));
    a->count = count;
    a->slot = mem_array(MAX(count, 1u), sizeof(*a->slot));
    for (uint32_t i = 0; i < count; i++) {
        uint32_t value = mix ? mixed_rank(i) : (uint32_t)strtoul(rank, NULL, 10);
        CHECK(value > 0 && value <= LORA_RANK_MAX);
        uint32_t layout = layout_for(r, a, value, n_layer, only);
        void *blob = rig_bf16(r, a->layout[layout].blob_bytes / 2);
        if (!blob)
            return false;
        a->slot[i] = (struct lora_slot){blob, layout};
        a->bytes += a->layout[layout].blob_bytes;
        a->rank_sum_max = MAX(a->rank_sum_max, modules * value);
    }
    a->table = (struct lora_table){.slot = a->slot,
                                   .layout = a->layout,
                                   .n_slot = count,
                                   .n_layout = a->layout_count,
                                   .n_layer = n_layer,
                                   .dtype = DTYPE_BF16};
    return true;
}

void adapters_free(struct adapters *a)
{
    for (uint32_t i = 0; i < a->layout_count; i++)
        mem_free((void *)(uintptr_t)a->layout[i].entry);
    mem_free(a->slot);
    memset(a, 0, sizeof(*a));
}

uint32_t rank_max_of(const char *rank)
{
    return strcmp(rank, "mix") == 0 ? 128 : (uint32_t)strtoul(rank, NULL, 10);
}

uint32_t adapter_rank(const struct adapters *a, uint32_t i)
{
    return a->layout_rank[a->slot[i].layout];
}

uint64_t adapter_group_bytes(const struct rig *r, const struct adapters *a, uint32_t i,
                             enum group g)
{
    struct group_dims gd = group_dims(&r->shape, g);
    return 2ull * adapter_rank(a, i) * (gd.module_count * (uint64_t)gd.d_in + gd.d_out);
}

/* ---- results ---- */

void rig_take(struct rig *r, struct rig_result *x)
{
    if (x->pending)
        must(r->b->ops->read_end(r->b, x->ticket, x->host), "taking a result");
    x->pending = false;
}

void rig_began(struct rig *r, struct rig_result *x, uint32_t ticket)
{
    rig_take(r, x);
    x->ticket = ticket;
    x->pending = true;
}

/* ---- time ---- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double median_of(double *v, uint32_t n)
{
    qsort(v, n, sizeof(*v), by_value);
    return v[n / 2];
}

static void *record(struct rig *r, run_fn *fn, void *arg, uint32_t layers)
{
    void *graph;
    must(gpu_capture_begin(r->c->stream), "capture");
    for (uint32_t i = 0; i < layers; i++)
        must(fn(arg, i), "an op under capture");
    must(gpu_capture_end(r->c->stream, &graph), "end of capture");
    return graph;
}

/* n times between events; every repeat is `layers` of something. */
static struct timing replay(struct rig *r, void *graph, run_fn *fn, void *arg, uint32_t layers)
{
    struct timing t = {0};
    double us[REPEATS_MAX];
    void *event[2 * REPEATS_MAX], *stream = r->c->stream;
    uint32_t n = r->repeats;
    for (uint32_t i = 0; i < 2 * n; i++)
        must(gpu_event_create(&event[i], true), "event");
    for (uint32_t i = 0; i < n + 3; i++) { /* the first three warm up */
        if (i >= 3)
            must(gpu_event_record(event[2 * (i - 3)], stream), "event");
        must(graph ? gpu_graph_launch(graph, stream) : fn(arg, 0), "a repeat");
        if (i >= 3)
            must(gpu_event_record(event[2 * (i - 3) + 1], stream), "event");
    }
    must(gpu_stream_sync(stream), "the repeats");
    for (uint32_t i = 0; i < n; i++) {
        float ms = 0;
        must(gpu_event_ms(&ms, event[2 * i], event[2 * i + 1]), "event time");
        us[i] = 1000.0 * (double)ms / layers;
    }
    for (uint32_t i = 0; i < 2 * n; i++)
        gpu_event_destroy(event[i]);
    double first = median_of(us, n / 2), second = median_of(us + n / 2, n - n / 2);
    t.us = median_of(us, n);
    t.spread = t.us > 0 ? fabs(first - second) / t.us : 0;
    return t;
}

struct timing rig_time(struct rig *r, run_fn *fn, void *arg, uint32_t layers)
{
    struct timing t = {0};
    for (uint32_t i = 0; i < (r->eager ? layers : MIN(layers, 2u)); i++)
        must(fn(arg, i), "an op");
    must(gpu_stream_sync(r->c->stream), "the first run");
    if (r->eager)
        return t;
    void *graph = record(r, fn, arg, layers);
    t = replay(r, graph, fn, arg, layers);
    gpu_graph_destroy(graph);
    return t;
}

struct timing rig_time_calls(struct rig *r, run_fn *fn, void *arg)
{
    must(fn(arg, 0), "an op");
    must(gpu_stream_sync(r->c->stream), "the first run");
    return r->eager ? (struct timing){0} : replay(r, NULL, fn, arg, 1);
}
