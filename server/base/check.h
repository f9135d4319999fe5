/* CHECK(x): always on, cheap control-plane truth; a failure is our bug: report and abort (the
 * supervisor restarts). VERIFY(x): the same in checking builds only, for hot paths and
 * whole-structure walks. */
#ifndef RS_BASE_CHECK_H
#define RS_BASE_CHECK_H

#ifdef __cplusplus
extern "C" {
#endif

/* Print file, line and message to stderr, run the registered state dump, abort. Thread: any. */
void panic_at(const char *file, int line, const char *fmt, ...)
    __attribute__((noreturn, format(printf, 3, 4)));

/* dump(arg) is called once inside a panic, to print the owner's state. One slot; NULL clears. */
void panic_set_dump(void (*dump)(void *arg), void *arg);

#define PANIC(...) panic_at(__FILE__, __LINE__, __VA_ARGS__)
#define CHECK(x)                                                                                   \
    do {                                                                                           \
        if (__builtin_expect(!(x), 0))                                                             \
            PANIC("CHECK failed: %s", #x);                                                         \
    } while (0)
#if RS_CHECKING
#define VERIFY(x) CHECK(x)
#else
#define VERIFY(x)                                                                                  \
    do {                                                                                           \
        (void)sizeof(x);                                                                           \
    } while (0)
#endif

#define ARRAY_COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b)      ((a) < (b) ? (a) : (b))
#define MAX(a, b)      ((a) > (b) ? (a) : (b))

#ifdef __cplusplus
}
#endif

#endif
