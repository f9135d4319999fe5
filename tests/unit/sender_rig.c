/* One worker's sender, without a worker: rounds of wanting, sending and looking. */
#include "tests/unit/sender_rig.h"
#include "server/base/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void rig_keys(struct rig *r)
{
    for (uint32_t i = 0; i < SENDER_ROLES; i++) {
        uint8_t secret[32] = {[31] = (uint8_t)(i + 1)};
        struct sender_signer *g = &r->sender.signer[i];
        assert_int_equal(secp_key_init(sim.secp, &g->key, secret, NULL), STATUS_OK);
        g->present = true;
        memcpy(sim.account[i], g->key.address, 20);
    }
    memset(sim.account[SIM_STRANGER], 0xee, 20);
}

static void rig_open(struct rig *r)
{
    struct errtext err = ERRTEXT_INIT;
    struct nodes_config config = {.chain_id = SIM_CHAIN_ID, .head_age_max_s = 60};
    memcpy(config.genesis_hash, sim.block[0].hash, 32);
    nodes_init(&r->nodes, &config);
    for (uint32_t i = 0; i < r->node_count; i++) {
        r->rpc[i] = (struct rpc){.node = i};
        assert_int_equal(nodes_add(&r->nodes, &r->rpc[i], &err), STATUS_OK);
    }
    r->sender = (struct sender){.db = &r->db,
                                .nodes = &r->nodes,
                                .secp = sim.secp,
                                .chain_id = SIM_CHAIN_ID,
                                .bump_ms = 10000,
                                .fee_max = (u128)500 * 1000000000u};
    rig_keys(r);
    if (db_open(&r->db, r->dir, &err) || sender_start(&r->sender, &err))
        fail_msg("%s", err.text);
    sim_watch(r->db.h);
}

void rig_init(struct rig *r, uint64_t seed, uint32_t node_count)
{
    const char *base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    *r = (struct rig){.node_count = node_count};
    rig_keys(r);
    sim_init(seed);
    snprintf(r->dir, sizeof(r->dir), "%s/rs-sender-XXXXXX", base);
    assert_non_null(mkdtemp(r->dir));
    rig_open(r);
}

void rig_fini(struct rig *r)
{
    static const char *const file[] = {"lock", "settle.db", "settle.db-wal", "settle.db-shm"};
    char path[128];
    db_close(&r->db);
    for (size_t i = 0; i < ARRAY_COUNT(file); i++) {
        snprintf(path, sizeof(path), "%s/%s", r->dir, file[i]);
        unlink(path);
    }
    rmdir(r->dir);
}

/* Nothing is carried over but the files. */
void rig_reopen(struct rig *r)
{
    sim.is_dead = false;
    sim.crash_at = 0;
    db_close(&r->db);
    rig_open(r);
}

uint64_t rig_count(struct db *db, const char *kind, uint64_t key, enum intent_state state)
{
    uint64_t n = 0;
    struct errtext err = ERRTEXT_INIT;
    if (db_value(db, &n, 0, &err,
                 "SELECT count(*) FROM intents WHERE kind = ? AND key = ? AND state = ?", "tut",
                 kind, key, intent_state_name(state)))
        fail_msg("%s", err.text);
    return n;
}

uint64_t rig_troubles(struct db *db, const char *kind)
{
    uint64_t n = 0;
    assert_int_equal(
        db_value(db, &n, 0, NULL, "SELECT count(*) FROM troubles WHERE kind = ?", "t", kind),
        STATUS_OK);
    return n;
}

static enum status rig_raise(struct rig *r, char kind, uint64_t key, struct errtext *err)
{
    static const uint8_t to[20] = {1};
    struct buf data;
    buf_init(&data, 16);
    buf_putc(&data, kind);
    buf_putc(&data, (char)key);
    struct sender_call call = {.role = kind == 'c' ? SENDER_COMMITTER : SENDER_FUNDER,
                               .kind = kind == 'c' ? "commit" : "pay",
                               .key = key,
                               .to = to,
                               .data = &data,
                               .value = kind == 'c' ? 0 : 1};
    enum status st = sender_raise(&r->sender, &call, err);
    buf_fini(&data);
    return st;
}

/* Commits as the batches do: by what the chain lacks. Payments, which no contract guards: once, and
 * again only where the sender says that its nonce went to another. */
static enum status rig_want(struct rig *r, struct errtext *err)
{
    struct rpc *rpc = nodes_rpc(&r->nodes);
    const struct sim_state *s;
    enum status st = sim_state_at(rpc, "latest", &s, err);
    if (!st && s->head < r->commits)
        st = rig_raise(r, 'c', s->head + 1, err);
    for (uint64_t k = 1; k <= r->payments && !st; k++) {
        uint64_t all = 0, foreign = 0;
        st = db_value(&r->db, &all, 0, err,
                      "SELECT count(*) FROM intents WHERE kind = 'pay' AND key = ?", "u", k);
        if (!st)
            st = db_value(&r->db, &foreign, 0, err,
                          "SELECT count(*) FROM intents WHERE kind = 'pay' AND key = ? AND state ="
                          " ?",
                          "ut", k, intent_state_name(INTENT_FOREIGN));
        if (!st && all == foreign)
            st = rig_raise(r, 'p', k, err);
    }
    return st;
}

enum status rig_round(struct rig *r, struct errtext *err)
{
    enum nodes_verdict verdict;
    enum status st = sender_round(&r->sender, &verdict, err);
    if (!st)
        st = rig_want(r, err);
    return st ? st : sender_step(&r->sender, err);
}

/* Seconds of the chain's life, a block every two. */
void rig_run(struct rig *r, uint32_t seconds)
{
    for (uint32_t i = 0; i < seconds; i++) {
        struct errtext err = ERRTEXT_INIT;
        sim.now_ms += 1000;
        if (i % 2)
            sim_mine();
        enum status st = rig_round(r, &err);
        if (r->db.failed)
            fail_msg("%s: %s", status_name(st), err.text);
    }
}

struct verdict rig_judge(uint64_t commits, uint64_t payments)
{
    const struct sim_state *s = &sim.block[sim.height].after;
    struct verdict v = {.lost = (uint32_t)(commits - s->head)};
    for (uint64_t k = 1; k <= payments; k++) {
        v.lost += s->paid[k] == 0;
        v.doubled += s->paid[k] > 1;
    }
    return v;
}
