/* The table of keys of `attest` and `watch`. */
#include "chain_client/settle/guard_settings.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <stdio.h>
#include <string.h>

#define TEXT(...)   OPTION_ROW_TEXT(struct guard_settings, __VA_ARGS__)
#define NUMBER(...) OPTION_ROW_NUMBER(struct guard_settings, __VA_ARGS__)
#define SWITCH(...) OPTION_ROW_SWITCH(struct guard_settings, __VA_ARGS__)

/* clang-format off */
static const struct option_row keys[] = {
    OPTION_ROW_WORD(struct guard_settings, verb, "attest"),
    OPTION_ROW_LIST(struct guard_settings, rpc_url, "URL",
         "Ethereum JSON-RPC of your own; repeatable: two must agree before `watch` acts"),
    OPTION_ROW_LIST(struct guard_settings, rpc_authorization_file, "FILE",
         "value of its Authorization header, mode 0600; one per rpc_url in its order, or 'none'"),
    NUMBER(rpc_head_age_max_s, 5, 86400, 60, "s", "an endpoint with an older head is left out"),
    TEXT(deployment, NULL, "FILE",
         "addresses and code hashes, as contracts/deploy.mjs writes them"),
    TEXT(key_file, NULL, "FILE",
         "the attestor's or the guardian's key; mode 0600: 64 hex digits, or a version 3 store"),
    TEXT(passphrase_file, NULL, "FILE", "passphrase of a version 3 key store; mode 0600"),
    TEXT(archive, NULL, "URL|DIR", "where batches are published: the worker's, or a folder"),
    TEXT(mirror_dir, NULL, "DIR", "the copy that is recomputed; default: mirror in state_dir"),
    TEXT(worker_url, NULL, "URL", "attest: whose epochs are judged; default: archive, when a URL"),
    TEXT(state_dir, "guard-state", "DIR", "database and lock"),
    OPTION_ROW_CUSTOM(struct guard_settings, lane_url, &settings_lanes_custom, "LANE=URL",
         "the lane's server, asked for records that the archive does not show; repeatable"),
    TEXT(lane_key_file, NULL, "FILE", "API key with the worker role for lane_url; mode 0600"),
    TEXT(listen, NULL, "HOST:PORT", "serve /metrics and /health; off without it"),
    TEXT(log_level, "info", "error|warn|info|debug", "of the log's lines"),
    TEXT(log_file, NULL, "FILE", "the log goes there instead of stderr"),
    NUMBER(missing_max_ppm, 0, 1000000, 10000, "ppm",
         "attest: no signature where more of the required fee than this has no attribution"),
    NUMBER(faults_max, 0, 1000000, 0, "records",
         "attest: no signature where more records than this break a rule; raise it when a person "
         "has looked at them, for the money of the others waits"),
    SWITCH(owners_absent,
         "take an epoch whose archive lacks the owners of a datanet: nobody has them any more"),
    NUMBER(resign_after_s, 0, 31 * 86400, 86400, "s",
         "attest: another result of one epoch is signed only so long after the first"),
    NUMBER(grace_s, 0, 86400, 900, "s",
         "watch: records that nobody shows for so long after their commit are taken for forged"),
    NUMBER(poll_ms, 50, 60000, 2000, "ms", "between two looks"),
    NUMBER(bump_seconds, 5, 3600, 30, "s",
         "a transaction not mined for so long is sent with a higher fee"),
    NUMBER(fee_max_gwei, 1, 1000000, 500, "gwei", "no transaction offers more per gas"),
    SWITCH(once, "one look, then exit"),
    SWITCH(help, "print this and exit"),
};
/* clang-format on */

static const struct options table = {
    .row = keys,
    .row_count = ARRAY_COUNT(keys),
    .usage =
        "residual-settle attest --deployment FILE --key-file FILE --archive URL --rpc-url URL\n"
        "residual-settle watch --deployment FILE --key-file FILE --archive URL --rpc-url URL\n\n"
        "`attest` recomputes every batch and epoch that a worker wants to propose, from a copy of "
        "its own, and signs only\nwhat it found itself. `watch` recomputes every commit and "
        "proposal that it sees on the chain, drops a wrong commit\nand vetoes a wrong proposal.",
    .notes =
        "Exit codes: 0 stopped as asked, 1 failed while running, 2 bad configuration, 3 could not "
        "start,\n4 the chain is not the deployment's, 5 another process holds the state, 6 "
        "refused to sign (attest --once),\nor found what it could not stop (watch)."};

static enum status need(const char *value, const char *name, const char *what, struct errtext *err)
{
    return value ? STATUS_OK
                 : err_param(err, STATUS_INVALID, name, "%s: missing; name %s", name, what);
}

static enum status check(struct guard_settings *s, struct errtext *err)
{
    bool is_url = s->archive && strncmp(s->archive, "http", 4) == 0;
    bool is_attest = strcmp(s->verb, "attest") == 0;
    char path[4096];
    if (s->help)
        return STATUS_OK;
    enum status st = need(s->deployment, "deployment", "the file that deploy.mjs wrote", err);
    if (!st)
        st = need(s->key_file, "key_file",
                  is_attest ? "the attestor's own key" : "the guardian's key", err);
    if (!st)
        st = need(s->archive, "archive", "where the batches are published", err);
    if (!st && !s->rpc_url.count)
        st = need(NULL, "rpc_url", "a node of your own", err);
    if (!st && s->rpc_authorization_file.count &&
        s->rpc_authorization_file.count != s->rpc_url.count)
        st = err_param(err, STATUS_INVALID, "rpc_authorization_file",
                       "rpc_authorization_file: one per rpc_url, 'none' where it needs none");
    if (!st && !s->worker_url && is_url)
        s->worker_url = mem_strdup(s->archive);
    if (!st && is_attest)
        st = need(s->worker_url, "worker_url", "the worker whose epochs are judged", err);
    if (!st && !s->mirror_dir) {
        snprintf(path, sizeof(path), "%s/mirror", s->state_dir);
        s->mirror_dir = mem_strdup(path);
    }
    return st;
}

enum status guard_settings_load(struct guard_settings *out, int argc, char **argv,
                                struct errtext *err)
{
    *out = (struct guard_settings){0};
    enum status st = options_load(&table, out, argc, argv, err);
    return st ? st : check(out, err);
}

void guard_settings_fini(struct guard_settings *s)
{
    options_fini(&table, s);
}

void guard_settings_print_help(void)
{
    options_print_help(&table);
}
