#include "tests/unit/late_backend.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <string.h>

#define SLOTS   64
#define TICKETS 16
#define ROWS    512
#define OUTPUT  512

struct late {
    const struct backend_ops *inner;
    struct backend_ops ops;
    int32_t latest[SLOTS];
    struct {
        uint64_t number;
        uint32_t n;
        int32_t output[OUTPUT];
    } history[SLOTS];
    struct {
        char *data;
        size_t bytes;
    } ticket[TICKETS];
    struct sample_row row[ROWS];
    uint32_t late_ids;
};

static struct late *late;

static enum status embed(struct backend *b, const struct embed_args *a)
{
    int32_t ids[ROWS];
    struct embed_args seen = *a;
    CHECK(a->n_tok <= ROWS);
    for (uint32_t t = 0; t < a->n_tok; t++) {
        ids[t] = a->ids[t];
        if (ids[t] >= 0)
            continue;
        CHECK((uint32_t)~ids[t] < SLOTS);
        ids[t] = late->latest[~ids[t]];
        CHECK(ids[t] >= 0);
        late->late_ids++;
    }
    seen.ids = ids;
    return late->inner->embed(b, &seen);
}

static uint32_t put(const void *data, size_t bytes)
{
    uint32_t i = 0;
    while (i < TICKETS && late->ticket[i].data)
        i++;
    CHECK(i < TICKETS);
    late->ticket[i].data = mem_alloc(bytes);
    late->ticket[i].bytes = bytes;
    memcpy(late->ticket[i].data, data, bytes);
    return i;
}

/* The row with the outputs that a device would have. */
static struct sample_row with_history(const struct sample_row *r)
{
    struct sample_row seen = *r;
    CHECK(r->history != 0 && r->slot < SLOTS && r->n_output < OUTPUT);
    if (late->history[r->slot].number != r->history) {
        late->history[r->slot].number = r->history;
        late->history[r->slot].n = r->n_output;
        memcpy(late->history[r->slot].output, r->output, r->n_output * sizeof(int32_t));
    }
    CHECK(late->history[r->slot].n == r->n_output);
    seen.output = late->history[r->slot].output;
    return seen;
}

static enum status sample_begin(struct backend *b, const struct sample_args *a, uint32_t *ticket)
{
    struct sample_args seen = *a;
    struct sample_out *out = mem_array(a->n_row, sizeof(*out));
    CHECK(a->n_row <= ROWS);
    for (uint32_t i = 0; i < a->n_row; i++)
        late->row[i] = with_history(&a->row[i]);
    seen.row = late->row;
    seen.out = out;
    enum status st = late->inner->sample(b, &seen);
    for (uint32_t i = 0; i < a->n_row; i++) {
        uint32_t slot = a->row[i].slot;
        late->latest[slot] = out[i].id;
        late->history[slot].output[late->history[slot].n++] = out[i].id;
    }
    *ticket = put(out, a->n_row * sizeof(*out));
    mem_free(out);
    return st;
}

static enum status score_begin(struct backend *b, const struct score_args *a, uint32_t *ticket)
{
    struct score_args seen = *a;
    seen.logprob = mem_array(a->n_row, sizeof(float));
    enum status st = late->inner->score(b, &seen);
    *ticket = put(seen.logprob, a->n_row * sizeof(float));
    mem_free(seen.logprob);
    return st;
}

static enum status sketch_begin(struct backend *b, const struct sketch_args *a, uint32_t *ticket)
{
    const struct sketch_seg *last = &a->seg[a->n_seg - 1];
    struct sketch_args seen = *a;
    size_t first = (size_t)a->seg[0].row * SKETCH_DIM;
    size_t end = (size_t)(last->row + last->n_row) * SKETCH_DIM;
    seen.out = mem_array(end, 1);
    enum status st = late->inner->sketch(b, &seen);
    *ticket = put(seen.out + first, end - first);
    mem_free(seen.out);
    return st;
}

static enum status read_begin(struct backend *b, const void *from, size_t bytes, uint32_t *ticket)
{
    (void)b;
    *ticket = put(from, bytes);
    return STATUS_OK;
}

static enum status read_end(struct backend *b, uint32_t ticket, void *host)
{
    (void)b;
    CHECK(ticket < TICKETS && late->ticket[ticket].data);
    memcpy(host, late->ticket[ticket].data, late->ticket[ticket].bytes);
    mem_free(late->ticket[ticket].data);
    late->ticket[ticket].data = NULL;
    return STATUS_OK;
}

void late_backend_wrap(struct backend *b)
{
    CHECK(!late);
    late = mem_alloc(sizeof(*late));
    late->inner = b->ops;
    late->ops = *b->ops;
    late->ops.embed = embed;
    late->ops.sample_begin = sample_begin;
    late->ops.score_begin = score_begin;
    late->ops.sketch_begin = sketch_begin;
    late->ops.read_begin = read_begin;
    late->ops.read_end = read_end;
    memset(late->latest, 0xff, sizeof(late->latest));
    b->ops = &late->ops;
}

void late_backend_unwrap(struct backend *b)
{
    b->ops = late->inner;
    for (uint32_t i = 0; i < TICKETS; i++)
        CHECK(!late->ticket[i].data); /* every result was taken */
    mem_free(late);
    late = NULL;
}

uint32_t late_backend_ids(void)
{
    return late->late_ids;
}
