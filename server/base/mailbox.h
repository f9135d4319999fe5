/* A bounded queue of pointers, from many senders to one receiver or several. Ownership moves with
 * the message: after a successful push do not touch it. One lock, nothing is called while it is
 * held. A receiver may sleep in mailbox_wait. */
#ifndef RS_BASE_MAILBOX_H
#define RS_BASE_MAILBOX_H

#include "server/base/status.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct mailbox {
    pthread_mutex_t lock;
    pthread_cond_t filled;
    void **slot; /* [slot_count] ring */
    size_t slot_count, head, used;
    bool closed;
    bool kicked;
};

void mailbox_init(struct mailbox *m, size_t slot_count);
void mailbox_fini(struct mailbox *m); /* must be empty */
/* FULL at the maximum, CANCELLED after close: the message stays the caller's. Thread: any. */
MUST_CHECK enum status mailbox_push(struct mailbox *m, void *msg);
/* NULL when empty. Thread: a receiver. Never blocks beyond the lock. */
void *mailbox_pop(struct mailbox *m);
/* Sleep until a message, a kick or close, at most wait_ms. Returns at once if one is there. Thread:
 * a receiver. */
void mailbox_wait(struct mailbox *m, uint32_t wait_ms);
/* Wake one receiver without a message. Thread: any. */
void mailbox_kick(struct mailbox *m);
/* Refuse further pushes and wake every receiver; messages already inside stay poppable. */
void mailbox_close(struct mailbox *m);
size_t mailbox_used(struct mailbox *m);
bool mailbox_is_closed(struct mailbox *m);

#endif
