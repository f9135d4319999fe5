/* What a start would otherwise learn by reading the whole spool: which inferences up to some number
 * still wait for their attribution. Written when a segment is full and at a stop, so that a start
 * reads the records after it alone; a missing or damaged one costs a longer start, nothing else. */
#ifndef RS_RECORD_CHECKPOINT_H
#define RS_RECORD_CHECKPOINT_H

#include "server/base/errtext.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct job;

struct open_inference { /* may be required, not yet attributed */
    uint64_t seq;
    uint8_t digest[32], request_id[32];
    struct job *job; /* from the store while a start pairs them, else NULL */
    bool closed;     /* its attribution is in the spool */
};

/* Ascending by seq. Bounded by the job store, which holds what each waits for. */
struct open_list {
    struct open_inference *item;
    size_t count, cap, closed_count;
};

/* In its place; most often that is the end. */
struct open_inference *open_list_put(struct open_list *l, const struct open_inference *o);
struct open_inference *open_list_find(struct open_list *l, uint64_t seq); /* NULL: not there */
/* Its attribution is in the spool. Nothing when it is not there. Pointers into the list end. */
void open_list_close(struct open_list *l, uint64_t seq);
void open_list_drop_closed(struct open_list *l);
void open_list_fini(struct open_list *l);

/* The open ones up to number `upto`. */
MUST_CHECK enum status checkpoint_write(const char *path, uint64_t upto, const struct open_list *l,
                                        struct errtext *err);
/* Into an empty list. NOT_FOUND: there is none; CORRUPT: read the spool instead. */
MUST_CHECK enum status checkpoint_read(const char *path, uint64_t *upto, struct open_list *l,
                                       struct errtext *err);

#endif
