/* Passes recorded before the first request. A device launches a shape of pass (rows, with or
 * without adapters) kernel by kernel the first time, records it the second and replays it from then
 * on; here every shape that decoding will ask for goes through the first two, so that no request
 * pays for them. The rows are padding in all but name: token 0 at positions of pages that are still
 * free, the adapter one without a single module, whose blob nobody reads. */
#include "kernels/head.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/engine/steps.h"

#include <string.h>

#define RECORD_RUNS 2 /* launched, recorded */

struct recording {
    struct engine *e;
    struct lora_table table;
    struct lora_slot slot;
    struct lora_layout layout;
    struct lora_entry *entry; /* [n_layer][LORA_MODULE_COUNT] of rank 0; NULL: no adapters */
    uint64_t deadline_ns;
    uint32_t passes, left; /* recorded; not for want of time */
};

static void fill_batch(struct engine *e, uint32_t rows, bool lora)
{
    struct batch *b = &e->batch;
    batch_clear(b);
    for (uint32_t i = 0; i < rows; i++) {
        b->ids[i] = 0;
        b->seq[i] = b->out_row[i] = i;
        b->pos[i] = i % KV_PAGE_TOK;
        e->page_table[(size_t)i * e->page_stride] = i / KV_PAGE_TOK;
    }
    b->seg[0] = (struct lora_seg){.tok_count = rows, .part_count = lora, .part = {{0, 65536}}};
    b->n_tok = b->n_out = rows;
    b->n_seg = 1;
}

static enum status run_once(struct recording *r, uint32_t rows, bool lora)
{
    struct engine *e = r->e;
    const struct batch *b = &e->batch;
    fill_batch(e, rows, lora);
    struct forward_batch f = {.ids = b->ids,
                              .n_tok = rows,
                              .rows = {b->seq, b->pos, e->page_table, e->page_stride},
                              .kv = e->cache,
                              .lora = lora ? &r->table : NULL,
                              .seg = b->seg,
                              .n_seg = 1,
                              .out_rows = b->out_row,
                              .n_out = rows,
                              .hidden = e->head.hidden,
                              .norm2 = lora ? e->head.norm2 : NULL};
    enum status st = forward_run(e->forward, &f);
    char word[4]; /* waits */
    return st ? st : e->backend->ops->mem_read(e->backend, word, f.hidden, sizeof(word));
}

/* A shape, if there is time and room for it. */
static enum status record_shape(struct recording *r, uint32_t rows, bool lora)
{
    enum status st = STATUS_OK;
    if (r->passes == r->e->passes_max || clock_mono_ns() >= r->deadline_ns) {
        r->left++;
        return STATUS_OK;
    }
    for (uint32_t i = 0; i < RECORD_RUNS && !st; i++)
        st = run_once(r, rows, lora);
    r->passes++;
    return st;
}

static void open_adapter(struct recording *r)
{
    const struct engine *e = r->e;
    const struct lora_table *table = e->store ? store_table(e->store) : NULL;
    if (!table || table->n_slot == 0 || e->opt.rank_sum_max == 0)
        return;
    uint32_t n_layer = e->model->config.n_layer;
    r->entry = mem_array((size_t)n_layer * LORA_MODULE_COUNT, sizeof(*r->entry));
    r->layout = (struct lora_layout){.entry = r->entry};
    r->slot = (struct lora_slot){.blob = e->head.hidden};
    r->table = (struct lora_table){.slot = &r->slot,
                                   .layout = &r->layout,
                                   .n_slot = 1,
                                   .n_layout = 1,
                                   .n_layer = n_layer,
                                   .dtype = table->dtype};
}

enum status engine_record(struct engine *e, uint32_t budget_ms, struct errtext *err)
{
    uint32_t (*pass_rows)(const struct backend *, uint32_t) = e->backend->ops->pass_rows;
    uint32_t most = (uint32_t)MIN(e->opt.seqs_max, (uint64_t)e->kv.page_count * KV_PAGE_TOK);
    uint64_t begin_ns = clock_mono_ns();
    struct recording r = {.e = e, .deadline_ns = begin_ns + budget_ms * (uint64_t)1000000};
    enum status st = STATUS_OK;
    CHECK(!e->started);
    if (!pass_rows || pass_rows(e->backend, 1) == 0)
        return STATUS_OK;
    open_adapter(&r);
    for (uint32_t n = 1, rows; n <= most && !st; n = rows + 1) {
        rows = pass_rows(e->backend, n);
        if (rows == 0)
            break; /* too many rows for any record */
        st = record_shape(&r, MIN(rows, most), false);
        if (!st && r.entry)
            st = record_shape(&r, MIN(rows, most), true);
    }
    mem_free(r.entry);
    batch_clear(&e->batch);
    memset(e->page_table, 0, (size_t)e->slot_count * e->page_stride * sizeof(e->page_table[0]));
    if (st)
        return err_set(err, st, "backend %s: the device failed the first pass", e->backend->name);
    log_info("engine", "%u decode passes of up to %u rows recorded in %llu ms, %u left for later",
             r.passes, most, (unsigned long long)((clock_mono_ns() - begin_ns) / 1000000), r.left);
    return STATUS_OK;
}
