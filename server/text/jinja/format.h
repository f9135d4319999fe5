/* Python's str.format. */
#ifndef RS_TEXT_JINJA_FORMAT_H
#define RS_TEXT_JINJA_FORMAT_H

#include "server/text/jinja/run.h"

/* text.format(*args): false after failing the run. */
bool jinja_format(struct jrun *r, struct jstr text, const struct jargs *args, struct jval *out);

#endif
