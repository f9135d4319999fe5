/* Places of one size and a stack of the free ones. On a host backend a basis is written where it
 * will be read, by whoever makes it; a device belongs to the engine thread, so there the bytes wait
 * in memory until a step needs them first. */
#include "server/engine/basis.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#define PLACE_ALIGN 256

struct basis_pool {
    struct basis_pool_options opt;
    _Atomic uint64_t keys_bytes; /* that requests hold */
    pthread_mutex_t lock;
    uint32_t *free; /* stack of places; under lock */
    uint32_t free_count;
    uint32_t refs; /* the engine's and one for each basis; under lock */
};

struct engine_basis {
    struct basis_pool *pool;
    struct sketch_basis view;
    uint32_t place;
    _Atomic uint32_t refs;
    char *waiting; /* what basis_ready writes, NULL: it is there */
    bool ready;    /* engine thread */
};

static size_t matrix_bytes(uint32_t d_model)
{
    return (size_t)SKETCH_DIM * d_model * sizeof(uint16_t);
}

uint64_t basis_place_bytes(uint32_t d_model)
{
    size_t bytes = matrix_bytes(d_model) + SKETCH_DIM * sizeof(float);
    return (bytes + PLACE_ALIGN - 1) / PLACE_ALIGN * PLACE_ALIGN;
}

struct basis_pool *basis_pool_create(const struct basis_pool_options *opt)
{
    struct basis_pool *p = mem_alloc(sizeof(*p));
    p->opt = *opt;
    p->refs = 1;
    p->free = mem_array(MAX(opt->places, 1u), sizeof(*p->free));
    while (p->free_count < opt->places) {
        p->free[p->free_count] = opt->places - 1 - p->free_count;
        p->free_count++;
    }
    CHECK(pthread_mutex_init(&p->lock, NULL) == 0);
    return p;
}

/* place UINT32_MAX: none comes back. */
static void pool_drop(struct basis_pool *p, uint32_t place)
{
    pthread_mutex_lock(&p->lock);
    if (place != UINT32_MAX)
        p->free[p->free_count++] = place;
    bool last = --p->refs == 0;
    pthread_mutex_unlock(&p->lock);
    if (!last)
        return;
    CHECK(atomic_load_explicit(&p->keys_bytes, memory_order_relaxed) == 0);
    pthread_mutex_destroy(&p->lock);
    mem_free(p->free);
    mem_free(p);
}

void basis_pool_release(struct basis_pool *p)
{
    if (p)
        pool_drop(p, UINT32_MAX);
}

static uint32_t take_place(struct basis_pool *p)
{
    uint32_t place = UINT32_MAX;
    pthread_mutex_lock(&p->lock);
    if (p->free_count > 0) {
        place = p->free[--p->free_count];
        p->refs++;
    }
    pthread_mutex_unlock(&p->lock);
    return place;
}

static void write_basis(char *to, uint32_t d_model, const uint16_t *w, const float *bias)
{
    memcpy(to, w, matrix_bytes(d_model));
    memcpy(to + matrix_bytes(d_model), bias, SKETCH_DIM * sizeof(float));
}

enum status basis_create(struct basis_pool *p, struct engine_basis **out, const uint16_t *w,
                         const float *bias, struct errtext *err)
{
    uint32_t d = p->opt.d_model, place = take_place(p);
    *out = NULL;
    if (place == UINT32_MAX)
        return err_param(err, STATUS_FULL, "basis_bytes_max",
                         "%u bases of indexes are in use, basis_bytes_max has room for no more "
                         "(%.1f KiB each); raise it, or serve fewer indexed adapters",
                         p->opt.places, (double)basis_place_bytes(d) / 1024.0);
    struct engine_basis *b = mem_try_alloc(sizeof(*b));
    char *at = (char *)p->opt.memory + place * basis_place_bytes(d);
    if (b && p->opt.is_device)
        b->waiting = mem_try_alloc(basis_place_bytes(d));
    if (!b || (p->opt.is_device && !b->waiting)) {
        mem_free(b);
        pool_drop(p, place);
        return err_set(err, STATUS_NO_MEMORY, "no memory for the basis of an index");
    }
    b->pool = p;
    b->place = place;
    b->view = (struct sketch_basis){
        (const uint16_t *)(const void *)at,
        (const float *)(const void *)(at + matrix_bytes(d)),
    };
    atomic_init(&b->refs, 1);
    write_basis(p->opt.is_device ? b->waiting : at, d, w, bias);
    b->ready = !p->opt.is_device;
    *out = b;
    return STATUS_OK;
}

struct engine_basis *engine_basis_ref(struct engine_basis *b)
{
    CHECK(atomic_fetch_add_explicit(&b->refs, 1, memory_order_relaxed) > 0);
    return b;
}

void engine_basis_release(struct engine_basis *b)
{
    if (!b || atomic_fetch_sub_explicit(&b->refs, 1, memory_order_acq_rel) > 1)
        return;
    pool_drop(b->pool, b->place);
    mem_free(b->waiting);
    mem_free(b);
}

bool basis_keys_take(struct engine_basis *b, uint64_t bytes)
{
    struct basis_pool *p = b->pool;
    uint64_t used = atomic_load_explicit(&p->keys_bytes, memory_order_relaxed);
    do {
        if (bytes > p->opt.keys_bytes_max || used > p->opt.keys_bytes_max - bytes)
            return false;
    } while (!atomic_compare_exchange_weak_explicit(&p->keys_bytes, &used, used + bytes,
                                                    memory_order_relaxed, memory_order_relaxed));
    return true;
}

void basis_keys_give(struct engine_basis *b, uint64_t bytes)
{
    uint64_t before = atomic_fetch_sub_explicit(&b->pool->keys_bytes, bytes, memory_order_relaxed);
    CHECK(before >= bytes);
}

enum status basis_ready(struct engine_basis *b, struct backend *backend)
{
    if (b->ready)
        return STATUS_OK;
    void *at = (void *)(uintptr_t)b->view.w;
    uint32_t d = b->pool->opt.d_model;
    enum status st = backend->ops->mem_write(backend, at, b->waiting,
                                             matrix_bytes(d) + SKETCH_DIM * sizeof(float));
    b->ready = st == STATUS_OK;
    return st;
}

const struct sketch_basis *basis_view(const struct engine_basis *b)
{
    return &b->view;
}
