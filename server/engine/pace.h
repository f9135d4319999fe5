/* How many rows of prompts may ride along with decodes, so that whoever reads a stream does not see
 * others arrive: a step with decodes is to take at most `stretch` percent of one that only decodes.
 * Learnt from the steps themselves, as two things:
 *
 *   decode   what a step of so many decodes alone takes, kept by their number
 *   row      what one more row adds to it
 *
 * Now and then, and when so many decodes have never been timed, a step goes without prompts to be
 * timed. Times decide how prompts are cut, never what is computed: bits do not depend on the cut.
 * Pure; the owner is the engine thread. */
#ifndef RS_ENGINE_PACE_H
#define RS_ENGINE_PACE_H

#include <stdint.h>

#define PACE_BUCKETS  34 /* two for each power of two */
#define PACE_ROWS_MIN 16 /* prompts always move: a page's worth */

struct pace {
    uint32_t stretch;                  /* percent; 0: no bound */
    double decode_ns[PACE_BUCKETS];    /* 0: never timed */
    uint32_t decode_age[PACE_BUCKETS]; /* steps since */
    double row_ns;                     /* 0: never timed */
    uint64_t steps_beside,
        steps_over; /* with prompts beside decodes; of these beyond the stretch */
};

void pace_init(struct pace *p, uint32_t stretch);
/* Rows beside so many decodes, at most rows_max. 0: this step is one to be timed. */
uint32_t pace_rows(const struct pace *p, uint32_t decodes, uint32_t rows_max);
/* A step of decodes and others took ns. */
void pace_learn(struct pace *p, uint32_t decodes, uint32_t others, uint64_t ns);
/* What a step of so many decodes alone takes, or 0. */
double pace_decode_ns(const struct pace *p, uint32_t decodes);

#endif
