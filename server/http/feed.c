/* See feed.h. A feed is in the list while its connection holds the exchange, so whoever finds it
 * there may wake it. */
#include "server/http/feed.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/mem.h"
#include "server/http/state.h"

#include <stdio.h>
#include <string.h>

void feeds_init(struct feeds *f)
{
    f->first = NULL;
    CHECK(pthread_mutex_init(&f->lock, NULL) == 0);
}

void feeds_fini(struct feeds *f)
{
    CHECK(!f->first);
    pthread_mutex_destroy(&f->lock);
}

bool feed_begin(struct exchange *x, const char *topic, feed_fill_fn *fill)
{
    struct feeds *all = &x->server->feeds;
    struct feed *f = mem_try_alloc(sizeof(*f));
    if (!f)
        return false;
    snprintf(f->topic, sizeof(f->topic), "%s", topic);
    f->fill = fill;
    f->x = x;
    atomic_init(&f->last_ns, clock_mono_ns());
    pthread_mutex_lock(&all->lock);
    f->next = all->first;
    if (all->first)
        all->first->prev = f;
    all->first = f;
    pthread_mutex_unlock(&all->lock);
    x->feed = f;
    return true;
}

void feed_end(struct feeds *all, struct feed *f)
{
    if (!f)
        return;
    pthread_mutex_lock(&all->lock);
    if (f->prev)
        f->prev->next = f->next;
    else
        all->first = f->next;
    if (f->next)
        f->next->prev = f->prev;
    pthread_mutex_unlock(&all->lock);
    mem_free(f);
}

void feed_fill(struct exchange *x)
{
    static const char ping[] = ": still here\n\n";
    struct feed *f = x->feed;
    size_t before = x->out.len;
    f->ended = f->fill(f, x, &x->out);
    if (atomic_exchange(&x->ping, false) && x->out.len == before && !f->ended)
        buf_put(&x->out, ping, sizeof(ping) - 1);
    if (x->out.len > before)
        atomic_store(&f->last_ns, clock_mono_ns());
}

void feeds_wake(struct feeds *all, const char *topic)
{
    pthread_mutex_lock(&all->lock);
    for (struct feed *f = all->first; f; f = f->next) {
        if (strcmp(f->topic, topic) == 0)
            watch_wake(f->x->watch, f->x);
    }
    pthread_mutex_unlock(&all->lock);
}

bool feed_is_idle_since(const struct feed *f, uint64_t ns)
{
    return atomic_load(&f->last_ns) < ns;
}
