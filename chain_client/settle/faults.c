/* One pass per lane over arrays in the order of (lane, seq); a lane that the epoch does not name
 * keeps what was said of it. */
#include "chain_client/settle/faults.h"
#include "chain_client/settle/trouble.h"
#include "server/base/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct tally {
    uint64_t records, faults, first; /* first: the number of the first faulty record */
};

static void count(struct tally *t, uint64_t seq, bool is_faulty)
{
    t->records++;
    if (is_faulty && !t->faults++)
        t->first = seq;
}

/* where: "epoch 3", "batch 7". */
static enum status tell(struct worker *w, uint32_t lane, enum trouble kind, const struct tally *t,
                        const char *where, struct errtext *err)
{
    char text[512];
    if (!t->records)
        return STATUS_OK;
    if (!t->faults)
        return trouble_clear(&w->db, kind, lane, err);
    const char *what =
        kind == TROUBLE_TARIFF
            ? "answers charge a tariff that was not registered at their start, so what they paid "
              "is the treasury's: register the prices (setTariff, setPrice), or correct the server"
            : "attributions count for nothing, for their method is not registered or they pay "
              "somebody who owns no document of the named datanet version: correct the server";
    snprintf(text, sizeof(text),
             "lane %" PRIu32 ", %s: %" PRIu64 " of %" PRIu64 " (the first: record %" PRIu64 ") %s",
             lane, where, t->faults, t->records, t->first, what);
    return trouble_set(&w->db, kind, lane, text, err);
}

enum status faults_tell(struct worker *w, uint64_t epoch, const struct compute *c,
                        struct errtext *err)
{
    enum status st = STATUS_OK;
    size_t r = 0, e = 0;
    char where[40];
    snprintf(where, sizeof(where), "epoch %" PRIu64, epoch);
    while (!st && (r < c->record_count || e < c->evidence_count)) {
        struct tally answers = {0}, evidence = {0};
        uint32_t lane = e == c->evidence_count ||
                                (r < c->record_count && c->record[r].lane <= c->evidence[e].lane)
                            ? c->record[r].lane
                            : c->evidence[e].lane;
        for (; r < c->record_count && c->record[r].lane == lane; r++)
            count(&answers, c->record[r].seq, c->record[r].is_refused);
        for (; e < c->evidence_count && c->evidence[e].lane == lane; e++)
            count(&evidence, c->evidence[e].seq, c->evidence[e].fault != REWARD_FAULT_NONE);
        st = tell(w, lane, TROUBLE_TARIFF, &answers, where, err);
        if (!st)
            st = tell(w, lane, TROUBLE_EVIDENCE, &evidence, where, err);
    }
    return st;
}

enum status faults_look(struct worker *w, uint64_t batch, struct errtext *err)
{
    struct compute c;
    struct errtext why = ERRTEXT_INIT;
    struct compute_range range = {.archive_dir = w->set->archive_dir,
                                  .place = {.chain_id = w->dep.chain_id},
                                  .paid_from = batch - 1,
                                  .paid = batch,
                                  .evidence = batch};
    char where[40];
    snprintf(where, sizeof(where), "batch %" PRIu64, batch);
    memcpy(range.place.ledger, w->dep.ledger, 20);
    enum status st = compute_load(&c, &range, &why);
    if (!st)
        st = compute_refusals(&c, &w->view, &why);
    if (st)
        log_warn("faults", "%s: its tariffs were not looked at: %s", where, why.text);
    enum status told = STATUS_OK;
    for (size_t i = 0; i < c.record_count && !st && !told;) {
        struct tally answers = {0};
        uint32_t lane = c.record[i].lane;
        for (; i < c.record_count && c.record[i].lane == lane; i++)
            count(&answers, c.record[i].seq, c.record[i].is_refused);
        if (answers.faults) /* an epoch alone says that all is well again */
            told = tell(w, lane, TROUBLE_TARIFF, &answers, where, err);
    }
    compute_fini(&c);
    return told;
}
