/* What the fine-tuning API shares with files. */
#ifndef RS_HTTP_FILES_H
#define RS_HTTP_FILES_H

#include "server/http/exchange.h"
#include "server/train/file_store.h"

#define FILES_TO_TRAIN "fine-tune"
#define FILES_RESULTS  "fine-tune-results"

/* Who files and jobs belong to: the key's name, "" without keys. */
const char *files_owner(const struct exchange *x);
/* ?limit=, from lo to max. INVALID. */
MUST_CHECK enum status files_read_limit(const struct exchange *x, uint32_t lo, uint32_t max,
                                        uint32_t absent, uint32_t *out, struct errtext *err);

#endif
