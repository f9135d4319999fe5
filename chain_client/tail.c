/* Canonical bytes of the four tails. Every decoder reads into the caller's struct, then runs the
 * check that the encoder runs before writing, so what one accepts the other produces. Ids and
 * payees are strictly ascending, which leaves one order and no repeats; sums are exact. */
#include "chain_client/tail.h"
#include "server/base/check.h"

#include <math.h>
#include <string.h>

static enum status set_check(const struct tail_set *set, struct errtext *err)
{
    if (set->count > TAIL_ADAPTERS_MAX)
        return err_param(err, STATUS_INVALID, "set", "set: %u adapters, at most %d", set->count,
                         TAIL_ADAPTERS_MAX);
    for (uint32_t i = 0; i < set->count; i++) {
        if (!set->adapter[i].weight)
            return err_param(err, STATUS_INVALID, "set", "set: weight of adapter %u is 0", i);
        if (i && memcmp(set->adapter[i - 1].id, set->adapter[i].id, 32) >= 0)
            return err_param(err, STATUS_INVALID, "set",
                             "set: id of adapter %u is not above the one before", i);
    }
    return STATUS_OK;
}

enum status tail_set_encode(uint8_t *out, size_t *len, const struct tail_set *set,
                            struct errtext *err)
{
    enum status st = set_check(set, err);
    if (st)
        return st;
    for (uint32_t i = 0; i < set->count; i++) {
        memcpy(out + 36 * i, set->adapter[i].id, 32);
        be_put(out + 36 * i + 32, (uint32_t)set->adapter[i].weight, 4);
    }
    *len = 36 * set->count;
    return STATUS_OK;
}

enum status tail_set_decode(struct tail_set *set, const uint8_t *data, size_t len,
                            struct errtext *err)
{
    memset(set, 0, sizeof(*set));
    if (len % 36 || len > TAIL_SET_BYTES_MAX)
        return err_param(err, STATUS_INVALID, "set",
                         "set: %zu bytes, expected 36 per adapter and at most %d adapters", len,
                         TAIL_ADAPTERS_MAX);
    set->count = (uint32_t)(len / 36);
    for (uint32_t i = 0; i < set->count; i++) {
        memcpy(set->adapter[i].id, data + 36 * i, 32);
        set->adapter[i].weight = (int32_t)(uint32_t)be_get(data + 36 * i + 32, 4);
    }
    return set_check(set, err);
}

static enum status tariff_check(const struct tail_tariff *tariff, struct errtext *err)
{
    if (tariff->count < 1 || tariff->count > 1 + TAIL_ADAPTERS_MAX)
        return err_param(err, STATUS_INVALID, "tariff", "tariff: %u prices, expected 1 to %d",
                         tariff->count, 1 + TAIL_ADAPTERS_MAX);
    for (uint32_t i = 0; i < tariff->count; i++) {
        if (tariff->price[i].in >> TAIL_PRICE_BITS || tariff->price[i].out >> TAIL_PRICE_BITS)
            return err_param(err, STATUS_INVALID, "tariff", "tariff: price %u is 2^%d or more", i,
                             TAIL_PRICE_BITS);
    }
    return STATUS_OK;
}

enum status tail_tariff_encode(uint8_t *out, size_t *len, const struct tail_tariff *tariff,
                               struct errtext *err)
{
    enum status st = tariff_check(tariff, err);
    if (st)
        return st;
    for (uint32_t i = 0; i < tariff->count; i++) {
        be_put(out + 32 * i, tariff->price[i].in, 16);
        be_put(out + 32 * i + 16, tariff->price[i].out, 16);
    }
    *len = 32 * tariff->count;
    return STATUS_OK;
}

enum status tail_tariff_decode(struct tail_tariff *tariff, const uint8_t *data, size_t len,
                               struct errtext *err)
{
    memset(tariff, 0, sizeof(*tariff));
    if (len % 32 || len < 32 || len > TAIL_TARIFF_BYTES_MAX)
        return err_param(err, STATUS_INVALID, "tariff",
                         "tariff: %zu bytes, expected 32 for each of 1 to %d prices", len,
                         1 + TAIL_ADAPTERS_MAX);
    tariff->count = (uint32_t)(len / 32);
    for (uint32_t i = 0; i < tariff->count; i++) {
        tariff->price[i].in = be_get(data + 32 * i, 16);
        tariff->price[i].out = be_get(data + 32 * i + 16, 16);
    }
    return tariff_check(tariff, err);
}

/* The one table of the params tail, in order; the offsets are the sums of the widths. */
static const struct params_field {
    const char *name;
    uint16_t offset;
    uint8_t width; /* 4 with is_float: IEEE bits */
    bool is_float;
    size_t member;
} params_fields[] = {
#define FIELD(text, at, width, is_float, member)                                                   \
    {                                                                                              \
        text, at, width, is_float, offsetof(struct tail_params, member)                            \
    }
    FIELD("n", 0, 2, false, n),
    FIELD("maxTokens", 2, 4, false, max_tokens),
    FIELD("minTokens", 6, 4, false, min_tokens),
    FIELD("temperature", 10, 4, true, temperature),
    FIELD("topP", 14, 4, true, top_p),
    FIELD("topK", 18, 4, false, top_k),
    FIELD("minP", 22, 4, true, min_p),
    FIELD("presencePenalty", 26, 4, true, presence_penalty),
    FIELD("frequencyPenalty", 30, 4, true, frequency_penalty),
    FIELD("repetitionPenalty", 34, 4, true, repetition_penalty),
    FIELD("seed", 38, 8, false, seed),
    FIELD("flags", 46, 1, false, flags),
    FIELD("stopHash", 47, 32, false, stop_hash),
    FIELD("biasHash", 79, 32, false, bias_hash),
    FIELD("templateDigest", 111, 32, false, template_digest),
#undef FIELD
};

static enum status params_check(const struct tail_params *params, struct errtext *err)
{
    for (size_t i = 0; i < ARRAY_COUNT(params_fields); i++) {
        const struct params_field *f = &params_fields[i];
        float v;
        if (!f->is_float)
            continue;
        memcpy(&v, (const char *)params + f->member, sizeof(v));
        if (!isfinite(v) || (v == 0 && signbit(v)))
            return err_param(err, STATUS_INVALID, f->name,
                             "params: %s is not a finite number, or is -0", f->name);
    }
    if (params->flags & ~(TAIL_PARAMS_IGNORE_EOS | TAIL_PARAMS_SEED_GIVEN))
        return err_param(err, STATUS_INVALID, "flags", "params: flags 0x%02x has unknown bits",
                         params->flags);
    return STATUS_OK;
}

enum status tail_params_encode(uint8_t out[TAIL_PARAMS_BYTES], const struct tail_params *params,
                               struct errtext *err)
{
    enum status st = params_check(params, err);
    if (st)
        return st;
    for (size_t i = 0; i < ARRAY_COUNT(params_fields); i++) {
        const struct params_field *f = &params_fields[i];
        const char *member = (const char *)params + f->member;
        uint64_t v = 0;
        memcpy(&v, member, MIN(f->width, sizeof(v))); /* little-endian host: the low bytes */
        if (f->width == 32)
            memcpy(out + f->offset, member, 32);
        else
            be_put(out + f->offset, v, f->width);
    }
    return STATUS_OK;
}

enum status tail_params_decode(struct tail_params *params, const uint8_t *data, size_t len,
                               struct errtext *err)
{
    memset(params, 0, sizeof(*params));
    if (len != TAIL_PARAMS_BYTES)
        return err_param(err, STATUS_INVALID, "params", "params: %zu bytes, expected %d", len,
                         TAIL_PARAMS_BYTES);
    for (size_t i = 0; i < ARRAY_COUNT(params_fields); i++) {
        const struct params_field *f = &params_fields[i];
        char *member = (char *)params + f->member;
        uint64_t v = (uint64_t)be_get(data + f->offset, MIN(f->width, sizeof(v)));
        if (f->width == 32)
            memcpy(member, data + f->offset, 32);
        else
            memcpy(member, &v, f->width);
    }
    return params_check(params, err);
}

static enum status shares_check(const struct tail_credit *credit, uint32_t adapter,
                                struct errtext *err)
{
    uint64_t sum = 0;
    if (credit->share_count > TAIL_SHARES_MAX)
        return err_param(err, STATUS_INVALID, "influence",
                         "influence: adapter %u lists %u payees, at most %d", adapter,
                         credit->share_count, TAIL_SHARES_MAX);
    for (uint32_t i = 0; i < credit->share_count; i++) {
        sum += credit->share[i].ppb;
        if (i && memcmp(credit->share[i - 1].payee, credit->share[i].payee, 20) >= 0)
            return err_param(err, STATUS_INVALID, "influence",
                             "influence: adapter %u, payee %u is not above the one before", adapter,
                             i);
    }
    if (credit->share_count && sum != TAIL_E9)
        return err_param(err, STATUS_INVALID, "influence",
                         "influence: ppb of adapter %u sum to %llu, expected %u", adapter,
                         (unsigned long long)sum, TAIL_E9);
    return STATUS_OK;
}

static enum status influence_check(const struct tail_influence *influence, struct errtext *err)
{
    uint64_t gains = 0;
    if (influence->count < 1 || influence->count > TAIL_ADAPTERS_MAX)
        return err_param(err, STATUS_INVALID, "influence",
                         "influence: %u adapters, expected 1 to %d", influence->count,
                         TAIL_ADAPTERS_MAX);
    for (uint32_t i = 0; i < influence->count; i++) {
        enum status st = shares_check(&influence->adapter[i], i, err);
        if (st)
            return st;
        gains += influence->adapter[i].gain;
    }
    if (gains != TAIL_E9)
        return err_param(err, STATUS_INVALID, "influence",
                         "influence: gains sum to %llu, expected %u", (unsigned long long)gains,
                         TAIL_E9);
    return STATUS_OK;
}

enum status tail_influence_encode(uint8_t *out, size_t *len, const struct tail_influence *influence,
                                  struct errtext *err)
{
    uint8_t *p = out;
    enum status st = influence_check(influence, err);
    if (st)
        return st;
    for (uint32_t i = 0; i < influence->count; i++) {
        const struct tail_credit *credit = &influence->adapter[i];
        be_put(p, credit->gain, 4);
        p[4] = (uint8_t)credit->share_count;
        p += 5;
        for (uint32_t k = 0; k < credit->share_count; k++, p += 24) {
            memcpy(p, credit->share[k].payee, 20);
            be_put(p + 20, credit->share[k].ppb, 4);
        }
    }
    *len = (size_t)(p - out);
    return STATUS_OK;
}

enum status tail_influence_decode(struct tail_influence *influence, const uint8_t *data, size_t len,
                                  struct errtext *err)
{
    size_t at = 0;
    influence->count = 0;
    while (at < len && influence->count < TAIL_ADAPTERS_MAX) {
        struct tail_credit *credit = &influence->adapter[influence->count];
        size_t shares = len - at >= 5 ? data[at + 4] : 0;
        if (len - at < 5 || shares > TAIL_SHARES_MAX || len - at - 5 < 24 * shares)
            return err_param(err, STATUS_INVALID, "influence",
                             "influence: adapter %u is cut off or lists more than %d payees",
                             influence->count, TAIL_SHARES_MAX);
        credit->gain = (uint32_t)be_get(data + at, 4);
        credit->share_count = (uint32_t)shares;
        at += 5;
        for (size_t k = 0; k < shares; k++, at += 24) {
            memcpy(credit->share[k].payee, data + at, 20);
            credit->share[k].ppb = (uint32_t)be_get(data + at + 20, 4);
        }
        influence->count++;
    }
    if (at != len)
        return err_param(err, STATUS_INVALID, "influence",
                         "influence: %zu bytes follow the last adapter", len - at);
    return influence_check(influence, err);
}
