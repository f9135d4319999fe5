/* Batches. One row advances by one state (enum batch_state) per transaction; whatever a crash
 * interrupts is done again from the row with the same result. */
#include "chain_client/eth/addr.h"
#include "chain_client/settle/batches_impl.h"
#include "chain_client/settle/faults.h"
#include "chain_client/settle/lane_keys.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define NOT_FINAL_MAX 4  /* batches on their way at once */
#define FORGET_RUNS   64 /* in one step */
#define FORGET_NS     600000000000ull

/* ---- closing ---- */

struct closing {
    struct batch_lane lane[SETTINGS_LANES_MAX];
    size_t lane_count;
    uint64_t closed_at;
};

static uint64_t lane_end(const struct settle_lane *l)
{
    uint64_t end = l->ingested;
    if (l->seal.active_at && end > l->seal.last_seq)
        end = l->seal.last_seq; /* the ledger takes nothing past a seal */
    return l->stopped || addr_is_zero(l->key) || end < l->closed ? l->closed : end;
}

/* By monotonic age: a clock that is set hurries nothing and delays nothing. */
static bool is_due(const struct worker *w)
{
    uint64_t count = 0, now = clock_mono_ns();
    bool is_old = false;
    for (uint32_t i = 0; i < w->lane_count; i++) {
        const struct settle_lane *l = &w->lane[i];
        uint64_t waiting = lane_end(l) - l->closed;
        count += waiting;
        is_old = is_old || (waiting && now >= l->due_ns);
    }
    return count && (count >= w->set->batch_count_max || is_old);
}

/* An equal share for each lane that has records; what some do not use goes to the others. */
static void choose_ranges(struct worker *w, struct closing *c)
{
    uint64_t left = w->set->batch_count_max, take[SETTINGS_LANES_MAX] = {0};
    for (bool more = true; more && left;) {
        uint64_t share = MAX(left / w->lane_count, 1u);
        more = false;
        for (uint32_t i = 0; i < w->lane_count && left; i++) {
            uint64_t room = lane_end(&w->lane[i]) - w->lane[i].closed - take[i];
            uint64_t n = MIN(MIN(room, share), left);
            take[i] += n;
            left -= n;
            more = more || room > n;
        }
    }
    c->lane_count = 0;
    for (uint32_t i = 0; i < w->lane_count; i++) { /* lanes ascend in w->lane */
        const struct settle_lane *l = &w->lane[i];
        if (take[i])
            c->lane[c->lane_count++] =
                (struct batch_lane){l->id, l->closed + 1, l->closed + take[i]};
    }
}

/* One record under another key than it was taken in with. */
static bool is_signed_by(const struct worker *w, const struct records_row *row,
                         const uint8_t key[20])
{
    union record r;
    uint8_t digest[32];
    return row->body.data && !canon_decode(&r, row->body.data, row->body.len, NULL) &&
           !canon_verify(&r, digest, w->domain, w->secp, key, NULL);
}

/* Every record under the key that the ledger names for it now: a rotation may have come after it
 * was taken in, and only then is its signature looked at again. *bad: the first that does not
 * verify, 0 for none. */
enum status batches_verify(struct worker *w, const struct batch_lane *r, uint64_t *bad,
                           struct errtext *err)
{
    struct lane_keys keys = {0};
    struct records_cursor c = {.is_open = false};
    struct records_row row;
    size_t hint = 0;
    *bad = 0;
    enum status st = lane_keys_read(&keys, &w->view, "latest", r->lane, r->first, r->last, err);
    if (!st)
        st = records_open(&w->db, &c, r->lane, r->first, r->last, err);
    while (!st && !*bad && (st = records_read(&c, &row, err)) == STATUS_OK) {
        const struct lane_key *key = lane_keys_find(&keys, &hint, r->lane, row.seq);
        if (!key ||
            (memcmp(key->address, c.signer, 20) != 0 && !is_signed_by(w, &row, key->address)))
            *bad = row.seq;
    }
    records_close(&c);
    lane_keys_fini(&keys);
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

static enum status verify_all(struct worker *w, const struct closing *c, bool *good,
                              struct errtext *err)
{
    enum status st = STATUS_OK;
    *good = true;
    for (size_t i = 0; i < c->lane_count && !st && *good; i++) {
        uint64_t bad;
        char why[128];
        st = batches_verify(w, &c->lane[i], &bad, err);
        if (st || !bad)
            continue;
        *good = false;
        snprintf(why, sizeof(why), "record %" PRIu64 " is not signed by the key the ledger names",
                 bad);
        st = lanes_stop(w, worker_lane(w, c->lane[i].lane), why, err);
    }
    return st;
}

/* closedAt <= the block's time at commit, and never falls: the chain's clock, not ours. */
static enum status choose_time(struct worker *w, struct closing *c, struct errtext *err)
{
    struct rpc_block block;
    uint64_t before;
    enum status st = rpc_block(w->rpc, "latest", &block, err);
    if (!st)
        st = db_value(&w->db, &before, 0, err, "SELECT max(closed_at) FROM batches", "");
    if (st)
        return st;
    c->closed_at = MAX(before, block.timestamp);
    return STATUS_OK;
}

static enum status freeze(struct worker *w, const struct closing *c, struct errtext *err)
{
    uint64_t seq = 0;
    enum status st = db_begin(&w->db, err);
    if (st)
        return st;
    st = db_value(&w->db, &seq, 0, err, "SELECT max(seq) FROM batches", "");
    if (!st)
        st = db_run(&w->db, err, "INSERT INTO batches (seq, state, closed_at) VALUES (?, ?, ?)",
                    "utu", seq + 1, batch_state_name(BATCH_CLOSED), c->closed_at);
    for (size_t i = 0; i < c->lane_count && !st; i++) {
        const struct batch_lane *r = &c->lane[i];
        st = db_run(&w->db, err, "INSERT INTO batch_lanes VALUES (?, ?, ?, ?)", "uuuu", seq + 1,
                    (uint64_t)r->lane, r->first, r->last);
        if (!st)
            st = db_run(&w->db, err, "UPDATE lanes SET closed = ? WHERE lane = ?", "uu", r->last,
                        (uint64_t)r->lane);
    }
    st = db_end(&w->db, st, err);
    for (size_t i = 0; i < c->lane_count && !st; i++)
        lanes_closed(w, worker_lane(w, c->lane[i].lane), c->lane[i].last);
    return st;
}

static enum status close_batch(struct worker *w, struct errtext *err)
{
    struct closing c = {0};
    uint64_t on_the_way;
    bool good = false;
    if (w->foreign_batch) /* its numbers may be the very ones that would go into ours */
        return STATUS_OK;
    enum status st =
        db_value(&w->db, &on_the_way, 0, err, "SELECT count(*) FROM batches WHERE state <> ?", "t",
                 batch_state_name(BATCH_FINAL));
    if (st || on_the_way >= NOT_FINAL_MAX || !is_due(w))
        return st;
    choose_ranges(w, &c);
    st = verify_all(w, &c, &good, err);
    if (!st && good)
        st = choose_time(w, &c, err);
    return st || !good ? st : freeze(w, &c, err);
}

/* ---- the chain ---- */

static enum status raise_commit(struct worker *w, const struct archive_batch *b,
                                struct errtext *err)
{
    struct buf data;
    buf_init(&data, 1u << 17);
    batch_put_commit(&data, &b->header, b->lane, b->lane_count);
    struct sender_call call = {.role = SENDER_COMMITTER,
                               .kind = "commit",
                               .key = b->header.seq,
                               .to = w->dep.ledger,
                               .data = &data};
    enum status st = sender_raise(&w->sender, &call, err);
    buf_fini(&data);
    return st;
}

static enum status finish_lane(struct worker *w, const struct batch_lane *r, struct errtext *err)
{
    enum status st = db_run(&w->db, err, "UPDATE lanes SET final = ? WHERE lane = ?", "uu", r->last,
                            (uint64_t)r->lane);
    return st ? st : records_drop_bodies(&w->db, r->lane, r->last, err);
}

static enum status finish(struct worker *w, const struct archive_batch *b, struct errtext *err)
{
    uint8_t tx[32] = {0};
    uint64_t seq = b->header.seq;
    enum status st = sender_hash(&w->sender, "commit", seq, tx, err);
    if (!st)
        st = db_begin(&w->db, err);
    if (st)
        return st;
    st = db_run(&w->db, err, "UPDATE batches SET state = ?, tx = ?, final_at = ? WHERE seq = ?",
                "tbuu", batch_state_name(BATCH_FINAL), tx, sizeof(tx), w->chain_s, seq);
    for (size_t i = 0; i < b->lane_count && !st; i++)
        st = finish_lane(w, &b->lane[i], err);
    st = db_end(&w->db, st, err);
    for (size_t i = 0; i < b->lane_count && !st; i++) {
        struct settle_lane *l = worker_lane(w, b->lane[i].lane);
        if (l)
            l->final = b->lane[i].last;
    }
    if (!st)
        log_info("batch", "batch %" PRIu64 " is final", seq);
    return st ? st : faults_look(w, seq, err);
}

/* A batch that is archived: where is it on the chain? */
static enum status follow(struct worker *w, const struct archive_batch *b, struct errtext *err)
{
    static const uint8_t zero[32];
    uint8_t latest[32], final[32], tx[32];
    uint64_t seq = b->header.seq;
    enum status st = view_batch_hash(&w->view, "finalized", seq, final, err);
    if (!st && !w->is_held && memcmp(final, b->hash, 32) == 0)
        return finish(w, b, err);
    if (!st)
        st = view_batch_hash(&w->view, "latest", seq, latest, err);
    if (st)
        return st;
    if (memcmp(latest, b->hash, 32) == 0)
        return batches_set_state(w, seq, BATCH_INCLUDED, err);
    if (memcmp(latest, zero, 32) != 0)
        return STATUS_OK; /* another one: said in foreign.c, and undone or dropped there */
    struct view_head head;
    st = view_head(&w->view, "latest", &head, err);
    if (st || head.seq + 1 != seq)
        return st;
    st = raise_commit(w, b, err);
    if (!st)
        st = sender_hash(&w->sender, "commit", seq, tx, err);
    return st ? st
              : batches_set_state(w, seq, memcmp(tx, zero, 32) == 0 ? BATCH_INTENT : BATCH_SENT,
                                  err);
}

/* As far as it goes without waiting. */
static enum status advance(struct worker *w, uint64_t seq, enum batch_state state,
                           struct errtext *err)
{
    struct archive_batch b = {0};
    enum status st = state == BATCH_CLOSED || state == BATCH_BUILT
                         ? batches_make(w, seq, state, err)
                         : STATUS_OK;
    if (!st)
        st = batches_load(w, &b, seq, err);
    if (!st)
        st = follow(w, &b, err);
    archive_batch_fini(&b);
    return st;
}

/* Records of batches long final: no repeat of them is looked for any more. */
static enum status forget_old(struct worker *w, struct errtext *err)
{
    struct db_rows q;
    struct batch_lane old[SETTINGS_LANES_MAX];
    size_t count = 0;
    bool left;
    uint64_t keep_s = w->set->record_keep_s;
    if (clock_mono_ns() < w->forget_ns)
        return STATUS_OK;
    enum status st = db_query(&w->db, &q, err,
                              "SELECT l.lane, max(l.last) FROM batch_lanes l JOIN batches b ON"
                              " b.seq = l.seq WHERE b.state = ? AND b.final_at < ? GROUP BY l.lane",
                              "tu", batch_state_name(BATCH_FINAL),
                              w->chain_s > keep_s ? w->chain_s - keep_s : 0);
    while (!st && count < ARRAY_COUNT(old) && (st = db_next(&q, err)) == STATUS_OK)
        old[count++] = (struct batch_lane){.lane = (uint32_t)db_u64(&q, 0), .last = db_u64(&q, 1)};
    db_done(&q);
    st = st == STATUS_NOT_FOUND ? db_begin(&w->db, err) : st;
    if (st)
        return st;
    w->forget_ns = clock_mono_ns() + FORGET_NS;
    for (size_t i = 0; i < count && !st; i++) {
        st = records_forget(&w->db, old[i].lane, old[i].last, FORGET_RUNS, &left, err);
        w->forget_ns = left ? 0 : w->forget_ns;
    }
    return db_end(&w->db, st, err);
}

enum status batches_step(struct worker *w, struct errtext *err)
{
    uint64_t seqs[NOT_FINAL_MAX];
    enum batch_state states[NOT_FINAL_MAX];
    size_t count = 0;
    struct db_rows q;
    enum status st = close_batch(w, err);
    if (!st)
        st = db_query(&w->db, &q, err,
                      "SELECT seq, state FROM batches WHERE state <> ? ORDER BY seq", "t",
                      batch_state_name(BATCH_FINAL));
    if (st)
        return st;
    while (!st && count < NOT_FINAL_MAX && (st = db_next(&q, err)) == STATUS_OK) {
        seqs[count] = db_u64(&q, 0);
        st = batch_state_get(&states[count++], &q, 1, err);
    }
    db_done(&q);
    st = st == STATUS_NOT_FOUND ? STATUS_OK : st;
    for (size_t i = 0; i < count && !st; i++)
        st = advance(w, seqs[i], states[i], err);
    return st ? st : forget_old(w, err);
}
