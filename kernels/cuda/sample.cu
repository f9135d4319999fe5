/* sample and top_logprobs. A draw walks the candidates in the order (logit descending, id
 * ascending), but only the places where top_k, top_p and the draw itself cut have to be known, so
 * nothing is sorted but the few candidates around a cut.
 *
 *   stats   grid (8 tiles, row), a warp a tile: the tile's best logit and sum for the
 *           log-sum-exp. Biases and penalties, which need the tokens of the row counted, give an
 *           adjusted copy of the row and its best. Tokens come from the row's history on the device
 *           and, as far as that does not have them yet, from the upload.
 *   weigh   grid (8 tiles, row), rows with a temperature: candidates into 1024 buckets by logit,
 *           count and weight of each. Weights are e^((l - max)/T) in f64, then integers in units of
 *           2^-44: integer sums do not depend on their order, so neither atomics nor the split of
 *           the row over blocks shows in the result, and the cut falls where f64 puts it.
 *   pick    block a row: the bucket of a cut by a scan, its candidates gathered and sorted in
 *           shared memory (with all better ones, if they fit: later cuts then need no more
 *           reading), the cut among them. A bucket that is too full is split by the integer order
 *           of floats; equal logits by id. At most three cuts; then the log-probabilities.
 *
 * Bound     bytes: 4 V a row from HBM (stats), then 4 V (weigh) and 4 V a gather from L2; greedy
 * rows stop after stats. With V = 151936: 0.6 MB a row, 0.14 us at 4.3 TB/s. weigh adds V f64
 * exponentials, 64 lanes an SM.
 * Registers stats 72 (3 blocks of 256 an SM), weigh 40, pick 64 (1024 threads, 48 KB of shared
 * memory), top 99 (one warp); no spills. Not yet run on a GPU.
 * Limits    SAMPLE_TILES_MAX tiles; SAMPLE_ROWS_MAX rows a pass, more are done in passes.
 * Rejected  f32 weights (a draw differs from the specification's where a cut is close); sampling by
 * rejection (the seed would not fix the id); a table of counts for each sequence (4 V bytes each
 * and a pass over it, against 4 bytes a token of a list). */
#include "kernels/cuda/sample.cuh"
#include "server/base/check.h"

#define STAT_TILES   8 /* of a block */
#define STAT_THREADS (STAT_TILES * LANES)
#define STAT_SPAN    (STAT_TILES * SCORE_TILE)
#define STAT_SMEM    (STAT_SPAN * (sizeof(float) + sizeof(uint32_t)))
#define PICK_THREADS BUCKETS
#define PICK_MAX     2048             /* candidates sorted at once */
#define WEIGHT_ONE   17592186044416.0 /* 2^44: 2^19 candidates of weight 1 fit u64 */
#define WEIGHT_BITS  46.0f            /* -log2 of a weight that counts as 0, and a little */

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

/* ---- stats ---- */

/* Where the i-th logit of this lane is in its tile. */
DEVICE uint32_t lane_element(uint32_t i)
{
    return 4 * (i / 4 * LANES + lane_id()) + i % 4;
}

/* Count tokens [begin, end) of the row that are among the block's ids. */
DEVICE void count_tokens(const struct sample_job *j, const struct pick_row *r, uint32_t *count,
                         uint32_t begin, uint32_t end)
{
    uint32_t first = blockIdx.x * STAT_SPAN;
    for (uint32_t i = begin + threadIdx.x; i < end; i += STAT_THREADS) {
        int32_t id = i < r->n_known ? j->history[(size_t)r->slot * j->history_stride + i]
                                    : j->token[r->token_at + i - r->n_known];
        if ((uint32_t)id - first < STAT_SPAN)
            atomic_add_u32(&count[(uint32_t)id - first], 1);
    }
}

/* The thread of an id's first bias adds all of that id's, in their order. */
DEVICE void add_biases(const struct sample_bias *bias, uint32_t n, float *logit)
{
    uint32_t first = blockIdx.x * STAT_SPAN;
    for (uint32_t i = threadIdx.x; i < n; i += STAT_THREADS) {
        uint32_t at = (uint32_t)bias[i].id - first, earlier = 0;
        if (at >= STAT_SPAN)
            continue;
        while (bias[earlier].id != bias[i].id)
            earlier++;
        for (uint32_t k = i; earlier == i && k < n; k++)
            if (bias[k].id == bias[i].id)
                logit[at] += bias[k].bias;
    }
}

/* f32, each operation rounded, in the order of kernels/ref. */
DEVICE float penalise(const struct pick_row *r, float l, uint32_t n_output)
{
    l = l > 0 ? l / r->repetition : l * r->repetition;
    l = sub_product(l, r->frequency, (float)n_output);
    return n_output ? l - r->presence : l;
}

/* The block's logits v in shared memory, changed, and back. All threads of the block. */
DEVICE void adjust(const struct sample_job *j, const struct pick_row *r, float v[LANE_LOGITS])
{
    SMEM(smem);
    float *logit = (float *)smem;
    uint32_t *count = (uint32_t *)(smem + STAT_SPAN * sizeof(float)), seen = 0;
    uint32_t own = warp_id() * SCORE_TILE;
    for (uint32_t i = 0; i < LANE_LOGITS; i++) {
        logit[own + lane_element(i)] = v[i];
        count[own + lane_element(i)] = 0;
    }
    block_sync();
    add_biases(j->bias + r->bias_at, r->bias_count, logit);
    if (r->penalised)
        count_tokens(j, r, count, 0, r->n_prompt);
    block_sync();
    for (uint32_t i = 0; i < LANE_LOGITS && r->penalised; i++) {
        seen |= (count[own + lane_element(i)] ? 1u : 0u) << i;
        count[own + lane_element(i)] = 0;
    }
    block_sync();
    if (r->penalised)
        count_tokens(j, r, count, r->n_prompt, r->n_tok);
    block_sync();
    for (uint32_t i = 0; i < LANE_LOGITS; i++) {
        uint32_t n = count[own + lane_element(i)];
        v[i] = logit[own + lane_element(i)];
        if (n || (seen >> i & 1))
            v[i] = penalise(r, v[i], n);
    }
}

/* What the upload brought is remembered; nobody reads it there in this launch. */
DEVICE void keep_tokens(const struct sample_job *j, const struct pick_row *r)
{
    if (r->slot == CUDA_NONE)
        return;
    int32_t *history = j->history + (size_t)r->slot * j->history_stride;
    for (uint32_t i = r->n_known + threadIdx.x; i < r->n_tok; i += STAT_THREADS)
        history[i] = j->token[r->token_at + i - r->n_known];
}

DEVICE void store_lanes(float *x, const float v[LANE_LOGITS], uint32_t n)
{
    UNROLL
    for (uint32_t i = 0; i < LANE_LOGITS; i++)
        if (lane_element(i) < n)
            x[lane_element(i)] = v[i];
}

/* Shared memory: the block's logits f32 and counts u32, STAT_SPAN each (adjusted rows). */
static KERNEL(STAT_THREADS, 3) void stats(struct sample_job j)
{
    uint32_t row = blockIdx.y, tile = blockIdx.x * STAT_TILES + warp_id(), n0 = tile * SCORE_TILE;
    uint32_t n = n0 < j.n_vocab ? (j.n_vocab - n0 < SCORE_TILE ? j.n_vocab - n0 : SCORE_TILE) : 0;
    size_t at = (size_t)row * j.n_vocab + n0;
    const struct pick_row *r = j.row ? &j.row[row] : NULL;
    struct tile_stat s;
    float v[LANE_LOGITS], low = INFINITY;
    tile_read(v, j.logits + at, n);
    tile_lse(v, &s.key, &s.sum);
    s.pick_key = s.key;
    if (r && r->adjusted) {
        float max = -INFINITY;
        adjust(&j, r, v);
        store_lanes(j.adjusted + at, v, n);
        UNROLL
        for (uint32_t i = 0; i < LANE_LOGITS; i++)
            max = fmaxf(max, v[i]);
        s.pick_key = logit_key(warp_max(max));
    }
    UNROLL
    for (uint32_t i = 0; i < LANE_LOGITS; i++)
        low = v[i] > -INFINITY ? fminf(low, v[i]) : low;
    s.low = -warp_max(-low);
    if (lane_id() == 0 && n > 0)
        j.stat[(size_t)row * j.n_tile + tile] = s;
    if (r && blockIdx.x == 0) {
        keep_tokens(&j, r);
        for (uint32_t i = threadIdx.x; i < BUCKET_WORDS; i += STAT_THREADS)
            j.bucket[(size_t)row * BUCKET_WORDS + i] = 0;
    }
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

static KERNEL(STAT_THREADS, 4) void weigh(struct sample_job j)
{
    SMEM(smem);
    uint32_t *count = (uint32_t *)smem, *lo = count + BUCKETS, *hi = lo + BUCKETS;
    struct ruler *shared = (struct ruler *)(hi + BUCKETS);
    uint32_t row = blockIdx.y, first = blockIdx.x * STAT_SPAN;
    pdl_wait();
    if (j.row[row].scale == 0)
        return;
    for (uint32_t i = threadIdx.x; i < BUCKET_WORDS; i += STAT_THREADS)
        count[i] = 0;
    if (warp_id() == 0) {
        struct ruler made = ruler_make(&j, row);
        if (lane_id() == 0)
            *shared = made;
    }
    block_sync();
    struct ruler u = *shared;
    if (isinf(u.max))
        return;
    const float *x = pick_logits(&j, row);
    bool aligned = is_aligned_16(x);
    uint64_t tail_weight = 0, tail_count = 0;
    uint32_t end = first + STAT_SPAN < j.n_vocab ? first + STAT_SPAN : j.n_vocab;
    NO_UNROLL
    for (uint32_t i = first + 4 * threadIdx.x; i < end; i += 4 * STAT_THREADS) {
        float v[4];
        read_quad(v, x, i, end, aligned);
        UNROLL
        for (uint32_t c = 0; c < 4; c++) {
            uint64_t w;
            uint32_t b = bucket_of(&u, v[c]);
            bool candidate = weigh_logit(&u, v[c], &w) && i + c < end;
            if (candidate && b == BUCKETS - 1) { /* most of a peaked row: not one by one */
                tail_weight += w;
                tail_count++;
            } else if (candidate) {
                atomic_add_u32(&count[b], 1);
                add_weight(&lo[b], &hi[b], w);
            }
        }
    }
    tail_weight = warp_sum_u64(tail_weight);
    tail_count = warp_sum_u64(tail_count);
    if (lane_id() == 0) {
        atomic_add_u32(&count[BUCKETS - 1], (uint32_t)tail_count);
        add_weight(&lo[BUCKETS - 1], &hi[BUCKETS - 1], tail_weight);
    }
    block_sync();
    uint32_t *out = j.bucket + (size_t)row * BUCKET_WORDS;
    for (uint32_t b = threadIdx.x; b < BUCKETS; b += STAT_THREADS)
        if (count[b]) {
            atomic_add_u32(&out[b], count[b]);
            add_weight(&out[BUCKETS + b], &out[2 * BUCKETS + b], (uint64_t)hi[b] << 32 | lo[b]);
        }
}

/* ---- pick: places in the order of candidates ---- */

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
    uint32_t lo = u->best, hi = KEY_LAST + 1;
    if (b == 0)
        return lo;
    if (b == BUCKETS)
        return hi;
    NO_UNROLL
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (bucket_of(u, key_logit(mid)) >= b)
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo;
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

/* The lowest and highest key there is in the span. */
DEVICE void narrow(const struct picker *p, struct span *in)
{
    struct pick_smem *s = p->s;
    uint32_t lo = KEY_NONE, hi = 0, key[4];
    NO_UNROLL
    for (uint32_t i = 4 * threadIdx.x; i < p->n_vocab; i += 4 * PICK_THREADS) {
        if (!read_keys(p, i, in, key))
            continue;
        UNROLL
        for (uint32_t c = 0; c < 4; c++)
            if (key[c] != KEY_NONE) {
                lo = key[c] < lo ? key[c] : lo;
                hi = key[c] > hi ? key[c] : hi;
            }
    }
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
    uint32_t *hi = words + 2 * BUCKETS, shift = 0, b = threadIdx.x, key[4];
    while ((in->hi - in->lo) >> shift >= BUCKETS)
        shift++;
    for (uint32_t i = threadIdx.x; i < BUCKET_WORDS; i += PICK_THREADS)
        words[i] = 0;
    if (threadIdx.x == 0)
        s->have.count = 0; /* its weights were there */
    block_sync();
    NO_UNROLL
    for (uint32_t i = 4 * threadIdx.x; i < p->n_vocab; i += 4 * PICK_THREADS) {
        uint64_t w;
        if (!read_keys(p, i, in, key))
            continue;
        NO_UNROLL
        for (uint32_t c = 0; c < 4; c++) {
            if (key[c] == KEY_NONE || !weigh_logit(&p->u, key_logit(key[c]), &w))
                continue;
            atomic_add_u32(&count[(key[c] - in->lo) >> shift], 1);
            add_weight(&lo[(key[c] - in->lo) >> shift], &hi[(key[c] - in->lo) >> shift], w);
        }
    }
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
    uint32_t lo = 0, hi = in->count - 1, before = 0, tile = 0;
    uint64_t w;
    weigh_logit(&p->u, key_logit(in->lo), &w);
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (reached(g, in->base_count + mid + 1, in->base_sum + (mid + 1) * w))
            hi = mid;
        else
            lo = mid + 1;
    }
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

/* The span's candidates into shared memory, sorted, with cumulative weights. */
DEVICE void gather(const struct picker *p, const struct span *in)
{
    struct pick_smem *s = p->s;
    uint32_t key[4], room = 2;
    while (room < in->count)
        room *= 2;
    for (uint32_t i = threadIdx.x; i < room; i += PICK_THREADS)
        s->candidate[i] = ~0ull;
    if (threadIdx.x == 0)
        s->filled = 0;
    block_sync();
    NO_UNROLL
    for (uint32_t i = 4 * threadIdx.x; i < p->n_vocab; i += 4 * PICK_THREADS) {
        uint64_t w;
        if (!read_keys(p, i, in, key))
            continue;
        NO_UNROLL
        for (uint32_t c = 0; c < 4; c++) {
            if (key[c] == KEY_NONE || !weigh_logit(&p->u, key_logit(key[c]), &w))
                continue;
            uint32_t at = atomic_add_u32(&s->filled, 1);
            if (at < room)
                s->candidate[at] = (uint64_t)key[c] << 32 | (i + c);
        }
    }
    block_sync();
    NO_UNROLL
    for (uint32_t width = 2; width <= room; width *= 2) {
        NO_UNROLL
        for (uint32_t step = width / 2; step > 0; step /= 2) {
            uint32_t t = threadIdx.x, i = 2 * t - (t & (step - 1));
            if (i + step < room) {
                uint64_t a = s->candidate[i], b = s->candidate[i + step];
                if ((a > b) == ((i & width) == 0)) {
                    s->candidate[i] = b;
                    s->candidate[i + step] = a;
                }
            }
            block_sync();
        }
    }
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

/* ---- pick: the row's answer ---- */

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

/* Rows t0 .. of a call whose results start at h->out. */
static struct sample_job job_make(const struct cuda_head *h, const float *logits, uint32_t n_vocab,
                                  uint32_t t0)
{
    struct sample_job j = {};
    CHECK(vocab_tiles(n_vocab) == h->n_tile);
    j.logits = logits + (size_t)t0 * n_vocab;
    j.adjusted = h->adjusted;
    j.stat = h->stat;
    j.bucket = h->bucket;
    j.out = (struct sample_out *)(void *)h->out + t0;
    j.history = h->history;
    j.latest = h->latest;
    j.n_vocab = n_vocab;
    j.n_tile = h->n_tile;
    j.history_stride = h->history_stride;
    return j;
}

/* At most *n_row rows; sets how many fitted the upload. */
static enum status sample_pass(struct cuda_backend *c, const struct sample_args *a, uint32_t t0,
                               uint32_t *n_row)
{
    struct cuda_head *h = c->head;
    struct sample_job j = job_make(h, a->logits, a->n_vocab, t0);
    char *pinned;
    enum status st = head_upload_begin(c, &pinned);
    if (st)
        return st;
    struct sample_upload up = sample_upload_fill(h, pinned, a->row + t0, *n_row);
    *n_row = up.n_row;
    st = head_upload_end(c, up.bytes);
    if (st)
        return st;
    j.row = (const struct pick_row *)(const void *)h->upload;
    j.bias = (const struct sample_bias *)(const void *)(h->upload + up.bias_at);
    j.token = (const int32_t *)(const void *)(h->upload + up.token_at);
    dim3 grid((h->n_tile + STAT_TILES - 1) / STAT_TILES, *n_row);
    LAUNCH(stats, grid, STAT_THREADS, up.adjusted ? STAT_SMEM : 0, c->stream, j);
    if (up.weighed)
        LAUNCH_PDL(weigh, grid, STAT_THREADS, BUCKET_WORDS * 4 + sizeof(struct ruler), c->stream,
                   j);
    LAUNCH_PDL(pick, *n_row, PICK_THREADS, sizeof(struct pick_smem), c->stream, j);
    return gpu_launched("sample");
}

enum status cuda_sample_begin(struct backend *b, const struct sample_args *a, uint32_t *ticket)
{
    struct cuda_backend *c = cuda_of(b);
    enum status st = STATUS_OK;
    CHECK(c->head && a->n_row > 0 && a->n_row <= c->limits.logits_rows_max);
    sample_rows_check(c, a->row, a->n_row);
    for (uint32_t t0 = 0, n; t0 < a->n_row && !st; t0 += n) {
        n = MIN(a->n_row - t0, c->head->sample_rows);
        st = sample_pass(c, a, t0, &n);
    }
    return st ? st : cuda_read_begin(b, c->head->out, a->n_row * sizeof(struct sample_out), ticket);
}

enum status cuda_sample(struct backend *b, const struct sample_args *a)
{
    uint32_t ticket;
    if (a->n_row == 0)
        return STATUS_OK;
    enum status st = cuda_sample_begin(b, a, &ticket);
    return st ? st : cuda_read_end(b, ticket, a->out);
}

static enum status top_pass(struct cuda_backend *c, const struct top_logprobs_args *a, uint32_t t0,
                            uint32_t n_row)
{
    struct cuda_head *h = c->head;
    struct sample_job j = job_make(h, a->logits, a->n_vocab, t0);
    char *pinned;
    enum status st = head_upload_begin(c, &pinned);
    if (st)
        return st;
    memcpy(pinned, a->target + t0, n_row * sizeof(int32_t));
    memcpy(pinned + n_row * sizeof(int32_t), a->top_count + t0, n_row * sizeof(uint32_t));
    st = head_upload_end(c, n_row * (sizeof(int32_t) + sizeof(uint32_t)));
    if (st)
        return st;
    j.target = (const int32_t *)(const void *)h->upload;
    j.top_count = (const uint32_t *)(const void *)(j.target + n_row);
    LAUNCH(stats, dim3((h->n_tile + STAT_TILES - 1) / STAT_TILES, n_row), STAT_THREADS, 0,
           c->stream, j);
    LAUNCH_PDL(top, n_row, LANES, h->n_tile * sizeof(uint64_t), c->stream, j);
    return gpu_launched("top_logprobs");
}

enum status cuda_top_logprobs(struct backend *b, const struct top_logprobs_args *a)
{
    struct cuda_backend *c = cuda_of(b);
    enum status st = STATUS_OK;
    if (a->n_row == 0)
        return st;
    CHECK(c->head && a->n_row <= c->limits.logits_rows_max);
    for (uint32_t t = 0; t < a->n_row; t++) {
        CHECK(a->target[t] >= 0 && (uint32_t)a->target[t] < a->n_vocab);
        CHECK(a->top_count[t] <= SAMPLE_TOP_MAX);
    }
    for (uint32_t t0 = 0; t0 < a->n_row && !st; t0 += c->head->sample_rows)
        st = top_pass(c, a, t0, MIN(a->n_row - t0, c->head->sample_rows));
    return st ? st : head_result(c, a->out, a->n_row * sizeof(struct sample_out));
}

/* prepare takes what sampling needs. */
size_t cuda_sample_scratch_bytes(const struct backend *b, uint32_t n_vocab)
{
    (void)b;
    (void)n_vocab;
    return 0;
}
