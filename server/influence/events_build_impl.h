/* Inside of the builder: events_build.c, events_write.c, events_cluster.c, events_trust.c. */
#ifndef RS_INFLUENCE_EVENTS_BUILD_IMPL_H
#define RS_INFLUENCE_EVENTS_BUILD_IMPL_H

#include "server/influence/events_build.h"
#include "server/influence/events_impl.h"
#include "server/influence/events_score.h"

struct builder_row {
    uint32_t begin, n; /* events */
    int32_t first;     /* the token before them, -1: none */
    bool has_base, has_adapter;
    float *hidden; /* [n][d_model] of a sampled row */
    int32_t *ids;  /* [n + 1] of a sampled row */
};

struct events_builder {
    struct events_source src;
    struct events_method method;
    struct builder_row *row; /* [n_rows] */
    uint32_t n_events;       /* in the order in which the rows came */
    uint32_t n_base, n_adapter, cap;
    int32_t *target, *base, *adapter; /* [n_events] */
    int8_t *key;                      /* [n_events][128] */
    uint16_t *surprise;               /* [n_vocab], once the base is complete */
    int64_t *surprise_sum;
    uint32_t *occurs; /* [n_vocab] events of rows */
    uint32_t stride;  /* of the sample; 0: not yet known */
    uint16_t *w, *context_w;
    float bias[EVENTS_HALF], context_bias[EVENTS_HALF];
    float *context_w_t; /* NULL before events_builder_basis */
    /* events_facts_begin */
    uint16_t *taught;    /* [n_vocab] mean learned of the events of rows, Q8 nats */
    uint64_t *tokens_of; /* [n_rows] which tokens a row may have: bit id % 64 */
};

static inline uint16_t events_builder_learned(const struct events_builder *b, uint32_t event)
{
    int64_t learned = (int64_t)b->adapter[event] - b->base[event];
    return (uint16_t)(learned < 0 ? 0 : learned > UINT16_MAX ? UINT16_MAX : learned);
}

/* What the functions below go by, once every row is there. */
MUST_CHECK enum status events_facts_begin(struct events_builder *b, struct errtext *err);
bool events_carries_fact(const struct events_builder *b, uint32_t event);
/* A row's value: the last run of events that carry facts, [*begin, *begin + *n); false: none. */
bool events_builder_value(const struct events_builder *b, uint32_t row, uint32_t *begin,
                          uint32_t *n);
/* Which row states a fact first, and which rows state it again. */
struct fact_search {
    const struct events_builder *b;
    const struct events *e;
    const uint32_t *rank; /* of rows, by age; NULL: another row of the same owner is meant */
    uint32_t taught_min;  /* the method's; half of it where restatements are looked for */
    events_dots_fn dots;
};
/* The row that states the row's fact: with a rank the oldest one that is older and another owner's.
 * EVENTS_NONE: no row does. */
uint32_t events_fact_find(const struct fact_search *s, uint32_t row);
/* Fill row[].cluster and count the rows that join another. */
MUST_CHECK enum status events_cluster_rows(const struct events_builder *b, const struct events *e,
                                           struct events_row *row, uint32_t *n_joined,
                                           struct errtext *err);
MUST_CHECK enum status events_trust_measure(const struct events_builder *b, const struct events *e,
                                            struct events_trust *out, struct errtext *err);

#endif
