/* Oniguruma (Ruby syntax, as tokenizer files use it) to PCRE2. What differs and is rewritten: `\s`
 * (PCRE2 adds U+180E), `\w` (marks, letter numbers, enclosed letters), `\h` (hex digit there),
 * `\v` (one character there), `\uHHHH`. What differs and is refused by name: nested classes and
 * `&&`, POSIX classes, `\b`, `{n,m}+` (not possessive there), inline flags other than i, named
 * groups, back references, verbs. Everything else is copied. */
#include "server/base/hex.h"
#include "server/text/regex.h"
#include "server/text/utf8.h"

#include <stdio.h>
#include <string.h>

#define SPACE_SET                                                                                  \
    "\\x{9}-\\x{D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}"    \
    "\\x{205F}\\x{3000}"
#define NOT_SPACE_SET                                                                              \
    "\\x{0}-\\x{8}\\x{E}-\\x{1F}\\x{21}-\\x{84}\\x{86}-\\x{9F}\\x{A1}-\\x{167F}\\x{1681}-"         \
    "\\x{1FFF}\\x{200B}-\\x{2027}\\x{202A}-\\x{202E}\\x{2030}-\\x{205E}\\x{2060}-\\x{2FFF}"        \
    "\\x{3001}-\\x{10FFFF}"
#define WORD_SET                                                                                   \
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24B6}-\\x{24E9}\\x{1F130}-\\x{1F149}\\x{1F150}-"         \
    "\\x{1F169}\\x{1F170}-\\x{1F189}"

struct regex_walk {
    const char *s;
    size_t len, i;
    bool in_class;
    bool class_first; /* next character is the first of the class */
    struct buf *out;
    struct errtext *err;
};

static enum status refuse(const struct regex_walk *w, const char *what)
{
    return err_set(w->err, STATUS_UNSUPPORTED,
                   "regular expression '%.*s': %s at offset %zu is not supported",
                   (int)(w->len < 120 ? w->len : 120), w->s, what, w->i);
}

static void put_set(struct regex_walk *w, const char *set, bool negated)
{
    if (!w->in_class)
        buf_puts(w->out, negated ? "[^" : "[");
    buf_puts(w->out, set);
    if (!w->in_class)
        buf_putc(w->out, ']');
}

/* \xHH, \x{H...}, \uHHHH: w->i is at the letter. */
static enum status translate_code(struct regex_walk *w)
{
    bool braced = w->s[w->i] == 'x' && w->i + 1 < w->len && w->s[w->i + 1] == '{';
    size_t digits_max = braced ? 8 : w->s[w->i] == 'u' ? 4 : 2;
    size_t i = w->i + 1 + braced;
    uint32_t cp = 0;
    size_t digits = 0;
    for (; digits < digits_max && i < w->len; digits++, i++) {
        int v = hex_digit(w->s[i]);
        if (v < 0)
            break;
        cp = cp << 4 | (uint32_t)v;
    }
    if (digits == 0 || (braced && (i >= w->len || w->s[i] != '}')) ||
        (!braced && digits < digits_max) || cp > 0x10FFFF ||
        (!braced && digits_max == 2 && cp > 0x7F))
        return refuse(w, "this code point escape");
    w->i = i + braced;
    buf_printf(w->out, "\\x{%X}", cp);
    return STATUS_OK;
}

/* \p{...}: copied as it is, PCRE2 knows the names or refuses them. */
static enum status translate_property(struct regex_walk *w)
{
    if (w->i + 1 >= w->len || w->s[w->i + 1] != '{')
        return refuse(w, "a property without braces");
    const char *end = memchr(w->s + w->i, '}', w->len - w->i);
    if (!end)
        return refuse(w, "an unclosed property");
    size_t n = (size_t)(end - w->s) - w->i + 1;
    buf_putc(w->out, '\\');
    buf_put(w->out, w->s + w->i, n);
    w->i += n;
    return STATUS_OK;
}

static enum status translate_escape(struct regex_walk *w)
{
    w->i++; /* the backslash */
    if (w->i >= w->len)
        return refuse(w, "a trailing backslash");
    char c = w->s[w->i];
    switch (c) {
    case 's':
        put_set(w, SPACE_SET, false);
        break;
    case 'S':
        put_set(w, w->in_class ? NOT_SPACE_SET : SPACE_SET, !w->in_class);
        break;
    case 'w':
        put_set(w, WORD_SET, false);
        break;
    case 'W':
        if (w->in_class)
            return refuse(w, "\\W in a character class");
        put_set(w, WORD_SET, true);
        break;
    case 'h':
        put_set(w, "0-9a-fA-F", false);
        break;
    case 'v':
        buf_puts(w->out, "\\x{0B}");
        break;
    case 'x':
    case 'u':
        return translate_code(w);
    case 'p':
    case 'P':
        return translate_property(w);
    case 'A':
    case 'z':
    case 'Z':
        if (w->in_class)
            return refuse(w, "an anchor in a character class");
        /* fall through */
    case 'n':
    case 'r':
    case 't':
    case 'f':
    case 'a':
    case 'e':
    case 'd':
    case 'D':
        buf_putc(w->out, '\\');
        buf_putc(w->out, c);
        break;
    default:
        if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'))
            return refuse(w, "this escape");
        if ((unsigned char)c < 0x80)
            buf_putc(w->out, '\\');
        buf_putc(w->out, c);
    }
    w->i++;
    return STATUS_OK;
}

static enum status translate_in_class(struct regex_walk *w)
{
    char c = w->s[w->i];
    bool first = w->class_first;
    if (c == '\\') {
        w->class_first = false;
        return translate_escape(w);
    }
    if (c == '[')
        return refuse(w, "a class inside a character class");
    if (c == '&' && w->i + 1 < w->len && w->s[w->i + 1] == '&')
        return refuse(w, "'&&' in a character class");
    if (c == ']' && first)
        return refuse(w, "']' at the start of a character class");
    if (c == ']')
        w->in_class = false;
    w->class_first = c == '^' && first && w->s[w->i - 1] == '[';
    buf_putc(w->out, c);
    w->i++;
    return STATUS_OK;
}

static bool starts(const struct regex_walk *w, const char *prefix)
{
    size_t n = strlen(prefix);
    return w->len - w->i >= n && memcmp(w->s + w->i, prefix, n) == 0;
}

static enum status translate_group(struct regex_walk *w)
{
    static const char *const known[] = {"(?:", "(?=",  "(?!",   "(?<=", "(?<!",
                                        "(?>", "(?i:", "(?-i:", "(?i)"};
    if (starts(w, "(*"))
        return refuse(w, "'(*'");
    if (!starts(w, "(?")) {
        buf_putc(w->out, '(');
        w->i++;
        return STATUS_OK;
    }
    for (size_t k = 0; k < sizeof(known) / sizeof(known[0]); k++) {
        if (starts(w, known[k]) && (w->i == 0 || strcmp(known[k], "(?i)") != 0)) {
            buf_puts(w->out, known[k]);
            w->i += strlen(known[k]);
            return STATUS_OK;
        }
    }
    return refuse(w, "this kind of group");
}

/* {n}, {n,}, {n,m}, {,m}: w->i is at '{'. Anything else is a literal brace. */
static enum status translate_brace(struct regex_walk *w)
{
    size_t i = w->i + 1;
    size_t digits = 0, commas = 0;
    while (i < w->len && ((w->s[i] >= '0' && w->s[i] <= '9') || w->s[i] == ',')) {
        digits += w->s[i] != ',';
        commas += w->s[i] == ',';
        i++;
    }
    if (i >= w->len || w->s[i] != '}' || digits == 0 || commas > 1) {
        buf_puts(w->out, "\\{");
        w->i++;
        return STATUS_OK;
    }
    if (w->s[w->i + 1] == ',')
        buf_puts(w->out, "{0"); /* {,m} is a literal in PCRE2 */
    else
        buf_putc(w->out, '{');
    buf_put(w->out, w->s + w->i + 1, i - w->i);
    w->i = i + 1;
    if (w->i < w->len && w->s[w->i] == '+')
        return refuse(w, "'+' after {n,m}");
    return STATUS_OK;
}

static enum status translate_one(struct regex_walk *w)
{
    char c = w->s[w->i];
    if (w->in_class)
        return translate_in_class(w);
    if (c == '\\')
        return translate_escape(w);
    if (c == '(')
        return translate_group(w);
    if (c == '{')
        return translate_brace(w);
    if (c == '[') {
        w->in_class = true;
        w->class_first = true;
    }
    if (c == '}' || c == ']')
        buf_putc(w->out, '\\');
    buf_putc(w->out, c);
    w->i++;
    return STATUS_OK;
}

enum status regex_translate(const char *pattern, size_t len, struct buf *out, struct errtext *err)
{
    if (len > REGEX_PATTERN_BYTES_MAX)
        return err_set(err, STATUS_TOO_LARGE, "a regular expression of %zu bytes; at most %d", len,
                       REGEX_PATTERN_BYTES_MAX);
    if (memchr(pattern, '\0', len))
        return err_set(err, STATUS_INVALID, "a regular expression holds a NUL byte");
    struct regex_walk w = {.s = pattern, .len = len, .out = out, .err = err};
    while (w.i < w.len) {
        enum status st = translate_one(&w);
        if (st)
            return st;
    }
    if (w.in_class)
        return refuse(&w, "an unclosed character class");
    buf_reserve(out, 0);
    if (out->failed)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a regular expression");
    return STATUS_OK;
}
