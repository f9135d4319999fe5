/* PCRE2 stands in for Python's re: for the patterns people write about module names the two agree.
 * What only PCRE2 has (verbs, "(*") is refused, since Python would refuse it too. No JIT: patterns
 * run a few hundred times once per load, and the interpreter honours the match limit exactly. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "server/adapter/peft/match.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STEPS_MAX      5000
#define HEAP_KB_MAX    1024
#define CAPTURES_MAX   64
#define FIELD_NAME_MAX 48

struct peft_pattern {
    pcre2_code *code;
    pcre2_match_data *data;
    pcre2_match_context *limits;
    char field[FIELD_NAME_MAX];
    char shown[80];
};

static enum status compile(struct peft_pattern *p, const char *full, uint32_t options,
                           struct errtext *err)
{
    int code;
    PCRE2_SIZE at;
    p->code = pcre2_compile((PCRE2_SPTR)full, PCRE2_ZERO_TERMINATED, options, &code, &at, NULL);
    if (!p->code) {
        char why[120] = "";
        pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof(why));
        return err_param(err, STATUS_INVALID, p->field,
                         "adapter_config.json: %s: '%s' is not a regular expression: %s", p->field,
                         p->shown, why);
    }
    uint32_t captures = 0;
    pcre2_pattern_info(p->code, PCRE2_INFO_CAPTURECOUNT, &captures);
    if (captures > CAPTURES_MAX)
        return err_param(err, STATUS_TOO_LARGE, p->field,
                         "adapter_config.json: %s: '%s' has %u groups, at most %d are read",
                         p->field, p->shown, captures, CAPTURES_MAX);
    p->data = pcre2_match_data_create_from_pattern(p->code, NULL);
    p->limits = pcre2_match_context_create(NULL);
    if (!p->data || !p->limits)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a pattern");
    pcre2_set_match_limit(p->limits, STEPS_MAX);
    pcre2_set_depth_limit(p->limits, STEPS_MAX);
    pcre2_set_heap_limit(p->limits, HEAP_KB_MAX);
    return STATUS_OK;
}

enum status peft_pattern_compile(struct peft_pattern **out, enum peft_pattern_kind kind,
                                 const char *text, const char *field, struct errtext *err)
{
    static const char *const frame[] = {
        [PEFT_PATTERN_FULL] = "%s",
        [PEFT_PATTERN_SUFFIX] = "(.*\\.)?(%s)$",
        [PEFT_PATTERN_LAYER] = "(?:^|.*?\\.)%s\\.(?P<idx>\\d+)\\.",
    };
    char full[PEFT_PATTERN_BYTES_MAX + 64];
    *out = NULL;
    if (strlen(text) > PEFT_PATTERN_BYTES_MAX)
        return err_param(err, STATUS_TOO_LARGE, field,
                         "adapter_config.json: %s: a pattern of %zu bytes, at most %d are read",
                         field, strlen(text), PEFT_PATTERN_BYTES_MAX);
    if (strstr(text, "(*"))
        return err_param(err, STATUS_INVALID, field,
                         "adapter_config.json: %s: '%.60s' is not a regular expression: nothing to "
                         "repeat in '(*'",
                         field, text);
    struct peft_pattern *p = mem_try_alloc(sizeof(*p));
    if (!p)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a pattern");
    snprintf(p->field, sizeof(p->field), "%s", field);
    snprintf(p->shown, sizeof(p->shown), "%.70s", text);
    snprintf(full, sizeof(full), frame[kind], text);
    uint32_t options = PCRE2_ANCHORED | PCRE2_DOLLAR_ENDONLY;
    if (kind == PEFT_PATTERN_FULL)
        options |= PCRE2_ENDANCHORED;
    enum status st = compile(p, full, options, err);
    if (st) {
        peft_pattern_free(p);
        return st;
    }
    *out = p;
    return STATUS_OK;
}

void peft_pattern_free(struct peft_pattern *p)
{
    if (!p)
        return;
    pcre2_match_data_free(p->data);
    pcre2_match_context_free(p->limits);
    pcre2_code_free(p->code);
    mem_free(p);
}

static uint32_t named_idx(const struct peft_pattern *p)
{
    PCRE2_UCHAR text[12];
    PCRE2_SIZE len = sizeof(text);
    if (pcre2_substring_copy_byname(p->data, (PCRE2_SPTR) "idx", text, &len))
        return UINT32_MAX;
    return (uint32_t)strtoul((const char *)text, NULL, 10);
}

enum status peft_pattern_test(const struct peft_pattern *p, const char *path, uint32_t *budget,
                              bool *matched, uint32_t *layer, struct errtext *err)
{
    *matched = false;
    if (*budget == 0)
        return err_param(err, STATUS_INVALID, p->field,
                         "adapter_config.json: %s: too many patterns for this model", p->field);
    (*budget)--;
    int n = pcre2_match(p->code, (PCRE2_SPTR)path, strlen(path), 0, 0, p->data, p->limits);
    if (n == PCRE2_ERROR_NOMATCH)
        return STATUS_OK;
    if (n < 0)
        return err_param(err, STATUS_INVALID, p->field,
                         "adapter_config.json: %s: '%s' takes more than %d steps on '%s'", p->field,
                         p->shown, STEPS_MAX, path);
    *matched = true;
    if (layer)
        *layer = named_idx(p);
    return STATUS_OK;
}
