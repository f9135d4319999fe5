/* Seeded random worlds: arrivals of every kind, cancels, adapters that are slow, stuck, evicted or
 * broken, scoring jobs, a clock that jumps, pools far too small. The whole state is verified after
 * every step, and every token that came out is compared, bit for bit, with a calm world that has
 * room for everything. `test_engine_sim SEED` runs one seed. */
#include "tests/unit/engine_world.h"
#include "tests/unit/late_backend.h"

#include <stdlib.h>

#define REQUESTS  60
#define SCORES    12
#define SEEDS     16
#define SCORE_IDS 48
#define STEPS_MAX 400000
#define BASIS     5

struct spec { /* how to make a request, in any world */
    uint64_t prompt_seed, seed;
    uint32_t n_prompt, max_tokens, n, adapter, mix, stop;
    float temperature;
    int32_t priority;
    uint32_t key, min_tokens;
    bool prompt_logprobs, salted, ignore_eos, keys;
};

struct score {
    struct score_job job;
    int32_t ids[SCORE_IDS];
    float logprob[SCORE_IDS];
    int8_t key[SCORE_IDS][SKETCH_DIM];
    uint32_t done;
    uint32_t adapter;
};

struct sim {
    struct world w;
    struct engine_basis *basis;
    struct world_options opt;
    uint64_t rng;
    uint32_t submitted, scores;
    struct spec spec[REQUESTS];
    struct request *r[REQUESTS];
    struct score score[SCORES];
};

static uint32_t draw(struct sim *s, uint32_t below)
{
    return world_random(&s->rng, below);
}

static void draw_spec(struct sim *s, struct spec *p)
{
    uint32_t context = s->opt.context_max;
    *p = (struct spec){.prompt_seed = draw(s, 6),
                       .seed = draw(s, 1000),
                       .n_prompt = 1 + draw(s, draw(s, 4) ? 60 : context - 1),
                       .max_tokens = draw(s, draw(s, 2) ? 24 : 90),
                       .n = draw(s, 4) ? 1 : 2 + draw(s, 4),
                       .adapter = draw(s, 3) ? draw(s, s->opt.adapter_count) : WORLD_BASE,
                       .mix = WORLD_BASE,
                       .temperature = draw(s, 2) ? 0.0f : 0.7f,
                       .priority = draw(s, 5) ? 0 : (int32_t)draw(s, 3) - 1,
                       .key = draw(s, 3),
                       .stop = draw(s, 3)};
    if (p->adapter != WORLD_BASE && draw(s, 3) == 0)
        p->mix = (p->adapter + 1) % s->opt.adapter_count;
    p->max_tokens = MIN(p->max_tokens, context - p->n_prompt);
    p->min_tokens = draw(s, 4) ? 0 : p->max_tokens / 2;
    p->prompt_logprobs = draw(s, 5) == 0;
    p->salted = draw(s, 4) == 0;
    p->ignore_eos = draw(s, 2);
    p->keys = draw(s, 2);
}

static struct request *build(struct world *w, struct engine_basis *basis, const struct spec *p)
{
    struct request *r =
        world_request(w, p->prompt_seed, p->n_prompt, p->max_tokens, p->n, p->adapter);
    if (p->mix != WORLD_BASE)
        world_mix(w, r, p->mix, 0x6000);
    r->params.temperature = p->temperature;
    r->params.priority = p->priority;
    r->params.fair_key = p->key;
    r->params.min_tokens = p->min_tokens;
    r->params.ignore_eos = p->ignore_eos;
    r->params.cache_salt[0] = p->salted;
    r->params.repetition = 1.05f;
    for (uint32_t i = 0; i < p->n; i++)
        r->seq[i].seed = p->seed * 64 + i;
    if (p->stop) {
        r->params.stop = mem_array(p->stop, sizeof(struct request_stop));
        r->params.stop_count = p->stop;
        r->params.stop[0] = (struct request_stop){.text = "gabc", .len = 4};
        if (p->stop > 1)
            r->params.stop[1] = (struct request_stop){.text = "ff", .len = 2};
    }
    if (p->keys)
        (void)request_want_keys(r, basis); /* or there is no room: then there are none */
    if (p->prompt_logprobs) {
        r->params.prompt_top_count = 2;
        r->prompt[0].logprob = mem_array(p->n_prompt, sizeof(float));
        r->prompt[0].top = mem_array(p->n_prompt, sizeof(struct sample_out));
    }
    return r;
}

static void score_done(struct score_job *j, void *arg)
{
    ((struct score *)arg)->done++;
}

static void submit_score(struct sim *s)
{
    struct score *c = &s->score[s->scores];
    uint32_t n = 2 + draw(s, SCORE_IDS - 2);
    *c = (struct score){.adapter = draw(s, 2) ? draw(s, s->opt.adapter_count) : WORLD_BASE};
    /* begins as requests do */
    struct request *like = world_request(&s->w, draw(s, 6), n, 1, 1, c->adapter);
    memcpy(c->ids, like->prompt[0].ids, n * sizeof(c->ids[0]));
    c->job = (struct score_job){.ids = c->ids,
                                .n_ids = n,
                                .n_prompt = 1 + draw(s, n),
                                .comp = like->comp,
                                .share_pages = draw(s, 2),
                                .basis = s->basis,
                                .key = draw(s, 2) ? c->key[0] : NULL,
                                .logprob = c->logprob,
                                .on_done = score_done,
                                .on_done_arg = c};
    if (c->job.n_prompt > n)
        c->job.n_prompt = n;
    c->job.cache_salt[0] = draw(s, 4) == 0;
    if (c->adapter != WORLD_BASE)
        c->job.entry[0] = s->w.adapter[c->adapter].entry;
    request_release(like);
    request_release(like);
    if (engine_submit_score(s->w.engine, &c->job) == STATUS_OK)
        s->scores++;
}

static void submit_one(struct sim *s)
{
    struct errtext err = ERRTEXT_INIT;
    struct spec *p = &s->spec[s->submitted];
    draw_spec(s, p);
    struct request *r = build(&s->w, s->basis, p);
    enum status st = engine_submit(s->w.engine, r, &err);
    if (st == STATUS_OK) {
        s->r[s->submitted++] = r;
        return;
    }
    if (st != STATUS_FULL && st != STATUS_INVALID)
        fail_msg("submit: %s (%s)", status_name(st), err.text);
    request_release(r);
    request_release(r);
}

static void something_happens(struct sim *s)
{
    uint32_t what = draw(s, 100);
    if (what < 25 && s->submitted < REQUESTS)
        submit_one(s);
    else if (what < 30 && s->scores < SCORES)
        submit_score(s);
    else if (what < 33 && s->submitted > 0)
        atomic_store(&s->r[draw(s, s->submitted)]->cancel, true);
    else if (what < 36)
        world_store_evict_all(&s->w);
    else if (what < 38)
        world_store_stick(&s->w, draw(s, 2));
    else if (what < 40)
        s->w.adapter[draw(s, s->opt.adapter_count)].fails = draw(s, 3) == 0;
    else if (what < 42)
        world_advance_ms(draw(s, 400));
}

static void draw_options(struct sim *s)
{
    s->opt = world_default;
    s->opt.backend = draw(s, 3) ? "ref" : "cpu";
    s->opt.thread_count = 1 + draw(s, 2);
    s->opt.dtype = draw(s, 3) ? DTYPE_F32 : DTYPE_BF16;
    s->opt.context_max = 128;
    s->opt.seqs_max = 1 + draw(s, 12);
    s->opt.rows_max = s->opt.seqs_max + draw(s, 40);
    s->opt.score_rows_max = 1 + draw(s, s->opt.rows_max);
    s->opt.waiting_max = 4 + draw(s, 30);
    s->opt.kv_pages = 8 + draw(s, draw(s, 2) ? 8 : 30);
    s->opt.adapter_count = 6;
    s->opt.store_slots = 2 + draw(s, 5);
    s->opt.adapters_per_batch_max = 2 + draw(s, 4);
    s->opt.prefix_cache = draw(s, 3) > 0;
    s->opt.load_polls = draw(s, 6);
    s->opt.adapter_wait_ms_max = 3000;
    s->opt.late = draw(s, 3) > 0;
    s->opt.step_us = draw(s, 2) * 3000;
    s->opt.row_us = 200;
    s->opt.step_stretch_max = draw(s, 4) ? 110 + draw(s, 300) : 0;
    s->opt.share_wait_ms_max = 1 + draw(s, 100);
}

/* What came out of the wild world is a prefix of (or all of) what the calm one says. */
static void compare(const struct request *wild, const struct request *calm)
{
    for (uint32_t i = 0; i < wild->seq_count; i++) {
        const struct request_seq *x = &wild->seq[i], *y = &calm->seq[i];
        uint32_t finish = atomic_load(&x->finish), n = world_out_count(wild, i);
        assert_int_not_equal(finish, FINISH_NONE);
        assert_in_range(n, 0, world_out_count(calm, i));
        for (uint32_t t = 0; t < n; t++) {
            assert_int_equal(x->out_id[t], y->out_id[t]);
            assert_memory_equal(&x->out_logprob[t], &y->out_logprob[t], sizeof(float));
            if (x->out_key && y->out_key)
                assert_memory_equal(x->out_key + (size_t)t * SKETCH_DIM,
                                    y->out_key + (size_t)t * SKETCH_DIM, SKETCH_DIM);
        }
        if (finish == FINISH_CANCELLED || finish == FINISH_ERROR)
            continue;
        assert_same_seq(wild, i, calm, i);
        assert_int_equal(x->stop_token, y->stop_token);
        assert_int_equal(x->stop_index, y->stop_index);
        assert_int_equal(x->cut_byte, y->cut_byte);
        if (wild->params.prompt_top_count >= 0 && i == 0)
            assert_memory_equal(wild->prompt[0].logprob, calm->prompt[0].logprob,
                                wild->prompt[0].n_ids * sizeof(float));
    }
}

static void compare_all(struct sim *s)
{
    struct world_options opt = s->opt;
    struct world calm;
    float logprob[SCORE_IDS];
    int8_t key[SCORE_IDS][SKETCH_DIM];
    opt.thread_count = 1;
    opt.rows_max = 512;
    opt.seqs_max = 1;
    opt.kv_pages = 64;
    opt.store_slots = 6;
    opt.adapters_per_batch_max = 6;
    opt.prefix_cache = false;
    opt.late = false;
    opt.step_us = 0;
    world_open(&calm, &opt);
    struct engine_basis *basis = world_basis(&calm, BASIS);
    for (uint32_t i = 0; i < s->submitted; i++) {
        struct request *r = build(&calm, basis, &s->spec[i]);
        world_submit(&calm, r);
        world_run(&calm);
        compare(s->r[i], r);
        request_release(r);
    }
    for (uint32_t i = 0; i < s->scores; i++) {
        struct score_job j = s->score[i].job;
        struct score again = {0};
        if (j.status != STATUS_OK)
            continue;
        j.logprob = logprob;
        j.basis = basis;
        j.key = key[0];
        j.on_done_arg = &again;
        if (j.comp.n > 0)
            j.entry[0] = calm.adapter[s->score[i].adapter].entry;
        assert_int_equal(engine_submit_score(calm.engine, &j), STATUS_OK);
        world_run(&calm);
        assert_int_equal(again.done, 1);
        assert_memory_equal(logprob, s->score[i].logprob, (j.n_ids - j.n_prompt) * sizeof(float));
        if (s->score[i].job.key)
            assert_memory_equal(key, s->score[i].key, (j.n_ids - j.n_prompt) * SKETCH_DIM);
    }
    engine_basis_release(basis);
    world_close(&calm);
}

struct sums {
    uint64_t preemptions, shares, score_shared;
};

static void run_seed(uint64_t seed, struct sums *sums)
{
    struct sim *s = mem_alloc(sizeof(*s));
    struct engine_stats stats;
    s->rng = seed * 7919 + 1;
    draw_options(s);
    print_message("seed %llu: %s%s %s, %u seqs, %u rows, %u pages, %u slots\n",
                  (unsigned long long)seed, s->opt.backend, s->opt.late ? " late" : "",
                  s->opt.dtype == DTYPE_F32 ? "f32" : "bf16", s->opt.seqs_max, s->opt.rows_max,
                  s->opt.kv_pages, s->opt.store_slots);
    world_open(&s->w, &s->opt);
    s->basis = world_basis(&s->w, BASIS);
    for (uint32_t step = 0; s->submitted < REQUESTS; step++) {
        something_happens(s);
        world_step(&s->w);
        if (step > STEPS_MAX)
            fail_msg("the world does not come to its end");
    }
    world_store_stick(&s->w, false);
    world_run(&s->w);
    for (uint32_t i = 0; i < s->submitted; i++)
        assert_true(world_done(s->r[i]));
    for (uint32_t i = 0; i < s->scores; i++)
        assert_int_equal(s->score[i].done, 1);
    engine_get_stats(s->w.engine, &stats);
    sums->preemptions += stats.preemptions;
    sums->shares += stats.share_preemptions;
    sums->score_shared += stats.score_shared_tokens;
    if (s->opt.late)
        assert_true(late_backend_ids() > 0); /* steps did overlap */
    print_message("  %llu steps, %llu preempted (%llu for a share), finished %llu stop %llu length "
                  "%llu cancelled %llu "
                  "error, %llu of %llu prompt tokens cached\n",
                  (unsigned long long)stats.steps, (unsigned long long)stats.preemptions,
                  (unsigned long long)stats.share_preemptions,
                  (unsigned long long)stats.finished[FINISH_STOP],
                  (unsigned long long)stats.finished[FINISH_LENGTH],
                  (unsigned long long)stats.finished[FINISH_CANCELLED],
                  (unsigned long long)stats.finished[FINISH_ERROR],
                  (unsigned long long)stats.prefix_hits, (unsigned long long)stats.prefix_queries);
    compare_all(s);
    for (uint32_t i = 0; i < s->submitted; i++)
        request_release(s->r[i]);
    engine_basis_release(s->basis);
    world_close(&s->w);
    mem_free(s);
}

static uint64_t only_seed;

static void test_engine_random_worlds_give_the_bits_of_a_calm_one(void **state)
{
    struct sums sums = {0};
    if (only_seed) {
        run_seed(only_seed, &sums);
        return;
    }
    for (uint64_t seed = 1; seed <= SEEDS; seed++)
        run_seed(seed, &sums);
    /* Else the worlds are too calm to prove anything. */
    assert_true(sums.preemptions > 20);
    assert_true(sums.shares > 20);
    assert_true(sums.score_shared > 200);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_random_worlds_give_the_bits_of_a_calm_one),
    };
    if (argc > 1)
        only_seed = strtoull(argv[1], NULL, 10);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
