/* A segment is sorted by a sorter of bytes: tokens are written big-endian, two or three bytes each,
 * all suffixes of those bytes are sorted, and the ranks that begin on a token are, in that order,
 * the ranks of the tokens. The order of suffixes is unique, so whoever builds gets these bytes. */
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/influence/spans_impl.h"

#include <divsufsort.h>
#include <inttypes.h>
#include <sodium.h>
#include <string.h>

#define SORTER_BYTES_MAX ((uint32_t)INT32_MAX)

struct spans_making {
    const struct spans_source *src;
    struct spans_header h;
    uint32_t bytes_tok; /* of the sorter's string: 2 or 3 */
    uint32_t cap, cap_long;
    struct spans_entry *document;
    uint32_t *first;
    struct spans_long *lengthy;
    struct spans_block *block;
    uint8_t *text; /* the sorter's string, bytes_tok a token */
    void *tok;     /* as the file has them */
    uint32_t *sa;
    uint8_t *len;
};

void spans_layout(const struct spans_header *h, struct spans_layout *out)
{
    uint64_t n_block = ((uint64_t)h->n_tok + SPANS_BLOCK - 1) / SPANS_BLOCK;
    const uint64_t bytes[SPANS_SECTIONS] = {
        [SPANS_DOCUMENTS] = (uint64_t)h->n_document * sizeof(struct spans_entry),
        [SPANS_FIRST] = ((uint64_t)h->n_vocab + 2) * sizeof(uint32_t),
        [SPANS_LONG] = (uint64_t)h->n_long * sizeof(struct spans_long),
        [SPANS_BLOCKS] = n_block * sizeof(struct spans_block),
        [SPANS_TOK] = (uint64_t)h->n_tok *
                      (h->n_vocab > SPANS_VOCAB_SMALL ? sizeof(uint32_t) : sizeof(uint16_t)),
        [SPANS_SA] = (uint64_t)h->n_tok * sizeof(uint32_t),
        [SPANS_LEN] = h->n_tok,
    };
    uint64_t at = (sizeof(*h) + 63) / 64 * 64;
    for (uint32_t i = 0; i < SPANS_SECTIONS; i++) {
        out->at[i] = at;
        out->bytes[i] = bytes[i];
        at += (bytes[i] + 63) / 64 * 64;
    }
    out->total = at;
}

static uint32_t sorter_bytes(uint32_t n_vocab)
{
    return n_vocab > SPANS_VOCAB_SMALL ? 3 : 2;
}

uint32_t spans_tokens_max(uint32_t n_vocab)
{
    return SORTER_BYTES_MAX / sorter_bytes(n_vocab);
}

static enum status no_memory(const struct spans_making *b, struct errtext *err)
{
    return err_set(err, STATUS_NO_MEMORY,
                   "spans: no memory for a segment of %u documents, %u tokens so far; use several",
                   b->src->n_document, b->h.n_tok);
}

/* Room for `more` tokens behind those that are there. */
static enum status reserve(struct spans_making *b, uint32_t more, struct errtext *err)
{
    uint64_t need = (uint64_t)b->h.n_tok + more, max = spans_tokens_max(b->src->n_vocab);
    if (need > max)
        return err_set(err, STATUS_TOO_LARGE,
                       "spans: a segment has at most %" PRIu64 " tokens; cut the documents into "
                       "several segments",
                       max);
    if (need <= b->cap)
        return STATUS_OK;
    uint64_t cap = MIN(max, MAX(need, b->cap + (uint64_t)b->cap / 2 + 4096));
    uint8_t *text = mem_try_realloc(b->text, cap * b->bytes_tok);
    b->text = text ? text : b->text;
    uint8_t *len = mem_try_realloc(b->len, cap);
    b->len = len ? len : b->len;
    if (!text || !len)
        return no_memory(b, err);
    b->cap = (uint32_t)cap;
    return STATUS_OK;
}

static enum status put_long(struct spans_making *b, uint32_t pos, uint32_t bytes,
                            struct errtext *err)
{
    if (b->h.n_long == b->cap_long) {
        uint32_t cap = b->cap_long * 2 + 64;
        struct spans_long *p = mem_try_realloc(b->lengthy, cap * sizeof(*p));
        if (!p)
            return no_memory(b, err);
        b->lengthy = p;
        b->cap_long = cap;
    }
    b->lengthy[b->h.n_long++] = (struct spans_long){.pos = pos, .bytes = bytes};
    return STATUS_OK;
}

/* Append one token (0 is the separator) that has so many bytes of its document's text. */
static enum status put_token(struct spans_making *b, uint32_t tok, uint32_t bytes,
                             struct errtext *err)
{
    uint32_t pos = b->h.n_tok++;
    uint8_t *to = b->text + (size_t)pos * b->bytes_tok;
    if (b->bytes_tok == 3)
        *to++ = (uint8_t)(tok >> 16);
    to[0] = (uint8_t)(tok >> 8);
    to[1] = (uint8_t)tok;
    b->len[pos] = (uint8_t)MIN(bytes, SPANS_LEN_LONG);
    b->first[tok + 1]++;
    return bytes < SPANS_LEN_LONG ? STATUS_OK : put_long(b, pos, bytes, err);
}

static enum status put_document(struct spans_making *b, uint32_t i, const struct spans_document *d,
                                struct errtext *err)
{
    const struct spans_source *src = b->src;
    if (d->owner >= src->n_owner)
        return err_set(err, STATUS_INVALID, "spans: document %u: owner %u of %u", i, d->owner,
                       src->n_owner);
    if (i > 0 && memcmp(b->document[i - 1].digest, d->digest, 32) >= 0)
        return err_set(err, STATUS_INVALID, "spans: document %u: digests are not ascending", i);
    enum status st = d->n == UINT32_MAX ? no_memory(b, err) : reserve(b, d->n + 1, err);
    if (st)
        return st;
    b->document[i] = (struct spans_entry){
        .owner = d->owner, .begin = b->h.n_tok, .offset = d->n ? d->offset[0] : 0};
    memcpy(b->document[i].digest, d->digest, 32);
    for (uint32_t t = 0; t < d->n && !st; t++) {
        if (d->ids[t] < 0 || (uint32_t)d->ids[t] >= src->n_vocab)
            return err_set(err, STATUS_INVALID, "spans: document %u: token %u is %d, not below %u",
                           i, t, d->ids[t], src->n_vocab);
        if (d->offset[t + 1] < d->offset[t])
            return err_set(err, STATUS_INVALID,
                           "spans: document %u: token %u ends at byte %u, before it begins at %u",
                           i, t, d->offset[t + 1], d->offset[t]);
        st = put_token(b, (uint32_t)d->ids[t] + 1, d->offset[t + 1] - d->offset[t], err);
    }
    return st ? st : put_token(b, 0, 0, err);
}

static enum status take_documents(struct spans_making *b, struct errtext *err)
{
    const struct spans_source *src = b->src;
    if (src->n_vocab == 0 || src->n_vocab > SPANS_VOCAB_MAX || src->n_owner > SPANS_OWNERS_MAX)
        return err_set(err, STATUS_INVALID, "spans: %u ids (1 to %u), %u owners (at most %u)",
                       src->n_vocab, SPANS_VOCAB_MAX, src->n_owner, SPANS_OWNERS_MAX);
    b->document = mem_try_array(MAX(src->n_document, 1), sizeof(*b->document));
    b->first = mem_try_array((size_t)src->n_vocab + 2, sizeof(*b->first));
    if (!b->document || !b->first)
        return no_memory(b, err);
    for (uint32_t i = 0; i < src->n_document; i++) {
        struct spans_document d = {.n = 0};
        enum status st = src->document(src->arg, i, &d, err);
        if (!st)
            st = put_document(b, i, &d, err);
        if (st)
            return st;
    }
    for (uint32_t v = 0; v <= src->n_vocab; v++) /* counts, one place on, become first ranks */
        b->first[v + 1] += b->first[v];
    return STATUS_OK;
}

static enum status sort_suffixes(struct spans_making *b, struct errtext *err)
{
    uint32_t n = b->h.n_tok, w = b->bytes_tok, rank = 0;
    if (n == 0)
        return STATUS_OK;
    int32_t *all = mem_try_array((size_t)n * w, sizeof(*all));
    if (!all)
        return no_memory(b, err);
    b->sa = (uint32_t *)all;
    if (divsufsort(b->text, all, (int32_t)(n * w)) != 0)
        return no_memory(b, err);
    for (size_t i = 0; i < (size_t)n * w; i++) {
        if (b->sa[i] % w == 0)
            b->sa[rank++] = b->sa[i] / w;
    }
    CHECK(rank == n);
    uint32_t *less = mem_try_realloc(b->sa, (size_t)n * sizeof(*less));
    b->sa = less ? less : b->sa;
    return STATUS_OK;
}

/* The sorter's bytes become the file's integers; 16-bit ones in place. */
static enum status make_tokens(struct spans_making *b, struct errtext *err)
{
    uint32_t n = b->h.n_tok;
    if (b->bytes_tok == 2) {
        uint16_t *to = (uint16_t *)(void *)b->text;
        for (uint32_t i = 0; i < n; i++)
            to[i] = (uint16_t)(b->text[2 * (size_t)i] << 8 | b->text[2 * (size_t)i + 1]);
        b->tok = b->text;
        b->text = NULL;
        return STATUS_OK;
    }
    uint32_t *to = mem_try_array(MAX(n, 1), sizeof(*to));
    if (!to)
        return no_memory(b, err);
    b->tok = to;
    for (uint32_t i = 0; i < n; i++) {
        const uint8_t *p = b->text + 3 * (size_t)i;
        to[i] = (uint32_t)p[0] << 16 | (uint32_t)p[1] << 8 | p[2];
    }
    return STATUS_OK;
}

static enum status make_blocks(struct spans_making *b, struct errtext *err)
{
    uint32_t n = b->h.n_tok, d = 0, offset = 0, next = 0;
    b->block = mem_try_array((size_t)n / SPANS_BLOCK + 1, sizeof(*b->block));
    if (!b->block)
        return no_memory(b, err);
    for (uint32_t pos = 0; pos < n; pos++) {
        if (d < b->h.n_document && b->document[d].begin == pos)
            offset = b->document[d++].offset;
        if (pos % SPANS_BLOCK == 0)
            b->block[pos / SPANS_BLOCK] = (struct spans_block){.document = d - 1, .offset = offset};
        if (b->len[pos] < SPANS_LEN_LONG)
            offset += b->len[pos];
        else
            offset += b->lengthy[next++].bytes;
    }
    return STATUS_OK;
}

static enum status write_segment(struct spans_making *b, const char *path, struct errtext *err)
{
    static const uint8_t zeros[64];
    struct spans_layout l;
    struct file_part part[2 * (SPANS_SECTIONS + 1)];
    uint32_t n = 0;
    const void *data[SPANS_SECTIONS] = {[SPANS_DOCUMENTS] = b->document,
                                        [SPANS_FIRST] = b->first,
                                        [SPANS_LONG] = b->lengthy,
                                        [SPANS_BLOCKS] = b->block,
                                        [SPANS_TOK] = b->tok,
                                        [SPANS_SA] = b->sa,
                                        [SPANS_LEN] = b->len};
    spans_layout(&b->h, &l);
    part[n++] = (struct file_part){.data = &b->h, .len = sizeof(b->h)};
    part[n++] = (struct file_part){.data = zeros, .len = l.at[0] - sizeof(b->h)};
    for (uint32_t i = 0; i < SPANS_SECTIONS; i++) {
        uint64_t end = i + 1 < SPANS_SECTIONS ? l.at[i + 1] : l.total;
        part[n++] = (struct file_part){.data = data[i], .len = l.bytes[i]};
        part[n++] = (struct file_part){.data = zeros, .len = end - l.at[i] - l.bytes[i]};
    }
    crypto_generichash_state hash;
    crypto_generichash_init(&hash, NULL, 0, sizeof(b->h.root));
    for (uint32_t i = 0; i < n; i++)
        crypto_generichash_update(&hash, part[i].data, part[i].len);
    crypto_generichash_final(&hash, b->h.root, sizeof(b->h.root));
    return file_write_parts(path, part, n, 0644, err);
}

enum status spans_build(const char *path, const struct spans_source *src, struct errtext *err)
{
    struct spans_making b = {.src = src, .bytes_tok = sorter_bytes(src->n_vocab)};
    memcpy(b.h.magic, SPANS_MAGIC, sizeof(b.h.magic));
    b.h.n_vocab = src->n_vocab;
    b.h.n_document = src->n_document;
    b.h.n_owner = src->n_owner;
    memcpy(b.h.tokenizer_digest, src->tokenizer_digest, 32);
    memcpy(b.h.document_root, src->document_root, 32);
    enum status st = take_documents(&b, err);
    if (!st)
        st = sort_suffixes(&b, err);
    if (!st)
        st = make_tokens(&b, err);
    if (!st)
        st = make_blocks(&b, err);
    if (!st)
        st = write_segment(&b, path, err);
    mem_free(b.document);
    mem_free(b.first);
    mem_free(b.lengthy);
    mem_free(b.block);
    mem_free(b.text);
    mem_free(b.tok);
    mem_free(b.sa);
    mem_free(b.len);
    return st;
}
