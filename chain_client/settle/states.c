/* One table of names for each kind of row: everything that spells a state asks here. */
#include "chain_client/settle/states.h"
#include "server/base/buf.h"
#include "server/base/check.h"

#include <inttypes.h>
#include <string.h>

#define EXPECTED_BYTES_MAX 256

static const char *const batch_name[] = {
    [BATCH_CLOSED] = "closed", [BATCH_BUILT] = "built", [BATCH_ARCHIVED] = "archived",
    [BATCH_INTENT] = "intent", [BATCH_SENT] = "sent",   [BATCH_INCLUDED] = "included",
    [BATCH_FINAL] = "final",
};

static const char *const epoch_name[] = {
    [EPOCH_PLANNED] = "planned", [EPOCH_COMPUTED] = "computed", [EPOCH_ATTESTED] = "attested",
    [EPOCH_FUNDED] = "funded",   [EPOCH_PROPOSED] = "proposed", [EPOCH_FINAL] = "final",
    [EPOCH_ACTIVE] = "active",   [EPOCH_VETOED] = "vetoed",
};

static const char *const intent_name[] = {
    [INTENT_OPEN] = "open",     [INTENT_BOUND] = "bound",     [INTENT_DONE] = "done",
    [INTENT_CLOSED] = "closed", [INTENT_FOREIGN] = "foreign",
};

/* A kind of row: what a person calls it, and its states. */
struct row_kind {
    const char *what;
    const char *const *name;
    size_t count;
};

static const struct row_kind batch_kind = {"batch", batch_name, ARRAY_COUNT(batch_name)};
static const struct row_kind epoch_kind = {"epoch", epoch_name, ARRAY_COUNT(epoch_name)};
static const struct row_kind intent_kind = {"intent", intent_name, ARRAY_COUNT(intent_name)};

const char *batch_state_name(enum batch_state state)
{
    return batch_name[state];
}

const char *epoch_state_name(enum epoch_state state)
{
    return epoch_name[state];
}

const char *intent_state_name(enum intent_state state)
{
    return intent_name[state];
}

static enum status unknown(const struct row_kind *k, struct db_rows *q, const char *found,
                           struct errtext *err)
{
    struct buf expected;
    buf_init(&expected, EXPECTED_BYTES_MAX);
    for (size_t i = 0; i < k->count; i++)
        buf_printf(&expected, "%s%s", i ? ", " : "", k->name[i]);
    enum status st =
        err_set(err, STATUS_CORRUPT, "state database: %s %" PRIu64 ": state \"%s\", expected %s",
                k->what, db_u64(q, 0), found, expected.failed ? "another" : expected.data);
    q->db->failed = true;
    buf_fini(&expected);
    return st;
}

static enum status find(const struct row_kind *k, size_t *out, struct db_rows *q, int col,
                        struct errtext *err)
{
    const char *found = db_text(q, col);
    for (size_t i = 0; i < k->count; i++)
        if (strcmp(k->name[i], found) == 0) {
            *out = i;
            return STATUS_OK;
        }
    return unknown(k, q, found, err);
}

enum status batch_state_get(enum batch_state *out, struct db_rows *q, int col, struct errtext *err)
{
    size_t i = 0;
    enum status st = find(&batch_kind, &i, q, col, err);
    *out = (enum batch_state)i;
    return st;
}

enum status epoch_state_get(enum epoch_state *out, struct db_rows *q, int col, struct errtext *err)
{
    size_t i = 0;
    enum status st = find(&epoch_kind, &i, q, col, err);
    *out = (enum epoch_state)i;
    return st;
}

/* The rows of sql, (number, state) each. */
static enum status check_rows(struct db *db, const struct row_kind *k, const char *sql,
                              struct errtext *err)
{
    struct db_rows q;
    size_t i;
    enum status st = db_query(db, &q, err, sql, "");
    while (!st && (st = db_next(&q, err)) == STATUS_OK)
        st = find(k, &i, &q, 1, err);
    db_done(&q);
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

enum status states_check(struct db *db, struct errtext *err)
{
    enum status st =
        check_rows(db, &batch_kind, "SELECT min(seq), state FROM batches GROUP BY state", err);
    if (!st)
        st =
            check_rows(db, &epoch_kind, "SELECT min(epoch), state FROM epochs GROUP BY state", err);
    if (!st)
        st = check_rows(db, &intent_kind, "SELECT min(id), state FROM intents GROUP BY state", err);
    return st;
}
