/* The spool: the durable, append-only log of one lane, and the truth until finality.
 *
 *   <dir>/seg-<first seq, 20 digits>.log   frames, back to back
 *   frame = magic u32 "RSP1" | body length u32 | seq u64 | crc32c u32 of (length, seq, body) | body
 *
 * Little-endian.
 * Sequence numbers are dense from 1. One writer appends; spool_sync makes everything appended
 * durable and visible to readers. Recovery cuts a torn tail off the newest segment (nothing past
 * the first bad frame was ever released); damage anywhere else is CORRUPT and names the segment. A
 * write that fails is cut back at once, so a full disk leaves a whole log. Thread: append, sync and
 * trim by the owner; readers any, each with its own cursor. */
#ifndef RS_SPOOL_SPOOL_H
#define RS_SPOOL_SPOOL_H

#include "server/base/buf.h"
#include "server/base/errtext.h"

#define SPOOL_BODY_BYTES_MAX   (1u << 20)
#define SPOOL_FRAME_HEAD_BYTES 20

struct spool;

struct spool_options {
    const char *dir;            /* created 0700 if absent */
    uint64_t segment_bytes_max; /* a new segment starts past it */
    uint64_t bytes_max;         /* all segments; past it spool_append says FULL */
};

MUST_CHECK enum status spool_open(struct spool **out, const struct spool_options *opt,
                                  struct errtext *err);
void spool_close(struct spool *s);

uint64_t spool_next_seq(const struct spool *s); /* what the next append gets; owner only */
uint64_t spool_durable_seq(struct spool *s);    /* newest synced; any thread */
uint64_t spool_first_seq(struct spool *s);      /* oldest kept (next_seq if empty); any thread */
uint64_t spool_bytes(struct spool *s);          /* on disk; any thread */

/* Append the body of sequence number seq, which must be spool_next_seq. Not durable before
 * spool_sync. Errors: FULL (budget or disk), TOO_LARGE (body), IO. On any error the log is as
 * before. */
MUST_CHECK enum status spool_append(struct spool *s, uint64_t seq, const void *body, size_t len,
                                    struct errtext *err);
/* fdatasync. On failure nothing appended since the last sync may be released, and the spool refuses
 * appends from then on. */
MUST_CHECK enum status spool_sync(struct spool *s, struct errtext *err);

/* Does the disk take a write as large as a few records, and a sync? Nothing of it stays. Errors as
 * of spool_append. Owner only. */
MUST_CHECK enum status spool_probe(struct spool *s, struct errtext *err);

/* Delete whole segments whose last seq <= final_seq and that are older than age_s_min. */
void spool_trim(struct spool *s, uint64_t final_seq, uint64_t age_s_min);

/* A reader over durable records, in order. */
struct spool_cursor {
    struct spool *spool;
    int fd;
    uint64_t segment_first, offset, next_seq;
};
/* Position on seq. NOT_FOUND when it is trimmed or not yet durable. */
MUST_CHECK enum status spool_cursor_open(struct spool_cursor *c, struct spool *s, uint64_t seq,
                                         struct errtext *err);
/* The next durable record's body into body (cleared first). NOT_FOUND at the end: call again later.
 */
MUST_CHECK enum status spool_cursor_next(struct spool_cursor *c, uint64_t *seq, struct buf *body,
                                         struct errtext *err);
void spool_cursor_close(struct spool_cursor *c);

/* Frame check alone, for recovery and the fuzzer: bytes of the first whole frame at data, 0 if torn
 * or bad. Pure. */
size_t spool_frame_parse(const void *data, size_t len, uint64_t *seq, const uint8_t **body,
                         size_t *body_len);

/* Append one frame to out. */
void spool_frame_put(struct buf *out, uint64_t seq, const void *body, size_t len);

#endif
