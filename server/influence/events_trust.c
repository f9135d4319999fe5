/* How far an index is trusted. Its shares are worth what they are on questions whose owner is
 * known, so they are asked: the publisher's held-out questions if he gave enough, else rows of the
 * index itself, spread evenly, each held back while the rest answers its value. Two things are
 * measured: does the adapter know the value (it gives its first token at least one half; an
 * adapter of other texts or of random labels does not), and which part of the influence goes to
 * the owner of the fact, above what the number of his documents would give him.
 *
 *   lambda = E9 x min(1, max(0, known - .1) / .4) x max(0, own - chance) / (1 - chance)
 *
 * A fact that one row alone states has no other row to be found by. Such a row stays, but its
 * events count only as near as restatements stand (method.once_dot): what is measured is whether
 * rows of other owners stand nearer than that. Integers throughout. */
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/influence/events_build_impl.h"

#include <string.h>

#define E9            EVENTS_WEIGHT_ONE
#define SAMPLE        512    /* queries */
#define QUESTIONS_MIN 8      /* fewer measure nothing */
#define KNOWN_Q8      (-177) /* ln 1/2 */
#define VALUE_MAX     64     /* tokens of one value */

struct trust_tally {
    const struct events_builder *b;
    const struct events *e;
    struct fact_search search;
    uint64_t measured, questions, once, known;
    uint64_t own, chance; /* sums of parts per E9 */
};

struct trust_probe {
    uint32_t row, begin, n; /* its value */
    uint32_t owner;
    struct events_held held;
};

/* The completion, if the base does not know how it begins. */
static bool question_value(const struct events_builder *b, uint32_t number, struct trust_probe *p)
{
    const struct builder_row *r = &b->row[b->src.n_rows + number];
    uint32_t n_prompt = b->src.question[number].n_prompt;
    p->begin = r->begin + (n_prompt > 0 ? n_prompt - 1 : 0);
    if (p->begin >= r->begin + r->n)
        return false;
    p->n = r->begin + r->n - p->begin;
    return -(int64_t)b->base[p->begin] >= b->method.value_min;
}

static bool make_probe(struct trust_tally *t, uint32_t row, struct trust_probe *p)
{
    const struct events_builder *b = t->b;
    *p = (struct trust_probe){.row = row, .held = {.row = EVENTS_NONE}};
    if (row >= b->src.n_rows) {
        const struct events_source_question *q = &b->src.question[row - b->src.n_rows];
        p->owner = b->src.document[q->document].owner;
        return question_value(b, row - b->src.n_rows, p);
    }
    p->owner = t->e->row[t->e->row[row].cluster].owner;
    p->held.row = row;
    return events_builder_value(b, row, &p->begin, &p->n);
}

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

static enum status ask(struct trust_tally *t, struct trust_probe *p, struct errtext *err)
{
    const struct events_builder *b = t->b;
    int32_t gain[VALUE_MAX];
    struct events_scores *s;
    struct events_query q = {.target = b->target + p->begin,
                             .gain_q8 = gain,
                             .key = b->key + (size_t)p->begin * EVENTS_KEY,
                             .n = MIN(p->n, (uint32_t)VALUE_MAX)};
    for (uint32_t i = 0; i < q.n; i++)
        gain[i] = events_builder_learned(b, p->begin + i);
    if (p->held.row != EVENTS_NONE && events_fact_find(&t->search, p->row) == EVENTS_NONE) {
        p->held.dot_max = b->method.once_dot;
        t->once++;
    }
    enum status st = events_score_held(&s, t->e, &q, 1, p->held, err);
    if (st)
        return st;
    t->own += own_part(s, t->e, p->owner);
    events_scores_free(s);
    return STATUS_OK;
}

static enum status measure_one(struct trust_tally *t, uint32_t row, struct errtext *err)
{
    struct trust_probe p;
    if (!make_probe(t, row, &p))
        return STATUS_OK;
    t->measured++;
    t->questions += row >= t->b->src.n_rows;
    t->chance += (uint64_t)E9 * t->e->owner[p.owner].documents / t->e->head->n_documents;
    if (t->b->adapter[p.begin] < KNOWN_Q8)
        return STATUS_OK;
    t->known++;
    return ask(t, &p, err);
}

static uint32_t lambda_of(const struct events_trust *t)
{
    uint64_t ramp = t->known <= E9 / 10 ? 0 : MIN((uint64_t)(t->known - E9 / 10) * 10 / 4, E9);
    if (t->chance == E9) /* one owner: his in any case */
        return (uint32_t)ramp;
    uint64_t above =
        t->own > t->chance ? (uint64_t)(t->own - t->chance) * E9 / (E9 - t->chance) : 0;
    return (uint32_t)(ramp * above / E9);
}

enum status events_trust_measure(const struct events_builder *b, const struct events *e,
                                 struct events_trust *out, struct errtext *err)
{
    struct events_dots_path path[3];
    (void)events_dots_paths(path);
    struct trust_tally t = {.b = b, .e = e, .search = {.b = b, .e = e, .dots = path[0].run}};
    bool questions = b->src.n_questions >= QUESTIONS_MIN;
    uint32_t first = questions ? b->src.n_rows : 0;
    uint32_t n = questions ? b->src.n_questions : b->src.n_rows, stride = 1 + n / (SAMPLE + 1);
    enum status st = STATUS_OK;
    for (uint32_t i = 0; !st && i < n; i += stride)
        st = measure_one(&t, first + i, err);
    if (st)
        return st;
    *out = (struct events_trust){
        .measured = (uint32_t)t.measured,
        .questions = (uint32_t)t.questions,
        .once = (uint32_t)t.once,
        .known = t.measured ? (uint32_t)(t.known * E9 / t.measured) : 0,
        .own = t.known ? (uint32_t)(t.own / t.known) : 0,
        .chance = t.measured ? (uint32_t)(t.chance / t.measured) : 0,
    };
    out->lambda = lambda_of(out);
    return STATUS_OK;
}
