/* Text after text, as the manifest names them: a document's is read once for its run of rows. */
#include "server/datanet/training_rows.h"
#include "server/base/mem.h"

#include <inttypes.h>

struct row_walk {
    const struct datanet *datanet;
    const struct training *training;
    struct row_form form;
    struct training_rows *out;
    struct token_list list;
    struct buf text;
    uint32_t document; /* whose text it is; UINT32_MAX: none */
};

/* The row's tokens stand from `first` on. */
static enum status count_prompt(struct row_walk *w, uint32_t i, const char *text, size_t first,
                                struct errtext *err)
{
    const struct training_row *row = &w->training->row[i];
    struct token_list own = {0};
    uint32_t n = 0;
    enum status st = row_prompt(&w->form, datanet_facts(w->datanet, row->document)->kind, text,
                                row->bytes, &own, err);
    while (!st && n < own.n && first + n < w->list.n && own.ids[n] == w->list.ids[first + n])
        n++;
    w->out->prompt[i] = n;
    mem_free(own.ids);
    return st;
}

static enum status take_row(struct row_walk *w, uint32_t i, struct errtext *err)
{
    const struct training_row *row = &w->training->row[i];
    const struct documents_facts *facts = datanet_facts(w->datanet, row->document);
    size_t first = w->list.n;
    bool cut = false;
    enum status st = STATUS_OK;
    if (w->document != row->document) {
        st = datanet_text(w->datanet, row->document, &w->text, err);
        w->document = st ? UINT32_MAX : row->document;
    }
    const char *text = w->text.data + row->offset;
    if (!st)
        st = row_tokens(&w->form, facts->kind, text, row->bytes, &w->list, &cut, err);
    if (!st)
        st = count_prompt(w, i, text, first, err);
    if (st)
        err_prefix(err, "document %" PRIu64 ", row %u", facts->doc_id, i);
    w->out->cut += cut;
    w->out->begin[i + 1] = w->list.n;
    return st;
}

enum status training_rows_read(struct training_rows *out, const struct datanet *d,
                               const struct training *t, const struct model *model,
                               const _Atomic bool *stop, struct errtext *err)
{
    struct row_walk w = {
        .datanet = d,
        .training = t,
        .form = {.model = model, .chat = model->chat, .bos = t->bos, .eos = t->eos},
        .out = out,
        .list = {.n_max = TRAINING_TOKENS_MAX},
        .document = UINT32_MAX};
    *out = (struct training_rows){.n = t->n};
    out->begin = mem_try_array((size_t)t->n + 1, sizeof(*out->begin));
    out->prompt = mem_try_array((size_t)t->n + 1, sizeof(*out->prompt));
    if (!out->begin || !out->prompt) {
        training_rows_fini(out);
        return err_set(err, STATUS_NO_MEMORY, "no memory for %u rows", t->n);
    }
    buf_init(&w.text, DOCUMENT_BYTES_MAX);
    enum status st = STATUS_OK;
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

void training_rows_fini(struct training_rows *r)
{
    mem_free(r->ids);
    mem_free(r->begin);
    mem_free(r->prompt);
    *r = (struct training_rows){0};
}
