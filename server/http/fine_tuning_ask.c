/* The body of POST /v1/fine_tuning/jobs. OpenAI's three hyperparameters stand at the top or, with
 * ours, in method.supervised; one that is not known is refused by name, for training that ignores
 * what was asked is dearer than an answer. */
#include "server/base/check.h"
#include "server/base/json.h"
#include "server/base/mem.h"
#include "server/http/fine_tuning.h"
#include "server/http/state.h"
#include "server/train/train_config.h"

#include <inttypes.h>
#include <math.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>

#define METADATA_MAX       16
#define METADATA_KEY_MAX   64
#define METADATA_VALUE_MAX 512
#define MODULES_MAX        7
#define EPOCHS_MAX         10000
#define BATCH_MAX          4096
#define RANK_MAX           1024
/* auto: a narrow base takes a larger step, as 0.78th power of its width; 2e-4 at 2048 */
#define RATE_STANDARD 2e-4
#define RATE_WIDTH    2048.0
#define RATE_POWER    0.78
/* auto: batches of a sixteenth of the rows, and epochs until about so many rows were read */
#define AUTO_BATCHES       16u
#define AUTO_BATCH_MAX     16u
#define AUTO_ROWS          5000u
#define AUTO_EPOCHS_FEWEST 3u
#define AUTO_EPOCHS_MOST   25u

static double standard_rate(const struct exchange *x)
{
    return RATE_STANDARD * pow(RATE_WIDTH / x->server->deps.model->config.d_model, RATE_POWER);
}

/* ---- hyperparameters ---- */

static void check_keys(struct json_reader *r, const char *const *known, size_t n)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)r->obj, key, value)
    {
        size_t i = 0;
        while (i < n && strcmp(known[i], key) != 0)
            i++;
        if (i == n && !json_is_null(value))
            json_fail(r, STATUS_UNSUPPORTED, key, "found a field that is not known here");
    }
}

/* "auto", and absent, which is the same. */
static bool is_auto(struct json_reader *r, const char *key)
{
    const json_t *v = r->obj ? json_field(r->obj, key) : NULL;
    return !v || (json_is_string(v) && strcmp(json_string_value(v), "auto") == 0);
}

static void read_openais(struct tune_ask *a, struct json_reader *r, double standard)
{
    struct train_options *t = &a->train;
    a->auto_epochs = is_auto(r, "n_epochs");
    a->auto_batch = is_auto(r, "batch_size");
    a->auto_rate = is_auto(r, "learning_rate_multiplier");
    a->multiplier = 1;
    if (!a->auto_epochs)
        t->epochs = (uint32_t)json_need_int(r, "n_epochs", (struct json_range){1, EPOCHS_MAX});
    if (!a->auto_batch)
        t->batch = (uint32_t)json_need_int(r, "batch_size", (struct json_range){1, BATCH_MAX});
    if (!a->auto_rate)
        a->multiplier = json_need_num(r, "learning_rate_multiplier", 1e-6, 1e6);
    t->optim.lr = standard * a->multiplier;
}

static void read_optim(struct tune_ask *a, struct json_reader *r, double standard)
{
    struct optim_options *o = &a->train.optim;
    const char *schedule = json_read_string(r, "schedule");
    double ratio = json_read_num(r, "warmup_ratio", 0, 1, 0.03);
    if (json_has(r, "learning_rate") && !a->auto_rate)
        json_fail(r, STATUS_INVALID, "learning_rate",
                  "found beside learning_rate_multiplier, expected one of them");
    o->lr = json_read_num(r, "learning_rate", 1e-12, 10, o->lr);
    a->multiplier = json_has(r, "learning_rate") ? o->lr / standard : a->multiplier;
    o->weight_decay = json_read_num(r, "weight_decay", 0, 1, 0);
    o->clip = json_read_num(r, "max_grad_norm", 0, 1e9, 1);
    a->warmup_percent = (uint32_t)lround(100 * ratio);
    o->schedule = OPTIM_LINEAR;
    if (schedule && !optim_schedule_parse(&o->schedule, schedule))
        json_fail(r, STATUS_INVALID, "schedule",
                  "found \"%.40s\", expected constant, linear or cosine", schedule);
}

/* OpenAI's jobs learn what the assistant says; of a text there is all to learn. */
static void read_mask(struct tune_ask *a, struct json_reader *r)
{
    const char *mask = json_read_string(r, "mask");
    a->train.mask = ROW_MASK_ASSISTANT;
    if (mask && !row_mask_parse(&a->train.mask, mask))
        json_fail(r, STATUS_INVALID, "mask",
                  "found \"%.40s\", expected all, completion or assistant", mask);
}

/* ---- the adapter ---- */

static void read_new_config(struct tune_ask *a, struct json_reader *r, const char *base)
{
    const char *module[MODULES_MAX];
    const json_t *v = r->obj ? json_field(r->obj, "modules") : NULL;
    bool named = v && !(json_is_string(v) && strcmp(json_string_value(v), "all-linear") == 0);
    const json_t *list = named ? json_need_list(r, "modules", MODULES_MAX) : NULL;
    struct train_config c = {.base = base, .modules = (uint32_t)json_array_size(list)};
    c.rank = (uint32_t)json_read_int(r, "rank", (struct json_range){1, RANK_MAX}, 16);
    c.alpha = json_read_num(r, "alpha", 1e-6, 65536, 2.0 * c.rank);
    c.dropout = a->train.dropout = json_read_num(r, "lora_dropout", 0, 0.9, 0);
    if (named && c.modules == 0)
        json_fail(r, STATUS_INVALID, "modules",
                  "found none, expected \"all-linear\" or a list such as [\"q_proj\", \"v_proj\"]");
    for (uint32_t i = 0; i < c.modules; i++) {
        module[i] = json_string_value(json_array_get(list, i));
        if (!module[i])
            json_fail(r, STATUS_INVALID, "modules", "item %u: expected a module's name", i);
    }
    c.module = c.modules ? module : NULL;
    if (!r->st)
        train_config_put(&a->config, &c);
}

static void read_peft_config(struct tune_ask *a, struct json_reader *r)
{
    static const char *const instead[] = {"rank", "alpha", "modules", "lora_dropout"};
    struct json_reader peft = json_enter(r, "peft_config");
    for (size_t i = 0; i < ARRAY_COUNT(instead); i++) {
        if (json_has(r, instead[i]))
            json_fail(r, STATUS_INVALID, instead[i], "found beside peft_config, which says it");
    }
    a->train.dropout = json_read_num(&peft, "lora_dropout", 0, 0.9, 0);
    char *text = r->st || !peft.obj ? NULL : json_dumps(peft.obj, JSON_INDENT(2));
    if (text)
        buf_puts(&a->config, text);
    mem_free(text);
}

static void read_hyperparameters(struct tune_ask *a, struct json_reader *r,
                                 const struct exchange *x, bool ours)
{
    static const char *const known[] = {"n_epochs",      "batch_size",   "learning_rate_multiplier",
                                        "learning_rate", "schedule",     "rank",
                                        "warmup_ratio",  "weight_decay", "max_grad_norm",
                                        "mask",          "alpha",        "modules",
                                        "lora_dropout",  "shuffle",      "peft_config"};
    check_keys(r, known, ours ? ARRAY_COUNT(known) : 3);
    read_openais(a, r, standard_rate(x));
    read_optim(a, r, standard_rate(x));
    read_mask(a, r);
    a->train.shuffle = json_read_bool(r, "shuffle", true);
    if (json_has(r, "peft_config"))
        read_peft_config(a, r);
    else
        read_new_config(a, r, x->server->opt.model_path);
}

/* ---- the rest of the body ---- */

static void read_method(struct tune_ask *a, struct json_reader *r, const struct exchange *x)
{
    static const char *const of_method[] = {"type", "supervised"};
    static const char *const of_supervised[] = {"hyperparameters"};
    bool at_top = json_has(r, "hyperparameters");
    struct json_reader method = json_enter(r, "method");
    const char *type = method.obj ? json_need_string(&method, "type") : "supervised";
    if (!r->st && strcmp(type, "supervised") != 0) {
        json_fail(&method, STATUS_UNSUPPORTED, "type",
                  "found \"%.40s\", expected supervised, the method there is", type);
        return;
    }
    if (method.obj)
        check_keys(&method, of_method, ARRAY_COUNT(of_method));
    struct json_reader supervised = json_enter(&method, "supervised");
    if (supervised.obj)
        check_keys(&supervised, of_supervised, ARRAY_COUNT(of_supervised));
    bool in_method = json_has(&supervised, "hyperparameters");
    if (at_top && in_method)
        json_fail(r, STATUS_INVALID, "hyperparameters",
                  "found here and in method.supervised, expected one of them");
    struct json_reader h = json_enter(in_method ? &supervised : r, "hyperparameters");
    read_hyperparameters(a, &h, x, in_method);
}

static void read_metadata(struct tune_ask *a, struct json_reader *r)
{
    struct json_reader m = json_enter(r, "metadata");
    const char *key;
    json_t *value;
    a->metadata = m.obj;
    if (json_object_size(m.obj) > METADATA_MAX)
        json_fail(r, STATUS_INVALID, "metadata", "found %zu pairs, at most %d are kept",
                  json_object_size(m.obj), METADATA_MAX);
    json_object_foreach((json_t *)m.obj, key, value)
    {
        if (strlen(key) > METADATA_KEY_MAX || !json_is_string(value) ||
            json_string_length(value) > METADATA_VALUE_MAX)
            json_fail(r, STATUS_INVALID, "metadata",
                      "expected keys of at most %d bytes with strings of at most %d, found "
                      "\"%.64s\"",
                      METADATA_KEY_MAX, METADATA_VALUE_MAX, key);
    }
}

static void read_suffix(struct tune_ask *a, struct json_reader *r)
{
    a->suffix = json_read_string(r, "suffix");
    if (a->suffix && (!*a->suffix || strlen(a->suffix) > TUNE_SUFFIX_MAX))
        json_fail(r, STATUS_INVALID, "suffix", "expected 1 to %d characters", TUNE_SUFFIX_MAX);
}

static void read_seed(struct tune_ask *a, struct json_reader *r)
{
    uint32_t drawn = randombytes_uniform(INT32_MAX);
    a->train.seed = (uint64_t)json_read_int(r, "seed", (struct json_range){0, INT64_MAX}, drawn);
}

enum status tune_ask_read(struct tune_ask *a, const struct exchange *x, const json_t *root,
                          struct errtext *err)
{
    struct json_reader r = {.obj = root, .err = err};
    const char *base = x->server->opt.model_name;
    *a = (struct tune_ask){.train.optim = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8}};
    buf_init(&a->config, TRAIN_CONFIG_BYTES_MAX);
    const char *model = json_need_string(&r, "model");
    a->training_file = json_need_string(&r, "training_file");
    a->validation_file = json_read_string(&r, "validation_file");
    const json_t *integrations = json_read_list(&r, "integrations", 16);
    if (json_array_size(integrations) > 0)
        json_fail(&r, STATUS_UNSUPPORTED, "integrations", "found some, expected none");
    read_suffix(a, &r);
    read_seed(a, &r);
    read_metadata(a, &r);
    if (!r.st)
        read_method(a, &r, x);
    if (!r.st && strcmp(model, base) != 0)
        return err_coded(err, STATUS_NOT_FOUND, "model_not_found", "model",
                         "model: found '%.100s', expected '%s', the base that is trained here",
                         model, base);
    if (!r.st && a->config.failed)
        return err_set(err, STATUS_NO_MEMORY, "there is no memory for the adapter's configuration");
    return r.st;
}

void tune_ask_settle(struct tune_ask *a, uint32_t rows)
{
    uint32_t batch = MIN(MAX(rows / AUTO_BATCHES, 1u), AUTO_BATCH_MAX);
    uint32_t epochs = rows ? (AUTO_ROWS + rows - 1) / rows : AUTO_EPOCHS_MOST;
    if (a->auto_batch)
        a->train.batch = batch;
    if (a->auto_epochs)
        a->train.epochs = MIN(MAX(epochs, AUTO_EPOCHS_FEWEST), AUTO_EPOCHS_MOST);
}

static json_t *shown_hyperparameters(const struct tune_ask *a)
{
    const struct train_options *t = &a->train;
    json_t *config = json_loadb(a->config.data, a->config.len, 0, NULL);
    return json_pack("{si si sf sf ss sf sf sf ss sb so}", "n_epochs", (int)t->epochs, "batch_size",
                     (int)t->batch, "learning_rate_multiplier", a->multiplier, "learning_rate",
                     t->optim.lr, "schedule", optim_schedule_name(t->optim.schedule),
                     "warmup_ratio", a->warmup_percent / 100.0, "weight_decay",
                     t->optim.weight_decay, "max_grad_norm", t->optim.clip, "mask",
                     row_mask_name(t->mask), "shuffle", (int)t->shuffle, "peft_config", config);
}

json_t *tune_ask_note(const struct tune_ask *a, const struct exchange *x)
{
    return json_pack("{ss ss ss? ss? sO? so}", "model", x->server->opt.model_name, "training_file",
                     a->training_file, "validation_file", a->validation_file, "suffix", a->suffix,
                     "metadata", a->metadata, "hyperparameters", shown_hyperparameters(a));
}

void tune_ask_fini(struct tune_ask *a)
{
    buf_fini(&a->config);
}
