/* LD_PRELOAD allocator guard: a thread that has sealed itself (mem_seal_thread) dies with a
 * backtrace when it, or any library it calls, asks for memory. The program exports
 * mem_thread_is_sealed; the weak reference finds it. With RS_ALLOC_GUARD set a program without that
 * symbol is refused, for it would be watched by nobody; RS_ALLOC_GUARD_REPORT=FILE gets the number
 * of allocations seen, so that a quiet run can be told from a guard that was not there. glibc's own
 * entry points do the allocating. */
#include <execinfo.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

bool mem_thread_is_sealed(void) __attribute__((weak));

void *__libc_malloc(size_t n);
void *__libc_calloc(size_t count, size_t n);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t align, size_t n);

static _Atomic unsigned long call_count, sealed_count;
static _Thread_local bool is_dying;

static void check(const char *what, size_t bytes)
{
    atomic_fetch_add_explicit(&call_count, 1, memory_order_relaxed);
    if (is_dying || !mem_thread_is_sealed || !mem_thread_is_sealed())
        return;
    void *frame[48];
    char line[128];
    is_dying = true; /* backtrace may allocate */
    int n =
        snprintf(line, sizeof(line), "alloc_guard: a sealed thread calls %s(%zu)\n", what, bytes);
    (void)!write(2, line, (size_t)n);
    backtrace_symbols_fd(frame, backtrace(frame, 48), 2);
    abort();
}

void *malloc(size_t n)
{
    check("malloc", n);
    return __libc_malloc(n);
}

void *calloc(size_t count, size_t n)
{
    check("calloc", count * n);
    return __libc_calloc(count, n);
}

void *realloc(void *p, size_t n)
{
    check("realloc", n);
    return __libc_realloc(p, n);
}

void *aligned_alloc(size_t align, size_t n)
{
    check("aligned_alloc", n);
    return __libc_memalign(align, n);
}

void *memalign(size_t align, size_t n)
{
    check("memalign", n);
    return __libc_memalign(align, n);
}

int posix_memalign(void **out, size_t align, size_t n)
{
    check("posix_memalign", n);
    *out = __libc_memalign(align, n);
    return *out ? 0 : 12; /* ENOMEM */
}

/* Not an allocation, but what a loop asks for all the time: proof that a sealed thread is running.
 */
int clock_gettime(clockid_t id, struct timespec *out)
{
    if (mem_thread_is_sealed && mem_thread_is_sealed())
        atomic_fetch_add_explicit(&sealed_count, 1, memory_order_relaxed);
    return (int)syscall(SYS_clock_gettime, id, out);
}

__attribute__((constructor)) static void begin(void)
{
    void *warm[2];
    if (getenv("RS_ALLOC_GUARD") && !mem_thread_is_sealed) {
        static const char text[] =
            "alloc_guard: the program does not export mem_thread_is_sealed\n";
        (void)!write(2, text, sizeof(text) - 1);
        _exit(125);
    }
    (void)backtrace(warm, 2); /* loads libgcc now */
}

__attribute__((destructor)) static void finish(void)
{
    char line[64];
    const char *path = getenv("RS_ALLOC_GUARD_REPORT");
    int fd = path && mem_thread_is_sealed ? open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600) : -1;
    if (fd < 0)
        return;
    int n = snprintf(line, sizeof(line), "calls %lu sealed %lu\n", atomic_load(&call_count),
                     atomic_load(&sealed_count));
    (void)!write(fd, line, (size_t)n);
    close(fd);
}
