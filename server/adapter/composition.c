/* Canonical order first, digest second: two requests that mean the same set get the same id
 * whatever order they named. */
#include "server/adapter/composition.h"
#include "server/base/check.h"
#include "server/base/hex.h"

#include <sodium.h>
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
    static const char domain[] = "residual.set.1";
    crypto_generichash_state h;
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
    }
    crypto_generichash_init(&h, NULL, 0, 32);
    crypto_generichash_update(&h, (const uint8_t *)domain, sizeof domain - 1);
    for (uint32_t i = 0; i < c->n; i++) {
        uint8_t weight[4];
        be_put(weight, (uint32_t)c->part[i].weight_q16, 4);
        crypto_generichash_update(&h, c->part[i].adapter, 32);
        crypto_generichash_update(&h, weight, 4);
    }
    crypto_generichash_final(&h, c->id, 32);
    return STATUS_OK;
}
