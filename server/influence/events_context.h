/* Inside of the event index: the running mean of a context, for keys (events_context.c) and for the
 * sample that the directions come from. */
#ifndef RS_INFLUENCE_EVENTS_CONTEXT_H
#define RS_INFLUENCE_EVENTS_CONTEXT_H

#include "server/influence/events_impl.h"

struct events_context {
    const uint16_t *surprise; /* [n_vocab] */
    uint32_t n_vocab, d;
    double *sum;
    float *mean; /* of the tokens so far, after events_context_mean */
    uint64_t weight;
};

struct events_basis {
    const uint16_t *surprise;
    uint32_t n_vocab, d;
    const float *w_t, *bias; /* half 2 */
};

MUST_CHECK enum status events_context_begin(struct events_context *c, const uint16_t *surprise,
                                            uint32_t n_vocab, uint32_t d, struct errtext *err);
MUST_CHECK enum status events_context_add(struct events_context *c, events_embed embed, void *arg,
                                          int32_t id, struct errtext *err);
/* false: no token of the context has a weight. */
bool events_context_mean(struct events_context *c);
void events_context_key(struct events_context *c, int8_t out[EVENTS_HALF], const float *w_t,
                        const float *bias);
void events_context_end(struct events_context *c);
/* events_context_keys, of an index that is being built. */
MUST_CHECK enum status events_context_run(const struct events_basis *b, events_embed embed,
                                          void *arg, const struct events_tokens *tokens,
                                          int8_t *out, struct errtext *err);

#endif
