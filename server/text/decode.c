/* Running decoder steps over whole texts (decoder_run, equal to the reference) and over one token
 * (decoder_token, for streams and for tokenizer_token_bytes). */
#include "server/text/decode.h"
#include "server/base/hex.h"
#include "server/base/mem.h"
#include "server/text/utf8.h"

#include <string.h>

void decode_put_lossy(struct buf *out, const char *bytes, size_t len)
{
    const unsigned char *p = (const unsigned char *)bytes;
    for (size_t i = 0, n; i < len; i += n) {
        bool partial;
        if (utf8_scan(p + i, len - i, &n, &partial))
            buf_put(out, bytes + i, n);
        else
            buf_puts(out, UTF8_REPLACEMENT);
    }
}

/* Byte-level characters back to bytes; a token with any other character is copied as it is. */
static void put_byte_level(struct buf *out, const char *text, size_t len)
{
    for (size_t i = 0, n; i < len; i += n) {
        if (byte_level_byte(utf8_next(text + i, len - i, &n)) < 0) {
            buf_put(out, text, len);
            return;
        }
    }
    for (size_t i = 0, n; i < len; i += n)
        buf_putc(out, (char)byte_level_byte(utf8_next(text + i, len - i, &n)));
}

/* The byte of a "<0xHH>" token, or -1. The reference's number parser takes "+H" too. */
static int fallback_byte(const char *text, size_t len)
{
    if (len != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>')
        return -1;
    int low = hex_digit(text[4]);
    if (text[3] == '+')
        return low;
    int high = hex_digit(text[3]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

static size_t strip_front(const struct decode_step *s, const char *text, size_t len, uint32_t max)
{
    size_t at = 0;
    while (max-- && len - at >= s->content_len &&
           memcmp(text + at, s->content, s->content_len) == 0)
        at += s->content_len;
    return at;
}

static void put_stripped(const struct decode_step *s, struct buf *out, const char *text, size_t len)
{
    size_t front = strip_front(s, text, len, s->strip_start);
    text += front;
    len -= front;
    for (uint32_t i = 0; i < s->strip_stop && len >= s->content_len; i++) {
        if (memcmp(text + len - s->content_len, s->content, s->content_len) != 0)
            break;
        len -= s->content_len;
    }
    buf_put(out, text, len);
}

static void put_metaspace(const struct decode_step *s, struct buf *out,
                          const struct normalize_io *io, bool is_first)
{
    for (size_t i = 0, n; i < io->len; i += n) {
        utf8_next(io->text + i, io->len - i, &n);
        bool is_blank = n == s->content_len && memcmp(io->text + i, s->content, n) == 0;
        if (!is_blank)
            buf_put(out, io->text + i, n);
        else if (!is_first || !s->drop_first)
            buf_putc(out, ' ');
    }
}

/* A step that works on each token by itself. */
static enum status run_each(const struct decode_step *s, struct regex_scratch *scratch,
                            const struct pieces *in, struct pieces *out, struct errtext *err)
{
    for (size_t i = 0; i < in->n; i++) {
        struct normalize_io io = {.text = piece_text(in, &in->items[i]), .len = in->items[i].len};
        size_t start = out->text.len;
        enum status st = STATUS_OK;
        if (s->kind == DECODE_REPLACE)
            st = normalize_replace(&s->replace, scratch, &io, &out->text, err);
        else if (s->kind == DECODE_STRIP)
            put_stripped(s, &out->text, io.text, io.len);
        else
            put_metaspace(s, &out->text, &io, i == 0);
        if (st)
            return st;
        size_t len = out->text.len - start;
        pieces_add_always(out, "", 0);
        if (out->failed)
            return STATUS_NO_MEMORY;
        out->items[out->n - 1].start = (uint32_t)start;
        out->items[out->n - 1].len = (uint32_t)len;
    }
    return STATUS_OK;
}

static void flush_bytes(struct pieces *out, struct buf *bytes)
{
    if (bytes->len == 0)
        return;
    if (utf8_valid_prefix(bytes->data, bytes->len) == bytes->len) {
        pieces_add_always(out, bytes->data, bytes->len);
    } else {
        for (size_t i = 0; i < bytes->len; i++)
            pieces_add_always(out, UTF8_REPLACEMENT, 3);
    }
    buf_clear(bytes);
}

/* A run of byte tokens becomes one token; one bad byte spoils the whole run. */
static enum status run_byte_fallback(const struct pieces *in, struct pieces *out)
{
    struct buf bytes;
    buf_init(&bytes, in->n + 1);
    for (size_t i = 0; i < in->n; i++) {
        const char *text = piece_text(in, &in->items[i]);
        int byte = fallback_byte(text, in->items[i].len);
        if (byte >= 0) {
            buf_putc(&bytes, (char)byte);
            continue;
        }
        flush_bytes(out, &bytes);
        pieces_add_always(out, text, in->items[i].len);
    }
    bool failed = bytes.failed;
    flush_bytes(out, &bytes);
    buf_fini(&bytes);
    return failed ? STATUS_NO_MEMORY : STATUS_OK;
}

static enum status run_byte_level(const struct pieces *in, struct pieces *out)
{
    struct buf bytes;
    buf_init(&bytes, in->text.bytes_max);
    for (size_t i = 0; i < in->n; i++)
        put_byte_level(&bytes, piece_text(in, &in->items[i]), in->items[i].len);
    decode_put_lossy(&out->text, bytes.data ? bytes.data : "", bytes.len);
    bool failed = bytes.failed;
    buf_fini(&bytes);
    size_t len = out->text.len;
    pieces_add_always(out, "", 0);
    if (failed || out->failed)
        return STATUS_NO_MEMORY;
    out->items[0] = (struct piece){.start = 0, .len = (uint32_t)len, .id = -1};
    return STATUS_OK;
}

static enum status run_fuse(const struct pieces *in, struct pieces *out)
{
    for (size_t i = 0; i < in->n; i++)
        buf_put(&out->text, piece_text(in, &in->items[i]), in->items[i].len);
    size_t len = out->text.len;
    pieces_add_always(out, "", 0);
    if (out->failed)
        return STATUS_NO_MEMORY;
    out->items[0] = (struct piece){.start = 0, .len = (uint32_t)len, .id = -1};
    return STATUS_OK;
}

static enum status run_steps(const struct decoder *d, struct pieces **a, struct pieces **b,
                             struct regex_scratch *scratch, struct errtext *err)
{
    for (size_t i = 0; i < d->n; i++) {
        const struct decode_step *s = &d->steps[i];
        pieces_clear(*b);
        enum status st;
        if (s->kind == DECODE_BYTE_LEVEL)
            st = run_byte_level(*a, *b);
        else if (s->kind == DECODE_BYTE_FALLBACK)
            st = run_byte_fallback(*a, *b);
        else if (s->kind == DECODE_FUSE)
            st = run_fuse(*a, *b);
        else
            st = run_each(s, scratch, *a, *b, err);
        if (!st && (*b)->failed)
            st = STATUS_NO_MEMORY;
        if (st)
            return st;
        struct pieces *t = *a;
        *a = *b;
        *b = t;
    }
    return STATUS_OK;
}

enum status decoder_run(const struct decoder *d, struct pieces *tokens, struct pieces *b,
                        struct buf *out, struct errtext *err)
{
    struct regex_scratch *scratch = regex_scratch_create();
    enum status st = scratch && !tokens->failed ? STATUS_OK : STATUS_NO_MEMORY;
    if (!st)
        st = run_steps(d, &tokens, &b, scratch, err);
    regex_scratch_free(scratch);
    if (st)
        return err_set(err, st, "the tokens could not be decoded (%s)", status_name(st));
    for (size_t i = 0; i < tokens->n; i++) {
        if (i > 0 && !d->present)
            buf_putc(out, ' ');
        buf_put(out, piece_text(tokens, &tokens->items[i]), tokens->items[i].len);
    }
    return out->failed ? err_set(err, STATUS_TOO_LARGE, "the decoded text is over %zu bytes",
                                 out->bytes_max)
                       : STATUS_OK;
}

/* In a stream a Strip after Fuse belongs to the start of the whole text: detok.c does it. */
static enum status token_step(const struct decoder *d, size_t idx, const struct normalize_io *io,
                              bool is_first, struct buf *out)
{
    const struct decode_step *s = &d->steps[idx];
    int byte;
    switch (s->kind) {
    case DECODE_BYTE_LEVEL:
        put_byte_level(out, io->text, io->len);
        return STATUS_OK;
    case DECODE_BYTE_FALLBACK:
        byte = fallback_byte(io->text, io->len);
        if (byte >= 0)
            buf_putc(out, (char)byte);
        else
            buf_put(out, io->text, io->len);
        return STATUS_OK;
    case DECODE_STRIP:
        if (idx < d->fuse_idx)
            put_stripped(s, out, io->text, io->len);
        else
            buf_put(out, io->text, io->len);
        return STATUS_OK;
    case DECODE_METASPACE:
        put_metaspace(s, out, io, is_first);
        return STATUS_OK;
    case DECODE_FUSE:
    case DECODE_REPLACE:
        break;
    }
    buf_put(out, io->text, io->len);
    return STATUS_OK;
}

enum status decoder_token(const struct decoder *d, const char *text, size_t len, bool is_first,
                          struct buf *out, struct errtext *err)
{
    struct buf bufs[2];
    for (size_t i = 0; i < 2; i++)
        buf_init(&bufs[i], (size_t)1 << 26);
    struct normalize_io io = {.text = text, .len = len};
    struct regex_scratch *scratch = NULL;
    enum status st = STATUS_OK;
    bool is_bytes = false; /* no longer characters: later text steps do not apply */
    for (size_t i = 0; !st && i < d->n; i++) {
        const struct decode_step *s = &d->steps[i];
        struct buf *to = &bufs[i % 2];
        buf_clear(to);
        if (s->kind == DECODE_REPLACE && !is_bytes) {
            if (s->replace.regex && !scratch && !(scratch = regex_scratch_create()))
                st = STATUS_NO_MEMORY;
            if (!st)
                st = normalize_replace(&s->replace, scratch, &io, to, err);
        } else if (!is_bytes) {
            st = token_step(d, i, &io, is_first, to);
        } else {
            buf_put(to, io.text, io.len);
        }
        if (to->failed)
            st = STATUS_NO_MEMORY;
        io.text = to->data ? to->data : "";
        io.len = to->len;
        is_bytes = is_bytes || utf8_valid_prefix(io.text, io.len) != io.len;
    }
    if (!st && !d->present && !is_first)
        buf_putc(out, ' ');
    if (!st)
        buf_put(out, io.text, io.len);
    regex_scratch_free(scratch);
    buf_fini(&bufs[0]);
    buf_fini(&bufs[1]);
    return st ? err_set(err, st, "a token could not be decoded (%s)", status_name(st)) : STATUS_OK;
}
