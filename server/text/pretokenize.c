/* Running pre-tokenizer steps. Each step finds spans (matches and what is between them) over a
 * piece, folds them by its behaviour, and appends the cuts to the other list of pieces. */
#include "server/text/pretokenize.h"
#include "server/base/mem.h"
#include "server/text/utf8.h"

#include <string.h>

void pretokenize_work_fini(struct pretokenize_work *w)
{
    mem_free(w->spans);
    buf_fini(&w->text);
}

/* Bytes that print as themselves keep their code point; the other 68 get 256, 257, ... in order. */
static bool prints_itself(uint32_t byte)
{
    return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

static uint32_t byte_level_cp(unsigned char byte)
{
    if (prints_itself(byte))
        return byte;
    if (byte <= 0x20)
        return 256u + byte;
    if (byte <= 0xA0)
        return 256u + 33u + (byte - 0x7Fu);
    return 256u + 67u; /* 0xAD */
}

int byte_level_byte(uint32_t cp)
{
    if (cp < 256)
        return prints_itself(cp) ? (int)cp : -1;
    if (cp <= 256 + 0x20)
        return (int)cp - 256;
    if (cp < 256 + 67)
        return (int)cp - 256 - 33 + 0x7F;
    return cp == 256 + 67 ? 0xAD : -1;
}

void byte_level_put(struct buf *out, const char *s, size_t len)
{
    char chunk[512];
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        n += utf8_put(byte_level_cp((unsigned char)s[i]), chunk + n);
        if (n > sizeof(chunk) - 4) {
            buf_put(out, chunk, n);
            n = 0;
        }
    }
    buf_put(out, chunk, n);
}

static bool add_span(struct pretokenize_work *w, size_t start, size_t end, bool is_match)
{
    if (w->n == w->cap) {
        size_t cap = w->cap ? w->cap * 2 : 64;
        struct split_span *spans = mem_try_realloc(w->spans, cap * sizeof(*spans));
        if (!spans)
            return false;
        w->spans = spans;
        w->cap = cap;
    }
    w->spans[w->n++] = (struct split_span){.start = start, .end = end, .is_match = is_match};
    return true;
}

/* A match, after the gap before it. */
static bool add_match(struct pretokenize_work *w, size_t *done, size_t start, size_t end)
{
    if (*done != start && !add_span(w, *done, start, false))
        return false;
    *done = end;
    return add_span(w, start, end, true);
}

static enum status spans_of_regex(const struct regex *regex, struct pretokenize_work *w,
                                  struct regex_scratch *scratch, const char *text, size_t len,
                                  struct errtext *err)
{
    struct regex_iter it = {
        .regex = regex, .scratch = scratch, .text = text, .len = len, .last_end = (size_t)-1};
    size_t done = 0;
    for (;;) {
        size_t start, end;
        bool found;
        enum status st = regex_iter_next(&it, &start, &end, &found, err);
        if (st)
            return st;
        if (!found)
            break;
        if (!add_match(w, &done, start, end))
            return STATUS_NO_MEMORY;
    }
    if (done != len && !add_span(w, done, len, false))
        return STATUS_NO_MEMORY;
    return STATUS_OK;
}

static enum status spans_of_literal(const struct pretokenize_step *s, struct pretokenize_work *w,
                                    const char *text, size_t len)
{
    size_t done = 0;
    for (;;) {
        const char *hit = memmem(text + done, len - done, s->literal, s->literal_len);
        if (!hit)
            break;
        size_t start = (size_t)(hit - text);
        if (!add_match(w, &done, start, start + s->literal_len))
            return STATUS_NO_MEMORY;
    }
    if (done != len && !add_span(w, done, len, false))
        return STATUS_NO_MEMORY;
    return STATUS_OK;
}

static bool is_class(enum pretokenize_kind kind, uint32_t cp)
{
    switch (kind) {
    case PRETOKENIZE_DIGITS:
        return cp_is_numeric(cp);
    case PRETOKENIZE_PUNCTUATION:
        return cp_is_punct(cp);
    default:
        return cp_is_space(cp);
    }
}

static enum status spans_of_class(enum pretokenize_kind kind, struct pretokenize_work *w,
                                  const char *text, size_t len)
{
    size_t done = 0;
    for (size_t i = 0, n; i < len; i += n) {
        if (is_class(kind, utf8_next(text + i, len - i, &n)) && !add_match(w, &done, i, i + n))
            return STATUS_NO_MEMORY;
    }
    if (done != len && !add_span(w, done, len, false))
        return STATUS_NO_MEMORY;
    return STATUS_OK;
}

/* `\w+|[^\w\s]+`, inverted: runs of words and runs of symbols stay, blanks are the matches. */
static enum status spans_of_words(struct pretokenize_work *w, const char *text, size_t len)
{
    size_t start = 0;
    int last = -1;
    for (size_t i = 0, n; i < len; i += n) {
        uint32_t cp = utf8_next(text + i, len - i, &n);
        int kind = cp_is_word(cp) ? 1 : cp_is_space(cp) ? 0 : 2;
        if (kind != last && i > 0) {
            if (!add_span(w, start, i, last == 0))
                return STATUS_NO_MEMORY;
            start = i;
        }
        last = kind;
    }
    return add_span(w, start, len, last == 0) ? STATUS_OK : STATUS_NO_MEMORY;
}

static enum status find_spans(const struct pretokenize_step *s, struct pretokenize_work *w,
                              struct regex_scratch *scratch, const struct split_span *text_span,
                              struct errtext *err)
{
    const char *text = w->text.data ? w->text.data : "";
    size_t len = text_span->end;
    enum status st;
    w->n = 0;
    if (s->regex)
        st = spans_of_regex(s->regex, w, scratch, text, len, err);
    else if (s->literal)
        st = spans_of_literal(s, w, text, len);
    else if (s->kind == PRETOKENIZE_WHITESPACE)
        st = spans_of_words(w, text, len);
    else
        st = spans_of_class(s->kind, w, text, len);
    for (size_t i = 0; s->invert && i < w->n; i++)
        w->spans[i].is_match = !w->spans[i].is_match;
    return st;
}

/* Fold the spans in place by behaviour; what is left are the cuts. */
static void fold_spans(struct pretokenize_work *w, enum split_behavior behavior)
{
    struct split_span *s = w->spans;
    size_t kept = 0;
    if (behavior == SPLIT_MERGED_WITH_NEXT) {
        bool next_is_match = false;
        for (size_t i = w->n, top = w->n; i-- > 0;) {
            bool is_match = s[i].is_match;
            if (is_match && !next_is_match && top < w->n)
                s[top].start = s[i].start;
            else
                s[--top] = s[i];
            next_is_match = is_match;
            kept = w->n - top;
        }
        memmove(s, s + (w->n - kept), kept * sizeof(*s));
        w->n = kept;
        return;
    }
    bool previous = false;
    for (size_t i = 0; i < w->n; i++) {
        bool is_match = s[i].is_match;
        bool drop = behavior == SPLIT_REMOVED && is_match;
        bool join = (behavior == SPLIT_MERGED_WITH_PREVIOUS && is_match && !previous) ||
                    (behavior == SPLIT_CONTIGUOUS && is_match == previous);
        if (join && kept > 0)
            s[kept - 1].end = s[i].end;
        else if (!drop)
            s[kept++] = s[i];
        previous = is_match;
    }
    w->n = kept;
}

static bool starts_with(const char *text, size_t len, const char *prefix, size_t prefix_len)
{
    return len >= prefix_len && memcmp(text, prefix, prefix_len) == 0;
}

/* The text a step works on, into w->text: prefixes and replacements applied. */
static void prepare_text(const struct pretokenize_step *s, struct pretokenize_work *w,
                         const struct pieces *in, const struct piece *item)
{
    const char *text = piece_text(in, item);
    size_t len = item->len;
    buf_clear(&w->text);
    if (s->kind == PRETOKENIZE_BYTE_LEVEL && s->add_prefix_space && !starts_with(text, len, " ", 1))
        buf_putc(&w->text, ' ');
    if (s->kind != PRETOKENIZE_METASPACE) {
        buf_put(&w->text, text, len);
        return;
    }
    bool wanted = s->scheme == PREPEND_ALWAYS || (s->scheme == PREPEND_FIRST && item->at_start);
    bool has = starts_with(text, len, " ", 1) || starts_with(text, len, s->literal, s->literal_len);
    if (wanted && !has)
        buf_put(&w->text, s->literal, s->literal_len);
    for (size_t i = 0; i < len; i++) {
        if (text[i] == ' ')
            buf_put(&w->text, s->literal, s->literal_len);
        else
            buf_putc(&w->text, text[i]);
    }
}

static enum status run_piece(const struct pretokenize_step *s, struct pretokenize_work *w,
                             struct regex_scratch *scratch, const struct piece *item,
                             struct pieces *out, struct errtext *err)
{
    struct split_span whole = {.start = 0, .end = w->text.len, .is_match = false};
    bool cuts = s->cut || (s->kind != PRETOKENIZE_BYTE_LEVEL && s->kind != PRETOKENIZE_METASPACE);
    enum status st = STATUS_OK;
    if (cuts) {
        st = find_spans(s, w, scratch, &whole, err);
        fold_spans(w, s->behavior);
    } else {
        w->n = 0;
        st = add_span(w, 0, whole.end, false) ? STATUS_OK : STATUS_NO_MEMORY;
    }
    if (st)
        return st;
    const char *text = w->text.data ? w->text.data : "";
    for (size_t i = 0; i < w->n; i++) {
        size_t start = out->text.len;
        const char *cut = text + w->spans[i].start;
        size_t len = w->spans[i].end - w->spans[i].start;
        if (s->kind == PRETOKENIZE_BYTE_LEVEL)
            byte_level_put(&out->text, cut, len);
        else
            buf_put(&out->text, cut, len);
        pieces_close(out, start, -1, item->at_start && w->spans[i].start == 0);
    }
    return STATUS_OK;
}

static enum status run_step(const struct pretokenize_step *s, struct pretokenize_work *w,
                            struct regex_scratch *scratch, const struct pretokenize_io *io,
                            struct errtext *err)
{
    pieces_clear(io->b);
    for (size_t i = 0; i < io->a->n; i++) {
        const struct piece *item = &io->a->items[i];
        if (item->id >= 0) {
            pieces_add(io->b, piece_text(io->a, item), item->len, item->id, false);
            continue;
        }
        prepare_text(s, w, io->a, item);
        enum status st =
            w->text.failed ? STATUS_NO_MEMORY : run_piece(s, w, scratch, item, io->b, err);
        if (st)
            return st;
    }
    return io->b->failed ? STATUS_NO_MEMORY : STATUS_OK;
}

enum status pretokenizer_run(const struct pretokenizer *p, struct pretokenize_work *w,
                             struct regex_scratch *scratch, struct pretokenize_io *io,
                             struct errtext *err)
{
    w->text.bytes_max = (size_t)1 << 30;
    struct pretokenize_io turn = *io;
    for (size_t i = 0; i < p->n; i++) {
        enum status st = run_step(&p->steps[i], w, scratch, &turn, err);
        if (st)
            return err_set(err, st, "the text could not be split into words (%s)", status_name(st));
        struct pieces *t = turn.a;
        turn.a = turn.b;
        turn.b = t;
    }
    io->result = turn.a;
    return STATUS_OK;
}
