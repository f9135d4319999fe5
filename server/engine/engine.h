/* The engine: one thread that owns the device, the KV pages, the batch and adapter residency. Each
 * step: receive, admit, plan, run, deliver. Everybody else talks to it through engine_submit and
 * the other messages here (bounded mailbox). After engine_start has returned the engine thread
 * allocates nothing (mem_seal_thread). */
#ifndef RS_ENGINE_ENGINE_H
#define RS_ENGINE_ENGINE_H

#include "kernels/backend.h"
#include "server/adapter/store.h"
#include "server/engine/basis.h"
#include "server/engine/request.h"
#include "server/model/model.h"

struct engine;
struct resident;

struct engine_options {
    uint32_t rows_max; /* tokens per step, prefill and decode together (max_num_batched_tokens) */
    uint32_t seqs_max; /* running sequences (max_num_seqs) */
    uint32_t waiting_max; /* requests queued; past it engine_submit answers FULL */
    uint32_t context_max; /* tokens per sequence, <= model pos_max */
    uint64_t kv_bytes; /* KV pool; 0 on a device: all that the rest leaves, at most for seqs_max */
    uint64_t packed_bytes_max; /* the base's packed copy, where the backend has one: what needs more
                                  is read as mapped, with the same bits; 0: half of the memory that
                                  is free */
    uint32_t adapters_per_batch_max;
    uint32_t rank_sum_max; /* widest s row: largest sum of ranks of a group over a composition */
    bool prefix_cache;
    uint32_t score_rows_max; /* scoring rows per step when nothing else waits; 0: scoring off */
    uint32_t score_queue_max;
    uint32_t adapter_wait_ms_max; /* cold adapter not resident by then: the request fails, BUSY */
    uint32_t step_stretch_max;    /* percent of a decode-only step that one with decodes may take */
    uint32_t share_wait_ms_max;   /* a key below its share of the slots gets one by then */
    uint64_t adapters_device_bytes; /* the store's pool on the device, for the plan */
    uint64_t adapters_host_bytes;   /* the store's page-locked memory, for the plan */
    uint64_t basis_bytes_max;       /* bases of indexes, in the backend's memory */
    uint64_t keys_bytes_max;        /* keys kept beside requests, in the host's */
    uint64_t (*clock_ns)(void);     /* injectable; NULL: clock_mono_ns */
    /* A device is lost for the process: called once, on the engine thread, when every request has
     * been told. NULL: the engine panics. Must not block. */
    void (*on_device_lost)(void *arg);
    void *on_device_lost_arg;
};

struct engine_deps { /* all outlive the engine; the engine thread becomes the only user of store and
                        backend */
    const struct model *model;
    struct backend *backend;
    struct store *store;
};

/* Allocates everything (KV, activations, tables). Errors: INVALID naming the option, TOO_LARGE with
 * the line of the memory plan that does not fit. plan: engine_print_plan afterwards. */
MUST_CHECK enum status engine_create(struct engine **out, const struct engine_options *opt,
                                     const struct engine_deps *deps, struct errtext *err);
/* The loader has something for the store: wake the loop. Thread: any. */
void engine_wake(struct engine *e);
/* The base as the engine's ops read it, for others that only read it too. */
const struct resident *engine_resident(const struct engine *e);
void engine_print_plan(const struct engine *e, struct buf *out);
/* On a device that records passes: those that decoding will ask for, before the first request and
 * for budget_ms at most; what is left is recorded when it comes. Before engine_start, by the thread
 * that made the backend. Errors: IO, the device failed. */
#define ENGINE_RECORD_MS_MAX 20000
MUST_CHECK enum status engine_record(struct engine *e, uint32_t budget_ms, struct errtext *err);
void engine_start(struct engine *e); /* starts the thread */
/* Refuse new work, finish what runs until deadline_ms, then end the rest with FINISH_ERROR
 * ("draining"). Blocks. Called again meanwhile (another thread) it only brings the deadline forward
 * and returns. */
void engine_stop(struct engine *e, uint32_t deadline_ms);
void engine_destroy(struct engine *e);

/* Hand over a request. OK: the chain's reference passes to the engine. Else nothing happened:
 * INVALID (can never fit: names prompt tokens, max_tokens and the KV pool, or the adapters), FULL
 * (queue), CANCELLED (draining). Ids lie in the vocabulary, prompt and max_tokens in the context:
 * the caller has seen to it. Thread: any. */
MUST_CHECK enum status engine_submit(struct engine *e, struct request *r, struct errtext *err);

/* Drop an adapter's bytes and wait until they are free (bounded by wait_ms). Thread: any but the
 * engine's. */
MUST_CHECK enum status engine_unload_adapter(struct engine *e, const uint8_t id[32],
                                             uint32_t wait_ms, struct errtext *err);

/* The basis of an index, in use from the next step on: w bf16 [SKETCH_DIM, d_model], bias
 * [SKETCH_DIM]. One reference. Errors: FULL past basis_bytes_max, NO_MEMORY. Thread: any. */
MUST_CHECK enum status engine_basis_create(struct engine *e, struct engine_basis **out,
                                           const uint16_t *w, const float *bias,
                                           struct errtext *err);

/* Teacher-forced scoring (signal S0): log-probabilities of each output token of each choice, given
 * prompt and the tokens before it, under `comp` (base when comp.n == 0). Low-priority prefill:
 * yields to every user row; same bits as decoding. n_prompt 1 scores every token but the first.
 *
 * Keys and hidden states are those of the rows that predict the outputs: entry t of token
 * n_prompt + t; a key equals, bit for bit, that of decoding. Hidden states make a device wait.
 * share_pages: the rows before the outputs may come from the prefix cache, and what is computed
 * goes there, under composition and salt; the same bits either way. Only with a salt of those who
 * may see what the cache reveals. */
struct score_job {
    struct composition comp;
    struct adapter_entry *entry[LORA_PARTS_MAX]; /* references held by the job's owner until done */
    const int32_t *ids;                          /* prompt + output of one sequence */
    uint32_t n_ids, n_prompt;
    uint8_t cache_salt[16]; /* of share_pages */
    bool share_pages;
    struct engine_basis *basis; /* of key; a reference held by the job's owner until done */
    float *logprob;             /* [n_ids - n_prompt], engine writes; so do the next two */
    int8_t *key;                /* [n_ids - n_prompt][SKETCH_DIM], or NULL */
    float *hidden;              /* [n_ids - n_prompt][d_model], or NULL */
    enum status status;         /* engine */
    void (*on_done)(struct score_job *j, void *arg); /* engine thread, must not block */
    void *on_done_arg;
};
MUST_CHECK enum status engine_submit_score(struct engine *e,
                                           struct score_job *j); /* OK, FULL, CANCELLED (drain),
                                                                    UNSUPPORTED (scoring is off) */

/* A consistent snapshot for /metrics and listings, published by the engine each step. Thread: any,
 * lock-light. */
#define ENGINE_RUNNING_ADAPTERS_MAX 64
struct engine_stats {
    uint32_t running_seqs, waiting_requests, swapped;
    uint32_t kv_pages, kv_pages_used;
    uint64_t prompt_tokens, generation_tokens, score_tokens, steps, preemptions;
    uint64_t score_shared_tokens;      /* that scoring found in the prefix cache */
    uint64_t share_preemptions;        /* of these, so that another key got its share */
    uint64_t steps_beside, steps_over; /* with prompts beside decodes; longer than the stretch */
    uint64_t decode_step_ns;           /* what a step of as many decodes alone takes; 0: unknown */
    uint64_t prefix_queries, prefix_hits; /* tokens */
    uint64_t finished[5];                 /* by enum finish_reason */
    uint32_t score_queued;
    uint32_t adapter_running_count, adapter_waiting_count;
    uint8_t adapter_running[ENGINE_RUNNING_ADAPTERS_MAX][32],
        adapter_waiting[ENGINE_RUNNING_ADAPTERS_MAX][32];
    struct store_stats store;
    bool draining;
    uint32_t passes_unrecorded; /* struct backend */
    uint64_t control_ns_max;    /* longest a step took outside the device's work */
};
void engine_get_stats(struct engine *e, struct engine_stats *out);
/* Engine id of records (chain_client/ids.h): backend, dtype, deterministic mode, kernel version and
 * the Unicode version of the tokenizer's tables. */
void engine_get_id(const struct engine *e, uint8_t id[32]);

#endif
