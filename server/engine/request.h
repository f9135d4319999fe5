/* The message between HTTP and engine: one API request, with all its prompts and choices, and where
 * its tokens come back.
 *
 * Life    HTTP fills a request and submits it (engine_submit). From then on the engine writes only
 *         the fields marked `engine`, the recorder only `recorder`, HTTP only `cancel`.
 *         Tokens are appended to each sequence's arrays, which are sized for the request's maximum,
 *         so they can never fill; n_out is the release-store that publishes them.
 *         When every sequence has finished the engine calls on_finish(r) once (the recorder makes
 *         the record durable), and whoever ends the chain sets `done`.
 * Owners  two: the submitter and the chain; each calls request_release.
 * wake    is called after each step that produced something for this request, and when done is
 *         set: from the engine or recorder thread, must not block. */
#ifndef RS_ENGINE_REQUEST_H
#define RS_ENGINE_REQUEST_H

#include "kernels/head.h"
#include "server/adapter/catalog.h"
#include "server/adapter/composition.h"
#include "server/terms/terms.h"

#include <stdatomic.h>

struct engine_basis; /* engine/basis.h */

#define REQUEST_PROMPTS_MAX    128
#define REQUEST_SEQS_MAX       128 /* prompts x n */
#define REQUEST_STOPS_MAX      16
#define REQUEST_STOP_BYTES_MAX 256
#define REQUEST_STOP_IDS_MAX   32
#define REQUEST_BIAS_MAX       1024

enum finish_reason { FINISH_NONE, FINISH_STOP, FINISH_LENGTH, FINISH_CANCELLED, FINISH_ERROR };

struct request_stop {
    char text[REQUEST_STOP_BYTES_MAX];
    uint32_t len;
};

struct request_params {
    float temperature, top_p, min_p, repetition, frequency, presence;
    int32_t top_k;
    uint32_t max_tokens, min_tokens;
    uint32_t n; /* choices per prompt */
    bool has_seed, ignore_eos, logprobs;
    bool show_special; /* special tokens are text */
    uint64_t seed;
    uint32_t top_count;        /* alternatives per output token, 0..20 */
    int32_t prompt_top_count;  /* -1: no prompt logprobs; else alternatives per prompt token */
    struct request_stop *stop; /* [stop_count], owned */
    uint32_t stop_count;
    int32_t stop_id[REQUEST_STOP_IDS_MAX];
    uint32_t stop_id_count;
    struct sample_bias *bias; /* [bias_count], owned: logit_bias, bad words, allowed ids */
    uint32_t bias_count;
    int32_t priority;  /* higher runs first; default 0 */
    uint64_t fair_key; /* the API key's identity for fair sharing */
    uint8_t cache_salt[16];
};

struct request_prompt {
    int32_t *ids; /* owned */
    uint32_t n_ids;
    /* engine, when prompt_top_count >= 0: entry t is token t given those before it; entry 0 is
     * unset */
    float *logprob;
    struct sample_out *top; /* [n_ids] */
    uint32_t cached_tokens; /* engine: prefix hit of its first sequence */
};

struct request_seq {
    uint32_t prompt_idx, choice_idx;
    uint64_t seed; /* resolved */
    /* engine */
    _Atomic uint32_t n_out;     /* release after the arrays are written; readers acquire */
    int32_t *out_id;            /* [max_tokens] */
    float *out_logprob;         /* [max_tokens] raw log-probability of the chosen id */
    struct sample_out *out_top; /* [max_tokens] if top_count > 0 or logprobs, else NULL */
    /* [max_tokens][SKETCH_DIM] of the head's input that predicted the token, or NULL:
     * request_want_keys */
    int8_t *out_key;
    _Atomic uint32_t finish; /* enum finish_reason, release after everything else of the sequence */
    /* How many tokens there will be, once a token has ended the sequence, else 0. Release after the
     * three below and before the n_out that reaches it: who has read n_out knows whether its last
     * token is an end. */
    _Atomic uint32_t end_tokens;
    int32_t stop_token; /* the id that ended it (eos or stop_id; it is the last of out_id), or -1 */
    int32_t stop_index; /* the stop string that ended it, or -1 */
    uint32_t cut_byte;  /* where that begins in the text that the client sees */
    double delta2, base2; /* LoRA telemetry over prompt and output rows */
};

/* What the recorder needs and gives back (server/influence). Opaque to the engine. */
struct request_receipt {
    bool recorded; /* a durable record exists */
    uint32_t lane;
    uint64_t seq;
    uint8_t digest[32], signature[65], salt[32];
    u128 fee;
};

struct request {
    /* HTTP, before submit */
    uint8_t id[32];
    char id_hex[65];
    struct composition comp;
    struct adapter_entry *entry[LORA_PARTS_MAX]; /* references, one per part of comp, same order */
    /* What the Registry said of each part when the request began (references; NULL: not registered,
     * or no chain), and the base's tariff. recorder_admit fills them. */
    struct terms *terms[LORA_PARTS_MAX];
    struct tariff base_tariff;
    struct request_params params;
    struct request_prompt *prompt;
    uint32_t prompt_count;
    struct request_seq *seq; /* [prompt_count * n], prompt-major */
    uint32_t seq_count;
    struct engine_basis *basis;          /* of out_key (a reference), or NULL */
    uint64_t key_bytes;                  /* of all out_key */
    uint8_t payer[20];                   /* the API key's account, or 0 */
    bool is_once;                        /* it has an Idempotency-Key: */
    uint8_t once_key[16], once_body[16]; /* digests of it and its owner; of the body */
    uint8_t template_digest[32];         /* chat template used, or 0 */
    uint64_t arrive_ns;                  /* monotonic */
    uint64_t arrive_wall_ms;
    void (*wake)(void *arg);
    void *wake_arg;
    void (*on_finish)(struct request *r,
                      void *arg); /* engine thread, once, must not block; NULL: engine sets done */
    void *on_finish_arg;
    /* HTTP, any time */
    _Atomic bool cancel; /* the client left: delivered tokens count, the rest stops */
    /* engine */
    uint64_t first_token_ns, finish_ns, admit_ns;
    uint64_t finish_wall_ms;
    enum status status; /* when a sequence ended in FINISH_ERROR */
    struct errtext error;
    uint32_t preempt_count;
    /* recorder */
    struct request_receipt receipt;
    _Atomic bool done; /* release; everything above is final */
    _Atomic uint32_t refs;
    void *engine_private; /* engine */
};

/* Zeroed request with two references (submitter and chain) and arrays for prompt_count x n
 * sequences of max_tokens each. NULL when memory is refused. prompts' ids are filled by the caller.
 */
struct request *request_create(uint32_t prompt_count, uint32_t n, uint32_t max_tokens,
                               bool with_top);
/* Keys of every output token are kept, before submit and when max_tokens is set. Takes a reference
 * of its own. false: keys_bytes_max or memory does not allow it, and nothing has changed; a scoring
 * row finds the same keys later. */
bool request_want_keys(struct request *r, struct engine_basis *basis);
void request_release(struct request *r); /* frees at zero, references included */
/* Set done and wake. Chain end only. */
void request_finish(struct request *r);

#endif
