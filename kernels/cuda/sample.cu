/* sample and top_logprobs: what a row's logits are before anything is picked of them (pick.cu).
 *
 *   stats   grid (8 tiles, row), a warp a tile: the tile's best logit and sum for the
 *           log-sum-exp. Biases and penalties, which need the tokens of the row counted, give an
 *           adjusted copy of the row and its best. Tokens come from the row's history on the device
 *           and, as far as that does not have them yet, from the upload.
 *   weigh   grid (8 tiles, row), rows with a temperature: candidates into 1024 buckets by logit,
 *           count and weight of each (pick.cuh)
 *
 * Bound     bytes: 4 V a row from HBM (stats), then 4 V (weigh) from L2; greedy rows stop after
 *           stats. With V = 151936: 0.6 MB a row, 0.14 us at 4.3 TB/s. weigh adds V f64
 *           exponentials, 64 lanes an SM.
 * Registers stats 72 (3 blocks of 256 an SM), weigh 40; no spills. Not yet run on a GPU.
 * Limits    SAMPLE_TILES_MAX tiles; SAMPLE_ROWS_MAX rows a pass, more are done in passes
 * Rejected  f32 weights (a draw differs from the specification's where a cut is close); sampling by
 *           rejection (the seed would not fix the id); a table of counts for each sequence (4 V
 *           bytes each and a pass over it, against 4 bytes a token of a list) */
#include "kernels/cuda/pick.cuh"
#include "server/base/check.h"

#define STAT_TILES   8 /* of a block */
#define STAT_THREADS (STAT_TILES * LANES)
#define STAT_SPAN    (STAT_TILES * SCORE_TILE)
#define STAT_SMEM    (STAT_SPAN * (sizeof(float) + sizeof(uint32_t)))

/* ---- stats ---- */

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
    pick_launch(&j, *n_row, c->stream);
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
    top_launch(&j, n_row, c->stream);
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

enum status cuda_sample_allow(void)
{
    const struct gpu_smem mine = {kernel_of(stats), STAT_SMEM};
    return gpu_smem_allow(&mine, 1);
}
