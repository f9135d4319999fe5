/* Inside of http/tinker*.c: what is kept; tinker_parts.h has what the parts do.
 *
 * One lock for sessions, models, samplers and futures; nothing is called under it. A session that
 * ends is closed first (nobody finds it any more) and freed by the thread `rs-tinker` when nobody
 * holds it and nothing of it runs. What runs ends in a mailbox of that thread: it makes the answer,
 * answers who waits, and takes old things away. */
#ifndef RS_HTTP_TINKER_IMPL_H
#define RS_HTTP_TINKER_IMPL_H

#include "server/base/json.h"
#include "server/base/mailbox.h"
#include "server/datanet/training.h"
#include "server/http/state.h"
#include "server/http/tinker.h"
#include "server/train/factory.h"
#include "server/train/factory_learners.h"
#include "server/train/tinker_batch.h"

#include <limits.h>

#define TINKER_WEIGHTS         "weights"
#define TINKER_SAMPLER_WEIGHTS "sampler_weights"
#define TINKER_RETRY_MS        1000u
#define TINKER_NS_PER_MS       1000000ull
#define TINKER_ALL_FUTURES_MAX (1u << 15) /* of all sessions; each is posted once */
#define TINKER_NEW             ".new"     /* a checkpoint that is not whole */
#define TINKER_NAME_MAX        64u        /* of a checkpoint */
#define TINKER_ROWS_MAX        (1u << 20)
#define TINKER_SESSION_ID      48
#define TINKER_ALPHA           32 /* of LoRA, as Tinker's */

struct tinker_lora {
    uint32_t rank;
    bool mlp, attn;
    uint64_t seed;
};
struct tinker_rows { /* of one datanet, ascending, none twice */
    uint8_t root[32];
    struct training_row *row;
    uint32_t n, room;
};
struct tinker_session;
struct tinker_model {
    char id[TINKER_ID_BYTES];
    struct tinker_session *session;
    uint64_t learner;
    uint32_t seq;
    struct tinker_lora lora;
    struct tinker_rows rows;                                    /* that gradients came from */
    bool stepped;                                               /* it may differ from the base */
    char ephemeral[TINKER_SAMPLERS_KEPT][CATALOG_NAME_MAX + 1]; /* a ring */
    uint32_t ephemerals;
    struct tinker_model *next;
};
struct tinker_sampler {
    char id[TINKER_ID_BYTES], path[2 * TINKER_ID_BYTES];
    char adapter[CATALOG_NAME_MAX + 1]; /* "": the base */
    struct tinker_sampler *next;
};

enum tinker_kind {
    TINKER_CREATE,
    TINKER_PASS,
    TINKER_OPTIM,
    TINKER_SAVE,
    TINKER_LOAD,
    TINKER_SAVE_SAMPLER,
    TINKER_SAMPLE
};
enum tinker_stage { TINKER_OPEN, TINKER_RUNNING, TINKER_DONE };
struct tinker_files {        /* of a checkpoint */
    char from_dir[PATH_MAX]; /* where it is read, or written first */
    char to_dir[PATH_MAX];   /* where it goes */
    char state[PATH_MAX];    /* the learner's file in from_dir */
    int64_t expires_ms;      /* wall clock; 0: never */
};
struct tinker_future {
    char id[2 * TINKER_ID_BYTES];
    enum tinker_kind kind;
    struct tinker *t;
    struct tinker_session *session;
    struct tinker_model *model; /* NULL: SAMPLE */
    enum tinker_stage stage;
    atomic_bool posted;
    uint64_t bytes;   /* of its batch or answer */
    uint64_t sent_ns; /* when its answer went out, or 0 */
    struct tinker_future *next;
    /* what runs */
    struct factory_work work;
    struct tinker_batch batch;
    struct factory_seq *seq;
    struct tinker_rows rows;
    struct request *req;
    uint32_t samples, prompt_last;   /* SAMPLE; prompt_last: tokens whose logprobs are wanted */
    char name[CATALOG_NAME_MAX + 1]; /* of the adapter that is published */
    char path[2 * TINKER_ID_BYTES];  /* tinker:// */
    struct tinker_files *files;      /* SAVE, LOAD */
    struct tinker_sampler *sampler;  /* SAVE_SAMPLER without a name: ours until it is done */
    bool stepped;                    /* LOAD: what is loaded may differ from the base */
    bool spoiled;                    /* PASS: its loss is not finite. Factory's thread */
    bool at_once;                    /* SAVE_SAMPLER: there is nothing to do */
    char *training;                  /* the manifest's text */
    /* the answer */
    struct buf out;
    bool is_proto;
    /* who waits for it */
    struct exchange *waiter;
    uint64_t wait_until_ns;
};

struct tinker_session {
    struct tinker *tinker;
    char id[TINKER_SESSION_ID], owner[64];
    uint64_t fair_key, seen_ns;
    uint32_t holds, running, futures, samplers;
    bool closed;
    struct tinker_model *model;
    struct tinker_sampler *sampler;
    struct tinker_future *future;
    struct tinker_session *next;
};

struct tinker {
    struct http_server *server;
    struct factory *factory; /* NULL: training is off */
    pthread_mutex_t lock;
    struct mailbox box; /* of futures that have run */
    pthread_t thread;
    atomic_bool ending;
    bool stopping;
    struct tinker_session *session;
    uint32_t sessions, futures;
    uint64_t bytes;    /* of all futures */
    uint64_t swept_ns; /* the thread's own */
    atomic_uint_fast64_t datums, samples_made;
};

#endif
