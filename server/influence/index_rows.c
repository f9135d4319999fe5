/* Passes over the rows of an index, as scoring jobs: a bounded number inside the engine, results
 * taken in whatever order they come. */
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/mem.h"
#include "server/influence/events_build.h"
#include "server/influence/index_make.h"
#include "server/influence/job.h"

#include <string.h>

#define ENGINE_FULL_MS 5 /* until a full engine is asked again */

enum index_pass { PASS_BASE, PASS_SAMPLE, PASS_KEYS, PASS_COUNT };

struct row_flight {
    struct score_job job;
    struct row_run *run;
    uint32_t row, n;
    int32_t *q8;
};

struct row_run {
    const struct index_build *build;
    enum index_pass pass;
    struct engine_basis *basis;
    struct row_flight flight[INDEX_ROWS_INSIDE];
    uint32_t inside;
};

static void on_done(struct score_job *j, void *arg)
{
    struct row_flight *f = arg;
    CHECK(&f->job == j);
    CHECK(mailbox_push(&f->run->build->maker->done, f) == STATUS_OK); /* sized for all of them */
}

static void flight_fini(struct row_flight *f)
{
    for (uint32_t i = 0; i < f->job.comp.n; i++)
        catalog_release(f->job.entry[i]);
    mem_free(f->job.logprob);
    mem_free(f->job.key);
    mem_free(f->job.hidden);
    mem_free(f->q8);
    *f = (struct row_flight){0};
}

static bool flight_init(struct row_flight *f, struct row_run *run, uint32_t row)
{
    const struct index_build *b = run->build;
    const struct training_rows *rows = b->rows;
    uint32_t n = training_rows_length(rows, row);
    uint32_t d = b->maker->deps.model->config.d_model;
    *f = (struct row_flight){.run = run, .row = row, .n = n};
    f->job.ids = rows->ids + rows->begin[row];
    f->job.n_ids = n;
    f->job.n_prompt = 1;
    f->job.on_done = on_done;
    f->job.on_done_arg = f;
    f->job.logprob = mem_try_array(n - 1, sizeof(float));
    f->q8 = mem_try_array(n - 1, sizeof(*f->q8));
    bool good = f->job.logprob && f->q8;
    if (run->pass == PASS_SAMPLE)
        good &= (f->job.hidden = mem_try_array((size_t)(n - 1) * d, sizeof(float))) != NULL;
    if (run->pass == PASS_KEYS)
        good &= (f->job.key = mem_try_array((size_t)(n - 1), EVENTS_HALF)) != NULL;
    f->job.basis = run->pass == PASS_KEYS ? run->basis : NULL;
    if (run->pass != PASS_BASE) {
        f->job.entry[0] = catalog_find_id(b->maker->deps.catalog, b->entry->id);
        good &= f->job.entry[0] != NULL;
        f->job.comp.n = f->job.entry[0] ? 1 : 0;
        memcpy(f->job.comp.part[0].adapter, b->entry->id, 32);
        f->job.comp.part[0].weight_q16 = COMPOSITION_WEIGHT_ONE;
    }
    return good && composition_seal(&f->job.comp, NULL) == STATUS_OK;
}

/* What came back, into the builder. */
static enum status take(struct row_run *run, struct row_flight *f, struct errtext *err)
{
    struct events_builder *b = run->build->builder;
    if (f->job.status)
        return err_set(err, f->job.status, "row %u of the training manifest cannot be scored: %s",
                       f->row, status_name(f->job.status));
    for (uint32_t i = 0; i + 1 < f->n; i++)
        f->q8[i] = job_q8(f->job.logprob[i]);
    const struct events_row_tokens tokens = {.row = f->row, .ids = f->job.ids, .n = f->n};
    if (run->pass == PASS_BASE)
        return events_builder_base(b, &tokens, f->q8, err);
    if (run->pass == PASS_SAMPLE)
        return events_builder_hidden(b, &tokens, f->job.hidden, err);
    return events_builder_row(b, &tokens, f->q8, f->job.key, err);
}

static enum status wait_one(struct row_run *run, struct errtext *err)
{
    struct mailbox *done = &run->build->maker->done;
    struct row_flight *f = mailbox_pop(done);
    if (!f) {
        mailbox_wait(done, 100);
        return STATUS_OK;
    }
    enum status st = take(run, f, err);
    flight_fini(f);
    run->inside--;
    return st;
}

static struct row_flight *free_flight(struct row_run *run)
{
    for (uint32_t i = 0; i < INDEX_ROWS_INSIDE; i++) {
        if (!run->flight[i].run)
            return &run->flight[i];
    }
    return NULL;
}

static enum status submit(struct row_run *run, uint32_t row, struct errtext *err)
{
    struct row_flight *f;
    enum status st = STATUS_OK;
    while (!st && !(f = free_flight(run)))
        st = wait_one(run, err);
    if (st)
        return st;
    if (!flight_init(f, run, row)) {
        flight_fini(f);
        return err_set(err, STATUS_NO_MEMORY, "index: no memory for row %u, or its adapter is gone",
                       row);
    }
    while (!st) {
        if (atomic_load(&run->build->maker->stop))
            st = err_set(err, STATUS_CANCELLED, "the server stops");
        else
            st = engine_submit_score(run->build->maker->deps.engine, &f->job);
        if (st != STATUS_FULL)
            break;
        clock_sleep_ms(ENGINE_FULL_MS);
        st = run->inside ? wait_one(run, err) : STATUS_OK;
    }
    if (!st)
        run->inside++;
    else
        flight_fini(f);
    return st && !err->text[0]
               ? err_set(err, st, "rows cannot be scored: %s",
                         st == STATUS_UNSUPPORTED ? "scoring is off (score_rows_max 0)"
                                                  : status_name(st))
               : st;
}

/* A row of a token or none: nothing in it is predicted, and the builder counts it all the same. */
static enum status give_short(const struct row_run *run, uint32_t row, struct errtext *err)
{
    const struct training_rows *rows = run->build->rows;
    const struct events_row_tokens t = {
        .row = row, .ids = rows->ids + rows->begin[row], .n = training_rows_length(rows, row)};
    if (run->pass == PASS_BASE)
        return events_builder_base(run->build->builder, &t, NULL, err);
    return run->pass == PASS_KEYS ? events_builder_row(run->build->builder, &t, NULL, NULL, err)
                                  : STATUS_OK;
}

static enum status run_pass(struct row_run *run, struct errtext *err)
{
    const struct index_build *b = run->build;
    enum status st = STATUS_OK;
    for (uint32_t row = 0; !st && row < b->rows->n; row++) {
        if (training_rows_length(b->rows, row) < 2)
            st = give_short(run, row, err);
        else if (run->pass != PASS_SAMPLE || events_builder_wants_hidden(b->builder, row))
            st = submit(run, row, err);
    }
    while (run->inside > 0) {
        struct errtext later = ERRTEXT_INIT;
        enum status one = wait_one(run, st ? &later : err);
        st = st ? st : one;
    }
    return st;
}

enum status index_run_rows(const struct index_build *b, struct errtext *err)
{
    struct row_run *run = mem_alloc(sizeof(*run));
    enum status st = STATUS_OK;
    run->build = b;
    for (uint32_t pass = 0; !st && pass < PASS_COUNT; pass++) {
        run->pass = (enum index_pass)pass;
        if (pass == PASS_KEYS)
            st = events_builder_basis(b->builder, err);
        if (!st && pass == PASS_KEYS)
            st = engine_basis_create(b->maker->deps.engine, &run->basis,
                                     events_builder_basis_w(b->builder),
                                     events_builder_basis_bias(b->builder), err);
        if (!st)
            st = run_pass(run, err);
    }
    engine_basis_release(run->basis);
    mem_free(run);
    return st;
}
