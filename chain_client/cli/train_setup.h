/* What every verb that trains begins with: its options, the base on a backend, rows of folders, and
 * the configuration of a new adapter. One thread. */
#ifndef RS_CLI_TRAIN_SETUP_H
#define RS_CLI_TRAIN_SETUP_H

#include "chain_client/cli/cli.h"
#include "server/train/train_config.h"
#include "server/train/trainer.h"

struct train_setup {
    const struct cli *c;
    double eval_share;        /* 0: none */
    struct train_options opt; /* as they were given; tokens once rows are known, warm-up never */
    struct train_base base;
    struct model *model;
    struct backend *backend;
    struct resident *resident;
};
MUST_CHECK enum status train_setup_options(struct train_setup *s, struct errtext *err);
/* --model, for --threads in --dtype. */
MUST_CHECK enum status train_setup_base(struct train_setup *s, struct errtext *err);
void train_setup_fini(struct train_setup *s);

struct train_source { /* a datanet's folder with its training.json */
    struct datanet *datanet;
    struct training *training;
    struct training_rows rows;
    /* of --eval-share: what is held out of it; training and rows are without them */
    struct training *held;
    struct training_rows held_rows;
};
/* NOT_FOUND says what makes training.json; INVALID: it is of another base, or has too few rows for
 * --eval-share. */
MUST_CHECK enum status train_source_open(struct train_source *out, const struct train_setup *s,
                                         const char *dir, struct errtext *err);
void train_source_close(struct train_source *t);
uint32_t train_source_longest(const struct train_source *t); /* of all its rows, in tokens */

/* opt.tokens: --tokens, or what holds the longest row. */
MUST_CHECK enum status train_setup_tokens(struct train_setup *s, uint32_t longest,
                                          struct errtext *err);
/* --warmup, or 3 % of all steps. */
MUST_CHECK enum status train_setup_warmup(const struct train_setup *s, uint32_t rows,
                                          uint32_t *warmup, struct errtext *err);
/* --peft-config, whose lora_dropout is then trained with, or --rank and --alpha as peft's
 * LoraConfig writes them, all linear modules; at the end of out (TRAIN_CONFIG_BYTES_MAX). */
MUST_CHECK enum status train_setup_config(struct train_setup *s, struct buf *out,
                                          struct errtext *err);

#endif
