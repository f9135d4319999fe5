/* The guard's self-test, one way of allocating per run: seals its thread, then asks for memory as
 * the argument says. Under alloc_guard it must die; "none" must not. */
#include "server/base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
    const char *how = argc > 1 ? argv[1] : "none";
    void *p = NULL, *volatile keep = NULL;
    void *before = malloc(10);
    mem_seal_thread();
    if (!strcmp(how, "malloc"))
        keep = malloc(11);
    else if (!strcmp(how, "calloc"))
        keep = calloc(3, 5);
    else if (!strcmp(how, "realloc"))
        keep = before = realloc(before, 5000);
    else if (!strcmp(how, "aligned_alloc"))
        keep = aligned_alloc(64, 128);
    else if (!strcmp(how, "posix_memalign"))
        keep = posix_memalign(&p, 64, 100) ? NULL : p;
    else if (!strcmp(how, "library"))
        keep = strdup("a library's allocation");
    mem_unseal_thread();
    if (keep != before)
        free(keep);
    free(before);
    puts("alive");
    return 0;
}
