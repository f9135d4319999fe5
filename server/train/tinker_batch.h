/* The body of Tinker's forward_backward: a protobuf message of its SDK (tinker_public, 0.38), as
 * arrays. Field numbers:
 *
 *   ForwardBackwardRequest  1 model_id, 2 seq_id, 3 data: Datum, 4 loss_fn, 5 loss_fn_config: a
 *                           map to double, 6 forward_only, 7 loss_fn_config_v2: a map to
 *                           {1 number, 2 text}, which is preferred
 *   Datum                   1 model_input: Chunk {1 encoded_text {1 tokens: i32 bytes}, 2 image,
 *                           3 dmel}, 2 loss_fn_inputs: a map to Tensor, 3 model_input_spans,
 *                           4 loss_fn_input_spans: ProvenanceSpan
 *   Tensor                  1 dense: bytes, 2 sparse_csr, 3 dtype (1 f32, 2 i64, 3 i32), 4 shape
 *   ProvenanceSpan          1 prompt_tokens or 2 sampled_tokens, each {1 sequence_id, 2 offset,
 *                           3 length}
 *
 * loss_fn_inputs, each [n] as model_input is: target_tokens (i64), position t's is what comes after
 * token t; weights of cross_entropy, 1 where absent; logprobs and advantages of the others. Images,
 * sparse tensors and several targets a position are refused by name. Pure. Thread: any. */
#ifndef RS_TRAIN_TINKER_BATCH_H
#define RS_TRAIN_TINKER_BATCH_H

#include "server/base/arena.h"
#include "server/train/tinker_loss.h"

#include <stddef.h>

#define TINKER_DATUMS_MAX 4096u
#define TINKER_SPANS_MAX  (1u << 16) /* of a batch */
#define TINKER_ID_BYTES   160        /* of a model or sequence, with the zero */

struct tinker_span { /* of model_input */
    const char *sequence_id;
    uint64_t offset, length;
    bool sampled; /* made by a model; else given to one */
};
struct tinker_datum {
    uint32_t n;
    const int32_t *ids, *target;
    float *weight;  /* cross_entropy's; room for the others' */
    float *logprob; /* room for what comes out */
    const float *sampled, *advantage;
    const struct tinker_span *span;
    uint32_t n_span;
};
struct tinker_batch {
    char model_id[TINKER_ID_BYTES];
    int64_t seq_id;
    enum tinker_loss_kind loss;
    double clip_low, clip_high;
    bool forward_only;
    uint32_t n;
    struct tinker_datum *datum;
    struct arena memory; /* of all of it */
};
/* Errors: INVALID and UNSUPPORTED naming the field, TOO_LARGE, NO_MEMORY. */
MUST_CHECK enum status tinker_batch_parse(struct tinker_batch *out, const void *data, size_t len,
                                          struct errtext *err);
void tinker_batch_fini(struct tinker_batch *b);
struct tinker_loss tinker_batch_loss(const struct tinker_batch *b, const struct tinker_datum *d);

#endif
