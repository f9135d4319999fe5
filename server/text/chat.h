/* Chat templates: the bounded subset of Jinja that model repositories use, rendered as Python's
 * jinja2 renders it in a sandbox with trim_blocks and lstrip_blocks. A template is code from a
 * stranger: it can reach the values it is given and nothing else, and it runs inside budgets of
 * steps, memory, output and recursion.
 *
 *   chat_template_parse(&t, text, len, &err);
 *   chat_template_render(t, context, &out, &err);   context: {"messages": [...], ...}
 *
 * A parsed template is immutable: any thread may render with it at the same time. */
#ifndef RS_TEXT_CHAT_H
#define RS_TEXT_CHAT_H

#include "server/base/buf.h"
#include "server/base/errtext.h"
#include "server/base/status.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CHAT_TEMPLATE_BYTES_MAX ((size_t)1 << 20)

struct chat_template;

/* How a template wants its messages: found when it is parsed, by rendering small conversations with
 * it (shape.c). Templates differ here and say so nowhere.
 *
 *   arguments_text   a tool call's arguments are concatenated: give the JSON text
 *                    else they are iterated or dumped: give the object
 *   content_parts    content is walked as [{"type": "text", "text": ...}]; else it is a string
 *   null_call        what stands for content: null beside tool calls
 *   null_plain       the same without tool calls */
enum chat_null { CHAT_NULL_NONE, CHAT_NULL_EMPTY, CHAT_NULL_ABSENT };

struct chat_shape {
    bool arguments_text, content_parts;
    enum chat_null null_call, null_plain;
};

/* Errors  INVALID a syntax error (with its line), UNSUPPORTED a statement we do not have,
 *         TOO_LARGE, NO_MEMORY. */
MUST_CHECK enum status chat_template_parse(struct chat_template **out, const char *text, size_t len,
                                           struct errtext *err);
void chat_template_free(struct chat_template *t);
const struct chat_shape *chat_template_shape(const struct chat_template *t);

/* chat_template_render - append the rendered text to out.
 * Before  context is a JSON object; its keys are the template's variables (messages, tools,
 *         add_generation_prompt, bos_token, eos_token and whatever else the caller allows), its
 *         messages in the shape of chat_template_shape.
 * Errors  INVALID the template raised an exception (the text is its own) or made a mistake of
 *         types; TOO_LARGE a budget was spent or out is full; NO_MEMORY. */
MUST_CHECK enum status chat_template_render(const struct chat_template *t, const json_t *context,
                                            struct buf *out, struct errtext *err);

/* Which bytes of the text `{% generation %}` blocks wrote, in order: the assistant's, where a
 * template has them. */
#define CHAT_SPANS_MAX 4096u
struct chat_span {
    size_t begin, end;
};
struct chat_spans {
    size_t n;
    struct chat_span at[CHAT_SPANS_MAX];
};
bool chat_template_has_marks(const struct chat_template *t);
/* As chat_template_render. Also UNSUPPORTED: such a block stands where its place is not known. */
MUST_CHECK enum status chat_template_render_marked(const struct chat_template *t,
                                                   const json_t *context, struct buf *out,
                                                   struct chat_spans *marks, struct errtext *err);

/* v as Python's json.dumps(v, ensure_ascii=False) writes it, appended: what a template that dumps
 * it would show. Errors as chat_template_render. */
MUST_CHECK enum status chat_json_text(const json_t *v, struct buf *out, struct errtext *err);

#endif
