/* A row of a conversation as its template gets it: the fine-tuning format of OpenAI's API, messages
 * and tools in the shape that a request of chat has too, so that what is learned is what is asked.
 * Private to row_tokens.c and row_mask.c. */
#ifndef RS_DATANET_ROW_CHAT_H
#define RS_DATANET_ROW_CHAT_H

#include "server/base/json.h"
#include "server/datanet/rows.h"

struct row_chat {
    json_t *row;      /* as it stands */
    json_t *messages; /* shaped, without weights */
    json_t *context;
};
/* UNSUPPORTED: the model has no template. INVALID naming the message's field. */
MUST_CHECK enum status row_chat_open(struct row_chat *c, const struct row_form *form,
                                     const char *row, size_t len, struct errtext *err);
void row_chat_close(struct row_chat *c);
/* At the end of out; INVALID names the message that the template refuses. marks: NULL, or as
 * chat_template_render_marked. */
MUST_CHECK enum status row_chat_render(const struct row_chat *c, const struct row_form *form,
                                       struct buf *out, struct chat_spans *marks,
                                       struct errtext *err);

/* One line's members: role, content, weight, name of each message, tools. */
void row_chat_check(struct json_reader *r);

#endif
