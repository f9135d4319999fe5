/* The "pre_tokenizer" object into a flat list of steps. A Sequence is opened; every step becomes a
 * way to find spans and a behaviour to fold them by, with its regular expression compiled once. */
#include "server/base/json.h"
#include "server/base/mem.h"
#include "server/text/normalize.h"
#include "server/text/pretokenize.h"
#include "server/text/utf8.h"

#include <string.h>

#define SEQUENCE_DEPTH 8
#define GPT2_PATTERN                                                                               \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

void pretokenizer_fini(struct pretokenizer *p)
{
    for (size_t i = 0; i < p->n; i++) {
        regex_free(p->steps[i].regex);
        mem_free(p->steps[i].literal);
    }
    *p = (struct pretokenizer){0};
}

static enum status load_behavior(const json_t *json, const char *where, bool required,
                                 enum split_behavior *out, struct errtext *err)
{
    static const char *const names[] = {[SPLIT_REMOVED] = "Removed",
                                        [SPLIT_ISOLATED] = "Isolated",
                                        [SPLIT_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
                                        [SPLIT_MERGED_WITH_NEXT] = "MergedWithNext",
                                        [SPLIT_CONTIGUOUS] = "Contiguous"};
    const json_t *v = json_object_get(json, "behavior");
    *out = SPLIT_ISOLATED;
    if (!v && !required)
        return STATUS_OK;
    for (size_t i = 0; json_is_string(v) && i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(json_string_value(v), names[i]) == 0) {
            *out = (enum split_behavior)i;
            return STATUS_OK;
        }
    }
    return err_set(err, STATUS_UNSUPPORTED, "%s: behavior \"%.64s\" is not supported", where,
                   json_is_string(v) ? json_string_value(v) : "?");
}

static enum status load_split(struct pretokenize_step *s, const json_t *json, struct errtext *err)
{
    static const char where[] = "pre_tokenizer Split";
    struct json_reader r = {.obj = json, .where = where, .err = err};
    bool is_regex = false;
    s->kind = PRETOKENIZE_SPLIT;
    s->literal = pattern_load(&r, &s->literal_len, &is_regex);
    s->invert = json_read_bool(&r, "invert", false);
    enum status st = r.st ? r.st : load_behavior(json, where, true, &s->behavior, err);
    if (!st && is_regex)
        st = regex_compile(&s->regex, s->literal, s->literal_len, err);
    if (!st && s->literal_len == 0)
        st = err_set(err, STATUS_INVALID, "%s: an empty pattern", where);
    return st;
}

static enum status load_byte_level(struct pretokenize_step *s, const json_t *json,
                                   struct errtext *err)
{
    struct json_reader r = {.obj = json, .where = "pre_tokenizer ByteLevel", .err = err};
    s->kind = PRETOKENIZE_BYTE_LEVEL;
    s->behavior = SPLIT_ISOLATED;
    s->add_prefix_space = json_read_bool(&r, "add_prefix_space", true);
    s->cut = json_read_bool(&r, "use_regex", true);
    enum status st = r.st;
    if (!st && s->cut)
        st = regex_compile(&s->regex, GPT2_PATTERN, sizeof(GPT2_PATTERN) - 1, err);
    return st;
}

enum status metaspace_load_scheme(const json_t *json, enum prepend_scheme *scheme,
                                  struct errtext *err)
{
    static const char *const names[] = {
        [PREPEND_FIRST] = "first", [PREPEND_NEVER] = "never", [PREPEND_ALWAYS] = "always"};
    struct json_reader r = {.obj = json, .where = "Metaspace", .err = err};
    const json_t *v = json_field(json, "prepend_scheme");
    bool prefix = json_read_bool(&r, "add_prefix_space", true);
    *scheme = prefix ? PREPEND_ALWAYS : PREPEND_NEVER;
    if (!v || r.st)
        return r.st;
    for (size_t i = 0; json_is_string(v) && i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(json_string_value(v), names[i]) != 0)
            continue;
        *scheme = (enum prepend_scheme)i;
        if (!prefix && *scheme != PREPEND_NEVER)
            return err_set(err, STATUS_INVALID,
                           "Metaspace: add_prefix_space false contradicts prepend_scheme \"%s\"",
                           names[i]);
        return STATUS_OK;
    }
    return err_set(err, STATUS_UNSUPPORTED, "Metaspace: prepend_scheme \"%.64s\" is not supported",
                   json_is_string(v) ? json_string_value(v) : "?");
}

static enum status load_metaspace(struct pretokenize_step *s, const json_t *json,
                                  struct errtext *err)
{
    struct json_reader r = {.obj = json, .where = "pre_tokenizer Metaspace", .err = err};
    s->kind = PRETOKENIZE_METASPACE;
    s->behavior = SPLIT_MERGED_WITH_NEXT;
    s->literal = json_need_copy(&r, "replacement", &s->literal_len);
    if (s->literal && utf8_count(s->literal, s->literal_len) != 1)
        json_fail(&r, STATUS_INVALID, "replacement", "found \"%.40s\", expected one character",
                  s->literal);
    s->cut = json_read_bool(&r, "split", true);
    return r.st ? r.st : metaspace_load_scheme(json, &s->scheme, err);
}

static enum status load_step(struct pretokenize_step *s, const json_t *json, const char *type,
                             struct errtext *err)
{
    if (strcmp(type, "Split") == 0)
        return load_split(s, json, err);
    if (strcmp(type, "ByteLevel") == 0)
        return load_byte_level(s, json, err);
    if (strcmp(type, "Metaspace") == 0)
        return load_metaspace(s, json, err);
    if (strcmp(type, "Digits") == 0) {
        struct json_reader r = {.obj = json, .where = "pre_tokenizer Digits", .err = err};
        s->kind = PRETOKENIZE_DIGITS;
        s->each_digit = json_read_bool(&r, "individual_digits", false);
        s->behavior = s->each_digit ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS;
        return r.st;
    }
    if (strcmp(type, "Punctuation") == 0) {
        s->kind = PRETOKENIZE_PUNCTUATION;
        return load_behavior(json, "pre_tokenizer Punctuation", false, &s->behavior, err);
    }
    s->behavior = SPLIT_REMOVED;
    s->kind = PRETOKENIZE_WHITESPACE;
    if (strcmp(type, "Whitespace") == 0)
        return STATUS_OK;
    s->kind = PRETOKENIZE_WHITESPACE_SPLIT;
    if (strcmp(type, "WhitespaceSplit") == 0)
        return STATUS_OK;
    return err_set(err, STATUS_UNSUPPORTED, "pre_tokenizer \"%.64s\" is not supported", type);
}

static enum status load_into(struct pretokenizer *p, const json_t *json, int depth,
                             struct errtext *err)
{
    struct json_reader r = {.obj = json, .where = "pre_tokenizer", .err = err};
    const char *type = json_need_string(&r, "type");
    if (r.st)
        return r.st;
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_need_list(&r, "pretokenizers", PRETOKENIZE_STEPS_MAX);
        enum status st = r.st;
        if (!st && depth == 0)
            st = err_set(err, STATUS_TOO_LARGE, "pre_tokenizer: Sequences nested too deep");
        for (size_t i = 0; !st && i < json_array_size(list); i++)
            st = load_into(p, json_array_get(list, i), depth - 1, err);
        return st;
    }
    if (p->n == PRETOKENIZE_STEPS_MAX)
        return err_set(err, STATUS_TOO_LARGE, "pre_tokenizer: more than %d steps",
                       PRETOKENIZE_STEPS_MAX);
    return load_step(&p->steps[p->n++], json, type, err);
}

enum status pretokenizer_load(struct pretokenizer *p, const json_t *json, struct errtext *err)
{
    if (!json || json_is_null(json))
        return STATUS_OK;
    return load_into(p, json, SEQUENCE_DEPTH, err);
}
