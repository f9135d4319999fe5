/* The header is hostile until proven otherwise. Checks, in order: the length prefix is there,
 * within the cap and the file; UTF-8 and JSON without duplicate keys; per tensor a known dtype, a
 * shape whose product times the element size does not overflow and equals the byte range; all
 * ranges together cover the data section exactly once, from its first byte to the end of the file
 * (no holes, no overlaps, nothing appended). Zero-sized tensors are legal. Neither alignment nor
 * any order of the tensors is assumed. */
#include "server/model/safetensors.h"
#include "server/base/json.h"
#include "server/base/mem.h"
#include "server/model/foreign.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    uint8_t bytes;
} dtype_table[ST_DTYPE_COUNT] = {
    [ST_BOOL] = {"BOOL", 1},       [ST_U8] = {"U8", 1},           [ST_I8] = {"I8", 1},
    [ST_F8_E5M2] = {"F8_E5M2", 1}, [ST_F8_E4M3] = {"F8_E4M3", 1}, [ST_I16] = {"I16", 2},
    [ST_U16] = {"U16", 2},         [ST_F16] = {"F16", 2},         [ST_BF16] = {"BF16", 2},
    [ST_I32] = {"I32", 4},         [ST_U32] = {"U32", 4},         [ST_F32] = {"F32", 4},
    [ST_F64] = {"F64", 8},         [ST_I64] = {"I64", 8},         [ST_U64] = {"U64", 8},
};

const char *st_dtype_name(enum st_dtype t)
{
    return dtype_table[t].name;
}

size_t st_dtype_bytes(enum st_dtype t)
{
    return dtype_table[t].bytes;
}

uint8_t st_dtype_code(enum st_dtype t)
{
    return (uint8_t)t; /* the enum's order is the order of SPEC 1 */
}

static bool dtype_find(const char *name, enum st_dtype *out)
{
    for (int t = 0; t < ST_DTYPE_COUNT; t++) {
        if (!strcmp(dtype_table[t].name, name)) {
            *out = (enum st_dtype)t;
            return true;
        }
    }
    return false;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct st_tensor *)a)->name, ((const struct st_tensor *)b)->name);
}

static int by_offset(const void *a, const void *b)
{
    const struct st_tensor *x = *(const struct st_tensor *const *)a;
    const struct st_tensor *y = *(const struct st_tensor *const *)b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

/* A JSON integer >= 0. */
static bool get_u64(const json_t *v, uint64_t *out)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return false;
    *out = (uint64_t)json_integer_value(v);
    return true;
}

static enum status parse_shape(struct st_tensor *t, const json_t *shape, struct errtext *err)
{
    if (!json_is_array(shape))
        return err_set(err, STATUS_CORRUPT, "tensor '%.200s': shape: expected a list of integers",
                       t->name);
    if (json_array_size(shape) > SAFETENSORS_RANK_MAX)
        return err_set(err, STATUS_UNSUPPORTED,
                       "tensor '%.200s': shape has %zu dimensions, at most %d are read", t->name,
                       json_array_size(shape), SAFETENSORS_RANK_MAX);
    t->rank = (uint32_t)json_array_size(shape);
    for (uint32_t i = 0; i < t->rank; i++) {
        if (!get_u64(json_array_get(shape, i), &t->dim[i]))
            return err_set(err, STATUS_CORRUPT,
                           "tensor '%.200s': shape[%u]: expected an integer from 0 to 2^63-1",
                           t->name, i);
    }
    return STATUS_OK;
}

static enum status check_bytes(const struct st_tensor *t, struct errtext *err)
{
    uint64_t bytes = st_dtype_bytes(t->dtype);
    bool overflow = false, empty = false;
    for (uint32_t i = 0; i < t->rank; i++) {
        empty = empty || t->dim[i] == 0;
        overflow = overflow || __builtin_mul_overflow(bytes, t->dim[i], &bytes);
    }
    if (overflow && !empty)
        return err_set(err, STATUS_CORRUPT, "tensor '%.200s': the product of its shape overflows",
                       t->name);
    if (empty)
        bytes = 0;
    if (t->end - t->begin != bytes)
        return err_set(err, STATUS_CORRUPT,
                       "tensor '%.200s': data_offsets span %" PRIu64
                       " bytes, its shape and dtype %s need %" PRIu64,
                       t->name, t->end - t->begin, st_dtype_name(t->dtype), bytes);
    return STATUS_OK;
}

static enum status parse_offsets(struct st_tensor *t, const json_t *offsets, uint64_t data_bytes,
                                 struct errtext *err)
{
    if (!json_is_array(offsets) || json_array_size(offsets) != 2 ||
        !get_u64(json_array_get(offsets, 0), &t->begin) ||
        !get_u64(json_array_get(offsets, 1), &t->end))
        return err_set(err, STATUS_CORRUPT,
                       "tensor '%.200s': data_offsets: expected [begin, end], two integers >= 0",
                       t->name);
    if (t->begin > t->end || t->end > data_bytes)
        return err_set(err, STATUS_CORRUPT,
                       "tensor '%.200s': data_offsets [%" PRIu64 ", %" PRIu64
                       "] lie outside the %" PRIu64 " bytes of data",
                       t->name, t->begin, t->end, data_bytes);
    return STATUS_OK;
}

static enum status parse_tensor(struct st_tensor *t, const char *name, const json_t *info,
                                uint64_t data_bytes, struct errtext *err)
{
    t->name = mem_try_strndup(name, strlen(name));
    if (!t->name)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a tensor's name");
    if (!json_is_object(info))
        return err_set(err, STATUS_CORRUPT, "tensor '%.200s': expected an object", name);
    const char *dtype = json_string_value(json_object_get(info, "dtype"));
    if (!dtype)
        return err_set(err, STATUS_CORRUPT, "tensor '%.200s': dtype: expected a string", name);
    if (!dtype_find(dtype, &t->dtype))
        return err_set(err, STATUS_UNSUPPORTED, "tensor '%.200s': dtype '%.40s' is not supported",
                       name, dtype);
    enum status st = parse_shape(t, json_object_get(info, "shape"), err);
    if (!st)
        st = parse_offsets(t, json_object_get(info, "data_offsets"), data_bytes, err);
    return st ? st : check_bytes(t, err);
}

/* Every byte of the data section belongs to exactly one tensor. */
static enum status check_cover(const struct st_file *f, uint64_t data_bytes, struct errtext *err)
{
    const struct st_tensor **order = mem_try_array(f->tensor_count, sizeof(*order));
    if (!order)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu tensors", f->tensor_count);
    for (size_t i = 0; i < f->tensor_count; i++)
        order[i] = &f->tensor[i];
    qsort(order, f->tensor_count, sizeof(*order), by_offset);
    uint64_t at = 0;
    enum status st = STATUS_OK;
    for (size_t i = 0; !st && i < f->tensor_count; i++) {
        if (order[i]->begin != at)
            st = err_set(err, STATUS_CORRUPT,
                         "tensor '%.200s': begins at data byte %" PRIu64
                         ", the one before ends at %" PRIu64 " (%s)",
                         order[i]->name, order[i]->begin, at,
                         order[i]->begin < at ? "an overlap" : "a hole");
        at = order[i]->end;
    }
    mem_free(order);
    if (!st && at != data_bytes)
        st = err_set(err, STATUS_CORRUPT,
                     "%" PRIu64 " bytes of data, but the last tensor ends at %" PRIu64, data_bytes,
                     at);
    return st;
}

static enum status check_metadata(const json_t *meta, struct errtext *err)
{
    const char *key;
    json_t *value;
    if (!json_is_object(meta))
        return err_set(err, STATUS_CORRUPT, "__metadata__: expected an object of strings");
    json_object_foreach((json_t *)(uintptr_t)meta, key, value)
    {
        if (!json_is_string(value))
            return err_set(err, STATUS_CORRUPT, "__metadata__.%.100s: expected a string", key);
    }
    return STATUS_OK;
}

static enum status parse_header(struct st_file *out, json_t *root, uint64_t data_bytes,
                                struct errtext *err)
{
    const char *key;
    json_t *value;
    enum status st = STATUS_OK;
    size_t count = json_object_size(root);
    if (count > SAFETENSORS_TENSORS_MAX + 1)
        return err_set(err, STATUS_TOO_LARGE, "header: %zu tensors, at most %d are read", count,
                       SAFETENSORS_TENSORS_MAX);
    out->tensor = mem_try_array(count, sizeof(*out->tensor));
    if (!out->tensor)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu tensors", count);
    json_object_foreach(root, key, value)
    {
        if (!strcmp(key, "__metadata__"))
            st = check_metadata(value, err);
        else
            st = parse_tensor(&out->tensor[out->tensor_count++], key, value, data_bytes, err);
        if (st)
            return st;
    }
    st = check_cover(out, data_bytes, err);
    if (st)
        return st;
    for (size_t i = 0; i < out->tensor_count; i++) {
        out->tensor[i].begin += out->data_begin;
        out->tensor[i].end += out->data_begin;
    }
    qsort(out->tensor, out->tensor_count, sizeof(*out->tensor), by_name);
    return STATUS_OK;
}

enum status safetensors_parse(struct st_file *out, const void *head, size_t head_bytes,
                              uint64_t file_bytes, size_t header_bytes_max, struct errtext *err)
{
    memset(out, 0, sizeof(*out));
    if (file_bytes < 8 || head_bytes < 8)
        return err_set(err, STATUS_CORRUPT,
                       "%" PRIu64 " bytes: a safetensors file begins with an 8-byte length",
                       file_bytes);
    const char *foreign = foreign_bytes(head, head_bytes);
    if (foreign)
        return err_set(err, STATUS_CORRUPT, "%s", foreign);
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--)
        n = n << 8 | ((const uint8_t *)head)[i];
    if (n > header_bytes_max && n <= file_bytes - 8)
        return err_set(err, STATUS_TOO_LARGE,
                       "header length: found %" PRIu64 ", at most %zu bytes are read", n,
                       header_bytes_max);
    if (n > file_bytes - 8 || n > head_bytes - 8)
        return err_set(err, STATUS_CORRUPT,
                       "header length: found %" PRIu64 ", but the file has only %" PRIu64 " bytes",
                       n, file_bytes);
    out->data_begin = 8 + n;
    json_t *root;
    enum status st = json_doc_parse(&root, "header", (const char *)head + 8, (size_t)n, 0, err);
    if (st)
        return st == STATUS_INVALID ? STATUS_CORRUPT : st;
    st = parse_header(out, root, file_bytes - out->data_begin, err);
    json_decref(root);
    if (st)
        safetensors_fini(out);
    return st;
}

void safetensors_fini(struct st_file *f)
{
    for (size_t i = 0; i < f->tensor_count; i++)
        mem_free(f->tensor[i].name);
    mem_free(f->tensor);
    memset(f, 0, sizeof(*f));
}

const struct st_tensor *safetensors_find(const struct st_file *f, const char *name)
{
    size_t lo = 0, hi = f->tensor_count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int c = strcmp(name, f->tensor[mid].name);
        if (c == 0)
            return &f->tensor[mid];
        if (c < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}
