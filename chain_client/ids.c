/* BLAKE2b-256 with unkeyed libsodium state. Every variable-length part carries its length, so no
 * two different inputs join to the same bytes. */
#include "chain_client/ids.h"
#include "server/base/check.h"
#include "server/base/hex.h"

#include <string.h>

void ids_begin(struct ids_digest *d, const char *label)
{
    CHECK(crypto_generichash_init(&d->state, NULL, 0, 32) == 0);
    ids_bytes(d, label, strlen(label));
}

void ids_bytes(struct ids_digest *d, const void *data, size_t len)
{
    if (len)
        CHECK(crypto_generichash_update(&d->state, data, len) == 0);
}

static void put_int(struct ids_digest *d, uint64_t v, size_t bytes)
{
    uint8_t word[8];
    be_put(word, v, bytes);
    ids_bytes(d, word, bytes);
}

void ids_u8(struct ids_digest *d, uint8_t v)
{
    put_int(d, v, 1);
}

void ids_u32(struct ids_digest *d, uint32_t v)
{
    put_int(d, v, 4);
}

void ids_u64(struct ids_digest *d, uint64_t v)
{
    put_int(d, v, 8);
}

void ids_f64(struct ids_digest *d, double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof(bits));
    put_int(d, bits, 8);
}

void ids_text(struct ids_digest *d, const char *s, size_t len)
{
    CHECK(len <= UINT32_MAX);
    ids_u32(d, (uint32_t)len);
    ids_bytes(d, s, len);
}

void ids_end(struct ids_digest *d, uint8_t out[32])
{
    CHECK(crypto_generichash_final(&d->state, out, 32) == 0);
}

void ids_hash(uint8_t out[32], const void *data, size_t len)
{
    struct ids_digest d;
    ids_begin(&d, "");
    ids_bytes(&d, data, len);
    ids_end(&d, out);
}

void ids_composition(uint8_t out[32], const struct tail_set *set)
{
    struct ids_digest d;
    CHECK(set->count <= TAIL_ADAPTERS_MAX);
    ids_begin(&d, "residual.set.1");
    for (uint32_t i = 0; i < set->count; i++) {
        CHECK(i == 0 || memcmp(set->adapter[i - 1].id, set->adapter[i].id, 32) < 0);
        ids_bytes(&d, set->adapter[i].id, 32);
        ids_u32(&d, (uint32_t)set->adapter[i].weight);
    }
    ids_end(&d, out);
}

void ids_engine(uint8_t out[32], const struct ids_engine_parts *p)
{
    struct ids_digest d;
    ids_begin(&d, "residual.engine.1");
    ids_text(&d, p->backend, strlen(p->backend));
    ids_text(&d, p->dtype, strlen(p->dtype));
    ids_u8(&d, p->deterministic ? 1 : 0);
    ids_text(&d, p->kernel_version, strlen(p->kernel_version));
    ids_text(&d, p->unicode, strlen(p->unicode));
    ids_end(&d, out);
}
