/* The entries that records name, and what hangs on them. A key is what is asked about and a t0, so
 * that sorting the keys gives each history its seconds in order. A history is walked from its end:
 * the entry at the latest t0, then the one before, for as long as some t0 is less than 600 seconds
 * past what has been reached; stretches that no record names are stepped over. */
#include "chain_client/settle/compute.h"
#include "chain_client/settle/keyset.h"
#include "chain_client/settle/snapshot.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <stdlib.h>
#include <string.h>

#define ITEMS_MAX (1u << 20) /* adapters, tariffs or versions that one epoch names */

static enum status no_memory(struct errtext *err)
{
    return err_set(err, STATUS_NO_MEMORY, "no memory for what an epoch names");
}

/* ---- histories ---- */

static bool push_terms(struct snapshot *s, const struct reward_terms *entry)
{
    if (s->terms_count == s->terms_cap) {
        size_t cap = s->terms_cap ? 2 * s->terms_cap : 64;
        void *more = mem_try_realloc(s->terms, cap * sizeof(*s->terms));
        if (!more)
            return false;
        s->terms = more;
        s->terms_cap = cap;
    }
    s->terms[s->terms_count++] = *entry;
    return true;
}

static void reverse(struct reward_terms *entry, size_t count)
{
    for (size_t i = 0; i < count / 2; i++) {
        struct reward_terms t = entry[i];
        entry[i] = entry[count - 1 - i];
        entry[count - 1 - i] = t;
    }
}

enum status snapshot_history(struct snapshot *s, struct snapshot_run *run,
                             const struct snapshot_asker *asker, const uint64_t *t0, size_t count,
                             struct errtext *err)
{
    enum status st = STATUS_OK;
    *run = (struct snapshot_run){.first = s->terms_count};
    for (uint64_t at = t0[count - 1]; !st;) {
        struct reward_terms entry = {0};
        bool found = false;
        st = asker->ask(asker->arg, at, &entry, &found, err);
        if (st || !found)
            break;
        if (entry.active_at > at)
            return err_set(err, STATUS_CORRUPT, "the registry's entry at a second begins later");
        if (!push_terms(s, &entry))
            return no_memory(err);
        while (count && t0[count - 1] >= entry.active_at + REWARD_NAMED_S)
            count--;
        if (!count || !entry.active_at)
            break;
        at = MIN(entry.active_at - 1, t0[count - 1]);
    }
    run->count = s->terms_count - run->first;
    if (run->count)
        reverse(s->terms + run->first, run->count);
    return st;
}

/* The seconds at the end of keys [*at, ..) that begin with the same `head` bytes; *at moves on. */
static uint64_t *take_seconds(const struct keyset *asked, size_t *at, size_t head, size_t *count)
{
    const uint8_t *first = keyset_at(asked, *at);
    size_t end = *at;
    while (end < asked->count && memcmp(keyset_at(asked, end), first, head) == 0)
        end++;
    *count = end - *at;
    uint64_t *t0 = mem_try_array(*count, sizeof(*t0));
    for (size_t i = 0; t0 && i < *count; i++)
        t0[i] = (uint64_t)be_get(keyset_at(asked, *at + i) + head, 8);
    *at = end;
    return t0;
}

struct question {
    struct view *v;
    const uint8_t *id;
    uint32_t lane;
    const struct registry_terms *at_t; /* of an adapter; every question is of T or before */
};

static enum status ask_terms(void *arg, uint64_t t, struct reward_terms *entry, bool *found,
                             struct errtext *err)
{
    const struct question *q = arg;
    struct registry_terms r = *q->at_t;
    enum status st = STATUS_OK;
    if (t <
        r.active_at) /* else what is in force at T was so then: most adapters cost no question */
        st = registry_adapter_at(&q->v->registry, "finalized", q->id, t, &r, err);
    *found = r.registered;
    *entry = (struct reward_terms){r.active_at, r.datanet_version, r.price_in, r.price_out};
    return st;
}

static enum status ask_tariff(void *arg, uint64_t t, struct reward_terms *entry, bool *found,
                              struct errtext *err)
{
    const struct question *q = arg;
    struct registry_tariff r;
    enum status st = registry_tariff_at(&q->v->registry, "finalized", q->lane, q->id, t, &r, err);
    *found = r.active_at != 0;
    *entry = (struct reward_terms){r.active_at, 0, r.price_in, r.price_out};
    return st;
}

static size_t count_heads(const struct keyset *asked, size_t head)
{
    size_t n = 0;
    for (size_t i = 0; i < asked->count; i++)
        n += !i || memcmp(keyset_at(asked, i - 1), keyset_at(asked, i), head) != 0;
    return n;
}

/* ---- tariffs: lane 4, model 32, t0 8 ---- */

static enum status read_tariffs(struct snapshot *s, const struct keyset *asked, struct view *v,
                                struct errtext *err)
{
    enum status st = STATUS_OK;
    s->tariff = mem_try_array(count_heads(asked, 36) + 1, sizeof(*s->tariff));
    if (!s->tariff)
        return no_memory(err);
    for (size_t at = 0; at < asked->count && !st;) {
        struct snapshot_tariff *t = &s->tariff[s->tariff_count++];
        const uint8_t *key = keyset_at(asked, at);
        size_t count = 0;
        t->lane = (uint32_t)be_get(key, 4);
        memcpy(t->model_id, key + 4, 32);
        struct question q = {.v = v, .id = t->model_id, .lane = t->lane};
        struct snapshot_asker asker = {ask_tariff, &q};
        uint64_t *t0 = take_seconds(asked, &at, 36, &count);
        st = t0 ? snapshot_history(s, &t->named, &asker, t0, count, err) : no_memory(err);
        mem_free(t0);
    }
    return st;
}

/* ---- adapters: id 32, t0 8; and their ancestors ---- */

static int order_adapters(const void *a, const void *b)
{
    return memcmp(a, b, 32); /* the id stands first */
}

static struct snapshot_adapter *find_adapter(const struct snapshot *s, size_t count,
                                             const uint8_t *id)
{
    return count ? bsearch(id, s->adapter, count, sizeof(*s->adapter), order_adapters) : NULL;
}

/* Append the adapters of `ids` that are not among the first `sorted`, as they stand at T. */
static enum status add_adapters(struct snapshot *s, const struct keyset *ids, struct view *v,
                                struct errtext *err)
{
    size_t sorted = s->adapter_count;
    enum status st = STATUS_OK;
    if (sorted + ids->count > ITEMS_MAX)
        return err_set(err, STATUS_TOO_LARGE, "an epoch names more than %u adapters", ITEMS_MAX);
    void *more = mem_try_realloc(s->adapter, (sorted + ids->count + 1) * sizeof(*s->adapter));
    if (!more)
        return no_memory(err);
    s->adapter = more;
    for (size_t i = 0; i < ids->count && !st; i++) {
        if (find_adapter(s, sorted, keyset_at(ids, i)))
            continue;
        struct snapshot_adapter *a = &s->adapter[s->adapter_count++];
        *a = (struct snapshot_adapter){0};
        memcpy(a->id, keyset_at(ids, i), 32);
        st = registry_adapter_at(&v->registry, "finalized", a->id, s->at, &a->at_t, err);
        if (!a->at_t.registered)
            a->at_t = (struct registry_terms){0};
    }
    if (s->adapter_count > sorted)
        qsort(s->adapter, s->adapter_count, sizeof(*s->adapter), order_adapters);
    return st;
}

static enum status read_ancestors(struct snapshot *s, struct view *v, struct errtext *err)
{
    enum status st = STATUS_OK;
    for (size_t before = 0; before < s->adapter_count && !st;) {
        struct keyset parents = {.width = 32};
        bool good = true;
        before = s->adapter_count;
        for (size_t i = 0; i < before; i++)
            for (size_t k = 0; k < s->adapter[i].at_t.parent_count; k++)
                good = good && keyset_add(&parents, s->adapter[i].at_t.parent[k].adapter_id);
        keyset_sort(&parents);
        st = good ? add_adapters(s, &parents, v, err) : no_memory(err);
        keyset_fini(&parents);
    }
    return st;
}

static enum status read_adapters(struct snapshot *s, const struct keyset *asked, struct view *v,
                                 struct errtext *err)
{
    struct keyset ids = {.width = 32};
    bool good = true;
    for (size_t i = 0; i < asked->count; i++)
        good = good && keyset_add(&ids, keyset_at(asked, i));
    keyset_sort(&ids);
    enum status st = good ? add_adapters(s, &ids, v, err) : no_memory(err);
    keyset_fini(&ids);
    if (!st)
        st = read_ancestors(s, v, err);
    for (size_t at = 0; at < asked->count && !st;) {
        struct snapshot_adapter *a = find_adapter(s, s->adapter_count, keyset_at(asked, at));
        struct question q = {.v = v, .id = a->id, .at_t = &a->at_t};
        struct snapshot_asker asker = {ask_terms, &q};
        size_t count = 0;
        uint64_t *t0 = take_seconds(asked, &at, 32, &count);
        st = t0 ? STATUS_OK : no_memory(err);
        if (!st && a->at_t.registered)
            st = snapshot_history(s, &a->named, &asker, t0, count, err);
        mem_free(t0);
    }
    return st;
}

/* ---- datanet versions and methods ---- */

static enum status read_versions(struct snapshot *s, struct view *v, struct errtext *err)
{
    struct keyset keys = {.width = 40};
    bool good = true;
    for (size_t i = 0; i < s->adapter_count; i++) {
        const struct snapshot_adapter *a = &s->adapter[i];
        for (size_t k = 0; k < a->named.count; k++) {
            uint8_t key[40];
            uint64_t version = s->terms[a->named.first + k].datanet_version;
            memcpy(key, a->at_t.datanet_id, 32);
            be_put(key + 32, version, 8);
            good = good && (!version || keyset_add(&keys, key));
        }
    }
    keyset_sort(&keys);
    s->version = mem_try_array(keys.count + 1, sizeof(*s->version));
    enum status st = good && s->version ? STATUS_OK : no_memory(err);
    for (size_t i = 0; i < keys.count && !st; i++) {
        struct snapshot_version *d = &s->version[s->version_count++];
        memcpy(d->datanet_id, keyset_at(&keys, i), 32);
        d->version = (uint64_t)be_get(keyset_at(&keys, i) + 32, 8);
        st = registry_datanet_version(&v->registry, "finalized", d->datanet_id, d->version,
                                      &d->found, err);
    }
    keyset_fini(&keys);
    return st;
}

static enum status read_methods(struct snapshot *s, const struct keyset *hashes, struct view *v,
                                struct errtext *err)
{
    enum status st = STATUS_OK;
    s->method = mem_try_array(hashes->count + 1, sizeof(*s->method));
    if (!s->method)
        return no_memory(err);
    for (size_t i = 0; i < hashes->count && !st; i++) {
        struct reward_method *m = &s->method[s->method_count++];
        memcpy(m->hash, keyset_at(hashes, i), 32);
        st = registry_method_registered_at(&v->registry, "finalized", m->hash, &m->registered_at,
                                           err);
        if (m->registered_at > s->at)
            m->registered_at = 0;
    }
    return st;
}

/* ---- all of it ---- */

struct asked {
    struct keyset tariff, terms, method;
};

static bool collect_record(struct asked *a, const struct reward_record *r)
{
    uint8_t key[44];
    be_put(key, r->lane, 4);
    memcpy(key + 4, r->model_id, 32);
    be_put(key + 36, r->t0, 8);
    bool good = keyset_add(&a->tariff, key);
    for (size_t k = 0; k + 36 <= r->set.len; k += 36) {
        memcpy(key, r->set.data + k, 32);
        be_put(key + 32, r->t0, 8);
        good = good && keyset_add(&a->terms, key);
    }
    return good;
}

enum status snapshot_read_named(struct snapshot *s, const struct compute *c, struct view *v,
                                struct errtext *err)
{
    struct asked a = {.tariff = {.width = 44}, .terms = {.width = 40}, .method = {.width = 32}};
    bool good = true;
    for (size_t i = 0; i < c->record_count; i++)
        good = good && collect_record(&a, &c->record[i]);
    for (size_t i = 0; i < c->evidence_count; i++)
        if (reward_named_by(c->record, c->record_count, &c->evidence[i]))
            good = good && keyset_add(&a.method, c->evidence[i].method_hash);
    keyset_sort(&a.tariff);
    keyset_sort(&a.terms);
    keyset_sort(&a.method);
    enum status st = good ? read_tariffs(s, &a.tariff, v, err) : no_memory(err);
    if (!st)
        st = read_adapters(s, &a.terms, v, err);
    if (!st)
        st = read_versions(s, v, err);
    if (!st)
        st = read_methods(s, &a.method, v, err);
    keyset_fini(&a.tariff);
    keyset_fini(&a.terms);
    keyset_fini(&a.method);
    return st;
}
