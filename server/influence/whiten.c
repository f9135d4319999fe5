/* Covariance in f64, its leading 64 eigenvectors by subspace iteration with 16 spare columns from
 * a fixed start, and a Rayleigh-Ritz step (Jacobi) that turns the subspace's basis into them.
 * All inner loops run over contiguous outputs, never over a reduction: the compiler may vectorise
 * them and the order of every sum stays what is written. */
#include "server/influence/whiten.h"
#include "kernels/bf16.h"
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/base/philox.h"

#include <math.h>

#define SPARE   16
#define COLUMNS (WHITEN_OUT + SPARE)
#define ROUNDS  40
#define SWEEPS  30
#define RIDGE   1e-3 /* of the mean of the values kept */
#define NOISE   1e-9 /* of the largest value: below is no direction of the sample */

struct fit {
    uint32_t d, k; /* k: columns */
    double *mean;  /* [d] */
    double *cov;   /* [d][d] */
    double *v, *y; /* [d][k] */
    double ritz[COLUMNS][COLUMNS], turn[COLUMNS][COLUMNS];
};

static enum status fit_mean(struct fit *f, const float *x, uint32_t n, struct errtext *err)
{
    for (uint32_t s = 0; s < n; s++) {
        const float *row = x + (size_t)s * f->d;
        for (uint32_t i = 0; i < f->d; i++) {
            if (!isfinite(row[i]))
                return err_set(err, STATUS_INVALID,
                               "sample %u: component %u is %g, a finite number is expected", s, i,
                               (double)row[i]);
            f->mean[i] += row[i];
        }
    }
    for (uint32_t i = 0; i < f->d; i++)
        f->mean[i] /= n;
    return STATUS_OK;
}

/* Upper triangle of the sum over four samples at a time, so that a row of it is touched a quarter
 * as often. */
static void add_four(struct fit *f, const double *z)
{
    uint32_t d = f->d;
    const double *z0 = z, *z1 = z + d, *z2 = z + 2 * (size_t)d, *z3 = z + 3 * (size_t)d;
    for (uint32_t i = 0; i < d; i++) {
        double *row = f->cov + (size_t)i * d;
        double a = z0[i], b = z1[i], c = z2[i], e = z3[i];
        for (uint32_t j = i; j < d; j++)
            row[j] += (a * z0[j] + b * z1[j]) + (c * z2[j] + e * z3[j]);
    }
}

static void fit_cov(struct fit *f, const float *x, uint32_t n, double *four)
{
    uint32_t d = f->d;
    for (uint32_t s = 0; s < n; s += 4) {
        for (uint32_t r = 0; r < 4; r++) {
            for (uint32_t i = 0; i < d; i++)
                four[(size_t)r * d + i] =
                    s + r < n ? (double)x[(size_t)(s + r) * d + i] - f->mean[i] : 0;
        }
        add_four(f, four);
    }
    for (uint32_t i = 0; i < d; i++) {
        for (uint32_t j = i; j < d; j++) {
            double value = f->cov[(size_t)i * d + j] / n;
            f->cov[(size_t)i * d + j] = f->cov[(size_t)j * d + i] = value;
        }
    }
}

static void start_columns(struct fit *f)
{
    for (uint32_t i = 0; i < f->d; i++) {
        for (uint32_t c = 0; c < f->k; c++) {
            uint32_t out[4], ctr[4] = {i, c, 0, 0};
            philox4x32(out, ctr, 1);
            f->v[(size_t)i * f->k + c] = philox_unit(out[0]) - 0.5;
        }
    }
}

/* y = cov v */
static void multiply(struct fit *f)
{
    uint32_t d = f->d, k = f->k;
    for (uint32_t i = 0; i < d; i++) {
        double *y = f->y + (size_t)i * k;
        for (uint32_t c = 0; c < k; c++)
            y[c] = 0;
        for (uint32_t j = 0; j < d; j++) {
            double a = f->cov[(size_t)i * d + j];
            const double *v = f->v + (size_t)j * k;
            for (uint32_t c = 0; c < k; c++)
                y[c] += a * v[c];
        }
    }
}

/* dots[c] = column a of y . column c of y */
static void column_dots(const struct fit *f, uint32_t a, double dots[COLUMNS])
{
    for (uint32_t c = 0; c < f->k; c++)
        dots[c] = 0;
    for (uint32_t i = 0; i < f->d; i++) {
        const double *y = f->y + (size_t)i * f->k;
        for (uint32_t c = 0; c < f->k; c++)
            dots[c] += y[a] * y[c];
    }
}

/* v = y with orthonormal columns (Gram-Schmidt, each later column cleared of column a as soon as it
 * is final, twice over all). A column of noise becomes zeros. */
static void orthonormalise(struct fit *f)
{
    double dots[COLUMNS];
    for (uint32_t pass = 0; pass < 2; pass++) {
        for (uint32_t a = 0; a < f->k; a++) {
            column_dots(f, a, dots);
            double norm = dots[a] > 1e-300 ? sqrt(dots[a]) : 0;
            for (uint32_t i = 0; i < f->d; i++) {
                double *y = f->y + (size_t)i * f->k;
                y[a] = norm > 0 ? y[a] / norm : 0;
                for (uint32_t c = a + 1; c < f->k; c++)
                    y[c] -= norm > 0 ? y[a] * (dots[c] / norm) : 0;
            }
        }
    }
    for (size_t i = 0; i < (size_t)f->d * f->k; i++)
        f->v[i] = f->y[i];
}

/* ritz = v' cov v */
static void project_cov(struct fit *f)
{
    multiply(f);
    for (uint32_t a = 0; a < f->k; a++) {
        for (uint32_t c = 0; c < f->k; c++)
            f->ritz[a][c] = 0;
    }
    for (uint32_t i = 0; i < f->d; i++) {
        const double *v = f->v + (size_t)i * f->k, *y = f->y + (size_t)i * f->k;
        for (uint32_t a = 0; a < f->k; a++) {
            for (uint32_t c = 0; c < f->k; c++)
                f->ritz[a][c] += v[a] * y[c];
        }
    }
}

static void rotate(double (*m)[COLUMNS], uint32_t k, uint32_t p, uint32_t q, double c, double s)
{
    for (uint32_t i = 0; i < k; i++) {
        double a = m[p][i], b = m[q][i];
        m[p][i] = c * a - s * b;
        m[q][i] = s * a + c * b;
    }
}

static void jacobi_pair(struct fit *f, uint32_t p, uint32_t q)
{
    double off = f->ritz[p][q];
    if (fabs(off) < 1e-300)
        return;
    double theta = (f->ritz[q][q] - f->ritz[p][p]) / (2 * off);
    double t = (theta < 0 ? -1 : 1) / (fabs(theta) + sqrt(theta * theta + 1));
    double c = 1 / sqrt(t * t + 1), s = t * c;
    rotate(f->ritz, f->k, p, q, c, s);
    for (uint32_t i = 0; i < f->k; i++) {
        double a = f->ritz[i][p], b = f->ritz[i][q];
        f->ritz[i][p] = c * a - s * b;
        f->ritz[i][q] = s * a + c * b;
    }
    rotate(f->turn, f->k, p, q, c, s);
}

/* ritz becomes diagonal; row c of turn is the eigenvector of ritz[c][c] in v's columns. */
static void jacobi(struct fit *f)
{
    for (uint32_t a = 0; a < f->k; a++) {
        for (uint32_t c = 0; c < f->k; c++)
            f->turn[a][c] = a == c;
    }
    for (uint32_t sweep = 0; sweep < SWEEPS; sweep++) {
        for (uint32_t p = 0; p + 1 < f->k; p++) {
            for (uint32_t q = p + 1; q < f->k; q++)
                jacobi_pair(f, p, q);
        }
    }
}

static void order_values(const struct fit *f, uint32_t order[COLUMNS])
{
    for (uint32_t c = 0; c < f->k; c++) {
        uint32_t at = c;
        for (; at > 0 && f->ritz[order[at - 1]][order[at - 1]] < f->ritz[c][c]; at--)
            order[at] = order[at - 1];
        order[at] = c;
    }
}

/* One row of w: the eigenvector with its largest component positive, whitened. */
static void write_direction(const struct fit *f, const double *turn, double scale, uint16_t *w,
                            float *bias)
{
    double largest = 0, sum = 0;
    double *u = f->y; /* [d] of it */
    for (uint32_t i = 0; i < f->d; i++) {
        double value = 0;
        for (uint32_t c = 0; c < f->k; c++)
            value += turn[c] * f->v[(size_t)i * f->k + c];
        u[i] = value;
        largest = fabs(value) > fabs(largest) ? value : largest;
    }
    for (uint32_t i = 0; i < f->d; i++) {
        w[i] = bf16_from_f32((float)(u[i] * (largest < 0 ? -scale : scale)));
        sum += (double)bf16_to_f32(w[i]) * f->mean[i];
    }
    *bias = (float)sum;
}

static void write_basis(const struct fit *f, uint16_t *w, float *bias)
{
    uint32_t order[COLUMNS], n = 0;
    double kept = 0;
    order_values(f, order);
    double top = f->ritz[order[0]][order[0]];
    while (n < MIN(f->k, (uint32_t)WHITEN_OUT) && top > 0 &&
           f->ritz[order[n]][order[n]] > NOISE * top) {
        kept += f->ritz[order[n]][order[n]];
        n++;
    }
    for (uint32_t r = 0; r < n; r++) {
        double value = f->ritz[order[r]][order[r]] + RIDGE * kept / n;
        write_direction(f, f->turn[order[r]], 1 / sqrt(value), w + (size_t)r * f->d, bias + r);
    }
}

static enum status fit_run(struct fit *f, uint16_t *w, float *bias, const float *x, uint32_t n,
                           struct errtext *err)
{
    double *four = mem_try_array(f->d, 4 * sizeof(double));
    f->mean = mem_try_array(f->d, sizeof(double));
    f->cov = mem_try_array(f->d, f->d * sizeof(double));
    f->v = mem_try_array(f->d, f->k * sizeof(double));
    f->y = mem_try_array(f->d, f->k * sizeof(double));
    enum status st = four && f->mean && f->cov && f->v && f->y
                         ? fit_mean(f, x, n, err)
                         : err_set(err, STATUS_NO_MEMORY, "no memory for directions of %u", f->d);
    if (!st) {
        fit_cov(f, x, n, four);
        start_columns(f);
        for (uint32_t round = 0; round < ROUNDS; round++) {
            multiply(f);
            orthonormalise(f);
        }
        project_cov(f);
        jacobi(f);
        write_basis(f, w, bias);
    }
    mem_free(four);
    mem_free(f->mean);
    mem_free(f->cov);
    mem_free(f->v);
    mem_free(f->y);
    return st;
}

enum status whiten_fit(uint16_t *w, float *bias, const float *x, uint32_t n, uint32_t d,
                       struct errtext *err)
{
    for (size_t i = 0; i < (size_t)WHITEN_OUT * d; i++)
        w[i] = 0;
    for (uint32_t i = 0; i < WHITEN_OUT; i++)
        bias[i] = 0;
    if (n == 0)
        return STATUS_OK;
    struct fit *f = mem_try_alloc(sizeof(*f));
    if (!f)
        return err_set(err, STATUS_NO_MEMORY, "no memory for directions of %u", d);
    f->d = d;
    f->k = MIN(d, (uint32_t)COLUMNS);
    enum status st = fit_run(f, w, bias, x, n, err);
    mem_free(f);
    return st;
}

void whiten_transpose(float *w_t, const uint16_t *w, uint32_t d)
{
    for (uint32_t i = 0; i < d; i++) {
        for (uint32_t r = 0; r < WHITEN_OUT; r++)
            w_t[(size_t)i * WHITEN_OUT + r] = bf16_to_f32(w[(size_t)r * d + i]);
    }
}

void whiten_project(float z[WHITEN_OUT], const float *w_t, const float *bias, const float *x,
                    uint32_t d)
{
    for (uint32_t r = 0; r < WHITEN_OUT; r++)
        z[r] = 0;
    for (uint32_t i = 0; i < d; i++) {
        const float *w = w_t + (size_t)i * WHITEN_OUT;
        for (uint32_t r = 0; r < WHITEN_OUT; r++)
            z[r] += w[r] * x[i];
    }
    for (uint32_t r = 0; r < WHITEN_OUT; r++)
        z[r] -= bias[r];
}

void whiten_quantise(int8_t out[WHITEN_OUT], const float z[WHITEN_OUT])
{
    double sum = 0;
    for (uint32_t r = 0; r < WHITEN_OUT; r++)
        sum += (double)z[r] * z[r];
    double scale = sum > 0 && isfinite(sum) ? 127 / sqrt(sum) : 0;
    for (uint32_t r = 0; r < WHITEN_OUT; r++)
        out[r] = scale > 0 ? (int8_t)lrint(z[r] * scale) : 0;
}
