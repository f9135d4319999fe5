/* See train_lora.h. Tensors are written in bytewise order of their names, as safetensors' own
 * writer does. */
#include "server/train/train_lora.h"
#include "server/adapter/peft/config.h"
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/base/philox.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ALIGN_BYTES 64
#define GROUPS      4
#define NAME_PREFIX "base_model.model."

static uint32_t entry_count(const struct train_lora *l)
{
    return l->base->n_layer * LORA_MODULE_COUNT;
}

/* Offsets, and what the ranks add up to. */
static void lay_out(struct train_lora *l)
{
    static const uint8_t group[LORA_MODULE_COUNT] = {0, 0, 0, 1, 2, 2, 3};
    uint64_t at = 0;
    for (uint32_t i = 0, sum[GROUPS]; i < entry_count(l); i++) {
        struct lora_entry *e = &l->entry[i];
        uint32_t m = i % LORA_MODULE_COUNT, d_out, d_in;
        model_module_shape(l->base, (enum lora_module)m, &d_out, &d_in);
        if (m == 0)
            memset(sum, 0, sizeof(sum));
        sum[group[m]] += e->rank;
        l->rank_sum_max = MAX(l->rank_sum_max, sum[group[m]]);
        l->modules += e->rank > 0;
        l->weights += (uint64_t)e->rank * (d_in + d_out);
        if (e->rank)
            peft_place(e, &at, d_in, d_out, DTYPE_F32);
    }
    l->blob_bytes = at;
    l->n = at / sizeof(float);
}

static enum status take_memory(struct train_lora *l, struct errtext *err)
{
    l->blob = mem_try_alloc_aligned(MAX(l->blob_bytes, (uint64_t)ALIGN_BYTES));
    if (!l->blob)
        return err_set(err, STATUS_NO_MEMORY, "adapter: no memory for %" PRIu64 " bytes",
                       l->blob_bytes);
    memset(l->blob, 0, l->blob_bytes);
    return STATUS_OK;
}

/* ---- new ---- */

static void draw(struct train_lora *l, uint64_t seed)
{
    for (uint32_t i = 0; i < entry_count(l); i++) {
        const struct lora_entry *e = &l->entry[i];
        uint32_t d_out, d_in, out[4];
        float *a = l->blob + e->a_off / sizeof(float);
        model_module_shape(l->base, (enum lora_module)(i % LORA_MODULE_COUNT), &d_out, &d_in);
        double bound = 1 / sqrt(d_in);
        for (uint32_t k = 0; k < e->rank * d_in; k++) {
            const uint32_t ctr[4] = {k / 4, i, 0x61646170, 0}; /* of drawing an adapter */
            if (k % 4 == 0)
                philox4x32(out, ctr, seed);
            a[k] = (float)((2 * philox_unit(out[k % 4]) - 1) * bound);
        }
    }
}

static enum status read_rules(struct train_lora *l, struct errtext *err)
{
    struct peft_rules rules;
    enum status st = peft_rules_parse(&rules, l->config_json, l->config_bytes, err);
    if (st)
        return st;
    for (uint32_t i = 0; i < entry_count(l) && !st; i++) {
        char path[PEFT_PATH_BYTES];
        bool selected = false;
        double scale = 0;
        model_module_path(i / LORA_MODULE_COUNT, (enum lora_module)(i % LORA_MODULE_COUNT), path,
                          sizeof(path));
        st = peft_rules_selects(&rules, path, true, &selected, err);
        if (!st && selected)
            st = peft_rules_rank(&rules, path, &l->entry[i].rank, &scale, err);
        l->entry[i].scale = (float)scale;
    }
    peft_rules_fini(&rules);
    return st;
}

enum status train_lora_new(struct train_lora *out, const char *config, size_t len,
                           const struct model_config *base, uint64_t seed, struct errtext *err)
{
    *out = (struct train_lora){.base = base, .config_bytes = len};
    out->config_json = mem_alloc(len + 1);
    memcpy(out->config_json, config, len);
    out->config_json[len] = 0;
    out->entry = mem_array(entry_count(out), sizeof(*out->entry));
    enum status st = read_rules(out, err);
    if (!st) {
        lay_out(out);
        st = out->modules ? take_memory(out, err)
                          : err_set(err, STATUS_INVALID,
                                    "target_modules: no module of this base is adapted");
    }
    if (!st)
        draw(out, seed);
    else
        train_lora_fini(out);
    return st;
}

/* ---- from a folder ---- */

enum status train_lora_read(struct train_lora *out, const char *dir,
                            const struct model_config *base, struct errtext *err)
{
    struct peft_adapter a;
    *out = (struct train_lora){.base = base};
    enum status st = peft_read_dir(&a, dir, NULL, base, UINT32_MAX, err);
    if (st)
        return st;
    out->entry = mem_array(entry_count(out), sizeof(*out->entry));
    for (uint32_t i = 0; i < a.module_count; i++) {
        const struct peft_module *m = &a.module[i];
        struct lora_entry *e = &out->entry[m->layer * LORA_MODULE_COUNT + m->module];
        *e = (struct lora_entry){.rank = m->rank, .scale = (float)m->scale};
    }
    lay_out(out);
    out->config_json = a.config_json;
    out->config_bytes = a.config_bytes;
    memcpy(out->from, a.id, sizeof(out->from));
    a.config_json = NULL;
    st = take_memory(out, err);
    if (!st)
        peft_pack(&a, base->n_layer, DTYPE_F32, out->entry, out->blob);
    else
        train_lora_fini(out);
    peft_fini(&a);
    return st;
}

void train_lora_fini(struct train_lora *l)
{
    mem_free(l->config_json);
    mem_free(l->entry);
    if (l->blob)
        mem_free_aligned(l->blob, MAX(l->blob_bytes, (uint64_t)ALIGN_BYTES));
    *l = (struct train_lora){0};
}

/* ---- written ---- */

struct named {
    char path[PEFT_PATH_BYTES];
    uint32_t at; /* entry */
};

static int by_path(const void *a, const void *b)
{
    return strcmp(((const struct named *)a)->path, ((const struct named *)b)->path);
}

static void put_name(struct buf *out, const struct named *n, char matrix, uint64_t rows,
                     uint64_t cols, uint64_t *at)
{
    uint64_t end = *at + rows * cols * sizeof(float);
    buf_printf(out,
               "%s\"" NAME_PREFIX "%s.lora_%c.weight\":{\"dtype\":\"F32\",\"shape\":[%" PRIu64
               ",%" PRIu64 "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}",
               *at ? "," : "", n->path, matrix, rows, cols, *at, end);
    *at = end;
}

/* B as peft has it, [d_out, rank]. */
static void put_transposed(struct buf *out, const float *bt, uint32_t rank, uint32_t d_out)
{
    for (uint32_t n = 0; n < d_out; n++) {
        for (uint32_t r = 0; r < rank; r++)
            buf_put(out, (const char *)&bt[(size_t)r * d_out + n], sizeof(float));
    }
}

static uint32_t sort_modules(const struct train_lora *l, struct named *name)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < entry_count(l); i++) {
        if (!l->entry[i].rank)
            continue;
        name[count].at = i;
        model_module_path(i / LORA_MODULE_COUNT, (enum lora_module)(i % LORA_MODULE_COUNT),
                          name[count++].path, PEFT_PATH_BYTES);
    }
    qsort(name, count, sizeof(*name), by_path);
    return count;
}

enum status train_lora_render(const struct train_lora *l, struct buf *out, struct errtext *err)
{
    struct named *name = mem_array(entry_count(l), sizeof(*name));
    uint32_t count = sort_modules(l, name);
    size_t first = out->len;
    uint64_t at = 0;
    buf_put(out, "\0\0\0\0\0\0\0\0{", 9);
    for (uint32_t pass = 0; pass < 2; pass++) {
        for (uint32_t i = 0; i < count; i++) {
            const struct lora_entry *e = &l->entry[name[i].at];
            const float *a = l->blob + e->a_off / sizeof(float);
            const float *bt = l->blob + e->b_off / sizeof(float);
            uint32_t d_out, d_in;
            model_module_shape(l->base, (enum lora_module)(name[i].at % LORA_MODULE_COUNT), &d_out,
                               &d_in);
            if (pass == 0) {
                put_name(out, &name[i], 'A', e->rank, d_in, &at);
                put_name(out, &name[i], 'B', d_out, e->rank, &at);
                continue;
            }
            buf_put(out, (const char *)a, (size_t)e->rank * d_in * sizeof(float));
            put_transposed(out, bt, e->rank, d_out);
        }
        if (pass == 0) {
            buf_putc(out, '}');
            while ((out->len - first) % 8)
                buf_putc(out, ' ');
            uint64_t header = out->len - first - 8;
            if (!out->failed)
                memcpy(out->data + first, &header, sizeof(header));
        }
    }
    mem_free(name);
    return out->failed ? err_set(err, STATUS_NO_MEMORY, "adapter: no memory for its file")
                       : STATUS_OK;
}
