/* Options of training as JSON: of the report beside an adapter and of a job that waits. */
#ifndef RS_TRAIN_TRAIN_OPTIONS_H
#define RS_TRAIN_TRAIN_OPTIONS_H

#include "server/base/json.h"
#include "server/train/trainer.h"

/* Members of an object, without its braces: all but steps and tokens, which follow from the rows
 * and change no bit. */
void train_options_put(struct buf *out, const struct train_options *o);
/* What train_options_put wrote; faults are the reader's. */
void train_options_read(struct json_reader *in, struct train_options *o);

#endif
