/* The last step of the builder: events into the file's order, then what is measured on the finished
 * tables (restated facts, trust), and the root over all of it. */
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/influence/events_build_impl.h"

#include <string.h>

struct writer {
    const struct events_builder *b;
    struct events_head head;
    uint64_t at[EVENTS_SECTIONS + 1];
    uint32_t *order; /* events of rows, in the file's order */
    uint32_t *first; /* [2][n_vocab + 1]: counts, then where a target's events begin */
    uint8_t *image;
};

static uint32_t part_of(const struct events_builder *b, uint32_t event)
{
    return events_builder_learned(b, event) < b->method.learned_min;
}

/* A stable counting sort by part and target of the events in the order of rows. */
static void sort_events(struct writer *w)
{
    const struct events_builder *b = w->b;
    uint32_t n_vocab = b->src.n_vocab, at = 0;
    for (uint32_t r = 0; r < b->src.n_rows; r++) {
        for (uint32_t i = b->row[r].begin; i < b->row[r].begin + b->row[r].n; i++)
            w->first[part_of(b, i) * n_vocab + (uint32_t)b->target[i]]++;
    }
    for (uint32_t i = 0; i < 2 * n_vocab; i++) {
        uint32_t count = w->first[i];
        w->head.n_lists_learned += i < n_vocab && count;
        w->head.n_lists_rest += i >= n_vocab && count;
        w->head.n_learned += i < n_vocab ? count : 0;
        w->first[i] = at;
        at += count;
    }
    w->head.n_events = at;
    for (uint32_t r = 0; r < b->src.n_rows; r++) {
        for (uint32_t i = b->row[r].begin; i < b->row[r].begin + b->row[r].n; i++)
            w->order[w->first[part_of(b, i) * n_vocab + (uint32_t)b->target[i]]++] = i;
    }
}

static void fill_head(struct writer *w)
{
    const struct events_source *s = &w->b->src;
    struct events_head *h = &w->head;
    memcpy(h->magic, "RSEVENTS", sizeof(h->magic));
    h->version = EVENTS_VERSION;
    h->head_bytes = sizeof(*h);
    memcpy(h->adapter_id, s->adapter_id, 32);
    memcpy(h->model_id, s->model_id, 32);
    memcpy(h->document_root, s->document_root, 32);
    memcpy(h->owner_root, s->owner_root, 32);
    memcpy(h->training_digest, s->training_digest, 32);
    memcpy(h->tokenizer_digest, s->tokenizer_digest, 32);
    h->n_rows = s->n_rows;
    h->n_documents = s->n_documents;
    h->n_owners = s->n_owners;
    h->n_vocab = s->n_vocab;
    h->d_model = s->d_model;
    h->method = w->b->method;
    events_layout(h, w->at);
    h->file_bytes = w->at[EVENTS_SECTIONS];
}

static void fill_tables(struct writer *w)
{
    const struct events_builder *b = w->b;
    const struct events_source *s = &b->src;
    size_t basis = (size_t)s->d_model * EVENTS_HALF * sizeof(uint16_t);
    uint8_t *document = w->image + w->at[EVENTS_SECTION_DOCUMENTS];
    struct events_owner *owner = (struct events_owner *)(w->image + w->at[EVENTS_SECTION_OWNERS]);
    struct events_row *row = (struct events_row *)(w->image + w->at[EVENTS_SECTION_ROWS]);
    memcpy(w->image + w->at[EVENTS_SECTION_W], b->w, basis);
    memcpy(w->image + w->at[EVENTS_SECTION_BIAS], b->bias, sizeof(b->bias));
    memcpy(w->image + w->at[EVENTS_SECTION_CONTEXT_W], b->context_w, basis);
    memcpy(w->image + w->at[EVENTS_SECTION_CONTEXT_BIAS], b->context_bias, sizeof(b->context_bias));
    memcpy(w->image + w->at[EVENTS_SECTION_SURPRISE], b->surprise, s->n_vocab * sizeof(uint16_t));
    for (uint32_t i = 0; i < s->n_owners; i++)
        memcpy(owner[i].payee, s->payee[i], 20);
    for (uint32_t i = 0; i < s->n_documents; i++) {
        memcpy(document + (size_t)i * 32, s->document[i].digest, 32);
        owner[s->document[i].owner].documents++;
    }
    for (uint32_t i = 0; i < s->n_rows; i++)
        row[i] = (struct events_row){.document = s->row[i].document,
                                     .offset = s->row[i].offset,
                                     .bytes = s->row[i].bytes,
                                     .owner = s->document[s->row[i].document].owner,
                                     .cluster = i};
}

static void fill_key(uint8_t *blocks, uint32_t at, const int8_t *half)
{
    uint8_t *block = blocks + (size_t)(at / EVENTS_LANES) * EVENTS_BLOCK;
    for (uint32_t g = 0; g < EVENTS_HALF / 4; g++)
        memcpy(block + 64 * g + 4 * (at % EVENTS_LANES), half + 4 * g, 4);
}

static void fill_events(struct writer *w, const uint32_t *row_of)
{
    const struct events_builder *b = w->b;
    struct events_list *list = (struct events_list *)(w->image + w->at[EVENTS_SECTION_LISTS]);
    uint32_t *row = (uint32_t *)(w->image + w->at[EVENTS_SECTION_EVENT_ROW]);
    uint16_t *learned = (uint16_t *)(w->image + w->at[EVENTS_SECTION_LEARNED]);
    for (uint32_t i = 0; i < w->head.n_events; i++) {
        uint32_t event = w->order[i];
        const int8_t *key = b->key + (size_t)event * EVENTS_KEY;
        bool starts =
            i == 0 || i == w->head.n_learned || b->target[w->order[i - 1]] != b->target[event];
        if (starts)
            *list++ = (struct events_list){.target = (uint32_t)b->target[event], .begin = i};
        row[i] = row_of[event];
        learned[i] = events_builder_learned(b, event);
        fill_key(w->image + w->at[EVENTS_SECTION_KEY1], i, key);
        fill_key(w->image + w->at[EVENTS_SECTION_KEY2], i, key + EVENTS_HALF);
    }
}

static enum status fill_image(struct writer *w, struct errtext *err)
{
    const struct events_builder *b = w->b;
    uint32_t *row_of = mem_try_array((size_t)b->n_events + 1, sizeof(*row_of));
    w->image = mem_try_alloc(w->at[EVENTS_SECTIONS]);
    if (!row_of || !w->image) {
        mem_free(row_of);
        return err_set(err, STATUS_NO_MEMORY, "no memory for a file of %llu bytes",
                       (unsigned long long)w->at[EVENTS_SECTIONS]);
    }
    for (uint32_t r = 0; r < b->src.n_rows; r++) {
        for (uint32_t i = 0; i < b->row[r].n; i++)
            row_of[b->row[r].begin + i] = r;
    }
    memcpy(w->image, &w->head, sizeof(w->head));
    fill_tables(w);
    fill_events(w, row_of);
    mem_free(row_of);
    return STATUS_OK;
}

/* What is measured on the index itself. */
static enum status fill_measured(struct writer *w, struct errtext *err)
{
    struct events e = {.map = w->image, .bytes = w->at[EVENTS_SECTIONS]};
    struct events_head *head = (struct events_head *)w->image;
    struct events_row *row = (struct events_row *)(w->image + w->at[EVENTS_SECTION_ROWS]);
    events_bind(&e, w->image);
    e.power = mem_try_array(EVENTS_DOT + 1, sizeof(*e.power));
    if (!e.power)
        return err_set(err, STATUS_NO_MEMORY, "no memory to measure the index");
    events_power_fill(e.power, EVENTS_DOT, head->method.squarings);
    enum status st = events_cluster_rows(w->b, &e, row, &head->n_joined, err);
    if (!st)
        st = events_trust_measure(w->b, &e, &head->trust, err);
    mem_free(e.power);
    return st;
}

enum status events_builder_finish(struct events_builder *b, const char *path, struct errtext *err)
{
    struct writer w = {.b = b};
    if (!b->context_w_t || b->n_adapter != b->src.n_rows)
        return err_set(err, STATUS_INVALID, "%u of %u rows have come", b->n_adapter, b->src.n_rows);
    w.order = mem_try_array((size_t)b->n_events + 1, sizeof(*w.order));
    w.first = mem_try_array(b->src.n_vocab, 2 * sizeof(*w.first));
    enum status st = w.order && w.first
                         ? STATUS_OK
                         : err_set(err, STATUS_NO_MEMORY, "no memory for %u events", b->n_events);
    if (!st)
        st = events_facts_begin(b, err);
    if (!st) {
        sort_events(&w);
        fill_head(&w);
        st = fill_image(&w, err);
    }
    mem_free(w.order);
    mem_free(w.first);
    if (!st)
        st = fill_measured(&w, err);
    if (!st) {
        events_root_of(w.image + w.at[EVENTS_SECTION_ROOT], w.image, w.at[EVENTS_SECTION_ROOT]);
        st = file_write_atomic(path, w.image, w.at[EVENTS_SECTIONS], 0644, err);
    }
    mem_free(w.image);
    return st;
}
