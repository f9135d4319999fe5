/* The "normalizer" of a tokenizer file: a flat list of steps, each text -> text. Immutable after
 * load. Known: Sequence, NFC, NFD, NFKC, NFKD, Lowercase, Prepend, Replace, Strip, StripAccents. */
#ifndef RS_TEXT_NORMALIZE_H
#define RS_TEXT_NORMALIZE_H

#include "server/base/buf.h"
#include "server/base/json.h"
#include "server/text/regex.h"

#include <stdbool.h>
#include <stdint.h>

#define NORMALIZE_STEPS_MAX 32

enum normalize_kind {
    NORMALIZE_NFC,
    NORMALIZE_NFD,
    NORMALIZE_NFKC,
    NORMALIZE_NFKD,
    NORMALIZE_LOWERCASE,
    NORMALIZE_PREPEND, /* put `text` before non-empty input */
    NORMALIZE_REPLACE, /* `pattern` or `regex` becomes `text` */
    NORMALIZE_STRIP,
    NORMALIZE_STRIP_ACCENTS
};

struct normalize_step {
    enum normalize_kind kind;
    bool left, right; /* strip */
    char *pattern, *text;
    size_t pattern_len, text_len;
    struct regex *regex;
};

struct normalizer {
    struct normalize_step steps[NORMALIZE_STEPS_MAX];
    size_t n;
};

/* Memory of one running normalization, reused from piece to piece. */
struct normalize_work {
    struct buf a, b;
    int32_t *cps, *sorted;
    size_t cps_cap, sorted_cap;
};

/* The {"String": s} or {"Regex": s} at "pattern": a copy (mem_free), or NULL after a fault of r. */
char *pattern_load(struct json_reader *r, size_t *len, bool *is_regex);
/* json may be NULL or null: no steps. */
MUST_CHECK enum status normalizer_load(struct normalizer *n, const json_t *json,
                                       struct errtext *err);
void normalizer_fini(struct normalizer *n);

void normalize_work_init(struct normalize_work *w);
void normalize_work_fini(struct normalize_work *w);

/* normalizer_run - run all steps over valid UTF-8.
 * After   *out is the result: the input itself or memory of w, valid until the next run with w.
 *         *at_start is cleared when characters were stripped from the left. */
struct normalize_io {
    const char *text; /* in: the input; out: the result */
    size_t len;
    bool at_start;
};
MUST_CHECK enum status normalizer_run(const struct normalizer *n, struct normalize_work *w,
                                      struct regex_scratch *scratch, struct normalize_io *io,
                                      struct errtext *err);

/* Replace every match of a step's pattern in text, into out. Used by decoders too. */
MUST_CHECK enum status normalize_replace(const struct normalize_step *step,
                                         struct regex_scratch *scratch,
                                         const struct normalize_io *io, struct buf *out,
                                         struct errtext *err);
MUST_CHECK enum status normalize_replace_load(struct normalize_step *step, const json_t *json,
                                              const char *where, struct errtext *err);
void normalize_step_fini(struct normalize_step *step);

#endif
