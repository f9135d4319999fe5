/* Signal S0 and the influence of a record against values worked out by hand; shares of adapters
 * with an index against what the index and shares_compute say. */
#include "chain_client/commit.h"
#include "server/influence/gain.h"
#include "tests/unit/events_fixture.h"
#include "tests/unit/influence_fixture.h"

static struct events *events;
static uint32_t prior[8];

/* An index with two owners at least. */
static int make_world(void **state)
{
    char path[128];
    struct world w;
    uint32_t documents[8];
    struct errtext err = ERRTEXT_INIT;
    if (make_dir(state))
        return -1;
    snprintf(path, sizeof(path), "%s/index.events", test_dir);
    for (uint64_t seed = 1;; seed++) {
        world_make(&w, seed);
        if (w.n_owners >= 3 && w.n_rows >= 30)
            break;
        world_free(&w);
    }
    if (world_build(&w, path, false, &err) || events_open(&events, path, NULL, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return -1;
    }
    world_free(&w);
    for (uint32_t i = 0; i < events_head(events)->n_owners; i++)
        documents[i] = events_owner(events, i)->documents;
    return shares_prior(prior, documents, events_head(events)->n_owners);
}

static int drop_world(void **state)
{
    events_release(events);
    return drop_dir(state);
}

static const int32_t targets[2] = {1, 2};
static const uint8_t in_prompt[2] = {1, 0};

/* One choice of two tokens; weights 1, 2, 3. */
static struct gain_in make_in(struct gain_choice *c, uint32_t adapters, const int32_t set[2],
                              const int32_t *const *row)
{
    struct gain_in in = {.adapter_count = adapters, .choice_count = 1, .choice = c};
    *c = (struct gain_choice){.n = 2, .target = targets, .set = set, .in_prompt = in_prompt};
    for (uint32_t r = 0; r < gain_row_count(adapters); r++)
        c->row[r] = row[r];
    for (uint32_t k = 0; k < adapters; k++)
        in.adapter[k].weight_q16 = 65536 * (int32_t)(k + 1);
    return in;
}

static void compute(struct gain_result *g, const struct gain_in *in)
{
    struct errtext err = ERRTEXT_INIT;
    if (gain_compute(g, in, &err))
        fail_msg("%s", err.text);
}

static void test_one(void **state)
{
    const int32_t set[2] = {-256, -512}, base[2] = {-512, -384}, *row[4] = {base};
    struct gain_choice c;
    struct gain_in in = make_in(&c, 1, set, row);
    struct gain_result g;
    assert_int_equal(gain_row_count(1), 1);
    compute(&g, &in);
    assert_int_equal(g.solo_q8[0], 256); /* the second token lost: counts 0 */
    assert_int_equal(gain_at(&in, 0, 0, 0), 256);
    assert_int_equal(gain_at(&in, 0, 0, 1), 0);
    assert_int_equal(g.moved_q8, 256 + 128);
    assert_int_equal(g.influence.count, 1);
    assert_int_equal(g.influence.adapter[0].gain, TAIL_E9);
    assert_int_equal(g.influence.adapter[0].share_count, 0); /* no index */
    (void)state;
}

/* Two adapters: Shapley's values. Of three the mean of what each adds first and last, and equal
 * parts of the rest. */
static void test_mix(void **state)
{
    int32_t set[2] = {-100, -450}, base[2] = {-500, -500};
    int32_t one[2] = {-400, -500}, two[2] = {-300, -540}, three[2] = {-500, -500};
    int32_t less_one[2] = {-300, -540}, less_two[2] = {-400, -500}, less_three[2] = {-100, -450};
    const int32_t *row[GAIN_ROWS_MAX] = {base, one, two, three, less_one, less_two, less_three};
    struct gain_choice c;
    struct gain_in in = make_in(&c, 2, set, row);
    struct gain_result g;
    assert_int_equal(gain_row_count(2), 3);
    compute(&g, &in); /* alone 100 and 160, together 450: 195 and 255 */
    assert_int_equal(g.solo_q8[0], 100);
    assert_int_equal(g.solo_q8[1], 200);
    assert_int_equal(g.influence.adapter[0].gain, 433333333);
    assert_int_equal(g.influence.adapter[1].gain, 566666667);
    in = make_in(&c, 3, set, row);
    assert_int_equal(gain_row_count(3), 7);
    compute(&g, &in); /* the third changes nothing: as before */
    assert_int_equal(g.influence.adapter[0].gain, 433333333);
    assert_int_equal(g.influence.adapter[1].gain, 566666667);
    assert_int_equal(g.influence.adapter[2].gain, 0);
    less_three[0] = -130; /* but as the last: (100 + 290) / 2, (160 + 350) / 2, 30 / 2, rest -15 */
    compute(&g, &in);
    assert_int_equal(g.influence.adapter[0].gain, 422222222); /* 190, 250, 10 of 450 */
    assert_int_equal(g.influence.adapter[1].gain, 555555556);
    assert_int_equal(g.influence.adapter[2].gain, 22222222);
    less_three[0] = -40; /* as the last it costs 60, */
    three[0] = -560;     /* and alone; */
    less_one[0] = -250;  /* the first adds 50 less as the last: 170, 255, -60 and a rest of 85 */
    compute(&g, &in);
    assert_int_equal(g.influence.adapter[0].gain, 411764706); /* 595, 850 of 1445; -95 is none */
    assert_int_equal(g.influence.adapter[1].gain, 588235294);
    assert_int_equal(g.influence.adapter[2].gain, 0);
    for (uint32_t t = 0; t < 2; t++) {
        two[t] = three[t] = one[t];
        less_one[t] = less_two[t] = less_three[t];
    }
    compute(&g, &in);
    assert_int_equal(g.influence.adapter[0].gain, 333333334); /* tie: the lower id */
    assert_int_equal(g.influence.adapter[1].gain, 333333333);
    assert_int_equal(g.influence.adapter[2].gain, 333333333);
    (void)state;
}

/* ---- the rule read slowly, in whole numbers ---- */

#define MIX_TOKENS 6

struct mix { /* two choices of random lengths, one behind the other in each row */
    int32_t set[MIX_TOKENS], row[GAIN_ROWS_MAX][MIX_TOKENS], target[MIX_TOKENS];
    uint8_t in_prompt[MIX_TOKENS];
    uint32_t n, first; /* tokens; of them in the first choice */
    struct gain_choice choice[2];
};

static int32_t any_logprob(struct world_random *r)
{
    uint32_t kind = world_draw(r, 16);
    if (kind < 2)
        return kind ? INT32_MIN : INT32_MAX;
    return -(int32_t)world_draw(r, kind < 9 ? 4 : 4000);
}

static void make_mix(struct mix *m, struct gain_in *in, struct world_random *r)
{
    uint32_t adapters = 2 + world_draw(r, TAIL_ADAPTERS_MAX - 1);
    *m = (struct mix){.n = world_draw(r, MIX_TOKENS + 1)};
    m->first = world_draw(r, m->n + 1);
    *in = (struct gain_in){.adapter_count = adapters, .choice_count = 2, .choice = m->choice};
    for (uint32_t c = 0; c < 2; c++)
        m->choice[c] = (struct gain_choice){.n = c ? m->n - m->first : m->first,
                                            .target = m->target,
                                            .set = m->set + c * m->first,
                                            .in_prompt = m->in_prompt};
    for (uint32_t t = 0; t < m->n; t++)
        m->set[t] = any_logprob(r);
    for (uint32_t k = 0; k < gain_row_count(adapters); k++) {
        const int32_t *same = k == 0 || world_draw(r, 3) ? NULL : k > adapters ? m->set : m->row[0];
        for (uint32_t t = 0; t < m->n; t++)
            m->row[k][t] = same ? same[t] : any_logprob(r);
        for (uint32_t c = 0; c < 2; c++)
            m->choice[c].row[k] = m->row[k] + c * m->first;
    }
    for (uint32_t k = 0; k < adapters; k++)
        in->adapter[k].weight_q16 = (int32_t)world_draw(r, 9) + 1;
}

/* The parts of E9, one unit after another to the largest remainder. */
static void slow_lr(uint32_t part[TAIL_ADAPTERS_MAX], const __int128 *w, uint32_t n)
{
    __int128 whole = 0, rest[TAIL_ADAPTERS_MAX];
    uint32_t left = TAIL_E9;
    for (uint32_t k = 0; k < n; k++)
        whole += w[k];
    for (uint32_t k = 0; k < n; k++) {
        part[k] = (uint32_t)(TAIL_E9 * w[k] / whole);
        rest[k] = TAIL_E9 * w[k] % whole;
        left -= part[k];
    }
    for (; left; left--) {
        uint32_t best = 0;
        for (uint32_t k = 1; k < n; k++)
            best = rest[k] > rest[best] ? k : best;
        part[best]++;
        rest[best] = -1;
    }
}

static __int128 slow_sum(const struct mix *m, const int32_t *row, const int32_t *from)
{
    __int128 sum = 0;
    for (uint32_t t = 0; t < m->n; t++)
        sum += (__int128)row[t] - from[t];
    return sum;
}

static bool differ(const struct mix *m, const int32_t *row, const int32_t *from)
{
    return memcmp(row, from, m->n * sizeof(*row)) != 0;
}

/* Twice what each is worth, times those that move. */
static void slow_gain(uint32_t part[TAIL_ADAPTERS_MAX], const struct mix *m,
                      const struct gain_in *in)
{
    uint32_t n = in->adapter_count, movers = 0;
    __int128 rest = 2 * slow_sum(m, m->set, m->row[0]), w[TAIL_ADAPTERS_MAX] = {0}, all = 0;
    bool moves[TAIL_ADAPTERS_MAX];
    for (uint32_t k = 0; k < n; k++) {
        const int32_t *alone = m->row[1 + k], *without = n == 2 ? m->row[2 - k] : m->row[1 + n + k];
        w[k] = slow_sum(m, alone, m->row[0]) + slow_sum(m, m->set, without);
        moves[k] = differ(m, alone, m->row[0]) || differ(m, m->set, without);
        movers += moves[k];
        rest -= w[k];
    }
    for (uint32_t k = 0; k < n; k++) {
        w[k] = moves[k] ? movers * w[k] + rest : 0;
        w[k] = w[k] < 0 ? 0 : w[k];
        all += w[k];
    }
    for (uint32_t k = 0; k < n && !all; k++)
        w[k] = in->adapter[k].weight_q16;
    slow_lr(part, w, n);
}

static void test_random_mixes(void **state)
{
    struct world_random r = {.seed = 12};
    for (uint32_t i = 0; i < 4000; i++) {
        struct mix m;
        struct gain_in in;
        struct gain_result g;
        uint32_t want[TAIL_ADAPTERS_MAX];
        make_mix(&m, &in, &r);
        compute(&g, &in);
        slow_gain(want, &m, &in);
        for (uint32_t k = 0; k < in.adapter_count; k++)
            assert_int_equal(g.influence.adapter[k].gain, want[k]);
    }
    (void)state;
}

/* Nobody helped, or nothing was said: by |weight| (1, -2, 3 of 6). */
static void test_mix_no_gain(void **state)
{
    const int32_t set[2] = {-900, -900}, base[2] = {-500, -500},
                  *row[7] = {base, set, set, set, base, base, base};
    struct gain_choice c;
    struct gain_in in = make_in(&c, 3, set, row);
    struct gain_result g;
    in.adapter[1].weight_q16 = -in.adapter[1].weight_q16;
    for (c.n = 0; c.n <= 2; c.n += 2) {
        compute(&g, &in);
        assert_int_equal(g.influence.adapter[0].gain, 166666667);
        assert_int_equal(g.influence.adapter[1].gain, 333333333);
        assert_int_equal(g.influence.adapter[2].gain, 500000000);
    }
    (void)state;
}

/* ---- with an index ---- */

static int8_t key[2][EVENTS_KEY];

static void give_index(struct gain_in *in, uint32_t k, const uint64_t *spans)
{
    static const int8_t *const keys[1] = {key[0]};
    struct world_random r = {.seed = 9};
    world_key(&r, key[0], EVENTS_KEY);
    world_key(&r, key[1], EVENTS_KEY);
    in->adapter[k].events = events;
    in->adapter[k].prior_ppb = prior;
    in->adapter[k].key = keys;
    in->adapter[k].spans = spans;
}

static void test_shares(void **state)
{
    const int32_t set[2] = {-10, -20}, base[2] = {-1500, -900}, *row[4] = {base};
    const int32_t gain[2] = {1490, 880};
    struct gain_choice c;
    struct gain_in in = make_in(&c, 1, set, row);
    struct gain_result g;
    struct events_scores *scores;
    struct shares want;
    uint64_t sum = 0;
    give_index(&in, 0, NULL);
    compute(&g, &in);
    const struct events_query q = {.target = targets, .gain_q8 = gain, .key = key[0], .n = 2};
    const struct events_head *h = events_head(events);
    assert_int_equal(events_score(&scores, events, &q, 1, NULL), STATUS_OK);
    const struct shares_in s = {.owner_count = h->n_owners,
                                .prior_ppb = prior,
                                .events = events_scores_owner(scores, 0),
                                .w1 = h->method.w[0],
                                .w2 = h->method.w[1],
                                .lambda_ppb = h->trust.lambda};
    assert_int_equal(shares_compute(&want, &s), STATUS_OK);
    const struct tail_credit *credit = &g.influence.adapter[0];
    assert_int_equal(credit->share_count, want.count);
    for (uint32_t i = 0; i < want.count; i++) {
        assert_int_equal(credit->share[i].ppb, want.item[i].ppb);
        assert_memory_equal(credit->share[i].payee, events_owner(events, want.item[i].owner)->payee,
                            20);
        sum += credit->share[i].ppb;
    }
    assert_int_equal(sum, TAIL_E9);
    uint8_t bytes[TAIL_INFLUENCE_BYTES_MAX];
    size_t len;
    assert_int_equal(tail_influence_encode(bytes, &len, &g.influence, NULL), STATUS_OK);
    events_scores_free(scores);
    gain_result_fini(&g);
    (void)state;
}

/* An adapter that moved nothing pays the treasury, whatever its index says. */
static void test_treasury(void **state)
{
    const int32_t set[2] = {-600, -512}, base[2] = {-512, -384}, *row[4] = {base};
    struct gain_choice c;
    struct gain_in in = make_in(&c, 1, set, row);
    struct gain_result g;
    give_index(&in, 0, NULL);
    for (c.n = 0; c.n <= 2; c.n += 2) {
        compute(&g, &in);
        assert_int_equal(g.solo_q8[0], 0);
        assert_int_equal(g.influence.adapter[0].share_count, 1);
        assert_int_equal(g.influence.adapter[0].share[0].ppb, TAIL_E9);
        assert_true(sodium_is_zero(g.influence.adapter[0].share[0].payee, 20));
        gain_result_fini(&g);
    }
    assert_int_equal(g.moved_q8, 88 + 128);
    (void)state;
}

static void put_int(uint8_t *all, size_t *n, uint64_t v, size_t bytes)
{
    be_put(all + *n, v, bytes);
    *n += bytes;
}

static void test_digests(void **state)
{
    const int32_t set[2] = {-256, 1}, base[2] = {-512, 2}, *row[4] = {base};
    uint8_t found[32], want[32], salt[32], all[512], roots[64] = {0};
    uint64_t spans[8] = {0, 77};
    struct gain_choice c;
    struct gain_in in = make_in(&c, 1, set, row);
    size_t n = 32;
    memset(salt, 3, 32);
    commit_opening(all, salt, COMMIT_INPUTS);
    put_int(all, &n, (uint32_t)-256, 4);
    put_int(all, &n, 1, 4);
    put_int(all, &n, (uint32_t)-512, 4);
    put_int(all, &n, 2, 4);
    put_int(all, &n, 0x0100, 2);
    gain_inputs_digest(found, &in, salt);
    keccak_256(want, all, n);
    assert_memory_equal(found, want, 32);
    gain_index_hash(found, &in);
    assert_true(sodium_is_zero(found, 32)); /* none has an index */
    /* with one: its keys, and the owners that have spans */
    give_index(&in, 0, spans);
    memcpy(all + n, key, sizeof(key));
    n += sizeof(key);
    put_int(all, &n, 1, 4);
    put_int(all, &n, 1, 4);
    put_int(all, &n, 77, 8);
    gain_inputs_digest(found, &in, salt);
    keccak_256(want, all, n);
    assert_memory_equal(found, want, 32);
    in.adapter_count = 2;
    memcpy(roots, events_root(events), 32);
    gain_index_hash(found, &in);
    keccak_256(want, roots, 64);
    assert_memory_equal(found, want, 32);
    (void)state;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one),          cmocka_unit_test(test_mix),
        cmocka_unit_test(test_random_mixes), cmocka_unit_test(test_mix_no_gain),
        cmocka_unit_test(test_shares),       cmocka_unit_test(test_treasury),
        cmocka_unit_test(test_digests),
    };
    return cmocka_run_group_tests(tests, make_world, drop_world);
}
