/* One batch: its header against the chain and the batch before, its files by digest, and every
 * record by its own rules, its signature, its leaf and what it points at. */
#include "chain_client/canon.h"
#include "chain_client/eth/addr.h"
#include "chain_client/settle/audit_impl.h"
#include "chain_client/tree.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <string.h>

/* ---- lanes ---- */

static struct audit_lane *find_lane(struct audit *a, uint32_t lane)
{
    for (size_t i = 0; i < a->lane_count; i++)
        if (a->lane[i].lane == lane)
            return &a->lane[i];
    if (!audit_grow((void **)&a->lane, a->lane_count, &a->lane_cap, sizeof(*a->lane)))
        return NULL;
    a->lane[a->lane_count] =
        (struct audit_lane){.lane = lane, .next = a->is_partial ? 0 : 1, .base = 1};
    return &a->lane[a->lane_count++];
}

static struct audit_item *find_item(struct audit_lane *l, uint64_t seq)
{
    return seq >= l->base && seq < l->next ? &l->item[seq - l->base] : NULL;
}

static enum status follow_lanes(struct audit *a, const struct archive_batch *b, bool deep,
                                struct errtext *err)
{
    for (size_t i = 0; i < b->lane_count; i++) {
        const struct batch_lane *r = &b->lane[i];
        struct audit_lane *l = find_lane(a, r->lane);
        if (!l)
            return err_set(err, STATUS_NO_MEMORY, "no memory for the lanes of an audit");
        if (r->first != l->next && l->next)
            audit_finding(
                a, "batch %" PRIu64 ": lane %" PRIu32 " begins at %" PRIu64 ", expected %" PRIu64,
                b->header.seq, r->lane, r->first, l->next);
        if (!deep || r->first != l->next) { /* nothing is known of the records before */
            l->base = deep ? r->first : r->last + 1;
            l->next = deep ? r->first : r->last + 1;
        }
    }
    return STATUS_OK;
}

/* ---- keys ---- */

static enum status load_keys(struct audit *a, const struct archive_batch *b, struct errtext *err)
{
    enum status st = STATUS_OK;
    a->keys.count = 0;
    for (size_t i = 0; i < b->lane_count && !st; i++)
        st = lane_keys_read(&a->keys, &a->view, "finalized", b->lane[i].lane, b->lane[i].first,
                            b->lane[i].last, err);
    return st;
}

/* ---- records ---- */

struct batch_walk {
    struct audit *a;
    const struct archive_batch *batch;
    size_t lane_idx, key_idx;
    uint64_t seq; /* the next number of that lane */
    struct tree_builder tree;
    uint32_t inferences;
    u128 fee_sum;
};

/* Why a record does not count, for people: its signature is checked once more. */
static void tell_unsigned(struct batch_walk *w, const union record *r)
{
    struct audit *a = w->a;
    struct errtext why = ERRTEXT_INIT;
    uint8_t digest[32];
    const struct lane_key *key =
        lane_keys_find(&a->keys, &w->key_idx, r->prefix.lane, r->prefix.seq);
    CHECK(key); /* the caller compared the place with the header's ranges */
    if (addr_is_zero(key->address))
        audit_finding(a, "lane %" PRIu32 ": not registered on the ledger", r->prefix.lane);
    if (canon_verify(r, digest, a->domain, a->secp, key->address, &why))
        audit_finding(a, "batch %" PRIu64 ", lane %" PRIu32 " seq %" PRIu64 ": signature: %s",
                      w->batch->header.seq, r->prefix.lane, r->prefix.seq, why.text);
}

/* Of a record that lies before what this audit read, nothing can be said. */
static void check_pair(struct audit *a, struct audit_lane *l, const struct record_attribution *att)
{
    struct audit_item *of = find_item(l, att->inf_seq);
    struct tail_influence influence = {.count = 0};
    const char *wrong = NULL;
    if (!of && att->inf_seq < l->base)
        return;
    bool is_named =
        of && of->type == RECORD_INFERENCE && memcmp(of->digest, att->inf_digest, 32) == 0;
    if (!is_named)
        wrong = "infDigest is not that of an inference at infSeq";
    else if (of->has_evidence)
        wrong = "a second attribution of one inference";
    else if (att->outcome == RECORD_OUTCOME_SCORED &&
             (tail_influence_decode(&influence, att->influence.data, att->influence.len, NULL) ||
              influence.count != of->adapters))
        wrong = "the influence does not list the adapters of its inference";
    if (is_named)
        of->has_evidence = 1;
    if (wrong)
        audit_fault(a, "lane %" PRIu32 " seq %" PRIu64 ": %s", att->prefix.lane, att->prefix.seq,
                    wrong);
}

static enum status remember(struct batch_walk *w, const union record *r, const uint8_t digest[32],
                            struct errtext *err)
{
    struct audit *a = w->a;
    struct audit_lane *l = find_lane(a, r->prefix.lane);
    bool good = l != NULL;
    if (good && r->prefix.type == RECORD_ATTRIBUTION)
        check_pair(a, l, &r->attribution);
    good = good && audit_grow((void **)&l->item, l->next - l->base, &l->item_cap, sizeof(*l->item));
    if (good) {
        struct audit_item *item = &l->item[l->next++ - l->base];
        *item = (struct audit_item){.type = r->prefix.type};
        memcpy(item->digest, digest, 32);
        if (r->prefix.type == RECORD_INFERENCE) {
            item->adapters = (uint8_t)(r->inference.set.len / 36);
            good = audit_grow((void **)&a->request_id, a->request_count, &a->request_cap, 32);
        }
    }
    if (!good)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the records of an audit");
    if (r->prefix.type == RECORD_INFERENCE)
        memcpy(a->request_id[a->request_count++], r->inference.request_id, 32);
    return STATUS_OK;
}

static void count_record(struct batch_walk *w, const union record *r)
{
    struct audit_report *rep = w->a->report;
    rep->records++;
    if (r->prefix.type == RECORD_INFERENCE) {
        rep->inferences++;
        w->inferences++;
        w->fee_sum += r->inference.fee;
    } else if (r->prefix.type == RECORD_ATTRIBUTION) {
        rep->attributions++;
    } else {
        rep->voids++;
    }
}

/* The record's place in the order (lane, seq) of the header's ranges; false past the last. */
static bool expect_place(struct batch_walk *w, uint32_t *lane, uint64_t *seq)
{
    const struct archive_batch *b = w->batch;
    if (w->lane_idx < b->lane_count && w->seq > b->lane[w->lane_idx].last) {
        w->lane_idx++;
        w->seq = w->lane_idx < b->lane_count ? b->lane[w->lane_idx].first : 0;
    }
    if (w->lane_idx == b->lane_count)
        return false;
    *lane = b->lane[w->lane_idx].lane;
    *seq = w->seq++;
    return true;
}

static enum status check_record(struct batch_walk *w, const struct audit_signed *s,
                                struct errtext *err)
{
    struct audit *a = w->a;
    struct errtext why = ERRTEXT_INIT;
    union record r;
    uint32_t lane = 0;
    uint64_t seq = 0, batch = w->batch->header.seq;
    if (!expect_place(w, &lane, &seq)) {
        audit_finding(a, "batch %" PRIu64 ": more records than its lanes have", batch);
        return STATUS_CORRUPT;
    }
    if (canon_decode(&r, s->body.data, s->body.len, &why)) {
        audit_finding(a, "batch %" PRIu64 ", lane %" PRIu32 " seq %" PRIu64 ": %s", batch, lane,
                      seq, why.text);
        if (canon_decode_layout(&r, s->body.data, s->body.len, NULL))
            return STATUS_CORRUPT;
    }
    if (r.prefix.lane != lane || r.prefix.seq != seq) {
        audit_finding(a,
                      "batch %" PRIu64 ": lane %" PRIu32 " seq %" PRIu64 " where lane %" PRIu32
                      " seq %" PRIu64 " belongs",
                      batch, r.prefix.lane, r.prefix.seq, lane, seq);
        return STATUS_CORRUPT;
    }
    if (!s->is_signed)
        tell_unsigned(w, &r);
    struct tree_log_leaf leaf = {
        .type = r.prefix.type, .lane = lane, .seq = seq, .digest = s->digest};
    if (r.prefix.type == RECORD_INFERENCE)
        leaf.fee = r.inference.fee;
    struct tree_node node;
    tree_log_leaf(&node, a->log_dom, &leaf);
    count_record(w, &r);
    enum status st = tree_builder_push(&w->tree, &node, &why);
    if (st) {
        audit_finding(a, "batch %" PRIu64 ": %s", batch, why.text);
        return STATUS_CORRUPT;
    }
    return remember(w, &r, s->digest, err);
}

static void check_sums(struct batch_walk *w)
{
    const struct batch_header *h = &w->batch->header;
    struct tree_node root = {.sum = 0};
    struct errtext why = ERRTEXT_INIT;
    uint32_t lane;
    uint64_t seq;
    if (expect_place(w, &lane, &seq))
        audit_finding(w->a,
                      "batch %" PRIu64 ": records.bin ends before lane %" PRIu32 " seq %" PRIu64,
                      h->seq, lane, seq);
    if (tree_builder_root(&w->tree, &root, &why) || memcmp(root.hash, h->log_root, 32) != 0)
        audit_finding(w->a, "batch %" PRIu64 ": the records' root is not logRoot", h->seq);
    if (root.sum != h->fee_sum || w->fee_sum != h->fee_sum)
        audit_finding(w->a, "batch %" PRIu64 ": the records' fees are not feeSum", h->seq);
    if (w->inferences != h->inferences || w->tree.count != h->leaf_count)
        audit_finding(w->a,
                      "batch %" PRIu64 ": %u inferences of %u records, the header says %u of %u",
                      h->seq, w->inferences, w->tree.count, h->inferences, h->leaf_count);
}

static enum status walk_records(struct audit *a, struct archive_batch *b, struct errtext *err)
{
    struct batch_walk w = {.a = a, .batch = b, .seq = b->lane[0].first};
    struct errtext why = ERRTEXT_INIT;
    struct audit_signed *item = NULL;
    size_t count = 0;
    enum status st = archive_batch_records(b, a->opt->archive_dir, &why);
    if (st) {
        err_prefix(&why, "batch %" PRIu64, b->header.seq);
        st = audit_file_finding(a, st, &why);
        return st ? err_set(err, st, "%s", why.text) : STATUS_OK;
    }
    st = load_keys(a, b, err);
    tree_builder_init(&w.tree, TREE_LOG, a->log_dom);
    if (!st) /* one more than a batch may have, so that it is seen */
        st = audit_signatures(a, &b->records, TREE_LEAVES_MAX + 1, &item, &count, err);
    for (size_t i = 0; i < count && !st; i++)
        st = check_record(&w, &item[i], err);
    mem_free(item);
    if (st == STATUS_CORRUPT)
        return STATUS_OK; /* a finding: what follows would only repeat it */
    if (!st)
        check_sums(&w);
    return st;
}

/* ---- headers ---- */

static enum status check_header(struct audit *a, const struct archive_batch *b, struct errtext *err)
{
    struct errtext why = ERRTEXT_INIT;
    const struct deployment *d = a->opt->deployment;
    const struct archive_batch *p = a->prev.header.seq + 1 == b->header.seq ? &a->prev : NULL;
    uint8_t hash[32];
    uint64_t seq = b->header.seq;
    if (b->place.chain_id != d->chain_id || memcmp(b->place.ledger, d->ledger, 20) != 0)
        audit_finding(a, "batch %" PRIu64 ": header.json names another ledger", seq);
    if (batch_check(&b->header, b->lane, b->lane_count, &why))
        audit_finding(a, "batch %" PRIu64 ": %s", seq, why.text);
    err_clear(&why);
    if ((p && p->header.seq) || seq == 1) {
        if (batch_check_next(&b->header, seq == 1 ? NULL : &p->header, p ? p->hash : NULL, &why))
            audit_finding(a, "batch %" PRIu64 ": %s", seq, why.text);
    }
    enum status st = view_batch_hash(&a->view, "finalized", seq, hash, err);
    if (!st && memcmp(hash, b->hash, 32) != 0)
        audit_finding(a, "batch %" PRIu64 ": its header is not the one on the chain", seq);
    return st;
}

enum status audit_one_batch(struct audit *a, uint64_t seq, bool deep, struct errtext *err)
{
    struct archive_batch b;
    struct errtext why = ERRTEXT_INIT;
    enum status st = archive_batch_read(&b, a->opt->archive_dir, seq, &why);
    if (st) {
        archive_batch_fini(&a->prev);
        st = audit_file_finding(a, st, &why);
        return st ? err_set(err, st, "%s", why.text) : STATUS_OK;
    }
    st = check_header(a, &b, err);
    if (!st)
        st = follow_lanes(a, &b, deep, err);
    if (!st && deep) {
        st = walk_records(a, &b, err);
        a->report->batches++;
        a->report->fee_sum += b.header.fee_sum;
    }
    mem_free((void *)(uintptr_t)b.records.data);
    b.records = (struct canon_bytes){NULL, 0};
    /* After a damaged file the lanes go on where the header says. */
    for (size_t i = 0; i < b.lane_count && !st; i++) {
        struct audit_lane *l = find_lane(a, b.lane[i].lane);
        if (l && l->next != b.lane[i].last + 1)
            l->base = l->next = b.lane[i].last + 1;
    }
    archive_batch_fini(&a->prev);
    a->prev = b;
    return st;
}
