/* The policy, as a pure function of state: who is admitted first, who is preempted first, and how
 * the rows of a step are shared out. No clock, no device, no I/O: the engine asks, this answers.
 *
 * Fairness  every API key has a counter of tokens served (a prompt token costs 1, an output token
 *           2). Of waiting requests of equal priority the one whose key has the lowest counter goes
 *           first, then the older. A key that comes back from idleness is lifted to the lowest
 *           counter of those active, so it cannot spend credit it saved by not asking.
 * Rows      decode rows first (a token of somebody who already reads), then prefill chunks in order
 *           of admission policy, then scoring: a small share of its backlog beside user rows, as
 *           much as allowed when there are none.
 * Preempted are the lowest priority, of those the newest: so the oldest of the highest priority
 *           always moves on, and nobody starves. */
#ifndef RS_ENGINE_SCHED_H
#define RS_ENGINE_SCHED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SCHED_COST_PROMPT 1
#define SCHED_COST_OUTPUT 2

struct sched_key {
    uint64_t key;
    uint64_t tokens; /* the virtual counter */
    uint64_t used_order;
    uint32_t requests; /* in the engine now */
    bool known;
};

struct sched {
    struct sched_key *key; /* [keys_max], caller's memory */
    uint32_t keys_max;
    uint64_t order;
};

/* keys_max must exceed the number of requests that can be in the engine at a time. */
void sched_init(struct sched *s, struct sched_key *key, uint32_t keys_max);
/* A request of this key arrived: the index of its counter. One sched_leave for each. */
uint32_t sched_join(struct sched *s, uint64_t key);
void sched_leave(struct sched *s, uint32_t idx);
void sched_charge(struct sched *s, uint32_t idx, uint64_t tokens);

/* What decides between two requests. */
struct sched_rank {
    int32_t priority;
    uint64_t tokens; /* of its key */
    uint64_t serial; /* arrival */
};
/* a is served before b. */
bool sched_before(const struct sched_rank *a, const struct sched_rank *b);
/* a is preempted before b. */
bool sched_evict_before(const struct sched_rank *a, const struct sched_rank *b);

enum sched_kind { SCHED_DECODE, SCHED_PREFILL, SCHED_SCORE };

struct sched_ask {
    enum sched_kind kind;
    uint32_t rows_left; /* rows it could use; a decode has 1 */
    struct sched_rank rank;
    uint32_t rows; /* out: rows it gets in this step */
};

struct sched_limits {
    uint32_t rows_max;
    uint32_t score_rows_max; /* per step when nothing else runs */
    uint64_t score_backlog;  /* scoring rows still to come, queued ones included */
};

/* Fill ask[].rows. The sum never passes rows_max. */
void sched_share_rows(struct sched_ask *ask, uint32_t n_ask, const struct sched_limits *limits);

#endif
