/* The Model Factory on a small model: jobs that end as they would alone, however they are paused,
 * stopped and taken up again; learners beside them; bounds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "server/base/clock.h"
#include "server/base/file.h"
#include "server/base/hex.h"
#include "server/base/mem.h"
#include "server/train/factory_learners.h"

#include <math.h>
#include <pthread.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MODEL RS_TEST_DATA "/logits/qwen3_qknorm/model"
#define OWNER "0x1111111111111111111111111111111111111111"

static const char config[] = "{\"peft_type\":\"LORA\",\"r\":3,\"lora_alpha\":6,\"target_modules\":"
                             "[\"q_proj\",\"down_proj\",\"o_proj\"]}";
static const char text[] =
    "Amber stands by the sea. Birch grows in the vale. Cinder lies on hills. "
    "Dune drifts on. Elm waits here. Fern hides below the elm.";

static struct {
    char dir[64], train[96];
    struct model *model;
    struct backend *backend;
    struct resident *resident;
    struct catalog *catalog;
    struct datanet_store *datanets;
    struct factory *factory;
    uint8_t root[32];
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint32_t published, works;
    uint8_t published_id[32]; /* digest of config and tensors */
    enum status publish_says;
} rig;

/* ---- the rig ---- */

static enum status publish(void *arg, struct publish_upload *u, struct errtext *err)
{
    crypto_generichash_state h;
    uint8_t id[32];
    (void)arg;
    if (rig.publish_says)
        return err_set(err, rig.publish_says, "no room for it");
    crypto_generichash_init(&h, NULL, 0, 32);
    crypto_generichash_update(&h, (const uint8_t *)u->config_json, u->config_bytes);
    crypto_generichash_update(&h, (const uint8_t *)u->tensors, u->tensor_bytes);
    crypto_generichash_final(&h, id, 32);
    pthread_mutex_lock(&rig.lock);
    rig.published++;
    memcpy(rig.published_id, id, 32);
    pthread_mutex_unlock(&rig.lock);
    if (u->id)
        memcpy(u->id, id, 32);
    return STATUS_OK;
}

static void put_datanet(void)
{
    char digest[67] = "0x";
    uint8_t d[32];
    struct errtext err = ERRTEXT_INIT;
    crypto_generichash(d, 32, (const uint8_t *)text, strlen(text), NULL, 0);
    hex_encode(digest + 2, d, 32);
    json_t *list = json_pack("{s:s, s:i, s:[{s:i, s:s, s:s, s:I, s:s}]}", "name", "net", "version",
                             1, "documents", "docId", 0, "owner", OWNER, "licence", "CC0-1.0",
                             "bytes", (json_int_t)strlen(text), "digest", digest);
    const struct datanet_list in = {.datanet = list, .publisher = "anna"};
    if (datanet_store_put_list(rig.datanets, &in, rig.root, &err) ||
        datanet_store_put_text(rig.datanets, rig.root, d, text, strlen(text), &err))
        fail_msg("%s", err.text);
    json_decref(list);
}

static struct factory_options standard(void)
{
    return (struct factory_options){.dir = rig.train,
                                    .jobs_max = 6,
                                    .account_max = 5,
                                    .running_max = 2,
                                    .ended_max = 3,
                                    .learners_max = 2,
                                    .works_max = 3,
                                    .tokens = 64,
                                    .rank_max = 8,
                                    .bytes_max = 64u << 20,
                                    .checkpoint_s = 0,
                                    .version = "test"};
}

static void open_factory(const struct factory_options *opt)
{
    struct errtext err = ERRTEXT_INIT;
    const struct factory_deps deps = {.base = {rig.model, rig.backend, rig.resident},
                                      .datanets = rig.datanets,
                                      .catalog = rig.catalog,
                                      .publish = publish};
    if (factory_create(&rig.factory, opt, &deps, &err) || factory_start(rig.factory, &err))
        fail_msg("%s", err.text);
}

static void close_factory(void)
{
    factory_destroy(rig.factory);
    rig.factory = NULL;
}

static int setup(void **state)
{
    struct errtext err = ERRTEXT_INIT;
    const struct backend_options bo = {.name = "cpu", .thread_count = 2, .deterministic = true};
    const struct model_options mo = {.dtype = DTYPE_CHOICE_F32, .id_cache_dir = ""};
    char store[96];
    (void)state;
    snprintf(rig.dir, sizeof(rig.dir), "/tmp/rs-factory-XXXXXX");
    assert_non_null(mkdtemp(rig.dir));
    snprintf(rig.train, sizeof(rig.train), "%s/train", rig.dir);
    snprintf(store, sizeof(store), "%s/datanets", rig.dir);
    pthread_mutex_init(&rig.lock, NULL);
    pthread_cond_init(&rig.changed, NULL);
    rig.catalog = catalog_create(16);
    rig.publish_says = STATUS_OK;
    rig.published = rig.works = 0;
    if (backend_create(&rig.backend, &bo, &err) || model_load(&rig.model, MODEL, &mo, &err) ||
        resident_create(&rig.resident, rig.model, rig.backend, NULL, &err) ||
        datanet_store_open(&rig.datanets, store, 1u << 20, &err))
        fail_msg("%s", err.text);
    put_datanet();
    return 0;
}

static int teardown(void **state)
{
    char command[96];
    (void)state;
    close_factory();
    datanet_store_close(rig.datanets);
    catalog_destroy(rig.catalog);
    resident_destroy(rig.resident);
    model_free(rig.model);
    backend_destroy(rig.backend);
    snprintf(command, sizeof(command), "rm -rf %s", rig.dir);
    return system(command);
}

static struct factory_spec spec_of(uint64_t seed, uint32_t epochs)
{
    struct factory_spec s = {
        .owner = "anna",
        .name = "poet",
        .peft_config = config,
        .peft_config_bytes = strlen(config),
        .train = {.optim = {.lr = 0.01, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .clip = 1},
                  .epochs = epochs,
                  .batch = 2,
                  .seed = seed,
                  .shuffle = true},
        .warmup_percent = 10,
        .price = "7",
        .note = "{}",
        .note_bytes = 2};
    memcpy(s.document_root, rig.root, 32);
    return s;
}

static void submit(uint64_t seed, uint32_t epochs, char id[FACTORY_ID_BYTES])
{
    struct errtext err = ERRTEXT_INIT;
    const struct factory_spec s = spec_of(seed, epochs);
    if (factory_submit(rig.factory, &s, id, &err))
        fail_msg("%s", err.text);
}

static enum status refused(const struct factory_spec *s, const char *part)
{
    struct errtext err = ERRTEXT_INIT;
    char id[FACTORY_ID_BYTES];
    enum status st = factory_submit(rig.factory, s, id, &err);
    if (!strstr(err.text, part))
        fail_msg("'%s' says nothing of '%s'", err.text, part);
    return st;
}

static struct factory_job await(const char *id, enum factory_status s, uint32_t done)
{
    struct factory_job j;
    for (int i = 0; i < 3000; i++) {
        assert_true(factory_get(rig.factory, id, &j));
        if (j.status == s && j.done >= done)
            return j;
        clock_sleep_ms(10);
    }
    fail_msg("%s is %s after %u steps, loss %g: %s", id, factory_status_name(j.status), j.done,
             (double)j.loss, j.error);
    return j;
}

/* The adapter that a job ends with when it is alone and nobody disturbs it. */
static void undisturbed(uint64_t seed, uint32_t epochs, uint8_t adapter[32])
{
    struct factory_options opt = standard();
    char id[FACTORY_ID_BYTES];
    opt.tokens = 48;
    open_factory(&opt);
    submit(seed, epochs, id);
    memcpy(adapter, await(id, FACTORY_SUCCEEDED, 0).adapter_id, 32);
    close_factory();
}

/* ---- jobs ---- */

static void test_job(void **state)
{
    struct factory_options opt = standard();
    struct factory_event event[64];
    struct errtext err = ERRTEXT_INIT;
    struct buf note;
    char id[FACTORY_ID_BYTES], next[FACTORY_ID_BYTES], path[192];
    uint32_t n, metrics = 0;
    (void)state;
    opt.ended_max = 1;
    open_factory(&opt);
    submit(1, 4, id);
    struct factory_job j = await(id, FACTORY_SUCCEEDED, 0);
    assert_true(j.rows == 6 && j.steps == 12 && j.done == 12 && j.has_adapter);
    assert_true(j.trained_tokens == j.tokens_all && j.started_ms >= j.created_ms);
    assert_memory_equal(j.adapter_id, rig.published_id, 32);
    assert_int_equal(factory_events(rig.factory, id, 0, event, 64, &n, &err), STATUS_OK);
    assert_int_equal(n, j.events);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(event[i].seq, i);
        metrics += event[i].type == FACTORY_EVENT_METRICS && event[i].loss > 0;
    }
    assert_int_equal(metrics, 12);
    assert_string_equal(event[0].text, "job accepted: it waits");
    buf_init(&note, 64);
    assert_int_equal(factory_note(rig.factory, id, &note, &err), STATUS_OK);
    assert_string_equal(note.data, "{}");
    buf_fini(&note);
    snprintf(path, sizeof(path), "%s/jobs/%s/train.json", rig.train, id);
    assert_true(file_exists(path));
    assert_int_equal(factory_cancel(rig.factory, id, NULL), STATUS_CONFLICT);
    for (uint64_t seed = 2; seed < 5; seed++) { /* ended_max is 1: the oldest gives its place */
        submit(seed, 1, next);
        await(next, FACTORY_SUCCEEDED, 0);
    }
    assert_false(file_exists(path) || factory_get(rig.factory, id, &j));
}

/* Beside another, paused, stopped and taken up again, by passes of another size. */
static void test_disturbed(void **state)
{
    struct factory_options opt = standard();
    char one[FACTORY_ID_BYTES], two[FACTORY_ID_BYTES];
    uint8_t alone[2][32];
    (void)state;
    undisturbed(3, 30, alone[0]);
    undisturbed(4, 40, alone[1]);
    assert_memory_not_equal(alone[0], alone[1], 32);
    open_factory(&opt);
    submit(3, 30, one);
    submit(4, 40, two);
    await(two, FACTORY_RUNNING, 3);
    assert_int_equal(factory_pause(rig.factory, one, NULL), STATUS_OK);
    await(one, FACTORY_PAUSED, 0);
    close_factory();
    open_factory(&opt); /* `two` goes on, `one` stays paused */
    await(two, FACTORY_RUNNING, 4);
    assert_int_equal(await(one, FACTORY_PAUSED, 0).status, FACTORY_PAUSED);
    assert_int_equal(factory_resume(rig.factory, one, NULL), STATUS_OK);
    struct factory_job a = await(one, FACTORY_SUCCEEDED, 90),
                       b = await(two, FACTORY_SUCCEEDED, 120);
    assert_memory_equal(a.adapter_id, alone[0], 32);
    assert_memory_equal(b.adapter_id, alone[1], 32);
}

static void test_bounds(void **state)
{
    struct factory_options opt = standard();
    struct factory_job list[8];
    char id[8][FACTORY_ID_BYTES];
    bool more;
    (void)state;
    open_factory(&opt);
    for (uint32_t i = 0; i < 5; i++)
        submit(10 + i, 2000, id[i]);
    struct factory_spec s = spec_of(9, 1);
    assert_int_equal(refused(&s, "of this key"), STATUS_FULL);
    s.owner = "bert";
    assert_int_equal(factory_submit(rig.factory, &s, id[5], NULL), STATUS_OK);
    assert_int_equal(refused(&s, "6 training jobs"), STATUS_FULL);
    await(id[1], FACTORY_RUNNING, 1);
    assert_int_equal(await(id[2], FACTORY_QUEUED, 0).done, 0);
    assert_int_equal(factory_list(rig.factory, "anna", NULL, list, 3, &more), 3);
    assert_true(more && !strcmp(list[0].id, id[4]));
    assert_int_equal(factory_list(rig.factory, "anna", list[2].id, list, 3, &more), 2);
    assert_true(!more && !strcmp(list[1].id, id[0]));
    for (uint32_t i = 0; i < 5; i++) {
        struct factory_job j;
        assert_int_equal(factory_cancel(rig.factory, id[i], NULL), STATUS_OK);
        assert_true(factory_get(rig.factory, id[i], &j) && j.status == FACTORY_CANCELLED);
        assert_int_equal(factory_pause(rig.factory, id[i], NULL), STATUS_CONFLICT);
        assert_int_equal(factory_cancel(rig.factory, id[i], NULL), STATUS_OK);
    }
    await(id[5], FACTORY_SUCCEEDED, 0);
    assert_int_equal(rig.published, 1);
    struct factory_stats st;
    factory_get_stats(rig.factory, &st);
    assert_true(st.cancelled == 5 && st.succeeded == 1 && !st.running && st.tokens > 0);
}

static void test_refused(void **state)
{
    struct factory_options opt = standard();
    struct errtext err = ERRTEXT_INIT;
    char id[FACTORY_ID_BYTES], path[192];
    (void)state;
    opt.account_tokens_max = 1000;
    open_factory(&opt);
    struct factory_spec s = spec_of(1, 1);
    s.train.batch = 0;
    assert_int_equal(refused(&s, "batch"), STATUS_INVALID);
    s = spec_of(1, 1);
    s.document_root[3] ^= 1;
    assert_int_equal(refused(&s, "training_file"), STATUS_NOT_FOUND);
    s = spec_of(1, 1);
    s.training = "{}";
    s.training_bytes = 2;
    assert_int_equal(refused(&s, "training.json"), STATUS_INVALID);
    s = spec_of(1, 1);
    s.name = "a b";
    assert_int_equal(refused(&s, "name"), STATUS_INVALID);
    s = spec_of(1, 40);
    assert_int_equal(refused(&s, "train_account_tokens_max"), STATUS_FULL);
    s = spec_of(1, 1);
    s.price = "1.5";
    assert_int_equal(refused(&s, "price"), STATUS_INVALID);
    s = spec_of(1, 1);
    s.peft_config =
        "{\"peft_type\":\"LORA\",\"r\":9,\"lora_alpha\":6,\"target_modules\":\"all-linear\"}";
    s.peft_config_bytes = strlen(s.peft_config);
    assert_int_equal(refused(&s, "rank"), STATUS_INVALID);
    close_factory();
    opt.tokens = 8;
    open_factory(&opt);
    s = spec_of(1, 1);
    assert_int_equal(refused(&s, "at most 8"), STATUS_INVALID);
    close_factory();
    opt = standard();
    rig.publish_says = STATUS_FULL;
    open_factory(&opt);
    submit(1, 1, id);
    struct factory_job j = await(id, FACTORY_FAILED, 3);
    assert_string_equal(j.error, "trained, and not published: no room for it");
    snprintf(path, sizeof(path), "%s/jobs/%s/adapter_model.safetensors", rig.train, id);
    assert_true(file_exists(path)); /* what was trained is not lost */
    close_factory();
    opt.bytes_max = 1000;
    const struct factory_deps deps = {.base = {rig.model, rig.backend, rig.resident}};
    assert_int_equal(factory_create(&rig.factory, &opt, &deps, &err), STATUS_TOO_LARGE);
    assert_non_null(strstr(err.text, "train_bytes_max"));
}

/* A rate that diverges: the job fails, the others go on. */
static void test_diverges(void **state)
{
    struct factory_options opt = standard();
    char bad[FACTORY_ID_BYTES], good[FACTORY_ID_BYTES];
    struct factory_spec s = spec_of(1, 40);
    (void)state;
    open_factory(&opt);
    s.train.optim.lr = 3e38;
    s.train.optim.clip = 0;
    assert_int_equal(factory_submit(rig.factory, &s, bad, NULL), STATUS_OK);
    submit(2, 10, good);
    assert_non_null(strstr(await(bad, FACTORY_FAILED, 0).error, "expected numbers"));
    await(good, FACTORY_SUCCEEDED, 0);
}

/* A damaged or strange folder is left alone, and said; the rest goes on. */
static void test_damaged(void **state)
{
    struct factory_options opt = standard();
    char id[FACTORY_ID_BYTES], path[192];
    struct factory_job j;
    (void)state;
    open_factory(&opt);
    submit(1, 2000, id);
    await(id, FACTORY_RUNNING, 2);
    close_factory();
    snprintf(path, sizeof(path), "%s/jobs/%s/train.state", rig.train, id);
    assert_int_equal(file_write_atomic(path, "RSTRAIN1", 8, 0600, NULL), STATUS_OK);
    open_factory(&opt);
    j = await(id, FACTORY_FAILED, 0);
    assert_non_null(strstr(j.error, "no state of training"));
    close_factory();
    snprintf(path, sizeof(path), "%s/jobs/%s/job.json", rig.train, id);
    assert_int_equal(file_write_atomic(path, "{\"id\":1}", 8, 0600, NULL), STATUS_OK);
    open_factory(&opt);
    assert_false(factory_get(rig.factory, id, &j));
    assert_true(file_exists(path));
}

/* ---- learners ---- */

struct waited {
    struct factory_work work;
    bool done;
};

static void on_done(struct factory_work *w, void *arg)
{
    (void)arg;
    pthread_mutex_lock(&rig.lock);
    ((struct waited *)w)->done = true;
    rig.works++;
    pthread_cond_signal(&rig.changed);
    pthread_mutex_unlock(&rig.lock);
}

static enum status do_work(struct waited *w)
{
    struct errtext err = ERRTEXT_INIT;
    w->work.on_done = on_done;
    w->done = false;
    enum status st = factory_work(rig.factory, &w->work, &err);
    if (st)
        return st;
    pthread_mutex_lock(&rig.lock);
    while (!w->done)
        pthread_cond_wait(&rig.changed, &rig.lock);
    pthread_mutex_unlock(&rig.lock);
    return w->work.status;
}

enum { TOKENS = 9 };
struct sequences {
    int32_t ids[2][TOKENS], target[2][TOKENS];
    float weight[2][TOKENS], logprob[2][TOKENS];
    struct factory_seq seq[2];
};

static void fill_sequences(struct sequences *s)
{
    for (uint32_t k = 0; k < 2; k++) {
        for (uint32_t i = 0; i < TOKENS; i++) {
            s->ids[k][i] = (int32_t)(7 + 31 * i + 11 * k) % 256;
            s->target[k][i] = i + 1 < TOKENS ? (int32_t)(7 + 31 * (i + 1) + 11 * k) % 256 : -1;
            s->weight[k][i] = i + 1 < TOKENS ? 1.0f / 16 : 0;
        }
        s->seq[k] =
            (struct factory_seq){s->ids[k], s->target[k], s->weight[k], s->logprob[k], TOKENS};
    }
}

static float loss_of(const struct sequences *s)
{
    float sum = 0;
    for (uint32_t k = 0; k < 2; k++) {
        for (uint32_t i = 0; i < TOKENS; i++)
            sum -= s->logprob[k][i];
    }
    return sum;
}

/* The weight is what it was, but it is known only when the log-probabilities are. */
static void weigh(void *arg, uint32_t seq, const float *logprob, float *weight)
{
    (void)arg;
    (void)seq;
    for (uint32_t i = 0; i < TOKENS; i++)
        weight[i] = logprob[i] < 0 ? 1.0f / 16 : 0;
}

static uint64_t learner(void)
{
    const struct factory_learner_spec spec = {"anna", config, strlen(config), 5};
    struct errtext err = ERRTEXT_INIT;
    uint64_t id = 0;
    if (factory_learner_open(rig.factory, &spec, &id, &err))
        fail_msg("%s", err.text);
    return id;
}

static float train_learner(uint64_t id, struct sequences *s, uint32_t steps, factory_weigh *fn)
{
    const struct optim_options o = {.lr = 0.01, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-12};
    for (uint32_t i = 0; i < steps; i++) {
        struct waited pass = {
            .work = {.kind = FACTORY_PASS, .learner = id, .seq = s->seq, .n_seq = 2, .weigh = fn}};
        struct waited step = {.work = {.kind = FACTORY_OPTIM, .learner = id, .optim = o}};
        assert_int_equal(do_work(&pass), STATUS_OK);
        assert_int_equal(do_work(&step), STATUS_OK);
        assert_true(step.work.norm > 0);
    }
    struct waited look = {
        .work = {
            .kind = FACTORY_PASS, .learner = id, .seq = s->seq, .n_seq = 2, .forward_only = true}};
    assert_int_equal(do_work(&look), STATUS_OK);
    return loss_of(s);
}

static void test_learners(void **state)
{
    struct factory_options opt = standard();
    struct sequences s;
    char path[128], job[FACTORY_ID_BYTES];
    uint64_t extra;
    const struct factory_learner_spec third = {"anna", config, strlen(config), 5};
    (void)state;
    open_factory(&opt);
    submit(1, 2000, job); /* trains beside them all the while */
    uint64_t one = learner(), two = learner();
    assert_int_equal(factory_learner_open(rig.factory, &third, &extra, NULL), STATUS_FULL);
    fill_sequences(&s);
    float first = train_learner(one, &s, 0, NULL), later = train_learner(one, &s, 6, NULL);
    assert_true(first > 0 && later < 0.9f * first);
    assert_true(train_learner(two, &s, 6, weigh) == later); /* the same weights, the same bits */
    snprintf(path, sizeof(path), "%s/learner", rig.dir);
    struct waited save = {.work = {.kind = FACTORY_SAVE, .learner = one, .path = path}};
    assert_int_equal(do_work(&save), STATUS_OK);
    float on = train_learner(one, &s, 2, NULL);
    struct waited load = {
        .work = {.kind = FACTORY_LOAD, .learner = two, .path = path, .with_optim = true}};
    assert_int_equal(do_work(&load), STATUS_OK);
    fill_sequences(&s);
    assert_true(train_learner(two, &s, 2, NULL) == on);
    load.work.with_optim = false;
    assert_int_equal(do_work(&load), STATUS_OK);
    fill_sequences(&s);
    assert_true(train_learner(two, &s, 0, NULL) == later);
    assert_true(train_learner(two, &s, 2, NULL) != on); /* moments are new */
    struct waited out = {.work = {.kind = FACTORY_PUBLISH, .learner = one, .name = "mine"}};
    assert_int_equal(do_work(&out), STATUS_OK);
    assert_true(rig.published == 1 && !memcmp(out.work.adapter_id, rig.published_id, 32));
    factory_learner_close(rig.factory, one);
    assert_int_equal(do_work(&out), STATUS_NOT_FOUND);
    assert_int_equal(factory_learner_open(rig.factory, &third, &extra, NULL), STATUS_OK);
    assert_int_equal(await(job, FACTORY_RUNNING, 3).status, FACTORY_RUNNING);
}

static void test_learner_bounds(void **state)
{
    struct factory_options opt = standard();
    struct sequences s;
    struct waited w[5];
    struct errtext err = ERRTEXT_INIT;
    (void)state;
    open_factory(&opt);
    uint64_t id = learner();
    fill_sequences(&s);
    struct waited bad = {.work = {.kind = FACTORY_PASS, .learner = id, .seq = s.seq, .n_seq = 2}};
    s.ids[1][4] = 5000;
    assert_int_equal(factory_work(rig.factory, &bad.work, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "sequence 1, token 4"));
    s.ids[1][4] = 1;
    s.weight[0][0] = NAN;
    assert_int_equal(do_work(&bad), STATUS_INVALID);
    s.weight[0][0] = 0;
    s.seq[1].n = 65;
    assert_int_equal(do_work(&bad), STATUS_INVALID);
    s.seq[1].n = TOKENS;
    uint32_t taken = 0, full = 0;
    for (uint32_t i = 0; i < 5; i++) {
        w[i] = bad;
        w[i].work.on_done = on_done;
        enum status st = factory_work(rig.factory, &w[i].work, NULL);
        taken += st == STATUS_OK;
        full += st == STATUS_FULL;
    }
    assert_true(taken >= 3 && taken + full == 5);
    factory_stop(rig.factory); /* whoever waits is told */
    assert_int_equal(rig.works, taken);
    assert_int_equal(factory_work(rig.factory, &bad.work, NULL), STATUS_CANCELLED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_job, setup, teardown),
        cmocka_unit_test_setup_teardown(test_disturbed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bounds, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_diverges, setup, teardown),
        cmocka_unit_test_setup_teardown(test_damaged, setup, teardown),
        cmocka_unit_test_setup_teardown(test_learners, setup, teardown),
        cmocka_unit_test_setup_teardown(test_learner_bounds, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
