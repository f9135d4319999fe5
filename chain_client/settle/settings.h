/* residual-settle's settings, read by base/options. The table in settings.c is the one list of
 * keys, ranges and defaults; --help prints it. */
#ifndef RS_SETTLE_SETTINGS_H
#define RS_SETTLE_SETTINGS_H

#include "server/base/options.h"

#define SETTINGS_LANES_MAX 64

/* LANE=TEXT */
struct settings_lane {
    uint32_t lane;
    char *text;
};
struct settings_lanes {
    struct settings_lane *item;
    uint32_t count;
};
extern const struct option_custom settings_lanes_custom;

struct settings {
    char *verb; /* "run" (default), "status", "resume" */
    char *operand;
    char *redis_url, *redis_password_file, *redis_ca_file, *deployment;
    char *committer_key_file, *committer_passphrase_file, *proposer_key_file;
    char *proposer_passphrase_file, *funder_key_file, *funder_passphrase_file;
    char *state_dir, *archive_dir, *listen, *log_level, *log_file;
    struct option_list rpc_url, rpc_authorization_file; /* one each, or none of the latter */
    char *refetch_key_file, *owners_dir;
    struct option_list archive; /* places beside archive_dir */
    char *s3_endpoint, *s3_region, *s3_key_file;
    uint64_t scrub_mib_s;
    char *chain_name, *public_rpc_url, *explorer_url, *coin_symbol; /* for people; /v1/deployment */
    struct settings_lanes lane_key, spool_dir, refetch_url;
    uint64_t batch_count_max, batch_seconds_max, epoch_seconds;
    uint64_t poll_ms, read_count, bump_seconds, fee_max_gwei, record_keep_s, attest_wait_s;
    uint64_t rpc_head_age_max_s, threads;
    char *nonce, *batch; /* of `resume` */
    bool help, version, json;
};

MUST_CHECK enum status settings_load(struct settings *out, int argc, char **argv,
                                     struct errtext *err);
void settings_fini(struct settings *s);
void settings_print_help(void);

#endif
