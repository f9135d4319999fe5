/* residuald's table of keys, and the defaults that depend on the machine or on other keys. Names
 * that vLLM's users know are refused with a hint: the refusal says what ours is called. */
#include "server/config.h"
#include "server/adapter/admit.h"
#include "server/base/check.h"
#include "server/base/env.h"
#include "server/base/mem.h"
#include "server/influence/indexes.h"

#include <stdio.h>
#include <string.h>

#define TEXT(...)   OPTION_ROW_TEXT(struct config, __VA_ARGS__)
#define LIST(...)   OPTION_ROW_LIST(struct config, __VA_ARGS__)
#define BOOL(...)   OPTION_ROW_BOOL(struct config, __VA_ARGS__)
#define SWITCH(...) OPTION_ROW_SWITCH(struct config, __VA_ARGS__)
#define NUM(...)    OPTION_ROW_NUMBER(struct config, __VA_ARGS__)
#define BUDGET(...) OPTION_ROW_BUDGET(struct config, __VA_ARGS__)
#define JSON(...)   OPTION_ROW_JSON(struct config, __VA_ARGS__)
#define GIB         ((uint64_t)1 << 30)

static const struct option_row keys[] = {
    TEXT(model, NULL, "DIR", "base model directory (Hugging Face layout); required"),
    TEXT(model_name, NULL, "NAME", "what clients call the base; default: the directory's name"),
    LIST(adapter, "NAME=DIR", "serve this PEFT adapter; may be repeated"),
    TEXT(adapter_dir, NULL, "DIR",
         "serve every adapter below this folder, named as its sub-folder"),
    BOOL(strict, 0,
         "do not start with a bad adapter in adapter_dir (else it is listed as refused) or a chat "
         "template that cannot be used (else there is no chat)"),
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
    NUM(rows_max, 0, 8192, 0, "tokens",
        "rows of one step, prefill and decode together; 0: 1024 (cuda: 2048), and 768 above "
        "seqs_max at least"),
    NUM(seqs_max, 1, 4096, 256, "sequences", "running at a time"),
    NUM(step_stretch_max, 0, 100000, 300, "%",
        "a step with decodes takes at most this part of one that only decodes: prompts and "
        "scoring are cut to fit; 0: no bound"),
    NUM(share_wait_ms_max, 1, 600000, 1000, "ms",
        "an API key below its share of the sequences waits no longer: the newest of a key above "
        "its share pauses"),
    NUM(waiting_max, 1, 65536, 4096, "requests", "queued; past it clients get 429"),
    BUDGET(kv_bytes, 0, 0,
           "KV cache; N%: of memory, cuda: of what the base leaves on the device; 0: what seqs_max "
           "sequences need, at most a quarter of memory; cuda: at most what the rest leaves"),
    BUDGET(packed_bytes_max, 0, 0,
           "cpu with bf16 products: copy of the base in the order products read, at most; N%: of "
           "memory; 0: half of what is free at start; 1: none"),
    BOOL(prefix_cache, 1, "reuse KV of equal prefixes of the same adapters"),
    NUM(adapters_registered_max, 0, 1u << 20, 16384, "adapters", "known at a time"),
    NUM(adapters_per_batch_max, 1, 1024, 64, "adapters", "distinct in one step"),
    NUM(adapters_resident_max, 1, 65536, 2048, "adapters", "in memory at a time"),
    BUDGET(adapters_host_bytes_max, 1 << 16, 2 * GIB,
           "memory of resident adapters; N%: of the machine's"),
    BUDGET(adapters_device_bytes_max, 0, 0,
           "cuda: device memory of adapters; N%: of what the base leaves; 0: 25%"),
    NUM(adapter_rank_max, 1, 512, ADMIT_RANK_MAX_STANDARD, "ranks", "largest rank of one module"),
    NUM(adapter_wait_ms_max, 1, 600000, 30000, "ms",
        "wait for a cold adapter; past it the request gets 503"),
    NUM(adapter_bytes_max, 1 << 12, 1ull << 40, ADMIT_BYTES_MAX_STANDARD, "bytes",
        "largest adapter file"),
    NUM(publisher_bytes_max, 1 << 12, 1ull << 44, 16 * GIB, "bytes",
        "published files of one API key"),
    NUM(datanet_bytes_max, 1 << 12, 1ull << 50, 16 * GIB, "bytes",
        "texts of datanets that publishers brought"),
    NUM(files_bytes_max, 1 << 12, 1ull << 50, 16 * GIB, "bytes",
        "files of all API keys (/v1/files)"),
    NUM(files_key_bytes_max, 1 << 12, 1ull << 50, 4 * GIB, "bytes", "the same of one API key"),
    NUM(files_key_max, 1, 65536, 1000, "files", "that one API key may keep"),
    BOOL(allow_runtime_loading, 1, "serve /v1/load_lora_adapter (admin keys, adapter_roots only)"),
    TEXT(data_dir, NULL, "DIR",
         "lane key, records, published adapters; default: STATE_DIRECTORY, else the user's state "
         "folder"),
    NUM(score_rate_ppb, 0, 1000000000, 1000000000, "ppb",
        "answers scored (signal S0); 1000000000: all"),
    NUM(score_rows_max, 0, 8192, 128, "tokens", "scoring rows of one step; 0: scoring off"),
    NUM(score_queue_max, 1, 65536, 1024, "rows", "scoring sequences inside the engine"),
    NUM(score_bytes_max, 1 << 16, 1ull << 44, 1 * GIB, "bytes",
        "jobs waiting to be scored; past it requests get 503"),
    NUM(basis_bytes_max, 0, 1ull << 40, 64ull << 20, "bytes",
        "bases of attribution indexes, where the ops compute; an adapter whose basis has no room "
        "is attributed without events"),
    NUM(keys_bytes_max, 0, 1ull << 40, 64ull << 20, "bytes",
        "keys kept while answers decode, 64 a token; past it scoring computes them again"),
    NUM(index_bytes_max, 1 << 20, 1ull << 44, 16 * GIB, "bytes",
        "files of attribution indexes; past it those used longest ago go and are built again"),
    NUM(index_ahead, 0, INDEXES_MAX, 64, "adapters",
        "wait to be indexed before an answer needs it: those that come, and so many newest at a "
        "start; 0: none"),
    NUM(evidence_bytes_max, 0, 1ull << 44, 256u << 20, "bytes",
        "evidence of the newest attributions (rows, spans, logged inputs); 0: none"),
    NUM(score_age_s_max, 1, 1u << 30, 86400, "s",
        "a job that waits longer here ends as 'inputs lost'"),
    NUM(score_stuck_s, 1, 1u << 30, 600, "s",
        "a bound lane is not ready when no waiting job was scored for so long"),
    BOOL(train, 1, "train adapters here, where nobody served wants the processor"),
    BOOL(train_yields, 1, "0: training competes with those who are served"),
    NUM(train_threads, 0, 1024, 0, "threads", "of training; 0: as many as the process may use"),
    NUM(train_tokens, 16, 65536, 1024, "tokens",
        "of a training pass, and of its longest row; never more than the model's context"),
    NUM(train_running_max, 1, 64, 4, "jobs", "that train at a time, in the same passes"),
    NUM(train_jobs_max, 0, 65536, 256, "jobs", "that wait or train; past it 429; 0: none"),
    NUM(train_account_max, 0, 65536, 64, "jobs", "of these, of one API key"),
    NUM(train_account_tokens_max, 0, 1ull << 50, 0, "tokens",
        "that jobs of one API key still have to read; past it 429; 0: any"),
    NUM(train_ended_max, 1, 65536, 1000, "jobs",
        "ended ones that are remembered; past it the oldest are forgotten, not their adapters"),
    NUM(train_learners_max, 0, 64, 16, "adapters", "that clients train step by step, at a time"),
    BUDGET(train_bytes_max, 0, 0,
           "memory of training: activations, weights, moments; N%: of memory; 0: a quarter of it; "
           "on cuda of the device, beside device_bytes, N% of which; 0: no training"),
    NUM(train_checkpoint_s, 0, 1u << 20, 30, "s",
        "between two checkpoints of a job; 0: after each step"),
    TEXT(train_price, "0", "base units", "price of 1000 trained tokens, as jobs show it"),
    NUM(spool_bytes_max, 1 << 16, 1ull << 50, 64 * GIB, "bytes",
        "records kept on disk; past 95 % requests get 503"),
    NUM(spool_keep_bytes, 0, 1ull << 50, 1 * GIB, "bytes",
        "newest records that stay when they are settled; past half of spool_bytes_max they go"),
    NUM(spool_keep_s, 0, 1u << 30, 604800, "s",
        "settled records (of an unbound lane: all) stay so long, unless that half is reached"),
    NUM(group_max, 1, 65536, 64, "records", "group fsync: most records"),
    TEXT(redis_url, NULL, "redis[s]://[USER@]HOST:PORT",
         "ship records there; without it they stay in the local spool"),
    TEXT(redis_password_file, NULL, "FILE", "mode 600"),
    TEXT(redis_ca_file, NULL, "FILE", "rediss: who signs its certificate; default: the system's"),
    NUM(chain_id, 0, UINT64_MAX, 0, "id", "of the ledger's chain; 0: records stay unbound"),
    TEXT(ledger, NULL, "0xADDRESS", "AttributionLedger"),
    TEXT(registry, NULL, "0xADDRESS", "Registry"),
    LIST(
        registry_rpc_url, "URL",
        "chain node that the Registry is read from, never written; may be repeated: of several two "
        "must agree; a bound lane needs one"),
    TEXT(registry_rpc_authorization_file, NULL, "FILE",
         "value of the Authorization header for these nodes; mode 600"),
    NUM(lane, 0, UINT32_MAX, 0, "id", "lane registered for this server; 0: 1"),
    TEXT(base_price_in, "0", "base units",
         "tariff of the base per 1000 prompt tokens; of a bound lane the Registry's counts, and a "
         "difference is a warning"),
    TEXT(base_price_out, "0", "base units", "the same per 1000 output tokens"),
    JSON(api_keys,
         "array of {name, digest, roles, adapters, account}; digest: BLAKE2b-256 hex of the key"),
    TEXT(api_keys_file, NULL, "FILE", "the same array in a file of mode 600"),
    BOOL(page, 1, "serve the page for people at /: chat, and who made the answer"),
    TEXT(settle_url, NULL, "URL",
         "the settlement worker as browsers reach it: the page shows a record's batch and epoch"),
    NUM(http_threads, 1, 64, 2, "threads", "that parse and stream"),
    NUM(connections_max, 8, 65536, 4096, "connections", "open at a time"),
    NUM(connections_per_ip_max, 0, 65536, 0, "connections",
        "open from one address; 0: three quarters of connections_max"),
    NUM(idle_timeout_s, 1, 86400, 120, "s", "an idle connection is closed"),
    NUM(header_timeout_s, 1, 3600, 30, "s", "a request's header may take"),
    NUM(body_timeout_s, 1, 86400, 60, "s", "a body may take, and 1 s more for each 32 KiB"),
    NUM(stream_rest_ms, 0, 1000, 40, "ms", "with many streams, tokens gather at most so long"),
    NUM(body_bytes_max, 1024, 1ull << 32, 8u << 20, "bytes", "largest JSON body"),
    NUM(bodies_bytes_max, 1 << 20, 1ull << 40, 256u << 20, "bytes",
        "memory of all JSON bodies together"),
    NUM(n_max, 1, 128, 16, "choices", "largest n"),
    NUM(drain_s, 0, 86400, 45, "s", "SIGTERM: running answers may take this long"),
    NUM(lame_duck_s, 0, 3600, 0, "s", "SIGTERM: keep accepting this long after readiness fails"),
    TEXT(log_level, "info", "error|warn|info|debug", "of the log's lines"),
    TEXT(log_file, NULL, "FILE", "the log goes there instead of stderr; SIGHUP reopens it"),
    TEXT(access_log, NULL, "FILE|-",
         "one line for each answered request (combined log format, seconds, request id); SIGHUP "
         "reopens it"),
    SWITCH(plan, "print the memory plan and exit; cuda with device_bytes: without a device"),
    SWITCH(version, "print the version and exit"),
    SWITCH(help, "print this and exit"),
};

static const struct option_alias aliases[] = {
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

static const struct options table = {
    .row = keys,
    .row_count = ARRAY_COUNT(keys),
    .alias = aliases,
    .alias_count = ARRAY_COUNT(aliases),
    .usage = "residuald --model DIR [flags]\n\n"
             "Serves one base model and thousands of LoRA adapters over the OpenAI API; every "
             "answer leaves a signed record.",
    .notes = "Budgets (bytes|N%) take a percentage too. Example:\n"
             "  residuald --model configs/demo/base --adapter-dir configs/demo/adapters\n"
             "Exit codes: 0 stopped as asked, 1 failed while running, 2 bad configuration, 3 could "
             "not start."};

static void default_data_dir(struct config *c)
{
    char path[4096];
    if (c->data_dir)
        return;
    env_state_dir(path, sizeof(path), "residual");
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
    *out = (struct config){0};
    enum status st = options_load(&table, out, argc, argv, err);
    if (!st && !out->model && !out->help && !out->version)
        st = err_param(
            err, STATUS_INVALID, "model",
            "model: missing; name the base model's directory: residuald --model DIR (see --help)");
    if (!out->connections_per_ip_max) /* one client alone never shuts the others out */
        out->connections_per_ip_max = out->connections_max - out->connections_max / 4;
    default_data_dir(out);
    default_model_name(out);
    return st;
}

void config_fini(struct config *c)
{
    options_fini(&table, c);
}

void config_print_help(void)
{
    options_print_help(&table);
}
