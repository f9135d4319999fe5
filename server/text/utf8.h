/* UTF-8 and the few character classes of the tokenizer and of the template language. Pure, no
 * allocation. Thread: any. */
#ifndef RS_TEXT_UTF8_H
#define RS_TEXT_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define UTF8_REPLACEMENT "\xEF\xBF\xBD"

/* Bytes of the valid sequence at s (1..4), 0 if there is none. */
size_t utf8_seq_len(const unsigned char *s, size_t left);
/* What the bytes at s are: a complete character (its length in *n), a valid but unfinished prefix
 * that reaches the end (true in *partial), or bad bytes to be replaced as one U+FFFD (length *n:
 * the maximal valid prefix, at least 1). Returns true for a complete character. */
bool utf8_scan(const unsigned char *s, size_t left, size_t *n, bool *partial);
/* Offset of the first invalid byte, or len. */
size_t utf8_valid_prefix(const char *s, size_t len);
/* Decode one character of valid UTF-8; left must be > 0. */
uint32_t utf8_next(const char *s, size_t left, size_t *n);
/* Start of the character that ends at s[end]; end > 0, valid UTF-8. */
size_t utf8_prev(const char *s, size_t end);
/* Encode into out[4]; returns the length. */
size_t utf8_put(uint32_t cp, char *out);
/* Characters in valid UTF-8. */
size_t utf8_count(const char *s, size_t len);

bool cp_is_space(uint32_t cp);   /* Unicode White_Space */
bool cp_is_mark(uint32_t cp);    /* general category M */
bool cp_is_numeric(uint32_t cp); /* general category N */
bool cp_is_punct(uint32_t cp);   /* ASCII punctuation or general category P */
bool cp_is_word(uint32_t cp);    /* \w of the reference: Alphabetic, M, Nd, Pc, joiners */
bool cp_is_letter(uint32_t cp);  /* general category L */

#endif
