/* Text after text, as the manifest names them: a document's is read once for its run of rows. */
#include "server/datanet/training_rows.h"
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/datanet/row_mask.h"

#include <inttypes.h>
#include <string.h>

struct row_walk {
    const struct datanet *datanet;
    const struct training *training;
    struct row_form form;
    struct training_rows *out;
    struct token_list list;
    size_t bits; /* bytes that out->learn has */
    struct buf text;
    uint32_t document; /* whose text it is; UINT32_MAX: none */
};

/* Bits for the tokens that there are, 0 where they are new. */
static enum status grow_bits(struct row_walk *w, struct errtext *err)
{
    size_t need = w->list.n / 8 + 1, more = MAX(need, 2 * w->bits);
    if (need <= w->bits)
        return STATUS_OK;
    uint8_t *bits = mem_try_realloc(w->out->learn, more);
    if (!bits)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the masks of %zu tokens", w->list.n);
    memset(bits + w->bits, 0, more - w->bits);
    w->out->learn = bits;
    w->bits = more;
    return STATUS_OK;
}

static enum status take_mask(struct row_walk *w, const struct row_masking *r, struct errtext *err)
{
    bool learns = false;
    enum status st = STATUS_OK;
    if (r->mask != ROW_MASK_ALL)
        st = grow_bits(w, err);
    struct row_masking here = *r;
    here.learn = w->out->learn;
    if (!st && r->mask != ROW_MASK_ALL)
        st = row_mask_set(&here, err);
    for (size_t i = 1; i < r->n && !st && !learns; i++)
        learns = training_rows_learns(w->out, r->at + i);
    w->out->idle += !st && !learns;
    return st;
}

/* Where the row is, for its owner: the line of a file of lines. */
static void say_where(const struct row_walk *w, uint32_t i, struct errtext *err)
{
    const struct training_row *row = &w->training->row[i];
    const struct documents_facts *facts = datanet_facts(w->datanet, row->document);
    uint32_t line = 1;
    for (uint32_t k = 0; k < row->offset && k < w->text.len; k++)
        line += w->text.data[k] == '\n';
    if (facts->kind == ROWS_ROWS || facts->kind == ROWS_CHATS)
        err_prefix(err, "document %" PRIu64 ", line %u", facts->doc_id, line);
    else
        err_prefix(err, "document %" PRIu64 ", row %u", facts->doc_id, i);
}

/* Begins and room for n rows. */
static enum status make_room(struct training_rows *out, uint32_t n, enum row_mask mask,
                             struct errtext *err)
{
    *out = (struct training_rows){.mask = mask};
    out->begin = mem_try_array((size_t)n + 1, sizeof(*out->begin));
    return out->begin ? STATUS_OK : err_set(err, STATUS_NO_MEMORY, "no memory for %u rows", n);
}

static enum status add_row(struct row_walk *w, enum rows_kind kind, const char *row, size_t len,
                           struct errtext *err)
{
    struct row_masking r = {.form = &w->form,
                            .mask = w->out->mask,
                            .kind = kind,
                            .row = row,
                            .len = len,
                            .at = w->list.n};
    bool cut = false;
    enum status st = row_tokens(&w->form, kind, row, len, &w->list, &cut, err);
    r.ids = w->list.ids + r.at;
    r.n = w->list.n - r.at;
    if (!st)
        st = take_mask(w, &r, err);
    w->out->cut += cut;
    if (!st)
        w->out->begin[++w->out->n] = w->list.n;
    return st;
}

static enum status take_row(struct row_walk *w, uint32_t i, struct errtext *err)
{
    const struct training_row *row = &w->training->row[i];
    enum status st = STATUS_OK;
    if (w->document != row->document) {
        st = datanet_text(w->datanet, row->document, &w->text, err);
        w->document = st ? UINT32_MAX : row->document;
    }
    if (!st)
        st = add_row(w, datanet_facts(w->datanet, row->document)->kind, w->text.data + row->offset,
                     row->bytes, err);
    if (st)
        say_where(w, i, err);
    return st;
}

enum status training_rows_read(struct training_rows *out, const struct datanet *d,
                               const struct training *t, const struct model *model,
                               enum row_mask mask, const _Atomic bool *stop, struct errtext *err)
{
    struct row_walk w = {
        .datanet = d,
        .training = t,
        .form = {.model = model, .chat = model->chat, .bos = t->bos, .eos = t->eos},
        .out = out,
        .list = {.n_max = TRAINING_TOKENS_MAX},
        .document = UINT32_MAX};
    enum status st = make_room(out, t->n, mask, err);
    if (st)
        return st;
    buf_init(&w.text, DOCUMENT_BYTES_MAX);
    for (uint32_t i = 0; !st && i < t->n && !(stop && atomic_load(stop)); i++)
        st = take_row(&w, i, err);
    if (!st && stop && atomic_load(stop))
        st = err_set(err, STATUS_CANCELLED, "the server stops");
    buf_fini(&w.text);
    out->ids = w.list.ids;
    if (st)
        training_rows_fini(out);
    return st;
}

struct line_walk {
    struct row_walk *row; /* NULL: lines are counted */
    const char *text;
    uint32_t n;
};

static enum status visit_line(void *arg, size_t offset, size_t bytes, struct errtext *err)
{
    struct line_walk *w = arg;
    enum status st = ++w->n > TRAINING_ROWS_MAX
                         ? err_set(err, STATUS_TOO_LARGE, "at most %u", TRAINING_ROWS_MAX)
                         : STATUS_OK;
    if (!st && w->row)
        st = add_row(w->row, ROWS_ROWS, w->text + offset, bytes, err);
    if (st)
        err_prefix(err, "row %u", w->n);
    return st;
}

enum status training_rows_lines(struct training_rows *out, const struct row_form *form,
                                enum row_mask mask, const char *text, size_t len,
                                struct errtext *err)
{
    struct row_walk w = {.form = *form, .out = out, .list = {.n_max = TRAINING_TOKENS_MAX}};
    struct line_walk counted = {.text = text}, taken = {.row = &w, .text = text};
    enum status st = rows_each(ROWS_ROWS, text, len, visit_line, &counted, err);
    if (!st)
        st = make_room(out, counted.n, mask, err);
    if (st)
        return st;
    st = rows_each(ROWS_ROWS, text, len, visit_line, &taken, err);
    out->ids = w.list.ids;
    if (st)
        training_rows_fini(out);
    return st;
}

static void pick_row(struct training_rows *out, const struct training_rows *all, uint32_t row)
{
    uint64_t from = all->begin[row], to = out->begin[out->n], n = all->begin[row + 1] - from;
    bool learns = false;
    memcpy(out->ids + to, all->ids + from, n * sizeof(*all->ids));
    for (uint64_t i = 0; i < n; i++) {
        bool bit = training_rows_learns(all, from + i);
        learns |= i > 0 && bit;
        if (out->learn && bit)
            out->learn[(to + i) / 8] |= (uint8_t)(1u << (to + i) % 8);
    }
    out->idle += !learns;
    out->begin[++out->n] = to + n;
}

enum status training_rows_pick(struct training_rows *out, const struct training_rows *all,
                               const uint8_t *take, struct errtext *err)
{
    uint64_t tokens = all->begin[all->n];
    *out = (struct training_rows){.mask = all->mask};
    out->ids = mem_try_array(tokens + 1, sizeof(*out->ids));
    out->begin = mem_try_array((size_t)all->n + 1, sizeof(*out->begin));
    out->learn = all->learn ? mem_try_array(tokens / 8 + 1, 1) : NULL;
    if (!out->ids || !out->begin || (all->learn && !out->learn)) {
        training_rows_fini(out);
        return err_set(err, STATUS_NO_MEMORY, "no memory for %u rows", all->n);
    }
    for (uint32_t i = 0; i < all->n; i++) {
        if (take[i])
            pick_row(out, all, i);
    }
    return STATUS_OK;
}

void training_rows_fini(struct training_rows *r)
{
    mem_free(r->ids);
    mem_free(r->begin);
    mem_free(r->learn);
    *r = (struct training_rows){0};
}
