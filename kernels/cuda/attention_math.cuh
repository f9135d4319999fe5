/* The arithmetic of attention.cuh, for one warp and 16 pairs: lane (g, t) has pairs g and g+8
 * (index r = 0, 1 below).
 * Included  by attention.cuh only. */
#ifndef RS_KERNELS_CUDA_ATTENTION_MATH_CUH
#define RS_KERNELS_CUDA_ATTENTION_MATH_CUH

/* Scores, then weights, of 16 positions: s[n][2r + e] is pair r, position 8n + 2t + e. */
struct attn_scores {
    float s[2][4];
};

/* What a chunk, or all chunks so far, have summed. o[n] is 8 of d_head as mma returns it; sum: this
 * lane's share in a chunk, everything in a total. */
template <int n_out> struct attn_sums {
    float o[n_out][4];
    float max[2], sum[2];
};

template <int n_out> DEVICE void attn_sums_clear(struct attn_sums<n_out> *a)
{
    UNROLL
    for (int i = 0; i < n_out; i++)
        UNROLL
    for (int e = 0; e < 4; e++)
        a->o[i][e] = 0;
    UNROLL
    for (int r = 0; r < 2; r++) {
        a->max[r] = -INFINITY;
        a->sum[r] = 0;
    }
}

/* Rows 0..15 of a matrix of pairs as mma's first operand, slice k of d_head. */
template <int D, bool padded> DEVICE void attn_load_q(uint32_t q[4], const char *rows, uint32_t k)
{
    uint32_t lane = lane_id();
    ldmatrix_x4(q, rows + attn_at<D, padded>(lane % 16, 2 * k + lane / 16));
}

/* One slice of d_head of the scores of the 16 positions from row `tok` of a K tile. */
template <int D, bool padded>
DEVICE void attn_score(struct attn_scores *s, const uint32_t q[4], const char *k_tile, uint32_t tok,
                       uint32_t k)
{
    uint32_t lane = lane_id(), b[4];
    ldmatrix_x4(b,
                k_tile + attn_at<D, padded>(tok + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
    mma_16816(s->s[0], q, b);
    mma_16816(s->s[1], q, b + 2);
}

/* o[0], o[1] (16 of d_head, from 16*slice) += p V over the 16 positions from row `tok`. */
template <int D, bool padded>
DEVICE void attn_values(float o[2][4], const uint32_t p[4], const char *v_tile, uint32_t tok,
                        uint32_t slice)
{
    uint32_t lane = lane_id(), b[4];
    ldmatrix_x4_trans(b, v_tile + attn_at<D, padded>(tok + lane % 16, 2 * slice + lane / 16));
    mma_16816(o[0], p, b);
    mma_16816(o[1], p, b + 2);
}

/* What pair r, at position hi[r], does not see: later positions, and those before the window. */
DEVICE void attn_mask(struct attn_scores *s, uint32_t pos, const uint32_t hi[2], uint32_t window)
{
    UNROLL
    for (int n = 0; n < 2; n++)
        UNROLL
    for (int i = 0; i < 4; i++) {
        uint32_t at = pos + n * 8 + lane_id() % 4 * 2 + i % 2;
        if (at > hi[i / 2] || (window && at + window <= hi[i / 2]))
            s->s[n][i] = -INFINITY;
    }
}

DEVICE float attn_score_max(const struct attn_scores *s, int r)
{
    return fmaxf(fmaxf(s->s[0][2 * r], s->s[0][2 * r + 1]),
                 fmaxf(s->s[1][2 * r], s->s[1][2 * r + 1]));
}

/* Over the four lanes of a pair. */
DEVICE float attn_quad_max(float v)
{
    v = fmaxf(v, warp_shfl_xor(v, 1));
    return fmaxf(v, warp_shfl_xor(v, 2));
}
DEVICE float attn_quad_sum(float v)
{
    v += warp_shfl_xor(v, 1);
    return v + warp_shfl_xor(v, 2);
}

/* What a sum relative to `from` is multiplied with to be relative to `max`. Nothing seen yet (-inf)
 * is nothing: 0; -inf to -inf too. */
DEVICE float attn_decay(float from, float max, float scale)
{
    return fast_exp2((from - (max == -INFINITY ? 0 : max)) * scale);
}

/* Scores become weights; p is their bf16 as mma's first operand. Returns pair r's sum in add[r]. */
DEVICE void attn_weights(struct attn_scores *s, const float max[2], float scale, uint32_t p[4],
                         float add[2])
{
    UNROLL
    for (int r = 0; r < 2; r++) {
        float shift = max[r] == -INFINITY ? 0 : -max[r] * scale;
        UNROLL
        for (int n = 0; n < 2; n++)
            UNROLL
        for (int e = 2 * r; e < 2 * r + 2; e++)
            s->s[n][e] = fast_exp2(fmaf(s->s[n][e], scale, shift));
        add[r] = (s->s[0][2 * r] + s->s[0][2 * r + 1]) + (s->s[1][2 * r] + s->s[1][2 * r + 1]);
        p[r] = bf16x2_pack(s->s[0][2 * r], s->s[0][2 * r + 1]);
        p[2 + r] = bf16x2_pack(s->s[1][2 * r], s->s[1][2 * r + 1]);
    }
}

DEVICE float attn_blend(float total, float decay_total, float chunk, float decay_chunk)
{
    return fmaf(chunk, decay_chunk, total * decay_total);
}

/* total = total and chunk; the chunk is empty again. */
template <int n_out>
DEVICE void attn_fold(struct attn_sums<n_out> *total, struct attn_sums<n_out> *chunk, float scale)
{
    float a[2], b[2];
    UNROLL
    for (int r = 0; r < 2; r++) {
        float max = fmaxf(total->max[r], chunk->max[r]);
        a[r] = attn_decay(total->max[r], max, scale);
        b[r] = attn_decay(chunk->max[r], max, scale);
        total->max[r] = max;
        total->sum[r] = attn_blend(total->sum[r], a[r], attn_quad_sum(chunk->sum[r]), b[r]);
    }
    UNROLL
    for (int i = 0; i < n_out; i++)
        UNROLL
    for (int e = 0; e < 4; e++)
        total->o[i][e] = attn_blend(total->o[i][e], a[e / 2], chunk->o[i][e], b[e / 2]);
    attn_sums_clear(chunk);
}

/* The last step: o / sum. Adding 0 makes one of the two zeros, which a masked tile may turn. */
DEVICE float attn_result(float o, float inv_sum)
{
    return fmaf(o, inv_sum, 0.0f);
}
DEVICE float attn_lse(float max, float sum, float scale)
{
    return fmaf(max, scale, log2f(sum)) * 0.6931471805599453f;
}

#endif
