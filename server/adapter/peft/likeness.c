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
    float *a, *b; /* A [rank][d_in], B transposed, [rank][d_out] */
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

static float *load_transposed(const struct peft_adapter *p, const struct st_tensor *t)
{
    size_t rows = (size_t)t->dim[0], columns = (size_t)t->dim[1];
    float *m = load_matrix(p, t), *out = m ? mem_try_array(rows * columns, sizeof(*out)) : NULL;
    for (size_t r = 0; out && r < rows; r++) {
        for (size_t c = 0; c < columns; c++)
            out[c * rows + r] = m[r * columns + c];
    }
    mem_free(m);
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
                          .b = load_transposed(p, m->b),
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

/* Which bucket each of n places falls into, twice that, plus 1 for its sign. */
static uint16_t *make_buckets(uint32_t n, uint64_t seed)
{
    uint16_t *out = mem_try_array(n, sizeof(*out));
    for (uint32_t i = 0; out && i < n; i++) {
        uint64_t h = mix(seed + i);
        out[i] = (uint16_t)(h % LIKENESS_DIM * 2 + (h >> 63));
    }
    return out;
}

/* n numbers into DIM signed buckets. */
static void throw(double out[LIKENESS_DIM], const float *v, uint32_t n, const uint16_t *bucket)
{
    double both[2 * LIKENESS_DIM] = {0}; /* what is added and what is taken away */
    for (uint32_t i = 0; i < n; i++)
        both[bucket[i]] += (double)v[i];
    for (uint32_t k = 0; k < LIKENESS_DIM; k++)
        out[k] = both[2 * k] - both[2 * k + 1];
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

static bool add_module(double sum[LIKENESS_DIM], const struct peft_adapter *a,
                       const struct peft_module *m)
{
    double in[LIKENESS_DIM], to[LIKENESS_DIM];
    struct factors f;
    uint64_t seed = mix((uint64_t)m->layer << 8 | m->module);
    if (!load_factors(&f, a, m))
        return false;
    uint16_t *columns = make_buckets(f.d_in, seed), *rows = make_buckets(f.d_out, ~seed);
    for (uint32_t r = 0; columns && rows && r < f.rank; r++) {
        throw(in, f.a + (size_t)r * f.d_in, f.d_in, columns);
        throw(to, f.b + (size_t)r * f.d_out, f.d_out, rows);
        add_convolution(sum, in, to, m->scale);
    }
    bool done = columns && rows;
    mem_free(columns);
    mem_free(rows);
    drop_factors(&f);
    return done;
}

enum status likeness_of(struct likeness *out, const struct peft_adapter *a, struct errtext *err)
{
    double sum[LIKENESS_DIM] = {0}, norm = 0;
    for (uint32_t i = 0; i < a->module_count; i++) {
        if (!add_module(sum, a, &a->module[i]))
            return no_memory(err);
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

static double dot(const float *x, const float *y, uint32_t n)
{
    double sum[4] = {0};
    uint32_t i = 0;
    for (; i + 4 <= n; i += 4) {
        for (uint32_t k = 0; k < 4; k++)
            sum[k] += (double)x[i + k] * (double)y[i + k];
    }
    for (; i < n; i++)
        sum[0] += (double)x[i] * (double)y[i];
    return sum[0] + sum[1] + sum[2] + sum[3];
}

/* <B1 A1, B2 A2> = sum over ranks of (B1' B2) o (A1 A2'). */
static double inner(const struct factors *x, const struct factors *y)
{
    double sum = 0;
    for (uint32_t i = 0; i < x->rank; i++) {
        for (uint32_t k = 0; k < y->rank; k++) {
            double in = dot(x->a + (size_t)i * x->d_in, y->a + (size_t)k * y->d_in, x->d_in);
            double out = dot(x->b + (size_t)i * x->d_out, y->b + (size_t)k * y->d_out, x->d_out);
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
