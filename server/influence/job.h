/* A job: what scoring one answer needs after the reply has left (token ids, salt, Q8
 * log-probabilities under the adapters), self-contained, so that it survives a restart. Token ids
 * are private: jobs never leave the server, are encrypted on disk and erased once their attribution
 * record is durable. Encoding, big-endian:
 *
 *   version u8, infSeq u64, infDigest 32, requestId 32, salt 32, createdMs u64
 *   cache salt 16
 *   K u8, K x {adapterId 32, weight i32, enum job_index u8, document root 32}
 *   prompts u16, each {n u32, ids u32}
 *   sequences u16, each {prompt u16, n u32, ids u32, Q8 i32 per id}
 *
 * Keys that decoding left are kept in memory alone: a scoring row finds the same again.
 *
 * Thread: the recorder's. */
#ifndef RS_INFLUENCE_JOB_H
#define RS_INFLUENCE_JOB_H

#include "server/base/buf.h"
#include "server/engine/request.h"

#define JOB_BYTES_MAX      (64u << 20)
#define JOB_KEYS_BYTES_MAX (64u << 20) /* of all jobs together */

/* Which datanet version an adapter is indexed with. */
enum job_index {
    JOB_INDEX_NONE,       /* it has none */
    JOB_INDEX_REGISTERED, /* that of document_root */
    JOB_INDEX_OWN,        /* that of its training manifest: a lane without a chain */
};

struct job_adapter {
    uint8_t id[32], document_root[32];
    int32_t weight_q16;
    enum job_index index;
};
struct job_prompt {
    int32_t *ids;
    uint32_t n_ids;
};
struct job_seq {
    uint32_t prompt_idx, n_out;
    int32_t *ids;    /* [n_out] */
    int32_t *set_q8; /* [n_out] log-probability under the whole set, as decoded, Q8 nats */
    int8_t *key;     /* [n_out][64] of the job's basis, or NULL */
};
struct job {
    uint64_t inf_seq, created_ms;
    uint8_t inf_digest[32], request_id[32], salt[32], cache_salt[16];
    uint32_t adapter_count, prompt_count, seq_count;
    struct job_adapter adapter[LORA_PARTS_MAX];
    struct job_prompt *prompt;
    struct job_seq *seq;
    struct engine_basis *basis; /* of the keys (a reference), or NULL */
};

/* Round nats to Q8, nearest even, saturating. */
int32_t job_q8(float nats);
/* From a finished request. inf_seq, inf_digest and salt are of its record. NULL when memory is
 * refused. bound: what an adapter is indexed with is the chain's to say. */
struct job *job_from_request(const struct request *r, bool bound);
/* Prompt and output of a sequence, the caller's to wipe and free; NULL when memory is refused. */
int32_t *job_text(const struct job *j, uint32_t seq_idx);
void job_free(struct job *j); /* wipes */
uint64_t job_bytes_for(uint32_t prompt_tokens,
                       uint64_t out_tokens); /* upper bound of the encoding */
void job_encode(const struct job *j, struct buf *out);
MUST_CHECK enum status job_decode(struct job **out, const uint8_t *data, size_t len,
                                  struct errtext *err);

#endif
