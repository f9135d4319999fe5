/* The base where the ops compute: on a backend in host memory the model as it was loaded, on a
 * device a copy of its weights in one block, uploaded once. Matrices begin at 256 bytes and rows at
 * 16; those of a group that share an input (q,k,v | gate,up) follow each other without a gap, so
 * that a library may take them as one. Where a backend in host memory packs matrices
 * (backend_ops.pack), products read the packed copies; all else, the backward pass too, still reads
 * the rows as mapped, so those of the embedding stay in use and the others' pages are the system's
 * to drop.
 *
 * Thread    the creator's, then the engine's. Model and backend outlive it. */
#ifndef RS_ENGINE_RESIDENT_H
#define RS_ENGINE_RESIDENT_H

#include "kernels/backend.h"
#include "server/model/model.h"

struct resident;

/* Bytes on a device. */
uint64_t resident_bytes(const struct model *m);
/* Bytes of the packed copies on a backend in host memory; 0: it packs nothing. */
uint64_t resident_packed_bytes(const struct model *m, struct backend *b);
/* block: resident_bytes of the backend's memory, 256-byte aligned, or on a backend in
 * host memory resident_packed_bytes, 64-byte aligned, or NULL: nothing is packed. It stays the
 * caller's. Errors: IO from the device. */
MUST_CHECK enum status resident_create(struct resident **out, const struct model *m,
                                       struct backend *b, void *block, struct errtext *err);
/* For who plans no memory, on a backend in host memory: the packed copies are its own, where twice
 * as much memory is available; else nothing is packed. The same bits either way. */
struct resident *resident_create_own(const struct model *m, struct backend *b);
/* The model with weights that the ops can read; its texts and tokenizer are the original's. */
const struct model *resident_model(const struct resident *r);
void resident_destroy(struct resident *r);

#endif
