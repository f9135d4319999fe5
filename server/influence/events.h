/* The token-event index of one adapter version (signal S1): per token of every training row what
 * it was (its target token), where it stood (a key of 2 x 64 int8: what the head read, and which
 * rare words came before) and how much the adapter learned there. One immutable file, built by
 * events_build.h, opened by mmap and verified whole; events_score.h answers from it.
 *
 * The file, little-endian, each section at a multiple of 64 bytes, zeros between them, their places
 * following from the counts of the head:
 *   head            struct events_head
 *   basis of half 1 [64][d_model] bf16, then its bias [64] f32;  the same of half 2
 *   surprise        [n_vocab] u16, Q8 nats
 *   documents       [n_documents] digests, ascending;  owners [n_owners], ascending by payee
 *   rows            [n_rows] struct events_row
 *   lists           {u32 target, u32 first event}: n_lists_learned, then n_lists_rest, ascending
 *   row of event    [n_events] u32;  learned [n_events] u16, Q8 nats
 *   keys            half 1, then half 2: blocks of 16 events, byte [4 g + i] of event e of block b
 *                   at 1024 b + 64 g + 4 e + i; lanes after the last event are zeros
 *   root            32 bytes: BLAKE2b-256 of everything before
 * Events lie in this order: those learned by at least method.learned_min first; in each of the two
 * parts by target, then row, then position. */
#ifndef RS_INFLUENCE_EVENTS_H
#define RS_INFLUENCE_EVENTS_H

#include "server/base/errtext.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EVENTS_HALF         64
#define EVENTS_KEY          128
#define EVENTS_VERSION      2
#define EVENTS_MAX          (1u << 30) /* events of an index */
#define EVENTS_ROWS_MAX     (1u << 26)
#define EVENTS_VOCAB_MAX    (1u << 20)
#define EVENTS_MODEL_MAX    32768      /* d_model */
#define EVENTS_QUERY_MAX    (1u << 20) /* tokens of one query, all choices */
#define EVENTS_NONE         UINT32_MAX
#define EVENTS_FALLBACK_MAX 8
#define EVENTS_WEIGHT_ONE   1000000000u /* w1 + w2 + w3 */

/* What scoring computes with; part of the file, hence of its root. */
struct events_method {
    uint32_t gain_floor;      /* Q8 nats added to a query token's gain */
    uint32_t learned_floor;   /* and to what an event learned */
    uint32_t learned_min;     /* an event counts as learned from here */
    uint32_t fallback_tokens; /* of a query, compared with every learned event; 0: none */
    uint32_t squarings;       /* of the cosine: 5 is its 32nd power */
    uint32_t half1_part;      /* of 256: what an event by half 1 alone counts at least */
    uint32_t w[3];            /* of S1, S2 and S3 in the influence; they sum to E9 */
    uint32_t taught_min;      /* Q8 nats: tokens that events learned this much of carry facts */
    uint32_t cluster_dot;     /* half 2: a restated value stands at least so near */
};

/* How far the index is trusted (events_trust.c), parts per E9. */
struct events_trust {
    uint32_t lambda;   /* what scoring uses */
    uint32_t sampled;  /* rows whose value was looked at */
    uint32_t measured; /* rows whose value was asked for */
    uint32_t by_names; /* 1: too few facts are stated twice; the rows were asked by their names */
    uint32_t known;    /* of the sampled the adapter knows the value, above what the base knows */
    uint32_t own;      /* of the influence goes to the own owner, over the measured rows */
    uint32_t chance;   /* of it would by number of rows */
};

struct events_head {
    uint8_t magic[8];
    uint32_t version, head_bytes;
    uint64_t file_bytes;
    uint8_t adapter_id[32], model_id[32], document_root[32], owner_root[32], training_digest[32],
        tokenizer_digest[32];
    uint32_t n_events, n_learned, n_rows, n_documents, n_owners, n_vocab, d_model;
    uint32_t n_lists_learned, n_lists_rest;
    uint32_t n_joined; /* rows that restate an earlier row's fact */
    struct events_method method;
    struct events_trust trust;
};

struct events_row {
    uint32_t document;      /* index in the list ascending by digest */
    uint32_t offset, bytes; /* of the normalised text */
    uint32_t owner;         /* index in the owner table */
    uint32_t cluster;       /* the row itself, or the earlier row whose fact it restates */
};

struct events_owner {
    uint8_t payee[20];
    uint32_t documents;
};

struct events_expect { /* NULL: any */
    const uint8_t *adapter_id, *document_root, *training_digest, *tokenizer_digest;
};

struct events;

/* events_open - map and verify an index.
 *
 * Errors  NOT_FOUND, IO; CORRUPT when the bytes fail their own check (cut, changed, counts or
 *         values out of range), INVALID when it is another adapter's, datanet's or tokenizer's:
 *         each names the file, the field, the found and the expected value
 * Cost    reads the whole file once
 * Thread  any; the result is immutable and counted: events_release on any thread */
MUST_CHECK enum status events_open(struct events **out, const char *path,
                                   const struct events_expect *expect, struct errtext *err);
struct events *events_ref(struct events *e);
void events_release(struct events *e);

const struct events_head *events_head(const struct events *e);
const uint8_t *events_root(const struct events *e); /* 32 bytes */
size_t events_file_bytes(const struct events *e);
const uint8_t *events_file(const struct events *e); /* the file as it is */
const struct events_row *events_row(const struct events *e, uint32_t row);
const struct events_owner *events_owner(const struct events *e, uint32_t owner);
const uint8_t *events_document(const struct events *e, uint32_t document); /* digest, 32 bytes */
/* Half 1: [64][d_model] bf16 and [64]. */
const uint16_t *events_basis_w(const struct events *e);
const float *events_basis_bias(const struct events *e);

/* Row `id` of the base's token embedding. */
typedef void (*events_embed)(void *arg, int32_t id, float *out /* [d_model] */);
struct events_tokens {
    const int32_t *ids; /* prompt and output */
    uint32_t n_ids, n_prompt;
};
/* events_context_keys - half 2 of the keys of the output tokens ids[n_prompt ..]: the mean of the
 * embeddings of all tokens before it, weighted by surprise, on the index's directions.
 *
 * Shapes  out [n_ids - n_prompt][64]
 * Errors  INVALID for a token outside the vocabulary, NO_MEMORY */
MUST_CHECK enum status events_context_keys(const struct events *e, events_embed embed, void *arg,
                                           const struct events_tokens *tokens, int8_t *out,
                                           struct errtext *err);

#endif
