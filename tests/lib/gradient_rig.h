/* The backward pass over a case of tests/data/logits: three sequences under two adapters, packed in
 * one batch, and the comparison with torch autograd (tests/oracle/gradients_golden.py). */
#ifndef RS_TESTS_GRADIENT_RIG_H
#define RS_TESTS_GRADIENT_RIG_H

#include "server/engine/backward.h"
#include "tests/lib/logits_rig.h"

enum { GRADIENT_ROWS = 64, GRADIENT_SEQS = 3, GRADIENT_SLOTS = 2 };

/* A case's model and adapters on a backend, and room for a batch's gradients. */
struct gradient_rig {
    struct logits_rig r;
    struct forward *forward;
    struct backward *backward;
    float *there[GRADIENT_SLOTS]; /* gradients in the backend's memory */
    float *grad[GRADIENT_SLOTS];  /* as rig_run read them back */
    size_t n_grad[GRADIENT_SLOTS];
    void *hidden; /* of the passes that disturb */
    float logprob[GRADIENT_ROWS];
    float dropout;
    double loss;    /* of the last batch */
    bool disturbed; /* other passes of the same forward run between the pieces of a batch */
};

struct gradient_options {
    const char *backend;
    enum dtype_choice dtype;
    uint32_t threads, head_rows;
    bool recompute;
    float dropout; /* p of every sequence */
};

/* name: a folder of tests/data/logits. false: the backend does not take this model. */
bool gradient_rig_open(struct gradient_rig *g, const char *name,
                       const struct gradient_options *opt);
/* Sequences first .. last in one batch, gradients added to what is there. */
void gradient_rig_run(struct gradient_rig *g, uint32_t first, uint32_t last);
void gradient_rig_close(struct gradient_rig *g);

/* Every case against autograd: |gradient - autograd's| <= tol |autograd's| over each adapter; in
 * bf16 half of torch's own bf16 error where that is more. Returns how many the backend takes.
 * RS_GRADIENT_DATA names another folder, of random cases, judged by all of torch's own error;
 * RS_PRINT_GRADIENTS prints each distance. */
uint32_t gradient_check_all(const struct gradient_options *opt, double tol, bool bf16_only);

#endif
