/* See gradients.h. A pass takes several rows at once, each as an adapter of its own over the same
 * weights: so each gets a gradient of its own, at the cost of one batch. */
#include "server/influence/gradients.h"
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/base/philox.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

#define TOGETHER     16         /* rows of a pass */
#define PROJECT_DRAW 0x70726f6a /* of drawing a projection */

static_assert(GRADIENTS_PROJECT_MAX == 4 * 32, "a draw's bits are the signs of one place");

/* ---- blocks ---- */

static void add_block(struct gradient_blocks *out, const struct train_lora *l, uint32_t entry,
                      bool is_b, uint32_t project)
{
    const struct lora_entry *e = &l->entry[entry];
    uint32_t d_out, d_in, layer = entry / LORA_MODULE_COUNT, module = entry % LORA_MODULE_COUNT;
    model_module_shape(l->base, (enum lora_module)module, &d_out, &d_in);
    uint32_t length = is_b ? d_out : d_in;
    uint32_t columns = project && project < length ? project : length;
    out->block[out->n++] =
        (struct gradient_block){.layer = layer,
                                .module = module,
                                .rank = e->rank,
                                .is_b = is_b,
                                .length = length,
                                .columns = columns,
                                .at = out->width,
                                .blob_at = (is_b ? e->b_off : e->a_off) / sizeof(float)};
    out->width += (uint64_t)e->rank * columns;
}

void gradient_blocks_make(struct gradient_blocks *out, const struct train_lora *lora,
                          uint32_t project, uint64_t seed)
{
    uint32_t entries = lora->base->n_layer * LORA_MODULE_COUNT;
    CHECK(project <= GRADIENTS_PROJECT_MAX);
    *out = (struct gradient_blocks){.seed = seed};
    out->block = mem_array((size_t)entries * 2, sizeof(*out->block));
    for (uint32_t i = 0; i < entries; i++) {
        for (uint32_t side = 0; side < 2 && lora->entry[i].rank; side++)
            add_block(out, lora, i, side == 1, project);
    }
}

void gradient_blocks_fini(struct gradient_blocks *b)
{
    mem_free(b->block);
    *b = (struct gradient_blocks){0};
}

/* out[r][j] += in[r][l] * sign(l, j) / sqrt(columns): signs of a place l are the bits of one draw.
 */
static void project_block(const struct gradient_blocks *b, uint32_t index, const float *in,
                          float *out)
{
    const struct gradient_block *k = &b->block[index];
    if (k->columns == k->length) {
        memcpy(out, in, (size_t)k->rank * k->length * sizeof(*out));
        return;
    }
    const float unit = (float)(1 / sqrt(k->columns));
    memset(out, 0, (size_t)k->rank * k->columns * sizeof(*out));
    for (uint32_t l = 0; l < k->length; l++) {
        const uint32_t ctr[4] = {l, index, PROJECT_DRAW, 0};
        uint32_t bits[4];
        float sign[GRADIENTS_PROJECT_MAX];
        philox4x32(bits, ctr, b->seed);
        for (uint32_t j = 0; j < k->columns; j++)
            sign[j] = bits[j / 32] >> (j % 32) & 1 ? unit : -unit;
        for (uint32_t r = 0; r < k->rank; r++) {
            float x = in[(size_t)r * k->length + l];
            for (uint32_t j = 0; j < k->columns; j++)
                out[(size_t)r * k->columns + j] += x * sign[j];
        }
    }
}

/* ---- rows ---- */

struct taking {
    const struct gradients_job *job;
    const struct training_rows *rows;
    struct gradients_taken *out;
    struct train_pass *pass;
    struct train_lora lora[TOGETHER]; /* the adapter, under other names */
    float *grad[TOGETHER];
    uint32_t row[TOGETHER], n;
    int32_t *target; /* [all tokens] */
    float *weight, *logprob;
};

static enum status take_room(struct taking *t, struct errtext *err)
{
    const struct training_rows *r = t->rows;
    uint64_t numbers = r->n * t->job->blocks->width;
    size_t tokens = r->begin[r->n];
    t->out->gradient = mem_try_array(numbers ? numbers : 1, sizeof(float));
    t->out->logprob = mem_try_array((size_t)r->n + 1, sizeof(float));
    t->target = mem_try_array(tokens + 1, sizeof(*t->target));
    t->weight = mem_try_array(tokens + 1, sizeof(*t->weight));
    t->logprob = mem_try_array(tokens + 1, sizeof(*t->logprob));
    bool ok = t->out->gradient && t->out->logprob && t->target && t->weight && t->logprob;
    for (uint32_t i = 0; i < TOGETHER; i++) {
        t->lora[i] = *t->job->lora;
        t->grad[i] = mem_try_array(t->job->lora->n, sizeof(float));
        ok = ok && t->grad[i];
    }
    return ok ? STATUS_OK
              : err_set(err, STATUS_NO_MEMORY,
                        "gradients: no memory for %u rows of %" PRIu64 " numbers; --project makes "
                        "them fewer",
                        r->n, t->job->blocks->width);
}

static enum status end_row(struct taking *t, uint32_t i, struct errtext *err)
{
    const struct gradient_blocks *b = t->job->blocks;
    uint32_t row = t->row[i];
    float *out = t->out->gradient + row * b->width;
    double sum = 0;
    for (uint32_t k = 0; k < b->n; k++)
        project_block(b, k, t->grad[i] + b->block[k].blob_at, out + b->block[k].at);
    for (uint64_t k = t->rows->begin[row]; k < t->rows->begin[row + 1]; k++)
        sum += (double)t->logprob[k];
    t->out->logprob[row] = (float)sum;
    for (uint64_t k = 0; k < b->width; k++) {
        if (!isfinite(out[k]))
            return err_set(err, STATUS_CORRUPT, "row %u: its gradient is no number", row);
    }
    return STATUS_OK;
}

static enum status run(struct taking *t, struct errtext *err)
{
    enum status st = train_pass_run(t->pass);
    if (st)
        return err_set(err, st, "gradients: the backend failed");
    for (uint32_t i = 0; i < t->n && !st; i++)
        st = end_row(t, i, err);
    t->n = 0;
    return st;
}

static struct train_seq sequence_of(struct taking *t, uint32_t row)
{
    uint64_t begin = t->rows->begin[row];
    uint32_t n = training_rows_length(t->rows, row);
    for (uint32_t k = 0; k < n; k++) {
        bool learned = training_rows_is_target(t->rows, row, k + 1);
        t->target[begin + k] = learned ? t->rows->ids[begin + k + 1] : -1;
        t->weight[begin + k] = learned ? 1 : 0;
    }
    memset(t->grad[t->n], 0, t->job->lora->n * sizeof(float));
    return (struct train_seq){.lora = &t->lora[t->n],
                              .grad = t->grad[t->n],
                              .ids = t->rows->ids + begin,
                              .target = t->target + begin,
                              .weight = t->weight + begin,
                              .logprob = t->logprob + begin,
                              .n = n};
}

static enum status take_row(struct taking *t, uint32_t row, struct errtext *err)
{
    enum status st = STATUS_OK;
    if (training_rows_length(t->rows, row) < 2)
        return STATUS_OK; /* nothing to learn: zeros */
    if (t->n == TOGETHER)
        st = run(t, err);
    struct train_seq s = sequence_of(t, row);
    if (!st && !train_pass_add(t->pass, &s)) {
        st = run(t, err);
        s = sequence_of(t, row);
        bool added = !st && train_pass_add(t->pass, &s);
        CHECK(st || added);
    }
    t->row[t->n++] = row;
    return st;
}

enum status gradients_take(const struct gradients_job *job, const struct training_rows *rows,
                           struct gradients_taken *out, struct errtext *err)
{
    struct taking t = {.job = job, .rows = rows, .out = out};
    const struct train_pass_options opt = {.tokens = job->tokens,
                                           .adapters_max = TOGETHER,
                                           .rank_sum_max = job->lora->rank_sum_max,
                                           .bytes_max = mem_machine_bytes() / 4};
    *out = (struct gradients_taken){0};
    enum status st = take_room(&t, err);
    if (!st)
        st = train_pass_create(&t.pass, &job->base, &opt, err);
    for (uint32_t row = 0; row < rows->n && !st; row++)
        st = take_row(&t, row, err);
    if (!st && t.n)
        st = run(&t, err);
    train_pass_free(t.pass);
    for (uint32_t i = 0; i < TOGETHER; i++)
        mem_free(t.grad[i]);
    mem_free(t.target);
    mem_free(t.weight);
    mem_free(t.logprob);
    if (st)
        gradients_taken_fini(out);
    return st;
}

void gradients_taken_fini(struct gradients_taken *t)
{
    mem_free(t->gradient);
    mem_free(t->logprob);
    *t = (struct gradients_taken){0};
}
