/* The spool: the durable, append-only log of one lane, and the truth until finality.
 *
 *   <dir>/seg-<first seq, 20 digits>.log   frames; a full segment has a footer
 *   frame  = magic u32 "RSP1" | body length u32 | seq u64 | crc32c u32 of (length, seq, body), body
 *   footer = the same with magic "RSF1", seq of the last record, body: bytes u64 of the frames
 *   <dir>/mark                             what was promised: see struct spool_promise
 *
 * Little-endian. Sequence numbers are dense from 1. One writer appends; spool_flush writes, and
 * spool_sync makes what was written durable, then the mark, and only then visible to readers.
 *
 * Start     what ends inside a frame behind the mark was never released: it is cut. Whatever the
 *           mark says was released and cannot be read is damage: CORRUPT, and nothing is changed,
 *           or a number could be signed twice. spool_repair.h is the way out
 * Settled   a whole segment whose records are final is known by its footer and not read again
 * Full      a write that fails is cut back at once: a full disk leaves a whole log
 * Thread    append, flush, sync and trim by the owner; readers any, each with its own cursor */
#ifndef RS_SPOOL_SPOOL_H
#define RS_SPOOL_SPOOL_H

#include "server/base/buf.h"
#include "server/base/errtext.h"

#define SPOOL_BODY_BYTES_MAX    (1u << 20)
#define SPOOL_PENDING_BYTES_MAX (16u << 20) /* appended and not yet flushed */
#define SPOOL_FRAME_HEAD_BYTES  20

struct spool;

struct spool_options {
    const char *dir;            /* created 0700 if absent */
    uint64_t segment_bytes_max; /* a new segment starts past it */
    uint64_t bytes_max;         /* all segments; past it spool_append says FULL */
    bool is_cache; /* owed to nobody: no mark, damage drops what is behind it, and what is flushed
                      is as good as synced */
};

/* Errors: CORRUPT names file, place, what is lost and the way out. */
MUST_CHECK enum status spool_open(struct spool **out, const struct spool_options *opt,
                                  struct errtext *err);
void spool_close(struct spool *s);

/* Somebody else, `source`, knows that numbers up to `used` were signed. CONFLICT when the spool
 * does not hold them: signing on would use them twice. Owner only. */
MUST_CHECK enum status spool_check_used(const struct spool *s, uint64_t used, const char *source,
                                        struct errtext *err);

uint64_t spool_next_seq(const struct spool *s); /* what the next append gets; owner only */
uint64_t spool_durable_seq(struct spool *s);    /* newest synced; any thread */
uint64_t spool_first_seq(struct spool *s);      /* oldest kept (next_seq if empty); any thread */
uint64_t spool_bytes(struct spool *s);          /* on disk; any thread */
uint64_t spool_final_seq(struct spool *s);      /* of spool_note_final; any thread */
uint64_t spool_whole_seq(struct spool *s);      /* last record of a whole segment; any thread */

/* Append the body of sequence number seq, which must be spool_next_seq. In memory until
 * spool_flush. Errors: FULL (budget), TOO_LARGE (body), IO. On any error the log is as before. */
MUST_CHECK enum status spool_append(struct spool *s, uint64_t seq, const void *body, size_t len,
                                    struct errtext *err);
/* Write what was appended. On an error (FULL, IO) all of it is forgotten: the log is as it was
 * after the last flush, spool_next_seq too. */
MUST_CHECK enum status spool_flush(struct spool *s, struct errtext *err);
/* Flush, fdatasync, then the mark. On failure nothing flushed since the last sync may be released,
 * and the spool refuses appends from then on. */
MUST_CHECK enum status spool_sync(struct spool *s, struct errtext *err);

/* Does the disk take a write as large as a few records, and a sync? Nothing of it stays. Errors as
 * of spool_append. Owner only. */
MUST_CHECK enum status spool_probe(struct spool *s, struct errtext *err);

/* Records up to seq are final: nobody will ask for them again. Durable with the next sync. Owner
 * only. */
void spool_note_final(struct spool *s, uint64_t seq);

struct spool_keep {
    uint64_t seq_max;    /* records after it stay */
    bool any;            /* records that are not final may go too */
    uint64_t bytes_min;  /* final segments are kept while there are no more bytes than these ... */
    uint64_t age_s_min;  /* ... or while they are younger */
    uint64_t bytes_full; /* past it they go at once */
};
/* Delete whole segments, oldest first, whose records may all go. Owner only. */
void spool_trim(struct spool *s, const struct spool_keep *keep);

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
