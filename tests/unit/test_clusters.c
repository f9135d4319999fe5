/* Restated facts in random worlds, against the rule of events_cluster.c read slowly: as `restates`
 * and `join_clusters` of tests/bench/attribution/method.py every row is compared with every older
 * one, from the file and from the rows as they were given. */
#include "server/base/file.h"
#include "server/influence/events_impl.h"
#include "tests/unit/facts_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define WORLDS      150
#define VOCAB       80 /* more than 64: rows are told apart by bit id % 64 first */
#define ROWS        40
#define CLUSTER_MIN 64

static char path[64];

static int setup(void **state)
{
    snprintf(path, sizeof(path), "/tmp/rs-clusters-%ld", (long)getpid());
    return 0;
}

static int teardown(void **state)
{
    return unlink(path);
}

/* How often each part of the rule decided something. */
static struct {
    uint32_t equal, stated, back, tail, contradicted;
} seen;

struct slow {
    const struct world *w;
    const struct events *e;
    uint32_t taught[VOCAB]; /* 0 for what is common */
};

static uint32_t learned_of(const struct world_row *t, uint32_t at)
{
    int32_t learned = t->adapter[at - 1] - t->base[at - 1];
    return learned < 0 ? 0 : (uint32_t)learned;
}

static void slow_taught(struct slow *s)
{
    for (uint32_t v = 0; v < s->w->n_vocab; v++) {
        uint32_t sum = 0, n = 0;
        for (uint32_t r = 0; r < s->w->n_rows; r++) {
            for (uint32_t at = 1; at < s->w->text[r].n; at++) {
                if ((uint32_t)s->w->text[r].ids[at] == v)
                    n++, sum += learned_of(&s->w->text[r], at);
            }
        }
        s->taught[v] = n && 3 * n <= s->w->n_rows + 6 ? sum / n : 0;
    }
}

static bool says(const struct slow *s, uint32_t row, uint32_t at)
{
    return s->taught[s->w->text[row].ids[at]] >= CLUSTER_MIN;
}

/* Places of what a row's last run says: [*begin, return); 0: it says nothing. */
static uint32_t slow_value(const struct slow *s, uint32_t row, uint32_t *begin)
{
    uint32_t end = s->w->text[row].n;
    while (end > 1 && !says(s, row, end - 1))
        end--;
    for (*begin = end; *begin > 1 && says(s, row, *begin - 1);)
        --*begin;
    return end > 1 ? end : 0;
}

static bool has(const struct slow *s, uint32_t row, int32_t id)
{
    for (uint32_t i = 0; i < s->w->text[row].n; i++) {
        if (s->w->text[row].ids[i] == id)
            return true;
    }
    return false;
}

/* Of what row `of` says before `end`, does `in` lack an eighth at most? */
static bool has_most(const struct slow *s, uint32_t in, uint32_t of, uint32_t end)
{
    uint32_t all = 0, missing = 0;
    for (uint32_t at = 1; at < end; at++) {
        int32_t id = s->w->text[of].ids[at];
        all += says(s, of, at) ? s->taught[id] : 0;
        missing += says(s, of, at) && !has(s, in, id) ? s->taught[id] : 0;
    }
    return 8 * missing <= all;
}

/* The event of place `at` of a row: of its target those that learned come first, then by place. */
static uint32_t event_of(const struct slow *s, uint32_t row, uint32_t at)
{
    const struct world_row *t = &s->w->text[row];
    uint32_t least = s->e->head->method.learned_min, begin, end, before = 0;
    bool learned = learned_of(t, at) >= least;
    for (uint32_t i = 1; i < at; i++)
        before += t->ids[i] == t->ids[at] && (learned_of(t, i) >= least) == learned;
    events_target_range(s->e, learned ? 0 : 1, t->ids[at], &begin, &end);
    while (begin < end && s->e->event_row[begin] != row)
        begin++;
    assert_true(begin + before < end && s->e->event_row[begin + before] == row);
    return begin + before;
}

static bool near(const struct slow *s, uint32_t row, uint32_t at, uint32_t other)
{
    int8_t x[EVENTS_HALF], y[EVENTS_HALF];
    const struct world_row *t = &s->w->text[other];
    events_key_gather(x, s->e->key2, event_of(s, row, at));
    for (uint32_t i = 1; i < t->n; i++) {
        if (t->ids[i] != s->w->text[row].ids[at])
            continue;
        events_key_gather(y, s->e->key2, event_of(s, other, i));
        int32_t dot = 0;
        for (uint32_t k = 0; k < EVENTS_HALF; k++)
            dot += x[k] * y[k];
        if (dot >= (int32_t)s->e->head->method.cluster_dot)
            return true;
    }
    return false;
}

static bool same_rows(const struct world_row *x, const struct world_row *y)
{
    return x->n == y->n && memcmp(x->ids, y->ids, x->n * sizeof(x->ids[0])) == 0;
}

static bool slow_restates(const struct slow *s, uint32_t b, uint32_t a)
{
    const struct world_row *mine = &s->w->text[b], *other = &s->w->text[a];
    uint32_t begin, begin_a, end = slow_value(s, b, &begin), end_a = slow_value(s, a, &begin_a);
    if (same_rows(mine, other))
        return ++seen.equal;
    if (!end || !near(s, b, end - 1, a))
        return false;
    bool named = false, value = true, two = false, tail = true;
    for (uint32_t at = 1; at < begin; at++)
        named |= says(s, b, at);
    for (uint32_t at = begin; at < end; at++)
        value &= has(s, a, mine->ids[at]);
    for (uint32_t at = 1; at < end_a; at++)
        two |= says(s, a, at) && other->ids[at] != other->ids[end_a - 1];
    for (uint32_t at = end; at < mine->n; at++)
        tail &= has(s, a, mine->ids[at]);
    bool said = named || end - begin > 1;
    bool stated = named && value && has_most(s, a, b, end);
    bool back = said && two && other->ids[end_a - 1] == mine->ids[end - 1];
    back = back && has_most(s, b, a, end_a);
    seen.stated += stated && !back && tail;
    seen.back += back && !stated && tail;
    seen.tail += (back || stated) && !tail;
    seen.contradicted += named && !value;
    return (stated || back) && tail;
}

static bool older(const struct world *w, uint32_t x, uint32_t y)
{
    const struct events_source_document *a = &w->document[w->row[x].document],
                                        *b = &w->document[w->row[y].document];
    return a->since != b->since     ? a->since < b->since
           : a->doc_id != b->doc_id ? a->doc_id < b->doc_id
                                    : x < y;
}

/* The oldest that is restated, and whose cluster that is: it is asked for before. */
static uint32_t slow_cluster(struct slow *s, uint32_t row)
{
    const struct world *w = s->w;
    uint32_t first = row;
    for (uint32_t r = 0; r < w->n_rows; r++) {
        if (older(w, r, row) && slow_restates(s, row, r) && (first == row || older(w, r, first)))
            first = r;
    }
    return first == row ? row : slow_cluster(s, first);
}

/* A row of few names and values in one of some wordings; then words of one's own anywhere, a word
 * less, what was said before, and more or less taught than others. */
static void random_row(struct facts *f, struct world_random *r, uint32_t row)
{
    struct world_row *t = &f->w.text[row];
    facts_state(f, row, world_draw(r, f->w.n_documents), world_draw(r, 4), world_draw(r, 4),
                world_draw(r, 6));
    if (row && world_draw(r, 6) == 0)
        *t = f->w.text[world_draw(r, row)];
    for (uint32_t more = world_draw(r, 3); more && t->n < WORLD_ROW_MAX; more--) {
        uint32_t at = world_draw(r, t->n + 1);
        memmove(t->ids + at + 1, t->ids + at, (t->n++ - at) * sizeof(t->ids[0]));
        t->ids[at] = (int32_t)(world_draw(r, 2) ? world_draw(r, 10) : 50 + world_draw(r, 8));
        t->ids[at] += t->ids[at] < NAMES && world_draw(r, 2) ? 64 : 0;
    }
    if (world_draw(r, 3) == 0) {
        uint32_t at = world_draw(r, t->n--);
        memmove(t->ids + at, t->ids + at + 1, (t->n - at) * sizeof(t->ids[0]));
    }
    for (uint32_t at = 1; at < t->n; at++) {
        uint32_t id = (uint32_t)t->ids[at];
        uint32_t most = id < NAMES || id >= 64 ? 70 : id < VALUES ? 800 : id < 50 ? 260 : 150;
        t->adapter[at - 1] = -40;
        t->base[at - 1] = -40 - (int32_t)world_draw(r, most);
    }
}

static void clusters_are_the_rules(void **state)
{
    struct errtext err = ERRTEXT_INIT;
    for (uint64_t seed = 0; seed < WORLDS; seed++) {
        struct world_random r = {.seed = seed};
        struct facts f;
        struct slow s = {.w = &f.w};
        struct events *e;
        facts_make(&f, 4, 12, ROWS);
        f.w.n_vocab = VOCAB;
        for (uint32_t i = 0; i < f.w.n_documents; i++)
            f.w.document[i].since = 1 + world_draw(&r, 3);
        for (uint32_t i = 0; i < ROWS; i++)
            random_row(&f, &r, i);
        if (world_build(&f.w, path, false, &err) || events_open(&e, path, NULL, &err))
            fail_msg("%s", err.text);
        s.e = e;
        slow_taught(&s);
        for (uint32_t i = 0; i < ROWS; i++) {
            if (events_row(e, i)->cluster != slow_cluster(&s, i))
                fail_msg("world %d, row %u: cluster %u, by the rule %u", (int)seed, i,
                         events_row(e, i)->cluster, slow_cluster(&s, i));
        }
        events_release(e);
        world_free(&f.w);
    }
    assert_true(seen.equal > 100 && seen.stated > 100 && seen.back > 100 && seen.tail > 100 &&
                seen.contradicted > 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(clusters_are_the_rules)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
