/* Opening a segment. Every byte is under the root, and beside the root everything that a question
 * follows is checked: positions, ranks, document borders, offsets. So a file made by somebody else,
 * with a root that fits, can give wrong answers but cannot lead outside itself. */
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/hex.h"
#include "server/base/mem.h"
#include "server/influence/spans_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sodium.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

void spans_root(const void *file, uint64_t bytes, uint8_t root[32])
{
    const struct spans_header *h = file;
    struct spans_header bare = *h;
    crypto_generichash_state hash;
    memset(bare.root, 0, sizeof(bare.root));
    crypto_generichash_init(&hash, NULL, 0, 32);
    crypto_generichash_update(&hash, (const uint8_t *)&bare, sizeof(bare));
    crypto_generichash_update(&hash, (const uint8_t *)file + sizeof(bare), bytes - sizeof(bare));
    crypto_generichash_final(&hash, root, 32);
}

uint32_t spans_document_at(const struct spans_segment *g, uint32_t pos)
{
    uint32_t lo = g->block[pos / SPANS_BLOCK].document, hi = g->h->n_document;
    if (pos / SPANS_BLOCK + 1 < (g->h->n_tok + SPANS_BLOCK - 1) / SPANS_BLOCK)
        hi = g->block[pos / SPANS_BLOCK + 1].document + 1;
    while (lo + 1 < hi) { /* begin[lo] <= pos < begin[hi] */
        uint32_t mid = lo + (hi - lo) / 2;
        if (g->document[mid].begin <= pos)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

static uint32_t long_bytes(const struct spans_segment *g, uint32_t pos)
{
    uint32_t lo = 0, hi = g->h->n_long;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (g->lengthy[mid].pos < pos)
            lo = mid + 1;
        else
            hi = mid;
    }
    return g->lengthy[lo].bytes;
}

uint32_t spans_offset_at(const struct spans_segment *g, uint32_t d, uint32_t pos)
{
    uint32_t at = pos / SPANS_BLOCK * SPANS_BLOCK, offset;
    if (g->document[d].begin > at) {
        at = g->document[d].begin;
        offset = g->document[d].offset;
    } else {
        offset = g->block[pos / SPANS_BLOCK].offset;
    }
    for (; at < pos; at++)
        offset += g->len[at] < SPANS_LEN_LONG ? g->len[at] : long_bytes(g, at);
    return offset;
}

static enum status corrupt(const char *path, const char *field, uint64_t found,
                           const char *expected, struct errtext *err)
{
    return err_set(err, STATUS_CORRUPT, "%s: %s is %" PRIu64 ", expected %s", path, field, found,
                   expected);
}

static enum status check_digest(const char *path, const char *field, const uint8_t found[32],
                                const uint8_t *expected, struct errtext *err)
{
    char a[65], b[65];
    if (!expected || memcmp(found, expected, 32) == 0)
        return STATUS_OK;
    hex_encode(a, found, 32);
    hex_encode(b, expected, 32);
    return err_set(err, STATUS_CORRUPT, "%s: %s is %s, expected %s", path, field, a, b);
}

/* The header's own numbers, and that the file is as long as they say. */
static enum status check_header(const char *path, const struct spans_header *h, uint64_t bytes,
                                struct errtext *err)
{
    struct spans_layout l;
    char expected[48];
    if (memcmp(h->magic, SPANS_MAGIC, sizeof(h->magic)) != 0)
        return err_set(err, STATUS_CORRUPT, "%s: does not begin with " SPANS_MAGIC, path);
    if (h->n_vocab == 0 || h->n_vocab > SPANS_VOCAB_MAX)
        return corrupt(path, "n_vocab", h->n_vocab, "1 to 2^23 - 2", err);
    if (h->n_tok > spans_tokens_max(h->n_vocab))
        return corrupt(path, "n_tok", h->n_tok, "what one segment can hold", err);
    if (h->n_document > h->n_tok || (h->n_document == 0 && h->n_tok > 0))
        return corrupt(path, "n_document", h->n_document, "one a separator", err);
    if (h->n_owner > SPANS_OWNERS_MAX)
        return corrupt(path, "n_owner", h->n_owner, "at most 2^20", err);
    if (h->zero != 0)
        return corrupt(path, "a reserved field", h->zero, "0", err);
    spans_layout(h, &l);
    snprintf(expected, sizeof(expected), "%" PRIu64 " from its header", l.total);
    return bytes == l.total ? STATUS_OK : corrupt(path, "bytes", bytes, expected, err);
}

static void place_sections(struct spans_segment *g)
{
    const uint8_t *base = (const uint8_t *)g->h;
    struct spans_layout l;
    spans_layout(g->h, &l);
    g->wide = g->h->n_vocab > SPANS_VOCAB_SMALL;
    g->document = (const void *)(base + l.at[SPANS_DOCUMENTS]);
    g->first = (const void *)(base + l.at[SPANS_FIRST]);
    g->lengthy = (const void *)(base + l.at[SPANS_LONG]);
    g->block = (const void *)(base + l.at[SPANS_BLOCKS]);
    g->tok = base + l.at[SPANS_TOK];
    g->sa = (const void *)(base + l.at[SPANS_SA]);
    g->len = base + l.at[SPANS_LEN];
}

static enum status check_documents(const char *path, const struct spans_segment *g,
                                   struct errtext *err)
{
    for (uint32_t d = 0; d < g->h->n_document; d++) {
        const struct spans_entry *e = &g->document[d];
        uint32_t least = d ? g->document[d - 1].begin + 1 : 0;
        if (e->owner >= g->h->n_owner)
            return corrupt(path, "a document's owner", e->owner, "below n_owner", err);
        if (e->begin < least || e->begin >= g->h->n_tok || (d == 0 && e->begin != 0))
            return corrupt(path, "a document's begin", e->begin, "ascending from 0", err);
        if (d && memcmp(e[-1].digest, e->digest, 32) >= 0)
            return corrupt(path, "a digest's document", d, "ascending digests", err);
    }
    return STATUS_OK;
}

struct spans_walk { /* over the tokens, in order */
    uint32_t document, lengthy;
    uint64_t offset;
};

static enum status check_token(const char *path, const struct spans_segment *g, uint32_t pos,
                               struct spans_walk *w, struct errtext *err)
{
    const struct spans_header *h = g->h;
    uint32_t tok = spans_tok(g, pos);
    if (w->document < h->n_document && g->document[w->document].begin == pos)
        w->offset = g->document[w->document++].offset;
    if (pos % SPANS_BLOCK == 0 && (g->block[pos / SPANS_BLOCK].document != w->document - 1 ||
                                   g->block[pos / SPANS_BLOCK].offset != w->offset))
        return corrupt(path, "a block's first token", pos, "that of its document", err);
    bool last = w->document < h->n_document ? g->document[w->document].begin == pos + 1
                                            : pos + 1 == h->n_tok;
    if (tok > h->n_vocab || (tok == 0) != last)
        return corrupt(path, "a token", tok,
                       last ? "0 at a document's end" : "an id and no document's end", err);
    uint32_t bytes = g->len[pos];
    if (bytes == SPANS_LEN_LONG) {
        if (w->lengthy == h->n_long || g->lengthy[w->lengthy].pos != pos)
            return corrupt(path, "a long token's position", pos, "in the list of long ones", err);
        bytes = g->lengthy[w->lengthy++].bytes;
    }
    w->offset += bytes;
    return w->offset <= UINT32_MAX ? STATUS_OK
                                   : corrupt(path, "an offset", w->offset, "32 bits", err);
}

static enum status check_tokens(const char *path, const struct spans_segment *g,
                                struct errtext *err)
{
    const struct spans_header *h = g->h;
    struct spans_walk w = {.document = 0};
    uint32_t *count = mem_try_array((size_t)h->n_vocab + 1, sizeof(*count));
    if (!count)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory to check it", path);
    enum status st = STATUS_OK;
    for (uint32_t pos = 0; pos < h->n_tok && !st; pos++) {
        st = check_token(path, g, pos, &w, err);
        if (!st)
            count[spans_tok(g, pos)]++;
    }
    if (!st && (w.document != h->n_document || w.lengthy != h->n_long))
        st = corrupt(path, "the number of long tokens", h->n_long, "that of the text", err);
    uint32_t sum = 0;
    for (uint32_t v = 0; v <= h->n_vocab && !st; v++) {
        if (g->first[v] != sum)
            st = corrupt(path, "a first rank", g->first[v], "the count of lesser tokens", err);
        sum += count[v];
    }
    if (!st && g->first[h->n_vocab + 1] != sum)
        st = corrupt(path, "the last first rank", g->first[h->n_vocab + 1], "n_tok", err);
    mem_free(count);
    return st;
}

static enum status check_segment(const char *path, const struct spans_segment *g,
                                 const struct spans_expect *expect, struct errtext *err)
{
    static const struct spans_expect any = {NULL, NULL};
    uint8_t root[32];
    expect = expect ? expect : &any;
    spans_root(g->h, g->bytes, root);
    enum status st = check_digest(path, "root", g->h->root, root, err);
    if (!st)
        st = check_digest(path, "tokenizer_digest", g->h->tokenizer_digest,
                          expect->tokenizer_digest, err);
    if (!st)
        st = check_digest(path, "document_root", g->h->document_root, expect->document_root, err);
    if (!st)
        st = check_documents(path, g, err);
    if (!st)
        st = check_tokens(path, g, err);
    for (uint32_t r = 0; r < g->h->n_tok && !st; r++) {
        if (g->sa[r] >= g->h->n_tok)
            st = corrupt(path, "a suffix", g->sa[r], "below n_tok", err);
    }
    return st;
}

static enum status map_file(struct spans_segment *g, const char *path, struct errtext *err)
{
    struct stat sb;
    void *p = MAP_FAILED;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return err_set(err, errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "%s: open: %s", path,
                       strerror(errno));
    enum status st = STATUS_OK;
    if (fstat(fd, &sb) != 0 || !S_ISREG(sb.st_mode))
        st = err_set(err, STATUS_INVALID, "%s: not a regular file", path);
    else if ((uint64_t)sb.st_size < sizeof(struct spans_header))
        st = corrupt(path, "bytes", (uint64_t)sb.st_size, "at least a header", err);
    else
        p = mmap(NULL, (size_t)sb.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (!st && p == MAP_FAILED)
        st = err_set(err, STATUS_NO_MEMORY, "%s: map: %s", path, strerror(errno));
    close(fd);
    if (st)
        return st;
    g->h = p;
    g->bytes = (uint64_t)sb.st_size;
    return STATUS_OK;
}

enum status spans_map(struct spans_segment **out, const char *path, struct errtext *err)
{
    struct spans_segment *g = mem_alloc(sizeof(*g));
    *out = NULL;
    atomic_init(&g->refs, 1);
    enum status st = map_file(g, path, err);
    if (!st)
        st = check_header(path, g->h, g->bytes, err);
    if (st) {
        spans_unmap(g);
        return st;
    }
    place_sections(g);
    *out = g;
    return STATUS_OK;
}

void spans_unmap(struct spans_segment *g)
{
    if (!g || atomic_fetch_sub_explicit(&g->refs, 1, memory_order_acq_rel) != 1)
        return;
    if (g->h)
        (void)munmap((void *)(uintptr_t)g->h, (size_t)g->bytes);
    mem_free(g);
}

void spans_release(struct spans *s)
{
    if (!s || atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) != 1)
        return;
    for (uint32_t i = 0; i < s->head.n_segment; i++) {
        spans_unmap(s->part[i].seg);
        mem_free(s->part[i].document);
        mem_free(s->part[i].live.bit);
        mem_free(s->part[i].live.word);
    }
    mem_free(s->owner);
    mem_free(s->surprise);
    mem_free(s);
}

struct spans *spans_ref(struct spans *s)
{
    atomic_fetch_add_explicit(&s->refs, 1, memory_order_relaxed);
    return s;
}

const struct spans_head *spans_head(const struct spans *s)
{
    return &s->head;
}

enum status spans_open(struct spans **out, const char *path, const struct spans_expect *expect,
                       struct errtext *err)
{
    struct spans_segment *g;
    *out = NULL;
    enum status st = spans_map(&g, path, err);
    if (st)
        return st;
    struct spans *s = mem_alloc(sizeof(*s));
    atomic_init(&s->refs, 1);
    s->part[0].seg = g;
    s->head.n_segment = 1;
    st = check_segment(path, g, expect, err);
    if (!st) {
        (void)madvise((void *)(uintptr_t)g->h, (size_t)g->bytes, MADV_RANDOM);
        s->head = (struct spans_head){.n_segment = 1,
                                      .n_vocab = g->h->n_vocab,
                                      .n_tok = g->h->n_tok - g->h->n_document,
                                      .n_document = g->h->n_document,
                                      .n_owner = g->h->n_owner,
                                      .bytes = g->bytes};
        memcpy(s->head.root, g->h->root, 32);
        st = spans_surprise(s, err);
    }
    if (st)
        spans_release(s);
    else
        *out = s;
    return st;
}
