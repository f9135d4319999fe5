/* Words are hashes. Of a text each word once a row, sorted: how often one comes is in how many rows
 * it stands. Of all texts each once a text. */
#include "server/datanet/differ.h"
#include "server/base/mem.h"
#include "server/base/order.h"
#include "server/text/unicode.h"

#include <sodium.h>
#include <stdlib.h>
#include <string.h>

struct differ_words {
    const char *text;
    struct differ_common in; /* the hashes, each once a row */
    uint32_t rows;
    struct buf words; /* of a row */
};

static uint64_t hash_word(const char *word, size_t len)
{
    static const uint8_t key[crypto_shorthash_KEYBYTES] = "residual.words1";
    uint64_t hash;
    crypto_shorthash((uint8_t *)&hash, (const uint8_t *)word, len, key);
    return hash;
}

static bool keep_word(struct differ_common *c, uint64_t hash)
{
    if (c->n == c->cap) {
        size_t cap = c->cap ? 2 * c->cap : 256;
        uint64_t *grown = mem_try_realloc(c->hash, cap * sizeof(*grown));
        if (!grown)
            return false;
        c->hash = grown;
        c->cap = cap;
    }
    c->hash[c->n++] = hash;
    return true;
}

/* The words of one piece of text, each once, behind what is there. */
static enum status keep_words(struct differ_common *c, struct buf *words, const char *text,
                              size_t len, struct errtext *err)
{
    size_t first = c->n, kept = first;
    buf_clear(words);
    enum status st = unicode_words(words, text, len, err);
    for (size_t at = 0; !st && at < words->len;) {
        const char *word = words->data + at, *blank = memchr(word, ' ', words->len - at);
        size_t n = blank ? (size_t)(blank - word) : words->len - at;
        if (n && !keep_word(c, hash_word(word, n)))
            st = err_set(err, STATUS_NO_MEMORY, "no memory for the words of a text");
        at += n + 1;
    }
    if (c->n > first)
        qsort(c->hash + first, c->n - first, sizeof(*c->hash), order_u64);
    for (size_t i = first; i < c->n; i++) {
        if (i == first || c->hash[i] != c->hash[kept - 1])
            c->hash[kept++] = c->hash[i];
    }
    c->n = kept;
    return st;
}

static enum status read_row(void *arg, size_t offset, size_t bytes, struct errtext *err)
{
    struct differ_words *w = arg;
    w->rows++;
    return keep_words(&w->in, &w->words, w->text + offset, bytes, err);
}

static enum status read_text(struct differ_words *w, const struct differ_text *t,
                             struct errtext *err)
{
    *w = (struct differ_words){.text = t->text};
    buf_init(&w->words, 8 * (size_t)ROW_LINE_MAX);
    enum status st = rows_each(t->kind, t->text, t->len, read_row, w, err);
    buf_fini(&w->words);
    if (w->in.n)
        qsort(w->in.hash, w->in.n, sizeof(*w->in.hash), order_u64);
    return st;
}

static size_t run_of(const struct differ_common *c, size_t i)
{
    size_t n = 1;
    while (i + n < c->n && c->hash[i + n] == c->hash[i])
        n++;
    return n;
}

static bool has_word(const struct differ_common *c, uint64_t hash)
{
    return c->n && bsearch(&hash, c->hash, c->n, sizeof(hash), order_u64);
}

enum status differ_common_add(struct differ_common *c, const char *text, size_t len,
                              struct errtext *err)
{
    struct buf words;
    if (len > DIFFER_TEXT_BYTES) { /* cut at a blank, never inside of a letter */
        len = DIFFER_TEXT_BYTES;
        while (len > 0 && text[len] != ' ' && text[len] != '\n')
            len--;
    }
    buf_init(&words, 8 * (size_t)DIFFER_TEXT_BYTES);
    enum status st = keep_words(c, &words, text, len, err);
    buf_fini(&words);
    c->texts++;
    return st;
}

void differ_common_close(struct differ_common *c)
{
    size_t kept = 0;
    if (c->n)
        qsort(c->hash, c->n, sizeof(*c->hash), order_u64);
    for (size_t i = 0, n; i < c->n; i += n) {
        n = run_of(c, i);
        if (c->texts >= DIFFER_TEXTS_MIN && 2 * n > c->texts)
            c->hash[kept++] = c->hash[i];
    }
    c->n = kept;
}

void differ_common_fini(struct differ_common *c)
{
    mem_free(c->hash);
    *c = (struct differ_common){0};
}

static bool has_own_word(const struct differ_words *one, const struct differ_words *other,
                         const struct differ_common *common)
{
    for (size_t i = 0, n; i < one->in.n; i += n) {
        uint64_t hash = one->in.hash[i];
        n = run_of(&one->in, i);
        if (n >= DIFFER_ROWS_MIN && DIFFER_ROWS_PART * n >= one->rows &&
            !has_word(&other->in, hash) && !has_word(common, hash))
            return true;
    }
    return false;
}

enum status differ_find(bool *out, const struct differ_text *one, const struct differ_text *other,
                        const struct differ_common *common, struct errtext *err)
{
    struct differ_words x, y = {0};
    *out = false;
    enum status st = read_text(&x, one, err);
    if (!st)
        st = read_text(&y, other, err);
    if (!st)
        *out = has_own_word(&x, &y, common) && has_own_word(&y, &x, common);
    differ_common_fini(&x.in);
    differ_common_fini(&y.in);
    return st;
}
