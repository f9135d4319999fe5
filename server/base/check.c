/* A broken precondition or an impossible state ends the process with its place and its text. */
#include "server/base/check.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static void (*panic_dump)(void *arg);
static void *panic_dump_arg;

void panic_set_dump(void (*dump)(void *arg), void *arg)
{
    panic_dump = dump;
    panic_dump_arg = arg;
}

void panic_at(const char *file, int line, const char *fmt, ...)
{
    va_list ap;
    fprintf(stderr, "PANIC %s:%d: ", file, line);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    void (*dump)(void *) = panic_dump;
    panic_dump = NULL;
    if (dump)
        dump(panic_dump_arg);
    abort();
}
