/* What store.c (the table), store_put.c (what comes in) and store_disk.c (folders) share. */
#ifndef RS_DATANET_STORE_IMPL_H
#define RS_DATANET_STORE_IMPL_H

#include "server/datanet/store.h"

#include <limits.h>
#include <pthread.h>

struct store_text {
    uint8_t digest[32], owner[20];
    uint64_t bytes;
    bool here, looked;         /* looked: held against those before it */
    struct datanet_copy *copy; /* of which it is a near copy, or NULL */
};

struct store_list {
    struct datanet_held head;
    struct store_text *text; /* ascending by digest */
    char *dir;
    struct datanet *open;       /* a reference */
    struct value_report *value; /* what its rows are worth, or NULL */
    uint32_t cursor;            /* no text before it is here and waits to be looked at */
};

#define STORE_ASIDE ".new-" /* folders of lists that come in */

struct datanet_store {
    char dir[PATH_MAX];
    uint64_t bytes_max, bytes; /* as the lists of this store declare them */
    uint32_t documents;
    pthread_mutex_t lock;
    struct store_list *list[DATANET_STORE_LISTS_MAX];
    uint32_t count;
    struct training_shelf *training;
    struct near_watch *near;
};

void store_list_free(struct store_list *h); /* NULL is fine */
struct store_text *store_list_text(const struct store_list *h, const uint8_t digest[32]);
/* Of a datanet's folder; a text is here where the list names its file. */
MUST_CHECK enum status store_list_open(struct store_list **out, const char *dir,
                                       const struct file_roots *roots, struct errtext *err);

/* The lock is held. place: where it stands; unchanged if it is not there. */
struct store_list *store_find_list(const struct datanet_store *s, const uint8_t root[32],
                                   uint32_t *place);
MUST_CHECK enum status store_check_room(const struct datanet_store *s, const struct store_list *h,
                                        const struct store_list *old, struct errtext *err);
/* h, owned from now on, stands there; what stood there is freed. */
void store_take_place(struct datanet_store *s, struct store_list *h, uint32_t place);

/* ---- store_disk.c ---- */

void store_disk_dir(char dir[PATH_MAX], const char *root_dir, const uint8_t root[32]);
/* The folder with its list, without held.json. */
MUST_CHECK enum status store_disk_write(const char *dir, const json_t *datanet,
                                        struct errtext *err);
/* held.json: who brought it, when; complete: every text is here, and is made durable first. */
MUST_CHECK enum status store_disk_hold(const struct store_list *h, bool complete,
                                       struct errtext *err);
MUST_CHECK enum status store_disk_put_text(const char *dir, const uint8_t digest[32],
                                           const char *text, size_t len, struct errtext *err);
/* Text of another list's folder; false: it cannot be linked. */
bool store_disk_link(const char *from, const char *to, const uint8_t digest[32]);
/* A folder of the store after a restart; CORRUPT: it is not what its name says. *out NULL and OK:
 * it was unfinished, and is gone. */
MUST_CHECK enum status store_disk_read(struct store_list **out, const char *root_dir,
                                       const char *name, struct errtext *err);
void store_disk_remove(const char *dir);

/* ---- store_value.c ---- */

/* h->value from value.json beside its list; NULL without one that fits it. */
void store_value_load(struct store_list *h);

/* ---- store_near.c ---- */

MUST_CHECK enum status store_near_start(struct datanet_store *s, struct errtext *err);
void store_near_stop(struct datanet_store *s);
/* A text is here, and not looked at. The lock is held. */
void store_near_came(struct datanet_store *s, struct store_list *h, uint32_t place);

#endif
