/* The sketch is a tensor sketch (Pham and Pagh 2013): rows and columns of a module are thrown into
 * DIM signed buckets by hashes of its own, and the sketch of b x a is the circular convolution of
 * the two; being linear, it depends on the product alone. */
#include "server/adapter/peft/likeness.h"
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/model/convert.h"

#include <math.h>
#include <string.h>

/* ---- a module's factors as numbers ---- */

struct factors {
    float *a, *b; /* A [rank][d_in], B [d_out][rank] */
    uint32_t rank, d_in, d_out;
};

static float *load_matrix(const struct peft_adapter *p, const struct st_tensor *t)
{
    enum dtype dtype;
    size_t n = (size_t)(t->dim[0] * t->dim[1]);
    float *out = mem_try_array(n, sizeof(*out));
    CHECK(convert_dtype(t->dtype, &dtype)); /* admitted */
    if (out)
        convert_elements(out, DTYPE_F32, p->tensor_bytes + t->begin, dtype, n);
    return out;
}

static void drop_factors(struct factors *f)
{
    mem_free(f->a);
    mem_free(f->b);
}

static bool load_factors(struct factors *f, const struct peft_adapter *p,
                         const struct peft_module *m)
{
    *f = (struct factors){.a = load_matrix(p, m->a),
                          .b = load_matrix(p, m->b),
                          .rank = m->rank,
                          .d_in = (uint32_t)m->a->dim[1],
                          .d_out = (uint32_t)m->b->dim[0]};
    if (f->a && f->b)
        return true;
    drop_factors(f);
    return false;
}

static enum status no_memory(struct errtext *err)
{
    return err_set(err, STATUS_NO_MEMORY, "no memory to compare adapters");
}

/* ---- the sketch ---- */

static uint64_t mix(uint64_t x) /* splitmix64 */
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* n numbers, `step` apart, into DIM signed buckets. */
static void throw(double out[LIKENESS_DIM], const float *v, uint32_t n, uint32_t step,
                  uint64_t seed)
{
    memset(out, 0, LIKENESS_DIM * sizeof(out[0]));
    for (uint32_t i = 0; i < n; i++) {
        uint64_t h = mix(seed + i);
        double x = (double)v[(size_t)i * step];
        out[h % LIKENESS_DIM] += h >> 63 ? -x : x;
    }
}

static void add_convolution(double sum[LIKENESS_DIM], const double *x, const double *y, double s)
{
    double twice[2 * LIKENESS_DIM];
    memcpy(twice, y, LIKENESS_DIM * sizeof(y[0]));
    memcpy(twice + LIKENESS_DIM, y, LIKENESS_DIM * sizeof(y[0]));
    for (uint32_t i = 0; i < LIKENESS_DIM; i++) {
        double f = s * x[i];
        const double *from = twice + LIKENESS_DIM - i;
        for (uint32_t k = 0; k < LIKENESS_DIM; k++)
            sum[k] += f * from[k];
    }
}

enum status likeness_of(struct likeness *out, const struct peft_adapter *a, struct errtext *err)
{
    double sum[LIKENESS_DIM] = {0}, in[LIKENESS_DIM], to[LIKENESS_DIM], norm = 0;
    for (uint32_t i = 0; i < a->module_count; i++) {
        const struct peft_module *m = &a->module[i];
        struct factors f;
        uint64_t seed = mix((uint64_t)m->layer << 8 | m->module);
        if (!load_factors(&f, a, m))
            return no_memory(err);
        for (uint32_t r = 0; r < f.rank; r++) {
            throw(in, f.a + (size_t)r * f.d_in, f.d_in, 1, seed);
            throw(to, f.b + r, f.d_out, f.rank, ~seed);
            add_convolution(sum, in, to, m->scale);
        }
        drop_factors(&f);
    }
    for (uint32_t k = 0; k < LIKENESS_DIM; k++)
        norm += sum[k] * sum[k];
    for (uint32_t k = 0; k < LIKENESS_DIM; k++)
        out->v[k] = norm > 0 ? (float)(sum[k] / sqrt(norm)) : 0;
    return STATUS_OK;
}

float likeness_estimate(const struct likeness *x, const struct likeness *y)
{
    float dot = 0;
    for (uint32_t k = 0; k < LIKENESS_DIM; k++)
        dot += x->v[k] * y->v[k];
    return dot;
}

/* ---- the cosine ---- */

/* <B1 A1, B2 A2> = sum over ranks of (B1' B2) o (A1 A2'). */
static double inner(const struct factors *x, const struct factors *y)
{
    double sum = 0;
    for (uint32_t i = 0; i < x->rank; i++) {
        for (uint32_t k = 0; k < y->rank; k++) {
            const float *a1 = x->a + (size_t)i * x->d_in, *a2 = y->a + (size_t)k * y->d_in;
            double in = 0, out = 0;
            for (uint32_t c = 0; c < x->d_in; c++)
                in += (double)a1[c] * (double)a2[c];
            for (uint32_t c = 0; c < x->d_out; c++)
                out +=
                    (double)x->b[(size_t)c * x->rank + i] * (double)y->b[(size_t)c * y->rank + k];
            sum += in * out;
        }
    }
    return sum;
}

static const struct peft_module *same_place(const struct peft_adapter *a,
                                            const struct peft_module *m)
{
    for (uint32_t i = 0; i < a->module_count; i++) {
        if (a->module[i].layer == m->layer && a->module[i].module == m->module)
            return &a->module[i];
    }
    return NULL;
}

static enum status add_inner(double *sum, const struct peft_adapter *x,
                             const struct peft_adapter *y, struct errtext *err)
{
    *sum = 0;
    for (uint32_t i = 0; i < x->module_count; i++) {
        const struct peft_module *mx = &x->module[i], *my = same_place(y, mx);
        struct factors fx, fy;
        if (!my)
            continue;
        if (!load_factors(&fx, x, mx))
            return no_memory(err);
        bool both = load_factors(&fy, y, my);
        if (both)
            *sum += mx->scale * my->scale * inner(&fx, &fy);
        drop_factors(&fx);
        if (!both)
            return no_memory(err);
        drop_factors(&fy);
    }
    return STATUS_OK;
}

enum status likeness_exact(double *out, const struct peft_adapter *x, const struct peft_adapter *y,
                           struct errtext *err)
{
    double xy, xx, yy;
    enum status st = add_inner(&xy, x, y, err);
    if (!st)
        st = add_inner(&xx, x, x, err);
    if (!st)
        st = add_inner(&yy, y, y, err);
    *out = !st && xx > 0 && yy > 0 ? xy / sqrt(xx) / sqrt(yy) : 0;
    return st;
}
