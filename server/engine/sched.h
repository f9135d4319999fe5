/* The policy, as a pure function of state: who is admitted first, who is preempted first, how many
 * sequences a key may hold while others wait, and how the rows of a step are shared out. No clock,
 * no device, no I/O: the engine asks, this answers.
 *
 * Fairness   every API key has a counter of tokens served (a prompt token costs 1, an output token
 *            2). Of waiting requests of equal priority the one whose key has the lowest counter
 *            goes first, then the older. A key that comes back from idleness is lifted to the
 *            lowest counter of those active, so it cannot spend credit it saved by not asking.
 * Share      of the slots a key may claim what it needs, up to a level that is the same for all:
 *
 *                keys that need less   ##  ####            all they need
 *                keys that need more   ######:...  ######:.....   : the level, the sum is all slots
 *
 *            With more keys than slots the level is 0, and turns are taken.
 * Rows       decode rows first (a token of somebody who already reads), then prefill chunks in
 *            order of admission policy, then scoring: a small share of its backlog beside user
 *            rows, as much as allowed when there are none. Beside decodes both have a bound
 *            (pace.h).
 * Preempted  are the lowest priority, of those the newest: so the oldest of the highest priority
 *            always moves on, and nobody starves. */
#ifndef RS_ENGINE_SCHED_H
#define RS_ENGINE_SCHED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SCHED_COST_PROMPT 1
#define SCHED_COST_OUTPUT 2

#define SCHED_NONE UINT32_MAX

struct sched_key { /* one place of the table */
    uint64_t key;
    uint64_t tokens;            /* the virtual counter */
    uint32_t requests;          /* in the engine now */
    uint32_t wanted, running;   /* sequences not finished; of these in a slot. The engine's. */
    uint64_t pages;             /* that they hold; the engine's, while it looks for room */
    uint32_t victim, victims;   /* part of the engine's list, the same */
    bool known;                 /* linked by its key */
    uint32_t bucket, hash_next; /* first place of the bucket of this number; next of this place's */
    uint32_t prev, next;        /* of the idle ones */
    uint32_t active, active_at; /* heap: the place at this position; where this place stands */
    uint64_t active_tokens;     /* its counter when it was put there: at most tokens */
};

struct sched {
    struct sched_key *key; /* [keys_max], caller's memory */
    uint32_t keys_max;
    uint32_t active_count;          /* places with requests; the first of each key[].active */
    uint32_t idle_first, idle_last; /* the others, idle for longest first */
};

/* keys_max must exceed the number of requests that can be in the engine at a time. */
void sched_init(struct sched *s, struct sched_key *key, uint32_t keys_max);
/* A request of this key arrived: the index of its counter. One sched_leave for each. */
uint32_t sched_join(struct sched *s, uint64_t key);
void sched_leave(struct sched *s, uint32_t idx);
void sched_charge(struct sched *s, uint32_t idx, uint64_t tokens);
/* The level of shares: what all may hold while some want more; UINT32_MAX if there is enough.
 * scratch: [slots + 1]. */
uint32_t sched_level(const struct sched *s, uint32_t slots, uint32_t *scratch);

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
    uint64_t *score_credit;  /* rows that scoring has earned and not taken: kept between steps */
    uint32_t beside_max;     /* rows of prefill and scoring beside decodes */
};

/* Fill ask[].rows. The sum never passes rows_max. scratch: [n_ask]. */
void sched_share_rows(struct sched_ask *ask, uint32_t n_ask, const struct sched_limits *limits,
                      uint32_t *scratch);

#endif
