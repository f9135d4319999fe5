/* Canonical order first, digest second: two requests that mean the same set get the same id
 * whatever order they named. */
#include "server/adapter/composition.h"
#include "chain_client/ids.h"
#include "server/base/check.h"

#include <assert.h>
#include <string.h>

static void sort_parts(struct composition *c)
{
    for (uint32_t i = 1; i < c->n; i++) {
        struct composition_part key = c->part[i];
        uint32_t j = i;
        for (; j > 0 && memcmp(c->part[j - 1].adapter, key.adapter, 32) > 0; j--)
            c->part[j] = c->part[j - 1];
        c->part[j] = key;
    }
}

enum status composition_seal(struct composition *c, struct errtext *err)
{
    struct tail_set set = {.count = c->n};
    static_assert(LORA_PARTS_MAX == TAIL_ADAPTERS_MAX, "a composition is a record's set");
    CHECK(c->n <= LORA_PARTS_MAX);
    sort_parts(c);
    for (uint32_t i = 0; i < c->n; i++) {
        if (c->part[i].weight_q16 == 0)
            return err_param(
                err, STATUS_INVALID, "adapters",
                "adapters: a weight is 0 (or rounds to 0 in 1/65536 steps), expected non-zero");
        if (i > 0 && memcmp(c->part[i - 1].adapter, c->part[i].adapter, 32) == 0)
            return err_param(
                err, STATUS_INVALID, "adapters",
                "adapters: the same adapter content is named twice, expected each once");
        memcpy(set.adapter[i].id, c->part[i].adapter, 32);
        set.adapter[i].weight = c->part[i].weight_q16;
    }
    ids_composition(c->id, &set);
    return STATUS_OK;
}
