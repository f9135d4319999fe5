/* residual audit epoch N, audit batch N: rs_audit with a voice. */
#include "chain_client/cli/node.h"
#include "chain_client/settle/audit.h"
#include "server/base/check.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define REPORT_BYTES_MAX (256u << 20)

static void progress(void *arg, const char *text)
{
    cli_note(arg, "%s", text);
}

static void put_counts(struct buf *out, const struct audit_report *r)
{
    char fee[CLI_AMOUNT_BYTES], total[CLI_AMOUNT_BYTES], claimed[CLI_AMOUNT_BYTES];
    cli_amount(fee, r->fee_sum);
    cli_amount(total, r->total);
    cli_amount(claimed, r->claimed);
    buf_printf(out,
               "batches %" PRIu64 " to %" PRIu64 ": %" PRIu64 " records (%" PRIu64
               " answers, %" PRIu64 " attributions, %" PRIu64 " voids), fees %s\n",
               r->batch_first, r->batch_last, r->records, r->inferences, r->attributions, r->voids,
               fee);
    if (!r->epoch_last)
        return;
    buf_printf(out,
               "epochs 1 to %" PRIu64 " (%" PRIu64 " vetoed): total %s to %" PRIu32
               " accounts, claimed %s\n",
               r->epoch_last, r->epochs_vetoed, total, r->accounts, claimed);
    buf_printf(out,
               "answers that need attribution: %" PRIu64 ", scored %" PRIu64
               ", listed missing %" PRIu64 "; refused for their tariff: %" PRIu64 "\n",
               r->required, r->scored, r->missing_count, r->refused);
}

static int print(const struct cli *c, const struct audit_report *r)
{
    struct buf out;
    buf_init(&out, REPORT_BYTES_MAX);
    if (cli_has(c, OPT_JSON)) {
        audit_report_json(r, &out);
    } else {
        put_counts(&out, r);
        for (size_t i = 0; i < MIN(r->finding_count, (size_t)AUDIT_FINDINGS_MAX); i++)
            buf_printf(&out, "finding: %s\n", r->finding[i]);
        if (r->finding_count > AUDIT_FINDINGS_MAX)
            buf_printf(&out, "and %zu more findings\n", r->finding_count - AUDIT_FINDINGS_MAX);
        if (r->fault_count && r->fault_count == r->finding_count)
            buf_puts(&out, "all of these are faults of what lanes signed: batches and money are "
                           "right by the rules\n");
        buf_puts(&out, r->finding_count ? "NOT RIGHT" : "all right");
    }
    int code = cli_print(&out, r->finding_count ? CLI_WRONG : CLI_FINE);
    buf_fini(&out);
    return code;
}

static enum status read_number(const char *text, uint64_t *out, struct errtext *err)
{
    char *end;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    if (errno || *end || text[0] < '0' || text[0] > '9' || v == 0)
        return err_set(err, STATUS_INVALID, "found '%s', expected a number from 1", text);
    *out = v;
    return STATUS_OK;
}

static int audit(struct cli *c,
                 enum status (*run)(struct audit_report *, const struct audit_options *, uint64_t,
                                    struct errtext *))
{
    struct node n = {0};
    struct audit_report report = {0};
    struct errtext err = ERRTEXT_INIT;
    uint64_t number;
    bool opened = false;
    enum status st = read_number(c->operand[0], &number, &err);
    if (!st)
        st = node_open(&n, c, &err);
    if (!st) {
        struct audit_options opt = {.archive_dir = c->value[OPT_ARCHIVE],
                                    .rpc = n.rpc,
                                    .deployment = &n.d,
                                    .progress = progress,
                                    .arg = c};
        opened = true;
        st = run(&report, &opt, number, &err);
    }
    int code = st ? cli_fail(c, st, &err, node_hint(st)) : print(c, &report);
    if (opened)
        audit_report_fini(&report);
    node_close(&n);
    return code;
}

int verb_audit_epoch(struct cli *c)
{
    return audit(c, audit_epoch);
}

int verb_audit_batch(struct cli *c)
{
    return audit(c, audit_batch);
}
