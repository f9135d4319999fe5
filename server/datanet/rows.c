/* Text is walked once, character by character: a stop (. ! ?) that white space follows ends a
 * sentence, an empty line ends a paragraph. What looks like a stop and is none (initials, numbers
 * of a list, an ellipsis in a sentence) is told by what stands beside it, in any language, rather
 * than by lists of abbreviations. */
#include "server/datanet/rows.h"
#include "server/base/json.h"
#include "server/base/mem.h"
#include "server/datanet/row_chat.h"
#include "server/text/utf8.h"

#include <ctype.h>
#include <string.h>

static const char *const kind_name[ROWS_KIND_COUNT] = {"text", "markdown", "rows", "chats"};

const char *rows_kind_name(enum rows_kind kind)
{
    return kind_name[kind];
}

bool rows_kind_parse(enum rows_kind *out, const char *name)
{
    for (unsigned k = 0; k < ROWS_KIND_COUNT; k++) {
        if (strcmp(name, kind_name[k]) == 0) {
            *out = (enum rows_kind)k;
            return true;
        }
    }
    return false;
}

static bool ends_with(const char *file, const char *end)
{
    size_t n = strlen(file), m = strlen(end);
    return n >= m && strcasecmp(file + n - m, end) == 0;
}

enum rows_kind rows_kind_guess(const char *file, const char *text, size_t len)
{
    const char *line = memchr(text, '\n', len);
    size_t first = line ? (size_t)(line - text) : len;
    if (ends_with(file, ".md") || ends_with(file, ".markdown"))
        return ROWS_MARKDOWN;
    if (!ends_with(file, ".jsonl"))
        return ROWS_TEXT;
    return memmem(text, first, "\"messages\"", 10) ? ROWS_CHATS : ROWS_ROWS;
}

/* ---- sentences ---- */

struct cutter {
    const char *text;
    rows_visit *visit;
    void *arg;
    struct errtext *err;
};

static uint32_t char_at(const struct cutter *c, size_t at, size_t end, size_t *n)
{
    uint32_t cp = utf8_next(c->text + at, end - at, n);
    return cp;
}

static size_t skip_blanks(const struct cutter *c, size_t at, size_t end)
{
    size_t n;
    while (at < end && cp_is_space(char_at(c, at, end, &n)))
        at += n;
    return at;
}

static bool is_wide_stop(uint32_t cp)
{
    return cp == 0x3002 || cp == 0xff01 || cp == 0xff1f; /* 。！？ */
}

static bool is_stop(uint32_t cp)
{
    return cp == '.' || cp == '!' || cp == '?' || cp == 0x2026 || is_wide_stop(cp);
}

static bool is_closer(uint32_t cp)
{
    return (cp < 0x80 && cp && strchr("\"')]}*_", (int)cp)) || cp == 0x2019 || cp == 0x201d ||
           cp == 0xbb || cp == 0x203a || cp == 0x300d || cp == 0x300f || cp == 0xff09;
}

/* The newline at `at` and an empty line behind it. */
static bool is_paragraph_end(const struct cutter *c, size_t at, size_t end)
{
    for (size_t i = at + 1; i < end; i++) {
        if (c->text[i] == '\n')
            return true;
        if (c->text[i] != ' ' && c->text[i] != '\t' && c->text[i] != '\r')
            return false;
    }
    return false;
}

/* Is the dot at `at` behind one letter, or behind the number that begins the row? */
static bool is_label(const struct cutter *c, size_t begin, size_t at)
{
    const char *t = c->text;
    size_t word = at;
    while (word > begin && t[word - 1] >= '0' && t[word - 1] <= '9')
        word--;
    if (word < at)
        return word == begin;
    return at > begin && isalpha((unsigned char)t[at - 1]) &&
           (at - 1 == begin || strchr(" \t\n.(", t[at - 2]));
}

static bool lower_follows(const struct cutter *c, size_t at, size_t end)
{
    at = skip_blanks(c, at, end);
    return at < end && c->text[at] >= 'a' && c->text[at] <= 'z';
}

/* Where the row that begins at `begin` ends; whole: only its length can end it. */
static size_t row_end(const struct cutter *c, size_t begin, size_t end, bool whole)
{
    size_t blank = 0, n;
    bool stopped = false, wide = false;
    for (size_t i = begin; i < end; i += n) {
        uint32_t cp = char_at(c, i, end, &n);
        if (i + n - begin > ROW_BYTES_MAX)
            return blank ? blank : i;
        if (cp_is_space(cp)) {
            if (!whole && ((cp == '\n' && is_paragraph_end(c, i, end)) ||
                           (stopped && !lower_follows(c, i, end))))
                return i;
            blank = i > begin ? i : blank;
            stopped = wide = false;
        } else if (is_stop(cp)) {
            stopped = cp != '.' || !is_label(c, begin, i);
            wide = is_wide_stop(cp);
        } else if (!is_closer(cp)) {
            if (!whole && wide)
                return i;
            stopped = wide = false;
        }
    }
    return end;
}

static enum status cut(const struct cutter *c, size_t at, size_t end, bool whole)
{
    enum status st = STATUS_OK;
    while (!st && (at = skip_blanks(c, at, end)) < end) {
        size_t stop = row_end(c, at, end, whole), last = stop, n;
        while (last > at) {
            size_t prev = utf8_prev(c->text, last);
            if (!cp_is_space(char_at(c, prev, last, &n)))
                break;
            last = prev;
        }
        st = c->visit(c->arg, at, last - at, c->err);
        at = stop;
    }
    return st;
}

/* ---- markdown ---- */

struct line {
    size_t begin, next; /* next: behind its newline */
    const char *ink;    /* first that is no blank */
    size_t left;        /* from there to its end */
};

static struct line line_at(const char *text, size_t at, size_t len)
{
    const char *nl = memchr(text + at, '\n', len - at);
    struct line l = {.begin = at, .next = nl ? (size_t)(nl - text) + 1 : len};
    size_t ink = at, end = nl ? (size_t)(nl - text) : len;
    while (ink < end && (text[ink] == ' ' || text[ink] == '\t' || text[ink] == '\r'))
        ink++;
    l.ink = text + ink;
    l.left = end - ink;
    return l;
}

static bool is_fence(const struct line *l)
{
    return l->left >= 3 && (memcmp(l->ink, "```", 3) == 0 || memcmp(l->ink, "~~~", 3) == 0);
}

static bool is_alone(const struct line *l) /* a heading, a line of a table */
{
    return l->left && (l->ink[0] == '#' || l->ink[0] == '|');
}

static bool is_item(const struct line *l)
{
    size_t digits = 0;
    while (digits < l->left && l->ink[digits] >= '0' && l->ink[digits] <= '9')
        digits++;
    if (digits && digits + 1 < l->left)
        return (l->ink[digits] == '.' || l->ink[digits] == ')') && l->ink[digits + 1] == ' ';
    return l->left &&
           (l->ink[0] == '>' || (l->left > 1 && strchr("-*+", l->ink[0]) && l->ink[1] == ' '));
}

static size_t fence_end(const char *text, struct line open, size_t len)
{
    size_t at = open.next;
    while (at < len) {
        struct line l = line_at(text, at, len);
        at = l.next;
        if (is_fence(&l) && l.ink[0] == open.ink[0])
            break;
    }
    return at;
}

static enum status markdown_each(const struct cutter *c, size_t len)
{
    size_t block = 0, at = 0; /* block: where the open one begins */
    enum status st = STATUS_OK;
    while (at < len && !st) {
        struct line l = line_at(c->text, at, len);
        bool fence = is_fence(&l), alone = is_alone(&l);
        at = fence ? fence_end(c->text, l, len) : l.next;
        if (fence || alone || is_item(&l) || !l.left) {
            st = cut(c, block, l.begin, false);
            block = l.begin;
        }
        if (!st && (fence || alone)) {
            st = cut(c, l.begin, at, true);
            block = at;
        }
    }
    return st ? st : cut(c, block, len, false);
}

/* ---- lines of JSON ---- */

static enum status read_line(json_t **out, enum rows_kind kind, const char *row, size_t len,
                             struct errtext *err)
{
    enum status st = json_doc_parse(out, "row", row, len, 0, err);
    if (st)
        return st;
    struct json_reader r = {.obj = *out, .err = err};
    if (kind == ROWS_ROWS && json_has(&r, "text")) {
        (void)json_need_string(&r, "text");
    } else if (kind == ROWS_ROWS) {
        (void)json_need_string(&r, "prompt");
        (void)json_need_string(&r, "completion");
        if (r.st && err && !json_has(&r, "prompt"))
            err_prefix(err, "neither \"text\" nor \"prompt\" with \"completion\"");
    } else {
        row_chat_check(&r);
    }
    if (r.st) {
        json_decref(*out);
        *out = NULL;
    }
    return r.st;
}

static enum status lines_each(const struct cutter *c, enum rows_kind kind, size_t len)
{
    uint32_t number = 0;
    enum status st = STATUS_OK;
    for (size_t at = 0; at < len && !st;) {
        struct line l = line_at(c->text, at, len);
        json_t *json = NULL;
        at = l.next;
        number++;
        while (l.left && strchr(" \t\r", l.ink[l.left - 1]))
            l.left--;
        if (!l.left)
            continue;
        st = l.left > ROW_LINE_MAX
                 ? err_set(c->err, STATUS_TOO_LARGE, "%zu bytes, a row has at most %u", l.left,
                           ROW_LINE_MAX)
                 : read_line(&json, kind, l.ink, l.left, c->err);
        json_decref(json);
        if (st)
            err_prefix(c->err, "line %u", number);
        else
            st = c->visit(c->arg, (size_t)(l.ink - c->text), l.left, c->err);
    }
    return st;
}

enum status rows_each(enum rows_kind kind, const char *text, size_t len, rows_visit *visit,
                      void *arg, struct errtext *err)
{
    struct cutter c = {text, visit, arg, err};
    if (kind == ROWS_TEXT)
        return cut(&c, 0, len, false);
    return kind == ROWS_MARKDOWN ? markdown_each(&c, len) : lines_each(&c, kind, len);
}
