/* The way out of a damaged spool, by a person's word: everything that can still be read is kept,
 * also behind the damage, and each number that cannot is filled with a record that says so. Only
 * on the folder of a stopped server, under its lock. Numbers that are final are on the chain and
 * in the archive: they are never filled, the spool begins behind them. */
#ifndef RS_SPOOL_REPAIR_H
#define RS_SPOOL_REPAIR_H

#include "server/base/buf.h"
#include "server/base/errtext.h"

#define SPOOL_LOSSES_MAX 1024

enum spool_loss_kind {
    SPOOL_LOSS_GONE = 1,    /* no bytes are there */
    SPOOL_LOSS_DAMAGED = 2, /* bytes are there, and wrong */
    SPOOL_LOSS_FINAL = 3,   /* either, but settled: not needed */
};

struct spool_loss {
    uint64_t first, last;
    uint64_t segment, offset; /* first number of the file, 0: none; where it is damaged */
    enum spool_loss_kind kind;
};

struct spool_survey {
    bool has_mark;
    uint64_t first, last; /* what the spool holds once it is repaired */
    uint64_t used, final; /* the mark's */
    uint64_t readable, lost;
    size_t loss_count;
    struct spool_loss loss[SPOOL_LOSSES_MAX];
};

struct spool_repair {
    const char *dir;
    uint64_t upto; /* somebody knows that numbers up to it were signed; 0: nobody */
    /* Did the lane sign the entry as its record seq? */
    bool (*is_own)(const void *arg, uint64_t seq, const void *entry, size_t len);
    /* The entry that fills number seq. */
    enum status (*fill)(const void *arg, uint64_t seq, enum spool_loss_kind why, struct buf *entry,
                        struct errtext *err);
    const void *arg;
};

/* What is there and what is not; changes nothing. DENIED: a whole entry is not the lane's: this is
 * another lane's spool, or its keys are. TOO_LARGE: more losses than can be listed. */
MUST_CHECK enum status spool_find_losses(const struct spool_repair *r, struct spool_survey *out,
                                         struct errtext *err);
/* Fills them. A damaged file stays beside the spool as NAME.damaged. Can be begun again when it was
 * interrupted. */
MUST_CHECK enum status spool_fill_losses(const struct spool_repair *r,
                                         const struct spool_survey *found, struct errtext *err);

#endif
