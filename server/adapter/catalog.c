/* A name-sorted array of references under one lock. Thousands of names, looked up by binary search;
 * inserts move pointers, which at 10 000 names costs microseconds and happens only when someone
 * registers. Lookups by content scan: they serve administration and the recorder, not the request
 * path. Refusals are a list of their own, looked at where a name was not found. */
#include "server/adapter/catalog.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/mem.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

struct catalog {
    pthread_mutex_t lock;
    struct adapter_entry **entry; /* [count] by name */
    uint32_t count, count_max;
    struct catalog_refusal **refusal; /* [refused] */
    uint32_t refused;
    char reserved[4][CATALOG_NAME_MAX + 1];
    uint32_t reserved_count;
};

const char *adapter_state_name(enum adapter_state s)
{
    static const char *const names[ADAPTER_STATE_COUNT] = {
        [ADAPTER_DISK] = "disk",         [ADAPTER_REQUESTED] = "requested",
        [ADAPTER_FETCHING] = "fetching", [ADAPTER_VERIFYING] = "verifying",
        [ADAPTER_HOST] = "host",         [ADAPTER_DEVICE] = "device",
        [ADAPTER_DRAINING] = "draining", [ADAPTER_FAILED] = "failed",
    };
    return (unsigned)s < ADAPTER_STATE_COUNT ? names[s] : "unknown";
}

struct catalog *catalog_create(uint32_t adapters_max)
{
    struct catalog *c = mem_alloc(sizeof(*c));
    c->entry = mem_array(adapters_max ? adapters_max : 1, sizeof(struct adapter_entry *));
    c->refusal = mem_array(adapters_max ? adapters_max : 1, sizeof(struct catalog_refusal *));
    c->count_max = adapters_max;
    CHECK(pthread_mutex_init(&c->lock, NULL) == 0);
    return c;
}

void catalog_destroy(struct catalog *c)
{
    if (!c)
        return;
    for (uint32_t i = 0; i < c->count; i++)
        catalog_release(c->entry[i]);
    for (uint32_t i = 0; i < c->refused; i++)
        mem_free(c->refusal[i]);
    pthread_mutex_destroy(&c->lock);
    mem_free(c->refusal);
    mem_free(c->entry);
    mem_free(c);
}

struct adapter_entry *catalog_entry_new(void)
{
    struct adapter_entry *e = mem_alloc(sizeof(*e));
    atomic_init(&e->refs, 1);
    return e;
}

void catalog_release(struct adapter_entry *e)
{
    /* acq_rel: the last owner must see every write of the others before it frees */
    if (!e || atomic_fetch_sub_explicit(&e->refs, 1, memory_order_acq_rel) != 1)
        return;
    chat_own_release(e->chat);
    mem_free(e->dir);
    mem_free(e);
}

static struct adapter_entry *take_ref(struct adapter_entry *e)
{
    atomic_fetch_add_explicit(&e->refs, 1, memory_order_relaxed);
    return e;
}

/* Index of name, or of where it would stand; found says which. */
static uint32_t locate(const struct catalog *c, const char *name, bool *found)
{
    uint32_t lo = 0, hi = c->count;
    *found = false;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        int order = strcmp(c->entry[mid]->name, name);
        if (order == 0) {
            *found = true;
            return mid;
        }
        if (order < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

enum status catalog_check_name(const struct catalog *c, const char *name, struct errtext *err)
{
    static const char allowed[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._/-";
    size_t len = strlen(name);
    if (len == 0 || len > CATALOG_NAME_MAX || strspn(name, allowed) != len)
        return err_param(err, STATUS_INVALID, "lora_name",
                         "adapter name '%.64s': expected 1 to %d characters of A-Z a-z 0-9 . _ / -",
                         name, CATALOG_NAME_MAX);
    for (uint32_t i = 0; i < c->reserved_count; i++) {
        if (strcmp(c->reserved[i], name) == 0)
            return err_param(err, STATUS_INVALID, "lora_name",
                             "adapter name '%s': this is the base model's name, choose another",
                             name);
    }
    return STATUS_OK;
}

static enum status put_locked(struct catalog *c, struct adapter_entry *e, bool replace,
                              struct adapter_entry **old, struct errtext *err)
{
    bool found;
    uint32_t at = locate(c, e->name, &found);
    if (found && memcmp(c->entry[at]->id, e->id, 32) == 0 && !replace)
        return STATUS_OK;
    if (found && !replace)
        return err_param(err, STATUS_EXISTS, "lora_name",
                         "adapter '%s' is already registered with other content; replace it in "
                         "place or unload it first",
                         e->name);
    if (found) {
        *old = c->entry[at];
        c->entry[at] = take_ref(e);
        return STATUS_OK;
    }
    if (c->count == c->count_max)
        return err_set(err, STATUS_FULL,
                       "adapter '%s': %u are registered, the maximum (adapters_registered_max)",
                       e->name, c->count);
    memmove(c->entry + at + 1, c->entry + at, (c->count - at) * sizeof(struct adapter_entry *));
    c->entry[at] = take_ref(e);
    c->count++;
    return STATUS_OK;
}

/* Index of the refusal of name, or refused. */
static uint32_t refusal_of(const struct catalog *c, const char *name)
{
    uint32_t i = 0;
    while (i < c->refused && strncmp(c->refusal[i]->name, name, CATALOG_NAME_MAX) != 0)
        i++;
    return i;
}

static void forget_refusal(struct catalog *c, const char *name)
{
    uint32_t at = refusal_of(c, name);
    if (at == c->refused)
        return;
    mem_free(c->refusal[at]);
    c->refused--;
    memmove(c->refusal + at, c->refusal + at + 1,
            (c->refused - at) * sizeof(struct catalog_refusal *));
}

enum status catalog_put(struct catalog *c, struct adapter_entry *e, bool replace,
                        struct adapter_entry **old, struct errtext *err)
{
    *old = NULL;
    enum status st = catalog_check_name(c, e->name, err);
    if (st)
        return st;
    pthread_mutex_lock(&c->lock);
    st = put_locked(c, e, replace, old, err);
    if (!st)
        forget_refusal(c, e->name);
    pthread_mutex_unlock(&c->lock);
    return st;
}

struct adapter_entry *catalog_remove(struct catalog *c, const char *name)
{
    bool found;
    struct adapter_entry *e = NULL;
    pthread_mutex_lock(&c->lock);
    uint32_t at = locate(c, name, &found);
    if (found) {
        e = c->entry[at];
        c->count--;
        memmove(c->entry + at, c->entry + at + 1, (c->count - at) * sizeof(struct adapter_entry *));
    }
    pthread_mutex_unlock(&c->lock);
    return e;
}

struct adapter_entry *catalog_find(struct catalog *c, const char *name)
{
    bool found;
    pthread_mutex_lock(&c->lock);
    uint32_t at = locate(c, name, &found);
    struct adapter_entry *e = found ? take_ref(c->entry[at]) : NULL;
    pthread_mutex_unlock(&c->lock);
    return e;
}

struct adapter_entry *catalog_find_id(struct catalog *c, const uint8_t id[32])
{
    struct adapter_entry *e = NULL;
    pthread_mutex_lock(&c->lock);
    for (uint32_t i = 0; i < c->count && !e; i++) {
        if (memcmp(c->entry[i]->id, id, 32) == 0)
            e = take_ref(c->entry[i]);
    }
    pthread_mutex_unlock(&c->lock);
    return e;
}

uint32_t catalog_count(struct catalog *c)
{
    pthread_mutex_lock(&c->lock);
    uint32_t count = c->count;
    pthread_mutex_unlock(&c->lock);
    return count;
}

void catalog_each(struct catalog *c, bool (*visit)(void *arg, struct adapter_entry *e), void *arg)
{
    pthread_mutex_lock(&c->lock);
    uint32_t count = c->count;
    struct adapter_entry **snapshot = mem_array(count ? count : 1, sizeof(struct adapter_entry *));
    for (uint32_t i = 0; i < count; i++)
        snapshot[i] = take_ref(c->entry[i]);
    pthread_mutex_unlock(&c->lock);
    bool go_on = true;
    for (uint32_t i = 0; i < count; i++) {
        if (go_on)
            go_on = visit(arg, snapshot[i]);
        catalog_release(snapshot[i]);
    }
    mem_free(snapshot);
}

void catalog_refuse(struct catalog *c, const char *name, const struct errtext *why)
{
    struct catalog_refusal *r = mem_alloc(sizeof(*r));
    snprintf(r->name, sizeof(r->name), "%s", name);
    r->why = *why;
    r->unix_s = (int64_t)(clock_wall_ms() / 1000);
    pthread_mutex_lock(&c->lock);
    forget_refusal(c, name);
    if (c->refused < c->count_max)
        c->refusal[c->refused++] = r;
    else
        mem_free(r);
    pthread_mutex_unlock(&c->lock);
}

bool catalog_find_refusal(struct catalog *c, const char *name, struct catalog_refusal *out)
{
    pthread_mutex_lock(&c->lock);
    uint32_t at = refusal_of(c, name);
    bool found = at < c->refused;
    if (found)
        *out = *c->refusal[at];
    pthread_mutex_unlock(&c->lock);
    return found;
}

uint32_t catalog_refused_count(struct catalog *c)
{
    pthread_mutex_lock(&c->lock);
    uint32_t count = c->refused;
    pthread_mutex_unlock(&c->lock);
    return count;
}

void catalog_each_refusal(struct catalog *c,
                          void (*visit)(void *arg, const struct catalog_refusal *r), void *arg)
{
    pthread_mutex_lock(&c->lock);
    uint32_t count = c->refused;
    struct catalog_refusal *snapshot = mem_array(count ? count : 1, sizeof(*snapshot));
    for (uint32_t i = 0; i < count; i++)
        snapshot[i] = *c->refusal[i];
    pthread_mutex_unlock(&c->lock);
    for (uint32_t i = 0; i < count; i++)
        visit(arg, &snapshot[i]);
    mem_free(snapshot);
}

void catalog_reserve_name(struct catalog *c, const char *name)
{
    CHECK(c->reserved_count < ARRAY_COUNT(c->reserved) && strlen(name) <= CATALOG_NAME_MAX);
    memcpy(c->reserved[c->reserved_count++], name, strlen(name) + 1);
}
