/* Reading a JSON object with a sticky error: after the first fault every getter returns its default
 * and the text names file, key, found and expected. For the parsers of this folder and of
 * server/adapter. Pure. */
#ifndef RS_MODEL_CONFIG_JSON_H
#define RS_MODEL_CONFIG_JSON_H

#include "server/base/errtext.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct cfg_reader {
    const json_t *obj;
    const char *where; /* "config.json", "config.json: rope_scaling" */
    enum status st;
    struct errtext *err;
};

struct cfg_range {
    int64_t lo, hi;
};

/* The value's text for an error message (short, valid until the next call on this thread). */
const char *cfg_shown(const json_t *v);
/* true when the key is there and not null. */
bool cfg_has(const struct cfg_reader *r, const char *key);
/* Absent or null: `absent`, unless required. */
int64_t cfg_int(struct cfg_reader *r, const char *key, struct cfg_range range, int64_t absent);
int64_t cfg_int_required(struct cfg_reader *r, const char *key, struct cfg_range range);
/* Any JSON number, finite, lo <= v <= hi. */
double cfg_num(struct cfg_reader *r, const char *key, double lo, double hi, double absent);
double cfg_num_required(struct cfg_reader *r, const char *key, double lo, double hi);
bool cfg_bool(struct cfg_reader *r, const char *key, bool absent);
/* NULL when absent or null. */
const char *cfg_string(struct cfg_reader *r, const char *key);
/* Record an error (the first one wins). */
void cfg_fail(struct cfg_reader *r, enum status st, const char *key, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

#endif
