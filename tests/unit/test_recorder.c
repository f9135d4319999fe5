/* The recorder with a stand-in for the engine's two calls (score rows are answered by a thread
 * here, by formula): request -> record -> receipt -> score -> attribution, and what is left of that
 * when processes die, disks fill and budgets end. The spool is read back as a stranger would read
 * it.
 * lint: waive file - one rig and all the tests that need it. */
#include "server/record/keylog.h"
#include "server/record/recorder.h"
#include "server/spool/spool.h"
#include "tests/unit/book_fixture.h"
#include "tests/unit/influence_fixture.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

/* ---- the engine's stand-in ---- */

struct engine {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct score_job *queue[4096];
    uint32_t head, used;
    bool stopping, stuck;
    enum status refuse; /* engine_submit_score's answer */
    uint64_t rows;
};

void engine_get_id(const struct engine *e, uint8_t id[32])
{
    memset(id, 0xee, 32);
}

/* Nothing is indexed here. */
enum status engine_basis_create(struct engine *e, struct engine_basis **out, const uint16_t *w,
                                const float *bias, struct errtext *err)
{
    *out = NULL;
    return STATUS_UNSUPPORTED;
}

enum status engine_submit_score(struct engine *e, struct score_job *j)
{
    enum status st = e->refuse;
    pthread_mutex_lock(&e->lock);
    if (!st && (e->stopping || e->used == ARRAY_COUNT(e->queue)))
        st = STATUS_FULL;
    if (!st) {
        e->queue[(e->head + e->used++) % ARRAY_COUNT(e->queue)] = j;
        pthread_cond_signal(&e->wake);
    }
    pthread_mutex_unlock(&e->lock);
    return st;
}

/* Base: -4 nats a token; adapter with id byte b alone: -4 + b/4. */
static void *engine_main(void *arg)
{
    struct engine *e = arg;
    pthread_mutex_lock(&e->lock);
    for (;;) {
        while ((e->used == 0 || e->stuck) && !e->stopping)
            pthread_cond_wait(&e->wake, &e->lock);
        if (e->used == 0)
            break;
        struct score_job *j = e->queue[e->head];
        e->head = (e->head + 1) % ARRAY_COUNT(e->queue);
        e->used--;
        e->rows++;
        j->status = e->stopping ? STATUS_CANCELLED : STATUS_OK;
        pthread_mutex_unlock(&e->lock);
        for (uint32_t i = 0; i < j->n_ids - j->n_prompt; i++)
            j->logprob[i] = -4 + (j->comp.n ? (float)j->comp.part[0].adapter[0] / 4 : 0);
        j->on_done(j, j->on_done_arg);
        pthread_mutex_lock(&e->lock);
    }
    pthread_mutex_unlock(&e->lock);
    return NULL;
}

static enum status begin_refusing; /* what the next engine answers from its beginning */

static void engine_begin(struct engine *e)
{
    *e = (struct engine){.refuse = begin_refusing};
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->wake, NULL);
    CHECK(pthread_create(&e->thread, NULL, engine_main, e) == 0);
}

static void engine_set_stuck(struct engine *e, bool stuck)
{
    pthread_mutex_lock(&e->lock);
    e->stuck = stuck;
    pthread_cond_broadcast(&e->wake);
    pthread_mutex_unlock(&e->lock);
}

/* As engine_stop: whoever still asks is told FULL. */
static void engine_end(struct engine *e)
{
    pthread_mutex_lock(&e->lock);
    e->stopping = true;
    pthread_cond_broadcast(&e->wake);
    pthread_mutex_unlock(&e->lock);
    pthread_join(e->thread, NULL);
}

static void engine_free(struct engine *e)
{
    pthread_cond_destroy(&e->wake);
    pthread_mutex_destroy(&e->lock);
}

/* ---- a world ---- */

struct rig {
    struct engine engine;
    struct model model;
    struct catalog *catalog;
    struct adapter_entry *paid, *plain, *second; /* with a datanet; without; with */
    struct recorder *recorder;
    struct recorder_options opt;
    struct fake_chain chain;
    struct book *book;
};

static const struct recorder_options options = {.score_bytes_max = 4u << 20,
                                                .evidence_bytes_max = 4u << 20,
                                                .score_age_s_max = 3600,
                                                .score_stuck_s = 3600,
                                                .score_rate_ppb = 1000000000,
                                                .spool_bytes_max = 64u << 20,
                                                .group_max = 16};

static void add(struct rig *g, struct adapter_entry *e)
{
    struct adapter_entry *old;
    assert_int_equal(catalog_put(g->catalog, e, false, &old, NULL), STATUS_OK);
}

static void rig_create(struct rig *g)
{
    struct errtext err = ERRTEXT_INIT;
    struct recorder_deps deps = {
        .model = &g->model, .engine = &g->engine, .catalog = g->catalog, .book = g->book};
    g->opt.data_dir = test_dir;
    engine_begin(&g->engine);
    if (recorder_create(&g->recorder, &g->opt, &deps, &err))
        fail_msg("%s", err.text);
}

/* What the Registry says of the three: as make_terms. */
static void book_begin(struct rig *g)
{
    struct fake_chain *c = &g->chain;
    struct datanet_owner list[3];
    uint8_t root[32];
    struct errtext err = ERRTEXT_INIT;
    struct book_options o = fake_options(c, test_dir);
    struct fake_entry paid = {.active_at = 1, .version = 1, .price_in = 1000, .price_out = 2000};
    pthread_mutex_init(&c->lock, NULL);
    fake_head(c, 10, clock_wall_ms() / 1000);
    fake_owners(c, list);
    struct fake_adapter *a[3] = {fake_add(c, 4, paid), fake_add(c, 5, paid), fake_add(c, 8, paid)};
    a[1]->entry[0].version = 0;
    memset(a[1]->datanet_id, 0, 32);
    if (book_open(&g->book, &o, &err) || book_put_owners(g->book, list, 3, root, &err))
        fail_msg("%s", err.text);
    for (int i = 0; i < 3; i++)
        book_want(g->book, a[i]->id);
    assert_true(fake_wait(g->book, 10));
}

static void rig_open(struct rig *g, const struct recorder_options *opt)
{
    *g = (struct rig){.opt = *opt};
    memset(g->model.id, 0x33, 32);
    g->catalog = catalog_create(16);
    g->paid = make_adapter("paid", 4, true);
    g->plain = make_adapter("plain", 5, false);
    g->second = make_adapter("second", 8, true);
    add(g, g->paid);
    add(g, g->plain);
    add(g, g->second);
    book_begin(g);
    rig_create(g);
}

static void rig_stop(struct rig *g)
{
    engine_end(&g->engine);
    recorder_stop(g->recorder, 1000);
    recorder_destroy(g->recorder);
    engine_free(&g->engine);
}

static void rig_close(struct rig *g)
{
    rig_stop(g);
    catalog_release(g->paid);
    catalog_release(g->plain);
    catalog_release(g->second);
    catalog_destroy(g->catalog);
    book_close(g->book);
}

/* Admit and hand over. */
static enum status submit(struct rig *g, struct request *r, struct errtext *err)
{
    enum status st = recorder_admit(g->recorder, r, err);
    if (!st)
        recorder_on_finish(r, g->recorder);
    return st;
}

static void wait_done(struct request *r)
{
    for (int i = 0; i < 20000 && !atomic_load_explicit(&r->done, memory_order_acquire); i++)
        usleep(1000);
    assert_true(atomic_load(&r->done));
}

static void must_record(struct rig *g, struct request *r)
{
    struct errtext err = ERRTEXT_INIT;
    if (submit(g, r, &err))
        fail_msg("%s", err.text);
    wait_done(r);
    if (!r->receipt.recorded)
        fail_msg("not recorded: %s", r->error.text);
}

static struct recorder_stats stats_of(struct rig *g)
{
    struct recorder_stats st;
    recorder_get_stats(g->recorder, &st);
    return st;
}

static void wait_attributions(struct rig *g, uint64_t count)
{
    for (int i = 0; i < 20000 && stats_of(g).attributions < count; i++)
        usleep(1000);
    assert_int_equal(stats_of(g).attributions, count);
}

/* Nothing waits to be scored. */
static void wait_settled(struct rig *g)
{
    for (int i = 0; i < 20000 && stats_of(g).job_count > 0; i++)
        usleep(1000);
    assert_int_equal(stats_of(g).job_count, 0);
}

/* ---- reading the spool back ---- */

#define LEDGER_MAX 20000

struct ledger { /* what a stranger finds */
    uint64_t count, inferences, attributions, lost;
    uint8_t type[LEDGER_MAX], digest[LEDGER_MAX][32];
    uint64_t inf_seq[LEDGER_MAX];
    bool needs[LEDGER_MAX]; /* a fee, and an adapter with a datanet or a mix */
    uint32_t attributed[LEDGER_MAX];
};

static bool needs_score(const struct record_inference *inf)
{
    struct tail_set set;
    assert_int_equal(tail_set_decode(&set, inf->set.data, inf->set.len, NULL), STATUS_OK);
    return inf->fee > 0 && inf->status != RECORD_STATUS_FAILED &&
           (set.count > 1 || (set.count == 1 && set.adapter[0].id[0] != 5));
}

static void take_record(struct ledger *l, const struct lane *lane, uint64_t seq, struct buf *body)
{
    union record rec;
    struct errtext err = ERRTEXT_INIT;
    uint8_t tag[ENTRY_TAG_BYTES];
    size_t len = body->len - ENTRY_TAG_BYTES;
    assert_int_equal(seq, l->count + 1);
    assert_true(seq < LEDGER_MAX);
    entry_tag(tag, lane->transport_key, body->data, len);
    assert_memory_equal(tag, body->data + len, ENTRY_TAG_BYTES);
    if (canon_decode(&rec, (const uint8_t *)body->data, len, &err) ||
        canon_verify(&rec, l->digest[seq], lane->domain, lane->secp, lane->key.address, &err))
        fail_msg("record %llu: %s", (unsigned long long)seq, err.text);
    assert_int_equal(rec.prefix.seq, seq);
    l->count++;
    l->type[seq] = rec.prefix.type;
    if (rec.prefix.type == RECORD_INFERENCE) {
        l->inferences++;
        l->needs[seq] = needs_score(&rec.inference);
        return;
    }
    assert_int_equal(rec.prefix.type, RECORD_ATTRIBUTION);
    uint64_t inf = rec.attribution.inf_seq;
    assert_true(inf < seq && l->type[inf] == RECORD_INFERENCE);
    assert_memory_equal(rec.attribution.inf_digest, l->digest[inf], 32);
    assert_int_equal(l->attributed[inf]++, 0); /* one at most */
    l->attributions++;
    l->lost += rec.attribution.outcome == RECORD_OUTCOME_INPUTS_LOST;
}

/* After the recorder is closed. */
static struct ledger *read_ledger(uint64_t chain_id)
{
    struct ledger *l = mem_alloc(sizeof(*l));
    struct lane lane;
    struct lane_options lane_opt = {.data_dir = test_dir, .chain_id = chain_id};
    struct spool *s;
    struct spool_cursor c;
    struct buf body;
    uint64_t seq;
    char dir[PATH_MAX];
    assert_int_equal(lane_open(&lane, &lane_opt, NULL), STATUS_OK);
    snprintf(dir, sizeof(dir), "%s/spool", lane.dir);
    struct spool_options opt = {.dir = dir, .segment_bytes_max = 16u << 20, .bytes_max = 1u << 30};
    assert_int_equal(spool_open(&s, &opt, NULL), STATUS_OK);
    buf_init(&body, SPOOL_BODY_BYTES_MAX);
    assert_int_equal(spool_cursor_open(&c, s, 1, NULL), STATUS_OK);
    while (spool_cursor_next(&c, &seq, &body, NULL) == STATUS_OK)
        take_record(l, &lane, seq, &body);
    spool_cursor_close(&c);
    buf_fini(&body);
    spool_close(s);
    lane_close(&lane);
    return l;
}

static void expect_all_scored(const struct ledger *l)
{
    for (uint64_t i = 1; i <= l->count; i++) {
        if (l->type[i] == RECORD_INFERENCE)
            assert_int_equal(l->attributed[i], l->needs[i]);
    }
}

/* ---- tests ---- */

static const uint8_t account[20] = {5}, foreign[20] = {6};
static const struct recorder_viewer owner = {.fair_key = 77}, stranger = {.fair_key = 78},
                                    renewed = {.fair_key = 79, .account = account},
                                    thief = {.fair_key = 80, .account = foreign},
                                    admin = {.fair_key = 78, .admin = true};

static bool has(const struct buf *b, const char *text)
{
    return strstr(b->data, text) != NULL;
}

static void show(struct rig *g, const struct request *r, struct buf *out)
{
    struct errtext err = ERRTEXT_INIT;
    buf_clear(out);
    if (recorder_attribution_json(g->recorder, r->id, &owner, out, &err))
        fail_msg("%s", err.text);
}

static void test_life_of_a_request(void **state)
{
    struct rig g;
    struct buf out;
    rig_open(&g, &options);
    struct request *r = make_request(&g.paid, 1, 2, 3), *base = make_request(NULL, 0, 1, 3),
                   *plain = make_request(&g.plain, 1, 1, 3);
    buf_init(&out, 1 << 20);
    must_record(&g, r);
    must_record(&g, base);
    must_record(&g, plain);
    assert_int_equal(r->receipt.seq, 1);
    assert_int_equal((uint64_t)r->receipt.fee, (5 * 1000 + 6 * 2000) / 1000);
    wait_attributions(&g, 1);
    recorder_residual_json(g.recorder, r, &out);
    assert_true(has(&out, "\"recorded\":true,\"lane\":1,\"seq\":1,\"bound\":false"));
    buf_clear(&out);
    assert_int_equal(recorder_receipt_json(g.recorder, r->id, &owner, &out, NULL), STATUS_OK);
    assert_true(has(&out, "\"tokens_out\":6") && has(&out, "\"salt\":\"0x"));
    show(&g, r, &out);
    assert_true(has(&out, "\"state\":\"recorded\",\"signed\":true"));
    assert_true(has(&out, "\"gain_ppb\":1000000000"));
    /* 3 nats gained by each of 6 tokens */
    assert_true(has(&out, "\"gain_nats\":18.0000"));
    assert_true(has(&out, "\"contributors\":[]")); /* no index: the registered split pays */
    assert_true(has(&out, "\"index\":{\"state\":\"none\",\"reason\":\""));
    assert_true(has(&out, "\"base_logprob\":"));
    /* another key sees nothing, an admin everything */
    assert_int_equal(recorder_receipt_json(g.recorder, r->id, &stranger, &out, NULL),
                     STATUS_NOT_FOUND);
    assert_int_equal(recorder_inputs_json(g.recorder, r->id, &stranger, &out, NULL),
                     STATUS_NOT_FOUND);
    buf_clear(&out);
    assert_int_equal(recorder_inputs_json(g.recorder, r->id, &owner, &out, NULL), STATUS_OK);
    assert_true(has(&out, "\"salt\":\"0x") && has(&out, "\"adapters\":[{\"root\":null}]"));
    assert_int_equal(recorder_receipt_json(g.recorder, r->id, &admin, &out, NULL), STATUS_OK);
    for (int i = 0; i < 5000; i++) { /* the adapter without a datanet gets a preview */
        show(&g, plain, &out);
        if (has(&out, "preview"))
            break;
        usleep(1000);
    }
    assert_true(has(&out, "\"state\":\"preview\",\"signed\":false"));
    show(&g, base, &out);
    assert_true(has(&out, "\"state\":\"not_scored\""));
    assert_int_equal(stats_of(&g).inferences, 3);
    assert_int_equal(stats_of(&g).job_count, 0);
    rig_close(&g);
    struct ledger *l = read_ledger(0);
    assert_int_equal(l->inferences, 3);
    assert_int_equal(l->attributions, 1);
    assert_memory_equal(l->digest[1], r->receipt.digest, 32);
    expect_all_scored(l);
    mem_free(l);
    buf_fini(&out);
    request_release(r);
    request_release(base);
    request_release(plain);
}

/* An account's new key sees what its old one was given, also after a restart; another account's
 * does not. */
static void test_rotated_key(void **state)
{
    struct rig g;
    struct buf out;
    rig_open(&g, &options);
    struct request *r = make_request(&g.paid, 1, 1, 3), *plain = make_request(&g.paid, 1, 1, 3);
    memcpy(r->payer, account, 20);
    must_record(&g, r);
    must_record(&g, plain);
    buf_init(&out, 1 << 20);
    for (int round = 0; round < 2; round++) {
        assert_int_equal(recorder_receipt_json(g.recorder, r->id, &owner, &out, NULL), STATUS_OK);
        assert_int_equal(recorder_receipt_json(g.recorder, r->id, &renewed, &out, NULL), STATUS_OK);
        assert_int_equal(recorder_attribution_json(g.recorder, r->id, &renewed, &out, NULL),
                         STATUS_OK);
        assert_int_equal(recorder_receipt_json(g.recorder, r->id, &thief, &out, NULL),
                         STATUS_NOT_FOUND);
        assert_int_equal(recorder_receipt_json(g.recorder, plain->id, &renewed, &out, NULL),
                         STATUS_NOT_FOUND);
        rig_stop(&g);
        rig_create(&g);
    }
    buf_fini(&out);
    request_release(r);
    request_release(plain);
    rig_close(&g);
}

/* ---- Idempotency-Keys ---- */

struct keys_met {
    uint32_t count;
    struct keylog_entry entry[16];
};

static void meet_key(void *arg, const struct keylog_entry *e, uint64_t age_ms)
{
    struct keys_met *m = arg;
    assert_true(age_ms < 60000 && m->count < ARRAY_COUNT(m->entry));
    m->entry[m->count++] = *e;
}

/* A recorded answer's key is there after a kill; one whose record was not written is not. */
static void test_keys(void **state)
{
    struct rig g;
    struct keys_met met = {0};
    uint8_t id[32];
    int status;
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        rig_open(&g, &options);
        struct request *r = make_request(&g.plain, 1, 1, 3),
                       *free_one = make_request(NULL, 0, 1, 3);
        memset(r->id, 0x42, 32);
        r->is_once = true;
        memset(r->once_key, 1, 16);
        memset(r->once_body, 2, 16);
        must_record(&g, free_one);
        must_record(&g, r);
        kill(getpid(), SIGKILL);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
    memset(id, 0x42, 32);
    rig_open(&g, &options);
    recorder_visit_keys(g.recorder, meet_key, &met);
    assert_int_equal(met.count, 1);
    assert_memory_equal(met.entry[0].request_id, id, 32);
    assert_int_equal(met.entry[0].key[0], 1);
    assert_int_equal(met.entry[0].body[0], 2);
    assert_int_equal(met.entry[0].seq, 2);
    rig_stop(&g);
    /* a crash came between the two syncs: the key's number is another's */
    struct keylog *log;
    char dir[160];
    snprintf(dir, sizeof(dir), "%s/lanes/unbound-1/keys", test_dir);
    assert_int_equal(keylog_open(&log, dir, NULL), STATUS_OK);
    struct keylog_entry e = met.entry[0];
    e.request_id[0] ^= 1; /* recorded under 2: another request */
    assert_int_equal(keylog_append(log, &e, NULL), STATUS_OK);
    e.seq = 3; /* not there */
    assert_int_equal(keylog_append(log, &e, NULL), STATUS_OK);
    e = met.entry[0];
    e.wall_ms -= KEYLOG_AGE_MS; /* of yesterday */
    assert_int_equal(keylog_append(log, &e, NULL), STATUS_OK);
    assert_int_equal(keylog_sync(log, NULL), STATUS_OK);
    keylog_close(log);
    met.count = 0;
    rig_create(&g);
    recorder_visit_keys(g.recorder, meet_key, &met);
    assert_int_equal(met.count, 1);
    rig_close(&g);
}

/* A mix: each adapter alone is scored, by its own id. */
static void test_mix(void **state)
{
    struct rig g;
    struct buf out;
    rig_open(&g, &options);
    struct adapter_entry *two[2] = {g.paid, g.second};
    struct request *r = make_request(two, 2, 1, 4);
    buf_init(&out, 1 << 20);
    must_record(&g, r);
    wait_attributions(&g, 1);
    assert_int_equal(g.engine.rows, 3);
    show(&g, r, &out);
    assert_true(has(&out, "\"gain_ppb\":333333333")); /* 4/4 nat a token against 8/4 */
    assert_true(has(&out, "\"gain_ppb\":666666667"));
    buf_fini(&out);
    request_release(r);
    rig_close(&g);
}

/* No output and failed: no record. Failed after output: fee 0, nothing scored. Empty: TREASURY. */
static void test_odd_ends(void **state)
{
    struct rig g;
    rig_open(&g, &options);
    struct request *none = make_request(&g.paid, 1, 1, 0), *late = make_request(&g.paid, 1, 2, 3),
                   *empty = make_request(&g.paid, 1, 1, 0);
    atomic_store(&none->seq[0].finish, FINISH_ERROR);
    atomic_store(&late->seq[1].finish, FINISH_ERROR);
    assert_int_equal(submit(&g, none, NULL), STATUS_OK);
    wait_done(none);
    assert_false(none->receipt.recorded);
    must_record(&g, late);
    assert_int_equal(late->receipt.seq, 1);
    assert_int_equal((uint64_t)late->receipt.fee, 0);
    must_record(&g, empty);
    wait_attributions(&g, 1);
    request_release(none);
    request_release(late);
    request_release(empty);
    rig_close(&g);
    struct ledger *l = read_ledger(0);
    assert_int_equal(l->inferences, 2);
    expect_all_scored(l);
    mem_free(l);
}

static void test_admission(void **state)
{
    struct rig g;
    struct recorder_options opt = options;
    struct errtext err = ERRTEXT_INIT;
    uint64_t one = job_bytes_for(5, 4);
    opt.score_bytes_max = 3 * one;
    rig_open(&g, &opt);
    struct request *r[4], *plain = make_request(&g.plain, 1, 1, 4),
                          *big = make_request(&g.paid, 1, 1, 8000);
    for (int i = 0; i < 4; i++)
        r[i] = make_request(&g.paid, 1, 1, 4);
    for (int i = 0; i < 3; i++)
        assert_int_equal(recorder_admit(g.recorder, r[i], &err), STATUS_OK);
    assert_int_equal(recorder_admit(g.recorder, r[3], &err), STATUS_FULL);
    assert_non_null(strstr(err.text, "score_bytes_max"));
    assert_int_equal(recorder_admit(g.recorder, plain, NULL), STATUS_OK); /* needs no job */
    recorder_unadmit(g.recorder, plain);
    err_clear(&err);
    assert_int_equal(recorder_admit(g.recorder, big, &err), STATUS_TOO_LARGE); /* never */
    recorder_unadmit(g.recorder, r[0]);
    assert_int_equal(recorder_admit(g.recorder, r[3], NULL), STATUS_OK);
    for (int i = 1; i < 4; i++)
        recorder_on_finish(r[i], g.recorder);
    for (int i = 1; i < 4; i++)
        wait_done(r[i]);
    wait_attributions(&g, 3);
    drop_request(r[0]);
    for (int i = 1; i < 4; i++)
        request_release(r[i]);
    drop_request(plain);
    drop_request(big);
    rig_close(&g);
}

/* 95 % of the spool's budget, on a lane whose records nobody settles. */
static void test_spool_budget(void **state)
{
    struct rig g;
    struct recorder_options opt = options;
    struct errtext err = ERRTEXT_INIT;
    opt.spool_bytes_max = 1 << 16;
    opt.chain_id = 7;
    rig_open(&g, &opt);
    enum status st = STATUS_OK;
    int served = 0;
    for (; served < 200 && !st; served++) {
        struct request *r = make_request(&g.paid, 1, 1, 4);
        st = submit(&g, r, &err);
        if (st) {
            drop_request(r);
            break;
        }
        wait_done(r);
        assert_true(r->receipt.recorded);
        request_release(r);
    }
    assert_int_equal(st, STATUS_FULL);
    assert_non_null(strstr(err.text, "spool_bytes_max"));
    err_clear(&err);
    assert_int_equal(recorder_ready(g.recorder, &err), STATUS_FULL);
    assert_non_null(strstr(err.text, "spool_bytes_max"));
    assert_true(served > 10);
    wait_settled(&g); /* what was admitted is scored within the rest */
    rig_close(&g);
    struct ledger *l = read_ledger(7);
    assert_int_equal(l->inferences, served);
    expect_all_scored(l);
    mem_free(l);
}

/* An unbound lane settles with nobody: its old records make room, and say so. */
static void test_unbound_goes_on(void **state)
{
    struct rig g;
    struct recorder_options opt = options;
    struct errtext err = ERRTEXT_INIT;
    struct buf out;
    uint8_t first[32];
    opt.spool_bytes_max = 1 << 17;
    rig_open(&g, &opt);
    for (int i = 0; i < 600; i++) {
        struct request *r = make_request(&g.paid, 1, 1, 4);
        must_record(&g, r);
        if (i == 0)
            memcpy(first, r->id, 32);
        request_release(r);
    }
    wait_settled(&g);
    assert_true(stats_of(&g).spool_bytes <= opt.spool_bytes_max);
    assert_true(stats_of(&g).seq_first > 900);
    for (int round = 0; round < 2; round++) { /* and after a restart */
        buf_init(&out, 1 << 20);
        err_clear(&err);
        assert_int_equal(recorder_receipt_json(g.recorder, first, &owner, &out, &err),
                         STATUS_NOT_FOUND);
        assert_string_equal(err.code, "archived");
        err_clear(&err);
        assert_int_equal(recorder_attribution_json(g.recorder, first, &owner, &out, &err),
                         STATUS_NOT_FOUND);
        assert_string_equal(err.code, "archived");
        err_clear(&err);
        assert_int_equal(recorder_read_range(g.recorder, 1, 5, &out, &err), STATUS_NOT_FOUND);
        assert_string_equal(err.code, "archived");
        buf_fini(&out);
        rig_stop(&g);
        rig_create(&g);
    }
    assert_int_equal(stats_of(&g).outcomes_lost, 0);
    rig_close(&g);
}

static void limit_files(rlim_t bytes)
{
    struct rlimit lim;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &lim), 0);
    lim.rlim_cur = bytes;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &lim), 0);
}

/* Also when the test failed: the tests after it write files too. */
static int lift_limit(void **state)
{
    limit_files(RLIM_INFINITY);
    return drop_dir(state);
}

/* Readiness and admission say the same; both wait for the recorder's thread, never for a clock. */
static void wait_ready(struct rig *g, enum status want, const char *says)
{
    struct errtext err = ERRTEXT_INIT;
    enum status st = recorder_ready(g->recorder, &err);
    for (int i = 0; i < 20000 && st != want; i++) {
        usleep(1000);
        err_clear(&err);
        st = recorder_ready(g->recorder, &err);
    }
    assert_int_equal(st, want);
    assert_non_null(strstr(err.text, says));
}

/* The disk refuses: what was admitted fails without a receipt, admission and readiness say no until
 * the disk takes a write again; what was scored meanwhile is written then. */
static void test_disk_full(void **state)
{
    struct rig g;
    struct errtext err = ERRTEXT_INIT;
    signal(SIGXFSZ, SIG_IGN);
    rig_open(&g, &options);
    engine_set_stuck(&g.engine, true);
    struct request *first = make_request(&g.paid, 1, 1, 4),
                   *second = make_request(&g.paid, 1, 1, 4),
                   *third = make_request(&g.paid, 1, 1, 4);
    must_record(&g, first);
    wait_ready(&g, STATUS_OK, "");
    assert_int_equal(recorder_admit(g.recorder, second, &err), STATUS_OK);
    limit_files(stats_of(&g).spool_bytes + 100);
    recorder_on_finish(second, g.recorder);
    wait_done(second);
    assert_false(second->receipt.recorded);
    assert_int_not_equal(second->status, STATUS_OK);
    assert_true(second->error.text[0]);
    wait_ready(&g, STATUS_FULL, "cannot be written");
    engine_set_stuck(&g.engine, false); /* its score comes back and cannot be written either */
    usleep(1300000);                    /* past a try of the disk, which fails */
    wait_ready(&g, STATUS_FULL, "cannot be written");
    assert_int_equal(recorder_admit(g.recorder, third, &err), STATUS_FULL);
    assert_non_null(strstr(err.text, "cannot be written"));
    assert_int_equal(stats_of(&g).inferences, 1);
    limit_files(RLIM_INFINITY);
    wait_ready(&g, STATUS_OK, "");
    must_record(&g, third);
    wait_settled(&g);
    wait_attributions(&g, 2);
    assert_int_equal(stats_of(&g).inferences, 2);
    request_release(first);
    request_release(second);
    request_release(third);
    rig_close(&g);
    struct ledger *l = read_ledger(0);
    assert_int_equal(l->inferences, 2);
    assert_int_equal(l->lost, 0);
    expect_all_scored(l);
    mem_free(l);
}

/* Scoring off: the record says that there is no score, and nothing waits for ever. */
static void test_scoring_off(void **state)
{
    struct rig g;
    rig_open(&g, &options);
    g.engine.refuse = STATUS_UNSUPPORTED;
    struct request *r = make_request(&g.paid, 1, 1, 4);
    must_record(&g, r);
    wait_attributions(&g, 1);
    wait_settled(&g);
    request_release(r);
    rig_close(&g);
}

/* A stop with jobs outstanding keeps them; the next start scores them. */
static void test_restart(void **state)
{
    struct rig g;
    struct buf out;
    uint8_t id[32];
    rig_open(&g, &options);
    engine_set_stuck(&g.engine, true);
    for (int i = 0; i < 20; i++) {
        struct request *r = make_request(i % 2 ? &g.paid : &g.plain, 1, 2, 4);
        must_record(&g, r);
        memcpy(id, r->id, 32);
        request_release(r);
    }
    assert_int_equal(stats_of(&g).job_count, 10);
    rig_stop(&g);
    rig_create(&g);
    wait_attributions(&g, 10);
    wait_settled(&g);
    buf_init(&out, 1 << 20);
    assert_int_equal(recorder_attribution_json(g.recorder, id, &owner, &out, NULL), STATUS_OK);
    assert_true(has(&out, "\"state\":\"recorded\""));
    rig_stop(&g);
    rig_create(&g); /* and once more with nothing to do */
    buf_clear(&out);
    assert_int_equal(recorder_attribution_json(g.recorder, id, &owner, &out, NULL), STATUS_OK);
    assert_true(has(&out, "\"state\":\"recorded\""));
    buf_fini(&out);
    rig_close(&g);
    struct ledger *l = read_ledger(0);
    assert_int_equal(l->inferences, 20);
    assert_int_equal(l->attributions, 10);
    assert_int_equal(l->lost, 0);
    expect_all_scored(l);
    mem_free(l);
}

/* Jobs gone: "inputs lost" closes their answers. The spool gone: its jobs are orphans. */
static void test_lost_and_orphans(void **state)
{
    struct rig g;
    char cmd[256];
    rig_open(&g, &options);
    engine_set_stuck(&g.engine, true);
    for (int i = 0; i < 4; i++) {
        struct request *r = make_request(&g.paid, 1, 1, 4);
        must_record(&g, r);
        request_release(r);
    }
    rig_stop(&g);
    snprintf(cmd, sizeof(cmd),
             "cp -r %s/lanes/unbound-1/jobs %s/kept && rm -r %s/lanes/unbound-1/jobs", test_dir,
             test_dir, test_dir);
    assert_int_equal(system(cmd), 0);
    rig_create(&g);
    assert_int_equal(stats_of(&g).outcomes_lost, 4);
    rig_stop(&g);
    struct ledger *l = read_ledger(0);
    assert_int_equal(l->attributions, 4);
    assert_int_equal(l->lost, 4);
    expect_all_scored(l);
    mem_free(l);
    /* the same jobs come back: their answers are closed, so they are erased */
    snprintf(cmd, sizeof(cmd),
             "rm -r %s/lanes/unbound-1/jobs && mv %s/kept %s/lanes/unbound-1/jobs", test_dir,
             test_dir, test_dir);
    assert_int_equal(system(cmd), 0);
    rig_create(&g);
    assert_int_equal(stats_of(&g).job_count, 0);
    assert_int_equal(stats_of(&g).outcomes_lost, 0);
    rig_close(&g);
    l = read_ledger(0);
    assert_int_equal(l->count, 8);
    mem_free(l);
}

/* What the checkpoint stands for is not read, and without it the same is found by reading. */
static void test_checkpoint(void **state)
{
    struct rig g;
    char path[160], cmd[300];
    begin_refusing = STATUS_FULL;
    rig_open(&g, &options);
    for (int i = 0; i < 4; i++) {
        struct request *r = make_request(&g.paid, 1, 1, 4);
        must_record(&g, r);
        request_release(r);
    }
    rig_stop(&g);
    snprintf(path, sizeof(path), "%s/lanes/unbound-1/checkpoint", test_dir);
    char *data;
    size_t len;
    assert_int_equal(file_read(path, 1 << 20, &data, &len, NULL), STATUS_OK);
    for (int round = 0; round < 3; round++) {
        data[10] ^= round == 1; /* damaged: read again */
        assert_int_equal(file_write_atomic(path, data, len, 0600, NULL), STATUS_OK);
        if (round == 2) /* none */
            unlink(path);
        rig_create(&g);
        assert_int_equal(stats_of(&g).outcomes_lost, 0);
        rig_stop(&g);
    }
    mem_free(data);
    begin_refusing = STATUS_OK;
    snprintf(cmd, sizeof(cmd), "rm -r %s/lanes/unbound-1/jobs", test_dir);
    assert_int_equal(system(cmd), 0);
    rig_create(&g); /* the checkpoint of the last stop knows what waited */
    assert_int_equal(stats_of(&g).outcomes_lost, 4);
    rig_close(&g);
    struct ledger *l = read_ledger(0);
    assert_int_equal(l->count, 8);
    expect_all_scored(l);
    mem_free(l);
}

/* A bound lane's answers that must be scored and are not are a reason to go elsewhere. */
static void test_readiness_of_scoring(void **state)
{
    struct rig g;
    struct recorder_options opt = options;
    opt.chain_id = 7;
    opt.score_stuck_s = 1;
    rig_open(&g, &opt);
    engine_set_stuck(&g.engine, true);
    struct request *r = make_request(&g.paid, 1, 1, 4);
    must_record(&g, r);
    wait_ready(&g, STATUS_FULL, "scoring is stuck: none of 1 answers");
    engine_set_stuck(&g.engine, false);
    wait_ready(&g, STATUS_OK, "");
    rig_stop(&g);
    request_release(r);
    g.opt.scoring_off = true;
    rig_create(&g);
    wait_ready(&g, STATUS_OK, "");
    g.engine.refuse = STATUS_UNSUPPORTED;
    struct request *plain = make_request(&g.plain, 1, 1, 4), *paid = make_request(&g.paid, 1, 1, 4);
    must_record(&g, plain);
    wait_ready(&g, STATUS_OK, "");
    must_record(&g, paid);
    wait_ready(&g, STATUS_FULL, "scoring is off (score_rows_max 0), and 1 answers");
    request_release(plain);
    request_release(paid);
    rig_close(&g);
}

/* A job that waited longer than score_age_s_max ends as "inputs lost". */
static void test_age(void **state)
{
    struct rig g;
    struct recorder_options opt = options;
    opt.score_age_s_max = 1;
    rig_open(&g, &opt);
    g.engine.refuse = STATUS_FULL;
    struct request *r = make_request(&g.paid, 1, 1, 4);
    must_record(&g, r);
    wait_attributions(&g, 1);
    assert_int_equal(stats_of(&g).outcomes_lost, 1);
    request_release(r);
    rig_close(&g);
}

/* A clock that jumped two days ahead after the answer: its job is as young as it was. */
static void test_clock_ahead(void **state)
{
    struct rig g;
    struct recorder_options opt = options;
    opt.score_age_s_max = 3600;
    begin_refusing = STATUS_FULL;
    rig_open(&g, &opt);
    struct request *r = make_request(&g.paid, 1, 1, 4);
    r->finish_wall_ms = clock_wall_ms() - 2ull * 86400 * 1000;
    must_record(&g, r);
    usleep(300000); /* several turns of the recorder */
    assert_int_equal(stats_of(&g).job_count, 1);
    rig_stop(&g);
    begin_refusing = STATUS_OK;
    rig_create(&g);
    wait_attributions(&g, 1);
    request_release(r);
    rig_close(&g);
    struct ledger *l = read_ledger(0);
    assert_int_equal(l->lost, 0);
    expect_all_scored(l);
    mem_free(l);
}

/* ---- kill -9 ---- */

struct released { /* what a client holds */
    uint64_t seq;
    uint8_t digest[32];
};

static int receipt_pipe;

static void on_wake(void *arg)
{
    const struct request *r = arg;
    struct released out = {.seq = r->receipt.seq};
    if (!r->receipt.recorded)
        return;
    memcpy(out.digest, r->receipt.digest, 32);
    CHECK(write(receipt_pipe, &out, sizeof(out)) == (ssize_t)sizeof(out)); /* atomic: < PIPE_BUF */
}

/* Serve until killed. */
static void serve_for_ever(int fd)
{
    struct rig g;
    struct request *window[8] = {0};
    receipt_pipe = fd;
    rig_open(&g, &options);
    for (uint32_t i = 0;; i++) {
        struct request **slot = &window[i % ARRAY_COUNT(window)];
        if (*slot) {
            wait_done(*slot);
            request_release(*slot);
        }
        struct adapter_entry *two[2] = {g.paid, g.second};
        *slot = i % 5 == 0   ? make_request(two, 2, 1, 3)
                : i % 5 == 1 ? make_request(&g.plain, 1, 1, 3)
                             : make_request(&g.paid, 1, 2, 3);
        (*slot)->wake = on_wake;
        (*slot)->wake_arg = *slot;
        while (submit(&g, *slot, NULL))
            usleep(500);
    }
}

static void kill_once(uint64_t delay_us, struct released *held, size_t *count)
{
    int fd[2];
    assert_int_equal(pipe(fd), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        close(fd[0]);
        serve_for_ever(fd[1]);
    }
    close(fd[1]);
    assert_int_equal(read(fd[0], &held[*count], sizeof(*held)), sizeof(*held)); /* it runs */
    (*count)++;
    uint64_t begin = clock_mono_ns();
    while (clock_mono_ns() - begin < delay_us * 1000) {
        assert_int_equal(read(fd[0], &held[*count], sizeof(*held)), sizeof(*held));
        (*count)++;
    }
    assert_int_equal(kill(pid, SIGKILL), 0);
    while (*count < LEDGER_MAX && read(fd[0], &held[*count], sizeof(*held)) == sizeof(*held))
        (*count)++;
    assert_true(*count < LEDGER_MAX);
    close(fd[0]);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static void test_kill(void **state)
{
    struct released *held = mem_array(LEDGER_MAX, sizeof(*held));
    size_t count = 0;
    uint64_t random = 88172645463325252u;
    int rounds = getenv("RS_FULL") && getenv("RS_FULL")[0] == '1' ? 50 : 12;
    for (int i = 0; i < rounds; i++) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        kill_once(random % 40000, held, &count);
    }
    struct rig g;
    rig_open(&g, &options); /* recover and finish what waits */
    wait_settled(&g);
    rig_close(&g);
    struct ledger *l = read_ledger(0);
    bool *seen = mem_array(LEDGER_MAX, sizeof(*seen));
    assert_true(count >= (size_t)rounds);
    for (size_t i = 0; i < count; i++) {
        assert_in_range(held[i].seq, 1, l->count);
        assert_false(seen[held[i].seq]); /* no number twice */
        seen[held[i].seq] = true;
        assert_int_equal(l->type[held[i].seq], RECORD_INFERENCE);
        assert_memory_equal(l->digest[held[i].seq], held[i].digest, 32);
    }
    assert_int_equal(l->lost, 0);
    expect_all_scored(l);
    mem_free(seen);
    mem_free(l);
    mem_free(held);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, make_dir, drop_dir)
    const struct CMUnitTest tests[] = {
        TEST(test_kill), /* first: it forks, no thread runs yet */
        TEST(test_keys), /* it forks too */
        TEST(test_life_of_a_request),
        TEST(test_rotated_key),
        TEST(test_mix),
        TEST(test_odd_ends),
        TEST(test_admission),
        TEST(test_spool_budget),
        TEST(test_unbound_goes_on),
        TEST(test_checkpoint),
        TEST(test_readiness_of_scoring),
        cmocka_unit_test_setup_teardown(test_disk_full, make_dir, lift_limit),
        TEST(test_scoring_off),
        TEST(test_restart),
        TEST(test_lost_and_orphans),
        TEST(test_age),
        TEST(test_clock_ahead),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
