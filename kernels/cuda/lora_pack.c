/* Packing is a fixed permutation of 32-bit words in A and of 16-bit elements in B. Whole tiles go
 * through 16-byte vector shuffles (two loads, two shuffles, two stores for 32 bytes of A); a tile
 * with a ragged edge is first copied to a zeroed square. Vector types of the compiler, so that the
 * same text serves any CPU. Little-endian, as the device is. */
#include "kernels/cuda/lora_pack.h"
#include "server/base/check.h"

#include <string.h>

typedef uint32_t word4 __attribute__((vector_size(16)));
typedef uint16_t half8 __attribute__((vector_size(16)));

#define TILE_K   LORA_TILE_K
#define TILE_OUT LORA_TILE_OUT
#define TILE_R   LORA_TILE_RANKS

static inline word4 load16(const char *p)
{
    word4 v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline void store16(char *p, word4 v)
{
    memcpy(p, &v, sizeof(v));
}

/* src: 16 rows of 32 elements, stride bytes apart. */
static void tile_a(char *out, const char *src, size_t stride)
{
    for (uint32_t g = 0; g < TILE_R / 2; g++) {
        const char *lo = src + g * stride, *hi = lo + TILE_R / 2 * stride;
        for (uint32_t t = 0; t < 4; t++) {
            word4 a = load16(lo + 16 * t), b = load16(hi + 16 * t);
            char *word = out + 16 * (4 * g + t);
            store16(word, __builtin_shufflevector(a, b, 0, 4, 1, 5));
            store16(word + LORA_TILE_A_BYTES / 2, __builtin_shufflevector(a, b, 2, 6, 3, 7));
        }
    }
}

/* Elements of two rows (ranks r, r+1), outputs n..n+7, paired: words [8], one an output. */
static inline void pair_rows(word4 w[2], const char *row0, const char *row1)
{
    half8 a = (half8)load16(row0), b = (half8)load16(row1);
    w[0] = (word4)__builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    w[1] = (word4)__builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}

/* src: 16 rows (ranks) of 16 elements (outputs), stride bytes apart. */
static void tile_b(char *out, const char *src, size_t stride)
{
    for (uint32_t t = 0; t < 4; t++) {
        const char *row = src + 2 * t * stride, *row8 = row + 8 * stride;
        word4 a[2], b[2], c[2], d[2]; /* (g, 2t) (g+8, 2t) (g, 2t+8) (g+8, 2t+8), g in lanes */
        pair_rows(a, row, row + stride);
        pair_rows(b, row + 16, row + stride + 16);
        pair_rows(c, row8, row8 + stride);
        pair_rows(d, row8 + 16, row8 + stride + 16);
        for (uint32_t i = 0; i < 2; i++) {
            word4 ab0 = __builtin_shufflevector(a[i], b[i], 0, 4, 1, 5);
            word4 ab2 = __builtin_shufflevector(a[i], b[i], 2, 6, 3, 7);
            word4 cd0 = __builtin_shufflevector(c[i], d[i], 0, 4, 1, 5);
            word4 cd2 = __builtin_shufflevector(c[i], d[i], 2, 6, 3, 7);
            char *word = out + 16 * (4 * (4 * i) + t);
            store16(word, __builtin_shufflevector(ab0, cd0, 0, 1, 4, 5));
            store16(word + 64, __builtin_shufflevector(ab0, cd0, 2, 3, 6, 7));
            store16(word + 128, __builtin_shufflevector(ab2, cd2, 0, 1, 4, 5));
            store16(word + 192, __builtin_shufflevector(ab2, cd2, 2, 3, 6, 7));
        }
    }
}

/* The part of a row-major bf16 matrix that a tile covers, zero beyond the edges. */
struct edge {
    const char *src;
    size_t stride; /* bytes */
    uint32_t rows, cols;
};

static void edge_copy(char *square, uint32_t width, const struct edge *e)
{
    memset(square, 0, (size_t)TILE_R * width * 2);
    for (uint32_t r = 0; r < e->rows; r++)
        memcpy(square + (size_t)r * width * 2, e->src + r * e->stride, (size_t)e->cols * 2);
}

void lora_pack_a(void *out, const void *a, uint32_t rank, uint32_t d_in)
{
    uint32_t n_unit = lora_k_tiles(d_in);
    char square[TILE_R * TILE_K * 2], *to = out;
    struct edge e = {.stride = (size_t)d_in * 2};
    for (uint32_t r = 0; r < rank; r += TILE_R) {
        e.rows = MIN(rank - r, (uint32_t)TILE_R);
        for (uint32_t u = 0; u < n_unit; u++, to += LORA_TILE_A_BYTES) {
            e.src = (const char *)a + r * e.stride + (size_t)u * TILE_K * 2;
            e.cols = MIN(d_in - u * TILE_K, (uint32_t)TILE_K);
            if (e.rows == TILE_R && e.cols == TILE_K) {
                tile_a(to, e.src, e.stride);
                continue;
            }
            edge_copy(square, TILE_K, &e);
            tile_a(to, square, TILE_K * 2);
        }
    }
}

/* Rank tiles outside: 16 rows of Bt are read as 16 streams, and a tile's 512 bytes are written at
 * once. */
void lora_pack_b(void *out, const void *bt, uint32_t rank, uint32_t d_out)
{
    uint32_t n_out = lora_out_tiles(d_out), n_rank = lora_rank_tiles(rank);
    char square[TILE_R * TILE_OUT * 2];
    struct edge e = {.stride = (size_t)d_out * 2};
    for (uint32_t q = 0; q < n_rank; q++) {
        e.rows = MIN(rank - q * TILE_R, (uint32_t)TILE_R);
        for (uint32_t o = 0; o < n_out; o++) {
            char *to = (char *)out + ((size_t)o * n_rank + q) * LORA_TILE_B_BYTES;
            e.src = (const char *)bt + q * TILE_R * e.stride + (size_t)o * TILE_OUT * 2;
            e.cols = MIN(d_out - o * TILE_OUT, (uint32_t)TILE_OUT);
            if (e.rows == TILE_R && e.cols == TILE_OUT) {
                tile_b(to, e.src, e.stride);
                continue;
            }
            edge_copy(square, TILE_OUT, &e);
            tile_b(to, square, TILE_OUT * 2);
        }
    }
}

uint64_t lora_pack_layout(struct lora_entry *packed, const struct lora_entry *entry,
                          const struct lora_dims *dims)
{
    uint64_t at = 0;
    for (size_t i = 0; i < (size_t)dims->n_layer * LORA_MODULE_COUNT; i++) {
        uint32_t m = i % LORA_MODULE_COUNT, rank = entry[i].rank;
        uint64_t tiles = lora_rank_tiles(rank);
        CHECK(rank <= LORA_RANK_MAX);
        packed[i] = (struct lora_entry){.rank = rank, .scale = entry[i].scale};
        if (rank == 0)
            continue;
        packed[i].a_off = at;
        at += tiles * lora_k_tiles(dims->d_in[m]) * LORA_TILE_A_BYTES;
        packed[i].b_off = at;
        at += tiles * lora_out_tiles(dims->d_out[m]) * LORA_TILE_B_BYTES;
    }
    return at;
}

void lora_pack_blob(void *out, const struct lora_entry *packed, const void *in,
                    const struct lora_entry *entry, const struct lora_dims *dims)
{
    for (size_t i = 0; i < (size_t)dims->n_layer * LORA_MODULE_COUNT; i++) {
        uint32_t m = i % LORA_MODULE_COUNT;
        const struct lora_entry *e = &entry[i], *p = &packed[i];
        if (e->rank == 0)
            continue;
        CHECK(p->rank == e->rank);
        lora_pack_a((char *)out + p->a_off, (const char *)in + e->a_off, e->rank, dims->d_in[m]);
        lora_pack_b((char *)out + p->b_off, (const char *)in + e->b_off, e->rank, dims->d_out[m]);
    }
}
