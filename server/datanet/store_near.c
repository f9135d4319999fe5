/* Near copies among what is held: a thread of low priority reads every text once, in the order in
 * which lists came, and notes which of them stands, to a quarter or more, in documents of other
 * owners that were here before (near.h). It tells who looks; what a copy earns is said by the
 * datanet that an adapter was trained on. After a restart it reads all of them again. */
#include "server/base/check.h"
#include "server/base/hex.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/base/thread.h"
#include "server/datanet/near.h"
#include "server/datanet/store_impl.h"
#include "server/text/unicode.h"

#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define SHINGLES_MAX (1u << 21) /* 24 bytes each */
#define NICE         10

struct near_seen { /* what a document number of near.h is */
    uint8_t root[32], owner[20];
    uint32_t place;
};

struct near_watch {
    struct datanet_store *store;
    pthread_t thread;
    pthread_cond_t came; /* with the store's lock */
    bool stop;
    /* the thread's own */
    struct near *near;
    struct near_seen *seen;
    uint32_t count, cap;
    struct buf text, words;
};

struct near_job {
    struct datanet *d;
    struct near_seen me;
};

/* The first text that nobody has looked at. The lock is held. */
static bool take_job(struct datanet_store *s, struct near_job *job)
{
    for (uint32_t k = 0; k < s->count; k++) {
        struct store_list *h = s->list[k];
        for (; h->head.waiting && h->cursor < h->head.documents; h->cursor++) {
            const struct store_text *t = &h->text[h->cursor];
            if (!t->here || t->looked)
                continue;
            *job = (struct near_job){.d = datanet_ref(h->open), .me = {.place = h->cursor}};
            memcpy(job->me.root, h->head.root, 32);
            memcpy(job->me.owner, t->owner, 20);
            return true;
        }
    }
    return false;
}

static enum status remember(struct near_watch *w, const struct near_seen *me, struct errtext *err)
{
    if (w->count == w->cap) {
        uint32_t cap = w->cap ? 2 * w->cap : 256;
        struct near_seen *grown = cap > 2 * DATANET_STORE_DOCUMENTS_MAX
                                      ? NULL
                                      : mem_try_realloc(w->seen, cap * sizeof(*w->seen));
        if (!grown)
            return err_set(err, STATUS_NO_MEMORY, "no memory for %u documents", w->count + 1);
        w->seen = grown;
        w->cap = cap;
    }
    const struct near_text t = {me->owner, w->words.data, w->words.len};
    enum status st = near_add(w->near, w->count, &t, err);
    if (!st)
        w->seen[w->count++] = *me;
    return st;
}

static bool is_copy(const struct near_watch *w, const struct near_job *job,
                    const struct near_found *found)
{
    return found->ppm >= NEAR_COPY_PPM &&
           memcmp(w->seen[found->document].owner, job->me.owner, 20) != 0;
}

static enum status look(struct near_watch *w, const struct near_job *job, struct near_found *found,
                        struct errtext *err)
{
    buf_clear(&w->words);
    enum status st = datanet_text(job->d, job->me.place, &w->text, err);
    if (!st)
        st = unicode_words(&w->words, w->text.data, w->text.len, err);
    if (!st)
        st = near_find(w->near, &(struct near_text){job->me.owner, w->words.data, w->words.len},
                       found, err);
    if (st || is_copy(w, job, found))
        return st; /* what is not the first to say it is no source */
    return remember(w, &job->me, err);
}

static void note(struct store_text *t, const struct near_watch *w, const struct near_found *found)
{
    char mine[65], theirs[65];
    const struct near_seen *of = &w->seen[found->document];
    struct store_list *h = store_find_list(w->store, of->root, NULL);
    if (!h || of->place >= h->head.documents)
        return;
    t->copy = mem_alloc(sizeof(*t->copy));
    t->copy->ppm = found->ppm;
    memcpy(t->copy->root, of->root, 32);
    memcpy(t->copy->owner, of->owner, 20);
    memcpy(t->copy->digest, h->text[of->place].digest, 32);
    hex_encode(mine, t->digest, 32);
    hex_encode(theirs, t->copy->digest, 32);
    log_info("datanets", "document %s is a near copy of %s (%u.%u %%), which was here before", mine,
             theirs, found->ppm / 10000, found->ppm / 1000 % 10);
}

/* The lock is held; the list may have gone meanwhile. */
static void finish(struct near_watch *w, const struct near_job *job, const struct near_found *found)
{
    struct store_list *h = store_find_list(w->store, job->me.root, NULL);
    if (!h || job->me.place >= h->head.documents || h->text[job->me.place].looked)
        return;
    struct store_text *t = &h->text[job->me.place];
    t->looked = true;
    h->head.waiting--;
    if (is_copy(w, job, found))
        note(t, w, found);
    h->head.copies += t->copy != NULL;
}

static void *watch_near(void *arg)
{
    struct near_watch *w = arg;
    struct datanet_store *s = w->store;
    (void)setpriority(PRIO_PROCESS, (id_t)gettid(), NICE);
    pthread_mutex_lock(&s->lock);
    while (!w->stop) {
        struct near_job job;
        struct near_found found = {0};
        struct errtext err = ERRTEXT_INIT;
        if (!take_job(s, &job)) {
            pthread_cond_wait(&w->came, &s->lock);
            continue;
        }
        pthread_mutex_unlock(&s->lock);
        if (look(w, &job, &found, &err))
            log_warn("datanets", "a text is not compared with others: %s", err.text);
        pthread_mutex_lock(&s->lock);
        finish(w, &job, &found);
        datanet_release(job.d);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

static void forget(struct datanet_store *s)
{
    struct near_watch *w = s->near;
    pthread_cond_destroy(&w->came);
    near_free(w->near);
    mem_free(w->seen);
    buf_fini(&w->text);
    buf_fini(&w->words);
    mem_free(w);
    s->near = NULL;
}

void store_near_came(struct datanet_store *s, struct store_list *h, uint32_t place)
{
    h->head.waiting++;
    h->cursor = MIN(h->cursor, place);
    pthread_cond_signal(&s->near->came);
}

enum status store_near_start(struct datanet_store *s, struct errtext *err)
{
    struct near_watch *w = mem_alloc(sizeof(*w));
    enum status st = near_create(&w->near, SHINGLES_MAX, err);
    if (st) {
        mem_free(w);
        return st;
    }
    w->store = s;
    buf_init(&w->text, 4 * (size_t)DOCUMENT_BYTES_MAX);
    buf_init(&w->words, 8 * (size_t)DOCUMENT_BYTES_MAX);
    thread_cond_init(&w->came);
    s->near = w;
    st = thread_start(&w->thread, "datanets", watch_near, w, err);
    if (st)
        forget(s);
    return st;
}

void store_near_stop(struct datanet_store *s)
{
    struct near_watch *w = s->near;
    if (!w)
        return;
    pthread_mutex_lock(&s->lock);
    w->stop = true;
    pthread_cond_signal(&w->came);
    pthread_mutex_unlock(&s->lock);
    pthread_join(w->thread, NULL);
    forget(s);
}
