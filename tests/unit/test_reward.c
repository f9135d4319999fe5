/* Money: 256-bit division against a bit-by-bit oracle, properties of the largest remainder, and
 * Reward(e) on random worlds: every identity of SPEC 5, independence of the records' order, and the
 * rules that vectors do not reach. */
#include "chain_client/reward.h"

#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "chain_client/commit.h"
#include "chain_client/lr.h"
#include "chain_client/eth/u256.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/mem.h"
#include "server/base/philox.h"

static uint32_t draw_count;

static uint32_t draw(void)
{
    uint32_t out[4];
    const uint32_t ctr[4] = {draw_count++, 0, 0, 0};
    philox4x32(out, ctr, 20261121);
    return out[0];
}

static uint32_t below(uint32_t n)
{
    return draw() % n;
}

static u128 draw_bits(unsigned bits)
{
    u128 v = ((u128)draw() << 96) | ((u128)draw() << 64) | ((u128)draw() << 32) | draw();
    return bits >= 128 ? v : v & (((u128)1 << bits) - 1);
}

static struct u256 draw_wide(unsigned bits)
{
    struct u256 v = u256_from(draw_bits(bits > 128 ? 128 : bits));
    if (bits > 128) {
        u128 high = draw_bits(bits - 128);
        v.w[2] = (uint64_t)high;
        v.w[3] = (uint64_t)(high >> 64);
    }
    return v;
}

/* ---- 256 bits ---- */

static void subtract(struct u256 *a, const struct u256 *b)
{
    u128 borrow = 0;
    for (size_t i = 0; i < 4; i++) {
        u128 v = (u128)a->w[i] - b->w[i] - borrow;
        a->w[i] = (uint64_t)v;
        borrow = v >> 64 ? 1 : 0;
    }
}

/* x * w / d, one bit of x at a time from the top: 2 * rest + w stays below 3 * d, so d of at most
 * 254 bits leaves room. */
static void oracle(u128 *q, struct u256 *rest, u128 x, const struct u256 *w, const struct u256 *d)
{
    *q = 0;
    *rest = u256_from(0);
    for (unsigned bit = 128; bit-- > 0;) {
        struct u256 twice = *rest;
        assert_true(u256_add(&twice, rest));
        *q *= 2;
        if (x >> bit & 1)
            assert_true(u256_add(&twice, w));
        while (u256_cmp(&twice, d) >= 0) {
            subtract(&twice, d);
            ++*q;
        }
        *rest = twice;
    }
}

static void test_muldiv_equals_oracle(void **state)
{
    for (int i = 0; i < 4000; i++) {
        struct u256 d = draw_wide(1 + below(254)), w = draw_wide(1 + below(254)), rest, want_rest;
        u128 x = draw_bits(1 + below(128)), q = 0, want = 0;
        if (i % 5 == 0) /* digits of all ones provoke the corrections */
            d.w[below(4)] = below(2) ? UINT64_MAX : 0;
        d.w[3] &= UINT64_MAX >> 2;
        if (u256_is_zero(&d))
            d.w[0] = 1;
        if (u256_cmp(&w, &d) > 0) {
            struct u256 t = w;
            w = d;
            d = t;
        }
        u256_muldiv(&q, &rest, x, &w, &d);
        oracle(&want, &want_rest, x, &w, &d);
        assert_true(q == want);
        assert_int_equal(u256_cmp(&rest, &want_rest), 0);
    }
}

static void test_u256_edges(void **state)
{
    struct u256 most = {{UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX}}, one = u256_from(1), rest;
    struct u256 kept = most;
    u128 q = 0;
    assert_false(u256_add(&most, &one));
    assert_int_equal(u256_cmp(&most, &kept), 0);
    assert_false(u256_add_product(&most, 1, 1));
    u256_muldiv(&q, &rest, ~(u128)0, &most, &most);
    assert_true(q == ~(u128)0 && u256_is_zero(&rest));
    struct u256 zero = u256_from(0);
    u256_muldiv(&q, &rest, ~(u128)0, &zero, &most);
    assert_true(q == 0 && u256_is_zero(&rest));
    assert_true(u256_add_product(&zero, ~(u128)0, UINT64_MAX));
    assert_true(zero.w[0] == 1 && zero.w[3] == 0);
}

static void test_remainder_properties(void **state)
{
    for (int round = 0; round < 400; round++) {
        size_t n = 1 + below(60);
        struct u256 weight[64];
        u128 part[64], sum = 0, x = draw_bits(1 + below(128));
        bool has_weight = false;
        for (size_t i = 0; i < n; i++) {
            weight[i] = below(4) ? draw_wide(1 + below(200)) : u256_from(0);
            has_weight |= !u256_is_zero(&weight[i]);
        }
        enum status st = lr_split(part, x, weight, n);
        assert_int_equal(st, has_weight ? STATUS_OK : STATUS_INVALID);
        for (size_t i = 0; i < n && has_weight; i++) {
            sum += part[i];
            if (u256_is_zero(&weight[i]))
                assert_true(part[i] == 0);
            for (size_t k = 0; k < i; k++) { /* a larger weight never gets less; equal: lower key */
                int order = u256_cmp(&weight[k], &weight[i]);
                assert_true(order < 0 ? part[k] <= part[i] : part[k] >= part[i]);
                if (order == 0)
                    assert_true(part[k] - part[i] <= 1);
            }
        }
        if (has_weight)
            assert_true(sum == x);
    }
}

/* ---- random worlds ---- */

#define SETS 12

struct fake {
    struct reward_policy policy;
    struct reward_lane lane[3];
    struct reward_entry entry[64][4];
    struct reward_base base[2];
    struct reward_adapter adapter[5];
    struct reward_parent parent[2][2];
    uint8_t model[3][32], set[SETS][TAIL_SET_BYTES_MAX];
    size_t set_len[SETS];
    struct reward_record *record;
    uint8_t *tails; /* [record_count][TAIL_INFLUENCE_BYTES_MAX] */
    size_t record_count;
};

static void name(uint8_t *out, size_t len, uint32_t v)
{
    memset(out, 0, len);
    be_put(out, v, 4);
}

static struct reward_split make_split(struct fake *f, size_t at, uint32_t tag)
{
    struct reward_entry *e = f->entry[at];
    uint16_t cut = (uint16_t)(1 + below(4000)), cut2 = (uint16_t)(1 + below(4000));
    e[0] = (struct reward_entry){.role = REWARD_ROLE_AUTHOR, .bps = cut};
    e[1] = (struct reward_entry){.role = REWARD_ROLE_DATA, .bps = cut2};
    e[2] =
        (struct reward_entry){.role = REWARD_ROLE_DATA, .bps = (uint16_t)(REWARD_BPS - cut - cut2)};
    for (uint32_t i = 0; i < 3; i++)
        name(e[i].payee, 20, tag + i);
    return (struct reward_split){e, 3};
}

static void make_tables(struct fake *f)
{
    f->policy = (struct reward_policy){2000, 6000, 1500, 500, {0}};
    name(f->policy.treasury, 20, 0xfe000000);
    for (uint32_t i = 0; i < 3; i++) {
        f->lane[i].lane = i + 1;
        name(f->lane[i].account, 20, 0xc0000000 + i);
        name(f->model[i], 32, 0x50000000 + i); /* the last is not registered */
    }
    for (uint32_t i = 0; i < 2; i++) {
        memcpy(f->base[i].model_id, f->model[i], 32);
        f->base[i].split = make_split(f, i, 0x1000 * (i + 1));
    }
    for (uint32_t i = 0; i < 5; i++) {
        name(f->adapter[i].adapter_id, 32, 10 + 2 * i); /* 11, 13, ... are not registered */
        f->adapter[i].datanet_id[0] = i != 2;
        f->adapter[i].split = make_split(f, 8 + i, 0x10000 * (i + 1));
    }
    for (uint32_t i = 0; i < 2; i++) { /* 3 is made from 0 and 1, 4 from 3 and an unknown one */
        for (uint32_t k = 0; k < 2; k++) {
            name(f->parent[i][k].adapter_id, 32, i ? 16 + k : 10 + 2 * k);
            f->parent[i][k].bps = (uint16_t)(1 + below(2500));
        }
        f->adapter[3 + i].parent = f->parent[i];
        f->adapter[3 + i].parent_count = 2;
    }
    for (uint32_t s = 0; s < SETS; s++) {
        struct tail_set set = {.count = s % 5};
        for (uint32_t k = 0; k < set.count; k++) {
            name(set.adapter[k].id, 32, 10 + (s % 3) + 2 * k);
            set.adapter[k].weight = (int32_t)(1 + below(100000)) * (below(2) ? 1 : -1);
        }
        assert_int_equal(tail_set_encode(f->set[s], &f->set_len[s], &set, NULL), STATUS_OK);
    }
}

static void make_influence(struct fake *f, struct reward_record *r, uint8_t *tail)
{
    static struct tail_influence influence;
    influence.count = (uint32_t)(r->set.len / 36);
    uint32_t left = TAIL_E9;
    for (uint32_t i = 0; i < influence.count; i++) {
        struct tail_credit *c = &influence.adapter[i];
        c->gain = i + 1 == influence.count ? left : below(left + 1);
        left -= c->gain;
        c->share_count = 1 + below(5);
        uint32_t ppb = TAIL_E9;
        for (uint32_t k = 0; k < c->share_count; k++) {
            name(c->share[k].payee, 20, k ? 100 * k + below(90) : 0); /* first: TREASURY */
            c->share[k].ppb = k + 1 == c->share_count ? ppb : below(ppb + 1);
            ppb -= c->share[k].ppb;
        }
    }
    assert_int_equal(tail_influence_encode(tail, &r->influence.len, &influence, NULL), STATUS_OK);
    r->influence.data = tail;
    r->is_scored = true;
}

static bool has_datanet(const struct fake *f, const struct reward_record *r)
{
    const struct reward_tables t = {.adapter = f->adapter, .adapter_count = 5};
    const struct reward_adapter *a = r->set.len == 36 ? reward_find_adapter(&t, r->set.data) : NULL;
    return a && reward_has_datanet(a);
}

static void make_records(struct fake *f, size_t count)
{
    static const uint8_t digest[32], seed[32] = {7};
    f->record = mem_array(count, sizeof(*f->record));
    f->tails = mem_array(count, TAIL_INFLUENCE_BYTES_MAX);
    f->record_count = count;
    for (size_t i = 0; i < count; i++) {
        struct reward_record *r = &f->record[i];
        size_t s = below(SETS);
        *r = (struct reward_record){.lane = 1 + below(4), /* lane 4 has no account */
                                    .seq = i + 1,
                                    .fee = below(8) ? draw_bits(70) : 0,
                                    .model_id = f->model[below(3)],
                                    .digest = digest,
                                    .set = {f->set[s], f->set_len[s]},
                                    .seed = seed,
                                    .rate_ppb = below(2) ? TAIL_E9 : TAIL_E9 / 3};
        struct commit_sample sample = {r->fee, (uint32_t)(r->set.len / 36), has_datanet(f, r),
                                       r->lane, r->seq};
        r->is_required = commit_is_required(&sample, r->seed, r->rate_ppb);
        r->is_refused = below(16) == 0;
        if (r->set.len && below(3))
            make_influence(f, r, f->tails + i * TAIL_INFLUENCE_BYTES_MAX);
    }
}

static void free_fake(struct fake *f)
{
    mem_free(f->record);
    mem_free(f->tails);
}

static struct reward_tables tables_of(const struct fake *f)
{
    return (struct reward_tables){.policy = &f->policy,
                                  .lane = f->lane,
                                  .lane_count = 3,
                                  .base = f->base,
                                  .base_count = 2,
                                  .adapter = f->adapter,
                                  .adapter_count = 5};
}

static struct reward_input input_of(const struct fake *f, const struct reward_result *prev)
{
    return (struct reward_input){.tables = tables_of(f),
                                 .record = f->record,
                                 .record_count = f->record_count,
                                 .prev = prev ? prev->account : NULL,
                                 .prev_count = prev ? prev->account_count : 0};
}

static u128 cumulative_of(const struct reward_result *r, const uint8_t *payee)
{
    for (size_t i = 0; i < r->account_count; i++) {
        if (memcmp(r->account[i].payee, payee, 20) == 0)
            return r->account[i].cumulative;
    }
    return 0;
}

static void check_result(const struct reward_result *r, const struct reward_result *before,
                         const struct fake *f)
{
    u128 fees = 0, total = 0, amounts = 0;
    for (size_t i = 0; i < f->record_count; i++)
        fees += f->record[i].fee;
    for (size_t i = 0; i < r->account_count; i++) {
        total += r->account[i].cumulative;
        amounts += r->account[i].amount;
        assert_true(r->account[i].cumulative > 0);
        if (i)
            assert_true(memcmp(r->account[i - 1].payee, r->account[i].payee, 20) < 0);
    }
    assert_true(fees == r->fee_sum && amounts == fees && total == r->total);
    assert_true(total == fees + (before ? before->total : 0));
    for (size_t i = 0; before && i < before->account_count; i++)
        assert_true(cumulative_of(r, before->account[i].payee) >= before->account[i].cumulative);
    assert_true(r->stats.required == r->stats.scored + r->stats.missing);
    assert_true(r->stats.fee_required == r->stats.fee_scored + r->stats.fee_missing);
}

/* What on_share said, by payee; `kind` sums what it said of each source. */
struct told {
    struct {
        uint8_t payee[20];
        u128 sum;
        bool unpaid;
    } account[4096];
    size_t count;
    u128 kind[REWARD_UNPAID + 1], of_adapters;
};

static enum status hear(void *arg, const struct reward_share *s)
{
    struct told *t = arg;
    size_t i = 0;
    while (i < t->count && memcmp(t->account[i].payee, s->payee, 20) != 0)
        i++;
    if (i == t->count) {
        assert_true(i < ARRAY_COUNT(t->account));
        memcpy(t->account[t->count++].payee, s->payee, 20);
    }
    t->account[i].sum += s->amount;
    t->account[i].unpaid |= s->source == REWARD_UNPAID;
    t->kind[s->source] += s->amount;
    t->of_adapters += s->adapter_id ? s->amount : 0;
    assert_true((s->amount == 0) == (s->source == REWARD_UNPAID));
    return STATUS_OK;
}

static void check_told(const struct told *t, const struct reward_result *r)
{
    u128 all = 0;
    for (size_t i = 0; i < r->account_count; i++) {
        u128 told = 0;
        for (size_t k = 0; k < t->count; k++)
            if (memcmp(t->account[k].payee, r->account[i].payee, 20) == 0)
                told = t->account[k].sum;
        assert_true(told == r->account[i].amount);
        all += told;
    }
    assert_true(all == r->fee_sum);
}

static void shuffle(struct fake *f)
{
    for (size_t i = f->record_count; i > 1; i--) {
        size_t k = below((uint32_t)i);
        struct reward_record t = f->record[i - 1];
        f->record[i - 1] = f->record[k];
        f->record[k] = t;
    }
}

static void test_identities_and_order(void **state)
{
    struct reward_result before = {0};
    for (int round = 0; round < 40; round++) {
        struct fake f = {0};
        struct reward_result a, b;
        struct errtext err = ERRTEXT_INIT;
        make_tables(&f);
        make_records(&f, below(300));
        struct reward_input in = input_of(&f, &before);
        struct told *told = mem_alloc(sizeof(*told));
        memset(told, 0, sizeof(*told));
        in.on_share = hear;
        in.on_share_arg = told;
        if (reward_compute(&a, &in, &err))
            fail_msg("%s", err.text);
        check_result(&a, &before, &f);
        check_told(told, &a);
        mem_free(told);
        in.on_share = NULL;
        shuffle(&f);
        assert_int_equal(reward_compute(&b, &in, NULL), STATUS_OK);
        assert_int_equal(a.account_count, b.account_count);
        for (size_t i = 0; i < a.account_count; i++) {
            assert_memory_equal(a.account[i].payee, b.account[i].payee, 20);
            assert_true(a.account[i].cumulative == b.account[i].cumulative);
            assert_true(a.account[i].amount == b.account[i].amount);
        }
        reward_result_fini(&b);
        reward_result_fini(&before);
        before = a;
        free_fake(&f);
    }
    reward_result_fini(&before);
}

/* One record, one adapter with a datanet, round numbers by hand. */
static void test_one_record_by_hand(void **state)
{
    struct fake f = {0};
    struct reward_result r;
    uint8_t owner[20];
    make_tables(&f);
    make_records(&f, 1);
    static const uint16_t bps[3] = {3000, 5000, 2000};
    for (size_t i = 0; i < 3; i++)
        f.entry[8][i].bps = bps[i];
    struct tail_set set = {.count = 1};
    name(set.adapter[0].id, 32, 10);
    set.adapter[0].weight = 65536;
    assert_int_equal(tail_set_encode(f.set[0], &f.set_len[0], &set, NULL), STATUS_OK);
    static struct tail_influence influence = {.count = 1};
    influence.adapter[0].gain = TAIL_E9;
    influence.adapter[0].share_count = 2;
    influence.adapter[0].share[0] = (struct tail_share){{0}, TAIL_E9 / 4}; /* TREASURY */
    influence.adapter[0].share[1].ppb = TAIL_E9 / 4 * 3;
    name(influence.adapter[0].share[1].payee, 20, 77);
    name(owner, 20, 77);
    struct reward_record *rec = &f.record[0];
    rec->lane = 1;
    rec->fee = 1000000;
    rec->model_id = f.model[2]; /* not registered: TREASURY */
    rec->set = (struct canon_bytes){f.set[0], f.set_len[0]};
    rec->rate_ppb = TAIL_E9;
    rec->is_scored = rec->is_required = true;
    rec->is_refused = false;
    rec->influence.data = f.tails;
    assert_int_equal(tail_influence_encode(f.tails, &rec->influence.len, &influence, NULL),
                     STATUS_OK);
    struct reward_input in = input_of(&f, NULL);
    static struct told told, poor;
    in.on_share = hear;
    in.on_share_arg = &told;
    assert_int_equal(reward_compute(&r, &in, NULL), STATUS_OK);
    assert_true(told.kind[REWARD_FROM_AUTHOR] == 180000 && told.kind[REWARD_FROM_DATA] == 420000);
    assert_true(told.kind[REWARD_FROM_OPERATOR] == 150000 && told.kind[REWARD_FROM_BASE] == 200000);
    assert_true(told.kind[REWARD_FROM_PROTOCOL] == 50000 && told.of_adapters == 600000);
    in.on_share_arg = &poor;
    /* adapters 600 000: author 180 000, data 420 000 = 105 000 TREASURY + 315 000 owner */
    assert_true(cumulative_of(&r, f.entry[8][0].payee) == 180000);
    assert_true(cumulative_of(&r, owner) == 315000);
    assert_true(cumulative_of(&r, f.lane[0].account) == 150000);
    assert_true(cumulative_of(&r, f.policy.treasury) == 200000 + 50000 + 105000);
    assert_int_equal(r.account_count, 4);
    reward_result_fini(&r);
    f.entry[8][1].role = f.entry[8][2].role =
        REWARD_ROLE_AUTHOR; /* all for authors: the owner hears that he gets 0 */
    assert_int_equal(reward_compute(&r, &in, NULL), STATUS_OK);
    assert_true(poor.kind[REWARD_FROM_AUTHOR] == 600000 && cumulative_of(&r, owner) == 0);
    size_t unpaid = 0;
    for (size_t i = 0; i < poor.count; i++) {
        assert_int_equal(poor.account[i].unpaid, memcmp(poor.account[i].payee, owner, 20) == 0);
        unpaid += poor.account[i].unpaid;
    }
    assert_int_equal(unpaid, 1);
    f.entry[8][1].role = f.entry[8][2].role = REWARD_ROLE_DATA;
    in.on_share = NULL;
    reward_result_fini(&r);
    rec->is_scored = false; /* missing: the data pool is TREASURY's */
    assert_int_equal(reward_compute(&r, &in, NULL), STATUS_OK);
    assert_true(cumulative_of(&r, f.policy.treasury) == 200000 + 50000 + 420000);
    assert_true(r.stats.missing == 1 && r.stats.fee_missing == 1000000);
    reward_result_fini(&r);
    f.adapter[0].datanet_id[0] = 0; /* by the role-data entries */
    rec->is_required = false;
    assert_int_equal(reward_compute(&r, &in, NULL), STATUS_OK);
    assert_true(cumulative_of(&r, f.entry[8][1].payee) == 300000);
    assert_true(r.stats.required == 0);
    reward_result_fini(&r);
    free_fake(&f);
}

static void test_bad_tables_are_refused(void **state)
{
    struct fake f = {0};
    struct reward_result r;
    make_tables(&f);
    make_records(&f, 20);
    struct reward_input in = input_of(&f, NULL);
    f.policy.base_bps++;
    assert_int_equal(reward_compute(&r, &in, NULL), STATUS_INVALID);
    f.policy.base_bps--;
    f.entry[0][0].bps++;
    assert_int_equal(reward_compute(&r, &in, NULL), STATUS_INVALID);
    f.entry[0][0].bps--;
    f.lane[1].lane = f.lane[0].lane;
    assert_int_equal(reward_compute(&r, &in, NULL), STATUS_INVALID);
    f.lane[1].lane = 2;
    f.record[3].fee = f.record[4].fee = ~(u128)0;
    assert_int_equal(reward_compute(&r, &in, NULL), STATUS_INVALID);
    assert_null(r.account);
    f.record[3].fee = f.record[4].fee = 1;
    f.record[5].set.len = 35;
    assert_int_equal(reward_compute(&r, &in, NULL), STATUS_INVALID);
    free_fake(&f);
}

/* ---- parents ---- */

/* Adapter k's parents with their bps, in the table's order; 0 ends them. */
static void set_parents(struct fake *f, struct reward_parent *room, size_t k,
                        const uint32_t (*of)[2])
{
    size_t n = 0;
    for (; of[n][1]; n++) {
        memcpy(room[n].adapter_id, f->adapter[of[n][0]].adapter_id, 32);
        room[n].bps = (uint16_t)of[n][1];
    }
    f->adapter[k].parent = room;
    f->adapter[k].parent_count = n;
}

/* One answer by one adapter, one entry per split: what reaches each adapter is what its author has.
 */
static void one_answer(struct fake *f, size_t adapter, u128 fee)
{
    struct tail_set set = {.count = 1};
    make_tables(f);
    make_records(f, 1);
    f->policy = (struct reward_policy){0, 10000, 0, 0, {0xfe}};
    for (size_t i = 0; i < 5; i++) {
        f->entry[8 + i][0].bps = REWARD_BPS;
        f->adapter[i].split.count = 1;
        f->adapter[i].parent_count = 0;
    }
    memcpy(set.adapter[0].id, f->adapter[adapter].adapter_id, 32);
    set.adapter[0].weight = 1;
    assert_int_equal(tail_set_encode(f->set[0], &f->set_len[0], &set, NULL), STATUS_OK);
    struct reward_record *r = &f->record[0];
    *r = (struct reward_record){.lane = 1,
                                .seq = 1,
                                .fee = fee,
                                .model_id = f->model[0],
                                .digest = f->model[0],
                                .set = {f->set[0], f->set_len[0]},
                                .rate_ppb = TAIL_E9};
}

static u128 author_of(const struct reward_result *r, const struct fake *f, size_t adapter)
{
    return cumulative_of(r, f->entry[8 + adapter][0].payee);
}

static void test_parents_first(void **state)
{
    static const uint32_t of4[][2] = {{1, 1000}, {3, 2500}, {0, 0}};
    static const uint32_t of3[][2] = {{0, 5000}, {1, 1}, {0, 0}}, of1[][2] = {{0, 3333}, {0, 0}};
    struct reward_parent room[3][REWARD_PARENTS_MAX];
    struct fake f = {0};
    struct reward_result r;
    one_answer(&f, 4, 1000003);
    set_parents(&f, room[0], 4, of4);
    set_parents(&f, room[1], 3, of3);
    set_parents(&f, room[2], 1, of1);
    struct reward_input in = input_of(&f, NULL);
    assert_int_equal(reward_compute(&r, &in, NULL), STATUS_OK);
    /* 4: 100000.3, 250000.75, 650001.95 -> 100000, 250001, 650002.
     * 3: of 250001: 125000.5, 25.0001, 124975.3999 -> 125001, 25, 124975.
     * 1: of 100025, all of its part: 33338.3325, 66686.6675 -> 33338, 66687. */
    assert_true(author_of(&r, &f, 4) == 650002);
    assert_true(author_of(&r, &f, 3) == 124975);
    assert_true(author_of(&r, &f, 1) == 66687);
    assert_true(author_of(&r, &f, 0) == 125001 + 33338);
    assert_true(r.total == 1000003);
    reward_result_fini(&r);
    /* An adapter whose only answers are its child's pays data by the split: no Y is its own. */
    f.entry[8][0].bps = 4000;
    f.entry[8][1].bps = 6000;
    f.adapter[0].split.count = 2;
    assert_int_equal(reward_compute(&r, &in, NULL), STATUS_OK);
    assert_true(cumulative_of(&r, f.entry[8][1].payee) == 95003);
    reward_result_fini(&r);
    free_fake(&f);
}

static void test_parents_of_a_set(void **state)
{
    static const uint32_t of1[][2] = {{0, 5000}, {0, 0}};
    struct reward_parent room[REWARD_PARENTS_MAX];
    struct fake f = {0};
    struct reward_result r;
    struct tail_set set = {.count = 2};
    one_answer(&f, 1, 11);
    set_parents(&f, room, 1, of1);
    for (uint32_t k = 0; k < 2; k++) { /* the parent is in the set itself */
        memcpy(set.adapter[k].id, f.adapter[k].adapter_id, 32);
        set.adapter[k].weight = 1;
    }
    assert_int_equal(tail_set_encode(f.set[0], &f.set_len[0], &set, NULL), STATUS_OK);
    f.record[0].set.len = f.set_len[0];
    struct reward_input in = input_of(&f, NULL);
    assert_int_equal(reward_compute(&r, &in, NULL), STATUS_OK);
    /* 11 -> 6 and 5; of the 5 the parent has 3 (the tie goes to the parents, who stand first) */
    assert_true(author_of(&r, &f, 0) == 9 && author_of(&r, &f, 1) == 2);
    reward_result_fini(&r);
    room[0].adapter_id[31] = 1; /* not registered */
    assert_int_equal(reward_compute(&r, &in, NULL), STATUS_OK);
    assert_true(cumulative_of(&r, f.policy.treasury) == 3 && author_of(&r, &f, 1) == 2);
    reward_result_fini(&r);
    memcpy(room[0].adapter_id, f.adapter[1].adapter_id, 32); /* its own child */
    assert_int_equal(reward_compute(&r, &in, NULL), STATUS_INVALID);
    room[0].bps = REWARD_BPS + 1;
    assert_int_equal(reward_compute(&r, &in, NULL), STATUS_INVALID);
    free_fake(&f);
}

/* A refused answer's fee is the treasury's, whole, and no part of any sum. */
static void test_refused_goes_to_the_treasury(void **state)
{
    struct fake f = {0};
    struct reward_result r;
    one_answer(&f, 1, 1000);
    f.record[0].is_refused = true;
    struct reward_input in = input_of(&f, NULL);
    assert_int_equal(reward_compute(&r, &in, NULL), STATUS_OK);
    assert_int_equal(r.account_count, 1);
    assert_true(cumulative_of(&r, f.policy.treasury) == 1000);
    assert_true(r.stats.refused == 1 && r.stats.fee_refused == 1000 && r.stats.required == 0);
    reward_result_fini(&r);
    free_fake(&f);
}

static void test_a_full_batch(void **state)
{
    struct fake f = {0};
    struct reward_result r;
    make_tables(&f);
    make_records(&f, 1u << 14);
    /* The largest batch by repeating records: pointers are shared, sums are not. */
    size_t times = 8, count = f.record_count * times;
    struct reward_record *all = mem_array(count, sizeof(*all));
    for (size_t i = 0; i < count; i++)
        all[i] = f.record[i % f.record_count];
    struct reward_input in = input_of(&f, NULL);
    in.record = all;
    in.record_count = count;
    uint64_t start = clock_mono_ns();
    assert_int_equal(reward_compute(&r, &in, NULL), STATUS_OK);
    print_message("131072 records in %.0f ms\n", (double)(clock_mono_ns() - start) / 1e6);
    assert_true(r.total == r.fee_sum);
    reward_result_fini(&r);
    mem_free(all);
    free_fake(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_muldiv_equals_oracle),
        cmocka_unit_test(test_u256_edges),
        cmocka_unit_test(test_remainder_properties),
        cmocka_unit_test(test_one_record_by_hand),
        cmocka_unit_test(test_identities_and_order),
        cmocka_unit_test(test_bad_tables_are_refused),
        cmocka_unit_test(test_parents_first),
        cmocka_unit_test(test_parents_of_a_set),
        cmocka_unit_test(test_refused_goes_to_the_treasury),
        cmocka_unit_test(test_a_full_batch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
