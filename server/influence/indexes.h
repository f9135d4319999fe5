/* The indexes that answers are attributed with: per adapter version and datanet version one of
 * token events (S1) and one of spans (S2), files below <data_dir>/indexes that are found, or built
 * from the training manifest and the texts by a thread of its own. Its rows go through the engine
 * as scoring does: they yield to every user.
 *
 * An adapter that comes is indexed ahead, so that its first answer finds the index READY; at a
 * start those are that have files here, and the newest ahead_max others. What is made ahead waits
 * until nothing that an answer asked for does, at most ahead_max at a time, and takes no room from
 * what was asked for: of the table, the engine's bases or bytes_max. What finds none, or fails, is
 * left to the first answer.
 *
 *   asked -> WAITING -> BUILDING -> READY                 until others need the room
 *                                -> NONE, with the reason  no manifest, texts that are not here...
 *                                -> FAILED, with the reason
 *                                -> WAITING, with the reason: a full disk, no memory. Whom it
 *                                   pays is not changed by that for an hour; then it is FAILED
 *
 * NONE and FAILED are tried again when asked for after half a minute. A file that fails its check,
 * or is of something else, is built again: same inputs, same bytes. Thread: any; one lock inside.
 */
#ifndef RS_INFLUENCE_INDEXES_H
#define RS_INFLUENCE_INDEXES_H

#include "server/datanet/datanet.h"
#include "server/datanet/store.h"
#include "server/engine/engine.h"
#include "server/influence/events.h"
#include "server/influence/spans.h"

#include <limits.h>

#define INDEXES_MAX     256
#define INDEX_WHY_BYTES 256

enum index_state { INDEX_NONE, INDEX_WAITING, INDEX_BUILDING, INDEX_READY, INDEX_FAILED };
const char *index_state_name(enum index_state s);

struct index { /* immutable, counted */
    _Atomic uint32_t refs;
    struct events *events;
    struct spans *spans;        /* NULL: none, and the log says why */
    struct engine_basis *basis; /* of half 1 of the keys */
    struct datanet *datanet;    /* texts and licences */
    uint32_t *prior_ppb;        /* [n_owners] */
};
struct index *index_ref(struct index *i); /* NULL stays NULL */
void index_release(struct index *i);      /* NULL is fine */

struct indexes_options {
    const char *dir;
    uint64_t bytes_max;             /* of the files; the oldest go */
    uint32_t ahead_max;             /* adapters that wait to be indexed ahead; 0: none are */
    const struct file_roots *roots; /* folders that links in an adapter's may lead to */
};
struct indexes_deps {
    struct engine *engine;
    struct catalog *catalog;
    const struct model *model;
    struct datanet_store *store; /* NULL: adapters' folders alone */
};

struct indexes;
MUST_CHECK enum status indexes_create(struct indexes **out, const struct indexes_options *opt,
                                      const struct indexes_deps *deps, struct errtext *err);
/* Builds no more; a build under way ends. The engine runs or is drained. */
void indexes_stop(struct indexes *x);
void indexes_destroy(struct indexes *x); /* NULL is fine; references may outlive it */

struct index_found {
    enum index_state state;
    struct index *index;       /* READY: a reference of the caller's */
    char why[INDEX_WHY_BYTES]; /* NONE, FAILED, WAITING after it failed */
};
/* What there is for an adapter and the datanet version of that document root; NULL: the one that
 * its training manifest names. Asks for it where nobody has. */
void indexes_find(struct indexes *x, const uint8_t adapter_id[32], const uint8_t *document_root,
                  struct index_found *out);
/* An adapter has come, or what it was trained on: index it ahead. One without a training manifest
 * is passed over. */
void indexes_expect(struct indexes *x, const uint8_t adapter_id[32]);
/* Of the READY ones that of this root: a reference, or NULL. */
struct index *indexes_by_root(struct indexes *x, const uint8_t root[32]);
/* Grows whenever one has left WAITING and BUILDING. */
uint64_t indexes_epoch(const struct indexes *x);

struct indexes_stats {
    uint32_t ready, waiting, failed; /* failed: those that wait after it too */
    uint64_t built, rebuilt, bytes;  /* rebuilt: after a file that failed its check */
};
void indexes_get_stats(struct indexes *x, struct indexes_stats *out);

#endif
