/* Mode swap of bench_cuda: adapters come from pinned host memory into a free place on the device
 * while a batch of 64 (or as the line says) decodes with adapters of its own, and while nothing
 * moves. A line is RANK BATCH. "us" is the time from the request to when the host sees that all is
 * there: the next step may use it. "join_us" is until a step that uses it is done.
 * "bystander_ratio" is the p99 of the batch's step times with one swap after another over that
 * without. */
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/mem.h"
#include "tests/gpu/bench_modes.h"
#include "tests/gpu/bench_world.h"

#include <stdio.h>
#include <string.h>

#define SWAPS_MAX 512
#define LANE      0

static struct world *world; /* of all lines of the program; NULL: its weights do not fit */

struct swap {
    struct batch *b;
    char *pinned, *place;
    size_t bytes;
    uint64_t begin_ns;
    bool under_way, joining;
    double us[SWAPS_MAX], join_us[SWAPS_MAX];
    uint32_t count, joined;
};

static const struct backend_adapter_ops *ops_of(const struct swap *s)
{
    return s->b->w->rig->b->ops->adapters;
}

static void swap_begin(struct swap *s)
{
    struct backend *be = s->b->w->rig->b;
    s->begin_ns = clock_mono_ns();
    must(ops_of(s)->upload_begin(be, LANE, s->place, s->pinned, s->bytes), "an upload");
    s->under_way = true;
}

static void swap_poll(struct swap *s)
{
    bool done = false;
    if (!s->under_way)
        return;
    must(ops_of(s)->upload_poll(s->b->w->rig->b, LANE, &done), "poll");
    if (!done)
        return;
    s->us[s->count++] = (double)(clock_mono_ns() - s->begin_ns) / 1000;
    s->under_way = false;
    s->joining = true;
}

/* The last adapter of the table takes turns between two places: what has landed is published with
 * the tables of the next step. */
static void publish(struct swap *s)
{
    struct lora_slot *slot = &s->b->w->adapters.slot[s->b->w->adapters.count - 1];
    char *old = (char *)(uintptr_t)slot->blob;
    slot->blob = s->place;
    s->place = old;
}

/* Steps one by one, the host watching both streams; p99 of the steps' times on the device. */
static double run_steps(struct swap *s, uint32_t steps, bool swapping)
{
    struct rig *r = s->b->w->rig;
    void *from, *to;
    double *us = mem_array(steps, sizeof(*us));
    must(gpu_event_create(&from, true), "event");
    must(gpu_event_create(&to, true), "event");
    for (uint32_t i = 0; i < steps; i++) {
        bool done = false, joins = s->joining;
        float ms = 0;
        uint64_t begin = s->begin_ns;
        if (joins) {
            publish(s);
            s->joining = false;
        }
        if (swapping && !s->under_way && s->count < SWAPS_MAX)
            swap_begin(s); /* between steps, as the engine does */
        must(gpu_event_record(from, r->c->stream), "event");
        batch_step(s->b);
        must(gpu_event_record(to, r->c->stream), "event");
        while (!done) {
            must(gpu_event_poll(to, &done), "poll");
            if (!s->joining)
                swap_poll(s);
        }
        if (joins)
            s->join_us[s->joined++] = (double)(clock_mono_ns() - begin) / 1000;
        must(gpu_event_ms(&ms, from, to), "event time");
        us[i] = 1000.0 * (double)ms;
    }
    while (s->under_way)
        swap_poll(s);
    s->joining = false;
    gpu_event_destroy(from);
    gpu_event_destroy(to);
    median_of(us, steps);
    double p99 = us[MIN(steps * 99 / 100, steps - 1)];
    mem_free(us);
    return p99;
}

static void report(struct swap *s, const char *rank, uint32_t steps)
{
    double ratio[3];
    for (int i = 0; i < 3; i++) {
        double calm = run_steps(s, steps, false), busy = run_steps(s, steps, true);
        ratio[i] = calm > 0 ? busy / calm : 0;
    }
    uint32_t n = s->count, joined = s->joined;
    double median = n ? median_of(s->us, n) : 0, most = n ? s->us[n - 1] : 0;
    printf("{\"rank\": \"%s\", \"batch\": %u, \"swaps\": %u, \"us\": %.1f, \"max_us\": %.1f, "
           "\"join_us\": %.1f, \"bystander_ratio\": %.3f, \"bytes\": %zu}\n",
           rank, s->b->n, n, median, most, joined ? median_of(s->join_us, joined) : 0,
           median_of(ratio, 3), s->bytes);
}

static bool parse(const char *line, char rank[8], uint32_t *batch)
{
    return sscanf(line, "%7s %u", rank, batch) == 2 && *batch > 0 && strcmp(rank, "mix") != 0;
}

static uint32_t context_of(const struct rig *r)
{
    return r->shape.d_model < 1024 ? 20 : 1024;
}

bool swap_first(struct rig *r, char line[][LINE_BYTES], uint32_t n, uint32_t *bad)
{
    uint32_t batch, most = 1, rank_max = 16;
    char rank[8];
    for (uint32_t i = 0; i < n; i++) {
        *bad = i;
        if (!parse(line[i], rank, &batch))
            return false;
        most = MAX(most, batch);
        rank_max = MAX(rank_max, rank_max_of(rank));
    }
    struct world_limits lim = {most, context_of(r), most + 1, rank_max};
    world = world_open(r, &lim);
    return true;
}

static void time_swaps(struct batch *b, const char *rank)
{
    struct rig *r = b->w->rig;
    struct swap s = {.b = b, .bytes = b->w->adapters.layout[0].blob_bytes};
    struct lora_slot *last = &b->w->adapters.slot[b->w->adapters.count - 1];
    const void *home = last->blob;
    s.place = rig_bf16(r, s.bytes / 2);
    s.pinned = ops_of(&s)->pinned_alloc(s.bytes);
    CHECK(s.place && s.pinned);
    must(r->b->ops->mem_read(r->b, s.pinned, s.place, s.bytes), "reading a blob");
    for (int i = 0; i < 4; i++)
        batch_step(b);
    report(&s, rank, MIN(MAX(r->repeats, 4u) * 5, 400u));
    last->blob = home; /* the other place goes with the batch */
    ops_of(&s)->pinned_free(s.pinned);
}

void swap_line(struct rig *r, const char *line)
{
    char rank[8];
    uint32_t batch;
    struct batch b;
    CHECK(parse(line, rank, &batch));
    struct world *w = world;
    if (!w || !world_adapters(w, batch + 1, rank)) {
        printf("{\"rank\": \"%s\", \"error\": \"does not fit\"}\n", rank);
        return;
    }
    struct batch_options o = {
        .n = batch, .context = context_of(r), .n_seg = batch, .configured = true};
    o.seg = mem_array(batch, sizeof(*o.seg));
    for (uint32_t i = 0; i < batch; i++) /* the first row uses the one that is swapped */
        o.seg[i] = (struct lora_seg){i, 1, 1, {{i ? i : w->adapters.count - 1, 65536}}};
    if (!batch_open(&b, w, &o)) {
        printf("{\"rank\": \"%s\", \"error\": \"does not fit\"}\n", rank);
        return;
    }
    time_swaps(&b, rank);
    batch_close(&b);
}

void swap_end(struct rig *r)
{
    (void)r;
    world_close(world);
    world = NULL;
}
