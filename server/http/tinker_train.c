/* Tinker's training calls: a model, passes over batches, steps. A body is parsed and its spans are
 * checked here, before the factory hears of it, so that a bad one is a 400 and changes nothing. */
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/base/proto.h"
#include "server/http/handlers.h"
#include "server/http/tinker_parts.h"

#include <math.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>

#define F32       1 /* DType of tinker_public */
#define SEEDS_MAX INT64_MAX

bool tinker_is_off(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    if (x->server->deps.factory)
        return false;
    (void)err_set(&err, STATUS_UNSUPPORTED,
                  "this server trains no adapters: train is off, or its backend cannot");
    tinker_fail(x, STATUS_UNSUPPORTED, &err);
    return true;
}

/* ---- create_model ---- */

static enum status read_lora(struct json_reader *in, struct tinker_lora *out)
{
    struct json_reader lora = json_enter(in, "lora_config");
    struct json_reader optimizer = json_enter(in, "optimizer_config");
    const char *type = json_read_string(&optimizer, "type");
    if (!in->st && !lora.obj)
        json_fail(in, STATUS_INVALID, "lora_config", "is missing: adapters alone are trained");
    out->rank = (uint32_t)json_need_int(&lora, "rank", (struct json_range){1, 1024});
    out->seed = (uint64_t)json_read_int(&lora, "seed", (struct json_range){0, SEEDS_MAX}, -1);
    out->mlp = json_read_bool(&lora, "train_mlp", true);
    out->attn = json_read_bool(&lora, "train_attn", true);
    if (!in->st && !out->mlp && !out->attn)
        json_fail(&lora, STATUS_UNSUPPORTED, "train_unembed",
                  "the unembedding is not trained by this server; set train_mlp or train_attn");
    if (!in->st && type && strcmp(type, "adamw") != 0)
        json_fail(&optimizer, STATUS_UNSUPPORTED, "type", "found \"%.40s\", this server has adamw",
                  type);
    if (!json_has(&lora, "seed"))
        randombytes_buf(&out->seed, sizeof(out->seed));
    return in->st;
}

static enum status check_base(struct exchange *x, struct json_reader *in)
{
    const char *base = json_need_string(in, "base_model");
    if (in->st || strcmp(base, x->server->opt.model_name) == 0)
        return in->st;
    return err_param(in->err, STATUS_NOT_FOUND, "base_model",
                     "base_model: found \"%.128s\", this server trains \"%s\"", base,
                     x->server->opt.model_name);
}

/* The future is done when the call returns: a learner is made at once. */
static void create(struct exchange *x, struct tinker_session *s, uint32_t seq,
                   const struct tinker_lora *lora)
{
    struct errtext err = ERRTEXT_INIT;
    char id[TINKER_ID_BYTES];
    snprintf(id, sizeof(id), "%s:train:%u", s->id, seq);
    struct tinker_future *f = tinker_open(x, s, TINKER_CREATE, id, 0);
    if (!f)
        return;
    enum status st = tinker_new_model(x, s, seq, lora, &f->model, &err);
    if (!st) {
        tinker_done_at_once(x, f);
        return;
    }
    tinker_drop(f);
    x->retry_after_ms = st == STATUS_FULL ? TINKER_RETRY_MS : 0;
    tinker_fail(x, st, &err);
}

void handle_tinker_create_model(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    struct tinker_lora lora;
    struct json_reader in;
    json_t *root = NULL;
    if (tinker_is_off(x))
        return;
    tinker_body(x, &root, &in, &err);
    const char *id = json_need_string(&in, "session_id");
    int64_t seq = json_need_int(&in, "model_seq_id", (struct json_range){0, INT32_MAX});
    enum status st = check_base(x, &in);
    if (!st)
        st = read_lora(&in, &lora);
    struct tinker_session *s = st ? NULL : tinker_hold(x, id);
    if (st)
        tinker_fail(x, st, &err);
    if (s) {
        create(x, s, (uint32_t)seq, &lora);
        tinker_release(x->server->tinker, s);
    }
    json_decref(root);
}

/* ---- forward_backward ---- */

/* NaN: of the first datum whose loss is none, *bad. */
static double loss_of(const struct tinker_batch *b, uint32_t *bad)
{
    double sum = 0;
    for (uint32_t i = 0; i < b->n; i++) {
        const struct tinker_loss l = tinker_batch_loss(b, &b->datum[i]);
        double loss = tinker_loss_of(&l, b->datum[i].logprob, NULL);
        *bad = i;
        if (!isfinite(loss))
            return loss;
        sum += loss;
    }
    return sum;
}

/* Factory's thread. */
static void weigh(void *arg, uint32_t i, const float *logprob, float *weight)
{
    struct tinker_future *f = arg;
    uint32_t bad;
    if (i == 0) /* all log-probabilities are here before the first is asked for */
        f->spoiled = !isfinite(loss_of(&f->batch, &bad));
    if (f->spoiled) {
        memset(weight, 0, f->batch.datum[i].n * sizeof(*weight));
        return;
    }
    const struct tinker_loss l = tinker_batch_loss(&f->batch, &f->batch.datum[i]);
    (void)tinker_loss_of(&l, logprob, weight);
}

static bool lend_seqs(struct tinker_future *f)
{
    const struct tinker_batch *b = &f->batch;
    f->seq = mem_try_array(b->n, sizeof(*f->seq));
    for (uint32_t i = 0; f->seq && i < b->n; i++) {
        const struct tinker_datum *d = &b->datum[i];
        f->seq[i] = (struct factory_seq){.ids = d->ids,
                                         .target = d->target,
                                         .weight = d->weight,
                                         .logprob = d->logprob,
                                         .n = d->n};
    }
    return f->seq != NULL;
}

/* Takes batch and rows. */
static void begin_pass(struct exchange *x, struct tinker_session *s, struct tinker_batch *b,
                       struct tinker_rows *rows)
{
    struct errtext err = ERRTEXT_INIT;
    enum status st = STATUS_OK;
    struct tinker_model *m = tinker_find_model(x, s, b->model_id);
    if (m)
        st = tinker_rows_asked(m, NULL, rows, &err);
    if (st)
        tinker_fail(x, st, &err);
    struct tinker_future *f = m && !st ? tinker_open(x, s, TINKER_PASS, m->id, b->seq_id) : NULL;
    if (!f) {
        tinker_batch_fini(b);
        tinker_rows_fini(rows);
        return;
    }
    f->model = m;
    f->batch = *b;
    f->rows = *rows;
    tinker_charge(f, b->memory.used + b->n * sizeof(*f->seq));
    if (!lend_seqs(f)) {
        (void)err_set(&err, STATUS_NO_MEMORY, "there is no memory for this batch now");
        tinker_drop(f);
        tinker_fail(x, STATUS_NO_MEMORY, &err);
        return;
    }
    f->work = (struct factory_work){.kind = FACTORY_PASS,
                                    .seq = f->seq,
                                    .n_seq = f->batch.n,
                                    .forward_only = f->batch.forward_only,
                                    .weigh = f->batch.loss == TINKER_CROSS_ENTROPY ? NULL : weigh};
    tinker_begin_work(x, f);
}

void handle_tinker_forward_backward(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    struct tinker_batch b;
    struct tinker_rows rows = {.row = NULL};
    if (tinker_is_off(x))
        return;
    enum status st = tinker_batch_parse(&b, x->body.data, x->body.len, &err);
    if (st) {
        tinker_fail(x, st, &err);
        return;
    }
    exchange_drop_body(x);
    if (!b.forward_only)
        st = tinker_rows_of(&rows, x->server, &b, &err);
    struct tinker_session *s = st ? NULL : tinker_hold(x, b.model_id);
    if (st)
        tinker_fail(x, st, &err);
    if (s) {
        begin_pass(x, s, &b, &rows);
        tinker_release(x->server->tinker, s);
    } else {
        tinker_batch_fini(&b);
        tinker_rows_fini(&rows);
    }
}

/* ---- optim_step ---- */

static enum status read_adam(struct json_reader *in, struct optim_options *o)
{
    struct json_reader adam = json_enter(in, "adam_params");
    if (!in->st && !adam.obj)
        json_fail(in, STATUS_UNSUPPORTED, "adam_params", "is missing: this server has AdamW");
    *o = (struct optim_options){.schedule = OPTIM_CONSTANT, .steps = UINT32_MAX};
    o->lr = json_read_num(&adam, "learning_rate", 0, 1e6, 1e-4);
    o->beta1 = json_read_num(&adam, "beta1", 0, 1 - 1e-9, 0.9);
    o->beta2 = json_read_num(&adam, "beta2", 0, 1 - 1e-9, 0.95);
    o->eps = json_read_num(&adam, "eps", 0, 1, 1e-12);
    o->weight_decay = json_read_num(&adam, "weight_decay", 0, 1e6, 0);
    o->clip = fmax(0, json_read_num(&adam, "grad_clip_norm", -1e30, 1e30, 0));
    return in->st;
}

static enum status prepare_step(struct exchange *x, struct tinker_future *f, struct json_reader *in)
{
    struct optim_options adam;
    enum status st = read_adam(in, &adam);
    (void)x;
    f->work = (struct factory_work){.kind = FACTORY_OPTIM, .optim = adam};
    return st;
}

void handle_tinker_optim_step(struct exchange *x)
{
    tinker_call(x, TINKER_OPTIM, prepare_step);
}

/* ---- answers ---- */

/* BatchedTensor of the log-probabilities: the datums' one after the other, and where each begins in
 * bytes. */
static void put_logprobs(struct buf *out, const struct tinker_batch *b)
{
    struct buf data, offsets;
    int64_t at = 0;
    buf_init(&data, out->bytes_max);
    buf_init(&offsets, out->bytes_max);
    buf_put(&offsets, &at, sizeof(at));
    for (uint32_t i = 0; i < b->n; i++) {
        buf_put(&data, b->datum[i].logprob, b->datum[i].n * sizeof(float));
        at += (int64_t)(b->datum[i].n * sizeof(float));
        buf_put(&offsets, &at, sizeof(at));
    }
    out->failed = out->failed || data.failed || offsets.failed;
    proto_put_bytes(out, 1, data.data, data.len);
    proto_put_bytes(out, 2, offsets.data, offsets.len);
    proto_put_int(out, 3, F32);
    buf_fini(&data);
    buf_fini(&offsets);
}

/* ForwardBackwardOutput {1 loss_fn_output_type, 2 ArrayRecord {2 fields, 3 num_datums}, 3 metrics}.
 */
static void put_output(struct tinker_future *f, double loss)
{
    struct buf *out = &f->out;
    f->is_proto = true;
    proto_put_text(out, 1, "ArrayRecord");
    size_t record = proto_begin(out, 2), field = proto_begin(out, 2);
    proto_put_text(out, 1, "logprobs");
    size_t tensor = proto_begin(out, 2);
    put_logprobs(out, &f->batch);
    proto_end(out, tensor);
    proto_end(out, field);
    proto_put_int(out, 3, f->batch.n);
    proto_end(out, record);
    size_t metric = proto_begin(out, 3);
    proto_put_text(out, 1, "loss:sum");
    proto_put_double(out, 2, loss);
    proto_end(out, metric);
}

static void finish_pass(struct tinker_future *f, struct errtext *err)
{
    struct tinker *t = f->t;
    uint32_t bad = 0;
    double loss = loss_of(&f->batch, &bad);
    enum status st = STATUS_OK;
    if (!isfinite(loss))
        st = err_set(err, STATUS_INVALID,
                     "data[%u]: the loss is not finite; the gradient of this batch was left out",
                     bad);
    if (!st && !f->batch.forward_only) {
        pthread_mutex_lock(&t->lock);
        st = tinker_rows_add(&f->model->rows, &f->rows, err);
        pthread_mutex_unlock(&t->lock);
    }
    if (st) {
        tinker_put_failure(f, st, err);
        return;
    }
    atomic_fetch_add(&t->datums, f->batch.n);
    put_output(f, loss);
}

static void finish_step(struct tinker_future *f, struct errtext *err)
{
    if (isfinite(f->work.norm)) {
        pthread_mutex_lock(&f->t->lock);
        f->model->stepped = true;
        pthread_mutex_unlock(&f->t->lock);
        buf_printf(&f->out, "{\"metrics\":{\"grad_norm\":%.9g}}", f->work.norm);
        return;
    }
    enum status st =
        err_set(err, STATUS_INVALID, "the gradient is not finite; the step changed nothing");
    tinker_put_failure(f, st, err);
}

void tinker_finish_train(struct tinker_future *f)
{
    struct errtext err = f->work.err;
    if (f->work.status)
        tinker_put_failure(f, f->work.status, &err);
    else if (f->kind == TINKER_PASS)
        finish_pass(f, &err);
    else
        finish_step(f, &err);
}
