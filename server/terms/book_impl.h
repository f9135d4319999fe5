/* Inside the book: book.c (what is asked of it), book_read.c (its thread), book_file.c (its file),
 * book_json.c (what people see). */
#ifndef RS_TERMS_BOOK_IMPL_H
#define RS_TERMS_BOOK_IMPL_H

#include "server/terms/book.h"

#include <limits.h>
#include <pthread.h>

#define BOOK_LOG_BLOCKS   5000u /* a longer gap: everything is read again */
#define BOOK_FILE_EVERY_S 60u   /* the file's age at most, while nothing changes */
#define BOOK_GRACE_S      600u  /* SPEC 4: terms that were in force so long ago are still named */
#define BOOK_NETS_PER_ID  4u

struct book_entry {
    uint8_t id[32];
    struct terms *now, *next; /* now NULL: not read yet; next NULL: no change is pending */
    bool is_stale;            /* to be read (again) */
    uint64_t used;            /* book.uses when it was last asked for */
};

/* A version of a datanet; never changes once it is there. */
struct book_net {
    uint8_t id[32];
    struct registry_datanet net;
    uint8_t answer[8 * 32];
};

struct book {
    struct book_options opt;
    struct owners *owners;
    pthread_t thread;
    char path[PATH_MAX]; /* registry.json */
    /* the thread's alone */
    struct buf answer;
    bool is_failing; /* the log was told */
    bool tariff_told;
    uint64_t saved_s; /* time_s of what the file holds */
    uint32_t turn;    /* whose entry is read again although nothing said so */

    pthread_mutex_t lock; /* below */
    pthread_cond_t kick, read;
    bool stop, kicked, is_changed; /* is_changed: the file is older than the entries */
    struct book_entry **entry;     /* [count] by id */
    uint32_t count;
    struct book_net *net; /* [net_count] by (id, version) */
    uint32_t net_count, net_max;
    struct registry_tariff base_now, base_next; /* next.active_at 0: none is pending */
    uint64_t block, time_s, seen_block;         /* events are known up to seen_block */
    uint64_t notice_s, uses, failures;
    char why[512]; /* the last failure, "" after a reading */
};

struct book_entry *book_find(struct book *b, const uint8_t id[32]);
/* Find or make; a new one is stale. */
struct book_entry *book_take(struct book *b, const uint8_t id[32]);
const struct book_net *book_find_net(const struct book *b, const uint8_t id[32], uint64_t version);
/* false: no room. */
bool book_add_net(struct book *b, const uint8_t id[32], const void *answer, size_t len);
/* Roots and contributors of the datanet version that t names, as far as they are here. */
void book_complete(struct book *b, struct terms *t);

void *book_main(void *book);

/* A file that is not there is fine. Says what it cannot use. */
void book_load(struct book *b);
MUST_CHECK enum status book_save(struct book *b, struct errtext *err);

#endif
