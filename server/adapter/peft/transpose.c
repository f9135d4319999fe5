/* Squares of one vector's width go through registers: the transpose of an n x n square is log2(n)
 * rounds of interleaving row i with row i + n/2. A band of rows is as high as a cache line is wide,
 * so that a line of the result is written while it is in L1; what is left over goes one by one. */
#include "server/adapter/peft/transpose.h"
#include "server/base/check.h"

#include <string.h>

#define LINE_BYTES 64
#define SIDE16     8
#define SIDE32     4

typedef uint16_t v8h __attribute__((vector_size(16)));
typedef uint32_t v4w __attribute__((vector_size(16)));

/* Strides in bytes. */
typedef void square(char *out, size_t out_stride, const char *in, size_t in_stride);

static inline void square16(char *out, size_t out_stride, const char *in, size_t in_stride)
{
    v8h a[SIDE16], b[SIDE16];
    for (int i = 0; i < SIDE16; i++)
        memcpy(&a[i], in + in_stride * (size_t)i, sizeof(a[i]));
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < SIDE16 / 2; i++) {
            b[2 * i] = __builtin_shufflevector(a[i], a[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
            b[2 * i + 1] = __builtin_shufflevector(a[i], a[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
        }
        memcpy(a, b, sizeof(a));
    }
    for (int i = 0; i < SIDE16; i++)
        memcpy(out + out_stride * (size_t)i, &a[i], sizeof(a[i]));
}

static inline void square32(char *out, size_t out_stride, const char *in, size_t in_stride)
{
    v4w a[SIDE32], b[SIDE32];
    for (int i = 0; i < SIDE32; i++)
        memcpy(&a[i], in + in_stride * (size_t)i, sizeof(a[i]));
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < SIDE32 / 2; i++) {
            b[2 * i] = __builtin_shufflevector(a[i], a[i + 2], 0, 4, 1, 5);
            b[2 * i + 1] = __builtin_shufflevector(a[i], a[i + 2], 2, 6, 3, 7);
        }
        memcpy(a, b, sizeof(a));
    }
    for (int i = 0; i < SIDE32; i++)
        memcpy(out + out_stride * (size_t)i, &a[i], sizeof(a[i]));
}

struct task {
    char *out;
    const char *in;
    size_t out_stride, in_stride; /* elements */
    uint32_t rows, columns;
};

/* size: of an element, constant where this is inlined; so is the square, of side x side. */
static inline __attribute__((always_inline)) void transpose(struct task t, uint32_t size,
                                                            uint32_t side, square *one)
{
    uint32_t band = LINE_BYTES / size;
    uint32_t rows_whole = t.rows - t.rows % side, columns_whole = t.columns - t.columns % side;
    for (uint32_t r0 = 0; r0 < rows_whole; r0 += band) {
        uint32_t r1 = MIN(r0 + band, rows_whole);
        for (uint32_t c = 0; c < columns_whole; c += side) {
            for (uint32_t r = r0; r < r1; r += side)
                one(t.out + size * (c * t.out_stride + r), size * t.out_stride,
                    t.in + size * (r * t.in_stride + c), size * t.in_stride);
        }
    }
    for (uint32_t c = 0; c < t.columns; c++) {
        for (uint32_t r = c < columns_whole ? rows_whole : 0; r < t.rows; r++)
            memcpy(t.out + size * (c * t.out_stride + r), t.in + size * (r * t.in_stride + c),
                   size);
    }
}

void transpose_u16(uint16_t *out, size_t out_stride, const void *in, size_t in_stride,
                   uint32_t rows, uint32_t columns)
{
    struct task t = {(char *)out, in, out_stride, in_stride, rows, columns};
    transpose(t, 2, SIDE16, square16);
}

void transpose_u32(uint32_t *out, size_t out_stride, const void *in, size_t in_stride,
                   uint32_t rows, uint32_t columns)
{
    struct task t = {(char *)out, in, out_stride, in_stride, rows, columns};
    transpose(t, 4, SIDE32, square32);
}
