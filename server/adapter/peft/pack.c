/* What needs the values: admission, and the device form. A blob holds, per adapted module in the
 * order of the layout's entries, A as stored and B transposed, each 64-byte aligned, zero between.
 */
#include "server/adapter/peft/pack.h"
#include "server/adapter/peft/config.h"
#include "server/adapter/peft/id.h"
#include "server/adapter/peft/transpose.h"
#include "server/base/check.h"
#include "server/model/convert.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#define BLOB_ALIGN 64
#define LINE_ROWS  32u /* rows of B that fill a cache line of its transpose */
#define TILE_SIDE  64u

static const char *tensor_data(const struct peft_adapter *a, const struct st_tensor *t)
{
    return a->tensor_bytes + t->begin;
}

static enum dtype tensor_dtype(const struct st_tensor *t)
{
    enum dtype dtype = DTYPE_F32;
    CHECK(convert_dtype(t->dtype, &dtype));
    return dtype;
}

static enum status refuse_value(const struct st_tensor *t, uint64_t i, float v, struct errtext *err)
{
    return err_set(err, STATUS_INVALID,
                   "adapter_model.safetensors: tensor '%.160s': element [%" PRIu64 ", %" PRIu64
                   "] is %s, expected a finite number",
                   t->name, i / t->dim[1], i % t->dim[1], isnan(v) ? "NaN" : "infinite");
}

static enum status check_tensor(const struct peft_adapter *a, const struct st_tensor *t,
                                bool *any_nonzero, struct errtext *err)
{
    enum dtype dtype = tensor_dtype(t);
    const char *data = tensor_data(a, t);
    uint64_t n = t->dim[0] * t->dim[1];
    if (convert_scan(data, dtype, n, any_nonzero))
        return STATUS_OK;
    for (uint64_t i = 0; i < n; i++) {
        float v = convert_load(data, dtype, i);
        if (!isfinite(v))
            return refuse_value(t, i, v, err);
    }
    PANIC("tensor '%s': the scan saw a value that is not there", t->name);
}

enum status peft_check_values(const struct peft_adapter *a, struct errtext *err)
{
    bool acts = false;
    for (uint32_t i = 0; i < a->module_count; i++) {
        const struct peft_module *m = &a->module[i];
        bool a_nonzero = false, b_nonzero = false;
        enum status st = check_tensor(a, m->a, &a_nonzero, err);
        if (!st)
            st = check_tensor(a, m->b, &b_nonzero, err);
        if (st)
            return st;
        acts = acts || (a_nonzero && b_nonzero && m->scale != 0);
    }
    if (!acts)
        return err_set(err, STATUS_INVALID,
                       "the adapter would change nothing: in every module A, B or lora_alpha is "
                       "zero (was it trained?)");
    return STATUS_OK;
}

static uint64_t align_up(uint64_t n)
{
    return (n + BLOB_ALIGN - 1) / BLOB_ALIGN * BLOB_ALIGN;
}

void peft_place(struct lora_entry *e, uint64_t *at, uint64_t d_in, uint64_t d_out, enum dtype dtype)
{
    e->a_off = *at;
    *at += align_up(e->rank * d_in * dtype_bytes(dtype));
    e->b_off = *at;
    *at += align_up(e->rank * d_out * dtype_bytes(dtype));
}

void peft_layout(const struct peft_adapter *a, uint32_t n_layer, enum dtype dtype,
                 struct lora_entry *entry, uint64_t *blob_bytes)
{
    const struct peft_module *by_entry[LORA_MODULE_COUNT];
    uint64_t at = 0;
    memset(entry, 0, (size_t)n_layer * LORA_MODULE_COUNT * sizeof(*entry));
    for (uint32_t layer = 0; layer < n_layer; layer++) {
        memset(by_entry, 0, sizeof(by_entry));
        for (uint32_t i = 0; i < a->module_count; i++) {
            if (a->module[i].layer == layer)
                by_entry[a->module[i].module] = &a->module[i];
        }
        for (uint32_t k = 0; k < LORA_MODULE_COUNT; k++) {
            const struct peft_module *m = by_entry[k];
            if (!m)
                continue;
            struct lora_entry *e = &entry[layer * LORA_MODULE_COUNT + k];
            e->rank = m->rank;
            e->scale = (float)m->scale;
            peft_place(e, &at, m->a->dim[1], m->b->dim[0], dtype);
        }
    }
    *blob_bytes = at;
}

/* ---- where the bytes come from ---- */

enum status peft_read_exact(int fd, uint64_t at, char *out, size_t n, struct errtext *err)
{
    for (size_t done = 0; done < n;) {
        ssize_t got = pread(fd, out + done, n - done, (off_t)(at + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_set(err, STATUS_IO, "adapter_model.safetensors: read: %s", strerror(errno));
        if (got == 0)
            return err_set(err, STATUS_CORRUPT,
                           "adapter_model.safetensors: shrank while it was read: it ends before "
                           "byte %" PRIu64,
                           at + n);
        done += (size_t)got;
    }
    return STATUS_OK;
}

/* n bytes at `at`: where memory has them, or read into place. */
static enum status get(const struct peft_source *from, uint64_t at, size_t n, char *place,
                       const char **out, struct errtext *err)
{
    enum status st = STATUS_OK;
    *out = from->bytes ? from->bytes + at : place;
    if (!from->bytes)
        st = peft_read_exact(from->fd, at, place, n, err);
    if (!st && from->hash)
        crypto_generichash_update(from->hash, (const uint8_t *)*out, n);
    return st;
}

/* ---- the two forms ---- */

static enum status pack_as_stored(const struct peft_source *from, const struct st_tensor *t,
                                  enum dtype dtype, char *out, struct errtext *err)
{
    enum dtype stored = tensor_dtype(t);
    size_t width = dtype_bytes(stored), step = PEFT_PIECE_BYTES / width;
    uint64_t n = t->dim[0] * t->dim[1];
    for (uint64_t i = 0; i < n; i += step) {
        size_t count = (size_t)MIN(step, n - i);
        char *to = out + i * dtype_bytes(dtype);
        const char *data;
        enum status st = get(from, t->begin + i * width, count * width,
                             stored == dtype ? to : from->piece, &data, err);
        if (st)
            return st;
        if (data != to)
            convert_elements(to, dtype, data, stored, count);
    }
    return STATUS_OK;
}

struct matrix { /* row-major, at any alignment */
    const char *data;
    enum dtype dtype;
    uint32_t rows, columns;
};

static void write_transposed(char *out, size_t out_stride, const struct matrix *m)
{
    if (m->dtype == DTYPE_F32)
        transpose_u32((uint32_t *)(void *)out, out_stride, m->data, m->columns, m->rows,
                      m->columns);
    else
        transpose_u16((uint16_t *)(void *)out, out_stride, m->data, m->columns, m->rows,
                      m->columns);
}

/* Tile by tile: converted in L1, then transposed. */
static void transpose_converted(char *out, enum dtype dtype, size_t out_stride,
                                const struct matrix *m)
{
    _Alignas(64) float tile[TILE_SIDE * TILE_SIDE]; /* of either type */
    size_t width = dtype_bytes(m->dtype), out_width = dtype_bytes(dtype);
    struct matrix t = {.data = (const char *)tile, .dtype = dtype};
    for (uint32_t r0 = 0; r0 < m->rows; r0 += TILE_SIDE) {
        t.rows = MIN(TILE_SIDE, m->rows - r0);
        for (uint32_t c0 = 0; c0 < m->columns; c0 += TILE_SIDE) {
            t.columns = MIN(TILE_SIDE, m->columns - c0);
            bool whole = t.columns == m->columns; /* its rows lie one after the other */
            uint32_t runs = whole ? 1 : t.rows, run = whole ? t.rows * t.columns : t.columns;
            for (uint32_t i = 0; i < runs; i++)
                convert_elements((char *)tile + (size_t)i * run * out_width, dtype,
                                 m->data + ((size_t)(r0 + i) * m->columns + c0) * width, m->dtype,
                                 run);
            write_transposed(out + ((size_t)c0 * out_stride + r0) * out_width, out_stride, &t);
        }
    }
}

static enum status pack_transposed(const struct peft_source *from, const struct st_tensor *t,
                                   enum dtype dtype, char *out, struct errtext *err)
{
    struct matrix m = {.dtype = tensor_dtype(t), .columns = (uint32_t)t->dim[1]};
    size_t row_bytes = m.columns * dtype_bytes(m.dtype);
    uint32_t d_out = (uint32_t)t->dim[0], step = (uint32_t)(PEFT_PIECE_BYTES / row_bytes);
    static_assert(PEFT_PIECE_BYTES >= 4 * PEFT_RANK_MAX, "a piece holds a row");
    step = step > LINE_ROWS ? step / LINE_ROWS * LINE_ROWS : step;
    for (uint32_t n0 = 0; n0 < d_out; n0 += step) {
        char *to = out + (size_t)n0 * dtype_bytes(dtype);
        m.rows = MIN(step, d_out - n0);
        enum status st =
            get(from, t->begin + n0 * row_bytes, m.rows * row_bytes, from->piece, &m.data, err);
        if (st)
            return st;
        if (m.dtype == dtype)
            write_transposed(to, d_out, &m);
        else
            transpose_converted(to, dtype, d_out, &m);
    }
    return STATUS_OK;
}

/* ---- the blob ---- */

static void zero_tail(char *blob, uint64_t begin, const struct st_tensor *t, enum dtype dtype)
{
    uint64_t end = begin + t->dim[0] * t->dim[1] * dtype_bytes(dtype);
    memset(blob + end, 0, align_up(end) - end);
}

enum status peft_pack_from(const struct peft_adapter *a, const struct peft_source *from,
                           const struct peft_target *to, struct errtext *err)
{
    char *blob = to->blob;
    enum status st = STATUS_OK;
    CHECK(to->dtype != DTYPE_F16);
    if (from->hash)
        peft_id_begin(from->hash);
    for (uint32_t i = 0; !st && i < a->module_count; i++) {
        const struct peft_module *m = &a->module[i];
        CHECK(m->layer < to->n_layer);
        const struct lora_entry *e = &to->entry[m->layer * LORA_MODULE_COUNT + m->module];
        if (from->hash) {
            peft_id_module(from->hash, m);
            peft_id_matrix(from->hash, m->a);
        }
        st = pack_as_stored(from, m->a, to->dtype, blob + e->a_off, err);
        if (from->hash)
            peft_id_matrix(from->hash, m->b);
        if (!st)
            st = pack_transposed(from, m->b, to->dtype, blob + e->b_off, err);
        zero_tail(blob, e->a_off, m->a, to->dtype);
        zero_tail(blob, e->b_off, m->b, to->dtype);
    }
    return st;
}

void peft_pack(const struct peft_adapter *a, uint32_t n_layer, enum dtype dtype,
               const struct lora_entry *entry, void *blob)
{
    struct peft_source from = {.bytes = a->tensor_bytes, .fd = -1};
    struct peft_target to = {.dtype = dtype, .n_layer = n_layer, .entry = entry, .blob = blob};
    CHECK(peft_pack_from(a, &from, &to, NULL) == STATUS_OK);
}
