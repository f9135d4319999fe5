/* Normalizer steps. The Unicode forms use utf8proc's tables, but not its driver: canonical ordering
 * there swaps neighbours, which is quadratic in a long run of combining marks; here a run is put in
 * order by counting classes, so that the cost stays linear in any text. */
#include "server/text/normalize.h"
#include "server/base/json.h"
#include "server/base/mem.h"
#include "server/text/utf8.h"

#include <string.h>
#include <utf8proc.h>

#define WORK_BYTES_MAX ((size_t)1 << 30)
#define EXPANSION_MAX  32 /* code points one character may decompose into (18 in Unicode) */
#define SEQUENCE_DEPTH 8

void normalize_step_fini(struct normalize_step *step)
{
    mem_free(step->pattern);
    mem_free(step->text);
    regex_free(step->regex);
    *step = (struct normalize_step){0};
}

void normalizer_fini(struct normalizer *n)
{
    for (size_t i = 0; i < n->n; i++)
        normalize_step_fini(&n->steps[i]);
    n->n = 0;
}

char *pattern_load(struct json_reader *r, size_t *len, bool *is_regex)
{
    struct json_reader pattern = json_enter(r, "pattern");
    *is_regex = json_has(&pattern, "Regex");
    if (json_object_size(pattern.obj) != 1)
        json_fail(r, STATUS_INVALID, "pattern", "expected {\"String\": text} or {\"Regex\": text}");
    return json_need_copy(&pattern, *is_regex ? "Regex" : "String", len);
}

enum status normalize_replace_load(struct normalize_step *step, const json_t *json,
                                   const char *where, struct errtext *err)
{
    bool is_regex = false;
    struct json_reader r = {.obj = json, .where = where, .err = err};
    step->kind = NORMALIZE_REPLACE;
    step->pattern = pattern_load(&r, &step->pattern_len, &is_regex);
    step->text = json_need_copy(&r, "content", &step->text_len);
    enum status st = r.st;
    if (!st && is_regex)
        st = regex_compile(&step->regex, step->pattern, step->pattern_len, err);
    if (!st && !is_regex && step->pattern_len == 0)
        st = err_set(err, STATUS_INVALID, "%s: an empty \"pattern\"", where);
    return st;
}

static enum status load_step(struct normalize_step *step, const json_t *json, const char *type,
                             struct errtext *err)
{
    static const struct {
        const char *name;
        enum normalize_kind kind;
    } plain[] = {{"NFC", NORMALIZE_NFC},
                 {"NFD", NORMALIZE_NFD},
                 {"NFKC", NORMALIZE_NFKC},
                 {"NFKD", NORMALIZE_NFKD},
                 {"Lowercase", NORMALIZE_LOWERCASE},
                 {"StripAccents", NORMALIZE_STRIP_ACCENTS}};
    struct json_reader r = {.obj = json, .err = err};
    for (size_t i = 0; i < sizeof(plain) / sizeof(plain[0]); i++) {
        if (strcmp(type, plain[i].name) == 0) {
            step->kind = plain[i].kind;
            return STATUS_OK;
        }
    }
    if (strcmp(type, "Prepend") == 0) {
        step->kind = NORMALIZE_PREPEND;
        r.where = "normalizer Prepend";
        step->text = json_need_copy(&r, "prepend", &step->text_len);
        return r.st;
    }
    if (strcmp(type, "Replace") == 0)
        return normalize_replace_load(step, json, "normalizer Replace", err);
    if (strcmp(type, "Strip") == 0) {
        step->kind = NORMALIZE_STRIP;
        r.where = "normalizer Strip";
        step->left = json_read_bool(&r, "strip_left", true);
        step->right = json_read_bool(&r, "strip_right", true);
        return r.st;
    }
    return err_set(err, STATUS_UNSUPPORTED, "normalizer \"%s\" is not supported", type);
}

static enum status load_into(struct normalizer *n, const json_t *json, int depth,
                             struct errtext *err)
{
    struct json_reader r = {.obj = json, .where = "normalizer", .err = err};
    const char *type = json_need_string(&r, "type");
    if (r.st)
        return r.st;
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_need_list(&r, "normalizers", NORMALIZE_STEPS_MAX);
        enum status st = r.st;
        if (!st && depth == 0)
            st = err_set(err, STATUS_TOO_LARGE, "normalizer: Sequences nested too deep");
        for (size_t i = 0; !st && i < json_array_size(list); i++)
            st = load_into(n, json_array_get(list, i), depth - 1, err);
        return st;
    }
    if (n->n == NORMALIZE_STEPS_MAX)
        return err_set(err, STATUS_TOO_LARGE, "normalizer: more than %d steps",
                       NORMALIZE_STEPS_MAX);
    return load_step(&n->steps[n->n++], json, type, err);
}

enum status normalizer_load(struct normalizer *n, const json_t *json, struct errtext *err)
{
    if (!json || json_is_null(json))
        return STATUS_OK;
    return load_into(n, json, SEQUENCE_DEPTH, err);
}

void normalize_work_init(struct normalize_work *w)
{
    *w = (struct normalize_work){0};
    buf_init(&w->a, WORK_BYTES_MAX);
    buf_init(&w->b, WORK_BYTES_MAX);
}

void normalize_work_fini(struct normalize_work *w)
{
    buf_fini(&w->a);
    buf_fini(&w->b);
    mem_free(w->cps);
    mem_free(w->sorted);
}

static bool grow_cps(int32_t **cps, size_t *cap, size_t need)
{
    if (need <= *cap)
        return true;
    size_t bigger = *cap ? *cap : 256;
    while (bigger < need)
        bigger *= 2;
    int32_t *p = mem_try_realloc(*cps, bigger * sizeof(*p));
    if (!p)
        return false;
    *cps = p;
    *cap = bigger;
    return true;
}

static unsigned combining_class(int32_t cp)
{
    return (unsigned)utf8proc_get_property(cp)->combining_class & 0xFF;
}

/* Stable order by class of cps[start, end), all of class > 0. */
static bool order_marks(struct normalize_work *w, size_t start, size_t end)
{
    size_t n = end - start;
    if (n < 2)
        return true;
    if (!grow_cps(&w->sorted, &w->sorted_cap, n))
        return false;
    size_t at[257] = {0};
    for (size_t i = start; i < end; i++)
        at[combining_class(w->cps[i]) + 1]++;
    for (size_t c = 1; c < 257; c++)
        at[c] += at[c - 1];
    for (size_t i = start; i < end; i++)
        w->sorted[at[combining_class(w->cps[i])]++] = w->cps[i];
    memcpy(w->cps + start, w->sorted, n * sizeof(*w->cps));
    return true;
}

static bool order_all(struct normalize_work *w, size_t n)
{
    size_t run = 0; /* start of the current run of marks */
    for (size_t i = 0; i <= n; i++) {
        if (i < n && combining_class(w->cps[i]) != 0)
            continue;
        if (!order_marks(w, run, i))
            return false;
        run = i + 1;
    }
    return true;
}

static enum status unicode_form(struct normalize_work *w, const struct normalize_io *io,
                                unsigned form, struct buf *out)
{
    size_t n = 0;
    int last_class = 0;
    for (size_t i = 0, step; i < io->len; i += step) {
        utf8proc_int32_t cp = (utf8proc_int32_t)utf8_next(io->text + i, io->len - i, &step);
        if (!grow_cps(&w->cps, &w->cps_cap, n + EXPANSION_MAX))
            return STATUS_NO_MEMORY;
        utf8proc_ssize_t made = utf8proc_decompose_char(cp, w->cps + n, EXPANSION_MAX,
                                                        (utf8proc_option_t)form, &last_class);
        if (made < 0 || made > EXPANSION_MAX)
            return STATUS_INVALID;
        n += (size_t)made;
    }
    if (!order_all(w, n))
        return STATUS_NO_MEMORY;
    if (form & UTF8PROC_COMPOSE) {
        utf8proc_ssize_t left =
            utf8proc_normalize_utf32(w->cps, (utf8proc_ssize_t)n, (utf8proc_option_t)form);
        if (left < 0)
            return STATUS_INVALID;
        n = (size_t)left;
    }
    for (size_t i = 0; i < n; i++) {
        char bytes[4];
        buf_put(out, bytes, utf8_put((uint32_t)w->cps[i], bytes));
    }
    return STATUS_OK;
}

static void lowercase(const struct normalize_io *io, struct buf *out)
{
    for (size_t i = 0, step; i < io->len; i += step) {
        uint32_t cp = utf8_next(io->text + i, io->len - i, &step);
        char bytes[4];
        if (cp == 0x130) {
            buf_puts(out, "i\xCC\x87"); /* the one character whose lower case is two */
            continue;
        }
        uint32_t lower = (uint32_t)utf8proc_tolower((utf8proc_int32_t)cp);
        buf_put(out, bytes, utf8_put(lower, bytes));
    }
}

static void strip_accents(const struct normalize_io *io, struct buf *out)
{
    for (size_t i = 0, step; i < io->len; i += step) {
        if (!cp_is_mark(utf8_next(io->text + i, io->len - i, &step)))
            buf_put(out, io->text + i, step);
    }
}

static void strip(const struct normalize_step *s, struct normalize_io *io)
{
    size_t n;
    while (s->left && io->len && cp_is_space(utf8_next(io->text, io->len, &n))) {
        io->text += n;
        io->len -= n;
        io->at_start = false;
    }
    while (s->right && io->len) {
        size_t last = utf8_prev(io->text, io->len);
        if (!cp_is_space(utf8_next(io->text + last, io->len - last, &n)))
            break;
        io->len = last;
    }
}

static enum status replace_regex(const struct normalize_step *s, struct regex_scratch *scratch,
                                 const struct normalize_io *io, struct buf *out,
                                 struct errtext *err)
{
    struct regex_iter it = {.regex = s->regex,
                            .scratch = scratch,
                            .text = io->text,
                            .len = io->len,
                            .last_end = (size_t)-1};
    size_t done = 0;
    for (;;) {
        size_t start, end;
        bool found;
        enum status st = regex_iter_next(&it, &start, &end, &found, err);
        if (st)
            return st;
        if (!found)
            break;
        buf_put(out, io->text + done, start - done);
        buf_put(out, s->text, s->text_len);
        done = end;
    }
    buf_put(out, io->text + done, io->len - done);
    return STATUS_OK;
}

enum status normalize_replace(const struct normalize_step *s, struct regex_scratch *scratch,
                              const struct normalize_io *io, struct buf *out, struct errtext *err)
{
    if (s->regex)
        return io->len ? replace_regex(s, scratch, io, out, err) : STATUS_OK;
    const char *p = io->text, *end = io->text + io->len;
    for (;;) {
        const char *hit = memmem(p, (size_t)(end - p), s->pattern, s->pattern_len);
        if (!hit)
            break;
        buf_put(out, p, (size_t)(hit - p));
        buf_put(out, s->text, s->text_len);
        p = hit + s->pattern_len;
    }
    buf_put(out, p, (size_t)(end - p));
    return STATUS_OK;
}

static bool is_ascii(const char *s, size_t len)
{
    unsigned char any = 0;
    for (size_t i = 0; i < len; i++)
        any |= (unsigned char)s[i];
    return any < 0x80;
}

static enum status run_step(const struct normalize_step *s, struct normalize_work *w,
                            struct regex_scratch *scratch, const struct normalize_io *io,
                            struct buf *out, struct errtext *err)
{
    switch (s->kind) {
    case NORMALIZE_NFC:
        return unicode_form(w, io, UTF8PROC_STABLE | UTF8PROC_COMPOSE, out);
    case NORMALIZE_NFD:
        return unicode_form(w, io, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, out);
    case NORMALIZE_NFKC:
        return unicode_form(w, io, UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT, out);
    case NORMALIZE_NFKD:
        return unicode_form(w, io, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT, out);
    case NORMALIZE_LOWERCASE:
        lowercase(io, out);
        return STATUS_OK;
    case NORMALIZE_STRIP_ACCENTS:
        strip_accents(io, out);
        return STATUS_OK;
    case NORMALIZE_PREPEND:
        if (io->len)
            buf_put(out, s->text, s->text_len);
        buf_put(out, io->text, io->len);
        return STATUS_OK;
    case NORMALIZE_REPLACE:
        return normalize_replace(s, scratch, io, out, err);
    case NORMALIZE_STRIP:
        break;
    }
    return STATUS_OK;
}

enum status normalizer_run(const struct normalizer *n, struct normalize_work *w,
                           struct regex_scratch *scratch, struct normalize_io *io,
                           struct errtext *err)
{
    struct buf *out = &w->a, *other = &w->b;
    for (size_t i = 0; i < n->n; i++) {
        const struct normalize_step *s = &n->steps[i];
        if (s->kind == NORMALIZE_STRIP) {
            strip(s, io);
            continue;
        }
        if (s->kind <= NORMALIZE_NFKD && is_ascii(io->text, io->len))
            continue;
        buf_clear(out);
        enum status st = run_step(s, w, scratch, io, out, err);
        if (!st && out->failed)
            st = STATUS_NO_MEMORY;
        if (st)
            return err_set(err, st, "the text could not be normalized (%s)", status_name(st));
        io->text = out->data ? out->data : "";
        io->len = out->len;
        struct buf *t = out;
        out = other;
        other = t;
    }
    return STATUS_OK;
}
