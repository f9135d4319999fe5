/* Scoring tasks: one per job, made of rows (base, for a mix those of gain.h, and where keys are not
 * at hand one for them) that the engine scores as low-priority prefill. Tasks queue in memory,
 * those whose index is being made apart; rows are handed over as the engine takes them. What is
 * computed from them is computed by a thread of its own, for no reply may wait for it.
 * Thread: the recorder's, but for the completion that the engine posts into a mailbox. */
#ifndef RS_INFLUENCE_SCORE_H
#define RS_INFLUENCE_SCORE_H

#include "server/engine/engine.h"
#include "server/influence/evidence.h"
#include "server/influence/gain.h"
#include "server/influence/indexes.h"
#include "server/influence/job.h"

#define SCORE_HITS_MAX 16 /* spans of an answer that are shown */

struct score_hit {
    uint32_t choice;
    struct spans_hit hit;
};

struct score_part { /* one adapter of the answer */
    enum index_state state;
    char why[INDEX_WHY_BYTES];
    struct index *index; /* a reference, or NULL */
    const int8_t **head; /* [seq_count] half 1 of the keys, [n_out][64]; NULL: of no row */
    int8_t **key;        /* [seq_count] whole keys */
    uint64_t *spans;     /* [owners], or NULL */
    struct score_hit hit[SCORE_HITS_MAX];
    uint32_t hit_count;
};

struct score_task {
    struct job *job; /* owned */
    bool preview;    /* no record: the result is shown unsigned */
    bool cancelled;  /* the engine stopped: the job on disk is scored after the next start */
    uint64_t since_ns;
    uint8_t outcome;           /* enum record_outcome, when finished */
    struct gain_result result; /* when outcome is scored */
    uint8_t inputs_digest[32], index_hash[32];
    struct score_part part[LORA_PARTS_MAX]; /* one per adapter */
    struct score_row *row;                  /* [row_count] */
    uint32_t row_count, submitted, finished;
    int32_t **q8; /* [seq_count * rows per sequence] */
    struct score_task *next;
};

struct scorer;
struct scorer_options {
    struct engine *engine;
    struct catalog *catalog;
    const struct model *model;
    struct indexes *indexes;   /* NULL: nothing is indexed */
    struct evidence *evidence; /* NULL: none is kept */
    uint32_t rows_max;         /* inside the engine */
    void (*wake)(void *arg);   /* rows or a task have finished: any thread */
    void *wake_arg;
};
struct scorer *scorer_create(const struct scorer_options *opt);
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
/* Tasks that the computing thread has done, and what they took it. */
void scorer_computed(const struct scorer *s, uint64_t *count, uint64_t *ns);

/* ---- score_compute.c ---- */

/* From rows and keys to the result, and the evidence of it. On failure the outcome says so. */
void score_compute(struct score_task *t, const struct scorer_options *opt);

#endif
