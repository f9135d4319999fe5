/* A delimiter is a line break, two hyphens and the boundary; the first one may begin the body. What
 * stands before it and behind the last one is no part. */
#include "server/http/multipart.h"
#include "server/base/check.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#define BOUNDARY_CHARACTERS                                                                        \
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789'()+_,-./:=? "

struct slice {
    const char *at;
    size_t len;
};

static struct slice trim(struct slice s)
{
    while (s.len > 0 && (s.at[0] == ' ' || s.at[0] == '\t'))
        s = (struct slice){s.at + 1, s.len - 1};
    while (s.len > 0 && (s.at[s.len - 1] == ' ' || s.at[s.len - 1] == '\t'))
        s.len--;
    return s;
}

static bool is_word(struct slice s, const char *word)
{
    return s.len == strlen(word) && strncasecmp(s.at, word, s.len) == 0;
}

/* What stands before the next ';' outside of quotes; rest moves behind it. */
static struct slice take_item(struct slice *rest)
{
    bool quoted = false;
    size_t n = 0;
    while (n < rest->len && (quoted || rest->at[n] != ';')) {
        if (quoted && rest->at[n] == '\\' && n + 1 < rest->len)
            n++;
        else if (rest->at[n] == '"')
            quoted = !quoted;
        n++;
    }
    struct slice item = {rest->at, n};
    size_t used = n < rest->len ? n + 1 : n;
    *rest = (struct slice){rest->at + used, rest->len - used};
    return trim(item);
}

/* Quotes off; a quote inside comes as \" (RFC 9110) or %22 (browsers). False: no room. */
static bool unquote(char *out, size_t out_bytes, struct slice value)
{
    size_t n = 0;
    bool quoted = value.len >= 2 && value.at[0] == '"' && value.at[value.len - 1] == '"';
    if (quoted)
        value = (struct slice){value.at + 1, value.len - 2};
    for (size_t i = 0; i < value.len; i++) {
        char c = value.at[i];
        if (quoted && c == '\\' && i + 1 < value.len && strchr("\"\\", value.at[i + 1])) {
            c = value.at[++i];
        } else if (quoted && value.len - i >= 3 && memcmp(value.at + i, "%22", 3) == 0) {
            c = '"';
            i += 2;
        }
        if (n + 1 >= out_bytes || c == '\0')
            return false;
        out[n++] = c;
    }
    out[n] = '\0';
    return true;
}

/* The value of a parameter of "value; name=value; ..."; false: absent or too long for out. */
static bool parameter(char *out, size_t out_bytes, struct slice header, const char *name)
{
    (void)take_item(&header);
    while (header.len > 0) {
        struct slice item = take_item(&header);
        const char *eq = item.len ? memchr(item.at, '=', item.len) : NULL;
        size_t key = eq ? (size_t)(eq - item.at) : 0;
        struct slice value = {item.at + key + 1, eq ? item.len - key - 1 : 0};
        if (eq && is_word(trim((struct slice){item.at, key}), name))
            return unquote(out, out_bytes, trim(value));
    }
    return false;
}

enum status multipart_boundary(char out[MULTIPART_BOUNDARY_MAX + 1], const char *content_type,
                               struct errtext *err)
{
    struct slice all = {content_type, content_type ? strlen(content_type) : 0}, rest = all;
    out[0] = '\0';
    if (!content_type || !is_word(take_item(&rest), "multipart/form-data"))
        return err_param(err, STATUS_INVALID, "Content-Type",
                         "Content-Type: found '%.100s', expected multipart/form-data",
                         content_type ? content_type : "");
    bool found = parameter(out, MULTIPART_BOUNDARY_MAX + 1, all, "boundary");
    size_t len = found ? strlen(out) : 0;
    if (len > 0 && strspn(out, BOUNDARY_CHARACTERS) == len && out[len - 1] != ' ')
        return STATUS_OK;
    out[0] = '\0';
    return err_param(err, STATUS_INVALID, "Content-Type",
                     "Content-Type: expected a boundary of 1 to %u characters (RFC 2046)",
                     MULTIPART_BOUNDARY_MAX);
}

/* ---- the body ---- */

struct body {
    const char *at, *end;
    char delimiter[MULTIPART_BOUNDARY_MAX + 5]; /* CR LF - - boundary */
    size_t delimiter_len;
};

static enum status broken(uint32_t number, const char *what, struct errtext *err)
{
    return err_param(err, STATUS_INVALID, "body", "part %u of the body: %s", number, what);
}

/* Of one line of a part's head. */
static enum status read_header(struct multipart_part *part, struct slice line, uint32_t number,
                               struct errtext *err)
{
    const char *colon = line.len ? memchr(line.at, ':', line.len) : NULL;
    size_t key = colon ? (size_t)(colon - line.at) : 0;
    if (!colon)
        return broken(number, "found a header line without a colon", err);
    if (!is_word((struct slice){line.at, key}, "Content-Disposition"))
        return STATUS_OK;
    struct slice value = trim((struct slice){colon + 1, line.len - key - 1}), rest = value;
    if (!is_word(take_item(&rest), "form-data"))
        return broken(number, "Content-Disposition: expected form-data", err);
    if (!parameter(part->name, sizeof(part->name), value, "name") || !part->name[0])
        return broken(number, "Content-Disposition: expected a name of 1 to 63 bytes", err);
    if (!parameter(part->filename, sizeof(part->filename), value, "filename"))
        part->filename[0] = '\0';
    return STATUS_OK;
}

static enum status read_head(struct body *b, struct multipart_part *part, uint32_t number,
                             struct errtext *err)
{
    enum status st = STATUS_OK;
    size_t left = MIN((size_t)(b->end - b->at), MULTIPART_HEAD_MAX);
    const char *stop = b->at + left;
    while (!st) {
        const char *line_end = memmem(b->at, (size_t)(stop - b->at), "\r\n", 2);
        if (!line_end)
            return broken(number, "its head has no end within 4096 bytes", err);
        struct slice line = {b->at, (size_t)(line_end - b->at)};
        b->at = line_end + 2;
        if (line.len == 0)
            return part->name[0] ? STATUS_OK
                                 : broken(number, "its head has no Content-Disposition", err);
        st = read_header(part, line, number, err);
    }
    return st;
}

/* Behind a delimiter: "--" ends the body, blanks and a line break begin a part. */
static enum status read_line_end(struct body *b, bool *last, uint32_t number, struct errtext *err)
{
    *last = b->end - b->at >= 2 && memcmp(b->at, "--", 2) == 0;
    if (*last)
        return STATUS_OK;
    while (b->at < b->end && (*b->at == ' ' || *b->at == '\t'))
        b->at++;
    if (b->end - b->at < 2 || memcmp(b->at, "\r\n", 2) != 0)
        return broken(number, "the boundary before it is not followed by a line break", err);
    b->at += 2;
    return STATUS_OK;
}

/* Moves behind the next delimiter; what stands before it. */
static bool take_to_delimiter(struct body *b, struct slice *before)
{
    const char *found = memmem(b->at, (size_t)(b->end - b->at), b->delimiter, b->delimiter_len);
    if (!found)
        return false;
    *before = (struct slice){b->at, (size_t)(found - b->at)};
    b->at = found + b->delimiter_len;
    return true;
}

static bool begin(struct body *b)
{
    struct slice before;
    size_t len = b->delimiter_len - 2;
    if ((size_t)(b->end - b->at) < len || memcmp(b->at, b->delimiter + 2, len) != 0)
        return take_to_delimiter(b, &before);
    b->at += len;
    return true;
}

enum status multipart_parse(const char *body, size_t len, const char *boundary,
                            struct multipart_part part[MULTIPART_PARTS_MAX], uint32_t *count,
                            struct errtext *err)
{
    struct body b = {.at = body, .end = body + len};
    bool last = false;
    *count = 0;
    CHECK(strlen(boundary) <= MULTIPART_BOUNDARY_MAX);
    int n = snprintf(b.delimiter, sizeof(b.delimiter), "\r\n--%s", boundary);
    b.delimiter_len = (size_t)n;
    if (len == 0 || !begin(&b))
        return err_param(err, STATUS_INVALID, "body",
                         "the body has none of the boundaries that Content-Type names");
    for (;;) {
        struct slice data;
        enum status st = read_line_end(&b, &last, *count + 1, err);
        if (st || last)
            return st;
        if (*count == MULTIPART_PARTS_MAX)
            return err_param(err, STATUS_TOO_LARGE, "body", "the body has more than %u parts",
                             MULTIPART_PARTS_MAX);
        struct multipart_part *p = &part[*count];
        *p = (struct multipart_part){.name = ""};
        st = read_head(&b, p, *count + 1, err);
        if (st)
            return st;
        b.at -= 2; /* the line break of an empty part is its delimiter's */
        if (!take_to_delimiter(&b, &data))
            return broken(*count + 1, "no boundary ends it: the body was cut", err);
        p->data = data.len >= 2 ? data.at + 2 : data.at;
        p->len = data.len >= 2 ? data.len - 2 : 0;
        (*count)++;
    }
}

const struct multipart_part *multipart_find(const struct multipart_part *part, uint32_t count,
                                            const char *name)
{
    const struct multipart_part *found = NULL;
    for (uint32_t i = 0; i < count; i++) {
        if (strcmp(part[i].name, name) != 0)
            continue;
        if (found)
            return NULL;
        found = &part[i];
    }
    return found;
}
