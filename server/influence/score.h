/* Scoring tasks: one per job, made of rows (base, and for a mix each adapter alone, per sequence)
 * that the engine scores as low-priority prefill. Tasks queue in memory, rows are handed over as
 * the engine takes them. Thread: the recorder's, but for the completion that the engine posts into
 * a mailbox. */
#ifndef RS_INFLUENCE_SCORE_H
#define RS_INFLUENCE_SCORE_H

#include "server/engine/engine.h"
#include "server/influence/gain.h"

struct score_task {
    struct job *job; /* owned */
    bool preview;    /* no record: the result is shown unsigned */
    bool cancelled;  /* the engine stopped: the job on disk is scored after the next start */
    uint64_t since_ns;
    uint8_t outcome;           /* enum record_outcome, when finished */
    struct gain_result result; /* when outcome is scored */
    uint8_t inputs_digest[32];
    struct score_row *row; /* [row_count] */
    uint32_t row_count, submitted, finished;
    int32_t **q8; /* [seq_count * rows per sequence] */
    struct score_task *next;
};

struct scorer;
/* rows_max bounds rows inside the engine; wake(arg) is called on the engine thread when rows have
 * finished. */
struct scorer *scorer_create(struct engine *e, struct catalog *c, uint32_t rows_max,
                             void (*wake)(void *arg), void *arg);
/* Waits for rows inside the engine (which must be running or drained), drops the rest. */
void scorer_destroy(struct scorer *s);
/* Queue a job; takes ownership. */
void scorer_add(struct scorer *s, struct job *job, bool preview);
/* Tasks that wait here for age_ns and whose rows have not begun end as "inputs lost" at the next
 * poll. Monotonic: a clock that jumps loses nothing. */
void scorer_expire(struct scorer *s, uint64_t age_ns);
/* Hand rows over, collect finished ones; the next finished task or NULL. The caller frees it. */
struct score_task *scorer_poll(struct scorer *s);
void score_task_free(struct score_task *t);
uint64_t scorer_queued(const struct scorer *s);

#endif
