/* What needs the values: admission, and the device form. A blob holds, per adapted module in the
 * order of the layout's entries, A as stored and B transposed, each 64-byte aligned, zero between.
 */
#include "server/adapter/peft.h"
#include "kernels/bf16.h"
#include "server/base/check.h"
#include "server/model/convert.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#define BLOB_ALIGN 64

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

static enum status check_tensor(const struct peft_adapter *a, const struct st_tensor *t,
                                bool *any_nonzero, struct errtext *err)
{
    enum dtype dtype = tensor_dtype(t);
    const char *data = tensor_data(a, t);
    uint64_t n = t->dim[0] * t->dim[1];
    for (uint64_t i = 0; i < n; i++) {
        float v = convert_load(data, dtype, i);
        if (!isfinite(v))
            return err_set(err, STATUS_INVALID,
                           "adapter_model.safetensors: tensor '%.160s': element [%" PRIu64
                           ", %" PRIu64 "] is %s, expected a finite number",
                           t->name, i / t->dim[1], i % t->dim[1], isnan(v) ? "NaN" : "infinite");
        *any_nonzero = *any_nonzero || v != 0;
    }
    return STATUS_OK;
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

void peft_layout(const struct peft_adapter *a, uint32_t n_layer, enum dtype dtype,
                 struct lora_entry *entry, uint64_t *blob_bytes)
{
    const struct peft_module *by_entry[LORA_MODULE_COUNT];
    uint64_t at = 0;
    memset(entry, 0, (size_t)n_layer * LORA_MODULE_COUNT * sizeof *entry);
    for (uint32_t layer = 0; layer < n_layer; layer++) {
        memset(by_entry, 0, sizeof by_entry);
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
            e->a_off = at;
            at += align_up(m->a->dim[0] * m->a->dim[1] * dtype_bytes(dtype));
            e->b_off = at;
            at += align_up(m->b->dim[0] * m->b->dim[1] * dtype_bytes(dtype));
        }
    }
    *blob_bytes = at;
}

/* Rows in blocks: a block of B stays in L1 while each row of the result gets a run of it. */
#define PACK_ROWS 32

static void pack_transposed(void *out, enum dtype dtype, const char *data, enum dtype stored,
                            uint32_t d_out, uint32_t rank)
{
    bool same = dtype == stored && dtype == DTYPE_BF16;
    for (uint32_t n0 = 0; n0 < d_out; n0 += PACK_ROWS) {
        uint32_t n1 = MIN(n0 + PACK_ROWS, d_out);
        for (uint32_t r = 0; r < rank; r++) {
            for (uint32_t n = n0; n < n1; n++) {
                size_t from = (size_t)n * rank + r, to = (size_t)r * d_out + n;
                if (same)
                    memcpy((uint16_t *)out + to, data + from * 2, 2);
                else if (dtype == DTYPE_F32)
                    ((float *)out)[to] = convert_load(data, stored, from);
                else
                    ((uint16_t *)out)[to] = bf16_from_f32(convert_load(data, stored, from));
            }
        }
    }
}

void peft_pack(const struct peft_adapter *a, uint32_t n_layer, enum dtype dtype,
               const struct lora_entry *entry, void *blob)
{
    CHECK(dtype != DTYPE_F16);
    for (uint32_t i = 0; i < a->module_count; i++) {
        const struct peft_module *m = &a->module[i];
        CHECK(m->layer < n_layer);
        const struct lora_entry *e = &entry[m->layer * LORA_MODULE_COUNT + m->module];
        convert_elements((char *)blob + e->a_off, dtype, tensor_data(a, m->a), tensor_dtype(m->a),
                         (size_t)(m->a->dim[0] * m->a->dim[1]));
        pack_transposed((char *)blob + e->b_off, dtype, tensor_data(a, m->b), tensor_dtype(m->b),
                        (uint32_t)m->b->dim[0], m->rank);
    }
}
