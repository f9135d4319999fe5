/* How memory is shared out where the configuration leaves it open, and how many adapters that
 * holds. Main thread, before the parts are made. */
#ifndef RS_SERVER_MEMORY_H
#define RS_SERVER_MEMORY_H

#include "kernels/backend.h"
#include "server/base/buf.h"
#include "server/config.h"
#include "server/model/model.h"

/* The adapters' pool on a device: as configured, else a quarter of what the base leaves. 0 where
 * the backend is none. Errors: TOO_LARGE if base and pool do not fit, with the numbers. */
MUST_CHECK enum status memory_adapter_pool(uint64_t *bytes, const struct config *c,
                                           const struct model *m, const struct backend *b,
                                           struct errtext *err);
/* Bytes of memory for adapters. */
uint64_t memory_host_adapters(const struct config *c);
/* KV cache: as configured; else what seqs_max contexts need, at most a quarter of the machine's
 * memory; on a device 0, and the engine takes what is left. */
uint64_t memory_kv(const struct config *c, const struct model *m, const struct backend *b,
                   uint32_t context);
/* Rows of a step: as configured; else so many that prompts have room beside a full house. */
uint32_t memory_rows(const struct config *c, const struct backend *b);
/* Bytes of an adapter of all linear layers with one rank, in the backend's form. */
uint64_t memory_adapter_bytes(const struct model *m, const struct backend *b, uint32_t rank);
/* The table of --plan: how many such adapters of which rank fit. */
void memory_print_adapters(struct buf *out, const struct config *c, const struct model *m,
                           const struct backend *b, uint64_t pool_bytes);

#endif
