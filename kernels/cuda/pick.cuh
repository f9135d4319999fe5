/* What the kernels of sampling share: the job, a row's ruler (from logits to buckets and weights),
 * and sums of weights as integers.
 *
 * Weight    e^((l - max)/T) in f64, then an integer in units of 2^-44: sums do not depend on their
 *           order, so neither atomics nor the split of a row over blocks shows in the result
 * Bucket    1024 of them by logit, the best first; weights below 2^-46 are all in the last
 * Included  by sample.cu and pick.cu. */
#ifndef RS_KERNELS_CUDA_PICK_CUH
#define RS_KERNELS_CUDA_PICK_CUH

#include "kernels/cuda/sample.cuh"

#define WEIGHT_ONE  17592186044416.0 /* 2^44: 2^19 candidates of weight 1 fit u64 */
#define WEIGHT_BITS 46.0f            /* -log2 of a weight that counts as 0, and a little */

struct sample_job {
    const float *logits;        /* [n_row, n_vocab] */
    float *adjusted;            /* [n_row, n_vocab], of rows that are adjusted */
    struct tile_stat *stat;     /* [n_row, n_tile] */
    uint32_t *bucket;           /* [n_row, BUCKET_WORDS] */
    struct sample_out *out;     /* [n_row] */
    int32_t *history, *latest;  /* as in struct cuda_head */
    const struct pick_row *row; /* NULL: top_logprobs */
    const struct sample_bias *bias;
    const int32_t *token;
    const int32_t *target; /* of top_logprobs */
    const uint32_t *top_count;
    uint32_t n_vocab, n_tile, history_stride;
};

DEVICE const float *pick_logits(const struct sample_job *j, uint32_t row)
{
    return (j->row[row].adjusted ? j->adjusted : j->logits) + (size_t)row * j->n_vocab;
}

/* pick.cu: rows 0 .. n_row-1 of the job, behind stats (and weigh). */
void pick_launch(const struct sample_job *j, uint32_t n_row, void *stream);
/* The same for given targets: job.target, job.top_count. */
void top_launch(const struct sample_job *j, uint32_t n_row, void *stream);

/* Where the i-th logit of this lane is in its tile. */
DEVICE uint32_t lane_element(uint32_t i)
{
    return 4 * (i / 4 * LANES + lane_id()) + i % 4;
}

/* ---- weights and buckets of a row ---- */

struct ruler {
    float max, min_p;
    float bucket_scale;  /* buckets a logit */
    double scale;        /* log2(e) / T */
    uint32_t best, tile; /* key of max, and the first tile that has it */
};

/* Whole warp. Weights below 2^-46 are all in the last bucket. */
DEVICE struct ruler ruler_make(const struct sample_job *j, uint32_t row)
{
    const struct pick_row *r = &j->row[row];
    const struct tile_stat *t = j->stat + (size_t)row * j->n_tile;
    uint64_t best = ~0ull;
    float low = INFINITY;
    for (uint32_t i = lane_id(); i < j->n_tile; i += LANES) {
        uint64_t here = (uint64_t)t[i].pick_key << 32 | i;
        best = here < best ? here : best;
        low = fminf(low, t[i].low);
    }
    best = warp_min_u64(best);
    low = -warp_max(-low);
    struct ruler u;
    u.best = (uint32_t)(best >> 32);
    u.tile = (uint32_t)best;
    u.max = key_logit(u.best);
    u.min_p = r->min_p;
    u.scale = r->scale;
    float range = fminf(u.max - low, WEIGHT_BITS / (float)r->scale);
    u.bucket_scale = (float)(BUCKETS - 1) / fmaxf(range, 1e-30f);
    return u;
}

/* Does not fall as l falls; NaN is behind everything. */
DEVICE uint32_t bucket_of(const struct ruler *u, float l)
{
    return (uint32_t)fminf((u->max - l) * u->bucket_scale, (float)(BUCKETS - 1));
}

/* Whether a logit is a candidate, and its weight in units of 2^-44. */
DEVICE bool weigh_logit(const struct ruler *u, float l, uint64_t *weight)
{
    double w = l == l ? exp2(((double)l - (double)u->max) * u->scale) : 0;
    *weight = (uint64_t)(w * WEIGHT_ONE + 0.5);
    return w >= (double)u->min_p;
}

/* A u64 sum in two words: whoever wraps the low word carries. */
DEVICE void add_weight(uint32_t *lo, uint32_t *hi, uint64_t v)
{
    uint32_t low = (uint32_t)v, high = (uint32_t)(v >> 32);
    if (low)
        high += (uint32_t)(atomic_add_u32(lo, low) + low) < low;
    if (high)
        atomic_add_u32(hi, high);
}

#endif
