/* The table of fields below is the whole policy; it covers every field that peft 0.21 saves.
 *
 * init_lora_weights needs care: pissa, olora, corda, loftq and lora_ga change the base weights when
 * an adapter is loaded, so an adapter that still carries them would be wrong on the plain base.
 * fan_in_fan_out is ignored: peft itself sets it to false for linear layers. */
#include "server/adapter/peft/config.h"
#include "server/base/check.h"
#include "server/base/json.h"
#include "server/base/mem.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum field_class {
    FIELD_USED,    /* read below */
    FIELD_IGNORED, /* training only, bookkeeping, or no effect on linear layers */
    FIELD_REFUSED, /* changes inference: must be off */
};

static const struct {
    const char *name;
    enum field_class class;
} fields[] = {
    {"peft_type", FIELD_USED},
    {"task_type", FIELD_USED},
    {"base_model_name_or_path", FIELD_USED},
    {"r", FIELD_USED},
    {"lora_alpha", FIELD_USED},
    {"use_rslora", FIELD_USED},
    {"target_modules", FIELD_USED},
    {"exclude_modules", FIELD_USED},
    {"layers_to_transform", FIELD_USED},
    {"layers_pattern", FIELD_USED},
    {"rank_pattern", FIELD_USED},
    {"alpha_pattern", FIELD_USED},
    {"bias", FIELD_USED},
    {"init_lora_weights", FIELD_USED},
    {"auto_mapping", FIELD_IGNORED},
    {"revision", FIELD_IGNORED},
    {"inference_mode", FIELD_IGNORED},
    {"peft_version", FIELD_IGNORED},
    {"lora_dropout", FIELD_IGNORED},
    {"fan_in_fan_out", FIELD_IGNORED},
    {"megatron_core", FIELD_IGNORED},
    {"loftq_config", FIELD_IGNORED},
    {"eva_config", FIELD_IGNORED},
    {"corda_config", FIELD_IGNORED},
    {"lora_ga_config", FIELD_IGNORED},
    {"velora_config", FIELD_IGNORED},
    {"qalora_group_size", FIELD_IGNORED},
    {"runtime_config", FIELD_IGNORED},
    {"ensure_weight_tying", FIELD_IGNORED},
    {"modules_to_save", FIELD_REFUSED},
    {"trainable_token_indices", FIELD_REFUSED},
    {"use_dora", FIELD_REFUSED},
    {"use_qalora", FIELD_REFUSED},
    {"use_bdlora", FIELD_REFUSED},
    {"lora_bias", FIELD_REFUSED},
    {"layer_replication", FIELD_REFUSED},
    {"target_parameters", FIELD_REFUSED},
    {"megatron_config", FIELD_REFUSED},
    {"alora_invocation_tokens", FIELD_REFUSED},
    {"arrow_config", FIELD_REFUSED},
    {"kasa_config", FIELD_REFUSED},
    {"monteclora_config", FIELD_REFUSED},
};

static bool is_off(const json_t *v)
{
    return json_is_null(v) || json_is_false(v) || (json_is_array(v) && !json_array_size(v)) ||
           (json_is_object(v) && !json_object_size(v));
}

static void check_fields(struct json_reader *r)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)r->obj, key, value)
    {
        size_t i = 0;
        while (i < ARRAY_COUNT(fields) && strcmp(fields[i].name, key))
            i++;
        bool is_known = i < ARRAY_COUNT(fields);
        if (is_off(value) || (is_known && fields[i].class != FIELD_REFUSED))
            continue;
        json_fail(r, STATUS_UNSUPPORTED, key, "found %s: %s", json_shown(value),
                  is_known
                      ? "this server does not compute it, expected it off; train without it, or "
                        "merge the adapter into its base (merge_and_unload) and serve that"
                      : "this field is not known, and may change what the adapter computes");
    }
}

static void check_kind(struct json_reader *r)
{
    const char *type = json_read_string(r, "peft_type");
    if (!type || strcmp(type, "LORA"))
        json_fail(r, STATUS_UNSUPPORTED, "peft_type", "found %s, expected \"LORA\"",
                  json_shown(json_object_get(r->obj, "peft_type")));
    const char *task = json_read_string(r, "task_type");
    if (task && strcmp(task, "CAUSAL_LM"))
        json_fail(r, STATUS_UNSUPPORTED, "task_type", "found \"%.40s\", expected \"CAUSAL_LM\"",
                  task);
    const char *bias = json_read_string(r, "bias");
    if (bias && strcmp(bias, "none"))
        json_fail(r, STATUS_UNSUPPORTED, "bias",
                  "found \"%.40s\", expected \"none\": trained biases are not served", bias);
    const json_t *init = json_object_get(r->obj, "init_lora_weights");
    static const char *const plain[] = {"gaussian", "eva", "orthogonal", "mica"};
    bool ok = !init || json_is_null(init) || json_is_boolean(init);
    for (size_t i = 0; json_is_string(init) && i < ARRAY_COUNT(plain); i++)
        ok = ok || !strcmp(json_string_value(init), plain[i]);
    if (!ok)
        json_fail(r, STATUS_UNSUPPORTED, "init_lora_weights",
                  "found %s: it belongs to changed base weights; save the adapter with peft's "
                  "path_initial_model_for_weight_conversion",
                  json_shown(init));
}

static void check_name_list(struct json_reader *r, const char *key, const json_t *list)
{
    if (json_array_size(list) > PEFT_PATTERNS_MAX)
        json_fail(r, STATUS_TOO_LARGE, key, "%zu entries, at most %d are read",
                  json_array_size(list), PEFT_PATTERNS_MAX);
    for (size_t i = 0; i < json_array_size(list); i++) {
        if (!json_is_string(json_array_get(list, i)))
            json_fail(r, STATUS_INVALID, key, "entry %zu is %s, expected a module name", i,
                      json_shown(json_array_get(list, i)));
    }
}

/* A list of names, or one regular expression. */
static void parse_selector(struct json_reader *r, const char *key, const json_t **list,
                           struct peft_pattern **pattern)
{
    const json_t *v = json_object_get(r->obj, key);
    if (r->st || !v || json_is_null(v))
        return;
    if (json_is_array(v)) {
        check_name_list(r, key, v);
        *list = v;
    } else if (json_is_string(v)) {
        r->st = peft_pattern_compile(pattern, PEFT_PATTERN_FULL, json_string_value(v), key, r->err);
    } else {
        json_fail(r, STATUS_INVALID, key, "found %s, expected a list of names or a pattern",
                  json_shown(v));
    }
}

static void parse_targets(struct json_reader *r, struct peft_rules *out)
{
    const json_t *target = json_object_get(r->obj, "target_modules");
    const char *text = json_string_value(target);
    parse_selector(r, "exclude_modules", &out->exclude_list, &out->exclude);
    out->is_all_linear = text && !strcmp(text, "all-linear");
    out->is_target_open = !target || json_is_null(target);
    if (!out->is_all_linear)
        parse_selector(r, "target_modules", &out->target_list, &out->target);
}

static void parse_layers(struct json_reader *r, struct peft_rules *out)
{
    const json_t *v = json_object_get(r->obj, "layers_to_transform");
    if (v && !json_is_null(v) && !(json_is_array(v) && !json_array_size(v)))
        out->layers = v;
    if (out->layers && !json_is_integer(v) && !json_is_array(v))
        json_fail(r, STATUS_INVALID, "layers_to_transform",
                  "found %s, expected a layer number or a list of them", json_shown(v));
    if (json_is_array(v) && json_array_size(v) > PEFT_PATTERNS_MAX)
        json_fail(r, STATUS_TOO_LARGE, "layers_to_transform", "%zu entries, at most %d are read",
                  json_array_size(v), PEFT_PATTERNS_MAX);
    if (out->layers && out->target)
        json_fail(r, STATUS_INVALID, "layers_to_transform",
                  "cannot be used with a target_modules pattern, only with a list");
    const json_t *p = json_object_get(r->obj, "layers_pattern");
    if (r->st || !p || is_off(p) || (json_is_string(p) && !json_string_length(p)))
        return;
    if (!out->layers)
        json_fail(r, STATUS_INVALID, "layers_pattern", "needs layers_to_transform");
    size_t n = json_is_string(p) ? 1 : json_array_size(p);
    if (n == 0 || n > 64) {
        json_fail(r, STATUS_INVALID, "layers_pattern",
                  "found %s, expected a name or a list of 1 to 64 names", json_shown(p));
        return;
    }
    out->layers_pattern = mem_array(n, sizeof(*out->layers_pattern));
    for (size_t i = 0; i < n && !r->st; i++) {
        const char *text = json_string_value(json_is_string(p) ? p : json_array_get(p, i));
        if (!text)
            json_fail(r, STATUS_INVALID, "layers_pattern", "entry %zu: expected a name", i);
        else
            r->st = peft_pattern_compile(&out->layers_pattern[out->layers_pattern_count++],
                                         PEFT_PATTERN_LAYER, text, "layers_pattern", r->err);
    }
}

static void parse_patterns(struct json_reader *r, const char *key, struct json_range range,
                           struct peft_pattern_entry **out, uint32_t *count)
{
    json_t *dict = json_object_get(r->obj, key);
    const char *pattern;
    json_t *value;
    if (r->st || !dict || json_is_null(dict))
        return;
    if (!json_is_object(dict) || json_object_size(dict) > PEFT_PATTERNS_MAX) {
        json_fail(r, STATUS_INVALID, key, "found %s, expected an object of at most %d patterns",
                  json_shown(dict), PEFT_PATTERNS_MAX);
        return;
    }
    *out = mem_try_array(json_object_size(dict) + 1, sizeof(**out));
    if (!*out) {
        json_fail(r, STATUS_NO_MEMORY, key, "no memory for %zu patterns", json_object_size(dict));
        return;
    }
    json_object_foreach(dict, pattern, value)
    {
        double v = json_is_number(value) ? json_number_value(value) : NAN;
        if (!(v >= (double)range.lo && v <= (double)range.hi))
            json_fail(r, STATUS_INVALID, key,
                      "\"%.60s\": found %s, expected a number from %lld to %lld", pattern,
                      json_shown(value), (long long)range.lo, (long long)range.hi);
        if (r->st)
            return;
        (*out)[*count].value = v;
        r->st = peft_pattern_compile(&(*out)[(*count)++].pattern, PEFT_PATTERN_SUFFIX, pattern, key,
                                     r->err);
    }
}

enum status peft_rules_parse(struct peft_rules *out, const char *json, size_t len,
                             struct errtext *err)
{
    memset(out, 0, sizeof(*out));
    out->budget = PEFT_MATCHES_MAX;
    enum status st = json_doc_parse(&out->root, "adapter_config.json", json, len, 0, err);
    if (st)
        return st;
    struct json_reader r = {.obj = out->root, .where = "adapter_config.json", .err = err};
    check_kind(&r);
    check_fields(&r);
    (void)json_read_string(&r, "base_model_name_or_path");
    out->r = (uint32_t)json_read_int(&r, "r", (struct json_range){1, PEFT_RANK_MAX}, 8);
    out->alpha = json_read_num(&r, "lora_alpha", -1e6, 1e6, 8);
    out->use_rslora = json_read_bool(&r, "use_rslora", false);
    parse_targets(&r, out);
    parse_layers(&r, out);
    parse_patterns(&r, "rank_pattern", (struct json_range){1, PEFT_RANK_MAX}, &out->rank,
                   &out->rank_count);
    parse_patterns(&r, "alpha_pattern", (struct json_range){-1000000, 1000000}, &out->alpha_of,
                   &out->alpha_count);
    if (r.st)
        peft_rules_fini(out);
    return r.st;
}

static void free_entries(struct peft_pattern_entry *e, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        peft_pattern_free(e[i].pattern);
    mem_free(e);
}

void peft_rules_fini(struct peft_rules *r)
{
    peft_pattern_free(r->target);
    peft_pattern_free(r->exclude);
    for (uint32_t i = 0; i < r->layers_pattern_count; i++)
        peft_pattern_free(r->layers_pattern[i]);
    mem_free(r->layers_pattern);
    free_entries(r->rank, r->rank_count);
    free_entries(r->alpha_of, r->alpha_count);
    json_decref(r->root);
    memset(r, 0, sizeof(*r));
}

const char *peft_rules_base(const struct peft_rules *r)
{
    return json_string_value(json_object_get(r->root, "base_model_name_or_path"));
}

enum list_hit { LIST_NONE, LIST_SUFFIX, LIST_EXACT };

/* path equals an entry, or ends with "." and the entry. */
static enum list_hit list_match(const json_t *list, const char *path)
{
    size_t path_len = strlen(path);
    enum list_hit hit = LIST_NONE;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *name = json_string_value(json_array_get(list, i));
        size_t n = strlen(name);
        if (!strcmp(name, path))
            return LIST_EXACT;
        if (n < path_len && path[path_len - n - 1] == '.' && !strcmp(path + path_len - n, name))
            hit = LIST_SUFFIX;
    }
    return hit;
}

/* The first numbered segment that has two segments before it: peft's own rule. */
static bool first_layer(const char *path, uint32_t *layer)
{
    uint32_t segment = 0, value;
    int used;
    for (const char *p = path; p; p = strchr(p, '.') ? strchr(p, '.') + 1 : NULL) {
        if (segment++ >= 2 && sscanf(p, "%9u%n", &value, &used) == 1 && p[used] == '.' &&
            p[0] >= '0' && p[0] <= '9') {
            *layer = value;
            return true;
        }
    }
    return false;
}

static enum status layer_selected(struct peft_rules *r, const char *path, bool *selected,
                                  struct errtext *err)
{
    uint32_t layer = 0;
    bool found = false;
    enum status st = STATUS_OK;
    if (r->layers_pattern_count == 0)
        found = first_layer(path, &layer);
    for (uint32_t i = 0; !st && !found && i < r->layers_pattern_count; i++)
        st = peft_pattern_test(r->layers_pattern[i], path, &r->budget, &found, &layer, err);
    bool hit = json_is_integer(r->layers) && json_integer_value(r->layers) == layer;
    for (size_t i = 0; i < json_array_size(r->layers); i++)
        hit = hit || json_integer_value(json_array_get(r->layers, i)) == layer;
    *selected = found && hit;
    return st;
}

enum status peft_rules_selects(struct peft_rules *r, const char *path, bool open, bool *selected,
                               struct errtext *err)
{
    bool excluded = r->exclude_list && list_match(r->exclude_list, path) != LIST_NONE;
    enum status st = STATUS_OK;
    *selected = false;
    if (r->exclude)
        st = peft_pattern_test(r->exclude, path, &r->budget, &excluded, NULL, err);
    if (st || excluded)
        return st;
    if (r->is_target_open) {
        *selected = open;
    } else if (r->is_all_linear) {
        *selected = strcmp(path, "lm_head") && strcmp(path, "model.embed_tokens");
    } else if (r->target) {
        return peft_pattern_test(r->target, path, &r->budget, selected, NULL, err);
    } else {
        enum list_hit hit = list_match(r->target_list, path);
        *selected = hit != LIST_NONE;
        if (hit == LIST_SUFFIX && r->layers)
            return layer_selected(r, path, selected, err);
    }
    return STATUS_OK;
}

static enum status first_match(struct peft_rules *r, const struct peft_pattern_entry *e,
                               uint32_t count, const char *path, double *value, struct errtext *err)
{
    for (uint32_t i = 0; i < count; i++) {
        bool hit;
        enum status st = peft_pattern_test(e[i].pattern, path, &r->budget, &hit, NULL, err);
        if (st)
            return st;
        if (hit) {
            *value = e[i].value;
            return STATUS_OK;
        }
    }
    return STATUS_OK;
}

enum status peft_rules_rank(struct peft_rules *r, const char *path, uint32_t *rank, double *scale,
                            struct errtext *err)
{
    double rank_value = r->r, alpha = r->alpha;
    enum status st = first_match(r, r->rank, r->rank_count, path, &rank_value, err);
    if (!st)
        st = first_match(r, r->alpha_of, r->alpha_count, path, &alpha, err);
    *rank = (uint32_t)rank_value;
    *scale = r->use_rslora ? alpha / sqrt(rank_value) : alpha / rank_value;
    return st;
}
