/* pick: a row's token and its log-probabilities; top: log-probabilities alone.
 *
 *   pick   block a row. A draw walks the candidates in the order (logit descending, id ascending),
 *          but only the places where top_k, top_p and the draw itself cut have to be known, so
 *          nothing is sorted but the few candidates around a cut: the bucket of a cut by a scan,
 *          its candidates gathered and sorted in shared memory (with all better ones, if they fit:
 *          later cuts then need no more reading), the cut among them. A bucket that is too full is
 *          split by the integer order of floats; equal logits by id. At most three cuts.
 *   top    warp a row.
 *
 * Bound     bytes: 4 V a gather, from L2; greedy rows read nothing but a tile
 * Registers pick 64 (1024 threads, 48 KB of shared memory), top 99 (one warp); no spills. Not yet
 *           run on a GPU. */
#include "kernels/cuda/pick.cuh"

#define PICK_THREADS BUCKETS
#define PICK_MAX     2048 /* candidates sorted at once */

/* ---- places in the order of candidates ---- */

/* Candidates up to and including `id` weigh `sum`. */
struct pick_place {
    uint64_t sum;
    uint32_t id;
};

/* Candidates with keys in [lo, hi]; those before weigh base_sum. */
struct span {
    uint64_t base_sum;
    uint32_t base_count, count, lo, hi;
};

/* A place is reached when `limit` candidates are, or the sum reaches `at` (exceeds, if strict). */
struct goal {
    double at;
    uint32_t limit;
    bool strict;
};

struct pick_smem {
    uint64_t sum[BUCKETS];           /* cumulative */
    uint64_t candidate[PICK_MAX];    /* key << 32 | id, sorted */
    uint64_t weight[PICK_MAX];       /* cumulative; a bucket's words while it is split */
    uint32_t ties[SAMPLE_TILES_MAX]; /* of each tile */
    uint64_t warp_sum[LANES];
    uint32_t warp_count[LANES];
    uint32_t count[BUCKETS]; /* cumulative */
    struct ruler ruler;
    struct span span, have; /* of the cut; of `candidate` */
    struct pick_place place;
    uint32_t bucket, edge[2], filled;
};

struct picker {
    struct pick_smem *s;
    const float *x; /* the row, adjusted */
    const struct tile_stat *tile;
    struct ruler u;
    uint32_t n_vocab, n_tile;
};

DEVICE bool reached(const struct goal *g, uint32_t count, uint64_t sum)
{
    return count >= g->limit || (g->strict ? (double)sum > g->at : (double)sum >= g->at);
}

/* The least n in [lo, hi) for which f(n), which does not become false again; hi: none. */
template <class F> DEVICE uint32_t least(uint32_t lo, uint32_t hi, F f)
{
    NO_UNROLL
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (f(mid))
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo;
}

/* Inclusive sums over the threads of the block. */
DEVICE void block_scan(struct pick_smem *s, uint32_t *count, uint64_t *sum)
{
    UNROLL
    for (uint32_t d = 1; d < LANES; d *= 2) {
        uint32_t from = (lane_id() - d) % LANES, c = warp_shfl(*count, from);
        uint64_t v = warp_shfl_u64(*sum, from);
        *count += lane_id() >= d ? c : 0;
        *sum += lane_id() >= d ? v : 0;
    }
    if (lane_id() == LANES - 1) {
        s->warp_count[warp_id()] = *count;
        s->warp_sum[warp_id()] = *sum;
    }
    block_sync();
    NO_UNROLL
    for (uint32_t w = 0; w < warp_id(); w++) {
        *count += s->warp_count[w];
        *sum += s->warp_sum[w];
    }
    block_sync();
}

/* The lowest key whose bucket is b or behind. */
DEVICE uint32_t bucket_edge(const struct ruler *u, uint32_t b)
{
    if (b == 0)
        return u->best;
    if (b == BUCKETS)
        return KEY_LAST + 1;
    return least(u->best, KEY_LAST + 1,
                 [=](uint32_t key) { return bucket_of(u, key_logit(key)) >= b; });
}

/* Logits i .. i+3 of this thread as keys in [lo, hi]; KEY_NONE: not there, or not in the range. */
DEVICE bool read_keys(const struct picker *p, uint32_t i, const struct span *in, uint32_t key[4])
{
    float v[4];
    bool any = false;
    if (p->tile[i / SCORE_TILE].pick_key > in->hi)
        return false;
    read_quad(v, p->x, i, p->n_vocab, is_aligned_16(p->x));
    UNROLL
    for (uint32_t c = 0; c < 4; c++) {
        key[c] = logit_key(v[c]);
        if (i + c >= p->n_vocab || key[c] < in->lo || key[c] > in->hi)
            key[c] = KEY_NONE;
        any |= key[c] != KEY_NONE;
    }
    return any;
}

/* f(key, id) for the logits whose keys are in the span, by all threads of the block. */
template <class F> DEVICE void each_key(const struct picker *p, const struct span *in, F f)
{
    uint32_t key[4];
    NO_UNROLL
    for (uint32_t i = 4 * threadIdx.x; i < p->n_vocab; i += 4 * PICK_THREADS) {
        if (!read_keys(p, i, in, key))
            continue;
        NO_UNROLL
        for (uint32_t c = 0; c < 4; c++)
            if (key[c] != KEY_NONE)
                f(key[c], i + c);
    }
}

/* f(key, id, weight) for those that are candidates. */
template <class F> DEVICE void each_candidate(const struct picker *p, const struct span *in, F f)
{
    each_key(p, in, [=](uint32_t key, uint32_t id) {
        uint64_t w;
        if (weigh_logit(&p->u, key_logit(key), &w))
            f(key, id, w);
    });
}

/* The lowest and highest key there is in the span. */
DEVICE void narrow(const struct picker *p, struct span *in)
{
    struct pick_smem *s = p->s;
    uint32_t lo = KEY_NONE, hi = 0;
    each_key(p, in, [&](uint32_t key, uint32_t) {
        lo = key < lo ? key : lo;
        hi = key > hi ? key : hi;
    });
    uint64_t both = (uint64_t)warp_min_u32(lo) << 32 | warp_min_u32(~hi);
    if (lane_id() == 0)
        s->warp_sum[warp_id()] = both;
    block_sync();
    both = s->warp_sum[lane_id()];
    in->lo = warp_min_u32((uint32_t)(both >> 32));
    in->hi = ~warp_min_u32((uint32_t)both);
    block_sync();
}

/* Make the span the part, of at most 1024 equal ranges of keys, in which the goal is reached. */
DEVICE void split(const struct picker *p, const struct goal *g, struct span *in)
{
    struct pick_smem *s = p->s;
    uint32_t *words = (uint32_t *)s->weight, *count = words, *lo = words + BUCKETS;
    uint32_t *hi = words + 2 * BUCKETS, shift = 0, b = threadIdx.x, first = in->lo;
    while ((in->hi - in->lo) >> shift >= BUCKETS)
        shift++;
    for (uint32_t i = threadIdx.x; i < BUCKET_WORDS; i += PICK_THREADS)
        words[i] = 0;
    if (threadIdx.x == 0)
        s->have.count = 0; /* its weights were there */
    block_sync();
    each_candidate(p, in, [=](uint32_t key, uint32_t, uint64_t w) {
        const uint32_t at = (key - first) >> shift;
        atomic_add_u32(&count[at], 1);
        add_weight(&lo[at], &hi[at], w);
    });
    block_sync();
    uint32_t own_count = count[b], upto_count = own_count;
    uint64_t own_sum = (uint64_t)hi[b] << 32 | lo[b], upto_sum = own_sum;
    block_scan(s, &upto_count, &upto_sum);
    struct span part = {in->base_sum + upto_sum - own_sum, in->base_count + upto_count - own_count,
                        own_count, in->lo + (b << shift), 0};
    part.hi = part.lo + ((1u << shift) - 1);
    part.hi = part.hi < in->hi ? part.hi : in->hi;
    if (reached(g, in->base_count + upto_count, in->base_sum + upto_sum) &&
        (b == 0 || !reached(g, part.base_count, part.base_sum)))
        s->span = part;
    block_sync();
    *in = s->span;
}

/* Equal logits, more than can be sorted: the place by counting ids. */
DEVICE void place_among_ties(const struct picker *p, const struct goal *g, const struct span *in)
{
    struct pick_smem *s = p->s;
    uint32_t before = 0, tile = 0;
    uint64_t w;
    weigh_logit(&p->u, key_logit(in->lo), &w);
    const uint32_t lo = least(0, in->count - 1, [=](uint32_t n) {
        return reached(g, in->base_count + n + 1, in->base_sum + (n + 1) * w);
    });
    for (uint32_t t = warp_id(); t < p->n_tile; t += PICK_THREADS / LANES) {
        uint32_t n = 0;
        NO_UNROLL
        for (uint32_t i = lane_id(); i < SCORE_TILE; i += LANES) {
            uint32_t id = t * SCORE_TILE + i;
            n += id < p->n_vocab && logit_key(p->x[id]) == in->lo;
        }
        n = (uint32_t)warp_sum_u64(n);
        if (lane_id() == 0)
            s->ties[t] = n;
    }
    block_sync();
    if (warp_id() != 0)
        return;
    while (before + s->ties[tile] <= lo)
        before += s->ties[tile++];
    NO_UNROLL
    for (uint32_t i = lane_id(); i < SCORE_TILE; i += LANES) {
        uint32_t id = tile * SCORE_TILE + i;
        bool match = id < p->n_vocab && logit_key(p->x[id]) == in->lo;
        uint32_t mask = warp_ballot(match), below = mask & ((1u << lane_id()) - 1);
        if (match && before + bit_count(below) == lo)
            s->place = {in->base_sum + (lo + 1) * w, id};
        before += bit_count(mask);
    }
}

/* Bitonic, ascending; room is a power of two, at most PICK_MAX. */
DEVICE void sort_candidates(uint64_t *candidate, uint32_t room)
{
    const uint32_t steps = bit_count(room - 1), t = threadIdx.x;
    NO_UNROLL
    for (uint32_t k = 0; k < steps * steps; k++) {
        const uint32_t width = 2u << k / steps, step = width >> (k % steps + 1);
        const uint32_t i = 2 * t - (t & (step - 1));
        if (step == 0)
            continue; /* a width has as many steps as its order */
        if (i + step < room) {
            uint64_t a = candidate[i], b = candidate[i + step];
            if ((a > b) == ((i & width) == 0)) {
                candidate[i] = b;
                candidate[i + step] = a;
            }
        }
        block_sync();
    }
}

/* The span's candidates into shared memory, sorted, with cumulative weights. */
DEVICE void gather(const struct picker *p, const struct span *in)
{
    struct pick_smem *s = p->s;
    uint32_t room = 2;
    while (room < in->count)
        room *= 2;
    for (uint32_t i = threadIdx.x; i < room; i += PICK_THREADS)
        s->candidate[i] = ~0ull;
    if (threadIdx.x == 0)
        s->filled = 0;
    block_sync();
    each_candidate(p, in, [=](uint32_t key, uint32_t id, uint64_t) {
        uint32_t at = atomic_add_u32(&s->filled, 1);
        if (at < room)
            s->candidate[at] = (uint64_t)key << 32 | id;
    });
    block_sync();
    sort_candidates(s->candidate, room);
    uint32_t i0 = 2 * threadIdx.x, count = 0;
    uint64_t w[2] = {0, 0}, sum;
    UNROLL
    for (uint32_t c = 0; c < 2; c++)
        if (i0 + c < in->count)
            weigh_logit(&p->u, key_logit((uint32_t)(s->candidate[i0 + c] >> 32)), &w[c]);
    sum = w[0] + w[1];
    block_scan(s, &count, &sum);
    if (i0 < in->count)
        s->weight[i0] = sum - w[1];
    if (i0 + 1 < in->count)
        s->weight[i0 + 1] = sum;
    if (threadIdx.x == 0)
        s->have = *in;
    block_sync();
}

DEVICE void place_in_candidates(struct pick_smem *s, const struct goal *g)
{
    struct span in = s->have;
    for (uint32_t i = threadIdx.x; i < in.count; i += PICK_THREADS) {
        uint32_t count = in.base_count + i;
        uint64_t before = in.base_sum + (i ? s->weight[i - 1] : 0);
        uint64_t sum = in.base_sum + s->weight[i];
        if (reached(g, count + 1, sum) && (i == 0 || !reached(g, count, before)))
            s->place = {sum, (uint32_t)s->candidate[i]};
    }
}

/* s->place: the first at which the goal is reached. It exists: the limit is at most the count. */
DEVICE void find_place(const struct picker *p, struct goal g)
{
    struct pick_smem *s = p->s;
    uint32_t b = threadIdx.x;
    if (reached(&g, s->count[b], s->sum[b]) &&
        (b == 0 || !reached(&g, s->count[b - 1], s->sum[b - 1])))
        s->bucket = b;
    block_sync();
    b = s->bucket;
    if (threadIdx.x < 2)
        s->edge[threadIdx.x] = bucket_edge(&p->u, b + threadIdx.x);
    block_sync();
    struct span in = {0, 0, s->count[b], p->u.best, s->edge[1] - 1}, have = s->have;
    if (in.count > PICK_MAX && b > 0)
        in = {s->sum[b - 1], s->count[b - 1], in.count - s->count[b - 1], s->edge[0], in.hi};
    bool held = have.count > 0 && have.lo <= s->edge[0] && in.hi <= have.hi;
    NO_UNROLL
    while (!held && in.count > PICK_MAX) {
        narrow(p, &in);
        if (in.lo == in.hi)
            break;
        split(p, &g, &in);
    }
    if (!held && in.count > PICK_MAX) {
        place_among_ties(p, &g, &in);
    } else {
        if (!held)
            gather(p, &in);
        place_in_candidates(s, &g);
    }
    block_sync();
}

/* The draw: cuts by top_k and min_p, by top_p, and the draw's own. */
DEVICE void draw(const struct picker *p, const struct pick_row *r)
{
    struct pick_smem *s = p->s;
    uint64_t total = s->sum[BUCKETS - 1];
    uint32_t count = s->count[BUCKETS - 1], limit = r->limit < count ? r->limit : count;
    NO_UNROLL
    for (uint32_t stage = 0; stage < 3; stage++) {
        struct goal g = {INFINITY, limit, stage == 2};
        if (stage == 0 ? limit == count : stage == 1 && r->top_p >= 1)
            continue;
        if (stage == 1)
            g.at = (double)r->top_p * (double)total;
        else if (stage == 2)
            g.at = r->unit * (double)total;
        find_place(p, g);
        total = s->place.sum; /* a later cut is before this one: less is asked for */
        block_sync();         /* before the next stage writes it */
    }
}

/* ---- the row's answer ---- */

/* Whole warp: the first two (key << 32 | id) of a tile behind `after`. */
DEVICE void tile_next(uint64_t next[2], const float *x, uint32_t n_vocab, uint32_t tile,
                      uint64_t after)
{
    uint32_t n0 = tile * SCORE_TILE;
    uint64_t first = ~0ull, second = ~0ull;
    float v[LANE_LOGITS];
    tile_read(v, x + n0, n_vocab - n0 < SCORE_TILE ? n_vocab - n0 : SCORE_TILE);
    UNROLL
    for (uint32_t i = 0; i < LANE_LOGITS; i++) {
        uint32_t id = n0 + lane_element(i);
        uint64_t at = (uint64_t)logit_key(v[i]) << 32 | id;
        if (id >= n_vocab || at <= after)
            continue;
        second = at < first ? first : at < second ? at : second;
        first = at < first ? at : first;
    }
    next[0] = warp_min_u64(first);
    next[1] = warp_min_u64(first == next[0] ? second : first);
}

/* Whole warp: log-probabilities under the raw row x. best: shared memory, [n_tile]. */
DEVICE void fill_out(const struct sample_job *j, uint32_t row, int32_t id, uint32_t top_count,
                     uint64_t *best)
{
    const struct tile_stat *t = j->stat + (size_t)row * j->n_tile;
    const float *x = j->logits + (size_t)row * j->n_vocab;
    struct sample_out *o = &j->out[row];
    struct row_sum l = row_lse(t, j->n_tile);
    uint64_t last = 0, next[2];
    if (lane_id() == 0) {
        o->id = id;
        o->logprob = lse_logprob(&l, x[id]);
    }
    for (uint32_t i = lane_id(); i < j->n_tile && top_count; i += LANES)
        best[i] = (uint64_t)t[i].key << 32 | i * SCORE_TILE; /* the id is not known yet */
    NO_UNROLL
    for (uint32_t k = 0; k < top_count; k++) {
        uint64_t first = ~0ull;
        for (uint32_t i = lane_id(); i < j->n_tile; i += LANES)
            first = best[i] < first ? best[i] : first;
        first = warp_min_u64(first);
        bool exists = k < j->n_vocab;
        if (exists) {
            uint32_t tile = (uint32_t)first / SCORE_TILE;
            tile_next(next, x, j->n_vocab, tile, last);
            last = next[0];
            if (lane_id() == tile % LANES) /* whose it is: nobody else reads it */
                best[tile] = next[1];
        }
        if (lane_id() == 0) {
            o->top_id[k] = exists ? (int32_t)(uint32_t)last : -1;
            o->top_logprob[k] = exists ? lse_logprob(&l, x[(uint32_t)last]) : -INFINITY;
        }
    }
}

static KERNEL(PICK_THREADS, 1) void pick(struct sample_job j)
{
    SMEM(smem);
    struct pick_smem *s = (struct pick_smem *)smem;
    uint32_t row = blockIdx.x, b = threadIdx.x;
    const struct pick_row *r = &j.row[row];
    pdl_wait();
    struct picker p = {s, pick_logits(&j, row), j.stat + (size_t)row * j.n_tile, {}, 0, 0};
    p.n_vocab = j.n_vocab;
    p.n_tile = j.n_tile;
    if (warp_id() == 0) {
        uint64_t next[2];
        struct ruler made = ruler_make(&j, row);
        tile_next(next, p.x, j.n_vocab, made.tile, 0);
        if (lane_id() == 0) {
            s->ruler = made;
            s->have.count = 0;
            s->place = {0, (uint32_t)next[0]};
        }
    }
    block_sync();
    p.u = s->ruler;
    if (r->scale != 0 && !isinf(p.u.max)) {
        const uint32_t *words = j.bucket + (size_t)row * BUCKET_WORDS;
        uint32_t count = words[b];
        uint64_t sum = (uint64_t)words[2 * BUCKETS + b] << 32 | words[BUCKETS + b];
        block_scan(s, &count, &sum);
        s->count[b] = count;
        s->sum[b] = sum;
        block_sync();
        draw(&p, r);
    }
    if (warp_id() != 0)
        return;
    int32_t id = (int32_t)s->place.id;
    fill_out(&j, row, id, r->top_count, s->weight);
    if (lane_id() == 0 && r->slot != CUDA_NONE) {
        j.latest[r->slot] = id;
        if (r->penalised && r->n_tok < j.history_stride)
            j.history[(size_t)r->slot * j.history_stride + r->n_tok] = id;
    }
}

/* A warp a row. Shared memory: best u64 [n_tile]. */
static KERNEL(LANES, 16) void top(struct sample_job j)
{
    SMEM(best);
    pdl_wait();
    fill_out(&j, blockIdx.x, j.target[blockIdx.x], j.top_count[blockIdx.x], (uint64_t *)best);
}

/* ---- launches ---- */

void pick_launch(const struct sample_job *j, uint32_t n_row, void *stream)
{
    LAUNCH_PDL(pick, n_row, PICK_THREADS, sizeof(struct pick_smem), stream, *j);
}

void top_launch(const struct sample_job *j, uint32_t n_row, void *stream)
{
    LAUNCH_PDL(top, n_row, LANES, j->n_tile * sizeof(uint64_t), stream, *j);
}

enum status cuda_pick_allow(void)
{
    const struct gpu_smem mine = {kernel_of(pick), sizeof(struct pick_smem)};
    return gpu_smem_allow(&mine, 1);
}
