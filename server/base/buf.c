/* Growth doubles up to the maximum; a failed append leaves what was there and only marks it. */
#include "server/base/buf.h"
#include "server/base/check.h"
#include "server/base/hex.h"
#include "server/base/mem.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void buf_init(struct buf *b, size_t bytes_max)
{
    *b = (struct buf){.bytes_max = bytes_max};
}

void buf_fini(struct buf *b)
{
    mem_free(b->data);
    *b = (struct buf){.bytes_max = b->bytes_max};
}

void buf_clear(struct buf *b)
{
    b->len = 0;
    b->failed = false;
    if (b->data)
        b->data[0] = '\0';
}

bool buf_reserve(struct buf *b, size_t more)
{
    if (b->failed)
        return false;
    if (more > b->bytes_max || b->len > b->bytes_max - more) {
        b->failed = true;
        return false;
    }
    size_t need = b->len + more + 1;
    if (need <= b->cap)
        return true;
    size_t cap = b->cap ? b->cap : 64;
    while (cap < need)
        cap *= 2;
    char *p = mem_try_realloc(b->data, cap);
    if (!p) {
        b->failed = true;
        return false;
    }
    b->data = p;
    b->cap = cap;
    return true;
}

void buf_put(struct buf *b, const void *data, size_t len)
{
    if (!buf_reserve(b, len))
        return;
    if (len)
        memcpy(b->data + b->len, data, len);
    b->len += len;
    b->data[b->len] = '\0';
}

void buf_puts(struct buf *b, const char *s)
{
    buf_put(b, s, strlen(s));
}

void buf_putc(struct buf *b, char c)
{
    buf_put(b, &c, 1);
}

void buf_printf(struct buf *b, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    va_list again;
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n >= 0 && buf_reserve(b, (size_t)n)) {
        vsnprintf(b->data + b->len, (size_t)n + 1, fmt, again);
        b->len += (size_t)n;
    }
    va_end(again);
}

/* Length of the valid UTF-8 sequence at s (1..4), or 0. */
static size_t utf8_len(const unsigned char *s, size_t left)
{
    if (s[0] < 0x80)
        return 1;
    size_t n = s[0] >= 0xF0 ? 4 : s[0] >= 0xE0 ? 3 : 2;
    if (s[0] < 0xC2 || s[0] > 0xF4 || n > left)
        return 0;
    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xC0) != 0x80)
            return 0;
    }
    if ((s[0] == 0xE0 && s[1] < 0xA0) || (s[0] == 0xED && s[1] > 0x9F) ||
        (s[0] == 0xF0 && s[1] < 0x90) || (s[0] == 0xF4 && s[1] > 0x8F))
        return 0;
    return n;
}

static void put_json_ascii(struct buf *b, unsigned char c)
{
    static const char shorts[] = {
        ['\b'] = 'b', ['\t'] = 't', ['\n'] = 'n', ['\f'] = 'f', ['\r'] = 'r'};
    if (c == '"' || c == '\\') {
        buf_putc(b, '\\');
        buf_putc(b, (char)c);
    } else if (c < sizeof(shorts) && shorts[c]) {
        buf_putc(b, '\\');
        buf_putc(b, shorts[c]);
    } else if (c < 0x20 || c == 0x7F) {
        buf_printf(b, "\\u%04x", c);
    } else {
        buf_putc(b, (char)c);
    }
}

void buf_put_json_string(struct buf *b, const char *s, size_t len)
{
    const unsigned char *p = (const unsigned char *)s;
    buf_putc(b, '"');
    for (size_t i = 0; i < len;) {
        size_t n = utf8_len(p + i, len - i);
        if (n == 0) {
            buf_puts(b, "\xEF\xBF\xBD");
            n = 1;
        } else if (n == 1) {
            put_json_ascii(b, p[i]);
        } else {
            buf_put(b, p + i, n);
        }
        i += n;
    }
    buf_putc(b, '"');
}

void buf_put_hex(struct buf *b, const uint8_t *data, size_t n)
{
    char text[2 * 64 + 1];
    buf_puts(b, "0x");
    for (size_t at = 0; at < n; at += 64) {
        size_t part = n - at < 64 ? n - at : 64;
        hex_encode(text, data + at, part);
        buf_put(b, text, 2 * part);
    }
}

void buf_put_json_hex(struct buf *b, const char *key, const uint8_t *data, size_t n)
{
    buf_printf(b, "\"%s\":\"", key);
    buf_put_hex(b, data, n);
    buf_putc(b, '"');
}

void buf_drop_front(struct buf *b, size_t n)
{
    CHECK(n <= b->len);
    if (n == 0)
        return;
    memmove(b->data, b->data + n, b->len - n);
    b->len -= n;
    b->data[b->len] = '\0';
}

char *buf_steal(struct buf *b, size_t *len)
{
    char *data = NULL;
    if (b->failed || !buf_reserve(b, 0)) {
        buf_fini(b);
        return NULL;
    }
    data = b->data;
    data[b->len] = '\0';
    if (len)
        *len = b->len;
    *b = (struct buf){.bytes_max = b->bytes_max};
    return data;
}
