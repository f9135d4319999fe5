/* Typed reads of a client's JSON object. Absent and null leave the default alone; a wrong type or
 * range is INVALID with `param` set to the field and a sentence that says what was found and what
 * is expected. Also the one way in: json_body_parse bounds depth and refuses duplicate keys. */
#ifndef RS_HTTP_JSON_FIELD_H
#define RS_HTTP_JSON_FIELD_H

#include "server/base/errtext.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define JSON_BODY_DEPTH_MAX 64u

/* Parse a body that must be one object. The caller owns *out (json_decref). */
MUST_CHECK enum status json_body_parse(const char *text, size_t len, json_t **out,
                                       struct errtext *err);

/* The value, or NULL when absent or null. */
const json_t *json_field(const json_t *obj, const char *key);
MUST_CHECK enum status json_field_double(const json_t *obj, const char *key, double min, double max,
                                         double *out, struct errtext *err);
MUST_CHECK enum status json_field_int(const json_t *obj, const char *key, int64_t min, int64_t max,
                                      int64_t *out, struct errtext *err);
MUST_CHECK enum status json_field_bool(const json_t *obj, const char *key, bool *out,
                                       struct errtext *err);
/* Borrowed from obj; no NUL inside. *out stays as it is when absent. */
MUST_CHECK enum status json_field_string(const json_t *obj, const char *key, const char **out,
                                         struct errtext *err);
/* A short picture of a value for error texts: `"hot"`, `[...]`, `3.5`. */
void json_picture(const json_t *v, char *out, size_t out_bytes);

#endif
