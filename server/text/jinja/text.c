/* Case mapping is utf8proc's one-to-one tables and the sharp s. */
#include "server/text/jinja/text.h"
#include "server/text/utf8.h"

#include <string.h>
#include <utf8proc.h>

bool jtext_is_space(uint32_t cp)
{
    return cp_is_space(cp) || (cp >= 0x1C && cp <= 0x1F);
}

static bool in_set(uint32_t cp, const struct jstr *chars)
{
    if (!chars)
        return jtext_is_space(cp);
    for (size_t i = 0, n; i < chars->len; i += n) {
        if (utf8_next(chars->s + i, chars->len - i, &n) == cp)
            return true;
    }
    return false;
}

struct jstr jtext_strip(struct jstr s, const struct jstr *chars, bool left, bool right)
{
    size_t n;
    while (left && s.len && in_set(utf8_next(s.s, s.len, &n), chars)) {
        s.s += n;
        s.len -= n;
    }
    while (right && s.len) {
        size_t last = utf8_prev(s.s, s.len);
        if (!in_set(utf8_next(s.s + last, s.len - last, &n), chars))
            break;
        s.len = last;
    }
    return s;
}

static bool is_cased(uint32_t cp)
{
    utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
    return c == UTF8PROC_CATEGORY_LU || c == UTF8PROC_CATEGORY_LL || c == UTF8PROC_CATEGORY_LT;
}

static void put_cp(struct buf *b, utf8proc_int32_t cp)
{
    char bytes[4];
    buf_put(b, bytes, utf8_put((uint32_t)cp, bytes));
}

static void put_lower(struct buf *b, uint32_t cp)
{
    if (cp == 0x130)
        buf_puts(b, "i\xCC\x87");
    else
        put_cp(b, utf8proc_tolower((utf8proc_int32_t)cp));
}

static void put_upper(struct buf *b, uint32_t cp, bool title)
{
    if (cp == 0xDF)
        buf_puts(b, title ? "Ss" : "SS");
    else if (title)
        put_cp(b, utf8proc_totitle((utf8proc_int32_t)cp));
    else
        put_cp(b, utf8proc_toupper((utf8proc_int32_t)cp));
}

bool jtext_case(struct jrun *r, struct jstr s, enum jtext_case how, struct jval *out)
{
    struct buf b;
    bool after_cased = false;
    jrun_buf(r, &b);
    for (size_t i = 0, n; i < s.len; i += n) {
        uint32_t cp = utf8_next(s.s + i, s.len - i, &n);
        bool first = how == JTEXT_TITLE ? !after_cased : i == 0;
        if (how == JTEXT_UPPER)
            put_upper(&b, cp, false);
        else if (how != JTEXT_LOWER && first)
            put_upper(&b, cp, true);
        else
            put_lower(&b, cp);
        after_cased = is_cased(cp);
    }
    return jrun_take(r, &b, out) && jrun_work(r, s.len);
}

bool jtext_title_words(struct jrun *r, struct jstr s, struct jval *out)
{
    struct buf b;
    bool first = true;
    jrun_buf(r, &b);
    for (size_t i = 0, n; i < s.len; i += n) {
        uint32_t cp = utf8_next(s.s + i, s.len - i, &n);
        bool separates =
            cp == '-' || cp == '(' || cp == '{' || cp == '[' || cp == '<' || jtext_is_space(cp);
        if (first && !separates)
            put_upper(&b, cp, false);
        else
            put_lower(&b, cp);
        first = separates;
    }
    return jrun_take(r, &b, out) && jrun_work(r, s.len);
}

/* An empty `from` stands between all characters. */
static void replace_empty(struct jstr s, struct jstr to, int64_t max, struct buf *b)
{
    for (size_t i = 0, n; i < s.len; i += n) {
        if (max != 0) {
            buf_put(b, to.s, to.len);
            max -= max > 0;
        }
        utf8_next(s.s + i, s.len - i, &n);
        buf_put(b, s.s + i, n);
    }
    if (max != 0)
        buf_put(b, to.s, to.len);
}

bool jtext_replace(struct jrun *r, struct jstr s, const struct jstr from_to[2], int64_t max,
                   struct jval *out)
{
    struct jstr from = from_to[0], to = from_to[1];
    struct buf b;
    jrun_buf(r, &b);
    if (from.len == 0) {
        replace_empty(s, to, max, &b);
        return jrun_take(r, &b, out) && jrun_work(r, s.len);
    }
    size_t done = 0;
    while (max != 0 && s.len - done >= from.len) {
        const char *hit = memmem(s.s + done, s.len - done, from.s, from.len);
        if (!hit)
            break;
        buf_put(&b, s.s + done, (size_t)(hit - s.s) - done);
        buf_put(&b, to.s, to.len);
        done = (size_t)(hit - s.s) + from.len;
        max -= max > 0;
    }
    buf_put(&b, s.s ? s.s + done : "", s.len - done);
    return jrun_take(r, &b, out) && jrun_work(r, 1 + s.len / 8);
}

static struct jstr part(struct jstr s, size_t start, size_t end)
{
    return (struct jstr){.s = s.s + start, .len = end - start};
}

static bool split_blanks(struct jrun *r, struct jstr s, int64_t max, struct jlist *list)
{
    for (;;) {
        s = jtext_strip(s, NULL, true, false);
        if (!s.len)
            return true;
        size_t end = 0, n;
        while (end < s.len && !jtext_is_space(utf8_next(s.s + end, s.len - end, &n)))
            end += n;
        if (max == 0)
            return jlist_add(r, list, jv_str(s));
        max -= max > 0;
        if (!jlist_add(r, list, jv_str(part(s, 0, end))))
            return false;
        s = part(s, end, s.len);
    }
}

static bool split_blanks_right(struct jrun *r, struct jstr s, int64_t max, struct jlist *list)
{
    for (;;) {
        s = jtext_strip(s, NULL, false, true);
        if (!s.len)
            return true;
        size_t start = s.len, n;
        while (start > 0) {
            size_t prev = utf8_prev(s.s, start);
            if (jtext_is_space(utf8_next(s.s + prev, s.len - prev, &n)))
                break;
            start = prev;
        }
        if (max == 0)
            return jlist_add(r, list, jv_str(s));
        max -= max > 0;
        if (!jlist_add(r, list, jv_str(part(s, start, s.len))))
            return false;
        s = part(s, 0, start);
    }
}

static bool split_sep(struct jrun *r, struct jstr s, struct jstr sep, int64_t max,
                      struct jlist *list)
{
    size_t done = 0;
    while (max != 0 && s.len - done >= sep.len) {
        const char *hit = memmem(s.s + done, s.len - done, sep.s, sep.len);
        if (!hit)
            break;
        size_t at = (size_t)(hit - s.s);
        if (!jlist_add(r, list, jv_str(part(s, done, at))))
            return false;
        done = at + sep.len;
        max -= max > 0;
    }
    return jlist_add(r, list, jv_str(part(s, done, s.len)));
}

static bool split_sep_right(struct jrun *r, struct jstr s, struct jstr sep, int64_t max,
                            struct jlist *list)
{
    size_t end = s.len;
    for (size_t at = s.len; max != 0 && at >= sep.len;) {
        at--;
        if (at + sep.len > end || memcmp(s.s + at, sep.s, sep.len) != 0) {
            if (at == 0)
                break;
            continue;
        }
        if (!jlist_add(r, list, jv_str(part(s, at + sep.len, end))))
            return false;
        end = at;
        max -= max > 0;
        if (at == 0)
            break;
    }
    return jlist_add(r, list, jv_str(part(s, 0, end)));
}

static void reverse(struct jlist *list)
{
    for (size_t i = 0; i < list->n / 2; i++) {
        struct jval t = list->items[i];
        list->items[i] = list->items[list->n - 1 - i];
        list->items[list->n - 1 - i] = t;
    }
}

bool jtext_split(struct jrun *r, struct jstr s, const struct jtext_split_args *how,
                 struct jval *out)
{
    struct jlist *list = jlist_new(r);
    if (!list || !jrun_work(r, 1 + s.len / 8))
        return false;
    if (how->sep && how->sep->len == 0)
        return jrun_fail(r, STATUS_INVALID, "empty separator");
    *out = jv_list(list);
    bool ok;
    if (how->sep && how->right)
        ok = split_sep_right(r, s, *how->sep, how->max, list);
    else if (how->sep)
        ok = split_sep(r, s, *how->sep, how->max, list);
    else if (how->right)
        ok = split_blanks_right(r, s, how->max, list);
    else
        ok = split_blanks(r, s, how->max, list);
    if (how->right)
        reverse(list);
    return ok;
}

static bool is_line_end(uint32_t cp)
{
    return (cp >= 0x0A && cp <= 0x0D) || (cp >= 0x1C && cp <= 0x1E) || cp == 0x85 || cp == 0x2028 ||
           cp == 0x2029;
}

bool jtext_splitlines(struct jrun *r, struct jstr s, bool keep_ends, struct jval *out)
{
    struct jlist *list = jlist_new(r);
    if (!list)
        return false;
    *out = jv_list(list);
    size_t start = 0;
    for (size_t i = 0, n; i < s.len; i += n) {
        uint32_t cp = utf8_next(s.s + i, s.len - i, &n);
        if (!is_line_end(cp))
            continue;
        if (cp == '\r' && i + 1 < s.len && s.s[i + 1] == '\n')
            n = 2;
        if (!jlist_add(r, list, jv_str(part(s, start, keep_ends ? i + n : i))))
            return false;
        start = i + n;
    }
    if (start < s.len && !jlist_add(r, list, jv_str(part(s, start, s.len))))
        return false;
    return jrun_work(r, 1 + s.len / 8);
}
