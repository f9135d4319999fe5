/* Two kinds of refcounted facts. */
#include "server/terms/terms.h"
#include "server/base/mem.h"

#include <sodium.h>

struct terms *terms_new(void)
{
    struct terms *t = mem_alloc(sizeof(*t));
    atomic_init(&t->refs, 1);
    return t;
}

struct terms *terms_ref(struct terms *t)
{
    if (t)
        atomic_fetch_add_explicit(&t->refs, 1, memory_order_relaxed);
    return t;
}

void terms_release(struct terms *t)
{
    /* acq_rel: the last owner must see every write of the others before it frees */
    if (!t || atomic_fetch_sub_explicit(&t->refs, 1, memory_order_acq_rel) != 1)
        return;
    contributors_release(t->contributors);
    mem_free(t->answer);
    mem_free(t);
}

struct contributors *contributors_ref(struct contributors *c)
{
    if (c)
        atomic_fetch_add_explicit(&c->refs, 1, memory_order_relaxed);
    return c;
}

void contributors_release(struct contributors *c)
{
    if (c && atomic_fetch_sub_explicit(&c->refs, 1, memory_order_acq_rel) == 1)
        mem_free(c);
}

struct tariff terms_tariff(const struct terms *t)
{
    return t ? (struct tariff){t->r.price_in, t->r.price_out} : (struct tariff){0};
}

bool terms_has_datanet(const struct terms *t)
{
    return t && !sodium_is_zero(t->r.datanet_id, sizeof(t->r.datanet_id));
}
