/* score and sketch, and the head family's memory.
 *
 * score     logprob[t] = logit[target[t]] - logsumexp(logit). The walk over the vocabulary goes by
 *           spans of 16 tiles (wide enough for a product to fill the device): the own GEMM into a
 *           workspace that stays in L2, then score_tiles, a warp a tile and row, keeps 16 bytes of
 *           it; score_rows, a warp a row, adds the tiles up with the functions that sample uses on
 *           stored logits. So a score has the bits of the log-probability that decoding reported
 *           wherever the logits have (gemm.h: always, if the backend is deterministic).
 * sketch    z = W x - b: block a row of x, warp eight rows of W, a lane eight columns at a time in
 *           f32, lanes added by the warp's tree; |z| and the rounding in f64, one thread an output.
 *           Which basis a row has goes up with the call: one launch for any number of them.
 *
 * Bound     score: the GEMM's, W read once for each SCORE_ROWS_MAX rows; 4 V bytes a row written
 * and read in L2. sketch: W once from L2 a row, d_model 4096: 512 KB.
 * Registers score_tiles 48, score_rows 26, sketch 80; no spills. Not yet run on a GPU. */
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/sample.cuh"
#include "kernels/cuda/tables.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#define SCORE_TILES    8 /* of a block */
#define SCORE_THREADS  (SCORE_TILES * LANES)
#define SKETCH_WARPS   8
#define SKETCH_THREADS (SKETCH_WARPS * LANES)
#define SKETCH_ROWS    (SKETCH_DIM / SKETCH_WARPS) /* of W, for a warp */

/* ---- score ---- */

struct score_launch {
    const float *logits; /* [n_row, stride]: columns first_tile * SCORE_TILE .. */
    const int32_t *target;
    struct tile_stat *stat;
    float *target_logit, *logprob;
    uint32_t n_vocab, n_tile, first_tile, end_tile, stride;
};

static KERNEL(SCORE_THREADS, 3) void score_tiles(struct score_launch j)
{
    uint32_t row = blockIdx.y, tile = j.first_tile + blockIdx.x * SCORE_TILES + warp_id();
    pdl_wait();
    if (tile >= j.end_tile)
        return;
    uint32_t n0 = tile * SCORE_TILE, left = j.n_vocab - n0;
    uint32_t target = (uint32_t)j.target[row] - n0;
    const float *x = j.logits + (size_t)row * j.stride + (n0 - j.first_tile * SCORE_TILE);
    struct tile_stat s = {0, 0, 0, 0};
    float v[LANE_LOGITS];
    tile_read(v, x, left < SCORE_TILE ? left : SCORE_TILE);
    tile_lse(v, &s.key, &s.sum);
    if (lane_id() != 0)
        return;
    j.stat[(size_t)row * j.n_tile + tile] = s;
    if (target < SCORE_TILE)
        j.target_logit[row] = x[target];
}

static KERNEL(LANES, 16) void score_rows(struct score_launch j)
{
    uint32_t row = blockIdx.x;
    pdl_wait();
    struct row_sum l = row_lse(j.stat + (size_t)row * j.n_tile, j.n_tile);
    if (lane_id() == 0)
        j.logprob[row] = lse_logprob(&l, j.target_logit[row]);
}

static enum status score_pass(struct backend *b, const struct score_args *a, uint32_t t0,
                              uint32_t n_row)
{
    struct cuda_backend *c = cuda_of(b);
    struct cuda_head *h = c->head;
    char *pinned;
    enum status st = head_upload_begin(c, &pinned);
    if (st)
        return st;
    memcpy(pinned, a->target + t0, n_row * sizeof(*a->target));
    st = head_upload_end(c, n_row * sizeof(*a->target));
    struct gemm_tile_args g = {};
    g.out = h->logits;
    g.x = (const bf16_t *)a->x + (size_t)t0 * a->w.d_in;
    g.w = a->w;
    g.n_row = n_row;
    g.x_stride = a->w.d_in;
    g.out_stride = h->span_tiles * SCORE_TILE;
    struct score_launch j = {};
    j.logits = h->logits;
    j.target = (const int32_t *)(const void *)h->upload;
    j.stat = h->stat;
    j.target_logit = h->target_logit;
    j.logprob = (float *)(void *)h->out + t0;
    j.n_vocab = a->w.d_out;
    j.n_tile = h->n_tile;
    j.stride = g.out_stride;
    for (uint32_t tile = 0; tile < h->n_tile && !st; tile += h->span_tiles) {
        j.first_tile = tile;
        j.end_tile = MIN(tile + h->span_tiles, h->n_tile);
        g.v0 = tile * SCORE_TILE;
        g.v1 = MIN(j.end_tile * SCORE_TILE, a->w.d_out);
        st = cuda_gemm_tile(b, &g);
        uint32_t blocks = (j.end_tile - tile + SCORE_TILES - 1) / SCORE_TILES;
        if (!st)
            LAUNCH_PDL(score_tiles, dim3(blocks, n_row), SCORE_THREADS, 0, c->stream, j);
    }
    if (st)
        return st;
    LAUNCH_PDL(score_rows, n_row, LANES, 0, c->stream, j);
    return gpu_launched("score");
}

enum status cuda_score_begin(struct backend *b, const struct score_args *a, uint32_t *ticket)
{
    struct cuda_head *h = cuda_of(b)->head;
    enum status st = STATUS_OK;
    CHECK(h && a->n_row > 0 && a->n_row * sizeof(float) <= h->result_bytes);
    for (uint32_t t = 0; t < a->n_row; t++)
        CHECK(a->target[t] >= 0 && (uint32_t)a->target[t] < a->w.d_out);
    for (uint32_t t0 = 0; t0 < a->n_row && !st; t0 += h->score_rows) {
        CHECK(vocab_tiles(a->w.d_out) == h->n_tile);
        st = score_pass(b, a, t0, MIN(a->n_row - t0, h->score_rows));
    }
    return st ? st : cuda_read_begin(b, h->out, a->n_row * sizeof(float), ticket);
}

enum status cuda_score(struct backend *b, const struct score_args *a)
{
    uint32_t ticket;
    if (a->n_row == 0)
        return STATUS_OK;
    enum status st = cuda_score_begin(b, a, &ticket);
    return st ? st : cuda_read_end(b, ticket, a->logprob);
}

/* ---- sketch ---- */

struct sketch_job {
    int8_t *out;
    const bf16_t *x;
    const struct sketch_basis *basis; /* [rows]; w NULL: no sketch of this row */
    uint32_t d_model;
};

/* Columns 8 g .. 8 g + 7 of a row; zeros behind its end. */
DEVICE void read_eight(float v[8], const bf16_t *x, uint32_t g, uint32_t n)
{
    if (((uintptr_t)x & 15u) == 0 && 8 * g + 8 <= n) {
        uint4 u = ldg_16(x + 8 * g);
        uint32_t word[4] = {u.x, u.y, u.z, u.w};
        UNROLL
        for (uint32_t i = 0; i < 4; i++) {
            v[2 * i] = bf16x2_lo(word[i]);
            v[2 * i + 1] = bf16x2_hi(word[i]);
        }
    } else {
        UNROLL
        for (uint32_t i = 0; i < 8; i++)
            v[i] = 8 * g + i < n ? bf16_to_f32(x[8 * g + i]) : 0;
    }
}

/* Shared memory: z f64 [SKETCH_DIM]. */
static KERNEL(SKETCH_THREADS, 2) void sketch(struct sketch_job j)
{
    SMEM(smem);
    double *z = (double *)smem, norm2 = 0;
    float sum[SKETCH_ROWS] = {0};
    const struct sketch_basis basis = j.basis[blockIdx.x];
    const bf16_t *x = j.x + (size_t)blockIdx.x * j.d_model;
    if (!basis.w)
        return;
    NO_UNROLL
    for (uint32_t g = lane_id(); 8 * g < j.d_model; g += LANES) {
        float v[8], w[8];
        read_eight(v, x, g, j.d_model);
        UNROLL
        for (uint32_t k = 0; k < SKETCH_ROWS; k++) {
            read_eight(w, basis.w + (size_t)(warp_id() * SKETCH_ROWS + k) * j.d_model, g,
                       j.d_model);
            UNROLL
            for (uint32_t i = 0; i < 8; i++)
                sum[k] = fmaf(v[i], w[i], sum[k]);
        }
    }
    UNROLL
    for (uint32_t k = 0; k < SKETCH_ROWS; k++) {
        float whole = warp_sum(sum[k]);
        uint32_t row = warp_id() * SKETCH_ROWS + k;
        if (lane_id() == 0)
            z[row] = (double)whole - (double)basis.bias[row];
    }
    block_sync();
    if (threadIdx.x >= SKETCH_DIM)
        return;
    NO_UNROLL
    for (uint32_t k = 0; k < SKETCH_DIM; k++)
        norm2 = fma(z[k], z[k], norm2);
    double scale = norm2 > 0 && isfinite(norm2) ? 127.0 / sqrt(norm2) : 0;
    j.out[(size_t)blockIdx.x * SKETCH_DIM + threadIdx.x] =
        scale > 0 ? (int8_t)nearbyint(z[threadIdx.x] * scale) : (int8_t)0;
}

/* Rows first .. first + n - 1 of x into h->out; a: where the segment stands that is looked at. */
static enum status sketch_pass(struct cuda_backend *c, const struct sketch_args *a, uint32_t first,
                               uint32_t n, uint32_t *seg)
{
    char *pinned;
    enum status st = head_upload_begin(c, &pinned);
    if (st)
        return st;
    struct sketch_basis *basis = (struct sketch_basis *)(void *)pinned;
    for (uint32_t t = 0; t < n; t++) {
        while (*seg < a->n_seg && a->seg[*seg].row + a->seg[*seg].n_row <= first + t)
            ++*seg;
        bool in = *seg < a->n_seg && a->seg[*seg].row <= first + t;
        basis[t] = in ? *a->seg[*seg].basis : (struct sketch_basis){NULL, NULL};
    }
    st = head_upload_end(c, n * sizeof(*basis));
    if (st)
        return st;
    struct sketch_job j = {(int8_t *)c->head->out,
                           (const bf16_t *)a->x + (size_t)first * a->d_model,
                           (const struct sketch_basis *)(const void *)c->head->upload, a->d_model};
    LAUNCH(sketch, n, SKETCH_THREADS, SKETCH_DIM * sizeof(double), c->stream, j);
    return gpu_launched("sketch");
}

/* The rows that one pass takes. */
static uint32_t sketch_rows(const struct cuda_head *h)
{
    size_t up = h->upload_bytes / sizeof(struct sketch_basis), out = h->result_bytes / SKETCH_DIM;
    return (uint32_t)MIN(up, out);
}

static uint32_t sketch_end(const struct sketch_args *a)
{
    return a->seg[a->n_seg - 1].row + a->seg[a->n_seg - 1].n_row;
}

enum status cuda_sketch_begin(struct backend *b, const struct sketch_args *a, uint32_t *ticket)
{
    struct cuda_backend *c = cuda_of(b);
    CHECK(c->head && a->n_seg > 0);
    uint32_t first = a->seg[0].row, n = sketch_end(a) - first, seg = 0;
    CHECK(n <= sketch_rows(c->head));
    enum status st = sketch_pass(c, a, first, n, &seg);
    return st ? st : cuda_read_begin(b, c->head->out, (size_t)n * SKETCH_DIM, ticket);
}

enum status cuda_sketch(struct backend *b, const struct sketch_args *a)
{
    struct cuda_backend *c = cuda_of(b);
    enum status st = STATUS_OK;
    CHECK(a->n_seg == 0 || c->head);
    uint32_t end = a->n_seg > 0 ? sketch_end(a) : 0, seg = 0;
    for (uint32_t t = end ? a->seg[0].row : 0, n; t < end && !st; t += n) {
        n = MIN(end - t, sketch_rows(c->head));
        st = sketch_pass(c, a, t, n, &seg);
        if (!st)
            st = head_result(c, a->out + (size_t)t * SKETCH_DIM, (size_t)n * SKETCH_DIM);
    }
    return st;
}

/* ---- the family's memory ---- */

enum status head_upload_begin(struct cuda_backend *c, char **pinned)
{
    struct head_buffer *buffer = &c->head->uploads[c->head->turn % HEAD_UPLOADS];
    *pinned = buffer->pinned;
    return c->head->turn < HEAD_UPLOADS ? STATUS_OK : gpu_event_sync(buffer->event);
}

enum status head_upload_end(struct cuda_backend *c, size_t bytes)
{
    struct cuda_head *h = c->head;
    struct head_buffer *buffer = &h->uploads[h->turn % HEAD_UPLOADS];
    CHECK(bytes <= h->upload_bytes);
    enum status st = gpu_copy_in(c->stream, h->upload, buffer->pinned, bytes);
    if (!st)
        st = gpu_event_record(buffer->event, c->stream);
    h->turn = h->turn + 1 < 2 * HEAD_UPLOADS ? h->turn + 1 : HEAD_UPLOADS;
    return st;
}

enum status head_result(struct cuda_backend *c, void *host, size_t bytes)
{
    uint32_t ticket;
    enum status st = cuda_read_begin(&c->base, c->head->out, bytes, &ticket);
    return st ? st : cuda_read_end(&c->base, ticket, host);
}

static enum status take_buffers(struct head_buffer *buffer, uint32_t count, size_t bytes,
                                struct errtext *err)
{
    enum status st = STATUS_OK;
    for (uint32_t i = 0; i < count && !st; i++) {
        buffer[i].pinned = (char *)gpu_pinned_alloc(bytes);
        if (!buffer[i].pinned)
            return err_set(err, STATUS_NO_MEMORY,
                           "sampling: the system refused %.1f MiB of pinned memory",
                           (double)bytes / 1048576.0);
        st = gpu_event_create(&buffer[i].event, false);
    }
    return st;
}

static void release_buffers(struct head_buffer *buffer, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        gpu_pinned_free(buffer[i].pinned);
        gpu_event_destroy(buffer[i].event);
    }
}

static enum status take_device(struct cuda_backend *c, struct errtext *err)
{
    struct cuda_head *h = c->head;
    const struct backend_limits *lim = &c->limits;
    const size_t stats = (size_t)MAX(h->sample_rows, h->score_rows) * h->n_tile;
    const struct {
        void **at;
        size_t bytes;
        const char *what;
    } part[] = {
        {(void **)&h->stat, stats * sizeof(*h->stat), "vocabulary tiles"},
        {(void **)&h->bucket, (size_t)h->sample_rows * BUCKET_WORDS * 4, "sampling buckets"},
        {(void **)&h->adjusted, (size_t)h->sample_rows * lim->n_vocab * 4, "adjusted logits"},
        {(void **)&h->history, (size_t)lim->seqs_max * h->history_stride * 4, "token histories"},
        {(void **)&h->latest, (size_t)lim->seqs_max * 4, "latest tokens"},
        {(void **)&h->logits, (size_t)h->score_rows * h->span_tiles * SCORE_TILE * 4,
         "scoring logits"},
        {(void **)&h->target_logit, (size_t)h->score_rows * 4, "scored logits"},
        {(void **)&h->upload, h->upload_bytes, "sampling uploads"},
        {(void **)&h->out, h->result_bytes, "sampling results"},
    };
    enum status st = STATUS_OK;
    for (size_t i = 0; i < ARRAY_COUNT(part) && !st; i++)
        st = cuda_take(c, part[i].at, part[i].bytes, part[i].what, err);
    return st;
}

enum status cuda_head_prepare(struct cuda_backend *c, struct errtext *err)
{
    const struct backend_limits *lim = &c->limits;
    if (lim->n_vocab == 0 || lim->logits_rows_max == 0)
        return STATUS_OK; /* layers only: no op of this family will be called */
    if (vocab_tiles(lim->n_vocab) > SAMPLE_TILES_MAX)
        return err_set(err, STATUS_UNSUPPORTED,
                       "a vocabulary of %u tokens: the cuda backend samples from at most %u",
                       lim->n_vocab, SAMPLE_TILES_MAX * SCORE_TILE);
    struct cuda_head *h = (struct cuda_head *)mem_array(1, sizeof(*h));
    c->head = h;
    h->n_tile = vocab_tiles(lim->n_vocab);
    h->sample_rows = MIN(lim->logits_rows_max, (uint32_t)SAMPLE_ROWS_MAX);
    h->score_rows = MIN(lim->rows_max, (uint32_t)SCORE_ROWS_MAX);
    h->span_tiles = MIN(h->n_tile, (uint32_t)SCORE_SPAN_TILES);
    h->history_stride = lim->page_stride * KV_TOK_PER_PAGE;
    /* Usual rows all at once; in any case one row with the most biases and tokens. */
    h->upload_bytes = (size_t)h->sample_rows * 1024 + h->score_rows * sizeof(int32_t) +
                      SAMPLE_BIAS_MAX * sizeof(struct sample_bias) +
                      (size_t)h->history_stride * sizeof(int32_t);
    h->upload_bytes = MAX(h->upload_bytes, lim->rows_max * sizeof(struct sketch_basis));
    h->result_bytes =
        MAX(lim->logits_rows_max * sizeof(struct sample_out), (size_t)lim->rows_max * SKETCH_DIM);
    h->seen = (struct head_seen *)mem_array(lim->seqs_max, sizeof(*h->seen));
    enum status st = take_device(c, err);
    if (!st)
        st = take_buffers(h->uploads, HEAD_UPLOADS, h->upload_bytes, err);
    return st;
}

void cuda_head_release(struct cuda_backend *c)
{
    struct cuda_head *h = c->head;
    if (!h)
        return;
    void *const part[] = {h->stat,   h->bucket,       h->adjusted, h->history, h->latest,
                          h->logits, h->target_logit, h->upload,   h->out};
    for (size_t i = 0; i < ARRAY_COUNT(part); i++)
        gpu_free(c->gpu, part[i]);
    release_buffers(h->uploads, HEAD_UPLOADS);
    mem_free(h->seen);
    mem_free(h);
    c->head = NULL;
}

const int32_t *cuda_latest(const struct backend *b)
{
    const struct cuda_backend *c = (const struct cuda_backend *)(const void *)b;
    return c->head ? c->head->latest : NULL;
}
