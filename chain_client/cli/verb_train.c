/* residual train DIR --model BASE: the rows of a datanet's training manifest become an adapter in
 * the same folder, without a server. It says how it goes on stderr, keeps its state every few
 * steps, and goes on from there when it is called again. */
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

struct training_run {
    struct cli *c;
    struct model *model;
    struct backend *backend;
    struct resident *resident;
    struct datanet *datanet;
    struct training *training;
    struct training_rows rows;
    struct train_lora lora;
    struct train_options opt;
    struct trainer *trainer;
    struct train_report report;
    uint8_t what[32], id[32];
    uint64_t checkpoint_steps, begin_ns, said_ns, tokens;
    uint32_t first; /* step that this call began with */
    char state[PATH_MAX];
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

static enum status read_schedule(struct training_run *r, struct errtext *err)
{
    const char *name = r->c->value[OPT_SCHEDULE];
    r->opt.optim.schedule = OPTIM_LINEAR;
    if (name && !optim_schedule_parse(&r->opt.optim.schedule, name))
        return err_set(err, STATUS_INVALID,
                       "--schedule: found '%s', expected constant, linear or cosine", name);
    return STATUS_OK;
}

static enum status read_options(struct training_run *r, struct errtext *err)
{
    const struct cli *c = r->c;
    struct train_options *o = &r->opt;
    uint64_t any[2] = {0, INT64_MAX}, some[2] = {0, TRAIN_STEPS_MAX};
    *o = (struct train_options){
        .optim = {.lr = 2e-4, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .clip = 1},
        .shuffle = !cli_has(c, OPT_IN_ORDER),
        .completion_only = cli_has(c, OPT_COMPLETION_ONLY),
        .keep_max = mem_machine_bytes() / 4};
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
        st = args_number(c, OPT_CHECKPOINT_STEPS, some, 50, &r->checkpoint_steps, err);
    return st ? st : read_schedule(r, err);
}

/* What depends on how many rows there are, and how long they are. */
static enum status fit_options(struct training_run *r, struct errtext *err)
{
    uint64_t longest = 1, steps, warmup, range[2] = {0, TRAIN_STEPS_MAX};
    for (uint32_t i = 0; i < r->rows.n; i++)
        longest = MAX(longest, r->rows.begin[i + 1] - r->rows.begin[i]);
    uint64_t context = r->model->config.pos_max;
    uint64_t pass = MIN(MAX(longest, (uint64_t)TOKENS_STANDARD), context);
    enum status st = read_count(r->c, OPT_TOKENS, TOKENS_MAX, pass, &r->opt.tokens, err);
    steps = (uint64_t)((r->rows.n + r->opt.batch - 1) / r->opt.batch) * r->opt.epochs;
    if (!st)
        st = args_number(r->c, OPT_WARMUP, range, (steps * 3 + 99) / 100, &warmup, err);
    r->opt.optim.warmup = st ? 0 : (uint32_t)warmup;
    return st;
}

/* ---- what is trained, and on what ---- */

static enum status open_base(struct training_run *r, struct errtext *err)
{
    struct backend_options bo = {.name = "cpu", .deterministic = true};
    struct model_options mo = {.dtype = DTYPE_CHOICE_AUTO, .id_cache_dir = ""};
    const char *dtype = r->c->value[OPT_DTYPE];
    uint64_t range[2] = {0, 256}, threads;
    enum status st = args_number(r->c, OPT_THREADS, range, 0, &threads, err);
    bo.thread_count = st ? 0 : (uint32_t)threads;
    if (!st && dtype && strcmp(dtype, "f32") != 0 && strcmp(dtype, "bf16") != 0)
        st = err_set(err, STATUS_INVALID, "--dtype: found '%s', expected f32 or bf16", dtype);
    if (!st && dtype)
        mo.dtype = dtype[0] == 'f' ? DTYPE_CHOICE_F32 : DTYPE_CHOICE_BF16;
    if (!st)
        st = backend_create(&r->backend, &bo, err);
    if (!st) {
        mo.cpu_has_bf16 = r->backend->has_bf16;
        st = model_load(&r->model, r->c->value[OPT_MODEL], &mo, err);
    }
    return st ? st : resident_create(&r->resident, r->model, r->backend, NULL, err);
}

static enum status open_rows(struct training_run *r, struct errtext *err)
{
    const char *dir = r->c->operand[0];
    struct errtext why = ERRTEXT_INIT;
    enum status st = datanet_open(&r->datanet, dir, NULL, err);
    if (st)
        return st;
    st = training_load(&r->training, r->datanet, &why);
    if (st == STATUS_NOT_FOUND)
        return err_set(err, st,
                       "%s: no " TRAINING_FILE "; residual datanet build %s --model %s makes it",
                       dir, dir, r->c->value[OPT_MODEL]);
    if (st)
        return err_set(err, st, "%s", why.text);
    if (memcmp(r->training->tokenizer_digest, r->model->tokenizer_digest, 32) != 0)
        st = err_set(err, STATUS_INVALID,
                     "%s/" TRAINING_FILE ": tokenizerDigest is of another base than %s", dir,
                     r->c->value[OPT_MODEL]);
    if (!st)
        st = training_rows_read(&r->rows, r->datanet, r->training, r->model, NULL, err);
    if (!st && r->rows.cut)
        cli_note(r->c, "%u rows are longer than %d tokens: what follows is not learned",
                 r->rows.cut, ROW_TOKENS_MAX);
    return st;
}

/* As peft's LoraConfig would write it, all linear modules. */
static enum status make_config(struct training_run *r, struct buf *out, struct errtext *err)
{
    char base[PATH_MAX];
    uint32_t rank;
    double alpha;
    enum status st = read_count(r->c, OPT_RANK, 1024, 16, &rank, err);
    alpha = 2.0 * rank;
    if (!st)
        st = args_real(r->c, OPT_ALPHA, 65536, &alpha, err);
    snprintf(base, sizeof(base), "%s", r->c->value[OPT_MODEL]);
    const char *name = basename(base);
    buf_puts(out, "{\n  \"base_model_name_or_path\": ");
    buf_put_json_string(out, name, strlen(name));
    buf_printf(out,
               ",\n  \"bias\": \"none\",\n  \"fan_in_fan_out\": false,\n  \"inference_mode\": "
               "true,\n  \"lora_alpha\": %.17g,\n  \"lora_dropout\": %.17g,\n  \"peft_type\": "
               "\"LORA\",\n  \"r\": %u,\n  \"target_modules\": [\"down_proj\", \"gate_proj\", "
               "\"k_proj\", \"o_proj\", \"q_proj\", \"up_proj\", \"v_proj\"],\n  \"task_type\": "
               "\"CAUSAL_LM\",\n  \"use_rslora\": false\n}\n",
               alpha, r->opt.dropout, rank);
    return st;
}

/* The file's lora_dropout is what is trained with. */
static enum status read_dropout(struct training_run *r, const char *config, size_t len,
                                struct errtext *err)
{
    json_t *json;
    enum status st = json_doc_parse(&json, "adapter_config.json", config, len, 0, err);
    if (st)
        return st;
    double p = json_number_value(json_object_get(json, "lora_dropout"));
    json_decref(json);
    if (cli_has(r->c, OPT_DROPOUT) && fabs(r->opt.dropout - p) > 0)
        return err_set(err, STATUS_INVALID, "--dropout: found %g, lora_dropout of %s is %g",
                       r->opt.dropout, r->c->value[OPT_PEFT_CONFIG], p);
    r->opt.dropout = p;
    return STATUS_OK;
}

static enum status new_adapter(struct training_run *r, struct errtext *err)
{
    struct buf config;
    char *given = NULL;
    size_t len = 0;
    buf_init(&config, CONFIG_BYTES_MAX);
    enum status st;
    if (cli_has(r->c, OPT_PEFT_CONFIG)) {
        st = file_read(r->c->value[OPT_PEFT_CONFIG], CONFIG_BYTES_MAX, &given, &len, err);
        if (!st)
            st = read_dropout(r, given, len, err);
        if (!st)
            buf_put(&config, given, len);
        mem_free(given);
    } else {
        st = make_config(r, &config, err);
    }
    if (!st)
        st = train_lora_new(&r->lora, config.data, config.len, &r->model->config, r->opt.seed, err);
    buf_fini(&config);
    return st;
}

/* Nothing that somebody else put there is overwritten. */
static enum status check_folder(const struct training_run *r, struct errtext *err)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/adapter_model.safetensors", r->c->operand[0]);
    if (!file_exists(path) || cli_has(r->c, OPT_REPLACE))
        return STATUS_OK;
    return err_set(err, STATUS_CONFLICT, "%s is there already; --replace trains it anew", path);
}

static enum status prepare(struct training_run *r, struct errtext *err)
{
    enum status st = read_options(r, err);
    if (!st)
        st = check_folder(r, err);
    if (!st)
        st = open_base(r, err);
    if (!st)
        st = open_rows(r, err);
    if (!st)
        st = fit_options(r, err);
    if (!st)
        st = cli_has(r->c, OPT_INIT)
                 ? train_lora_read(&r->lora, r->c->value[OPT_INIT], &r->model->config, err)
                 : new_adapter(r, err);
    if (st)
        return st;
    const struct train_base base = {r->model, r->backend, r->resident};
    r->report.model = r->model;
    r->report.datanet = r->datanet;
    r->report.training = r->training;
    r->report.options = &r->opt;
    r->report.lora = &r->lora;
    r->report.version = RS_VERSION;
    train_what(r->what, &r->report);
    st = trainer_create(&r->trainer, &base, &r->lora, &r->rows, &r->opt, err);
    r->report.trainer = r->trainer;
    return st;
}

/* ---- steps ---- */

static enum status go_on(struct training_run *r, struct errtext *err)
{
    snprintf(r->state, sizeof(r->state), "%s/" TRAIN_STATE_FILE, r->c->operand[0]);
    if (!file_exists(r->state))
        return STATUS_OK;
    enum status st = trainer_resume(r->trainer, r->state, r->what, err);
    r->first = trainer_done(r->trainer);
    if (!st)
        cli_note(r->c, "going on behind step %u of %u (%s)", r->first, trainer_steps(r->trainer),
                 r->state);
    return st;
}

/* Once a second, and the last one. */
static void say(struct training_run *r, const struct train_step *s)
{
    uint64_t now_ns = clock_mono_ns();
    uint32_t done = s->step + 1, all = trainer_steps(r->trainer);
    r->tokens += s->tokens;
    if (done < all && now_ns - r->said_ns < SAY_NS)
        return;
    r->said_ns = now_ns;
    double took_s = (double)(now_ns - r->begin_ns) * 1e-9;
    double left_s = took_s / (done - r->first) * (all - done);
    cli_note(r->c, "step %u of %u: loss %.4f, gradient %.3f, rate %.2e, %.0f tokens/s, %.0f s left",
             done, all, (double)s->loss, s->norm, s->lr, (double)r->tokens / took_s, left_s);
}

static enum status run_steps(struct training_run *r, struct errtext *err)
{
    enum status st = STATUS_OK;
    r->begin_ns = r->said_ns = clock_mono_ns();
    while (!st && trainer_done(r->trainer) < trainer_steps(r->trainer)) {
        struct train_step step;
        st = trainer_step(r->trainer, &step, err);
        if (st)
            break;
        say(r, &step);
        if (r->checkpoint_steps && (step.step + 1) % r->checkpoint_steps == 0)
            st = trainer_save(r->trainer, r->state, r->what, err);
    }
    return st;
}

static enum status train_all(struct training_run *r, struct errtext *err)
{
    enum status st = prepare(r, err);
    if (!st)
        st = go_on(r, err);
    if (!st)
        cli_note(r->c, "%u rows of %u documents, %" PRIu64 " weights, %u steps of %u rows in %s",
                 r->rows.n, datanet_head(r->datanet)->n, r->lora.weights, trainer_steps(r->trainer),
                 r->opt.batch, r->model->dtype == DTYPE_BF16 ? "bf16" : "f32");
    if (!st)
        st = run_steps(r, err);
    if (!st)
        st = train_output(r->c->operand[0], &r->report, r->id, err);
    if (!st)
        (void)unlink(r->state);
    return st;
}

static void put_result(const struct training_run *r, struct buf *out)
{
    uint32_t n = trainer_done(r->trainer);
    double last = n ? (double)trainer_losses(r->trainer)[n - 1] : 0;
    if (cli_has(r->c, OPT_JSON)) {
        buf_putc(out, '{');
        cli_put_json_hex(out, "adapter_id", r->id, 32);
        buf_printf(out, ",\"loss\":%.6g,\"steps\":%u,\"rows\":%u,\"ok\":true}", last, n, r->rows.n);
        return;
    }
    buf_puts(out, "adapter ");
    cli_put_hex(out, r->id, 32);
    buf_printf(out,
               "\n%s: adapter_config.json, adapter_model.safetensors, " TRAIN_REPORT_FILE
               ", " TRAIN_LOSS_FILE "; loss %.4f after %u steps",
               r->c->operand[0], last, n);
}

int verb_train(struct cli *c)
{
    struct training_run r = {.c = c};
    struct errtext err = ERRTEXT_INIT;
    struct buf out;
    buf_init(&out, 1u << 16);
    enum status st = train_all(&r, &err);
    int code;
    if (st) {
        code = cli_fail(c, st, &err, NULL);
    } else {
        put_result(&r, &out);
        code = cli_print(&out, 0);
    }
    trainer_free(r.trainer);
    train_lora_fini(&r.lora);
    training_rows_fini(&r.rows);
    training_free(r.training);
    datanet_release(r.datanet);
    resident_destroy(r.resident);
    model_free(r.model);
    backend_destroy(r.backend);
    buf_fini(&out);
    return code;
}
