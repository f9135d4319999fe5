/* What the API shows of records: the `residual` object of a response, receipts and attributions.
 * Everything that is signed is read back from the spool and decoded; what is unsigned says so. */
#include "chain_client/eth/addr.h"
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/record/explained.h"
#include "server/record/recorder_impl.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static void put_u128(struct buf *out, const char *key, u128 v)
{
    char text[40];
    u128_format(text, v);
    buf_printf(out, "\"%s\":\"%s\"", key, text);
}

static void put_adapter_name(struct recorder *r, struct buf *out, const uint8_t id[32])
{
    struct adapter_entry *e = catalog_find_id(r->deps.catalog, id);
    if (!e)
        return;
    buf_puts(out, "\"name\":");
    buf_put_json_string(out, e->name, strlen(e->name));
    buf_putc(out, ',');
    catalog_release(e);
}

static void put_telemetry(const struct request *req, struct buf *out)
{
    double delta2 = 0, base2 = 0;
    for (uint32_t i = 0; i < req->seq_count; i++) {
        delta2 += req->seq[i].delta2;
        base2 += req->seq[i].base2;
    }
    buf_printf(
        out,
        "\"telemetry\":{\"delta_ratio\":%.6g,\"preemptions\":%" PRIu32
        ",\"queue_ms\":%.3f,\"first_token_ms\":%.3f}",
        base2 > 0 ? __builtin_sqrt(delta2 / base2) : 0.0, req->preempt_count,
        req->admit_ns > req->arrive_ns ? (double)(req->admit_ns - req->arrive_ns) / 1e6 : 0.0,
        req->first_token_ns > req->arrive_ns ? (double)(req->first_token_ns - req->arrive_ns) / 1e6
                                             : 0.0);
}

void recorder_residual_json(const struct recorder *r, const struct request *req, struct buf *out)
{
    const struct request_receipt *c = &req->receipt;
    buf_printf(out, "{\"request_id\":\"%s\",\"recorded\":%s,", req->id_hex,
               c->recorded ? "true" : "false");
    if (c->recorded) {
        buf_printf(out, "\"lane\":%" PRIu32 ",\"seq\":%" PRIu64 ",\"bound\":%s,", c->lane, c->seq,
                   r->lane.bound ? "true" : "false");
        put_u128(out, "fee", c->fee);
        buf_putc(out, ',');
        buf_put_json_hex(out, "record_digest", c->digest, 32);
        buf_putc(out, ',');
        buf_put_json_hex(out, "receipt", c->signature, 65);
        buf_putc(out, ',');
        buf_put_json_hex(out, "salt", c->salt, 32);
        buf_putc(out, ',');
    }
    buf_puts(out, "\"adapters\":[");
    for (uint32_t i = 0; i < req->comp.n; i++) {
        buf_puts(out, i ? ",{\"name\":" : "{\"name\":");
        buf_put_json_string(out, req->entry[i]->name, strlen(req->entry[i]->name));
        buf_putc(out, ',');
        buf_put_json_hex(out, "id", req->comp.part[i].adapter, 32);
        buf_printf(out, ",\"weight\":%.6g}",
                   (double)req->comp.part[i].weight_q16 / COMPOSITION_WEIGHT_ONE);
    }
    buf_puts(out, "],");
    put_telemetry(req, out);
    buf_putc(out, '}');
}

/* ---- reading records back ---- */

/* Settled long ago, or of an unbound lane and old: not an error of anybody's. */
static enum status refuse_archived(struct recorder *r, uint64_t seq, struct errtext *err)
{
    uint64_t first = spool_first_seq(r->spool);
    if (seq >= first)
        return STATUS_OK;
    return err_coded(err, STATUS_NOT_FOUND, "archived", "id",
                     "record %" PRIu64 " is archived: this server keeps the records from %" PRIu64
                     " on%s",
                     seq, first,
                     r->lane.bound ? "; the settled ones are in the settlement worker's archive"
                                   : " (spool_keep_bytes, spool_keep_s)");
}

static enum status read_record(struct recorder *r, uint64_t seq, struct buf *body,
                               union record *rec, struct errtext *err)
{
    enum status archived = refuse_archived(r, seq, err);
    if (archived)
        return archived;
    struct spool_cursor c;
    uint64_t got;
    enum status st = spool_cursor_open(&c, r->spool, seq, err);
    if (!st)
        st = spool_cursor_next(&c, &got, body, err);
    spool_cursor_close(&c);
    if (!st && body->len < ENTRY_TAG_BYTES)
        st = err_set(err, STATUS_CORRUPT, "record %" PRIu64 ": %zu bytes", seq, body->len);
    return st ? st
              : canon_decode(rec, (const uint8_t *)body->data, body->len - ENTRY_TAG_BYTES, err);
}

/* The inference record of an entry. The lookup log is kept apart from the spool: if one of them was
 * restored without the other, nobody is shown another's record. */
static enum status read_inference(struct recorder *r, const struct lookup_entry *e,
                                  struct buf *body, union record *rec, struct errtext *err)
{
    enum status st = read_record(r, e->seq, body, rec, err);
    if (!st && rec->prefix.type == RECORD_VOID)
        return err_coded(err, STATUS_NOT_FOUND, "void", "id",
                         "record %" PRIu64 " was lost, and a void record stands in its place",
                         e->seq);
    if (!st && (rec->prefix.type != RECORD_INFERENCE ||
                memcmp(rec->inference.request_id, e->request_id, 32) != 0))
        st =
            err_set(err, STATUS_NOT_FOUND, "record %" PRIu64 " belongs to another request", e->seq);
    return st;
}

/* An account may have several keys, and outlives each of them. */
static bool may_see(const struct recorder_viewer *who, const struct lookup_entry *e)
{
    return who->admin || e->fair_key == who->fair_key ||
           (who->account && memcmp(who->account, e->account, sizeof(e->account)) == 0);
}

static enum status find(struct recorder *r, const uint8_t id[32], const struct recorder_viewer *who,
                        struct lookup_entry *e, struct errtext *err)
{
    if (lookup_get(r->lookup, id, e) && may_see(who, e))
        return STATUS_OK;
    return err_set(err, STATUS_NOT_FOUND,
                   "no record of this request id is known to this key (the newest %d are kept)",
                   LOOKUP_MAX);
}

static void put_raw(struct buf *out, const struct buf *body)
{
    static const char digits[] = "0123456789abcdef";
    buf_puts(out, "\"record\":\"0x");
    for (size_t i = 0; i + ENTRY_TAG_BYTES < body->len; i++) {
        buf_putc(out, digits[(uint8_t)body->data[i] >> 4]);
        buf_putc(out, digits[(uint8_t)body->data[i] & 15]);
    }
    buf_putc(out, '"');
}

static void put_signer(struct recorder *r, struct buf *out)
{
    char address[ADDR_TEXT_BYTES], ledger[ADDR_TEXT_BYTES];
    addr_format(address, r->lane.key.address);
    addr_format(ledger, r->lane.ledger);
    buf_printf(out, "\"signer\":\"%s\",\"chain_id\":%" PRIu64 ",\"ledger\":\"%s\",", address,
               r->lane.chain_id, ledger);
}

static void put_inference(struct recorder *r, const union record *rec, const struct lookup_entry *e,
                          struct buf *out)
{
    const struct record_inference *inf = &rec->inference;
    uint8_t digest[32];
    canon_digest(digest, rec, r->lane.domain);
    buf_printf(out,
               "\"lane\":%" PRIu32 ",\"seq\":%" PRIu64 ",\"status\":%u,\"tokens_in\":%" PRIu32
               ",\"tokens_out\":%" PRIu32 ",",
               inf->prefix.lane, inf->prefix.seq, inf->status, inf->tokens_in, inf->tokens_out);
    put_u128(out, "fee", inf->fee);
    buf_printf(out, ",\"start_ms\":%" PRIu64 ",\"end_ms\":%" PRIu64 ",", inf->start_ms,
               inf->end_ms);
    buf_put_json_hex(out, "record_digest", digest, 32);
    buf_putc(out, ',');
    buf_put_json_hex(out, "receipt", inf->signature, 65);
    buf_putc(out, ',');
    buf_put_json_hex(out, "salt", e->salt, 32);
    buf_putc(out, ',');
}

bool recorder_find_id(struct recorder *r, const uint8_t tail[RECORDER_ID_TAIL_BYTES],
                      uint8_t id[32])
{
    return lookup_find_tail(r->lookup, tail, RECORDER_ID_TAIL_BYTES, id);
}

enum status recorder_receipt_json(struct recorder *r, const uint8_t id[32],
                                  const struct recorder_viewer *who, struct buf *out,
                                  struct errtext *err)
{
    struct lookup_entry e;
    union record rec;
    struct buf body;
    enum status st = find(r, id, who, &e, err);
    if (st)
        return st;
    buf_init(&body, SPOOL_BODY_BYTES_MAX);
    st = read_inference(r, &e, &body, &rec, err);
    if (!st) {
        char hex[65];
        hex_encode(hex, id, 32);
        buf_printf(out, "{\"object\":\"residual.receipt\",\"request_id\":\"%s\",", hex);
        put_inference(r, &rec, &e, out);
        put_signer(r, out);
        put_raw(out, &body);
        buf_putc(out, '}');
    }
    buf_fini(&body);
    return st;
}

/* What of an attribution is shown beside the record: all may be NULL. */
struct shown {
    const struct lookup_entry *entry;
    const struct tail_set *set;
    const struct explained *evidence;
};

/* credit NULL: an unsigned preview, whose shares are the evidence's. */
static void put_credit(struct recorder *r, const struct shown *w, uint32_t k, uint32_t gain,
                       const struct tail_credit *credit, struct buf *out)
{
    const struct tail_adapter *a = &w->set->adapter[k];
    buf_putc(out, '{');
    put_adapter_name(r, out, a->id);
    buf_put_json_hex(out, "id", a->id, 32);
    buf_printf(out, ",\"weight\":%.6g,\"gain_ppb\":%" PRIu32 ",\"gain_nats\":%.4f,",
               (double)a->weight / COMPOSITION_WEIGHT_ONE, gain,
               (double)w->entry->solo_q8[k] / 256.0);
    explained_put_contributors(out, w->evidence, k, credit);
    explained_put_sources(out, w->evidence, k);
    buf_putc(out, '}');
}

static void put_influence(struct recorder *r, const struct tail_influence *inf,
                          const struct shown *w, struct buf *out)
{
    buf_puts(out, "\"adapters\":[");
    for (uint32_t k = 0; k < inf->count && k < w->set->count; k++) {
        if (k)
            buf_putc(out, ',');
        put_credit(r, w, k, inf->adapter[k].gain, &inf->adapter[k], out);
    }
    buf_puts(out, "],");
    explained_put_choices(out, w->evidence);
}

/* How far the record has gone: on this disk, with the settlement worker, in a final batch. */
static const char *record_state(struct recorder *r, uint64_t seq)
{
    struct recorder_stats now;
    recorder_get_stats(r, &now);
    return seq <= now.seq_final ? "final" : seq <= now.seq_shipped ? "shipped" : "durable";
}

static enum status put_recorded(struct recorder *r, const struct shown *w, struct buf *out,
                                struct errtext *err)
{
    const struct lookup_entry *e = w->entry;
    union record rec;
    uint8_t digest[32];
    struct buf body;
    struct tail_influence *inf = mem_alloc(sizeof(*inf));
    buf_init(&body, SPOOL_BODY_BYTES_MAX);
    enum status st = read_record(r, e->att_seq, &body, &rec, err);
    if (!st && (rec.prefix.type != RECORD_ATTRIBUTION || rec.attribution.inf_seq != e->seq))
        st = err_set(err, STATUS_NOT_FOUND, "record %" PRIu64 " is not the attribution of %" PRIu64,
                     e->att_seq, e->seq);
    if (!st && rec.attribution.outcome == RECORD_OUTCOME_SCORED)
        st = tail_influence_decode(inf, rec.attribution.influence.data,
                                   rec.attribution.influence.len, err);
    if (!st) {
        canon_digest(digest, &rec, r->lane.domain);
        buf_printf(out, "\"seq\":%" PRIu64 ",\"outcome\":%u,\"record_state\":\"%s\",", e->att_seq,
                   rec.attribution.outcome, record_state(r, e->att_seq));
        buf_put_json_hex(out, "record_digest", digest, 32);
        buf_putc(out, ',');
        buf_put_json_hex(out, "signature", rec.attribution.signature, 65);
        buf_putc(out, ',');
        put_influence(r, inf, w, out);
        put_signer(r, out);
        put_raw(out, &body);
    }
    buf_fini(&body);
    mem_free(inf);
    return st;
}

static void put_preview(struct recorder *r, const struct shown *w, struct buf *out)
{
    buf_puts(out, "\"adapters\":[");
    for (uint32_t k = 0; k < w->entry->adapter_count && k < w->set->count; k++) {
        if (k)
            buf_putc(out, ',');
        put_credit(r, w, k, w->entry->gain[k], NULL, out);
    }
    buf_puts(out, "],");
    explained_put_choices(out, w->evidence);
    buf_puts(out, "\"note\":\"unsigned preview: this answer requires no attribution record\"");
}

/* The inference of an id, and what adapters it had. */
static enum status find_answer(struct recorder *r, const uint8_t id[32],
                               const struct recorder_viewer *who, struct lookup_entry *e,
                               struct tail_set *set, struct errtext *err)
{
    union record rec;
    struct buf body;
    enum status st = find(r, id, who, e, err);
    if (st)
        return st;
    buf_init(&body, SPOOL_BODY_BYTES_MAX);
    st = read_inference(r, e, &body, &rec, err);
    if (!st)
        st = tail_set_decode(set, rec.inference.set.data, rec.inference.set.len, err);
    buf_fini(&body);
    return st;
}

enum status recorder_attribution_json(struct recorder *r, const uint8_t id[32],
                                      const struct recorder_viewer *who, struct buf *out,
                                      struct errtext *err)
{
    static const char *const states[] = {[LOOKUP_NOT_SCORED] = "not_scored",
                                         [LOOKUP_PENDING] = "pending",
                                         [LOOKUP_PREVIEW_WAIT] = "pending",
                                         [LOOKUP_PREVIEW] = "preview",
                                         [LOOKUP_RECORDED] = "recorded"};
    struct lookup_entry e;
    struct tail_set set;
    struct explained evidence;
    char hex[65];
    enum status st = find_answer(r, id, who, &e, &set, err);
    if (st)
        return st;
    bool waits = e.state == LOOKUP_PENDING || e.state == LOOKUP_PREVIEW_WAIT;
    bool kept = !waits && explained_load(&evidence, r, e.seq, NULL) == STATUS_OK;
    if (kept)
        explained_fill(&evidence, &e);
    const struct shown w = {.entry = &e, .set = &set, .evidence = kept ? &evidence : NULL};
    hex_encode(hex, id, 32);
    buf_printf(out,
               "{\"object\":\"residual.attribution\",\"request_id\":\"%s\",\"state\":\"%s\","
               "\"signed\":%s,\"lane\":%" PRIu32 ",\"inference_seq\":%" PRIu64
               ",\"method\":\"%s\",",
               hex, states[e.state], e.state == LOOKUP_RECORDED ? "true" : "false", r->lane.id,
               e.seq, GAIN_METHOD);
    if (e.state == LOOKUP_RECORDED)
        st = put_recorded(r, &w, out, err);
    else if (e.state == LOOKUP_PREVIEW)
        put_preview(r, &w, out);
    else
        buf_puts(out, "\"adapters\":[]");
    buf_putc(out, '}');
    if (kept)
        explained_fini(&evidence);
    return st;
}

enum status recorder_inputs_json(struct recorder *r, const uint8_t id[32],
                                 const struct recorder_viewer *who, struct buf *out,
                                 struct errtext *err)
{
    struct lookup_entry e;
    struct tail_set set;
    struct explained evidence;
    char hex[65];
    enum status st = find_answer(r, id, who, &e, &set, err);
    if (!st)
        st = explained_load(&evidence, r, e.seq, err);
    if (st)
        return st;
    hex_encode(hex, id, 32);
    buf_printf(out, "{\"object\":\"residual.inputs\",\"request_id\":\"%s\",\"method\":\"%s\",", hex,
               GAIN_METHOD);
    buf_put_json_hex(out, "salt", e.salt, 32);
    buf_puts(out, ",\"set\":[");
    for (uint32_t k = 0; k < set.count; k++) {
        buf_puts(out, k ? ",{" : "{");
        buf_put_json_hex(out, "id", set.adapter[k].id, 32);
        buf_printf(out, ",\"weight\":%" PRId32 "}", set.adapter[k].weight);
    }
    buf_puts(out, "],");
    buf_put(out, evidence.inputs, evidence.inputs_len);
    buf_putc(out, '}');
    explained_fini(&evidence);
    return STATUS_OK;
}

enum status recorder_read_range(struct recorder *r, uint64_t first, uint64_t last, struct buf *out,
                                struct errtext *err)
{
    struct spool_cursor c;
    struct buf body;
    uint64_t seq = first - 1;
    if (first == 0 || last < first)
        return err_set(err, STATUS_INVALID,
                       "range %" PRIu64 " to %" PRIu64 ": expected 1 <= first <= last", first,
                       last);
    enum status st = refuse_archived(r, first, err);
    if (!st)
        st = spool_cursor_open(&c, r->spool, first, err);
    if (st)
        return st;
    buf_init(&body, SPOOL_BODY_BYTES_MAX);
    while (seq < last && !(st = spool_cursor_next(&c, &seq, &body, err))) {
        if (out->len + body.len + SPOOL_FRAME_HEAD_BYTES > out->bytes_max)
            break;
        spool_frame_put(out, seq, body.data, body.len);
    }
    spool_cursor_close(&c);
    buf_fini(&body);
    return st == STATUS_NOT_FOUND && out->len > 0 ? STATUS_OK : st;
}
