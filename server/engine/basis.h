/* Bases of sketches (kernels/head.h): one for each index that is in use, in a pool of the backend's
 * memory that the engine takes at start, and the budget of the keys that requests keep beside their
 * tokens. A basis is immutable and counted; its place is another's as soon as nobody refers to it:
 * whoever uses one holds a reference (a request its own, a score_job's owner until it is done), and
 * work on a device is in order.
 *
 * Thread    any, but for basis_ready: the engine's. Bases may outlive the engine. */
#ifndef RS_ENGINE_BASIS_H
#define RS_ENGINE_BASIS_H

#include "kernels/backend.h"

struct engine_basis;
struct basis_pool;

struct engine_basis *engine_basis_ref(struct engine_basis *b);
void engine_basis_release(struct engine_basis *b); /* NULL is fine */

/* Bytes of keys_bytes_max; false: as many are not left. */
bool basis_keys_take(struct engine_basis *b, uint64_t bytes);
void basis_keys_give(struct engine_basis *b, uint64_t bytes);

/* ---- the engine's ---- */

struct basis_pool_options {
    void *memory; /* the backend's: places x basis_place_bytes; stays the caller's */
    uint32_t places, d_model;
    bool is_device;
    uint64_t keys_bytes_max;
};

uint64_t basis_place_bytes(uint32_t d_model);
struct basis_pool *basis_pool_create(const struct basis_pool_options *opt);
/* No more bases are made; those that are left keep what they need of the pool. */
void basis_pool_release(struct basis_pool *p);
/* Errors: FULL past basis_bytes_max, NO_MEMORY. */
MUST_CHECK enum status basis_create(struct basis_pool *p, struct engine_basis **out,
                                    const uint16_t *w, const float *bias, struct errtext *err);
/* In the backend's memory from here on. Engine thread. */
MUST_CHECK enum status basis_ready(struct engine_basis *b, struct backend *backend);
const struct sketch_basis *basis_view(const struct engine_basis *b);

#endif
