/* attention, the kernel for many rows of one sequence: FlashAttention-2 over pages, causal, with a
 * window. Formula and arithmetic: attention.cuh; why its bits equal attn_split's: attention.cu.
 *
 * Mapping   a persistent block of 8 warps an SM has up to 128 (row, head) pairs of one kv head,
 * token after token, so that K and V are read once for a whole group of heads. A warp keeps q, the
 *           chunk's sums and the total of its 16 pairs in registers. A tile (64 positions of K and
 * of V, padded rows) is copied two ahead, across items, with one barrier a tile; tiles that no pair
 * of the warp sees are skipped, those at the edge masked. Above d_head 128 the sums do not fit: two
 * warps share 16 pairs, each does all scores and half of d_head, and q is read from shared memory
 * for every tile. Bound     tensor cores by mma.sync; ldmatrix comes first: 64 of 512 bytes for 128
 * mma a warp and tile (d_head 128) keep shared memory busy 1.2 times as long as mma at 62 % of its
 * peak rate. Lists are longest first and dealt back and forth, so that SMs end together. Compiled
 * sm_90, nvcc 13.0, no spills: 198, 229, 248, 255, 254 registers for d_head 64, 80, 96, 128, 256.
 * Not yet run on a GPU. Rejected  32 pairs a warp, which halves ldmatrix: the second set of sums
 * does not fit beside the first, and through L2 it costs half as much traffic again as K and V. */
#include "kernels/cuda/attention.cuh"

#define FULL_WARPS   8
#define FULL_THREADS (FULL_WARPS * LANES)

/* A warp has 16 pairs and, of d_head, `slices` slices of 16: all, or half where all do not fit in
 * registers (then two warps compute the same scores). */
template <int D> struct full_plan {
    static const int halves = D > 128 ? 2 : 1;
    static const int pairs = FULL_WARPS / halves * 16;
    static const int slices = D / 16 / halves;
    static const bool keep_q = D <= 128; /* in registers */
    static const int stages = D > 128 ? 2 : 3;
    /* bytes */
    static const int row = 2 * D + 16;
    static const int tile = ATTN_TILE * row;
    static const int q = pairs * row;
    static const int q_all = stages * 2 * tile; /* where q begins: one buffer for each stage */
    static const int bytes = q_all + stages * q;
    static_assert(bytes <= 227 * 1024, "shared memory of a block");
};

struct full_loader {
    struct attn_walk walk;
    bool any, fresh;
    uint32_t stage, q_stage; /* q_stage: of the item's q */
};

/* Warps 0..3 copy the tile's K, a page each, warps 4..7 its V. */
template <int D>
DEVICE void full_load_next(const struct attn_job *j, struct full_loader *l, char *smem)
{
    typedef full_plan<D> P;
    if (l->any) {
        uint32_t is_v = warp_id() / 4;
        attn_copy_page<D, true>(j, &l->walk, smem + (l->stage * 2 + is_v) * P::tile, warp_id() % 4,
                                is_v);
        if (l->fresh)
            attn_copy_q<D, true, P::pairs, FULL_THREADS>(j, &l->walk,
                                                         smem + P::q_all + l->q_stage * P::q);
    }
    cp_async_commit();
    l->stage = l->stage + 1 == P::stages ? 0 : l->stage + 1;
    if (!l->any)
        return;
    l->any = attn_walk_step(j, &l->walk, &l->fresh);
    if (l->fresh)
        l->q_stage = l->q_stage + 1 == P::stages ? 0 : l->q_stage + 1;
}

template <int D> struct full_state {
    uint32_t q[full_plan<D>::keep_q ? D / 16 : 1][4];
    struct attn_sums<2 * full_plan<D>::slices> chunk, total;
    uint32_t hi[2];             /* positions of the lane's pairs */
    uint32_t hi_least, hi_most; /* of the warp's; least > most: it has none */
};

template <int D> DEVICE uint32_t full_pair(int r)
{
    return warp_id() / full_plan<D>::halves * 16 + lane_id() / 4 + 8 * r;
}

template <int D>
DEVICE void full_begin(const struct attn_job *j, const struct attn_walk *w, struct full_state<D> *s)
{
    attn_sums_clear(&s->chunk);
    attn_sums_clear(&s->total);
    struct attn_item item = attn_walk_item(j, w);
    uint32_t first = warp_id() / full_plan<D>::halves * 16, pairs = attn_pairs(&item);
    uint32_t last = first + 16 < pairs ? first + 15 : pairs - 1;
    s->hi_least = item.pos + first / item.n_head;
    s->hi_most = item.pos + last / item.n_head;
    if (first >= pairs) {
        s->hi_least = 1;
        s->hi_most = 0;
    }
    UNROLL
    for (int r = 0; r < 2; r++) {
        uint32_t pair = full_pair<D>(r);
        s->hi[r] = item.pos + (pair < pairs ? pair / item.n_head : 0);
    }
}

/* Does some pair of the warp see the tile; does some not see all of it? */
template <int D> DEVICE bool full_sees(const struct full_state<D> *s, uint32_t pos, uint32_t window)
{
    return s->hi_least <= s->hi_most && pos <= s->hi_most &&
           !(window && pos + ATTN_TILE - 1 + window <= s->hi_least);
}
template <int D>
DEVICE bool full_is_masked(const struct full_state<D> *s, uint32_t pos, uint32_t window)
{
    return pos + ATTN_TILE - 1 > s->hi_least || (window && pos + window <= s->hi_most);
}

/* One tile by one warp. */
template <int D>
DEVICE void full_tile(struct full_state<D> *s, uint32_t pos, const char *k_tile, const char *v_tile,
                      const char *q_rows, const struct attn_job *j)
{
    typedef full_plan<D> P;
    struct attn_scores sc[4] = {};
    UNROLL
    for (uint32_t k = 0; k < D / 16; k++) {
        uint32_t q[4];
        if (!P::keep_q)
            attn_load_q<D, true>(q, q_rows, k);
        UNROLL
        for (uint32_t i = 0; i < 4; i++)
            attn_score<D, true>(&sc[i], P::keep_q ? s->q[P::keep_q ? k : 0] : q, k_tile,
                                i * ATTN_PAGE, k);
    }
    if (full_is_masked(s, pos, j->window)) {
        UNROLL
        for (uint32_t i = 0; i < 4; i++)
            attn_mask(&sc[i], pos + i * ATTN_PAGE, s->hi, j->window);
    }
    float max[2], decay[2], sum[2];
    UNROLL
    for (int r = 0; r < 2; r++) {
        float m = fmaxf(fmaxf(attn_score_max(&sc[0], r), attn_score_max(&sc[1], r)),
                        fmaxf(attn_score_max(&sc[2], r), attn_score_max(&sc[3], r)));
        max[r] = fmaxf(s->chunk.max[r], attn_quad_max(m));
        decay[r] = attn_decay(s->chunk.max[r], max[r], j->scale);
        s->chunk.max[r] = max[r];
    }
    /* a maximum that stays decays by exactly 1 */
    if (warp_ballot(decay[0] != 1.0f || decay[1] != 1.0f)) {
        UNROLL
        for (int i = 0; i < 2 * P::slices; i++)
            UNROLL
        for (int e = 0; e < 4; e++)
            s->chunk.o[i][e] *= decay[e / 2];
    }
    UNROLL
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t p[4];
        float add[2];
        attn_weights(&sc[i], max, j->scale, p, add);
        UNROLL
        for (int r = 0; r < 2; r++)
            sum[r] = i ? sum[r] + add[r] : add[r];
        UNROLL
        for (uint32_t o = 0; o < P::slices; o++)
            attn_values<D, true>(&s->chunk.o[2 * o], p, v_tile, i * ATTN_PAGE,
                                 warp_id() % P::halves * P::slices + o);
    }
    UNROLL
    for (int r = 0; r < 2; r++)
        s->chunk.sum[r] = fmaf(s->chunk.sum[r], decay[r], sum[r]);
}

template <int D>
DEVICE void full_store(const struct attn_job *j, const struct attn_walk *w,
                       const struct full_state<D> *s)
{
    typedef full_plan<D> P;
    struct attn_item item = attn_walk_item(j, w);
    UNROLL
    for (int r = 0; r < 2; r++) {
        uint32_t pair = full_pair<D>(r), half = warp_id() % P::halves;
        if (pair >= attn_pairs(&item))
            continue;
        size_t to = attn_pair(j, &item, w->head, pair);
        float inv = 1.0f / s->total.sum[r];
        UNROLL
        for (int i = 0; i < 2 * P::slices; i++) {
            uint32_t dim = half * P::slices * 16 + i * 8 + lane_id() % 4 * 2;
            if (dim < j->d_head)
                *(uint32_t *)(j->out + to * j->d_head + dim) =
                    bf16x2_pack(attn_result(s->total.o[i][2 * r], inv),
                                attn_result(s->total.o[i][2 * r + 1], inv));
        }
        if (j->lse && half == 0 && lane_id() % 4 == 0)
            j->lse[to] = attn_lse(s->total.max[r], s->total.sum[r], j->scale);
    }
}

/* One barrier a tile: it publishes the tile's K and V (and q), and says that the tile before is
 * read. */
template <int D> static KERNEL(FULL_THREADS, 1) void attn_full(struct attn_job j)
{
    typedef full_plan<D> P;
    SMEM(smem);
    struct attn_walk w = {};
    struct full_loader l = {};
    struct full_state<D> s;
    attn_walk_begin(&j, &w, j.list->n_split, j.list->n_prefill);
    attn_walk_begin(&j, &l.walk, j.list->n_split, j.list->n_prefill);
    l.any = l.fresh = attn_walk_next(&j, &l.walk);
    if (l.any)
        attn_walk_pages(&j, &l.walk);
    pdl_wait(); /* q and the newest K and V are the work of the kernel before */
    pdl_trigger();
    if (!l.any)
        return;
    NO_UNROLL
    for (int i = 0; i < P::stages - 1; i++)
        full_load_next<D>(&j, &l, smem);
    uint32_t stage = 0, q_stage = 0;
    while (attn_walk_next(&j, &w)) {
        full_begin<D>(&j, &w, &s);
        const char *q_rows = smem + P::q_all + q_stage * P::q + warp_id() / P::halves * 16 * P::row;
        bool fresh = true;
        NO_UNROLL
        for (; w.tile < w.tile_end; w.tile++) {
            cp_async_wait<P::stages - 2>();
            block_sync();
            full_load_next<D>(&j, &l, smem);
            if (P::keep_q && fresh) {
                UNROLL
                for (uint32_t k = 0; k < D / 16; k++)
                    attn_load_q<D, true>(s.q[P::keep_q ? k : 0], q_rows, k);
                fresh = false;
            }
            uint32_t pos = w.tile * ATTN_TILE;
            const char *k_tile = smem + stage * 2 * P::tile;
            if (full_sees(&s, pos, j.window))
                full_tile<D>(&s, pos, k_tile, k_tile + P::tile, q_rows, &j);
            stage = stage + 1 == P::stages ? 0 : stage + 1;
            if ((w.tile + 1) % (ATTN_CHUNK / ATTN_TILE) == 0 || w.tile + 1 == w.tile_end)
                attn_fold(&s.total, &s.chunk, j.scale);
        }
        q_stage = q_stage + 1 == P::stages ? 0 : q_stage + 1;
        full_store<D>(&j, &w, &s);
    }
}

/* ---- launcher ---- */

template <int D> static void full_launch(const struct attn_job *j, uint32_t sm_count, void *stream)
{
    LAUNCH_PDL(attn_full<D>, sm_count, FULL_THREADS, full_plan<D>::bytes, stream, *j);
}

void attn_full_launch(const struct attn_job *j, uint32_t sm_count, void *stream)
{
    ATTN_BY_HEAD(j->d_head, full_launch, j, sm_count, stream);
}

template <int D> static void full_allow(enum status *st)
{
    const struct gpu_smem mine = {kernel_of(attn_full<D>), full_plan<D>::bytes};
    *st = *st ? *st : gpu_smem_allow(&mine, 1);
}

enum status cuda_attn_full_allow(void)
{
    enum status st = STATUS_OK;
    ATTN_EACH_HEAD(full_allow, &st);
    return st;
}
