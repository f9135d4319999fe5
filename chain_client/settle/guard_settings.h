/* Settings of `residual-settle attest` and `residual-settle watch`, read by base/options: programs
 * of other keys and, best, of other machines than the worker's, so a table of their own. */
#ifndef RS_SETTLE_GUARD_SETTINGS_H
#define RS_SETTLE_GUARD_SETTINGS_H

#include "chain_client/settle/settings.h"

struct guard_settings {
    char *verb; /* "attest" or "watch" */
    struct option_list rpc_url, rpc_authorization_file;
    char *deployment, *key_file, *passphrase_file;
    char *archive, *mirror_dir, *worker_url, *state_dir, *listen, *log_level, *log_file;
    struct settings_lanes lane_url;
    char *lane_key_file;
    uint64_t missing_max_ppm, faults_max, resign_after_s, grace_s, poll_ms, bump_seconds,
        fee_max_gwei, rpc_head_age_max_s;
    bool owners_absent, once, help;
};

MUST_CHECK enum status guard_settings_load(struct guard_settings *out, int argc, char **argv,
                                           struct errtext *err);
void guard_settings_fini(struct guard_settings *s);
void guard_settings_print_help(void);

#endif
