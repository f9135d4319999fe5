/* The insides of struct tokenizer, for the files of this folder that load it and use it. */
#ifndef RS_TEXT_TOKENIZER_IMPL_H
#define RS_TEXT_TOKENIZER_IMPL_H

#include "server/text/added.h"
#include "server/text/bpe.h"
#include "server/text/decode.h"
#include "server/text/normalize.h"
#include "server/text/pretokenize.h"
#include "server/text/tokenizer.h"

#define TEMPLATE_IDS_MAX 64

/* What one id is. */
struct token_info {
    const char *content; /* the text in the file; NULL: no such id */
    uint32_t content_len;
    bool special;
    uint32_t bytes_start, bytes_len; /* into tokenizer.bytes */
};

struct tokenizer {
    struct normalizer normalizer;
    struct pretokenizer pretokenizer;
    struct added added;
    struct bpe bpe;
    struct decoder decoder;
    int32_t prefix[TEMPLATE_IDS_MAX], suffix[TEMPLATE_IDS_MAX]; /* of the post-processor */
    size_t n_prefix, n_suffix;
    bool split_special;
    struct token_info *info; /* [n_ids] */
    uint32_t n_ids;
    struct vocab added_ids;               /* added content -> id */
    struct buf bytes;                     /* every token's bytes in a stream */
    const struct decode_step *lead_strip; /* a Strip of the start of the whole text, or NULL */
    size_t bytes_per_id_max;
};

/* bound.c: fill in bytes_per_id_max; the last step of a load. */
void tokenizer_set_bound(struct tokenizer *t);

#endif
