/* A spans segment of arbitrary bytes, given the root and the length that fit them, so that what
 * lies behind those checks is reached: whatever spans_open accepts, questions stay inside it. */
#include "server/base/check.h"
#include "server/influence/spans_impl.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The input's first bytes are a small header's counts; the rest is the sections. */
static size_t make_file(uint8_t **file, const uint8_t *data, size_t size)
{
    struct spans_header h = {.zero = 0};
    struct spans_layout l;
    memcpy(h.magic, SPANS_MAGIC, sizeof(h.magic));
    h.n_tok = data[0] | (uint32_t)data[1] << 8;
    h.n_vocab = data[2] & 0x80 ? SPANS_VOCAB_SMALL + 1 : 1u + data[2];
    h.n_document = data[3];
    h.n_owner = data[4];
    h.n_long = data[5] & 7;
    spans_layout(&h, &l);
    *file = calloc(1, l.total);
    CHECK(*file);
    memcpy(*file, &h, sizeof(h));
    memcpy(*file + l.at[0], data + 6, size - 6 < l.total - l.at[0] ? size - 6 : l.total - l.at[0]);
    spans_root(*file, l.total, ((struct spans_header *)(void *)*file)->root);
    return l.total;
}

static void ask(const struct spans *s)
{
    struct spans_hit hit[16];
    struct spans_place place[4];
    const struct spans_segment *g = s->part[0].seg;
    int32_t ids[64];
    uint32_t n = 0, n_hit;
    for (; n < 64 && n < g->h->n_tok; n++)
        ids[n] = (int32_t)spans_tok(g, n) - 1;
    CHECK(spans_find(s, ids, n, n / 2, hit, 16, &n_hit) == STATUS_OK);
    for (uint32_t i = 0; i < n_hit; i++) {
        uint32_t places = spans_places(s, &hit[i], place, 4);
        for (uint32_t k = 0; k < places; k++)
            CHECK(place[k].document < s->head.n_document);
    }
    uint64_t *weight = calloc(s->head.n_owner + 1, sizeof(*weight));
    CHECK(weight && spans_owner_weights(s, hit, n_hit, n / 2, weight) == STATUS_OK);
    free(weight);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    static char path[64];
    struct errtext err = ERRTEXT_INIT;
    struct spans *s;
    uint8_t *file;
    if (size < 6)
        return 0;
    if (fd < 0) {
        snprintf(path, sizeof(path), "/tmp/fuzz_spans-%ld", (long)getpid());
        fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
        CHECK(fd >= 0);
    }
    size_t len = make_file(&file, data, size);
    CHECK(ftruncate(fd, 0) == 0 && pwrite(fd, file, len, 0) == (ssize_t)len);
    free(file);
    enum status st = spans_open(&s, path, NULL, &err);
    if (st) {
        CHECK(err.text[0] != '\0');
        return 0;
    }
    ask(s);
    spans_release(s);
    return 0;
}
