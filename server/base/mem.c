/* Counted nowhere, refused in two ways: ours dies, theirs is refused. The seal is a thread-local
 * flag, so that it costs nothing to the threads that may allocate. */
#include "server/base/mem.h"
#include "server/base/check.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HUGE_PAGE_BYTES (2u << 20)

static _Thread_local bool thread_sealed;

void mem_seal_thread(void)
{
    thread_sealed = true;
}

void mem_unseal_thread(void)
{
    thread_sealed = false;
}

bool mem_thread_is_sealed(void)
{
    return thread_sealed;
}

void *mem_try_alloc(size_t bytes)
{
    if (thread_sealed)
        PANIC("a sealed thread allocates %zu bytes", bytes);
    return calloc(1, bytes ? bytes : 1);
}

void *mem_try_array(size_t count, size_t item_bytes)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, item_bytes, &bytes))
        return NULL;
    return mem_try_alloc(bytes);
}

void *mem_alloc(size_t bytes)
{
    void *p = mem_try_alloc(bytes);
    if (!p)
        PANIC("out of memory: %zu bytes", bytes);
    return p;
}

void *mem_array(size_t count, size_t item_bytes)
{
    void *p = mem_try_array(count, item_bytes);
    if (!p)
        PANIC("out of memory: %zu x %zu bytes", count, item_bytes);
    return p;
}

void *mem_try_realloc(void *p, size_t bytes)
{
    if (thread_sealed)
        PANIC("a sealed thread allocates %zu bytes", bytes);
    return realloc(p, bytes ? bytes : 1);
}

char *mem_try_strndup(const char *s, size_t len)
{
    char *copy = mem_try_alloc(len + 1);
    if (copy)
        memcpy(copy, s, len);
    return copy;
}

char *mem_strdup(const char *s)
{
    char *copy = mem_try_strndup(s, strlen(s));
    if (!copy)
        PANIC("out of memory: %zu bytes", strlen(s));
    return copy;
}

void mem_free(void *p)
{
    free(p);
}

static size_t round_up(size_t bytes, size_t unit)
{
    return (bytes + unit - 1) / unit * unit;
}

void *mem_try_alloc_aligned(size_t bytes)
{
    if (thread_sealed)
        PANIC("a sealed thread allocates %zu bytes", bytes);
    if (bytes < HUGE_PAGE_BYTES) {
        size_t padded = round_up(bytes ? bytes : 1, 64);
        void *small = aligned_alloc(64, padded);
        if (small)
            memset(small, 0, padded);
        return small;
    }
    if (bytes > SIZE_MAX - HUGE_PAGE_BYTES)
        return NULL;
    void *p = mmap(NULL, round_up(bytes, HUGE_PAGE_BYTES), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    (void)madvise(p, round_up(bytes, HUGE_PAGE_BYTES), MADV_HUGEPAGE);
    return p;
}

void *mem_alloc_aligned(size_t bytes)
{
    void *p = mem_try_alloc_aligned(bytes);
    if (!p)
        PANIC("out of memory: %zu bytes", bytes);
    return p;
}

void mem_free_aligned(void *p, size_t bytes)
{
    if (!p)
        return;
    if (bytes < HUGE_PAGE_BYTES)
        free(p);
    else
        munmap(p, round_up(bytes, HUGE_PAGE_BYTES));
}

void mem_wipe(void *p, size_t bytes)
{
    if (p)
        explicit_bzero(p, bytes);
}

/* The first number of a file, 0 where there is none ("max"). */
static uint64_t number_in(const char *path)
{
    uint64_t n = 0;
    FILE *f = fopen(path, "re");
    if (!f)
        return 0;
    if (fscanf(f, "%" SCNu64, &n) != 1)
        n = 0;
    fclose(f);
    return n;
}

uint64_t mem_available_bytes(void)
{
    char line[128];
    uint64_t kib = 0, most = number_in("/sys/fs/cgroup/memory.max");
    FILE *f = fopen("/proc/meminfo", "re");
    if (!f)
        return 0;
    while (fgets(line, sizeof(line), f))
        if (sscanf(line, "MemAvailable: %" SCNu64, &kib) == 1)
            break;
    fclose(f);
    if (most == 0)
        return kib << 10;
    uint64_t used = number_in("/sys/fs/cgroup/memory.current"),
             left = most > used ? most - used : 0;
    return left < kib << 10 ? left : kib << 10;
}

uint64_t mem_machine_bytes(void)
{
    long pages = sysconf(_SC_PHYS_PAGES), unit = sysconf(_SC_PAGESIZE);
    return pages > 0 && unit > 0 ? (uint64_t)pages * (uint64_t)unit : 0;
}
