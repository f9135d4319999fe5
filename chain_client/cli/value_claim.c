/* See value_claim.h. */
#include "chain_client/cli/value_claim.h"
#include "server/base/json.h"
#include "server/datanet/value_file.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static void put(struct value_claim *k, struct cli *c, enum cli_option o, const char *text)
{
    snprintf(k->text[o], sizeof(k->text[o]), "%s", text);
    c->value[o] = k->text[o];
}

static void put_int(struct value_claim *k, struct cli *c, enum cli_option o, int64_t v)
{
    char text[32];
    snprintf(text, sizeof(text), "%" PRId64, v);
    put(k, c, o, text);
}

static void take_numbers(struct value_claim *k, struct cli *c, struct json_reader *r)
{
    static const struct {
        enum cli_option option;
        const char *key;
    } real[] = {{OPT_LR, "learningRate"},
                {OPT_WEIGHT_DECAY, "weightDecay"},
                {OPT_CLIP, "clip"},
                {OPT_DROPOUT, "dropout"}},
      count[] = {{OPT_EPOCHS, "epochs"}, {OPT_BATCH, "batch"}, {OPT_TOKENS, "tokens"}},
      word[] = {{OPT_SCHEDULE, "schedule"}, {OPT_MASK, "mask"}, {OPT_DTYPE, "computedIn"}};
    char text[32];
    for (size_t i = 0; i < sizeof(real) / sizeof(real[0]); i++) {
        snprintf(text, sizeof(text), "%.17g", json_need_num(r, real[i].key, 0, 1e9));
        put(k, c, real[i].option, text);
    }
    for (size_t i = 0; i < sizeof(count) / sizeof(count[0]); i++)
        put_int(k, c, count[i].option,
                json_need_int(r, count[i].key, (struct json_range){1, INT32_MAX}));
    for (size_t i = 0; i < sizeof(word) / sizeof(word[0]); i++)
        put(k, c, word[i].option, json_need_string(r, word[i].key));
    if (json_has(r, "warmup"))
        put_int(k, c, OPT_WARMUP, json_need_int(r, "warmup", (struct json_range){0, INT32_MAX}));
    if (!json_read_bool(r, "shuffle", true))
        c->value[OPT_IN_ORDER] = "";
}

static void take_seeds(struct value_claim *k, struct cli *c, struct json_reader *r)
{
    const json_t *seeds = json_need_list(r, "seeds", VALUE_SEEDS_MAX);
    put_int(k, c, OPT_FOLDS, json_need_int(r, "folds", (struct json_range){2, VALUE_FOLDS_MAX}));
    put_int(k, c, OPT_SEEDS, (int64_t)json_array_size(seeds));
    put_int(k, c, OPT_SEED, json_integer_value(json_array_get(seeds, 0)));
}

/* What the file fixes is not given beside it. */
static enum status check_alone(const struct cli *c, struct errtext *err)
{
    static const enum cli_option fixed[] = {
        OPT_LR,     OPT_WEIGHT_DECAY, OPT_CLIP, OPT_DROPOUT, OPT_EPOCHS,      OPT_BATCH,
        OPT_TOKENS, OPT_SCHEDULE,     OPT_MASK, OPT_DTYPE,   OPT_WARMUP,      OPT_FOLDS,
        OPT_SEEDS,  OPT_SEED,         OPT_RANK, OPT_ALPHA,   OPT_PEFT_CONFIG, OPT_IN_ORDER};
    for (size_t i = 0; i < sizeof(fixed) / sizeof(fixed[0]); i++) {
        if (cli_has(c, fixed[i]))
            return err_set(err, STATUS_INVALID,
                           "--check takes the options of training from its file: give --model and, "
                           "where a datanet judges, --eval alone");
    }
    return STATUS_OK;
}

enum status value_claim_take(struct value_claim *k, struct cli *c, const char *path,
                             struct buf *config, struct errtext *err)
{
    enum status st = check_alone(c, err);
    if (!st)
        st = json_doc_load(&k->json, path, VALUE_BYTES_MAX, 0, err);
    if (st)
        return st;
    struct json_reader r = {.obj = k->json, .where = path, .err = err};
    const char *format = json_need_string(&r, "format");
    if (!r.st && strcmp(format, VALUE_FORMAT) != 0)
        json_fail(&r, STATUS_INVALID, "format", "found '%.40s', expected " VALUE_FORMAT, format);
    if (!r.st && json_has(&r, "eval") != cli_has(c, OPT_EVAL))
        json_fail(&r, STATUS_INVALID, "eval",
                  cli_has(c, OPT_EVAL) ? "it was judged by parts of its own rows: leave --eval out"
                                       : "a datanet judged: give its folder as --eval DIR");
    take_seeds(k, c, &r);
    struct json_reader o = json_enter(&r, "options");
    take_numbers(k, c, &o);
    buf_puts(config, json_need_string(&o, "adapter"));
    return r.st;
}

void value_claim_fini(struct value_claim *k)
{
    json_decref(k->json);
}

void value_claim_compare(const struct value_claim *k, const struct buf *measured,
                         struct buf *fields)
{
    const char *key;
    json_t *is, *other = NULL;
    size_t first = fields->len;
    if (json_doc_parse(&other, VALUE_FILE, measured->data, measured->len, 0, NULL))
        buf_puts(fields, "format");
    json_object_foreach(other, key, is)
    {
        if (strcmp(key, "program") != 0 && !json_equal(is, json_object_get(k->json, key)))
            buf_printf(fields, "%s%s", fields->len > first ? ", " : "", key);
    }
    json_decref(other);
}
