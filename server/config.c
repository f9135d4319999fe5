/* One table row per key: its name, kind, place in struct config, range, default, unit and meaning.
 * The file parser, the flag parser and --help all walk the same table, so they cannot disagree.
 * Flags take dashes or underscores; the names that vLLM's users know are accepted as hints: a
 * refused flag says what ours is called. */
#include "server/config.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/mem.h"

#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONFIG_BYTES_MAX (16u << 20)

enum kind { KIND_TEXT, KIND_NUMBER, KIND_BUDGET, KIND_BOOL, KIND_LIST, KIND_JSON, KIND_SWITCH };

struct key {
    const char *name;
    enum kind kind;
    size_t offset;
    uint64_t least, most, standard;
    const char *text_standard;
    const char *unit, *help;
};

#define AT(field) offsetof(struct config, field)
#define TEXT(field, standard, unit, help)                                                          \
    {                                                                                              \
#field, KIND_TEXT, AT(field), 0, 0, 0, standard, unit, help                                \
    }
#define LIST(field, unit, help)                                                                    \
    {                                                                                              \
#field, KIND_LIST, AT(field), 0, 0, 0, NULL, unit, help                                    \
    }
#define BOOL(field, standard, help)                                                                \
    {                                                                                              \
#field, KIND_BOOL, AT(field), 0, 1, standard, NULL, "true|false", help                     \
    }
#define SWITCH(field, help)                                                                        \
    {                                                                                              \
#field, KIND_SWITCH, AT(field), 0, 1, 0, NULL, "", help                                    \
    }
#define NUM(field, least, most, std, unit, help)                                                   \
    {                                                                                              \
#field, KIND_NUMBER, AT(field), least, most, std, NULL, unit, help                         \
    }
#define BUDGET(field, least, std, help)                                                            \
    {                                                                                              \
#field, KIND_BUDGET, AT(field), least, 1ull << 44, std, NULL, "bytes|N%", help             \
    }
#define GIB ((uint64_t)1 << 30)

static const struct key keys[] = {
    TEXT(model, NULL, "DIR", "base model directory (Hugging Face layout); required"),
    TEXT(model_name, NULL, "NAME", "what clients call the base; default: the directory's name"),
    LIST(adapter, "NAME=DIR", "serve this PEFT adapter; may be repeated"),
    TEXT(adapter_dir, NULL, "DIR",
         "serve every adapter below this folder, named as its sub-folder"),
    LIST(adapter_roots, "DIR", "folders that /v1/load_lora_adapter may load from; may be repeated"),
    TEXT(listen, "127.0.0.1:8080", "HOST:PORT", "where to listen; beyond loopback needs api_keys"),
    TEXT(backend, "auto", "auto|cpu|ref|cuda", "what computes"),
    TEXT(dtype, "auto", "auto|f32|bf16", "what products are computed in"),
    NUM(device, 0, 63, 0, "number", "cuda: which GPU"),
    BUDGET(device_bytes, 0, 0,
           "cuda: the one allocation of device memory; N%: of what is free; 0: 90%"),
    NUM(threads, 0, 1024, 0, "threads", "compute threads; 0: as many as the process may use"),
    BOOL(deterministic, 1, "bits do not depend on batch, threads or chunking"),
    NUM(context_max, 0, 1u << 20, 0, "tokens", "longest sequence; 0: the model's"),
    NUM(rows_max, 16, 8192, 256, "tokens", "rows of one step, prefill and decode together"),
    NUM(seqs_max, 1, 4096, 256, "sequences", "running at a time"),
    NUM(waiting_max, 1, 65536, 4096, "requests", "queued; past it clients get 429"),
    BUDGET(kv_bytes, 0, 0,
           "KV cache; N%: of memory, cuda: of what the base leaves on the device; 0: what seqs_max "
           "sequences need, at most a quarter of memory; cuda: at most what the rest leaves"),
    BOOL(prefix_cache, 1, "reuse KV of equal prefixes of the same adapters"),
    NUM(adapters_registered_max, 0, 1u << 20, 16384, "adapters", "known at a time"),
    NUM(adapters_per_batch_max, 1, 1024, 64, "adapters", "distinct in one step"),
    NUM(adapters_resident_max, 1, 65536, 2048, "adapters", "in memory at a time"),
    BUDGET(adapters_host_bytes_max, 1 << 16, 2 * GIB,
           "memory of resident adapters; N%: of the machine's"),
    BUDGET(adapters_device_bytes_max, 0, 0,
           "cuda: device memory of adapters; N%: of what the base leaves; 0: 25%"),
    NUM(adapter_rank_max, 1, 512, 128, "ranks", "largest rank of one module"),
    NUM(adapter_wait_ms_max, 1, 600000, 30000, "ms",
        "wait for a cold adapter; past it the request gets 503"),
    NUM(adapter_bytes_max, 1 << 12, 1ull << 40, 1 * GIB, "bytes", "largest adapter file"),
    NUM(publisher_bytes_max, 1 << 12, 1ull << 44, 16 * GIB, "bytes",
        "published files of one API key"),
    BOOL(allow_runtime_loading, 1, "serve /v1/load_lora_adapter (admin keys, adapter_roots only)"),
    TEXT(data_dir, NULL, "DIR",
         "lane key, records, published adapters; default: the user's state folder"),
    NUM(score_rate_ppb, 0, 1000000000, 1000000000, "ppb",
        "answers scored (signal S0); 1000000000: all"),
    NUM(score_rows_max, 0, 8192, 128, "tokens", "scoring rows of one step; 0: scoring off"),
    NUM(score_queue_max, 1, 65536, 1024, "rows", "scoring sequences inside the engine"),
    NUM(score_bytes_max, 1 << 16, 1ull << 44, 1 * GIB, "bytes",
        "jobs waiting to be scored; past it requests get 503"),
    NUM(score_age_s_max, 1, 1u << 30, 86400, "s", "a job older than this ends as 'inputs lost'"),
    NUM(spool_bytes_max, 1 << 16, 1ull << 50, 64 * GIB, "bytes",
        "records kept on disk; past 95 % requests get 503"),
    NUM(group_max, 1, 65536, 64, "records", "group fsync: most records"),
    TEXT(redis_url, NULL, "redis://HOST:PORT",
         "ship records there; without it they stay in the local spool"),
    TEXT(redis_password_file, NULL, "FILE", "mode 600"),
    NUM(chain_id, 0, UINT64_MAX, 0, "id", "of the ledger's chain; 0: records stay unbound"),
    TEXT(ledger, NULL, "0xADDRESS", "AttributionLedger"),
    TEXT(registry, NULL, "0xADDRESS", "Registry"),
    NUM(lane, 0, UINT32_MAX, 0, "id", "lane registered for this server; 0: 1"),
    TEXT(base_price_in, "0", "base units", "tariff of the base per 1000 prompt tokens"),
    TEXT(base_price_out, "0", "base units", "tariff of the base per 1000 output tokens"),
    {"api_keys", KIND_JSON, AT(api_keys), 0, 0, 0, NULL, "JSON",
     "array of {name, digest, roles, adapters, account}; digest: BLAKE2b-256 hex of the key"},
    TEXT(api_keys_file, NULL, "FILE", "the same array in a file of mode 600"),
    NUM(http_threads, 1, 64, 2, "threads", "that parse and stream"),
    NUM(connections_max, 8, 65536, 4096, "connections", "open at a time"),
    NUM(connections_per_ip_max, 1, 65536, 4096, "connections", "open from one address"),
    NUM(idle_timeout_s, 1, 86400, 120, "s", "an idle connection is closed"),
    NUM(body_bytes_max, 1024, 1ull << 32, 8u << 20, "bytes", "largest JSON body"),
    NUM(n_max, 1, 128, 16, "choices", "largest n"),
    NUM(drain_s, 0, 86400, 45, "s", "SIGTERM: running answers may take this long"),
    NUM(lame_duck_s, 0, 3600, 0, "s", "SIGTERM: keep accepting this long after readiness fails"),
    TEXT(log_level, "info", "error|warn|info|debug", "of the lines on stderr"),
    SWITCH(plan, "print the memory plan and exit; cuda with device_bytes: without a device"),
    SWITCH(version, "print the version and exit"),
    SWITCH(help, "print this and exit"),
};

static const struct {
    const char *theirs, *ours;
} renamed[] = {
    {"max_model_len", "context_max"},
    {"max_num_seqs", "seqs_max"},
    {"max_num_batched_tokens", "rows_max"},
    {"max_loras", "adapters_per_batch_max"},
    {"max_cpu_loras", "adapters_resident_max"},
    {"max_lora_rank", "adapter_rank_max"},
    {"lora_modules", "adapter NAME=DIR"},
    {"served_model_name", "model_name"},
    {"host", "listen HOST:PORT"},
    {"port", "listen HOST:PORT"},
    {"api_key", "api_keys_file"},
    {"enable_prefix_caching", "prefix_cache"},
    {"enable_lora", "adapter (LoRA is always enabled)"},
};

static const struct key *find_key(const char *name)
{
    for (size_t i = 0; i < ARRAY_COUNT(keys); i++) {
        if (strcmp(keys[i].name, name) == 0)
            return &keys[i];
    }
    return NULL;
}

static enum status unknown_key(const char *what, const char *name, struct errtext *err)
{
    for (size_t i = 0; i < ARRAY_COUNT(renamed); i++) {
        if (strcmp(renamed[i].theirs, name) == 0)
            return err_param(err, STATUS_INVALID, name, "%s '%s' is not ours: use %s", what, name,
                             renamed[i].ours);
    }
    return err_param(err, STATUS_INVALID, name, "unknown %s '%s'; --help lists them all", what,
                     name);
}

/* ---- setting values ---- */

static void set_text(struct config *c, const struct key *k, const char *value)
{
    char **at = (char **)((char *)c + k->offset);
    mem_free(*at);
    *at = mem_strdup(value);
}

static enum status add_item(struct config *c, const struct key *k, const char *value,
                            struct errtext *err)
{
    struct config_list *list = (struct config_list *)((char *)c + k->offset);
    if (list->count == CONFIG_LIST_MAX)
        return err_param(err, STATUS_TOO_LARGE, k->name, "%s: more than %d entries", k->name,
                         CONFIG_LIST_MAX);
    if (!list->item)
        list->item = mem_array(CONFIG_LIST_MAX, sizeof(char *));
    list->item[list->count++] = mem_strdup(value);
    return STATUS_OK;
}

static enum status set_percent(struct config *c, const struct key *k, const char *value,
                               struct errtext *err)
{
    char *end;
    unsigned long v = strtoul(value, &end, 10);
    if (value[0] < '0' || value[0] > '9' || strcmp(end, "%") != 0 || v < 1 || v > 100)
        return err_param(err, STATUS_INVALID, k->name, "%s: found '%s', expected 1%% to 100%%",
                         k->name, value);
    *(uint64_t *)((char *)c + k->offset) = CONFIG_PERCENT | v;
    return STATUS_OK;
}

static enum status set_number(struct config *c, const struct key *k, const char *value,
                              struct errtext *err)
{
    char *end;
    errno = 0;
    unsigned long long v = strtoull(value, &end, 10);
    static const char suffixes[] = "kmgt"; /* binary multiples, as KiB, MiB... */
    const char *suffix = *end ? strchr(suffixes, *end | 0x20) : NULL;
    unsigned shift = suffix ? 10 * (unsigned)(suffix - suffixes + 1) : 0;
    bool bad =
        value[0] < '0' || value[0] > '9' || errno || (suffix ? end[1] != '\0' : *end != '\0');
    if (!bad && shift && v > UINT64_MAX >> shift)
        bad = true;
    if (bad)
        return err_param(err, STATUS_INVALID, k->name,
                         "%s: found '%s', expected a whole number of %s (k, m, g may follow)",
                         k->name, value, k->kind == KIND_BUDGET ? "bytes" : k->unit);
    uint64_t number = (uint64_t)v << shift;
    if (number < k->least || number > k->most)
        return err_param(err, STATUS_INVALID, k->name,
                         "%s: found %" PRIu64 ", expected %" PRIu64 " to %" PRIu64 " %s", k->name,
                         number, k->least, k->most,
                         k->kind == KIND_BUDGET ? "bytes, or 1% to 100%" : k->unit);
    *(uint64_t *)((char *)c + k->offset) = number;
    return STATUS_OK;
}

static enum status set_bool(struct config *c, const struct key *k, const char *value,
                            struct errtext *err)
{
    bool yes = !strcmp(value, "true") || !strcmp(value, "1") || !strcmp(value, "on");
    bool no = !strcmp(value, "false") || !strcmp(value, "0") || !strcmp(value, "off");
    if (!yes && !no)
        return err_param(err, STATUS_INVALID, k->name, "%s: found '%s', expected true or false",
                         k->name, value);
    *(bool *)((char *)c + k->offset) = yes;
    return STATUS_OK;
}

static enum status set_json(struct config *c, const struct key *k, json_t *value,
                            struct errtext *err)
{
    json_t **at = (json_t **)((char *)c + k->offset);
    if (!json_is_array(value))
        return err_param(err, STATUS_INVALID, k->name, "%s: expected a JSON array", k->name);
    json_decref(*at);
    *at = json_incref(value);
    return STATUS_OK;
}

static enum status set_value(struct config *c, const struct key *k, const char *value,
                             struct errtext *err)
{
    json_t *json;
    enum status st;
    switch (k->kind) {
    case KIND_TEXT:
        set_text(c, k, value);
        return STATUS_OK;
    case KIND_LIST:
        return add_item(c, k, value, err);
    case KIND_BUDGET:
        return strchr(value, '%') ? set_percent(c, k, value, err) : set_number(c, k, value, err);
    case KIND_NUMBER:
        return set_number(c, k, value, err);
    case KIND_JSON:
        json = json_loads(value, JSON_REJECT_DUPLICATES, NULL);
        st = set_json(c, k, json, err);
        json_decref(json);
        return st;
    default:
        return set_bool(c, k, value, err);
    }
}

/* ---- the file ---- */

static bool is_number(const struct key *k)
{
    return k->kind == KIND_NUMBER || k->kind == KIND_BUDGET;
}

static enum status set_from_json(struct config *c, const struct key *k, json_t *v,
                                 struct errtext *err)
{
    char number[32];
    if (k->kind == KIND_JSON)
        return set_json(c, k, v, err);
    if (k->kind == KIND_LIST && json_is_array(v)) {
        size_t i;
        json_t *item;
        json_array_foreach(v, i, item)
        {
            if (!json_is_string(item))
                return err_param(err, STATUS_INVALID, k->name, "%s[%zu]: expected a string",
                                 k->name, i);
            enum status st = add_item(c, k, json_string_value(item), err);
            if (st)
                return st;
        }
        return STATUS_OK;
    }
    if (json_is_boolean(v))
        return k->kind == KIND_BOOL
                   ? set_value(c, k, json_is_true(v) ? "true" : "false", err)
                   : err_param(err, STATUS_INVALID, k->name, "%s: found a boolean, expected %s",
                               k->name, k->unit);
    if (json_is_integer(v) && is_number(k)) {
        snprintf(number, sizeof(number), "%" JSON_INTEGER_FORMAT, json_integer_value(v));
        return set_value(c, k, number, err);
    }
    if (json_is_string(v) && k->kind != KIND_SWITCH && k->kind != KIND_BOOL)
        return set_value(c, k, json_string_value(v), err);
    return err_param(err, STATUS_INVALID, k->name, "%s: wrong JSON type, expected %s", k->name,
                     k->unit);
}

static enum status load_file(struct config *c, const char *path, struct errtext *err)
{
    char *text;
    size_t len;
    json_error_t je;
    enum status st = file_read(path, CONFIG_BYTES_MAX, &text, &len, err);
    if (st)
        return st;
    json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &je);
    mem_free(text);
    if (!json_is_object(root)) {
        json_decref(root);
        return err_set(err, STATUS_INVALID, "%s: line %d: %s", path, je.line > 0 ? je.line : 1,
                       root ? "expected one JSON object" : je.text);
    }
    const char *name;
    json_t *v;
    json_object_foreach(root, name, v)
    {
        const struct key *k = find_key(name);
        st = k && k->kind != KIND_SWITCH ? set_from_json(c, k, v, err)
                                         : unknown_key("config key", name, err);
        if (st)
            break;
    }
    json_decref(root);
    if (st)
        err_prefix(err, "%s", path);
    return st;
}

/* ---- flags ---- */

/* "--kv-bytes=5" -> name "kv_bytes", value "5" or NULL. */
static bool split_flag(const char *arg, char name[64], const char **value)
{
    if (strncmp(arg, "--", 2) != 0 || arg[2] == '\0')
        return false;
    const char *eq = strchr(arg, '=');
    size_t len = eq ? (size_t)(eq - arg - 2) : strlen(arg + 2);
    if (len >= 64)
        return false;
    for (size_t i = 0; i < len; i++)
        name[i] = arg[2 + i] == '-' ? '_' : arg[2 + i];
    name[len] = '\0';
    *value = eq ? eq + 1 : NULL;
    return true;
}

/* One pass over argv. files: act on --config only; else on everything but --config. */
static enum status walk_flags(struct config *c, int argc, char **argv, bool files,
                              struct errtext *err)
{
    for (int i = 1; i < argc; i++) {
        char name[64];
        const char *value;
        if (!split_flag(argv[i], name, &value))
            return err_set(err, STATUS_INVALID, "unexpected argument '%s'; flags begin with --",
                           argv[i]);
        bool is_config = strcmp(name, "config") == 0;
        const struct key *k = find_key(name);
        if (!k && !is_config)
            return unknown_key("flag", name, err);
        bool alone = !is_config && (k->kind == KIND_SWITCH || k->kind == KIND_BOOL) && !value &&
                     (i + 1 == argc || argv[i + 1][0] == '-' || k->kind == KIND_SWITCH);
        if (alone)
            value = "true";
        else if (!value && i + 1 < argc)
            value = argv[++i];
        if (!value)
            return err_param(err, STATUS_INVALID, name, "--%s: a value is missing (%s)", name,
                             is_config ? "FILE" : k->unit);
        enum status st = STATUS_OK;
        if (is_config && files)
            st = load_file(c, value, err);
        else if (!is_config && !files)
            st = set_value(c, k, value, err);
        if (st)
            return st;
    }
    return STATUS_OK;
}

static void set_defaults(struct config *c)
{
    *c = (struct config){0};
    for (size_t i = 0; i < ARRAY_COUNT(keys); i++) {
        const struct key *k = &keys[i];
        if (k->kind == KIND_TEXT && k->text_standard)
            set_text(c, k, k->text_standard);
        else if (is_number(k))
            *(uint64_t *)((char *)c + k->offset) = k->standard;
        else if (k->kind == KIND_BOOL)
            *(bool *)((char *)c + k->offset) = k->standard != 0;
    }
}

/* The user's state folder: XDG_STATE_HOME, else ~/.local/state, else the working folder. */
static void default_data_dir(struct config *c)
{
    char path[4096];
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    if (c->data_dir)
        return;
    if (state && state[0] == '/')
        snprintf(path, sizeof(path), "%s/residual", state);
    else if (home && home[0] == '/')
        snprintf(path, sizeof(path), "%s/.local/state/residual", home);
    else
        snprintf(path, sizeof(path), "residual-data");
    c->data_dir = mem_strdup(path);
}

static void default_model_name(struct config *c)
{
    if (c->model_name || !c->model)
        return;
    size_t end = strlen(c->model);
    while (end > 1 && c->model[end - 1] == '/')
        end--;
    size_t begin = end;
    while (begin > 0 && c->model[begin - 1] != '/')
        begin--;
    char *name = mem_alloc(end - begin + 1);
    memcpy(name, c->model + begin, end - begin);
    c->model_name = name;
}

enum status config_load(struct config *out, int argc, char **argv, struct errtext *err)
{
    set_defaults(out);
    enum status st = walk_flags(out, argc, argv, true, err);
    if (!st)
        st = walk_flags(out, argc, argv, false, err);
    if (!st && !out->model && !out->help && !out->version)
        st = err_param(
            err, STATUS_INVALID, "model",
            "model: missing; name the base model's directory: residuald --model DIR (see --help)");
    default_data_dir(out);
    default_model_name(out);
    return st;
}

void config_fini(struct config *c)
{
    for (size_t i = 0; i < ARRAY_COUNT(keys); i++) {
        char *at = (char *)c + keys[i].offset;
        if (keys[i].kind == KIND_TEXT)
            mem_free(*(char **)at);
        if (keys[i].kind == KIND_JSON)
            json_decref(*(json_t **)at);
        if (keys[i].kind == KIND_LIST) {
            struct config_list *list = (struct config_list *)at;
            for (uint32_t k = 0; k < list->count; k++)
                mem_free(list->item[k]);
            mem_free(list->item);
        }
    }
    *c = (struct config){0};
}

void config_print_help(void)
{
    puts("residuald --model DIR [flags]\n\n"
         "Serves one base model and thousands of LoRA adapters over the OpenAI API; every answer "
         "leaves a signed record.\n"
         "Every flag is also a key of the JSON config file (same name with underscores). Flags win "
         "over the file.\n\n"
         "  --config FILE\n        JSON object of the keys below");
    for (size_t i = 0; i < ARRAY_COUNT(keys); i++) {
        const struct key *k = &keys[i];
        char flag[64];
        for (size_t j = 0; j <= strlen(k->name); j++)
            flag[j] = k->name[j] == '_' ? '-' : k->name[j];
        printf("  --%s %s\n        %s", flag, k->unit, k->help);
        if (is_number(k))
            printf(" (default %" PRIu64 ")", k->standard);
        else if (k->kind == KIND_BOOL)
            printf(" (default %s)", k->standard ? "true" : "false");
        else if (k->text_standard)
            printf(" (default %s)", k->text_standard);
        putchar('\n');
    }
    puts("\nNumbers take k, m, g (binary), budgets a percentage too. Example:\n"
         "  residuald --model configs/demo/base --adapter-dir configs/demo/adapters\n"
         "Exit codes: 0 stopped as asked, 1 failed while running, 2 bad configuration, 3 could not "
         "start.");
}
