/* How alike two adapters are in what they do: the cosine of their products s·B·A, over all modules.
 * It does not see how a product was factored or named, only what it adds to the base. Exact from
 * r x r Gram products; estimated from sketches of a few hundred bytes, so that a newcomer is held
 * against thousands and only the likely ones are read. Pure but for buffers. Thread: any. */
#ifndef RS_ADAPTER_PEFT_LIKENESS_H
#define RS_ADAPTER_PEFT_LIKENESS_H

#include "server/adapter/peft/peft.h"

#define LIKENESS_DIM       128
#define LIKENESS_CANDIDATE 0.80f /* an estimate from here on deserves the exact cosine */

struct likeness { /* a unit vector */
    float v[LIKENESS_DIM];
};
/* Errors: NO_MEMORY. Cost: the adapter's parameters once, and DIM^2 for each module and rank. */
MUST_CHECK enum status likeness_of(struct likeness *out, const struct peft_adapter *a,
                                   struct errtext *err);
/* An unbiased estimate of the cosine; its error is about DIM^-1/2 for strangers, less for kin. */
float likeness_estimate(const struct likeness *x, const struct likeness *y);
/* The cosine. Errors: NO_MEMORY. Cost: rank^2 for each row and column of a module. */
MUST_CHECK enum status likeness_exact(double *out, const struct peft_adapter *x,
                                      const struct peft_adapter *y, struct errtext *err);

#endif
