/* One pass per lane over arrays in the order of (lane, seq); a lane that the epoch does not name
 * keeps what was said of it. */
#include "chain_client/settle/faults.h"
#include "chain_client/settle/trouble.h"

#include <inttypes.h>
#include <stdio.h>

struct tally {
    uint64_t records, faults, first; /* first: the number of the first faulty record */
};

static void count(struct tally *t, uint64_t seq, bool is_faulty)
{
    t->records++;
    if (is_faulty && !t->faults++)
        t->first = seq;
}

static enum status tell(struct worker *w, uint32_t lane, enum trouble kind, const struct tally *t,
                        uint64_t epoch, struct errtext *err)
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
             "lane %" PRIu32 ", epoch %" PRIu64 ": %" PRIu64 " of %" PRIu64
             " (the first: record %" PRIu64 ") %s",
             lane, epoch, t->faults, t->records, t->first, what);
    return trouble_set(&w->db, kind, lane, text, err);
}

enum status faults_tell(struct worker *w, uint64_t epoch, const struct compute *c,
                        struct errtext *err)
{
    enum status st = STATUS_OK;
    size_t r = 0, e = 0;
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
        st = tell(w, lane, TROUBLE_TARIFF, &answers, epoch, err);
        if (!st)
            st = tell(w, lane, TROUBLE_EVIDENCE, &evidence, epoch, err);
    }
    return st;
}
