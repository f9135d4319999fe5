/* One small table. A loop sets its gauges at every turn, so a value is read before it is written: a
 * write is an fsync. */
#include "chain_client/settle/gauges.h"

#include <stdio.h>
#include <string.h>

enum status gauge_set(struct db *db, const char *name, const char *label, u128 value,
                      struct errtext *err)
{
    uint64_t same;
    enum status st = db_value(
        db, &same, 0, err, "SELECT count(*) FROM gauges WHERE name = ? AND label = ? AND value = ?",
        "ttn", name, label, value);
    return st || same ? st
                      : db_run(db, err, "INSERT OR REPLACE INTO gauges VALUES (?, ?, ?)", "ttn",
                               name, label, value);
}

enum status gauge_add(struct db *db, const char *name, uint64_t more, struct errtext *err)
{
    return db_run(db, err,
                  "INSERT INTO gauges VALUES (?1, '', ?2) ON CONFLICT (name, label) DO UPDATE SET"
                  " value = CAST(value AS INTEGER) + ?2",
                  "tu", name, more);
}

enum status gauges_put(struct db *db, struct buf *out, struct errtext *err)
{
    struct db_rows q;
    char last[64] = "";
    enum status st =
        db_query(db, &q, err, "SELECT name, label, value FROM gauges ORDER BY name, label", "");
    while (!st && (st = db_next(&q, err)) == STATUS_OK) {
        const char *name = db_text(&q, 0), *label = db_text(&q, 1);
        if (strcmp(last, name) != 0)
            buf_printf(out, "# TYPE residual_settle_%s gauge\n", name);
        snprintf(last, sizeof(last), "%s", name);
        buf_printf(out, "residual_settle_%s%s%s%s %s\n", name, label[0] ? "{" : "", label,
                   label[0] ? "}" : "", db_text(&q, 2));
    }
    db_done(&q);
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}
