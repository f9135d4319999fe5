/* Shared memory of the attention kernels, and the copies into it: rows of D bf16 in 16-byte units,
 * free of bank conflicts for ldmatrix. What a block must not see (positions behind its rows or
 * before their window, d_head up to D) becomes zeros and is never read.
 * Included  by attention.cuh only. */
#ifndef RS_KERNELS_CUDA_ATTENTION_COPY_CUH
#define RS_KERNELS_CUDA_ATTENTION_COPY_CUH

/* padded: one unit more a row. Otherwise the unit's index is mixed with the row's, which needs D to
 * be a multiple of 64 and saves the padding. */
template <int D, bool padded> HOST_DEVICE constexpr uint32_t attn_row_bytes(void)
{
    return 2 * D + (padded ? 16 : 0);
}
template <int D, bool padded> DEVICE uint32_t attn_at(uint32_t row, uint32_t unit)
{
    return row * attn_row_bytes<D, padded>() + (padded ? unit : unit ^ (row & 7u)) * 16;
}

/* Where lane's i-th unit of a page is. */
template <int D> DEVICE void attn_unit(uint32_t i, uint32_t *tok, uint32_t *unit)
{
    const uint32_t units = D / 8;
    uint32_t lane = lane_id();
    *tok = LANES % units ? (i * LANES + lane) / units : lane / units + i * (LANES / units);
    *unit = LANES % units ? (i * LANES + lane) % units : lane % units;
}

/* 16 positions of K (is_v 0) or V: page `part` of tile `tile`, by one warp. */
template <int D, bool padded>
DEVICE void attn_copy_page(const struct attn_job *j, const struct attn_walk *w, char *dst,
                           uint32_t part, uint32_t is_v)
{
    const uint32_t turns = ATTN_PAGE * (D / 8) / LANES;
    uint32_t page = warp_shfl(w->page, (w->tile * (ATTN_TILE / ATTN_PAGE) + part) % LANES);
    uint32_t pos = w->tile * ATTN_TILE + part * ATTN_PAGE, tok, unit;
    const bf16_t *src =
        j->kv + page * j->stride_page + is_v * j->stride_kv + w->head * j->stride_head;
    dst += part * ATTN_PAGE * attn_row_bytes<D, padded>();
    if (pos >= w->lo && pos + ATTN_PAGE - 1 <= w->hi && j->d_head == D) {
        UNROLL
        for (uint32_t i = 0; i < turns; i++) {
            attn_unit<D>(i, &tok, &unit);
            cp_async_16(dst + attn_at<D, padded>(tok, unit), src + tok * j->stride_tok + unit * 8,
                        true);
        }
        return;
    }
    NO_UNROLL
    for (uint32_t i = 0; i < turns; i++) {
        attn_unit<D>(i, &tok, &unit);
        bool valid = pos + tok >= w->lo && pos + tok <= w->hi && unit * 8 < j->d_head;
        cp_async_16(dst + attn_at<D, padded>(tok, unit), src + tok * j->stride_tok + unit * 8,
                    valid);
    }
}

DEVICE uint32_t attn_pairs(const struct attn_item *item)
{
    return (uint32_t)item->n_row * item->n_head;
}

/* Where pair `pair` of a block is in [n_tok, n_head]. */
DEVICE size_t attn_pair(const struct attn_job *j, const struct attn_item *item, uint32_t head,
                        uint32_t pair)
{
    return (size_t)(item->row + pair / item->n_head) * j->n_head + head * j->group + item->head +
           pair % item->n_head;
}

/* The block's rows of q, zeros for pairs it does not have; by all threads. */
template <int D, bool padded, int pairs, int threads>
DEVICE void attn_copy_q(const struct attn_job *j, const struct attn_walk *w, char *dst)
{
    const uint32_t units = D / 8;
    struct attn_item item = attn_walk_item(j, w);
    uint32_t used = attn_pairs(&item);
    NO_UNROLL
    for (uint32_t i = 0; i < (pairs * units + threads - 1) / threads; i++) {
        uint32_t at = i * threads + threadIdx.x, pair = at / units, unit = at % units;
        bool valid = pair < used && unit * 8 < j->d_head;
        if (at < pairs * units)
            cp_async_16(dst + attn_at<D, padded>(pair, unit),
                        j->q +
                            (valid ? attn_pair(j, &item, w->head, pair) * j->d_head + unit * 8 : 0),
                        valid);
    }
}

#endif
