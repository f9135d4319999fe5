/* What near.py drives: documents from stdin, one after the other, each "add", "find" or "admit"
 * (find, then add) and a length in bytes on a line, then the text. Every find answers a line
 * "document ppm", documents counted by what was added, each of another owner; the last line is the
 * processor time. */
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/datanet/near.h"
#include "server/text/unicode.h"

#include <inttypes.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define TEXT_MAX (64u << 20)

static double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

int main(void)
{
    struct errtext err = ERRTEXT_INIT;
    struct near *near;
    struct buf words;
    char verb[8], *text = mem_alloc(TEXT_MAX);
    size_t len;
    uint32_t documents = 0;
    double spent = 0;
    if (sodium_init() < 0 || near_create(&near, NEAR_ENTRIES_MAX, &err))
        PANIC("%s", err.text);
    buf_init(&words, TEXT_MAX);
    while (scanf("%7s %zu", verb, &len) == 2) {
        struct near_found found;
        uint8_t owner[20] = {0};
        CHECK(len <= TEXT_MAX && getchar() == '\n' && fread(text, 1, len, stdin) == len);
        double begin = cpu_seconds();
        buf_clear(&words);
        if (unicode_words(&words, text, len, &err))
            PANIC("%s", err.text);
        memcpy(owner, &documents, sizeof(documents));
        const struct near_text t = {owner, words.data, words.len};
        if (strcmp(verb, "add") != 0) {
            if (near_find(near, &t, &found, &err))
                PANIC("%s", err.text);
            printf("%" PRId32 " %u\n", (int32_t)found.document, found.ppm);
        }
        if (strcmp(verb, "find") != 0 && near_add(near, documents++, &t, &err))
            PANIC("%s", err.text);
        spent += cpu_seconds() - begin;
    }
    printf("%.3f\n", spent);
    near_free(near);
    buf_fini(&words);
    mem_free(text);
    return 0;
}
