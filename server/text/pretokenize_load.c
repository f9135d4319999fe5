/* The "pre_tokenizer" object into a list of steps. */
#include "server/base/mem.h"
#include "server/text/jsonget.h"
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
    bool is_regex = false;
    s->kind = PRETOKENIZE_SPLIT;
    enum status st = json_get_pattern(json, where, &s->literal, &s->literal_len, &is_regex, err);
    if (!st)
        st = load_behavior(json, where, true, &s->behavior, err);
    if (!st)
        st = json_get_bool(json, where, "invert", false, &s->invert, err);
    if (!st && is_regex)
        st = regex_compile(&s->regex, s->literal, s->literal_len, err);
    if (!st && s->literal_len == 0)
        st = err_set(err, STATUS_INVALID, "%s: an empty pattern", where);
    return st;
}

static enum status load_byte_level(struct pretokenize_step *s, const json_t *json,
                                   struct errtext *err)
{
    static const char where[] = "pre_tokenizer ByteLevel";
    s->kind = PRETOKENIZE_BYTE_LEVEL;
    s->behavior = SPLIT_ISOLATED;
    enum status st =
        json_get_bool(json, where, "add_prefix_space", true, &s->add_prefix_space, err);
    if (!st)
        st = json_get_bool(json, where, "use_regex", true, &s->cut, err);
    if (!st && s->cut)
        st = regex_compile(&s->regex, GPT2_PATTERN, sizeof(GPT2_PATTERN) - 1, err);
    return st;
}

enum status metaspace_load_scheme(const json_t *json, enum prepend_scheme *scheme,
                                  struct errtext *err)
{
    static const char *const names[] = {
        [PREPEND_FIRST] = "first", [PREPEND_NEVER] = "never", [PREPEND_ALWAYS] = "always"};
    const json_t *v = json_object_get(json, "prepend_scheme");
    const json_t *old = json_object_get(json, "add_prefix_space");
    if (old && !json_is_boolean(old) && !json_is_null(old))
        return err_set(err, STATUS_INVALID,
                       "Metaspace: \"add_prefix_space\" must be true or false");
    *scheme = json_is_false(old) ? PREPEND_NEVER : PREPEND_ALWAYS;
    if (!v || json_is_null(v))
        return STATUS_OK;
    for (size_t i = 0; json_is_string(v) && i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(json_string_value(v), names[i]) != 0)
            continue;
        *scheme = (enum prepend_scheme)i;
        if (json_is_false(old) && *scheme != PREPEND_NEVER)
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
    static const char where[] = "pre_tokenizer Metaspace";
    s->kind = PRETOKENIZE_METASPACE;
    s->behavior = SPLIT_MERGED_WITH_NEXT;
    enum status st = json_get_text(json, where, "replacement", &s->literal, &s->literal_len, err);
    if (!st && utf8_count(s->literal, s->literal_len) != 1)
        st = err_set(err, STATUS_INVALID, "%s: \"replacement\" must be one character", where);
    if (!st)
        st = metaspace_load_scheme(json, &s->scheme, err);
    return st ? st : json_get_bool(json, where, "split", true, &s->cut, err);
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
        s->kind = PRETOKENIZE_DIGITS;
        enum status st = json_get_bool(json, "pre_tokenizer Digits", "individual_digits", false,
                                       &s->each_digit, err);
        s->behavior = s->each_digit ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS;
        return st;
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
    const char *type;
    enum status st = json_get_type(json, "pre_tokenizer", &type, err);
    if (st)
        return st;
    if (strcmp(type, "Sequence") == 0) {
        json_t *list;
        st = json_get_array(json, "pre_tokenizer Sequence", "pretokenizers", PRETOKENIZE_STEPS_MAX,
                            &list, err);
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
