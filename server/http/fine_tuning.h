/* OpenAI's /v1/fine_tuning/jobs over the factory: what the parts share. A job is seen by the API
 * key that made it and by nobody else. */
#ifndef RS_HTTP_FINE_TUNING_H
#define RS_HTTP_FINE_TUNING_H

#include "server/http/exchange.h"
#include "server/train/factory.h"

#include <jansson.h>

#define TUNE_SUFFIX_MAX 64

/* The server hears of the factory's jobs, or no more. */
void tune_listen(struct http_server *s, bool yes);

/* ---- fine_tuning_ask.c: what a body asks for ---- */

struct tune_ask { /* texts are the document's; tune_ask_fini */
    const char *training_file, *validation_file, *suffix;
    const json_t *metadata; /* or NULL */
    struct train_options train;
    uint32_t warmup_percent;
    bool auto_epochs, auto_batch, auto_rate;
    double multiplier; /* of the standard rate */
    struct buf config; /* adapter_config.json */
};
/* Reads the whole body; what depends on the rows stays auto. INVALID, UNSUPPORTED, NOT_FOUND the
 * model, each naming the field. */
MUST_CHECK enum status tune_ask_read(struct tune_ask *a, const struct exchange *x,
                                     const json_t *root, struct errtext *err);
/* auto has values now. */
void tune_ask_settle(struct tune_ask *a, uint32_t rows);
/* What the job keeps of it, and shows. NULL: no memory. */
json_t *tune_ask_note(const struct tune_ask *a, const struct exchange *x);
void tune_ask_fini(struct tune_ask *a);

/* ---- fine_tuning_source.c: what a job trains on ---- */

/* "file-...", which becomes a datanet of one document, its key's account's; "datanet:NAME@VERSION";
 * "datanet:0x<document root>". Errors name param. */
MUST_CHECK enum status tune_source(struct exchange *x, const char *name, const char *param,
                                   uint8_t root[32], struct errtext *err);
/* Its rows, counted. */
MUST_CHECK enum status tune_rows(struct exchange *x, const uint8_t root[32], uint32_t *rows,
                                 struct errtext *err);

/* ---- fine_tuning_show.c: jobs as OpenAI's objects ---- */

/* The job object at the end of x->out; the result file of a job that succeeded is made where it is
 * not there yet. */
MUST_CHECK enum status tune_put_job(struct exchange *x, const struct factory_job *j,
                                    struct errtext *err);
/* Has the job all of the pairs that the query names? */
bool tune_has_metadata(struct exchange *x, const struct factory_job *j);
void tune_put_event(struct buf *out, const char *job, const struct factory_event *e);
void tune_put_checkpoint(struct buf *out, const struct factory_job *j,
                         const struct factory_event *e);
#define TUNE_EVENT_ID_BYTES 48 /* "ftevent-", the job's digits, "-" and its number */
void tune_event_id(char out[TUNE_EVENT_ID_BYTES], const char *prefix, const char *job,
                   uint32_t seq);
/* The number of such an id of that job; false: it is none. */
bool tune_event_seq(const char *id, const char *prefix, const char *job, uint32_t *seq);

#endif
