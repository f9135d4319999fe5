/* Inside the recorder: shared by recorder.c (admission, life), group.c (what one turn writes),
 * recover.c (start) and view.c (what the API shows). */
#ifndef RS_RECORD_RECORDER_IMPL_H
#define RS_RECORD_RECORDER_IMPL_H

#include "server/base/mailbox.h"
#include "server/influence/jobstore.h"
#include "server/influence/score.h"
#include "server/record/build.h"
#include "server/record/checkpoint.h"
#include "server/record/keylog.h"
#include "server/record/lane.h"
#include "server/record/lookup.h"
#include "server/record/recorder.h"
#include "server/spool/ship.h"
#include "server/spool/spool.h"

#include <pthread.h>

#define RECORDER_FLIGHT_MAX     16384u
#define RECORDER_SEGMENT_BYTES  (16u << 20)
#define RECORDER_SCORE_ROWS_MAX 256u
#define RECORDER_PREVIEWS_MAX   4096u /* past it an answer that needs no record is not scored */
#define RECORDER_RETRY_NS       1000000000ull /* between two tries of a disk that refused */
#define RECORDER_TIDY_NS        1000000000ull
#define GROUP_CAP               256u
#define INFERENCE_RECORD_BYTES_MAX                                                                 \
    (CANON_INFERENCE_BYTES + 12 + TAIL_SET_BYTES_MAX + TAIL_TARIFF_BYTES_MAX + TAIL_PARAMS_BYTES + \
     SECP_SIGNATURE_BYTES)

struct recorder {
    struct recorder_options opt;
    struct recorder_deps deps;
    struct lane lane;
    bool lane_is_open, running;
    struct build_context build;
    struct spool *spool;
    struct jobstore *jobs;
    struct lookup *lookup;
    struct keylog *keys;
    struct scorer *scorer;
    struct evidence *evidence;
    struct open_list open;   /* recorder thread: required, and not yet attributed */
    uint64_t checkpoint_seq; /* the start need not read the records up to it */
    uint64_t tidy_ns;        /* when it is trimmed and checkpointed again */
    uint64_t scored_ns;      /* when scoring last came forward, or had nothing to do */
    struct score_task *held; /* scored, but the record could not be written: tried again */
    struct mailbox finished; /* struct request */
    struct buf scratch;      /* recorder thread */
    uint64_t retry_ns;       /* when the disk is tried again */
    char unready[512];       /* what the log said last; "": ready */
    pthread_t thread;
    pthread_mutex_t lock; /* below */
    struct ship *ship;
    uint32_t in_flight;
    uint64_t job_reserved;
    bool disk_refuses; /* a write failed; the recorder's thread tries the disk again */
    char disk_text[512];
    struct recorder_stats stats;
};

/* What one turn of the loop writes and then releases. */
struct group_item {
    struct request *request;
    struct job *job; /* NULL: not scored */
    uint64_t seq;
    bool required; /* its job is in the store */
    size_t record_len;
    uint8_t record[INFERENCE_RECORD_BYTES_MAX];
};
struct group {
    struct group_item item[GROUP_CAP];
    uint32_t request_count;
    struct score_task *task[GROUP_CAP];
    uint64_t att_seq[GROUP_CAP];
    uint32_t task_count;
};

/* May this answer be required? Known before its tokens: a fee can only be zero if every price is.
 */
bool recorder_may_be_required(const struct request *req);
/* Is it drawn to be scored though no record requires it? At score_rate_ppb, by its random id. */
bool recorder_is_previewed(const struct recorder *r, const struct request *req);
/* Who is paid what for this answer: the terms of its parts and the base's tariff, as they are when
 * it begins. BUSY: the Registry is not known well enough to charge by. */
MUST_CHECK enum status recorder_entitle(const struct recorder *r, struct request *req,
                                        struct errtext *err);
/* One turn: take what waits, write it, release it. false: nothing was there. */
bool recorder_run_group(struct recorder *r, struct group *g);
/* g NULL: only the levels. */
void recorder_publish_stats(struct recorder *r, const struct group *g);

/* Settled records go, to what is to be kept; what the next start need not read is noted. */
void recorder_tidy(struct recorder *r);
/* Of the records up to upto. */
void recorder_checkpoint(struct recorder *r, uint64_t upto);
/* Open the job store, pair spool and jobs: jobs whose record is missing are dropped, records whose
 * job is lost get their attribution record "inputs lost", the rest is queued for scoring. */
MUST_CHECK enum status recorder_recover(struct recorder *r, struct errtext *err);

#endif
