/* residual datanet value DIR --model BASE: what each contributor's rows are worth, measured by
 * training without them, as a table and as value.json beside the list. With --server a datanet's
 * published value is shown instead. */
#include "chain_client/cli/datanet_remote.h"
#include "chain_client/cli/train_setup.h"
#include "chain_client/cli/value_claim.h"
#include "chain_client/eth/addr.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/file.h"
#include "server/base/json.h"
#include "server/base/mem.h"
#include "server/train/value.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SAY_NS           1000000000ull
#define OUTPUT_BYTES_MAX (1u << 20)
#define FOLDS_STANDARD   5

struct value_run {
    struct cli *c;
    struct train_setup setup;
    struct train_source learned, held;
    uint32_t *owner, *judge; /* of the rows of each */
    struct buf config, file;
    struct value_report report;
    struct value_claim claim; /* --check */
    struct buf differs;       /* the fields in which it is another */
    uint64_t begin_ns, said_ns;
    char path[PATH_MAX];
};

/* ---- what is measured ---- */

static enum status check_version(const struct value_run *r, struct errtext *err)
{
    uint64_t range[2] = {1, INT64_MAX}, want, is = datanet_head(r->learned.datanet)->version;
    enum status st = args_number(r->c, OPT_VERSION, range, is, &want, err);
    return st || want == is ? st
                            : err_set(err, STATUS_INVALID,
                                      "--version: found %" PRIu64 ", but %s holds version %" PRIu64
                                      ": restore that folder, its list in versions/ names no rows",
                                      want, r->c->operand[0], is);
}

/* Whose each row is: a place in the owners' list of the learned datanet, or their number. */
static enum status find_owners(uint32_t **out, const struct train_source *t,
                               const struct documents *among, struct errtext *err)
{
    *out = mem_try_array((size_t)t->rows.n + 1, sizeof(**out));
    if (!*out)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %u rows", t->rows.n);
    for (uint32_t i = 0; i < t->rows.n; i++) {
        const uint8_t *who = datanet_document(t->datanet, t->training->row[i].document)->owner;
        uint32_t k = 0;
        while (k < among->owner_count && memcmp(among->owner[k].owner, who, 20) != 0)
            k++;
        (*out)[i] = k;
    }
    return STATUS_OK;
}

static enum status open_rows(struct value_run *r, struct errtext *err)
{
    enum status st = train_source_open(&r->learned, &r->setup, r->c->operand[0], err);
    if (st)
        return st;
    const struct documents *all = datanet_documents(r->learned.datanet);
    if (all->owner_count > VALUE_CONTRIBUTORS_MAX)
        return err_set(err, STATUS_TOO_LARGE,
                       "%u contributors, at most %u can be measured one by one", all->owner_count,
                       VALUE_CONTRIBUTORS_MAX);
    st = check_version(r, err);
    if (!st)
        st = find_owners(&r->owner, &r->learned, all, err);
    struct train_setup judge = r->setup;
    judge.opt.mask = ROW_MASK_ASSISTANT; /* of what judges the answers are asked, not the prompts */
    if (!st && cli_has(r->c, OPT_EVAL))
        st = train_source_open(&r->held, &judge, r->c->value[OPT_EVAL], err);
    if (!st && cli_has(r->c, OPT_EVAL))
        st = find_owners(&r->judge, &r->held, all, err);
    if (!st)
        st = train_setup_tokens(
            &r->setup, MAX(train_source_longest(&r->learned), train_source_longest(&r->held)), err);
    return st;
}

/* ---- how it goes ---- */

static void say(void *arg, double done, uint32_t all)
{
    struct value_run *r = arg;
    uint64_t now_ns = clock_mono_ns();
    if (now_ns - r->said_ns < SAY_NS || !(done > 0))
        return;
    r->said_ns = now_ns;
    double took_s = (double)(now_ns - r->begin_ns) * 1e-9;
    cli_note(r->c, "trained %.1f of %u adapters, %.0f s left", done, all,
             took_s / done * (all - done));
}

static enum status measure(struct value_run *r, struct errtext *err)
{
    const struct documents *all = datanet_documents(r->learned.datanet);
    uint64_t parts[2] = {2, VALUE_FOLDS_MAX}, some[2] = {1, VALUE_SEEDS_MAX}, folds, seeds;
    uint8_t(*address)[20] = mem_array(all->owner_count, sizeof(*address));
    for (uint32_t i = 0; i < all->owner_count; i++)
        memcpy(address[i], all->owner[i].owner, 20);
    struct value_job job = {.base = r->setup.base,
                            .learned = {&r->learned.rows, r->owner},
                            .owner = (const uint8_t(*)[20])address,
                            .owners = all->owner_count,
                            .train = r->setup.opt,
                            .fixed_warmup = cli_has(r->c, OPT_WARMUP),
                            .config = r->config.data,
                            .config_bytes = r->config.len,
                            .progress = say,
                            .arg = r};
    if (cli_has(r->c, OPT_EVAL))
        job.held = (struct value_set){&r->held.rows, r->judge};
    enum status st = args_number(r->c, OPT_FOLDS, parts, FOLDS_STANDARD, &folds, err);
    if (!st)
        st = args_number(r->c, OPT_SEEDS, some, 1, &seeds, err);
    if (!st)
        st = train_setup_warmup(&r->setup, 0, &job.train.optim.warmup, err);
    if (!st) {
        job.parts = (uint32_t)folds;
        job.seeds = (uint32_t)seeds;
        r->begin_ns = r->said_ns = clock_mono_ns();
        st = value_measure(&r->report, &job, err);
    }
    mem_free(address);
    return st;
}

/* ---- the file ---- */

static json_t *options_json(const struct value_run *r)
{
    const struct train_options *o = &r->setup.opt;
    json_t *j =
        json_pack("{s:s, s:I, s:I, s:f, s:f, s:f, s:s, s:f, s:I, s:f, s:f, s:s, s:b, s:f}",
                  "adapter", r->config.data, "batch", (json_int_t)o->batch, "epochs",
                  (json_int_t)o->epochs, "beta1", o->optim.beta1, "beta2", o->optim.beta2, "clip",
                  o->optim.clip, "mask", row_mask_name(o->mask), "dropout", o->dropout, "tokens",
                  (json_int_t)o->tokens, "eps", o->optim.eps, "learningRate", o->optim.lr,
                  "schedule", optim_schedule_name(o->optim.schedule), "shuffle", (int)o->shuffle,
                  "weightDecay", o->optim.weight_decay);
    json_object_set_new(j, "computedIn",
                        json_string(r->setup.model->dtype == DTYPE_BF16 ? "bf16" : "f32"));
    if (cli_has(r->c, OPT_WARMUP))
        json_object_set_new(j, "warmup", json_integer(strtoll(r->c->value[OPT_WARMUP], NULL, 10)));
    return j;
}

static enum status render(struct value_run *r, struct errtext *err)
{
    struct value_report *v = &r->report;
    json_t *options = options_json(r);
    const struct value_recipe recipe = {.options = options, .program = "residual " RS_VERSION};
    memcpy(v->base, r->setup.model->id, 32);
    memcpy(v->document_root, datanet_head(r->learned.datanet)->document_root, 32);
    memcpy(v->training, r->learned.training->digest, 32);
    v->has_eval = cli_has(r->c, OPT_EVAL);
    if (v->has_eval)
        memcpy(v->eval, r->held.training->digest, 32);
    enum status st = value_report_render(&r->file, v, &recipe, err);
    json_decref(options);
    return st;
}

static enum status write_file(struct value_run *r, struct errtext *err)
{
    snprintf(r->path, sizeof(r->path), "%.*s/" VALUE_FILE, PATH_MAX - 32, r->c->operand[0]);
    return file_write_atomic(r->path, r->file.data, r->file.len, 0644, err);
}

/* ---- the table ---- */

static double nats(int64_t micronats)
{
    return (double)micronats * 1e-6;
}

static void put_table(struct buf *out, const struct value_report *v)
{
    char who[ADDR_TEXT_BYTES];
    buf_printf(out,
               "%" PRIu64 " held-out tokens, %s in %u parts, %u %s from %" PRIu64
               ": %.4f nats a token by the base, %.4f with the adapter\n"
               "gain of all: %.4f nats a token (%.4f to %.4f), %.1f in all\n",
               v->gain.tokens, v->has_eval ? "of a set" : "of the rows", v->folds, v->seeds,
               v->seeds == 1 ? "seed" : "seeds", v->seed, nats(v->base_loss), nats(v->loss),
               nats(v->gain.value), nats(v->gain.low), nats(v->gain.high), nats(v->gain.total));
    buf_printf(out, "%-42s %6s %8s %9s %20s %10s %9s", "without", "rows", "repeated", "worth",
               "95 %", "in all", "own rows");
    for (uint32_t i = 0; i < v->n; i++) {
        const struct value_line *l = &v->line[i];
        addr_format(who, l->owner);
        buf_printf(out, "\n%-42s %6u %8u %+9.4f %+9.4f %+9.4f %+10.1f ", who, l->rows, l->repeated,
                   nats(l->worth.value), nats(l->worth.low), nats(l->worth.high),
                   nats(l->worth.total));
        if (l->has_own)
            buf_printf(out, "%+9.4f", nats(l->own));
        else
            buf_printf(out, "%9s", "-");
    }
}

static void put_result(const struct value_run *r, struct buf *out)
{
    const struct value_report *v = &r->report;
    if (cli_has(r->c, OPT_JSON)) {
        buf_printf(out, "{\"ok\":%s,", r->differs.len ? "false" : "true");
        if (r->differs.len)
            buf_printf(out, "\"differs\":\"%s\",", r->differs.data);
        buf_put_json_hex(out, "digest", v->digest, 32);
        buf_puts(out, ",\"value\":");
        buf_put(out, r->file.data, r->file.len - 1);
        buf_putc(out, '}');
        return;
    }
    put_table(out, v);
    if (r->differs.len) {
        buf_printf(out, "\n%s is another: %s", r->c->value[OPT_CHECK], r->differs.data);
        return;
    }
    buf_printf(out,
               cli_has(r->c, OPT_CHECK) ? "\n%s is what came out again: digest " : "\n%s: digest ",
               cli_has(r->c, OPT_CHECK) ? r->c->value[OPT_CHECK] : r->path);
    buf_put_hex(out, v->digest, 32);
}

/* ---- here ---- */

static enum status run(struct value_run *r, struct errtext *err)
{
    if (!cli_has(r->c, OPT_MODEL))
        return err_set(err, STATUS_INVALID,
                       "--model BASE measures DIR; --server URL shows what a datanet's publisher "
                       "measured");
    bool again = cli_has(r->c, OPT_CHECK);
    enum status st =
        again ? value_claim_take(&r->claim, r->c, r->c->value[OPT_CHECK], &r->config, err)
              : STATUS_OK;
    if (!st)
        st = train_setup_options(&r->setup, err);
    if (!st)
        st = train_setup_base(&r->setup, err);
    if (!st)
        st = open_rows(r, err);
    if (!st && !again)
        st = train_setup_config(&r->setup, &r->config, err);
    if (!st)
        st = measure(r, err);
    if (!st)
        st = render(r, err);
    if (!st && again)
        value_claim_compare(&r->claim, &r->file, &r->differs);
    return st || again ? st : write_file(r, err);
}

static int measure_here(struct cli *c)
{
    struct value_run r = {.c = c, .setup = {.c = c}};
    struct errtext err = ERRTEXT_INIT;
    struct buf out;
    buf_init(&out, 2 * OUTPUT_BYTES_MAX);
    buf_init(&r.file, VALUE_BYTES_MAX);
    buf_init(&r.config, TRAIN_CONFIG_BYTES_MAX);
    buf_init(&r.differs, 4096);
    enum status st = run(&r, &err);
    if (!st)
        put_result(&r, &out);
    int code =
        st ? cli_fail(c, st, &err, NULL) : cli_print(&out, r.differs.len ? CLI_WRONG : CLI_FINE);
    value_claim_fini(&r.claim);
    train_source_close(&r.learned);
    train_source_close(&r.held);
    mem_free(r.owner);
    mem_free(r.judge);
    mem_free(r.report.line);
    buf_fini(&r.config);
    buf_fini(&r.differs);
    buf_fini(&r.file);
    buf_fini(&out);
    train_setup_fini(&r.setup);
    return code;
}

int verb_datanet_value(struct cli *c)
{
    return cli_has(c, OPT_SERVER) ? datanet_remote_value(c) : measure_here(c);
}
