/* Learners: adapters that clients train step by step. A PASS whose weights depend on the
 * log-probabilities goes through twice, first without gradients. Their state is a file like a
 * job's: little-endian
 *
 *   "RSLEARN1" | steps u32 | 0 u32 | weights u64 | what 32 | w, m, v [weights] f32 each |
 *   BLAKE2b-256 of all before
 *
 * what: BLAKE2b-256 of the base's id and adapter_config.json: weights go into no other shape. */
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/train/factory_impl.h"
#include "server/train/sealed.h"

#include <inttypes.h>
#include <math.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>

#define HEAD_BYTES  56
#define STATE_MAGIC "RSLEARN1"

/* ---- life ---- */

void learner_free(struct learner *l)
{
    if (!l)
        return;
    train_lora_fini(&l->lora);
    mem_free(l->grad);
    mem_free(l->m);
    mem_free(l->v);
    mem_free(l);
}

static enum status make_learner(struct factory *f, const struct factory_learner_spec *spec,
                                struct learner *l, struct errtext *err)
{
    enum status st = factory_new_adapter(f, spec->peft_config, spec->peft_config_bytes, spec->seed,
                                         &l->lora, &l->bytes, err);
    if (!st)
        st = factory_check_device(f, &l->lora, err);
    if (st)
        return st;
    snprintf(l->owner, sizeof(l->owner), "%s", spec->owner);
    l->grad = mem_try_array(l->lora.n, sizeof(*l->grad));
    l->m = mem_try_array(l->lora.n, sizeof(*l->m));
    l->v = mem_try_array(l->lora.n, sizeof(*l->v));
    return l->grad && l->m && l->v
               ? STATUS_OK
               : err_set(err, STATUS_NO_MEMORY, "no memory to train %" PRIu64 " weights",
                         l->lora.weights);
}

enum status factory_learner_open(struct factory *f, const struct factory_learner_spec *spec,
                                 uint64_t *learner, struct errtext *err)
{
    struct learner *l = mem_alloc(sizeof(*l));
    uint32_t open = 0;
    enum status st = make_learner(f, spec, l, err);
    pthread_mutex_lock(&f->lock);
    for (uint32_t i = 0; i < f->n_learner; i++)
        open += !f->learner[i]->closed;
    if (!st && (open >= f->opt.learners_max || f->n_learner == FACTORY_LEARNERS_MAX))
        st = err_set(err, STATUS_FULL, "%u adapters are being trained, as many as there may be",
                     open);
    if (!st && f->run_bytes + f->learner_bytes + l->bytes > f->opt.bytes_max / 2)
        st = err_set(err, STATUS_FULL,
                     "no room for %" PRIu64 " bytes beside the others (half of train_bytes_max)",
                     l->bytes);
    if (!st) {
        l->id = ++f->learner_ids;
        f->learner_bytes += l->bytes;
        f->learner[f->n_learner++] = l;
        *learner = l->id;
    }
    pthread_mutex_unlock(&f->lock);
    if (st)
        learner_free(l);
    return st;
}

/* The lock is held. */
static struct learner *find_learner(struct factory *f, uint64_t id)
{
    for (uint32_t i = 0; i < f->n_learner; i++) {
        if (f->learner[i]->id == id && !f->learner[i]->closed)
            return f->learner[i];
    }
    return NULL;
}

void factory_learner_close(struct factory *f, uint64_t learner)
{
    pthread_mutex_lock(&f->lock);
    struct learner *l = find_learner(f, learner);
    if (l)
        l->closed = true;
    pthread_cond_broadcast(&f->work);
    pthread_mutex_unlock(&f->lock);
}

/* ---- works ---- */

static enum status check_sequence(const struct factory *f, const struct factory_seq *s, uint32_t at,
                                  struct errtext *err)
{
    uint32_t vocab = f->deps.base.model->config.n_vocab;
    if (s->n == 0 || s->n > f->opt.tokens)
        return err_set(err, STATUS_INVALID, "sequence %u: %u tokens, expected 1 to %u", at, s->n,
                       f->opt.tokens);
    for (uint32_t i = 0; i < s->n; i++) {
        if (s->ids[i] < 0 || (uint32_t)s->ids[i] >= vocab || s->target[i] >= (int32_t)vocab)
            return err_set(err, STATUS_INVALID,
                           "sequence %u, token %u: found %d and target %d, expected ids below %u",
                           at, i, s->ids[i], s->target[i], vocab);
        if (!isfinite(s->weight[i]))
            return err_set(err, STATUS_INVALID, "sequence %u, token %u: weight %g is no number", at,
                           i, (double)s->weight[i]);
    }
    return STATUS_OK;
}

enum status factory_work(struct factory *f, struct factory_work *w, struct errtext *err)
{
    enum status st = STATUS_OK;
    for (uint32_t i = 0; w->kind == FACTORY_PASS && i < w->n_seq && !st; i++)
        st = check_sequence(f, &w->seq[i], i, err);
    if (st)
        return st;
    w->next = NULL;
    pthread_mutex_lock(&f->lock);
    struct learner *l = find_learner(f, w->learner);
    if (atomic_load(&f->stop))
        st = err_set(err, STATUS_CANCELLED, "the server is stopping");
    else if (!l)
        st = err_set(err, STATUS_NOT_FOUND, "no adapter %" PRIu64 " is being trained", w->learner);
    else if (f->n_work >= f->opt.works_max)
        st = err_set(err, STATUS_FULL, "%u works wait, as many as there may be; retry later",
                     f->n_work);
    if (!st) {
        if (l->last)
            l->last->next = w;
        else
            l->first = w;
        l->last = w;
        f->n_work++;
        pthread_cond_broadcast(&f->work);
    }
    pthread_mutex_unlock(&f->lock);
    return st;
}

void learner_end_work(struct factory *f, struct learner *l, enum status st,
                      const struct errtext *err)
{
    struct factory_work *w = l->first;
    l->first = w->next;
    l->last = l->first ? l->last : NULL;
    l->taken = l->ran = 0;
    l->weighed = false;
    f->n_work--;
    f->stats.works++;
    w->status = st;
    if (st && err)
        w->err = *err;
    pthread_mutex_unlock(&f->lock);
    w->on_done(w, w->arg);
    pthread_mutex_lock(&f->lock);
}

/* ---- PASS ---- */

/* Its first way through finds the log-probabilities alone. */
static bool is_first_way(const struct learner *l)
{
    return l->first->weigh && !l->weighed && !l->first->forward_only;
}

static bool next_sequence(void *self, struct train_seq *out)
{
    const struct learner *l = self;
    const struct factory_work *w = l->first;
    if (l->taken == w->n_seq)
        return false;
    const struct factory_seq *s = &w->seq[l->taken];
    *out = (struct train_seq){.lora = &l->lora,
                              .grad = w->forward_only || is_first_way(l) ? NULL : l->grad,
                              .ids = s->ids,
                              .target = s->target,
                              .weight = s->weight,
                              .logprob = s->logprob,
                              .n = s->n};
    return true;
}

static void take_sequence(void *self)
{
    ((struct learner *)self)->taken++;
}

struct seq_source learner_source(struct learner *l)
{
    return (struct seq_source){l, next_sequence, take_sequence};
}

void learner_ran(struct learner *l)
{
    const struct factory_work *w = l->first;
    l->ran = l->taken;
    if (l->ran < w->n_seq || !is_first_way(l))
        return;
    for (uint32_t i = 0; i < w->n_seq; i++)
        w->weigh(w->arg, i, w->seq[i].logprob, w->seq[i].weight);
    l->weighed = true;
    l->taken = l->ran = 0;
}

bool learner_complete(const struct learner *l)
{
    return l->ran == l->first->n_seq && !is_first_way(l);
}

/* ---- OPTIM ---- */

void learner_optim(struct learner *l, struct factory_work *w)
{
    struct optim_options o = w->optim;
    o.schedule = OPTIM_CONSTANT;
    o.warmup = 0;
    o.steps = l->steps + 1;
    w->norm = optim_step(&o, l->steps, l->lora.blob, l->m, l->v, l->grad, l->lora.n);
    l->steps += isfinite(w->norm) != 0;
    memset(l->grad, 0, l->lora.n * sizeof(*l->grad));
}

/* ---- SAVE, LOAD, PUBLISH ---- */

static void what_of(const struct factory *f, const struct learner *l, uint8_t what[32])
{
    crypto_generichash_state h;
    crypto_generichash_init(&h, NULL, 0, 32);
    crypto_generichash_update(&h, f->deps.base.model->id, 32);
    crypto_generichash_update(&h, (const uint8_t *)l->lora.config_json, l->lora.config_bytes);
    crypto_generichash_final(&h, what, 32);
}

static enum status save(const struct factory *f, const struct learner *l, const char *path,
                        struct errtext *err)
{
    uint8_t head[HEAD_BYTES] = {0};
    size_t bytes = l->lora.n * sizeof(float);
    uint64_t weights = l->lora.n;
    const struct file_part part[] = {
        {head, sizeof(head)}, {l->lora.blob, bytes}, {l->m, bytes}, {l->v, bytes}};
    memcpy(head, STATE_MAGIC, 8);
    memcpy(head + 8, &l->steps, 4);
    memcpy(head + 16, &weights, 8);
    what_of(f, l, head + 24);
    return sealed_write(path, part, sizeof(part) / sizeof(*part), 0600, err);
}

static enum status check_state(const struct factory *f, const struct learner *l,
                               const uint8_t *data, size_t len, struct errtext *err)
{
    uint8_t what[32];
    enum sealed_found found = sealed_check(data, len, STATE_MAGIC, HEAD_BYTES);
    what_of(f, l, what);
    if (found == SEALED_STRANGE)
        return err_set(err, STATUS_CORRUPT, "no saved state of an adapter");
    if (found == SEALED_DAMAGED)
        return err_set(err, STATUS_CORRUPT,
                       "the saved state fails its check: it was cut or changed");
    if (memcmp(data + 24, what, 32) != 0 ||
        len != HEAD_BYTES + SEALED_DIGEST_BYTES + 3 * l->lora.n * sizeof(float))
        return err_set(err, STATUS_CONFLICT, "the saved state is of another base or adapter");
    return STATUS_OK;
}

static enum status load(const struct factory *f, struct learner *l, const struct factory_work *w,
                        struct errtext *err)
{
    char *data;
    size_t len, bytes = l->lora.n * sizeof(float);
    enum status st =
        file_read(w->path, HEAD_BYTES + SEALED_DIGEST_BYTES + 3 * bytes, &data, &len, err);
    if (st)
        return st;
    st = check_state(f, l, (const uint8_t *)data, len, err);
    if (!st) {
        const char *at = data + HEAD_BYTES;
        memcpy(l->lora.blob, at, bytes);
        memset(l->m, 0, bytes);
        memset(l->v, 0, bytes);
        memset(l->grad, 0, bytes);
        l->steps = 0;
    }
    if (!st && w->with_optim) {
        memcpy(l->m, data + HEAD_BYTES + bytes, bytes);
        memcpy(l->v, data + HEAD_BYTES + 2 * bytes, bytes);
        memcpy(&l->steps, data + 8, 4);
    }
    mem_free(data);
    return st;
}

static enum status publish(struct factory *f, const struct learner *l, struct factory_work *w,
                           struct errtext *err)
{
    struct buf weights;
    buf_init(&weights, SIZE_MAX / 2);
    enum status st = train_lora_render(&l->lora, &weights, err);
    struct publish_upload u = {.name = w->name,
                               .key_name = l->owner,
                               .quota_bytes = w->quota_bytes,
                               .training = w->training,
                               .training_bytes = w->training_bytes,
                               .id = w->adapter_id};
    if (!st)
        st = factory_publish_weights(f, &l->lora, &weights, &u, err);
    buf_fini(&weights);
    return st;
}

enum status learner_file_work(struct factory *f, struct learner *l, struct factory_work *w,
                              struct errtext *err)
{
    if (w->kind == FACTORY_SAVE)
        return save(f, l, w->path, err);
    return w->kind == FACTORY_LOAD ? load(f, l, w, err) : publish(f, l, w, err);
}
