/* residual train DIR... --model BASE: the rows of each training manifest become an adapter
 * in the same folder, without a server; of several folders in the same passes, each to the bits
 * that it has alone. It says how it goes on stderr, keeps its state every few steps, and goes on
 * from there when it is called again. */
#include "chain_client/cli/cli.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/file.h"
#include "server/base/json.h"
#include "server/base/mem.h"
#include "server/train/train_output.h"

#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define CONFIG_BYTES_MAX (1u << 20)
#define TOKENS_STANDARD  1024 /* of a pass, where rows are shorter */
#define TOKENS_MAX       65536
#define SAY_NS           1000000000ull

struct training_run { /* of a folder */
    const char *dir;
    struct datanet *datanet;
    struct training *training;
    struct training_rows rows;
    struct train_lora lora;
    struct train_options opt;
    struct trainer *trainer;
    struct train_report report;
    uint8_t what[32], id[32];
    char state[PATH_MAX];
    enum status st; /* of its steps */
    struct errtext err;
};
struct training_runs {
    struct cli *c;
    struct model *model;
    struct backend *backend;
    struct resident *resident;
    struct train_options opt; /* as they were given */
    struct train_pass *pass;
    struct training_run *run; /* [n] */
    uint32_t n;
    /* steps */
    uint64_t checkpoint_steps, begin_ns, said_ns, tokens, steps, all, first;
};

/* ---- options ---- */

static enum status read_count(const struct cli *c, enum cli_option o, uint64_t most,
                              uint64_t standard, uint32_t *value, struct errtext *err)
{
    uint64_t range[2] = {1, most}, v;
    enum status st = args_number(c, o, range, standard, &v, err);
    *value = (uint32_t)v;
    return st;
}

static enum status read_schedule(struct training_runs *a, struct errtext *err)
{
    const char *name = a->c->value[OPT_SCHEDULE];
    a->opt.optim.schedule = OPTIM_LINEAR;
    if (name && !optim_schedule_parse(&a->opt.optim.schedule, name))
        return err_set(err, STATUS_INVALID,
                       "--schedule: found '%s', expected constant, linear or cosine", name);
    return STATUS_OK;
}

static enum status read_options(struct training_runs *a, struct errtext *err)
{
    const struct cli *c = a->c;
    struct train_options *o = &a->opt;
    uint64_t any[2] = {0, INT64_MAX}, some[2] = {0, TRAIN_STEPS_MAX};
    *o = (struct train_options){
        .optim = {.lr = 2e-4, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .clip = 1},
        .shuffle = !cli_has(c, OPT_IN_ORDER),
        .completion_only = cli_has(c, OPT_COMPLETION_ONLY)};
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
        st = args_number(c, OPT_CHECKPOINT_STEPS, some, 50, &a->checkpoint_steps, err);
    return st ? st : read_schedule(a, err);
}

/* What depends on how many rows there are, and how long they are. */
static enum status fit_warmup(struct training_runs *a, struct training_run *r, struct errtext *err)
{
    uint64_t warmup, range[2] = {0, TRAIN_STEPS_MAX};
    uint64_t steps = (uint64_t)((r->rows.n + r->opt.batch - 1) / r->opt.batch) * r->opt.epochs;
    enum status st = args_number(a->c, OPT_WARMUP, range, (steps * 3 + 99) / 100, &warmup, err);
    r->opt.optim.warmup = st ? 0 : (uint32_t)warmup;
    return st;
}

static enum status fit_tokens(struct training_runs *a, struct errtext *err)
{
    uint64_t longest = TOKENS_STANDARD;
    for (uint32_t k = 0; k < a->n; k++) {
        const struct training_rows *rows = &a->run[k].rows;
        for (uint32_t i = 0; i < rows->n; i++)
            longest = MAX(longest, rows->begin[i + 1] - rows->begin[i]);
    }
    uint64_t pass = MIN(longest, (uint64_t)a->model->config.pos_max);
    return read_count(a->c, OPT_TOKENS, TOKENS_MAX, pass, &a->opt.tokens, err);
}

/* ---- what is trained, and on what ---- */

static enum status open_base(struct training_runs *a, struct errtext *err)
{
    struct backend_options bo = {.name = "cpu", .deterministic = true};
    struct model_options mo = {.dtype = DTYPE_CHOICE_AUTO, .id_cache_dir = ""};
    const char *dtype = a->c->value[OPT_DTYPE];
    uint64_t range[2] = {0, 256}, threads;
    enum status st = args_number(a->c, OPT_THREADS, range, 0, &threads, err);
    bo.thread_count = st ? 0 : (uint32_t)threads;
    if (!st && dtype && strcmp(dtype, "f32") != 0 && strcmp(dtype, "bf16") != 0)
        st = err_set(err, STATUS_INVALID, "--dtype: found '%s', expected f32 or bf16", dtype);
    if (!st && dtype)
        mo.dtype = dtype[0] == 'f' ? DTYPE_CHOICE_F32 : DTYPE_CHOICE_BF16;
    if (!st)
        st = backend_create(&a->backend, &bo, err);
    if (!st) {
        mo.cpu_has_bf16 = a->backend->has_bf16;
        st = model_load(&a->model, a->c->value[OPT_MODEL], &mo, err);
    }
    return st ? st : resident_create(&a->resident, a->model, a->backend, NULL, err);
}

static enum status open_rows(const struct training_runs *a, struct training_run *r,
                             struct errtext *err)
{
    const char *base = a->c->value[OPT_MODEL];
    struct errtext why = ERRTEXT_INIT;
    enum status st = datanet_open(&r->datanet, r->dir, NULL, err);
    if (st)
        return st;
    st = training_load(&r->training, r->datanet, &why);
    if (st == STATUS_NOT_FOUND)
        return err_set(err, st,
                       "%s: no " TRAINING_FILE "; residual datanet build %s --model %s makes it",
                       r->dir, r->dir, base);
    if (st)
        return err_set(err, st, "%s", why.text);
    if (memcmp(r->training->tokenizer_digest, a->model->tokenizer_digest, 32) != 0)
        st = err_set(err, STATUS_INVALID,
                     "%s/" TRAINING_FILE ": tokenizerDigest is of another base than %s", r->dir,
                     base);
    if (!st)
        st = training_rows_read(&r->rows, r->datanet, r->training, a->model, NULL, err);
    if (!st && r->rows.cut)
        cli_note(a->c, "%u rows are longer than %d tokens: what follows is not learned",
                 r->rows.cut, ROW_TOKENS_MAX);
    return st;
}

/* As peft's LoraConfig would write it, all linear modules. */
static enum status make_config(struct training_runs *a, struct buf *out, struct errtext *err)
{
    char base[PATH_MAX];
    uint32_t rank;
    double alpha;
    enum status st = read_count(a->c, OPT_RANK, 1024, 16, &rank, err);
    alpha = 2.0 * rank;
    if (!st)
        st = args_real(a->c, OPT_ALPHA, 65536, &alpha, err);
    snprintf(base, sizeof(base), "%s", a->c->value[OPT_MODEL]);
    const char *name = basename(base);
    buf_puts(out, "{\n  \"base_model_name_or_path\": ");
    buf_put_json_string(out, name, strlen(name));
    buf_printf(out,
               ",\n  \"bias\": \"none\",\n  \"fan_in_fan_out\": false,\n  \"inference_mode\": "
               "true,\n  \"lora_alpha\": %.17g,\n  \"lora_dropout\": %.17g,\n  \"peft_type\": "
               "\"LORA\",\n  \"r\": %u,\n  \"target_modules\": [\"down_proj\", \"gate_proj\", "
               "\"k_proj\", \"o_proj\", \"q_proj\", \"up_proj\", \"v_proj\"],\n  \"task_type\": "
               "\"CAUSAL_LM\",\n  \"use_rslora\": false\n}\n",
               alpha, a->opt.dropout, rank);
    return st;
}

/* The file's lora_dropout is what is trained with. */
static enum status read_dropout(struct training_runs *a, const char *config, size_t len,
                                struct errtext *err)
{
    json_t *json;
    enum status st = json_doc_parse(&json, "adapter_config.json", config, len, 0, err);
    if (st)
        return st;
    double p = json_number_value(json_object_get(json, "lora_dropout"));
    json_decref(json);
    if (cli_has(a->c, OPT_DROPOUT) && fabs(a->opt.dropout - p) > 0)
        return err_set(err, STATUS_INVALID, "--dropout: found %g, lora_dropout of %s is %g",
                       a->opt.dropout, a->c->value[OPT_PEFT_CONFIG], p);
    a->opt.dropout = p;
    return STATUS_OK;
}

static enum status new_adapter(struct training_runs *a, struct training_run *r, struct errtext *err)
{
    struct buf config;
    char *given = NULL;
    size_t len = 0;
    buf_init(&config, CONFIG_BYTES_MAX);
    enum status st;
    if (cli_has(a->c, OPT_PEFT_CONFIG)) {
        st = file_read(a->c->value[OPT_PEFT_CONFIG], CONFIG_BYTES_MAX, &given, &len, err);
        if (!st)
            st = read_dropout(a, given, len, err);
        if (!st)
            buf_put(&config, given, len);
        mem_free(given);
    } else {
        st = make_config(a, &config, err);
    }
    if (!st)
        st = train_lora_new(&r->lora, config.data, config.len, &a->model->config, a->opt.seed, err);
    buf_fini(&config);
    return st;
}

/* Nothing that somebody else put there is overwritten. */
static enum status check_folder(const struct training_runs *a, const struct training_run *r,
                                struct errtext *err)
{
    char path[PATH_MAX];
    for (const struct training_run *o = a->run; o < r; o++) {
        if (strcmp(o->dir, r->dir) == 0)
            return err_set(err, STATUS_INVALID, "%s is named twice", r->dir);
    }
    snprintf(path, sizeof(path), "%s/adapter_model.safetensors", r->dir);
    if (!file_exists(path) || cli_has(a->c, OPT_REPLACE))
        return STATUS_OK;
    return err_set(err, STATUS_CONFLICT, "%s is there already; --replace trains it anew", path);
}

static enum status open_run(struct training_runs *a, struct training_run *r, struct errtext *err)
{
    enum status st = check_folder(a, r, err);
    if (!st)
        st = open_rows(a, r, err);
    if (!st)
        st = cli_has(a->c, OPT_INIT)
                 ? train_lora_read(&r->lora, a->c->value[OPT_INIT], &a->model->config, err)
                 : new_adapter(a, r, err);
    return st;
}

static enum status make_trainer(struct training_runs *a, struct training_run *r,
                                struct errtext *err)
{
    r->opt = a->opt;
    enum status st = fit_warmup(a, r, err);
    if (st)
        return st;
    r->report = (struct train_report){.model = a->model,
                                      .datanet = r->datanet,
                                      .training = r->training,
                                      .options = &r->opt,
                                      .lora = &r->lora,
                                      .version = RS_VERSION};
    train_what(r->what, &r->report);
    st = trainer_create(&r->trainer, &r->lora, &r->rows, &r->opt, err);
    r->report.trainer = r->trainer;
    return st;
}

static enum status make_pass(struct training_runs *a, struct errtext *err)
{
    const struct train_base base = {a->model, a->backend, a->resident};
    struct train_pass_options opt = {.tokens = a->opt.tokens,
                                     .adapters_max = a->n,
                                     .dropout = a->opt.dropout > 0,
                                     .bytes_max = mem_machine_bytes() / 4};
    for (uint32_t k = 0; k < a->n; k++)
        opt.rank_sum_max = MAX(opt.rank_sum_max, a->run[k].lora.rank_sum_max);
    return train_pass_create(&a->pass, &base, &opt, err);
}

static enum status prepare(struct training_runs *a, struct errtext *err)
{
    enum status st = read_options(a, err);
    if (!st)
        st = open_base(a, err);
    for (uint32_t k = 0; k < a->n && !st; k++)
        st = open_run(a, &a->run[k], err);
    if (!st)
        st = fit_tokens(a, err);
    if (!st)
        st = make_pass(a, err);
    for (uint32_t k = 0; k < a->n && !st; k++)
        st = make_trainer(a, &a->run[k], err);
    return st;
}

/* ---- steps ---- */

static enum status go_on(struct training_runs *a, struct training_run *r, struct errtext *err)
{
    snprintf(r->state, sizeof(r->state), "%s/" TRAIN_STATE_FILE, r->dir);
    a->all += trainer_steps(r->trainer);
    if (!file_exists(r->state))
        return STATUS_OK;
    enum status st = trainer_resume(r->trainer, r->state, r->what, err);
    a->first += trainer_done(r->trainer);
    if (!st)
        cli_note(a->c, "going on behind step %u of %u (%s)", trainer_done(r->trainer),
                 trainer_steps(r->trainer), r->state);
    return st;
}

/* Once a second, and the last one. */
static void say(struct training_runs *a, const struct train_step *s)
{
    uint64_t now_ns = clock_mono_ns(), done = a->first + ++a->steps;
    a->tokens += s->tokens;
    if (done < a->all && now_ns - a->said_ns < SAY_NS)
        return;
    a->said_ns = now_ns;
    double took_s = (double)(now_ns - a->begin_ns) * 1e-9;
    double left_s = took_s / (double)a->steps * (double)(a->all - done);
    cli_note(a->c,
             "step %" PRIu64 " of %" PRIu64
             ": loss %.4f, gradient %.3f, rate %.2e, %.0f tokens/s, %.0f s left",
             done, a->all, (double)s->loss, s->norm, s->lr, (double)a->tokens / took_s, left_s);
}

static void end_step(struct training_runs *a, struct training_run *r, const struct train_step *s)
{
    if (r->st)
        return;
    say(a, s);
    if (a->checkpoint_steps && (s->step + 1) % a->checkpoint_steps == 0)
        r->st = trainer_save(r->trainer, r->state, r->what, &r->err);
}

/* Those that have steps left; one that failed has none. */
static uint32_t list_running(struct training_runs *a, struct training_run **running,
                             struct trainer **trainer)
{
    uint32_t n = 0;
    for (uint32_t k = 0; k < a->n; k++) {
        struct training_run *r = &a->run[k];
        if (r->st || trainer_done(r->trainer) == trainer_steps(r->trainer))
            continue;
        running[n] = r;
        trainer[n++] = r->trainer;
    }
    return n;
}

static enum status run_steps(struct training_runs *a, struct errtext *err)
{
    struct training_run *running[VERB_TRAIN_DIRS_MAX];
    struct trainer *trainer[VERB_TRAIN_DIRS_MAX];
    struct train_step step[VERB_TRAIN_DIRS_MAX];
    enum status ended[VERB_TRAIN_DIRS_MAX];
    bool stepped[VERB_TRAIN_DIRS_MAX];
    struct errtext *why = mem_array(a->n, sizeof(*why));
    enum status st = STATUS_OK;
    uint32_t n;
    a->begin_ns = a->said_ns = clock_mono_ns();
    for (uint32_t turn = 0; !st && (n = list_running(a, running, trainer)) > 0; turn++) {
        st = train_round(a->pass, &(struct train_round){.trainer = trainer,
                                                        .step = step,
                                                        .st = ended,
                                                        .stepped = stepped,
                                                        .n = n,
                                                        .first = turn % n,
                                                        .err = why});
        for (uint32_t k = 0; k < n && !st; k++) {
            if (!stepped[k])
                continue;
            running[k]->st = ended[k];
            running[k]->err = why[k];
            end_step(a, running[k], &step[k]);
        }
    }
    mem_free(why);
    return st ? err_set(err, st, "training: the backend failed") : st;
}

static void write_adapter(struct training_run *r)
{
    if (!r->st)
        r->st = train_output(r->dir, &r->report, r->id, &r->err);
    if (!r->st)
        (void)unlink(r->state);
}

static enum status train_all(struct training_runs *a, struct errtext *err)
{
    enum status st = prepare(a, err);
    for (uint32_t k = 0; k < a->n && !st; k++)
        st = go_on(a, &a->run[k], err);
    for (uint32_t k = 0; k < a->n && !st; k++) {
        const struct training_run *r = &a->run[k];
        cli_note(a->c,
                 "%s: %u rows of %u documents, %" PRIu64 " weights, %u steps of %u rows in %s",
                 r->dir, r->rows.n, datanet_head(r->datanet)->n, r->lora.weights,
                 trainer_steps(r->trainer), r->opt.batch,
                 a->model->dtype == DTYPE_BF16 ? "bf16" : "f32");
    }
    if (!st)
        st = run_steps(a, err);
    for (uint32_t k = 0; k < a->n && !st; k++)
        write_adapter(&a->run[k]);
    for (uint32_t k = 0; k < a->n && !st; k++) {
        const struct training_run *r = &a->run[k];
        st = r->st ? err_set(err, r->st, "%s: %s", r->dir, r->err.text) : STATUS_OK;
    }
    return st;
}

static void put_json(const struct training_run *r, struct buf *out)
{
    uint32_t n = trainer_done(r->trainer);
    double last = n ? (double)trainer_losses(r->trainer)[n - 1] : 0;
    cli_put_json_hex(out, "adapter_id", r->id, 32);
    buf_puts(out, ",\"folder\":");
    buf_put_json_string(out, r->dir, strlen(r->dir));
    buf_printf(out, ",\"loss\":%.6g,\"steps\":%u,\"rows\":%u", last, n, r->rows.n);
}

static void put_text(const struct training_run *r, struct buf *out)
{
    uint32_t n = trainer_done(r->trainer);
    buf_puts(out, "adapter ");
    cli_put_hex(out, r->id, 32);
    buf_printf(out,
               "\n%s: adapter_config.json, adapter_model.safetensors, " TRAIN_REPORT_FILE
               ", " TRAIN_LOSS_FILE "; loss %.4f after %u steps",
               r->dir, n ? (double)trainer_losses(r->trainer)[n - 1] : 0.0, n);
}

/* One folder's result stands by itself, several in a list. */
static void put_result(const struct training_runs *a, struct buf *out)
{
    bool json = cli_has(a->c, OPT_JSON), several = a->n > 1;
    if (json)
        buf_puts(out, several ? "{\"trained\":[" : "{");
    for (uint32_t k = 0; k < a->n; k++) {
        if (!json) {
            buf_puts(out, k ? "\n" : "");
            put_text(&a->run[k], out);
            continue;
        }
        buf_puts(out, k ? ",{" : several ? "{" : "");
        put_json(&a->run[k], out);
        buf_puts(out, several ? "}" : "");
    }
    if (json)
        buf_puts(out, several ? "],\"ok\":true}" : ",\"ok\":true}");
}

static void close_runs(struct training_runs *a)
{
    for (uint32_t k = 0; k < a->n; k++) {
        struct training_run *r = &a->run[k];
        trainer_free(r->trainer);
        train_lora_fini(&r->lora);
        training_rows_fini(&r->rows);
        training_free(r->training);
        datanet_release(r->datanet);
    }
    mem_free(a->run);
    train_pass_free(a->pass);
    resident_destroy(a->resident);
    model_free(a->model);
    backend_destroy(a->backend);
}

int verb_train(struct cli *c)
{
    struct training_runs a = {.c = c, .n = c->operand_count};
    struct errtext err = ERRTEXT_INIT;
    struct buf out;
    buf_init(&out, 1u << 20);
    a.run = mem_array(a.n, sizeof(*a.run));
    for (uint32_t k = 0; k < a.n; k++)
        a.run[k].dir = c->operand[k];
    enum status st = train_all(&a, &err);
    int code;
    if (st) {
        code = cli_fail(c, st, &err, NULL);
    } else {
        put_result(&a, &out);
        code = cli_print(&out, 0);
    }
    close_runs(&a);
    buf_fini(&out);
    return code;
}
