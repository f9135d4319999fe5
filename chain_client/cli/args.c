/* One table of every option; a verb names those it takes. Words may come in any order; an option's
 * value follows as the next word or after "=". "--" ends the options, "-" alone is an operand. An
 * unknown option is refused with the verb's own list, so that a typing error never runs. */
#include "chain_client/cli/cli.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name, *unit, *help; /* unit NULL: a flag */
} options[OPT_COUNT] = {
    [OPT_JSON] = {"json", NULL, "print one JSON object"},
    [OPT_HELP] = {"help", NULL, "print this and exit"},
    [OPT_MODEL] = {"model", "DIR",
                   "folder of the base model (adapter check reads its config.json alone)"},
    [OPT_SERVER] = {"server", "URL", "the serving server, such as http://127.0.0.1:8080"},
    [OPT_NAME] = {"name", "NAME", "what clients will call the adapter, or the datanet's name"},
    [OPT_API_KEY_FILE] = {"api-key-file", "FILE", "API key of the server, mode 600"},
    [OPT_PUBLISHER_KEY_FILE] = {"publisher-key-file", "FILE",
                                "Ed25519 key that signs the manifest, mode 600 "
                                "(residual key new --type publisher)"},
    [OPT_OWNER_KEY_FILE] = {"owner-key-file", "FILE",
                            "chain key of the adapter's owner, mode 600: signs the manifest and, "
                            "with --rpc, sends the registration"},
    [OPT_OWNER_PASSPHRASE_FILE] = {"owner-passphrase-file", "FILE",
                                   "of an encrypted owner key (version 3), mode 600"},
    [OPT_MANIFEST] = {"manifest", "FILE",
                      "owner, prices and split; default: publish.json of the adapter's folder"},
    [OPT_DATANET_ID] = {"datanet-id", "0xID",
                        "a datanet registered already; default: the owner's own, by its name"},
    [OPT_RPC] = {"rpc", "URL", "JSON-RPC of a chain node"},
    [OPT_DEPLOYMENT] = {"deployment", "FILE", "addresses of the contracts (deploy.mjs writes it)"},
    [OPT_REPLACE] = {"replace", NULL, "the name may point to another adapter until now"},
    [OPT_WITHOUT_OWNER] = {"without-owner", NULL,
                           "publish without a manifest: no owner, no prices, nobody is paid"},
    [OPT_ADAPTER_RANK_MAX] = {"adapter-rank-max", "RANKS",
                              "what the server's adapter_rank_max is (default 128)"},
    [OPT_ADAPTER_BYTES_MAX] = {"adapter-bytes-max", "BYTES",
                               "what the server's adapter_bytes_max is (default 1 GiB)"},
    [OPT_ACCOUNT] = {"account", "0xADDRESS", "who is paid; default: the key's own address"},
    [OPT_KEY_FILE] = {"key-file", "FILE", "chain key that sends and pays the gas, mode 600"},
    [OPT_PASSPHRASE_FILE] = {"passphrase-file", "FILE", "of an encrypted key, mode 600"},
    [OPT_ARCHIVE] = {"archive", "DIR", "the published archive of batches and epochs"},
    [OPT_SETTLE] =
        {"settle", "URL",
         "a settlement worker: gives rewards, and where the chain is (its /v1/deployment "
         "for --deployment, its public node for --rpc)"},
    [OPT_TYPE] = {"type", "chain|publisher|api", "what kind of key"},
    [OPT_UPTO] = {"upto", "N", "the highest number that is known to be signed"},
    [OPT_REDIS_URL] =
        {"redis-url", "URL|none",
         "the Redis of the lane's stream, as the server's redis_url: records that are "
         "there are taken back"},
    [OPT_REDIS_PASSWORD_FILE] = {"redis-password-file", "FILE", "of that Redis, mode 600"},
    [OPT_PRICE_IN] = {"price-in", "N",
                      "base units per 1000 prompt tokens; --price-out goes with it"},
    [OPT_PRICE_OUT] = {"price-out", "N", "base units per 1000 output tokens"},
    [OPT_OWNER] = {"owner", "0xADDRESS",
                   "whose it is: of a datanet, or who is paid for a document"},
    [OPT_LICENCE] = {"licence", "SPDX", "of the documents, such as CC-BY-4.0 or CC0-1.0"},
    [OPT_TERMS] = {"terms", "URI", "where more is said about their use"},
    [OPT_DISPLAY] = {"display", NULL,
                     "their text may be shown beside the answers that it explains"},
    [OPT_KIND] = {"kind", "text|markdown|rows|chats",
                  "what the files hold; default: by their names"},
    [OPT_ENTRY] = {"entry", "FILE", "a signed entry: add reads it, sign writes it"},
    [OPT_MARKS] = {"marks", "none|bos|eos|both",
                   "special tokens around a row in training; default: eos, and bos if the "
                   "tokenizer adds one"},
    [OPT_CROISSANT] = {"croissant", "FILE", "written: the datanet in Croissant 1.1"},
    [OPT_SPDX] = {"spdx", "FILE", "written: the datanet in SPDX 3.0.1"},
    [OPT_RANK] = {"rank", "N", "of the adapter's matrices, all linear modules (default 16)"},
    [OPT_ALPHA] = {"alpha", "X", "what they are scaled by, over the rank (default twice the rank)"},
    [OPT_PEFT_CONFIG] = {"peft-config", "FILE",
                         "an adapter_config.json, in the place of rank and alpha: modules, "
                         "patterns, rsLoRA"},
    [OPT_INIT] = {"init", "DIR", "an adapter to go on from; default: a new one, drawn by the seed"},
    [OPT_LR] = {"lr", "X", "learning rate at its height (default 0.0002)"},
    [OPT_SCHEDULE] = {"schedule", "constant|linear|cosine",
                      "how it falls behind the warm-up (default linear, to 0)"},
    [OPT_WARMUP] = {"warmup", "STEPS", "in which it rises from 0 (default 3 % of all)"},
    [OPT_WEIGHT_DECAY] = {"weight-decay", "X", "AdamW's, decoupled (default 0)"},
    [OPT_CLIP] = {"clip", "X", "the largest norm of a gradient (default 1; 0: any)"},
    [OPT_DROPOUT] = {"dropout", "X", "share of LoRA's inputs that falls in each step (default 0)"},
    [OPT_EPOCHS] = {"epochs", "N", "times that all rows are read (default 3)"},
    [OPT_BATCH] = {"batch", "ROWS", "of a step (default 8)"},
    [OPT_TOKENS] = {"tokens", "N",
                    "of a pass, and of a row at most (default 1024, or the longest row): more need "
                    "more memory"},
    [OPT_SEED] = {"seed", "N", "of the first weights and of the rows' order (default 0)"},
    [OPT_IN_ORDER] = {"in-order", NULL, "rows as they stand in training.json, each epoch"},
    [OPT_MASK] = {"mask", "all|completion|assistant",
                  "what of a row is learned: all (standard), the completion, or what the "
                  "assistant says by the base's own chat template"},
    [OPT_CHECKPOINT_STEPS] = {"checkpoint-steps", "N",
                              "steps after which its state is kept (default 50; 0: never)"},
    [OPT_EVAL_SHARE] = {"eval-share", "X",
                        "share of the rows that is held out, by the seed: evaluation.json, and "
                        "training.json without them"},
    [OPT_EVAL_STEPS] = {"eval-steps", "N",
                        "steps between two looks at the held-out rows (default an epoch's)"},
    [OPT_PATIENCE] = {"patience", "N",
                      "looks in a row that show no gain, then it ends; the weights of the best "
                      "are kept (default 0: it goes on to its end and keeps the last)"},
    [OPT_EVAL] = {"eval", "DIR", "a datanet's folder whose rows are held out and judge"},
    [OPT_CHECK] = {"check", "FILE", "a value.json: measure it again, with its options"},
    [OPT_FOLDS] = {"folds", "N",
                   "parts of the rows, each held out once; with --eval of its rows (default 5)"},
    [OPT_SEEDS] = {"seeds", "K", "measured anew with as many seeds, from --seed on (default 1)"},
    [OPT_VERSION] = {"version", "N", "of the datanet"},
    [OPT_DTYPE] = {"dtype", "f32|bf16", "products of the base (default: what the processor has)"},
    [OPT_THREADS] = {"threads", "N", "default: as many as the process may use"},
    [OPT_ASKED] = {"asked", "FILE", "JSON lines of {prompt, completion}: the answers to explain"},
    [OPT_PROJECT] = {"project", "N",
                     "columns that the long side of a matrix comes down to (default 0: as it is)"},
    [OPT_DAMPING] = {"damping", "X",
                     "of the Fisher, over a matrix's mean |gradient|^2 / rows (default 0.01)"},
    [OPT_OUT] = {"out", "FILE", "written: gradients and scores as safetensors"},
    [OPT_YES] = {"yes", NULL, "do it; without it the verb only shows what it would do"},
    [OPT_TO_BATCH] = {"to-batch", "N", "pay what the batches up to this one earned"},
    [OPT_ALL] = {"all", NULL, "pay what every final batch earned"},
    [OPT_WAIT_S] = {"wait-s", "SECONDS", "longest wait for a transaction (default 180)"},
};

static bool takes(const struct cli_verb *v, unsigned o)
{
    return ((v->options | CLI_BIT(OPT_JSON) | CLI_BIT(OPT_HELP)) & CLI_BIT(o)) != 0;
}

const struct cli_verb *args_verb(const struct cli_verb *table, size_t count, int argc,
                                 const char *const *argv, int *used)
{
    for (size_t i = 0; i < count; i++) {
        const char *words = table[i].words;
        int n = 0;
        while (*words && n < argc && strncmp(words, argv[n], strlen(argv[n])) == 0) {
            size_t len = strlen(argv[n]);
            if (len == 0 || (words[len] != '\0' && words[len] != ' '))
                break;
            words += len + (words[len] == ' ');
            n++;
        }
        if (*words == '\0') {
            *used = n;
            return &table[i];
        }
    }
    return NULL;
}

static enum status find_option(const struct cli_verb *v, const char *word, size_t len,
                               unsigned *found, struct errtext *err)
{
    for (unsigned o = 0; o < OPT_COUNT; o++) {
        if (strlen(options[o].name) != len || strncmp(options[o].name, word, len) != 0)
            continue;
        if (!takes(v, o))
            return err_set(err, STATUS_INVALID, "'%s' takes no --%s; see residual %s --help",
                           v->words, options[o].name, v->words);
        *found = o;
        return STATUS_OK;
    }
    return err_set(err, STATUS_INVALID, "unknown option '--%.*s'; see residual %s --help", (int)len,
                   word, v->words);
}

/* One word that starts with "--"; *at moves over its value. */
static enum status take_option(struct cli *c, int argc, const char *const *argv, int *at,
                               struct errtext *err)
{
    const char *word = argv[*at] + 2, *eq = strchr(word, '=');
    unsigned o = 0;
    enum status st = find_option(c->verb, word, eq ? (size_t)(eq - word) : strlen(word), &o, err);
    if (st)
        return st;
    if (c->value[o])
        return err_set(err, STATUS_INVALID, "--%s is given twice", options[o].name);
    if (!options[o].unit && eq)
        return err_set(err, STATUS_INVALID, "--%s takes no value", options[o].name);
    if (!options[o].unit) {
        c->value[o] = "";
        return STATUS_OK;
    }
    if (eq)
        c->value[o] = eq + 1;
    else if (*at + 1 < argc)
        c->value[o] = argv[++*at];
    if (!c->value[o] || !*c->value[o])
        return err_set(err, STATUS_INVALID, "--%s needs a value: %s", options[o].name,
                       options[o].unit);
    return STATUS_OK;
}

static enum status check_complete(const struct cli *c, struct errtext *err)
{
    const struct cli_verb *v = c->verb;
    if (c->operand_count < v->operands_min)
        return err_set(err, STATUS_INVALID, "%s is missing; see residual %s --help", v->operand,
                       v->words);
    for (unsigned o = 0; o < OPT_COUNT; o++) {
        if ((v->required & CLI_BIT(o)) && !c->value[o])
            return err_set(err, STATUS_INVALID, "--%s %s is missing; see residual %s --help",
                           options[o].name, options[o].unit, v->words);
    }
    return STATUS_OK;
}

enum status args_parse(struct cli *c, const struct cli_verb *verb, int argc, const char **argv,
                       struct errtext *err)
{
    bool open = true; /* no "--" yet */
    *c = (struct cli){.verb = verb, .operand = argv};
    for (int i = 0; i < argc; i++) {
        if (open && strcmp(argv[i], "--") == 0) {
            open = false;
        } else if (open && argv[i][0] == '-' && argv[i][1] == '-') {
            enum status st = take_option(c, argc, argv, &i, err);
            if (st)
                return st;
        } else if (open && strcmp(argv[i], "-h") == 0) {
            c->value[OPT_HELP] = "";
        } else if (c->operand_count == verb->operands_max) {
            return err_set(err, STATUS_INVALID, "'%s' is one word too many; see residual %s --help",
                           argv[i], verb->words);
        } else {
            argv[c->operand_count++] = argv[i];
        }
    }
    return cli_has(c, OPT_HELP) ? STATUS_OK : check_complete(c, err);
}

enum status args_number(const struct cli *c, enum cli_option o, uint64_t range[2],
                        uint64_t standard, uint64_t *out, struct errtext *err)
{
    char *end;
    const char *text = c->value[o];
    *out = standard;
    if (!text)
        return STATUS_OK;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    if (errno || *end || text[0] < '0' || text[0] > '9' || v < range[0] || v > range[1])
        return err_set(err, STATUS_INVALID,
                       "--%s: found '%s', expected a whole number from %" PRIu64 " to %" PRIu64,
                       options[o].name, text, range[0], range[1]);
    *out = v;
    return STATUS_OK;
}

enum status args_real(const struct cli *c, enum cli_option o, double most, double *out,
                      struct errtext *err)
{
    char *end;
    const char *text = c->value[o];
    if (!text)
        return STATUS_OK;
    errno = 0;
    double v = strtod(text, &end);
    if (errno || end == text || *end || !(v >= 0 && v <= most))
        return err_set(err, STATUS_INVALID, "--%s: found '%s', expected a number from 0 to %g",
                       options[o].name, text, most);
    *out = v;
    return STATUS_OK;
}

void args_print_verb(const struct cli_verb *v)
{
    printf("residual %s%s%s [options]\n\n%s\n", v->words, v->operand ? " " : "",
           v->operand ? v->operand : "", v->line);
    if (v->more)
        printf("\n%s\n", v->more);
    puts("\nOptions");
    for (unsigned o = 0; o < OPT_COUNT; o++) {
        if (takes(v, o))
            printf("  --%s%s%s%s\n        %s\n", options[o].name, options[o].unit ? " " : "",
                   options[o].unit ? options[o].unit : "",
                   v->required & CLI_BIT(o) ? "   (required)" : "", options[o].help);
    }
}

void args_print_all(const struct cli_verb *table, size_t count)
{
    puts("residual VERB [options]      residual VERB --help shows a verb's options\n");
    for (size_t i = 0; i < count; i++) {
        char usage[64];
        snprintf(usage, sizeof(usage), "%s %s", table[i].words,
                 table[i].operand ? table[i].operand : "");
        printf("  %-28s %s\n", usage, table[i].line);
    }
    puts(
        "\nSecrets are read from files of mode 600 only. --json prints one JSON object on stdout.\n"
        "Exit codes: 0 done, and right; 1 checked, and not right; 2 wrong command line or input "
        "file;\n3 a server, chain node or disk failed: try again; 4 no such thing, or nothing to "
        "do;\n5 the server or the contract refused.");
}
