/* The LoRA half of a finish: delta(m)[t, n] = sum over parts and ranks of s[t, r] B[n, r] for the
 * rows of an item and a block of columns, left in shared memory in f32.
 *
 * A block of 8 warps owns MT * 128 columns: warp w the output tiles w*MT .. w*MT+MT-1, each 16
 * outputs (M of the mma) by NT times 8 rows (N). K is the ranks of all parts, one after another, 16
 * a tile; the accumulators start at 0 and take the tiles in order, so a delta's bits depend on its
 * own s and B. Steps of a block:
 *   table   warp 0 looks the segment up: where each rank tile's B lies, how it is scaled
 *   B       each warp's first words go out; B is older than the step, so this precedes pdl_wait
 *   s       partials are summed in order of chunks, scaled, rounded to bf16, up to 8 tiles at a
 *           time
 *   mma     then the fragments are laid out as rows, from which 16-byte words are read
 * Included  by finish.cu. */
#ifndef RS_KERNELS_CUDA_LORA_EXPAND_CUH
#define RS_KERNELS_CUDA_LORA_EXPAND_CUH

#include "kernels/cuda/lora.cuh"
#include "kernels/cuda/lora_octet.cuh"

#define MODULE_TILES (LORA_PARTS_MAX * LORA_PART_TILES)

/* Rank tiles of s in shared memory at once; bf16 from row to row, so that a fragment's rows differ
 * in bank. */
HOST_DEVICE constexpr uint32_t s_tiles(uint32_t nt)
{
    return nt == 1 ? 8 : 4;
}
HOST_DEVICE constexpr uint32_t s_pitch(uint32_t nt)
{
    return s_tiles(nt) * LORA_TILE_RANKS + 8;
}

/* One rank tile of a module. */
struct tile_ref {
    const char *b; /* at output tile 0 */
    uint32_t step; /* bytes between output tiles */
    float scale;
};
struct module_ref {
    struct tile_ref tile[MODULE_TILES];
    uint32_t tile_count, column; /* 0: not adapted; first column in s */
};

/* Modules m0 .. m0+n-1 (counted from the group's first) of a segment. Warp 0 only. */
DEVICE void table_fill(struct module_ref *table, const struct lora_view *v,
                       const struct lora_seg *seg, uint32_t m0, uint32_t n)
{
    const uint32_t m = lane_id() / LORA_PARTS_MAX;
    const struct lora_lane l = lora_lookup(v, seg);
    const uint32_t before = warp_shfl(l.before, m * LORA_PARTS_MAX);
    if (m < m0 || m >= m0 + n)
        return;
    struct module_ref *ref = &table[m - m0];
    for (uint32_t i = 0; i < l.tiles; i++) {
        struct tile_ref *tile = &ref->tile[l.before - before + i];
        tile->b = l.b + i * LORA_TILE_B_BYTES;
        tile->step = l.tiles * LORA_TILE_B_BYTES;
        tile->scale = l.scale;
    }
    if (lane_id() % LORA_PARTS_MAX == LORA_PARTS_MAX - 1) {
        ref->tile_count = l.before + l.tiles - before;
        ref->column = before * LORA_TILE_RANKS;
    }
}

/* What one block expands. */
struct expand {
    const struct lora_view *v;
    const struct module_ref *ref;
    uint32_t begin, count;        /* rows */
    uint32_t out_tile, out_count; /* first output tile of the block; tiles of the module */
};

/* The warp's words of rank tiles q .. q+PF-1; zeros past the last. */
template <uint32_t MT, uint32_t PF>
DEVICE void b_load(uint4 b[PF][MT], const struct expand *e, uint32_t q)
{
    UNROLL
    for (uint32_t i = 0; i < PF; i++) {
        const bool some = q + i < e->ref->tile_count;
        const struct tile_ref tile = e->ref->tile[some ? q + i : 0];
        UNROLL
        for (uint32_t k = 0; k < MT; k++) {
            const uint32_t out = e->out_tile + warp_id() * MT + k;
            b[i][k] = make_uint4(0, 0, 0, 0);
            if (some && out < e->out_count)
                b[i][k] = ldg_stream_16(tile.b + (size_t)out * tile.step + lane_id() * 16);
        }
    }
}

/* sv[row][16 i + r] = bf16(s) of the item's rows, tiles q + i. A warp takes two rows of a tile. Of
 * prefill rows, chunk 0 is all of s (shrink_sum). Rows past the item are left alone: nobody reads
 * what they become. */
template <uint32_t NT> DEVICE void s_fill(bf16_t *sv, const struct expand *e, uint32_t q)
{
    const uint32_t left = e->ref->tile_count - q, tiles = left < s_tiles(NT) ? left : s_tiles(NT);
    const uint32_t pairs = (e->count + 1) / 2, r = lane_id() % LORA_TILE_RANKS;
    for (uint32_t i = warp_id(); i < tiles * pairs; i += EXPAND_WARPS) {
        const uint32_t tile = i / pairs, row = i % pairs * 2 + lane_id() / LORA_TILE_RANKS;
        if (row >= e->count)
            continue;
        const float *s = e->v->s + (size_t)(e->begin + row) * e->v->s_stride + e->ref->column +
                         (q + tile) * LORA_TILE_RANKS + r;
        const float value = NT != 1 ? *s : e->ref->tile[q + tile].scale * chunk_sum(e->v, s);
        sv[row * s_pitch(NT) + tile * LORA_TILE_RANKS + r] = bf16_from_f32(value);
    }
}

/* acc += tile (of those in sv) times the rows. */
template <uint32_t MT, uint32_t NT>
DEVICE void tile_mma(float acc[MT][NT][4], const uint4 b[MT], const bf16_t *sv, uint32_t count)
{
    const uint32_t g = lane_id() / 4, t = lane_id() % 4;
    UNROLL
    for (uint32_t n = 0; n < NT; n++) {
        if (n * 8 >= count)
            continue;
        const uint32_t *s = (const uint32_t *)(sv + (n * 8 + g) * s_pitch(NT)) + t;
        const uint32_t rows[2] = {s[0], s[4]};
        UNROLL
        for (uint32_t k = 0; k < MT; k++) {
            const uint32_t w[4] = {b[k].x, b[k].y, b[k].z, b[k].w};
            mma_16816(acc[k][n], w, rows);
        }
    }
}

/* acc = delta; b holds the first PF tiles. */
template <uint32_t MT, uint32_t NT, uint32_t PF>
DEVICE void expand_run(float acc[MT][NT][4], uint4 b[PF][MT], const struct expand *e, bf16_t *sv)
{
    const uint32_t tiles = e->ref->tile_count;
    static_assert(s_tiles(NT) % PF == 0, "s is refilled between steps");
    UNROLL
    for (uint32_t i = 0; i < MT * NT * 4; i++)
        acc[i / (NT * 4)][i / 4 % NT][i % 4] = 0;
    NO_UNROLL
    for (uint32_t q = 0; q < tiles; q += PF) {
        if (q)
            b_load<MT, PF>(b, e, q);
        if (q % s_tiles(NT) == 0) {
            if (q)
                block_sync();
            s_fill<NT>(sv, e, q);
            block_sync();
        }
        UNROLL
        for (uint32_t i = 0; i < PF; i++) {
            if (q + i < tiles)
                tile_mma<MT, NT>(acc, b[i], sv + (q % s_tiles(NT) + i) * LORA_TILE_RANKS, e->count);
        }
    }
}

/* out [NT*8 rows][pitch] from the block's fragments; pitch = 4 modulo 32: no bank is hit twice. */
template <uint32_t MT, uint32_t NT>
DEVICE void delta_store(float *out, uint32_t pitch, const float acc[MT][NT][4])
{
    const uint32_t g = lane_id() / 4, t = lane_id() % 4;
    float *mine = out + 2 * t * pitch + warp_id() * MT * LORA_TILE_OUT + g;
    UNROLL
    for (uint32_t n = 0; n < NT; n++) {
        UNROLL
        for (uint32_t k = 0; k < MT; k++) {
            UNROLL
            for (uint32_t i = 0; i < 4; i++)
                mine[(n * 8 + i % 2) * pitch + k * LORA_TILE_OUT + i / 2 * 8] = acc[k][n][i];
        }
    }
}

#endif
