/* The ops that a backend in host memory has nothing to do for: its memory is malloc's, and a pass
 * is its ops. Part of the tables of ref and cpu. */
#ifndef RS_KERNELS_HOST_H
#define RS_KERNELS_HOST_H

#include "kernels/backend.h"

void *host_mem_alloc(struct backend *b, size_t bytes); /* zeroed */
void host_mem_free(struct backend *b, void *p, size_t bytes);
enum status host_mem_write(struct backend *b, void *to, const void *host, size_t bytes);
enum status host_mem_read(struct backend *b, void *host, const void *from, size_t bytes);
enum status host_mem_zero(struct backend *b, void *p, size_t bytes);
size_t host_lora_scratch_bytes(const struct backend *b, const struct backend_limits *lim);
void host_mem_room(const struct backend *b, uint64_t *total, uint64_t *left);
struct backend_workspace host_workspace(const struct backend *b, const struct backend_limits *lim);
enum status host_prepare(struct backend *b, const struct backend_limits *lim, struct errtext *err);
enum status host_step(struct backend *b, const struct step_args *a);
enum status host_pass_begin(struct backend *b, const struct pass_args *a, struct pass *out);
enum status host_pass_end(struct backend *b, struct pass *p, enum status st);

#define HOST_OPS                                                                                   \
    .mem_alloc = host_mem_alloc, .mem_free = host_mem_free, .mem_write = host_mem_write,           \
    .mem_read = host_mem_read, .mem_zero = host_mem_zero,                                          \
    .lora_scratch_bytes = host_lora_scratch_bytes, .mem_room = host_mem_room,                      \
    .workspace = host_workspace, .prepare = host_prepare, .step = host_step,                       \
    .pass_begin = host_pass_begin, .pass_end = host_pass_end

#endif
