/* The engine's state, seen by the files of this folder and by their tests; nobody else includes it.
 * Everything but the mailboxes, the atomics, `unload` and `published` belongs to the engine thread.
 *
 *   request --- job: one request inside the engine
 *                |-- job_seq[k]: waiting, running or done
 *                `-- pins of its adapters, while one of its sequences runs
 *   seq: a slot of the running set = a row of the page table; score runs have slots of their own
 *   order: the used slots sorted by composition, so that a batch is built in one walk
 *
 * A preempted sequence gives back its slot and pages and is waiting again; what it has emitted is
 * in the request, and it is recomputed from there. */
#ifndef RS_ENGINE_STATE_H
#define RS_ENGINE_STATE_H

#include "server/base/mailbox.h"
#include "server/engine/engine.h"
#include "server/engine/flight.h"
#include "server/engine/forward.h"
#include "server/engine/kv.h"
#include "server/engine/memplan.h"
#include "server/engine/resident.h"
#include "server/engine/sched.h"
#include "server/engine/stop.h"

#define SCORE_RUNS_MAX   4
#define UNLOADS_MAX      16
#define HEAD_TILE_MAX    64 /* rows of logits at a time */
#define BIAS_ROW_MAX     (REQUEST_BIAS_MAX + MODEL_EOS_MAX + REQUEST_STOP_IDS_MAX)
#define BLOCKED_WAIT_MS  5 /* pause when requests wait but nothing can run */
#define UPLOAD_WAIT_MS   1 /* the same while an adapter moves to the device: nobody wakes us then */
#define IDLE_WAIT_MS     1000 /* pause without any work; every message ends it */
#define RETRY_MS         100  /* ask again for a cold adapter even if nothing was reported */
#define WARM_TRIES_MAX   8    /* cold adapters asked for ahead of a free slot, per step */
#define WARM_EVERY_MS    10   /* how often those ahead of a free slot are looked at */
#define LIST_AGE_MS      50   /* of the adapter lists in the statistics */
#define PAGE_RETRY_STEPS 64   /* look again at a request that did not fit */
#define VERIFY_PAGES_MAX 4096 /* checking builds walk pools up to this size each step */

enum job_seq_state { JOB_SEQ_WAIT, JOB_SEQ_RUN, JOB_SEQ_DONE };

struct engine_job_seq {
    uint8_t state;
    bool preempted;     /* it has run before */
    bool prompt_scored; /* its prompt's log-probabilities are complete */
    uint32_t counted;   /* telemetry covers positions below this */
};

struct engine_job {
    struct request *r; /* NULL: free */
    uint64_t serial;   /* arrival */
    uint32_t idx, live_idx, fair;
    uint32_t seqs_left, seqs_running;
    uint32_t lora_slot[LORA_PARTS_MAX];
    bool pinned;
    bool admitted; /* once */
    bool dirty;    /* produced something in this step */
    /* why it waits */
    uint64_t passed;                    /* the admission pass that has looked at it */
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
    struct stop_match stop;
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
};

enum unload_state { UNLOAD_FREE, UNLOAD_ASKED, UNLOAD_TAKEN, UNLOAD_DONE };

struct unload {
    struct engine *engine;
    uint8_t id[32];
    enum unload_state state; /* under unload_lock */
    enum status status;
    bool abandoned; /* nobody waits any more */
};

struct head {      /* what follows the hidden states */
    void *hidden;  /* [rows_max, d_model] act; the backend's memory */
    float *logits; /* [tile, n_vocab]; the backend's memory */
    uint32_t tile;
    struct sample_row *row;        /* [tile] */
    struct sample_bias *bias;      /* [tile, BIAS_ROW_MAX] */
    struct sample_out *out;        /* [seqs_max] */
    struct sample_out *prompt_out; /* [tile] */
    int32_t *target;               /* [rows_max] */
    uint32_t *top_count;           /* [tile] */
    float *logprob;                /* [rows_max] */
    float *score_scratch;          /* [score_rows_max, SCORE_TILE]; the backend's memory */
    void *sample_scratch;          /* the backend's memory */
    double *norm2;                 /* [rows_max][2]; the backend's memory */
    double *norm2_host; /* the same, read back where steps overlap and this one needs it */
};

struct engine {
    struct engine_options opt;
    const struct model *model;
    struct backend *backend;
    struct store *store;
    struct memplan plan;
    void *weights; /* the base on a device */
    struct resident *resident;
    struct forward *forward;
    /* bytes of a token in output text, len 0 where it has none; tests bring their own */
    const char *(*token_text)(const struct tokenizer *t, int32_t id, size_t *len);

    struct kv_cache cache;
    struct kv_pool kv;
    struct kv_page *kv_page;
    uint32_t *kv_bucket, *kv_holders;
    uint32_t *page_table; /* [slot_count, page_stride] */
    uint32_t page_stride;

    struct seq *seq; /* [slot_count]: seqs_max, then SCORE_RUNS_MAX */
    uint32_t slot_count, seqs_running;
    uint32_t *order; /* [slot_count] */
    uint32_t order_count;
    struct engine_job *job; /* [jobs_max] */
    uint32_t jobs_max;
    uint32_t *job_free, *job_live; /* stacks of indexes */
    uint32_t job_free_count, job_live_count;
    struct score_run score[SCORE_RUNS_MAX];
    uint64_t score_hold_pass; /* scoring takes nothing before this admission pass */
    struct pin *pin;          /* [adapters_per_batch_max] */
    uint32_t pin_count;
    struct sched sched;
    struct sched_key *sched_key;
    struct sched_ask *ask; /* [slot_count] */
    uint32_t *ask_slot;    /* [slot_count] */
    struct batch batch;
    struct head head;
    struct flight flight[2], *flying; /* flying: given and not delivered, or NULL */

    uint64_t now_ns, now_ms, device_ns; /* device_ns: waited for the device in this step */
    uint64_t listed_ms, warmed_ms;      /* when the adapter lists were made, adapters asked ahead */
    uint64_t serial, pass, store_epoch, histories;
    bool overlaps;    /* the next step is given before this one is delivered */
    bool device_lost; /* nothing computes any more */

    /* talked to by other threads */
    struct mailbox mail;       /* struct request */
    struct mailbox score_mail; /* struct score_job */
    struct mailbox unload_mail;
    _Atomic uint32_t waiting;        /* requests without a running sequence, mailbox included */
    _Atomic bool draining, stopping; /* stopping: engine_stop has been called */
    _Atomic uint64_t drain_deadline_ms;
    _Atomic uint64_t score_backlog; /* scoring rows in the mailbox */
    pthread_mutex_t unload_lock;
    pthread_cond_t unload_done;
    struct unload unload[UNLOADS_MAX];
    uint32_t unloads_open; /* engine thread */
    pthread_mutex_t stats_lock;
    struct engine_stats count;     /* the engine's own */
    struct engine_stats published; /* under stats_lock */
    pthread_t thread;
    bool started;
};

#endif
