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
#include <stddef.h>

#define CHAT_TEMPLATE_BYTES_MAX ((size_t)1 << 20)

struct chat_template;

/* Errors  INVALID a syntax error (with its line), UNSUPPORTED a statement we do not have,
 *         TOO_LARGE, NO_MEMORY. */
MUST_CHECK enum status chat_template_parse(struct chat_template **out, const char *text, size_t len,
                                           struct errtext *err);
void chat_template_free(struct chat_template *t);

/* chat_template_render - append the rendered text to out.
 * Before  context is a JSON object; its keys are the template's variables (messages, tools,
 *         add_generation_prompt, bos_token, eos_token and whatever else the caller allows).
 * Errors  INVALID the template raised an exception (the text is its own) or made a mistake of
 *         types; TOO_LARGE a budget was spent or out is full; NO_MEMORY. */
MUST_CHECK enum status chat_template_render(const struct chat_template *t, const json_t *context,
                                            struct buf *out, struct errtext *err);

#endif
