/* The state of training in one file, little-endian:
 *
 *   "RSTRAIN2" | what 32 | done u32 | evaluations u32 | weights u64 | kept u32 | best u32 |
 *   losses [done] f32 | evaluations [step u32, loss f32] | w, m, v [weights] f32 each, and where
 *   kept is 1 the weights of the best evaluation | BLAKE2b-256 of all before */
#include "server/base/mem.h"
#include "server/train/sealed.h"
#include "server/train/trainer_impl.h"

#include <inttypes.h>
#include <string.h>

#define HEAD_BYTES  64
#define STATE_MAGIC "RSTRAIN2"

struct state_head {
    uint32_t done, evals, kept, best;
    uint64_t weights;
};

static void put_head(uint8_t head[HEAD_BYTES], const struct trainer *t, const uint8_t what[32])
{
    uint64_t weights = t->lora->n;
    uint32_t kept = t->eval.kept && t->eval.n;
    memset(head, 0, HEAD_BYTES);
    memcpy(head, STATE_MAGIC, 8);
    memcpy(head + 8, what, 32);
    memcpy(head + 40, &t->done, 4);
    memcpy(head + 44, &t->eval.n, 4);
    memcpy(head + 48, &weights, 8);
    memcpy(head + 56, &kept, 4);
    memcpy(head + 60, &t->eval.best, 4);
}

static struct state_head get_head(const uint8_t *data)
{
    struct state_head h;
    memcpy(&h.done, data + 40, 4);
    memcpy(&h.evals, data + 44, 4);
    memcpy(&h.weights, data + 48, 8);
    memcpy(&h.kept, data + 56, 4);
    memcpy(&h.best, data + 60, 4);
    return h;
}

static uint64_t state_bytes(const struct state_head *h)
{
    return HEAD_BYTES + SEALED_DIGEST_BYTES + h->done * sizeof(float) +
           h->evals * sizeof(struct train_eval) + (3 + h->kept) * h->weights * sizeof(float);
}

enum status trainer_save(const struct trainer *t, const char *path, const uint8_t what[32],
                         struct errtext *err)
{
    uint8_t head[HEAD_BYTES];
    size_t bytes = t->lora->n * sizeof(float), kept = t->eval.kept && t->eval.n ? bytes : 0;
    const struct file_part part[] = {{head, sizeof(head)},
                                     {t->loss, t->done * sizeof(float)},
                                     {t->eval.made, t->eval.n * sizeof(struct train_eval)},
                                     {t->lora->blob, bytes},
                                     {t->m, bytes},
                                     {t->v, bytes},
                                     {t->eval.kept, kept}};
    put_head(head, t, what);
    return sealed_write(path, part, sizeof(part) / sizeof(*part), 0644, err);
}

/* What the trainer's own room can hold: every count of the head. */
static bool fits(const struct trainer *t, const struct state_head *h)
{
    uint32_t evals = t->eval.rows ? trainer_steps(t) / t->eval.every + 1 : 0;
    return h->weights == t->lora->n && h->done <= trainer_steps(t) && h->evals <= evals &&
           h->kept == (t->eval.kept && h->evals) && (h->evals ? h->best < h->evals : !h->best);
}

static enum status check_state(const struct trainer *t, const char *path, const uint8_t *data,
                               size_t len, const uint8_t what[32], struct errtext *err)
{
    enum sealed_found found = sealed_check(data, len, STATE_MAGIC, HEAD_BYTES);
    if (found == SEALED_STRANGE)
        return err_set(err, STATUS_CORRUPT, "%s: no state of training", path);
    if (found == SEALED_DAMAGED)
        return err_set(err, STATUS_CORRUPT, "%s: fails its check: it was cut or changed", path);
    if (memcmp(data + 8, what, 32) != 0)
        return err_set(err, STATUS_CONFLICT,
                       "%s: of training with another base, other rows or other options; remove it "
                       "to begin anew",
                       path);
    struct state_head h = get_head(data);
    if (!fits(t, &h) || len != state_bytes(&h))
        return err_set(err, STATUS_CORRUPT, "%s: %" PRIu64 " weights after %u steps, expected %zu",
                       path, h.weights, h.done, t->lora->n);
    return STATUS_OK;
}

static void take(void *to, size_t bytes, const char **at)
{
    if (bytes)
        memcpy(to, *at, bytes);
    *at += bytes;
}

enum status trainer_resume(struct trainer *t, const char *path, const uint8_t what[32],
                           struct errtext *err)
{
    char *data;
    size_t len, bytes = t->lora->n * sizeof(float);
    struct state_head most = {.done = trainer_steps(t), .evals = trainer_steps(t), .kept = 1};
    most.weights = t->lora->n;
    enum status st = file_read(path, state_bytes(&most), &data, &len, err);
    if (st)
        return st;
    st = check_state(t, path, (const uint8_t *)data, len, what, err);
    if (!st) {
        const struct state_head h = get_head((const uint8_t *)data);
        const char *at = data + HEAD_BYTES;
        t->open = false;
        t->used = 0;
        t->done = h.done;
        t->eval.n = h.evals;
        t->eval.best = h.best;
        take(t->loss, h.done * sizeof(float), &at);
        take(t->eval.made, h.evals * sizeof(struct train_eval), &at);
        take(t->lora->blob, bytes, &at);
        take(t->m, bytes, &at);
        take(t->v, bytes, &at);
        take(t->eval.kept, h.kept * bytes, &at);
        evaluating_set(t);
    }
    mem_free(data);
    return st;
}
