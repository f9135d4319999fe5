/* libFuzzer: "Content-Type\nbody" as /v1/files gets them. Parts lie inside of the body, ascending
 * and apart. */
#include "server/base/check.h"
#include "server/http/multipart.h"

#include <stdio.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct multipart_part part[MULTIPART_PARTS_MAX];
    char type[256], boundary[MULTIPART_BOUNDARY_MAX + 1];
    const uint8_t *nl = size ? memchr(data, '\n', size) : NULL;
    struct errtext err = ERRTEXT_INIT;
    uint32_t count;
    if (!nl)
        return 0;
    snprintf(type, sizeof(type), "%.*s", (int)(nl - data), (const char *)data);
    if (multipart_boundary(boundary, type, &err)) {
        CHECK(err.text[0]);
        return 0;
    }
    const char *body = (const char *)nl + 1, *end = (const char *)data + size, *at = body;
    if (multipart_parse(body, (size_t)(end - body), boundary, part, &count, &err))
        CHECK(err.text[0]);
    CHECK(count <= MULTIPART_PARTS_MAX);
    for (uint32_t i = 0; i < count; i++) {
        CHECK(part[i].data >= at && part[i].data <= end &&
              part[i].len <= (size_t)(end - part[i].data));
        CHECK(part[i].name[0] && strlen(part[i].name) < sizeof(part[i].name));
        CHECK(strlen(part[i].filename) < sizeof(part[i].filename));
        at = part[i].data + part[i].len;
    }
    return 0;
}
