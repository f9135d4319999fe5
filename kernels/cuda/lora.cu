/* lora_shrink: partials of A x for every row that has adapters, at true rank.
 *
 * Formula: s[c][t, col(m,p) + r] = sum over chunk c of x[t,k] A(layer,m,p)[r,k], unscaled, one for
 * each 1024 k; lora.cuh fixes every order of sums. Shapes: x [n_tok, x_stride] bf16 with d_in used,
 * A in tiles (lora_pack.h), s as in struct lora_view.
 *
 * Weights are the M operand of mma.m16n8k16 and rows of x its N operand: 16 ranks by 8 rows an
 * instruction. One row an adapter wastes tensor throughput, which is idle, and never bytes of A. A
 * tile of A comes in fragment order with k permuted inside each 32, so that both operands are
 * 16-byte words: no ldmatrix, and for A one run of bytes a warp.
 *
 * shrink_decode, items of up to 8 rows. The flat sequence (chunk, tile) over all items is cut into
 * equal runs, one a block, so ranks 8 and 128 need no balancing, and a block keeps its x while item
 * and chunk stay. Warp w holds slice w of up to 8 rows (32 registers) and issues the 16 loads of a
 * tile at once: 32 KB a block, 128 KB an SM with 4 blocks; Little's law asks 26 KB at 4.3 TB/s and
 * 0.8 us. The slices meet in shared memory, double buffered: one barrier a tile. 5.6 KB of shared
 * memory, so that it fits beside a GEMM that runs at the same time.
 *
 * shrink_prefill, items of up to 64 rows. Four warps of 16 rows take the slices of a chunk one
 * after another with x in registers (64), so each element of x is loaded once, by one warp; the
 * tiles of A, which the warps share, pass through a ring of cp.async (32 KB). Up to four tiles are
 * summed at once; more need x again, from L2.
 *
 * shrink_sum, after prefill and in keep mode. Adds chunks in order, for the finish of prefill rows
 * (which would otherwise read 4 bytes a rank, chunk and column block) and for keep_ax.
 *
 * Bound: bytes of the distinct A once (decode); of x once (prefill, small ranks).
 * Rejected: chunks of 2048 with 8 warps (half the partials, but half the blocks where one adapter
 * of rank 16 makes only d_in/1024 of them); atomic adds of floats (order); a count of chunks that
 * depends on the load (so would bits).
 * Registers (nvcc 13.0, sm_90, no spills, no stack): decode 120, prefill 156, sum 48. Not yet run
 * on a GPU. */
#include "kernels/cuda/lora.cuh"
#include "server/base/check.h"

#define SHRINK_THREADS   (LORA_CHUNK_WARPS * LANES)
#define PLAN_ITEMS       SHRINK_THREADS /* items that are planned at once */
#define RED_PITCH        20             /* floats between rows: stores hit each bank once */
#define RED_FLOATS       (8 * RED_PITCH)
#define GROUP_TILES      4 /* tiles that prefill sums at once */
#define RING_STAGES      4
#define RING_STAGE_BYTES (LORA_SLICE_UNITS * LORA_TILE_A_BYTES)
#define SUM_THREADS      256

struct shrink_job {
    struct lora_view v;
    const bf16_t *x;
    uint32_t x_stride, unit_count;
};

/* ---- which work is mine ---- */

/* prefix[i]: pieces of work of the items before base + i, for 128 items from base. */
struct shrink_plan {
    uint32_t prefix[PLAN_ITEMS + 1];
    uint32_t warp_total[LORA_CHUNK_WARPS];
};

DEVICE uint32_t item_tiles(const struct lora_view *v, uint32_t i)
{
    const struct lora_seg *seg = &v->seg[v->item[i].seg];
    uint32_t n = 0;
    UNROLL
    for (uint32_t p = 0; p < LORA_PARTS_MAX; p++) {
        if (p < seg->part_count) {
            const struct lora_entry *e = lora_entries(v, &seg->part[p]);
            for (uint32_t m = 0; m < v->module_count; m++)
                n += lora_rank_tiles(e[m].rank);
        }
    }
    return n;
}

/* A piece is up to `per` tiles of an item. Returns the pieces of the items from base on. */
DEVICE uint32_t plan_fill(struct shrink_plan *plan, const struct lora_view *v, uint32_t base,
                          uint32_t per)
{
    const uint32_t i = base + threadIdx.x;
    uint32_t n = i < *v->item_count ? (item_tiles(v, i) + per - 1) / per : 0;
    uint32_t upto = warp_scan(n);
    if (lane_id() == LANES - 1)
        plan->warp_total[warp_id()] = upto;
    block_sync();
    for (uint32_t w = 0; w < warp_id(); w++)
        upto += plan->warp_total[w];
    plan->prefix[threadIdx.x + 1] = upto;
    if (threadIdx.x == 0)
        plan->prefix[0] = 0;
    block_sync();
    return plan->prefix[PLAN_ITEMS];
}

/* The item, from base, that piece q belongs to. */
DEVICE uint32_t plan_find(const struct shrink_plan *plan, uint32_t q)
{
    uint32_t i = 0;
    UNROLL
    for (uint32_t step = PLAN_ITEMS / 2; step; step /= 2) {
        if (plan->prefix[i + step] <= q)
            i += step;
    }
    return i;
}

/* ---- decode ---- */

/* Where a block stands. The lanes' knowledge is of `item`. */
struct shrink_at {
    uint32_t q, chunk;       /* piece over the planned items, and its chunk */
    uint32_t q_begin, q_end; /* of the item */
    uint32_t begin, count;   /* rows */
    struct lora_lane lane;
};

DEVICE void at_item(struct shrink_at *at, const struct shrink_job *j,
                    const struct shrink_plan *plan, uint32_t base)
{
    uint32_t i = plan_find(plan, at->q);
    struct cuda_item item = j->v.item[base + i];
    at->q_begin = plan->prefix[i];
    at->q_end = plan->prefix[i + 1];
    at->begin = item.begin;
    at->count = item.count;
    at->lane = lora_lookup(&j->v, &j->v.seg[item.seg]);
}

/* Slice `unit` .. of row `row`: 8 neighbouring elements a lane and unit, zero past d_in. */
DEVICE void x_load(uint4 x[LORA_SLICE_UNITS], const struct shrink_job *j, uint32_t row,
                   uint32_t unit, bool live)
{
    const uint32_t k = unit * LORA_TILE_K + lane_id() % 4 * 8;
    const bf16_t *p = j->x + (size_t)row * j->x_stride + k;
    UNROLL
    for (uint32_t u = 0; u < LORA_SLICE_UNITS; u++) {
        x[u] = make_uint4(0, 0, 0, 0);
        if (live && k + u * LORA_TILE_K < j->v.d_in)
            x[u] = ldg_16(p + u * LORA_TILE_K);
    }
}

/* d += one unit of a tile times 8 rows. */
DEVICE void unit_mma(float d[4], uint4 a0, uint4 a1, uint4 x)
{
    const uint32_t w0[4] = {a0.x, a0.y, a0.z, a0.w}, w1[4] = {a1.x, a1.y, a1.z, a1.w};
    const uint32_t x0[2] = {x.x, x.y}, x1[2] = {x.z, x.w};
    mma_16816(d, w0, x0);
    mma_16816(d, w1, x1);
}

/* S_w of one tile: all loads first. */
DEVICE void slice_tile(float d[4], const char *tile, const uint4 x[LORA_SLICE_UNITS],
                       uint32_t units)
{
    const char *p = tile + lane_id() * 16;
    uint4 a[LORA_SLICE_UNITS][2];
    UNROLL
    for (uint32_t u = 0; u < LORA_SLICE_UNITS; u++) {
        UNROLL
        for (uint32_t h = 0; h < 2; h++) {
            a[u][h] = make_uint4(0, 0, 0, 0);
            if (u < units)
                a[u][h] = ldg_stream_16(p + u * LORA_TILE_A_BYTES + h * (LORA_TILE_A_BYTES / 2));
        }
    }
    UNROLL
    for (uint32_t u = 0; u < LORA_SLICE_UNITS; u++)
        unit_mma(d, a[u][0], a[u][1], x[u]);
}

/* Units that exist from unit on, of one slice. */
DEVICE uint32_t slice_units(const struct shrink_job *j, uint32_t unit)
{
    uint32_t left = unit < j->unit_count ? j->unit_count - unit : 0;
    return left < LORA_SLICE_UNITS ? left : LORA_SLICE_UNITS;
}

/* Adds the four slices of a tile and writes its partial. One barrier: the caller alternates red. */
DEVICE void tile_write(const struct shrink_job *j, const struct shrink_at *at, float *red,
                       const float d[4])
{
    const uint32_t g = lane_id() / 4, t = lane_id() % 4;
    float *mine = red + warp_id() * RED_FLOATS + 2 * t * RED_PITCH + g;
    mine[0] = d[0];
    mine[RED_PITCH] = d[1];
    mine[8] = d[2];
    mine[RED_PITCH + 8] = d[3];
    block_sync();
    const uint32_t row = threadIdx.x / LORA_TILE_RANKS, r = threadIdx.x % LORA_TILE_RANKS;
    if (row >= at->count)
        return;
    float v = 0;
    UNROLL
    for (uint32_t w = 0; w < LORA_CHUNK_WARPS; w++)
        v += red[w * RED_FLOATS + row * RED_PITCH + r];
    j->v.s[at->chunk * j->v.chunk_step + (size_t)(at->begin + row) * j->v.s_stride +
           (at->q - at->q_begin) * LORA_TILE_RANKS + r] = v;
}

/* The pieces lo .. hi-1 of (chunk, tile), chunks outside. */
DEVICE void decode_run(const struct shrink_job *j, const struct shrink_plan *plan, float *red,
                       uint32_t base, uint32_t lo, uint32_t hi)
{
    const uint32_t total = plan->prefix[PLAN_ITEMS];
    struct shrink_at at = {};
    uint4 x[LORA_SLICE_UNITS];
    at.q = lo % total;
    at.chunk = lo / total;
    NO_UNROLL
    for (uint32_t e = lo; e < hi; e++) {
        const uint32_t unit = at.chunk * LORA_CHUNK_UNITS + warp_id() * LORA_SLICE_UNITS;
        if (at.q >= at.q_end) {
            at_item(&at, j, plan, base);
            x_load(x, j, at.begin + lane_id() / 4, unit, lane_id() / 4 < at.count);
        }
        const uint32_t tile = at.q - at.q_begin, own = lora_owner(&at.lane, tile);
        const char *a = warp_shfl_ptr(at.lane.a, own);
        const uint32_t first = warp_shfl(at.lane.before, own);
        float d[4] = {};
        slice_tile(d, a + ((size_t)(tile - first) * j->unit_count + unit) * LORA_TILE_A_BYTES, x,
                   slice_units(j, unit));
        tile_write(j, &at, red + (e % 2) * LORA_CHUNK_WARPS * RED_FLOATS, d);
        if (++at.q == total) {
            at.q = 0;
            at.chunk++;
            at.q_end = 0; /* another slice of x */
        }
    }
}

static KERNEL(SHRINK_THREADS, 4) void shrink_decode(struct shrink_job j)
{
    SMEM(smem);
    struct shrink_plan *plan = (struct shrink_plan *)smem;
    float *red = (float *)(smem + sizeof(*plan));
    pdl_trigger();
    NO_UNROLL
    for (uint32_t base = 0; base < *j.v.item_count; base += PLAN_ITEMS) {
        uint64_t work = (uint64_t)plan_fill(plan, &j.v, base, 1) * j.v.chunk_count;
        pdl_wait(); /* the tables are older than the predecessor; x and the readers of s are not */
        uint32_t lo = (uint32_t)(work * blockIdx.x / gridDim.x);
        uint32_t hi = (uint32_t)(work * (blockIdx.x + 1) / gridDim.x);
        if (lo < hi)
            decode_run(&j, plan, red, base, lo, hi);
    }
    pdl_wait();
}

/* ---- prefill ---- */

/* One piece: a chunk of up to GROUP_TILES tiles of an item. */
struct group_at {
    const char *tile[GROUP_TILES]; /* at the chunk's first unit */
    uint32_t begin, count, column; /* rows, first column of s */
    uint32_t n_tile, chunk, units; /* units of the chunk */
};

/* Piece e of the planned ones, by warp 0. */
DEVICE void group_find(struct group_at *at, const struct shrink_job *j,
                       const struct shrink_plan *plan, uint32_t base, uint32_t e)
{
    const uint32_t total = plan->prefix[PLAN_ITEMS], q = e % total, chunk = e / total;
    const uint32_t i = plan_find(plan, q), tile = (q - plan->prefix[i]) * GROUP_TILES;
    const struct cuda_item item = j->v.item[base + i];
    const struct lora_lane l = lora_lookup(&j->v, &j->v.seg[item.seg]);
    const uint32_t all = warp_shfl(l.before + l.tiles, LANES - 1);
    const uint32_t left = j->unit_count - chunk * LORA_CHUNK_UNITS;
    UNROLL
    for (uint32_t k = 0; k < GROUP_TILES; k++) {
        const uint32_t own = lora_owner(&l, tile + k) % LANES;
        const char *a = warp_shfl_ptr(l.a, own);
        const size_t at_tile = tile + k - warp_shfl(l.before, own);
        if (lane_id() == 0 && tile + k < all)
            at->tile[k] =
                a + (at_tile * j->unit_count + chunk * LORA_CHUNK_UNITS) * LORA_TILE_A_BYTES;
    }
    if (lane_id() == 0) {
        at->begin = item.begin;
        at->count = item.count;
        at->column = tile * LORA_TILE_RANKS;
        at->n_tile = all - tile < GROUP_TILES ? all - tile : GROUP_TILES;
        at->chunk = chunk;
        at->units = left < LORA_CHUNK_UNITS ? left : LORA_CHUNK_UNITS;
    }
}

/* Starts the copy of step n (slice, then tile) of a piece into its stage; zeros past the chunk. */
DEVICE void ring_fetch(const struct group_at *at, char *ring, uint32_t n)
{
    const uint32_t slice = n / at->n_tile;
    if (slice * LORA_SLICE_UNITS < at->units) {
        const char *from = at->tile[n % at->n_tile];
        char *to = ring + n % RING_STAGES * RING_STAGE_BYTES;
        UNROLL
        for (uint32_t b = threadIdx.x * 16; b < RING_STAGE_BYTES; b += SHRINK_THREADS * 16) {
            uint32_t unit = slice * LORA_SLICE_UNITS + b / LORA_TILE_A_BYTES;
            bool valid = unit < at->units;
            cp_async_16(to + b, valid ? from + slice * RING_STAGE_BYTES + b : from, valid);
        }
    }
    cp_async_commit();
}

/* sum += S of one slice: a stage times the warp's 16 rows, of which the second 8 may be none. */
DEVICE void stage_mma(float sum[2][4], const char *stage, const uint4 x[2][LORA_SLICE_UNITS],
                      bool second)
{
    float d[2][4] = {};
    UNROLL
    for (uint32_t u = 0; u < LORA_SLICE_UNITS; u++) {
        const char *a = stage + u * LORA_TILE_A_BYTES + lane_id() * 16;
        uint4 a0 = *(const uint4 *)a, a1 = *(const uint4 *)(a + LORA_TILE_A_BYTES / 2);
        unit_mma(d[0], a0, a1, x[0][u]);
        if (second)
            unit_mma(d[1], a0, a1, x[1][u]);
    }
    UNROLL
    for (uint32_t i = 0; i < 8; i++)
        sum[i / 4][i % 4] += d[i / 4][i % 4];
}

DEVICE void group_write(const struct shrink_job *j, const struct group_at *at,
                        const float sum[GROUP_TILES][2][4])
{
    const uint32_t g = lane_id() / 4, t = lane_id() % 4, row0 = warp_id() * 16 + 2 * t;
    float *s = j->v.s + at->chunk * j->v.chunk_step + at->column + g;
    UNROLL
    for (uint32_t k = 0; k < GROUP_TILES; k++) {
        UNROLL
        for (uint32_t i = 0; i < 8; i++) /* two rows of 8, then (g, 2t) (g, 2t+1) (g+8, ..) */
        {
            uint32_t row = row0 + i / 4 * 8 + i % 2;
            if (k < at->n_tile && row < at->count)
                s[(size_t)(at->begin + row) * j->v.s_stride + k * LORA_TILE_RANKS + i % 4 / 2 * 8] =
                    sum[k][i / 4][i % 4];
        }
    }
}

DEVICE void group_run(const struct shrink_job *j, const struct group_at *at, char *ring)
{
    const uint32_t row = warp_id() * 16 + lane_id() / 4;
    const bool some = warp_id() * 16 < at->count, second = warp_id() * 16 + 8 < at->count;
    const uint32_t slices = (at->units + LORA_SLICE_UNITS - 1) / LORA_SLICE_UNITS;
    float sum[GROUP_TILES][2][4] = {};
    uint32_t n = 0;
    for (; n < RING_STAGES - 1; n++)
        ring_fetch(at, ring, n);
    n = 0;
    NO_UNROLL
    for (uint32_t slice = 0; slice < slices; slice++) {
        const uint32_t unit = at->chunk * LORA_CHUNK_UNITS + slice * LORA_SLICE_UNITS;
        uint4 x[2][LORA_SLICE_UNITS];
        x_load(x[0], j, at->begin + row, unit, row < at->count);
        x_load(x[1], j, at->begin + row + 8, unit, row + 8 < at->count);
        UNROLL
        for (uint32_t k = 0; k < GROUP_TILES; k++) {
            if (k < at->n_tile) {
                cp_async_wait<RING_STAGES - 2>();
                block_sync(); /* the stage is there, and all have left the one before it */
                ring_fetch(at, ring, n + RING_STAGES - 1);
                if (some)
                    stage_mma(sum[k], ring + n % RING_STAGES * RING_STAGE_BYTES, x, second);
                n++;
            }
        }
    }
    if (some)
        group_write(j, at, sum);
}

static KERNEL(SHRINK_THREADS, 3) void shrink_prefill(struct shrink_job j)
{
    SMEM(smem);
    struct group_at *at = (struct group_at *)(smem + RING_STAGES * RING_STAGE_BYTES);
    struct shrink_plan *plan = (struct shrink_plan *)(at + 1);
    pdl_trigger();
    NO_UNROLL
    for (uint32_t base = 0; base < *j.v.item_count; base += PLAN_ITEMS) {
        uint32_t work = plan_fill(plan, &j.v, base, GROUP_TILES) * j.v.chunk_count;
        pdl_wait();
        NO_UNROLL
        for (uint32_t e = blockIdx.x; e < work; e += gridDim.x) {
            if (warp_id() == 0)
                group_find(at, &j, plan, base, e);
            block_sync();
            group_run(&j, at, smem);
            block_sync(); /* before the next piece's stages, and its group_at */
        }
    }
    pdl_wait();
}

/* ---- sums over chunks ---- */

struct sum_job {
    struct lora_view v;
    float *keep_ax; /* [n_tok, keep_stride] columns at true rank, or NULL */
    uint32_t keep_stride;
    bool keep_s;     /* chunk 0 becomes scale * sum */
    uint32_t blocks; /* of 8 rows, of an item */
};

/* Rows block*8 .. of an item, one warp: two rows of a tile at a time. */
DEVICE void sum_rows(const struct sum_job *j, const struct cuda_item *item, uint32_t block)
{
    const struct lora_lane l = lora_lookup(&j->v, &j->v.seg[item->seg]);
    const uint32_t all = warp_shfl(l.before + l.tiles, LANES - 1);
    const uint32_t ranks = warp_scan(l.rank) - l.rank, r = lane_id() % LORA_TILE_RANKS;
    for (uint32_t i = warp_id(); i < all * 4; i += SUM_THREADS / LANES) {
        const uint32_t q = i / 4, own = lora_owner(&l, q);
        const uint32_t within = (q - warp_shfl(l.before, own)) * LORA_TILE_RANKS + r;
        const uint32_t rank = warp_shfl(l.rank, own), col = warp_shfl(ranks, own) + within;
        const float scale = warp_shfl(l.scale, own);
        const uint32_t row = block * 8 + i % 4 * 2 + lane_id() / LORA_TILE_RANKS;
        if (row >= item->count)
            continue;
        const size_t t = item->begin + row;
        float *s = j->v.s + t * j->v.s_stride + q * LORA_TILE_RANKS + r;
        const float sum = chunk_sum(&j->v, s);
        if (j->keep_s)
            *s = scale * sum;
        if (j->keep_ax && within < rank)
            j->keep_ax[t * j->keep_stride + col] = sum;
    }
}

static KERNEL(SUM_THREADS, 4) void shrink_sum(struct sum_job j)
{
    const uint32_t work = *j.v.item_count * j.blocks;
    pdl_trigger();
    pdl_wait();
    for (uint32_t u = blockIdx.x; u < work; u += gridDim.x) {
        const struct cuda_item item = j.v.item[u / j.blocks];
        if (u % j.blocks * 8 < item.count)
            sum_rows(&j, &item, u % j.blocks);
    }
}

/* ---- launchers ---- */

/* Width of s for a group of so many modules: every part may be rounded up by 15 ranks. */
static uint32_t s_stride_of(uint32_t rank_sum_max, uint32_t module_count)
{
    uint32_t parts = module_count * LORA_PARTS_MAX;
    uint32_t tiles = lora_rank_tiles(rank_sum_max + parts * (LORA_TILE_RANKS - 1));
    return MIN(tiles, parts * LORA_PART_TILES) * LORA_TILE_RANKS;
}

static uint32_t chunks_of(uint32_t d_in)
{
    return (d_in + LORA_CHUNK_K - 1) / LORA_CHUNK_K;
}

static uint32_t group_modules(uint32_t first)
{
    return first == LORA_MODULE_Q ? 3 : first == LORA_MODULE_GATE ? 2 : 1;
}

static uint32_t group_d_in(const struct backend_limits *lim, uint32_t first)
{
    return first == LORA_MODULE_O      ? lim->n_head * lim->d_head
           : first == LORA_MODULE_DOWN ? lim->d_ff
                                       : lim->d_model;
}

struct lora_view lora_view_of(const struct cuda_backend *c, const struct lora_step *lora,
                              enum lora_list list, uint32_t layer, uint32_t first, uint32_t n_tok)
{
    const struct cuda_step *step = &c->step;
    bool decode = list == LORA_LIST_DECODE;
    struct lora_view v = {};
    CHECK(layer < step->n_layer);
    CHECK(lora->s && (uintptr_t)lora->s % 16 == 0);
    v.slot = step->slot;
    v.layout = step->layout;
    v.seg = step->seg;
    v.item = decode ? step->lora_decode : step->lora_prefill;
    v.item_count = decode ? &step->counts->n_lora_decode : &step->counts->n_lora_prefill;
    v.s = lora->s;
    v.slot_count = c->limits.slots_max;
    v.layer = layer;
    v.first = first;
    v.module_count = group_modules(first);
    v.s_stride = s_stride_of(c->limits.rank_sum_max, v.module_count);
    v.chunk_step = (uint64_t)n_tok * v.s_stride;
    v.d_in = group_d_in(&c->limits, first);
    v.chunk_count = chunks_of(v.d_in);
    return v;
}

static void launch_sum(const struct cuda_backend *c, const struct lora_shrink_args *a,
                       const struct lora_view *v, uint32_t item_rows)
{
    struct sum_job j = {};
    j.v = *v;
    j.keep_ax = a->keep_ax;
    j.keep_stride = a->lora.s_stride;
    j.keep_s = item_rows == CUDA_PREFILL_ROWS;
    j.blocks = item_rows / 8;
    LAUNCH_PDL(shrink_sum, c->sm_count * 4, SUM_THREADS, 0, c->stream, j);
}

#define PREFILL_SMEM                                                                               \
    (RING_STAGES * RING_STAGE_BYTES + sizeof(struct shrink_plan) + sizeof(struct group_at))

enum status cuda_lora_allow(void)
{
    const struct gpu_smem prefill = {kernel_of(shrink_prefill), PREFILL_SMEM};
    return gpu_smem_allow(&prefill, 1);
}

enum status cuda_lora_shrink(struct backend *b, const struct lora_shrink_args *a)
{
    const struct cuda_backend *c = cuda_of(b);
    if (!a->lora.table || !c->pass.lora || a->n_tok == 0)
        return STATUS_OK;
    struct shrink_job j = {};
    j.x = (const bf16_t *)a->x;
    j.x_stride = a->x_stride;
    j.unit_count = lora_k_tiles(a->d_in);
    CHECK((uintptr_t)a->x % 16 == 0 && a->x_stride % 8 == 0 && a->d_in % 8 == 0);
    CHECK(a->n_tok <= c->limits.rows_max);
    if (c->pass.lora_decode) {
        j.v = lora_view_of(c, &a->lora, LORA_LIST_DECODE, a->layer, a->first, a->n_tok);
        CHECK(j.v.d_in == a->d_in && j.v.module_count == a->module_count);
        LAUNCH_PDL(shrink_decode, c->sm_count * 4, SHRINK_THREADS,
                   sizeof(struct shrink_plan) + 2 * LORA_CHUNK_WARPS * RED_FLOATS * sizeof(float),
                   c->stream, j);
        if (a->keep_ax)
            launch_sum(c, a, &j.v, CUDA_DECODE_ROWS);
    }
    if (c->pass.lora_prefill) {
        j.v = lora_view_of(c, &a->lora, LORA_LIST_PREFILL, a->layer, a->first, a->n_tok);
        CHECK(j.v.d_in == a->d_in && j.v.module_count == a->module_count);
        LAUNCH_PDL(shrink_prefill, c->sm_count * 3, SHRINK_THREADS, PREFILL_SMEM, c->stream, j);
        launch_sum(c, a, &j.v, CUDA_PREFILL_ROWS);
    }
    return gpu_launched("lora_shrink");
}

/* ---- memory ---- */

size_t cuda_lora_scratch_bytes(const struct backend *b, const struct backend_limits *lim)
{
    static const uint32_t first[] = {LORA_MODULE_Q, LORA_MODULE_O, LORA_MODULE_GATE,
                                     LORA_MODULE_DOWN};
    size_t floats = 0;
    (void)b;
    for (size_t i = 0; lim->slots_max && i < ARRAY_COUNT(first); i++) {
        size_t row = (size_t)s_stride_of(lim->rank_sum_max, group_modules(first[i])) *
                     chunks_of(group_d_in(lim, first[i]));
        floats = MAX(floats, row);
    }
    return floats * lim->rows_max * sizeof(float);
}
