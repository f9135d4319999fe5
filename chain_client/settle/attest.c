/* One attestor. It is told what a worker wants to propose and believes none of it: epoch, e' and M'
 * are the vault's, M and E must be what the ledger's blocks say, every record is fetched into a
 * copy of its own, every batch and the epoch are computed again, and the header that is signed is
 * the one that came out. What was signed is stored before it leaves. */
#include "chain_client/eth/addr.h"
#include "chain_client/settle/guard.h"
#include "chain_client/settle/roles.h"
#include "chain_client/settle/trouble.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/json.h"
#include "server/base/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define WORKER_MS 15000

struct attest_task {
    struct epoch_header header; /* as the worker says */
    uint64_t previous, planned_block;
    uint8_t digest[32];
    bool is_listed; /* our signature is there */
};

/* ---- what the worker says ---- */

static enum status read_task(struct attest_task *t, const struct guard *g, const struct buf *body,
                             struct errtext *err)
{
    static const struct json_range whole = {0, INT64_MAX};
    json_t *root;
    char ours[ADDR_TEXT_BYTES];
    struct epoch_header *h = &t->header;
    enum status st = json_doc_parse(&root, "candidate", body->data, body->len, 0, err);
    if (st)
        return st;
    struct json_reader r = {.obj = root, .where = "candidate", .err = err};
    h->epoch = (uint64_t)json_need_int(&r, "epoch", whole);
    h->leaves = (uint32_t)json_need_int(&r, "leaves", (struct json_range){0, UINT32_MAX});
    h->batch_paid = (uint64_t)json_need_int(&r, "batch_paid", whole);
    h->batch_evidence = (uint64_t)json_need_int(&r, "batch_evidence", whole);
    t->previous = (uint64_t)json_need_int(&r, "previous", whole);
    t->planned_block = (uint64_t)json_need_int(&r, "planned_block", whole);
    json_need_hex(&r, "prev_root", h->prev_root, 32);
    json_need_hex(&r, "root", h->root, 32);
    json_need_hex(&r, "manifest", h->manifest, 32);
    if (!u128_parse(&h->total, json_need_string(&r, "total")))
        json_fail(&r, STATUS_INVALID, "total", "expected a decimal amount");
    const json_t *signers = json_need_list(&r, "signers", EPOCH_SIGNATURES_MAX);
    addr_format(ours, g->key.address);
    for (size_t i = 0; i < json_array_size(signers); i++) {
        const char *who = json_string_value(json_array_get(signers, i));
        t->is_listed = t->is_listed || (who && strcmp(who, ours) == 0);
    }
    epoch_digest(t->digest, h, g->w.dep.chain_id, g->w.dep.vault);
    json_decref(root);
    return r.st;
}

static enum status ask_worker(struct guard *g, struct fetch **f, struct errtext *err)
{
    const struct fetch_config config = {
        .base = g->set->worker_url, .what = "worker", .timeout_ms = WORKER_MS};
    return fetch_open(f, &config, err);
}

/* NOT_FOUND: no epoch waits. */
static enum status get_task(struct guard *g, struct attest_task *t, struct errtext *err)
{
    struct fetch *f;
    *t = (struct attest_task){.previous = 0};
    enum status st = ask_worker(g, &f, err);
    if (!st)
        st = fetch_perform(
            f, &(struct fetch_request){.method = "GET", .path = "/v1/epochs/candidate"}, err);
    if (!st && fetch_answer(f)->code != 200)
        st = err_set(err, fetch_answer(f)->code == 404 ? STATUS_NOT_FOUND : STATUS_IO,
                     "worker: HTTP status %ld for its candidate", fetch_answer(f)->code);
    if (!st)
        st = read_task(t, g, &fetch_answer(f)->body, err);
    fetch_close(f);
    return st;
}

/* ---- the rules ---- */

/* The reason of a refusal; OK means go on, DENIED that the reason is in err. */
static enum status refuse(struct errtext *err, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
static enum status refuse(struct errtext *err, const char *fmt, ...)
{
    char text[400];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    return err_set(err, STATUS_DENIED, "%s", text);
}

/* The number and e' are the vault's next ones. */
static enum status check_place(struct guard *g, const struct attest_task *t, struct errtext *err)
{
    struct view_money m;
    struct view_epoch before = {.total = 0};
    bool has = false;
    enum status st = view_money(&g->w.view, "latest", &m, err);
    if (!st && m.last_live)
        st = view_epoch(&g->w.view, "latest", m.last_live, &before, err);
    if (!st)
        st = role_has(&g->w.view, g->w.dep.vault, "ATTESTOR", g->key.address, &has, err);
    if (st)
        return st;
    if (!has)
        return refuse(err, "this key does not hold ATTESTOR of the vault");
    if (t->header.epoch != m.last_epoch + 1)
        return refuse(err, "the vault's next epoch is %" PRIu64, m.last_epoch + 1);
    if (t->previous != m.last_live || memcmp(t->header.prev_root, before.root, 32) != 0)
        return refuse(err, "e' is %" PRIu64 " in the vault", m.last_live);
    return STATUS_OK;
}

/* M is W old by the block of its commit, E the ledger's last batch in the block of planning. */
static enum status check_times(struct guard *g, const struct attest_task *t, struct errtext *err)
{
    struct rpc_block last, planned, commit;
    struct view_head head;
    uint8_t hash[32];
    uint64_t number = 0;
    char tag[RPC_TAG_BYTES];
    const struct epoch_header *h = &t->header;
    enum status st = rpc_block(g->w.rpc, "finalized", &last, err);
    if (!st && t->planned_block > last.number)
        return err_set(err, STATUS_BUSY, "block %" PRIu64 " of planning is not final here yet",
                       t->planned_block);
    rpc_tag(tag, t->planned_block);
    if (!st)
        st = rpc_block(g->w.rpc, tag, &planned, err);
    if (!st)
        st = view_head(&g->w.view, tag, &head, err);
    if (st == STATUS_INVALID) /* the answer is empty */
        return STATUS_DENIED;
    if (!st && head.seq != h->batch_evidence)
        return refuse(err,
                      "E is %" PRIu64 ", but the last batch in block %" PRIu64
                      " of planning was %" PRIu64,
                      h->batch_evidence, t->planned_block, head.seq);
    if (!st)
        st = view_batch_hash(&g->w.view, "finalized", h->batch_paid, hash, err);
    if (!st)
        st = events_commit_block(&g->w.view, h->batch_paid, hash, last.number, &number, err);
    if (st == STATUS_NOT_FOUND)
        return STATUS_DENIED;
    rpc_tag(tag, number);
    if (!st)
        st = rpc_block(g->w.rpc, tag, &commit, err);
    if (!st && commit.timestamp + g->w.vault.wait > planned.timestamp)
        return refuse(err,
                      "M = %" PRIu64 " was committed %" PRIu64 " s before planning, W is %" PRIu64,
                      h->batch_paid, planned.timestamp - commit.timestamp, g->w.vault.wait);
    return st;
}

/* Two results of one number are never signed while the first can still be proposed. */
static enum status check_signed(struct guard *g, const struct attest_task *t, bool *again,
                                struct errtext *err)
{
    struct db_rows q;
    uint8_t digest[32], prev_root[32];
    char text[65];
    uint64_t now = clock_wall_ms() / 1000;
    *again = false;
    enum status st =
        db_query(&g->w.db, &q, err,
                 "SELECT digest, prev_root, at FROM signed WHERE epoch = ? ORDER BY at DESC", "u",
                 t->header.epoch);
    while (!st && (st = db_next(&q, err)) == STATUS_OK) {
        db_bytes(&q, 0, digest, 32);
        db_bytes(&q, 1, prev_root, 32);
        uint64_t at = db_u64(&q, 2);
        bool is_live = memcmp(prev_root, t->header.prev_root, 32) == 0;
        hex_encode(text, digest, 32);
        if (memcmp(digest, t->digest, 32) == 0)
            *again = true;
        else if (is_live && now < at + g->set->resign_after_s)
            st = refuse(err,
                        "signed another result of this epoch %" PRIu64 " s ago (0x%s): it may "
                        "still be proposed",
                        now - at, text);
    }
    db_done(&q);
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

static enum status fill_mirror(struct guard *g, const struct attest_task *t, struct errtext *err)
{
    struct view_epoch before = {.batch_paid = g->w.vault.start_seq};
    enum status st = STATUS_OK;
    if (t->previous)
        st = view_epoch(&g->w.view, "finalized", t->previous, &before, err);
    for (uint64_t seq = MAX(before.batch_paid, 1u); !st && seq <= t->header.batch_evidence; seq++) {
        enum mirror_found found;
        struct errtext why = ERRTEXT_INIT;
        st = guard_batch(g, seq, &found, &why);
        if (st)
            err_set(err, st, "%s", why.text);
        else if (found != MIRROR_WHOLE)
            st = refuse(err, "%s", why.text);
    }
    if (!st && t->previous)
        st = mirror_epoch(&g->mirror, t->previous, err);
    if (!st)
        st = mirror_epoch(&g->mirror, t->header.epoch, err);
    return st == STATUS_NOT_FOUND ? STATUS_DENIED : st;
}

static enum status recompute(struct guard *g, const struct attest_task *t,
                             struct epoch_header *found, struct errtext *err)
{
    struct audit_report r;
    struct audit_candidate c = {.header = &t->header, .previous = t->previous};
    struct audit_options opt = {
        .archive_dir = g->set->mirror_dir, .rpc = g->w.rpc, .deployment = &g->w.dep};
    uint8_t digest[32];
    enum status st = audit_candidate(&r, &opt, &c, err);
    epoch_digest(digest, &c.found, g->w.dep.chain_id, g->w.dep.vault);
    if (!st && r.owners_absent && !g->set->owners_absent && r.finding_count == r.fault_count)
        st = refuse(err,
                    "the archive lacks the owners of %zu datanet versions (--owners-absent, if "
                    "nobody has them any more)",
                    r.owners_absent);
    else if (!st && (r.finding_count > r.fault_count ||
                     r.fault_count - r.owners_absent > g->set->faults_max))
        st = refuse(err, "%s%s%s", r.difference[0] ? r.difference : r.finding[0],
                    r.difference[0] ? "" : " (a fault: --faults-max)",
                    r.finding_count > 1 ? " (and more)" : "");
    else if (!st && r.fee_missing * 1000000 > r.fee_required * g->set->missing_max_ppm)
        st = refuse(err,
                    "%" PRIu64 " of %" PRIu64 " required answers have no attribution, more of the "
                    "fee than missing_max_ppm %" PRIu64 " allows",
                    (uint64_t)r.missing_count, r.required, g->set->missing_max_ppm);
    else if (!st && memcmp(digest, t->digest, 32) != 0)
        st = refuse(err, "the recomputed header is another one");
    *found = c.found;
    audit_report_fini(&r);
    return st;
}

/* ---- signing ---- */

static enum status store(struct guard *g, const struct epoch_header *h, const uint8_t digest[32],
                         struct errtext *err)
{
    return db_run(&g->w.db, err,
                  "INSERT OR IGNORE INTO signed (epoch, digest, prev_root, at) VALUES (?, ?, ?, ?)",
                  "ubbu", h->epoch, digest, (size_t)32, h->prev_root, (size_t)32,
                  clock_wall_ms() / 1000);
}

static enum status hand_in(struct guard *g, uint64_t epoch, const uint8_t digest[32],
                           struct errtext *err)
{
    struct fetch *f = NULL;
    struct buf body;
    uint8_t signature[SECP_SIGNATURE_BYTES];
    char text[2 * SECP_SIGNATURE_BYTES + 1];
    enum status st = secp_sign(g->w.secp, signature, &g->key, digest, err);
    buf_init(&body, 1024);
    buf_printf(&body, "{\"epoch\":%" PRIu64 ",\"digest\":", epoch);
    archive_put_hex(&body, digest, 32);
    buf_puts(&body, ",\"signature\":");
    hex_encode(text, signature, sizeof(signature));
    buf_printf(&body, "\"0x%s\"}", text);
    if (!st)
        st = ask_worker(g, &f, err);
    if (!st)
        st = fetch_perform(f,
                           &(struct fetch_request){.method = "POST",
                                                   .path = "/v1/attestations",
                                                   .body = body.data,
                                                   .body_bytes = body.len},
                           err);
    if (!st && fetch_answer(f)->code != 200)
        st = err_set(err, STATUS_IO, "worker: HTTP status %ld for our signature: %.200s",
                     fetch_answer(f)->code,
                     fetch_answer(f)->body.len ? fetch_answer(f)->body.data : "");
    fetch_close(f);
    buf_fini(&body);
    return st;
}

static enum status judge(struct guard *g, const struct attest_task *t, struct errtext *err)
{
    struct epoch_header found;
    uint8_t digest[32];
    bool again;
    enum status st = check_place(g, t, err);
    if (!st)
        st = check_signed(g, t, &again, err);
    if (!st && !again)
        st = check_times(g, t, err);
    if (!st && !again)
        st = fill_mirror(g, t, err);
    if (!st && !again)
        st = recompute(g, t, &found, err);
    if (st)
        return st;
    epoch_digest(digest, again ? &t->header : &found, g->w.dep.chain_id, g->w.dep.vault);
    if (!again)
        st = store(g, &found, digest, err);
    if (!st)
        st = hand_in(g, t->header.epoch, digest, err);
    if (!st)
        log_info("attest", "epoch %" PRIu64 ": signed", t->header.epoch);
    return st;
}

enum status attest_look(struct guard *g, struct errtext *err)
{
    struct attest_task t;
    struct errtext why = ERRTEXT_INIT;
    char text[600];
    g->refused = false;
    enum status st = get_task(g, &t, &why);
    if (!st && !t.is_listed)
        st = judge(g, &t, &why);
    if (st == STATUS_DENIED) {
        g->refused = true;
        snprintf(text, sizeof(text), "epoch %" PRIu64 ": not signed: %s", t.header.epoch, why.text);
        return trouble_set(&g->w.db, TROUBLE_REFUSED, t.header.epoch, text, err);
    }
    if (st && st != STATUS_NOT_FOUND)
        return err_set(err, st, "%s", why.text);
    return trouble_clear_all(&g->w.db, TROUBLE_REFUSED, err);
}
