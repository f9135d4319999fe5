/* What every verb of `residual` shares: its options, its voice and its exit codes.
 *
 * A verb is a row of the table in main.c. args.c fills struct cli from the words after it; the verb
 * prints facts on stdout (one JSON object with --json), progress on stderr, and returns an exit
 * code. One thread. */
#ifndef RS_CLI_CLI_H
#define RS_CLI_CLI_H

#include "chain_client/cli/options.h"
#include "server/base/buf.h"
#include "server/base/errtext.h"
#include "server/base/hex.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum cli_exit {
    CLI_FINE = 0,
    CLI_WRONG = 1,   /* checked, and it is not right: refused adapter, forged receipt, finding */
    CLI_USAGE = 2,   /* the command line or a file given to it */
    CLI_OUTAGE = 3,  /* a server, node or disk did not do its part: try again */
    CLI_NOTHING = 4, /* no such thing, or nothing to do */
    CLI_REFUSED = 5, /* the server or the contract said no */
};

struct cli;
struct cli_verb {
    const char *words; /* "adapter check" */
    const char *operand;
    uint32_t operands_min, operands_max;
    cli_options options, required; /* CLI_BIT of each; --json and --help always go */
    int (*run)(struct cli *c);
    const char *line; /* what it does, for the list */
    const char *more; /* for --help of the verb, or NULL */
};

#define CLI_OPERANDS_ANY UINT32_MAX

struct cli {
    const struct cli_verb *verb;
    const char *value[OPT_COUNT]; /* NULL: not given; flags: "" */
    const char *const *operand;
    uint32_t operand_count;
    char *deployment, *rpc_url; /* place.h: what a worker said, or NULL */
};

static inline bool cli_has(const struct cli *c, enum cli_option o)
{
    return c->value[o] != NULL;
}

/* args_verb - the verb that the first words name; *used words belong to it. NULL if none does. */
const struct cli_verb *args_verb(const struct cli_verb *table, size_t count, int argc,
                                 const char *const *argv, int *used);
/* The words after the verb; operands are moved to the front of argv, where c->operand is. INVALID,
 * naming the option, its verb and what is expected. */
MUST_CHECK enum status args_parse(struct cli *c, const struct cli_verb *verb, int argc,
                                  const char **argv, struct errtext *err);
void args_print_verb(const struct cli_verb *v);
void args_print_all(const struct cli_verb *table, size_t count);
/* A whole number of an option between least and most, `standard` if it was not given. */
MUST_CHECK enum status args_number(const struct cli *c, enum cli_option o, uint64_t range[2],
                                   uint64_t standard, uint64_t *out, struct errtext *err);
/* A number from 0 to most; *out stays where it was not given. */
MUST_CHECK enum status args_real(const struct cli *c, enum cli_option o, double most, double *out,
                                 struct errtext *err);

/* ---- say.c ---- */

/* Print the error (and, when not NULL, what to do) and return the exit code of st. */
int cli_fail(const struct cli *c, enum status st, const struct errtext *err, const char *hint);
int cli_exit_code(enum status st);
/* stderr, one line, not with --json. */
void cli_note(const struct cli *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* "12.5 (12500000000000000000 base units)": 18 decimals as the native coin has. */
#define CLI_AMOUNT_BYTES 128
void cli_amount(char out[CLI_AMOUNT_BYTES], u128 v);
/* Print out and a newline; OUTAGE if stdout cannot take it or the text did not fit its buffer. */
int cli_print(const struct buf *out, int code);

void cli_put_amount(struct buf *out, const char *key, u128 v); /* "key":"decimal" */
void cli_put_json_address(struct buf *out, const char *key, const uint8_t address[20]);

/* ---- the verbs ---- */
int verb_wallet_new(struct cli *c);
int verb_key_new(struct cli *c);
int verb_key_address(struct cli *c);
int verb_key_hash(struct cli *c);
int verb_adapter_check(struct cli *c);
int verb_adapter_publish(struct cli *c);
/* What that verb refuses before it does anything. */
MUST_CHECK enum status adapter_publish_ready(struct cli *c, struct errtext *err);
int verb_adapter_list(struct cli *c);
int verb_adapter_show(struct cli *c);
int verb_adapter_delete(struct cli *c);
int verb_adapter_fetch(struct cli *c);
int verb_claim(struct cli *c);
int verb_rewards(struct cli *c);
int verb_audit_epoch(struct cli *c);
int verb_audit_batch(struct cli *c);
int verb_audit_attribution(struct cli *c);
int verb_receipt_verify(struct cli *c);
int verb_adapter_price(struct cli *c);
int verb_datanet_consent(struct cli *c);
int verb_datanet_sign(struct cli *c);
int verb_datanet_publish(struct cli *c);
int verb_datanet_export(struct cli *c);
int verb_datanet_uses(struct cli *c);
int verb_datanet_new(struct cli *c);
int verb_datanet_add(struct cli *c);
int verb_datanet_check(struct cli *c);
int verb_datanet_build(struct cli *c);
int verb_datanet_withdraw(struct cli *c);
int verb_datanet_value(struct cli *c);
int verb_train(struct cli *c);
int verb_gradients(struct cli *c);
#define VERB_TRAIN_DIRS_MAX 256
int verb_datanet_show(struct cli *c);
int verb_lane_tariff(struct cli *c);
int verb_lane_show(struct cli *c);
int verb_vault_fund(struct cli *c);
int verb_vault_status(struct cli *c);
int verb_lane_void(struct cli *c);

#endif
