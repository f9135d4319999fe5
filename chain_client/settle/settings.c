/* residual-settle's table of keys. A lane's settings (LANE=TEXT, repeated) are the one kind that
 * base/options does not know. */
#include "chain_client/settle/settings.h"
#include "chain_client/settle/crew.h"
#include "server/base/check.h"
#include "server/base/env.h"
#include "server/base/mem.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT(...)   OPTION_ROW_TEXT(struct settings, __VA_ARGS__)
#define NUMBER(...) OPTION_ROW_NUMBER(struct settings, __VA_ARGS__)
#define LIST(...)   OPTION_ROW_LIST(struct settings, __VA_ARGS__)
#define SWITCH(...) OPTION_ROW_SWITCH(struct settings, __VA_ARGS__)
#define WORD(...)   OPTION_ROW_WORD(struct settings, __VA_ARGS__)
#define LANES(field, unit, help)                                                                   \
    OPTION_ROW_CUSTOM(struct settings, field, &settings_lanes_custom, unit, help)

static enum status add_lane(void *field, const struct option_row *k, const char *value,
                            struct errtext *err)
{
    struct settings_lanes *list = field;
    char *end;
    errno = 0;
    unsigned long long lane = strtoull(value, &end, 10);
    if (value[0] < '0' || value[0] > '9' || *end != '=' || !end[1] || errno || lane == 0 ||
        lane > UINT32_MAX)
        return err_param(err, STATUS_INVALID, k->name,
                         "%s: found '%.64s', expected %s with a lane number from 1", k->name, value,
                         k->unit);
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

static void fini_lanes(void *field)
{
    struct settings_lanes *list = field;
    for (uint32_t i = 0; i < list->count; i++)
        mem_free(list->item[i].text);
    mem_free(list->item);
    *list = (struct settings_lanes){0};
}

const struct option_custom settings_lanes_custom = {add_lane, fini_lanes};

/* clang-format off */
static const struct option_row keys[] = {
    WORD(verb, "run"),
    WORD(operand, NULL),
    TEXT(redis_url, "redis://127.0.0.1:6379", "URL",
         "where the records arrive: redis[s]://[USER@]HOST:PORT or unix:/path"),
    TEXT(redis_password_file, NULL, "FILE", "its password; mode 0600"),
    TEXT(redis_ca_file, NULL, "FILE", "rediss: who signs its certificate; default: the system's"),
    LIST(rpc_url, "URL",
         "Ethereum JSON-RPC; repeatable: two of them must agree on what is final (default: "
         "http://127.0.0.1:8545)"),
    LIST(rpc_authorization_file, "FILE",
         "value of an endpoint's Authorization header, mode 0600: one for each rpc_url, `none` for "
         "one without; repeatable"),
    NUMBER(rpc_head_age_max_s, 5, 86400, 60, "s", "an endpoint with an older head is left out"),
    TEXT(deployment, NULL, "FILE",
         "addresses and code hashes, as contracts/deploy.mjs writes them"),
    TEXT(committer_key_file, NULL, "FILE",
         "key that commits batches; mode 0600, 64 hex digits, or a version 3 key store"),
    TEXT(committer_passphrase_file, NULL, "FILE", "passphrase of its key store; mode 0600"),
    TEXT(proposer_key_file, NULL, "FILE", "key that proposes epochs"),
    TEXT(proposer_passphrase_file, NULL, "FILE", "passphrase of its key store; mode 0600"),
    TEXT(funder_key_file, NULL, "FILE",
         "key that pays the fees into the vault; without it the worker says what must be paid"),
    TEXT(funder_passphrase_file, NULL, "FILE", "passphrase of its key store; mode 0600"),
    LANES(lane_key, "LANE=FILE", "a lane to settle and its transport.key; mode 0600; repeatable"),
    LANES(spool_dir, "LANE=DIR",
         "the lane's spool folder, where missing records are read again; repeatable"),
    LANES(refetch_url, "LANE=URL",
          "the lane's server, asked for missing records and datanets' owners; repeatable"),
    TEXT(refetch_key_file, NULL, "FILE",
         "API key with the worker role for refetch_url; mode 0600"),
    TEXT(owners_dir, NULL, "DIR",
         "owners of datanet versions, datanet-<0x..>-<version>.json, before a server is asked"),
    TEXT(state_dir, NULL, "DIR",
         "database and lock; default: STATE_DIRECTORY, else settle-state"),
    TEXT(archive_dir, NULL, "DIR",
         "published batches and epochs; default: archive in STATE_DIRECTORY, else settle-archive"),
    TEXT(listen, NULL, "HOST:PORT",
         "serve the page for people at /, /v1/deployment, /v1/rewards, /v1/batches, /v1/epochs, "
         "/metrics, /health; off without it"),
    TEXT(chain_name, NULL, "TEXT", "what people call the chain; shown on the page"),
    LIST(archive, "DIR|s3://BUCKET/PREFIX",
         "one more place for what is published, read back before it counts; repeatable"),
    TEXT(s3_endpoint, "https://s3.amazonaws.com", "URL", "of the s3:// places"),
    TEXT(s3_region, "us-east-1", "NAME", "their region"),
    TEXT(s3_key_file, NULL, "FILE", "their credential: ID:SECRET on one line; mode 0600"),
    NUMBER(scrub_mib_s, 0, 1024, 8, "MiB/s", "the archive is read again at this pace; 0: never"),
    TEXT(public_rpc_url, NULL, "URL",
         "a JSON-RPC that contributors may use: named in /v1/deployment"),
    TEXT(explorer_url, NULL, "URL", "a block explorer: the page links to URL/tx/0x.. below it"),
    TEXT(coin_symbol, "ETH", "TEXT", "what 10^18 base units of the vault's coin are called"),
    TEXT(log_level, "info", "error|warn|info|debug", "of the log's lines"),
    TEXT(log_file, NULL, "FILE", "the log goes there instead of stderr; SIGHUP reopens it"),
    NUMBER(batch_count_max, 1, 131072, 131072, "records", "a batch closes at this many"),
    NUMBER(batch_seconds_max, 1, 86400, 1800, "s", "or when its oldest record is this old"),
    NUMBER(epoch_seconds, 1, 31 * 86400, 86400, "s", "least time between two epochs"),
    NUMBER(poll_ms, 50, 60000, 1000, "ms", "between two looks at the chain"),
    NUMBER(read_count, 1, 4096, 1024, "records", "read from Redis at once"),
    NUMBER(bump_seconds, 5, 3600, 30, "s",
         "a transaction not mined for so long is sent with a higher fee"),
    NUMBER(fee_max_gwei, 1, 1000000, 500, "gwei", "no transaction offers more per gas"),
    NUMBER(record_keep_s, 0, 365 * 86400, 604800, "s",
         "repeats of a record are known so long after its batch is final"),
    NUMBER(threads, 0, CREW_MAX, 0, "threads", "that check signatures; 0: one a processor"),
    NUMBER(attest_wait_s, 0, 86400, 300, "s",
           "an epoch without its attestors' signatures for so long is a trouble"),
    TEXT(nonce, NULL, "N", "resume: transactions of others up to this nonce were looked at"),
    TEXT(batch, NULL, "N", "resume: from this batch on the ledger's count, and not ours"),
    SWITCH(json, "status: print JSON"),
    SWITCH(version, "print the version and exit"),
    SWITCH(help, "print this and exit"),
};
/* clang-format on */

static const struct options table = {
    .row = keys,
    .row_count = ARRAY_COUNT(keys),
    .usage =
        "residual-settle [run] --deployment FILE --committer-key-file FILE --proposer-key-file "
        "FILE\n                --lane-key LANE=FILE [flags]\n"
        "residual-settle status --state-dir DIR [--json]\n"
        "residual-settle resume LANE | --nonce N | --batch N --state-dir DIR\n"
        "residual-settle attest|watch --help\n\n"
        "Takes signed records from Redis, commits them in batches to the ledger, and proposes "
        "epochs of rewards to the\nvault. `status` says how far it is; `resume` goes on with "
        "what was stopped for a person to look: a lane, a key\nwhose nonces others used, or a "
        "batch of which the ledger holds another.",
    .notes = "Exit codes: 0 stopped as asked, 1 failed while running, 2 bad configuration, 3 could "
             "not start,\n4 the chain is not the deployment's or differs from what was settled: a "
             "person decides, 5 another worker holds the state."};

static enum status check_url(const char *name, const char *url, struct errtext *err)
{
    if (!url || strncmp(url, "http://", 7) == 0 || strncmp(url, "https://", 8) == 0)
        return STATUS_OK;
    return err_param(err, STATUS_INVALID, name, "%s: found '%.64s', expected http:// or https://",
                     name, url);
}

static enum status check(const struct settings *s, struct errtext *err)
{
    if (strcmp(s->verb, "run") != 0 && strcmp(s->verb, "status") != 0 &&
        strcmp(s->verb, "resume") != 0)
        return err_set(err, STATUS_INVALID, "unknown verb '%.32s', expected run, status or resume",
                       s->verb);
    if (s->help || s->version || strcmp(s->verb, "run") != 0)
        return STATUS_OK;
    enum status st = check_url("public_rpc_url", s->public_rpc_url, err);
    if (!st)
        st = check_url("explorer_url", s->explorer_url, err);
    if (st)
        return st;
    if (!s->deployment)
        return err_param(err, STATUS_INVALID, "deployment",
                         "deployment: missing; name the file that contracts/deploy.mjs wrote");
    if (!s->committer_key_file)
        return err_param(err, STATUS_INVALID, "committer_key_file",
                         "committer_key_file: missing; name the key that commits batches");
    if (!s->proposer_key_file)
        return err_param(err, STATUS_INVALID, "proposer_key_file",
                         "proposer_key_file: missing; name the key that proposes epochs");
    if (s->rpc_authorization_file.count && s->rpc_authorization_file.count != s->rpc_url.count)
        return err_param(err, STATUS_INVALID, "rpc_authorization_file",
                         "rpc_authorization_file: %u of them for %u rpc_url; name one for each, "
                         "`none` for one without",
                         s->rpc_authorization_file.count, s->rpc_url.count);
    if (!s->lane_key.count)
        return err_param(err, STATUS_INVALID, "lane_key",
                         "lane_key: missing; name at least one lane as LANE=FILE with the "
                         "transport.key of its folder");
    return STATUS_OK;
}

static void default_url(struct settings *s)
{
    if (s->rpc_url.count)
        return;
    s->rpc_url.item = mem_array(1, sizeof(*s->rpc_url.item));
    s->rpc_url.item[s->rpc_url.count++] = mem_strdup("http://127.0.0.1:8545");
}

static void default_dirs(struct settings *s)
{
    char dir[4096], archive[4096 + 16];
    bool given = env_service_dir(dir, sizeof(dir), "STATE_DIRECTORY");
    snprintf(archive, sizeof(archive), "%s/archive", dir);
    if (!s->state_dir)
        s->state_dir = mem_strdup(given ? dir : "settle-state");
    if (!s->archive_dir)
        s->archive_dir = mem_strdup(given ? archive : "settle-archive");
}

enum status settings_load(struct settings *out, int argc, char **argv, struct errtext *err)
{
    *out = (struct settings){0};
    enum status st = options_load(&table, out, argc, argv, err);
    default_dirs(out);
    default_url(out);
    return st ? st : check(out, err);
}

void settings_fini(struct settings *s)
{
    options_fini(&table, s);
}

void settings_print_help(void)
{
    options_print_help(&table);
}
