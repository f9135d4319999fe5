/* Making the index of an adapter version. Three passes over the rows of the training manifest, each
 * in any order, by whoever runs the model:
 *   1. events_builder_base: what the base expects of every row
 *   2. events_builder_hidden: head inputs under the adapter, of the rows that
 *      events_builder_wants_hidden names (a sample); then events_builder_basis
 *   3. events_builder_row: what the adapter expects of every row, and half 1 of its keys
 * and events_builder_finish writes the file. The same inputs give the same bytes, on every machine,
 * in any order of the calls.
 *
 * Thread: one at a time. */
#ifndef RS_INFLUENCE_EVENTS_BUILD_H
#define RS_INFLUENCE_EVENTS_BUILD_H

#include "server/influence/events.h"

#define EVENTS_ROW_TOKENS_MAX 65536
#define EVENTS_SAMPLE_MAX     16384 /* tokens that the directions are made of */

struct events_source_document {
    const uint8_t *digest; /* 32 bytes */
    uint32_t owner;
    uint32_t since;  /* the first version that has it */
    uint64_t doc_id; /* of two of one version the lower was first */
};

struct events_source_row {
    uint32_t document, offset, bytes;
};

struct events_source { /* all of it outlives the builder */
    const uint8_t *adapter_id, *model_id, *document_root, *owner_root, *training_digest,
        *tokenizer_digest;                         /* 32 bytes each */
    const struct events_source_document *document; /* ascending by digest */
    const uint8_t (*payee)[20];                    /* ascending */
    const struct events_source_row *row;
    uint32_t n_documents, n_owners, n_rows, n_vocab, d_model;
    events_embed embed;
    void *embed_arg;
    const struct events_method *method; /* NULL: events_method_default */
};

struct events_row_tokens { /* a row as trained: ids[0] is context alone */
    uint32_t row;
    const int32_t *ids;
    uint32_t n;
};

struct events_builder;
extern const struct events_method events_method_default;

/* Errors  INVALID, with the field: lists out of order, indexes out of range; NO_MEMORY */
MUST_CHECK enum status events_builder_create(struct events_builder **out,
                                             const struct events_source *src, struct errtext *err);
void events_builder_free(struct events_builder *b);
/* base_q8 [n - 1]: log-probabilities of ids[1..], Q8 nats. Errors: INVALID, FULL past EVENTS_MAX,
 * NO_MEMORY */
MUST_CHECK enum status events_builder_base(struct events_builder *b,
                                           const struct events_row_tokens *t,
                                           const int32_t *base_q8, struct errtext *err);
/* After every row's base: is the row of the sample? */
bool events_builder_wants_hidden(struct events_builder *b, uint32_t row);
/* hidden [n - 1][d_model]: head inputs under the adapter that predict ids[1..]. */
MUST_CHECK enum status events_builder_hidden(struct events_builder *b,
                                             const struct events_row_tokens *t, const float *hidden,
                                             struct errtext *err);
/* After the sample. */
MUST_CHECK enum status events_builder_basis(struct events_builder *b, struct errtext *err);
const uint16_t *events_builder_basis_w(const struct events_builder *b); /* [64][d_model] bf16 */
const float *events_builder_basis_bias(const struct events_builder *b); /* [64] */
/* adapter_q8 [n - 1] as base_q8; head_key [n - 1][64], -127 to 127. */
MUST_CHECK enum status events_builder_row(struct events_builder *b,
                                          const struct events_row_tokens *t,
                                          const int32_t *adapter_q8, const int8_t *head_key,
                                          struct errtext *err);
/* After every row: restated facts, trust, and the file, complete or not there at all. */
MUST_CHECK enum status events_builder_finish(struct events_builder *b, const char *path,
                                             struct errtext *err);

#endif
