/* residuald's settings, read by base/options: one const struct. The table in config.c is the one
 * list of keys, ranges and defaults; --help prints it. */
#ifndef RS_SERVER_CONFIG_H
#define RS_SERVER_CONFIG_H

#include "server/base/options.h"

struct config {
    char *model, *model_name, *adapter_dir, *listen, *backend, *dtype, *data_dir, *log_level;
    char *log_file, *access_log;
    char *redis_url, *redis_password_file, *redis_ca_file, *api_keys_file;
    char *ledger, *registry, *base_price_in, *base_price_out, *train_price;
    struct option_list adapter;       /* NAME=DIR */
    struct option_list adapter_roots; /* allow-list of load_lora_adapter */
    struct option_list registry_rpc_url;
    char *registry_rpc_authorization_file, *settle_url;
    json_t *api_keys; /* array or NULL */
    bool deterministic, prefix_cache, allow_runtime_loading, strict, page, train, train_yields,
        plan, help, version;
    uint64_t threads, context_max, rows_max, seqs_max, waiting_max, kv_bytes, packed_bytes_max;
    uint64_t step_stretch_max, share_wait_ms_max;
    uint64_t adapters_registered_max, adapters_per_batch_max, adapters_resident_max,
        adapters_host_bytes_max, adapters_device_bytes_max, device, device_bytes;
    uint64_t adapter_rank_max, adapter_wait_ms_max, adapter_bytes_max, publisher_bytes_max,
        datanet_bytes_max, files_bytes_max, files_key_bytes_max, files_key_max;
    uint64_t score_rate_ppb, score_rows_max, score_queue_max, score_bytes_max, score_age_s_max,
        score_stuck_s, basis_bytes_max, keys_bytes_max, index_bytes_max, index_ahead,
        evidence_bytes_max;
    uint64_t train_threads, train_tokens, train_running_max, train_jobs_max, train_account_max,
        train_account_tokens_max, train_ended_max, train_learners_max, train_bytes_max,
        train_checkpoint_s;
    uint64_t spool_bytes_max, spool_keep_bytes, spool_keep_s, group_max, chain_id, lane;
    uint64_t http_threads, connections_max, connections_per_ip_max, idle_timeout_s, stream_rest_ms,
        header_timeout_s, body_timeout_s, bodies_bytes_max, body_bytes_max, n_max;
    uint64_t drain_s, lame_duck_s;
};

/* device_bytes, kv_bytes, packed_bytes_max, adapters_host_bytes_max, adapters_device_bytes_max and
 * train_bytes_max are budgets. */

/* Settings from argv[1..] and the files they name, with data_dir and model_name filled in. */
MUST_CHECK enum status config_load(struct config *out, int argc, char **argv, struct errtext *err);
void config_fini(struct config *c);
/* The text of --help: every key with unit, default and meaning. */
void config_print_help(void);

#endif
