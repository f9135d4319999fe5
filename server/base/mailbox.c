/* A ring of pointers under one lock and one condition; a push to a full ring is refused, never
 * waited for. */
#include "server/base/mailbox.h"
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/base/thread.h"

void mailbox_init(struct mailbox *m, size_t slot_count)
{
    *m = (struct mailbox){.slot = mem_array(slot_count, sizeof(void *)), .slot_count = slot_count};
    CHECK(slot_count > 0);
    CHECK(pthread_mutex_init(&m->lock, NULL) == 0);
    thread_cond_init(&m->filled);
}

void mailbox_fini(struct mailbox *m)
{
    CHECK(m->used == 0);
    pthread_cond_destroy(&m->filled);
    pthread_mutex_destroy(&m->lock);
    mem_free(m->slot);
    m->slot = NULL;
}

enum status mailbox_push(struct mailbox *m, void *msg)
{
    enum status st = STATUS_OK;
    CHECK(msg);
    pthread_mutex_lock(&m->lock);
    if (m->closed) {
        st = STATUS_CANCELLED;
    } else if (m->used == m->slot_count) {
        st = STATUS_FULL;
    } else {
        m->slot[(m->head + m->used++) % m->slot_count] = msg;
        pthread_cond_signal(&m->filled);
    }
    pthread_mutex_unlock(&m->lock);
    return st;
}

void *mailbox_pop(struct mailbox *m)
{
    void *msg = NULL;
    pthread_mutex_lock(&m->lock);
    if (m->used > 0) {
        msg = m->slot[m->head];
        m->head = (m->head + 1) % m->slot_count;
        m->used--;
    }
    pthread_mutex_unlock(&m->lock);
    return msg;
}

void mailbox_wait(struct mailbox *m, uint32_t wait_ms)
{
    struct timespec until = thread_deadline(wait_ms);
    pthread_mutex_lock(&m->lock);
    while (m->used == 0 && !m->closed && !m->kicked) {
        if (pthread_cond_timedwait(&m->filled, &m->lock, &until) != 0)
            break;
    }
    m->kicked = false;
    pthread_mutex_unlock(&m->lock);
}

void mailbox_kick(struct mailbox *m)
{
    pthread_mutex_lock(&m->lock);
    m->kicked = true;
    pthread_cond_signal(&m->filled);
    pthread_mutex_unlock(&m->lock);
}

void mailbox_close(struct mailbox *m)
{
    pthread_mutex_lock(&m->lock);
    m->closed = true;
    pthread_cond_broadcast(&m->filled);
    pthread_mutex_unlock(&m->lock);
}

size_t mailbox_used(struct mailbox *m)
{
    pthread_mutex_lock(&m->lock);
    size_t used = m->used;
    pthread_mutex_unlock(&m->lock);
    return used;
}

bool mailbox_is_closed(struct mailbox *m)
{
    pthread_mutex_lock(&m->lock);
    bool closed = m->closed;
    pthread_mutex_unlock(&m->lock);
    return closed;
}
