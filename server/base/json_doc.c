/* Text -> tree. jansson parses; around it stand what it does not do. A scan bounds the nesting
 * before it runs, since its own bound (2048) is deeper than any document of ours and recursion
 * costs stack. And it refuses a whole document for one number that does not fit its types, so when
 * it says so the text is written again with those tokens in a form that fits:
 *
 *   18446744073709551615   ->   18446744073709551615.0        past int64: a real
 *   -1e999                 ->   -1.7976931348623157e308       past double: the largest
 *
 * Every other byte stays, a number is replaced by a number, so what was malformed stays malformed.
 * The second text is at most five times the first, and there is no third. */
#include "server/base/buf.h"
#include "server/base/file.h"
#include "server/base/json.h"
#include "server/base/mem.h"

#include <string.h>

#define DOUBLE_MAX_TEXT "1.7976931348623157e308"
#define EXPONENT_MAX    1000000000000 /* of a token: digits past it change nothing */

/* Bytes of the string that begins at s[0] == '"', with both quotes if it ends. */
static size_t string_bytes(const char *s, size_t left)
{
    size_t i = 1;
    while (i < left && s[i] != '"')
        i += s[i] == '\\' ? 2 : 1;
    return i < left ? i + 1 : left;
}

static uint32_t depth_of(const char *text, size_t len)
{
    uint32_t depth = 0, deepest = 0;
    for (size_t i = 0; i < len; i++) {
        char c = text[i];
        if (c == '"') {
            i += string_bytes(text + i, len - i) - 1;
        } else if (c == '{' || c == '[') {
            depth++;
            deepest = depth > deepest ? depth : deepest;
        } else if ((c == '}' || c == ']') && depth > 0) {
            depth--;
        }
    }
    return deepest;
}

struct number {
    size_t bytes; /* of the token; 0: none begins here */
    bool negative, is_real;
    const char *whole, *fraction; /* digits */
    size_t whole_count, fraction_count;
    int64_t exponent;
};

static size_t digit_count(const char *s, size_t left)
{
    size_t n = 0;
    while (n < left && s[n] >= '0' && s[n] <= '9')
        n++;
    return n;
}

/* Bytes of the exponent that begins at s ("e-3"), or 0. */
static size_t scan_exponent(struct number *n, const char *s, size_t left)
{
    size_t at = 1;
    if (left < 2 || (*s != 'e' && *s != 'E'))
        return 0;
    bool negative = s[1] == '-';
    at += negative || s[1] == '+';
    size_t count = digit_count(s + at, left - at);
    for (size_t i = 0; i < count && n->exponent < EXPONENT_MAX; i++)
        n->exponent = n->exponent * 10 + (s[at + i] - '0');
    if (negative)
        n->exponent = -n->exponent;
    return count ? at + count : 0;
}

static struct number scan_number(const char *s, size_t left)
{
    struct number n = {.negative = left && *s == '-'};
    size_t at = n.negative;
    n.whole = s + at;
    n.whole_count = digit_count(s + at, left - at);
    if (n.whole_count == 0)
        return n;
    if (*n.whole == '0')
        n.whole_count = 1; /* no number has a leading zero: jansson says so */
    at += n.whole_count;
    if (at < left && s[at] == '.') {
        n.fraction = s + at + 1;
        n.fraction_count = digit_count(n.fraction, left - at - 1);
        at += n.fraction_count ? 1 + n.fraction_count : 0;
    }
    size_t exponent = scan_exponent(&n, s + at, left - at);
    n.is_real = n.fraction_count || exponent;
    n.bytes = at + exponent;
    return n;
}

static bool is_past_int64(const struct number *n)
{
    const char *limit = n->negative ? "9223372036854775808" : "9223372036854775807";
    return !n->is_real &&
           (n->whole_count > 19 || (n->whole_count == 19 && memcmp(n->whole, limit, 19) > 0));
}

/* The value is 0.DIGITS x 10^top with a first digit that is not 0. What has top 309 and begins with
 * the largest double's digits rounds to it or lies past it: in both cases it reads as that. */
static bool is_past_double(const struct number *n)
{
    size_t zeros = 0;
    char lead[17];
    bool is_small = *n->whole == '0';
    while (is_small && zeros < n->fraction_count && n->fraction[zeros] == '0')
        zeros++;
    if (is_small && zeros == n->fraction_count)
        return false;
    int64_t top = (is_small ? -(int64_t)zeros : (int64_t)n->whole_count) + n->exponent;
    if (top != 309)
        return top > 309;
    size_t whole = is_small ? 0 : n->whole_count;
    for (size_t i = 0; i < sizeof(lead); i++) {
        size_t in_fraction = i - whole + zeros;
        lead[i] = i < whole                         ? n->whole[i]
                  : in_fraction < n->fraction_count ? n->fraction[in_fraction]
                                                    : '0';
    }
    return memcmp(lead, "17976931348623157", sizeof(lead)) >= 0;
}

static void rewrite_numbers(struct buf *out, const char *text, size_t len)
{
    size_t kept = 0, at = 0; /* [kept, at) is copied as it is */
    while (at < len) {
        struct number n = {.bytes = 0};
        if (text[at] == '"') {
            at += string_bytes(text + at, len - at);
            continue;
        }
        if (text[at] == '-' || (text[at] >= '0' && text[at] <= '9'))
            n = scan_number(text + at, len - at);
        at += n.bytes ? n.bytes : 1;
        if (n.bytes && is_past_double(&n)) {
            buf_put(out, text + kept, at - n.bytes - kept);
            buf_puts(out, n.negative ? "-" DOUBLE_MAX_TEXT : DOUBLE_MAX_TEXT);
            kept = at;
        } else if (n.bytes && is_past_int64(&n)) {
            buf_put(out, text + kept, at - kept);
            buf_puts(out, ".0");
            kept = at;
        }
    }
    buf_put(out, text + kept, len - kept);
}

static json_t *parse(const char *text, size_t len, unsigned flags, json_error_t *e)
{
    size_t how = (flags & JSON_DOC_NUL ? JSON_ALLOW_NUL : 0) |
                 (flags & JSON_DOC_REPEATS ? 0 : JSON_REJECT_DUPLICATES);
    json_t *root = json_loadb(text, len, how, e);
    if (root || json_error_code(e) != json_error_numeric_overflow)
        return root;
    struct buf again;
    buf_init(&again, 5 * len + 64);
    rewrite_numbers(&again, text, len);
    if (!again.failed)
        root = json_loadb(again.data, again.len, how, e);
    buf_fini(&again);
    return root;
}

enum status json_doc_parse(json_t **out, const char *where, const char *text, size_t len,
                           unsigned flags, struct errtext *err)
{
    json_error_t e;
    bool is_list = flags & JSON_DOC_LIST;
    *out = NULL;
    if (len >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0) {
        text += 3;
        len -= 3;
    }
    if (len == 0)
        return err_set(err, STATUS_INVALID, "%s is empty; expected a JSON %s", where,
                       is_list ? "list" : "object");
    uint32_t depth = depth_of(text, len);
    if (depth > JSON_DEPTH_MAX)
        return err_set(err, STATUS_INVALID, "%s nests %u deep; at most %u is accepted", where,
                       depth, JSON_DEPTH_MAX);
    json_t *root = parse(text, len, flags, &e);
    if (!root && json_error_code(&e) == json_error_out_of_memory)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for it now", where);
    if (!root)
        return err_set(err, STATUS_INVALID, "%s: not valid JSON at line %d, column %d: %.200s",
                       where, e.line, e.column, e.text);
    if (is_list ? !json_is_array(root) : !json_is_object(root)) {
        json_decref(root);
        return err_set(err, STATUS_INVALID, "%s: found %s, expected a JSON %s", where,
                       is_list ? "an object" : "a list", is_list ? "list" : "object");
    }
    *out = root;
    return STATUS_OK;
}

enum status json_doc_load(json_t **out, const char *path, size_t bytes_max, unsigned flags,
                          struct errtext *err)
{
    char *text;
    size_t len;
    *out = NULL;
    enum status st = file_read(path, bytes_max, &text, &len, err);
    if (st)
        return st;
    st = json_doc_parse(out, path, text, len, flags, err);
    mem_free(text);
    return st;
}
