/* A scripted chain for a book: adapters with their entries, datanet versions, a tariff, a head that
 * the test moves. It answers as the Registry's views do, byte for byte. */
#ifndef RS_TESTS_BOOK_FIXTURE_H
#define RS_TESTS_BOOK_FIXTURE_H

#include "server/base/clock.h"
#include "server/base/mem.h"
#include "tests/unit/book_chain.h"

static inline struct fake_adapter *fake_add(struct fake_chain *f, uint8_t byte,
                                            struct fake_entry first)
{
    struct fake_adapter *a = &f->adapter[f->count++];
    memset(a->id, byte, 32);
    memset(a->owner, 0x0f, 20);
    if (first.version)
        memset(a->datanet_id, 0xa0, 32);
    a->entry[a->count++] = first;
    return a;
}

/* Another entry, told by an event of this block. */
static inline void fake_change(struct fake_chain *f, struct fake_adapter *a, struct fake_entry e,
                               uint64_t block)
{
    pthread_mutex_lock(&f->lock);
    a->entry[a->count++] = e;
    f->change[f->change_count].block = block;
    memcpy(f->change[f->change_count++].id, a->id, 32);
    pthread_mutex_unlock(&f->lock);
}

static inline void fake_head(struct fake_chain *f, uint64_t number, uint64_t time_s)
{
    pthread_mutex_lock(&f->lock);
    f->head = (struct witness_head){number, time_s};
    pthread_mutex_unlock(&f->lock);
}

static inline void fake_die(struct fake_chain *f, const char *why)
{
    pthread_mutex_lock(&f->lock);
    f->dead = why;
    pthread_mutex_unlock(&f->lock);
}

static inline enum status fake_ask_head(void *arg, struct witness_head *head, struct errtext *err)
{
    struct fake_chain *f = arg;
    pthread_mutex_lock(&f->lock);
    *head = f->head;
    enum status st = f->dead ? err_set(err, STATUS_IO, "%s", f->dead) : STATUS_OK;
    pthread_mutex_unlock(&f->lock);
    return st;
}

static inline enum status fake_ask(void *arg, const struct witness_question *q, uint64_t block,
                                   struct buf *answer, struct errtext *err)
{
    struct fake_chain *f = arg;
    buf_clear(answer);
    pthread_mutex_lock(&f->lock);
    enum status st = f->dead ? err_set(err, STATUS_IO, "%s", f->dead) : STATUS_OK;
    const struct registry_tariff *t =
        &f->tariff[f->tariff[1].active_at && f->tariff[1].active_at <= q->t];
    if (q->view == WITNESS_ADAPTER_AT) {
        f->asked++;
        fake_put_terms(f, q->id, q->t, answer);
    } else if (q->view == WITNESS_ADAPTER_OWNER) {
        fake_put_words(answer, q->id[0], 0, 0, 1); /* each has an owner of its own */
    } else if (q->view == WITNESS_DATANET_VERSION) {
        fake_put_net(f, q->t, answer);
    } else if (q->view == WITNESS_TARIFF_AT) {
        fake_put_words(answer, t->active_at, t->price_in, t->price_out, 3);
    } else {
        fake_put_words(answer, f->notice_s, 0, 0, 1);
    }
    pthread_mutex_unlock(&f->lock);
    return st;
}

static inline enum status fake_changed(void *arg, uint64_t first_block, uint64_t last_block,
                                       void (*each)(void *arg, const uint8_t id[32]),
                                       void *each_arg, struct errtext *err)
{
    struct fake_chain *f = arg;
    pthread_mutex_lock(&f->lock);
    for (uint32_t i = 0; i < f->change_count; i++) {
        if (f->change[i].block >= first_block && f->change[i].block <= last_block)
            each(each_arg, f->change[i].id);
    }
    pthread_mutex_unlock(&f->lock);
    return STATUS_OK;
}

/* Three owners 0x10.., 0x20.., 0x30.. of 1, 2 and 3 documents: the datanet of every adapter. */
static inline void fake_owners(struct fake_chain *f, struct datanet_owner list[3])
{
    for (uint32_t i = 0; i < 3; i++) {
        memset(list[i].owner, 0x10 * (int)(i + 1), 20);
        list[i].documents = i + 1;
    }
    (void)!datanet_owner_root(f->owner_root, list, 3, NULL);
    memset(f->document_root, 0xd1, 32);
    f->documents = 6;
    f->owners = 3;
}

static inline struct book_options fake_options(struct fake_chain *f, const char *dir)
{
    struct book_options o = {.dir = dir,
                             .chain_id = 31337,
                             .lane = 3,
                             .ids_max = 8,
                             .poll_ms = 5,
                             .chain = {f, fake_ask_head, fake_ask, fake_changed}};
    memset(o.registry, 0x77, 20);
    return o;
}

/* Until the book is as of this block and has read everything. */
static inline bool fake_wait(struct book *b, uint64_t block)
{
    struct book_stats s = {0};
    for (int i = 0; i < 2000; i++) {
        book_get_stats(b, &s);
        if (s.block >= block && s.unread == 0)
            return true;
        clock_sleep_ms(2);
    }
    return false;
}

#endif
