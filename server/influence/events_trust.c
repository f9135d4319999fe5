/* How far an index is trusted. Its shares are worth what they are on facts whose owner is known, so
 * rows of the index are asked for their own values (events_cluster.c says which tokens those are).
 * Two things are measured: does the adapter know the values, and which part of the influence goes
 * to the owner of the row, above what the number of his rows would give him. An adapter that was
 * trained on something else, or on random labels, knows nothing and ends at the prior.
 *
 *   know   = of the sampled rows the part whose value's end has a half of the probability or more
 *   known  = (know of the adapter - know of the base) / (1 - know of the base)
 *   lambda = E9 x min(1, max(0, known - .2) / .3) x max(0, own - chance) / (1 - chance)
 *
 * A large base is taught the templates of its rows too, and then a value's run is most of a
 * sentence: its end alone is looked at, three tokens to see if it is known and the last to ask.
 * Rows whose fact another row of the owner states too are asked with the row itself taken out.
 * Where few facts are stated twice, rows stay in, and are asked by their names alone: half 2 of the
 * key, of the row's carrying tokens before the value and of no others. Integers throughout. */
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/influence/events_build_impl.h"
#include "server/influence/events_context.h"

#include <string.h>

#define E9         EVENTS_WEIGHT_ONE
#define SAMPLE     512    /* rows */
#define STATED_MIN 16     /* rows, and a tenth of the sample: fewer measure nothing */
#define HALF_Q8    (-177) /* ln 1/2 */
#define VALUE_MAX  64     /* tokens of one value */
#define VALUE_END  3      /* of these, the last that must be known */
#define KNOWN_LOW  (E9 / 5)
#define KNOWN_RAMP (E9 / 10 * 3)

struct trust_tally {
    const struct events_builder *b;
    const struct events *e;
    struct fact_search search;
    const uint32_t *rows_of; /* [n_owners] */
    uint32_t sampled, stated, measured;
    uint64_t know, base_know;
    uint64_t own, chance; /* sums of parts per E9 */
};

struct trust_query {
    int32_t target[VALUE_MAX], gain[VALUE_MAX];
    int8_t key[VALUE_MAX][EVENTS_KEY];
    uint32_t n;
};

static uint64_t own_part(const struct events_scores *s, const struct events *e, uint32_t owner)
{
    const u128 *score = events_scores_owner(s, 0);
    u128 sum = 0, own = score[owner];
    for (uint32_t i = 0; i < e->head->n_owners; i++)
        sum += score[i];
    while (sum >> 96) {
        sum >>= 1;
        own >>= 1;
    }
    return sum ? (uint64_t)(own * E9 / sum) : 0;
}

static void value_query(const struct events_builder *b, uint32_t begin, uint32_t n,
                        struct trust_query *q)
{
    q->n = MIN(n, (uint32_t)VALUE_MAX);
    for (uint32_t i = 0; i < q->n; i++) {
        q->target[i] = b->target[begin + i];
        q->gain[i] = events_builder_learned(b, begin + i);
        memcpy(q->key[i], b->key + (size_t)(begin + i) * EVENTS_KEY, EVENTS_KEY);
    }
}

/* Half 2 of the query's keys, of the carrying tokens alone; *asked false: no name stands before. */
static enum status names_query(const struct events_builder *b, uint32_t row, uint32_t begin,
                               struct trust_query *q, bool *asked, struct errtext *err)
{
    struct events_context c;
    uint32_t first = b->row[row].begin;
    *asked = false;
    enum status st = events_context_begin(&c, b->surprise, b->src.n_vocab, b->src.d_model, err);
    for (uint32_t i = first; !st && i < begin + q->n; i++) {
        if (!events_carries_fact(b, i))
            continue;
        if (i < begin)
            *asked = true;
        else
            events_context_key(&c, q->key[i - begin] + EVENTS_HALF, b->context_w_t,
                               b->context_bias);
        st = events_context_add(&c, b->src.embed, b->src.embed_arg, b->target[i], err);
    }
    events_context_end(&c);
    return st;
}

static enum status ask_row(struct trust_tally *t, uint32_t row, bool by_names, struct errtext *err)
{
    struct trust_query value;
    struct events_scores *s;
    uint32_t begin, n;
    bool asked = true;
    enum status st = STATUS_OK;
    if (!events_builder_value(t->b, row, &begin, &n))
        return STATUS_OK;
    if (!by_names)
        begin += n - 1;
    value_query(t->b, begin, by_names ? n : 1, &value);
    if (by_names)
        st = names_query(t->b, row, begin, &value, &asked, err);
    else
        asked = events_fact_find(&t->search, row) != EVENTS_NONE;
    if (st || !asked)
        return st;
    const struct events_query q = {
        .target = value.target, .gain_q8 = value.gain, .key = value.key[0], .n = value.n};
    const struct events_held held = {.row = by_names ? EVENTS_NONE : row, .half_two = by_names};
    uint32_t owner = t->e->row[t->e->row[row].cluster].owner;
    st = events_score_held(&s, t->e, &q, 1, held, err);
    if (st)
        return st;
    t->measured++;
    t->own += own_part(s, t->e, owner);
    t->chance += (uint64_t)E9 * t->rows_of[owner] / t->e->head->n_rows;
    events_scores_free(s);
    return STATUS_OK;
}

static bool knows(const int32_t *q8, uint32_t n)
{
    int64_t sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += q8[i];
    return sum >= HALF_Q8;
}

static void look_at(struct trust_tally *t, uint32_t row)
{
    uint32_t begin, n;
    if (!events_builder_value(t->b, row, &begin, &n))
        return;
    uint32_t end = MIN(n, (uint32_t)VALUE_END);
    t->sampled++;
    t->know += knows(t->b->adapter + begin + n - end, end);
    t->base_know += knows(t->b->base + begin + n - end, end);
    t->stated += events_fact_find(&t->search, row) != EVENTS_NONE;
}

static uint64_t above(uint64_t part, uint64_t floor)
{
    return part > floor ? (part - floor) * E9 / (E9 - floor) : 0;
}

static void conclude(const struct trust_tally *t, struct events_trust *out)
{
    if (!t->sampled || !t->measured)
        return;
    uint64_t know = t->know * E9 / t->sampled, base = t->base_know * E9 / t->sampled;
    out->known = (uint32_t)above(know, base);
    out->own = (uint32_t)(t->own / t->measured);
    out->chance = (uint32_t)(t->chance / t->measured);
    uint64_t ramp = out->known > KNOWN_LOW
                        ? MIN((uint64_t)(out->known - KNOWN_LOW) * E9 / KNOWN_RAMP, (uint64_t)E9)
                        : 0;
    /* one owner: his in any case */
    uint64_t found = out->chance == E9 ? E9 : above(out->own, out->chance);
    out->lambda = (uint32_t)(ramp * found / E9);
}

static enum status measure(struct trust_tally *t, struct events_trust *out, struct errtext *err)
{
    uint32_t n = t->b->src.n_rows, stride = MAX(1u, n / SAMPLE);
    enum status st = STATUS_OK;
    for (uint32_t row = 0; row < n; row += stride)
        look_at(t, row);
    bool by_names = t->stated < MAX((uint32_t)STATED_MIN, t->sampled / 10);
    for (uint32_t row = 0; !st && row < n; row += stride)
        st = ask_row(t, row, by_names, err);
    if (st)
        return st;
    *out =
        (struct events_trust){.sampled = t->sampled, .measured = t->measured, .by_names = by_names};
    conclude(t, out);
    return STATUS_OK;
}

enum status events_trust_measure(const struct events_builder *b, const struct events *e,
                                 struct events_trust *out, struct errtext *err)
{
    struct events_dots_path path[3];
    uint32_t *rows_of = mem_try_array((size_t)b->src.n_owners + 1, sizeof(*rows_of));
    if (!rows_of)
        return err_set(err, STATUS_NO_MEMORY, "no memory to measure the index");
    (void)events_dots_paths(path);
    for (uint32_t r = 0; r < b->src.n_rows; r++)
        rows_of[e->row[e->row[r].cluster].owner]++;
    struct trust_tally t = {
        .b = b,
        .e = e,
        .rows_of = rows_of,
        .search = {.b = b, .e = e, .taught_min = b->method.taught_min, .dots = path[0].run}};
    enum status st = measure(&t, out, err);
    mem_free(rows_of);
    return st;
}
