/* Commitments and the draw. All of it is hashing in a fixed byte order; token ids enter as
 * big-endian u32 in blocks, since a long prompt is many thousand of them. */
#include "chain_client/commit.h"
#include "server/base/check.h"
#include "server/base/hex.h"

#include <string.h>

void commit_opening(uint8_t out[32], const uint8_t salt[32], enum commit_field field)
{
    uint8_t bytes[33];
    memcpy(bytes, salt, 32);
    bytes[32] = (uint8_t)field;
    keccak_256(out, bytes, sizeof(bytes));
}

void commit_begin(struct keccak *k, const uint8_t salt[32], enum commit_field field)
{
    uint8_t opening[32];
    commit_opening(opening, salt, field);
    commit_begin_opened(k, opening);
}

void commit_begin_opened(struct keccak *k, const uint8_t opening[32])
{
    keccak_init(k);
    keccak_update(k, opening, 32);
}

void commit_bytes(struct keccak *k, const void *data, size_t len)
{
    keccak_update(k, data, len);
}

static void put_u32(struct keccak *k, uint32_t v)
{
    uint8_t bytes[4];
    be_put(bytes, v, sizeof(bytes));
    keccak_update(k, bytes, sizeof(bytes));
}

void commit_ids(struct keccak *k, const uint32_t *ids, size_t count)
{
    uint8_t block[64 * 4];
    for (size_t at = 0; at < count;) {
        size_t n = MIN(count - at, sizeof(block) / 4);
        for (size_t i = 0; i < n; i++)
            be_put(block + 4 * i, ids[at + i], 4);
        keccak_update(k, block, 4 * n);
        at += n;
    }
}

void commit_choice(struct keccak *k, const uint32_t *ids, uint32_t count)
{
    put_u32(k, count);
    commit_ids(k, ids, count);
}

void commit_end(struct keccak *k, uint8_t out[32])
{
    keccak_final(k, out);
}

void commit_app(uint8_t out[32], const uint8_t salt[32], const uint8_t payer[20])
{
    struct keccak k;
    commit_begin(&k, salt, COMMIT_APP);
    commit_bytes(&k, payer, 20);
    commit_end(&k, out);
}

void commit_prompt(uint8_t out[32], const uint8_t salt[32], const uint32_t *ids, size_t count)
{
    struct keccak k;
    commit_begin(&k, salt, COMMIT_PROMPT);
    commit_ids(&k, ids, count);
    commit_end(&k, out);
}

void commit_stop_hash(uint8_t out[32], const struct commit_stop *stop)
{
    struct keccak k;
    keccak_init(&k);
    put_u32(&k, stop->text_count);
    for (uint32_t i = 0; i < stop->text_count; i++) {
        put_u32(&k, (uint32_t)stop->text_len[i]);
        keccak_update(&k, stop->text[i], stop->text_len[i]);
    }
    put_u32(&k, stop->token_count);
    commit_ids(&k, stop->token, stop->token_count);
    keccak_final(&k, out);
}

void commit_bias_hash(uint8_t out[32], const uint32_t *ids, const float *bias, uint32_t count)
{
    struct keccak k;
    keccak_init(&k);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t bits;
        CHECK(i == 0 || ids[i - 1] < ids[i]);
        memcpy(&bits, &bias[i], sizeof(bits));
        put_u32(&k, ids[i]);
        put_u32(&k, bits);
    }
    keccak_final(&k, out);
}

void commit_sample_seed(uint8_t seed[32], const uint8_t batch_hash[32], const uint8_t mix_hash[32])
{
    static const char label[] = "residual.sample.1";
    struct keccak k;
    keccak_init(&k);
    keccak_update(&k, label, sizeof(label) - 1);
    keccak_update(&k, batch_hash, 32);
    keccak_update(&k, mix_hash, 32);
    keccak_final(&k, seed);
}

bool commit_is_required(const struct commit_sample *s, const uint8_t *seed, uint32_t rate_ppb)
{
    uint8_t draw[32];
    struct keccak k;
    CHECK(rate_ppb <= TAIL_E9);
    if (!s->fee || !s->adapter_count || (s->adapter_count == 1 && !s->has_datanet))
        return false;
    if (rate_ppb == TAIL_E9)
        return true;
    uint8_t place[12];
    be_put(place, s->lane, 4);
    be_put(place + 4, s->seq, 8);
    keccak_init(&k);
    keccak_update(&k, seed, 32);
    keccak_update(&k, place, sizeof(place));
    keccak_final(&k, draw);
    return (uint64_t)be_get(draw, 4) * TAIL_E9 < (uint64_t)rate_ppb << 32;
}
