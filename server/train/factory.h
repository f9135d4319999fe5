/* The Model Factory: adapters are trained beside serving, on the base that serves. One thread packs
 * the sequences of all jobs and learners that have something to do into common passes (pass.h) on a
 * backend of its own whose threads run only where nobody else wants the processor, so that no
 * token of a user waits for training.
 *
 *   job      a supervised run over rows of a datanet, durable: DIR/jobs/<id>/ holds what it is, its
 *            checkpoint and its events; after a crash it goes on from there, to the same bits
 *   learner  an adapter in memory that a client trains step by step; nothing of it is durable but
 *            what it saves
 *
 * The adapter that a job ends with is published as an upload is, with the manifest of exactly the
 * rows that were learned, and served and indexed from then on.
 *
 * Thread: any. What is called back runs on the factory's and must not block. */
#ifndef RS_TRAIN_FACTORY_H
#define RS_TRAIN_FACTORY_H

#include "server/adapter/publish.h"
#include "server/datanet/store.h"
#include "server/train/pass.h"
#include "server/train/trainer.h"

#define FACTORY_ID_BYTES   32 /* "ftjob-" and 24 hex digits */
#define FACTORY_NOTE_BYTES (64u << 10)
#define FACTORY_EVENTS_MAX 10000u /* of a job; then metrics of every second step stay, and so on */
#define FACTORY_TEXT_BYTES 200

struct factory;

struct factory_options {
    const char *dir;       /* <data_dir>/train */
    uint32_t jobs_max;     /* that wait or run; past it FULL */
    uint32_t account_max;  /* of these, of one owner */
    uint32_t running_max;  /* that train at a time, in the same passes */
    uint32_t ended_max;    /* that are remembered; the oldest are forgotten */
    uint32_t learners_max; /* in memory at a time */
    uint32_t works_max;    /* of learners, queued */
    uint32_t tokens;       /* of a pass, and so of a row */
    uint32_t rank_max;     /* of a module */
    uint64_t bytes_max;    /* activations, weights, gradients and moments together */
    uint64_t device_bytes; /* of base's backend, where it is a device: activations, and the adapters
                              of a pass; bytes_max is host memory then */
    uint64_t account_tokens_max; /* to be read by jobs of one owner that have not ended; 0: any */
    bool yields; /* trains only where no other thread wants the processor, as base's backend does */
    uint32_t checkpoint_s; /* between two checkpoints of a job */
    const char *version;   /* of this program */
};
/* Publishes as an upload is (server/influence/publish_indexed.h). */
typedef enum status factory_publish(void *arg, struct publish_upload *u, struct errtext *err);
struct factory_deps {
    struct train_base base; /* its backend is the factory's alone */
    struct datanet_store *datanets;
    struct catalog *catalog;
    factory_publish *publish;
    void *publish_arg;
};

MUST_CHECK enum status factory_create(struct factory **out, const struct factory_options *opt,
                                      const struct factory_deps *deps, struct errtext *err);
/* Reads DIR, takes up what was under way. */
MUST_CHECK enum status factory_start(struct factory *f, struct errtext *err);
/* Ends the pass under way, keeps checkpoints, tells all works CANCELLED. */
void factory_stop(struct factory *f);
void factory_destroy(struct factory *f); /* NULL is fine */

/* ---- jobs ---- */

enum factory_status {
    FACTORY_QUEUED,
    FACTORY_RUNNING,
    FACTORY_PAUSED,
    FACTORY_SUCCEEDED,
    FACTORY_FAILED,
    FACTORY_CANCELLED,
    FACTORY_STATUS_COUNT
};
const char *factory_status_name(enum factory_status s);

struct factory_spec {
    const char *owner;    /* the API key's name, "" without keys: jobs are seen by their owner */
    const char *name;     /* of the adapter that comes out, in the catalog */
    uint64_t quota_bytes; /* of the owner, as in struct publish_upload */
    uint8_t document_root[32]; /* a datanet of the server's store, all texts here */
    const char *training;      /* a training manifest of it; NULL: all rows */
    size_t training_bytes;
    uint8_t eval_root[32];   /* a datanet whose rows are held out; zeros: none */
    const char *peft_config; /* adapter_config.json that is trained */
    size_t peft_config_bytes;
    struct train_options train; /* optim.steps is set by the job */
    uint32_t warmup_percent;    /* of all steps: sets optim.warmup */
    const char *price;          /* of 1000 trained tokens, base units, decimal; kept on the job */
    const char *note;           /* JSON of who asked, kept as it is: at most FACTORY_NOTE_BYTES */
    size_t note_bytes;
};
/* Checked as a whole first: the datanet and manifest are here, every row can be a row and is not
 * longer than `tokens`, the configuration adapts something, the name is free or the owner's.
 * Errors  FULL past jobs_max or account_max; INVALID, NOT_FOUND, TOO_LARGE naming the field
 *         (as trainer_create); CONFLICT the name; IO. */
MUST_CHECK enum status factory_submit(struct factory *f, const struct factory_spec *spec,
                                      char id[FACTORY_ID_BYTES], struct errtext *err);

struct factory_job { /* a copy */
    char id[FACTORY_ID_BYTES], owner[64], name[CATALOG_NAME_MAX + 1], price[48];
    enum factory_status status;
    int64_t created_ms, started_ms, finished_ms; /* wall clock; 0: not yet */
    uint32_t rows, eval_rows, steps, done;       /* steps in all and made */
    uint64_t trained_tokens, tokens_all;         /* read so far; in all */
    uint32_t events;
    float loss, eval_loss; /* of the last step; NaN: none yet */
    double tokens_per_s;
    struct train_options train;
    uint8_t document_root[32], eval_root[32], training_digest[32];
    bool has_adapter;
    uint8_t adapter_id[32];
    char error_param[64], error[FACTORY_TEXT_BYTES]; /* FAILED */
};
bool factory_get(struct factory *f, const char *id, struct factory_job *out);
/* The note it was submitted with, at the end of out. NOT_FOUND. */
MUST_CHECK enum status factory_note(struct factory *f, const char *id, struct buf *out,
                                    struct errtext *err);
/* Of an owner, the newest first, behind the job `after` (NULL: from the newest): at most max.
 * *more: there are others. Returns how many. */
uint32_t factory_list(struct factory *f, const char *owner, const char *after,
                      struct factory_job *out, uint32_t max, bool *more);
/* QUEUED, RUNNING, PAUSED -> CANCELLED | QUEUED, RUNNING -> PAUSED | PAUSED -> QUEUED; what is so
 * already is fine. NOT_FOUND; CONFLICT: it has ended. */
MUST_CHECK enum status factory_cancel(struct factory *f, const char *id, struct errtext *err);
MUST_CHECK enum status factory_pause(struct factory *f, const char *id, struct errtext *err);
MUST_CHECK enum status factory_resume(struct factory *f, const char *id, struct errtext *err);

enum factory_event_type { FACTORY_EVENT_MESSAGE, FACTORY_EVENT_METRICS, FACTORY_EVENT_CHECKPOINT };
struct factory_event { /* 256 bytes, as on disk */
    int64_t at_ms;
    uint32_t seq;        /* from 0 */
    uint8_t type, level; /* level: 0 info, 1 warn, 2 error */
    uint16_t reserved;
    uint32_t step;                   /* made so far */
    float loss, eval_loss, norm, lr; /* METRICS, CHECKPOINT; NaN: none */
    uint32_t tokens_per_s;
    char text[216];
};
_Static_assert(sizeof(struct factory_event) == 256, "events are kept in pieces of 256 bytes");
/* Those from seq `first` on, at most max. NOT_FOUND, IO. */
MUST_CHECK enum status factory_events(struct factory *f, const char *id, uint32_t first,
                                      struct factory_event *out, uint32_t max, uint32_t *count,
                                      struct errtext *err);
/* Called on the factory's thread when a job has a new event or status. One listener. */
void factory_listen(struct factory *f, void (*on_change)(void *arg, const char *id), void *arg);

struct factory_stats {
    uint32_t queued, running, paused, learners;
    uint64_t succeeded, failed, cancelled;     /* since the start */
    uint64_t tokens, steps, passes, pass_room; /* pass_room: tokens that the passes had room for */
    uint64_t works;
};
void factory_get_stats(struct factory *f, struct factory_stats *out);

#endif
