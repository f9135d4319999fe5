/* Half 2 of a key: which rare words came before. The weight of a token is what the base was
 * surprised by it over the index's own rows, so that names count and templates do not. */
#include "server/influence/events_context.h"
#include "server/base/mem.h"
#include "server/influence/whiten.h"

enum status events_context_begin(struct events_context *c, const uint16_t *surprise,
                                 uint32_t n_vocab, uint32_t d, struct errtext *err)
{
    *c = (struct events_context){.surprise = surprise, .n_vocab = n_vocab, .d = d};
    c->sum = mem_try_array(d, sizeof(*c->sum));
    c->mean = mem_try_array(d, sizeof(*c->mean));
    if (c->sum && c->mean)
        return STATUS_OK;
    events_context_end(c);
    return err_set(err, STATUS_NO_MEMORY, "no memory for a context of %u numbers", d);
}

enum status events_context_add(struct events_context *c, events_embed embed, void *arg, int32_t id,
                               struct errtext *err)
{
    if (id < 0 || (uint32_t)id >= c->n_vocab)
        return err_set(err, STATUS_INVALID, "token %d, expected 0 to %u: is it of this tokenizer?",
                       id, c->n_vocab - 1);
    uint16_t weight = c->surprise[id];
    if (weight == 0)
        return STATUS_OK;
    embed(arg, id, c->mean);
    for (uint32_t i = 0; i < c->d; i++)
        c->sum[i] += (double)weight * c->mean[i];
    c->weight += weight;
    return STATUS_OK;
}

bool events_context_mean(struct events_context *c)
{
    for (uint32_t i = 0; c->weight && i < c->d; i++)
        c->mean[i] = (float)(c->sum[i] / (double)c->weight);
    return c->weight > 0;
}

void events_context_key(struct events_context *c, int8_t out[EVENTS_HALF], const float *w_t,
                        const float *bias)
{
    float z[WHITEN_OUT] = {0};
    if (events_context_mean(c))
        whiten_project(z, w_t, bias, c->mean, c->d);
    whiten_quantise(out, z);
}

void events_context_end(struct events_context *c)
{
    mem_free(c->sum);
    mem_free(c->mean);
    *c = (struct events_context){0};
}

enum status events_context_run(const struct events_basis *b, events_embed embed, void *arg,
                               const struct events_tokens *tokens, int8_t *out, struct errtext *err)
{
    struct events_context c;
    enum status st = events_context_begin(&c, b->surprise, b->n_vocab, b->d, err);
    if (st)
        return st;
    for (uint32_t i = 0; !st && i < tokens->n_ids; i++) {
        if (i >= tokens->n_prompt)
            events_context_key(&c, out + (size_t)(i - tokens->n_prompt) * EVENTS_HALF, b->w_t,
                               b->bias);
        st = events_context_add(&c, embed, arg, tokens->ids[i], err);
    }
    events_context_end(&c);
    return st;
}

enum status events_context_keys(const struct events *e, events_embed embed, void *arg,
                                const struct events_tokens *tokens, int8_t *out,
                                struct errtext *err)
{
    const struct events_basis b = {.surprise = e->surprise,
                                   .n_vocab = e->head->n_vocab,
                                   .d = e->head->d_model,
                                   .w_t = e->context_w_t,
                                   .bias = e->context_bias};
    return events_context_run(&b, embed, arg, tokens, out, err);
}
