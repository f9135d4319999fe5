/* The spans of one datanet version: segments over the tokens of its texts. Of Markdown and text
 * the tokens are those of the document; of JSON lines those of what each row says, for nobody
 * answers in JSON. */
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/influence/index_make.h"
#include "server/influence/spans_folder.h"

#include <string.h>

struct span_source {
    const struct index_maker *maker;
    const struct datanet *datanet;
    enum rows_kind kind; /* of the document at hand */
    struct buf text, row;
    struct token_list list;
    uint32_t *offset; /* [offset_cap] */
    size_t offset_cap;
};

/* Offsets of the tokens from `first` on: they stand one behind another from byte `at`, and end by
 * `end`. A tokenizer that puts a blank before the text makes the first one longer than it is. */
static bool put_offsets(struct span_source *s, size_t first, uint32_t at, uint32_t end)
{
    size_t n = s->list.n, sum = 0, skip = 0, len;
    if (n + 1 > s->offset_cap) {
        size_t cap = MAX(2 * s->offset_cap, n + 1);
        uint32_t *grown = mem_try_realloc(s->offset, cap * sizeof(*grown));
        if (!grown)
            return false;
        s->offset = grown;
        s->offset_cap = cap;
    }
    for (size_t i = first; i < n; i++) {
        (void)tokenizer_token_bytes(s->maker->deps.model->tokenizer, s->list.ids[i], &len);
        sum += len;
    }
    skip = sum > end - at ? sum - (end - at) : 0;
    sum = 0;
    for (size_t i = first; i < n; i++) {
        (void)tokenizer_token_bytes(s->maker->deps.model->tokenizer, s->list.ids[i], &len);
        s->offset[i] = (uint32_t)MIN(at + sum, end);
        len -= MIN(skip, len);
        skip = 0;
        sum += len;
    }
    s->offset[n] = end;
    return true;
}

static enum status put_row(void *arg, size_t offset, size_t bytes, struct errtext *err)
{
    struct span_source *s = arg;
    const struct model *model = s->maker->deps.model;
    const struct row_form form = {.model = model, .chat = model->chat};
    size_t first = s->list.n;
    buf_clear(&s->row);
    enum status st = row_render(&form, s->kind, s->text.data + offset, bytes, &s->row, err);
    if (!st)
        st = tokenizer_encode(model->tokenizer, s->row.data, s->row.len, 0, &s->list, err);
    if (!st && !put_offsets(s, first, (uint32_t)offset, (uint32_t)(offset + bytes)))
        st = err_set(err, STATUS_NO_MEMORY, "spans: no memory");
    return st;
}

static enum status put_text(struct span_source *s, struct errtext *err)
{
    enum status st = tokenizer_encode(s->maker->deps.model->tokenizer, s->text.data, s->text.len, 0,
                                      &s->list, err);
    if (!st && !put_offsets(s, 0, 0, (uint32_t)s->text.len))
        st = err_set(err, STATUS_NO_MEMORY, "spans: no memory");
    return st;
}

static enum status give_document(void *arg, uint32_t i, struct spans_document *out,
                                 struct errtext *err)
{
    struct span_source *s = arg;
    const struct documents *list = datanet_documents(s->datanet);
    if (atomic_load(&s->maker->stop))
        return err_set(err, STATUS_CANCELLED, "the server stops");
    s->list.n = 0;
    s->kind = list->facts[i].kind;
    enum status st = datanet_text(s->datanet, i, &s->text, err);
    if (!st)
        st = s->kind == ROWS_ROWS || s->kind == ROWS_CHATS
                 ? rows_each(s->kind, s->text.data, s->text.len, put_row, s, err)
                 : put_text(s, err);
    if (!st && s->list.n == 0 && !put_offsets(s, 0, 0, (uint32_t)s->text.len))
        st = err_set(err, STATUS_NO_MEMORY, "spans: no memory");
    *out =
        (struct spans_document){.n = (uint32_t)s->list.n, .ids = s->list.ids, .offset = s->offset};
    return st;
}

enum status index_open_spans(struct spans **out, struct index_maker *m, const struct datanet *d,
                             struct errtext *err)
{
    const struct datanet_head *head = datanet_head(d);
    struct span_source s = {.maker = m, .datanet = d, .list = {.n_max = TOKENIZE_TEXT_BYTES_MAX}};
    uint32_t *owner = mem_try_array(MAX(head->n, 1), sizeof(*owner));
    uint8_t(*digest)[32] = mem_try_array(MAX(head->n, 1), sizeof(*digest));
    const struct spans_list list = {
        .n_document = head->n, .n_owner = head->owners, .digest = digest, .owner = owner};
    struct spans_folder f = {.dir = m->opt.dir,
                             .document_root = head->document_root,
                             .tokenizer_digest = m->deps.model->tokenizer_digest,
                             .list = &list,
                             .n_vocab = m->deps.model->config.n_vocab,
                             .document = give_document,
                             .arg = &s};
    enum status st = STATUS_NO_MEMORY;
    if (owner && digest) {
        for (uint32_t i = 0; i < head->n; i++) {
            memcpy(digest[i], datanet_document(d, i)->digest, 32);
            owner[i] = documents_owner(datanet_documents(d), i);
        }
        buf_init(&s.text, DOCUMENT_BYTES_MAX);
        buf_init(&s.row, DOCUMENT_BYTES_MAX);
        st = spans_folder_open(out, &f, err);
        buf_fini(&s.text);
        buf_fini(&s.row);
    } else {
        st = err_set(err, st, "spans: no memory for %u documents", head->n);
    }
    atomic_fetch_add(&m->rebuilt, f.corrupt);
    mem_free(owner);
    mem_free(digest);
    mem_free(s.list.ids);
    mem_free(s.offset);
    return st;
}
