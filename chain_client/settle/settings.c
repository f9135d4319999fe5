/* One row per key: name, kind, place, range, default, unit, meaning. */
#include "chain_client/settle/settings.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/mem.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_BYTES_MAX (1u << 20)

enum kind { KIND_TEXT, KIND_NUMBER, KIND_LANES, KIND_SWITCH };

struct key {
    const char *name;
    enum kind kind;
    size_t offset;
    uint64_t least, most, standard;
    const char *text_standard, *unit, *help;
};

#define AT(f) offsetof(struct settings, f)
#define TEXT(f, standard, unit, help)                                                              \
    {                                                                                              \
#f, KIND_TEXT, AT(f), 0, 0, 0, standard, unit, help                                        \
    }
#define NUMBER(f, least, most, standard, unit, help)                                               \
    {                                                                                              \
#f, KIND_NUMBER, AT(f), least, most, standard, NULL, unit, help                            \
    }
#define LANES(f, unit, help)                                                                       \
    {                                                                                              \
#f, KIND_LANES, AT(f), 0, 0, 0, NULL, unit, help                                           \
    }
#define SWITCH(f, help)                                                                            \
    {                                                                                              \
#f, KIND_SWITCH, AT(f), 0, 0, 0, NULL, "", help                                            \
    }

/* clang-format off */
static const struct key keys[] = {
    TEXT(redis_url, "redis://127.0.0.1:6379", "URL",
         "where the records arrive: redis://HOST:PORT or unix:/path"),
    TEXT(redis_password_file, NULL, "FILE", "its password; mode 0600"),
    TEXT(rpc_url, "http://127.0.0.1:8545", "URL", "Ethereum JSON-RPC"),
    TEXT(rpc_authorization_file, NULL, "FILE", "value of its Authorization header; mode 0600"),
    TEXT(deployment, NULL, "FILE",
         "addresses and code hashes, as contracts/deploy.mjs writes them"),
    TEXT(key_file, NULL, "FILE",
         "the poster's key; mode 0600, 64 hex digits, or a version 3 key store"),
    TEXT(passphrase_file, NULL, "FILE", "passphrase of a version 3 key store; mode 0600"),
    LANES(lane_key, "LANE=FILE", "a lane to settle and its transport.key; mode 0600; repeatable"),
    LANES(spool_dir, "LANE=DIR",
         "the lane's spool folder, where missing records are read again; repeatable"),
    LANES(refetch_url, "LANE=URL", "the lane's server, asked for missing records; repeatable"),
    TEXT(refetch_key_file, NULL, "FILE",
         "API key with the worker role for refetch_url; mode 0600"),
    TEXT(state_dir, "settle-state", "DIR", "database and lock"),
    TEXT(archive_dir, "settle-archive", "DIR", "published batches and epochs"),
    TEXT(listen, NULL, "HOST:PORT",
         "serve /v1/rewards, /v1/batches, /v1/epochs, /metrics, /health; off without it"),
    TEXT(log_level, "info", "LEVEL", "error, warn, info or debug"),
    NUMBER(batch_count_max, 1, 65536, 65536, "records", "a batch closes at this many"),
    NUMBER(batch_seconds_max, 1, 86400, 1800, "s", "or when its oldest record is this old"),
    NUMBER(epoch_seconds, 1, 31 * 86400, 86400, "s", "least time between two epochs"),
    NUMBER(beacon_delay_s, 0, 86400, 2400, "s",
         "from a batch's commit to its sampling beacon, where the rate is below 1"),
    NUMBER(poll_ms, 50, 60000, 1000, "ms", "between two looks at the chain"),
    NUMBER(read_count, 1, 4096, 1024, "records", "read from Redis at once"),
    NUMBER(bump_seconds, 5, 3600, 30, "s",
         "a transaction not mined for so long is sent with a higher fee"),
    NUMBER(fee_max_gwei, 1, 1000000, 500, "gwei", "no transaction offers more per gas"),
    NUMBER(body_keep_s, 0, 365 * 86400, 604800, "s",
         "record bytes stay in the database so long after their batch is final"),
    SWITCH(json, "status: print JSON"),
    SWITCH(help, "this text"),
};
/* clang-format on */

static const struct key *find_key(const char *name)
{
    for (size_t i = 0; i < ARRAY_COUNT(keys); i++)
        if (strcmp(keys[i].name, name) == 0)
            return &keys[i];
    return NULL;
}

static enum status unknown(const char *what, const char *name, struct errtext *err)
{
    return err_param(err, STATUS_INVALID, name, "unknown %s '%.64s'; --help lists them all", what,
                     name);
}

static enum status set_number(uint64_t *at, const struct key *k, const char *value,
                              struct errtext *err)
{
    char *end;
    errno = 0;
    unsigned long long v = strtoull(value, &end, 10);
    if (end == value || *end || errno || value[0] == '-' || v < k->least || v > k->most)
        return err_param(err, STATUS_INVALID, k->name,
                         "%s: found '%.32s', expected %" PRIu64 " to %" PRIu64 " %s", k->name,
                         value, k->least, k->most, k->unit);
    *at = v;
    return STATUS_OK;
}

static enum status add_lane(struct settings_lanes *list, const struct key *k, const char *value,
                            struct errtext *err)
{
    char *end;
    errno = 0;
    unsigned long long lane = strtoull(value, &end, 10);
    if (end == value || *end != '=' || !end[1] || errno || lane == 0 || lane > UINT32_MAX)
        return err_param(err, STATUS_INVALID, k->name,
                         "%s: found '%.64s', expected %s with a lane "
                         "number from 1",
                         k->name, value, k->unit);
    for (uint32_t i = 0; i < list->count; i++)
        if (list->item[i].lane == lane)
            return err_param(err, STATUS_INVALID, k->name, "%s: lane %llu is named twice", k->name,
                             lane);
    if (list->count == SETTINGS_LANES_MAX)
        return err_param(err, STATUS_TOO_LARGE, k->name, "%s: more than %d lanes", k->name,
                         SETTINGS_LANES_MAX);
    if (!list->item)
        list->item = mem_array(SETTINGS_LANES_MAX, sizeof(*list->item));
    list->item[list->count++] = (struct settings_lane){(uint32_t)lane, mem_strdup(end + 1)};
    return STATUS_OK;
}

static enum status set_value(struct settings *s, const struct key *k, const char *value,
                             struct errtext *err)
{
    char *at = (char *)s + k->offset;
    switch (k->kind) {
    case KIND_TEXT:
        mem_free(*(char **)at);
        *(char **)at = mem_strdup(value);
        return STATUS_OK;
    case KIND_NUMBER:
        return set_number((uint64_t *)at, k, value, err);
    case KIND_LANES:
        return add_lane((struct settings_lanes *)at, k, value, err);
    default:
        *(bool *)at = true;
        return STATUS_OK;
    }
}

/* ---- the file ---- */

static enum status set_json(struct settings *s, const struct key *k, const json_t *v,
                            struct errtext *err)
{
    char number[32];
    if (json_is_string(v) && k->kind != KIND_SWITCH)
        return set_value(s, k, json_string_value(v), err);
    if (json_is_integer(v) && k->kind == KIND_NUMBER) {
        snprintf(number, sizeof(number), "%" JSON_INTEGER_FORMAT, json_integer_value(v));
        return set_value(s, k, number, err);
    }
    enum status st = STATUS_OK;
    if (!json_is_array(v) || k->kind != KIND_LANES)
        return err_param(err, STATUS_INVALID, k->name, "%s: wrong JSON type, expected %s", k->name,
                         k->unit);
    for (size_t i = 0; i < json_array_size(v) && !st; i++) {
        const char *item = json_string_value(json_array_get(v, i));
        st = item ? set_value(s, k, item, err)
                  : err_param(err, STATUS_INVALID, k->name, "%s[%zu]: expected a string", k->name,
                              i);
    }
    return st;
}

static enum status load_file(struct settings *s, const char *path, struct errtext *err)
{
    char *text;
    size_t len;
    json_error_t je;
    enum status st = file_read(path, FILE_BYTES_MAX, &text, &len, err);
    if (st)
        return st;
    json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &je);
    mem_free(text);
    const char *name;
    json_t *v;
    if (!json_is_object(root))
        st = err_set(err, STATUS_INVALID, "line %d: expected one JSON object", root ? 1 : je.line);
    json_object_foreach(root, name, v)
    {
        const struct key *k = find_key(name);
        if (!st)
            st = k ? set_json(s, k, v, err) : unknown("config key", name, err);
    }
    json_decref(root);
    if (st)
        err_prefix(err, "%s", path);
    return st;
}

/* ---- flags ---- */

static bool split_flag(const char *arg, char name[64], const char **value)
{
    const char *eq = strchr(arg, '=');
    size_t len = eq ? (size_t)(eq - arg) : strlen(arg);
    if (strncmp(arg, "--", 2) != 0 || len < 3 || len - 2 >= 64)
        return false;
    for (size_t i = 2; i < len; i++)
        name[i - 2] = arg[i] == '-' ? '_' : arg[i];
    name[len - 2] = '\0';
    *value = eq ? eq + 1 : NULL;
    return true;
}

/* files: act on --config only; else on everything else. */
static enum status walk(struct settings *s, int argc, char **argv, bool files, struct errtext *err)
{
    for (int i = 1; i < argc; i++) {
        char name[64];
        const char *value;
        if (argv[i][0] != '-') {
            char **to = i == 1 ? &s->verb : &s->operand;
            mem_free(*to);
            *to = mem_strdup(argv[i]);
            continue;
        }
        if (!split_flag(argv[i], name, &value))
            return err_set(err, STATUS_INVALID, "unexpected argument '%.64s'; flags begin with --",
                           argv[i]);
        bool is_config = strcmp(name, "config") == 0;
        const struct key *k = find_key(name);
        if (!k && !is_config)
            return unknown("flag", name, err);
        if (!is_config && k->kind == KIND_SWITCH)
            value = "true";
        else if (!value && i + 1 < argc)
            value = argv[++i];
        if (!value)
            return err_param(err, STATUS_INVALID, name, "--%s: a value is missing (%s)", name,
                             is_config ? "FILE" : k->unit);
        enum status st = STATUS_OK;
        if (is_config && files)
            st = load_file(s, value, err);
        else if (!is_config && !files)
            st = set_value(s, k, value, err);
        if (st)
            return st;
    }
    return STATUS_OK;
}

static enum status check(const struct settings *s, struct errtext *err)
{
    if (strcmp(s->verb, "run") != 0 && strcmp(s->verb, "status") != 0 &&
        strcmp(s->verb, "resume") != 0)
        return err_set(err, STATUS_INVALID, "unknown verb '%.32s', expected run, status or resume",
                       s->verb);
    if (s->help || strcmp(s->verb, "run") != 0)
        return STATUS_OK;
    if (!s->deployment)
        return err_param(err, STATUS_INVALID, "deployment",
                         "deployment: missing; name the file that contracts/deploy.mjs wrote");
    if (!s->key_file)
        return err_param(err, STATUS_INVALID, "key_file",
                         "key_file: missing; name the poster's key file");
    if (!s->lane_key.count)
        return err_param(err, STATUS_INVALID, "lane_key",
                         "lane_key: missing; name at least one lane as LANE=FILE with the "
                         "transport.key of its folder");
    return STATUS_OK;
}

enum status settings_load(struct settings *out, int argc, char **argv, struct errtext *err)
{
    *out = (struct settings){.verb = mem_strdup("run")};
    for (size_t i = 0; i < ARRAY_COUNT(keys); i++) {
        char *at = (char *)out + keys[i].offset;
        if (keys[i].kind == KIND_TEXT && keys[i].text_standard)
            *(char **)at = mem_strdup(keys[i].text_standard);
        else if (keys[i].kind == KIND_NUMBER)
            *(uint64_t *)at = keys[i].standard;
    }
    enum status st = walk(out, argc, argv, true, err);
    if (!st)
        st = walk(out, argc, argv, false, err);
    return st ? st : check(out, err);
}

void settings_fini(struct settings *s)
{
    for (size_t i = 0; i < ARRAY_COUNT(keys); i++) {
        char *at = (char *)s + keys[i].offset;
        if (keys[i].kind == KIND_TEXT)
            mem_free(*(char **)at);
        if (keys[i].kind != KIND_LANES)
            continue;
        struct settings_lanes *list = (struct settings_lanes *)at;
        for (uint32_t k = 0; k < list->count; k++)
            mem_free(list->item[k].text);
        mem_free(list->item);
    }
    mem_free(s->verb);
    mem_free(s->operand);
    *s = (struct settings){0};
}

void settings_print_help(void)
{
    puts(
        "residual-settle [run] --deployment FILE --key-file FILE --lane-key LANE=FILE [flags]\n"
        "residual-settle status --state-dir DIR [--json]\n"
        "residual-settle resume LANE --state-dir DIR\n\n"
        "Takes signed records from Redis, commits them in batches to the ledger, and proposes "
        "epochs of rewards to the\nvault. `status` says how far it is; `resume` starts a lane "
        "again that was stopped for a person to look.\nEvery flag is also a key of the JSON config "
        "file (same name with underscores). Flags win over the file.\n\n"
        "  --config FILE\n        JSON object of the keys below");
    for (size_t i = 0; i < ARRAY_COUNT(keys); i++) {
        const struct key *k = &keys[i];
        char flag[64];
        for (size_t j = 0; j <= strlen(k->name); j++)
            flag[j] = k->name[j] == '_' ? '-' : k->name[j];
        printf("  --%s %s\n        %s", flag, k->unit, k->help);
        if (k->kind == KIND_NUMBER)
            printf(" (default %" PRIu64 ")", k->standard);
        else if (k->text_standard)
            printf(" (default %s)", k->text_standard);
        putchar('\n');
    }
    puts("\nExit codes: 0 stopped as asked, 1 failed while running, 2 bad configuration, 3 could "
         "not start,\n4 the chain is not the deployment's or differs from what was settled: a "
         "person decides, 5 another worker holds the state.");
}
