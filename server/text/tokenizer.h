/* A Hugging Face tokenizer.json: text to ids and back, with the results of the `tokenizers`
 * library. BPE models of the byte-level kind (GPT-2, Llama-3, Qwen, Tekken) and of the
 * SentencePiece kind with byte fallback (Llama-2, Mistral, Gemma). Whatever the file asks for that
 * is not implemented is refused by name when it is loaded; nothing is guessed.
 *
 *   tokenizer_load(&t, json, len, &err);
 *   struct token_list ids = {.n_max = 4096};
 *   tokenizer_encode(t, text, len, TOKENIZE_ADD_SPECIAL, &ids, &err); ... mem_free(ids.ids);
 *
 * A tokenizer is immutable after load: any thread may encode and decode with it at the same time.
 */
#ifndef RS_TEXT_TOKENIZER_H
#define RS_TEXT_TOKENIZER_H

#include "server/base/buf.h"
#include "server/base/errtext.h"
#include "server/base/status.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TOKENIZER_JSON_BYTES_MAX ((size_t)128 << 20)
#define TOKENIZE_TEXT_BYTES_MAX  ((size_t)64 << 20)
#define TOKENIZER_ID_MAX         ((1 << 22) - 1)

#define TOKENIZE_ADD_SPECIAL 1u /* run the post-processor (BOS...) */
#define TOKENIZE_PARSE_SPECIAL                                                                     \
    2u /* special added-token text in the input becomes control tokens                             \
        */

struct tokenizer;

/* What the files beside tokenizer.json add to it, in this order. A token is {"content": text} with
 * the flags of an added token. A text that the tokenizer has keeps its id, a new one gets the next
 * free id, as adding to a `tokenizers` object does.
 *
 *   SET       new, or the flags of the token that has this text
 *   SPECIAL   new, or the token that has this text becomes special and keeps its other flags
 *   MISSING   new, or nothing */
enum tokenizer_add { TOKENIZER_ADD_SET, TOKENIZER_ADD_SPECIAL, TOKENIZER_ADD_MISSING };

struct tokenizer_extra_token {
    const json_t *token;
    enum tokenizer_add how;
};

struct tokenizer_extra {
    struct tokenizer_extra_token *token;
    size_t count;
    bool split_special; /* the text of special tokens is never parsed */
};

/* Growing list of ids. n_max is set by the caller (0 means TOKENIZE_TEXT_BYTES_MAX); ids is freed
 * with mem_free. */
struct token_list {
    int32_t *ids;
    size_t n, cap, n_max;
};
/* Append one id. TOO_LARGE, NO_MEMORY. */
MUST_CHECK enum status token_list_add(struct token_list *list, int32_t id, struct errtext *err);

/* tokenizer_load - parse the bytes of a tokenizer.json.
 * Errors  INVALID malformed, UNSUPPORTED a component we do not implement (named), TOO_LARGE past a
 *         maximum, NO_MEMORY. On error *out is NULL. */
MUST_CHECK enum status tokenizer_load(struct tokenizer **out, const char *json, size_t len,
                                      struct errtext *err);
/* The same with what other files add; extra may be NULL. */
MUST_CHECK enum status tokenizer_load_with(struct tokenizer **out, const char *json, size_t len,
                                           const struct tokenizer_extra *extra,
                                           struct errtext *err);
void tokenizer_free(struct tokenizer *t);

/* Highest id + 1, added tokens included. */
uint32_t tokenizer_vocab_size(const struct tokenizer *t);

/* The most bytes of text that one id can stand for; SIZE_MAX: nothing bounds them. So a text of
 * more than n times as many has more than n ids, and need not be tokenized to know it. */
size_t tokenizer_bytes_per_id_max(const struct tokenizer *t);

/* tokenizer_encode - append the ids of text to out.
 * Without TOKENIZE_PARSE_SPECIAL, and always where the tokenizer splits special tokens, the text of
 * a special token is plain text, as `tokenizer.encode_special_tokens = True` does: the safe mode
 * for what users write.
 * Errors  INVALID text is not UTF-8, TOO_LARGE more than out->n_max ids, NO_MEMORY.
 * Cost    O(n log n) in the text. */
MUST_CHECK enum status tokenizer_encode(const struct tokenizer *t, const char *text, size_t len,
                                        unsigned flags, struct token_list *out,
                                        struct errtext *err);

/* The token's bytes as they appear in output text when decoded after other tokens (they may be part
 * of a character); special tokens give their text; NULL for an unknown id. Owned by t. */
const char *tokenizer_token_bytes(const struct tokenizer *t, int32_t id, size_t *len);
bool tokenizer_is_special(const struct tokenizer *t, int32_t id);
/* Id of an added token or vocabulary entry by its text in the file, or -1. */
int32_t tokenizer_token_to_id(const struct tokenizer *t, const char *content);

/* tokenizer_decode - append the text of ids to out. Ids the tokenizer does not know are skipped.
 * Errors  NO_MEMORY, TOO_LARGE out is full. */
MUST_CHECK enum status tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n,
                                        bool skip_special, struct buf *out, struct errtext *err);

/* Streaming: feed ids, get only complete UTF-8. The concatenation equals tokenizer_decode.
 *
 * A run of byte-fallback tokens is text only if all of it is UTF-8; one bad byte, and each of its
 * bytes is U+FFFD. So the characters of a run that goes on are `loose`: the last bytes given out,
 * which the next step may take back. Whoever gives text away keeps those. */
struct detok {
    const struct tokenizer *t;
    bool skip_special;
    bool started;   /* a token has been seen: first-token rules no longer apply */
    uint8_t n_tail; /* bytes of an incomplete character */
    uint8_t n_old;  /* of these, bytes of earlier tokens */
    unsigned char tail[4];
    uint32_t strip_left; /* characters still to strip at the start of the text */
    uint32_t run;        /* byte tokens in the run that has not ended */
    uint32_t run_strip;  /* strip_left when it began */
    uint32_t loose;
    bool run_bad;
    /* of the last step: bytes of earlier steps that are void, bytes it gave that earlier tokens
     * made, whether it found the run bad */
    uint32_t taken, lead;
    bool spoiled;
};

void detok_init(struct detok *d, const struct tokenizer *t, bool skip_special);
/* As detok_init, for text that continues a prompt: the first token keeps its leading space. */
void detok_init_continued(struct detok *d, const struct tokenizer *t, bool skip_special);
/* out holds the loose bytes at its end; what is taken back is taken from there. */
void detok_push(struct detok *d, int32_t id, struct buf *out);
/* Flush an incomplete tail as U+FFFD. */
void detok_finish(struct detok *d, struct buf *out);
/* detok_push for one who keeps no text: appends what is new; d->taken says what is void. */
void detok_step(struct detok *d, int32_t id, struct buf *out);
/* Whether id is a byte of a fallback run that d shows. */
bool detok_is_byte(const struct detok *d, int32_t id);
/* The most bytes that one step can give after `steps` of them. */
size_t detok_step_bytes_max(const struct tokenizer *t, size_t steps);

#endif
