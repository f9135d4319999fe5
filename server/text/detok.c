/* Ids to text while they come. A token's bytes are known; what is left to do here is to hold back
 * the unfinished character at the end, to replace bad bytes as the decoder of the file would, and
 * to apply what concerns only the start of the text. No heap. */
#include "server/base/check.h"
#include "server/text/tokenizer.h"
#include "server/text/tokenizer_impl.h"
#include "server/text/utf8.h"

#include <string.h>

void detok_init(struct detok *d, const struct tokenizer *t, bool skip_special)
{
    *d = (struct detok){.t = t, .skip_special = skip_special};
    if (t->lead_strip)
        d->strip_left = t->lead_strip->strip_start;
}

void detok_init_continued(struct detok *d, const struct tokenizer *t, bool skip_special)
{
    *d = (struct detok){.t = t, .skip_special = skip_special, .started = true};
}

/* One complete character. */
static void emit(struct detok *d, struct buf *out, const char *s, size_t n)
{
    if (d->strip_left) {
        const struct decode_step *strip = d->t->lead_strip;
        if (n == strip->content_len && memcmp(s, strip->content, n) == 0) {
            d->strip_left--;
            return;
        }
        d->strip_left = 0;
    }
    buf_put(out, s, n);
}

/* n bad bytes: one mark each after byte fallback, one for the sequence after byte-level. */
static void emit_bad(struct detok *d, struct buf *out, size_t n)
{
    for (size_t i = 0; i < (d->t->decoder.byte_fallback ? n : 1); i++)
        emit(d, out, UTF8_REPLACEMENT, 3);
}

static void push_byte(struct detok *d, unsigned char byte, struct buf *out)
{
    CHECK(d->n_tail < sizeof(d->tail));
    d->tail[d->n_tail++] = byte;
    while (d->n_tail) {
        size_t n;
        bool partial;
        if (utf8_scan(d->tail, d->n_tail, &n, &partial))
            emit(d, out, (const char *)d->tail, n);
        else if (partial)
            return;
        else
            emit_bad(d, out, n);
        d->n_tail = (uint8_t)(d->n_tail - n);
        memmove(d->tail, d->tail + n, d->n_tail);
    }
}

static void push_bytes(struct detok *d, const char *bytes, size_t len, struct buf *out)
{
    for (size_t i = 0; i < len;) {
        size_t n = d->n_tail || d->strip_left ? 0 : utf8_valid_prefix(bytes + i, len - i);
        if (n)
            buf_put(out, bytes + i, n);
        i += n;
        if (i < len)
            push_byte(d, (unsigned char)bytes[i++], out);
    }
}

/* The first token of a text under rules that single it out (Metaspace, no decoder). */
static void push_first(struct detok *d, const struct token_info *info, struct buf *out)
{
    const struct decoder *decoder = &d->t->decoder;
    const char *text = info->content;
    size_t len = info->content_len;
    if (!decoder->present) {
        push_bytes(d, text, len, out);
        return;
    }
    const struct decode_step *s = NULL;
    for (size_t i = 0; i < decoder->n && !s; i++) {
        if (decoder->steps[i].kind == DECODE_METASPACE && decoder->steps[i].drop_first)
            s = &decoder->steps[i];
    }
    if (!s) {
        push_bytes(d, d->t->bytes.data + info->bytes_start, info->bytes_len, out);
        return;
    }
    for (size_t i = 0, n; i < len; i += n) {
        utf8_next(text + i, len - i, &n);
        if (n != s->content_len || memcmp(text + i, s->content, n) != 0)
            push_bytes(d, text + i, n, out);
    }
}

void detok_push(struct detok *d, int32_t id, struct buf *out)
{
    const struct tokenizer *t = d->t;
    if (id < 0 || (uint32_t)id >= t->n_ids || !t->info[id].content)
        return;
    const struct token_info *info = &t->info[id];
    if (d->skip_special && info->special)
        return;
    if (t->decoder.byte_fallback && d->n_tail && info->content_len != 6)
        detok_finish(d, out); /* a run of byte tokens ends at any other token */
    if (!d->started)
        push_first(d, info, out);
    else
        push_bytes(d, t->bytes.data + info->bytes_start, info->bytes_len, out);
    d->started = true;
}

void detok_finish(struct detok *d, struct buf *out)
{
    if (d->n_tail)
        emit_bad(d, out, d->n_tail);
    d->n_tail = 0;
}
