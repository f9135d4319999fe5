/* Records are decoded once; every array of Reward points into the batch files, which stay in memory
 * until compute_fini. Offsets come from the table of fields (canon.h). */
#include "chain_client/settle/compute.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static size_t offset_of(uint8_t type, const char *name)
{
    const struct canon_layout *l = canon_layout(type);
    for (size_t i = 0; i < l->field_count; i++)
        if (strcmp(l->field[i].name, name) == 0)
            return l->field[i].offset;
    PANIC("no field %s", name);
}

/* Room for one more item in a doubling array. */
static bool grow(void **items, size_t count, size_t *cap, size_t item_bytes)
{
    if (count < *cap)
        return true;
    size_t more = *cap ? 2 * *cap : 1024;
    void *bigger = mem_try_realloc(*items, more * item_bytes);
    if (!bigger)
        return false;
    *items = bigger;
    *cap = more;
    return true;
}

static enum status too_much(struct errtext *err)
{
    return err_set(err, STATUS_NO_MEMORY, "no memory for the records of an epoch");
}

struct loading {
    struct compute *c;
    const struct archive_batch *batch;
    uint8_t domain[32];
    size_t digest_cap, batch_cap;
    size_t model_offset, inf_digest_offset, method_offset;
};

static enum status take_inference(struct loading *l, const struct record_inference *inf,
                                  const struct canon_bytes *body, const uint8_t digest[32],
                                  struct errtext *err)
{
    struct compute *c = l->c;
    size_t n = c->record_count;
    if (l->batch->header.seq > c->range.paid)
        return STATUS_OK;
    if (n == REWARD_RECORDS_MAX)
        return err_set(err, STATUS_TOO_LARGE, "more than %u records in one epoch",
                       REWARD_RECORDS_MAX);
    if (!grow((void **)&c->record, n, &c->record_cap, sizeof(*c->record)) ||
        !grow((void **)&c->digest, n, &l->digest_cap, 32) ||
        !grow((void **)&c->record_batch, n, &l->batch_cap, sizeof(*c->record_batch)))
        return too_much(err);
    memcpy(c->digest[n], digest, 32);
    reward_record_from(&c->record[n], inf, NULL, l->batch->header.closed_at);
    c->record[n].model_id = body->data + l->model_offset;
    c->record_batch[n] = l->batch->header.seq;
    c->record_count = n + 1;
    return STATUS_OK;
}

static enum status take_evidence(struct loading *l, const struct record_attribution *att,
                                 const struct canon_bytes *body, struct errtext *err)
{
    struct compute *c = l->c;
    size_t n = c->evidence_count;
    if (!grow((void **)&c->evidence, n, &c->evidence_cap, sizeof(*c->evidence)))
        return too_much(err);
    reward_evidence_from(&c->evidence[n], att);
    c->evidence[n].inf_digest = body->data + l->inf_digest_offset;
    c->evidence[n].method_hash = body->data + l->method_offset;
    c->evidence_count = n + 1;
    return STATUS_OK;
}

static enum status take_batch(struct loading *l, struct errtext *err)
{
    struct canon_bytes body;
    size_t offset = 0;
    enum status st, end;
    do {
        union record r;
        uint8_t digest[32];
        end = archive_next_record(&l->batch->records, &offset, &body, err);
        if (end)
            break;
        st = canon_decode(&r, body.data, body.len, err);
        if (st) {
            err_prefix(err, "batch %" PRIu64 ", byte %zu of records.bin", l->batch->header.seq,
                       offset - body.len);
            return STATUS_CORRUPT;
        }
        canon_digest(digest, &r, l->domain);
        if (r.prefix.type == RECORD_INFERENCE)
            st = take_inference(l, &r.inference, &body, digest, err);
        else if (r.prefix.type == RECORD_ATTRIBUTION)
            st = take_evidence(l, &r.attribution, &body, err);
    } while (!st);
    return end == STATUS_NOT_FOUND ? STATUS_OK : end ? end : st;
}

static int order(uint32_t lane_a, uint64_t seq_a, uint32_t lane_b, uint64_t seq_b)
{
    if (lane_a != lane_b)
        return lane_a < lane_b ? -1 : 1;
    return seq_a < seq_b ? -1 : seq_a > seq_b;
}

static int order_records(const void *a, const void *b)
{
    const struct reward_record *x = a, *y = b;
    return order(x->lane, x->seq, y->lane, y->seq);
}

static int order_evidence(const void *a, const void *b)
{
    const struct reward_evidence *x = a, *y = b;
    return order(x->lane, x->seq, y->lane, y->seq);
}

/* While the arrays are sorted, rate_ppb holds the index of the batch that a record is in: it
 * decides the seed and the rate that compute_reward sets. */
static void settle_arrays(struct compute *c)
{
    for (size_t i = 0; i < c->record_count; i++) {
        c->record[i].digest = c->digest[i];
        c->record[i].rate_ppb = (uint32_t)(c->record_batch[i] - c->range.paid_from - 1);
    }
    if (c->record_count)
        qsort(c->record, c->record_count, sizeof(*c->record), order_records);
    if (c->evidence_count)
        qsort(c->evidence, c->evidence_count, sizeof(*c->evidence), order_evidence);
    for (size_t i = 0; i < c->record_count; i++)
        c->record_batch[i] = c->record[i].rate_ppb;
}

static enum status check_place(const struct archive_batch *b, const struct batch_place *place,
                               struct errtext *err)
{
    if (b->place.chain_id == place->chain_id && memcmp(b->place.ledger, place->ledger, 20) == 0)
        return STATUS_OK;
    return err_set(err, STATUS_CORRUPT, "batch %" PRIu64 ": header.json names another ledger",
                   b->header.seq);
}

enum status compute_load(struct compute *c, const struct compute_range *range, struct errtext *err)
{
    struct loading l = {.c = c,
                        .batch = NULL,
                        .model_offset = offset_of(RECORD_INFERENCE, "modelId"),
                        .inf_digest_offset = offset_of(RECORD_ATTRIBUTION, "infDigest"),
                        .method_offset = offset_of(RECORD_ATTRIBUTION, "methodHash")};
    enum status st = STATUS_OK;
    *c = (struct compute){.range = *range};
    CHECK(range->paid > range->paid_from && range->evidence >= range->paid);
    canon_domain(l.domain, range->place.chain_id, range->place.ledger);
    size_t count = range->evidence - range->paid_from;
    c->batch = mem_try_array(count, sizeof(*c->batch));
    if (!c->batch)
        return too_much(err);
    for (size_t i = 0; i < count && !st; i++) {
        struct archive_batch *b = &c->batch[i];
        st = archive_batch_read(b, range->archive_dir, range->paid_from + 1 + i, err);
        if (st)
            break;
        c->batch_count = i + 1;
        st = check_place(b, &range->place, err);
        if (!st)
            st = archive_batch_records(b, range->archive_dir, err);
        l.batch = b;
        if (!st)
            st = take_batch(&l, err);
    }
    if (st) {
        compute_fini(c);
        return st;
    }
    settle_arrays(c);
    return STATUS_OK;
}

void compute_fini(struct compute *c)
{
    for (size_t i = 0; i < c->batch_count; i++)
        archive_batch_fini(&c->batch[i]);
    mem_free(c->batch);
    mem_free(c->record);
    mem_free(c->record_batch);
    mem_free(c->evidence);
    mem_free(c->digest);
    *c = (struct compute){0};
}

/* ---- Reward ---- */

struct tables {
    struct reward_lane *lane;
    struct reward_tariff *tariff;
    struct reward_base *base;
    struct reward_adapter *adapter;
    size_t lane_count, base_count, adapter_count;
};

static void tables_fini(struct tables *t)
{
    mem_free(t->lane);
    mem_free(t->tariff);
    mem_free(t->base);
    mem_free(t->adapter);
}

static struct reward_history history_of(const struct snapshot *s, const struct snapshot_run *run)
{
    return (struct reward_history){run->count ? s->terms + run->first : NULL, run->count};
}

/* Lanes and their tariffs stand in one order in the snapshot. */
static void fill_lanes(struct tables *t, const struct snapshot *s)
{
    size_t at = 0;
    for (size_t i = 0; i < s->lane_count; i++) {
        struct reward_lane *l = &t->lane[t->lane_count++];
        *l = (struct reward_lane){.lane = s->lane[i].lane, .tariff = t->tariff + at};
        memcpy(l->account, s->lane[i].account, 20);
        for (; at < s->tariff_count && s->tariff[at].lane == l->lane; at++) {
            memcpy(t->tariff[at].model_id, s->tariff[at].model_id, 32);
            t->tariff[at].history = history_of(s, &s->tariff[at].named);
            l->tariff_count++;
        }
    }
}

/* What is not registered stays out: TREASURY earns for it. */
static enum status fill_tables(struct tables *t, const struct snapshot *s, struct errtext *err)
{
    *t = (struct tables){.lane = mem_try_array(s->lane_count + 1, sizeof(*t->lane)),
                         .tariff = mem_try_array(s->tariff_count + 1, sizeof(*t->tariff)),
                         .base = mem_try_array(s->base_count + 1, sizeof(*t->base)),
                         .adapter = mem_try_array(s->adapter_count + 1, sizeof(*t->adapter))};
    if (!t->lane || !t->tariff || !t->base || !t->adapter)
        return too_much(err);
    fill_lanes(t, s);
    for (size_t i = 0; i < s->base_count; i++) {
        const struct registry_base *e = &s->base[i].at_t;
        if (!e->registered)
            continue;
        struct reward_base *b = &t->base[t->base_count++];
        memcpy(b->model_id, s->base[i].id, 32);
        b->split = (struct reward_split){e->entry, e->entry_count};
    }
    for (size_t i = 0; i < s->adapter_count; i++) {
        const struct registry_terms *e = &s->adapter[i].at_t;
        if (!e->registered)
            continue;
        struct reward_adapter *a = &t->adapter[t->adapter_count++];
        *a = (struct reward_adapter){.split = {e->entry, e->entry_count},
                                     .parent = e->parent,
                                     .parent_count = e->parent_count,
                                     .history = history_of(s, &s->adapter[i].named)};
        memcpy(a->adapter_id, s->adapter[i].id, 32);
        memcpy(a->datanet_id, e->datanet_id, 32);
    }
    return STATUS_OK;
}

static enum status list_answers(struct compute_result *out, const struct compute *c,
                                struct errtext *err)
{
    const struct reward_stats *stats = &out->reward.stats;
    out->missing = mem_try_array((size_t)stats->missing + 1, sizeof(*out->missing));
    out->refused = mem_try_array((size_t)stats->refused + 1, sizeof(*out->refused));
    if (!out->missing || !out->refused)
        return too_much(err);
    for (size_t i = 0; i < c->record_count; i++) {
        const struct reward_record *r = &c->record[i];
        const struct archive_answer answer = {r->lane, r->seq, r->fee};
        if (r->is_refused && out->refused_count < stats->refused)
            out->refused[out->refused_count++] = answer;
        if (r->is_required && !r->is_scored && out->missing_count < stats->missing)
            out->missing[out->missing_count++] = answer;
    }
    return STATUS_OK;
}

static void place_seeds(struct compute *c, const struct snapshot *snap)
{
    for (size_t i = 0; i < c->record_count; i++) {
        const struct snapshot_batch *b = &snap->batch[c->record_batch[i]];
        c->record[i].rate_ppb = b->rate_ppb;
        c->record[i].seed = b->rate_ppb < TAIL_E9 ? b->seed : NULL;
    }
}

static enum status put_texts(struct compute_result *out, uint64_t epoch,
                             const struct snapshot *snap, const struct owner_lists *owners,
                             struct errtext *err)
{
    struct buf *all[] = {&out->accounts_text, &out->missing_text, &out->owners_text,
                         &out->refused_text, &out->snapshot_text};
    bool failed = false;
    archive_put_accounts(&out->accounts_text, epoch, out->reward.account,
                         out->reward.account_count);
    archive_put_missing(&out->missing_text, epoch, out->missing, out->missing_count);
    archive_put_refused(&out->refused_text, epoch, out->refused, out->refused_count);
    owner_lists_put(&out->owners_text, owners, epoch);
    snapshot_put(&out->snapshot_text, snap);
    for (size_t i = 0; i < ARRAY_COUNT(all); i++)
        failed |= all[i]->failed;
    return failed ? too_much(err) : STATUS_OK;
}

static void result_init(struct compute_result *out)
{
    *out = (struct compute_result){0};
    buf_init(&out->accounts_text, ARCHIVE_TEXT_BYTES_MAX);
    buf_init(&out->missing_text, ARCHIVE_TEXT_BYTES_MAX);
    buf_init(&out->owners_text, ARCHIVE_TEXT_BYTES_MAX);
    buf_init(&out->refused_text, ARCHIVE_TEXT_BYTES_MAX);
    buf_init(&out->snapshot_text, ARCHIVE_TEXT_BYTES_MAX);
}

enum status compute_reward(struct compute_result *out, struct compute *c, uint64_t epoch,
                           const struct snapshot *snap, const struct owner_lists *owners,
                           const struct archive_accounts *prev, struct errtext *err)
{
    struct tables t;
    result_init(out);
    place_seeds(c, snap);
    enum status st = fill_tables(&t, snap, err);
    struct reward_input in = {.tables = {.policy = &snap->policy,
                                         .lane = t.lane,
                                         .lane_count = t.lane_count,
                                         .base = t.base,
                                         .base_count = t.base_count,
                                         .adapter = t.adapter,
                                         .adapter_count = t.adapter_count,
                                         .owners = owners->list,
                                         .owners_count = owners->count,
                                         .method = snap->method,
                                         .method_count = snap->method_count},
                              .record = c->record,
                              .record_count = c->record_count,
                              .prev = prev->account,
                              .prev_count = prev->count,
                              .on_share = c->on_share,
                              .on_share_arg = c->on_share_arg};
    if (!st)
        st = reward_judge(c->record, c->record_count, c->evidence, c->evidence_count, &in.tables,
                          err);
    if (!st)
        st = reward_compute(&out->reward, &in, err);
    if (!st)
        st = list_answers(out, c, err);
    tables_fini(&t);
    if (!st)
        st = put_texts(out, epoch, snap, owners, err);
    if (st)
        compute_result_fini(out);
    return st;
}

/* The lanes of the tariffs that were asked for, without operators. */
static enum status name_lanes(struct snapshot *s, struct errtext *err)
{
    s->lane = mem_try_array(s->tariff_count + 1, sizeof(*s->lane));
    for (size_t i = 0; s->lane && i < s->tariff_count; i++)
        if (!i || s->tariff[i - 1].lane != s->tariff[i].lane)
            s->lane[s->lane_count++] = (struct snapshot_lane){.lane = s->tariff[i].lane};
    return s->lane ? STATUS_OK : too_much(err);
}

enum status compute_refusals(struct compute *c, struct view *v, struct errtext *err)
{
    struct tables t = {0};
    uint64_t last = c->range.paid - c->range.paid_from - 1;
    struct snapshot s = {.d = v->d, .at = c->batch[last].header.closed_at};
    enum status st = snapshot_read_named(&s, c, v, err);
    if (!st)
        st = name_lanes(&s, err);
    if (!st)
        st = fill_tables(&t, &s, err);
    const struct reward_tables tables = {.policy = &s.policy,
                                         .lane = t.lane,
                                         .lane_count = t.lane_count,
                                         .adapter = t.adapter,
                                         .adapter_count = t.adapter_count};
    for (size_t i = 0; i < c->record_count; i++)
        c->record[i].rate_ppb = TAIL_E9;
    if (!st)
        st = reward_judge(c->record, c->record_count, NULL, 0, &tables, err);
    tables_fini(&t);
    snapshot_fini(&s);
    return st;
}

void compute_files(struct archive_file file[5], const struct compute_result *r)
{
    const struct archive_file all[5] = {
        {"accounts.json", r->accounts_text.data, r->accounts_text.len},
        {"missing.json", r->missing_text.data, r->missing_text.len},
        {"owners.json", r->owners_text.data, r->owners_text.len},
        {"refused.json", r->refused_text.data, r->refused_text.len},
        {"snapshot.json", r->snapshot_text.data, r->snapshot_text.len}};
    memcpy(file, all, sizeof(all));
}

void compute_result_fini(struct compute_result *r)
{
    reward_result_fini(&r->reward);
    mem_free(r->missing);
    mem_free(r->refused);
    buf_fini(&r->accounts_text);
    buf_fini(&r->missing_text);
    buf_fini(&r->owners_text);
    buf_fini(&r->refused_text);
    buf_fini(&r->snapshot_text);
    *r = (struct compute_result){0};
}

enum status compute_root(struct tree_node *root, const struct deployment *d,
                         const struct reward_account *account, size_t count, struct errtext *err)
{
    uint8_t dom[32];
    struct tree_builder b;
    struct tree_node leaf;
    enum status st = STATUS_OK;
    tree_reward_domain(dom, d->chain_id, d->vault, d->token);
    tree_builder_init(&b, TREE_REWARD, dom);
    for (size_t i = 0; i < count && !st; i++) {
        tree_reward_leaf(&leaf, dom, (uint32_t)i, account[i].payee, account[i].cumulative);
        st = tree_builder_push(&b, &leaf, err);
    }
    return st ? st : tree_builder_root(&b, root, err);
}
