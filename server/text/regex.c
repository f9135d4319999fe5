/* PCRE2 behind regex.h. UTF and UCP are on, text has been validated before (NO_UTF_CHECK), `^` and
 * `$` match at lines as in Ruby, only LF ends a line. JIT first; where its stack is too small for a
 * match the interpreter runs with a heap limit instead. The match limit bounds every call. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "server/text/regex.h"
#include "server/base/mem.h"
#include "server/text/utf8.h"

#include <pcre2.h>

#define MATCH_LIMIT     20000000u
#define DEPTH_LIMIT     250000u
#define HEAP_LIMIT_KIB  65536u
#define JIT_STACK_START (32u << 10)
#define JIT_STACK_MAX   (1u << 20)

struct regex {
    pcre2_code *code;
};

struct regex_scratch {
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};

static void *counted_alloc(PCRE2_SIZE bytes, void *unused)
{
    (void)unused;
    return mem_try_alloc(bytes);
}

static void counted_free(void *p, void *unused)
{
    (void)unused;
    mem_free(p);
}

static enum status compile_translated(struct regex *r, const struct buf *pattern,
                                      struct errtext *err)
{
    pcre2_general_context *general =
        pcre2_general_context_create(counted_alloc, counted_free, NULL);
    pcre2_compile_context *context = general ? pcre2_compile_context_create(general) : NULL;
    int code = 0;
    PCRE2_SIZE offset = 0;
    if (context) {
        pcre2_set_newline(context, PCRE2_NEWLINE_LF);
        r->code = pcre2_compile((PCRE2_SPTR)pattern->data, pattern->len,
                                PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                                &code, &offset, context);
    }
    pcre2_compile_context_free(context);
    pcre2_general_context_free(general);
    if (!context)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a regular expression");
    if (!r->code) {
        PCRE2_UCHAR why[128] = "";
        pcre2_get_error_message(code, why, sizeof(why));
        return err_set(err, STATUS_INVALID, "regular expression '%.120s': %s", pattern->data,
                       (const char *)why);
    }
    (void)pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE); /* without JIT it still matches */
    return STATUS_OK;
}

enum status regex_compile(struct regex **out, const char *pattern, size_t len, struct errtext *err)
{
    *out = NULL;
    struct buf translated;
    buf_init(&translated, REGEX_PATTERN_BYTES_MAX * 16);
    enum status st = regex_translate(pattern, len, &translated, err);
    struct regex *r = NULL;
    if (!st && !(r = mem_try_alloc(sizeof(*r))))
        st = err_set(err, STATUS_NO_MEMORY, "no memory for a regular expression");
    if (!st)
        st = compile_translated(r, &translated, err);
    buf_fini(&translated);
    if (st) {
        mem_free(r);
        return st;
    }
    *out = r;
    return STATUS_OK;
}

void regex_free(struct regex *r)
{
    if (!r)
        return;
    pcre2_code_free(r->code);
    mem_free(r);
}

struct regex_scratch *regex_scratch_create(void)
{
    struct regex_scratch *s = mem_try_alloc(sizeof(*s));
    if (!s)
        return NULL;
    pcre2_general_context *general =
        pcre2_general_context_create(counted_alloc, counted_free, NULL);
    if (general) {
        s->data = pcre2_match_data_create(1, general);
        s->context = pcre2_match_context_create(general);
        s->stack = pcre2_jit_stack_create(JIT_STACK_START, JIT_STACK_MAX, general);
        pcre2_general_context_free(general);
    }
    if (!s->data || !s->context) {
        regex_scratch_free(s);
        return NULL;
    }
    pcre2_set_match_limit(s->context, MATCH_LIMIT);
    pcre2_set_depth_limit(s->context, DEPTH_LIMIT);
    pcre2_set_heap_limit(s->context, HEAP_LIMIT_KIB);
    if (s->stack)
        pcre2_jit_stack_assign(s->context, NULL, s->stack);
    return s;
}

void regex_scratch_free(struct regex_scratch *s)
{
    if (!s)
        return;
    pcre2_match_data_free(s->data);
    pcre2_match_context_free(s->context);
    pcre2_jit_stack_free(s->stack);
    mem_free(s);
}

static int match_at(const struct regex_iter *it, size_t pos)
{
    PCRE2_SPTR text = (PCRE2_SPTR)it->text;
    int rc = pcre2_match(it->regex->code, text, it->len, pos, PCRE2_NO_UTF_CHECK, it->scratch->data,
                         it->scratch->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(it->regex->code, text, it->len, pos, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                         it->scratch->data, it->scratch->context);
    return rc;
}

enum status regex_iter_next(struct regex_iter *it, size_t *start, size_t *end, bool *found,
                            struct errtext *err)
{
    *found = false;
    while (it->pos <= it->len) {
        int rc = match_at(it, it->pos);
        if (rc == PCRE2_ERROR_NOMATCH)
            return STATUS_OK;
        if (rc == PCRE2_ERROR_NOMEMORY)
            return err_set(err, STATUS_NO_MEMORY, "no memory while matching text");
        if (rc < 0)
            return err_set(err, STATUS_INVALID,
                           "the tokenizer's regular expression reached a match limit on this text");
        const PCRE2_SIZE *at = pcre2_get_ovector_pointer(it->scratch->data);
        if (at[0] == at[1] && at[1] == it->last_end) {
            /* an empty match right after the last one: step over a character, as Oniguruma's
             * iterator does */
            size_t n = 1;
            if (it->pos < it->len)
                utf8_next(it->text + it->pos, it->len - it->pos, &n);
            it->pos += n;
            continue;
        }
        *start = at[0];
        *end = at[1];
        it->pos = it->last_end = at[1];
        *found = true;
        return STATUS_OK;
    }
    return STATUS_OK;
}
