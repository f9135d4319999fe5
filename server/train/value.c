/* See value.h. A heat is the adapter of all rows and those without one contributor each, trained on
 * what one seed leaves of the rows when one part is held out; then each is asked the held-out rows.
 * Only the first needs to be kept: worth is the difference to it, row by row. */
#include "server/train/value.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define HEAT_MAX 16u /* trained together */
#define NOBODY   UINT32_MAX

struct runner {       /* one adapter of a heat */
    uint32_t without; /* a contributor, or NOBODY */
    struct train_lora lora;
    struct training_rows rows;
    struct trainer *trainer; /* NULL: no row is left, it stays the base */
    double *nats;            /* [held rows] of those asked */
};
struct asked_row { /* a held-out row that is in the pass */
    struct runner *runner;
    uint32_t row, at;
};
struct measure {
    const struct value_job *job;
    const struct value_set *held;
    struct train_pass *pass;
    uint32_t *repeat;               /* [learned rows] */
    uint32_t *part;                 /* [held rows] of the seed */
    int32_t *target;                /* [held tokens] */
    uint32_t *count;                /* [held rows] of their targets */
    float *weight, *logprob;        /* [pass tokens] zeros; of the pass */
    struct asked_row *asked;        /* [pass tokens] */
    uint32_t n_asked, used;         /* of the pass */
    double *base, *with;            /* [held rows] */
    struct value_unit *worth, *own; /* [owners][units] */
    struct value_unit *gain;        /* [units] */
    uint32_t units, together;
    double done; /* trainings */
    struct runner runner[HEAT_MAX];
};

static bool in_folds(const struct measure *m)
{
    return m->held == &m->job->learned;
}

/* ---- room ---- */

static enum status make_room(struct measure *m, struct errtext *err)
{
    const struct training_rows *held = m->held->rows;
    size_t n = (size_t)held->n + 1, tokens = m->job->train.tokens;
    size_t cells = (size_t)m->job->owners * m->units;
    m->repeat = mem_try_array((size_t)m->job->learned.rows->n + 1, sizeof(*m->repeat));
    m->part = mem_try_array(n, sizeof(*m->part));
    m->target = mem_try_array(held->begin[held->n] + 1, sizeof(*m->target));
    m->count = mem_try_array(n, sizeof(*m->count));
    m->weight = mem_try_array(tokens, sizeof(*m->weight));
    m->logprob = mem_try_array(tokens, sizeof(*m->logprob));
    m->asked = mem_try_array(tokens, sizeof(*m->asked));
    m->base = mem_try_array(n, sizeof(*m->base));
    m->with = mem_try_array(n, sizeof(*m->with));
    m->worth = mem_try_array(cells, sizeof(*m->worth));
    m->own = mem_try_array(cells, sizeof(*m->own));
    m->gain = mem_try_array(m->units, sizeof(*m->gain));
    bool ok = m->repeat && m->part && m->target && m->count && m->weight && m->logprob &&
              m->asked && m->base && m->with && m->worth && m->own && m->gain;
    return ok ? STATUS_OK
              : err_set(err, STATUS_NO_MEMORY, "no memory for %u held-out rows", held->n);
}

static void close_runner(struct runner *r)
{
    trainer_free(r->trainer);
    train_lora_fini(&r->lora);
    training_rows_fini(&r->rows);
    mem_free(r->nats);
    *r = (struct runner){0};
}

static void free_room(struct measure *m)
{
    void *all[] = {m->repeat, m->part, m->target, m->count, m->weight, m->logprob,
                   m->asked,  m->base, m->with,   m->worth, m->own,    m->gain};
    for (uint32_t i = 0; i < HEAT_MAX; i++)
        close_runner(&m->runner[i]);
    for (size_t i = 0; i < ARRAY_COUNT(all); i++)
        mem_free(all[i]);
    train_pass_free(m->pass);
}

/* What training would not learn is not asked either. */
static void set_targets(struct measure *m)
{
    const struct training_rows *held = m->held->rows;
    for (uint32_t r = 0; r < held->n; r++) {
        for (uint32_t i = 0; i < training_rows_length(held, r); i++) {
            bool asked = training_rows_is_target(held, r, i + 1);
            m->target[held->begin[r] + i] = asked ? held->ids[held->begin[r] + i + 1] : -1;
            m->count[r] += asked;
        }
    }
}

/* ---- what is amiss ---- */

static bool counts(const struct measure *m, uint32_t row)
{
    return m->repeat[row] == row;
}

static enum status check_learned(const struct measure *m, struct errtext *err)
{
    const struct value_job *j = m->job;
    uint32_t n = 0, who = NOBODY;
    bool several = false;
    for (uint32_t i = 0; i < j->learned.rows->n; i++) {
        if (!counts(m, i))
            continue;
        several |= who != NOBODY && who != j->learned.owner[i];
        who = j->learned.owner[i];
        n++;
    }
    if (!several)
        return err_set(err, STATUS_INVALID,
                       "rows of %s contributor count: two are needed, for without one's rows "
                       "something must be left to learn",
                       n ? "one" : "no");
    if (in_folds(m) && n < j->parts)
        return err_set(err, STATUS_INVALID, "folds: found %u, but only %u rows count", j->parts, n);
    return STATUS_OK;
}

static enum status check_held(const struct measure *m, struct errtext *err)
{
    const struct value_job *j = m->job;
    const struct training_rows *held = m->held->rows;
    uint64_t tokens = 0;
    for (uint32_t r = 0; r < held->n; r++) {
        if (training_rows_length(held, r) > j->train.tokens)
            return err_set(err, STATUS_INVALID, "held-out row %u: %u tokens, at most %u (tokens)",
                           r, training_rows_length(held, r), j->train.tokens);
        tokens += m->count[r];
    }
    if (!tokens)
        return err_set(err, STATUS_INVALID, "no held-out row has a token to predict");
    if (in_folds(m))
        return STATUS_OK;
    if (held->n < j->parts)
        return err_set(err, STATUS_INVALID, "folds: found %u, but only %u rows are held out",
                       j->parts, held->n);
    return value_check_apart(j->learned.rows, held, err);
}

/* ---- asking ---- */

static enum status answer(struct measure *m)
{
    enum status st = m->n_asked ? train_pass_run(m->pass) : STATUS_OK;
    for (uint32_t q = 0; q < m->n_asked && !st; q++) {
        const struct asked_row *k = &m->asked[q];
        const int32_t *target = m->target + m->held->rows->begin[k->row];
        double nats = 0;
        for (uint32_t i = 0; i < training_rows_length(m->held->rows, k->row); i++)
            nats -= target[i] < 0 ? 0 : (double)m->logprob[k->at + i];
        k->runner->nats[k->row] = nats;
    }
    m->n_asked = m->used = 0;
    return st;
}

static enum status ask(struct measure *m, struct runner *r, uint32_t row)
{
    const struct training_rows *held = m->held->rows;
    struct train_seq s = {.lora = &r->lora,
                          .ids = held->ids + held->begin[row],
                          .target = m->target + held->begin[row],
                          .weight = m->weight,
                          .logprob = m->logprob + m->used,
                          .n = training_rows_length(held, row)};
    if (!m->count[row])
        return STATUS_OK;
    if (!train_pass_add(m->pass, &s)) {
        enum status st = answer(m);
        s.logprob = m->logprob;
        if (st || !train_pass_add(m->pass, &s))
            return st ? st : STATUS_IO;
    }
    m->asked[m->n_asked++] = (struct asked_row){r, row, m->used};
    m->used += s.n;
    return STATUS_OK;
}

/* fold NOBODY: all of them. */
static bool is_asked(const struct measure *m, uint32_t row, uint32_t fold)
{
    return fold == NOBODY ? true : m->part[row] == fold;
}

static enum status ask_all(struct measure *m, struct runner *r, uint32_t fold)
{
    enum status st = STATUS_OK;
    for (uint32_t row = 0; row < m->held->rows->n && !st; row++) {
        if (is_asked(m, row, fold))
            st = ask(m, r, row);
    }
    return st ? st : answer(m);
}

/* ---- training ---- */

static bool is_learned(const struct measure *m, uint32_t row, uint32_t fold, uint32_t without)
{
    return counts(m, row) && m->job->learned.owner[row] != without &&
           !(in_folds(m) && m->part[row] == fold);
}

static enum status take_rows(struct training_rows *out, const struct measure *m, uint32_t fold,
                             uint32_t without, struct errtext *err)
{
    const struct training_rows *all = m->job->learned.rows;
    uint8_t *take = mem_try_array((size_t)all->n + 1, 1);
    if (!take)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %u rows", all->n);
    for (uint32_t i = 0; i < all->n; i++)
        take[i] = is_learned(m, i, fold, without);
    enum status st = training_rows_pick(out, all, take, err);
    mem_free(take);
    return st;
}

static enum status open_runner(struct measure *m, struct runner *r, uint64_t seed, uint32_t fold,
                               struct errtext *err)
{
    const struct value_job *j = m->job;
    struct train_options opt = j->train;
    r->nats = mem_try_array((size_t)m->held->rows->n + 1, sizeof(*r->nats));
    enum status st =
        r->nats ? train_lora_new(&r->lora, j->config, j->config_bytes, &j->base.model->config, seed,
                                 err)
                : err_set(err, STATUS_NO_MEMORY, "no memory for %u rows", m->held->rows->n);
    if (!st)
        st = take_rows(&r->rows, m, fold, r->without, err);
    if (st || !r->rows.n)
        return st;
    opt.seed = seed;
    if (!j->fixed_warmup)
        opt.optim.warmup = train_warmup(&opt, r->rows.n, TRAIN_WARMUP_PERCENT);
    return trainer_create(&r->trainer, &r->lora, &r->rows, &opt, err);
}

static void tell(struct measure *m, uint32_t n)
{
    double steps = 0, all = 0;
    for (uint32_t i = 0; i < n; i++) {
        steps += m->runner[i].trainer ? trainer_done(m->runner[i].trainer) : 0;
        all += m->runner[i].trainer ? trainer_steps(m->runner[i].trainer) : 0;
    }
    if (m->job->progress)
        m->job->progress(m->job->arg, m->done + (all > 0 ? n * steps / all : 0),
                         (m->job->owners + 1) * m->units / (in_folds(m) ? 1 : m->job->parts));
}

static uint32_t list_running(struct measure *m, uint32_t n, struct trainer **running)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < n; i++) {
        struct trainer *t = m->runner[i].trainer;
        if (t && !trainer_ended(t))
            running[count++] = t;
    }
    return count;
}

static enum status train(struct measure *m, uint32_t n, struct errtext *err)
{
    struct trainer *running[HEAT_MAX];
    struct train_step step[HEAT_MAX];
    struct errtext why[HEAT_MAX];
    enum status ended[HEAT_MAX], st = STATUS_OK;
    bool stepped[HEAT_MAX];
    uint32_t count;
    memset(why, 0, sizeof(why));
    for (uint32_t turn = 0; !st && (count = list_running(m, n, running)) > 0; turn++) {
        const struct train_round round = {running, step, ended, stepped, count, turn % count, why};
        if (train_round(m->pass, &round))
            return err_set(err, STATUS_IO, "training: the backend failed");
        for (uint32_t i = 0; i < count && !st; i++) {
            if (stepped[i] && ended[i])
                st = err_set(err, ended[i], "%s", why[i].text);
        }
        tell(m, n);
    }
    return st;
}

/* ---- a heat ---- */

/* Without whom a heat is the same as with him: he has no row in it. */
static bool has_rows(const struct measure *m, uint32_t fold, uint32_t owner)
{
    for (uint32_t i = 0; i < m->job->learned.rows->n; i++) {
        if (m->job->learned.owner[i] == owner && is_learned(m, i, fold, NOBODY))
            return true;
    }
    return false;
}

static void note_worth(struct measure *m, uint32_t owner, const double *without, uint32_t fold,
                       uint32_t first_unit)
{
    for (uint32_t r = 0; r < m->held->rows->n; r++) {
        bool own = m->held->owner[r] == owner;
        if (m->part[r] == NOBODY || !is_asked(m, r, fold))
            continue;
        struct value_unit *u =
            &(own ? m->own : m->worth)[(size_t)owner * m->units + first_unit + m->part[r]];
        u->nats += without ? without[r] - m->with[r] : 0;
        u->tokens += m->count[r];
    }
}

static void note_gain(struct measure *m, const struct runner *all, uint32_t fold,
                      uint32_t first_unit)
{
    for (uint32_t r = 0; r < m->held->rows->n; r++) {
        if (m->part[r] == NOBODY || !is_asked(m, r, fold))
            continue;
        struct value_unit *u = &m->gain[first_unit + m->part[r]];
        m->with[r] = all->nats[r];
        u->nats += m->base[r] - m->with[r];
        u->tokens += m->count[r];
    }
}

/* Those whose `without` is set already. */
static enum status run_together(struct measure *m, uint32_t n, uint64_t seed, uint32_t fold,
                                struct errtext *err)
{
    enum status st = STATUS_OK;
    for (uint32_t i = 0; i < n && !st; i++)
        st = open_runner(m, &m->runner[i], seed, fold, err);
    if (!st)
        st = train(m, n, err);
    for (uint32_t i = 0; i < n && !st; i++) {
        st = ask_all(m, &m->runner[i], in_folds(m) ? fold : NOBODY);
        if (st)
            (void)err_set(err, st, "held-out rows: the backend failed");
    }
    return st;
}

/* The next of the contributors who have rows stand behind the first n; how many there are then. */
static uint32_t next_runners(struct measure *m, uint32_t fold, uint32_t *owner, uint32_t n)
{
    for (; *owner < m->job->owners && n < m->together; (*owner)++) {
        if (has_rows(m, fold, *owner))
            m->runner[n++].without = *owner;
    }
    return n;
}

static enum status run_heat(struct measure *m, uint32_t seed_at, uint32_t fold, struct errtext *err)
{
    uint32_t first_unit = seed_at * m->job->parts, owner = 0;
    uint32_t asked = in_folds(m) ? fold : NOBODY;
    enum status st = STATUS_OK;
    m->runner[0].without = NOBODY;
    for (uint32_t n = next_runners(m, fold, &owner, 1); n && !st;
         n = next_runners(m, fold, &owner, 0)) {
        st = run_together(m, n, m->job->train.seed + seed_at, fold, err);
        for (uint32_t i = 0; i < n && !st; i++) {
            const struct runner *r = &m->runner[i];
            if (r->without == NOBODY)
                note_gain(m, r, asked, first_unit);
            else
                note_worth(m, r->without, r->nats, asked, first_unit);
        }
        for (uint32_t i = 0; i < n; i++)
            close_runner(&m->runner[i]);
        m->done += n;
    }
    for (owner = 0; owner < m->job->owners && !st; owner++) {
        if (!has_rows(m, fold, owner))
            note_worth(m, owner, NULL, asked, first_unit);
    }
    return st;
}

/* ---- all ---- */

static enum status deal(struct measure *m, uint64_t seed, struct errtext *err)
{
    const struct value_job *j = m->job;
    uint32_t n = m->held->rows->n, *group = mem_try_array((size_t)n + 1, sizeof(*group));
    if (!group)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %u rows", n);
    for (uint32_t r = 0; r < n; r++)
        group[r] = in_folds(m) && !counts(m, r) ? j->owners + 1 : m->held->owner[r];
    enum status st = value_deal(m->part, group, n, j->owners + 1, j->parts, seed, err);
    mem_free(group);
    return st;
}

/* The base's losses, by an adapter that is new; and with it the room that each takes. */
static enum status run_base(struct measure *m, struct errtext *err)
{
    const struct value_job *j = m->job;
    struct runner *r = &m->runner[0];
    struct train_pass_options po = {.tokens = j->train.tokens,
                                    .dropout = j->train.dropout > 0,
                                    .bytes_max = mem_machine_bytes() / 4};
    r->nats = mem_array((size_t)m->held->rows->n + 1, sizeof(*r->nats));
    enum status st =
        train_lora_new(&r->lora, j->config, j->config_bytes, &j->base.model->config, 0, err);
    if (st)
        return st;
    uint64_t each = r->lora.blob_bytes + trainer_bytes(r->lora.n), most = mem_machine_bytes() / 4;
    m->together = (uint32_t)MIN(MAX(most / MAX(each, 1u), 2u), HEAT_MAX);
    po.adapters_max = m->together;
    po.rank_sum_max = r->lora.rank_sum_max;
    st = train_pass_create(&m->pass, &j->base, &po, err);
    if (!st && ask_all(m, r, NOBODY))
        st = err_set(err, STATUS_IO, "held-out rows: the backend failed");
    memcpy(m->base, r->nats, m->held->rows->n * sizeof(*m->base));
    close_runner(r);
    return st;
}

static void put_line(const struct measure *m, struct value_line *l, uint32_t owner)
{
    const struct value_job *j = m->job;
    const struct value_unit *own = m->own + (size_t)owner * m->units;
    struct value_figure f;
    *l = (struct value_line){0};
    memcpy(l->owner, j->owner[owner], 20);
    for (uint32_t i = 0; i < j->learned.rows->n; i++) {
        if (j->learned.owner[i] != owner)
            continue;
        l->rows += counts(m, i);
        l->repeated += !counts(m, i);
    }
    value_figure_of(&l->worth, m->worth + (size_t)owner * m->units, m->units, j->seeds);
    value_figure_of(&f, own, m->units, j->seeds);
    l->has_own = f.tokens > 0;
    l->own = f.value;
}

static void put_report(const struct measure *m, struct value_report *out)
{
    const struct value_job *j = m->job;
    struct value_unit all = {0};
    struct value_figure base;
    out->folds = j->parts;
    out->seeds = j->seeds;
    out->seed = j->train.seed;
    out->n = j->owners;
    out->line = mem_array(j->owners, sizeof(*out->line));
    for (uint32_t c = 0; c < j->owners; c++)
        put_line(m, &out->line[c], c);
    qsort(out->line, out->n, sizeof(*out->line), value_line_order);
    for (uint32_t r = 0; r < m->held->rows->n; r++) {
        all.nats += m->part[r] == NOBODY ? 0 : m->base[r];
        all.tokens += m->part[r] == NOBODY ? 0 : m->count[r];
    }
    value_figure_of(&base, &all, 1, 1);
    value_figure_of(&out->gain, m->gain, m->units, j->seeds);
    out->base_loss = base.value;
    out->loss = base.value - out->gain.value;
}

static enum status run_all(struct measure *m, struct errtext *err)
{
    enum status st = STATUS_OK;
    for (uint32_t s = 0; s < m->job->seeds && !st; s++) {
        st = deal(m, m->job->train.seed + s, err);
        for (uint32_t f = 0; f < (in_folds(m) ? m->job->parts : 1) && !st; f++)
            st = run_heat(m, s, f, err);
    }
    return st;
}

enum status value_measure(struct value_report *out, const struct value_job *job,
                          struct errtext *err)
{
    struct measure *m = mem_alloc(sizeof(*m));
    m->job = job;
    m->held = job->held.rows ? &job->held : &job->learned;
    m->units = job->parts * job->seeds;
    enum status st = make_room(m, err);
    if (!st)
        st = value_repeats(m->repeat, job->learned.rows, err);
    if (!st) {
        set_targets(m);
        st = check_learned(m, err);
    }
    if (!st)
        st = check_held(m, err);
    if (!st)
        st = run_base(m, err);
    if (!st)
        st = run_all(m, err);
    if (!st)
        put_report(m, out);
    free_room(m);
    mem_free(m);
    return st;
}
