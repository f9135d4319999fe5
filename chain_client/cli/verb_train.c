/* residual train DIR... --model BASE: the rows of each training manifest become an adapter
 * in the same folder, without a server; of several folders in the same passes, each to the bits
 * that it has alone. It says how it goes on stderr, keeps its state every few steps, and goes on
 * from there when it is called again. */
#include "chain_client/cli/train_setup.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/train/train_output.h"
#include "server/train/value_rule.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define SAY_NS 1000000000ull

struct training_run { /* of a folder */
    const char *dir;
    struct train_source source;
    struct train_lora lora;
    struct train_options opt;
    struct trainer *trainer;
    struct train_evaluation eval; /* rows NULL: none */
    struct train_report report;
    uint32_t evals; /* told so far */
    uint32_t saved; /* steps of the state that is kept; 0: none */
    uint8_t what[32], id[32];
    char state[PATH_MAX];
    enum status st; /* of its steps */
    struct errtext err;
};
struct training_runs {
    struct cli *c;
    struct train_setup setup;
    struct train_pass *pass;
    struct train_source judge; /* of --eval */
    struct training_run *run;  /* [n] */
    uint32_t n;
    /* steps */
    uint64_t checkpoint_steps, begin_ns, said_ns, tokens, steps, all, first;
};

/* ---- what is trained, and on what ---- */

static enum status new_adapter(struct training_runs *a, struct training_run *r, struct errtext *err)
{
    struct buf config;
    buf_init(&config, TRAIN_CONFIG_BYTES_MAX);
    enum status st = train_setup_config(&a->setup, &config, err);
    if (!st)
        st = train_lora_new(&r->lora, config.data, config.len, &a->setup.model->config,
                            a->setup.opt.seed, err);
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
        st = train_source_open(&r->source, &a->setup, r->dir, err);
    if (!st)
        st = cli_has(a->c, OPT_INIT)
                 ? train_lora_read(&r->lora, a->c->value[OPT_INIT], &a->setup.model->config, err)
                 : new_adapter(a, r, err);
    return st;
}

/* ---- rows that are held out ---- */

static enum status open_judge(struct training_runs *a, struct errtext *err)
{
    const struct cli *c = a->c;
    bool share = a->setup.eval_share > 0, dir = cli_has(c, OPT_EVAL);
    if (share && dir)
        return err_set(err, STATUS_INVALID, "--eval and --eval-share: found both, expected one");
    if (!share && !dir && (cli_has(c, OPT_PATIENCE) || cli_has(c, OPT_EVAL_STEPS)))
        return err_set(err, STATUS_INVALID,
                       "--%s: no rows are held out; --eval-share or --eval says which",
                       cli_has(c, OPT_PATIENCE) ? "patience" : "eval-steps");
    return dir ? train_source_open(&a->judge, &a->setup, c->value[OPT_EVAL], err) : STATUS_OK;
}

static enum status read_evaluation(struct training_runs *a, struct training_run *r,
                                   struct errtext *err)
{
    const struct train_source *judge = a->judge.training ? &a->judge : &r->source;
    uint64_t some[2] = {1, TRAIN_STEPS_MAX}, any[2] = {0, TRAIN_STEPS_MAX}, every, patience;
    uint64_t epoch = train_epoch_steps(r->source.rows.n, r->opt.batch);
    enum status st = STATUS_OK;
    if (!a->judge.training && !r->source.held)
        return st;
    if (a->judge.training)
        st = value_check_apart(&r->source.rows, &a->judge.rows, err);
    if (!st)
        st = args_number(a->c, OPT_EVAL_STEPS, some, epoch, &every, err);
    if (!st)
        st = args_number(a->c, OPT_PATIENCE, any, 0, &patience, err);
    if (st)
        return st;
    r->eval =
        (struct train_evaluation){.rows = a->judge.training ? &a->judge.rows : &r->source.held_rows,
                                  .every = (uint32_t)every,
                                  .patience = (uint32_t)patience};
    r->report.held = a->judge.training ? a->judge.training : r->source.held;
    r->report.held_of = judge->datanet;
    r->report.eval = &r->eval;
    return STATUS_OK;
}

static enum status make_trainer(struct training_runs *a, struct training_run *r,
                                struct errtext *err)
{
    r->opt = a->setup.opt;
    enum status st = train_setup_warmup(&a->setup, r->source.rows.n, &r->opt.optim.warmup, err);
    if (st)
        return st;
    r->report = (struct train_report){.model = a->setup.model,
                                      .datanet = r->source.datanet,
                                      .training = r->source.training,
                                      .options = &r->opt,
                                      .lora = &r->lora,
                                      .pass = a->pass,
                                      .version = RS_VERSION};
    st = read_evaluation(a, r, err);
    if (st)
        return st;
    train_what(r->what, &r->report);
    st = trainer_create(&r->trainer, &r->lora, &r->source.rows, &r->opt, err);
    if (!st && r->eval.rows)
        st = trainer_evaluate(r->trainer, &r->eval, err);
    r->report.trainer = r->trainer;
    return st;
}

static enum status make_pass(struct training_runs *a, struct errtext *err)
{
    struct train_pass_options opt = {.tokens = a->setup.opt.tokens,
                                     .adapters_max = a->n,
                                     .dropout = a->setup.opt.dropout > 0,
                                     .bytes_max = mem_machine_bytes() / 4};
    for (uint32_t k = 0; k < a->n; k++)
        opt.rank_sum_max = MAX(opt.rank_sum_max, a->run[k].lora.rank_sum_max);
    return train_pass_create(&a->pass, &a->setup.base, &opt, err);
}

static enum status prepare(struct training_runs *a, struct errtext *err)
{
    uint64_t some[2] = {0, TRAIN_STEPS_MAX};
    uint32_t longest = 0;
    enum status st = train_setup_options(&a->setup, err);
    if (!st)
        st = args_number(a->c, OPT_CHECKPOINT_STEPS, some, 50, &a->checkpoint_steps, err);
    if (!st)
        st = train_setup_base(&a->setup, err);
    if (!st)
        st = open_judge(a, err);
    longest = train_source_longest(&a->judge);
    for (uint32_t k = 0; k < a->n && !st; k++) {
        st = open_run(a, &a->run[k], err);
        longest = MAX(longest, train_source_longest(&a->run[k].source));
    }
    if (!st)
        st = train_setup_tokens(&a->setup, longest, err);
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
    (void)trainer_evals(r->trainer, &r->evals);
    r->saved = trainer_done(r->trainer);
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

static void say_evals(struct training_runs *a, struct training_run *r)
{
    uint32_t n;
    const struct train_eval *e = trainer_evals(r->trainer, &n), *best = trainer_best(r->trainer);
    for (; r->evals < n; r->evals++)
        cli_note(a->c, "%s: %u held-out rows behind step %u: loss %.4f, the best %.4f (step %u)",
                 r->dir, r->eval.rows->n, e[r->evals].step, (double)e[r->evals].loss,
                 (double)best->loss, best->step);
}

static void end_step(struct training_runs *a, struct training_run *r, const struct train_step *s)
{
    if (r->st)
        return;
    say(a, s);
    if (a->checkpoint_steps && (s->step + 1) % a->checkpoint_steps == 0)
        r->st = trainer_save(r->trainer, r->state, r->what, &r->err);
    else
        return;
    if (!r->st)
        r->saved = s->step + 1;
}

/* Those that have steps left; one that failed has none. */
static uint32_t list_running(struct training_runs *a, struct training_run **running,
                             struct trainer **trainer)
{
    uint32_t n = 0;
    for (uint32_t k = 0; k < a->n; k++) {
        struct training_run *r = &a->run[k];
        if (r->st || trainer_ended(r->trainer))
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
            say_evals(a, running[k]);
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

static double mean_of(const float *loss, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += (double)loss[i];
    return sum / MAX(n, 1u);
}

/* A rate that is too high need not end in no numbers. */
static void check_fell(const struct training_runs *a, const struct training_run *r)
{
    uint32_t n = trainer_done(r->trainer), tenth = (n + 9) / 10;
    const float *loss = trainer_losses(r->trainer);
    double first = mean_of(loss, 1), last = mean_of(loss + n - tenth, tenth);
    if (n > 1 && last > first)
        cli_note(a->c, "%s: the loss rose from %.4f to %.4f: a lower --lr learns", r->dir, first,
                 last);
}

/* What went wrong, and what is left. */
static enum status fail_run(const struct training_run *r, struct errtext *err)
{
    if (!r->saved)
        return err_set(err, r->st, "%s: %s", r->dir, r->err.text);
    return err_set(err, r->st, "%s: %s; the state behind step %u is kept: %s", r->dir, r->err.text,
                   r->saved, r->state);
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
                 r->dir, r->source.rows.n, datanet_head(r->source.datanet)->n, r->lora.weights,
                 trainer_steps(r->trainer), r->opt.batch,
                 a->setup.model->dtype == DTYPE_BF16 ? "bf16" : "f32");
    }
    if (!st)
        st = run_steps(a, err);
    for (uint32_t k = 0; k < a->n && !st; k++)
        write_adapter(&a->run[k]);
    for (uint32_t k = 0; k < a->n && !st; k++) {
        const struct training_run *r = &a->run[k];
        if (r->st)
            st = fail_run(r, err);
        else
            check_fell(a, r);
    }
    return st;
}

static void put_json(const struct training_run *r, struct buf *out)
{
    uint32_t n = trainer_done(r->trainer);
    double last = n ? (double)trainer_losses(r->trainer)[n - 1] : 0;
    buf_put_json_hex(out, "adapter_id", r->id, 32);
    buf_puts(out, ",\"folder\":");
    buf_put_json_string(out, r->dir, strlen(r->dir));
    buf_printf(out, ",\"loss\":%.6g,\"steps\":%u,\"rows\":%u", last, n, r->source.rows.n);
    const struct train_eval *best = trainer_best(r->trainer);
    if (best)
        buf_printf(out, ",\"eval_rows\":%u,\"eval_loss\":%.6g,\"eval_step\":%u", r->eval.rows->n,
                   (double)best->loss, best->step);
}

static void put_text(const struct training_run *r, struct buf *out)
{
    uint32_t n = trainer_done(r->trainer);
    buf_puts(out, "adapter ");
    buf_put_hex(out, r->id, 32);
    buf_printf(out,
               "\n%s: adapter_config.json, adapter_model.safetensors, " TRAIN_REPORT_FILE
               ", " TRAIN_LOSS_FILE "; loss %.4f after %u steps",
               r->dir, n ? (double)trainer_losses(r->trainer)[n - 1] : 0.0, n);
    const struct train_eval *best = trainer_best(r->trainer);
    if (best)
        buf_printf(out, "; held out %.4f at best (step %u%s)", (double)best->loss, best->step,
                   r->eval.patience ? ", whose weights these are" : "");
}

/* How full the passes of this call were. */
static void say_packing(const struct training_runs *a)
{
    const struct train_pass_stats s = train_pass_stats(a->pass);
    if (s.passes)
        cli_note(a->c, "%" PRIu64 " passes of %u tokens: %.1f %% used, %.1f rows each", s.passes,
                 a->setup.opt.tokens, 100.0 * (double)s.tokens / (double)s.room,
                 (double)s.sequences / (double)s.passes);
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
        train_source_close(&r->source);
    }
    mem_free(a->run);
    train_source_close(&a->judge);
    train_pass_free(a->pass);
    train_setup_fini(&a->setup);
}

/* With --server what was trained is published too: what that would refuse is refused first. */
static enum status check_server(struct cli *c, struct errtext *err)
{
    if (!cli_has(c, OPT_SERVER))
        return STATUS_OK;
    if (c->operand_count > 1)
        return err_set(err, STATUS_INVALID, "--server: found %u folders, expected one",
                       c->operand_count);
    if (!cli_has(c, OPT_NAME))
        return err_set(err, STATUS_INVALID, "--server needs --name NAME: what it is called there");
    return adapter_publish_ready(c, err);
}

int verb_train(struct cli *c)
{
    struct training_runs a = {.c = c, .setup = {.c = c}, .n = c->operand_count};
    struct errtext err = ERRTEXT_INIT;
    struct buf out;
    buf_init(&out, 1u << 20);
    a.run = mem_array(a.n, sizeof(*a.run));
    for (uint32_t k = 0; k < a.n; k++)
        a.run[k].dir = c->operand[k];
    enum status st = check_server(c, &err);
    if (!st)
        st = train_all(&a, &err);
    int code;
    if (st) {
        code = cli_fail(c, st, &err, NULL);
    } else if (cli_has(c, OPT_SERVER)) {
        code = verb_adapter_publish(c);
    } else {
        say_packing(&a);
        put_result(&a, &out);
        code = cli_print(&out, 0);
    }
    close_runs(&a);
    buf_fini(&out);
    return code;
}
