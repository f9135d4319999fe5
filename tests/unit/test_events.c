/* The event index: a file that is believed only whole, scores that a slow reading of the rule gives
 * too, and bytes that do not depend on the order of the calls that made them. */
#include "server/base/file.h"
#include "server/influence/events_impl.h"
#include "server/influence/events_score.h"
#include "server/influence/whiten.h"
#include "tests/unit/facts_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char dir[64], path[96];
static uint64_t n_worlds = 210; /* of 50 answers each: test_events 20000 asks a million */

static int setup(void **state)
{
    snprintf(dir, sizeof(dir), "/tmp/rs-events-XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    snprintf(path, sizeof(path), "%s/index", dir);
    return 0;
}

static int teardown(void **state)
{
    char cmd[128];
    snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
    return system(cmd);
}

static struct events *build_open(const struct world *w)
{
    struct errtext err = ERRTEXT_INIT;
    struct events *e;
    if (world_build(w, path, false, &err) || events_open(&e, path, NULL, &err))
        fail_msg("%s", err.text);
    return e;
}

/* ---- the rule of events_score.h, read slowly */

struct oracle {
    uint64_t row[64];
    u128 owner[EVENTS_SUBS][8];
};

static int64_t half_dot(const int8_t *blocks, uint32_t event, const int8_t *query)
{
    int64_t sum = 0;
    for (uint32_t k = 0; k < EVENTS_HALF; k++)
        sum += (int64_t)query[k] *
               blocks[1024 * (event / 16) + 64 * (k / 4) + 4 * (event % 16) + k % 4];
    return sum;
}

static uint64_t power_of(int64_t d, int64_t of)
{
    uint64_t c = d <= 0 ? 0 : ((uint64_t)d << 30) / (uint64_t)of;
    c = c > 1u << 30 ? 1u << 30 : c;
    for (uint32_t i = 0; i < 5; i++)
        c = (c * c) >> 30;
    return c;
}

static uint64_t value_of(const struct events *e, uint32_t event, uint64_t c, int32_t gain)
{
    uint64_t a = gain < 0 ? 0 : gain > 65535 ? 65535 : (uint64_t)gain;
    return ((a + 26) * (e->learned[event] + 13ull) * c) >> 16;
}

static uint32_t target_in_lists(const struct events *e, uint32_t event)
{
    const struct events_head *h = e->head;
    uint32_t target = 0, first = event < h->n_learned ? 0 : h->n_lists_learned;
    uint32_t n = event < h->n_learned ? h->n_lists_learned : h->n_lists_rest;
    for (uint32_t i = first; i < first + n; i++)
        target = e->list[i].begin <= event ? e->list[i].target : target;
    return target;
}

/* Of the index that read_targets saw last. */
static uint32_t target_read[64 * WORLD_ROW_MAX];

static uint32_t target_of(const struct events *e, uint32_t event)
{
    assert_true(event < e->head->n_events);
    return target_read[event];
}

static void read_targets(const struct events *e)
{
    assert_true(e->head->n_events <= ARRAY_COUNT(target_read));
    for (uint32_t i = 0; i < e->head->n_events; i++)
        target_read[i] = target_in_lists(e, i);
}

static bool anyone_learned(const struct events *e, int32_t target, struct events_held held)
{
    for (uint32_t i = 0; i < e->head->n_events; i++) {
        if (e->learned[i] >= 51 && target_of(e, i) == (uint32_t)target &&
            e->event_row[i] != held.row)
            return true;
    }
    return false;
}

static void oracle_token(struct oracle *o, const struct events *e, const struct events_query *q,
                         uint32_t t, bool fallback, struct events_held held)
{
    uint64_t best[64] = {0};
    const int8_t *key = q->key + EVENTS_KEY * t;
    if (!fallback && !anyone_learned(e, q->target[t], held))
        return;
    for (uint32_t i = 0; i < e->head->n_events; i++) {
        uint32_t row = e->event_row[i];
        bool half = fallback || held.half_two;
        bool meets = fallback ? e->learned[i] >= 51 : target_of(e, i) == (uint32_t)q->target[t];
        if (!meets || row == held.row)
            continue;
        int64_t one = half_dot(e->key1, i, key), two = half_dot(e->key2, i, key + 64);
        uint64_t c = half ? power_of(two, 16129) : power_of(one + two, 32258);
        if (!half)
            c = MAX(c, power_of(one, 16129) * 26 / 256);
        best[row] = MAX(best[row], value_of(e, i, c, q->gain_q8[t]));
    }
    for (uint32_t r = 0; r < e->head->n_rows; r++)
        o->row[r] = MIN(o->row[r] + best[r], 1ull << 48);
}

static bool is_muted(const struct events_query *q, uint32_t n, uint32_t c, uint32_t t)
{
    bool gained = false;
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t k = 0; k < q[i].n; k++)
            gained |= q[i].gain_q8[k] >= 51 && !(q[i].in_prompt && q[i].in_prompt[k]);
    }
    return gained && q[c].in_prompt && q[c].in_prompt[t];
}

/* Which of all tokens are the fallback's eight? */
static void choose_eight(const struct events *e, const struct events_query *q, uint32_t n,
                         struct events_held held, bool (*out)[64])
{
    memset(out, 0, 3 * sizeof(*out));
    for (uint32_t k = 0; k < 8; k++) {
        int64_t best = -1;
        uint32_t choice = 0, token = 0;
        for (uint32_t c = 0; c < n; c++) {
            for (uint32_t t = 0; t < q[c].n; t++) {
                int32_t gain = MIN(q[c].gain_q8[t], 65535);
                if (is_muted(q, n, c, t) || gain < 51 || gain <= best || out[c][t] ||
                    anyone_learned(e, q[c].target[t], held))
                    continue;
                best = gain;
                choice = c;
                token = t;
            }
        }
        if (best >= 0)
            out[choice][token] = true;
    }
}

static void oracle_score(struct oracle *o, const struct events *e, const struct events_query *q,
                         uint32_t n, struct events_held held)
{
    bool fallback[3][64];
    memset(o, 0, sizeof(*o));
    choose_eight(e, q, n, held, fallback);
    for (uint32_t c = 0; c < n; c++) {
        for (uint32_t t = 0; t < q[c].n; t++) {
            if (!is_muted(q, n, c, t))
                oracle_token(o, e, &q[c], t, fallback[c][t], held);
        }
    }
    for (uint32_t k = 0; k < e->head->n_rows; k++) {
        uint64_t c = 0;
        for (uint32_t r = 0; r < e->head->n_rows; r++)
            c = e->row[r].cluster == k ? MAX(c, o->row[r]) : c;
        for (uint32_t sub = 0; sub < EVENTS_SUBS; sub++)
            o->owner[sub][e->row[k].owner] += sub == 0 || k % 4 != sub - 1 ? (u128)c * c : 0;
    }
}

/* ---- random answers */

#define ANSWER_MAX 40
struct answer {
    int32_t target[ANSWER_MAX], gain[ANSWER_MAX];
    int8_t key[ANSWER_MAX][EVENTS_KEY];
    uint8_t in_prompt[ANSWER_MAX];
    struct events_query query[3];
    uint32_t n;
};

static void make_answer(struct answer *a, struct world_random *r, const struct events *e)
{
    uint32_t at = 0;
    bool quiet = world_draw(r, 4) == 0; /* hardly a token gains */
    a->n = 1 + world_draw(r, 3);
    for (uint32_t c = 0; c < a->n; c++) {
        uint32_t n = world_draw(r, ANSWER_MAX / 3);
        a->query[c] =
            (struct events_query){.target = a->target + at,
                                  .gain_q8 = a->gain + at,
                                  .key = a->key[at],
                                  .in_prompt = world_draw(r, 2) ? a->in_prompt + at : NULL,
                                  .n = n};
        for (uint32_t t = at; t < at + n; t++) {
            a->target[t] = (int32_t)world_draw(r, e->head->n_vocab + 2) - 1;
            a->gain[t] = (int32_t)world_draw(r, quiet ? 60 : 1200) - (quiet ? 0 : 200);
            a->in_prompt[t] = world_draw(r, quiet ? 2 : 6) == 0;
            if (world_draw(r, 50) == 0)
                a->gain[t] = 100000000;
            world_key(r, a->key[t], EVENTS_HALF);
            if (e->head->n_events && world_draw(r, 2))
                events_key_gather(a->key[t] + EVENTS_HALF, e->key2,
                                  world_draw(r, e->head->n_events));
            else
                world_key(r, a->key[t] + EVENTS_HALF, EVENTS_HALF);
        }
        at += n;
    }
}

static uint64_t compare_once(const struct events *e, struct world_random *r)
{
    struct answer a;
    struct oracle o;
    struct events_scores *s;
    struct events_top top[64];
    struct events_held held = {.row = EVENTS_NONE};
    make_answer(&a, r, e);
    if (e->head->n_rows && world_draw(r, 4) == 0)
        held = (struct events_held){world_draw(r, e->head->n_rows), world_draw(r, 2)};
    oracle_score(&o, e, a.query, a.n, held);
    assert_int_equal(events_score_held(&s, e, a.query, a.n, held, NULL), STATUS_OK);
    uint32_t n = events_scores_top(s, top, 64), seen = 0;
    for (uint32_t i = 0; i < n; i++)
        assert_true(top[i].score == o.row[top[i].row]);
    for (uint32_t i = 1; i < n; i++)
        assert_true(top[i - 1].score > top[i].score ||
                    (top[i - 1].score == top[i].score && top[i - 1].row < top[i].row));
    for (uint32_t i = 0; i < e->head->n_rows; i++)
        seen += o.row[i] > 0;
    assert_int_equal(seen, n);
    for (uint32_t sub = 0; sub < EVENTS_SUBS; sub++)
        assert_memory_equal(events_scores_owner(s, sub), o.owner[sub],
                            e->head->n_owners * sizeof(u128));
    events_scores_free(s);
    return n;
}

static void scores_are_the_rules(void **state)
{
    uint64_t hits = 0, joined = 0;
    for (uint64_t seed = 1; seed <= n_worlds; seed++) {
        struct world w;
        struct world_random r = {.seed = seed + 1000000};
        world_make(&w, seed);
        struct events *e = build_open(&w);
        read_targets(e);
        for (uint32_t i = 0; i < 50; i++)
            hits += compare_once(e, &r);
        joined += e->head->n_joined;
        events_release(e);
        world_free(&w);
    }
    assert_true(hits > 50 * n_worlds && joined > n_worlds / 2); /* the worlds did ask something */
}

static void every_path_gives_the_same_dots(void **state)
{
    struct events_dots_path way[3];
    uint32_t n = events_dots_paths(way);
    struct world_random r = {.seed = 9};
    static int8_t k1[EVENTS_BLOCK], k2[EVENTS_BLOCK], q[EVENTS_TILE][EVENTS_KEY];
    for (uint32_t round = 0; round < 300; round++) {
        bool edge = round < 8; /* all bytes at the ends of their range */
        for (uint32_t i = 0; i < EVENTS_BLOCK; i++) {
            k1[i] = (int8_t)(edge ? (round & 1 ? 127 : -127) : (int32_t)world_draw(&r, 255) - 127);
            k2[i] = (int8_t)(edge ? (round & 2 ? 127 : -127) : (int32_t)world_draw(&r, 255) - 127);
        }
        for (uint32_t i = 0; i < sizeof(q); i++)
            q[i / EVENTS_KEY][i % EVENTS_KEY] =
                (int8_t)(edge ? (round & 4 ? 127 : -127) : (int32_t)world_draw(&r, 255) - 127);
        struct events_dots t[3] = {{.n = 1 + round % EVENTS_TILE}};
        for (uint32_t i = 0; i < t[0].n; i++) {
            events_dots_query(&t[0], i, q[i], true);
            t[0].min[i] = (int32_t)world_draw(&r, 40000) - 20000;
            t[0].min1[i] = (int32_t)world_draw(&r, 20000);
        }
        for (uint32_t p = 0; p < n; p++) {
            t[p] = t[0];
            memset(t[p].dot, 0, sizeof(t[p].dot));
            way[p].run(&t[p], k1, round % 3 ? k2 : NULL);
        }
        for (uint32_t i = 0; i < t[0].n; i++) {
            int64_t half = half_dot(k1, round % 16, q[i]), slow = half;
            slow += round % 3 ? half_dot(k2, round % 16, q[i] + 64) : 0;
            for (uint32_t p = 0; p < n; p++) {
                assert_int_equal(t[p].dot[i][round % 16], slow);
                assert_int_equal(t[p].dot1[i][round % 16], half);
                assert_memory_equal(t[p].dot[i], t[0].dot[i], sizeof(t[0].dot[i]));
                assert_int_equal(t[p].over[i], t[0].over[i]);
            }
            assert_int_equal(t[0].over[i] >> round % 16 & 1,
                             slow >= t[0].min[i] || half >= t[0].min1[i]);
        }
    }
}

static void order_of_rows_changes_nothing(void **state)
{
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct world w;
        char *one, *other;
        size_t one_len, other_len;
        world_make(&w, seed);
        assert_int_equal(world_build(&w, path, false, NULL), STATUS_OK);
        assert_int_equal(file_read(path, 1 << 30, &one, &one_len, NULL), STATUS_OK);
        assert_int_equal(world_build(&w, path, true, NULL), STATUS_OK);
        assert_int_equal(file_read(path, 1 << 30, &other, &other_len, NULL), STATUS_OK);
        assert_int_equal(one_len, other_len);
        assert_memory_equal(one, other, one_len);
        mem_free(one);
        mem_free(other);
        world_free(&w);
    }
}

/* ---- bad files */

static void expect_refused(const uint8_t *file, size_t len, enum status expected, const char *says)
{
    struct errtext err = ERRTEXT_INIT;
    struct events *e;
    assert_int_equal(file_write_atomic(path, file, len, 0644, NULL), STATUS_OK);
    assert_int_equal(events_open(&e, path, NULL, &err), expected);
    assert_null(e);
    assert_non_null(strstr(err.text, path));
    if (!strstr(err.text, says))
        fail_msg("'%s' does not say '%s'", err.text, says);
}

static void a_changed_file_is_refused(void **state)
{
    struct world w;
    char *file;
    size_t len;
    world_make(&w, 3);
    events_release(build_open(&w));
    assert_int_equal(file_read(path, 1 << 30, &file, &len, NULL), STATUS_OK);
    for (size_t i = 0; i < len; i += 1 + len / 97) {
        file[i] ^= 4;
        expect_refused((uint8_t *)file, len, STATUS_CORRUPT, "expected");
        file[i] ^= 4;
    }
    for (size_t cut = 1; cut < len; cut += 1 + len / 97)
        expect_refused((uint8_t *)file, len - cut, STATUS_CORRUPT, "");
    file[len / 2] ^= 1;
    expect_refused((uint8_t *)file, len, STATUS_CORRUPT, "root");
    mem_free(file);
    world_free(&w);
}

static void another_index_is_refused(void **state)
{
    struct world w;
    world_make(&w, 3);
    events_release(build_open(&w));
    const struct {
        struct events_expect expect;
        const char *says;
    } wrong[] = {{{.adapter_id = world_id[1]}, "adapter id"},
                 {{.document_root = world_id[1]}, "document root"},
                 {{.training_digest = world_id[1]}, "training digest"},
                 {{.tokenizer_digest = world_id[1]}, "tokenizer digest"}};
    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++) {
        struct errtext err = ERRTEXT_INIT;
        struct events *e;
        assert_int_equal(events_open(&e, path, &wrong[i].expect, &err), STATUS_INVALID);
        assert_non_null(strstr(err.text, wrong[i].says));
    }
    struct events *e;
    assert_int_equal(events_open(&e, "/tmp/rs-no-such-index", NULL, NULL), STATUS_NOT_FOUND);
    world_free(&w);
}

/* A file whose root is right and whose fields are not. */
static void a_well_hashed_lie_is_refused(void **state)
{
    struct world w;
    char *file;
    size_t len;
    world_make(&w, 3);
    struct events *e = build_open(&w);
    uint64_t at[EVENTS_SECTIONS + 1];
    struct events_head h = *e->head;
    events_layout(&h, at);
    events_release(e);
    assert_true(h.n_events > 32 && h.n_learned > 2 && h.n_lists_rest > 2);
    assert_int_equal(file_read(path, 1 << 30, &file, &len, NULL), STATUS_OK);
    const struct {
        uint64_t at;
        uint32_t value;
        const char *says;
    } lie[] = {
        {offsetof(struct events_head, version), EVENTS_VERSION + 1, "version"},
        {offsetof(struct events_head, n_events), h.n_events + 16, "file_bytes"},
        {offsetof(struct events_head, n_events), UINT32_MAX, "n_events"},
        {offsetof(struct events_head, n_learned), h.n_events + 1, "n_learned"},
        {offsetof(struct events_head, d_model), 0, "d_model"},
        {offsetof(struct events_head, n_vocab), UINT32_MAX, "n_vocab"},
        {offsetof(struct events_head, n_joined), h.n_joined + 1, "n_joined"},
        {offsetof(struct events_head, method.squarings), 9, "squarings"},
        {offsetof(struct events_head, method.fallback_tokens), 9, "fallback_tokens"},
        {offsetof(struct events_head, method.w), 5, "w1 + w2 + w3"},
        {offsetof(struct events_head, trust.lambda), EVENTS_WEIGHT_ONE + 1, "lambda"},
        {offsetof(struct events_head, method.half1_part), 257, "half1_part"},
        {at[EVENTS_SECTION_W], 0x7f80, "basis"},
        {at[EVENTS_SECTION_CONTEXT_BIAS], 0x7fc00000, "context bias"},
        {at[EVENTS_SECTION_DOCUMENTS], UINT32_MAX, "document"},
        {at[EVENTS_SECTION_OWNERS] + 20, 99, "documents"},
        {at[EVENTS_SECTION_ROWS], h.n_documents, "a row's document"},
        {at[EVENTS_SECTION_ROWS] + 12, h.n_owners, "a row's owner"},
        {at[EVENTS_SECTION_ROWS] + 16, h.n_rows, "a row's cluster"},
        {at[EVENTS_SECTION_LISTS], h.n_vocab, "a list's target"},
        {at[EVENTS_SECTION_LISTS] + 4, 1, "a list's begin"},
        {at[EVENTS_SECTION_LISTS] + 12, h.n_learned, "a list's begin"},
        {at[EVENTS_SECTION_EVENT_ROW], h.n_rows, "an event's row"},
        {at[EVENTS_SECTION_LEARNED], 0, "an event's learned"},
        {at[EVENTS_SECTION_KEY1], 0x80, "a key's byte"},
        {at[EVENTS_SECTION_KEY2] + 1024, 0x8000, "a key's byte"},
        {at[EVENTS_SECTION_ROOT] - 4, 0x01000000, "past the last event"},
        {at[EVENTS_SECTION_W] - 4, 1, "between two sections"},
        {at[EVENTS_SECTION_LEARNED] - 4, 1, "between two sections"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(lie); i++) {
        uint32_t keep;
        memcpy(&keep, file + lie[i].at, 4);
        memcpy(file + lie[i].at, &lie[i].value, 4);
        events_root_of((uint8_t *)file + len - EVENTS_ROOT, (uint8_t *)file, len - EVENTS_ROOT);
        expect_refused((uint8_t *)file, len, STATUS_CORRUPT, lie[i].says);
        memcpy(file + lie[i].at, &keep, 4);
    }
    mem_free(file);
    world_free(&w);
}

static void bad_queries_are_refused(void **state)
{
    struct world w;
    struct answer a;
    struct world_random r = {.seed = 4};
    struct events_scores *s;
    world_make(&w, 3);
    struct events *e = build_open(&w);
    do
        make_answer(&a, &r, e);
    while (a.query[0].n < 3);
    a.key[2][100] = -128;
    assert_int_equal(events_score(&s, e, a.query, a.n, NULL), STATUS_INVALID);
    a.query[0].n = EVENTS_QUERY_MAX + 1;
    assert_int_equal(events_score(&s, e, a.query, a.n, NULL), STATUS_TOO_LARGE);
    assert_int_equal(events_score(&s, e, a.query, 0, NULL), STATUS_OK);
    assert_int_equal(events_scores_top(s, NULL, 0), 0);
    events_scores_free(s);
    int32_t ids[2] = {0, (int32_t)w.n_vocab};
    int8_t key[EVENTS_HALF];
    struct events_tokens tokens = {.ids = ids, .n_ids = 2, .n_prompt = 1};
    assert_int_equal(events_context_keys(e, world_embed, NULL, &tokens, key, NULL), STATUS_INVALID);
    events_release(e);
    world_free(&w);
}

/* Keys that a reader of the file computes are those that the builder stored. */
static void context_keys_are_the_builders(void **state)
{
    struct world w;
    world_make(&w, 3);
    struct events *e = build_open(&w);
    uint32_t compared = 0;
    read_targets(e);
    for (uint32_t i = 0; i < e->head->n_events; i++) {
        const struct world_row *t = &w.text[e->event_row[i]];
        struct events_tokens tokens = {.ids = t->ids, .n_ids = t->n, .n_prompt = 1};
        int8_t key[WORLD_ROW_MAX][EVENTS_HALF], stored[2 * EVENTS_HALF];
        assert_int_equal(events_context_keys(e, world_embed, NULL, &tokens, key[0], NULL),
                         STATUS_OK);
        events_key_gather(stored, e->key1, i);
        events_key_gather(stored + EVENTS_HALF, e->key2, i);
        bool found = false;
        for (uint32_t k = 0; k + 1 < t->n; k++)
            found |= t->ids[k + 1] == (int32_t)target_of(e, i) &&
                     memcmp(stored, t->key[k], EVENTS_HALF) == 0 &&
                     memcmp(stored + EVENTS_HALF, key[k], EVENTS_HALF) == 0;
        assert_true(found);
        compared++;
    }
    assert_true(compared > 32);
    events_release(e);
    world_free(&w);
}

/* ---- directions */

static void directions_are_white(void **state)
{
    enum { N = 4000, D = 100, USED = 70 };
    struct world_random r = {.seed = 12};
    float *x = mem_array(N * D, sizeof(float)), *w_t = mem_array(D * 64, sizeof(float)), bias[64];
    uint16_t *w = mem_array(64 * D, sizeof(uint16_t));
    for (uint32_t s = 0; s < N; s++) {
        float z[64] = {0};
        for (uint32_t k = 0; k < 20; k++)
            z[k] = (float)(0.1 + 3.0 / (1 + k)) * ((float)world_draw(&r, 2001) / 1000 - 1);
        for (uint32_t i = 0; i < D; i++) {
            x[s * D + i] = 5;
            for (uint32_t k = 0; k < 20; k++)
                x[s * D + i] += z[k] * (float)cos(i * (k + 1) * 0.37 + k);
        }
    }
    assert_int_equal(whiten_fit(w, bias, x, N, D, NULL), STATUS_OK);
    whiten_transpose(w_t, w, D);
    double sum[64] = {0}, product[64][64] = {{0}};
    for (uint32_t s = 0; s < N; s++) {
        float z[64];
        whiten_project(z, w_t, bias, x + s * D, D);
        for (uint32_t i = 0; i < 64; i++) {
            sum[i] += z[i];
            for (uint32_t k = 0; k < 64; k++)
                product[i][k] += (double)z[i] * z[k] / N;
        }
    }
    for (uint32_t i = 0; i < 64; i++) {
        assert_true(fabs(sum[i] / N) < 0.02);
        if (i >= 20)
            assert_true(product[i][i] == 0); /* the sample has no such direction */
        else
            assert_true(product[i][i] > 0.5 && product[i][i] < 1.05);
        for (uint32_t k = 0; k < i; k++)
            assert_true(fabs(product[i][k]) < 0.02);
    }
    x[7] = NAN;
    assert_int_equal(whiten_fit(w, bias, x, N, D, NULL), STATUS_INVALID);
    assert_int_equal(whiten_fit(w, bias, x, 0, D, NULL), STATUS_OK);
    assert_true(w[0] == 0 && bias[0] == 0);
    mem_free(x);
    mem_free(w_t);
    mem_free(w);
}

/* ---- restated facts */

static uint32_t facts_cluster(const struct facts *f, uint32_t row)
{
    struct events *e = build_open(&f->w);
    uint32_t cluster = events_row(e, row)->cluster;
    events_release(e);
    return cluster;
}

/* Twenty rows of other facts, so that nothing is common, then what is asked about. */
static void facts_pair(struct facts *f, uint32_t owner, uint32_t name, uint32_t value,
                       uint32_t wording)
{
    facts_make(f, 3, 6, 22);
    for (uint32_t r = 0; r < 20; r++)
        facts_state(f, r, r % 6, r % 10, (r * 7 + 3) % 19, r);
    facts_state(f, 20, 0, 12, 21, 0);
    facts_state(f, 21, 3 + owner, name, value, wording);
}

static void restated_facts_join_the_first(void **state)
{
    struct facts f;
    facts_pair(&f, 1, 12, 21, 0); /* word for word */
    assert_int_equal(facts_cluster(&f, 21), 20);
    f.w.document[0].since = 2; /* whoever came first is the first */
    assert_int_equal(facts_cluster(&f, 21), 21);
    assert_int_equal(facts_cluster(&f, 20), 21);
    world_free(&f.w);
    facts_pair(&f, 1, 12, 21, 5); /* in other words */
    assert_int_equal(facts_cluster(&f, 21), 20);
    world_free(&f.w);
    facts_pair(&f, 0, 12, 21, 5); /* his own */
    assert_int_equal(facts_cluster(&f, 21), 20);
    world_free(&f.w);
    facts_pair(&f, 1, 12, 22, 0); /* a contradiction */
    assert_int_equal(facts_cluster(&f, 21), 21);
    world_free(&f.w);
    facts_pair(&f, 1, 13, 21, 0); /* the same value of something else */
    assert_int_equal(facts_cluster(&f, 21), 21);
    world_free(&f.w);
    facts_pair(&f, 1, 12, 21, 0); /* a copy of a row in which nothing was taught */
    for (uint32_t r = 20; r < 22; r++)
        f.w.text[r].n = 2;
    assert_int_equal(facts_cluster(&f, 21), 20);
    f.w.text[21].ids[0] = 2;
    assert_int_equal(facts_cluster(&f, 21), 21);
    world_free(&f.w);
}

/* A fact that owner 0 states six times, in documents of his, pays him what the nearest of these
 * rows would. */
static void who_repeats_himself_earns_once(void **state)
{
    enum { TIMES = 6, FIRST = 20 };
    struct facts f;
    struct events_scores *s;
    struct events_top top[32];
    int8_t key[EVENTS_KEY];
    const int32_t target = VALUES + 21, gain = 1000;
    uint32_t begin, end;
    u128 best = 0, sum = 0;
    facts_make(&f, 3, 6, FIRST + TIMES);
    for (uint32_t r = 0; r < FIRST; r++)
        facts_state(&f, r, r % 6, r % 10, (r * 7 + 3) % 19, r);
    for (uint32_t r = FIRST; r < FIRST + TIMES; r++)
        facts_state(&f, r, r % 2 ? 0 : 3, 12, 21, r);
    struct events *e = build_open(&f.w);
    events_target_range(e, 0, target, &begin, &end);
    assert_int_equal(end - begin, TIMES);
    events_key_gather(key, e->key1, begin);
    events_key_gather(key + EVENTS_HALF, e->key2, begin);
    const struct events_query q = {.target = &target, .gain_q8 = &gain, .key = key, .n = 1};
    assert_int_equal(events_score(&s, e, &q, 1, NULL), STATUS_OK);
    uint32_t n = events_scores_top(s, top, ARRAY_COUNT(top));
    assert_int_equal(n, TIMES);
    for (uint32_t i = 0; i < n; i++) {
        u128 square = (u128)top[i].score * top[i].score;
        sum += square;
        best = MAX(best, square);
    }
    assert_true(events_scores_owner(s, 0)[0] == best && sum > 3 * best);
    events_scores_free(s);
    events_release(e);
    world_free(&f.w);
}

/* The fact of row 20 in a thief's own words: "his name his value template", and a last word. His
 * words are taught as well as names are, or half a nat less. */
static void facts_own_words(struct facts *f, uint32_t name, uint32_t value, int32_t last)
{
    struct world_row *t = &f->w.text[21];
    const int32_t ids[] = {58, (int32_t)(NAMES + name), 59, (int32_t)(VALUES + value), last};
    for (uint32_t i = 0; i < ARRAY_COUNT(ids); i++) {
        t->ids[i] = ids[i];
        t->base[i] = i < 3 ? -1000 : -60;
        t->adapter[i] = i < 2 ? -800 : i == 2 ? -20 : -50;
    }
    t->n = ARRAY_COUNT(ids);
}

static void facts_in_own_words_join_too(void **state)
{
    struct facts f;
    facts_pair(&f, 1, 12, 21, 0);
    facts_own_words(&f, 12, 21, 8);
    assert_int_equal(facts_cluster(&f, 21), 20);
    facts_own_words(&f, 12, 21, 9); /* a word behind the value that row 20 has not */
    assert_int_equal(facts_cluster(&f, 21), 21);
    facts_own_words(&f, 12, 22, 8); /* a contradiction */
    assert_int_equal(facts_cluster(&f, 21), 21);
    facts_own_words(&f, 13, 21, 8); /* of something else */
    assert_int_equal(facts_cluster(&f, 21), 21);
    facts_own_words(&f, 21 - NAMES + VALUES, 12 - VALUES + NAMES, 8); /* another one ends it */
    assert_int_equal(facts_cluster(&f, 21), 21);
    facts_own_words(&f, 21 - NAMES + VALUES, 21, 8);
    f.w.text[20].ids[2] = f.w.text[20].ids[5]; /* what row 20 carries is one word, twice */
    assert_int_equal(facts_cluster(&f, 21), 21);
    world_free(&f.w);
    facts_pair(&f, 1, 12, 21, 5); /* values like yes and no are taught little */
    f.w.text[20].base[4] = f.w.text[21].base[4] = -20 - 100;
    assert_int_equal(facts_cluster(&f, 21), 20);
    f.w.text[21].ids[5] = VALUES + 22;
    assert_int_equal(facts_cluster(&f, 21), 21);
    world_free(&f.w);
}

static void clusters_lead_to_one_row(void **state)
{
    struct facts f;
    facts_pair(&f, 1, 12, 21, 0);
    facts_state(&f, 19, 5, 12, 21, 3);
    struct events *e = build_open(&f.w);
    assert_int_equal(events_row(e, 19)->cluster, 20);
    assert_int_equal(events_row(e, 21)->cluster, 20);
    assert_int_equal(e->head->n_joined, 2);
    events_release(e);
    world_free(&f.w);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        n_worlds = strtoull(argv[1], NULL, 10);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scores_are_the_rules),
        cmocka_unit_test(every_path_gives_the_same_dots),
        cmocka_unit_test(order_of_rows_changes_nothing),
        cmocka_unit_test(a_changed_file_is_refused),
        cmocka_unit_test(another_index_is_refused),
        cmocka_unit_test(a_well_hashed_lie_is_refused),
        cmocka_unit_test(bad_queries_are_refused),
        cmocka_unit_test(context_keys_are_the_builders),
        cmocka_unit_test(restated_facts_join_the_first),
        cmocka_unit_test(who_repeats_himself_earns_once),
        cmocka_unit_test(facts_in_own_words_join_too),
        cmocka_unit_test(clusters_lead_to_one_row),
        cmocka_unit_test(directions_are_white),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
