/* An index file is mapped and believed: whatever its bytes, opening answers, and what it accepts
 * can be scored and read. Half of the inputs get the root that their bytes
 * have, so that the fields behind it are reached. */
#include "server/base/file.h"
#include "server/influence/events_impl.h"
#include "server/influence/events_score.h"
#include "tests/unit/events_fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t len, size_t max, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t len, size_t max);

static void use(const struct events *e, const uint8_t *data, size_t len)
{
    enum { N = 4 };
    int32_t target[N], gain[N] = {-5, 0, 60, INT32_MAX};
    static int8_t key[N][EVENTS_KEY];
    struct events_scores *s;
    struct events_top top[8];
    for (uint32_t t = 0; t < N; t++) {
        target[t] = (int32_t)data[len - 40 - t] - 2;
        for (uint32_t i = 0; i < EVENTS_KEY; i++)
            key[t][i] = (int8_t)(data[(t * 131 + i) % len] % 127);
        if (e->head->n_events)
            events_key_gather(key[t], e->key1, t % e->head->n_events);
    }
    const struct events_query q = {.target = target, .gain_q8 = gain, .key = key[0], .n = N};
    if (events_score(&s, e, &q, 1, NULL))
        abort();
    uint32_t n = events_scores_top(s, top, 8);
    for (uint32_t i = 0; i < n; i++) {
        const struct events_row *row = events_row(e, top[i].row);
        if (events_document(e, row->document)[0] == 0 && events_owner(e, row->owner)->payee[0] == 1)
            (void)events_scores_token_row(s, top[i].best_token);
    }
    events_scores_free(s);
}

/* Files of the builder to begin with: the corpus starts empty. */
static size_t first_file(uint8_t *data, size_t max, unsigned seed)
{
    char path[64], *file;
    struct world w;
    size_t len = 0;
    snprintf(path, sizeof(path), "/tmp/fuzz-events-%d", (int)getpid());
    world_make(&w, seed % 64);
    if (world_build(&w, path, false, NULL) == STATUS_OK &&
        file_read(path, max, &file, &len, NULL) == STATUS_OK) {
        memcpy(data, file, len);
        mem_free(file);
    }
    (void)unlink(path);
    world_free(&w);
    return len;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t len, size_t max, unsigned seed)
{
    if (len < sizeof(struct events_head) || seed % 500 == 0) {
        size_t made = first_file(data, max, seed / 500);
        len = made ? made : len;
    }
    len = LLVMFuzzerMutate(data, len, max);
    if (seed % 2 && len > EVENTS_ROOT)
        events_root_of(data + len - EVENTS_ROOT, data, len - EVENTS_ROOT);
    return len;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    char path[64];
    struct errtext err = ERRTEXT_INIT;
    struct events *e;
    int fd = memfd_create("events", MFD_CLOEXEC);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (fd < 0 || write(fd, data, len) != (ssize_t)len)
        abort();
    enum status st = events_open(&e, path, NULL, &err);
    close(fd);
    if (st && (!err.text[0] || e))
        abort();
    if (!st)
        use(e, data, len);
    events_release(e);
    return 0;
}
