/* The training manifest (SPEC 6): which rows of which version of a datanet an adapter was trained
 * on, in order. Only these rows are indexed, so nobody is paid for a document that was only added
 * to the list. Its digest is BLAKE2b-256 of the file:
 *
 * {"bos":false,"documentRoot":"0x…","eos":true,"format":"residual.training.1","rows":[[docId,
 * offset,bytes],…],"tokenizerDigest":"0x…"} and a newline, without blanks; offset and bytes are of
 * the normalised text. Immutable once parsed; thread: any. */
#ifndef RS_DATANET_TRAINING_H
#define RS_DATANET_TRAINING_H

#include "server/datanet/datanet.h"

#define TRAINING_FILE      "training.json"
#define TRAINING_ROWS_MAX  (1u << 24)
#define TRAINING_BYTES_MAX ((size_t)512 << 20)

struct training_row {
    uint32_t document, offset, bytes; /* document: a place in the datanet, below its n */
};
struct training {
    uint8_t digest[32], tokenizer_digest[32];
    bool bos, eos;
    uint32_t n;
    struct training_row *row; /* in order */
};

/* Holds it against the datanet: its documents and root, rows inside of their texts, none twice and
 * none over another (a row that counts twice would be paid twice). INVALID names the row. */
MUST_CHECK enum status training_parse(struct training **out, const char *text, size_t len,
                                      const struct datanet *d, struct errtext *err);
/* training.json beside the datanet's list. NOT_FOUND: there is none. */
MUST_CHECK enum status training_load(struct training **out, const struct datanet *d,
                                     struct errtext *err);
void training_free(struct training *t); /* NULL is fine */
/* The file of t, whose digest and row order need not be set otherwise. */
MUST_CHECK enum status training_render(struct buf *out, const struct training *t,
                                       const struct datanet *d, struct errtext *err);
/* t->digest, of the file that training_render gives. */
MUST_CHECK enum status training_seal(struct training *t, const struct datanet *d,
                                     struct errtext *err);
/* training.json's reader for a file of that name. */
MUST_CHECK enum status training_load_as(struct training **out, const struct datanet *d,
                                        const char *name, struct errtext *err);
/* Every row of every document that is no copy, documents ascending by docId: what `residual datanet
 * build` writes. Reads every text. */
MUST_CHECK enum status training_build(struct training **out, const struct datanet *d, bool bos,
                                      bool eos, const uint8_t tokenizer_digest[32],
                                      struct errtext *err);

#endif
