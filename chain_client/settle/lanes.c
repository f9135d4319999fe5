/* What a record must be before it is ours: the transport tag, the one canonical encoding, its lane
 * and number, and the signature of the lane's key on the ledger.
 *
 *   bad tag or bad record   into quarantine, acknowledged, asked for again where it has the number
 *                           of the next record; never stops the lane
 *   same digest again       nothing to do
 *   another digest          the server contradicts itself: quarantine, alarm, the lane stops
 *   key not known, or not checkable now     stays in Redis
 *
 * Numbers may arrive out of order: `ingested` is the end of what is contiguous, and only that is
 * ever put into a batch. */
#include "chain_client/eth/addr.h"
#include "chain_client/ids.h"
#include "chain_client/settle/worker.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define NS_PER_S       1000000000ull
#define QUARANTINE_MAX 1024 /* entries kept of a lane, newest */

struct settle_lane *worker_lane(struct worker *w, uint32_t lane)
{
    for (uint32_t i = 0; i < w->lane_count; i++)
        if (w->lane[i].id == lane)
            return &w->lane[i];
    return NULL;
}

/* ---- rows ---- */

/* What was refused under the next numbers is still missing. */
static enum status find_top(struct worker *w, struct settle_lane *l, struct errtext *err)
{
    uint64_t held = 1;
    enum status st = records_end(&w->db, l->id, &l->top, err);
    l->top = MAX(l->top, l->ingested);
    while (!st && held > 0) {
        st = db_value(&w->db, &held, 0, err,
                      "SELECT count(*) FROM quarantine WHERE lane = ? AND seq = ? AND reason <> "
                      "'conflict'",
                      "uu", (uint64_t)l->id, l->top + 1);
        l->top += !st && held > 0;
    }
    return st;
}

/* After a restart only the clock knows how old a record is: believed between nothing and the most
 * that a record waits. */
static enum status find_due(struct worker *w, struct settle_lane *l, struct errtext *err)
{
    uint64_t now = clock_wall_ms() / 1000, at, most = w->set->batch_seconds_max;
    enum status st = records_at(&w->db, l->id, l->closed + 1, now, &at, err);
    uint64_t age = at < now ? MIN(now - at, most) : 0;
    l->due_ns = clock_mono_ns() + (most - age) * NS_PER_S;
    return st;
}

static enum status load_one(struct worker *w, struct settle_lane *l, struct errtext *err)
{
    struct db_rows q;
    enum status st = db_run(&w->db, err,
                            "INSERT OR IGNORE INTO lanes (lane, ingested, closed, final) VALUES (?,"
                            " 0, 0, 0)",
                            "u", (uint64_t)l->id);
    if (!st)
        st = db_query(&w->db, &q, err,
                      "SELECT ingested, closed, final, key, stopped FROM lanes WHERE lane = ?", "u",
                      (uint64_t)l->id);
    if (!st)
        st = db_next(&q, err);
    if (st)
        return st;
    l->ingested = db_u64(&q, 0);
    l->closed = db_u64(&q, 1);
    l->final = db_u64(&q, 2);
    db_bytes(&q, 3, l->key, 20);
    l->stopped = db_text(&q, 4)[0] != '\0';
    db_done(&q);
    st = find_top(w, l, err);
    if (!st)
        st = find_due(w, l, err);
    l->has_pending = true;
    if (l->stopped)
        log_error("lanes", "lane %" PRIu32 " is stopped: see `residual-settle status`", l->id);
    return !st && !l->stopped ? trouble_clear(&w->db, TROUBLE_LANE_STOPPED, l->id, err) : st;
}

enum status lanes_load(struct worker *w, struct errtext *err)
{
    enum status st = STATUS_OK;
    for (uint32_t i = 0; i < w->lane_count && !st; i++)
        st = load_one(w, &w->lane[i], err);
    return st;
}

static enum status set_key(struct worker *w, struct settle_lane *l, const uint8_t key[20],
                           struct errtext *err)
{
    if (memcmp(l->key, key, 20) == 0)
        return STATUS_OK;
    char text[ADDR_TEXT_BYTES];
    addr_format(text, key);
    log_info("lanes", "lane %" PRIu32 ": records are signed by %s", l->id, text);
    memcpy(l->key, key, 20);
    l->is_warned = false;
    enum status st = db_run(&w->db, err, "UPDATE lanes SET key = ? WHERE lane = ?", "bu", key,
                            (size_t)20, (uint64_t)l->id);
    return st ? st : trouble_clear(&w->db, TROUBLE_LANE_UNKNOWN, l->id, err);
}

static enum status say_unknown(struct worker *w, struct settle_lane *l, struct errtext *err)
{
    char text[160];
    snprintf(text, sizeof(text),
             "lane %" PRIu32 " is not registered on the ledger: its records wait for registerLane",
             l->id);
    return trouble_set(&w->db, TROUBLE_LANE_UNKNOWN, l->id, text, err);
}

enum status lanes_refresh(struct worker *w, struct errtext *err)
{
    enum status st = STATUS_OK;
    for (uint32_t i = 0; i < w->lane_count && !st; i++) {
        struct settle_lane *l = &w->lane[i];
        uint8_t key[20];
        st = view_lane_key(&w->view, "latest", l->id, l->ingested + 1, key, err);
        if (!st)
            st = view_lane_seal(&w->view, "latest", l->id, &l->seal, err);
        if (!st && !addr_is_zero(key))
            st = set_key(w, l, key, err);
        if (!st && addr_is_zero(key))
            st = say_unknown(w, l, err);
    }
    return st;
}

void lanes_closed(const struct worker *w, struct settle_lane *l, uint64_t last)
{
    l->closed = last;
    l->due_ns = clock_mono_ns() + w->set->batch_seconds_max * NS_PER_S;
}

enum status lanes_stop(struct worker *w, struct settle_lane *l, const char *reason,
                       struct errtext *err)
{
    char text[256];
    l->stopped = true;
    enum status st = db_run(&w->db, err, "UPDATE lanes SET stopped = ? WHERE lane = ?", "tu",
                            reason, (uint64_t)l->id);
    snprintf(text, sizeof(text),
             "lane %" PRIu32 " stops: %s; look at its server and its quarantine, stop this worker "
             "and run `residual-settle resume %" PRIu32 "`",
             l->id, reason, l->id);
    return st ? st : trouble_set(&w->db, TROUBLE_LANE_STOPPED, l->id, text, err);
}

/* Kept for a person to look at: the newest of a lane, each at most as long as a record can be. Its
 * number is somebody's word: only that of the next record makes a gap, to be fetched from where
 * records come from; any other becomes one when the numbers below it are here. */
static enum status quarantine(struct worker *w, struct settle_lane *l, uint64_t seq,
                              const char *reason, const struct canon_bytes *entry,
                              struct errtext *err)
{
    uint8_t digest[32];
    size_t kept = MIN(entry->len, (size_t)ENTRY_WHOLE_BYTES_MAX);
    ids_hash(digest, entry->data, entry->len);
    enum status st =
        db_run(&w->db, err,
               "INSERT OR IGNORE INTO quarantine (lane, seq, reason, digest, body, at)"
               " VALUES (?, ?, ?, ?, ?, ?)",
               "uutbbu", (uint64_t)l->id, seq, reason, digest, sizeof(digest),
               (const void *)(kept ? entry->data : digest), kept, clock_wall_ms() / 1000);
    if (!st && db_changes(&w->db)) {
        log_warn("lanes", "lane %" PRIu32 " record %" PRIu64 ": %s; quarantined", l->id, seq,
                 reason);
        st = db_run(&w->db, err,
                    "DELETE FROM quarantine WHERE lane = ? AND id <= (SELECT id FROM quarantine"
                    " WHERE lane = ? ORDER BY id DESC LIMIT 1 OFFSET ?)",
                    "uuu", (uint64_t)l->id, (uint64_t)l->id, (uint64_t)QUARANTINE_MAX);
    }
    if (seq == l->top + 1)
        l->top = seq;
    l->met_foreign = true;
    return st;
}

/* ---- entries ---- */

struct judging {
    const struct worker *w;
    const struct settle_lane *l;
    struct lanes_entry *entry;
};

/* All that needs neither the database nor the ledger, and nearly all of the time. */
static void judge(void *arg, size_t first, size_t end)
{
    const struct judging *j = arg;
    for (size_t i = first; i < end; i++) {
        struct lanes_entry *e = &j->entry[i];
        union record r;
        uint8_t digest[32];
        e->is = LANES_BAD_TAG;
        memset(e->signer, 0, sizeof(e->signer));
        if (!entry_has_tag(j->l->transport_key, e->bytes.data, e->bytes.len))
            continue;
        e->is = LANES_BAD_RECORD;
        if (entry_decode(&r, j->l->id, e->seq, e->bytes.data, e->bytes.len, NULL))
            continue;
        e->is = LANES_SIGNED;
        canon_digest(digest, &r, j->w->domain);
        records_row_from(&e->row, &r, digest);
        e->row.body = (struct canon_bytes){e->bytes.data, e->bytes.len - ENTRY_TAG_BYTES};
        const uint8_t *sig = (const uint8_t *)&r + canon_layout(e->row.type)->signature_member;
        if (secp_recover(j->w->secp, e->signer, sig, digest, NULL))
            memset(e->signer, 0, sizeof(e->signer));
    }
}

/* OK, DENIED (another key signed), or the node's failure. The ledger is asked only when the key we
 * know does not fit: it may have been rotated. */
static enum status check_key(struct worker *w, struct settle_lane *l, const struct lanes_entry *e,
                             struct errtext *err)
{
    uint8_t key[20];
    char found[ADDR_TEXT_BYTES], expected[ADDR_TEXT_BYTES];
    if (!addr_is_zero(l->key) && memcmp(l->key, e->signer, 20) == 0)
        return STATUS_OK;
    enum status st = view_lane_key(&w->view, "latest", l->id, e->seq, key, err);
    if (st)
        return st;
    if (addr_is_zero(key))
        return err_set(err, STATUS_BUSY, "not registered on the ledger");
    if (memcmp(key, e->signer, 20) == 0)
        return set_key(w, l, key, err);
    addr_format(found, e->signer);
    addr_format(expected, key);
    return err_set(err, STATUS_DENIED, "signature: signed by %s, expected %s", found, expected);
}

/* CONFLICT, or the database's failure. What is there already is OK. */
static enum status store(struct worker *w, struct settle_lane *l, struct records_run *run,
                         const struct lanes_entry *e, struct errtext *err)
{
    uint64_t now = clock_wall_ms() / 1000;
    uint8_t old[32];
    enum status st = STATUS_NOT_FOUND;
    if (e->seq <= l->top || !records_run_fits(run, e->seq, e->signer)) {
        st = records_run_store(&w->db, run, now, err);
        if (!st)
            st = records_digest(&w->db, l->id, e->seq, old, err);
        if (!st)
            return memcmp(old, e->row.digest, 32) == 0 ? STATUS_OK : STATUS_CONFLICT;
    }
    if (st == STATUS_NOT_FOUND && e->seq <= l->ingested)
        return STATUS_OK; /* so old that it is forgotten */
    if (st != STATUS_NOT_FOUND)
        return st;
    st = records_run_add(&w->db, run, &e->row, e->signer, err);
    if (!st)
        l->top = MAX(l->top, e->seq);
    return st;
}

static enum status refuse(struct worker *w, struct settle_lane *l, const struct lanes_entry *e,
                          const char *reason, const char *why, struct errtext *err)
{
    if (why)
        log_warn("lanes", "lane %" PRIu32 " record %" PRIu64 ": %s", l->id, e->seq, why);
    return quarantine(w, l, e->seq, reason, &e->bytes, err);
}

static enum status take_one(struct worker *w, struct settle_lane *l, struct records_run *run,
                            struct lanes_entry *e, struct errtext *err)
{
    union record r;
    struct errtext why = ERRTEXT_INIT;
    e->verdict = LANES_TAKEN;
    if (e->is == LANES_BAD_TAG)
        return refuse(w, l, e, "bad tag", NULL, err);
    if (l->stopped || e->seq > l->ingested + LANES_AHEAD_MAX) {
        e->verdict = LANES_HOLD;
        return STATUS_OK;
    }
    if (e->is == LANES_BAD_RECORD) {
        if (entry_decode(&r, l->id, e->seq, e->bytes.data, e->bytes.len, &why))
            return refuse(w, l, e, "bad record", why.text, err);
        return err_set(err, STATUS_CORRUPT,
                       "lane %" PRIu32 " record %" PRIu64 ": judged twice, and not alike", l->id,
                       e->seq);
    }
    enum status st = check_key(w, l, e, &why);
    if (st == STATUS_DENIED)
        return refuse(w, l, e, "bad signature", why.text, err);
    if (st) {
        if (!l->is_warned)
            log_warn("lanes", "lane %" PRIu32 ": records wait: %s", l->id, why.text);
        l->is_warned = true;
        e->verdict = LANES_HOLD;
        return STATUS_OK;
    }
    st = store(w, l, run, e, err);
    if (st != STATUS_CONFLICT)
        return st;
    err_clear(err);
    st = quarantine(w, l, e->seq, "conflict", &e->bytes, err);
    return st ? st : lanes_stop(w, l, "two different records of one number or request", err);
}

enum status lanes_take(struct worker *w, struct settle_lane *l, struct lanes_entry *entry,
                       size_t count, struct errtext *err)
{
    struct judging j = {w, l, entry};
    struct records_run run;
    crew_run(w->crew, judge, &j, count);
    records_run_init(&run, l->id);
    enum status st = STATUS_OK;
    for (size_t i = 0; i < count && !st; i++)
        st = take_one(w, l, &run, &entry[i], err);
    if (!st)
        st = records_run_store(&w->db, &run, clock_wall_ms() / 1000, err);
    records_run_fini(&run);
    return st;
}

enum status lanes_advance(struct worker *w, struct settle_lane *l, struct errtext *err)
{
    uint64_t reached = l->ingested;
    if (l->top == l->ingested)
        return STATUS_OK;
    enum status st = records_reach(&w->db, l->id, l->ingested, &reached, err);
    if (st || reached == l->ingested)
        return st;
    if (l->ingested == l->closed)
        lanes_closed(w, l, l->closed);
    l->ingested = reached;
    if (l->top < reached)
        l->top = reached;
    l->is_warned = false;
    if (l->refetch_wait_ms)
        l->refetch_wait_ms = 1; /* what brings records is asked again soon */
    return db_run(&w->db, err, "UPDATE lanes SET ingested = ? WHERE lane = ?", "uu", reached,
                  (uint64_t)l->id);
}
