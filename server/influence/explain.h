/* The evidence of a scored answer, as it is kept: what GET /v1/attribution shows beside the record,
 * and the logged integers from which who wants recomputes it. Two JSON texts one behind the other:
 * u32 length of the first, big-endian, the first, the second. No text of documents is in it: that
 * is looked up when it is shown, where its licence consents. Pure. Thread: any. */
#ifndef RS_INFLUENCE_EXPLAIN_H
#define RS_INFLUENCE_EXPLAIN_H

#include "server/influence/score.h"

#define EXPLAIN_ROWS_MAX    8
#define EXPLAIN_SOURCES_MAX 4 /* places of one span */

void explain_put(struct buf *out, const struct score_task *t, const struct gain_in *in);
/* The two texts inside of evidence; false: it is none. */
bool explain_split(const struct buf *evidence, const char **shown, size_t *shown_len,
                   const char **inputs, size_t *inputs_len);

#endif
