/* What the fine-tuning API shares with files. Both belong to the name of the key that brought them
 * (auth_key_name). */
#ifndef RS_HTTP_FILES_H
#define RS_HTTP_FILES_H

#include "server/http/exchange.h"
#include "server/train/file_store.h"

#define FILES_TO_TRAIN "fine-tune"
#define FILES_RESULTS  "fine-tune-results"

/* ?limit=, from lo to max. INVALID. */
MUST_CHECK enum status files_read_limit(const struct exchange *x, uint32_t lo, uint32_t max,
                                        uint32_t absent, uint32_t *out, struct errtext *err);

#endif
