/* The order of an audit: the deployment, batches 1 to E, then each epoch's money from the very
 * files that were just checked. */
#include "chain_client/settle/audit.h"
#include "chain_client/canon.h"
#include "chain_client/eth/keccak.h"
#include "chain_client/settle/audit_impl.h"
#include "chain_client/settle/compute.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void put_finding(struct audit_report *r, const char *fmt, va_list args)
{
    if (r->finding_count < AUDIT_FINDINGS_MAX)
        vsnprintf(r->finding[r->finding_count], AUDIT_TEXT_BYTES, fmt, args);
    r->finding_count++;
}

void audit_finding(struct audit *a, const char *fmt, ...)
{
    va_list args;
    struct audit_report *r = a->report;
    if (r->finding_count == r->fault_count) {
        va_start(args, fmt);
        vsnprintf(r->difference, AUDIT_TEXT_BYTES, fmt, args);
        va_end(args);
    }
    va_start(args, fmt);
    put_finding(r, fmt, args);
    va_end(args);
}

void audit_fault(struct audit *a, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    put_finding(a->report, fmt, args);
    va_end(args);
    a->report->fault_count++;
}

enum status audit_file_finding(struct audit *a, enum status st, struct errtext *err)
{
    if (st == STATUS_NO_MEMORY)
        return st;
    audit_finding(a, "%s", err->text);
    return STATUS_OK;
}

bool audit_grow(void **items, size_t count, size_t *cap, size_t item_bytes)
{
    if (count < *cap)
        return true;
    size_t more = *cap ? 2 * *cap : 256;
    void *bigger = mem_try_realloc(*items, more * item_bytes);
    if (!bigger)
        return false;
    *items = bigger;
    *cap = more;
    return true;
}

static void progress(struct audit *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void progress(struct audit *a, const char *fmt, ...)
{
    char text[256];
    va_list args;
    if (!a->opt->progress)
        return;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    a->opt->progress(a->opt->arg, text);
}

static enum status begin(struct audit *a, struct audit_report *report,
                         const struct audit_options *opt, struct errtext *err)
{
    const struct deployment *d = opt->deployment;
    *report = (struct audit_report){.finding = mem_array(AUDIT_FINDINGS_MAX, AUDIT_TEXT_BYTES)};
    *a = (struct audit){.opt = opt, .report = report};
    view_init(&a->view, opt->rpc, d);
    canon_domain(a->domain, d->chain_id, d->ledger);
    tree_log_domain(a->log_dom, d->chain_id, d->ledger);
    enum status st = secp_create(&a->secp, err);
    if (!st)
        st = audit_crew(a, err);
    return st ? st : deployment_check(d, opt->rpc, err);
}

static void end(struct audit *a)
{
    for (size_t i = 0; i < a->lane_count; i++)
        mem_free(a->lane[i].item);
    mem_free(a->lane);
    lane_keys_fini(&a->keys);
    mem_free(a->request_id);
    archive_batch_fini(&a->prev);
    view_fini(&a->view);
    crew_destroy(a->crew);
    secp_destroy(a->secp);
}

/* ---- batches ---- */

static int order_ids(const void *x, const void *y)
{
    return memcmp(x, y, 32);
}

static void check_request_ids(struct audit *a)
{
    char text[65];
    if (a->request_count < 2)
        return;
    qsort(a->request_id, a->request_count, 32, order_ids);
    for (size_t i = 1; i < a->request_count; i++) {
        if (memcmp(a->request_id[i - 1], a->request_id[i], 32) != 0)
            continue;
        hex_encode(text, a->request_id[i], 32);
        audit_fault(a, "request %s: charged in two records", text);
    }
}

static enum status audit_batches(struct audit *a, uint64_t deep_from, uint64_t last,
                                 struct errtext *err)
{
    enum status st = STATUS_OK;
    a->report->batch_first = deep_from;
    a->report->batch_last = last;
    for (uint64_t seq = 1; seq <= last && !st; seq++) {
        st = audit_one_batch(a, seq, seq >= deep_from, err);
        if (seq >= deep_from)
            progress(a, "batch %" PRIu64 " of %" PRIu64 ": %" PRIu64 " records, %zu findings", seq,
                     last, a->report->records, a->report->finding_count);
    }
    if (!st)
        check_request_ids(a);
    return st;
}

enum status audit_batch(struct audit_report *report, const struct audit_options *opt, uint64_t seq,
                        struct errtext *err)
{
    struct audit a;
    struct view_head head = {0};
    enum status st = begin(&a, report, opt, err);
    if (!st)
        st = view_head(&a.view, "finalized", &head, err);
    if (!st && (!seq || seq > head.seq))
        st = err_set(err, STATUS_NOT_FOUND,
                     "batch %" PRIu64 ": the finalized chain has batches 1 to %" PRIu64, seq,
                     head.seq);
    if (!st)
        st = audit_batches(&a, seq, seq, err);
    end(&a);
    return st;
}

/* ---- epochs ---- */

struct epoch_work {
    uint64_t epoch;
    struct view_epoch chain, before; /* before: of chain.previous */
    struct view_vault vault;
    struct compute compute;
    struct snapshot snap;
    struct archive_accounts prev;
    struct owner_lists owners;
    struct compute_result result;
    struct buf manifest_text;
    struct audit_candidate *candidate; /* or NULL: the epoch is in the vault */
};

static enum status same_file(struct audit *a, uint64_t epoch, const struct archive_file *expected,
                             struct errtext *err)
{
    char name[ARCHIVE_NAME_BYTES];
    struct canon_bytes found;
    struct errtext why = ERRTEXT_INIT;
    archive_epoch_name(name, epoch);
    enum status st = archive_read(a->opt->archive_dir, name, expected->name, ARCHIVE_TEXT_BYTES_MAX,
                                  &found, &why);
    if (st) {
        st = audit_file_finding(a, st, &why);
        return st ? err_set(err, st, "%s", why.text) : STATUS_OK;
    }
    if (found.len != expected->len || memcmp(found.data, expected->data, found.len) != 0)
        audit_finding(a, "%s/%s: is not what records, registry and chain give", name,
                      expected->name);
    mem_free((void *)(uintptr_t)found.data);
    return STATUS_OK;
}

/* The records' faults against the Registry: reported, and worth what section 5 says. */
static void find_faults(struct audit *a, const struct epoch_work *w)
{
    static const char *const text[] = {
        [REWARD_FAULT_METHOD] = "its scoring method was not registered",
        [REWARD_FAULT_PAYEE] = "it pays somebody who owns no document of the named versions"};
    const struct compute *c = &w->compute;
    for (size_t i = 0; i < w->result.refused_count; i++)
        audit_fault(a,
                    "epoch %" PRIu64 ": lane %" PRIu32 " seq %" PRIu64
                    ": its tariff was not the registered one at its start",
                    w->epoch, w->result.refused[i].lane, w->result.refused[i].seq);
    for (size_t i = 0; i < c->evidence_count; i++)
        if (c->evidence[i].fault)
            audit_fault(a, "epoch %" PRIu64 ": lane %" PRIu32 " seq %" PRIu64 ": %s", w->epoch,
                        c->evidence[i].lane, c->evidence[i].seq, text[c->evidence[i].fault]);
}

static void find_absent(struct audit *a, const struct epoch_work *w)
{
    char name[OWNER_LIST_NAME_BYTES];
    for (size_t i = 0; i < w->owners.count; i++) {
        if (!owner_list_is_absent(&w->snap.version[i], w->owners.list[i].count))
            continue;
        owner_list_name(name, &w->snap.version[i]);
        a->report->owners_absent++;
        audit_fault(a, "epoch %" PRIu64 ": the archive lacks the owners of %s", w->epoch, name);
    }
}

static enum status take_missing(struct audit *a, const struct epoch_work *w, struct errtext *err)
{
    struct audit_report *r = a->report;
    const struct reward_stats *s = &w->result.reward.stats;
    for (size_t i = 0; i < w->result.missing_count; i++) {
        const struct archive_answer *m = &w->result.missing[i];
        if (!audit_grow((void **)&r->missing, r->missing_count, &r->missing_cap,
                        sizeof(*r->missing)))
            return err_set(err, STATUS_NO_MEMORY, "no memory for missing answers");
        r->missing[r->missing_count++] = (struct audit_missing){w->epoch, m->lane, m->seq, m->fee};
    }
    r->required += s->required;
    r->scored += s->scored;
    r->fee_required += s->fee_required;
    r->fee_scored += s->fee_scored;
    r->fee_missing += s->fee_missing;
    r->refused += s->refused;
    r->fee_refused += s->fee_refused;
    return STATUS_OK;
}

static enum status compare_epoch(struct audit *a, struct epoch_work *w, struct errtext *err)
{
    const struct deployment *d = a->opt->deployment;
    const struct reward_result *reward = &w->result.reward;
    struct tree_node root = {.sum = 0};
    uint8_t digest[32], manifest[32];
    enum status st = compute_root(&root, d, reward->account, reward->account_count, err);
    if (st)
        return st;
    if (memcmp(root.hash, w->chain.root, 32) != 0)
        audit_finding(a, "epoch %" PRIu64 ": the recomputed root is not the proposed one",
                      w->epoch);
    if (reward->total != w->chain.total || reward->account_count != w->chain.leaves)
        audit_finding(a,
                      "epoch %" PRIu64 ": the recomputed total or number of accounts is not the "
                      "proposed one",
                      w->epoch);
    struct epoch_header h = {.epoch = w->epoch,
                             .total = reward->total,
                             .leaves = (uint32_t)reward->account_count,
                             .batch_paid = w->chain.batch_paid,
                             .batch_evidence = w->chain.batch_evidence};
    memcpy(h.root, root.hash, 32);
    memcpy(h.prev_root, w->before.root, 32);
    struct archive_epoch e = {.chain_id = d->chain_id,
                              .at = w->snap.at,
                              .previous = w->chain.previous,
                              .paid_from = w->compute.range.paid_from,
                              .header = &h,
                              .stats = &reward->stats};
    compute_files(e.file, &w->result);
    memcpy(e.vault, d->vault, 20);
    archive_put_epoch_manifest(&w->manifest_text, &e);
    if (w->manifest_text.failed)
        return err_set(err, STATUS_NO_MEMORY, "no memory for an epoch's manifest");
    keccak_256(digest, w->manifest_text.data, w->manifest_text.len);
    if (w->candidate) {
        w->candidate->found = h;
        memcpy(w->candidate->found.manifest, digest, 32);
        memcpy(manifest, w->candidate->header->manifest, 32);
    } else {
        st = view_proposed(&a->view, w->epoch, manifest, err);
    }
    if (!st && memcmp(digest, manifest, 32) != 0)
        audit_finding(a, "epoch %" PRIu64 ": the recomputed manifest is not the proposed one",
                      w->epoch);
    for (size_t i = 0; i < ARRAY_COUNT(e.file) && !st; i++)
        st = same_file(a, w->epoch, &e.file[i], err);
    const struct archive_file last = {"manifest.json", w->manifest_text.data, w->manifest_text.len};
    return st ? st : same_file(a, w->epoch, &last, err);
}

/* Sum of cum_e = cumFee(M) - cumFee(start); and every published header that was used is the one
 * that audit_batches compared with the chain. */
static void check_identities(struct audit *a, const struct epoch_work *w)
{
    const struct compute *c = &w->compute;
    u128 fees = 0;
    size_t paid = c->range.paid - c->range.paid_from;
    for (size_t i = 0; i < paid; i++)
        fees += c->batch[i].header.fee_sum;
    if (fees != w->result.reward.fee_sum)
        audit_finding(a, "epoch %" PRIu64 ": its records' fees are not its batches' feeSum",
                      w->epoch);
    if (w->result.reward.total + w->vault.start_cum_fee != c->batch[paid - 1].header.cum_fee)
        audit_finding(a, "epoch %" PRIu64 ": total is not cumFee(M) less cumFee at the start",
                      w->epoch);
}

static enum status load_epoch(struct audit *a, struct epoch_work *w, struct errtext *err)
{
    const struct deployment *d = a->opt->deployment;
    struct compute_range range = {.archive_dir = a->opt->archive_dir,
                                  .place = {.chain_id = d->chain_id},
                                  .paid_from =
                                      w->chain.previous ? w->before.batch_paid : w->vault.start_seq,
                                  .paid = w->chain.batch_paid,
                                  .evidence = w->chain.batch_evidence};
    struct tree_node root = {.sum = 0};
    memcpy(range.place.ledger, d->ledger, 20);
    if (range.paid <= range.paid_from || range.evidence < range.paid)
        return err_set(err, STATUS_CORRUPT, "M and E are not M' < M <= E");
    enum status st = compute_load(&w->compute, &range, err);
    if (!st && w->chain.previous)
        st = archive_accounts_read(&w->prev, a->opt->archive_dir, w->chain.previous, err);
    if (!st && w->chain.previous)
        st = compute_root(&root, d, w->prev.account, w->prev.count, err);
    if (!st && w->chain.previous && memcmp(root.hash, w->before.root, 32) != 0)
        st = err_set(err, STATUS_CORRUPT,
                     "accounts.json of epoch %" PRIu64 " does not have the proposed root",
                     w->chain.previous);
    return st;
}

/* What is wrong with the files of an epoch is a finding, and the end of its recomputation. */
static enum status epoch_finding(struct audit *a, const struct epoch_work *w, enum status st,
                                 struct errtext *why, struct errtext *err)
{
    err_prefix(why, "epoch %" PRIu64, w->epoch);
    st = audit_file_finding(a, st, why);
    return st ? err_set(err, st, "%s", why->text) : STATUS_OK;
}

static enum status audit_one_epoch(struct audit *a, struct epoch_work *w, struct errtext *err)
{
    struct errtext why = ERRTEXT_INIT;
    enum status st = STATUS_OK;
    if (w->chain.previous)
        st = view_epoch(&a->view, "finalized", w->chain.previous, &w->before, err);
    if (st)
        return st;
    buf_init(&w->manifest_text, ARCHIVE_TEXT_BYTES_MAX);
    st = load_epoch(a, w, &why);
    if (st)
        return epoch_finding(a, w, st, &why, err);
    st = snapshot_read(&w->snap, &w->compute, &a->view, err);
    if (st)
        return st;
    st = owner_lists_archive(&w->owners, &w->snap, a->opt->archive_dir, w->epoch, &why);
    if (!st)
        st =
            compute_reward(&w->result, &w->compute, w->epoch, &w->snap, &w->owners, &w->prev, &why);
    if (st)
        return epoch_finding(a, w, st, &why, err);
    check_identities(a, w);
    find_faults(a, w);
    find_absent(a, w);
    st = compare_epoch(a, w, err);
    a->report->epochs++;
    a->report->accounts = (uint32_t)w->result.reward.account_count;
    a->report->total = w->result.reward.total;
    return st ? st : take_missing(a, w, err);
}

static void epoch_work_fini(struct epoch_work *w)
{
    compute_result_fini(&w->result);
    owner_lists_fini(&w->owners);
    snapshot_fini(&w->snap);
    archive_accounts_fini(&w->prev);
    compute_fini(&w->compute);
    buf_fini(&w->manifest_text);
}

static enum status audit_epochs(struct audit *a, uint64_t last, struct errtext *err)
{
    struct view_vault vault;
    enum status st = view_vault(&a->view, "finalized", &vault, err);
    for (uint64_t e = 1; e <= last && !st; e++) {
        struct epoch_work w = {.epoch = e, .vault = vault};
        st = view_epoch(&a->view, "finalized", e, &w.chain, err);
        if (!st && w.chain.disabled)
            a->report->epochs_vetoed++;
        else if (!st)
            st = audit_one_epoch(a, &w, err);
        epoch_work_fini(&w);
        progress(a, "epoch %" PRIu64 " of %" PRIu64 ": %zu findings", e, last,
                 a->report->finding_count);
    }
    return st;
}

static enum status check_funds(struct audit *a, struct errtext *err)
{
    struct view_money m;
    enum status st = view_money(&a->view, "finalized", &m, err);
    if (st)
        return st;
    a->report->claimed = m.total_claimed;
    a->report->held = m.held;
    if (a->report->total > m.held + m.total_claimed)
        audit_finding(a, "the vault promises more than it holds and has paid");
    struct view_epoch live = {0};
    if (m.last_live)
        st = view_epoch(&a->view, "finalized", m.last_live, &live, err);
    if (!st && m.total_claimed > live.total)
        audit_finding(a, "more was claimed than the last epoch promises");
    return st;
}

/* The highest E of the epochs up to this one. */
static enum status last_batch(struct audit *a, uint64_t epoch, uint64_t *last, struct errtext *err)
{
    enum status st = STATUS_OK;
    struct view_epoch e;
    *last = 0;
    for (uint64_t i = 1; i <= epoch && !st; i++) {
        st = view_epoch(&a->view, "finalized", i, &e, err);
        if (!st && !e.disabled)
            *last = MAX(*last, e.batch_evidence);
    }
    return st;
}

enum status audit_epoch(struct audit_report *report, const struct audit_options *opt,
                        uint64_t epoch, struct errtext *err)
{
    struct audit a;
    struct view_money money = {0};
    uint64_t last = 0;
    enum status st = begin(&a, report, opt, err);
    if (!st)
        st = view_money(&a.view, "finalized", &money, err);
    if (!st && (!epoch || epoch > money.last_epoch))
        st = err_set(err, STATUS_NOT_FOUND,
                     "epoch %" PRIu64 ": the finalized chain has epochs 1 to %" PRIu64, epoch,
                     money.last_epoch);
    report->epoch_last = epoch;
    if (!st)
        st = last_batch(&a, epoch, &last, err);
    if (!st)
        st = audit_batches(&a, 1, last, err);
    if (!st)
        st = audit_epochs(&a, epoch, err);
    if (!st)
        st = check_funds(&a, err);
    end(&a);
    return st;
}

/* ---- before it is final ---- */

static void begin_candidate(struct epoch_work *w, struct audit_candidate *c)
{
    const struct epoch_header *h = c->header;
    w->epoch = h->epoch;
    w->candidate = c;
    w->chain = (struct view_epoch){.total = h->total,
                                   .batch_paid = h->batch_paid,
                                   .batch_evidence = h->batch_evidence,
                                   .previous = c->previous,
                                   .leaves = h->leaves};
    memcpy(w->chain.root, h->root, 32);
}

enum status audit_alone(struct audit_report *report, const struct audit_options *opt, uint64_t seq,
                        struct errtext *err)
{
    struct audit a;
    enum status st = begin(&a, report, opt, err);
    a.is_partial = true;
    report->batch_first = report->batch_last = seq;
    if (!st)
        st = audit_one_batch(&a, seq, true, err);
    check_request_ids(&a);
    end(&a);
    return st;
}

enum status audit_candidate(struct audit_report *report, const struct audit_options *opt,
                            struct audit_candidate *c, struct errtext *err)
{
    struct audit a;
    struct epoch_work w = {.epoch = 0};
    struct view_epoch before = {.total = 0};
    const struct epoch_header *h = c->header;
    c->found = (struct epoch_header){0};
    begin_candidate(&w, c);
    enum status st = begin(&a, report, opt, err);
    a.is_partial = true;
    if (!st)
        st = view_vault(&a.view, "finalized", &w.vault, err);
    if (!st && c->previous)
        st = view_epoch(&a.view, "finalized", c->previous, &before, err);
    uint64_t from = c->previous ? before.batch_paid : w.vault.start_seq;
    if (!st && memcmp(before.root, h->prev_root, 32) != 0)
        audit_finding(&a, "epoch %" PRIu64 ": prevRoot is not that of epoch %" PRIu64, h->epoch,
                      c->previous);
    if (!st && (h->batch_paid <= from || h->batch_evidence < h->batch_paid))
        audit_finding(&a, "epoch %" PRIu64 ": M and E are not M' < M <= E", h->epoch);
    report->batch_first = from + 1;
    report->batch_last = h->batch_evidence;
    for (uint64_t seq = MAX(from, 1u); !st && seq <= h->batch_evidence; seq++)
        st = audit_one_batch(&a, seq, seq > from, err);
    check_request_ids(&a);
    if (!st && from < h->batch_paid && h->batch_paid <= h->batch_evidence)
        st = audit_one_epoch(&a, &w, err);
    epoch_work_fini(&w);
    end(&a);
    return st;
}

/* ---- the report ---- */

void audit_report_fini(struct audit_report *r)
{
    mem_free(r->missing);
    mem_free(r->finding);
    *r = (struct audit_report){0};
}

static void put_amount(struct buf *out, const char *name, u128 v)
{
    buf_printf(out, ",\"%s\":", name);
    archive_put_amount(out, v);
}

void audit_report_json(const struct audit_report *r, struct buf *out)
{
    buf_printf(out,
               "{\"ok\":%s,\"batch_first\":%" PRIu64 ",\"batch_last\":%" PRIu64
               ",\"epoch\":%" PRIu64 ",\"batches\":%" PRIu64 ",\"epochs\":%" PRIu64
               ",\"epochs_vetoed\":%" PRIu64 ",\"records\":%" PRIu64 ",\"inferences\":%" PRIu64
               ",\"attributions\":%" PRIu64 ",\"voids\":%" PRIu64 ",\"required\":%" PRIu64
               ",\"scored\":%" PRIu64 ",\"refused\":%" PRIu64 ",\"accounts\":%" PRIu32,
               r->finding_count ? "false" : "true", r->batch_first, r->batch_last, r->epoch_last,
               r->batches, r->epochs, r->epochs_vetoed, r->records, r->inferences, r->attributions,
               r->voids, r->required, r->scored, r->refused, r->accounts);
    put_amount(out, "fee_sum", r->fee_sum);
    put_amount(out, "fee_required", r->fee_required);
    put_amount(out, "fee_scored", r->fee_scored);
    put_amount(out, "fee_missing", r->fee_missing);
    put_amount(out, "fee_refused", r->fee_refused);
    put_amount(out, "total", r->total);
    put_amount(out, "claimed", r->claimed);
    put_amount(out, "held", r->held);
    buf_printf(out, ",\"fault_count\":%zu,\"finding_count\":%zu,\"findings\":[", r->fault_count,
               r->finding_count);
    for (size_t i = 0; i < MIN(r->finding_count, (size_t)AUDIT_FINDINGS_MAX); i++) {
        if (i)
            buf_putc(out, ',');
        buf_put_json_string(out, r->finding[i], strlen(r->finding[i]));
    }
    buf_puts(out, "],\"missing\":[");
    for (size_t i = 0; i < r->missing_count; i++) {
        const struct audit_missing *m = &r->missing[i];
        buf_printf(out, "%s{\"epoch\":%" PRIu64 ",\"lane\":%" PRIu32 ",\"seq\":%" PRIu64,
                   i ? "," : "", m->epoch, m->lane, m->seq);
        put_amount(out, "fee", m->fee);
        buf_putc(out, '}');
    }
    buf_puts(out, "]}");
}
