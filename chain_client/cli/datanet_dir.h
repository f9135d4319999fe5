/* A datanet's folder as its publisher and its contributors write it:
 *
 *   datanet.json             the list of this version (SPEC 6), with "owner", and "published": the
 *                            version that is on a chain
 *   documents/NNNN.EXT       the texts, normalised
 *   training.json            the rows (residual datanet build)
 *   versions/NNNN.json       the lists of earlier versions
 *
 * One thread. */
#ifndef RS_CLI_DATANET_DIR_H
#define RS_CLI_DATANET_DIR_H

#include "server/base/errtext.h"

#include <jansson.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

struct datanet_dir {
    const char *dir;
    char path[PATH_MAX];      /* of datanet.json */
    json_t *json, *documents; /* documents is in json */
    uint64_t version, id_max; /* id_max: the highest docId */
};

/* NOT_FOUND, with the way out; INVALID. */
MUST_CHECK enum status datanet_dir_load(struct datanet_dir *d, const char *dir,
                                        struct errtext *err);
void datanet_dir_fini(struct datanet_dir *d);
MUST_CHECK enum status datanet_dir_save(const struct datanet_dir *d, struct errtext *err);
/* A text of the list. It is not flushed to the disk one by one, ten thousand would take minutes:
 * who adds it has it still, and check finds one that a power cut took. */
MUST_CHECK enum status datanet_dir_put_text(const struct datanet_dir *d, const char *name,
                                            const void *data, size_t len, struct errtext *err);
/* Before a change: a version that is on a chain stays as it is (versions/), the change is of the
 * next one. always: whether it is on a chain or not. Every document keeps its "since". */
MUST_CHECK enum status datanet_dir_next(struct datanet_dir *d, bool always, struct errtext *err);
/* The place of a docId in documents, or SIZE_MAX. */
size_t datanet_dir_find(const struct datanet_dir *d, uint64_t doc_id);
/* "dir/name" */
void datanet_dir_path(char out[PATH_MAX], const struct datanet_dir *d, const char *name);

#endif
