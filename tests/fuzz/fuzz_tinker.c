/* The body of forward_backward of Tinker. Whatever the bytes: what is taken has arrays of the
 * lengths that it says, spans that tile them, and a loss whose gradient is finite; what is refused
 * says why. */
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/train/tinker_batch.h"

#include <math.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void look(const struct tinker_batch *b, const struct tinker_datum *d)
{
    struct tinker_loss l = tinker_batch_loss(b, d);
    uint64_t tiled = 0;
    for (uint32_t i = 0; i < d->n; i++) {
        CHECK(d->target[i] >= 0);
        d->logprob[i] = (float)(d->ids[i] % 16);
    }
    for (uint32_t i = 0; i < d->n_span; i++) {
        CHECK(strlen(d->span[i].sequence_id) < TINKER_ID_BYTES);
        tiled += d->span[i].length;
    }
    CHECK(d->n_span == 0 || tiled == d->n);
    float *back = mem_array(d->n, sizeof(*back));
    (void)tinker_loss_of(&l, d->logprob, back);
    for (uint32_t i = 0; i < d->n; i++)
        CHECK(isfinite(back[i]));
    mem_free(back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct tinker_batch b;
    struct errtext err = ERRTEXT_INIT;
    if (tinker_batch_parse(&b, data, len, &err)) {
        CHECK(err.text[0]);
        return 0;
    }
    CHECK(b.n > 0 && b.model_id[0] && b.clip_low <= b.clip_high);
    for (uint32_t i = 0; i < b.n; i++)
        look(&b, &b.datum[i]);
    tinker_batch_fini(&b);
    return 0;
}
