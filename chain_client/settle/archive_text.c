/* The archive's texts: one renderer per file, and readers for the two that a recomputation starts
 * from. A reader parses, takes what it needs, renders it again and compares: one spelling each. */
#include "chain_client/eth/addr.h"
#include "chain_client/eth/keccak.h"
#include "chain_client/settle/archive.h"
#include "chain_client/tree.h"
#include "server/base/check.h"
#include "server/base/json.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <string.h>

void archive_put_hex(struct buf *out, const uint8_t *data, size_t len)
{
    char text[2 * 32 + 1];
    CHECK(len <= 32);
    hex_encode(text, data, len);
    buf_printf(out, "\"0x%s\"", text);
}

void archive_put_amount(struct buf *out, u128 v)
{
    char text[40];
    u128_format(text, v);
    buf_printf(out, "\"%s\"", text);
}

static void put_lanes(struct buf *out, const struct archive_batch *b)
{
    buf_puts(out, "\"lanes\":[");
    for (size_t i = 0; i < b->lane_count; i++)
        buf_printf(out, "%s{\"first\":%" PRIu64 ",\"lane\":%" PRIu32 ",\"last\":%" PRIu64 "}",
                   i ? "," : "", b->lane[i].first, b->lane[i].lane, b->lane[i].last);
    buf_putc(out, ']');
}

static void put_file(struct buf *out, const char *name, const void *data, size_t len)
{
    uint8_t digest[32];
    keccak_256(digest, data, len);
    buf_printf(out, "{\"bytes\":%zu,\"file\":\"%s\",\"keccak\":", len, name);
    archive_put_hex(out, digest, 32);
    buf_putc(out, '}');
}

/* ---- batches ---- */

void archive_put_header(struct buf *out, const struct archive_batch *b)
{
    const struct batch_header *h = &b->header;
    buf_printf(out, "{\"chain_id\":%" PRIu64 ",\"closed_at\":%" PRIu64 ",\"cum_fee\":",
               b->place.chain_id, h->closed_at);
    archive_put_amount(out, h->cum_fee);
    buf_puts(out, ",\"fee_sum\":");
    archive_put_amount(out, h->fee_sum);
    buf_puts(out, ",\"format\":\"residual.header.1\",\"hash\":");
    archive_put_hex(out, b->hash, 32);
    buf_printf(out, ",\"inferences\":%" PRIu32 ",", h->inferences);
    put_lanes(out, b);
    buf_puts(out, ",\"lanes_hash\":");
    archive_put_hex(out, b->lanes_hash, 32);
    buf_printf(out, ",\"leaf_count\":%" PRIu32 ",\"ledger\":", h->leaf_count);
    archive_put_hex(out, b->place.ledger, 20);
    buf_puts(out, ",\"log_root\":");
    archive_put_hex(out, h->log_root, 32);
    buf_puts(out, ",\"manifest\":");
    archive_put_hex(out, h->manifest, 32);
    buf_puts(out, ",\"prev_hash\":");
    archive_put_hex(out, h->prev_hash, 32);
    buf_printf(out, ",\"seq\":%" PRIu64 ",\"spec\":%u}\n", h->seq, h->spec);
}

void archive_put_batch_manifest(struct buf *out, const struct archive_batch *b,
                                uint32_t record_count, const struct canon_bytes *records)
{
    buf_printf(out,
               "{\"batch\":%" PRIu64 ",\"chain_id\":%" PRIu64 ",\"closed_at\":%" PRIu64
               ",\"format\":\"residual.batch.1\",",
               b->header.seq, b->place.chain_id, b->header.closed_at);
    put_lanes(out, b);
    buf_puts(out, ",\"ledger\":");
    archive_put_hex(out, b->place.ledger, 20);
    buf_printf(out, ",\"record_count\":%" PRIu32 ",\"records\":", record_count);
    put_file(out, "records.bin", records->data, records->len);
    buf_printf(out, ",\"spec\":%u}\n", b->header.spec);
}

/* A reader of an archive's text: what is wrong there is CORRUPT. */
static struct json_reader reader(const json_t *obj, const char *file, struct errtext *err)
{
    return (struct json_reader){.obj = obj, .where = file, .wrong = STATUS_CORRUPT, .err = err};
}

/* An integer below max + 1; the archive's are below 2^63, as every number of the records is. */
static uint64_t take_int(struct json_reader *r, const char *key, int64_t max)
{
    return (uint64_t)json_need_int(r, key, (struct json_range){0, max});
}

static u128 take_amount(struct json_reader *r, const char *key)
{
    const char *text = json_need_string(r, key);
    u128 v = 0;
    if (!u128_parse(&v, text))
        json_fail(r, STATUS_CORRUPT, key, "found \"%.60s\", expected a decimal string", text);
    return v;
}

static void take_lanes(struct archive_batch *b, struct json_reader *r)
{
    const json_t *list = json_need_list(r, "lanes", BATCH_LANES_MAX);
    b->lane_count = json_array_size(list);
    if (!b->lane_count)
        json_fail(r, STATUS_CORRUPT, "lanes", "found none, expected 1 to %d", BATCH_LANES_MAX);
    b->lane = mem_try_array(b->lane_count + 1, sizeof(*b->lane));
    if (!b->lane)
        json_fail(r, STATUS_NO_MEMORY, "lanes", "no memory for %zu", b->lane_count);
    for (size_t i = 0; !r->st && i < b->lane_count; i++) {
        struct json_reader l = json_enter_item(r, "lanes", i, json_array_get(list, i));
        b->lane[i] =
            (struct batch_lane){(uint32_t)take_int(&l, "lane", UINT32_MAX),
                                take_int(&l, "first", INT64_MAX), take_int(&l, "last", INT64_MAX)};
    }
}

static enum status take_header(struct archive_batch *b, const json_t *root, struct errtext *err)
{
    struct batch_header *h = &b->header;
    struct json_reader r = reader(root, "header.json", err);
    b->place.chain_id = take_int(&r, "chain_id", INT64_MAX);
    json_need_hex(&r, "ledger", b->place.ledger, 20);
    h->seq = take_int(&r, "seq", INT64_MAX);
    h->spec = (uint8_t)take_int(&r, "spec", UINT8_MAX);
    h->leaf_count = (uint32_t)take_int(&r, "leaf_count", UINT32_MAX);
    h->inferences = (uint32_t)take_int(&r, "inferences", UINT32_MAX);
    h->closed_at = take_int(&r, "closed_at", INT64_MAX);
    h->fee_sum = take_amount(&r, "fee_sum");
    h->cum_fee = take_amount(&r, "cum_fee");
    json_need_hex(&r, "prev_hash", h->prev_hash, 32);
    json_need_hex(&r, "log_root", h->log_root, 32);
    json_need_hex(&r, "manifest", h->manifest, 32);
    take_lanes(b, &r);
    return r.st ? r.st : archive_batch_seal(b, err);
}

static enum status parse(json_t **root, const char *name, const struct canon_bytes *text,
                         struct errtext *err)
{
    enum status st = json_doc_parse(root, name, (const char *)text->data, text->len, 0, err);
    return st == STATUS_INVALID ? STATUS_CORRUPT : st;
}

static enum status same_text(const char *name, const struct buf *expected,
                             const struct canon_bytes *found, struct errtext *err)
{
    if (!expected->failed && expected->len == found->len &&
        memcmp(expected->data, found->data, found->len) == 0)
        return STATUS_OK;
    size_t at = 0;
    while (at < expected->len && at < found->len && expected->data[at] == (char)found->data[at])
        at++;
    return err_set(err, STATUS_CORRUPT, "%s: differs from its canonical form at byte %zu", name,
                   at);
}

enum status archive_batch_read(struct archive_batch *b, const char *dir, uint64_t seq,
                               struct errtext *err)
{
    char name[ARCHIVE_NAME_BYTES];
    struct canon_bytes text;
    struct buf again;
    *b = (struct archive_batch){0};
    archive_batch_name(name, seq);
    enum status st = archive_read(dir, name, "header.json", ARCHIVE_TEXT_BYTES_MAX, &text, err);
    if (st)
        return st;
    json_t *root;
    buf_init(&again, ARCHIVE_TEXT_BYTES_MAX);
    st = parse(&root, "header.json", &text, err);
    if (!st)
        st = take_header(b, root, err);
    if (!st)
        archive_put_header(&again, b);
    if (!st)
        st = same_text("header.json", &again, &text, err);
    if (!st && b->header.seq != seq)
        st = err_set(err, STATUS_CORRUPT, "header.json: batch %" PRIu64, b->header.seq);
    if (st) {
        err_prefix(err, "%s", name);
        archive_batch_fini(b);
    }
    buf_fini(&again);
    json_decref(root);
    mem_free((void *)(uintptr_t)text.data);
    return st;
}

/* ---- epochs ---- */

void archive_put_accounts(struct buf *out, uint64_t epoch, const struct reward_account *account,
                          size_t count)
{
    buf_puts(out, "{\"accounts\":[");
    for (size_t i = 0; i < count; i++) {
        buf_puts(out, i ? ",{\"account\":" : "{\"account\":");
        archive_put_hex(out, account[i].payee, 20);
        buf_puts(out, ",\"cumulative\":");
        archive_put_amount(out, account[i].cumulative);
        buf_putc(out, '}');
    }
    buf_printf(out, "],\"epoch\":%" PRIu64 ",\"format\":\"residual.accounts.1\"}\n", epoch);
}

static enum status take_accounts(struct archive_accounts *a, const json_t *root,
                                 struct errtext *err)
{
    struct json_reader r = reader(root, "accounts.json", err);
    const json_t *list = json_need_list(&r, "accounts", TREE_LEAVES_MAX);
    a->epoch = take_int(&r, "epoch", INT64_MAX);
    a->count = json_array_size(list);
    a->account = mem_try_array(a->count ? a->count : 1, sizeof(*a->account));
    if (!a->account)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu accounts", a->count);
    for (size_t i = 0; !r.st && i < a->count; i++) {
        struct json_reader o = json_enter_item(&r, "accounts", i, json_array_get(list, i));
        json_need_hex(&o, "account", a->account[i].payee, 20);
        a->account[i].cumulative = take_amount(&o, "cumulative");
    }
    return r.st;
}

enum status archive_accounts_read(struct archive_accounts *a, const char *dir, uint64_t epoch,
                                  struct errtext *err)
{
    char name[ARCHIVE_NAME_BYTES];
    struct canon_bytes text;
    struct buf again;
    *a = (struct archive_accounts){0};
    archive_epoch_name(name, epoch);
    enum status st = archive_read(dir, name, "accounts.json", ARCHIVE_TEXT_BYTES_MAX, &text, err);
    if (st)
        return st;
    json_t *root;
    buf_init(&again, ARCHIVE_TEXT_BYTES_MAX);
    st = parse(&root, "accounts.json", &text, err);
    if (!st)
        st = take_accounts(a, root, err);
    if (!st)
        archive_put_accounts(&again, epoch, a->account, a->count);
    if (!st)
        st = same_text("accounts.json", &again, &text, err);
    if (st) {
        err_prefix(err, "%s", name);
        archive_accounts_fini(a);
    }
    buf_fini(&again);
    json_decref(root);
    mem_free((void *)(uintptr_t)text.data);
    return st;
}

void archive_accounts_fini(struct archive_accounts *a)
{
    mem_free(a->account);
    *a = (struct archive_accounts){0};
}

/* reason: the member between lane and seq, or "". */
static void put_answers(struct buf *out, uint64_t epoch, const char *name, const char *reason,
                        const struct archive_answer *answer, size_t count)
{
    buf_printf(out, "{\"epoch\":%" PRIu64 ",\"format\":\"residual.%s.1\",\"%s\":[", epoch, name,
               name);
    for (size_t i = 0; i < count; i++) {
        buf_puts(out, i ? ",{\"fee\":" : "{\"fee\":");
        archive_put_amount(out, answer[i].fee);
        buf_printf(out, ",\"lane\":%" PRIu32 "%s,\"seq\":%" PRIu64 "}", answer[i].lane, reason,
                   answer[i].seq);
    }
    buf_puts(out, "]}\n");
}

void archive_put_missing(struct buf *out, uint64_t epoch, const struct archive_answer *missing,
                         size_t count)
{
    put_answers(out, epoch, "missing", "", missing, count);
}

void archive_put_refused(struct buf *out, uint64_t epoch, const struct archive_answer *refused,
                         size_t count)
{
    put_answers(out, epoch, "refused", ",\"reason\":1", refused, count);
}

static void put_counts(struct buf *out, const char *name, uint64_t count, u128 fee)
{
    buf_printf(out, "\"%s\":{\"count\":%" PRIu64 ",\"fee\":", name, count);
    archive_put_amount(out, fee);
    buf_putc(out, '}');
}

void archive_put_epoch_manifest(struct buf *out, const struct archive_epoch *e)
{
    const struct epoch_header *h = e->header;
    buf_printf(out,
               "{\"at\":%" PRIu64 ",\"batch_evidence\":%" PRIu64 ",\"batch_paid\":%" PRIu64
               ",\"batch_paid_before\":%" PRIu64 ",\"chain_id\":%" PRIu64 ",\"epoch\":%" PRIu64
               ",\"files\":[",
               e->at, h->batch_evidence, h->batch_paid, e->paid_from, e->chain_id, h->epoch);
    for (size_t i = 0; i < ARRAY_COUNT(e->file); i++) {
        if (i)
            buf_putc(out, ',');
        put_file(out, e->file[i].name, e->file[i].data, e->file[i].len);
    }
    buf_printf(out, "],\"format\":\"residual.epoch.1\",\"leaves\":%" PRIu32 ",", h->leaves);
    put_counts(out, "missing", e->stats->missing, e->stats->fee_missing);
    buf_puts(out, ",\"prev_root\":");
    archive_put_hex(out, h->prev_root, 32);
    buf_printf(out, ",\"previous\":%" PRIu64 ",", e->previous);
    put_counts(out, "refused", e->stats->refused, e->stats->fee_refused);
    buf_putc(out, ',');
    put_counts(out, "required", e->stats->required, e->stats->fee_required);
    buf_puts(out, ",\"root\":");
    archive_put_hex(out, h->root, 32);
    buf_putc(out, ',');
    put_counts(out, "scored", e->stats->scored, e->stats->fee_scored);
    buf_puts(out, ",\"spec\":1,\"total\":");
    archive_put_amount(out, h->total);
    buf_puts(out, ",\"vault\":");
    archive_put_hex(out, e->vault, 20);
    buf_puts(out, "}\n");
}

/* The manifest is the right one, so what it says of a file stands in it as it is written. */
static enum status check_named(const char *dir, const char *folder, const char *name,
                               const struct canon_bytes *manifest, size_t *bytes,
                               struct errtext *err)
{
    struct canon_bytes found;
    struct buf line;
    enum status st = archive_read(dir, folder, name, ARCHIVE_TEXT_BYTES_MAX, &found, err);
    if (st)
        return st;
    buf_init(&line, 256);
    put_file(&line, name, found.data, found.len);
    if (!memmem(manifest->data, manifest->len, line.data, line.len))
        st = err_set(err, STATUS_CORRUPT, "%s/%s is not the file that its manifest names", folder,
                     name);
    *bytes += found.len;
    buf_fini(&line);
    mem_free((void *)(uintptr_t)found.data);
    return st;
}

enum status archive_epoch_check(const char *dir, const char *folder, const uint8_t manifest[32],
                                size_t *bytes, struct errtext *err)
{
    struct canon_bytes text;
    uint8_t digest[32];
    *bytes = 0;
    enum status st = archive_read(dir, folder, "manifest.json", ARCHIVE_TEXT_BYTES_MAX, &text, err);
    if (st)
        return st;
    *bytes = text.len;
    keccak_256(digest, text.data, text.len);
    if (memcmp(digest, manifest, 32) != 0)
        st = err_set(err, STATUS_CORRUPT, "%s/manifest.json is not the epoch's", folder);
    for (size_t i = 0; i < ARCHIVE_EPOCH_FILES && !st; i++) {
        if (strcmp(archive_epoch_files[i], "manifest.json") != 0)
            st = check_named(dir, folder, archive_epoch_files[i], &text, bytes, err);
    }
    mem_free((void *)(uintptr_t)text.data);
    return st;
}
