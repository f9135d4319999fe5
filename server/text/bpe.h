/* The BPE model: one pre-token in, ids out. Pairs are merged in order of rank, then of position,
 * with a heap: O(n log n) in the length of the pre-token, whatever it holds. Immutable after load;
 * bpe_work is the memory of one caller. */
#ifndef RS_TEXT_BPE_H
#define RS_TEXT_BPE_H

#include "server/base/errtext.h"
#include "server/text/tokenizer.h"
#include "server/text/vocab.h"

#include <jansson.h>

#define BPE_SHORT_CP_MAX    0x800u /* code points looked up in a table */
#define BPE_TOKEN_BYTES_MAX 65536u /* text of one vocabulary entry */
#define BPE_MERGES_MAX      (1u << 23)

struct bpe {
    struct vocab vocab;
    struct merges merges;
    char *text; /* the bytes the vocabulary's keys point into */
    size_t text_len;
    int32_t id_max;                      /* -1: empty vocabulary */
    int32_t byte_ids[256];               /* <0x00>..<0xFF>, or -1 */
    int32_t short_ids[BPE_SHORT_CP_MAX]; /* single characters, or -1 */
    char *unk_token;
    size_t unk_len;
    bool fuse_unk, byte_fallback, ignore_merges;
};

struct bpe_symbol {
    int32_t id; /* -1: merged away */
    int32_t prev, next;
};

struct bpe_candidate {
    uint64_t order; /* rank << 32 | position */
    int32_t id;     /* what the pair becomes */
};

struct bpe_work {
    struct bpe_symbol *symbols;
    struct bpe_candidate *heap;
    size_t symbols_cap, heap_cap, heap_n;
};

/* The "model" object. */
MUST_CHECK enum status bpe_load(struct bpe *b, const json_t *json, struct errtext *err);
void bpe_fini(struct bpe *b);
void bpe_work_fini(struct bpe_work *w);

MUST_CHECK enum status bpe_encode(const struct bpe *b, struct bpe_work *w, const char *text,
                                  size_t len, struct token_list *out, struct errtext *err);

#endif
