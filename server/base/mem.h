/* The only file that calls malloc. Two families: mem_alloc for our own sizes (a failure is a panic
 * with a report) and mem_try_* for sizes a client or a file controls (a failure is NULL, and
 * becomes STATUS_NO_MEMORY). Memory is zeroed. mem_free(NULL) is fine. After mem_seal_thread() the
 * calling thread must not allocate: mem_* panics, and the test allocator (tests/lib/alloc_guard.c)
 * sees the same flag through mem_thread_is_sealed() and panics for allocations inside libraries
 * too. Thread: any. */
#ifndef RS_BASE_MEM_H
#define RS_BASE_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

void *mem_alloc(size_t bytes);
void *mem_array(size_t count, size_t item_bytes); /* overflow-checked, zeroed */
void *mem_try_alloc(size_t bytes);
void *mem_try_array(size_t count, size_t item_bytes);
/* Grow or shrink; new bytes are NOT zeroed; NULL on failure with the old block intact. */
void *mem_try_realloc(void *p, size_t bytes);
char *mem_strdup(const char *s);
char *mem_try_strndup(const char *s, size_t len);
void mem_free(void *p);

/* 64-byte aligned, zeroed, panics on failure; freed with mem_free_aligned. Large blocks ask for
 * huge pages. */
void *mem_alloc_aligned(size_t bytes);
void *mem_try_alloc_aligned(size_t bytes);
void mem_free_aligned(void *p, size_t bytes);

/* Overwrite with zeros in a way the compiler keeps; for secrets, before mem_free. */
void mem_wipe(void *p, size_t bytes);

/* Bytes of the machine's memory; 0: the system does not say. */
uint64_t mem_machine_bytes(void);
/* Bytes of it that new work could have now, clean pages of files counted in, within the control
 * group's bound; 0: the system does not say. */
uint64_t mem_available_bytes(void);

void mem_seal_thread(void);
void mem_unseal_thread(void);
bool mem_thread_is_sealed(void);

#ifdef __cplusplus
}
#endif

#endif
