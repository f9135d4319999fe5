/* Rows of `epochs`, `attestations` and `attestors` as attestors see them. */
#include "chain_client/settle/candidate.h"
#include "chain_client/eth/addr.h"
#include "chain_client/settle/archive.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum status candidate_load(struct epoch_candidate *c, struct db *db, const struct deployment *d,
                           struct errtext *err)
{
    struct db_rows q;
    struct epoch_header *h = &c->header;
    *c = (struct epoch_candidate){0};
    enum status st = db_query(db, &q, err,
                              "SELECT epoch, state, previous, prev_root, paid_from, paid, evidence,"
                              " root, total, leaves, manifest, planned_block FROM epochs ORDER BY"
                              " epoch DESC LIMIT 1",
                              "");
    if (!st)
        st = db_next(&q, err);
    if (!st)
        st = epoch_state_get(&c->state, &q, 1, err);
    if (!st && (c->state == EPOCH_PLANNED || c->state >= EPOCH_PROPOSED))
        st = STATUS_NOT_FOUND;
    if (!st) {
        h->epoch = db_u64(&q, 0);
        c->previous = db_u64(&q, 2);
        db_bytes(&q, 3, h->prev_root, 32);
        c->paid_from = db_u64(&q, 4);
        h->batch_paid = db_u64(&q, 5);
        h->batch_evidence = db_u64(&q, 6);
        db_bytes(&q, 7, h->root, 32);
        h->total = db_amount(&q, 8);
        h->leaves = (uint32_t)db_u64(&q, 9);
        db_bytes(&q, 10, h->manifest, 32);
        c->planned_block = db_u64(&q, 11);
        epoch_digest(c->digest, h, d->chain_id, d->vault);
    }
    db_done(&q);
    return st == STATUS_NOT_FOUND ? err_set(err, st, "no epoch waits for attestors now") : st;
}

enum status candidate_signatures(struct candidate_signatures *out, struct db *db, uint64_t epoch,
                                 const uint8_t digest[32], struct errtext *err)
{
    struct db_rows q;
    out->count = 0;
    enum status st = db_query(db, &q, err,
                              "SELECT signer, signature FROM attestations WHERE epoch = ? AND"
                              " digest = ? ORDER BY signer LIMIT ?",
                              "ubu", epoch, digest, (size_t)32, (uint64_t)EPOCH_SIGNATURES_MAX);
    while (!st && (st = db_next(&q, err)) == STATUS_OK) {
        struct candidate_signature *s = &out->item[out->count++];
        db_bytes(&q, 0, s->signer, 20);
        db_bytes(&q, 1, s->signature, SECP_SIGNATURE_BYTES);
    }
    db_done(&q);
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

enum status candidate_sign(struct db *db, const struct epoch_candidate *c,
                           const struct candidate_signature *s, struct errtext *err)
{
    struct candidate_signatures known;
    enum status st = db_begin(db, err);
    if (st)
        return st;
    st = candidate_signatures(&known, db, c->header.epoch, c->digest, err);
    if (!st && known.count == EPOCH_SIGNATURES_MAX)
        st = err_set(err, STATUS_FULL, "epoch %" PRIu64 " has %d signatures already: no more fit",
                     c->header.epoch, EPOCH_SIGNATURES_MAX);
    if (!st)
        st = db_run(db, err,
                    "INSERT OR IGNORE INTO attestations (epoch, digest, signer, signature) VALUES"
                    " (?, ?, ?, ?)",
                    "ubbb", c->header.epoch, c->digest, (size_t)32, s->signer, (size_t)20,
                    s->signature, sizeof(s->signature));
    return db_end(db, st, err);
}

enum status candidate_quorum_set(struct db *db, const struct candidate_quorum *q,
                                 struct errtext *err)
{
    char text[16];
    snprintf(text, sizeof(text), "%" PRIu32, q->needed);
    enum status st = db_begin(db, err);
    if (st)
        return st;
    st = db_run(db, err, "DELETE FROM attestors", "");
    for (size_t i = 0; i < q->attestors.count && !st; i++)
        st = db_run(db, err, "INSERT INTO attestors (account) VALUES (?)", "b",
                    q->attestors.account[i], (size_t)20);
    if (!st)
        st = db_meta_set(db, "attestors_min", text, err);
    return db_end(db, st, err);
}

enum status candidate_quorum_get(struct candidate_quorum *q, struct db *db, struct errtext *err)
{
    struct db_rows rows;
    char text[16];
    *q = (struct candidate_quorum){0};
    enum status st = db_meta_get(db, "attestors_min", text, sizeof(text), err);
    q->needed = (uint32_t)strtoul(text, NULL, 10);
    if (!st)
        st = db_query(db, &rows, err, "SELECT account FROM attestors ORDER BY account LIMIT ?", "u",
                      (uint64_t)ROLE_HOLDERS_MAX);
    if (st)
        return st;
    while ((st = db_next(&rows, err)) == STATUS_OK)
        db_bytes(&rows, 0, q->attestors.account[q->attestors.count++], 20);
    db_done(&rows);
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

static bool has_signed(const struct candidate_signatures *s, const uint8_t account[20])
{
    for (size_t i = 0; i < s->count; i++)
        if (memcmp(s->item[i].signer, account, 20) == 0)
            return true;
    return false;
}

void candidate_put_absent(struct buf *out, const struct candidate_quorum *q,
                          const struct candidate_signatures *s, const char *quote)
{
    const char *comma = "";
    char text[ADDR_TEXT_BYTES];
    for (size_t i = 0; i < q->attestors.count; i++) {
        if (has_signed(s, q->attestors.account[i]))
            continue;
        addr_format(text, q->attestors.account[i]);
        buf_printf(out, "%s%s%s%s", comma, quote, text, quote);
        comma = quote[0] ? "," : ", ";
    }
}

static void put_hex(struct buf *out, const char *name, const uint8_t *data, size_t len)
{
    buf_printf(out, "\"%s\":", name);
    archive_put_hex(out, data, len);
    buf_putc(out, ',');
}

enum status candidate_put_json(struct buf *out, struct db *db, const struct deployment *d,
                               struct errtext *err)
{
    struct epoch_candidate c;
    struct candidate_signatures s;
    struct candidate_quorum q;
    const struct epoch_header *h = &c.header;
    char text[ADDR_TEXT_BYTES];
    enum status st = candidate_load(&c, db, d, err);
    if (!st)
        st = candidate_signatures(&s, db, h->epoch, c.digest, err);
    if (!st)
        st = candidate_quorum_get(&q, db, err);
    if (st)
        return st;
    buf_printf(out, "{\"epoch\":%" PRIu64 ",\"state\":\"%s\",", h->epoch,
               epoch_state_name(c.state));
    put_hex(out, "digest", c.digest, 32);
    put_hex(out, "prev_root", h->prev_root, 32);
    put_hex(out, "root", h->root, 32);
    put_hex(out, "manifest", h->manifest, 32);
    buf_puts(out, "\"total\":");
    archive_put_amount(out, h->total);
    buf_printf(out,
               ",\"leaves\":%" PRIu32 ",\"previous\":%" PRIu64 ",\"batch_paid_before\":%" PRIu64
               ",\"batch_paid\":%" PRIu64 ",\"batch_evidence\":%" PRIu64
               ",\"planned_block\":%" PRIu64 ",\"needed\":%" PRIu32 ",\"signers\":[",
               h->leaves, c.previous, c.paid_from, h->batch_paid, h->batch_evidence,
               c.planned_block, q.needed);
    for (size_t i = 0; i < s.count; i++) {
        addr_format(text, s.item[i].signer);
        buf_printf(out, "%s\"%s\"", i ? "," : "", text);
    }
    buf_puts(out, "],\"absent\":[");
    candidate_put_absent(out, &q, &s, "\"");
    buf_puts(out, "]}");
    return STATUS_OK;
}

enum status candidate_put_metrics(struct buf *out, struct db *db, struct errtext *err)
{
    struct candidate_quorum q;
    uint64_t have = 0, waits = 0;
    enum status st = candidate_quorum_get(&q, db, err);
    if (!st)
        st = db_value(db, &waits, 0, err, "SELECT count(*) FROM epochs WHERE state = ?", "t",
                      epoch_state_name(EPOCH_COMPUTED));
    if (!st)
        st = db_value(db, &have, 0, err,
                      "SELECT count(*) FROM attestations WHERE epoch = (SELECT max(epoch) FROM"
                      " epochs)",
                      "");
    if (st)
        return st;
    buf_printf(
        out,
        "# HELP residual_settle_attestations_missing Signatures that the epoch in hand waits "
        "for.\n# TYPE residual_settle_attestations_missing gauge\n"
        "residual_settle_attestations_missing %" PRIu64 "\n",
        waits && q.needed > have ? q.needed - have : 0);
    return STATUS_OK;
}
