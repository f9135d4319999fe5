/* The sender under everything at once: kills between any two steps, lost sends and answers, pools
 * that forget, endpoints that lag and go away, reorganisations. Nothing is lost, nothing is done
 * twice. A naive sender on the same chain, before the same judge, must be found wrong: else the
 * chain is too kind, or the judge blind. */
#include "server/base/log.h"
#include "tests/unit/sender_rig.h"

#include <string.h>

#define SEEDS       200
#define NAIVE_SEEDS 40
#define COMMITS     3
#define PAYMENTS    3
#define ROUNDS      46  /* of trouble */
#define QUIET       400 /* rounds at most, after it */

struct totals {
    uint32_t crashes, reorgs, lost_sends, lost_acks, drops, reverted, wrong;
};

static void trouble(void)
{
    sim.lost_send = 80;
    sim.lost_ack = 80;
    sim.dropped = 15;
    sim.empty_block = 300;
}

static void quiet(void)
{
    sim.lost_send = sim.lost_ack = sim.dropped = sim.empty_block = 0;
    sim.node[0].behind = sim.node[1].behind = 0;
    sim.node[0].down_until_ms = sim.node[1].down_until_ms = 0;
    sim.crash_at = 0;
}

/* What happens to the chain in a second. */
static void happen(bool bad)
{
    sim.now_ms += 1000;
    sim.tip = 1000000000u + sim.now_ms / 1000 % 50; /* the same call signed again is another */
    if (sim.now_ms / 1000 % 2 == 0)
        sim_mine();
    if (!bad)
        return;
    if (sim_chance(40))
        sim_reorg(1 + sim_random(4));
    if (sim_chance(100))
        sim.node[1].behind = sim_random(4);
    if (sim_chance(15))
        sim.node[sim_random(SIM_NODES)].down_until_ms = sim.now_ms + 1000 * (1 + sim_random(8));
    if (!sim.crash_at && sim_chance(140))
        sim.crash_at = sim.ops + 1 + sim_random(150);
}

static void add(struct totals *t, struct verdict v)
{
    t->crashes += sim.crashes;
    t->reorgs += sim.reorgs;
    t->lost_sends += sim.lost_sends;
    t->lost_acks += sim.lost_acks;
    t->drops += sim.drops;
    t->reverted += sim.reverted;
    t->wrong += v.lost || v.doubled;
}

static void say(const char *who, const struct totals *t, uint32_t seeds)
{
    print_message("%s: %u seeds, %u crashes, %u reorganisations, %u lost sends, %u lost answers, %u"
                  " drops, %u reverted: %u seeds wrong\n",
                  who, seeds, t->crashes, t->reorgs, t->lost_sends, t->lost_acks, t->drops,
                  t->reverted, t->wrong);
}

static bool is_done(struct rig *r)
{
    uint64_t open = 0;
    assert_int_equal(db_value(&r->db, &open, 0, NULL,
                              "SELECT count(*) FROM intents WHERE state IN (?, ?)", "tt",
                              intent_state_name(INTENT_OPEN), intent_state_name(INTENT_BOUND)),
                     STATUS_OK);
    return !open && sim.block[sim.height - SIM_DEPTH].after.head == COMMITS;
}

static void one_seed(uint64_t seed, struct totals *totals)
{
    struct rig r;
    rig_init(&r, seed, SIM_NODES);
    r.commits = COMMITS;
    r.payments = PAYMENTS;
    trouble();
    bool done = false;
    for (uint32_t i = 0; i < ROUNDS + QUIET && !done; i++) {
        struct errtext err = ERRTEXT_INIT;
        bool bad = i < ROUNDS;
        if (i == ROUNDS)
            quiet();
        happen(bad);
        enum status st = rig_round(&r, &err);
        if (sim.is_dead)
            rig_reopen(&r);
        else if (r.db.failed)
            fail_msg("seed %lu: %s: %s", seed, status_name(st), err.text);
        done = !bad && is_done(&r);
    }
    struct verdict v = rig_judge(COMMITS, PAYMENTS);
    if (!done || v.lost || v.doubled)
        fail_msg("seed %lu: %s, lost %u, doubled %u", seed, done ? "done" : "not done", v.lost,
                 v.doubled);
    for (uint64_t k = 1; k <= PAYMENTS; k++)
        assert_int_equal(rig_count(&r.db, "pay", k, INTENT_DONE), 1);
    add(totals, v);
    rig_fini(&r);
}

static void test_nothing_lost_nothing_doubled(void **state)
{
    struct totals t = {0};
    for (uint64_t seed = 1; seed <= SEEDS; seed++)
        one_seed(seed, &t);
    say("sender", &t, SEEDS);
    assert_true(t.crashes >= 1000);
    assert_true(t.reorgs >= 300);
    assert_true(t.lost_sends >= 100 && t.lost_acks >= 100 && t.drops >= 10);
}

/* ---- as it is often written ---- */

/* One payment: its nonce is what the pool says is next; its hash is stored after the send; what is
 * not mined after four blocks is sent again with a new nonce. */
struct naive_job {
    bool is_sent, is_done;
    uint8_t hash[32];
    uint64_t at;
};

static void naive_send(struct naive_job *job, uint64_t key, const struct secp_key *k)
{
    struct rpc rpc = {0};
    struct buf raw;
    uint8_t hash[32], data[2] = {'p', (uint8_t)key};
    struct tx tx = {.chain_id = SIM_CHAIN_ID,
                    .tip_max = 1000000000u,
                    .fee_max = 3000000000u,
                    .gas_limit = SIM_GAS,
                    .value = 1,
                    .data = data,
                    .data_len = sizeof(data)};
    if (rpc_transaction_count(&rpc, k->address, "pending", &tx.nonce, NULL))
        return;
    buf_init(&raw, TX_RAW_BYTES_MAX);
    assert_int_equal(tx_sign(sim.secp, &raw, hash, &tx, k, NULL), STATUS_OK);
    enum status st = rpc_send_raw(&rpc, raw.data, raw.len, hash, NULL);
    buf_fini(&raw);
    if (st || sim_tick())
        return;
    memcpy(job->hash, hash, 32);
    job->is_sent = true;
    job->at = sim.height;
}

static void naive_step(struct naive_job *job, uint64_t key, const struct secp_key *k)
{
    struct rpc rpc = {0};
    struct rpc_receipt receipt;
    if (job->is_done || sim.is_dead)
        return;
    enum status st = job->is_sent ? rpc_receipt(&rpc, job->hash, &receipt, NULL) : STATUS_NOT_FOUND;
    if (!st)
        job->is_done = receipt.block_number + SIM_DEPTH <= sim.height;
    else if (st == STATUS_NOT_FOUND && (!job->is_sent || sim.height >= job->at + 4))
        naive_send(job, key, k);
}

static void naive_seed(uint64_t seed, struct totals *totals)
{
    struct naive_job job[PAYMENTS] = {0};
    struct secp_key key;
    uint8_t secret[32] = {[31] = SENDER_FUNDER + 1};
    assert_int_equal(secp_key_init(sim.secp, &key, secret, NULL), STATUS_OK);
    sim_init(seed);
    trouble();
    for (uint32_t i = 0; i < ROUNDS + QUIET / 4; i++) {
        if (i == ROUNDS)
            quiet();
        happen(i < ROUNDS);
        for (uint64_t k = 0; k < PAYMENTS; k++)
            naive_step(&job[k], k + 1, &key);
        if (sim.is_dead)
            sim.crash_at = 0;
        sim.is_dead = false;
    }
    add(totals, rig_judge(0, PAYMENTS));
}

static void test_a_naive_sender_is_caught(void **state)
{
    struct totals t = {0};
    for (uint64_t seed = 1; seed <= NAIVE_SEEDS; seed++)
        naive_seed(seed, &t);
    say("naive", &t, NAIVE_SEEDS);
    assert_true(t.wrong >= NAIVE_SEEDS / 10);
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
        cmocka_unit_test(test_nothing_lost_nothing_doubled),
        cmocka_unit_test(test_a_naive_sender_is_caught),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
