/* Signal S3: what a step on a training row would do to an answer. Of every row and every answer the
 * gradient of -log p is taken for each LoRA matrix, its long side projected where that is wanted.
 * A row's score is the sum over matrices of g_answer' (F + lambda I)^-1 g_row, F the mean of g_row
 * g_row' over all rows: the empirical Fisher, inverted exactly. Above 0 where learning the row
 * makes the answer likelier.
 *
 * A second opinion and no part of a payment: offline, in f32 gradients and f64 sums.
 * Thread: one, the backend's. */
#ifndef RS_INFLUENCE_GRADIENTS_H
#define RS_INFLUENCE_GRADIENTS_H

#include "server/datanet/training_rows.h"
#include "server/train/pass.h"

#define GRADIENTS_PROJECT_MAX 128

struct gradient_block { /* a matrix: A [rank, d_in], or B transposed [rank, d_out] */
    uint32_t layer, module, rank;
    bool is_b;
    uint32_t length;  /* of a row of it in the adapter */
    uint32_t columns; /* and behind the projection */
    uint64_t at;      /* of its rank * columns numbers in a gradient */
    size_t blob_at;   /* of its rank * length floats in the adapter's blob */
};
struct gradient_blocks {
    struct gradient_block *block;
    uint32_t n;
    uint64_t width; /* numbers of a gradient */
    uint64_t seed;
};
/* project: columns that longer sides come down to, by signs that the seed draws, over the root of
 * their count; 0: none do. */
void gradient_blocks_make(struct gradient_blocks *out, const struct train_lora *lora,
                          uint32_t project, uint64_t seed);
void gradient_blocks_fini(struct gradient_blocks *b);

struct gradients_taken {
    float *gradient; /* [rows][width] */
    float *logprob;  /* [rows] summed over what is learned of it */
};
struct gradients_job {
    struct train_base base;
    const struct train_lora *lora;
    const struct gradient_blocks *blocks;
    uint32_t tokens; /* of a pass: the longest row fits */
};
/* Errors: CORRUPT a gradient that is no number; as train_pass_create; NO_MEMORY, what the ops say.
 */
MUST_CHECK enum status gradients_take(const struct gradients_job *job,
                                      const struct training_rows *rows, struct gradients_taken *out,
                                      struct errtext *err);
void gradients_taken_fini(struct gradients_taken *t);

struct gradients_asked {
    const float *row, *answer; /* [n_row][width], [n_answer][width] */
    uint32_t n_row, n_answer;
    double damping; /* > 0: lambda of a matrix is that of its rows' mean |g|^2 / rows */
};
/* score [n_answer][n_row]. The smaller of the two equal systems is solved: of the matrix's numbers,
 * or of the rows. Errors: NO_MEMORY; CORRUPT: a system that is not positive definite. */
MUST_CHECK enum status gradients_score(const struct gradient_blocks *b,
                                       const struct gradients_asked *a, double *score,
                                       struct errtext *err);

#endif
