/* What shrink and the finishes share: how work is cut, where partials lie, and how a warp finds the
 * parts of a segment.
 *
 *   chunk      1024 k of d_in: what one block sums. s holds an f32 partial for each chunk,
 *              s[chunk][row][column]; a partial is ((S0 + S1) + S2) + S3
 *   slice      256 k of a chunk: S_w is one chain of 16 mma from 0, k ascending in steps of 32
 *   unit       32 k: two mma, k = 8t..8t+3 then 8t+4..8t+7 of lane t (lora_pack.h)
 *   column     16 for each tile of 16 ranks; tiles of a group run over its modules in enum order,
 *              then over the segment's parts, each part rounded up to whole tiles
 *
 * Sizes are constants and orders are fixed, so a row's s has the same bits from every kernel,
 * whoever shares its item. Tiles beyond a part's rank are zero in A and in B.
 *
 * Tables are the step's (cuda.h). A part that breaks their bounds (a slot that is free, a rank or a
 * column beyond what was planned for) is a bug of the host: the kernel traps, the device is lost
 * and the process with it, as for any broken CHECK. */
#ifndef RS_KERNELS_CUDA_LORA_CUH
#define RS_KERNELS_CUDA_LORA_CUH

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/lora_pack.h"

#define LORA_SLICE_UNITS 8
#define LORA_CHUNK_WARPS 4 /* slices of a chunk */
#define LORA_CHUNK_UNITS (LORA_SLICE_UNITS * LORA_CHUNK_WARPS)
#define LORA_CHUNK_K     (LORA_CHUNK_UNITS * LORA_TILE_K)
#define LORA_PART_TILES  (LORA_RANK_MAX / LORA_TILE_RANKS)

static_assert(LORA_PARTS_MAX == 8, "lane 8 m + p looks part p of module m up");

#ifdef RS_EMULATION
#define DEVICE_CHECK(x)                                                                            \
    do {                                                                                           \
        if (!(x))                                                                                  \
            emu_fault(__LINE__, "device check failed: %s", #x);                                    \
    } while (0)
#else
#define DEVICE_CHECK(x)                                                                            \
    do {                                                                                           \
        if (!(x))                                                                                  \
            __trap();                                                                              \
    } while (0)
#endif

/* The family's own state, made by cuda_lora_prepare. */
struct cuda_lora {
    double *norm_part;   /* [rows_max][norm_slots][2] |delta|^2, |base|^2; zero between passes */
    uint32_t norm_slots; /* most column groups of a finish */
};

/* One group's side of a launch, by value. */
struct lora_view {
    const struct lora_slot *slot;
    const struct lora_layout *layout;
    const struct lora_seg *seg;
    const struct cuda_item *item;
    const uint32_t *item_count;
    float *s;            /* [chunk_count][n_tok][s_stride] */
    uint64_t chunk_step; /* n_tok * s_stride */
    uint32_t slot_count, s_stride, chunk_count, d_in;
    uint32_t layer, first, module_count;
};

/* ---- the host's side (lora.cu) ---- */

enum lora_list { LORA_LIST_DECODE, LORA_LIST_PREFILL };

/* The view of the group that starts at module first, for the items of one list. */
struct lora_view lora_view_of(const struct cuda_backend *c, const struct lora_step *lora,
                              enum lora_list list, uint32_t layer, uint32_t first, uint32_t n_tok);

/* ---- warp helpers ---- */

DEVICE uint32_t bit_count(uint32_t v)
{
#ifdef __CUDA_ARCH__
    return (uint32_t)__popc(v);
#else
    return (uint32_t)__builtin_popcount(v);
#endif
}

/* Sum over the lanes up to this one. */
DEVICE uint32_t warp_scan(uint32_t v)
{
    UNROLL
    for (uint32_t d = 1; d < LANES; d *= 2) {
        uint32_t up = warp_shfl(v, (lane_id() - d) % LANES);
        v += lane_id() >= d ? up : 0;
    }
    return v;
}

DEVICE const char *warp_shfl_ptr(const char *p, uint32_t lane)
{
    uint32_t lo = warp_shfl((uint32_t)(uintptr_t)p, lane);
    uint32_t hi = warp_shfl((uint32_t)((uint64_t)(uintptr_t)p >> 32), lane);
    return (const char *)(uintptr_t)((uint64_t)hi << 32 | lo);
}

/* ---- the parts of a segment ---- */

/* The entries of a part's modules, from the group's first on. */
DEVICE const struct lora_entry *lora_entries(const struct lora_view *v,
                                             const struct lora_part *part)
{
    DEVICE_CHECK(part->slot < v->slot_count);
    const struct lora_slot *slot = &v->slot[part->slot];
    DEVICE_CHECK(slot->blob != NULL);
    return v->layout[slot->layout].entry + v->layer * LORA_MODULE_COUNT + v->first;
}

/* What lane 8 m + p of a warp knows of part p of the group's module m. */
struct lora_lane {
    const char *a, *b;
    float scale; /* the entry's times the request's weight */
    uint32_t rank, tiles;
    uint32_t before; /* tiles of the group before this part */
};

DEVICE struct lora_lane lora_lookup(const struct lora_view *v, const struct lora_seg *seg)
{
    const uint32_t m = lane_id() / LORA_PARTS_MAX, p = lane_id() % LORA_PARTS_MAX;
    struct lora_lane l = {};
    if (m < v->module_count && p < seg->part_count) {
        const struct lora_part *part = &seg->part[p];
        const struct lora_entry *e = lora_entries(v, part) + m;
        const char *blob = (const char *)v->slot[part->slot].blob;
        l.a = blob + e->a_off;
        l.b = blob + e->b_off;
        l.scale = e->scale * ((float)part->weight_q16 / 65536.0f);
        l.rank = e->rank;
        l.tiles = lora_rank_tiles(e->rank);
    }
    l.before = warp_scan(l.tiles) - l.tiles;
    DEVICE_CHECK(l.tiles <= LORA_PART_TILES);
    DEVICE_CHECK((l.before + l.tiles) * LORA_TILE_RANKS <= v->s_stride);
    return l;
}

/* The lane whose part holds tile q < all tiles of the group. */
DEVICE uint32_t lora_owner(const struct lora_lane *l, uint32_t q)
{
    return bit_count(warp_ballot(l->before + l->tiles <= q));
}

/* ---- partials ---- */

/* Sum of a column's chunks, in order; four loads under way. */
DEVICE float chunk_sum(const struct lora_view *v, const float *s)
{
    float sum = 0;
    NO_UNROLL
    for (uint32_t c = 0; c < v->chunk_count; c += 4) {
        float part[4];
        UNROLL
        for (uint32_t i = 0; i < 4; i++)
            part[i] = c + i < v->chunk_count ? s[(c + i) * v->chunk_step] : 0;
        UNROLL
        for (uint32_t i = 0; i < 4; i++)
            sum += part[i];
    }
    return sum;
}

#endif
