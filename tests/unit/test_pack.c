/* From stored tensors to the blob: conversion and transposition against plain loops, every byte of
 * the blob written, and the same bytes whether they come from memory or piece by piece from a file.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/bf16.h"
#include "server/adapter/peft/pack.h"
#include "server/adapter/peft/transpose.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/model/convert.h"
#include "tests/lib/st_build.h"

/* ---- elements ---- */

static float f16_value(uint16_t h)
{
    int exponent = h >> 10 & 31, mantissa = h & 1023;
    float v;
    if (exponent == 31)
        v = mantissa ? NAN : INFINITY;
    else if (exponent)
        v = ldexpf((float)(1024 + mantissa), exponent - 25);
    else
        v = ldexpf((float)mantissa, -24);
    return h & 0x8000 ? -v : v;
}

static uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof(u));
    return u;
}

static void test_convert_every_16_bit_value(void **state)
{
    enum { N = 65536 };
    uint16_t *in = mem_array(N + 1, sizeof(*in)), *bf16 = mem_array(N, sizeof(*bf16));
    float *f32 = mem_array(N, sizeof(*f32)), *from_bf16 = mem_array(N, sizeof(*from_bf16));
    for (uint32_t i = 0; i < N; i++)
        in[i] = (uint16_t)i;
    convert_elements(f32, DTYPE_F32, in, DTYPE_F16, N);
    convert_elements(bf16, DTYPE_BF16, in, DTYPE_F16, N);
    convert_elements(from_bf16, DTYPE_F32, in, DTYPE_BF16, N);
    for (uint32_t i = 0; i < N; i++) {
        float want = f16_value((uint16_t)i);
        if (isnan(want) ? !isnan(f32[i]) : bits_of(f32[i]) != bits_of(want))
            fail_msg("f16 %04x: found %a, expected %a", i, (double)f32[i], (double)want);
        assert_int_equal(bits_of(convert_load(in, DTYPE_F16, i)), bits_of(f32[i]));
        assert_int_equal(bf16[i], bf16_from_f32(f32[i]));
        assert_int_equal(bits_of(from_bf16[i]), i << 16);
        bool nonzero;
        assert_int_equal(convert_scan(&in[i], DTYPE_F16, 1, &nonzero), isfinite(f32[i]) != 0);
        assert_int_equal(nonzero, !(f32[i] == 0));
        assert_int_equal(convert_scan(&in[i], DTYPE_BF16, 1, &nonzero),
                         isfinite(from_bf16[i]) != 0);
        assert_int_equal(nonzero, !(from_bf16[i] == 0));
    }
    mem_free(in);
    mem_free(bf16);
    mem_free(f32);
    mem_free(from_bf16);
}

/* One odd value anywhere among many, at any alignment. */
static void test_scan_misses_nothing(void **state)
{
    static const struct {
        enum dtype dtype;
        uint32_t one, worst, infinite, nan;
    } cases[] = {{DTYPE_F32, 0x3f800000, 0x7f7fffff, 0xff800000, 0x7f800001},
                 {DTYPE_BF16, 0x3f80, 0x7f7f, 0xff80, 0x7f81},
                 {DTYPE_F16, 0x3c00, 0x7bff, 0xfc00, 0x7c01}};
    enum { N = 67 };
    for (size_t k = 0; k < ARRAY_COUNT(cases); k++) {
        for (uint32_t at = 0; at < N; at++) {
            char data[4 * N + 1] = {0}, *odd = data + 1;
            size_t width = dtype_bytes(cases[k].dtype);
            bool nonzero;
            assert_true(convert_scan(odd, cases[k].dtype, N, &nonzero));
            assert_false(nonzero);
            memcpy(odd + at * width, &cases[k].worst, width);
            assert_true(convert_scan(odd, cases[k].dtype, N, &nonzero));
            assert_true(nonzero);
            assert_true(convert_scan(odd, cases[k].dtype, at, &nonzero));
            assert_false(nonzero);
            memcpy(odd + at * width, &cases[k].infinite, width);
            assert_false(convert_scan(odd, cases[k].dtype, N, &nonzero));
            memcpy(odd + at * width, &cases[k].nan, width);
            assert_false(convert_scan(odd, cases[k].dtype, N, &nonzero));
        }
    }
}

/* ---- transposition ---- */

static void check_transpose(uint32_t rows, uint32_t columns, uint32_t width)
{
    enum { PAD = 3, CANARY = 0xee };
    size_t in_stride = columns + PAD, out_stride = rows + PAD;
    size_t in_bytes = (rows ? (rows - 1) * in_stride + columns : 0) * width;
    size_t out_bytes = (columns + 1) * out_stride * width;
    uint8_t *block = mem_array(in_bytes + 1, 1), *in = block + 1; /* exact, and not aligned */
    uint8_t *out = mem_array(out_bytes, 1);
    for (size_t i = 0; i < in_bytes; i++)
        in[i] = (uint8_t)(i * 37 + i / 251);
    memset(out, CANARY, out_bytes);
    if (width == 2)
        transpose_u16((uint16_t *)(void *)out, out_stride, in, in_stride, rows, columns);
    else
        transpose_u32((uint32_t *)(void *)out, out_stride, in, in_stride, rows, columns);
    for (size_t c = 0; c < columns; c++) {
        for (size_t r = 0; r < rows; r++) {
            if (memcmp(out + (c * out_stride + r) * width, in + (r * in_stride + c) * width,
                       width) != 0)
                fail_msg("%u x %u of %u bytes: [%zu, %zu] is wrong", rows, columns, width, r, c);
        }
    }
    for (size_t i = 0; i < out_bytes; i++) {
        size_t c = i / width / out_stride, r = i / width % out_stride;
        if ((c >= columns || r >= rows) && out[i] != CANARY)
            fail_msg("%u x %u of %u bytes: wrote outside at %zu", rows, columns, width, i);
    }
    mem_free(block);
    mem_free(out);
}

static void test_transpose_every_small_shape(void **state)
{
    for (uint32_t rows = 0; rows <= 37; rows++) {
        for (uint32_t columns = 0; columns <= 19; columns++) {
            check_transpose(rows, columns, 2);
            check_transpose(rows, columns, 4);
        }
    }
    check_transpose(129, 70, 2);
    check_transpose(129, 70, 4);
}

/* ---- the blob ---- */

static const char base_json[] =
    "{\"model_type\":\"llama\",\"hidden_size\":96,\"intermediate_size\":3001,"
    "\"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":2,"
    "\"head_dim\":6,\"vocab_size\":32}";

struct sample {
    struct model_config base;
    char *config, *tensors;
    size_t tensor_bytes;
    struct peft_adapter a;
    struct lora_entry layout[2 * LORA_MODULE_COUNT];
    uint64_t blob_bytes;
};

static void add_matrix(struct st_build *b, const char *leaf, char ab, const char *dtype,
                       uint32_t rows, uint32_t columns)
{
    char name[128];
    size_t width = strcmp(dtype, "F32") == 0 ? 4 : 2;
    snprintf(name, sizeof(name), "base_model.model.model.layers.1.%s.lora_%c.weight", leaf, ab);
    st_build_add(b, name, dtype, rows, columns, NULL);
    for (size_t i = 0; i < (size_t)rows * columns * width; i++)
        buf_putc(&b->data, (char)(i * 131 + i / 199 + (uint8_t)ab));
}

static void sample_init(struct sample *s, const char *dtype, uint32_t rank)
{
    struct st_build b;
    struct errtext err = ERRTEXT_INIT;
    char config[256];
    memset(s, 0, sizeof(*s));
    assert_int_equal(model_config_parse(&s->base, base_json, strlen(base_json), NULL, 0, NULL),
                     STATUS_OK);
    snprintf(config, sizeof(config),
             "{\"peft_type\":\"LORA\",\"r\":%u,\"lora_alpha\":3,\"layers_to_transform\":1,"
             "\"target_modules\":[\"down_proj\",\"q_proj\",\"up_proj\"]}",
             rank);
    st_build_init(&b);
    add_matrix(&b, "self_attn.q_proj", 'A', dtype, rank, 96);
    add_matrix(&b, "self_attn.q_proj", 'B', dtype, 24, rank);
    add_matrix(&b, "mlp.up_proj", 'A', dtype, rank, 96);
    add_matrix(&b, "mlp.up_proj", 'B', dtype, 3001, rank);
    add_matrix(&b, "mlp.down_proj", 'A', dtype, rank, 3001);
    add_matrix(&b, "mlp.down_proj", 'B', dtype, 96, rank);
    s->tensors = st_build_bytes(&b, &s->tensor_bytes);
    st_build_fini(&b);
    s->config = mem_strdup(config);
    if (peft_from_bytes(&s->a, s->config, strlen(config), s->tensors, s->tensor_bytes, &s->base,
                        &err))
        fail_msg("%s", err.text);
}

/* What the blob must be, one element at a time over zeros. */
static void pack_plainly(const struct sample *s, enum dtype dtype, char *blob)
{
    for (uint32_t i = 0; i < s->a.module_count; i++) {
        const struct peft_module *m = &s->a.module[i];
        const struct lora_entry *e = &s->layout[m->layer * LORA_MODULE_COUNT + m->module];
        enum dtype stored = DTYPE_F32;
        assert_true(convert_dtype(m->a->dtype, &stored));
        size_t d_in = m->a->dim[1], d_out = m->b->dim[0];
        for (size_t k = 0; k < m->rank * d_in; k++)
            elem_store(blob + e->a_off, dtype, k,
                       convert_load(s->tensors + m->a->begin, stored, k));
        for (size_t n = 0; n < d_out; n++) {
            for (size_t r = 0; r < m->rank; r++)
                elem_store(blob + e->b_off, dtype, r * d_out + n,
                           convert_load(s->tensors + m->b->begin, stored, n * m->rank + r));
        }
    }
}

static void check_pack(const char *dtype, uint32_t rank, enum dtype out)
{
    struct sample s;
    struct errtext err = ERRTEXT_INIT;
    uint8_t id[32];
    crypto_generichash_state hash;
    sample_init(&s, dtype, rank);
    peft_layout(&s.a, 2, out, s.layout, &s.blob_bytes);
    char *want = mem_alloc_aligned(s.blob_bytes), *blob = mem_alloc_aligned(s.blob_bytes);
    pack_plainly(&s, out, want);
    memset(blob, 0xa5, s.blob_bytes);
    peft_pack(&s.a, 2, out, s.layout, blob);
    assert_memory_equal(blob, want, s.blob_bytes);
    /* the same from a file, and the id of what was read on the way */
    FILE *f = tmpfile();
    assert_non_null(f);
    assert_int_equal(fwrite(s.tensors, 1, s.tensor_bytes, f), s.tensor_bytes);
    assert_int_equal(fflush(f), 0);
    struct peft_source from = {
        .fd = fileno(f), .piece = mem_alloc_aligned(PEFT_PIECE_BYTES), .hash = &hash};
    struct peft_target to = {.dtype = out, .n_layer = 2, .entry = s.layout, .blob = blob};
    memset(blob, 0x5a, s.blob_bytes);
    if (peft_pack_from(&s.a, &from, &to, &err))
        fail_msg("%s", err.text);
    assert_memory_equal(blob, want, s.blob_bytes);
    crypto_generichash_final(&hash, id, sizeof(id));
    assert_memory_equal(id, s.a.id, sizeof(id));
    assert_int_equal(ftruncate(fileno(f), (off_t)s.tensor_bytes - 1), 0);
    assert_int_equal(peft_pack_from(&s.a, &from, &to, &err), STATUS_CORRUPT);
    assert_non_null(strstr(err.text, "shrank while it was read"));
    fclose(f);
    mem_free_aligned(from.piece, PEFT_PIECE_BYTES);
    mem_free_aligned(want, s.blob_bytes);
    mem_free_aligned(blob, s.blob_bytes);
    peft_fini(&s.a);
}

/* rank 70 takes several pieces and tiles that do not divide it. */
static void test_pack_is_the_plain_loop(void **state)
{
    static const char *const stored[] = {"F32", "BF16", "F16"};
    static const uint32_t ranks[] = {1, 4, 7, 16, 70};
    for (size_t k = 0; k < ARRAY_COUNT(stored); k++) {
        for (size_t r = 0; r < ARRAY_COUNT(ranks); r++) {
            check_pack(stored[k], ranks[r], DTYPE_BF16);
            check_pack(stored[k], ranks[r], DTYPE_F32);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_convert_every_16_bit_value),
        cmocka_unit_test(test_scan_misses_nothing),
        cmocka_unit_test(test_transpose_every_small_shape),
        cmocka_unit_test(test_pack_is_the_plain_loop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
