/* Chat messages in the shape that a template wants: what a client sends, and what a row of
 * conversations holds, read the same way. Pure. Thread: any. */
#ifndef RS_TEXT_MESSAGES_H
#define RS_TEXT_MESSAGES_H

#include "server/text/chat.h"

#define CHAT_MESSAGES_MAX   2048
#define CHAT_TEXT_BYTES_MAX (16u << 20) /* of a rendered conversation */

/* The list as a new one. INVALID, UNSUPPORTED with the param (messages[i].field); NO_MEMORY. */
MUST_CHECK enum status messages_shape(const json_t *list, const struct chat_shape *shape,
                                      json_t **out, struct errtext *err);

#endif
