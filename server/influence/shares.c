/* Owners with no weight get nothing from LR, so each division runs over the others alone: an index
 * may have a million owners, an answer touches few. */
#include "server/influence/shares.h"
#include "chain_client/lr.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <string.h>

/* E9 divided by the weights that are not 0. */
struct division {
    struct u256 *weight; /* [count] */
    uint32_t *place;     /* [count] ascending */
    u128 *part;          /* [count] */
    uint32_t count;
};

static void division_fini(struct division *d)
{
    mem_free(d->weight);
    mem_free(d->place);
    mem_free(d->part);
}

static bool division_init(struct division *d, uint32_t count_max)
{
    *d = (struct division){.weight = mem_try_array(count_max, sizeof(*d->weight)),
                           .place = mem_try_array(count_max, sizeof(*d->place)),
                           .part = mem_try_array(count_max, sizeof(*d->part))};
    return d->weight && d->place && d->part;
}

static void division_put(struct division *d, uint32_t place, u128 weight)
{
    if (weight == 0)
        return;
    d->weight[d->count] = u256_from(weight);
    d->place[d->count++] = place;
}

/* Into ppb, which is all zero; nothing without a weight. Empties the division. */
static enum status division_run(struct division *d, uint32_t *ppb)
{
    enum status st = d->count ? lr_split(d->part, TAIL_E9, d->weight, d->count) : STATUS_OK;
    for (uint32_t i = 0; !st && i < d->count; i++)
        ppb[d->place[i]] = (uint32_t)d->part[i];
    d->count = 0;
    return st;
}

enum status shares_prior(uint32_t *prior_ppb, const uint32_t *documents, uint32_t count)
{
    struct division d;
    enum status st = division_init(&d, count) ? STATUS_OK : STATUS_NO_MEMORY;
    memset(prior_ppb, 0, count * sizeof(*prior_ppb));
    for (uint32_t i = 0; !st && i < count; i++)
        division_put(&d, i, documents[i]);
    if (!st)
        st = d.count ? division_run(&d, prior_ppb) : STATUS_INVALID;
    division_fini(&d);
    return st;
}

/* ---- the signals ---- */

struct signals {
    struct division division;
    uint32_t *events, *spans, *influence; /* [owner_count] ppb */
    bool *counted;                        /* [owner_count] whose spans S2 counts */
    bool has_events, has_spans;
};

static void signals_fini(struct signals *s)
{
    division_fini(&s->division);
    mem_free(s->events);
    mem_free(s->spans);
    mem_free(s->influence);
    mem_free(s->counted);
}

static bool signals_init(struct signals *s, uint32_t count)
{
    *s = (struct signals){.events = mem_try_array(count, sizeof(*s->events)),
                          .spans = mem_try_array(count, sizeof(*s->spans)),
                          .influence = mem_try_array(count, sizeof(*s->influence)),
                          .counted = mem_try_array(count, sizeof(*s->counted))};
    return division_init(&s->division, count) && s->events && s->spans && s->influence &&
           s->counted;
}

/* S2, which is as it was while the same owners count. */
static enum status fill_spans(struct signals *s, const struct shares_in *in)
{
    struct division *d = &s->division;
    bool same = true;
    for (uint32_t i = 0; i < in->owner_count; i++) {
        bool counts = s->events[i] && in->spans[i];
        same &= counts == s->counted[i];
        s->counted[i] = counts;
    }
    if (same)
        return STATUS_OK;
    memset(s->spans, 0, in->owner_count * sizeof(*s->spans));
    for (uint32_t i = 0; i < in->owner_count; i++)
        division_put(d, i, s->counted[i] ? in->spans[i] : 0);
    s->has_spans = d->count > 0;
    return division_run(d, s->spans);
}

/* `events` are those of `in`, or of a part of the index. May be filled again. */
static enum status signals_fill(struct signals *s, const struct shares_in *in, const u128 *events)
{
    struct division *d = &s->division;
    size_t bytes = in->owner_count * sizeof(*s->events);
    memset(s->events, 0, bytes);
    memset(s->influence, 0, bytes);
    for (uint32_t i = 0; i < in->owner_count; i++)
        division_put(d, i, events[i]);
    s->has_events = d->count > 0;
    enum status st = division_run(d, s->events);
    if (!st && in->spans)
        st = fill_spans(s, in);
    for (uint32_t i = 0; !st && i < in->owner_count; i++)
        division_put(d, i, (u128)in->w1 * s->events[i] + (u128)in->w2 * s->spans[i]);
    return st ? st : division_run(d, s->influence);
}

/* ---- the 64 largest ---- */

static uint64_t final_weight(const struct shares_in *in, const struct signals *s, uint32_t i)
{
    uint64_t lambda = s->has_events ? in->lambda_ppb : 0;
    return lambda * s->influence[i] + (TAIL_E9 - lambda) * in->prior_ppb[i];
}

/* Places of the 64 largest, ascending; ties to the lower place: a later equal one never displaces.
 */
static uint32_t keep_largest(const struct shares_in *in, const struct signals *s,
                             uint32_t place[TAIL_SHARES_MAX], uint64_t weight[TAIL_SHARES_MAX])
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < in->owner_count; i++) {
        uint64_t f = final_weight(in, s, i);
        uint32_t out = count;
        if (f == 0)
            continue;
        if (count == TAIL_SHARES_MAX) { /* the smallest goes, of equal ones the last */
            out = 0;
            for (uint32_t k = 1; k < count; k++)
                out = weight[k] <= weight[out] ? k : out;
            if (weight[out] >= f)
                continue;
            count--;
            memmove(&place[out], &place[out + 1], (count - out) * sizeof(*place));
            memmove(&weight[out], &weight[out + 1], (count - out) * sizeof(*weight));
        }
        place[count] = i;
        weight[count++] = f;
    }
    return count;
}

static enum status finish(struct shares *out, const struct shares_in *in, const struct signals *s)
{
    uint32_t place[TAIL_SHARES_MAX];
    uint64_t weight[TAIL_SHARES_MAX];
    struct u256 wide[TAIL_SHARES_MAX];
    u128 part[TAIL_SHARES_MAX];
    uint32_t count = keep_largest(in, s, place, weight);
    for (uint32_t i = 0; i < count; i++)
        wide[i] = u256_from(weight[i]);
    enum status st = count ? lr_split(part, TAIL_E9, wide, count) : STATUS_INVALID;
    *out = (struct shares){.has_events = s->has_events, .has_spans = s->has_spans};
    for (uint32_t i = 0; !st && i < count; i++) {
        uint32_t ppb = (uint32_t)part[i], o = place[i];
        if (ppb)
            out->item[out->count++] = (struct shares_item){.owner = o,
                                                           .ppb = ppb,
                                                           .events_ppb = s->events[o],
                                                           .spans_ppb = s->spans[o],
                                                           .prior_ppb = in->prior_ppb[o],
                                                           .low_ppb = ppb,
                                                           .high_ppb = ppb};
    }
    return st;
}

/* What each owner of `out` would have without a part of the index. */
static void widen(struct shares *out, const struct shares *without)
{
    for (uint32_t i = 0, k = 0; i < out->count; i++) {
        while (k < without->count && without->item[k].owner < out->item[i].owner)
            k++;
        bool found = k < without->count && without->item[k].owner == out->item[i].owner;
        uint32_t ppb = found ? without->item[k].ppb : 0;
        out->item[i].low_ppb = MIN(out->item[i].low_ppb, ppb);
        out->item[i].high_ppb = MAX(out->item[i].high_ppb, ppb);
    }
}

static enum status spread(struct shares *out, const struct shares_in *in, struct signals *s)
{
    enum status st = STATUS_OK;
    for (uint32_t q = 0; !st && q < SHARES_SUBS; q++) {
        struct shares without;
        if (memcmp(in->sub[q], in->events, in->owner_count * sizeof(*in->events)) == 0)
            continue; /* nothing of it was left out */
        st = signals_fill(s, in, in->sub[q]);
        if (!st)
            st = finish(&without, in, s);
        if (!st)
            widen(out, &without);
    }
    return st;
}

enum status shares_compute(struct shares *out, const struct shares_in *in)
{
    struct signals s;
    enum status st = signals_init(&s, in->owner_count) ? STATUS_OK : STATUS_NO_MEMORY;
    CHECK(in->lambda_ppb <= TAIL_E9);
    if (!st)
        st = signals_fill(&s, in, in->events);
    if (!st)
        st = finish(out, in, &s);
    if (!st && in->sub)
        st = spread(out, in, &s);
    signals_fini(&s);
    return st;
}
