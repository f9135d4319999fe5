/* See train_setup.h. */
#include "chain_client/cli/train_setup.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/json.h"
#include "server/base/mem.h"
#include "server/datanet/training_split.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define TOKENS_STANDARD 1024 /* of a pass, where rows are shorter */
#define TOKENS_MAX      65536

/* ---- options ---- */

static enum status read_count(const struct cli *c, enum cli_option o, uint64_t most,
                              uint64_t standard, uint32_t *value, struct errtext *err)
{
    uint64_t range[2] = {1, most}, v;
    enum status st = args_number(c, o, range, standard, &v, err);
    *value = (uint32_t)v;
    return st;
}

static enum status read_schedule(struct train_setup *s, struct errtext *err)
{
    const char *name = s->c->value[OPT_SCHEDULE];
    s->opt.optim.schedule = OPTIM_LINEAR;
    if (name && !optim_schedule_parse(&s->opt.optim.schedule, name))
        return err_set(err, STATUS_INVALID,
                       "--schedule: found '%s', expected constant, linear or cosine", name);
    return STATUS_OK;
}

static enum status read_mask(struct train_setup *s, struct errtext *err)
{
    const char *name = s->c->value[OPT_MASK];
    if (name && !row_mask_parse(&s->opt.mask, name))
        return err_set(err, STATUS_INVALID,
                       "--mask: found '%s', expected all, completion or assistant", name);
    return STATUS_OK;
}

enum status train_setup_options(struct train_setup *s, struct errtext *err)
{
    const struct cli *c = s->c;
    struct train_options *o = &s->opt;
    uint64_t any[2] = {0, INT64_MAX};
    *o = (struct train_options){
        .optim = {.lr = 2e-4, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .clip = 1},
        .shuffle = !cli_has(c, OPT_IN_ORDER)};
    enum status st = args_real(c, OPT_LR, 10, &o->optim.lr, err);
    if (!st)
        st = args_real(c, OPT_WEIGHT_DECAY, 1, &o->optim.weight_decay, err);
    if (!st)
        st = args_real(c, OPT_CLIP, 1e9, &o->optim.clip, err);
    if (!st)
        st = args_real(c, OPT_DROPOUT, 1, &o->dropout, err);
    if (!st)
        st = read_count(c, OPT_EPOCHS, 10000, 3, &o->epochs, err);
    if (!st)
        st = read_count(c, OPT_BATCH, 4096, 8, &o->batch, err);
    if (!st)
        st = args_number(c, OPT_SEED, any, 0, &o->seed, err);
    if (!st)
        st = args_real(c, OPT_EVAL_SHARE, 1, &s->eval_share, err);
    if (!st)
        st = read_mask(s, err);
    return st ? st : read_schedule(s, err);
}

enum status train_setup_warmup(const struct train_setup *s, uint32_t rows, uint32_t *warmup,
                               struct errtext *err)
{
    uint64_t v, range[2] = {0, TRAIN_STEPS_MAX};
    uint64_t standard = train_warmup(&s->opt, rows, TRAIN_WARMUP_PERCENT);
    enum status st = args_number(s->c, OPT_WARMUP, range, standard, &v, err);
    *warmup = st ? 0 : (uint32_t)v;
    return st;
}

enum status train_setup_tokens(struct train_setup *s, uint32_t longest, struct errtext *err)
{
    uint32_t pass = longest > TOKENS_STANDARD ? longest : TOKENS_STANDARD;
    if (pass > s->model->config.pos_max)
        pass = s->model->config.pos_max;
    return read_count(s->c, OPT_TOKENS, TOKENS_MAX, pass, &s->opt.tokens, err);
}

/* ---- the base ---- */

enum status train_setup_base(struct train_setup *s, struct errtext *err)
{
    struct backend_options bo = {.name = "cpu", .deterministic = true};
    struct model_options mo = {.dtype = DTYPE_CHOICE_AUTO, .id_cache_dir = ""};
    const char *dtype = s->c->value[OPT_DTYPE];
    uint64_t range[2] = {0, 256}, threads;
    enum status st = args_number(s->c, OPT_THREADS, range, 0, &threads, err);
    bo.thread_count = st ? 0 : (uint32_t)threads;
    if (!st && dtype && strcmp(dtype, "f32") != 0 && strcmp(dtype, "bf16") != 0)
        st = err_set(err, STATUS_INVALID, "--dtype: found '%s', expected f32 or bf16", dtype);
    if (!st && dtype)
        mo.dtype = dtype[0] == 'f' ? DTYPE_CHOICE_F32 : DTYPE_CHOICE_BF16;
    if (!st)
        st = backend_create(&s->backend, &bo, err);
    if (!st) {
        mo.cpu_has_bf16 = s->backend->has_bf16;
        st = model_load(&s->model, s->c->value[OPT_MODEL], &mo, err);
    }
    if (!st)
        s->resident = resident_create_own(s->model, s->backend);
    s->base = (struct train_base){s->model, s->backend, s->resident};
    return st;
}

void train_setup_fini(struct train_setup *s)
{
    resident_destroy(s->resident);
    model_free(s->model);
    backend_destroy(s->backend);
}

/* ---- rows ---- */

/* The rows that are held out already, or are to be. They stay in training.json until the adapter is
 * written: it says what the one beside it was trained on. */
static enum status hold_out(struct train_source *t, const struct train_setup *s,
                            struct errtext *err)
{
    struct training *held = NULL, *all = NULL;
    struct training_split split = {0};
    struct errtext why = ERRTEXT_INIT; /* there is none, or of rows that are no more */
    enum status st = STATUS_OK;
    if (!training_load_as(&held, t->datanet, TRAINING_HELD_FILE, &why))
        st = training_join(&all, t->training, held, t->datanet, err);
    if (!st)
        st = training_split(&split, all ? all : t->training, t->datanet, s->eval_share, s->opt.seed,
                            err);
    bool same = !st && held && split.learned->n == t->training->n &&
                memcmp(split.held->digest, held->digest, 32) == 0;
    if (!st && !same) {
        training_free(t->training);
        t->training = split.learned;
        split.learned = NULL;
    }
    t->held = split.held;
    training_free(split.learned);
    training_free(held);
    training_free(all);
    return st;
}

static enum status read_rows(struct train_source *t, const struct train_setup *s,
                             struct errtext *err)
{
    enum status st =
        training_rows_read(&t->rows, t->datanet, t->training, s->model, s->opt.mask, NULL, err);
    if (!st && t->held)
        st = training_rows_read(&t->held_rows, t->datanet, t->held, s->model, s->opt.mask, NULL,
                                err);
    return st;
}

enum status train_source_open(struct train_source *out, const struct train_setup *s,
                              const char *dir, struct errtext *err)
{
    const char *base = s->c->value[OPT_MODEL];
    struct errtext why = ERRTEXT_INIT;
    *out = (struct train_source){0};
    enum status st = datanet_open(&out->datanet, dir, NULL, err);
    if (st)
        return st;
    st = training_load(&out->training, out->datanet, &why);
    if (st == STATUS_NOT_FOUND)
        return err_set(err, st,
                       "%s: no " TRAINING_FILE "; residual datanet build %s --model %s makes it",
                       dir, dir, base);
    if (st)
        return err_set(err, st, "%s", why.text);
    if (memcmp(out->training->tokenizer_digest, s->model->tokenizer_digest, 32) != 0)
        st = err_set(err, STATUS_INVALID,
                     "%s/" TRAINING_FILE ": tokenizerDigest is of another base than %s", dir, base);
    if (!st)
        st = s->eval_share > 0 ? hold_out(out, s, err) : STATUS_OK;
    if (!st)
        st = read_rows(out, s, err);
    if (!st && out->rows.cut)
        cli_note(s->c, "%u rows are longer than %d tokens: what follows is not learned",
                 out->rows.cut, ROW_TOKENS_MAX);
    if (!st && out->rows.idle)
        cli_note(s->c, "%u of %u rows have nothing to learn (--mask %s)", out->rows.idle,
                 out->rows.n, row_mask_name(s->opt.mask));
    return st;
}

void train_source_close(struct train_source *t)
{
    training_rows_fini(&t->rows);
    training_rows_fini(&t->held_rows);
    training_free(t->held);
    training_free(t->training);
    datanet_release(t->datanet);
}

static uint64_t longest_of(const struct training_rows *r)
{
    uint64_t longest = 0;
    for (uint32_t i = 0; i < r->n; i++) {
        uint64_t n = r->begin[i + 1] - r->begin[i];
        longest = n > longest ? n : longest;
    }
    return longest;
}

uint32_t train_source_longest(const struct train_source *t)
{
    uint64_t a = longest_of(&t->rows), b = longest_of(&t->held_rows);
    return (uint32_t)(a > b ? a : b);
}

/* ---- the adapter ---- */

static enum status make_config(struct train_setup *s, struct buf *out, struct errtext *err)
{
    struct train_config config = {.base = s->c->value[OPT_MODEL], .dropout = s->opt.dropout};
    enum status st = read_count(s->c, OPT_RANK, 1024, 16, &config.rank, err);
    config.alpha = 2.0 * config.rank;
    if (!st)
        st = args_real(s->c, OPT_ALPHA, 65536, &config.alpha, err);
    if (!st)
        train_config_put(out, &config);
    return st;
}

/* The file's lora_dropout is what is trained with. */
static enum status read_dropout(struct train_setup *s, const char *config, size_t len,
                                struct errtext *err)
{
    json_t *json;
    enum status st = json_doc_parse(&json, "adapter_config.json", config, len, 0, err);
    if (st)
        return st;
    double p = json_number_value(json_object_get(json, "lora_dropout"));
    json_decref(json);
    if (cli_has(s->c, OPT_DROPOUT) && fabs(s->opt.dropout - p) > 0)
        return err_set(err, STATUS_INVALID, "--dropout: found %g, lora_dropout of %s is %g",
                       s->opt.dropout, s->c->value[OPT_PEFT_CONFIG], p);
    s->opt.dropout = p;
    return STATUS_OK;
}

enum status train_setup_config(struct train_setup *s, struct buf *out, struct errtext *err)
{
    char *given = NULL;
    size_t len = 0;
    if (!cli_has(s->c, OPT_PEFT_CONFIG))
        return make_config(s, out, err);
    enum status st =
        file_read(s->c->value[OPT_PEFT_CONFIG], TRAIN_CONFIG_BYTES_MAX, &given, &len, err);
    if (!st)
        st = read_dropout(s, given, len, err);
    if (!st)
        buf_put(out, given, len);
    mem_free(given);
    return st;
}
