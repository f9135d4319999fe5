/* Reading JSON. One way in and one set of getters for every program and every kind of document.
 *
 *   json_doc_parse   text -> a jansson tree, or a sentence with line and column. Nesting is bounded
 *                    and a key may stand once. No number refuses a document: an integer that int64
 *                    cannot hold reads as a real, a number past the largest double reads as that
 *                    double. A UTF-8 byte order mark before the text is skipped.
 *   struct json_reader   typed getters with a sticky error: after the first fault every getter
 *                    returns its default, and the text says document, path, found and expected:
 *
 *                    config.json: rope_scaling.factor: found "two", expected a number from 1 to 1e6
 *
 * Absent and null are one thing. Integers are exact or refused: 16.0 is 16, a real of 2^53 or more
 * is no integer, for it may stand for many. Pure; any thread. */
#ifndef RS_BASE_JSON_H
#define RS_BASE_JSON_H

#include "server/base/errtext.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define JSON_DEPTH_MAX 64u

enum json_doc_flags {
    JSON_DOC_NUL = 1,     /* strings may hold \u0000: readers must take lengths */
    JSON_DOC_REPEATS = 2, /* a key may stand twice, the last one counts (what Python does) */
    JSON_DOC_LIST = 4     /* the document is a list, not an object */
};

/* Parse one document; the caller owns *out (json_decref), NULL on failure. `where` begins the error
 * text ("config.json"). INVALID, or NO_MEMORY. */
MUST_CHECK enum status json_doc_parse(json_t **out, const char *where, const char *text, size_t len,
                                      unsigned flags, struct errtext *err);
/* The same from a file of at most bytes_max bytes; `where` is its path. Also file_read's errors. */
MUST_CHECK enum status json_doc_load(json_t **out, const char *path, size_t bytes_max,
                                     unsigned flags, struct errtext *err);

struct json_reader {
    const json_t *obj; /* an object, or NULL: then everything is absent */
    const char *where; /* the document, or NULL: the text begins with the path */
    enum status wrong; /* the status of a wrong value; 0 means INVALID */
    enum status st;    /* the first fault */
    struct errtext *err;
    /* set by json_enter and json_enter_item */
    struct json_reader *up;
    char at[64]; /* the path of obj: "", "rope_scaling.", "messages[3]." */
};

struct json_range {
    int64_t lo, hi;
};

/* The value at key, or NULL when absent or null. */
const json_t *json_field(const json_t *obj, const char *key);
/* The value's text for an error message: short, whole characters, valid until the next call on this
 * thread. */
const char *json_shown(const json_t *v);
/* Record a fault of `key` (the first one wins): here and in the readers above. param of the error
 * text is the path. */
void json_fail(struct json_reader *r, enum status st, const char *key, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* Getters. read: absent or null gives `absent`. need: absent is a fault. */
bool json_has(const struct json_reader *r, const char *key);
int64_t json_read_int(struct json_reader *r, const char *key, struct json_range range,
                      int64_t absent);
int64_t json_need_int(struct json_reader *r, const char *key, struct json_range range);
/* Any finite JSON number, lo <= v <= hi. */
double json_read_num(struct json_reader *r, const char *key, double lo, double hi, double absent);
double json_need_num(struct json_reader *r, const char *key, double lo, double hi);
bool json_read_bool(struct json_reader *r, const char *key, bool absent);
/* Borrowed from the tree, no NUL inside. Absent: NULL. */
const char *json_read_string(struct json_reader *r, const char *key);
/* Never NULL: "" after a fault. */
const char *json_need_string(struct json_reader *r, const char *key);
/* A copy of the string (mem_free) with its length; may hold NUL where the document may. NULL only
 * after a fault. */
char *json_need_copy(struct json_reader *r, const char *key, size_t *len);
/* Exactly n bytes of hex, with or without 0x; zeros after a fault. */
void json_need_hex(struct json_reader *r, const char *key, uint8_t *out, size_t n);
/* A list of at most count_max items. Absent: NULL (need: a fault). */
const json_t *json_read_list(struct json_reader *r, const char *key, size_t count_max);
const json_t *json_need_list(struct json_reader *r, const char *key, size_t count_max);
/* The integer that v, an item of a list, must be; idx is for the text. */
int64_t json_item_int(struct json_reader *r, const char *key, size_t idx, const json_t *v,
                      struct json_range range);

/* A reader of the object at key, or of item idx of the list at key; its faults are r's too, so it
 * must not outlive r. Absent (or no object, which is a fault) gives a reader of nothing. */
struct json_reader json_enter(struct json_reader *r, const char *key);
struct json_reader json_enter_item(struct json_reader *r, const char *key, size_t idx,
                                   const json_t *item);

#endif
