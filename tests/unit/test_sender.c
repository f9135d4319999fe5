/* The trials of a sender that runs for a year without a person, each by its name: what it must do,
 * what it must say, and that it goes on by itself where it may. */
#include "chain_client/settle/gauges.h"
#include "chain_client/settle/worker.h"
#include "server/base/log.h"
#include "tests/unit/sender_rig.h"

#include <string.h>

#define WEEK_S (7 * 86400)

static void assert_right(struct rig *r)
{
    struct verdict v = rig_judge(r->commits, r->payments);
    assert_int_equal(v.lost, 0);
    assert_int_equal(v.doubled, 0);
}

static void test_the_plain_way(void **state)
{
    struct rig r;
    rig_init(&r, 1, 2);
    r.commits = 3;
    r.payments = 2;
    rig_run(&r, 90);
    assert_right(&r);
    for (uint64_t k = 1; k <= 3; k++)
        assert_int_equal(rig_count(&r.db, "commit", k, INTENT_DONE), 1);
    assert_int_equal(sim.tx_count, 5); /* nothing was sent twice in other words */
    assert_int_equal(rig_troubles(&r.db, "foreign_nonce"), 0);
    rig_fini(&r);
}

/* ---- a foreign transaction from the committer's key ---- */

static void test_a_foreign_transaction_is_recognised(void **state)
{
    struct rig r;
    rig_init(&r, 2, 2);
    r.commits = 1;
    sim.empty_block = 1000; /* ours waits in the pools */
    rig_run(&r, 4);
    assert_int_equal(rig_count(&r.db, "commit", 1, INTENT_BOUND), 1);
    sim_foreign(SENDER_COMMITTER, 'x', 0);
    sim.empty_block = 0;
    rig_run(&r, 80);
    assert_int_equal(rig_count(&r.db, "commit", 1, INTENT_FOREIGN), 1);
    assert_int_equal(rig_troubles(&r.db, "foreign_nonce"), 1);
    assert_int_equal(rig_count(&r.db, "commit", 1, INTENT_DONE),
                     1); /* by itself, with a new nonce */
    assert_right(&r);
    assert_int_equal(sender_acknowledge(&r.db, 0, NULL), STATUS_OK);
    assert_int_equal(sender_acknowledge(&r.db, 0, NULL), STATUS_NOT_FOUND);
    rig_run(&r, 2);
    assert_int_equal(rig_troubles(&r.db, "foreign_nonce"), 0);
    rig_fini(&r);
}

static void test_a_foreign_transaction_did_the_work(void **state)
{
    struct rig r;
    rig_init(&r, 3, 2);
    r.commits = 1;
    sim.empty_block = 1000;
    rig_run(&r, 4);
    sim_foreign(SENDER_COMMITTER, 'c', 1);
    sim.empty_block = 0;
    rig_run(&r, 60);
    assert_int_equal(rig_count(&r.db, "commit", 1, INTENT_FOREIGN), 1);
    assert_int_equal(rig_count(&r.db, "commit", 1, INTENT_DONE), 0); /* nothing was left to do */
    assert_int_equal(rig_count(&r.db, "commit", 1, INTENT_BOUND), 0);
    assert_right(&r);
    rig_fini(&r);
}

static void test_a_key_that_others_use_is_stopped(void **state)
{
    struct rig r;
    rig_init(&r, 4, 2);
    r.commits = 1;
    for (int i = 0; i < 3; i++) {
        sim.empty_block = 1000;
        rig_run(&r, 4);
        sim_foreign(SENDER_COMMITTER, 'x', 0);
        sim.empty_block = 0;
        sim_mine();
        sim.empty_block = 1000; /* the worker's next one waits, and is overtaken again */
        rig_run(&r, 50);
    }
    sim.empty_block = 0;
    rig_run(&r, 60);
    assert_int_equal(rig_troubles(&r.db, "key_stopped"), 1);
    assert_int_equal(rig_count(&r.db, "commit", 1, INTENT_OPEN), 1);
    assert_int_equal(sim.block[sim.height].after.head, 0);
    assert_int_equal(sender_acknowledge(&r.db, 100, NULL), STATUS_OK);
    rig_run(&r, 40);
    assert_int_equal(rig_troubles(&r.db, "key_stopped"), 0);
    assert_right(&r);
    rig_fini(&r);
}

/* One endpoint alone: nothing is decided without a person. */
static void test_one_endpoint_proves_no_absence(void **state)
{
    struct rig r;
    rig_init(&r, 5, 1);
    r.payments = 1;
    rig_run(&r, 3);
    sim.node[0].no_receipts = true; /* its index lags */
    rig_run(&r, 120);
    assert_int_equal(sim.block[sim.height].after.paid[1], 1);
    assert_int_equal(rig_count(&r.db, "pay", 1, INTENT_BOUND), 1);
    assert_int_equal(rig_troubles(&r.db, "foreign_nonce"), 1);
    sim.node[0].no_receipts = false;
    rig_run(&r, 4);
    assert_int_equal(rig_count(&r.db, "pay", 1, INTENT_DONE), 1);
    assert_int_equal(rig_troubles(&r.db, "foreign_nonce"), 0);
    assert_right(&r);
    rig_fini(&r);
}

static void test_a_person_decides_for_one_endpoint(void **state)
{
    struct rig r;
    rig_init(&r, 6, 1);
    r.commits = 1;
    sim.empty_block = 1000;
    rig_run(&r, 4);
    sim_foreign(SENDER_COMMITTER, 'x', 0);
    sim.empty_block = 0;
    rig_run(&r, 60);
    assert_int_equal(rig_count(&r.db, "commit", 1, INTENT_BOUND), 1);
    assert_int_equal(sender_acknowledge(&r.db, 0, NULL), STATUS_OK);
    rig_run(&r, 40);
    assert_int_equal(rig_count(&r.db, "commit", 1, INTENT_DONE), 1);
    assert_right(&r);
    rig_fini(&r);
}

/* ---- one null receipt of a lagging node ---- */

static void test_a_null_receipt_of_a_lagging_node(void **state)
{
    struct rig r;
    rig_init(&r, 7, 2);
    r.payments = 1;
    rig_run(&r, 3);
    sim.node[1].no_receipts = true;
    rig_run(&r, 120);
    assert_int_equal(rig_count(&r.db, "pay", 1, INTENT_BOUND), 1); /* neither done nor foreign */
    assert_int_equal(rig_troubles(&r.db, "foreign_nonce"), 0);
    sim.node[1].no_receipts = false;
    rig_run(&r, 4);
    assert_int_equal(rig_count(&r.db, "pay", 1, INTENT_DONE), 1);
    assert_right(&r);
    rig_fini(&r);
}

/* ---- balance 0 ---- */

static void test_balance_0_holds_and_goes_on(void **state)
{
    struct rig r;
    rig_init(&r, 8, 2);
    r.commits = 1;
    sim.block[sim.height].after.balance[SENDER_COMMITTER] = 0;
    rig_run(&r, 20);
    assert_int_equal(rig_troubles(&r.db, "unfunded"), 1);
    assert_int_equal(rig_count(&r.db, "commit", 1, INTENT_OPEN), 1); /* no nonce was given */
    assert_int_equal(sim.tx_count, 0);
    sim.block[sim.height].after.balance[SENDER_COMMITTER] = SIM_COINS;
    rig_run(&r, 40);
    assert_int_equal(rig_troubles(&r.db, "unfunded"), 0);
    assert_int_equal(rig_count(&r.db, "commit", 1, INTENT_DONE), 1);
    assert_right(&r);
    rig_fini(&r);
}

static void test_less_than_a_week_of_gas_is_said(void **state)
{
    struct rig r;
    uint64_t now = 0;
    rig_init(&r, 9, 2);
    r.commits = 2;
    rig_run(&r, 60);
    assert_int_equal(rig_troubles(&r.db, "gas_low"), 0);
    now = sim.now_ms / 1000; /* two commits in a day, so what is left must last for fourteen */
    assert_int_equal(db_run(&r.db, NULL, "UPDATE intents SET ended_at = ?", "u", now - 86400),
                     STATUS_OK);
    u128 one = (u128)SIM_GAS * 2000000000u;
    sim.block[sim.height].after.balance[SENDER_COMMITTER] = 15 * one;
    rig_run(&r, 2);
    assert_int_equal(rig_troubles(&r.db, "gas_low"), 0);
    sim.block[sim.height].after.balance[SENDER_COMMITTER] = 13 * one;
    rig_run(&r, 2);
    assert_int_equal(rig_troubles(&r.db, "gas_low"), 1);
    rig_fini(&r);
}

/* ---- a reorganisation below `finalized` ---- */

static void test_a_reorganisation_below_finalized(void **state)
{
    struct rig r;
    struct buf metrics;
    rig_init(&r, 10, 2);
    r.commits = 3;
    r.payments = 3;
    rig_run(&r, 90);
    assert_int_equal(rig_count(&r.db, "pay", 1, INTENT_DONE), 1);
    uint64_t sent = sim.tx_count;
    sim.empty_block = 1000;
    sim_reorg(sim.height - SIM_DEPTH - 4); /* all of it, and no pool remembers */
    for (uint32_t i = 0; i < sim.tx_count; i++)
        sim.tx[i].in_pool[0] = sim.tx[i].in_pool[1] = false;
    sim.empty_block = 0;
    assert_int_equal(sim.block[sim.height].after.head, 0);
    sim.crash_at = sim.ops + 40; /* killed while it walks back */
    struct errtext err = ERRTEXT_INIT;
    sim.now_ms += 1000;
    assert_int_not_equal(rig_round(&r, &err), STATUS_OK);
    assert_true(sim.is_dead);
    rig_reopen(&r);
    rig_run(&r, 120);
    assert_right(&r);
    for (uint64_t k = 1; k <= 3; k++) {
        assert_int_equal(rig_count(&r.db, "commit", k, INTENT_DONE), 1);
        assert_int_equal(rig_count(&r.db, "pay", k, INTENT_DONE), 1);
    }
    assert_int_equal(sim.tx_count, sent); /* the same bytes: nothing was signed anew */
    buf_init(&metrics, 4096);
    assert_int_equal(gauges_put(&r.db, &metrics, NULL), STATUS_OK);
    assert_non_null(strstr(metrics.data, "residual_settle_reorganisations_below_final "));
    buf_fini(&metrics);
    rig_fini(&r);
}

/* ---- what ends without effect is raised again ---- */

static void test_a_reverted_call_is_raised_again(void **state)
{
    struct rig r;
    rig_init(&r, 11, 2);
    r.commits = 2;
    sim.empty_block = 1000;
    rig_run(&r, 4);
    sim_foreign(SIM_STRANGER, 'c', 1); /* somebody else commits 1 first: ours reverts */
    sim.empty_block = 0;
    rig_run(&r, 90);
    assert_int_equal(rig_count(&r.db, "commit", 1, INTENT_CLOSED), 1);
    assert_int_equal(rig_count(&r.db, "commit", 2, INTENT_DONE), 1);
    assert_right(&r);
    rig_fini(&r);
}

/* A role that was never granted, a contract that is paused: said, when it lasts. */
static void test_a_lasting_refusal_is_said(void **state)
{
    struct rig r;
    rig_init(&r, 18, 2);
    r.commits = 1;
    sim.refuses = "AccessControlUnauthorizedAccount(address,bytes32)";
    rig_run(&r, 30);
    assert_int_equal(rig_troubles(&r.db, "call_refused"), 0);
    rig_run(&r, 40);
    assert_int_equal(rig_troubles(&r.db, "call_refused"), 1);
    assert_int_equal(sim.tx_count, 0);
    sim.refuses = NULL;
    rig_run(&r, 30);
    assert_int_equal(rig_troubles(&r.db, "call_refused"), 0);
    assert_right(&r);
    sim.refuses = "Paused()";
    r.commits = 2;
    rig_run(&r, 70);
    assert_int_equal(rig_troubles(&r.db, "call_refused"), 1);
    r.commits = 1; /* not wanted any more */
    rig_run(&r, 2);
    assert_int_equal(rig_troubles(&r.db, "call_refused"), 0);
    rig_fini(&r);
}

/* A guardian dropped the newest batch: the same one is committed again, with a nonce of its own. */
static void test_a_dropped_batch_is_raised_again(void **state)
{
    struct rig r;
    rig_init(&r, 12, 2);
    r.commits = 2;
    rig_run(&r, 60);
    assert_int_equal(rig_count(&r.db, "commit", 2, INTENT_DONE), 1);
    sim.block[sim.height].after.head = 1;
    rig_run(&r, 60);
    assert_int_equal(rig_count(&r.db, "commit", 2, INTENT_DONE), 2);
    assert_int_equal(sim.block[sim.height].after.nonce[SENDER_COMMITTER], 3);
    assert_right(&r);
    rig_fini(&r);
}

/* ---- endpoints ---- */

static bool is_left_out(struct rig *r, uint32_t node, const char *why)
{
    const struct endpoint *k = &r->nodes.endpoint[node];
    return !k->is_good && strstr(k->why, why);
}

static void test_an_endpoint_down_is_no_finality(void **state)
{
    struct rig r;
    rig_init(&r, 13, 2);
    rig_run(&r, 4);
    r.commits = r.payments = 1;
    sim.node[0].down_until_ms = sim.now_ms + 60000;
    rig_run(&r, 50);
    assert_true(is_left_out(&r, 0, "down"));
    assert_int_equal(sim.block[sim.height].after.head, 1); /* it was sent, and read, by the other */
    assert_int_equal(rig_count(&r.db, "commit", 1, INTENT_BOUND),
                     1); /* one is not enough to end it */
    assert_non_null(strstr(r.nodes.held, "1 of 2 endpoints answer"));
    rig_run(&r, 60);
    assert_int_equal(rig_count(&r.db, "commit", 1, INTENT_DONE), 1);
    assert_string_equal(r.nodes.held, "");
    assert_right(&r);
    rig_fini(&r);
}

static void test_a_stale_endpoint_is_left_out(void **state)
{
    struct rig r;
    rig_init(&r, 14, 2);
    rig_run(&r, 100);
    sim.node[0].behind = 40; /* 80 s */
    rig_run(&r, 2);
    assert_true(is_left_out(&r, 0, "more than 60 s old"));
    assert_int_equal(r.nodes.first, 1);
    assert_null(r.rpc[1].witness);
    sim.node[0].behind = 1;
    rig_run(&r, 5);
    assert_true(r.nodes.endpoint[0].is_good);
    assert_ptr_equal(r.rpc[0].witness, &r.rpc[1]); /* confirms what is read of the final block */
    rig_fini(&r);
}

/* This machine's clock a day ahead: both look old, but they go on, and are believed again. */
static void test_a_wrong_clock_is_no_stale_endpoint(void **state)
{
    struct rig r;
    rig_init(&r, 15, 2);
    r.commits = 1;
    rig_run(&r, 4);
    for (uint64_t h = 0; h <= sim.height; h++)
        sim.block[h].time -= 86400;
    for (uint32_t i = 0; i < 150; i++) {
        struct errtext err = ERRTEXT_INIT;
        sim.now_ms += 1000;
        sim_mine();
        sim.block[sim.height].time -= 86400;
        (void)!rig_round(&r, &err);
    }
    assert_true(r.nodes.endpoint[0].is_good && r.nodes.endpoint[1].is_good);
    assert_right(&r);
    rig_fini(&r);
}

static void test_another_chain_is_never_asked(void **state)
{
    struct rig r;
    struct errtext err = ERRTEXT_INIT;
    rig_init(&r, 16, 2);
    r.commits = 1;
    sim.node[1].chain_id = 5;
    sim.now_ms += 1000;
    assert_int_equal(rig_round(&r, &err), STATUS_BUSY);
    assert_true(is_left_out(&r, 1, "chain id: the node says 5"));
    rig_run(&r, 20);
    for (uint32_t i = 0; i < sim.tx_count; i++)
        assert_false(sim.tx[i].in_pool[1]);
    sim.node[0].chain_id = 6;
    sim.node[0].down_until_ms = sim.now_ms + 3000; /* left out once, so it is checked again */
    err_clear(&err);
    for (int i = 0; i < 40; i++) {
        sim.now_ms += 1000;
        err_clear(&err);
        if (rig_round(&r, &err) == STATUS_CONFLICT)
            break;
    }
    assert_non_null(strstr(err.text, "chain id"));
    rig_fini(&r);
}

static void test_endpoints_that_disagree_hold_finality(void **state)
{
    struct rig r;
    rig_init(&r, 17, 2);
    rig_run(&r, 4);
    r.commits = 1;
    sim.node[1].is_forked = true;
    rig_run(&r, 60);
    assert_non_null(strstr(r.nodes.held, "different blocks"));
    assert_int_equal(rig_count(&r.db, "commit", 1, INTENT_DONE), 0);
    sim.node[1].is_forked = false;
    rig_run(&r, 40);
    assert_int_equal(rig_count(&r.db, "commit", 1, INTENT_DONE), 1);
    rig_fini(&r);
}

/* Whatever answer comes, it ends in a sentence, and no row moves; one honest endpoint goes on. */
static void test_hostile_answers_move_nothing(void **state)
{
    static const enum status hostile[] = {STATUS_CORRUPT,  STATUS_TOO_LARGE, STATUS_TIMEOUT,
                                          STATUS_IO,       STATUS_INVALID,   STATUS_BUSY,
                                          STATUS_NOT_FOUND};
    for (size_t i = 0; i < ARRAY_COUNT(hostile); i++) {
        struct rig r;
        rig_init(&r, 20 + i, 2);
        r.commits = r.payments = 1;
        rig_run(&r, 8);
        assert_int_equal(rig_count(&r.db, "pay", 1, INTENT_BOUND), 1);
        sim.node[0].fails = sim.node[1].fails = hostile[i];
        rig_run(&r, 60);
        assert_true(is_left_out(&r, 0, "hostile") && is_left_out(&r, 1, "hostile"));
        assert_int_equal(rig_count(&r.db, "pay", 1, INTENT_BOUND), 1);
        assert_int_equal(rig_count(&r.db, "commit", 1, INTENT_BOUND), 1);
        sim.node[1].fails = STATUS_OK;
        rig_run(&r, 40);
        assert_int_equal(r.nodes.first, 1);
        assert_int_equal(rig_count(&r.db, "pay", 1, INTENT_BOUND), 1);
        sim.node[0].fails = STATUS_OK;
        rig_run(&r, 60);
        assert_int_equal(rig_count(&r.db, "pay", 1, INTENT_DONE), 1);
        assert_right(&r);
        rig_fini(&r);
    }
}

/* ---- money into the vault ---- */

struct money {
    struct rig rig;
    struct worker w;
    uint32_t sent; /* intents so far */
};

static void money_init(struct money *m)
{
    rig_init(&m->rig, 30, 2);
    rig_run(&m->rig, 2);
    db_close(&m->rig.db);
    m->w = (struct worker){.sender = m->rig.sender};
    m->w.sender.db = &m->w.db;
    assert_int_equal(db_open(&m->w.db, m->rig.dir, NULL), STATUS_OK);
    memset(m->w.dep.vault, 0x55, 20);
    memset(m->w.dep.token, 0x66, 20);
    view_init(&m->w.view, nodes_rpc(&m->rig.nodes), &m->w.dep);
    m->sent = 0;
}

static void money_fini(struct money *m)
{
    view_fini(&m->w.view);
    db_close(&m->w.db);
    rig_fini(&m->rig);
}

/* One look at what the vault lacks: which call was announced? */
static void assert_announces(struct money *m, u128 total, const char *kind)
{
    struct funding f = {.paid = 7, .total = total, .funded = 100};
    struct errtext err = ERRTEXT_INIT;
    uint64_t count = 0;
    bool ready = true;
    assert_int_equal(funding_step(&m->w, &f, &ready, &err), STATUS_OK);
    assert_int_equal(ready, total <= 100);
    assert_int_equal(db_value(&m->w.db, &count, 0, &err, "SELECT count(*) FROM intents", ""),
                     STATUS_OK);
    m->sent += kind != NULL;
    assert_int_equal(count, m->sent);
    if (kind)
        assert_int_equal(rig_count(&m->w.db, kind, 7, INTENT_OPEN), 1);
}

static void money_end(struct money *m)
{
    assert_int_equal(
        db_run(&m->w.db, NULL, "UPDATE intents SET state = ?", "t", intent_state_name(INTENT_DONE)),
        STATUS_OK);
}

/* An allowance exactly of what is lacking; 0 before it is changed, and 0 afterwards. */
static void test_an_allowance_is_exact_and_goes_back_to_0(void **state)
{
    struct money m;
    money_init(&m);
    sim.allowance = 0;
    assert_announces(&m, 350, "approve");
    assert_announces(&m, 350, NULL); /* it is on its way */
    money_end(&m);
    sim.allowance = 250;
    assert_announces(&m, 350, "fund");
    money_end(&m);
    assert_announces(&m, 100, NULL);
    assert_int_equal(funding_reset(&m.w, 7, NULL), STATUS_OK); /* something was left over */
    m.sent++;
    assert_int_equal(rig_count(&m.w.db, "unapprove", 7, INTENT_OPEN), 1);
    money_end(&m);
    sim.allowance = 1; /* too little: some tokens refuse to change it before it is 0 */
    assert_announces(&m, 350, "unapprove");
    money_end(&m);
    sim.allowance = 0;
    assert_int_equal(funding_reset(&m.w, 7, NULL), STATUS_OK); /* nothing to do */
    assert_announces(&m, 350, "approve");
    money_fini(&m);
}

static void test_without_a_funder_it_is_said(void **state)
{
    struct money m;
    money_init(&m);
    m.w.sender.signer[SENDER_FUNDER].present = false;
    assert_announces(&m, 350, NULL);
    assert_int_equal(rig_troubles(&m.w.db, "vault_unfunded"), 1);
    assert_announces(&m, 100, NULL); /* somebody paid */
    assert_int_equal(rig_troubles(&m.w.db, "vault_unfunded"), 0);
    money_fini(&m);
}

/* ---- rows that were final ---- */

static const char *state_of(struct money *m, const char *sql, uint64_t number, char out[16])
{
    struct db_rows q;
    assert_int_equal(db_query(&m->w.db, &q, NULL, sql, "u", number), STATUS_OK);
    assert_int_equal(db_next(&q, NULL), STATUS_OK);
    snprintf(out, 16, "%s", db_text(&q, 0));
    db_done(&q);
    return out;
}

/* The vault is at epoch 1 again: 2 and 3 are proposed once more, and one that came from another
 * database is computed first. */
static void test_epochs_walk_back(void **state)
{
    static const char sql[] = "SELECT state FROM epochs WHERE epoch = ?";
    static const uint8_t hash[32] = {1};
    struct money m;
    char text[16];
    money_init(&m);
    for (uint64_t e = 1; e <= 3; e++)
        assert_int_equal(db_run(&m.w.db, NULL,
                                "INSERT INTO epochs (epoch, state, previous, prev_root, paid_from,"
                                " paid, evidence, planned_at, manifest, active_at) VALUES (?, ?, ?,"
                                " ?, 0, 1, 1, 0, ?, 5)",
                                "utubb", e, epoch_state_name(e == 1 ? EPOCH_ACTIVE : EPOCH_FINAL),
                                e - 1, hash, sizeof(hash), e == 3 ? NULL : hash, sizeof(hash)),
                         STATUS_OK);
    sim.allowance = 1; /* of every view: lastEpoch() */
    assert_int_equal(walk_back(&m.w, false, NULL), STATUS_OK);
    assert_string_equal(state_of(&m, sql, 2, text), "final");
    assert_int_equal(walk_back(&m.w, true, NULL), STATUS_OK);
    assert_string_equal(state_of(&m, sql, 1, text), "active");
    assert_string_equal(state_of(&m, sql, 2, text), "computed");
    assert_string_equal(state_of(&m, sql, 3, text), "planned");
    money_fini(&m);
}

static int setup(void **state)
{
    log_set_level(LOG_LEVEL_AUDIT);
    return secp_create(&sim.secp, NULL);
}

static int teardown(void **state)
{
    secp_destroy(sim.secp);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_plain_way),
        cmocka_unit_test(test_a_foreign_transaction_is_recognised),
        cmocka_unit_test(test_a_foreign_transaction_did_the_work),
        cmocka_unit_test(test_a_key_that_others_use_is_stopped),
        cmocka_unit_test(test_one_endpoint_proves_no_absence),
        cmocka_unit_test(test_a_person_decides_for_one_endpoint),
        cmocka_unit_test(test_a_null_receipt_of_a_lagging_node),
        cmocka_unit_test(test_balance_0_holds_and_goes_on),
        cmocka_unit_test(test_less_than_a_week_of_gas_is_said),
        cmocka_unit_test(test_a_reorganisation_below_finalized),
        cmocka_unit_test(test_a_reverted_call_is_raised_again),
        cmocka_unit_test(test_a_lasting_refusal_is_said),
        cmocka_unit_test(test_a_dropped_batch_is_raised_again),
        cmocka_unit_test(test_an_endpoint_down_is_no_finality),
        cmocka_unit_test(test_a_stale_endpoint_is_left_out),
        cmocka_unit_test(test_a_wrong_clock_is_no_stale_endpoint),
        cmocka_unit_test(test_another_chain_is_never_asked),
        cmocka_unit_test(test_endpoints_that_disagree_hold_finality),
        cmocka_unit_test(test_hostile_answers_move_nothing),
        cmocka_unit_test(test_an_allowance_is_exact_and_goes_back_to_0),
        cmocka_unit_test(test_without_a_funder_it_is_said),
        cmocka_unit_test(test_epochs_walk_back),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
