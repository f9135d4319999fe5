/* Where the turns of a rendered conversation stand: the text with the messages up to a turn, and
 * with that turn too, is held against the whole. Where a template writes a turn otherwise once
 * others follow (it drops the thoughts of earlier turns), it ends before what the template puts
 * before the words of the next message. One that shows neither (it puts the system's text into the
 * last question) is refused by name. Pure. Thread: any. */
#ifndef RS_TEXT_TURNS_H
#define RS_TEXT_TURNS_H

#include "server/text/chat.h"

/* chat_turn_find - the bytes of message `m` in `text`, from where a generation would begin.
 * Before  text is what the template gives for context, a JSON object with messages (as
 *         messages_shape makes them) and add_generation_prompt false; both are changed on the way
 *         and put back.
 * Errors  UNSUPPORTED naming the message and the byte: not the same text before and after others
 *         follow; what chat_template_render says. */
MUST_CHECK enum status chat_turn_find(const struct chat_template *t, json_t *context, size_t m,
                                      const struct buf *text, struct chat_span *out,
                                      struct errtext *err);
/* Of a template that refuses a context: the message that it does not take after those before it.
 * Returns its place; the first, where it takes none. */
size_t chat_turn_refused(const struct chat_template *t, json_t *context);

#endif
