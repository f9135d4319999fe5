/* A step between its plan and its delivery. A device is given the next step before this one is
 * back: the host plans it as if no sequence ended, and where it does not know a token yet it names
 * the slot whose latest sample it is. What a flight brings for a sequence that has left its slot
 * meanwhile is dropped. Work on the device is in order, so pages, slots and adapters' memory may
 * change hands between flights. On a CPU a flight is delivered at once. Owner: the engine. */
#ifndef RS_ENGINE_FLIGHT_H
#define RS_ENGINE_FLIGHT_H

#include "server/engine/batch.h"

struct flight_seq {                  /* rows of a slot */
    uint64_t history;                /* whose: the slot may be another's when the flight is back */
    uint32_t first, rows, row_first; /* positions first .. first + rows - 1; rows 0: none */
};

struct flight {             /* a step that the backend has and whose results are not delivered */
    struct flight_seq *seq; /* [slot_count] */
    struct batch_out *out;  /* [rows_max] batch.out of the step */
    uint32_t n_sample, n_prompt, n_score; /* the parts of out, in this order */
    uint32_t *ticket;                     /* of samples, tile by tile; [seqs_max] */
    uint32_t n_ticket;
    uint32_t norm2_ticket, score_ticket, key_ticket; /* has_norm2, has_score, has_key */
    uint32_t key_first;                              /* wanted row of the first key */
    bool has_norm2, has_score, has_key;
    uint32_t decodes, others; /* its rows, as pace.h counts them */
    uint64_t given_ns;
};

/* Parts of its results came while it was given. */
static inline bool run_has_waited(const struct flight *f)
{
    return f->n_prompt > 0;
}

#endif
