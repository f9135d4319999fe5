/* Inside the spool: shared by spool.c (writing), spool_open.c (start), cursor.c (reading), frame.c
 * and mark.c (formats) and repair.c (the way out of damage). */
#ifndef RS_SPOOL_SPOOL_IMPL_H
#define RS_SPOOL_SPOOL_IMPL_H

#include "server/spool/spool.h"

#include <limits.h>
#include <pthread.h>

#define SPOOL_MAGIC        0x31505352u /* "RSP1" */
#define SPOOL_FOOTER_MAGIC 0x31465352u /* "RSF1" */
#define SPOOL_FOOTER_BYTES (SPOOL_FRAME_HEAD_BYTES + 8u)
#define SPOOL_SEGMENTS_MAX 65536u
/* A segment outgrows its maximum by one flush at most. */
#define SPOOL_SEGMENT_READ_MAX (4u * SPOOL_PENDING_BYTES_MAX)
#define SPOOL_DIR_BYTES        (PATH_MAX - 64)

struct segment {
    uint64_t first_seq, bytes; /* of the frames, without a footer */
    uint64_t age_ns_at_open;   /* how old its last byte was then, by the wall clock */
    uint64_t since_ns;         /* monotonic: opened or begun in this process */
    bool whole;                /* it has its footer */
};

/* What was promised, in <dir>/mark: 4 096 bytes, two places, the valid one with the higher turn
 * counts. A turn is magic u32 "RSM1" | turn u64 | used u64 | final u64 | first u64 | crc32c u32. */
struct spool_promise {
    uint64_t turn;
    uint64_t used;  /* the highest number whose receipt may have left */
    uint64_t final; /* records up to it are final */
    uint64_t first; /* records before it may have been trimmed; 0: 1 */
};

struct spool {
    char dir[SPOOL_DIR_BYTES];
    uint64_t segment_bytes_max, bytes_max;
    bool is_cache;
    int fd, mark_fd;       /* newest segment, -1 before the first append; the mark, -1: none */
    uint64_t next_seq;     /* of the next append */
    uint64_t flushed_next; /* of the first that is not written */
    bool broken;           /* a sync failed: what is on disk is unknown */
    bool unsynced;         /* something was written since the last sync */
    struct buf pending;    /* frames flushed_next.. */
    struct spool_promise promise;
    pthread_mutex_t lock;    /* below */
    struct segment *segment; /* ascending */
    size_t segment_count, segment_cap;
    uint64_t durable_seq, bytes, final_seq;
};

/* ---- frame.c ---- */
uint64_t spool_le_get(const uint8_t *in, size_t n);
void spool_le_put(uint8_t *out, uint64_t v, size_t n);
uint32_t spool_head_crc(const uint8_t head[SPOOL_FRAME_HEAD_BYTES], const void *body, size_t len);
/* Body length of a frame head, or SIZE_MAX if it cannot be one. */
size_t spool_head_body_len(const uint8_t head[SPOOL_FRAME_HEAD_BYTES]);
void spool_footer_put(uint8_t out[SPOOL_FOOTER_BYTES], uint64_t last_seq, uint64_t bytes);
/* Is data, the end of a segment, its footer? */
bool spool_footer_parse(const uint8_t data[SPOOL_FOOTER_BYTES], uint64_t *last_seq,
                        uint64_t *bytes);

/* Where, from `at` on, the next whole frame of a record seq_min or later begins; len: nowhere. */
size_t spool_find_frame(const uint8_t *data, size_t len, size_t at, uint64_t seq_min,
                        uint64_t *seq);

/* ---- mark.c ---- */
/* Opens or makes the mark. NOT_FOUND: there is none, or none that is whole (*fd is -1). */
MUST_CHECK enum status spool_mark_open(const char *dir, int *fd, struct spool_promise *p,
                                       struct errtext *err);
MUST_CHECK enum status spool_mark_create(const char *dir, int *fd, struct spool_promise *p,
                                         struct errtext *err);
/* The next turn, durable. */
MUST_CHECK enum status spool_mark_write(const char *dir, int fd, struct spool_promise *p,
                                        struct errtext *err);

/* ---- spool_open.c ---- */
#define SPOOL_WAY_OUT                                                                              \
    "; nothing was changed. Restore it from a copy, or see with `residual lane void` what is lost"
/* Walk the frames of data from seq *next; returns the bytes of the good prefix. */
size_t spool_walk(const uint8_t *data, size_t len, uint64_t *next);
void spool_segment_path(const char *dir, uint64_t first_seq, char path[PATH_MAX]);
/* The footer of a segment; false: it has none, or not one that fits the file. */
bool spool_footer_read(const char *dir, uint64_t first_seq, uint64_t *last, uint64_t *bytes);
MUST_CHECK enum status spool_io_error(const char *path, const char *what, struct errtext *err);
void spool_push_segment(struct spool *s, uint64_t first_seq);
/* First numbers of the segments in dir, ascending, into *first (mem_free). */
MUST_CHECK enum status spool_list(const char *dir, uint64_t **first, size_t *count,
                                  struct errtext *err);

#endif
