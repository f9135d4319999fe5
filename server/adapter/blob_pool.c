/* Runs of granules in the order of their addresses, free ones between taken ones: a take splits the
 * shortest free run that is long enough, a give joins its neighbours. There are never more than
 * 2 x blobs_max + 1 runs, so the table never grows. */
#include "server/adapter/blob_pool.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <string.h>

#define NOBODY UINT32_MAX

struct run {
    uint64_t at, count; /* granules */
    uint32_t owner;     /* NOBODY: free */
};

/* Runs in order of address, without holes; two free ones are never neighbours, so there are at most
 * one more free than used. */
struct blob_pool {
    char *base;
    uint64_t granule, count, used;
    struct run *run;
    uint32_t run_count, runs_max;
};

struct blob_pool *blob_pool_create(void *base, uint64_t bytes, uint64_t granule, uint32_t blobs_max)
{
    struct blob_pool *p = mem_alloc(sizeof(*p));
    p->base = base;
    p->granule = granule;
    p->count = bytes / granule;
    p->runs_max = 2 * blobs_max + 1;
    p->run = mem_array(p->runs_max, sizeof(*p->run));
    if (p->count > 0)
        p->run[p->run_count++] = (struct run){.count = p->count, .owner = NOBODY};
    return p;
}

void blob_pool_destroy(struct blob_pool *p)
{
    if (!p)
        return;
    mem_free(p->run);
    mem_free(p);
}

static uint64_t granules(const struct blob_pool *p, uint64_t bytes)
{
    return bytes / p->granule + (bytes % p->granule > 0) + (bytes == 0);
}

static uint32_t best_fit(const struct blob_pool *p, uint64_t count)
{
    uint32_t best = NOBODY;
    for (uint32_t i = 0; i < p->run_count; i++) {
        const struct run *r = &p->run[i];
        if (r->owner == NOBODY && r->count >= count &&
            (best == NOBODY || r->count < p->run[best].count))
            best = i;
    }
    return best;
}

void *blob_pool_take(struct blob_pool *p, uint64_t bytes, uint32_t owner)
{
    uint64_t count = granules(p, bytes);
    uint32_t i = best_fit(p, count);
    CHECK(owner != NOBODY);
    if (i == NOBODY)
        return NULL;
    struct run *r = &p->run[i];
    if (r->count > count) {
        CHECK(p->run_count < p->runs_max);
        memmove(r + 2, r + 1, (p->run_count - i - 1) * sizeof(*r));
        r[1] = (struct run){.at = r->at + count, .count = r->count - count, .owner = NOBODY};
        p->run_count++;
    }
    r->count = count;
    r->owner = owner;
    p->used += count;
    return p->base + r->at * p->granule;
}

static void run_remove(struct blob_pool *p, uint32_t i)
{
    p->run_count--;
    memmove(&p->run[i], &p->run[i + 1], (p->run_count - i) * sizeof(*p->run));
}

void blob_pool_give(struct blob_pool *p, void *blob)
{
    uint64_t at = (uint64_t)((char *)blob - p->base) / p->granule;
    uint32_t i = 0;
    while (i < p->run_count && p->run[i].at != at)
        i++;
    CHECK(i < p->run_count && p->run[i].owner != NOBODY);
    p->used -= p->run[i].count;
    p->run[i].owner = NOBODY;
    if (i + 1 < p->run_count && p->run[i + 1].owner == NOBODY) {
        p->run[i].count += p->run[i + 1].count;
        run_remove(p, i + 1);
    }
    if (i > 0 && p->run[i - 1].owner == NOBODY) {
        p->run[i - 1].count += p->run[i].count;
        run_remove(p, i);
    }
}

uint64_t blob_pool_used(const struct blob_pool *p)
{
    return p->used * p->granule;
}

uint64_t blob_pool_bytes(const struct blob_pool *p)
{
    return p->count * p->granule;
}

uint64_t blob_pool_round(const struct blob_pool *p, uint64_t bytes)
{
    return granules(p, bytes) * p->granule;
}

bool blob_pool_could_hold(const struct blob_pool *p, uint64_t bytes,
                          bool (*stays)(const void *arg, uint32_t owner), const void *arg)
{
    uint64_t need = granules(p, bytes), span = 0;
    for (uint32_t i = 0; i < p->run_count; i++) {
        const struct run *r = &p->run[i];
        bool held = r->owner != NOBODY && stays(arg, r->owner);
        span = held ? 0 : span + r->count;
        if (span >= need)
            return true;
    }
    return false;
}
