/* The words of a text as hashes, each once a row, sorted: how often one comes is in how many rows
 * it stands. */
#include "server/datanet/differ.h"
#include "server/base/mem.h"
#include "server/text/unicode.h"

#include <sodium.h>
#include <stdlib.h>
#include <string.h>

struct differ_words {
    const char *text;
    uint64_t *hash;
    size_t n, cap;
    uint32_t rows;
    struct buf words; /* of a row */
};

static int compare_hash(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static uint64_t hash_word(const char *word, size_t len)
{
    static const uint8_t key[crypto_shorthash_KEYBYTES] = "residual.words1";
    uint64_t hash;
    crypto_shorthash((uint8_t *)&hash, (const uint8_t *)word, len, key);
    return hash;
}

static bool keep_word(struct differ_words *w, uint64_t hash)
{
    if (w->n == w->cap) {
        size_t cap = w->cap ? 2 * w->cap : 256;
        uint64_t *grown = mem_try_realloc(w->hash, cap * sizeof(*grown));
        if (!grown)
            return false;
        w->hash = grown;
        w->cap = cap;
    }
    w->hash[w->n++] = hash;
    return true;
}

static enum status read_row(void *arg, size_t offset, size_t bytes, struct errtext *err)
{
    struct differ_words *w = arg;
    size_t first = w->n, kept = first;
    buf_clear(&w->words);
    enum status st = unicode_words(&w->words, w->text + offset, bytes, err);
    for (size_t at = 0; !st && at < w->words.len;) {
        const char *word = w->words.data + at;
        const char *blank = memchr(word, ' ', w->words.len - at);
        size_t len = blank ? (size_t)(blank - word) : w->words.len - at;
        if (len && !keep_word(w, hash_word(word, len)))
            st = err_set(err, STATUS_NO_MEMORY, "no memory for the words of a text");
        at += len + 1;
    }
    qsort(w->hash + first, w->n - first, sizeof(*w->hash), compare_hash);
    for (size_t i = first; i < w->n; i++) {
        if (i == first || w->hash[i] != w->hash[i - 1])
            w->hash[kept++] = w->hash[i];
    }
    w->n = kept;
    w->rows++;
    return st;
}

static enum status read_text(struct differ_words *w, const struct differ_text *t,
                             struct errtext *err)
{
    *w = (struct differ_words){.text = t->text};
    buf_init(&w->words, 8 * (size_t)ROW_LINE_MAX);
    enum status st = rows_each(t->kind, t->text, t->len, read_row, w, err);
    buf_fini(&w->words);
    if (!st)
        qsort(w->hash, w->n, sizeof(*w->hash), compare_hash);
    return st;
}

/* A word in half of one's rows that the other has not. */
static bool has_own_word(const struct differ_words *one, const struct differ_words *other)
{
    for (size_t i = 0, n; i < one->n; i += n) {
        for (n = 1; i + n < one->n && one->hash[i + n] == one->hash[i];)
            n++;
        if (2 * n >= one->rows &&
            !bsearch(&one->hash[i], other->hash, other->n, sizeof(*other->hash), compare_hash))
            return true;
    }
    return false;
}

enum status differ_find(bool *out, const struct differ_text *one, const struct differ_text *other,
                        struct errtext *err)
{
    struct differ_words x, y = {0};
    *out = false;
    enum status st = read_text(&x, one, err);
    if (!st && x.rows >= DIFFER_ROWS_MIN)
        st = read_text(&y, other, err);
    if (!st && y.rows >= DIFFER_ROWS_MIN)
        *out = has_own_word(&x, &y) && has_own_word(&y, &x);
    mem_free(x.hash);
    mem_free(y.hash);
    return st;
}
