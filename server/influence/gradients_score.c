/* Scores of gradients.h. With G the rows' gradients of a matrix, n of them, a row's scores are
 *     G (G'G / n + lambda I)^-1 g  =  (G G' / n + lambda I)^-1 G g,
 * a system of the matrix's numbers or one of the rows, by Cholesky's factor in f64. */
#include "server/base/mem.h"
#include "server/influence/gradients.h"

#include <math.h>
#include <string.h>

#define LANES 8

struct fisher {
    const struct gradients_asked *asked;
    uint64_t stride; /* of a gradient */
    uint64_t at;     /* the block's numbers in it */
    uint32_t width, size;
    double *system; /* [size][size] */
    double *side;   /* [size] */
};

static double dot(const float *a, const float *b, uint32_t n)
{
    double lane[LANES] = {0}, sum = 0;
    uint32_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (uint32_t k = 0; k < LANES; k++)
            lane[k] += (double)a[i + k] * (double)b[i + k];
    }
    for (uint32_t k = 0; k < LANES; k++)
        sum += lane[k];
    for (; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

static const float *row_of(const struct fisher *s, uint32_t row)
{
    return s->asked->row + row * s->stride + s->at;
}

static const float *answer_of(const struct fisher *s, uint32_t answer)
{
    return s->asked->answer + answer * s->stride + s->at;
}

/* The lower triangle becomes its factor. */
static enum status factor(double *m, uint32_t n, struct errtext *err)
{
    for (uint32_t i = 0; i < n; i++) {
        double *mi = m + (size_t)i * n;
        for (uint32_t j = 0; j <= i; j++) {
            const double *mj = m + (size_t)j * n;
            double lane[LANES] = {0}, sum = mi[j];
            uint32_t k = 0;
            for (; k + LANES <= j; k += LANES) {
                for (uint32_t l = 0; l < LANES; l++)
                    lane[l] += mi[k + l] * mj[k + l];
            }
            for (uint32_t l = 0; l < LANES; l++)
                sum -= lane[l];
            for (; k < j; k++)
                sum -= mi[k] * mj[k];
            if (i == j && !(sum > 0))
                return err_set(err, STATUS_CORRUPT,
                               "gradients: the Fisher of a matrix is not positive definite; a "
                               "larger damping makes it so");
            mi[j] = i == j ? sqrt(sum) : sum / mj[j];
        }
    }
    return STATUS_OK;
}

static void solve(const double *m, uint32_t n, double *x)
{
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t k = 0; k < i; k++)
            x[i] -= m[(size_t)i * n + k] * x[k];
        x[i] /= m[(size_t)i * n + i];
    }
    for (uint32_t i = n; i-- > 0;) {
        x[i] /= m[(size_t)i * n + i];
        for (uint32_t k = 0; k < i; k++)
            x[k] -= m[(size_t)i * n + k] * x[i];
    }
}

/* Mean of the rows' |g|^2. */
static double mean_square(const struct fisher *s)
{
    double sum = 0;
    for (uint32_t i = 0; i < s->asked->n_row; i++)
        sum += dot(row_of(s, i), row_of(s, i), s->width);
    return sum / s->asked->n_row;
}

static void fill_by_rows(struct fisher *s, double lambda)
{
    uint32_t n = s->asked->n_row;
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t j = 0; j <= i; j++)
            s->system[(size_t)i * n + j] = dot(row_of(s, i), row_of(s, j), s->width) / n;
        s->system[(size_t)i * n + i] += lambda;
    }
}

static void fill_by_numbers(struct fisher *s, double lambda)
{
    uint32_t n = s->asked->n_row, w = s->width;
    memset(s->system, 0, (size_t)w * w * sizeof(double));
    for (uint32_t r = 0; r < n; r++) {
        const float *g = row_of(s, r);
        for (uint32_t i = 0; i < w; i++) {
            double x = (double)g[i] / n, *to = s->system + (size_t)i * w;
            for (uint32_t j = 0; j <= i; j++)
                to[j] += x * (double)g[j];
        }
    }
    for (uint32_t i = 0; i < w; i++)
        s->system[(size_t)i * w + i] += lambda;
}

static void add_by_rows(struct fisher *s, uint32_t answer, double *score)
{
    uint32_t n = s->asked->n_row;
    for (uint32_t i = 0; i < n; i++)
        s->side[i] = dot(row_of(s, i), answer_of(s, answer), s->width);
    solve(s->system, n, s->side);
    for (uint32_t i = 0; i < n; i++)
        score[i] += s->side[i];
}

static void add_by_numbers(struct fisher *s, uint32_t answer, double *score)
{
    for (uint32_t i = 0; i < s->width; i++)
        s->side[i] = (double)answer_of(s, answer)[i];
    solve(s->system, s->width, s->side);
    for (uint32_t r = 0; r < s->asked->n_row; r++) {
        const float *g = row_of(s, r);
        double sum = 0;
        for (uint32_t i = 0; i < s->width; i++)
            sum += (double)g[i] * s->side[i];
        score[r] += sum;
    }
}

static enum status score_block(struct fisher *s, double *score, struct errtext *err)
{
    const struct gradients_asked *a = s->asked;
    double mean = mean_square(s), lambda = a->damping * mean / a->n_row;
    bool by_rows = s->size == a->n_row;
    if (!(mean > 0))
        return STATUS_OK; /* no row moves this matrix */
    if (by_rows)
        fill_by_rows(s, lambda);
    else
        fill_by_numbers(s, lambda);
    enum status st = factor(s->system, s->size, err);
    for (uint32_t q = 0; q < a->n_answer && !st; q++) {
        double *to = score + (size_t)q * a->n_row;
        if (by_rows)
            add_by_rows(s, q, to);
        else
            add_by_numbers(s, q, to);
    }
    return st;
}

enum status gradients_score(const struct gradient_blocks *b, const struct gradients_asked *a,
                            double *score, struct errtext *err)
{
    struct fisher s = {.asked = a, .stride = b->width};
    enum status st = STATUS_OK;
    memset(score, 0, (size_t)a->n_answer * a->n_row * sizeof(*score));
    for (uint32_t k = 0; k < b->n && a->n_row && !st; k++) {
        s.at = b->block[k].at;
        s.width = b->block[k].rank * b->block[k].columns;
        s.size = s.width < a->n_row ? s.width : a->n_row;
        s.system = mem_try_array((size_t)s.size * s.size, sizeof(double));
        s.side = mem_try_array(s.size, sizeof(double));
        st = s.system && s.side ? score_block(&s, score, err)
                                : err_set(err, STATUS_NO_MEMORY,
                                          "gradients: no memory for a system of %u", s.size);
        mem_free(s.system);
        mem_free(s.side);
    }
    return st;
}
