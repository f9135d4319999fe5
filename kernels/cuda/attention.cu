/* attention: out = softmax(scale q K^T) V over a sequence's pages, and the launcher of both
 * kernels. attn_split is the one for decode: few rows, long pasts, split along the past.
 *
 * Two kernels, one row. Rows decode one by one, or come in chunks of a prompt, or come again after
 * a preemption; their bits must be the same (kernels/attention.h). attention.cuh fixes what happens
 * to an output element: the same mma with the same slices of k, the same operand roles, tiles of 64
 * positions, chunks of 256 that start from nothing and are folded into a total in order. The
 * kernels differ in who does it:
 *
 *   prefill   a warp has 16 (row, head) pairs and does all of a tile for them: FlashAttention-2,
 * and a second set of accumulators for the total. split     a block of 4 warps has 16 pairs (all
 * heads of a kv head's group and, for short runs, several rows). Of a tile's scores each warp does
 * 16 positions, of its values each warp does a quarter of d_head; maxima and weights cross through
 * shared memory in between, the weights in the very fragments that mma wants. So each element sees
 * the same chain of mma, though no warp sees all of a tile. Chunks are parts of work: what the
 * prefill kernel keeps in registers as the total passes here through memory, and the last part to
 * be done folds them in order, with the same operations.
 *
 * Queries are mma's M operand in both: 16 pairs, for groups up to 16 in one pass. As the N operand,
 * 8 wide, they would waste less of the tensor cores in decode, which idle there (12 % at full
 * bandwidth), but cost prefill a transposition of every weight. Chunks are 256 positions, not 512:
 * a batch of one gets twice the blocks, and the plan makes first parts longer where there are many.
 * Partial results are 3 % of the bytes of K and V, and stay in L2. What a warp skips or masks adds
 * exact zeros (positions behind a row's must hold numbers, or be behind all rows of its block:
 * those are never read).
 *
 * Mapping   persistent blocks over the device's list, 2 on an SM (3 up to d_head 64, 1 above 128),
 * all kv heads of an item side by side. Copies run 2 tiles ahead, across items, so that memory
 *           never waits for the end of one.
 * Bound     bytes: K and V of a sequence once for each kv head and 16 pairs. Under way per SM at
 * d_head 128: 4 tiles of 32 KB; 26 KB are needed for 4.3 TB/s at 0.8 us. Compiled  sm_90,
 * nvcc 13.0, no spills: 94, 128, 146, 128, 212 registers for d_head 64, 80, 96, 128, 256. Not yet
 * run on a GPU. */
#include "kernels/cuda/attention.cuh"
#include "server/base/check.h"
#include "server/base/mem.h"

#define SPLIT_WARPS   4 /* one for each 16 positions of a tile */
#define SPLIT_THREADS (SPLIT_WARPS * LANES)

/* Stages and blocks of an SM by head size: two tiles under way in each of two blocks, or what
 * 227 KB hold. */
template <int D> struct split_plan {
    static const bool padded = D % 64 != 0;
    static const int stages = D == 80 ? 4 : 3;
    static const int blocks = D > 128 ? 1 : D > 64 ? 2 : 3;
    static const int slices = (D / 16 + SPLIT_WARPS - 1) / SPLIT_WARPS; /* of d_head, a warp */
    /* bytes */
    static const int row = 2 * D + (padded ? 16 : 0);
    static const int tile = ATTN_TILE * row;
    static const int q = ATTN_COLS * row;
    static const int stage = 2 * tile + q;
    static const int weights = stages * stage;                    /* uint4 [4 warps][32 lanes] */
    static const int adds = weights + SPLIT_THREADS * 16;         /* float2 [4 warps][32 lanes] */
    static const int maxima = adds + SPLIT_THREADS * 8;           /* float [16 pairs][4 warps] */
    static const int flag = maxima + ATTN_COLS * SPLIT_WARPS * 4; /* uint32_t */
    static const int bytes = flag + 16;
    static_assert(blocks * (bytes + 1024) <= 228 * 1024, "shared memory of an SM");
};

/* What the copying side knows: which tile comes next, and into which stage. */
struct split_loader {
    struct attn_walk walk;
    bool any, fresh; /* fresh: the first tile of an item, which takes q along */
    uint32_t stage;
};

template <int D>
DEVICE void split_load_next(const struct attn_job *j, struct split_loader *l, char *smem)
{
    typedef split_plan<D> P;
    char *at = smem + l->stage * P::stage;
    if (l->any) {
        attn_copy_page<D, P::padded>(j, &l->walk, at, warp_id(), 0);
        if (l->fresh)
            attn_copy_q<D, P::padded, ATTN_COLS, SPLIT_THREADS>(j, &l->walk, at + 2 * P::tile);
    }
    cp_async_commit();
    if (l->any)
        attn_copy_page<D, P::padded>(j, &l->walk, at + P::tile, warp_id(), 1);
    cp_async_commit();
    l->stage = l->stage + 1 == P::stages ? 0 : l->stage + 1;
    if (l->any)
        l->any = attn_walk_step(j, &l->walk, &l->fresh);
}

/* One block's work. */
template <int D> struct split_state {
    uint32_t q[D / 16][4];
    struct attn_sums<2 * split_plan<D>::slices> chunk, total;
    uint32_t hi[2]; /* positions of the lane's pairs */
};

template <int D>
DEVICE void split_begin(const struct attn_job *j, const struct attn_walk *w,
                        struct split_state<D> *s)
{
    attn_sums_clear(&s->chunk);
    attn_sums_clear(&s->total);
    struct attn_item item = attn_walk_item(j, w);
    UNROLL
    for (int r = 0; r < 2; r++) {
        uint32_t row = (lane_id() / 4 + 8 * r) / item.n_head;
        s->hi[r] = item.pos + (row < item.n_row ? row : 0);
    }
}

/* The maximum of each pair over the tile, from all warps. */
template <int D>
DEVICE void split_maxima(const struct attn_sums<2 * split_plan<D>::slices> *chunk, const char *smem,
                         float max[2])
{
    UNROLL
    for (int r = 0; r < 2; r++) {
        float4 m = ((const float4 *)(smem + split_plan<D>::maxima))[lane_id() / 4 + 8 * r];
        float tile = fmaxf(fmaxf(m.x, m.y), fmaxf(m.z, m.w));
        max[r] = fmaxf(chunk->max[r], tile);
    }
}

template <int D>
DEVICE void split_add_tile(struct split_state<D> *s, const char *v_tile, const char *smem,
                           const float max[2], float scale)
{
    typedef split_plan<D> P;
    const uint4 *weights = (const uint4 *)(smem + P::weights);
    const float2 *adds = (const float2 *)(smem + P::adds);
    float decay[2], add[2];
    UNROLL
    for (int r = 0; r < 2; r++)
        decay[r] = attn_decay(s->chunk.max[r], max[r], scale);
    UNROLL
    for (int i = 0; i < 2 * P::slices; i++)
        UNROLL
    for (int e = 0; e < 4; e++)
        s->chunk.o[i][e] *= decay[e / 2];
    UNROLL
    for (int w = 0; w < SPLIT_WARPS; w++) {
        float2 a = adds[w * LANES + lane_id()];
        add[0] = w ? add[0] + a.x : a.x;
        add[1] = w ? add[1] + a.y : a.y;
        uint4 p4 = weights[w * LANES + lane_id()];
        uint32_t p[4] = {p4.x, p4.y, p4.z, p4.w};
        UNROLL
        for (int i = 0; i < P::slices; i++) {
            uint32_t slice = warp_id() + i * SPLIT_WARPS;
            if (slice < D / 16)
                attn_values<D, P::padded>(&s->chunk.o[2 * i], p, v_tile, w * ATTN_PAGE, slice);
        }
    }
    UNROLL
    for (int r = 0; r < 2; r++) {
        s->chunk.sum[r] = fmaf(s->chunk.sum[r], decay[r], add[r]);
        s->chunk.max[r] = max[r];
    }
}

/* One tile. Before: its K, and q if it is an item's first, are visible to all. After: so is the
 * next tile's K. Barriers: the first publishes the maxima (and says that nobody reads the tile
 * before any more: its stage takes the copies of a later one), the second the weights and V. */
template <int D>
DEVICE void split_tile(const struct attn_job *j, const struct attn_walk *w,
                       struct split_state<D> *s, struct split_loader *l, char *smem, uint32_t stage)
{
    typedef split_plan<D> P;
    char *tile = smem + stage * P::stage;
    uint32_t pos = w->tile * ATTN_TILE + warp_id() * ATTN_PAGE;
    struct attn_scores sc = {};
    UNROLL
    for (uint32_t k = 0; k < D / 16; k++)
        attn_score<D, P::padded>(&sc, s->q[k], tile, warp_id() * ATTN_PAGE, k);
    attn_mask(&sc, pos, s->hi, j->window);
    UNROLL
    for (int r = 0; r < 2; r++) {
        float m = attn_quad_max(attn_score_max(&sc, r));
        if (lane_id() % 4 == 0)
            ((float *)(smem + P::maxima))[(lane_id() / 4 + 8 * r) * SPLIT_WARPS + warp_id()] = m;
    }
    block_sync();
    split_load_next<D>(j, l, smem);
    float max[2], add[2];
    uint32_t p[4];
    split_maxima<D>(&s->chunk, smem, max);
    attn_weights(&sc, max, j->scale, p, add);
    ((uint4 *)(smem + P::weights))[threadIdx.x] = make_uint4(p[0], p[1], p[2], p[3]);
    ((float2 *)(smem + P::adds))[threadIdx.x] = make_float2(add[0], add[1]);
    cp_async_wait<2 * P::stages - 3>(); /* V of this tile, K of the next */
    block_sync();
    split_add_tile<D>(s, tile + P::tile, smem, max, j->scale);
}

/* ---- the end of an item ---- */

/* Parts of the block that have a position in the window, and the first of them. */
DEVICE uint32_t split_parts(const struct attn_walk *w, const struct attn_item *item,
                            uint32_t *first)
{
    uint32_t after = w->hi / ATTN_CHUNK - w->lo / ATTN_CHUNK; /* chunks after the window's first */
    *first = item->n_part - 1u > after ? item->n_part - 1 - after : 0;
    return item->n_part - *first;
}

/* The slot of a pair's partial result. */
DEVICE size_t split_slot(const struct attn_job *j, const struct attn_item *item, uint32_t head,
                         uint32_t part, uint32_t pair)
{
    return (size_t)item->slot * j->n_kv_head +
           (size_t)(part * j->n_kv_head + head) * attn_pairs(item) + pair;
}

/* The result of one pair, from all warps: to out, or to the part's slot. */
template <int D>
DEVICE void split_store(const struct attn_job *j, const struct attn_item *item, uint32_t head,
                        const struct split_state<D> *s, int r, bool is_whole)
{
    typedef split_plan<D> P;
    uint32_t pair = lane_id() / 4 + 8 * r, t = lane_id() % 4;
    if (pair >= attn_pairs(item))
        return;
    size_t to =
        is_whole ? attn_pair(j, item, head, pair) : split_slot(j, item, head, item->part, pair);
    float inv = 1.0f / s->total.sum[r];
    UNROLL
    for (int i = 0; i < 2 * P::slices; i++) {
        uint32_t dim = (warp_id() + i / 2 * SPLIT_WARPS) * 16 + i % 2 * 8 + 2 * t;
        if (dim >= j->d_head)
            continue;
        float lo = s->total.o[i][2 * r], hi = s->total.o[i][2 * r + 1];
        if (is_whole)
            *(uint32_t *)(j->out + to * j->d_head + dim) =
                bf16x2_pack(attn_result(lo, inv), attn_result(hi, inv));
        else
            *(float2 *)(j->part + to * j->d_head + dim) = make_float2(lo, hi);
    }
    if (warp_id() == 0 && t == 0) {
        if (!is_whole)
            *(float2 *)(j->part_stat + 2 * to) = make_float2(s->total.max[r], s->total.sum[r]);
        else if (j->lse)
            j->lse[to] = attn_lse(s->total.max[r], s->total.sum[r], j->scale);
    }
}

/* The parts' results, in order, as attn_fold does it; each thread 4 of d_head at a time. */
DEVICE void split_merge(const struct attn_job *j, const struct attn_item *item, uint32_t head,
                        uint32_t first)
{
    uint32_t quads = j->d_head / 4, pairs = attn_pairs(item);
    for (uint32_t at = threadIdx.x; at < pairs * quads; at += SPLIT_THREADS) {
        uint32_t pair = at / quads, dim = at % quads * 4;
        float max = -INFINITY, sum = 0, o[4] = {0, 0, 0, 0};
        UNROLL
        for (uint32_t i = first; i < item->n_part; i++) {
            size_t slot = split_slot(j, item, head, i, pair);
            float2 stat = *(const float2 *)(j->part_stat + 2 * slot);
            float4 v = *(const float4 *)(j->part + slot * j->d_head + dim);
            float next = fmaxf(max, stat.x);
            float a = attn_decay(max, next, j->scale), b = attn_decay(stat.x, next, j->scale);
            max = next;
            sum = attn_blend(sum, a, stat.y, b);
            o[0] = attn_blend(o[0], a, v.x, b);
            o[1] = attn_blend(o[1], a, v.y, b);
            o[2] = attn_blend(o[2], a, v.z, b);
            o[3] = attn_blend(o[3], a, v.w, b);
        }
        size_t to = attn_pair(j, item, head, pair);
        float inv = 1.0f / sum;
        *(uint2 *)(j->out + to * j->d_head + dim) =
            make_uint2(bf16x2_pack(attn_result(o[0], inv), attn_result(o[1], inv)),
                       bf16x2_pack(attn_result(o[2], inv), attn_result(o[3], inv)));
        if (dim == 0 && j->lse)
            j->lse[to] = attn_lse(max, sum, j->scale);
    }
}

/* The last of a block's parts to be done, whichever it is, merges them all and leaves the counter
 * as it was. */
template <int D>
DEVICE void split_end(const struct attn_job *j, const struct attn_walk *w,
                      const struct split_state<D> *s, char *smem)
{
    struct attn_item item = attn_walk_item(j, w);
    uint32_t first, parts = split_parts(w, &item, &first);
    UNROLL
    for (int r = 0; r < 2; r++)
        split_store<D>(j, &item, w->head, s, r, parts == 1);
    if (parts == 1)
        return;
    uint32_t *flag = (uint32_t *)(smem + split_plan<D>::flag);
    block_sync(); /* all of the part is written */
    if (threadIdx.x == 0) {
        uint32_t *done = j->done + (size_t)item.block * j->n_kv_head + w->head;
        fence_device();
        *flag = atomic_add_u32(done, 1) + 1 == parts;
        if (*flag)
            atomic_add_u32(done, 0u - parts);
        fence_device();
    }
    block_sync();
    if (*flag)
        split_merge(j, &item, w->head, first);
}

template <int D>
static KERNEL(SPLIT_THREADS, split_plan<D>::blocks) void attn_split(struct attn_job j)
{
    typedef split_plan<D> P;
    SMEM(smem);
    struct attn_walk w = {};
    struct split_loader l = {};
    struct split_state<D> s;
    attn_walk_begin(&j, &w, 0, j.list->n_split);
    attn_walk_begin(&j, &l.walk, 0, j.list->n_split);
    l.any = l.fresh = attn_walk_next(&j, &l.walk);
    if (l.any)
        attn_walk_pages(&j, &l.walk);
    pdl_wait(); /* q and the newest K and V are the work of the kernel before */
    pdl_trigger();
    if (!l.any)
        return;
    NO_UNROLL
    for (int i = 0; i < P::stages - 1; i++)
        split_load_next<D>(&j, &l, smem);
    cp_async_wait<2 * P::stages - 3>();
    block_sync();
    uint32_t stage = 0;
    while (attn_walk_next(&j, &w)) {
        split_begin<D>(&j, &w, &s);
        UNROLL
        for (uint32_t k = 0; k < D / 16; k++)
            attn_load_q<D, P::padded>(s.q[k], smem + stage * P::stage + 2 * P::tile, k);
        NO_UNROLL
        for (; w.tile < w.tile_end; w.tile++) {
            split_tile<D>(&j, &w, &s, &l, smem, stage);
            stage = stage + 1 == P::stages ? 0 : stage + 1;
            if ((w.tile + 1) % (ATTN_CHUNK / ATTN_TILE) == 0 || w.tile + 1 == w.tile_end)
                attn_fold(&s.total, &s.chunk, j.scale);
        }
        split_end<D>(&j, &w, &s, smem);
    }
}

/* ---- launchers ---- */

struct cuda_attention {
    struct attn_shape shape;
    void *part, *stat, *done;
};

static struct attn_shape shape_of(const struct cuda_backend *c)
{
    const struct backend_limits *lim = &c->limits;
    struct attn_shape s = {};
    s.n_head = lim->n_head;
    s.n_kv_head = lim->n_kv_head;
    s.d_head = lim->d_head;
    s.sm_count = c->sm_count;
    s.rows_max = lim->rows_max;
    s.chunks_max = lim->seqs_max * (lim->page_stride / (ATTN_CHUNK / ATTN_PAGE) + 1);
    s.slots_max = attn_slots_default(&s);
    return s;
}

size_t cuda_attention_list_bytes_max(const struct cuda_backend *c)
{
    struct attn_shape s = shape_of(c);
    return attn_list_bytes_max(&s);
}

size_t cuda_attention_plan(const struct cuda_backend *c, const struct attn_rows *rows,
                           struct attn_list *out)
{
    return attn_plan(&c->attention->shape, rows, out);
}

enum status cuda_attention_prepare(struct cuda_backend *c, struct errtext *err)
{
    struct cuda_attention *a = c->attention = (struct cuda_attention *)mem_alloc(sizeof(*a));
    const struct attn_shape *s = &a->shape;
    a->shape = shape_of(c);
    size_t pairs = (size_t)s->slots_max * s->n_kv_head;
    enum status st = cuda_take(c, &a->part, pairs * s->d_head * sizeof(float),
                               "partial results of attention", err);
    if (!st)
        st = cuda_take(c, &a->stat, pairs * 2 * sizeof(float), "partial results of attention", err);
    if (!st)
        st = cuda_take(c, &a->done, attn_count_bytes(s), "counters of attention", err);
    return st ? st : gpu_fill(c->stream, a->done, 0, attn_count_bytes(s));
}

void cuda_attention_release(struct cuda_backend *c)
{
    if (!c->attention)
        return;
    gpu_free(c->gpu, c->attention->part);
    gpu_free(c->gpu, c->attention->stat);
    gpu_free(c->gpu, c->attention->done);
    mem_free(c->attention);
    c->attention = NULL;
}

static struct attn_job job_of(const struct cuda_backend *c, const struct attention_args *a)
{
    struct attn_job j = {};
    j.out = (bf16_t *)a->out;
    j.q = (const bf16_t *)a->q;
    j.lse = a->keep_lse;
    j.kv = (const bf16_t *)a->kv.base + a->layer * a->kv.stride_layer;
    j.stride_page = a->kv.stride_page;
    j.stride_kv = a->kv.stride_kv;
    j.stride_head = a->kv.stride_head;
    j.stride_tok = a->kv.stride_tok;
    j.list = c->step.attn;
    j.part = (float *)c->attention->part;
    j.part_stat = (float *)c->attention->stat;
    j.done = (uint32_t *)c->attention->done;
    j.scale = a->scale * 1.4426950408889634f;
    j.n_head = a->n_head;
    j.n_kv_head = a->n_kv_head;
    j.group = a->n_head / a->n_kv_head;
    j.d_head = a->d_head;
    j.window = a->window;
    return j;
}

template <int D> static void split_launch(const struct attn_job *j, uint32_t sm_count, void *stream)
{
    typedef split_plan<D> P;
    LAUNCH_PDL(attn_split<D>, sm_count * P::blocks, SPLIT_THREADS, P::bytes, stream, *j);
}

template <int D> static void split_allow(enum status *st)
{
    const struct gpu_smem mine = {kernel_of(attn_split<D>), split_plan<D>::bytes};
    *st = *st ? *st : gpu_smem_allow(&mine, 1);
}

enum status cuda_attn_split_allow(void)
{
    enum status st = STATUS_OK;
    ATTN_EACH_HEAD(split_allow, &st);
    return st;
}

/* Strides in units of 16 bytes, as cp.async wants them. */
static bool is_aligned(const struct kv_cache *kv)
{
    return kv->stride_page % 8 == 0 && kv->stride_layer % 8 == 0 && kv->stride_kv % 8 == 0 &&
           kv->stride_head % 8 == 0 && kv->stride_tok % 8 == 0;
}

enum status cuda_attention(struct backend *b, const struct attention_args *a)
{
    struct cuda_backend *c = cuda_of(b);
    if (a->n_tok == 0)
        return STATUS_OK;
    const struct attn_shape *s = &c->attention->shape;
    CHECK(a->n_head == s->n_head && a->n_kv_head == s->n_kv_head && a->d_head == s->d_head);
    CHECK(a->d_head % 8 == 0 && a->d_head <= ATTN_HEAD_MAX && a->scale > 0);
    CHECK(a->kv.dtype == DTYPE_BF16 && a->kv.page_tok == ATTN_PAGE && is_aligned(&a->kv));
    struct attn_job j = job_of(c, a);
    if (c->pass.attn_decode)
        ATTN_BY_HEAD(a->d_head, split_launch, &j, c->sm_count, c->stream);
    if (c->pass.attn_prefill)
        attn_full_launch(&j, c->sm_count, c->stream);
    return gpu_launched("attention");
}
