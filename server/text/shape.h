/* Finding out how a chat template wants its messages. Private to server/text. */
#ifndef RS_TEXT_SHAPE_H
#define RS_TEXT_SHAPE_H

#include "server/text/chat.h"

/* t is parsed. Never fails: what cannot be found out takes the default (arguments as an object,
 * content as a string, null as none), which is what the reference gives every template. */
struct chat_shape chat_shape_probe(const struct chat_template *t);

/* chat_template_render within *work steps, which becomes what is left of them (chat.c). */
MUST_CHECK enum status chat_template_try(const struct chat_template *t, const json_t *context,
                                         uint64_t *work, struct buf *out, struct errtext *err);

#endif
