/* What the engine costs beside the device's work, with very many of everything:
 *
 *     bench_engine [count]
 *
 * Each line is a state of `count` (4096) sequences or requests in the small world of the engine's
 * tests, with the CPU time that a step takes outside the backend: median and longest of its steps.
 * What happens once (a burst that arrives, is admitted, ends) is divided by what it moves.
 *
 * Then 255 readers and six newcomers with prompts of 1 200 tokens, one after the other: CPU time
 * of the whole steps, as readers wait for their next token, and until a newcomer's first. */
#include "tests/unit/engine_world.h"

#include <stdlib.h>
#include <time.h>

#define SAMPLES_MAX 4096

static uint32_t count = 4096;
static double sample_ms[SAMPLES_MAX];
static uint32_t sample_count;

/* Of this program, so that other work of the machine does not count. */
static uint64_t cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static double now_ms(void)
{
    return (double)cpu_ns() * 1e-6;
}

static int compare_ms(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void report(const char *what)
{
    qsort(sample_ms, sample_count, sizeof(sample_ms[0]), compare_ms);
    printf("%-58s %9.3f ms %9.3f ms longest\n", what, sample_ms[sample_count / 2],
           sample_ms[sample_count - 1]);
    sample_count = 0;
}

/* One step; what it took outside the backend becomes a sample. */
static double timed_step(struct world *w)
{
    double begin = now_ms();
    engine_step(w->engine);
    double ms = now_ms() - begin - (double)w->engine->device_ns * 1e-6;
    if (sample_count < SAMPLES_MAX)
        sample_ms[sample_count++] = ms;
    return ms;
}

static void bench_share(enum sched_kind kind, uint32_t rows, uint32_t rows_max, const char *what)
{
    struct sched_ask *ask = mem_array(count, sizeof(*ask));
    uint64_t credit = 0;
    struct sched_limits limits = {.rows_max = rows_max,
                                  .score_rows_max = 128,
                                  .beside_max = rows_max,
                                  .score_credit = &credit};
    uint32_t *scratch = mem_array(count, sizeof(*scratch));
    uint64_t rng = 1;
    char line[64];
    for (uint32_t round = 0; round < 50; round++) {
        for (uint32_t i = 0; i < count; i++)
            ask[i] = (struct sched_ask){
                .kind = kind,
                .rows_left = rows,
                .rank = {.tokens = world_random(&rng, 1000), .serial = count - i}};
        double begin = now_ms();
        sched_share_rows(ask, count, &limits, scratch);
        sample_ms[sample_count++] = now_ms() - begin;
    }
    snprintf(line, sizeof(line), "sched_share_rows, %u %s", count, what);
    report(line);
    mem_free(scratch);
    mem_free(ask);
}

static void open_wide(struct world *w, uint32_t kv_pages)
{
    struct world_options opt = world_default;
    opt.backend = "cpu";
    opt.real_clock = true;
    opt.context_max = 64;
    opt.seqs_max = count;
    opt.rows_max = 2 * count;
    opt.waiting_max = 2 * count;
    opt.kv_pages = kv_pages;
    opt.adapter_count = 40;
    opt.store_slots = 60;
    opt.adapters_per_batch_max = 40;
    opt.adapter_wait_ms_max = 600000;
    opt.load_polls = 0;
    world_open(w, &opt);
    w->engine->opt.clock_ns = cpu_ns;
}

static struct request **submit_many(struct world *w, uint32_t n, uint32_t n_prompt,
                                    uint32_t max_tokens, uint32_t adapters)
{
    uint32_t many = count / n;
    struct request **r = mem_array(many, sizeof(*r));
    for (uint32_t i = 0; i < many; i++) {
        r[i] = world_request(w, i, n_prompt, max_tokens, n, adapters ? i % adapters : WORLD_BASE);
        r[i]->params.ignore_eos = true;
        r[i]->params.fair_key = i + 1; /* each its own key: the policy's worst case */
        world_submit(w, r[i]);
    }
    return r;
}

static void end(struct world *w, struct request **r, uint32_t many)
{
    for (uint32_t i = 0; i < many; i++)
        atomic_store(&r[i]->cancel, true);
    world_run(w);
    world_release_all(r, many);
    mem_free(r);
    world_close(w);
}

/* Free slots, and everybody waits for adapters whose loads do not end. */
static void bench_cold(void)
{
    struct world w;
    open_wide(&w, 1024);
    world_store_stick(&w, true);
    struct request **r = submit_many(&w, 1, 8, 4, 40);
    printf("%u requests arrive, one key each: %.3f us a request\n", count,
           timed_step(&w) * 1e3 / count);
    sample_count = 0;
    for (uint32_t i = 0; i < 100; i++)
        timed_step(&w);
    report("step, all wait for cold adapters");
    for (uint32_t i = 0; i < 100; i++) {
        w.engine->store_epoch++; /* something came: everybody is asked again */
        timed_step(&w);
    }
    report("the same, and with each step one load ends");
    end(&w, r, count);
}

static void bench_running(uint32_t n)
{
    struct world w;
    char line[64];
    open_wide(&w, count * 4);
    struct request **r = submit_many(&w, n, 8, 40, 8);
    double admit = 0;
    for (uint32_t i = 0; i < 40 && w.engine->seqs_running < count; i++)
        admit += timed_step(&w);
    printf("%u sequences are admitted (n = %u): %.3f us a sequence\n", count, n,
           admit * 1e3 / count);
    sample_count = 0;
    for (uint32_t i = 0; i < 20; i++)
        timed_step(&w);
    snprintf(line, sizeof(line), "step, all decode (n = %u)", n);
    report(line);
    struct request **more = submit_many(&w, n, 8, 40, 8);
    timed_step(&w);
    sample_count = 0;
    for (uint32_t i = 0; i < 5; i++)
        timed_step(&w);
    report("the same, and as many wait");
    for (uint32_t i = 0; i < count / n; i++)
        atomic_store(&more[i]->cancel, true);
    engine_step(w.engine);
    for (uint32_t i = 0; i < count / n; i++)
        atomic_store(&r[i]->cancel, true);
    printf("all end in one step: %.3f us a sequence\n", timed_step(&w) * 1e3 / count);
    sample_count = 0;
    world_release_all(more, count / n);
    mem_free(more);
    end(&w, r, count / n);
}

/* Pages end while all decode: every step takes some from the newest. */
static void bench_pages(void)
{
    struct world w;
    open_wide(&w, count + count / 2);
    struct request **r = submit_many(&w, 1, 12, 40, 0);
    for (uint32_t i = 0; i < 100; i++)
        timed_step(&w);
    printf("pages end: %llu preempted\n", (unsigned long long)w.engine->count.preemptions);
    report("step, pages for two thirds of all");
    end(&w, r, count);
}

static void whole_step(struct world *w)
{
    double begin = now_ms();
    engine_step(w->engine);
    if (sample_count < SAMPLES_MAX)
        sample_ms[sample_count++] = now_ms() - begin;
}

static void bench_newcomer(uint32_t rows_max, uint32_t stretch)
{
    struct world w;
    struct world_options opt = world_default;
    struct request *reader[255];
    double first_ms = 0;
    opt.backend = "cpu";
    opt.real_clock = true;
    opt.context_max = 2048;
    opt.seqs_max = 256;
    opt.rows_max = rows_max;
    opt.kv_pages = 255 * 64 + 128;
    opt.prefix_cache = false;
    opt.step_stretch_max = stretch;
    world_open(&w, &opt);
    w.engine->opt.clock_ns = cpu_ns;
    for (uint32_t i = 0; i < 255; i++) {
        reader[i] = world_request(&w, i, 16, 1000, 1, WORLD_BASE);
        reader[i]->params.ignore_eos = true;
        world_submit(&w, reader[i]);
    }
    for (uint32_t i = 0; i < 80; i++)
        engine_step(w.engine);
    for (uint32_t k = 0; k < 6; k++) {
        struct request *r = world_request(&w, 1000 + k, 1200, 2, 1, WORLD_BASE);
        double begin = now_ms();
        world_submit(&w, r);
        while (!world_done(r))
            whole_step(&w);
        first_ms = MAX(first_ms, (double)r->first_token_ns * 1e-6 - begin);
        request_release(r);
        for (uint32_t i = 0; i < 40; i++)
            whole_step(&w);
    }
    qsort(sample_ms, sample_count, sizeof(sample_ms[0]), compare_ms);
    printf("255 readers, rows %4u, stretch %3u%%: newcomers' first tokens after %.1f ms at most; "
           "steps "
           "%.1f ms, p99 %.1f, longest %.1f\n",
           rows_max, stretch, first_ms, sample_ms[sample_count / 2],
           sample_ms[sample_count * 99 / 100], sample_ms[sample_count - 1]);
    sample_count = 0;
    for (uint32_t i = 0; i < 255; i++)
        atomic_store(&reader[i]->cancel, true);
    world_run(&w);
    world_release_all(reader, 255);
    world_close(&w);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        count = (uint32_t)strtoul(argv[1], NULL, 10);
    if (count < 16 || count > 4096 || count % 16) {
        fprintf(stderr, "count: expected a multiple of 16 up to 4096\n");
        return 2;
    }
    bench_share(SCHED_DECODE, 1, 2 * count, "decode");
    bench_share(SCHED_PREFILL, 200, 2 * count, "prefill");
    bench_share(SCHED_PREFILL, 2, 2 * count - 2, "prefill, all but one get rows");
    bench_cold();
    bench_running(1);
    bench_running(16);
    bench_pages();
    bench_newcomer(256, 0);
    bench_newcomer(1024, 0);
    bench_newcomer(1024, 300);
    bench_newcomer(1024, 200);
    return 0;
}
