/* The file parser, the flag parser and --help walk the same table, so they cannot disagree. Two
 * passes over the flags: the first reads the files that --config names, the second sets the flags,
 * which so win over a file wherever it was named. */
#include "server/base/options.h"
#include "server/base/json.h"
#include "server/base/mem.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_BYTES_MAX (16u << 20)
#define NAME_BYTES     64

static void *field_of(void *out, const struct option_row *k)
{
    return (char *)out + k->offset;
}

static bool is_number(const struct option_row *k)
{
    return k->kind == OPTION_NUMBER || k->kind == OPTION_BUDGET;
}

/* By name; words have none. */
static const struct option_row *find_row(const struct options *t, const char *name)
{
    for (size_t i = 0; i < t->row_count; i++) {
        if (t->row[i].kind != OPTION_WORD && strcmp(t->row[i].name, name) == 0)
            return &t->row[i];
    }
    return NULL;
}

static enum status refuse_unknown(const struct options *t, const char *what, const char *name,
                                  struct errtext *err)
{
    for (size_t i = 0; i < t->alias_count; i++) {
        if (strcmp(t->alias[i].theirs, name) == 0)
            return err_param(err, STATUS_INVALID, name, "%s '%s' is not ours: use %s", what, name,
                             t->alias[i].ours);
    }
    return err_param(err, STATUS_INVALID, name, "unknown %s '%.64s'; --help lists them all", what,
                     name);
}

/* ---- setting values ---- */

static void set_text(char **at, const char *value)
{
    mem_free(*at);
    *at = mem_strdup(value);
}

static enum status add_item(struct option_list *list, const struct option_row *k, const char *value,
                            struct errtext *err)
{
    if (list->count == OPTIONS_LIST_MAX)
        return err_param(err, STATUS_TOO_LARGE, k->name, "%s: more than %d entries", k->name,
                         OPTIONS_LIST_MAX);
    if (!list->item)
        list->item = mem_array(OPTIONS_LIST_MAX, sizeof(*list->item));
    list->item[list->count++] = mem_strdup(value);
    return STATUS_OK;
}

static enum status set_percent(uint64_t *at, const struct option_row *k, const char *value,
                               struct errtext *err)
{
    char *end;
    unsigned long v = strtoul(value, &end, 10);
    if (value[0] < '0' || value[0] > '9' || strcmp(end, "%") != 0 || v < 1 || v > 100)
        return err_param(err, STATUS_INVALID, k->name, "%s: found '%.64s', expected 1%% to 100%%",
                         k->name, value);
    *at = BUDGET_PERCENT | v;
    return STATUS_OK;
}

/* "3", "3k", "3G": true and *out, if it is such a number and fits. */
static bool parse_number(uint64_t *out, const char *value)
{
    char *end;
    errno = 0;
    unsigned long long v = strtoull(value, &end, 10);
    static const char suffixes[] = "kmgt"; /* binary multiples, as KiB, MiB... */
    const char *suffix = *end ? strchr(suffixes, *end | 0x20) : NULL;
    unsigned shift = suffix ? 10 * (unsigned)(suffix - suffixes + 1) : 0;
    *out = (uint64_t)v << shift;
    return value[0] >= '0' && value[0] <= '9' && !errno && !(suffix ? end[1] : *end) &&
           v <= UINT64_MAX >> shift;
}

static enum status set_number(uint64_t *at, const struct option_row *k, const char *value,
                              struct errtext *err)
{
    uint64_t number;
    bool is_budget = k->kind == OPTION_BUDGET;
    if (is_budget && strchr(value, '%'))
        return set_percent(at, k, value, err);
    if (!parse_number(&number, value))
        return err_param(err, STATUS_INVALID, k->name,
                         "%s: found '%.64s', expected a whole number of %s (k, m, g may follow)",
                         k->name, value, is_budget ? "bytes" : k->unit);
    if (number < k->least || number > k->most)
        return err_param(err, STATUS_INVALID, k->name,
                         "%s: found %" PRIu64 ", expected %" PRIu64 " to %" PRIu64 " %s", k->name,
                         number, k->least, k->most, is_budget ? "bytes, or 1% to 100%" : k->unit);
    *at = number;
    return STATUS_OK;
}

static enum status set_bool(bool *at, const struct option_row *k, const char *value,
                            struct errtext *err)
{
    bool yes = !strcmp(value, "true") || !strcmp(value, "1") || !strcmp(value, "on");
    bool no = !strcmp(value, "false") || !strcmp(value, "0") || !strcmp(value, "off");
    if (!yes && !no)
        return err_param(err, STATUS_INVALID, k->name, "%s: found '%.64s', expected true or false",
                         k->name, value);
    *at = yes;
    return STATUS_OK;
}

static enum status set_json(json_t **at, const struct option_row *k, json_t *value,
                            struct errtext *err)
{
    if (!json_is_array(value))
        return err_param(err, STATUS_INVALID, k->name, "%s: expected a JSON array", k->name);
    json_decref(*at);
    *at = json_incref(value);
    return STATUS_OK;
}

static enum status set_json_text(json_t **at, const struct option_row *k, const char *value,
                                 struct errtext *err)
{
    json_t *json;
    if (json_doc_parse(&json, k->name, value, strlen(value), JSON_DOC_LIST, NULL))
        json = NULL; /* its text would quote the value, which may be secret */
    enum status st = set_json(at, k, json, err);
    json_decref(json);
    return st;
}

static enum status set_value(void *out, const struct option_row *k, const char *value,
                             struct errtext *err)
{
    void *at = field_of(out, k);
    switch (k->kind) {
    case OPTION_TEXT:
    case OPTION_WORD:
        set_text(at, value);
        return STATUS_OK;
    case OPTION_LIST:
        return add_item(at, k, value, err);
    case OPTION_CUSTOM:
        return k->custom->add(at, k, value, err);
    case OPTION_NUMBER:
    case OPTION_BUDGET:
        return set_number(at, k, value, err);
    case OPTION_JSON:
        return set_json_text(at, k, value, err);
    default:
        return set_bool(at, k, value, err);
    }
}

/* ---- the file ---- */

static enum status set_array(void *out, const struct option_row *k, const json_t *v,
                             struct errtext *err)
{
    enum status st = STATUS_OK;
    for (size_t i = 0; i < json_array_size(v) && !st; i++) {
        const char *item = json_string_value(json_array_get(v, i));
        st = item ? set_value(out, k, item, err)
                  : err_param(err, STATUS_INVALID, k->name, "%s[%zu]: expected a string", k->name,
                              i);
    }
    return st;
}

static enum status set_from_json(void *out, const struct option_row *k, json_t *v,
                                 struct errtext *err)
{
    char number[32];
    if (k->kind == OPTION_JSON)
        return set_json(field_of(out, k), k, v, err);
    if (json_is_array(v) && (k->kind == OPTION_LIST || k->kind == OPTION_CUSTOM))
        return set_array(out, k, v, err);
    if (json_is_boolean(v) && k->kind == OPTION_BOOL)
        return set_value(out, k, json_is_true(v) ? "true" : "false", err);
    if (json_is_integer(v) && is_number(k)) {
        snprintf(number, sizeof(number), "%" JSON_INTEGER_FORMAT, json_integer_value(v));
        return set_value(out, k, number, err);
    }
    if (json_is_string(v) && k->kind != OPTION_BOOL)
        return set_value(out, k, json_string_value(v), err);
    return err_param(err, STATUS_INVALID, k->name, "%s: wrong JSON type, expected %s", k->name,
                     k->unit);
}

static enum status set_object(const struct options *t, void *out, json_t *root, struct errtext *err)
{
    const char *name;
    json_t *v;
    json_object_foreach(root, name, v)
    {
        const struct option_row *k = find_row(t, name);
        enum status st = k && k->kind != OPTION_SWITCH ? set_from_json(out, k, v, err)
                                                       : refuse_unknown(t, "config key", name, err);
        if (st)
            return st;
    }
    return STATUS_OK;
}

static enum status load_file(const struct options *t, void *out, const char *path,
                             struct errtext *err)
{
    json_t *root;
    enum status st = json_doc_load(&root, path, FILE_BYTES_MAX, 0, err);
    if (st)
        return st;
    st = set_object(t, out, root, err);
    if (st)
        err_prefix(err, "%s", path);
    json_decref(root);
    return st;
}

/* ---- flags ---- */

/* "--kv-bytes=5" -> name "kv_bytes", value "5" or NULL. */
static bool split_flag(const char *arg, char name[NAME_BYTES], const char **value)
{
    if (strcmp(arg, "-h") == 0)
        arg = "--help";
    const char *eq = strchr(arg, '=');
    size_t len = eq ? (size_t)(eq - arg) : strlen(arg);
    if (strncmp(arg, "--", 2) != 0 || len < 3 || len - 2 >= NAME_BYTES)
        return false;
    for (size_t i = 2; i < len; i++)
        name[i - 2] = arg[i] == '-' ? '_' : arg[i];
    name[len - 2] = '\0';
    *value = eq ? eq + 1 : NULL;
    return true;
}

/* May this flag stand without a value, before `next`? */
static bool stands_alone(const struct option_row *k, const char *next)
{
    return k->kind == OPTION_SWITCH || (k->kind == OPTION_BOOL && (!next || next[0] == '-'));
}

struct options_walk {
    const struct options *t;
    void *out;
    int argc, at;
    char **argv;
    bool files;    /* act on --config only; else on everything else */
    uint32_t word; /* how many were taken */
};

static enum status take_word(struct options_walk *w, const char *word, struct errtext *err)
{
    uint32_t left = w->word++;
    for (size_t i = 0; i < w->t->row_count; i++) {
        const struct option_row *k = &w->t->row[i];
        if (k->kind == OPTION_WORD && left-- == 0)
            return w->files ? STATUS_OK : set_value(w->out, k, word, err);
    }
    return err_set(err, STATUS_INVALID, "unexpected argument '%.64s'; flags begin with --", word);
}

static enum status take_flag(struct options_walk *w, const char *arg, struct errtext *err)
{
    char name[NAME_BYTES];
    const char *value, *next = w->at < w->argc ? w->argv[w->at] : NULL;
    if (!split_flag(arg, name, &value))
        return err_set(err, STATUS_INVALID, "unexpected argument '%.64s'; flags begin with --",
                       arg);
    bool is_config = strcmp(name, "config") == 0;
    const struct option_row *k = find_row(w->t, name);
    if (!k && !is_config)
        return refuse_unknown(w->t, "flag", name, err);
    if (!value && k && stands_alone(k, next)) {
        value = "true";
    } else if (!value) {
        value = next;
        w->at++;
    }
    if (!value)
        return err_param(err, STATUS_INVALID, name, "--%s: a value is missing (%s)", name,
                         k ? k->unit : "FILE");
    if (is_config)
        return w->files ? load_file(w->t, w->out, value, err) : STATUS_OK;
    return w->files ? STATUS_OK : set_value(w->out, k, value, err);
}

static enum status walk_flags(struct options_walk w, struct errtext *err)
{
    enum status st = STATUS_OK;
    for (w.at = 1; w.at < w.argc && !st;) {
        const char *arg = w.argv[w.at++];
        st = arg[0] == '-' ? take_flag(&w, arg, err) : take_word(&w, arg, err);
    }
    return st;
}

static void set_defaults(const struct options *t, void *out)
{
    for (size_t i = 0; i < t->row_count; i++) {
        const struct option_row *k = &t->row[i];
        if (k->text_standard)
            set_text(field_of(out, k), k->text_standard);
        else if (is_number(k))
            *(uint64_t *)field_of(out, k) = k->standard;
        else if (k->kind == OPTION_BOOL)
            *(bool *)field_of(out, k) = k->standard != 0;
    }
}

enum status options_load(const struct options *t, void *out, int argc, char **argv,
                         struct errtext *err)
{
    set_defaults(t, out);
    struct options_walk w = {.t = t, .out = out, .argc = argc, .argv = argv, .files = true};
    enum status st = walk_flags(w, err);
    w.files = false;
    return st ? st : walk_flags(w, err);
}

static void list_fini(struct option_list *list)
{
    for (uint32_t i = 0; i < list->count; i++)
        mem_free(list->item[i]);
    mem_free(list->item);
    *list = (struct option_list){0};
}

void options_fini(const struct options *t, void *out)
{
    for (size_t i = 0; i < t->row_count; i++) {
        const struct option_row *k = &t->row[i];
        void *at = field_of(out, k);
        if (k->kind == OPTION_TEXT || k->kind == OPTION_WORD) {
            mem_free(*(char **)at);
            *(char **)at = NULL;
        } else if (k->kind == OPTION_JSON) {
            json_decref(*(json_t **)at);
            *(json_t **)at = NULL;
        } else if (k->kind == OPTION_LIST) {
            list_fini(at);
        } else if (k->kind == OPTION_CUSTOM) {
            k->custom->fini(at);
        }
    }
}

static void print_row(const struct option_row *k)
{
    char flag[NAME_BYTES];
    for (size_t i = 0; i <= strlen(k->name); i++)
        flag[i] = k->name[i] == '_' ? '-' : k->name[i];
    printf("  --%s%s%s\n        %s", flag, k->unit[0] ? " " : "", k->unit, k->help);
    if (is_number(k))
        printf(" (default %" PRIu64 ")", k->standard);
    else if (k->kind == OPTION_BOOL)
        printf(" (default %s)", k->standard ? "true" : "false");
    else if (k->text_standard)
        printf(" (default %s)", k->text_standard);
    putchar('\n');
}

void options_print_help(const struct options *t)
{
    printf(
        "%s\n"
        "Every flag is also a key of the JSON config file (same name with underscores). Flags win "
        "over the file.\nNumbers take k, m, g, t (binary multiples).\n\n"
        "  --config FILE\n        JSON object of the keys below\n",
        t->usage);
    for (size_t i = 0; i < t->row_count; i++) {
        if (t->row[i].kind != OPTION_WORD)
            print_row(&t->row[i]);
    }
    printf("\n%s\n", t->notes);
}
