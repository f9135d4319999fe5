/* str.format: replacement fields by position and by name, with attributes and items behind them,
 * conversions, and the format language of strings, integers and floats. Fields are looked up with
 * the template's own getattr and getitem, so that a format string reaches nothing a template does
 * not. What Python has and this has not (a field inside a specification, type n) is an error. */
#include "server/text/jinja/format.h"
#include "server/text/utf8.h"

#include <stdio.h>
#include <string.h>

#define WIDTH_MAX     1000000
#define PRECISION_MAX 100

struct spec {
    struct jstr fill;              /* one character */
    char align, sign, type, group; /* 0: none given */
    bool zero, alternate;
    int64_t width, precision; /* -1: none given */
};

static bool is_align(char c)
{
    return c && strchr("<>^=", c);
}

static bool take_number(struct jstr text, size_t *at, int64_t *out)
{
    if (*at >= text.len || text.s[*at] < '0' || text.s[*at] > '9')
        return false;
    *out = 0;
    while (*at < text.len && text.s[*at] >= '0' && text.s[*at] <= '9' && *out <= WIDTH_MAX)
        *out = *out * 10 + (text.s[(*at)++] - '0');
    return true;
}

static char take_one_of(struct jstr text, size_t *at, const char *set)
{
    if (*at >= text.len || !text.s[*at] || !strchr(set, text.s[*at]))
        return 0;
    return text.s[(*at)++];
}

static bool spec_parse(struct jrun *r, struct jstr text, struct spec *s)
{
    size_t at = 0, n = 0;
    *s = (struct spec){.fill = JSTR(" "), .width = -1, .precision = -1};
    if (text.len)
        utf8_next(text.s, text.len, &n);
    if (n && n < text.len && is_align(text.s[n])) {
        s->fill = (struct jstr){text.s, n};
        s->align = text.s[n];
        at = n + 1;
    } else {
        s->align = take_one_of(text, &at, "<>^=");
    }
    s->sign = take_one_of(text, &at, "+- ");
    s->alternate = take_one_of(text, &at, "#");
    s->zero = take_one_of(text, &at, "0");
    take_number(text, &at, &s->width);
    s->group = take_one_of(text, &at, ",_");
    if (at < text.len && text.s[at] == '.') {
        at++;
        if (!take_number(text, &at, &s->precision))
            return jrun_fail(r, STATUS_INVALID, "format: a precision is missing");
    }
    s->type = take_one_of(text, &at, "sdboxXeEfFgG%");
    if (at != text.len || s->width > WIDTH_MAX || s->precision > PRECISION_MAX ||
        (s->zero && s->group))
        return jrun_fail(r, STATUS_INVALID, "format: the specification '%.*s' is not supported",
                         (int)(text.len < 40 ? text.len : 40), text.s);
    return true;
}

/* sign and digits to the width; `number`: aligned to the right, and '=' pads between the two. */
static bool put_padded(struct jrun *r, const struct spec *s, struct jstr sign, struct jstr body,
                       bool number, struct buf *out)
{
    int64_t len = (int64_t)(sign.len + utf8_count(body.s, body.len));
    int64_t pad = s->width > len ? s->width - len : 0;
    char align = s->align ? s->align : s->zero && number ? '=' : number ? '>' : '<';
    int64_t left = align == '>' ? pad : align == '^' ? pad / 2 : 0;
    struct jstr fill = s->zero && !s->align ? JSTR("0") : s->fill;
    if (!jrun_work(r, (uint64_t)pad + 1))
        return false;
    for (int64_t i = 0; i < left; i++)
        buf_put(out, fill.s, fill.len);
    buf_put(out, sign.s, sign.len);
    for (int64_t i = 0; align == '=' && i < pad; i++)
        buf_put(out, fill.s, fill.len);
    buf_put(out, body.s, body.len);
    for (int64_t i = left; align != '=' && i < pad; i++)
        buf_put(out, fill.s, fill.len);
    return true;
}

static bool put_string(struct jrun *r, const struct spec *s, struct jstr text, struct buf *out)
{
    if ((s->type && s->type != 's') || s->sign || s->group || s->alternate || s->align == '=')
        return jrun_fail(r, STATUS_INVALID, "format: this specification is not one of strings");
    size_t at = 0, n;
    for (int64_t i = 0; s->precision >= 0 && i < s->precision && at < text.len; i++) {
        utf8_next(text.s + at, text.len - at, &n);
        at += n;
    }
    if (s->precision >= 0)
        text.len = at;
    return put_padded(r, s, JSTR(""), text, false, out);
}

static void put_grouped(const char *digits, size_t n, char group, size_t every, struct buf *out)
{
    for (size_t i = 0; i < n; i++) {
        if (group && i && (n - i) % every == 0)
            buf_putc(out, group);
        buf_putc(out, digits[i]);
    }
}

static struct jstr sign_of(const struct spec *s, bool negative)
{
    if (negative)
        return JSTR("-");
    return s->sign == '+' ? JSTR("+") : s->sign == ' ' ? JSTR(" ") : JSTR("");
}

static bool put_int(struct jrun *r, const struct spec *s, int64_t v, struct buf *out)
{
    uint64_t left = v < 0 ? 0 - (uint64_t)v : (uint64_t)v;
    unsigned base = s->type == 'b'                     ? 2
                    : s->type == 'o'                   ? 8
                    : s->type == 'x' || s->type == 'X' ? 16
                                                       : 10;
    const char *letters = s->type == 'X' ? "0123456789ABCDEF" : "0123456789abcdef";
    char digits[65], sign[4] = "";
    size_t n = sizeof(digits);
    if (s->precision >= 0 || s->type == 's')
        return jrun_fail(r, STATUS_INVALID, "format: this specification is not one of integers");
    do {
        digits[--n] = letters[left % base];
        left /= base;
    } while (left);
    struct jstr mark = sign_of(s, v < 0);
    snprintf(sign, sizeof(sign), "%.*s%s%c", (int)mark.len, mark.s,
             s->alternate && base != 10 ? "0" : "", s->alternate && base != 10 ? s->type : '\0');
    struct buf body;
    buf_init(&body, 4096);
    put_grouped(digits + n, sizeof(digits) - n, s->group, base == 10 ? 3 : 4, &body);
    bool ok = put_padded(r, s, (struct jstr){sign, strlen(sign)},
                         (struct jstr){body.data, body.len}, true, out);
    buf_fini(&body);
    return ok;
}

static bool put_real(struct jrun *r, const struct spec *s, double v, struct buf *out)
{
    char text[512], how[8];
    bool negative = v < 0 || (v == 0 && 1 / v < 0);
    struct buf plain, body;
    if (s->type == 's' || (s->type && strchr("dboxX", s->type)) || s->alternate ||
        (!s->type && s->precision >= 0))
        return jrun_fail(r, STATUS_INVALID, "format: this specification is not one of floats");
    buf_init(&plain, 4096);
    buf_init(&body, 4096);
    if (!s->type) {
        jv_put_float(negative ? -v : v, &plain);
    } else {
        char type = s->type == '%' ? 'f' : s->type;
        snprintf(how, sizeof(how), "%%.*%c", type);
        v = (negative ? -v : v) * (s->type == '%' ? 100 : 1);
        snprintf(text, sizeof(text), how, s->precision < 0 ? 6 : (int)s->precision, v);
        buf_puts(&plain, text);
    }
    size_t whole = plain.len ? strspn(plain.data, "0123456789") : 0;
    put_grouped(plain.data, whole, s->group, 3, &body);
    buf_put(&body, plain.data + whole, plain.len - whole);
    if (s->type == '%')
        buf_putc(&body, '%');
    bool ok = put_padded(r, s, sign_of(s, negative), (struct jstr){body.data, body.len}, true, out);
    buf_fini(&plain);
    buf_fini(&body);
    return ok;
}

static bool put_value(struct jrun *r, struct jval v, struct jstr text, struct buf *out)
{
    struct spec s;
    if (text.len == 0)
        return jv_put_str(r, v, out);
    if (!spec_parse(r, text, &s))
        return false;
    if (v.kind == JV_STRING)
        return put_string(r, &s, v.str, out);
    if (v.kind == JV_FLOAT || (jv_is_number(v) && s.type && strchr("eEfFgG%", s.type)))
        return put_real(r, &s, jv_number(v), out);
    if (jv_is_number(v))
        return put_int(r, &s, jv_integer(v), out);
    return jrun_fail(r, STATUS_INVALID, "unsupported format string passed to %s.__format__",
                     jv_type_name(v));
}

/* ---- fields ---- */

struct fields {
    const struct jargs *args;
    int64_t next; /* of automatic numbering */
    bool automatic, manual;
};

static bool first_value(struct jrun *r, struct fields *f, struct jstr name, struct jval *out)
{
    int64_t idx = 0;
    size_t at = 0;
    bool number = name.len == 0 || (take_number(name, &at, &idx) && at == name.len);
    if (number) {
        f->automatic = f->automatic || name.len == 0;
        f->manual = f->manual || name.len > 0;
        if (f->automatic && f->manual)
            return jrun_fail(r, STATUS_INVALID, "format: numbered and unnumbered fields together");
        if (name.len == 0)
            idx = f->next++;
        if ((uint64_t)idx >= f->args->n_pos)
            return jrun_fail(r, STATUS_INVALID,
                             "Replacement index %lld out of range for positional args tuple",
                             (long long)idx);
        *out = f->args->pos[idx];
        return true;
    }
    for (size_t i = 0; i < f->args->n_named; i++) {
        if (jstr_eq(f->args->named[i].key.str, name)) {
            *out = f->args->named[i].value;
            return true;
        }
    }
    return jrun_fail(r, STATUS_INVALID, "format: there is no argument '%.*s'", (int)name.len,
                     name.s);
}

static size_t span_until(struct jstr text, size_t at, const char *stops)
{
    while (at < text.len && !strchr(stops, text.s[at]))
        at++;
    return at;
}

/* name, then .attribute and [item] as often as they come */
static bool field_value(struct jrun *r, struct fields *f, struct jstr path, struct jval *out)
{
    size_t at = span_until(path, 0, ".[");
    if (at == 0 && path.len)
        return jrun_fail(r, STATUS_INVALID, "format: a field without a name or number");
    if (!first_value(r, f, (struct jstr){path.s, at}, out))
        return false;
    while (at < path.len) {
        bool item = path.s[at] == '[';
        size_t start = at + 1, end = span_until(path, start, item ? "]" : ".[");
        struct jstr name = {path.s + start, end - start};
        struct jval v = *out, key = jv_str(name);
        int64_t idx;
        size_t digits = 0;
        if (name.len == 0 || (item && end == path.len))
            return jrun_fail(r, STATUS_INVALID, "format: empty attribute in format string");
        if (item && take_number(name, &digits, &idx) && digits == name.len)
            key = jv_int(idx);
        if (!(item ? jinja_getitem(r, v, key, out) : jinja_getattr(r, v, name, out)))
            return false;
        at = end + item;
    }
    return true;
}

static bool put_field(struct jrun *r, struct fields *f, struct jstr field, struct buf *out)
{
    size_t colon = span_until(field, 0, ":"), bang = span_until(field, 0, "!");
    struct jstr path = {field.s, bang < colon ? bang : colon};
    struct jstr text = {field.s + colon, field.len - colon};
    struct jval v;
    if (text.len) {
        text.s++;
        text.len--;
    }
    if (!field_value(r, f, path, &v))
        return false;
    if (bang < colon) {
        char how = colon - bang == 2 ? field.s[bang + 1] : '\0';
        struct buf b;
        if (how != 'r' && how != 's')
            return jrun_fail(r, STATUS_INVALID, "format: a conversion is !s or !r");
        jrun_buf(r, &b);
        bool ok = how == 'r' ? jv_put_repr(r, v, &b) : jv_put_str(r, v, &b);
        if (!jrun_take(r, &b, &v) || !ok)
            return false;
    }
    return put_value(r, v, text, out);
}

bool jinja_format(struct jrun *r, struct jstr text, const struct jargs *args, struct jval *out)
{
    struct fields f = {.args = args};
    struct buf b;
    bool ok = true;
    jrun_buf(r, &b);
    for (size_t i = 0; ok && i < text.len;) {
        char c = text.s[i];
        if ((c == '{' || c == '}') && i + 1 < text.len && text.s[i + 1] == c) {
            buf_putc(&b, c);
            i += 2;
        } else if (c == '{') {
            size_t end = span_until(text, i + 1, "{}");
            if (end == text.len || text.s[end] == '{')
                ok = jrun_fail(r, STATUS_INVALID, "format: a field is not closed by '}'");
            else
                ok = put_field(r, &f, (struct jstr){text.s + i + 1, end - i - 1}, &b);
            i = end + 1;
        } else if (c == '}') {
            ok = jrun_fail(r, STATUS_INVALID, "Single '}' encountered in format string");
        } else {
            size_t end = span_until(text, i, "{}");
            buf_put(&b, text.s + i, end - i);
            i = end;
        }
    }
    ok = jrun_work(r, 1 + text.len / 8) && ok;
    return jrun_take(r, &b, out) && ok;
}
