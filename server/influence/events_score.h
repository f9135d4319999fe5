/* Row and owner scores of an answer from its token events, integers only (SPEC 10): a replay from
 * the logged targets, gains and keys and the index gives the same numbers on every machine.
 *
 *   a   = min(65535, max(0, gain));  c(d, D) = d <= 0 ? 0 : min(2^30, d 2^30 / D), then `squarings`
 *         times c c / 2^30;  v = (a + gain_floor) (learned + learned_floor) c / 2^16, all floors
 *   a token that stands in its prompt is muted, and meets nothing, if any token of the answer that
 *         does not stand in its prompt has a >= learned_min
 *   token t, event e of its target, d1 and d2 the halves' dot products:
 *         c = max(c(d1 + d2, 2 x 127^2), c(d1, 127^2) half1_part / 2^8)
 *   a token whose target no event learned (all below learned_min) meets no event of it. Of those
 *         with a >= learned_min the fallback_tokens with the largest a (ties to the earlier) meet
 *         every learned event of any target by half 2 alone, D = 127^2
 *   R_r = min(2^48, sum over tokens of the max over the row's events of v)
 *   C_k = max over the rows of cluster k of R_r;  O_o = sum over the clusters whose row k is o's of
 *         C_k^2; the sub-index q leaves out k % 4 = q
 *
 * Pure. Thread: any. */
#ifndef RS_INFLUENCE_EVENTS_SCORE_H
#define RS_INFLUENCE_EVENTS_SCORE_H

#include "server/base/hex.h"
#include "server/influence/events.h"

#define EVENTS_SUBS      5 /* the whole index, and without one quarter of the clusters each */
#define EVENTS_SCORE_MAX (1ull << 48)

struct events_query { /* one choice; several count as one answer, in order */
    const int32_t *target;
    const int32_t *gain_q8;
    const int8_t *key;        /* [n][128], -127 to 127 */
    const uint8_t *in_prompt; /* [n] 1: the target stands in the choice's prompt; NULL: none does */
    uint32_t n;
};

struct events_top {
    uint32_t row;
    uint32_t best_token; /* the token it explains best, counted over all choices */
    uint64_t score;      /* R_r */
};

struct events_scores;
/* Errors  INVALID (a key byte of -128), TOO_LARGE past EVENTS_QUERY_MAX tokens, NO_MEMORY
 * Cost    the events of the answer's targets; with fallback tokens half 2 of all learned ones */
MUST_CHECK enum status events_score(struct events_scores **out, const struct events *e,
                                    const struct events_query *q, uint32_t n_query,
                                    struct errtext *err);
void events_scores_free(struct events_scores *s);
/* O, one per owner. sub 0: all; 1 to 4: without the clusters k % 4 = sub - 1. */
const u128 *events_scores_owner(const struct events_scores *s, uint32_t sub);
/* The rows with the largest scores, ties to the lower row; returns how many. */
uint32_t events_scores_top(const struct events_scores *s, struct events_top *out, uint32_t max);
u128 events_scores_rows_sum(const struct events_scores *s); /* of R_r over all rows */
/* The row that explains a token best (ties to the lower), EVENTS_NONE if none does. */
uint32_t events_scores_token_row(const struct events_scores *s, uint32_t token);
uint64_t events_scores_compared(const struct events_scores *s); /* dot products; telemetry */

#endif
