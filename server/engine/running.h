/* What waits and runs in the engine. Owner: the engine thread.
 *
 *   request --- job: one request inside the engine
 *                |-- seq[k]: waiting, running or done
 *                `-- pins of its adapters, while one of its sequences runs
 *   seq: a slot of the running set = a row of the page table; score runs have slots of their own
 *
 * A preempted sequence gives back its slot and pages and is waiting again; what it has emitted is
 * in the request, and it is recomputed from there. */
#ifndef RS_ENGINE_RUNNING_H
#define RS_ENGINE_RUNNING_H

#include "server/engine/engine.h"
#include "server/engine/kv.h"
#include "server/engine/sched.h"
#include "server/engine/stop.h"

enum job_seq_state { JOB_SEQ_WAIT, JOB_SEQ_RUN, JOB_SEQ_DONE };

struct engine_job_seq {
    uint8_t state;
    bool preempted;     /* it has run before */
    bool prompt_scored; /* its prompt's log-probabilities are complete */
    uint32_t slot;      /* JOB_SEQ_RUN */
    uint32_t counted;   /* telemetry covers positions below this */
};

struct engine_job {
    struct request *r; /* NULL: free */
    uint64_t serial;   /* arrival */
    uint32_t idx, live_idx, fair;
    int32_t priority;
    uint32_t seqs_left, seqs_running;
    uint32_t lora_slot[LORA_PARTS_MAX];
    bool pinned;
    bool admitted;  /* once */
    bool dirty;     /* produced something in this step */
    bool preempted; /* a sequence of it, once */
    /* why it waits */
    struct sched_rank rank;             /* when it was queued in this admission pass */
    uint64_t since_ms;                  /* it waits, or one of its sequences was let in or went */
    uint64_t cold_since_ms;             /* first refusal for a cold adapter; 0: none */
    uint64_t held_since_ms;             /* first refusal for a full budget or batch; 0: none */
    uint64_t asked_epoch, asked_ms;     /* the last refusal of the store */
    uint64_t warmed_ms;                 /* its adapters were resident then */
    uint64_t pages_missing, pages_step; /* when it last did not fit */
    struct engine_job_seq seq[REQUEST_SEQS_MAX];
};

struct score_run;

struct seq {
    bool used;
    uint32_t slot;
    struct engine_job *job;  /* or NULL */
    struct score_run *score; /* or NULL */
    uint32_t idx;            /* in the request */
    uint64_t serial;
    uint64_t history; /* of this stay in a slot: what a device keeps of its tokens (head.h) */
    bool in_order;    /* it stands in engine.order */
    uint64_t started_ms;
    const struct composition *comp;
    const uint32_t *lora_slot;
    const int32_t *prompt, *output;
    uint32_t n_prompt;
    uint32_t n_tok;   /* tokens to compute: prompt, emitted, and one that a flight will bring */
    uint32_t n_known; /* of these, whose ids the host has: n_tok or n_tok - 1 */
    uint32_t n_kv;    /* positions whose K and V are in the cache once the device comes by */
    uint32_t page_count;
    uint32_t n_keyed; /* full pages the chain has passed */
    uint8_t key[KV_KEY_BYTES];
    bool want_prompt; /* log-probabilities of the prompt's tokens */
    uint32_t rows;    /* of the step that is planned */
    struct stop_search stop;
};

enum score_state { SCORE_FREE, SCORE_COLD, SCORE_RUNNING };

struct score_run {
    enum score_state state;
    struct score_job *job;
    struct seq *seq; /* SCORE_RUNNING */
    uint64_t serial;
    uint64_t cold_since_ms, asked_epoch, asked_ms;
    uint32_t lora_slot[LORA_PARTS_MAX];
};

struct pin { /* an adapter that rows of running sequences use */
    uint8_t id[32];
    uint32_t slot;
    uint32_t users;
    uint32_t next; /* of its bucket, PIN_NONE: the last */
};

#define PIN_NONE UINT32_MAX

struct share { /* keys that wait for theirs, looked at together: share.c */
    uint64_t looked_ms, told_ms;
    uint32_t level;
    uint64_t page_level;
    uint32_t first; /* slot of the sequence that never gives pages */
    uint32_t takes_left;
    bool is_open;     /* the lists below are of this pass */
    uint32_t *victim; /* [seqs_max] slots, by key; of a key the first to go first */
    uint32_t *key;    /* [seqs_max] of the victims, a heap: most tokens first */
    uint32_t key_count;
    uint32_t told_count; /* preempted since the last line of the log */
};

#endif
