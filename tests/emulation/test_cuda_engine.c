/* The whole engine on the CUDA backend: every family against the goldens, and its own bits, which
 * must not depend on company, chunks, preemption, evictions, or on whether a pass is replayed. */
#include "kernels/bf16.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "tests/emulation/emu_control.h"
#include "tests/lib/logits_case.h"
#include "tests/unit/engine_world.h"

#include <dirent.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>

static const char cases_dir[] = RS_TEST_DATA "/logits";

#if defined(__SANITIZE_ADDRESS__)
#define FEW true
#else
#define FEW false
#endif

/* ---- against the reference ---- */

static uint32_t check_cases(const char *backend, uint32_t chunk)
{
    struct dirent **list;
    struct logits_case_options opt = {
        .backend = backend, .dtype = DTYPE_CHOICE_BF16, .thread_count = 1, .chunk = chunk};
    uint32_t judged = 0;
    int n = scandir(cases_dir, &list, NULL, alphasort);
    assert_true(n > 0);
    for (int i = 0; i < n; i++) {
        char dir[PATH_MAX];
        struct errtext err = ERRTEXT_INIT;
        bool wanted = list[i]->d_name[0] != '.';
        snprintf(dir, sizeof(dir), "%s/%s", cases_dir, list[i]->d_name);
        free(list[i]);
        enum status st = wanted ? logits_case_check(dir, &opt, &err) : STATUS_UNSUPPORTED;
        if (st && st != STATUS_UNSUPPORTED)
            fail_msg("%s: %s", dir, err.text);
        judged += st == STATUS_OK;
    }
    free(list);
    return judged;
}

/* llama, mistral, qwen2, qwen3: base, one adapter, a mix; whole prompts, then pieces of 5. */
static void test_families_agree_with_the_reference(void **state)
{
    if (emu_is_tsan())
        skip(); /* takes minutes there */
    uint32_t judged = check_cases("cuda", 64);
    print_message("%u cases judged\n", judged);
    assert_true(judged >= 5);
    assert_true(check_cases("cuda", 5) >= 5);
}

/* A judge that cannot fail is no judge: f32 is refused by name, not computed in bf16. */
static void test_f32_is_refused_by_name(void **state)
{
    struct logits_case_options opt = {
        .backend = "cuda", .dtype = DTYPE_CHOICE_F32, .thread_count = 1, .chunk = 16};
    struct errtext err = ERRTEXT_INIT;
    assert_int_not_equal(logits_case_check(RS_TEST_DATA "/logits/llama_default", &opt, &err),
                         STATUS_OK);
}

/* ---- bits ---- */

static struct world_options cuda_options(void)
{
    struct world_options opt = world_default;
    opt.backend = "cuda";
    opt.dtype = DTYPE_BF16;
    opt.adapter_count = 8;
    opt.rows_max = 48;
    return opt;
}

#define SUBJECTS 3
#define OUT      10

/* Base and greedy; one adapter, sampled; a mix of two, sampled and penalised. */
static struct request *subject(struct world *w, uint32_t kind)
{
    struct request *r = world_request(w, 900 + kind, 37, OUT, 1, kind == 0 ? WORLD_BASE : kind);
    r->params.ignore_eos = true;
    if (kind == 2)
        world_mix(w, r, 5, 0x8000);
    if (kind > 0) {
        r->params.temperature = 0.9f;
        r->params.top_k = 40;
        r->params.top_p = 0.95f;
        r->params.repetition = 1.1f;
        r->params.presence = 0.2f;
    }
    return r;
}

/* The world goes before the request: give its adapter references back first. */
static void let_go(struct request *r)
{
    for (uint32_t i = 0; i < r->comp.n; i++) {
        catalog_release(r->entry[i]);
        r->entry[i] = NULL;
    }
}

static void run_alone(const struct world_options *opt, struct request **out)
{
    struct world w;
    for (uint32_t k = 0; k < SUBJECTS; k++) {
        world_open(&w, opt);
        out[k] = subject(&w, k);
        world_submit(&w, out[k]);
        world_run(&w);
        assert_int_equal(atomic_load(&out[k]->seq[0].n_out), OUT);
        if (k > 0)
            assert_true(out[k]->seq[0].delta2 > 0);
        let_go(out[k]);
        world_close(&w);
    }
}

static void release_all(struct request **r, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        request_release(r[i]);
}

/* All subjects among others that come and go, of all kinds. */
static struct engine_stats run_in_company(const struct world_options *opt, uint32_t company,
                                          uint32_t out, struct request *const *alone)
{
    struct world w;
    struct request *r[SUBJECTS], *other[16];
    struct engine_stats stats;
    world_open(&w, opt);
    for (uint32_t i = 0; i < company; i++) {
        uint32_t adapter = i % 4 == 0 ? WORLD_BASE : i % opt->adapter_count;
        other[i] = world_request(&w, i, 5 + i * 7 % 30, out + i % 6, 1 + i % 2, adapter);
        other[i]->params.temperature = i % 3 ? 1.0f : 0.0f;
    }
    for (uint32_t i = 0; i < company / 2; i++)
        world_submit(&w, other[i]);
    world_step(&w);
    for (uint32_t k = 0; k < SUBJECTS; k++) {
        r[k] = subject(&w, k);
        world_submit(&w, r[k]);
    }
    for (uint32_t i = company / 2; i < company; i++) {
        world_submit(&w, other[i]);
        world_step(&w);
    }
    world_run(&w);
    for (uint32_t k = 0; k < SUBJECTS; k++)
        assert_same_seq(alone[k], 0, r[k], 0);
    engine_get_stats(w.engine, &stats);
    release_all(r, SUBJECTS);
    release_all(other, company);
    world_close(&w);
    return stats;
}

static struct request *alone[SUBJECTS];

static int make_alone(void **state)
{
    struct world_options opt = cuda_options();
    log_set_level((enum log_level) - 1);
    run_alone(&opt, alone);
    return 0;
}

static int drop_alone(void **state)
{
    release_all(alone, SUBJECTS);
    return 0;
}

static void test_bits_do_not_depend_on_company(void **state)
{
    if (emu_is_tsan())
        skip(); /* takes minutes there */
    struct world_options opt = cuda_options();
    for (uint32_t seed = 1; seed <= (FEW ? 1 : 3); seed++) {
        emu_set_seed(seed); /* of blocks and warps */
        run_in_company(&opt, seed == 1 ? 12 : 5, 4, alone);
    }
    emu_set_seed(0);
}

/* Graphs are the same work: nothing recorded gives the same bits. */
static void test_bits_do_not_depend_on_replay(void **state)
{
    struct world_options opt = cuda_options();
    opt.backend = "cuda:eager";
    run_in_company(&opt, 6, 4, alone);
}

/* Nor on whether the next step is given before the host has seen this one's tokens. */
static void test_bits_do_not_depend_on_overlap(void **state)
{
    struct world_options opt = cuda_options();
    struct world w;
    world_open(&w, &opt);
    struct request *r = subject(&w, 2);
    world_submit(&w, r);
    uint32_t known = 0, flights = 0;
    for (uint32_t i = 0; i < 2 * OUT && !world_done(r); i++) {
        world_step(&w);
        flights += w.engine->flying && w.engine->batch.ids[0] < 0;
        known = atomic_load(&r->seq[0].n_out);
    }
    assert_int_equal(known, OUT);
    assert_int_equal(flights, OUT - 1); /* every token but the first was fed back by the device */
    assert_same_seq(alone[2], 0, r, 0);
    release_all(&r, 1);
    world_close(&w);
    opt.in_turn = true;
    run_in_company(&opt, 6, 4, alone);
}

static void test_bits_do_not_depend_on_chunks_or_preemption(void **state)
{
    if (emu_is_tsan())
        skip(); /* takes minutes there */
    struct world_options opt = cuda_options();
    opt.score_rows_max = 4;
    for (uint32_t rows = 16; rows <= (FEW ? 16 : 19); rows += 3) {
        opt.rows_max = rows;
        opt.kv_pages = 128;
        run_in_company(&opt, 4, 4, alone);
        opt.kv_pages = 14; /* too few: everything is preempted again and again */
        struct engine_stats st = run_in_company(&opt, 6, 60, alone);
        assert_true(st.preemptions > 0);
    }
}

/* Three places for eight adapters: they come back to other addresses, and what lay there before is
 * poisoned, so a table of slots that is stale by one step is seen. */
static void test_bits_do_not_depend_on_evictions(void **state)
{
    if (emu_is_tsan())
        skip(); /* takes minutes there */
    struct world_options opt = cuda_options();
    opt.store_slots = 3;
    opt.adapters_per_batch_max = 3;
    opt.load_polls = 1;
    struct engine_stats st = run_in_company(&opt, 14, 6, alone);
    assert_true(st.store.evictions >= 4);
}

/* A pass recorded with few segments is replayed with many, and the other way round: what varies is
 * in tables. */
static void test_more_segments_at_replay_than_at_recording(void **state)
{
    if (emu_is_tsan())
        skip(); /* takes minutes there */
    struct world_options opt = cuda_options();
    struct world w;
    struct request *r[2][8];
    world_open(&w, &opt);
    for (uint32_t round = 0; round < 2; round++) {
        for (uint32_t i = 0; i < 8; i++) {
            /* first all eight rows are of one adapter, then each of its own */
            r[round][i] = world_request(&w, 70 + i, 9, OUT, 1, round ? i : 1);
            r[round][i]->params.ignore_eos = true;
            world_submit(&w, r[round][i]);
        }
        world_run(&w);
    }
    opt.backend = "cuda:eager";
    struct world e;
    world_open(&e, &opt);
    for (uint32_t i = 0; i < 8; i++) {
        struct request *lone = world_request(&e, 70 + i, 9, OUT, 1, i);
        lone->params.ignore_eos = true;
        world_submit(&e, lone);
        world_run(&e);
        assert_same_seq(lone, 0, r[1][i], 0);
        request_release(lone);
    }
    world_close(&e);
    release_all(r[0], 8);
    release_all(r[1], 8);
    world_close(&w);
}

/* Decodes n sequences, half of them with adapters if mixed. Returns how many steps of n rows there
 * were; *recorded is set by one that was not a replay. */
static uint32_t decode(struct world *w, uint32_t n, bool mixed, bool *recorded)
{
    struct request *r[8];
    const struct backend *b = w->backend;
    uint32_t steps = 0;
    for (uint32_t i = 0; i < n; i++) {
        r[i] = world_request(w, 40 + i, 9, 10, 1, mixed && i % 2 == 0 ? i : WORLD_BASE);
        r[i]->params.ignore_eos = true;
        world_submit(w, r[i]);
    }
    for (uint32_t i = 0; i < 100 && w->engine->job_live_count + (i == 0) > 0; i++) {
        uint64_t replays = b->passes_replayed, before = w->engine->count.steps;
        uint32_t records = b->passes_recorded;
        world_step(w);
        if (w->engine->count.steps == before || w->engine->batch.n_tok != n ||
            w->engine->batch.pos[0] < 9)
            continue;
        steps++;
        *recorded = *recorded || b->passes_recorded != records || b->passes_replayed != replays + 1;
    }
    world_run(w);
    release_all(r, n);
    return steps;
}

/* What is recorded before the first request is what decoding asks for: from 1 row to all
 * sequences, with adapters and without. Without time for it the first steps do it. */
static void test_decoding_finds_its_passes_recorded(void **state)
{
    struct world_options opt = cuda_options();
    struct errtext err = ERRTEXT_INIT;
    struct world w;
    bool recorded = false;
    const uint32_t most = emu_is_tsan() ? 2 : 7; /* slow there */
    opt.seqs_max = most;
    world_open(&w, &opt);
    assert_int_equal(engine_record(w.engine, 600000, &err), STATUS_OK);
    assert_int_equal(w.backend->passes_recorded, most == 2 ? 2 * 2 : 2 * 4); /* 1, 2, 4, 8 */
    for (uint32_t n = emu_is_tsan() ? 2 : 1; n <= most; n += n < 3 ? 1 : 2)
        for (uint32_t mixed = 0; mixed < 2; mixed++)
            assert_true(decode(&w, n, mixed, &recorded) >= 3);
    assert_false(recorded);
    world_close(&w);
    world_open(&w, &opt);
    assert_int_equal(engine_record(w.engine, 0, &err), STATUS_OK);
    assert_int_equal(w.backend->passes_recorded, 0);
    assert_true(decode(&w, 2, true, &recorded) >= 3);
    assert_true(recorded);
    world_close(&w);
}

/* The passes before the first request leave nothing behind: the same bits. */
static void test_bits_do_not_depend_on_early_recording(void **state)
{
    if (emu_is_tsan())
        skip(); /* takes minutes there */
    struct world_options opt = cuda_options();
    struct errtext err = ERRTEXT_INIT;
    struct world w;
    opt.seqs_max = 4;
    for (uint32_t k = 0; k < SUBJECTS; k++) {
        world_open(&w, &opt);
        assert_int_equal(engine_record(w.engine, 600000, &err), STATUS_OK);
        struct request *r = subject(&w, k);
        world_submit(&w, r);
        world_run(&w);
        assert_same_seq(alone[k], 0, r, 0);
        request_release(r);
        world_close(&w);
    }
}

/* ---- scores ---- */

#define BASIS_SEED 5

static void count_done(struct score_job *j, void *arg)
{
    (*(uint32_t *)arg)++;
}

/* Hidden states, widened from the device's bf16, give these keys. */
static void check_hidden(struct world *w, const float *hidden, const int8_t *key)
{
    uint32_t d = w->model.config.d_model, differ = 0;
    uint16_t *m = mem_array((size_t)SKETCH_DIM * d, sizeof(*m));
    float bias[SKETCH_DIM];
    world_basis_numbers(w, BASIS_SEED, m, bias);
    for (uint32_t t = 0; t < OUT; t++) {
        double z[SKETCH_DIM], norm2 = 0;
        for (uint32_t j = 0; j < SKETCH_DIM; j++) {
            z[j] = -(double)bias[j];
            for (uint32_t k = 0; k < d; k++)
                z[j] += (double)bf16_to_f32(m[j * d + k]) * (double)hidden[t * d + k];
            norm2 += z[j] * z[j];
        }
        for (uint32_t j = 0; j < SKETCH_DIM; j++) {
            double want = nearbyint(127 * z[j] / sqrt(norm2));
            assert_true(fabs(want - key[t * SKETCH_DIM + j]) <= 1);
            differ += want != key[t * SKETCH_DIM + j];
        }
    }
    assert_true(differ * 50 < OUT * SKETCH_DIM);
    mem_free(m);
}

/* Teacher forcing gives the log-probability and the key that decoding reported, bit for bit. */
static void test_scores_and_keys_equal_those_of_decoding(void **state)
{
    struct world_options opt = cuda_options();
    struct world w;
    float logprob[OUT];
    int8_t key[OUT * SKETCH_DIM];
    int32_t ids[64];
    uint32_t done = 0;
    world_open(&w, &opt);
    struct engine_basis *basis = world_basis(&w, BASIS_SEED);
    struct request *r = subject(&w, 1);
    float *hidden = mem_array((size_t)OUT * w.model.config.d_model, sizeof(*hidden));
    assert_true(request_want_keys(r, basis));
    world_submit(&w, r);
    world_run(&w);
    memcpy(ids, r->prompt[0].ids, 37 * sizeof(ids[0]));
    memcpy(ids + 37, r->seq[0].out_id, OUT * sizeof(ids[0]));
    struct score_job j = {.comp = r->comp,
                          .ids = ids,
                          .n_ids = 37 + OUT,
                          .n_prompt = 37,
                          .logprob = logprob,
                          .basis = basis,
                          .key = key,
                          .hidden = hidden,
                          .on_done = count_done,
                          .on_done_arg = &done};
    j.entry[0] = w.adapter[1].entry;
    assert_int_equal(engine_submit_score(w.engine, &j), STATUS_OK);
    world_run(&w);
    assert_int_equal(done, 1);
    assert_int_equal(j.status, STATUS_OK);
    assert_memory_equal(logprob, r->seq[0].out_logprob, sizeof(logprob));
    assert_memory_equal(key, r->seq[0].out_key, sizeof(key));
    check_hidden(&w, hidden, key);
    mem_free(hidden);
    engine_basis_release(basis);
    request_release(r);
    world_close(&w);
}

/* ---- memory ---- */

static enum status create(struct world *w, const struct engine_options *o, struct backend *b,
                          struct engine **out, struct errtext *err)
{
    struct engine_deps deps = {.model = &w->model, .backend = b, .store = w->store};
    err_clear(err);
    return engine_create(out, o, &deps, err);
}

/* The plan says before what is taken: of 64 MiB, and of a device that is not there. */
static void test_the_plan_is_what_is_taken(void **state)
{
    struct world_options opt = cuda_options();
    struct errtext err = ERRTEXT_INIT;
    struct engine *e;
    struct world w;
    struct buf text;
    uint64_t total, left;
    world_open(&w, &opt);
    struct backend_options bo = {
        .name = "cuda", .deterministic = true, .device_bytes = (uint64_t)64 << 20};
    struct backend *b;
    assert_int_equal(backend_create(&b, &bo, &err), STATUS_OK);
    assert_int_equal(create(&w, &w.engine->opt, b, &e, &err), STATUS_OK);
    b->ops->mem_room(b, &total, &left);
    uint64_t planned = memplan_total(&e->plan, MEMPLAN_DEVICE), taken = total - left;
    /* but for the gaps between blocks */
    assert_in_range(taken, planned - planned / 50, planned + 40 * 1024);
    engine_destroy(e);
    backend_destroy(b);
    bo.name = "cuda:plan";
    bo.device_bytes = (uint64_t)141 << 30;
    assert_int_equal(backend_create(&b, &bo, &err), STATUS_OK);
    struct engine_options o = w.engine->opt;
    o.kv_bytes = 0; /* all that is left, at most what the sequences can use */
    assert_int_equal(create(&w, &o, b, &e, &err), STATUS_OK);
    assert_int_equal(e->kv.page_count, o.seqs_max * e->page_stride);
    buf_init(&text, 1u << 16);
    engine_print_plan(e, &text);
    assert_non_null(strstr(text.data, "of 144384.0 MiB"));
    assert_non_null(strstr(text.data, "workspace"));
    buf_fini(&text);
    engine_destroy(e);
    backend_destroy(b);
    world_close(&w);
}

static void refused(struct world *w, const struct engine_options *o, uint64_t device_bytes,
                    const char *line, const char *key)
{
    struct errtext err = ERRTEXT_INIT;
    struct engine *e;
    struct backend *b;
    struct backend_options bo = {
        .name = "cuda:plan", .deterministic = true, .device_bytes = device_bytes};
    assert_int_equal(backend_create(&b, &bo, &err), STATUS_OK);
    assert_int_equal(create(w, o, b, &e, &err), STATUS_TOO_LARGE);
    if (!strstr(err.text, line) || !strstr(err.text, key))
        fail_msg("\"%s\" does not name %s and %s", err.text, line, key);
    backend_destroy(b);
}

static void test_too_big_is_refused_with_its_line(void **state)
{
    struct world_options opt = cuda_options();
    struct world w;
    world_open(&w, &opt);
    struct engine_options o = w.engine->opt;
    refused(&w, &o, 4096, "model weights", "device_bytes");
    o.kv_bytes = (uint64_t)1 << 30;
    refused(&w, &o, (uint64_t)64 << 20, "KV cache", "lower kv_bytes");
    o.kv_bytes = 0;
    o.adapters_device_bytes = (uint64_t)80 << 20;
    refused(&w, &o, (uint64_t)64 << 20, "adapter pool", "lower adapters_device_bytes_max");
    world_close(&w);
}

/* ---- the device is lost ---- */

#ifndef RS_ON_DEVICE
static void count_lost(void *arg)
{
    (*(uint32_t *)arg)++;
}

/* In the middle of a step: who runs and who waits is told, what was finished stays as it is, the
 * owner is called once, and nothing is computed afterwards. */
static void test_a_lost_device_ends_everybody(void **state)
{
    struct world_options opt = cuda_options();
    struct errtext err = ERRTEXT_INIT;
    struct world w;
    uint32_t lost = 0;
    opt.seqs_max = 2;
    world_open(&w, &opt);
    w.engine->opt.on_device_lost = count_lost;
    w.engine->opt.on_device_lost_arg = &lost;
    struct request *done = world_request(&w, 1, 10, 4, 1, 1), *r[3];
    done->params.ignore_eos = true;
    world_submit(&w, done);
    world_run(&w);
    for (uint32_t i = 0; i < 3; i++) {
        r[i] = world_request(&w, 2 + i, 10, 40, 1, i);
        r[i]->params.ignore_eos = true;
        world_submit(&w, r[i]);
    }
    for (uint32_t i = 0; i < 6; i++)
        world_step(&w);
    uint64_t steps = w.engine->count.steps;
    emu_break_device();
    world_step(&w);
    assert_int_equal(lost, 1);
    for (uint32_t i = 0; i < 3; i++) {
        assert_true(world_done(r[i]));
        assert_int_equal(atomic_load(&r[i]->seq[0].finish), FINISH_ERROR);
        assert_int_equal(r[i]->status, STATUS_IO);
    }
    assert_int_equal(atomic_load(&done->seq[0].n_out), 4);
    assert_int_equal(atomic_load(&done->seq[0].finish), FINISH_LENGTH);
    assert_int_equal(engine_submit(w.engine, r[0], &err), STATUS_CANCELLED);
    world_step(&w);
    world_step(&w);
    assert_int_equal(lost, 1);
    assert_int_equal(w.engine->count.steps, steps + 1);
    release_all(r, 3);
    request_release(done);
    world_close(&w);
    emu_reset();
}

static bool all_done(struct request *r)
{
    for (uint32_t i = 0; i < 2000 && !world_done(r); i++)
        clock_sleep_ms(5);
    return world_done(r);
}

/* A device that is not the first: the engine's own thread has to say so. */
static void test_the_engine_enters_its_device(void **state)
{
    struct world_options opt = cuda_options();
    struct world w;
    emu_device.count = 2;
    opt.device = 1;
    opt.real_clock = true;
    world_open(&w, &opt);
    engine_start(w.engine);
    struct request *r = subject(&w, 0);
    world_submit(&w, r);
    assert_true(all_done(r));
    engine_stop(w.engine, 1000);
    assert_int_equal(r->status, STATUS_OK);
    assert_same_seq(alone[0], 0, r, 0);
    release_all(&r, 1);
    world_close(&w);
    opt.device = 0; /* this thread goes back */
    world_open(&w, &opt);
    world_close(&w);
    emu_reset();
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_families_agree_with_the_reference),
        cmocka_unit_test(test_f32_is_refused_by_name),
        cmocka_unit_test(test_bits_do_not_depend_on_company),
        cmocka_unit_test(test_bits_do_not_depend_on_replay),
        cmocka_unit_test(test_bits_do_not_depend_on_overlap),
        cmocka_unit_test(test_bits_do_not_depend_on_chunks_or_preemption),
        cmocka_unit_test(test_bits_do_not_depend_on_evictions),
        cmocka_unit_test(test_more_segments_at_replay_than_at_recording),
        cmocka_unit_test(test_decoding_finds_its_passes_recorded),
        cmocka_unit_test(test_bits_do_not_depend_on_early_recording),
        cmocka_unit_test(test_scores_and_keys_equal_those_of_decoding),
        cmocka_unit_test(test_the_plan_is_what_is_taken),
        cmocka_unit_test(test_too_big_is_refused_with_its_line),
#ifndef RS_ON_DEVICE
        cmocka_unit_test(test_a_lost_device_ends_everybody),
        cmocka_unit_test(test_the_engine_enters_its_device),
#endif
    };
    return cmocka_run_group_tests(tests, make_alone, drop_alone);
}
