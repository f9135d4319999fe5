/* A message is walked twice where a list's length must be known before its memory is taken: to
 * count, then to read. What is read is copied into the arena in the machine's own types, since the
 * body has no alignment and goes away. */
#include "server/train/tinker_batch.h"
#include "server/base/mem.h"
#include "server/base/proto.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define WHERE         "forward_backward"
#define MEMORY_FACTOR 8 /* of the body's bytes: 4 + 4 + 4 + 4 for each 4 bytes of tokens at least */

enum request_field { MODEL_ID = 1, SEQ_ID, DATA, LOSS_FN, CONFIG, FORWARD_ONLY, CONFIG_2 };
enum datum_field { INPUT = 1, LOSS_INPUTS, INPUT_SPANS };
enum tensor_field { DENSE = 1, SPARSE, DTYPE, SHAPE };
enum tensor_type { TYPE_F32 = 1, TYPE_I64, TYPE_I32 };

struct tensor {
    const uint8_t *data;
    size_t len;
    uint64_t type;
    uint32_t dims;
};
struct parse {
    struct tinker_batch *b;
    struct errtext *err;
    uint32_t at; /* the datum */
    uint32_t spans;
    struct tensor target, weights, logprobs, advantages;
};

static enum status take(struct parse *p, size_t bytes, void *out)
{
    void *memory = arena_alloc(&p->b->memory, bytes);
    memcpy(out, &memory, sizeof(memory));
    return memory ? STATUS_OK
                  : err_set(p->err, STATUS_NO_MEMORY, "there is no memory for this batch now");
}

static enum status copy_id(struct parse *p, char out[TINKER_ID_BYTES], const char *field,
                           const struct proto_field *f)
{
    if (f->len == 0 || f->len >= TINKER_ID_BYTES || memchr(f->data, 0, f->len))
        return err_param(p->err, STATUS_INVALID, field, "%s: expected 1 to %d characters", field,
                         TINKER_ID_BYTES - 1);
    memcpy(out, f->data, f->len);
    out[f->len] = '\0';
    return STATUS_OK;
}

/* How often field `number` stands in a message. */
static enum status count(struct proto_reader r, uint32_t number, uint32_t *out)
{
    struct proto_field f;
    *out = 0;
    while (proto_next(&r, &f))
        *out += f.number == number && f.wire == PROTO_BYTES;
    return r.st;
}

/* The n-th datum's field is wrong. */
__attribute__((format(printf, 4, 5))) static enum status
wrong(struct parse *p, enum status st, const char *field, const char *fmt, ...)
{
    char param[64], text[200];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    snprintf(param, sizeof(param), "data[%u].%.40s", p->at, field);
    return err_param(p->err, st, param, "%s: %s", param, text);
}

/* ---- model_input ---- */

/* The bytes of a chunk's tokens. */
static enum status chunk_tokens(struct parse *p, struct proto_reader r, struct proto_field *out)
{
    struct proto_field f;
    *out = (struct proto_field){.wire = PROTO_BYTES};
    while (proto_next(&r, &f)) {
        if (f.number == 2 || f.number == 3)
            return wrong(p, STATUS_UNSUPPORTED, "model_input",
                         "found %s, this base takes encoded text",
                         f.number == 2 ? "an image" : "audio");
        if (f.number != 1 || !proto_is(&r, &f, PROTO_BYTES))
            continue;
        struct proto_reader text = proto_enter(&r, &f);
        while (proto_next(&text, &f)) {
            if (f.number == 1 && proto_is(&text, &f, PROTO_BYTES))
                *out = f;
        }
        if (text.st)
            return text.st;
    }
    if (!r.st && out->len % 4)
        return wrong(p, STATUS_INVALID, "model_input", "found %zu bytes of tokens of 4 bytes each",
                     out->len);
    return r.st;
}

/* ids NULL: only counts. */
static enum status read_input(struct parse *p, struct proto_reader r, int32_t *ids, uint32_t *n)
{
    struct proto_field f, tokens;
    enum status st = STATUS_OK;
    *n = 0;
    while (!st && proto_next(&r, &f)) {
        if (f.number != INPUT || !proto_is(&r, &f, PROTO_BYTES))
            continue;
        st = chunk_tokens(p, proto_enter(&r, &f), &tokens);
        if (!st && ids && tokens.len)
            memcpy(ids + *n, tokens.data, tokens.len);
        *n += st ? 0 : (uint32_t)(tokens.len / 4);
    }
    return st ? st : r.st;
}

/* ---- loss_fn_inputs ---- */

static uint32_t varints(const struct proto_field *f)
{
    uint32_t n = 0;
    for (size_t i = 0; i < f->len; i++)
        n += !(f->data[i] & 0x80);
    return n;
}

static enum status read_tensor(struct parse *p, struct proto_reader r, const char *name,
                               struct tensor *out)
{
    struct proto_field f;
    *out = (struct tensor){.data = r.at};
    while (proto_next(&r, &f)) {
        if (f.number == SPARSE)
            return wrong(p, STATUS_UNSUPPORTED, name,
                         "found a sparse tensor: one target a position is trained here");
        if (f.number == DENSE && proto_is(&r, &f, PROTO_BYTES)) {
            out->data = f.data;
            out->len = f.len;
        }
        if (f.number == DTYPE && proto_is(&r, &f, PROTO_VARINT))
            out->type = f.value;
        if (f.number == SHAPE)
            out->dims += f.wire == PROTO_BYTES ? varints(&f) : 1;
    }
    if (!r.st && out->dims > 1)
        return wrong(p, STATUS_UNSUPPORTED, name,
                     "found %u dimensions: one target a position is trained here", out->dims);
    return r.st;
}

static struct tensor *place_of(struct parse *p, const char *name)
{
    if (strcmp(name, "target_tokens") == 0)
        return &p->target;
    if (p->b->loss == TINKER_CROSS_ENTROPY)
        return strcmp(name, "weights") == 0 ? &p->weights : NULL;
    if (strcmp(name, "logprobs") == 0)
        return &p->logprobs;
    return strcmp(name, "advantages") == 0 ? &p->advantages : NULL;
}

static enum status read_loss_input(struct parse *p, struct proto_reader r)
{
    char name[TINKER_ID_BYTES] = "";
    struct proto_field f, value = {.wire = PROTO_BYTES};
    enum status st = STATUS_OK;
    while (!st && proto_next(&r, &f)) {
        if (!proto_is(&r, &f, PROTO_BYTES))
            break;
        if (f.number == 1)
            st = copy_id(p, name, "loss_fn_inputs", &f);
        if (f.number == 2)
            value = f;
    }
    if (!st)
        st = r.st;
    if (st)
        return st;
    struct tensor *t = place_of(p, name);
    if (!t)
        return wrong(p, STATUS_UNSUPPORTED, name, "this loss_fn does not use it");
    return read_tensor(p, proto_enter(&r, &value), name, t);
}

/* n numbers of a tensor as f32; NULL data: `absent` or a fault. */
static enum status floats(struct parse *p, const char *name, const struct tensor *t, uint32_t n,
                          const float **out)
{
    float *v;
    enum status st;
    if (!t->data)
        return wrong(p, STATUS_INVALID, name, "is missing, this loss_fn needs it");
    if (t->type != TYPE_F32 || t->len != (size_t)n * sizeof(float))
        return wrong(p, STATUS_INVALID, name,
                     "found %zu bytes of type %u, expected %u f32, as model_input has tokens",
                     t->len, (unsigned)t->type, n);
    st = take(p, (size_t)n * sizeof(*v), &v);
    if (st)
        return st;
    memcpy(v, t->data, t->len);
    for (uint32_t i = 0; i < n; i++) {
        if (!isfinite(v[i]))
            return wrong(p, STATUS_INVALID, name, "number %u is not finite", i);
    }
    *out = v;
    return STATUS_OK;
}

static enum status targets(struct parse *p, uint32_t n, const int32_t **out)
{
    const struct tensor *t = &p->target;
    size_t item = t->type == TYPE_I32 ? 4 : 8;
    int32_t *v;
    if (!t->data)
        return wrong(p, STATUS_INVALID, "target_tokens", "is missing");
    if ((t->type != TYPE_I64 && t->type != TYPE_I32) || t->len != n * item)
        return wrong(p, STATUS_INVALID, "target_tokens",
                     "found %zu bytes of type %u, expected %u i64, as model_input has tokens",
                     t->len, (unsigned)t->type, n);
    enum status st = take(p, (size_t)n * sizeof(*v), &v);
    for (uint32_t i = 0; !st && i < n; i++) {
        int64_t wide;
        int32_t narrow;
        memcpy(&narrow, t->data + i * item, sizeof(narrow));
        wide = narrow;
        if (item == 8)
            memcpy(&wide, t->data + i * item, sizeof(wide));
        if (wide < 0 || wide > INT32_MAX)
            return wrong(p, STATUS_INVALID, "target_tokens", "number %u is %lld, no token", i,
                         (long long)wide);
        v[i] = (int32_t)wide;
    }
    *out = v;
    return st;
}

/* ---- spans ---- */

static enum status read_span(struct parse *p, struct proto_reader r, struct tinker_span *out)
{
    struct proto_field f;
    enum status st = STATUS_OK;
    char *id;
    while (!st && proto_next(&r, &f)) {
        if (f.number == 1 && proto_is(&r, &f, PROTO_BYTES)) {
            st = take(p, TINKER_ID_BYTES, &id);
            st = st ? st : copy_id(p, id, "sequence_id", &f);
            out->sequence_id = id;
        }
        if (f.number == 2 && proto_is(&r, &f, PROTO_VARINT))
            out->offset = f.value;
        if (f.number == 3 && proto_is(&r, &f, PROTO_VARINT))
            out->length = f.value;
    }
    if (!st)
        st = r.st;
    if (!st && !out->sequence_id)
        st = wrong(p, STATUS_INVALID, "model_input_spans", "a span names no sequence_id");
    return st;
}

static enum status read_spans(struct parse *p, struct proto_reader r, struct tinker_datum *d)
{
    struct proto_field f;
    struct tinker_span *span;
    uint64_t tiled = 0;
    uint32_t n = 0;
    enum status st = count(r, INPUT_SPANS, &d->n_span);
    if (st || d->n_span == 0)
        return st;
    p->spans += d->n_span;
    if (p->spans > TINKER_SPANS_MAX)
        return wrong(p, STATUS_TOO_LARGE, "model_input_spans", "more than %u spans in a batch",
                     TINKER_SPANS_MAX);
    st = take(p, d->n_span * sizeof(*span), &span);
    d->span = span;
    while (!st && proto_next(&r, &f)) {
        if (f.number != INPUT_SPANS || f.wire != PROTO_BYTES)
            continue;
        struct proto_reader arms = proto_enter(&r, &f);
        while (!st && proto_next(&arms, &f)) {
            span[n].sampled = f.number == 2;
            if (proto_is(&arms, &f, PROTO_BYTES))
                st = read_span(p, proto_enter(&arms, &f), &span[n]);
        }
        st = st ? st : arms.st;
        if (!st && (span[n].length > d->n || !span[n].sequence_id))
            st = wrong(p, STATUS_INVALID, "model_input_spans", "span %u is none", n);
        tiled += span[n++].length;
    }
    if (!st && tiled != d->n)
        st = wrong(p, STATUS_INVALID, "model_input_spans",
                   "cover %llu tokens, expected the %u of model_input", (unsigned long long)tiled,
                   d->n);
    return st ? st : r.st;
}

/* ---- a datum, the whole ---- */

static enum status read_datum(struct parse *p, struct proto_reader r)
{
    struct tinker_datum *d = &p->b->datum[p->at];
    struct proto_reader again = r;
    struct proto_field f;
    int32_t *ids;
    float *weight = NULL, *logprob;
    p->target = p->weights = p->logprobs = p->advantages = (struct tensor){0};
    enum status st = read_input(p, r, NULL, &d->n);
    if (!st && d->n == 0)
        st = wrong(p, STATUS_INVALID, "model_input", "has no tokens");
    while (!st && proto_next(&again, &f)) {
        if (f.number == LOSS_INPUTS && proto_is(&again, &f, PROTO_BYTES))
            st = read_loss_input(p, proto_enter(&again, &f));
    }
    st = st ? st : again.st;
    if (!st)
        st = take(p, d->n * sizeof(*ids), &ids);
    if (!st)
        st = read_input(p, r, ids, &d->n);
    if (!st)
        st = take(p, d->n * sizeof(*weight), &weight);
    if (!st)
        st = take(p, d->n * sizeof(*logprob), &logprob);
    if (!st)
        st = targets(p, d->n, &d->target);
    if (st)
        return st;
    d->ids = ids;
    d->weight = weight;
    d->logprob = logprob;
    for (uint32_t i = 0; i < d->n; i++)
        weight[i] = 1;
    const float *given = NULL;
    if (p->b->loss != TINKER_CROSS_ENTROPY)
        st = floats(p, "logprobs", &p->logprobs, d->n, &d->sampled);
    else if (p->weights.data)
        st = floats(p, "weights", &p->weights, d->n, &given);
    if (!st && p->b->loss != TINKER_CROSS_ENTROPY)
        st = floats(p, "advantages", &p->advantages, d->n, &d->advantage);
    if (!st && given)
        memcpy(weight, given, d->n * sizeof(*weight));
    return st ? st : read_spans(p, r, d);
}

/* An entry of loss_fn_config (a double) or of its second form (a number or text). */
static enum status read_config(struct parse *p, struct proto_reader r)
{
    char name[TINKER_ID_BYTES] = "";
    struct proto_field f;
    enum status st = STATUS_OK;
    double value = (double)NAN;
    while (!st && proto_next(&r, &f)) {
        if (f.number == 1 && proto_is(&r, &f, PROTO_BYTES))
            st = copy_id(p, name, "loss_fn_config", &f);
        if (f.number == 2 && f.wire == PROTO_64)
            value = proto_double(&f);
        if (f.number != 2 || f.wire != PROTO_BYTES)
            continue;
        struct proto_reader arm = proto_enter(&r, &f);
        while (proto_next(&arm, &f)) {
            if (f.number == 1 && proto_is(&arm, &f, PROTO_64))
                value = proto_double(&f);
        }
        st = arm.st;
    }
    st = st ? st : r.st;
    bool low = strcmp(name, "clip_low_threshold") == 0;
    if (!st && (p->b->loss != TINKER_PPO || (!low && strcmp(name, "clip_high_threshold") != 0)))
        return err_param(p->err, STATUS_UNSUPPORTED, "loss_fn_config",
                         "loss_fn_config.%.60s: this loss_fn has no such setting", name);
    if (!st && !(value >= 0 && value <= 1e6))
        return err_param(p->err, STATUS_INVALID, "loss_fn_config",
                         "loss_fn_config.%.60s: expected a number from 0 to 1000000", name);
    if (!st)
        *(low ? &p->b->clip_low : &p->b->clip_high) = value;
    return st;
}

static enum status read_head(struct parse *p, struct proto_reader r)
{
    struct tinker_batch *b = p->b;
    char loss[TINKER_ID_BYTES] = "";
    struct proto_field f;
    enum status st = STATUS_OK;
    while (!st && proto_next(&r, &f)) {
        if (f.number == MODEL_ID && proto_is(&r, &f, PROTO_BYTES))
            st = copy_id(p, b->model_id, "model_id", &f);
        else if (f.number == SEQ_ID && proto_is(&r, &f, PROTO_VARINT))
            b->seq_id = (int64_t)f.value;
        else if (f.number == LOSS_FN && proto_is(&r, &f, PROTO_BYTES))
            st = copy_id(p, loss, "loss_fn", &f);
        else if (f.number == FORWARD_ONLY && proto_is(&r, &f, PROTO_VARINT))
            b->forward_only = f.value != 0;
    }
    if (!st)
        st = r.st;
    if (!st && !b->model_id[0])
        st = err_param(p->err, STATUS_INVALID, "model_id", "model_id: is missing");
    if (!st && b->seq_id < 0)
        st = err_param(p->err, STATUS_INVALID, "seq_id", "seq_id: found %lld, expected 0 or more",
                       (long long)b->seq_id);
    return st ? st : tinker_loss_parse(&b->loss, loss, p->err);
}

static enum status read_all(struct parse *p, struct proto_reader r)
{
    struct tinker_batch *b = p->b;
    struct proto_field f;
    enum status st = read_head(p, r);
    if (!st)
        st = count(r, DATA, &b->n);
    if (!st && (b->n == 0 || b->n > TINKER_DATUMS_MAX))
        st = err_param(p->err, b->n ? STATUS_TOO_LARGE : STATUS_INVALID, "data",
                       "data: found %u, expected 1 to %u", b->n, TINKER_DATUMS_MAX);
    if (!st)
        st = take(p, b->n * sizeof(*b->datum), &b->datum);
    while (!st && proto_next(&r, &f)) {
        if ((f.number == CONFIG || f.number == CONFIG_2) && proto_is(&r, &f, PROTO_BYTES))
            st = read_config(p, proto_enter(&r, &f));
        if (f.number != DATA || !proto_is(&r, &f, PROTO_BYTES))
            continue;
        st = read_datum(p, proto_enter(&r, &f));
        p->at++;
    }
    if (!st && b->clip_low > b->clip_high)
        st = err_param(p->err, STATUS_INVALID, "loss_fn_config",
                       "loss_fn_config: clip_low_threshold %g is above clip_high_threshold %g",
                       b->clip_low, b->clip_high);
    return st ? st : r.st;
}

enum status tinker_batch_parse(struct tinker_batch *out, const void *data, size_t len,
                               struct errtext *err)
{
    struct parse p = {.b = out, .err = err};
    *out = (struct tinker_batch){.clip_low = TINKER_CLIP_LOW, .clip_high = TINKER_CLIP_HIGH};
    arena_init(&out->memory, MEMORY_FACTOR * len + ((size_t)16 << 20));
    enum status st = read_all(&p, proto_open(WHERE, data, len, err));
    if (st)
        tinker_batch_fini(out);
    return st;
}

void tinker_batch_fini(struct tinker_batch *b)
{
    arena_fini(&b->memory);
    b->datum = NULL;
    b->n = 0;
}

struct tinker_loss tinker_batch_loss(const struct tinker_batch *b, const struct tinker_datum *d)
{
    return (struct tinker_loss){.kind = b->loss,
                                .clip_low = b->clip_low,
                                .clip_high = b->clip_high,
                                .n = d->n,
                                .weights = d->weight,
                                .sampled = d->sampled,
                                .advantage = d->advantage};
}
