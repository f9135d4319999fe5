/* The tables of a step: built in page-locked memory, copied once, read by every kernel of the pass.
 * The front holds the tables of fixed capacity at fixed places; behind it lie what follows
 * the context in length, the work list of attention and page numbers, so that one copy of the used
 * bytes moves everything. Three host buffers take turns: a buffer is filled again only when its
 * copy is known to be done. Adapter layouts change rarely and are copied when they differ from what
 * the device has. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/tables.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <string.h>

#define RING         3
#define ALIGN(bytes) (((bytes) + 255) / 256 * 256)

struct table {
    size_t at, bytes; /* of the blob */
};

struct cuda_tables {
    struct table counts, ids, seq, pos, out_rows, page_begin, seg, slot, lora_decode, lora_prefill,
        tail;
    size_t blob_bytes;
    char *device;
    struct lora_layout *device_layout; /* [layouts_max] on the device, with its entries behind */
    struct lora_entry *device_entry;   /* [layouts_max][n_layer * LORA_MODULE_COUNT] */
    struct lora_entry *known;          /* the same on the host: what the device has */
    bool *is_known;                    /* [layouts_max] */
    struct {
        char *blob, *entry; /* pinned: a blob; one layout per layouts_max */
        void *copied;       /* event */
        bool pending;
    } ring[RING];
    uint32_t turn;
    uint32_t *seq_local; /* [seqs_max] sequence of the batch, CUDA_NONE: not in it */
    uint32_t *seq_row;   /* [seqs_max] row of the page table, by sequence of the batch */
    uint32_t *seq_pages; /* [seqs_max] pages in use, by sequence of the batch */
};

static size_t layout_bytes(const struct backend_limits *lim)
{
    return sizeof(struct lora_entry) * lim->n_layer * LORA_MODULE_COUNT;
}

static void place(struct cuda_tables *t, struct table *what, size_t bytes)
{
    what->at = t->blob_bytes;
    what->bytes = ALIGN(bytes);
    t->blob_bytes += what->bytes;
}

static void place_all(struct cuda_tables *t, const struct cuda_backend *c)
{
    const struct backend_limits *lim = &c->limits;
    size_t rows = lim->rows_max, item = sizeof(struct cuda_item);
    place(t, &t->counts, sizeof(struct cuda_counts));
    place(t, &t->ids, rows * 4);
    place(t, &t->seq, rows * 4);
    place(t, &t->pos, rows * 4);
    place(t, &t->out_rows, rows * 4);
    place(t, &t->page_begin, (size_t)lim->seqs_max * 4);
    place(t, &t->seg, (size_t)MAX(lim->segs_max, 1) * sizeof(struct lora_seg));
    place(t, &t->slot, (size_t)MAX(lim->slots_max, 1) * sizeof(struct lora_slot));
    /* a segment's runs of one kind: at most one more than it has prompts, each of PREFILL_MIN */
    size_t runs = (size_t)lim->segs_max + rows / CUDA_PREFILL_MIN + 1;
    place(t, &t->lora_decode, (rows / CUDA_DECODE_ROWS + runs) * item);
    place(t, &t->lora_prefill, (rows / CUDA_PREFILL_ROWS + runs) * item);
    place(t, &t->tail,
          cuda_attention_list_bytes_max(c) + (size_t)lim->seqs_max * lim->page_stride * 4);
}

static void point(struct cuda_step *s, const struct cuda_tables *t,
                  const struct backend_limits *lim)
{
    char *d = t->device;
    s->counts = (const void *)(d + t->counts.at);
    s->ids = (const void *)(d + t->ids.at);
    s->seq = (const void *)(d + t->seq.at);
    s->pos = (const void *)(d + t->pos.at);
    s->out_rows = (const void *)(d + t->out_rows.at);
    s->page_begin = (const void *)(d + t->page_begin.at);
    s->seg = (const void *)(d + t->seg.at);
    s->slot = (const void *)(d + t->slot.at);
    s->lora_decode = (const void *)(d + t->lora_decode.at);
    s->lora_prefill = (const void *)(d + t->lora_prefill.at);
    s->attn = (const void *)(d + t->tail.at);
    s->page = (const void *)(d + t->tail.at);
    s->layout = t->device_layout;
    s->n_layer = lim->n_layer;
}

/* The layout table never changes: a layout's entries have their place, and only they are filled. */
static enum status write_layouts(struct cuda_backend *c, struct cuda_tables *t)
{
    const struct backend_limits *lim = &c->limits;
    enum status st = STATUS_OK;
    for (uint32_t i = 0; i < lim->layouts_max && !st; i++) {
        struct lora_layout l = {.entry =
                                    t->device_entry + (size_t)i * lim->n_layer * LORA_MODULE_COUNT};
        st = gpu_write(c->gpu, t->device_layout + i, &l, sizeof(l));
    }
    return st;
}

static enum status take_ring(struct cuda_tables *t, const struct backend_limits *lim,
                             struct errtext *err)
{
    size_t layouts = MAX(lim->layouts_max, 1) * layout_bytes(lim);
    for (uint32_t i = 0; i < RING; i++) {
        enum status st = gpu_event_create(&t->ring[i].copied, false);
        if (st)
            return err_set(err, st, "backend \"cuda\": the device gives no event");
        t->ring[i].blob = gpu_pinned_alloc(t->blob_bytes);
        t->ring[i].entry = gpu_pinned_alloc(layouts);
        if (!t->ring[i].blob || !t->ring[i].entry)
            return err_set(err, STATUS_NO_MEMORY,
                           "step tables: the system refused %zu KiB of page-locked host memory; "
                           "raise the locked-memory limit (ulimit -l)",
                           (t->blob_bytes + layouts) >> 10);
    }
    return STATUS_OK;
}

enum status cuda_tables_prepare(struct cuda_backend *c, struct errtext *err)
{
    const struct backend_limits *lim = &c->limits;
    struct cuda_tables *t = c->tables = mem_alloc(sizeof(*t));
    size_t layouts = MAX(lim->layouts_max, 1);
    place_all(t, c);
    t->known = mem_array(layouts, layout_bytes(lim) + 1);
    t->is_known = mem_array(layouts, sizeof(bool));
    t->seq_local = mem_array(lim->seqs_max, sizeof(uint32_t));
    t->seq_row = mem_array(lim->seqs_max, sizeof(uint32_t));
    t->seq_pages = mem_array(lim->seqs_max, sizeof(uint32_t));
    memset(t->seq_local, 0xff, lim->seqs_max * sizeof(uint32_t));
    void *layout = NULL, *entry = NULL, *blob = NULL;
    enum status st = cuda_take(c, &blob, t->blob_bytes, "step tables", err);
    if (!st)
        st = cuda_take(c, &layout, layouts * sizeof(struct lora_layout), "adapter layouts", err);
    if (!st)
        st = cuda_take(c, &entry, layouts * layout_bytes(lim) + 1, "adapter layouts", err);
    t->device = blob;
    t->device_layout = layout;
    t->device_entry = entry;
    if (!st)
        st = take_ring(t, lim, err);
    if (!st)
        st = write_layouts(c, t);
    if (!st)
        point(&c->step, t, lim);
    return st;
}

void cuda_tables_release(struct cuda_backend *c)
{
    struct cuda_tables *t = c->tables;
    if (!t)
        return;
    for (uint32_t i = 0; i < RING; i++) {
        gpu_event_destroy(t->ring[i].copied);
        gpu_pinned_free(t->ring[i].blob);
        gpu_pinned_free(t->ring[i].entry);
    }
    gpu_free(c->gpu, t->device);
    gpu_free(c->gpu, t->device_layout);
    gpu_free(c->gpu, t->device_entry);
    mem_free(t->known);
    mem_free(t->is_known);
    mem_free(t->seq_local);
    mem_free(t->seq_row);
    mem_free(t->seq_pages);
    mem_free(t);
    c->tables = NULL;
}

/* ---- one step ---- */

struct build {
    const struct step_args *a;
    struct cuda_tables *t;
    const struct backend_limits *lim;
    char *blob;
    struct cuda_counts *counts;
    uint32_t tail_words; /* used */
};

static void *at(const struct build *w, const struct table *t)
{
    return w->blob + t->at;
}

/* Number the sequences in order of appearance, and see how many pages each needs. */
static void fill_sequences(struct build *w)
{
    const struct step_args *a = w->a;
    uint32_t *seq = at(w, &w->t->seq);
    for (uint32_t r = 0; r < a->n_tok; r++) {
        uint32_t row = a->rows.seq[r], pages = a->rows.pos[r] / KV_TOK_PER_PAGE + 1;
        CHECK(row < w->lim->seqs_max && pages <= w->lim->page_stride);
        if (w->t->seq_local[row] == CUDA_NONE) {
            uint32_t local = w->counts->n_seq++;
            w->t->seq_local[row] = local;
            w->t->seq_row[local] = row;
            w->t->seq_pages[local] = 0;
        }
        seq[r] = w->t->seq_local[row];
        w->t->seq_pages[seq[r]] = MAX(w->t->seq_pages[seq[r]], pages);
    }
    for (uint32_t i = 0; i < w->counts->n_seq; i++)
        w->t->seq_local[w->t->seq_row[i]] = CUDA_NONE;
}

static void copy_words(uint32_t *to, const void *from, uint32_t n)
{
    if (n > 0) /* from may be NULL if not */
        memcpy(to, from, (size_t)n * 4);
}

static void fill_rows(struct build *w)
{
    const struct step_args *a = w->a;
    uint32_t n = a->n_tok, rest = w->lim->rows_max - n;
    uint32_t *seq = at(w, &w->t->seq), *pos = at(w, &w->t->pos), *ids = at(w, &w->t->ids);
    copy_words(ids, a->ids, n);
    copy_words(pos, a->rows.pos, n);
    memset(ids + n, 0, (size_t)rest * 4);
    memset(pos + n, 0, (size_t)rest * 4);
    memset(seq + n, 0xff, (size_t)rest * 4);
    copy_words(at(w, &w->t->out_rows), a->out_rows, a->n_out);
}

/* A run of rows as items of the list for its kind. */
static void cut(struct build *w, const struct cuda_item *run, bool is_prompt)
{
    struct cuda_item *list = at(w, is_prompt ? &w->t->lora_prefill : &w->t->lora_decode);
    uint32_t *count = is_prompt ? &w->counts->n_lora_prefill : &w->counts->n_lora_decode;
    const uint32_t rows = is_prompt ? CUDA_PREFILL_ROWS : CUDA_DECODE_ROWS;
    for (uint32_t done = 0; done < run->count; done += rows) {
        struct cuda_item item = {run->seg, run->begin + done, MIN(rows, run->count - done)};
        list[(*count)++] = item;
    }
}

/* Rows that decode, few of a sequence, go in items of 8 however many share their adapters: 64 of
 * them are eight times the blocks that one item of 64 would be. A prompt's rows go in items of
 * 64, which read the adapters once. Neighbours of one kind are one run. */
static void fill_items(struct build *w, const struct lora_seg *seg, uint32_t seg_idx)
{
    const uint32_t *seq = at(w, &w->t->seq), end = seg->tok_begin + seg->tok_count;
    struct cuda_item run = {seg_idx, seg->tok_begin, 0};
    bool is_prompt = false;
    for (uint32_t row = seg->tok_begin, next; row < end; row = next) {
        for (next = row + 1; next < end && seq[next] == seq[row];)
            next++;
        bool more_prompt = next - row >= CUDA_PREFILL_MIN;
        if (more_prompt != is_prompt) {
            cut(w, &run, is_prompt);
            run = (struct cuda_item){seg_idx, row, 0};
        }
        is_prompt = more_prompt;
        run.count += next - row;
    }
    cut(w, &run, is_prompt);
}

static bool has_adapter_rows(const struct step_args *a)
{
    for (uint32_t i = 0; a->lora && i < a->n_seg; i++)
        if (a->seg[i].part_count > 0)
            return true;
    return false;
}

static void fill_segments(struct build *w)
{
    const struct step_args *a = w->a;
    struct cuda_counts *n = w->counts;
    struct lora_seg *seg = at(w, &w->t->seg);
    n->n_seg = a->lora ? a->n_seg : 1;
    CHECK(n->n_seg <= MAX(w->lim->segs_max, 1));
    if (a->lora) {
        memcpy(seg, a->seg, (size_t)a->n_seg * sizeof(*seg));
    } else {
        memset(seg, 0, sizeof(*seg));
        seg->tok_count = a->n_tok;
    }
    for (uint32_t i = 0; has_adapter_rows(a) && i < n->n_seg; i++) /* else nobody asks for items */
        fill_items(w, &seg[i], i);
}

/* The list, then the page numbers, which the list's items know by their place behind it. */
static void fill_attention(const struct cuda_backend *c, struct build *w)
{
    const struct kv_rows *rows = &w->a->rows;
    uint32_t *tail = at(w, &w->t->tail), *begin = at(w, &w->t->page_begin), words = 0;
    for (uint32_t i = 0; i < w->counts->n_seq; i++) {
        begin[i] = words;
        words += w->t->seq_pages[i];
    }
    struct attn_rows r = {at(w, &w->t->seq), w->a->rows.pos, begin, w->a->n_tok};
    uint32_t list_words =
        (uint32_t)(cuda_attention_plan(c, &r, (struct attn_list *)(void *)tail) / 4);
    for (uint32_t i = 0; i < w->counts->n_seq; i++) {
        begin[i] += list_words;
        memcpy(tail + begin[i], rows->page_table + (size_t)w->t->seq_row[i] * rows->page_stride,
               (size_t)w->t->seq_pages[i] * 4);
    }
    w->tail_words = list_words + words;
    CHECK((size_t)w->tail_words * 4 <= w->t->tail.bytes);
}

/* The slots, and those layouts of this step's adapters that the device does not have yet. */
static enum status fill_adapters(struct cuda_backend *c, struct build *w)
{
    const struct lora_table *table = w->a->lora;
    struct cuda_tables *t = w->t;
    size_t bytes = layout_bytes(w->lim), per = bytes / sizeof(struct lora_entry);
    enum status st = STATUS_OK;
    if (!table)
        return st;
    CHECK(table->n_slot <= w->lim->slots_max && table->n_layer == w->lim->n_layer);
    memcpy(at(w, &t->slot), table->slot, table->n_slot * sizeof(struct lora_slot));
    for (uint32_t s = 0; s < w->a->n_seg; s++)
        for (uint32_t p = 0; p < w->a->seg[s].part_count && !st; p++) {
            uint32_t i = table->slot[w->a->seg[s].part[p].slot].layout;
            CHECK(i < w->lim->layouts_max);
            const struct lora_entry *entry = table->layout[i].entry;
            if (t->is_known[i] && memcmp(t->known + i * per, entry, bytes) == 0)
                continue;
            char *pinned = t->ring[t->turn].entry + i * bytes;
            memcpy(pinned, entry, bytes);
            memcpy(t->known + i * per, entry, bytes);
            t->is_known[i] = true;
            st = gpu_copy_in(c->stream, t->device_entry + i * per, pinned, bytes);
        }
    return st;
}

static void set_pass(struct cuda_backend *c, const struct build *w)
{
    const struct cuda_counts *n = w->counts;
    const struct attn_list *attn = at(w, &w->t->tail);
    c->pass = (struct cuda_pass){
        .lora = has_adapter_rows(w->a),
        .lora_decode = n->n_lora_decode > 0,
        .lora_prefill = n->n_lora_prefill > 0,
        .attn_decode = attn->n_split > 0,
        .attn_prefill = attn->n_prefill > 0,
    };
}

enum status cuda_step(struct backend *b, const struct step_args *a)
{
    struct cuda_backend *c = cuda_of(b);
    struct cuda_tables *t = c->tables;
    CHECK(t != NULL);
    CHECK(a->n_tok <= c->limits.rows_max && a->n_out <= c->limits.rows_max);
    t->turn = (t->turn + 1) % RING;
    enum status st = STATUS_OK;
    if (t->ring[t->turn].pending)
        st = gpu_event_sync(t->ring[t->turn].copied);
    if (st)
        return st;
    struct build w = {.a = a, .t = t, .lim = &c->limits, .blob = t->ring[t->turn].blob};
    w.counts = at(&w, &t->counts);
    *w.counts = (struct cuda_counts){.n_tok = a->n_tok, .n_out = a->n_out};
    fill_sequences(&w);
    fill_rows(&w);
    fill_segments(&w);
    fill_attention(c, &w);
    set_pass(c, &w);
    st = fill_adapters(c, &w);
    if (!st)
        st = gpu_copy_in(c->stream, t->device, w.blob, t->tail.at + (size_t)w.tail_words * 4);
    if (!st)
        st = gpu_event_record(t->ring[t->turn].copied, c->stream);
    t->ring[t->turn].pending = !st;
    return st;
}
