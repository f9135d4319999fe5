/* Mode step of bench_cuda: decode steps of a whole model, given to the device one after another as
 * an engine does that needs no answer to go on; and once more with every step's tokens read back.
 * A line is BATCH CONTEXT LORA RANK ADAPTERS SEED; LORA says what the rows use:
 *
 *   none      no adapter is configured            one        all rows share adapter 0
 *   idle      ADAPTERS are resident, unused       distinct   row i uses adapter i
 *   zipf      each row draws one of ADAPTERS, the k-th with weight 1/k; SEED decides the draw */
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/mem.h"
#include "tests/gpu/bench_modes.h"
#include "tests/gpu/bench_world.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define STEPS_MAX 2000

static struct world *world; /* of all lines of the program; NULL: its weights do not fit */

/* counts[k] rows use adapter k: segments in order of the adapters. */
static struct lora_seg *segments_of(const uint32_t *counts, uint32_t n_adapter, uint32_t *n_seg)
{
    struct lora_seg *seg = mem_array(n_adapter, sizeof(*seg));
    uint32_t begin = 0;
    *n_seg = 0;
    for (uint32_t k = 0; k < n_adapter; k++) {
        if (counts[k] == 0)
            continue;
        seg[(*n_seg)++] = (struct lora_seg){begin, counts[k], 1, {{k, 65536}}};
        begin += counts[k];
    }
    return seg;
}

static void draw_zipf(uint32_t *counts, uint32_t n_adapter, uint32_t n, uint32_t seed)
{
    uint64_t state = seed * 0x9e3779b97f4a7c15ull + 88172645463325252ull;
    double sum = 0;
    for (uint32_t k = 0; k < n_adapter; k++)
        sum += 1.0 / (k + 1);
    for (uint32_t i = 0; i < n; i++) {
        for (int warm = 0; warm < 8; warm++) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
        }
        double u = (double)(state >> 11) / 9007199254740992.0 * sum;
        uint32_t k = 0;
        while (k + 1 < n_adapter && (u -= 1.0 / (k + 1)) >= 0)
            k++;
        counts[k]++;
    }
}

/* NULL: base only. */
static struct lora_seg *make_segments(const char *lora, uint32_t batch, uint32_t n_adapter,
                                      uint32_t seed, uint32_t *n_seg)
{
    *n_seg = 1;
    if (strcmp(lora, "none") == 0 || strcmp(lora, "idle") == 0)
        return NULL;
    uint32_t *counts = mem_array(n_adapter, sizeof(*counts));
    if (strcmp(lora, "zipf") == 0)
        draw_zipf(counts, n_adapter, batch, seed);
    for (uint32_t i = 0; strcmp(lora, "zipf") != 0 && i < batch; i++)
        counts[strcmp(lora, "one") == 0 ? 0 : i % n_adapter]++;
    struct lora_seg *seg = segments_of(counts, n_adapter, n_seg);
    mem_free(counts);
    return seg;
}

struct step_times {
    double us, p99_us, spread, sync_us;
};

static double time_synced(struct batch *b, uint32_t steps)
{
    double us[STEPS_MAX];
    for (uint32_t i = 0; i < steps; i++) {
        uint64_t begin = clock_mono_ns();
        batch_step(b);
        batch_take(b);
        us[i] = (double)(clock_mono_ns() - begin) / 1000;
    }
    return median_of(us, steps);
}

static struct step_times time_steps(struct batch *b)
{
    struct rig *r = b->w->rig;
    struct step_times t = {0};
    uint32_t steps = MIN(MAX(r->repeats, 4u), (uint32_t)STEPS_MAX);
    void *event[STEPS_MAX + 1];
    double us[STEPS_MAX];
    for (int i = 0; i < 4; i++) /* choose, record, replay twice */
        batch_step(b);
    must(gpu_stream_sync(r->c->stream), "the first steps");
    if (r->eager)
        return t;
    for (uint32_t i = 0; i <= steps; i++)
        must(gpu_event_create(&event[i], true), "event");
    must(gpu_event_record(event[0], r->c->stream), "event");
    for (uint32_t i = 0; i < steps; i++) {
        batch_step(b);
        must(gpu_event_record(event[i + 1], r->c->stream), "event");
    }
    must(gpu_stream_sync(r->c->stream), "steps");
    for (uint32_t i = 0; i < steps; i++) {
        float ms = 0;
        must(gpu_event_ms(&ms, event[i], event[i + 1]), "event time");
        us[i] = 1000.0 * (double)ms;
    }
    for (uint32_t i = 0; i <= steps; i++)
        gpu_event_destroy(event[i]);
    double first = median_of(us, steps / 2);
    double second = median_of(us + steps / 2, steps - steps / 2);
    t.us = median_of(us, steps);
    t.p99_us = us[MIN(steps * 99 / 100, steps - 1)];
    t.spread = t.us > 0 ? fabs(first - second) / t.us : 0;
    t.sync_us = time_synced(b, MIN(steps, 12u));
    return t;
}

struct step_cell {
    uint32_t batch, context, adapters, seed;
    char lora[16], rank[8];
};

static bool parse(struct step_cell *c, const char *line)
{
    static const char *const kinds[] = {"none", "idle", "one", "distinct", "zipf"};
    if (sscanf(line, "%u %u %15s %7s %u %u", &c->batch, &c->context, c->lora, c->rank, &c->adapters,
               &c->seed) != 6 ||
        c->batch == 0 || c->context == 0)
        return false;
    for (size_t i = 0; i < ARRAY_COUNT(kinds); i++)
        if (strcmp(c->lora, kinds[i]) == 0)
            return (i == 0) == (c->adapters == 0);
    return false;
}

bool step_first(struct rig *r, char line[][LINE_BYTES], uint32_t n, uint32_t *bad)
{
    struct step_cell c;
    struct world_limits lim = {1, 1, 1, 16};
    for (uint32_t i = 0; i < n; i++) {
        *bad = i;
        if (!parse(&c, line[i]))
            return false;
        lim.batch = MAX(lim.batch, c.batch);
        lim.context = MAX(lim.context, c.context);
        lim.adapters = MAX(lim.adapters, c.adapters);
        lim.rank = MAX(lim.rank, rank_max_of(c.rank));
    }
    world = world_open(r, &lim);
    return true;
}

void step_line(struct rig *r, const char *line)
{
    struct step_cell c;
    char head[200];
    struct batch b;
    CHECK(parse(&c, line));
    bool none = strcmp(c.lora, "none") == 0;
    snprintf(head, sizeof(head),
             "{\"batch\": %u, \"context\": %u, \"lora\": \"%s\", \"rank\": \"%s\", "
             "\"adapters\": %u, \"seed\": %u, \"mode\": \"%s\"",
             c.batch, c.context, c.lora, c.rank, c.adapters, c.seed,
             r->b->deterministic ? "fixed" : "fast");
    struct world *w = world;
    if (!w || (!none && !world_adapters(w, c.adapters, c.rank))) {
        printf("%s, \"error\": \"does not fit\"}\n", head);
        return;
    }
    struct batch_options o = {.n = c.batch, .context = c.context, .configured = !none};
    o.seg = make_segments(c.lora, c.batch, c.adapters, c.seed, &o.n_seg);
    if (!batch_open(&b, w, &o)) {
        printf("%s, \"error\": \"does not fit\"}\n", head);
        return;
    }
    struct step_times t = time_steps(&b);
    printf("%s, \"distinct\": %u, \"us\": %.2f, \"p99_us\": %.2f, \"sync_us\": %.2f, "
           "\"spread\": %.4f, \"bytes\": %llu}\n",
           head, b.lora ? b.n_seg : 0, t.us, t.p99_us, t.sync_us, t.spread,
           (unsigned long long)batch_bytes(&b));
    batch_close(&b);
}

void step_end(struct rig *r)
{
    (void)r;
    world_close(world);
    world = NULL;
}
