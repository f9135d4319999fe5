/* A growing byte buffer that is created with its maximum. Past the maximum, or when memory is
 * refused, the buffer turns `failed` and ignores further appends: check once at the end. data is
 * always NUL-terminated when non-NULL. One owner, no locking. */
#ifndef RS_BASE_BUF_H
#define RS_BASE_BUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buf {
    char *data;
    size_t len;
    size_t cap;
    size_t bytes_max;
    bool failed;
};

void buf_init(struct buf *b, size_t bytes_max);
void buf_fini(struct buf *b);  /* frees; the buffer is empty and reusable with the same maximum */
void buf_clear(struct buf *b); /* keeps the memory */
/* Make room for `more` bytes; false (and failed) past the maximum. */
bool buf_reserve(struct buf *b, size_t more);
void buf_put(struct buf *b, const void *data, size_t len);
void buf_puts(struct buf *b, const char *s);
void buf_putc(struct buf *b, char c);
void buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Append as a JSON string with quotes. Invalid UTF-8 becomes U+FFFD. */
void buf_put_json_string(struct buf *b, const char *s, size_t len);
/* 0x and lower-case hex, as they are; and as a member of a JSON object: "key":"0x…". */
void buf_put_hex(struct buf *b, const uint8_t *data, size_t n);
void buf_put_json_hex(struct buf *b, const char *key, const uint8_t *data, size_t n);
void buf_drop_front(struct buf *b, size_t n);
/* Hand the memory to the caller (mem_free), or NULL if failed; b becomes empty. */
char *buf_steal(struct buf *b, size_t *len);

#endif
