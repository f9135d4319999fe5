/* residual: the command line of publishers, contributors, operators and auditors. The table of
 * verbs; each file verb*.c holds the verbs of one thing. */
#include "chain_client/cli/cli.h"
#include "chain_client/cli/http.h"
#include "chain_client/cli/place.h"
#include "server/base/check.h"

#include <signal.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>

#define B(o)   CLI_BIT(OPT_##o)
#define CHAIN  (B(RPC) | B(DEPLOYMENT) | B(SETTLE)) /* the last alone gives the others */
#define REMOTE (B(SERVER) | B(API_KEY_FILE))
#define PUBLISH                                                                                    \
    (REMOTE | CHAIN | B(NAME) | B(PUBLISHER_KEY_FILE) | B(OWNER_KEY_FILE) |                        \
     B(OWNER_PASSPHRASE_FILE) | B(MANIFEST) | B(DATANET_ID) | B(REPLACE) | B(WITHOUT_OWNER) |      \
     B(WAIT_S))
#define REWARDS (CHAIN | B(ARCHIVE))

static const struct cli_verb verbs[] = {
    {"adapter check", "DIR", 1, 1,
     REMOTE | B(MODEL) | B(NAME) | B(ADAPTER_RANK_MAX) | B(ADAPTER_BYTES_MAX), 0,
     verb_adapter_check,
     "would this PEFT adapter be admitted? here (--model) or on a server (--server)",
     "With --model the folder is checked here against the base's config.json: config fields, "
     "tensor\n"
     "names and shapes, ranks and bytes (a server's standard limits, or those given), finite "
     "values,\n"
     "an effect that is not zero, publish.json and its datanet. With --server the files are "
     "uploaded\n"
     "for a dry run and forgotten. Exit code 1: it would be refused, and why."},
    {"adapter publish", "DIR", 1, 1, PUBLISH | B(MODEL), B(SERVER) | B(NAME), verb_adapter_publish,
     "sign, register on chain (--rpc) and upload an adapter",
     "The manifest (owner, prices, split; publish.json, beside it datanet.json) is completed with\n"
     "the adapter's and the base's ids and signed by --publisher-key-file and --owner-key-file; a\n"
     "manifest that carries both signatures is sent as it is. With --deployment it is bound to "
     "that\n"
     "chain's registry. With --rpc too, the datanet and the adapter are registered before a byte\n"
     "is uploaded: commit, wait, register. Repeating the command goes on where it stopped. "
     "Without a\n"
     "manifest nobody would be paid: that is refused unless --without-owner says so."},
    {"adapter list", NULL, 0, 0, REMOTE, B(SERVER), verb_adapter_list,
     "adapters of a server: residency, price, use", NULL},
    {"adapter show", "NAME", 1, 1, REMOTE, B(SERVER), verb_adapter_show,
     "one adapter of a server, by name or content id", NULL},
    {"adapter fetch", "NAME DIR", 2, 2, REMOTE, B(SERVER), verb_adapter_fetch,
     "take one's adapter from a server: as peft has it, with its training.json", NULL},
    {"adapter delete", "NAME", 1, 1, REMOTE, B(SERVER), verb_adapter_delete,
     "take a published adapter off a server", NULL},
    {"adapter price", "ID|NAME", 1, 1,
     CHAIN | REMOTE | B(PRICE_IN) | B(PRICE_OUT) | B(KEY_FILE) | B(PASSPHRASE_FILE) | B(WAIT_S), 0,
     verb_adapter_price, "what an adapter costs in the Registry; with new prices, change it",
     "Prices belong to content: every name of the adapter costs the same, on every server. A new "
     "price\ncomes into force after the Registry's notice. A NAME is looked up on --server."},
    {"datanet consent", "ADAPTER_ID VERSION", 2, 2,
     CHAIN | B(OWNER_KEY_FILE) | B(OWNER_PASSPHRASE_FILE) | B(DATANET_ID),
     B(OWNER_KEY_FILE) | B(DATANET_ID), verb_datanet_consent,
     "agree that somebody's adapter names this version of your datanet",
     "Prints the signature that the adapter's publish.json holds as datanetConsent. An adapter "
     "that "
     "names\na datanet of another owner cannot be registered without it."},
    {"datanet new", "DIR", 1, 1, CHAIN | B(NAME) | B(OWNER), B(NAME) | B(OWNER), verb_datanet_new,
     "make the folder of a datanet: a list of documents that people contribute",
     "--owner is whose the datanet is: who registers its versions. With --deployment the list has "
     "the\nid that the datanet will have on that chain, which contributors sign for."},
    {"datanet add", "DIR FILE...", 2, CLI_OPERANDS_ANY,
     B(OWNER) | B(LICENCE) | B(TERMS) | B(DISPLAY) | B(KIND) | B(ENTRY), 0, verb_datanet_add,
     "add documents of one owner, under one licence",
     "Each file is a document: plain text, Markdown, or JSON lines of rows ({text} or {prompt,\n"
     "completion}) or chats ({messages}). --owner and --licence say whose they are and how they "
     "may "
     "be\nused; or --entry, one document's signed entry from its owner (datanet sign FILE)."},
    {"datanet sign", "DIR|FILE", 1, 1,
     CHAIN | B(OWNER_KEY_FILE) | B(OWNER_PASSPHRASE_FILE) | B(DATANET_ID) | B(LICENCE) | B(TERMS) |
         B(DISPLAY) | B(KIND) | B(ENTRY),
     B(OWNER_KEY_FILE), verb_datanet_sign,
     "sign your documents of a datanet's folder, or one text for somebody's datanet",
     "Every document of DIR/datanet.json that belongs to the key's account gets its owner's "
     "signature:\nit may be in this datanet, under the licence, terms and consent to display that "
     "the list names.\nOf a FILE (--datanet-id, --licence) it prints the signed entry, or writes "
     "it "
     "to --entry: the\npublisher adds both with datanet add. A server bound to a chain takes a "
     "list "
     "when every document is\nsigned. The datanet's id comes from its owner and the list's name, "
     "or "
     "is --datanet-id."},
    {"datanet check", "DIR", 1, 1, CHAIN, 0, verb_datanet_check,
     "verify texts, digests, rows, licences, signatures; find copies",
     "Everything that a server asks for, and all that is wrong at once, each with the way out. "
     "With\n"
     "--deployment the owners' signatures too. Exit code 1: there are findings."},
    {"datanet build", "DIR", 1, 1, B(MODEL) | B(MARKS), B(MODEL), verb_datanet_build,
     "leave copies out and write the rows to train on (training.json)",
     "--model is the base: rows are cut for its tokenizer. A document that says what an earlier "
     "one\n"
     "says is marked copyOf: it earns nothing of its own. Built again, the files are the same."},
    {"train", "DIR...", 1, VERB_TRAIN_DIRS_MAX,
     B(MODEL) | B(RANK) | B(ALPHA) | B(PEFT_CONFIG) | B(INIT) | B(LR) | B(SCHEDULE) | B(WARMUP) |
         B(WEIGHT_DECAY) | B(CLIP) | B(DROPOUT) | B(EPOCHS) | B(BATCH) | B(TOKENS) | B(SEED) |
         B(IN_ORDER) | B(MASK) | B(CHECKPOINT_STEPS) | B(DTYPE) | B(THREADS) | B(REPLACE) |
         B(EVAL) | B(EVAL_SHARE) | B(EVAL_STEPS) | B(PATIENCE) | PUBLISH,
     B(MODEL), verb_train, "train an adapter on the rows of a datanet, here",
     "DIR has the datanet's list, its texts and training.json (residual datanet build). The "
     "adapter\nis written beside them, as peft saves it, with train.json (how it was made) and "
     "loss.svg:\nthe folder can be served. Ended before its time it goes on where its state was "
     "kept\n(train.state), to the same bits. The same base, rows and options give the same "
     "adapterId.\nSeveral folders train in the same passes, each to what it becomes alone.\n"
     "With --server it is published there at once, as residual adapter publish does."},
    {"gradients", "DIR", 1, 1,
     B(MODEL) | B(ASKED) | B(PROJECT) | B(DAMPING) | B(OUT) | B(MASK) | B(TOKENS) | B(DTYPE) |
         B(THREADS),
     B(MODEL), verb_gradients, "what learning a row does to an answer: a second opinion, offline",
     "DIR has an adapter beside the datanet that it was trained on. Of every row and every answer "
     "of\n--asked the gradient is taken for each LoRA matrix; a row's score for an answer is "
     "theirs through\nthe inverse of the rows' Fisher, above 0 where the row made the answer "
     "likelier. Nobody is paid\nby it. --out has all that is needed to compute the scores again."},
    {"datanet value", "DIR|NAME", 1, 1,
     REMOTE | B(MODEL) | B(VERSION) | B(EVAL) | B(CHECK) | B(FOLDS) | B(SEEDS) | B(RANK) |
         B(ALPHA) | B(PEFT_CONFIG) | B(LR) | B(SCHEDULE) | B(WARMUP) | B(WEIGHT_DECAY) | B(CLIP) |
         B(DROPOUT) | B(EPOCHS) | B(BATCH) | B(TOKENS) | B(SEED) | B(IN_ORDER) | B(MASK) |
         B(DTYPE) | B(THREADS),
     0, verb_datanet_value, "measure what each contributor's rows are worth",
     "The adapter is trained on all rows of DIR and without each contributor's, with the options "
     "of\nresidual train. A contributor's worth is what held-out rows of the others cost more "
     "without his:\nof --eval, or of each part of the rows in turn. Written to DIR/value.json, "
     "which the same\ncommand makes again byte for byte; residual datanet publish brings it to a "
     "server, and\n--server shows what a server has of a datanet's NAME. --check measures a file "
     "again: exit code 1\nif it comes out otherwise."},
    {"datanet publish", "DIR", 1, 1,
     REMOTE | CHAIN | B(OWNER_KEY_FILE) | B(OWNER_PASSPHRASE_FILE) | B(DATANET_ID) | B(WAIT_S),
     B(SERVER), verb_datanet_publish,
     "register a version on chain (--rpc) and bring its list and texts to a server",
     "With --rpc the version in DIR is registered first, by --owner-key-file: the datanet, or its "
     "next\nversion. Then the list and the texts that the server lacks are sent. Repeating the "
     "command goes on\nwhere it stopped. A version that is on the chain stays as it is: the next "
     "change is of the next one."},
    {"datanet export", "DIR", 1, 1, B(CROISSANT) | B(SPDX), 0, verb_datanet_export,
     "write what a datanet is as Croissant 1.1 or SPDX 3.0.1",
     "Both name each document with its owner, licence, terms and digest. The texts stay where they "
     "are."},
    {"datanet withdraw", "DIR DOC_ID...", 2, CLI_OPERANDS_ANY, 0, 0, verb_datanet_withdraw,
     "the next version, without these documents",
     "Their texts are deleted. The version before stays in versions/, and what it earned is paid."},
    {"datanet show", "DIR|ID", 1, 1, REMOTE | CHAIN, 0, verb_datanet_show,
     "a datanet's roots, rows and documents: here, on a server, on the chain",
     "DIR is a datanet's folder. With --server, ID is a document root, a datanet's id, or "
     "ID/VERSION: what\nthe server holds. With --rpc, ID is a datanet's: the versions that are "
     "registered."},
    {"datanet uses", "DIR DOC_ID", 2, 2, B(ARCHIVE) | B(SETTLE), 0, verb_datanet_uses,
     "which adapters used a document, in which epochs",
     "The published epochs say which version of the datanet each adapter was registered with that "
     "paid\nanswers named; DIR says which versions have the document. A digest names one that was "
     "withdrawn."},
    {"claim", NULL, 0, 0, REWARDS | B(ACCOUNT) | B(KEY_FILE) | B(PASSPHRASE_FILE) | B(WAIT_S),
     B(KEY_FILE), verb_claim, "pay out what an account has earned",
     "Takes the newest active epoch, proves the account's amount from --archive or --settle, "
     "checks\n"
     "the proof against the root on the chain, and sends `claim`. Anyone may send it, for any\n"
     "--account: it (or the address it named for payouts) is paid, the key pays the gas. --settle\n"
     "URL alone says where the chain is, too. Exit code 4: nothing to claim."},
    {"rewards", "ACCOUNT", 1, 1, REWARDS, 0, verb_rewards,
     "what an account has earned, was paid, can claim and is still to get",
     "The claimable amount is proven against the chain. With --settle also what the worker's "
     "books\n"
     "say: pending amounts, and where the money came from by adapter, datanet and epoch."},
    {"audit epoch", "N", 1, 1, CHAIN | B(ARCHIVE), B(ARCHIVE), verb_audit_epoch,
     "recompute every batch and epoch up to N from the archive, the registry and the chain",
     "Exit code 0: everything agrees. 1: something does not; each finding is printed."},
    {"audit batch", "N", 1, 1, CHAIN | B(ARCHIVE), B(ARCHIVE), verb_audit_batch,
     "recompute one batch", NULL},
    {"audit attribution", "ID [INDEX_FILE...]", 1, CLI_OPERANDS_ANY, REMOTE, B(SERVER),
     verb_audit_attribution, "recompute every share of one answer from what the server logged",
     "Compares gains, shares, inputsDigest, indexHash, influenceHash and the signature of its "
     "record,\n"
     "and names each difference (exit code 1). Index files that are not given are asked of the "
     "server,\n"
     "which gives them to admin and worker keys."},
    {"receipt verify", "FILE|-", 1, 1, REMOTE | CHAIN, 0, verb_receipt_verify,
     "is this receipt, attribution or `residual` object signed, and by the lane's key?",
     "FILE holds what /v1/receipts or /v1/attribution answered, or a whole completion. A "
     "completion\n"
     "carries no record bytes: with --server the receipt is fetched, and the record checked too.\n"
     "With --rpc and --deployment the signer is compared with the lane's key on the chain."},
    {"lane show", "DATA_DIR", 1, 1, 0, 0, verb_lane_show,
     "the lanes of a server's data folder: what a ledger registers", NULL},
    {"lane tariff", "LANE", 1, 1,
     CHAIN | REMOTE | B(PRICE_IN) | B(PRICE_OUT) | B(KEY_FILE) | B(PASSPHRASE_FILE) | B(WAIT_S),
     B(SERVER), verb_lane_tariff,
     "what the base of a server costs on a lane; with new prices, change it",
     "The lane's operator sets it (--key-file). The first is in force after the Registry's lead, a "
     "change\nafter its notice; without one the base costs 0."},
    {"lane void", "LANE_DIR", 1, 1, B(UPTO) | B(YES) | B(REDIS_URL) | B(REDIS_PASSWORD_FILE), 0,
     verb_lane_void, "what a stopped server's lane lost; with --yes, sign void records for it",
     "LANE_DIR is the folder that `residual lane show` names. Every record that can still be read "
     "is\nkept, also behind the damage, and what the lane's stream holds is taken back from it "
     "(--redis-url;\na bound lane needs it with --yes: a void for a record that was shipped is a "
     "second signature).\nA damaged file stays beside the spool as NAME.damaged. --upto N when the "
     "chain knows numbers\nthat the spool does not hold."},
    {"vault fund", NULL, 0, 0,
     CHAIN | B(TO_BATCH) | B(ALL) | B(KEY_FILE) | B(PASSPHRASE_FILE) | B(WAIT_S), B(KEY_FILE),
     verb_vault_fund, "pay in what the answers earned",
     "Brings the vault up to what the batches up to N (--to-batch), or all final ones (--all), "
     "earned.\n"
     "A repeat pays nothing. The key must hold no role: it is refused if it does. Of a token, "
     "exactly\n"
     "the amount is approved, and the allowance goes back to 0. Exit code 4: nothing is owed."},
    {"vault status", NULL, 0, 0, CHAIN, 0, verb_vault_status,
     "what the vault holds, owes and is owed, and which accounts may do what", NULL},
    {"wallet new", "FILE", 1, 1, B(PASSPHRASE_FILE), 0, verb_wallet_new,
     "a fresh account in a new encrypted key file (version 3), mode 600; prints its address",
     "The passphrase is read from --passphrase-file or asked for twice at the terminal. Wallets "
     "import\nthe file; `residual claim --key-file` takes it. Without the passphrase nobody opens "
     "it again."},
    {"key new", "FILE", 1, 1, B(TYPE), B(TYPE), verb_key_new,
     "a fresh key in a new file of mode 600", NULL},
    {"key address", "FILE", 1, 1, B(PASSPHRASE_FILE), 0, verb_key_address,
     "address of a chain key, or public key of a publisher key", NULL},
    {"key hash", "FILE|-", 1, 1, 0, 0, verb_key_hash,
     "BLAKE2b-256 of an API key: the digest a server's api_keys holds", NULL},
};

static int usage(const char *word)
{
    fprintf(stderr, "residual: %s%s%s; residual --help lists the verbs\n",
            word ? "unknown verb '" : "no verb", word ? word : "", word ? "'" : "");
    return CLI_USAGE;
}

static bool is_help(const char *word)
{
    return !strcmp(word, "--help") || !strcmp(word, "-h") || !strcmp(word, "help");
}

/* "residual adapter --help": the verbs that begin so. */
static int print_group(const char *word)
{
    int shown = 0;
    size_t len = strlen(word);
    for (size_t i = 0; i < ARRAY_COUNT(verbs); i++) {
        if (strncmp(verbs[i].words, word, len) == 0 && verbs[i].words[len] == ' ') {
            if (shown++ > 0)
                puts("\n");
            args_print_verb(&verbs[i]);
        }
    }
    return shown;
}

int main(int argc, char **argv)
{
    struct cli c = {0};
    struct errtext err = ERRTEXT_INIT;
    const char **words = (const char **)argv + 1;
    int used = 0;
    signal(SIGPIPE, SIG_IGN);
    if (argc < 2)
        return usage(NULL);
    if (is_help(argv[1])) {
        args_print_all(verbs, ARRAY_COUNT(verbs));
        return CLI_FINE;
    }
    if (strcmp(argv[1], "--version") == 0) {
        puts("residual " RS_VERSION);
        return CLI_FINE;
    }
    const struct cli_verb *v = args_verb(verbs, ARRAY_COUNT(verbs), argc - 1, words, &used);
    if (!v && argc == 3 && is_help(argv[2]) && print_group(argv[1]))
        return CLI_FINE;
    if (!v)
        return usage(argv[1]);
    if (args_parse(&c, v, argc - 1 - used, words + used, &err))
        return cli_fail(&c, STATUS_INVALID, &err, NULL);
    if (cli_has(&c, OPT_HELP)) {
        args_print_verb(v);
        return CLI_FINE;
    }
    if (sodium_init() < 0) {
        fprintf(stderr, "residual: libsodium does not start on this machine\n");
        return CLI_OUTAGE;
    }
    enum status st = place_resolve(&c, &err);
    int code = st ? cli_fail(&c, st, &err, http_hint(st)) : v->run(&c);
    place_fini(&c);
    return code;
}
