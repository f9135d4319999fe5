/* The engine's state, seen by the files of this folder and by their tests; nobody else includes it.
 * Everything but the mailboxes, the atomics, `unload` and `published` belongs to the engine thread.
 What runs and waits is
 * described in running.h.
 *
 *   order: the used slots sorted by composition, so that a batch is built in one walk; what starts
 *          and stops between two steps is sorted in once, when the next is planned */
#ifndef RS_ENGINE_STATE_H
#define RS_ENGINE_STATE_H

#include "server/base/mailbox.h"
#include "server/engine/flight.h"
#include "server/engine/forward.h"
#include "server/engine/memplan.h"
#include "server/engine/pace.h"
#include "server/engine/resident.h"
#include "server/engine/running.h"

#define SCORE_RUNS_MAX   8
#define UNLOADS_MAX      16
#define HEAD_TILE_MAX    64 /* rows of logits at a time */
#define BIAS_ROW_MAX     (REQUEST_BIAS_MAX + MODEL_EOS_MAX + REQUEST_STOP_IDS_MAX)
#define BLOCKED_WAIT_MS  5 /* pause when requests wait but nothing can run */
#define UPLOAD_WAIT_MS   1 /* the same while an adapter moves to the device: nobody wakes us then */
#define IDLE_WAIT_MS     1000 /* pause without any work; every message ends it */
#define RETRY_MS         100  /* ask again for a cold adapter even if nothing was reported */
#define ASKS_MAX         256  /* of adapters in vain, in one admission pass */
#define ASK_AGAIN_MS     10   /* where more than that wait, one is not asked again before */
#define WARM_TRIES_MAX   8    /* cold adapters asked for ahead of a free slot, per step */
#define WARM_EVERY_MS    10   /* how often those ahead of a free slot are looked at */
#define LIST_AGE_MS      50   /* of the adapter lists in the statistics */
#define SHARE_EVERY_MS   10   /* how often it is looked for keys that wait for their share */
#define PAGE_RETRY_STEPS 64   /* look again at a request that did not fit */
#define VERIFY_PAGES_MAX 4096 /* checking builds walk pools up to this size each step */

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
    int8_t *key;                   /* [rows_max][SKETCH_DIM], by wanted row */
    struct sketch_seg *key_seg;    /* [slot_count] of the step */
    uint32_t key_seg_count;
    float *score_scratch; /* [score_rows_max, SCORE_TILE]; the backend's memory */
    void *sample_scratch; /* the backend's memory */
    double *norm2;        /* [rows_max][2]; the backend's memory */
    double *norm2_host;   /* the same, read back where steps overlap and this one needs it */
};

struct engine {
    struct engine_options opt;
    const struct model *model;
    struct backend *backend;
    struct store *store;
    struct memplan plan;
    uint32_t passes_max; /* that the backend records */
    void *weights;       /* the base on a device; packed copies in host memory */
    struct resident *resident;
    void *basis_memory; /* the backend's, of basis_pool */
    uint32_t basis_places;
    struct basis_pool *basis_pool;
    struct forward *forward;
    struct buf text; /* what a token adds to a text, while stop strings are looked for */

    struct kv_cache cache;
    struct kv_pool kv;
    struct kv_page *kv_page;
    uint32_t *kv_bucket, *kv_holders;
    uint32_t *page_table; /* [slot_count, page_stride] */
    uint32_t page_stride;

    struct seq *seq; /* [slot_count]: seqs_max, then SCORE_RUNS_MAX */
    uint32_t slot_count, seqs_running;
    uint32_t *slot_free; /* [seqs_max] stack */
    uint32_t slot_free_count;
    uint32_t *order;     /* [slot_count], as it was when the step was planned */
    uint32_t *order_new; /* [slot_count] started since */
    uint32_t order_count, order_new_count;
    uint32_t *scratch; /* [slot_count] */
    uint32_t *queue;   /* [jobs_max] those who may be admitted, a heap */
    uint32_t queue_count;
    uint32_t asks_left;  /* of this admission pass */
    uint64_t pages_owed; /* of running sequences, while some are admitted */
    struct share share;
    struct engine_job *job; /* [jobs_max] */
    uint32_t jobs_max;
    uint32_t *job_free, *job_live; /* stacks of indexes */
    uint32_t job_free_count, job_live_count;
    struct score_run score[SCORE_RUNS_MAX];
    uint64_t score_credit;    /* sched.h */
    uint64_t score_hold_pass; /* scoring takes nothing before this admission pass */
    struct pin *pin;          /* [adapters_per_batch_max] */
    uint32_t *pin_bucket;     /* [pin_buckets], a power of two */
    uint32_t pin_count, pin_buckets;
    struct sched sched;
    struct sched_key *sched_key;
    struct sched_ask *ask; /* [slot_count] */
    uint32_t *ask_slot;    /* [slot_count] */
    struct pace pace;
    uint32_t step_decodes, step_others; /* rows of the planned step */
    struct batch batch;
    struct head head;
    struct flight flight[2], *flying; /* flying: given and not delivered, or NULL */

    uint64_t now_ns, now_ms, device_ns; /* device_ns: waited for the device in this step */
    uint64_t landed_ns;                 /* the last flight */
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
