/* Signal S2: where the tokens of a question and its answer stand word for word in a datanet.
 *
 * A segment is an immutable file over the tokens of some documents, sorted by suffix; it is mapped
 * into memory, verified whole when it is opened. A `struct spans` answers for one segment, or for
 * several seen through the document list of one version of the datanet (spans_join): what that
 * list does not name any more is not found, so a withdrawal needs no new file.
 *
 * A hit is a maximal span: a run of tokens that stands somewhere in the documents, that cannot be
 * made longer on either side, that touches the answer, and that says something (SPANS_TOKENS_MIN,
 * SPANS_INFO_MIN). No span crosses two documents. Hits and weights are integers and depend on
 * the documents, the tokenizer and the question alone, not on how segments are cut.
 * Immutable, refcounted. Thread: any; only opening blocks on disk. */
#ifndef RS_INFLUENCE_SPANS_H
#define RS_INFLUENCE_SPANS_H

#include "server/base/errtext.h"

#include <stddef.h>
#include <stdint.h>

#define SPANS_SEGMENTS_MAX 8
#define SPANS_VOCAB_MAX    ((1u << 23) - 2)
#define SPANS_OWNERS_MAX   (1u << 20)
#define SPANS_TOKENS_MIN   2
#define SPANS_INFO_MIN     (12 * 256) /* bits, Q8 */
#define SPANS_RANKS_MAX    4096       /* a span that stands more often weighs nothing */
#define SPANS_COUNTED_MAX  64         /* hits that weigh in one choice of an answer */

struct spans;

/* ---- building */
struct spans_document {
    const uint8_t *digest; /* 32 bytes */
    uint32_t owner;        /* below n_owner */
    uint32_t n;            /* tokens; 0 is fine */
    const int32_t *ids;
    const uint32_t *offset; /* [n + 1]: where each token begins in the text; last: where it ends */
};
struct spans_source {
    const uint8_t *document_root, *tokenizer_digest; /* 32 bytes each */
    uint32_t n_document, n_owner, n_vocab;
    /* Document i, asked for once each in order 0..n_document-1, ascending by digest. What *out
     * points to is read before the next call. */
    enum status (*document)(void *arg, uint32_t i, struct spans_document *out, struct errtext *err);
    void *arg;
};
/* Most tokens (documents included) of one segment: what the sorter can address. */
uint32_t spans_tokens_max(uint32_t n_vocab);
/* Write the segment at path, atomically. Same source, same bytes. About 12 bytes of memory a token
 * meanwhile. Errors: INVALID (an id, owner, offset or digest out of place, by document), TOO_LARGE
 * past spans_tokens_max, NO_MEMORY, the callback's, those of file_write_atomic. */
MUST_CHECK enum status spans_build(const char *path, const struct spans_source *src,
                                   struct errtext *err);

/* ---- opening */
struct spans_expect { /* 32 bytes each; NULL: any */
    const uint8_t *document_root, *tokenizer_digest;
};
/* CORRUPT names file, field, found and expected. expect may be NULL. */
MUST_CHECK enum status spans_open(struct spans **out, const char *path,
                                  const struct spans_expect *expect, struct errtext *err);
struct spans_list { /* the documents of one version, ascending by digest */
    uint32_t n_document, n_owner;
    const uint8_t (*digest)[32];
    const uint32_t *owner;
};
/* How many of the list's documents are in none of the parts; their indexes go to missing (room for
 * n_document; may be NULL): what a further segment has to hold. */
uint32_t spans_missing(struct spans *const *part, uint32_t n_part, const struct spans_list *list,
                       uint32_t *missing);
/* The parts (each of one segment, referenced on) as that version has them. A document that two
 * parts hold counts once. INVALID: a document of the list is missing, parts of several tokenizers,
 * more than SPANS_SEGMENTS_MAX. */
MUST_CHECK enum status spans_join(struct spans **out, struct spans *const *part, uint32_t n_part,
                                  const struct spans_list *list, struct errtext *err);
struct spans *spans_ref(struct spans *s);
void spans_release(struct spans *s); /* NULL is fine */

struct spans_head {
    uint32_t n_segment, n_vocab, n_tok, n_document, n_owner; /* n_tok: without separators */
    uint64_t bytes;                                          /* of the files */
    uint8_t root[32]; /* BLAKE2b-256 of the file; of several segments: of their roots */
};
const struct spans_head *spans_head(const struct spans *s);

/* ---- asking */
struct spans_range {
    uint32_t first, count; /* ranks in the segment's order */
};
struct spans_hit {
    uint32_t begin, n_tok; /* in prompt + output */
    uint32_t info_q8;      /* surprise of its tokens in these documents, bits */
    uint32_t count;        /* occurrences */
    struct spans_range in[SPANS_SEGMENTS_MAX];
};
/* The hits of ids[0..n_ids), of which the first n_prompt are the prompt: ascending by begin; of
 * more than max, those that say the most (then the earlier). An id outside the vocabulary matches
 * nothing. Errors: NO_MEMORY. */
MUST_CHECK enum status spans_find(const struct spans *s, const int32_t *ids, uint32_t n_ids,
                                  uint32_t n_prompt, struct spans_hit *hit, uint32_t max,
                                  uint32_t *n_hit);

struct spans_place {
    uint32_t document; /* index in the file, or in the list of spans_join */
    uint32_t offset, bytes;
};
/* Where a hit stands: one place a document (its first of those looked at), ascending by document,
 * at most max. Returns how many. */
uint32_t spans_places(const struct spans *s, const struct spans_hit *hit, struct spans_place *place,
                      uint32_t max);

/* What each owner's documents have of the answer, added up over the output tokens n_prompt..n_ids:
 * a token counts for the hit over it with the largest w = info x icf (Q16; ties: the earlier), in
 * equal parts of floor(w / owners) for the span's owners; icf = log2(n_owner / owners of the span),
 * at least 1/256. weight[n_owner] is overwritten. Errors: NO_MEMORY. */
MUST_CHECK enum status spans_owner_weights(const struct spans *s, const struct spans_hit *hit,
                                           uint32_t n_hit, uint32_t n_prompt, uint64_t *weight);

#endif
