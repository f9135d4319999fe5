/* The builder's three passes. Events are kept in the order in which their rows came; everything
 * that depends on an order (sums of floats, the file) follows the row numbers. */
#include "server/influence/events_build.h"
#include "kernels/bf16.h"
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/influence/events_build_impl.h"
#include "server/influence/events_context.h"
#include "server/influence/whiten.h"

#include <string.h>

const struct events_method events_method_default = {
    .gain_floor = 26,
    .learned_floor = 13,
    .learned_min = 51,
    .fallback_tokens = 8,
    .squarings = 5,
    .half1_part = 26,
    .w = {950000000, 50000000, 0},
    .taught_min = 128,
    .cluster_dot = 4839, /* cosine .3 */
};

static enum status check_source(const struct events_source *s, struct errtext *err)
{
    if (s->n_documents > EVENTS_ROWS_MAX || s->n_rows > EVENTS_ROWS_MAX)
        return err_set(err, STATUS_INVALID, "%u documents and %u rows, at most %u each",
                       s->n_documents, s->n_rows, EVENTS_ROWS_MAX);
    if (s->n_vocab < 1 || s->n_vocab > EVENTS_VOCAB_MAX || s->d_model < 1 ||
        s->d_model > EVENTS_MODEL_MAX)
        return err_set(err, STATUS_INVALID, "n_vocab %u, d_model %u: expected 1 to %u and 1 to %u",
                       s->n_vocab, s->d_model, EVENTS_VOCAB_MAX, EVENTS_MODEL_MAX);
    for (uint32_t i = 1; i < s->n_owners; i++) {
        if (memcmp(s->payee[i - 1], s->payee[i], 20) >= 0)
            return err_set(err, STATUS_INVALID, "owner %u: payees must ascend", i);
    }
    for (uint32_t i = 0; i < s->n_documents; i++) {
        if (s->document[i].owner >= s->n_owners)
            return err_set(err, STATUS_INVALID, "document %u: owner %u, expected less than %u", i,
                           s->document[i].owner, s->n_owners);
        if (i > 0 && memcmp(s->document[i - 1].digest, s->document[i].digest, 32) >= 0)
            return err_set(err, STATUS_INVALID, "document %u: digests must ascend", i);
    }
    for (uint32_t i = 0; i < s->n_rows; i++) {
        if (s->row[i].document >= s->n_documents)
            return err_set(err, STATUS_INVALID, "row %u: document %u, expected less than %u", i,
                           s->row[i].document, s->n_documents);
    }
    return STATUS_OK;
}

enum status events_builder_create(struct events_builder **out, const struct events_source *src,
                                  struct errtext *err)
{
    *out = NULL;
    enum status st = check_source(src, err);
    if (st)
        return st;
    struct events_builder *b = mem_alloc(sizeof(*b));
    size_t basis = (size_t)src->d_model * EVENTS_HALF;
    b->src = *src;
    b->method = src->method ? *src->method : events_method_default;
    b->row = mem_try_array((size_t)src->n_rows + 1, sizeof(*b->row));
    b->surprise = mem_try_array(src->n_vocab, sizeof(*b->surprise));
    b->surprise_sum = mem_try_array(src->n_vocab, sizeof(*b->surprise_sum));
    b->occurs = mem_try_array(src->n_vocab, sizeof(*b->occurs));
    b->w = mem_try_array(basis, sizeof(*b->w));
    b->context_w = mem_try_array(basis, sizeof(*b->context_w));
    if (!b->row || !b->surprise || !b->surprise_sum || !b->occurs || !b->w || !b->context_w) {
        events_builder_free(b);
        return err_set(err, STATUS_NO_MEMORY, "no memory for an index of %u rows", src->n_rows);
    }
    *out = b;
    return STATUS_OK;
}

void events_builder_free(struct events_builder *b)
{
    if (!b)
        return;
    for (uint32_t i = 0; b->row && i < b->src.n_rows; i++) {
        mem_free(b->row[i].hidden);
        mem_free(b->row[i].ids);
    }
    mem_free(b->row);
    mem_free(b->target);
    mem_free(b->base);
    mem_free(b->adapter);
    mem_free(b->key);
    mem_free(b->surprise);
    mem_free(b->surprise_sum);
    mem_free(b->occurs);
    mem_free(b->taught);
    mem_free(b->tokens_of);
    mem_free(b->w);
    mem_free(b->context_w);
    mem_free(b->context_w_t);
    mem_free(b);
}

static enum status check_row_tokens(const struct events_builder *b,
                                    const struct events_row_tokens *t, struct errtext *err)
{
    if (t->row >= b->src.n_rows)
        return err_set(err, STATUS_INVALID, "row %u, expected less than %u", t->row, b->src.n_rows);
    if (t->n > EVENTS_ROW_TOKENS_MAX)
        return err_set(err, STATUS_INVALID, "row %u: %u tokens, at most %u", t->row, t->n,
                       EVENTS_ROW_TOKENS_MAX);
    for (uint32_t i = 0; i < t->n; i++) {
        if (t->ids[i] < 0 || (uint32_t)t->ids[i] >= b->src.n_vocab)
            return err_set(err, STATUS_INVALID, "row %u: token %d, expected 0 to %u", t->row,
                           t->ids[i], b->src.n_vocab - 1);
    }
    return STATUS_OK;
}

static enum status make_room(struct events_builder *b, uint32_t more, struct errtext *err)
{
    if (more > EVENTS_MAX - b->n_events)
        return err_set(err, STATUS_TOO_LARGE, "more than %u tokens in the rows", EVENTS_MAX);
    if (b->n_events + more <= b->cap)
        return STATUS_OK;
    uint32_t cap = MAX(b->n_events + more, MIN(2 * b->cap, EVENTS_MAX));
    int32_t *target = mem_try_realloc(b->target, (size_t)cap * sizeof(*target));
    b->target = target ? target : b->target;
    int32_t *base = mem_try_realloc(b->base, (size_t)cap * sizeof(*base));
    b->base = base ? base : b->base;
    if (!target || !base)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %u events", cap);
    b->cap = cap;
    return STATUS_OK;
}

enum status events_builder_base(struct events_builder *b, const struct events_row_tokens *t,
                                const int32_t *base_q8, struct errtext *err)
{
    enum status st = check_row_tokens(b, t, err);
    uint32_t n = t->n > 1 ? t->n - 1 : 0;
    if (st)
        return st;
    if (b->row[t->row].has_base || b->stride)
        return err_set(err, STATUS_INVALID, "row %u: its base is there already", t->row);
    st = make_room(b, n, err);
    if (st)
        return st;
    struct builder_row *row = &b->row[t->row];
    *row = (struct builder_row){
        .begin = b->n_events, .n = n, .first = t->n ? t->ids[0] : -1, .has_base = true};
    for (uint32_t i = 0; i < n; i++) {
        int32_t id = t->ids[i + 1], base = MIN(base_q8[i], 0);
        b->target[row->begin + i] = id;
        b->base[row->begin + i] = base;
        b->surprise_sum[id] -= base;
        b->occurs[id]++;
    }
    b->n_events += n;
    b->n_base++;
    return STATUS_OK;
}

/* Once every row's base is there: the surprise table, and which rows make up the sample. */
static void close_base(struct events_builder *b)
{
    if (b->stride)
        return;
    CHECK(b->n_base == b->src.n_rows);
    uint64_t most = (128ull << 20) / (4ull * b->src.d_model), events = 0;
    for (uint32_t v = 0; v < b->src.n_vocab; v++) {
        uint64_t n = b->occurs[v], sum = (uint64_t)b->surprise_sum[v];
        b->surprise[v] = n ? (uint16_t)MIN((sum + n / 2) / n, (uint64_t)UINT16_MAX) : 0;
        events += n;
    }
    most = MIN(most, (uint64_t)EVENTS_SAMPLE_MAX);
    b->stride = (uint32_t)(1 + events / most);
}

bool events_builder_wants_hidden(struct events_builder *b, uint32_t row)
{
    close_base(b);
    return row % b->stride == 0 && b->row[row].n > 0;
}

enum status events_builder_hidden(struct events_builder *b, const struct events_row_tokens *t,
                                  const float *hidden, struct errtext *err)
{
    enum status st = check_row_tokens(b, t, err);
    if (st)
        return st;
    struct builder_row *row = &b->row[t->row];
    if (!events_builder_wants_hidden(b, t->row) || row->hidden || t->n != row->n + 1)
        return err_set(err, STATUS_INVALID,
                       "row %u with %u tokens: the sample wants it once, with %u", t->row, t->n,
                       row->n + 1);
    size_t count = (size_t)row->n * b->src.d_model;
    row->hidden = mem_try_array(count, sizeof(float));
    row->ids = mem_try_array(t->n, sizeof(int32_t));
    if (!row->hidden || !row->ids)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the sample");
    memcpy(row->hidden, hidden, count * sizeof(float));
    memcpy(row->ids, t->ids, t->n * sizeof(int32_t));
    return STATUS_OK;
}

/* The sample's means of contexts; *n how many. */
static enum status sample_contexts(const struct events_builder *b, float *out, uint32_t *n,
                                   struct errtext *err)
{
    uint32_t d = b->src.d_model;
    *n = 0;
    for (uint32_t r = 0; r < b->src.n_rows; r++) {
        const struct builder_row *row = &b->row[r];
        struct events_context c;
        if (!row->hidden)
            continue;
        enum status st = events_context_begin(&c, b->surprise, b->src.n_vocab, d, err);
        for (uint32_t i = 0; !st && i < row->n; i++) {
            st = events_context_add(&c, b->src.embed, b->src.embed_arg, row->ids[i], err);
            if (!st && events_context_mean(&c))
                memcpy(out + (size_t)(*n)++ * d, c.mean, d * sizeof(float));
        }
        events_context_end(&c);
        if (st)
            return st;
    }
    return STATUS_OK;
}

static uint32_t sample_hidden(const struct events_builder *b, float *out)
{
    uint32_t n = 0, d = b->src.d_model;
    for (uint32_t r = 0; r < b->src.n_rows; r++) {
        const struct builder_row *row = &b->row[r];
        if (!row->hidden)
            continue;
        memcpy(out + (size_t)n * d, row->hidden, (size_t)row->n * d * sizeof(float));
        n += row->n;
    }
    return n;
}

static enum status fit_bases(struct events_builder *b, float *x, struct errtext *err)
{
    uint32_t n = sample_hidden(b, x), d = b->src.d_model;
    enum status st = whiten_fit(b->w, b->bias, x, n, d, err);
    if (!st)
        st = sample_contexts(b, x, &n, err);
    if (!st)
        st = whiten_fit(b->context_w, b->context_bias, x, n, d, err);
    return st;
}

enum status events_builder_basis(struct events_builder *b, struct errtext *err)
{
    uint64_t sample = 0;
    uint32_t d = b->src.d_model;
    for (uint32_t r = 0; r < b->src.n_rows; r++) {
        if (!events_builder_wants_hidden(b, r))
            continue;
        if (!b->row[r].hidden)
            return err_set(err, STATUS_INVALID, "row %u of the sample is missing", r);
        sample += b->row[r].n;
    }
    close_base(b);
    float *x = mem_try_array((sample + 1) * d, sizeof(*x));
    b->key = mem_try_array((size_t)b->n_events + 1, EVENTS_KEY);
    b->adapter = mem_try_array((size_t)b->n_events + 1, sizeof(*b->adapter));
    float *w_t = mem_try_array((size_t)d * EVENTS_HALF, sizeof(*w_t));
    enum status st = x && b->key && b->adapter && w_t
                         ? fit_bases(b, x, err)
                         : err_set(err, STATUS_NO_MEMORY, "no memory for %u events", b->n_events);
    mem_free(x);
    if (st) {
        mem_free(w_t);
        return st;
    }
    whiten_transpose(w_t, b->context_w, d);
    b->context_w_t = w_t;
    for (uint32_t r = 0; r < b->src.n_rows; r++) {
        mem_free(b->row[r].hidden);
        b->row[r].hidden = NULL;
    }
    return STATUS_OK;
}

const uint16_t *events_builder_basis_w(const struct events_builder *b)
{
    return b->w;
}

const float *events_builder_basis_bias(const struct events_builder *b)
{
    return b->bias;
}

enum status events_builder_row(struct events_builder *b, const struct events_row_tokens *t,
                               const int32_t *adapter_q8, const int8_t *head_key,
                               struct errtext *err)
{
    enum status st = check_row_tokens(b, t, err);
    if (st)
        return st;
    struct builder_row *row = &b->row[t->row];
    if (!b->context_w_t || row->has_adapter || (t->n > 1 ? t->n - 1 : 0) != row->n)
        return err_set(err, STATUS_INVALID,
                       "row %u with %u tokens: expected once, with %u, after the basis", t->row,
                       t->n, row->n + 1);
    for (uint32_t i = 0; i < row->n; i++) {
        if (t->ids[i + 1] != b->target[row->begin + i])
            return err_set(err, STATUS_INVALID, "row %u: token %u is %d, the base saw %d", t->row,
                           i + 1, t->ids[i + 1], b->target[row->begin + i]);
    }
    if (row->n && memchr(head_key, 0x80, (size_t)row->n * EVENTS_HALF))
        return err_set(err, STATUS_INVALID, "row %u: a key's byte is -128", t->row);
    int8_t *context = mem_try_array((size_t)row->n + 1, EVENTS_HALF);
    if (!context)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a row of %u tokens", t->n);
    const struct events_basis basis = {.surprise = b->surprise,
                                       .n_vocab = b->src.n_vocab,
                                       .d = b->src.d_model,
                                       .w_t = b->context_w_t,
                                       .bias = b->context_bias};
    const struct events_tokens tokens = {.ids = t->ids, .n_ids = row->n ? t->n : 0, .n_prompt = 1};
    st = events_context_run(&basis, b->src.embed, b->src.embed_arg, &tokens, context, err);
    for (uint32_t i = 0; !st && i < row->n; i++) {
        int8_t *key = b->key + (size_t)(row->begin + i) * EVENTS_KEY;
        memcpy(key, head_key + (size_t)i * EVENTS_HALF, EVENTS_HALF);
        memcpy(key + EVENTS_HALF, context + (size_t)i * EVENTS_HALF, EVENTS_HALF);
        b->adapter[row->begin + i] = MIN(adapter_q8[i], 0);
    }
    mem_free(context);
    row->has_adapter = !st;
    b->n_adapter += !st;
    return st;
}
