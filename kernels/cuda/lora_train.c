/* Between an adapter that is trained, f32 row by row in host memory, and the device form of its
 * weights and of its gradient (kernels/backward.h: element o/2 belongs to byte o). A fixed
 * permutation, element by element. */
#include "kernels/backward.h"
#include "kernels/bf16.h"
#include "kernels/cuda/lora_pack.h"

#include <string.h>

struct form_grad {
    const float *from;
    float *to;
};

/* One matrix: where it begins in both forms. */
struct form_matrix {
    uint32_t rank, d;
    bool is_b;
    size_t plain, packed; /* elements */
};

static size_t packed_at(const struct form_matrix *m, uint32_t r, uint32_t k)
{
    return m->packed + (m->is_b ? lora_pack_b_at(k, r, m->rank) : lora_pack_a_at(r, k, m->d));
}

typedef void move_fn(const struct lora_train_form *f, const struct form_matrix *m,
                     const struct form_grad *grad);

static void each_matrix(const struct lora_train_form *f, move_fn *move,
                        const struct form_grad *grad)
{
    for (size_t i = 0; i < (size_t)f->dims->n_layer * LORA_MODULE_COUNT; i++) {
        const struct lora_entry *e = &f->entry[i], *p = &f->packed[i];
        const uint32_t m = i % LORA_MODULE_COUNT;
        const struct form_matrix a = {e->rank, f->dims->d_in[m], false, e->a_off / sizeof(float),
                                      p->a_off / sizeof(uint16_t)};
        const struct form_matrix b = {e->rank, f->dims->d_out[m], true, e->b_off / sizeof(float),
                                      p->b_off / sizeof(uint16_t)};
        if (!e->rank)
            continue;
        move(f, &a, grad);
        move(f, &b, grad);
    }
}

static void move_weights(const struct lora_train_form *f, const struct form_matrix *m,
                         const struct form_grad *grad)
{
    (void)grad;
    for (uint32_t r = 0; r < m->rank; r++)
        for (uint32_t k = 0; k < m->d; k++)
            f->packed_weights[packed_at(m, r, k)] =
                bf16_from_f32(f->weights[m->plain + (size_t)r * m->d + k]);
}

static void move_up(const struct lora_train_form *f, const struct form_matrix *m,
                    const struct form_grad *grad)
{
    for (uint32_t r = 0; r < m->rank; r++)
        for (uint32_t k = 0; k < m->d; k++)
            f->packed_grad[packed_at(m, r, k)] = grad->from[m->plain + (size_t)r * m->d + k];
}

static void move_down(const struct lora_train_form *f, const struct form_matrix *m,
                      const struct form_grad *grad)
{
    for (uint32_t r = 0; r < m->rank; r++)
        for (uint32_t k = 0; k < m->d; k++)
            grad->to[m->plain + (size_t)r * m->d + k] = f->packed_grad[packed_at(m, r, k)];
}

void lora_train_up(const struct lora_train_form *f, const float *grad)
{
    memset(f->packed_weights, 0, f->packed_bytes);
    each_matrix(f, move_weights, NULL);
    if (!grad)
        return;
    memset(f->packed_grad, 0, 2 * f->packed_bytes);
    each_matrix(f, move_up, &(struct form_grad){.from = grad});
}

void lora_train_down(const struct lora_train_form *f, float *grad)
{
    each_matrix(f, move_down, &(struct form_grad){.to = grad});
}
