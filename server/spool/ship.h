/* The shipper: one thread that copies a lane's durable records to a Redis Stream with explicit ids,
 * so that every record is there exactly once whatever fails in between.
 *
 *   XADD residual:lane:<lane> <seq>-0 r <entry>       entry = the spool's body (record ‖ tag)
 *
 * On every (re)connect, and once a second when idle, it reads the stream's end and goes on from
 * there; a stream that went backwards (restored, failed over) is refilled by the same rule. Entries
 * that this lane did not sign are removed from the end, or they would hold the numbers of records;
 * in the middle they stay and whoever reads the stream drops them. Redis away for any time costs
 * nothing but lag: the spool keeps everything. Pipelined, bounded; never trims the stream: the
 * worker does, once records are final, and says so under residual:lane:<lane>:final. */
#ifndef RS_SPOOL_SHIP_H
#define RS_SPOOL_SHIP_H

#include "server/spool/spool.h"

struct ship;

struct ship_options {
    const char *redis_url;     /* see redis_link_open */
    const char *password_file; /* NULL: none; mode 600 */
    const char *ca_file;       /* NULL: the system's */
    uint32_t lane;
    /* Did this lane sign the entry as its record seq? Thread: the shipper's. */
    bool (*is_own)(const void *arg, uint64_t seq, const void *entry, size_t len);
    /* The number up to which text, the worker's word, says that records are final; 0: it is not the
     * worker's. */
    uint64_t (*read_final)(const void *arg, const char *text);
    const void *arg;
};

/* Would ship_start take these? Its errors, before anything runs. */
MUST_CHECK enum status ship_check(const struct ship_options *opt, struct errtext *err);
/* Starts the thread. Errors: INVALID url, DENIED or IO for the password file; CONFLICT: the stream
 * holds records of the lane that the spool does not. A Redis that is away is not an error. */
MUST_CHECK enum status ship_start(struct ship **out, const struct ship_options *opt,
                                  struct spool *spool, struct errtext *err);
/* New records are durable: wake up. Thread: any. */
void ship_kick(struct ship *s);
/* Ship what is durable for at most wait_ms more, then stop and free. */
void ship_stop(struct ship *s, uint32_t wait_ms);
bool ship_is_connected(struct ship *s);
uint64_t ship_shipped_seq(struct ship *s);
uint64_t ship_final_seq(struct ship *s); /* records up to it are final; 0: nobody said so */
/* What CONFLICT says was found later: nothing may be signed meanwhile. */
bool ship_is_foreign(struct ship *s);

#endif
