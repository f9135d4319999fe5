/* Random answers over random indexes, gain_compute against a slow oracle that reads the index file
 * and follows SPEC 10 to the letter: no group, no table, no early end. As many answers as the first
 * argument says. */
#include "server/influence/gain.h"
#include "tests/unit/events_fixture.h"
#include "tests/unit/influence_fixture.h"
#include "tests/unit/slow_lr.h"

#define E9          TAIL_E9
#define TOKENS_MAX  7
#define CHOICES_MAX 2
#define OWNERS_MAX  8
#define PER_INDEX   40

static uint64_t answers = 1500;

/* ---- the file, by SPEC 10 ---- */

struct file {
    const uint8_t *data;
    uint32_t count[10], method[11], lambda;
    uint64_t at[15];
};
enum { N_EVENTS, N_LEARNED, N_ROWS, N_DOCUMENTS, N_OWNERS, N_VOCAB, D_MODEL, LISTS_0, LISTS_1 };
enum { GAIN_FLOOR, LEARNED_FLOOR, LEARNED_MIN, FALLBACK, SQUARINGS, HALF1_PART, W1, W2 };
enum { AT_OWNERS = 7, AT_ROWS, AT_LISTS, AT_EVENT_ROW, AT_LEARNED, AT_KEY1, AT_KEY2 };

static uint32_t u32_at(const struct file *f, uint64_t at)
{
    const uint8_t *p = f->data + at;
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void file_read_head(struct file *f, const struct events *e)
{
    f->data = events_file(e);
    for (uint32_t i = 0; i < 10; i++)
        f->count[i] = u32_at(f, 216 + 4 * i);
    for (uint32_t i = 0; i < 11; i++)
        f->method[i] = u32_at(f, 256 + 4 * i);
    f->lambda = u32_at(f, 300);
    const uint64_t n = f->count[N_EVENTS], basis = 128ull * f->count[D_MODEL],
                   keys = (n + 15) / 16 * 1024,
                   size[14] = {328,
                               basis,
                               256,
                               basis,
                               256,
                               2ull * f->count[N_VOCAB],
                               32ull * f->count[N_DOCUMENTS],
                               24ull * f->count[N_OWNERS],
                               20ull * f->count[N_ROWS],
                               8ull * (f->count[LISTS_0] + f->count[LISTS_1]),
                               4 * n,
                               2 * n,
                               keys,
                               keys};
    f->at[0] = 0;
    for (uint32_t i = 0; i < 14; i++)
        f->at[i + 1] = (f->at[i] + size[i] + 63) / 64 * 64;
    assert_int_equal(events_file_bytes(e), f->at[14] + 32);
}

/* The target of an event: that of the last list of its part that begins at or before it. */
static uint32_t target_of(const struct file *f, uint32_t event)
{
    bool rest = event >= f->count[N_LEARNED];
    uint32_t from = rest ? f->count[LISTS_0] : 0, n = f->count[rest ? LISTS_1 : LISTS_0];
    for (uint32_t i = n; i-- > 0;) {
        if (u32_at(f, f->at[AT_LISTS] + 8ull * (from + i) + 4) <= event)
            return u32_at(f, f->at[AT_LISTS] + 8ull * (from + i));
    }
    fail_msg("event %u is of no list", event);
    return 0;
}

static uint32_t learned_of(const struct file *f, uint32_t event)
{
    return u32_at(f, f->at[AT_LEARNED] + 2ull * event) & 0xffff;
}

static int32_t dot_of(const struct file *f, uint32_t half, uint32_t event, const int8_t *key)
{
    uint64_t at = f->at[AT_KEY1 + half] + 1024ull * (event / 16) + 4 * (event % 16);
    int32_t sum = 0;
    for (uint32_t i = 0; i < 64; i++)
        sum += (int8_t)f->data[at + 64 * (i / 4) + i % 4] * key[64 * half + i];
    return sum;
}

/* ---- the rule ---- */

struct token {
    uint32_t target, gain;
    const int8_t *key;
    bool in_prompt, muted, matched, fallback;
};

static uint64_t slow_power(const struct file *f, int32_t d, uint64_t most)
{
    uint64_t c = d <= 0 ? 0 : ((uint64_t)d << 30) / most;
    c = c > 1u << 30 ? 1u << 30 : c;
    for (uint32_t i = 0; i < f->method[SQUARINGS]; i++)
        c = c * c >> 30;
    return c;
}

static void choose(const struct file *f, struct token *t, uint32_t n)
{
    bool others = false;
    for (uint32_t i = 0; i < n; i++)
        others |= !t[i].in_prompt && t[i].gain >= f->method[LEARNED_MIN];
    for (uint32_t i = 0; i < n; i++) {
        t[i].muted = t[i].in_prompt && others;
        for (uint32_t e = 0; e < f->count[N_LEARNED]; e++)
            t[i].matched |= target_of(f, e) == t[i].target;
    }
    for (uint32_t left = f->method[FALLBACK]; left > 0; left--) {
        struct token *best = NULL;
        for (uint32_t i = 0; i < n; i++) {
            if (!t[i].muted && !t[i].matched && !t[i].fallback &&
                t[i].gain >= f->method[LEARNED_MIN] && (!best || t[i].gain > best->gain))
                best = &t[i];
        }
        if (best)
            best->fallback = true;
    }
}

static uint64_t slow_v(const struct file *f, const struct token *t, uint32_t e)
{
    int32_t d1 = dot_of(f, 0, e, t->key), d2 = dot_of(f, 1, e, t->key);
    uint64_t c = 0;
    if (t->matched && target_of(f, e) == t->target) {
        uint64_t one = slow_power(f, d1, 16129) * f->method[HALF1_PART] >> 8;
        c = slow_power(f, d1 + d2, 32258);
        c = one > c ? one : c;
    } else if (t->fallback && e < f->count[N_LEARNED]) {
        c = slow_power(f, d2, 16129);
    }
    return (uint64_t)(t->gain + f->method[GAIN_FLOOR]) *
               (learned_of(f, e) + f->method[LEARNED_FLOOR]) * c >>
           16;
}

static void slow_owners(const struct file *f, struct token *t, uint32_t n, u128 *owner)
{
    uint32_t rows = f->count[N_ROWS];
    uint64_t *score = calloc(rows + 1, 8), *best = calloc(rows + 1, 8);
    choose(f, t, n);
    for (uint32_t i = 0; i < n; i++) {
        memset(best, 0, rows * 8);
        for (uint32_t e = 0; !t[i].muted && e < f->count[N_EVENTS]; e++) {
            uint32_t row = u32_at(f, f->at[AT_EVENT_ROW] + 4ull * e);
            best[row] = MAX(best[row], slow_v(f, &t[i], e));
        }
        for (uint32_t r = 0; r < rows; r++)
            score[r] = MIN(score[r] + best[r], 1ull << 48);
    }
    for (uint32_t k = 0; k < rows; k++) {
        uint64_t c = 0;
        for (uint32_t r = 0; r < rows; r++) {
            if (u32_at(f, f->at[AT_ROWS] + 20ull * r + 16) == k)
                c = MAX(c, score[r]);
        }
        owner[u32_at(f, f->at[AT_ROWS] + 20ull * k + 12)] += (u128)c * c;
    }
    free(score);
    free(best);
}

/* Shares by owner of what the answer's tokens give. */
static void slow_shares(const struct file *f, struct token *t, uint32_t n, const uint64_t *spans,
                        uint32_t *ppb)
{
    uint32_t owners = f->count[N_OWNERS], p1[OWNERS_MAX], p2[OWNERS_MAX], part[OWNERS_MAX];
    u128 owner[OWNERS_MAX] = {0}, w[OWNERS_MAX];
    slow_owners(f, t, n, owner);
    bool any = slow_lr(p1, owner, owners);
    for (uint32_t i = 0; i < owners; i++)
        w[i] = spans && p1[i] ? spans[i] : 0;
    (void)slow_lr(p2, w, owners);
    for (uint32_t i = 0; i < owners; i++)
        w[i] = (u128)f->method[W1] * p1[i] + (u128)f->method[W2] * p2[i];
    (void)slow_lr(part, w, owners);
    for (uint32_t i = 0; i < owners; i++)
        w[i] = u32_at(f, f->at[AT_OWNERS] + 24ull * i + 20);
    assert_true(slow_lr(p2, w, owners));
    for (uint32_t i = 0; i < owners; i++)
        w[i] = any ? (u128)f->lambda * part[i] + (u128)(E9 - f->lambda) * p2[i] : p2[i];
    assert_true(slow_lr(ppb, w, owners));
}

/* ---- random answers ---- */

struct answer {
    int32_t target[CHOICES_MAX][TOKENS_MAX], set[CHOICES_MAX][TOKENS_MAX],
        base[CHOICES_MAX][TOKENS_MAX];
    uint8_t in_prompt[CHOICES_MAX][TOKENS_MAX];
    int8_t key[CHOICES_MAX][TOKENS_MAX][EVENTS_KEY];
    uint64_t spans[OWNERS_MAX];
    struct gain_choice choice[CHOICES_MAX];
    const int8_t *keys[CHOICES_MAX];
};

static void make_answer(struct answer *a, struct gain_in *in, struct world_random *r,
                        const struct events *e, const uint32_t *prior)
{
    uint32_t tokens = 1 + world_draw(r, TOKENS_MAX);
    *in = (struct gain_in){
        .adapter_count = 1, .choice_count = 1 + world_draw(r, CHOICES_MAX), .choice = a->choice};
    for (uint32_t c = 0; c < in->choice_count; c++) {
        for (uint32_t t = 0; t < tokens; t++) {
            a->target[c][t] = (int32_t)world_draw(r, events_head(e)->n_vocab + 2);
            a->set[c][t] = -(int32_t)world_draw(r, 600);
            a->base[c][t] = -(int32_t)world_draw(r, 1800);
            a->in_prompt[c][t] = world_draw(r, 4) == 0;
            world_key(r, a->key[c][t], EVENTS_KEY);
        }
        a->keys[c] = a->key[c][0];
        a->choice[c] = (struct gain_choice){.n = tokens,
                                            .target = a->target[c],
                                            .set = a->set[c],
                                            .in_prompt = a->in_prompt[c],
                                            .row = {a->base[c]}};
    }
    for (uint32_t i = 0; i < OWNERS_MAX; i++)
        a->spans[i] = world_draw(r, 2) ? world_draw(r, 1u << 20) : 0;
    in->adapter[0] = (struct gain_adapter){.weight_q16 = 65536,
                                           .events = e,
                                           .prior_ppb = prior,
                                           .key = a->keys,
                                           .spans = world_draw(r, 3) ? a->spans : NULL};
}

static void check_answer(const struct file *f, const struct gain_in *in)
{
    struct gain_result g;
    struct token token[CHOICES_MAX * TOKENS_MAX] = {0};
    uint32_t n = 0, at = 0, ppb[OWNERS_MAX];
    uint64_t solo = 0;
    for (uint32_t c = 0; c < in->choice_count; c++) {
        const struct gain_choice *choice = &in->choice[c];
        for (uint32_t t = 0; t < choice->n; t++) {
            int32_t moved = choice->set[t] - choice->row[0][t];
            token[n] = (struct token){.target = (uint32_t)choice->target[t],
                                      .gain = (uint32_t)MAX(moved, 0),
                                      .key = in->adapter[0].key[c] + t * EVENTS_KEY,
                                      .in_prompt = choice->in_prompt[t]};
            solo += token[n++].gain;
        }
    }
    assert_int_equal(gain_compute(&g, in, NULL), STATUS_OK);
    const struct tail_credit *credit = &g.influence.adapter[0];
    if (solo == 0) {
        assert_true(credit->share_count == 1 && credit->share[0].ppb == E9);
        gain_result_fini(&g);
        return;
    }
    slow_shares(f, token, n, in->adapter[0].spans, ppb);
    for (uint32_t i = 0; i < f->count[N_OWNERS]; i++) {
        if (ppb[i] == 0)
            continue;
        assert_true(at < credit->share_count);
        assert_int_equal(credit->share[at].ppb, ppb[i]);
        assert_memory_equal(credit->share[at++].payee, f->data + f->at[AT_OWNERS] + 24 * i, 20);
    }
    assert_int_equal(at, credit->share_count);
    gain_result_fini(&g);
}

static void check_index(uint64_t seed, uint32_t count)
{
    char path[128];
    struct world w;
    struct events *e;
    struct file f;
    struct gain_in in;
    struct errtext err = ERRTEXT_INIT;
    struct world_random r = {.seed = seed ^ 0x5eed};
    uint32_t documents[OWNERS_MAX], prior[OWNERS_MAX];
    struct answer *a = calloc(1, sizeof(*a));
    snprintf(path, sizeof(path), "%s/replay.events", test_dir);
    world_make(&w, seed);
    if (world_build(&w, path, false, &err) || events_open(&e, path, NULL, &err))
        fail_msg("%s", err.text);
    file_read_head(&f, e);
    for (uint32_t i = 0; i < f.count[N_OWNERS]; i++)
        documents[i] = events_owner(e, i)->documents;
    assert_int_equal(shares_prior(prior, documents, f.count[N_OWNERS]), STATUS_OK);
    for (uint32_t i = 0; i < count; i++) {
        make_answer(a, &in, &r, e, prior);
        check_answer(&f, &in);
    }
    events_release(e);
    world_free(&w);
    free(a);
}

static void test_replay(void **state)
{
    for (uint64_t done = 0, seed = 1; done < answers; done += PER_INDEX, seed++)
        check_index(seed, (uint32_t)MIN(answers - done, (uint64_t)PER_INDEX));
    (void)state;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_replay)};
    if (argc > 1)
        answers = strtoull(argv[1], NULL, 10);
    return cmocka_run_group_tests(tests, make_dir, drop_dir);
}
