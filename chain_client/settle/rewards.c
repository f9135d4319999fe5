/* Each list asks for one row more than it shows: that row says whether there is a next page. A page
 * begins where the last one ended, by key and not by count, so that a new epoch moves nothing. */
#include "chain_client/settle/rewards.h"
#include "chain_client/eth/addr.h"
#include "chain_client/settle/archive.h"
#include "chain_client/settle/states.h"
#include "chain_client/settle/view.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define HISTORY_MAX 50
#define SHARES_MAX  32 /* of one epoch, in a history */
#define SOURCES_MAX 100
#define SOURCE_TEXT 16

void rewards_fini(struct rewards *r)
{
    tree_fini(&r->tree);
    r->tree_epoch = 0;
}

/* ---- small pieces ---- */

static void put_amount(struct buf *out, const char *key, u128 v)
{
    buf_printf(out, ",\"%s\":", key);
    archive_put_amount(out, v);
}

static void put_account(struct buf *out, const uint8_t account[20])
{
    char text[ADDR_TEXT_BYTES];
    addr_format(text, account);
    buf_printf(out, "\"account\":\"%s\"", text);
}

/* null for an empty blob: of no adapter, or without a datanet. */
static void put_id(struct buf *out, const char *key, struct db_rows *q, int col)
{
    size_t len;
    const uint8_t *id = db_blob(q, col, &len);
    buf_printf(out, "\"%s\":", key);
    if (len == 32)
        archive_put_hex(out, id, len);
    else
        buf_puts(out, "null");
}

static enum status cum_of(struct db *db, uint64_t epoch, const uint8_t account[20], u128 *amount,
                          uint32_t *idx, bool *found, struct errtext *err)
{
    struct db_rows q;
    enum status st =
        db_query(db, &q, err, "SELECT idx, amount FROM cum WHERE account = ? AND epoch = ?", "bu",
                 account, (size_t)20, epoch);
    if (!st)
        st = db_next(&q, err);
    *found = st == STATUS_OK;
    *idx = *found ? (uint32_t)db_u64(&q, 0) : 0;
    *amount = *found ? db_amount(&q, 1) : 0;
    db_done(&q);
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

/* ---- what can be claimed ---- */

static enum status read_leaves(struct rewards *r, struct db *db, uint64_t epoch,
                               struct tree_node *leaf, uint64_t count, struct errtext *err)
{
    struct db_rows q;
    uint8_t dom[32];
    tree_reward_domain(dom, r->d->chain_id, r->d->vault, r->d->token);
    enum status st = db_query(
        db, &q, err, "SELECT account, amount FROM cum WHERE epoch = ? ORDER BY idx", "u", epoch);
    for (uint64_t i = 0; i < count && !st && (st = db_next(&q, err)) == STATUS_OK; i++) {
        uint8_t account[20];
        db_bytes(&q, 0, account, 20);
        tree_reward_leaf(&leaf[i], dom, (uint32_t)i, account, db_amount(&q, 1));
    }
    db_done(&q);
    if (st)
        return st;
    rewards_fini(r);
    return tree_build(&r->tree, TREE_REWARD, dom, leaf, count, err);
}

static enum status load_tree(struct rewards *r, struct db *db, uint64_t epoch, struct errtext *err)
{
    uint64_t count = 0;
    if (r->tree_epoch == epoch)
        return STATUS_OK;
    enum status st =
        db_value(db, &count, 0, err, "SELECT count(*) FROM cum WHERE epoch = ?", "u", epoch);
    if (!st && !count)
        st = err_set(err, STATUS_BUSY,
                     "epoch %" PRIu64 " of the chain is not in this worker's state yet: ask again",
                     epoch);
    if (st)
        return st;
    struct tree_node *leaf = mem_try_array(count, sizeof(*leaf));
    if (!leaf)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the tree of epoch %" PRIu64, epoch);
    st = read_leaves(r, db, epoch, leaf, count, err);
    if (!st)
        r->tree_epoch = epoch;
    mem_free(leaf);
    return st;
}

static void put_proof(struct buf *out, const struct tree_proof *p)
{
    buf_puts(out, ",\"proof\":{\"hashes\":[");
    for (uint32_t i = 0; i < p->depth; i++) {
        if (i)
            buf_putc(out, ',');
        archive_put_hex(out, p->sibling[i].hash, 32);
    }
    buf_puts(out, "],\"sums\":[");
    for (uint32_t i = 0; i < p->depth; i++) {
        if (i)
            buf_putc(out, ',');
        archive_put_amount(out, p->sibling[i].sum);
    }
    buf_puts(out, "]}");
}

struct standing {
    uint64_t epoch; /* active, 0: none */
    u128 claimed, cumulative;
    uint32_t idx;
    bool in_tree;
};

/* Of the chain, now: the worker's own rows follow at finality, which may be minutes later. */
static enum status ask_active(struct rewards *r, uint64_t *epoch, struct errtext *err)
{
    struct view v;
    struct view_money m = {.active_epoch = 0};
    view_init(&v, r->rpc, r->d);
    enum status st = view_money(&v, "latest", &m, err);
    view_fini(&v);
    *epoch = m.active_epoch;
    return st;
}

static enum status read_standing(struct rewards *r, struct db *db, const uint8_t account[20],
                                 struct standing *s, struct errtext *err)
{
    struct view v;
    *s = (struct standing){.epoch = 0};
    enum status st = ask_active(r, &s->epoch, err);
    view_init(&v, r->rpc, r->d);
    if (!st)
        st = view_claimed(&v, "latest", account, &s->claimed, err);
    view_fini(&v);
    if (!st && s->epoch)
        st = load_tree(r, db, s->epoch, err);
    if (!st && s->epoch)
        st = cum_of(db, s->epoch, account, &s->cumulative, &s->idx, &s->in_tree, err);
    return st;
}

static void put_standing(struct rewards *r, const uint8_t account[20], const struct standing *s,
                         struct buf *out)
{
    struct tree_proof proof;
    buf_printf(out, "{\"epoch\":%" PRIu64 ",\"index\":", s->epoch);
    if (s->in_tree)
        buf_printf(out, "%" PRIu32 ",", s->idx);
    else
        buf_puts(out, "null,");
    put_account(out, account);
    put_amount(out, "cumulative", s->cumulative);
    if (s->epoch) {
        buf_printf(out, ",\"leaves\":%" PRIu32 ",\"root\":", r->tree.count);
        archive_put_hex(out, tree_root(&r->tree)->hash, 32);
        put_amount(out, "total", tree_root(&r->tree)->sum);
    }
    if (s->in_tree) {
        tree_prove(&r->tree, &proof, s->idx);
        put_proof(out, &proof);
    } else {
        buf_puts(out, ",\"proof\":null");
    }
    put_amount(out, "claimed", s->claimed);
}

/* ---- what cannot be claimed yet ---- */

/* The newest epoch that is computed and above `active`; its total is what was divided so far. */
static enum status put_pending(struct db *db, const uint8_t account[20], const struct standing *s,
                               bool *some, struct buf *out, struct errtext *err)
{
    struct db_rows q;
    enum epoch_state state = EPOCH_PLANNED;
    uint64_t epoch = 0, active_at = 0;
    uint32_t idx;
    u128 cumulative = 0;
    bool found = false;
    enum status st = db_query(db, &q, err,
                              "SELECT epoch, state, active_at FROM epochs WHERE epoch > ? AND root"
                              " IS NOT NULL AND state <> ? ORDER BY epoch DESC LIMIT 1",
                              "ut", s->epoch, epoch_state_name(EPOCH_VETOED));
    if (!st && (st = db_next(&q, err)) == STATUS_OK) {
        epoch = db_u64(&q, 0);
        active_at = db_u64(&q, 2);
        st = epoch_state_get(&state, &q, 1, err);
    }
    db_done(&q);
    if (!st)
        st = cum_of(db, epoch, account, &cumulative, &idx, &found, err);
    if (st && st != STATUS_NOT_FOUND)
        return st;
    *some = found && cumulative > s->cumulative;
    buf_puts(out, ",\"pending\":");
    if (!*some) {
        buf_puts(out, "null");
        return STATUS_OK;
    }
    buf_printf(out, "{\"epoch\":%" PRIu64 ",\"state\":\"%s\",\"active_at\":%" PRIu64, epoch,
               epoch_state_name(state), active_at);
    put_amount(out, "cumulative", cumulative);
    put_amount(out, "amount", cumulative - s->cumulative);
    buf_putc(out, '}');
    return STATUS_OK;
}

/* Final batches that no epoch pays so far: a fact about all accounts, no estimate for one. */
static enum status put_undivided(struct db *db, struct buf *out, struct errtext *err)
{
    struct db_rows q;
    uint64_t paid = 0, count = 0;
    u128 sum = 0;
    enum status st = db_value(db, &paid, 0, err, "SELECT max(paid) FROM epochs WHERE state <> ?",
                              "t", epoch_state_name(EPOCH_VETOED));
    if (!st)
        st = db_query(db, &q, err, "SELECT fee_sum FROM batches WHERE state = ? AND seq > ?", "tu",
                      batch_state_name(BATCH_FINAL), paid);
    if (st)
        return st;
    for (; (st = db_next(&q, err)) == STATUS_OK; count++)
        sum += db_amount(&q, 0);
    if (st != STATUS_NOT_FOUND)
        return st;
    buf_printf(out, ",\"undivided\":{\"batches\":%" PRIu64, count);
    put_amount(out, "fee_sum", sum);
    buf_putc(out, '}');
    return STATUS_OK;
}

enum status rewards_put(struct rewards *r, struct db *db, const uint8_t account[20],
                        struct buf *out, struct errtext *err)
{
    struct standing s;
    uint64_t named = 0;
    bool pending = false;
    enum status st = read_standing(r, db, account, &s, err);
    if (st)
        return st;
    put_standing(r, account, &s, out);
    st = put_pending(db, account, &s, &pending, out, err);
    if (!st)
        st = put_undivided(db, out, err);
    buf_putc(out, '}');
    if (!st && !s.in_tree && !pending)
        st = db_value(db, &named, 0, err,
                      "SELECT count(*) FROM (SELECT 1 FROM earned WHERE"
                      " account = ? LIMIT 1)",
                      "b", account, (size_t)20);
    if (!st && !s.in_tree && !pending && !named)
        st = err_set(err, STATUS_NOT_FOUND, "this account has earned nothing so far");
    return st;
}

/* ---- history ---- */

static enum status put_shares(struct db *db, const uint8_t account[20], uint64_t epoch,
                              struct buf *out, struct errtext *err)
{
    struct db_rows q;
    uint32_t count = 0;
    enum status st = db_query(db, &q, err,
                              "SELECT adapter, datanet, source, amount FROM earned WHERE epoch = ?"
                              " AND account = ? ORDER BY adapter, source LIMIT ?",
                              "ubu", epoch, account, (size_t)20, (uint64_t)SHARES_MAX + 1);
    buf_puts(out, ",\"shares\":[");
    for (; !st && (st = db_next(&q, err)) == STATUS_OK; count++) {
        if (count == SHARES_MAX)
            continue;
        buf_puts(out, count ? ",{" : "{");
        put_id(out, "adapter", &q, 0);
        buf_putc(out, ',');
        put_id(out, "datanet", &q, 1);
        buf_printf(out, ",\"source\":\"%s\"", db_text(&q, 2));
        put_amount(out, "amount", db_amount(&q, 3));
        buf_putc(out, '}');
    }
    db_done(&q);
    buf_printf(out, "],\"shares_more\":%s", count > SHARES_MAX ? "true" : "false");
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

/* The columns are those of rewards_put_history. */
static enum status put_epoch(struct db *db, struct db_rows *q, const uint8_t account[20],
                             uint64_t active, struct buf *out, struct errtext *err)
{
    enum epoch_state state;
    uint8_t tx[32];
    u128 cumulative = db_amount(q, 4), before = db_amount(q, 5);
    enum status st = epoch_state_get(&state, q, 1, err);
    if (st)
        return st;
    if (db_u64(q, 0) == active || (state == EPOCH_FINAL && db_u64(q, 0) < active))
        state = EPOCH_ACTIVE;
    db_bytes(q, 6, tx, 32);
    buf_printf(out,
               "{\"epoch\":%" PRIu64 ",\"state\":\"%s\",\"at\":%" PRIu64 ",\"active_at\":%" PRIu64,
               db_u64(q, 0), epoch_state_name(state), db_u64(q, 2), db_u64(q, 3));
    put_amount(out, "earned", cumulative > before ? cumulative - before : 0);
    put_amount(out, "cumulative", cumulative);
    buf_puts(out, ",\"tx\":");
    archive_put_hex(out, tx, 32);
    st = put_shares(db, account, db_u64(q, 0), out, err);
    buf_putc(out, '}');
    return st;
}

enum status rewards_put_history(struct rewards *r, struct db *db, const uint8_t account[20],
                                uint64_t before, struct buf *out, struct errtext *err)
{
    struct db_rows q;
    uint32_t count = 0;
    uint64_t last = 0, active;
    enum status st = ask_active(r, &active, err);
    if (st)
        return st;
    st =
        db_query(db, &q, err,
                 "SELECT c.epoch, e.state, coalesce(b.closed_at, 0), e.active_at, c.amount,"
                 " p.amount, e.tx FROM cum c JOIN epochs e ON e.epoch = c.epoch LEFT JOIN batches b"
                 " ON b.seq = e.paid LEFT JOIN cum p ON p.account = c.account AND p.epoch ="
                 " e.previous WHERE c.account = ? AND c.epoch < ? ORDER BY c.epoch DESC LIMIT ?",
                 "buu", account, (size_t)20, before ? before : (uint64_t)INT64_MAX,
                 (uint64_t)HISTORY_MAX + 1);
    buf_putc(out, '{');
    put_account(out, account);
    buf_puts(out, ",\"epochs\":[");
    for (; !st && (st = db_next(&q, err)) == STATUS_OK; count++) {
        if (count == HISTORY_MAX)
            continue;
        if (count)
            buf_putc(out, ',');
        last = db_u64(&q, 0);
        st = put_epoch(db, &q, account, active, out, err);
    }
    db_done(&q);
    if (count > HISTORY_MAX)
        buf_printf(out, "],\"next\":%" PRIu64 "}", last);
    else
        buf_puts(out, "],\"next\":null}");
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

/* ---- sources ---- */

struct source {
    uint8_t adapter[32], datanet[32];
    size_t adapter_len, datanet_len;
    char name[SOURCE_TEXT];
    u128 earned, pending;
};

static void put_source(struct buf *out, const struct source *s, bool first)
{
    buf_puts(out, first ? "{\"adapter\":" : ",{\"adapter\":");
    if (s->adapter_len)
        archive_put_hex(out, s->adapter, 32);
    else
        buf_puts(out, "null");
    buf_puts(out, ",\"datanet\":");
    if (s->datanet_len)
        archive_put_hex(out, s->datanet, 32);
    else
        buf_puts(out, "null");
    buf_printf(out, ",\"source\":\"%s\"", s->name);
    put_amount(out, "earned", s->earned);
    put_amount(out, "pending", s->pending);
    buf_putc(out, '}');
}

/* Is the row of the same adapter and source as s? If not, s becomes it. */
static bool same_source(struct source *s, struct db_rows *q)
{
    size_t len;
    const uint8_t *adapter = db_blob(q, 0, &len);
    const char *name = db_text(q, 1);
    if (s->name[0] && len == s->adapter_len && (!len || memcmp(adapter, s->adapter, len) == 0) &&
        strcmp(name, s->name) == 0)
        return true;
    *s = (struct source){.adapter_len = len == 32 ? 32 : 0};
    db_bytes(q, 0, s->adapter, 32);
    snprintf(s->name, sizeof(s->name), "%s", name);
    (void)db_blob(q, 2, &len);
    s->datanet_len = len == 32 ? 32 : 0;
    db_bytes(q, 2, s->datanet, 32);
    return false;
}

/* "0x<64 digits>:<source>", or ":<source>" of no adapter. */
static enum status read_after(const char *text, struct source *s, struct errtext *err)
{
    char id[67];
    *s = (struct source){.adapter_len = 0};
    if (!text)
        return STATUS_OK;
    size_t len = strcspn(text, ":");
    if (len < sizeof(id) && text[len] == ':') {
        memcpy(id, text, len);
        id[len] = '\0';
        snprintf(s->name, sizeof(s->name), "%s", text + len + 1);
        s->adapter_len = len ? 32 : 0;
        if (!len || hex_decode(s->adapter, 32, id))
            return STATUS_OK;
    }
    return err_set(err, STATUS_INVALID, "after: found '%.80s', expected what `next` said", text);
}

struct sources {
    struct buf *out;
    uint64_t active; /* up to here it can be claimed */
    struct source now, last;
    uint32_t count; /* put */
    bool more;
};

static void end_source(struct sources *l)
{
    if (!l->now.name[0] || l->more)
        return;
    if (l->count == SOURCES_MAX) {
        l->more = true;
        return;
    }
    put_source(l->out, &l->now, l->count++ == 0);
    l->last = l->now;
}

static enum status walk_sources(struct sources *l, struct db_rows *q, struct errtext *err)
{
    enum status st = STATUS_OK;
    while (!l->more && (st = db_next(q, err)) == STATUS_OK) {
        struct source next = l->now;
        if (!same_source(&next, q)) {
            end_source(l);
            l->now = next;
        }
        u128 amount = db_amount(q, 4);
        if (db_u64(q, 3) <= l->active)
            l->now.earned += amount;
        else
            l->now.pending += amount;
    }
    db_done(q);
    if (!st || st == STATUS_NOT_FOUND)
        end_source(l);
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

static void put_next(struct sources *l)
{
    if (!l->more) {
        buf_puts(l->out, "],\"next\":null}");
        return;
    }
    buf_puts(l->out, "],\"next\":\"");
    if (l->last.adapter_len) {
        char hex[65];
        hex_encode(hex, l->last.adapter, 32);
        buf_printf(l->out, "0x%s", hex);
    }
    buf_printf(l->out, ":%s\"}", l->last.name);
}

enum status rewards_put_sources(struct rewards *r, struct db *db, const uint8_t account[20],
                                const char *after, struct buf *out, struct errtext *err)
{
    struct db_rows q;
    struct source from;
    struct sources l = {.out = out};
    enum status st = read_after(after, &from, err);
    if (!st)
        st = ask_active(r, &l.active, err);
    if (!st)
        st = db_query(db, &q, err,
                      "SELECT s.adapter, s.source, s.datanet, s.epoch, s.amount FROM earned s JOIN"
                      " epochs e ON e.epoch = s.epoch WHERE s.account = ? AND (s.adapter, s.source)"
                      " > (?, ?) AND e.state <> ? ORDER BY s.adapter, s.source, s.epoch",
                      "bbtt", account, (size_t)20, from.adapter, from.adapter_len, from.name,
                      epoch_state_name(EPOCH_VETOED));
    if (st)
        return st;
    buf_putc(out, '{');
    put_account(out, account);
    buf_puts(out, ",\"sources\":[");
    st = walk_sources(&l, &q, err);
    put_next(&l);
    return st;
}
