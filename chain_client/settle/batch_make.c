/* A batch from its frozen ranges: root, header, manifest and files. The same rows give the same
 * bytes, so what a crash interrupts is made again, and a damaged file too. */
#include "chain_client/eth/keccak.h"
#include "chain_client/settle/batches_impl.h"
#include "chain_client/tree.h"
#include "server/base/check.h"
#include "server/base/log.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <string.h>

/* ---- rows ---- */

static enum status load_lanes(struct worker *w, struct archive_batch *b, struct errtext *err)
{
    struct db_rows q;
    b->lane = mem_array(BATCH_LANES_MAX, sizeof(*b->lane));
    enum status st = db_query(
        &w->db, &q, err, "SELECT lane, first, last FROM batch_lanes WHERE seq = ? ORDER BY lane",
        "u", b->header.seq);
    while (!st && (st = db_next(&q, err)) == STATUS_OK && b->lane_count < BATCH_LANES_MAX)
        b->lane[b->lane_count++] =
            (struct batch_lane){(uint32_t)db_u64(&q, 0), db_u64(&q, 1), db_u64(&q, 2)};
    db_done(&q);
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

enum status batches_load(struct worker *w, struct archive_batch *b, uint64_t seq,
                         struct errtext *err)
{
    struct db_rows q;
    struct batch_header *h = &b->header;
    *b = (struct archive_batch){.place = {.chain_id = w->dep.chain_id}};
    memcpy(b->place.ledger, w->dep.ledger, 20);
    enum status st = db_query(&w->db, &q, err,
                              "SELECT closed_at, prev_hash, hash, log_root, manifest, leaf_count,"
                              " inferences, fee_sum, cum_fee FROM batches WHERE seq = ?",
                              "u", seq);
    if (!st)
        st = db_next(&q, err);
    if (st)
        return st;
    *h = (struct batch_header){.seq = seq,
                               .spec = CANON_SPEC,
                               .closed_at = db_u64(&q, 0),
                               .leaf_count = (uint32_t)db_u64(&q, 5),
                               .inferences = (uint32_t)db_u64(&q, 6),
                               .fee_sum = db_amount(&q, 7),
                               .cum_fee = db_amount(&q, 8)};
    db_bytes(&q, 1, h->prev_hash, 32);
    db_bytes(&q, 2, b->hash, 32);
    db_bytes(&q, 3, h->log_root, 32);
    db_bytes(&q, 4, h->manifest, 32);
    db_done(&q);
    st = load_lanes(w, b, err);
    return st ? st : batch_lanes_hash(b->lanes_hash, b->lane, b->lane_count, err);
}

enum status batches_set_state(struct worker *w, uint64_t seq, enum batch_state state,
                              struct errtext *err)
{
    log_debug("batch", "batch %" PRIu64 ": %s", seq, batch_state_name(state));
    return db_run(&w->db, err, "UPDATE batches SET state = ? WHERE seq = ?", "tu",
                  batch_state_name(state), seq);
}

/* ---- making ---- */

struct assembly {
    struct archive_batch batch;
    struct buf records, manifest, header;
};

static void assembly_fini(struct assembly *a)
{
    a->batch.records = (struct canon_bytes){NULL, 0}; /* belongs to a->records */
    archive_batch_fini(&a->batch);
    buf_fini(&a->records);
    buf_fini(&a->manifest);
    buf_fini(&a->header);
}

static enum status add_lane(struct worker *w, struct assembly *a, const struct batch_lane *r,
                            struct tree_builder *tree, struct errtext *err)
{
    struct records_cursor c;
    struct records_row row;
    enum status st = records_open(&w->db, &c, r->lane, r->first, r->last, err);
    while (!st && (st = records_read(&c, &row, err)) == STATUS_OK) {
        struct tree_node node;
        struct tree_log_leaf leaf = {.type = row.type,
                                     .lane = r->lane,
                                     .seq = row.seq,
                                     .digest = row.digest,
                                     .fee = row.fee};
        if (!row.body.data) {
            st = err_set(err, STATUS_NOT_FOUND,
                         "lane %" PRIu32 " record %" PRIu64 ": only the archive has its bytes",
                         r->lane, row.seq);
            break;
        }
        tree_log_leaf(&node, w->log_dom, &leaf);
        st = tree_builder_push(tree, &node, err);
        archive_put_record(&a->records, row.body.data, row.body.len);
        a->batch.header.inferences += leaf.type == RECORD_INFERENCE;
    }
    records_close(&c);
    return st == STATUS_NOT_FOUND && row.seq == r->last ? STATUS_OK : st;
}

static enum status read_previous(struct worker *w, struct batch_header *h, struct errtext *err)
{
    struct db_rows q;
    if (h->seq == 1)
        return STATUS_OK;
    enum status st = db_query(&w->db, &q, err, "SELECT hash, cum_fee FROM batches WHERE seq = ?",
                              "u", h->seq - 1);
    if (!st)
        st = db_next(&q, err);
    if (st)
        return err_set(err, STATUS_CORRUPT, "state database: batch %" PRIu64 " is not there",
                       h->seq - 1);
    db_bytes(&q, 0, h->prev_hash, 32);
    h->cum_fee = db_amount(&q, 1);
    db_done(&q);
    return STATUS_OK;
}

/* Everything about a closed batch, from its ranges. */
static enum status assemble(struct worker *w, struct assembly *a, uint64_t seq, struct errtext *err)
{
    struct tree_builder tree;
    struct tree_node root = {.sum = 0};
    struct batch_header *h = &a->batch.header;
    *a = (struct assembly){0};
    buf_init(&a->records, ARCHIVE_RECORDS_BYTES_MAX);
    buf_init(&a->manifest, ARCHIVE_TEXT_BYTES_MAX);
    buf_init(&a->header, ARCHIVE_TEXT_BYTES_MAX);
    tree_builder_init(&tree, TREE_LOG, w->log_dom);
    enum status st = batches_load(w, &a->batch, seq, err);
    h->inferences = 0;
    h->cum_fee = 0;
    if (!st)
        st = read_previous(w, h, err);
    for (size_t i = 0; i < a->batch.lane_count && !st; i++)
        st = add_lane(w, a, &a->batch.lane[i], &tree, err);
    if (!st)
        st = tree_builder_root(&tree, &root, err);
    if (st)
        return st;
    memcpy(h->log_root, root.hash, 32);
    h->leaf_count = tree.count;
    h->fee_sum = root.sum;
    h->cum_fee += root.sum;
    a->batch.records = (struct canon_bytes){(uint8_t *)a->records.data, a->records.len};
    archive_put_batch_manifest(&a->manifest, &a->batch, tree.count, &a->batch.records);
    keccak_256(h->manifest, a->manifest.data, a->manifest.len);
    st = batch_check(h, a->batch.lane, a->batch.lane_count, err);
    if (!st)
        st = archive_batch_seal(&a->batch, err);
    archive_put_header(&a->header, &a->batch);
    if (!st && (a->records.failed || a->manifest.failed || a->header.failed))
        st = err_set(err, STATUS_NO_MEMORY, "batch %" PRIu64 ": no memory for its files", seq);
    return st;
}

static enum status build(struct worker *w, struct assembly *a, uint64_t seq, struct errtext *err)
{
    const struct batch_header *h = &a->batch.header;
    enum status st = assemble(w, a, seq, err);
    if (!st)
        st = db_run(&w->db, err,
                    "UPDATE batches SET state = ?, prev_hash = ?, hash = ?, log_root = ?,"
                    " manifest = ?, leaf_count = ?, inferences = ?, fee_sum = ?, cum_fee = ? WHERE"
                    " seq = ?",
                    "tbbbbuunnu", batch_state_name(BATCH_BUILT), h->prev_hash, (size_t)32,
                    a->batch.hash, (size_t)32, h->log_root, (size_t)32, h->manifest, (size_t)32,
                    (uint64_t)h->leaf_count, (uint64_t)h->inferences, h->fee_sum, h->cum_fee, seq);
    if (!st)
        log_info("batch", "batch %" PRIu64 ": %u records, %u inferences", seq, h->leaf_count,
                 h->inferences);
    return st;
}

/* After a restart: what was built, built again from the same rows. */
static enum status rebuild(struct worker *w, struct assembly *a, uint64_t seq, struct errtext *err)
{
    struct archive_batch row = {0};
    enum status st = assemble(w, a, seq, err);
    if (!st)
        st = batches_load(w, &row, seq, err);
    if (!st && memcmp(row.hash, a->batch.hash, 32) != 0)
        st = err_set(err, STATUS_CORRUPT, "batch %" PRIu64 ": built again with another hash", seq);
    archive_batch_fini(&row);
    return st;
}

/* What the archive holds under this number and could be a batch was adopted (adopt.c): anything
 * else there is replaced. */
static enum status publish(struct worker *w, const struct assembly *a, struct errtext *err)
{
    char name[ARCHIVE_NAME_BYTES];
    uint64_t seq = a->batch.header.seq;
    archive_batch_name(name, seq);
    struct archive_file file[] = {{"records.bin", a->records.data, a->records.len},
                                  {"manifest.json", a->manifest.data, a->manifest.len},
                                  {"header.json", a->header.data, a->header.len}};
    struct archive_folder folder = {w->set->archive_dir, name, file, ARRAY_COUNT(file), true};
    enum status st = archive_publish(&folder, err);
    if (!st)
        st = stores_publish(w, &folder, a->batch.hash, err);
    return st ? st : batches_set_state(w, seq, BATCH_ARCHIVED, err);
}

enum status batches_rehearse(struct worker *w, uint64_t seq, uint8_t hash[32], struct errtext *err)
{
    struct assembly a;
    enum status st = assemble(w, &a, seq, err);
    memcpy(hash, a.batch.hash, 32);
    assembly_fini(&a);
    return st;
}

enum status batches_make(struct worker *w, uint64_t seq, enum batch_state state,
                         struct errtext *err)
{
    struct assembly a;
    enum status st = state == BATCH_CLOSED ? build(w, &a, seq, err) : rebuild(w, &a, seq, err);
    if (!st)
        st = publish(w, &a, err);
    assembly_fini(&a);
    return st;
}
