/* What the newest answers were attributed by: their quantised inputs, best rows, spans and signals,
 * for GET /v1/attribution and for who recomputes. Beside the records, not of them: one that is
 * gone, or that its disk refused, costs an explanation and no money.
 *
 *   <dir>/evidence-<n>.bin   entries, back to back, in order of appending
 *   entry = length u32 | infSeq u64 | nonce 24 | ciphertext
 *
 * XChaCha20-Poly1305 under a key of its own, length and seq as associated data. Past bytes_max the
 * oldest file goes whole, and the disk's last room is left to records. Not synced: a torn tail is
 * cut at open. Thread: any; one lock inside. */
#ifndef RS_INFLUENCE_EVIDENCE_H
#define RS_INFLUENCE_EVIDENCE_H

#include "server/base/buf.h"
#include "server/base/errtext.h"

#define EVIDENCE_FILES           8           /* the bytes are divided into so many */
#define EVIDENCE_ENTRY_BYTES_MAX (16u << 20) /* a larger one is not kept */
#define EVIDENCE_PLACES          (1u << 17)  /* numbers back from the newest that are found */

struct evidence;
/* key: the lane's of its jobs, from which that of the entries is derived. bytes_max 0: none is
 * kept. */
MUST_CHECK enum status evidence_open(struct evidence **out, const char *dir, const uint8_t key[32],
                                     uint64_t bytes_max, struct errtext *err);
void evidence_close(struct evidence *e); /* NULL is fine */
/* Errors: TOO_LARGE, FULL, IO, NO_MEMORY: it is not kept. */
MUST_CHECK enum status evidence_put(struct evidence *e, uint64_t inf_seq, const void *plain,
                                    size_t len, struct errtext *err);
/* Appended to out, which the caller wipes. NOT_FOUND: never kept, or too old; CORRUPT. */
MUST_CHECK enum status evidence_get(struct evidence *e, uint64_t inf_seq, struct buf *out,
                                    struct errtext *err);
/* Kept, and how many entries were not, of which the first in a row is logged. */
void evidence_get_stats(struct evidence *e, uint64_t *bytes, uint64_t *dropped);

#endif
