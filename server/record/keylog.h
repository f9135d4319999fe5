/* Idempotency keys as durable as records: who repeats a request after the server was killed is told
 * so, and is not charged again. A log of its own, because a key is kept for a day and a record only
 * until it is settled; durable before the record, so that a crash in between leaves at most a key
 * whose record is missing, which the next start finds. Digests only. Thread: the recorder's. */
#ifndef RS_RECORD_KEYLOG_H
#define RS_RECORD_KEYLOG_H

#include "server/base/errtext.h"

#include <stdbool.h>
#include <stdint.h>

#define KEYLOG_AGE_MS (24ull * 3600 * 1000)

struct keylog_entry {
    uint8_t key[16], body[16]; /* digests: owner and Idempotency-Key; body */
    uint8_t request_id[32];
    uint64_t seq;     /* of its record */
    uint64_t wall_ms; /* when it was recorded */
};

struct keylog;
MUST_CHECK enum status keylog_open(struct keylog **out, const char *dir, struct errtext *err);
void keylog_close(struct keylog *k);
/* Errors: FULL, IO; durable after keylog_sync. */
MUST_CHECK enum status keylog_append(struct keylog *k, const struct keylog_entry *e,
                                     struct errtext *err);
MUST_CHECK enum status keylog_sync(struct keylog *k, struct errtext *err);
/* What is older than a day goes, file by file. */
void keylog_trim(struct keylog *k);
/* Every entry, oldest first. */
void keylog_visit(struct keylog *k, void (*visit)(void *arg, const struct keylog_entry *e),
                  void *arg);

#endif
