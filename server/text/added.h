/* Added tokens: texts that become one id wherever they stand, before the model sees the rest. Two
 * sets, as the reference has them: tokens looked for in the raw text, and tokens with `normalized`
 * looked for in the normalized text (their own text normalized too). In each, the leftmost match
 * wins, and the longest of those. Immutable after added_index. */
#ifndef RS_TEXT_ADDED_H
#define RS_TEXT_ADDED_H

#include "server/base/errtext.h"
#include "server/text/normalize.h"
#include "server/text/pieces.h"
#include "server/text/tokenizer.h"
#include "server/text/vocab.h"

#include <jansson.h>

#define ADDED_COUNT_MAX         (1u << 18)
#define ADDED_CONTENT_BYTES_MAX 512u
#define ADDED_TOTAL_BYTES_MAX   (4u << 20)

struct added_token {
    char *content;
    size_t len;
    char *shown; /* content, normalized where the token is: what decoding gives */
    size_t shown_len;
    int32_t id;
    bool single_word, lstrip, rstrip, normalized, special;
};

struct added_node {
    unsigned char byte;
    int32_t token;           /* index, or -1 */
    uint32_t child, sibling; /* 0: none */
};

struct added_trie {
    struct added_node *nodes; /* node 0 is unused */
    size_t n, cap;
    uint32_t first[256];
};

struct added {
    struct added_token *tokens;
    size_t n;
    struct added_trie raw, normalized;
};

/* The "added_tokens" array (NULL: none); vocab is the model's, for ids. */
MUST_CHECK enum status added_load(struct added *a, const json_t *json, const struct vocab *vocab,
                                  struct errtext *err);
/* What other files add (tokenizer.h). */
MUST_CHECK enum status added_extend(struct added *a, const struct tokenizer_extra *extra,
                                    const struct vocab *vocab, struct errtext *err);
/* Build the tries, after the normalizer is known. */
MUST_CHECK enum status added_index(struct added *a, const struct normalizer *n,
                                   struct errtext *err);
void added_fini(struct added *a);

/* Cut text into found tokens and what is between them. skip_special leaves special tokens alone. */
void added_split(const struct added *a, const struct added_trie *trie, bool skip_special,
                 const struct normalize_io *io, struct pieces *out);

#endif
