/* Reward(e), the money of an epoch, in four steps (SPEC 5). What a refused record paid is the
 * TREASURY's before any of them.
 *
 * The others are sorted by (set, lane, model): a set is one run, and each (lane, model) a run
 * inside it. One pass over the runs does steps 1 and 2 and gathers the weights of step 4:
 *
 *   fees of a run --LR by policy--> base pool of the model, set pool, operator, TREASURY
 *   set pool      --LR by X------->  its adapters' parts
 *   part          --LR by bps----->  the parents' parts, deepest first; the rest: adapter pools
 *   adapter pool  --LR by bps----->  entries; the role-data ones together are the data pool
 *   data pool     --LR by Y------->  the owners that evidence names, or the role-data entries
 *
 * All sums live in one table keyed by (tag, id): what accounts earn, base pools by model, and Y by
 * (adapter, payee). Adapter pools are an array beside the caller's adapter table. LR conserves
 * every unit, so what accounts earn sums to the fees; that is checked at the end, not assumed. */
#include "chain_client/reward.h"
#include "chain_client/commit.h"
#include "chain_client/eth/addr.h"
#include "chain_client/lr.h"
#include "chain_client/sums.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <stdlib.h>
#include <string.h>

enum { TAG_EARNED = 0, TAG_BASE = 1, TAG_DATA = 2 /* + the adapter's place in the table */ };

struct reward_work {
    const struct reward_input *in;
    const struct reward_tables *t;       /* of in */
    const struct reward_record **sorted; /* by (set, lane, model); refused ones left out */
    size_t sorted_count;
    u128 *adapter_pool; /* [adapter_count] */
    u128 *part;         /* [adapter_count] of the set at hand, zero between sets */
    uint8_t *depth;     /* [adapter_count] */
    uint32_t
        *touched; /* [adapter_count] whose part is not zero, in the order of their first unit */
    size_t touched_count;
    struct sums sums;
    struct reward_share from; /* of what is earned now: adapter_id and source */
    struct reward_result *out;
};

/* What one set collects while its run is walked. */
struct set_run {
    struct tail_set set;
    const struct reward_adapter *adapter[TAIL_ADAPTERS_MAX]; /* NULL: not registered */
    uint32_t weight[TAIL_ADAPTERS_MAX];                      /* |weight| */
    struct u256 x[TAIL_ADAPTERS_MAX];
    u128 pool;
};

/* ---- sums ---- */

static enum status add_sum(struct reward_work *w, uint32_t tag, const uint8_t *id, size_t id_len,
                           u128 v)
{
    struct u256 wide = u256_from(v);
    struct u256 *sum = v ? sums_at(&w->sums, tag, id, id_len) : NULL;
    if (!v)
        return STATUS_OK;
    if (!sum)
        return STATUS_NO_MEMORY;
    CHECK(u256_add(sum, &wide));
    return STATUS_OK;
}

static enum status tell(struct reward_work *w, const uint8_t payee[20], u128 v)
{
    if (!w->in->on_share)
        return STATUS_OK;
    w->from.payee = payee;
    w->from.amount = v;
    return w->in->on_share(w->in->on_share_arg, &w->from);
}

static enum status earn(struct reward_work *w, const uint8_t payee[20], u128 v)
{
    enum status st = v ? tell(w, payee, v) : STATUS_OK;
    return st ? st : add_sum(w, TAG_EARNED, payee, 20, v);
}

static enum status earn_treasury(struct reward_work *w, u128 v)
{
    return earn(w, w->t->policy->treasury, v);
}

/* Step 1 for one (lane, model, set): fee by policy; the set's part is added to run->pool. */
static enum status share_fees(struct reward_work *w, struct set_run *run,
                              const struct reward_record *r, u128 fee)
{
    const struct reward_policy *p = w->t->policy;
    bool alone = run->set.count == 0;
    uint32_t weight[4] = {p->base_bps, p->adapters_bps, p->operator_bps, p->protocol_bps};
    u128 part[4];
    if (alone) {
        weight[0] += weight[1];
        weight[1] = 0;
    }
    enum status st = lr_split_small(part, fee, weight, 4);
    const struct reward_lane *lane = reward_find_lane(w->t, r->lane);
    bool has_operator = lane && !addr_is_zero(lane->account);
    run->pool += part[1];
    if (!st)
        st = add_sum(w, TAG_BASE, r->model_id, 32, part[0]);
    w->from = (struct reward_share){.source = REWARD_FROM_OPERATOR};
    if (!st)
        st = has_operator ? earn(w, lane->account, part[2]) : earn_treasury(w, part[2]);
    w->from.source = REWARD_FROM_PROTOCOL;
    return st ? st : earn_treasury(w, part[3]);
}

/* Y of one adapter for one required record; gain is of E9. */
static enum status weigh_data(struct reward_work *w, const struct reward_adapter *a, u128 part,
                              const struct tail_credit *credit)
{
    static const uint8_t treasury[20]; /* key 0 */
    uint32_t tag = TAG_DATA + (uint32_t)(a - w->t->adapter);
    uint32_t count = credit ? credit->share_count : 1;
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *payee = credit ? credit->share[i].payee : treasury;
        struct u256 *y = sums_at(&w->sums, tag, payee, 20);
        if (!y)
            return STATUS_NO_MEMORY;
        CHECK(u256_add_product(y, part, credit ? credit->share[i].ppb : TAIL_E9));
    }
    return STATUS_OK;
}

/* floor(fee * gain / E9) */
static u128 part_of(u128 fee, uint32_t gain)
{
    struct u256 weight = u256_from(gain), all = u256_from(TAIL_E9), rest;
    u128 out;
    u256_muldiv(&out, &rest, fee, &weight, &all);
    return out;
}

/* Steps 2 and 4: what one record adds to X and Y. */
static enum status weigh_record(struct reward_work *w, struct set_run *run,
                                const struct reward_record *r)
{
    static _Thread_local struct tail_influence influence; /* 12 KiB: not on the stack */
    struct reward_stats *stats = &w->out->stats;
    u128 gain[TAIL_ADAPTERS_MAX];
    if (!r->is_required)
        return STATUS_OK;
    stats->required++;
    stats->fee_required += r->fee;
    *(r->is_scored ? &stats->scored : &stats->missing) += 1;
    *(r->is_scored ? &stats->fee_scored : &stats->fee_missing) += r->fee;
    if (r->is_scored) {
        enum status st =
            tail_influence_decode(&influence, r->influence.data, r->influence.len, NULL);
        if (st || influence.count != run->set.count)
            return STATUS_INVALID;
    } else {
        enum status st = lr_split_small(gain, TAIL_E9, run->weight, run->set.count);
        if (st)
            return st;
    }
    for (uint32_t i = 0; i < run->set.count; i++) {
        uint32_t g = r->is_scored ? influence.adapter[i].gain : (uint32_t)gain[i];
        const struct reward_adapter *a = run->adapter[i];
        CHECK(u256_add_product(&run->x[i], r->fee, g));
        if (!a || !reward_has_datanet(a))
            continue;
        enum status st =
            weigh_data(w, a, part_of(r->fee, g), r->is_scored ? &influence.adapter[i] : NULL);
        if (st)
            return st;
    }
    return STATUS_OK;
}

static void add_part(struct reward_work *w, const struct reward_adapter *a, u128 v)
{
    size_t i = (size_t)(a - w->t->adapter);
    if (v && !w->part[i])
        w->touched[w->touched_count++] = (uint32_t)i;
    w->part[i] += v;
}

/* An adapter's part of the set: its parents first, the rest is its own. */
static enum status share_part(struct reward_work *w, size_t i)
{
    const struct reward_adapter *a = &w->t->adapter[i];
    uint32_t bps[REWARD_PARENTS_MAX + 1] = {0}, own = REWARD_BPS;
    u128 part[REWARD_PARENTS_MAX + 1];
    for (size_t k = 0; k < a->parent_count; k++) {
        bps[k] = a->parent[k].bps;
        own -= bps[k];
    }
    bps[a->parent_count] = own;
    enum status st = lr_split_small(part, w->part[i], bps, a->parent_count + 1);
    w->part[i] = 0;
    for (size_t k = 0; k < a->parent_count && !st; k++) {
        const struct reward_adapter *p = reward_find_adapter(w->t, a->parent[k].adapter_id);
        if (p)
            add_part(w, p, part[k]);
        else
            st = earn_treasury(w, part[k]);
    }
    if (!st)
        w->adapter_pool[i] += part[a->parent_count];
    return st;
}

/* A parent is less deep than its child, so it has all of its part when its turn comes. */
static enum status share_parts(struct reward_work *w)
{
    unsigned deepest = 0;
    enum status st = STATUS_OK;
    for (size_t k = 0; k < w->touched_count; k++)
        deepest = MAX(deepest, w->depth[w->touched[k]]);
    for (unsigned depth = deepest + 1; depth-- > 0;)
        for (size_t k = 0; k < w->touched_count && !st; k++)
            if (w->depth[w->touched[k]] == depth)
                st = share_part(w, w->touched[k]);
    w->touched_count = 0;
    return st;
}

/* Step 2: the set's pool to its adapters and their parents. */
static enum status share_set(struct reward_work *w, const struct set_run *run)
{
    u128 part[TAIL_ADAPTERS_MAX];
    bool has_x = false;
    if (!run->set.count)
        return STATUS_OK;
    for (uint32_t i = 0; i < run->set.count; i++)
        has_x |= !u256_is_zero(&run->x[i]);
    enum status st = has_x ? lr_split(part, run->pool, run->x, run->set.count)
                           : lr_split_small(part, run->pool, run->weight, run->set.count);
    w->from = (struct reward_share){.source = REWARD_FROM_PROTOCOL};
    for (uint32_t i = 0; i < run->set.count && !st; i++) {
        if (run->adapter[i])
            add_part(w, run->adapter[i], part[i]);
        else
            st = earn_treasury(w, part[i]);
    }
    return st ? st : share_parts(w);
}

/* ---- runs ---- */

static int set_order(const struct reward_record *a, const struct reward_record *b)
{
    if (a->set.len != b->set.len)
        return a->set.len < b->set.len ? -1 : 1;
    return a->set.len ? memcmp(a->set.data, b->set.data, a->set.len) : 0;
}

static int group_order(const struct reward_record *a, const struct reward_record *b)
{
    if (a->lane != b->lane)
        return a->lane < b->lane ? -1 : 1;
    return memcmp(a->model_id, b->model_id, 32);
}

static int record_order(const void *a, const void *b)
{
    const struct reward_record *x = *(const struct reward_record *const *)a;
    const struct reward_record *y = *(const struct reward_record *const *)b;
    int order = set_order(x, y);
    return order ? order : group_order(x, y);
}

static enum status begin_run(struct reward_work *w, struct set_run *run,
                             const struct reward_record *r, struct errtext *err)
{
    memset(run, 0, sizeof(*run));
    enum status st = tail_set_decode(&run->set, r->set.data, r->set.len, err);
    for (uint32_t i = 0; i < run->set.count && !st; i++) {
        int64_t weight = run->set.adapter[i].weight;
        run->weight[i] = (uint32_t)(weight < 0 ? -weight : weight);
        run->adapter[i] = reward_find_adapter(w->t, run->set.adapter[i].id);
    }
    return st;
}

/* Steps 1 and 2 for the run of one set that begins at *at. */
static enum status walk_set(struct reward_work *w, size_t *at, struct errtext *err)
{
    struct set_run run;
    size_t n = w->sorted_count;
    const struct reward_record *first = w->sorted[*at];
    enum status st = begin_run(w, &run, first, err);
    while (*at < n && !st && set_order(first, w->sorted[*at]) == 0) {
        const struct reward_record *group = w->sorted[*at];
        u128 fee = 0;
        for (; *at < n && !st; ++*at) {
            const struct reward_record *r = w->sorted[*at];
            if (set_order(group, r) || group_order(group, r))
                break;
            fee += r->fee;
            st = weigh_record(w, &run, r);
        }
        if (!st)
            st = share_fees(w, &run, group, fee);
    }
    return st ? st : share_set(w, &run);
}

/* Step 0: what a refused record paid is TREASURY's. */
static enum status refuse(struct reward_work *w, const struct reward_record *r)
{
    w->out->stats.refused++;
    w->out->stats.fee_refused += r->fee;
    w->from = (struct reward_share){.source = REWARD_FROM_PROTOCOL};
    return earn_treasury(w, r->fee);
}

static enum status walk_records(struct reward_work *w, struct errtext *err)
{
    const struct reward_input *in = w->in;
    enum status st = STATUS_OK;
    for (size_t i = 0; i < in->record_count && !st; i++) {
        const struct reward_record *r = &in->record[i];
        w->out->fee_sum += r->fee;
        if (w->out->fee_sum < r->fee)
            return err_set(err, STATUS_INVALID, "the sum of the fees passes 2^128");
        if (r->is_refused)
            st = refuse(w, r);
        else
            w->sorted[w->sorted_count++] = r;
    }
    qsort(w->sorted, w->sorted_count, sizeof(*w->sorted), record_order);
    for (size_t at = 0; at < w->sorted_count && !st;)
        st = walk_set(w, &at, err);
    return st;
}

/* ---- steps 3 and 4 ---- */

static enum status share_split(struct reward_work *w, const struct reward_split *s, u128 pool,
                               bool only_data)
{
    uint32_t weight[REWARD_ENTRIES_MAX] = {0};
    u128 part[REWARD_ENTRIES_MAX];
    size_t n = 0;
    const uint8_t *payee[REWARD_ENTRIES_MAX];
    for (size_t i = 0; i < s->count; i++) {
        if (only_data && s->entry[i].role != REWARD_ROLE_DATA)
            continue;
        weight[n] = s->entry[i].bps;
        payee[n++] = s->entry[i].payee;
    }
    enum status st = lr_split_small(part, pool, weight, n);
    w->from.source = only_data ? REWARD_FROM_DATA : REWARD_FROM_BASE;
    for (size_t i = 0; i < n && !st; i++)
        st = earn(w, payee[i], part[i]);
    return st;
}

/* Evidence names owners whom this split gives nothing: they are told. */
static enum status tell_unpaid(struct reward_work *w, const struct sums_entry *y, size_t count)
{
    static const uint8_t treasury[20];
    enum status st = STATUS_OK;
    w->from.source = REWARD_UNPAID;
    for (size_t i = 0; i < count && !st; i++)
        if (memcmp(y[i].key.id, treasury, 20) != 0)
            st = tell(w, y[i].key.id, 0);
    return st;
}

/* Step 4: y[0..count) are the adapter's weights, payees ascending. */
static enum status share_data(struct reward_work *w, const struct reward_adapter *a, u128 pool,
                              const struct sums_entry *y, size_t count)
{
    static const uint8_t treasury[20];
    bool has_y = false;
    for (size_t i = 0; i < count; i++)
        has_y |= !u256_is_zero(&y[i].sum);
    if (!reward_has_datanet(a) || !has_y)
        return share_split(w, &a->split, pool, true);
    struct u256 *weight = mem_try_array(count, sizeof(*weight));
    u128 *part = mem_try_array(count, sizeof(*part));
    enum status st = weight && part ? STATUS_OK : STATUS_NO_MEMORY;
    for (size_t i = 0; i < count && !st; i++)
        weight[i] = y[i].sum;
    if (!st)
        st = lr_split(part, pool, weight, count);
    w->from.source = REWARD_FROM_DATA;
    for (size_t i = 0; i < count && !st; i++) {
        bool is_treasury = memcmp(y[i].key.id, treasury, 20) == 0;
        st = is_treasury ? earn_treasury(w, part[i]) : earn(w, y[i].key.id, part[i]);
    }
    mem_free(weight);
    mem_free(part);
    return st;
}

/* Step 3 for one adapter; y as above. */
static enum status share_adapter(struct reward_work *w, const struct reward_adapter *a, u128 pool,
                                 const struct sums_entry *y, size_t count)
{
    uint32_t weight[REWARD_ENTRIES_MAX] = {0};
    u128 part[REWARD_ENTRIES_MAX], data = 0;
    bool has_data = false;
    for (size_t i = 0; i < a->split.count; i++)
        weight[i] = a->split.entry[i].bps;
    enum status st = lr_split_small(part, pool, weight, a->split.count);
    w->from = (struct reward_share){.adapter_id = a->adapter_id};
    for (size_t i = 0; i < a->split.count && !st; i++) {
        if (a->split.entry[i].role == REWARD_ROLE_DATA) {
            data += part[i];
            has_data = true;
        } else {
            w->from.source = a->split.entry[i].role == REWARD_ROLE_AUTHOR ? REWARD_FROM_AUTHOR
                                                                          : REWARD_FROM_OTHER;
            st = earn(w, a->split.entry[i].payee, part[i]);
        }
    }
    if (!st && !has_data)
        st = tell_unpaid(w, y, count);
    return st || !has_data ? st : share_data(w, a, data, y, count);
}

static enum status share_pools(struct reward_work *w)
{
    size_t count = w->sums.used, at = 0;
    struct sums_entry *all = sums_sorted(&w->sums);
    enum status st = all ? STATUS_OK : STATUS_NO_MEMORY;
    while (!st && at < count && all[at].key.tag == TAG_EARNED)
        at++;
    for (; !st && at < count && all[at].key.tag == TAG_BASE; at++) {
        u128 pool = (u128)all[at].sum.w[1] << 64 | all[at].sum.w[0];
        const struct reward_base *base = reward_find_base(w->t, all[at].key.id);
        w->from = (struct reward_share){.source = REWARD_FROM_BASE};
        st = base ? share_split(w, &base->split, pool, false) : earn_treasury(w, pool);
    }
    for (size_t i = 0; i < w->t->adapter_count && !st; i++) {
        size_t first = at;
        while (at < count && all[at].key.tag == TAG_DATA + i)
            at++;
        if (w->adapter_pool[i])
            st = share_adapter(w, &w->t->adapter[i], w->adapter_pool[i], all + first, at - first);
    }
    mem_free(all);
    return st;
}

/* ---- the result ---- */

static enum status put_account(struct reward_result *out, const uint8_t *payee, u128 before,
                               u128 amount, struct errtext *err)
{
    struct reward_account *a = &out->account[out->account_count];
    memcpy(a->payee, payee, 20);
    a->amount = amount;
    a->cumulative = before + amount;
    if (a->cumulative < before || out->total + a->cumulative < out->total)
        return err_set(err, STATUS_INVALID, "the cumulative amounts pass 2^128");
    out->total += a->cumulative;
    out->account_count += a->cumulative != 0;
    return STATUS_OK;
}

/* Merge the previous accounts with what was earned, both ascending by payee. */
static enum status merge_accounts(struct reward_work *w, const struct sums_entry *earned,
                                  size_t count, struct errtext *err)
{
    const struct reward_account *prev = w->in->prev;
    size_t i = 0, k = 0;
    enum status st = STATUS_OK;
    while (!st && (i < w->in->prev_count || k < count)) {
        int order = i == w->in->prev_count ? 1
                    : k == count           ? -1
                                           : memcmp(prev[i].payee, earned[k].key.id, 20);
        u128 before = order <= 0 ? prev[i].cumulative : 0;
        u128 amount = order >= 0 ? (u128)earned[k].sum.w[1] << 64 | earned[k].sum.w[0] : 0;
        st =
            put_account(w->out, order <= 0 ? prev[i].payee : earned[k].key.id, before, amount, err);
        i += order <= 0;
        k += order >= 0;
    }
    return st;
}

static enum status make_result(struct reward_work *w, struct errtext *err)
{
    struct reward_result *out = w->out;
    struct sums_entry *all = sums_sorted(&w->sums);
    size_t earned = 0;
    while (all && earned < w->sums.used && all[earned].key.tag == TAG_EARNED)
        earned++;
    size_t room = w->in->prev_count + earned + 1; /* put_account writes one ahead */
    out->account = mem_try_array(room, sizeof(*out->account));
    enum status st = all && out->account ? merge_accounts(w, all, earned, err) : STATUS_NO_MEMORY;
    mem_free(all);
    u128 before = 0, amounts = 0;
    for (size_t i = 0; i < w->in->prev_count; i++)
        before += w->in->prev[i].cumulative;
    for (size_t i = 0; i < out->account_count && !st; i++)
        amounts += out->account[i].amount;
    if (!st && (amounts != out->fee_sum || out->total != before + out->fee_sum))
        st = err_set(err, STATUS_CORRUPT, "the accounts' amounts do not sum to the fees");
    const struct reward_stats *s = &out->stats;
    if (!st && (s->required != s->scored + s->missing ||
                s->fee_required != s->fee_scored + s->fee_missing))
        st = err_set(err, STATUS_CORRUPT, "required is not scored and missing");
    return st;
}

static enum status make_room(struct reward_work *w)
{
    size_t adapters = w->t->adapter_count + 1;
    w->sorted = mem_try_array(w->in->record_count + 1, sizeof(*w->sorted));
    w->adapter_pool = mem_try_array(adapters, sizeof(*w->adapter_pool));
    w->part = mem_try_array(adapters, sizeof(*w->part));
    w->depth = mem_try_array(adapters, sizeof(*w->depth));
    w->touched = mem_try_array(adapters, sizeof(*w->touched));
    enum status st = sums_init(&w->sums);
    bool good = w->sorted && w->adapter_pool && w->part && w->depth && w->touched;
    return st || good ? st : STATUS_NO_MEMORY;
}

static void free_room(struct reward_work *w)
{
    sums_fini(&w->sums);
    mem_free(w->sorted);
    mem_free(w->adapter_pool);
    mem_free(w->part);
    mem_free(w->depth);
    mem_free(w->touched);
}

enum status reward_compute(struct reward_result *out, const struct reward_input *input,
                           struct errtext *err)
{
    struct reward_work w = {.in = input, .t = &input->tables, .out = out};
    memset(out, 0, sizeof(*out));
    enum status st = reward_check_tables(w.t, err);
    for (size_t i = 1; i < input->prev_count && !st; i++)
        if (memcmp(input->prev[i - 1].payee, input->prev[i].payee, 20) >= 0)
            st = err_set(err, STATUS_INVALID, "previous accounts are not strictly ascending");
    if (st)
        return st;
    if (input->record_count > REWARD_RECORDS_MAX)
        return err_set(err, STATUS_TOO_LARGE, "%zu records in one epoch, at most %u",
                       input->record_count, REWARD_RECORDS_MAX);
    st = make_room(&w);
    if (!st)
        st = reward_depths(w.t, w.depth, err);
    if (!st)
        st = walk_records(&w, err);
    if (!st)
        st = share_pools(&w);
    if (!st)
        st = make_result(&w, err);
    if (st == STATUS_NO_MEMORY)
        st = err_set(err, st, "no memory for the reward of %zu records", input->record_count);
    else if (st)
        st = err_set(err, st, "a record's influence does not fit its set");
    free_room(&w);
    if (st)
        reward_result_fini(out);
    return st;
}

void reward_result_fini(struct reward_result *r)
{
    mem_free(r->account);
    memset(r, 0, sizeof(*r));
}
