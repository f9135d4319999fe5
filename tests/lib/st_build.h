/* Builds safetensors files in memory for tests: add tensors, then st_build_bytes. Header only. */
#ifndef RS_TESTS_ST_BUILD_H
#define RS_TESTS_ST_BUILD_H

#include "server/base/buf.h"
#include "server/base/check.h"

#include <stdio.h>
#include <string.h>

struct st_build {
    struct buf header, data;
};

static inline void st_build_init(struct st_build *b)
{
    buf_init(&b->header, 64u << 20);
    buf_init(&b->data, 64u << 20);
}

static inline void st_build_fini(struct st_build *b)
{
    buf_fini(&b->header);
    buf_fini(&b->data);
}

/* rows 0: a vector of columns elements. data NULL: the caller appends to b->data himself. */
static inline void st_build_add(struct st_build *b, const char *name, const char *dtype,
                                uint32_t rows, uint32_t columns, const void *data)
{
    size_t bytes = (size_t)(rows ? rows : 1) * columns * (strcmp(dtype, "F32") ? 2 : 4);
    size_t begin = b->data.len;
    buf_printf(&b->header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":", b->header.len ? "," : "", name,
               dtype);
    if (rows)
        buf_printf(&b->header, "[%u,%u]", rows, columns);
    else
        buf_printf(&b->header, "[%u]", columns);
    buf_printf(&b->header, ",\"data_offsets\":[%zu,%zu]}", begin, begin + bytes);
    if (data)
        buf_put(&b->data, data, bytes);
}

/* The file; owned by the caller (mem_free). */
static inline char *st_build_bytes(const struct st_build *b, size_t *len)
{
    struct buf file;
    uint64_t n = b->header.len + 2;
    buf_init(&file, 256u << 20);
    for (int i = 0; i < 8; i++)
        buf_putc(&file, (char)(n >> (8 * i)));
    buf_putc(&file, '{');
    buf_put(&file, b->header.data, b->header.len);
    buf_putc(&file, '}');
    buf_put(&file, b->data.data, b->data.len);
    CHECK(!file.failed);
    return buf_steal(&file, len);
}

#endif
