/* The segment file, and what its parts share. Little-endian; sections in this order, each on a
 * multiple of 64 bytes, zeros between:
 *
 *   header      struct spans_header
 *   documents   struct spans_entry [n_document]
 *   first       u32 [n_vocab + 2]   rank of the first suffix that begins with token v or a later
 *   long        struct spans_long [n_long]   tokens of 255 bytes of text and more
 *   block       struct spans_block [ceil(n_tok / 64)]
 *   tok         u16 or u32 [n_tok]  id + 1; 0 ends every document: below all ids, in no question
 *   sa          u32 [n_tok]         positions by suffix
 *   len         u8 [n_tok]          bytes of text from a token to the next; 255: in `long`
 *
 * root = BLAKE2b-256 of the file with the root's place zeroed. */
#ifndef RS_INFLUENCE_SPANS_IMPL_H
#define RS_INFLUENCE_SPANS_IMPL_H

#include "server/influence/spans.h"

#include <stdatomic.h>
#include <stdbool.h>

#define SPANS_MAGIC       "RSSPANS1"
#define SPANS_LEN_LONG    255u
#define SPANS_BLOCK       64u
#define SPANS_VOCAB_SMALL 65534u /* id + 1, and one value for what is no id, in 16 bits */

struct spans_header {
    char magic[8];
    uint32_t n_vocab, n_tok, n_document, n_owner, n_long;
    uint32_t zero; /* reserved */
    uint8_t tokenizer_digest[32], document_root[32], root[32];
};
struct spans_entry {
    uint8_t digest[32];
    uint32_t owner, begin, offset; /* first token's position; where that token begins in the text */
};
struct spans_long {
    uint32_t pos, bytes;
};
struct spans_block {           /* of token 64 b */
    uint32_t document, offset; /* whose it is; where it begins in that text */
};

enum {
    SPANS_DOCUMENTS,
    SPANS_FIRST,
    SPANS_LONG,
    SPANS_BLOCKS,
    SPANS_TOK,
    SPANS_SA,
    SPANS_LEN,
    SPANS_SECTIONS
};
struct spans_layout {
    uint64_t at[SPANS_SECTIONS], bytes[SPANS_SECTIONS], total;
};
void spans_layout(const struct spans_header *h, struct spans_layout *out);
/* The root of a file whose bytes are in memory. */
void spans_root(const void *file, uint64_t bytes, uint8_t root[32]);

struct spans_segment { /* one open file */
    atomic_uint refs;
    const struct spans_header *h;
    uint64_t bytes;
    bool wide; /* tok is u32 */
    const struct spans_entry *document;
    const uint32_t *first;
    const struct spans_long *lengthy;
    const struct spans_block *block;
    const void *tok;
    const uint32_t *sa;
    const uint8_t *len;
};

/* One bit a rank, and one a word of those: the nearest rank whose document is listed. */
struct spans_live {
    uint64_t *bit, *word;
};
struct spans_part {
    struct spans_segment *seg;
    uint32_t *document;     /* index in the list, UINT32_MAX: not listed; NULL: the segment's own */
    struct spans_live live; /* bit NULL: all are listed */
};
struct spans {
    atomic_uint refs;
    struct spans_head head;
    struct spans_part part[SPANS_SEGMENTS_MAX];
    uint32_t *owner;    /* by document of the list; NULL: the segment's own */
    uint16_t *surprise; /* [n_vocab], bits Q8 */
};

static inline uint32_t spans_tok(const struct spans_segment *g, uint32_t pos)
{
    return g->wide ? ((const uint32_t *)g->tok)[pos] : ((const uint16_t *)g->tok)[pos];
}
/* Map a file and check its header and length, nothing more; to be unmapped, or opened. */
MUST_CHECK enum status spans_map(struct spans_segment **out, const char *path, struct errtext *err);
void spans_unmap(struct spans_segment *g);
/* The list's index of a digest, or UINT32_MAX. */
uint32_t spans_listed(const struct spans_list *list, const uint8_t digest[32]);
bool spans_holds(const struct spans_segment *g, const uint8_t digest[32]);
/* The segment's document that has the token at pos. */
uint32_t spans_document_at(const struct spans_segment *g, uint32_t pos);
/* Where that token begins in the text of its document d. */
uint32_t spans_offset_at(const struct spans_segment *g, uint32_t d, uint32_t pos);
/* log2(x), Q16, rounded down; x above 0. */
uint32_t spans_log2(uint64_t x);
/* Fill s->surprise from the listed documents' tokens. */
MUST_CHECK enum status spans_surprise(struct spans *s, struct errtext *err);
/* Nearest listed rank: at or above r and below end, or end; below r and at or above begin, or
 * UINT32_MAX. How many in [begin, end). Only where live->bit is. */
uint32_t spans_live_next(const struct spans_live *live, uint32_t r, uint32_t end);
uint32_t spans_live_before(const struct spans_live *live, uint32_t r, uint32_t begin);
uint32_t spans_live_count(const struct spans_live *live, uint32_t begin, uint32_t end);
#endif
