/* Ids to text while they come. A token's bytes are known; what is left to do here is to hold back
 * the unfinished character at the end, to replace bad bytes as the decoder of the file would (byte
 * fallback: all of a run or nothing), and to apply what concerns only the start of the text. No
 * heap. */
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

/* The first n bytes of the tail are text, or one bad sequence. */
static void emit_tail(struct detok *d, struct buf *out, size_t n, bool good)
{
    size_t before = out->len;
    emit(d, out, good ? (const char *)d->tail : UTF8_REPLACEMENT, good ? n : 3);
    d->lead += n <= d->n_old ? (uint32_t)(out->len - before) : 0;
    d->n_old = n <= d->n_old ? (uint8_t)(d->n_old - n) : 0;
    d->n_tail = (uint8_t)(d->n_tail - n);
    memmove(d->tail, d->tail + n, d->n_tail);
}

static void push_byte(struct detok *d, unsigned char byte, struct buf *out)
{
    CHECK(d->n_tail < sizeof(d->tail));
    d->tail[d->n_tail++] = byte;
    while (d->n_tail) {
        size_t n;
        bool partial, good = utf8_scan(d->tail, d->n_tail, &n, &partial);
        if (!good && partial)
            return;
        emit_tail(d, out, n, good);
    }
}

/* The run is no UTF-8: each of its bytes becomes a mark. */
static void spoil(struct detok *d, struct buf *out)
{
    d->taken = d->loose;
    d->loose = 0;
    d->n_tail = 0;
    d->strip_left = d->run_strip;
    d->run_bad = d->spoiled = true;
    for (uint32_t i = 0; i < d->run; i++)
        emit(d, out, UTF8_REPLACEMENT, 3);
}

static void end_run(struct detok *d, struct buf *out)
{
    size_t before = out->len;
    if (d->n_tail && d->run)
        spoil(d, out);
    d->lead += (uint32_t)(out->len - before);
    d->run = d->loose = 0;
    d->run_bad = false;
}

static void push_run(struct detok *d, unsigned char byte, struct buf *out)
{
    size_t n, before = out->len;
    bool partial;
    if (d->run++ == 0)
        d->run_strip = d->strip_left;
    if (d->run_bad) {
        emit(d, out, UTF8_REPLACEMENT, 3);
        return;
    }
    d->tail[d->n_tail++] = byte;
    if (utf8_scan(d->tail, d->n_tail, &n, &partial)) {
        emit(d, out, (const char *)d->tail, n);
        d->n_tail = 0;
        d->loose += (uint32_t)(out->len - before);
    } else if (!partial) {
        spoil(d, out);
        d->lead = 3 * (d->run - 1);
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

/* The token, or NULL where it is not shown. */
static const struct token_info *shown(const struct detok *d, int32_t id)
{
    const struct tokenizer *t = d->t;
    if (id < 0 || (uint32_t)id >= t->n_ids || !t->info[id].content)
        return NULL;
    return d->skip_special && t->info[id].special ? NULL : &t->info[id];
}

/* A byte token is the only one whose "<0xHH>" stands for one byte. */
static bool is_byte(const struct detok *d, const struct token_info *info)
{
    return d->t->decoder.byte_fallback && info->bytes_len == 1 && info->content_len == 6 &&
           memcmp(info->content, "<0x", 3) == 0;
}

bool detok_is_byte(const struct detok *d, int32_t id)
{
    const struct token_info *info = shown(d, id);
    return info && is_byte(d, info);
}

static void begin_step(struct detok *d)
{
    d->taken = d->lead = 0;
    d->spoiled = false;
    d->n_old = d->n_tail;
}

void detok_step(struct detok *d, int32_t id, struct buf *out)
{
    const struct token_info *info = shown(d, id);
    begin_step(d);
    if (!info)
        return;
    const char *bytes = d->t->bytes.data + info->bytes_start;
    if (is_byte(d, info)) {
        push_run(d, (unsigned char)*bytes, out);
    } else {
        end_run(d, out);
        if (d->started)
            push_bytes(d, bytes, info->bytes_len, out);
        else
            push_first(d, info, out);
    }
    d->started = true;
}

/* out had `before` bytes; those that are void go. */
static void drop_taken(const struct detok *d, struct buf *out, size_t before)
{
    if (d->taken == 0 || out->failed)
        return;
    CHECK(before >= d->taken);
    memmove(out->data + before - d->taken, out->data + before, out->len - before + 1);
    out->len -= d->taken;
}

void detok_push(struct detok *d, int32_t id, struct buf *out)
{
    size_t before = out->len;
    detok_step(d, id, out);
    drop_taken(d, out, before);
}

void detok_finish(struct detok *d, struct buf *out)
{
    size_t before = out->len;
    begin_step(d);
    if (d->run)
        end_run(d, out);
    else if (d->n_tail)
        emit_tail(d, out, d->n_tail, false);
    drop_taken(d, out, before);
}

size_t detok_step_bytes_max(const struct tokenizer *t, size_t steps)
{
    uint32_t longest = 0;
    for (uint32_t i = 0; i < t->n_ids; i++)
        longest = MAX(longest, t->info[i].bytes_len);
    return 3 * (steps + 4 + longest); /* a run, a tail and a token, all of them U+FFFD */
}
