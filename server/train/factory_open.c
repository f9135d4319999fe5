/* What a job needs in memory: rows as tokens, a fresh adapter, a trainer. The same for its check,
 * so that what was accepted can run. */
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/train/factory_impl.h"

#include <inttypes.h>
#include <sodium.h>
#include <string.h>

static enum status find_datanet(struct factory *f, const uint8_t root[32], const char *param,
                                struct datanet **out, struct errtext *err)
{
    *out = datanet_store_find(f->deps.datanets, root);
    return *out ? STATUS_OK
                : err_param(err, STATUS_NOT_FOUND, param,
                            "%s: no datanet of this document root is here with all its texts",
                            param);
}

/* Rows end with the end of a sequence, where the tokenizer has one. */
static bool has_eos(const struct model *m)
{
    const char *text = model_special_text(m, "eos_token");
    return text && tokenizer_token_to_id(m->tokenizer, text) >= 0;
}

static enum status open_rows(struct factory *f, const struct job_from *from, struct job_run *r,
                             struct errtext *err)
{
    const struct model *m = f->deps.base.model;
    enum status st = find_datanet(f, from->document_root, "training_file", &r->datanet, err);
    if (!st)
        st = from->training ? training_parse(&r->training, from->training, from->training_bytes,
                                             r->datanet, err)
                            : training_build(&r->training, r->datanet, m->add_bos, has_eos(m),
                                             m->tokenizer_digest, err);
    if (!st && memcmp(r->training->tokenizer_digest, m->tokenizer_digest, 32) != 0)
        st = err_param(err, STATUS_INVALID, "training",
                       TRAINING_FILE ": tokenizerDigest is of another base");
    if (!st)
        st = training_rows_read(&r->rows, r->datanet, r->training, m, from->train->mask, &f->stop,
                                err);
    if (!st && r->rows.n == 0)
        st = err_param(err, STATUS_INVALID, "training_file", "training_file: it has no rows");
    r->tokens = st ? 0 : r->rows.begin[r->rows.n];
    return st;
}

/* All rows of the datanet that judges, marked and masked as those that are learned. */
static enum status open_held(struct factory *f, const struct job_from *from, struct job_run *r,
                             struct errtext *err)
{
    const struct model *m = f->deps.base.model;
    enum status st = find_datanet(f, from->eval_root, "validation_file", &r->eval, err);
    if (!st)
        st = training_build(&r->held, r->eval, r->training->bos, r->training->eos,
                            m->tokenizer_digest, err);
    if (!st)
        st = training_rows_read(&r->held_rows, r->eval, r->held, m, from->train->mask, &f->stop,
                                err);
    if (st && st != STATUS_NOT_FOUND)
        err_prefix(err, "validation_file");
    return st;
}

/* Each epoch, and ten times at least. */
static enum status ask_held(struct job_run *r, struct errtext *err)
{
    uint32_t steps = trainer_steps(r->trainer), epoch = steps / r->opt.epochs;
    uint32_t every = MAX(MIN(epoch, steps / 10), 1u);
    if (!r->eval)
        return STATUS_OK;
    r->evaluation = (struct train_evaluation){.rows = &r->held_rows, .every = every};
    enum status st = trainer_evaluate(r->trainer, &r->evaluation, err);
    if (st)
        err_prefix(err, "validation_file");
    return st;
}

enum status factory_new_adapter(const struct factory *f, const char *config, size_t len,
                                uint64_t seed, struct train_lora *lora, uint64_t *bytes,
                                struct errtext *err)
{
    enum status st = train_lora_new(lora, config, len, &f->deps.base.model->config, seed, err);
    if (st)
        return st;
    *bytes = lora->blob_bytes + trainer_bytes(lora->n);
    return lora->rank_sum_max <= f->rank_sum_max
               ? STATUS_OK
               : err_param(err, STATUS_INVALID, "rank",
                           "rank: modules of one input add up to %u, at most %u (three of %u)",
                           lora->rank_sum_max, f->rank_sum_max, f->opt.rank_max);
}

enum status factory_publish_weights(const struct factory *f, const struct train_lora *lora,
                                    const struct buf *weights, struct publish_upload *u,
                                    struct errtext *err)
{
    u->config_json = lora->config_json;
    u->config_bytes = lora->config_bytes;
    u->tensors = weights->data;
    u->tensor_bytes = weights->len;
    u->replace = true;
    return f->deps.publish(f->deps.publish_arg, u, err);
}

static enum status open_adapter(struct factory *f, const struct job_from *from, struct job_run *r,
                                struct errtext *err)
{
    enum status st = factory_new_adapter(f, from->peft_config, from->peft_config_bytes,
                                         from->train->seed, &r->lora, &r->bytes, err);
    if (st)
        return st;
    if (r->bytes > f->opt.bytes_max / 2)
        return err_param(err, STATUS_TOO_LARGE, "rank",
                         "rank: training %" PRIu64 " weights takes %" PRIu64
                         " bytes, at most %" PRIu64 " (half of train_bytes_max)",
                         r->lora.weights, r->bytes, f->opt.bytes_max / 2);
    return factory_check_device(f, &r->lora, err);
}

enum status factory_open_run(struct factory *f, const struct job_from *from, struct job_run *r,
                             struct errtext *err)
{
    enum status st = open_rows(f, from, r, err);
    if (!st && !sodium_is_zero(from->eval_root, 32))
        st = open_held(f, from, r, err);
    if (!st)
        st = open_adapter(f, from, r, err);
    if (st)
        return st;
    r->opt = *from->train;
    r->opt.tokens = f->opt.tokens;
    if (from->warmup_percent != UINT32_MAX)
        r->opt.optim.warmup = train_warmup(&r->opt, r->rows.n, from->warmup_percent);
    st = trainer_create(&r->trainer, &r->lora, &r->rows, &r->opt, err);
    if (!st)
        st = ask_held(r, err);
    r->report = (struct train_report){.model = f->deps.base.model,
                                      .datanet = r->datanet,
                                      .training = r->training,
                                      .options = &r->opt,
                                      .trainer = r->trainer,
                                      .lora = &r->lora,
                                      .eval = r->eval ? &r->evaluation : NULL,
                                      .held = r->held,
                                      .held_of = r->eval,
                                      .version = f->opt.version};
    train_what(r->what, &r->report);
    return st;
}

void factory_close_run(struct job_run *r)
{
    trainer_free(r->trainer);
    train_lora_fini(&r->lora);
    training_rows_fini(&r->rows);
    training_rows_fini(&r->held_rows);
    training_free(r->held);
    training_free(r->training);
    datanet_release(r->datanet);
    datanet_release(r->eval);
}
