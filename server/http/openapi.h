/* The served description of the API: openapi.json of this folder, embedded by the build. */
#ifndef RS_HTTP_OPENAPI_H
#define RS_HTTP_OPENAPI_H

#include <stddef.h>

extern const char openapi_json[];
extern const size_t openapi_json_bytes;

#endif
