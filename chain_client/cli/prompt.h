/* Passphrases of key files, from a file of mode 600 or typed at the terminal without an echo. */
#ifndef RS_CLI_PROMPT_H
#define RS_CLI_PROMPT_H

#include "chain_client/cli/cli.h"
#include "chain_client/eth/secp.h"

#define PROMPT_BYTES_MAX 1024

/* A new passphrase: of the file of `o`, else typed twice. PROMPT_LEAST_CHARS or more.
 * Errors: file_read_secret's; INVALID: too short, not twice the same, or neither file nor terminal.
 * Wipe after use. */
MUST_CHECK enum status prompt_new_passphrase(char out[PROMPT_BYTES_MAX], const struct cli *c,
                                             enum cli_option o, struct errtext *err);

/* The key of --key-file: a raw file, or a version 3 file with its passphrase file; where that is
 * not given and stdin is a terminal, it is asked for. Errors: keystore_load's. */
MUST_CHECK enum status prompt_load_key(const struct secp *secp, struct secp_key *key,
                                       const struct cli *c, struct errtext *err);

#endif
