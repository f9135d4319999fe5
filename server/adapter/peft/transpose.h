/* Transposition of 2- and 4-byte elements, which LoRA B needs on its way from file to blob:
 * out[c * out_stride + r] = in[r * in_stride + c], r < rows, c < columns, strides in elements. in
 * may lie at any alignment; out is naturally aligned and does not overlap it. Pure. */
#ifndef RS_ADAPTER_PEFT_TRANSPOSE_H
#define RS_ADAPTER_PEFT_TRANSPOSE_H

#include <stddef.h>
#include <stdint.h>

void transpose_u16(uint16_t *out, size_t out_stride, const void *in, size_t in_stride,
                   uint32_t rows, uint32_t columns);
void transpose_u32(uint32_t *out, size_t out_stride, const void *in, size_t in_stride,
                   uint32_t rows, uint32_t columns);

#endif
