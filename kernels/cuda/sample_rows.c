/* The host's half of sample: struct sample_row in the form that one copy takes to the device.
 * Tokens go up only as far as the device does not have them: it keeps the histories of penalised
 * rows, one list for each sequence slot (4 bytes a token), and adds the ids it samples itself. So a
 * step sends a row, its biases, and usually no token. An upload is bounded; what does not fit
 * together goes in several passes. */
#include "kernels/cuda/head.h"
#include "server/base/check.h"
#include "server/base/philox.h"

#include <math.h>
#include <string.h>

static bool is_penalised(const struct sample_row *r)
{
    return r->repetition != 1 || r->frequency != 0 || r->presence != 0;
}

static struct pick_row row_make(const struct cuda_head *h, const struct sample_row *r)
{
    uint32_t ctr[4] = {r->draw, 0, 0, 0}, word[4];
    philox4x32(word, ctr, r->seed);
    struct pick_row d = {.scale = r->temperature == 0 ? 0 : M_LOG2E / (double)r->temperature,
                         .unit = philox_unit(word[0]),
                         .top_p = r->top_p,
                         .min_p = r->min_p <= 1 ? r->min_p : 1,
                         .repetition = r->repetition,
                         .frequency = r->frequency,
                         .presence = r->presence,
                         .limit = r->top_k > 0 ? (uint32_t)r->top_k : UINT32_MAX,
                         .top_count = r->top_count,
                         .bias_count = r->bias_count,
                         .slot = r->history ? r->slot : CUDA_NONE,
                         .penalised = is_penalised(r)};
    d.adjusted = d.penalised || r->bias_count > 0;
    if (!(r->min_p <= 1)) /* even the best is below it, and stays */
        d.limit = 1;
    if (!d.penalised)
        return d;
    d.n_prompt = r->n_prompt;
    d.n_tok = r->n_prompt + r->n_output;
    if (r->history && h->seen[r->slot].history == r->history)
        d.n_known = MIN(h->seen[r->slot].n_known, d.n_tok);
    return d;
}

/* The row's tokens that the device does not have. */
static void tokens_write(int32_t *to, const struct pick_row *d, const struct sample_row *r)
{
    for (uint32_t i = d->n_known; i < d->n_tok; i++)
        *to++ = i < r->n_prompt ? r->prompt[i] : r->output[i - r->n_prompt];
}

struct sample_upload sample_upload_fill(struct cuda_head *h, char *to, const struct sample_row *row,
                                        uint32_t n_row)
{
    struct sample_upload up = {0};
    struct pick_row *d = (struct pick_row *)(void *)to;
    uint32_t n_bias = 0, n_token = 0;
    while (up.n_row < n_row) {
        struct pick_row r = row_make(h, &row[up.n_row]);
        size_t more = sizeof(r) + r.bias_count * sizeof(struct sample_bias) +
                      (r.n_tok - r.n_known) * sizeof(int32_t);
        if (up.bytes + more > h->upload_bytes)
            break;
        r.bias_at = n_bias;
        r.token_at = n_token;
        n_bias += r.bias_count;
        n_token += r.n_tok - r.n_known;
        up.bytes += more;
        up.adjusted |= r.adjusted;
        up.weighed |= r.scale != 0;
        d[up.n_row++] = r;
    }
    CHECK(up.n_row > 0);
    up.bias_at = up.n_row * sizeof(*d);
    up.token_at = up.bias_at + n_bias * sizeof(struct sample_bias);
    for (uint32_t i = 0; i < up.n_row; i++) {
        if (d[i].bias_count > 0)
            memcpy(to + up.bias_at + d[i].bias_at * sizeof(struct sample_bias), row[i].bias,
                   d[i].bias_count * sizeof(struct sample_bias));
        tokens_write((int32_t *)(void *)(to + up.token_at) + d[i].token_at, &d[i], &row[i]);
        if (d[i].penalised && row[i].history) /* and the id that this row will find */
            h->seen[row[i].slot] =
                (struct head_seen){row[i].history, MIN(d[i].n_tok + 1, h->history_stride)};
    }
    return up;
}

void sample_rows_check(const struct cuda_backend *c, const struct sample_row *row, uint32_t n_row)
{
    for (uint32_t i = 0; i < n_row; i++) {
        CHECK(row[i].bias_count <= SAMPLE_BIAS_MAX);
        CHECK(row[i].top_count <= SAMPLE_TOP_MAX);
        CHECK((uint64_t)row[i].n_prompt + row[i].n_output <= c->head->history_stride);
        CHECK(row[i].history == 0 || row[i].slot < c->limits.seqs_max);
    }
}
