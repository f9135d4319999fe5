/* Typed reads from a JSON object of a tokenizer file, with a sentence when the type is wrong.
 * `where` names the object for the reader of the message. A missing or null key takes the default
 * where the call has one. */
#ifndef RS_TEXT_JSONGET_H
#define RS_TEXT_JSONGET_H

#include "server/base/errtext.h"
#include "server/base/status.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* "type" of a component object; INVALID when obj is no object or has none. */
MUST_CHECK enum status json_get_type(const json_t *obj, const char *where, const char **type,
                                     struct errtext *err);
MUST_CHECK enum status json_get_bool(const json_t *obj, const char *where, const char *key,
                                     bool missing, bool *out, struct errtext *err);
/* A copy of the string (mem_free) and its length; INVALID when missing. */
MUST_CHECK enum status json_get_text(const json_t *obj, const char *where, const char *key,
                                     char **out, size_t *len, struct errtext *err);
/* A non-negative integer up to max. */
MUST_CHECK enum status json_get_count(const json_t *obj, const char *where, const char *key,
                                      uint32_t max, uint32_t *out, struct errtext *err);
/* INVALID unless the key holds an array of at most count_max items. */
MUST_CHECK enum status json_get_array(const json_t *obj, const char *where, const char *key,
                                      size_t count_max, json_t **out, struct errtext *err);
/* The {"String": s} or {"Regex": s} of a pattern: a copy in *out. */
MUST_CHECK enum status json_get_pattern(const json_t *obj, const char *where, char **out,
                                        size_t *len, bool *is_regex, struct errtext *err);

#endif
