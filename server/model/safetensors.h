/* safetensors: header parsing with every check of the format, over bytes the caller holds. Nothing
 * is copied but names. Alignment of tensor data is not guaranteed. NaNs are not this file's
 * business. Thread: any. */
#ifndef RS_MODEL_SAFETENSORS_H
#define RS_MODEL_SAFETENSORS_H

#include "server/base/errtext.h"

#include <stddef.h>
#include <stdint.h>

#define SAFETENSORS_TENSORS_MAX 65536
#define SAFETENSORS_RANK_MAX    8

enum st_dtype {
    ST_BOOL,
    ST_U8,
    ST_I8,
    ST_F8_E5M2,
    ST_F8_E4M3,
    ST_I16,
    ST_U16,
    ST_F16,
    ST_BF16,
    ST_I32,
    ST_U32,
    ST_F32,
    ST_F64,
    ST_I64,
    ST_U64,
    ST_DTYPE_COUNT
};

struct st_tensor {
    char *name;
    enum st_dtype dtype;
    uint32_t rank;
    uint64_t dim[SAFETENSORS_RANK_MAX];
    uint64_t begin, end; /* byte offsets from the file's start */
};

struct st_file {
    struct st_tensor *tensor; /* in bytewise name order */
    size_t tensor_count;
    uint64_t data_begin;
};

/* file_bytes: the whole file's size; head: at least the first min(file_bytes, 8 + N) bytes.
 * header_bytes_max: 1 MiB for adapters, 100 MB for bases. Errors name the tensor and the check. */
MUST_CHECK enum status safetensors_parse(struct st_file *out, const void *head, size_t head_bytes,
                                         uint64_t file_bytes, size_t header_bytes_max,
                                         struct errtext *err);
void safetensors_fini(struct st_file *f);
/* NULL if absent. */
const struct st_tensor *safetensors_find(const struct st_file *f, const char *name);
const char *st_dtype_name(enum st_dtype t);
/* The code of a dtype inside content ids (SPEC 1), fixed for ever: the order of enum st_dtype. */
uint8_t st_dtype_code(enum st_dtype t);
size_t st_dtype_bytes(enum st_dtype t);

#endif
