/* Means with forgetting, robust to a step that the machine interrupted: one sample moves a mean by
 * a few times its value at most. A row's cost is what a mixed step took beyond its decodes, so few
 * rows tell little about it and weigh little. Rows differ: those late in a prompt read more, so the
 * cost follows dear ones at once and forgets them slowly. */
#include "server/engine/pace.h"
#include "server/base/check.h"

#define FRESH_STEPS     64 /* a time of decodes is taken again after as many steps */
#define ROWS_UNKNOWN    64 /* beside decodes before a row has been timed */
#define DECODE_WEIGHT   0.25
#define ROW_RISE        0.8
#define ROW_FALL        0.05
#define ROW_WEIGHT_HALF 32 /* as many rows weigh half of that */

void pace_init(struct pace *p, uint32_t stretch)
{
    *p = (struct pace){.stretch = stretch};
}

/* 1, 2, 3, 4-5, 6-7, 8-11, 12-15, ... */
static uint32_t bucket_of(uint32_t decodes)
{
    uint32_t log = 31 - (uint32_t)__builtin_clz(decodes | 1);
    uint32_t half = log > 0 ? decodes >> (log - 1) & 1 : 0;
    return MIN(2 * log + half, PACE_BUCKETS - 1);
}

double pace_decode_ns(const struct pace *p, uint32_t decodes)
{
    return decodes > 0 ? p->decode_ns[bucket_of(decodes)] : 0;
}

uint32_t pace_rows(const struct pace *p, uint32_t decodes, uint32_t rows_max)
{
    uint32_t b = bucket_of(decodes);
    if (p->stretch == 0 || decodes == 0)
        return rows_max;
    if (p->decode_ns[b] == 0 || p->decode_age[b] >= FRESH_STEPS)
        return 0;
    double spare = p->decode_ns[b] * ((double)p->stretch / 100.0 - 1.0);
    if (p->row_ns <= 0)
        return MIN(ROWS_UNKNOWN, rows_max);
    if (spare >= p->row_ns * rows_max)
        return rows_max;
    return MIN(MAX((uint32_t)(spare / p->row_ns), PACE_ROWS_MIN), rows_max);
}

static double blend(double mean, double sample, double weight)
{
    if (mean <= 0)
        return MAX(sample, 0);
    double moved = mean + weight * (MIN(sample, 5 * mean) - mean);
    return MAX(moved, mean / 2);
}

void pace_learn(struct pace *p, uint32_t decodes, uint32_t others, uint64_t ns)
{
    uint32_t b = bucket_of(decodes);
    if (decodes == 0)
        return;
    if (others == 0) {
        p->decode_ns[b] = MAX(blend(p->decode_ns[b], (double)ns, DECODE_WEIGHT), 1.0);
        p->decode_age[b] = 0;
        return;
    }
    p->decode_age[b]++;
    p->steps_beside++;
    if (p->decode_ns[b] == 0)
        return;
    p->steps_over += p->stretch > 0 && (double)ns * 100.0 > p->decode_ns[b] * p->stretch;
    double cost = ((double)ns - p->decode_ns[b]) / others;
    double weight = (cost > p->row_ns ? ROW_RISE : ROW_FALL) * others / (others + ROW_WEIGHT_HALF);
    p->row_ns = blend(p->row_ns, cost, weight);
}
