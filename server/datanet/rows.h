/* What a row of a document is: the unit that an adapter is trained on and that an answer is
 * attributed to (SPEC 6). A rule about bytes, so that publisher, server and auditor cut alike.
 *
 *   text      a sentence: it ends after . ! ? … 。 ！ ？ and the closing quotes and brackets behind
 *             them, where white space and none of a to z follows (nothing need follow 。 ！ ？), or at
 *             an empty line; the dot of one letter, or of a number that begins the row, ends none
 *   markdown  the same inside of a block; a heading, an item, a quoted or a table line begins one;
 *             a fenced block is a row
 *   rows      a line, JSON: {"text"} or {"prompt", "completion"}
 *   chats     a line, JSON: {"messages": [{"role", "content"}]}, as OpenAI's fine-tuning has it:
 *             "name", "tool_calls", content in parts, "weight" 0 or 1 of an assistant's message
 *             (1: learned), and "tools" beside the messages
 *
 * White space around a row is no part of it. Pure. Thread: any. */
#ifndef RS_DATANET_ROWS_H
#define RS_DATANET_ROWS_H

#include "server/model/model.h"

#define ROW_BYTES_MAX  (16u << 10) /* of a sentence or block: a longer one is cut at a blank */
#define ROW_LINE_MAX   (1u << 20)  /* of a JSON line: a longer one is refused */
#define ROW_TOKENS_MAX 1024        /* what is indexed of a row: its first tokens */

enum rows_kind { ROWS_TEXT, ROWS_MARKDOWN, ROWS_ROWS, ROWS_CHATS, ROWS_KIND_COUNT };

const char *rows_kind_name(enum rows_kind kind);
MUST_CHECK bool rows_kind_parse(enum rows_kind *out, const char *name);
/* By a file's ending: .md and .markdown, .jsonl (chats if its first line has messages), else text.
 */
enum rows_kind rows_kind_guess(const char *file, const char *text, size_t len);

typedef enum status rows_visit(void *arg, size_t offset, size_t bytes, struct errtext *err);
/* Every row of a normalised text, ascending. INVALID names the line that is no row of this kind;
 * what visit returns ends it. */
MUST_CHECK enum status rows_each(enum rows_kind kind, const char *text, size_t len,
                                 rows_visit *visit, void *arg, struct errtext *err);

/* Which tokens are learned.
 *   all         every one but the first
 *   completion  of prompt and completion, the completion; of a conversation, the assistant's last
 *               message; of others, all
 *   assistant   as completion, but of a conversation every message of the assistant, by where the
 *               template puts them
 * Messages of the weight 0 are learned under `all` alone. */
enum row_mask { ROW_MASK_ALL, ROW_MASK_COMPLETION, ROW_MASK_ASSISTANT, ROW_MASK_COUNT };

const char *row_mask_name(enum row_mask mask);
MUST_CHECK bool row_mask_parse(enum row_mask *out, const char *name);

struct row_form { /* how rows become tokens for one adapter */
    const struct model *model;
    const struct chat_template *chat; /* NULL: rows of chats are refused */
    bool bos, eos;                    /* not for chats: their template says */
};
/* The text that a row stands for: its own, or a line's text, prompt and completion one after the
 * other, or the conversation through the template (form may be NULL but for chats). Appended. */
MUST_CHECK enum status row_render(const struct row_form *form, enum rows_kind kind, const char *row,
                                  size_t len, struct buf *out, struct errtext *err);
/* bos?, the ids of that text, eos?; at most ROW_TOKENS_MAX, the first (*cut: there were more). out
 * is appended to; its n_max is set. Errors: INVALID, NO_MEMORY. */
MUST_CHECK enum status row_tokens(const struct row_form *form, enum rows_kind kind, const char *row,
                                  size_t len, struct token_list *out, bool *cut,
                                  struct errtext *err);
/* bos? and the ids of the prompt of a row that has one, appended to out: as many of them as the row
 * begins with too stand before its completion. */
MUST_CHECK enum status row_prompt(const struct row_form *form, enum rows_kind kind, const char *row,
                                  size_t len, struct token_list *out, struct errtext *err);

#endif
