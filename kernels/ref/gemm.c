/* gemm: one dot product per output element. */
#include "kernels/bf16.h"
#include "kernels/ref/ref.h"

float ref_dot(const float *x, const struct weight *w, uint32_t row)
{
    double sum = 0;
    for (uint32_t k = 0; k < w->d_in; k++) {
        float xk = w->dtype == DTYPE_BF16 ? bf16_round(x[k]) : x[k];
        sum += (double)xk * elem_load(w->data, w->dtype, (size_t)row * w->d_in + k);
    }
    return (float)sum;
}

enum status ref_gemm(struct backend *b, const struct gemm_args *a)
{
    (void)b;
    for (uint32_t t = 0; t < a->n_tok; t++) {
        float *y = a->y + (size_t)t * a->y_stride;
        for (uint32_t p = 0; p < a->part_count; p++)
            for (uint32_t n = 0; n < a->part[p].d_out; n++)
                *y++ = ref_dot((const float *)a->x + (size_t)t * a->x_stride, &a->part[p], n);
    }
    return STATUS_OK;
}
