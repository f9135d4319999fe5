/* Rows of a datanet, as the spans of datums name them: found in their document, held against the
 * datum's tokens, gathered for the training manifest. Claims are sorted, so that a document is read
 * once for all of a batch's. */
#include "server/base/check.h"
#include "server/base/hex.h"
#include "server/base/mem.h"
#include "server/datanet/training_rows.h"
#include "server/http/tinker_parts.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SPAN_PREFIX "datanet:0x"

struct row_claim {
    uint8_t root[32];
    uint64_t doc_id, offset, length;
    uint32_t row, datum, span;
    const int32_t *ids;
};

/* What a walk over a document's rows has. */
struct claim_walk {
    const struct row_claim *claim; /* of this document, ascending by row */
    uint32_t n, at, row;
    uint32_t place;
    enum rows_kind kind;
    struct row_form form;
    const char *text;
    struct tinker_rows *out;
};

static enum status bad_claim(const struct row_claim *c, enum status st, struct errtext *err,
                             const char *what)
{
    return err_param(err, st, "model_input_spans", "data[%u].model_input_spans[%u]: %s", c->datum,
                     c->span, what);
}

/* false: it names no row of a datanet. INVALID: it tries to. */
static enum status read_claim(struct row_claim *c, const char *id, bool *is_row,
                              struct errtext *err)
{
    char hex[65], *end;
    *is_row = strncmp(id, SPAN_PREFIX, strlen(SPAN_PREFIX)) == 0;
    if (!*is_row)
        return STATUS_OK;
    snprintf(hex, sizeof(hex), "%s", id + strlen(SPAN_PREFIX));
    const char *at = id + strlen(SPAN_PREFIX) + strlen(hex);
    bool ok = hex_decode(c->root, 32, hex) && at[0] == '/' && at[1] >= '0' && at[1] <= '9';
    if (ok) {
        c->doc_id = strtoull(at + 1, &end, 10);
        ok = end[0] == '/' && end[1] >= '0' && end[1] <= '9';
    }
    if (ok) {
        unsigned long long row = strtoull(end + 1, &end, 10);
        ok = !*end && row < UINT32_MAX;
        c->row = (uint32_t)row;
    }
    return ok ? STATUS_OK
              : bad_claim(c, STATUS_INVALID, err,
                          "expected datanet:0x<document root>/<docId>/<number of the row>");
}

static int by_row(const void *a, const void *b)
{
    const struct row_claim *x = a, *y = b;
    int c = memcmp(x->root, y->root, 32);
    if (c == 0 && x->doc_id != y->doc_id)
        c = x->doc_id < y->doc_id ? -1 : 1;
    return c ? c : (x->row > y->row) - (x->row < y->row);
}

static enum status read_claims(struct row_claim *claim, uint32_t *n, const struct tinker_batch *b,
                               struct errtext *err)
{
    enum status st = STATUS_OK;
    *n = 0;
    for (uint32_t i = 0; i < b->n && !st; i++) {
        const struct tinker_datum *d = &b->datum[i];
        uint64_t at = 0;
        for (uint32_t k = 0; k < d->n_span && !st; k++) {
            const struct tinker_span *span = &d->span[k];
            struct row_claim c = {
                .offset = span->offset, .length = span->length, .datum = i, .span = k};
            bool is_row = false;
            c.ids = d->ids + at;
            at += span->length;
            if (span->length > 0 && !span->sampled)
                st = read_claim(&c, span->sequence_id, &is_row, err);
            if (!st && is_row)
                claim[(*n)++] = c;
        }
    }
    return st;
}

/* ---- one document ---- */

static enum status add(struct tinker_rows *r, struct training_row row, struct errtext *err)
{
    uint32_t lo = 0, hi = r->n;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        const struct training_row *m = &r->row[mid];
        if (m->document < row.document || (m->document == row.document && m->offset < row.offset))
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo < r->n && r->row[lo].document == row.document && r->row[lo].offset == row.offset)
        return STATUS_OK;
    if (r->n == r->room) {
        uint32_t room = r->room ? 2 * r->room : 64;
        void *more =
            r->room < TINKER_ROWS_MAX ? mem_try_realloc(r->row, room * sizeof(*r->row)) : NULL;
        if (!more)
            return err_set(err, STATUS_TOO_LARGE, "more than %u rows of a datanet", r->room);
        r->row = more;
        r->room = room;
    }
    memmove(&r->row[lo + 1], &r->row[lo], (r->n - lo) * sizeof(*r->row));
    r->row[lo] = row;
    r->n++;
    return STATUS_OK;
}

static enum status hold_against(const struct row_claim *c, const struct token_list *ids,
                                struct errtext *err)
{
    char what[160];
    if (c->offset > ids->n || c->length > ids->n - c->offset) {
        snprintf(what, sizeof(what), "tokens %" PRIu64 " to %" PRIu64 ", the row has %zu",
                 c->offset, c->offset + c->length, ids->n);
        return bad_claim(c, STATUS_INVALID, err, what);
    }
    for (uint64_t i = 0; i < c->length; i++) {
        if (c->ids[i] == ids->ids[c->offset + i])
            continue;
        snprintf(what, sizeof(what),
                 "token %" PRIu64 " of the row is %d, the datum has %d; the row's text is "
                 "tokenized without marks",
                 c->offset + i, ids->ids[c->offset + i], c->ids[i]);
        return bad_claim(c, STATUS_INVALID, err, what);
    }
    return STATUS_OK;
}

static enum status on_row(void *arg, size_t offset, size_t bytes, struct errtext *err)
{
    struct claim_walk *w = arg;
    struct token_list ids = {.n_max = ROW_TOKENS_MAX};
    enum status st = STATUS_OK;
    bool cut = false;
    uint32_t row = w->row++;
    if (w->at == w->n || w->claim[w->at].row != row)
        return STATUS_OK;
    st = row_tokens(&w->form, w->kind, w->text + offset, bytes, &ids, &cut, err);
    while (!st && w->at < w->n && w->claim[w->at].row == row)
        st = hold_against(&w->claim[w->at++], &ids, err);
    if (!st)
        st = add(w->out, (struct training_row){w->place, (uint32_t)offset, (uint32_t)bytes}, err);
    mem_free(ids.ids);
    return st;
}

static enum status read_document(struct claim_walk *w, const struct datanet *d, struct errtext *err)
{
    char what[96];
    struct buf text;
    const struct row_claim *c = &w->claim[0];
    w->place = documents_find(datanet_documents(d), c->doc_id);
    if (w->place == UINT32_MAX || w->place >= datanet_head(d)->n)
        return bad_claim(c, STATUS_NOT_FOUND, err,
                         "the datanet has no such document, or it is a copy of another one");
    buf_init(&text, DOCUMENT_BYTES_MAX);
    enum status st = datanet_text(d, w->place, &text, err);
    w->text = text.data;
    w->kind = datanet_facts(d, w->place)->kind;
    if (!st)
        st = rows_each(w->kind, text.data, text.len, on_row, w, err);
    buf_fini(&text);
    if (st || w->at == w->n)
        return st;
    snprintf(what, sizeof(what), "row %u, the document has %u", w->claim[w->at].row, w->row);
    return bad_claim(&w->claim[w->at], STATUS_NOT_FOUND, err, what);
}

static enum status read_documents(struct tinker_rows *out, struct http_server *s,
                                  const struct row_claim *claim, uint32_t n, struct errtext *err)
{
    enum status st = STATUS_OK;
    struct datanet *d = datanet_store_find(s->deps.datanets, claim[0].root);
    if (!d)
        return bad_claim(&claim[0], STATUS_NOT_FOUND, err,
                         "no such datanet is here with all texts");
    memcpy(out->root, claim[0].root, 32);
    for (uint32_t i = 0, end; i < n && !st; i = end) {
        if (memcmp(claim[i].root, claim[0].root, 32) != 0) {
            st = bad_claim(&claim[i], STATUS_INVALID, err,
                           "an adapter is trained on rows of one datanet, this is another");
            break;
        }
        for (end = i + 1; end < n && claim[end].doc_id == claim[i].doc_id &&
                          memcmp(claim[end].root, claim[i].root, 32) == 0;
             end++)
            ;
        struct claim_walk w = {.claim = claim + i, .n = end - i, .out = out};
        w.form = (struct row_form){.model = s->deps.model, .chat = s->deps.model->chat};
        st = read_document(&w, d, err);
    }
    datanet_release(d);
    return st;
}

enum status tinker_rows_of(struct tinker_rows *out, struct http_server *s,
                           const struct tinker_batch *b, struct errtext *err)
{
    uint32_t spans = 0, n;
    *out = (struct tinker_rows){.row = NULL};
    for (uint32_t i = 0; i < b->n; i++)
        spans += b->datum[i].n_span;
    if (spans == 0)
        return STATUS_OK;
    struct row_claim *claim = mem_try_array(spans, sizeof(*claim));
    if (!claim)
        return err_set(err, STATUS_NO_MEMORY, "there is no memory for %u spans now", spans);
    enum status st = read_claims(claim, &n, b, err);
    if (!st && n > 0) {
        qsort(claim, n, sizeof(*claim), by_row);
        st = read_documents(out, s, claim, n, err);
    }
    mem_free(claim);
    if (st)
        tinker_rows_fini(out);
    return st;
}

/* ---- sets ---- */

static enum status same_datanet(const struct tinker_rows *to, const struct tinker_rows *more,
                                struct errtext *err)
{
    if (to->n == 0 || more->n == 0 || memcmp(to->root, more->root, 32) == 0)
        return STATUS_OK;
    return err_param(err, STATUS_INVALID, "model_input_spans",
                     "model_input_spans: this model was trained on rows of another datanet before; "
                     "a training manifest has one");
}

enum status tinker_rows_add(struct tinker_rows *to, const struct tinker_rows *more,
                            struct errtext *err)
{
    enum status st = same_datanet(to, more, err);
    if (!st && more->n > 0)
        memcpy(to->root, more->root, 32);
    for (uint32_t i = 0; i < more->n && !st; i++)
        st = add(to, more->row[i], err);
    return st;
}

/* Those of the model, and those of passes that are still queued, behind a load that is. The newest
 * future comes first. */
enum status tinker_rows_asked(struct tinker_model *m, struct tinker_rows *out,
                              const struct tinker_rows *more, struct errtext *err)
{
    const struct tinker_session *s = m->session;
    struct tinker *t = s->tinker;
    bool loads = false;
    enum status st = STATUS_OK;
    pthread_mutex_lock(&t->lock);
    for (const struct tinker_future *o = s->future; !st; o = o ? o->next : NULL) {
        bool queued = o && o->model == m && o->stage == TINKER_RUNNING;
        loads = queued && o->kind == TINKER_LOAD;
        const struct tinker_rows *rows = o ? NULL : &m->rows;
        if (loads || (queued && o->kind == TINKER_PASS))
            rows = &o->rows;
        if (rows && out)
            st = tinker_rows_add(out, rows, err);
        if (rows && more)
            st = same_datanet(rows, more, err);
        if (!o || loads)
            break;
    }
    pthread_mutex_unlock(&t->lock);
    return st;
}

void tinker_rows_fini(struct tinker_rows *r)
{
    mem_free(r->row);
    *r = (struct tinker_rows){.row = NULL};
}

static enum status find_datanet(struct datanet **out, struct http_server *s, const uint8_t root[32],
                                struct errtext *err)
{
    *out = datanet_store_find(s->deps.datanets, root);
    return *out ? STATUS_OK
                : err_set(err, STATUS_NOT_FOUND,
                          "the datanet that this model was trained on is not here any more");
}

enum status tinker_rows_render(char **out, size_t *len, const struct tinker_rows *r,
                               struct http_server *s, struct errtext *err)
{
    struct training t = {.bos = s->deps.model->add_bos, .n = r->n, .row = r->row};
    struct datanet *d;
    struct buf text;
    *out = NULL;
    *len = 0;
    if (r->n == 0)
        return STATUS_OK;
    memcpy(t.tokenizer_digest, s->deps.model->tokenizer_digest, 32);
    enum status st = find_datanet(&d, s, r->root, err);
    if (st)
        return st;
    buf_init(&text, TRAINING_BYTES_MAX);
    st = training_render(&text, &t, d, err);
    *out = st ? NULL : buf_steal(&text, len);
    buf_fini(&text);
    datanet_release(d);
    return st || *out ? st : err_set(err, STATUS_NO_MEMORY, "no memory for the manifest");
}

enum status tinker_rows_read(struct tinker_rows *out, const char *text, size_t len,
                             struct http_server *s, struct errtext *err)
{
    struct training *t = NULL;
    struct datanet *d = NULL;
    uint8_t root[32];
    *out = (struct tinker_rows){.row = NULL};
    enum status st = datanet_store_check_training(s->deps.datanets, text, len, root, err);
    if (!st)
        st = find_datanet(&d, s, root, err);
    if (!st)
        st = training_parse(&t, text, len, d, err);
    memcpy(out->root, root, st ? 0 : 32);
    for (uint32_t i = 0; !st && i < t->n; i++)
        st = add(out, t->row[i], err);
    training_free(t);
    datanet_release(d);
    if (st)
        tinker_rows_fini(out);
    return st;
}
