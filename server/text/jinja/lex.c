/* The lexer. Outside of tags it cuts the text at the next `{{`, `{%` or `{#`; what a tag does to
 * the blanks around it is decided where the tag is seen: `-` eats all blanks, `+` keeps them,
 * without a sign a block or comment alone on its line loses its indentation, and a block or comment
 * end eats one newline. */
#include "server/text/jinja/lex.h"
#include "server/text/utf8.h"

#include <string.h>

void jlex_init(struct jlex *lex, const char *text, size_t len)
{
    *lex =
        (struct jlex){.s = text, .len = len, .line = 1, .inside = JT_DATA, .line_starting = true};
    if (len && text[len - 1] == '\n')
        lex->len--;
}

static bool starts(const struct jlex *lex, const char *prefix)
{
    size_t n = strlen(prefix);
    return lex->len - lex->pos >= n && memcmp(lex->s + lex->pos, prefix, n) == 0;
}

static void move_to(struct jlex *lex, size_t pos)
{
    for (size_t i = lex->pos; i < pos; i++)
        lex->line += lex->s[i] == '\n';
    if (pos > lex->pos)
        lex->line_starting = lex->s[pos - 1] == '\n';
    lex->pos = pos;
}

static size_t skip_blanks(const struct jlex *lex, size_t pos)
{
    while (pos < lex->len) {
        size_t n;
        if (!cp_is_space(utf8_next(lex->s + pos, lex->len - pos, &n)) &&
            !(lex->s[pos] >= 0x1C && lex->s[pos] <= 0x1F))
            break;
        pos += n;
    }
    return pos;
}

static struct jtoken error_token(const struct jlex *lex, const char *message)
{
    return (struct jtoken){
        .kind = JT_ERROR, .text = {.s = message, .len = strlen(message)}, .line = lex->line};
}

/* Where data [pos, tag) ends once the tag's sign and lstrip_blocks have had their say. */
static size_t data_end(const struct jlex *lex, size_t start, size_t tag, bool is_print)
{
    char sign = tag + 2 < lex->len ? lex->s[tag + 2] : '\0';
    size_t end = tag;
    if (sign == '-') {
        while (end > start) {
            size_t n, prev = utf8_prev(lex->s, end);
            if (!cp_is_space(utf8_next(lex->s + prev, end - prev, &n)) &&
                !(lex->s[prev] >= 0x1C && lex->s[prev] <= 0x1F))
                break;
            end = prev;
        }
        return end;
    }
    if (sign == '+' || is_print)
        return end;
    size_t line = tag;
    while (line > start && lex->s[line - 1] != '\n')
        line--;
    if (line == start && !lex->line_starting)
        return end;
    return skip_blanks(lex, line) >= tag ? line : end;
}

/* After `-X}` all blanks go, after `X}` one newline. pos is after the closing brace. */
static void after_end(struct jlex *lex, size_t pos, char sign)
{
    if (sign == '-')
        pos = skip_blanks(lex, pos);
    else if (sign != '+' && pos < lex->len && lex->s[pos] == '\n')
        pos++;
    move_to(lex, pos);
}

static const char *find(const struct jlex *lex, size_t from, const char *what)
{
    return memmem(lex->s + from, lex->len - from, what, strlen(what));
}

static bool skip_comment(struct jlex *lex)
{
    const char *end = find(lex, lex->pos + 2, "#}");
    if (!end)
        return false;
    size_t at = (size_t)(end - lex->s);
    char sign = at > lex->pos + 2 ? lex->s[at - 1] : '\0';
    after_end(lex, at + 2, sign);
    return true;
}

/* Match `{%[-+] name [-+]%}` at pos; its end, or 0. */
static size_t match_simple_tag(const struct jlex *lex, size_t pos, const char *name, char *sign)
{
    size_t n = strlen(name);
    if (pos + 2 > lex->len || memcmp(lex->s + pos, "{%", 2) != 0)
        return 0;
    pos += 2;
    if (pos < lex->len && (lex->s[pos] == '-' || lex->s[pos] == '+'))
        pos++;
    pos = skip_blanks(lex, pos);
    if (lex->len - pos < n || memcmp(lex->s + pos, name, n) != 0)
        return 0;
    pos = skip_blanks(lex, pos + n);
    *sign = '\0';
    if (pos < lex->len && (lex->s[pos] == '-' || lex->s[pos] == '+'))
        *sign = lex->s[pos++];
    return pos + 2 <= lex->len && memcmp(lex->s + pos, "%}", 2) == 0 ? pos + 2 : 0;
}

/* pos is at a raw tag whose end is body: the text up to endraw as one data token. */
static struct jtoken raw_block(struct jlex *lex, size_t body, char sign)
{
    if (sign == '-')
        body = skip_blanks(lex, body);
    move_to(lex, body);
    for (const char *tag = find(lex, body, "{%"); tag;
         tag = find(lex, (size_t)(tag - lex->s) + 2, "{%")) {
        size_t at = (size_t)(tag - lex->s);
        char end_sign;
        size_t end = match_simple_tag(lex, at, "endraw", &end_sign);
        if (!end)
            continue;
        struct jtoken t = {.kind = JT_DATA, .line = lex->line};
        t.text = (struct jstr){.s = lex->s + body, .len = data_end(lex, body, at, false) - body};
        move_to(lex, end);
        after_end(lex, end, end_sign);
        return t;
    }
    return error_token(lex, "a raw block is not closed");
}

/* The tag at pos: enter it (or skip a comment). */
static struct jtoken enter_tag(struct jlex *lex)
{
    char sign;
    size_t raw = match_simple_tag(lex, lex->pos, "raw", &sign);
    if (raw)
        return raw_block(lex, raw, sign);
    bool is_print = starts(lex, "{{");
    struct jtoken t = {.kind = is_print ? JT_PRINT_BEGIN : JT_BLOCK_BEGIN, .line = lex->line};
    size_t pos = lex->pos + 2;
    if (pos < lex->len && (lex->s[pos] == '-' || lex->s[pos] == '+'))
        pos++;
    lex->inside = t.kind;
    lex->n_braces = 0;
    move_to(lex, pos);
    return t;
}

static struct jtoken next_data(struct jlex *lex)
{
    while (lex->pos < lex->len) {
        size_t start = lex->pos, tag = start;
        const char *brace = lex->s + start;
        for (;; brace++) {
            brace = memchr(brace, '{', lex->len - (size_t)(brace - lex->s));
            if (!brace || (brace + 1 < lex->s + lex->len && strchr("{%#", brace[1]) && brace[1]))
                break;
        }
        tag = brace ? (size_t)(brace - lex->s) : lex->len;
        struct jtoken t = {.kind = JT_DATA, .line = lex->line};
        size_t end = brace ? data_end(lex, start, tag, brace[1] == '{') : tag;
        t.text = (struct jstr){.s = lex->s + start, .len = end - start};
        move_to(lex, tag);
        if (tag > start)
            lex->line_starting = false;
        if (t.text.len)
            return t;
        if (!brace)
            break;
        if (brace[1] != '#')
            return enter_tag(lex);
        if (!skip_comment(lex))
            return error_token(lex, "a comment is not closed");
    }
    return (struct jtoken){.kind = JT_END, .line = lex->line};
}

/* The end of the current tag at pos, if it is there. */
static bool tag_end(struct jlex *lex, struct jtoken *t)
{
    bool is_print = lex->inside == JT_PRINT_BEGIN;
    if (lex->n_braces)
        return false;
    size_t pos = lex->pos;
    char sign = '\0';
    if (lex->s[pos] == '-' || (lex->s[pos] == '+' && !is_print))
        sign = lex->s[pos++];
    if (lex->len - pos < 2 || memcmp(lex->s + pos, is_print ? "}}" : "%}", 2) != 0)
        return false;
    *t = (struct jtoken){.kind = is_print ? JT_PRINT_END : JT_BLOCK_END, .line = lex->line};
    lex->inside = JT_DATA;
    after_end(lex, pos + 2, is_print && !sign ? '+' : sign);
    return true;
}

static bool is_name_char(char c, bool first)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
           (unsigned char)c >= 0x80 || (!first && c >= '0' && c <= '9');
}

static bool is_digit(const struct jlex *lex, size_t pos)
{
    return pos < lex->len && lex->s[pos] >= '0' && lex->s[pos] <= '9';
}

static size_t skip_digits(const struct jlex *lex, size_t pos)
{
    while (is_digit(lex, pos) || (pos < lex->len && lex->s[pos] == '_' && is_digit(lex, pos + 1)))
        pos++;
    return pos;
}

static struct jtoken number(struct jlex *lex)
{
    struct jtoken t = {.kind = JT_INT, .line = lex->line};
    size_t pos = skip_digits(lex, lex->pos);
    if (pos < lex->len && lex->s[pos] == '.' && is_digit(lex, pos + 1)) {
        t.kind = JT_FLOAT;
        pos = skip_digits(lex, pos + 1);
    }
    if (pos < lex->len && (lex->s[pos] == 'e' || lex->s[pos] == 'E')) {
        size_t exp = pos + 1;
        if (exp < lex->len && (lex->s[exp] == '+' || lex->s[exp] == '-'))
            exp++;
        if (is_digit(lex, exp)) {
            t.kind = JT_FLOAT;
            pos = skip_digits(lex, exp);
        }
    }
    t.text = (struct jstr){.s = lex->s + lex->pos, .len = pos - lex->pos};
    move_to(lex, pos);
    return t;
}

static struct jtoken string(struct jlex *lex)
{
    struct jtoken t = {.kind = JT_STRING, .line = lex->line};
    char quote = lex->s[lex->pos];
    size_t pos = lex->pos + 1;
    while (pos < lex->len && lex->s[pos] != quote)
        pos += lex->s[pos] == '\\' && pos + 1 < lex->len ? 2 : 1;
    if (pos >= lex->len)
        return error_token(lex, "a string is not closed");
    t.text = (struct jstr){.s = lex->s + lex->pos + 1, .len = pos - lex->pos - 1};
    move_to(lex, pos + 1);
    return t;
}

static struct jtoken operator_token(struct jlex *lex)
{
    static const char *const ops[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                      "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                      ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};
    struct jtoken t = {.kind = JT_OP, .line = lex->line};
    for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
        if (!starts(lex, ops[i]))
            continue;
        char c = ops[i][0];
        if (c == '(' || c == '[' || c == '{') {
            if (lex->n_braces == JLEX_BRACES_MAX)
                return error_token(lex, "too many open brackets");
            lex->braces[lex->n_braces++] = c == '(' ? ')' : c == '[' ? ']' : '}';
        }
        if (c == ')' || c == ']' || c == '}') {
            if (!lex->n_braces || lex->braces[lex->n_braces - 1] != c)
                return error_token(lex, "a closing bracket does not match");
            lex->n_braces--;
        }
        t.text = (struct jstr){.s = lex->s + lex->pos, .len = strlen(ops[i])};
        move_to(lex, lex->pos + t.text.len);
        return t;
    }
    return error_token(lex, "an unexpected character");
}

struct jtoken jlex_next(struct jlex *lex)
{
    struct jtoken t;
    if (lex->inside == JT_DATA)
        return next_data(lex);
    /* the end of a tag is looked for before blanks are skipped, as blanks are tokens there too */
    for (size_t pos = lex->pos;; pos = lex->pos) {
        if (pos >= lex->len)
            return error_token(lex, "a tag is not closed");
        if (tag_end(lex, &t))
            return t;
        size_t next = skip_blanks(lex, pos);
        if (next == pos)
            break;
        move_to(lex, next);
    }
    char c = lex->s[lex->pos];
    if (c >= '0' && c <= '9')
        return number(lex);
    if (c == '"' || c == '\'')
        return string(lex);
    if (!is_name_char(c, true))
        return operator_token(lex);
    size_t pos = lex->pos;
    while (pos < lex->len && is_name_char(lex->s[pos], false))
        pos++;
    t = (struct jtoken){.kind = JT_NAME, .line = lex->line};
    t.text = (struct jstr){.s = lex->s + lex->pos, .len = pos - lex->pos};
    move_to(lex, pos);
    return t;
}
