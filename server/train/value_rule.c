/* See value_rule.h. */
#include "server/train/value_rule.h"
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/base/philox.h"

#include <math.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#define DEAL_DRAW 0x6465616c /* of dealing rows into parts */

/* ---- repeated rows ---- */

struct row_key {
    uint8_t digest[16];
    uint32_t row;
};

static int by_digest(const void *a, const void *b)
{
    const struct row_key *x = a, *y = b;
    int c = memcmp(x->digest, y->digest, sizeof(x->digest));
    return c ? c : (x->row > y->row) - (x->row < y->row);
}

static struct row_key *row_keys(const struct training_rows *rows)
{
    struct row_key *key = mem_try_array((size_t)rows->n + 1, sizeof(*key));
    for (uint32_t i = 0; i < rows->n && key; i++) {
        const int32_t *ids = rows->ids + rows->begin[i];
        size_t bytes = (size_t)(rows->begin[i + 1] - rows->begin[i]) * sizeof(*ids);
        crypto_generichash(key[i].digest, sizeof(key[i].digest), (const uint8_t *)ids, bytes, NULL,
                           0);
        key[i].row = i;
    }
    if (key)
        qsort(key, rows->n, sizeof(*key), by_digest);
    return key;
}

enum status value_repeats(uint32_t *repeat, const struct training_rows *rows, struct errtext *err)
{
    struct row_key *key = row_keys(rows);
    if (!key)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %u rows", rows->n);
    for (uint32_t i = 0, first = 0; i < rows->n; i++) {
        if (memcmp(key[i].digest, key[first].digest, sizeof(key[i].digest)) != 0)
            first = i;
        repeat[key[i].row] = key[first].row;
    }
    mem_free(key);
    return STATUS_OK;
}

enum status value_check_apart(const struct training_rows *learned, const struct training_rows *held,
                              struct errtext *err)
{
    struct row_key *a = row_keys(learned), *b = row_keys(held);
    enum status st = a && b ? STATUS_OK : err_set(err, STATUS_NO_MEMORY, "no memory for the rows");
    for (uint32_t i = 0, k = 0; !st && i < learned->n && k < held->n;) {
        int c = memcmp(a[i].digest, b[k].digest, sizeof(a[i].digest));
        if (c == 0)
            st = err_set(err, STATUS_INVALID,
                         "held-out row %u is row %u of what is learned: it can judge nobody",
                         b[k].row, a[i].row);
        i += c < 0;
        k += c > 0;
    }
    mem_free(a);
    mem_free(b);
    return st;
}

/* ---- parts ---- */

static uint32_t draw_below(uint32_t n, uint32_t group, uint64_t seed)
{
    uint32_t out[4];
    const uint32_t ctr[4] = {n, group, DEAL_DRAW, 0};
    philox4x32(out, ctr, seed);
    return (uint32_t)((uint64_t)out[0] * n >> 32);
}

enum status value_deal(uint32_t *part, const uint32_t *group, uint32_t n, uint32_t groups,
                       uint32_t parts, uint64_t seed, struct errtext *err)
{
    uint32_t *begin = mem_try_array((size_t)groups + 2, sizeof(*begin));
    uint32_t *row = mem_try_array((size_t)n + 1, sizeof(*row)), next = 0;
    if (!begin || !row) {
        mem_free(begin);
        mem_free(row);
        return err_set(err, STATUS_NO_MEMORY, "no memory for %u rows", n);
    }
    for (uint32_t i = 0; i < n; i++) {
        part[i] = UINT32_MAX;
        if (group[i] < groups)
            begin[group[i] + 2]++;
    }
    for (uint32_t g = 2; g < groups + 2; g++)
        begin[g] += begin[g - 1];
    for (uint32_t i = 0; i < n; i++) { /* afterwards begin[g + 1] is where g's rows end */
        if (group[i] < groups)
            row[begin[group[i] + 1]++] = i;
    }
    for (uint32_t g = 0; g < groups; g++) {
        uint32_t *own = row + begin[g], count = begin[g + 1] - begin[g];
        for (uint32_t i = count; i > 1; i--) {
            uint32_t k = draw_below(i, g, seed), kept = own[i - 1];
            own[i - 1] = own[k];
            own[k] = kept;
        }
        for (uint32_t i = 0; i < count; i++)
            part[own[i]] = next++ % parts;
    }
    mem_free(begin);
    mem_free(row);
    return STATUS_OK;
}

/* ---- figures ---- */

double value_t95(uint32_t df)
{
    static const double table[] = {12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306,
                                   2.262,  2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
                                   2.110,  2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064,
                                   2.060,  2.056, 2.052, 2.048, 2.045, 2.042};
    CHECK(df > 0);
    return df <= ARRAY_COUNT(table) ? table[df - 1] : 1.96 + 2.5 / df;
}

static int64_t micronats(double nats)
{
    return llround(nats * 1e6);
}

void value_figure_of(struct value_figure *out, const struct value_unit *unit, uint32_t n,
                     uint32_t seeds)
{
    double nats = 0, off = 0;
    uint64_t tokens = 0;
    uint32_t used = 0;
    *out = (struct value_figure){0};
    for (uint32_t i = 0; i < n; i++) {
        nats += unit[i].nats;
        tokens += unit[i].tokens;
        used += unit[i].tokens > 0;
    }
    if (!tokens)
        return;
    double mean = nats / (double)tokens;
    for (uint32_t i = 0; i < n; i++) {
        double d = unit[i].nats - mean * (double)unit[i].tokens;
        off += d * d;
    }
    double half =
        used > 1 ? value_t95(used - 1) * sqrt(off * used / (used - 1)) / (double)tokens : INFINITY;
    half = fmin(half, 1e6); /* of one unit nothing is known */
    out->value = micronats(mean);
    out->low = micronats(mean - half);
    out->high = micronats(mean + half);
    out->total = micronats(nats / seeds);
    out->tokens = tokens / seeds;
}
