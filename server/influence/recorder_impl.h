/* Inside the recorder: shared by recorder.c (the loop), recover.c (start) and view.c (what the API
 * shows). */
#ifndef RS_INFLUENCE_RECORDER_IMPL_H
#define RS_INFLUENCE_RECORDER_IMPL_H

#include <pthread.h>

#include "server/base/mailbox.h"
#include "server/influence/build.h"
#include "server/influence/jobstore.h"
#include "server/influence/lane.h"
#include "server/influence/lookup.h"
#include "server/influence/recorder.h"
#include "server/influence/score.h"
#include "server/spool/ship.h"
#include "server/spool/spool.h"

#define RECORDER_FLIGHT_MAX     16384u
#define RECORDER_SEGMENT_BYTES  (16u << 20)
#define RECORDER_SCORE_ROWS_MAX 256u

struct recorder {
    struct recorder_options opt;
    struct recorder_deps deps;
    struct lane lane;
    bool lane_is_open, running;
    struct build_context build;
    struct spool *spool;
    struct jobstore *jobs;
    struct lookup *lookup;
    struct scorer *scorer;
    struct ship *ship;
    struct mailbox finished; /* struct request */
    struct buf scratch;      /* recorder thread */
    pthread_t thread;
    pthread_mutex_t lock; /* below */
    uint32_t in_flight;
    uint64_t job_reserved, full_until_ns;
    char full_text[512];
    struct recorder_stats stats;
};

/* Open the job store, pair spool and jobs: jobs whose record is missing are dropped, records whose
 * job is lost get their attribution record "inputs lost", the rest is queued for scoring. */
MUST_CHECK enum status recorder_recover(struct recorder *r, struct errtext *err);

#endif
