/* One index: from its files where they are good, else built. Thread: the indexer's. */
#ifndef RS_INFLUENCE_INDEX_MAKE_H
#define RS_INFLUENCE_INDEX_MAKE_H

#include "server/adapter/catalog.h"
#include "server/base/mailbox.h"
#include "server/datanet/training_rows.h"
#include "server/influence/indexes.h"

#define INDEX_ROWS_INSIDE 64 /* rows inside the engine */

struct index_maker {
    struct indexes_options opt;
    struct indexes_deps deps;
    _Atomic bool stop;
    _Atomic uint64_t built, rebuilt, bytes;
    struct mailbox done; /* rows that the engine has finished */
};

struct index_want {
    const uint8_t *adapter_id;
    const uint8_t *document_root; /* the version; NULL: the manifest's */
    bool ahead;                   /* no answer asked for it: nothing gives way */
};
/* Errors  NOT_FOUND: there is nothing to build from, which is no fault of this server; the text
 *         says what is missing. CANCELLED: stop. FULL: the engine's bases are; ahead also the disk
 *         or bytes_max. IO, NO_MEMORY: it may pass, as a full disk does. Else it failed. */
MUST_CHECK enum status index_make(struct index **out, struct index_maker *m,
                                  const struct index_want *want, struct errtext *err);
/* Has the adapter a training manifest? */
bool index_has_source(const struct index_maker *m, const struct adapter_entry *e);
/* Is there a file that says by its name that it is of this adapter? */
bool index_has_file(const struct index_maker *m, const uint8_t adapter_id[32]);
/* Files go, those used longest ago first, until at most bytes_max are left; `keep` stays. */
void index_trim(struct index_maker *m, const char *keep);

/* index_spans.c: the spans of the datanet's texts, from their file or built. */
MUST_CHECK enum status index_open_spans(struct spans **out, struct index_maker *m,
                                        const struct datanet *d, struct errtext *err);

/* events_embed of a model. */
void index_embed(void *model, int32_t id, float *out);

/* index_rows.c: what goes through the engine. */
struct events_builder;
struct index_build {
    struct index_maker *maker;
    struct adapter_entry *entry;
    const struct training_rows *rows;
    struct events_builder *builder;
};
/* All passes over all rows: what the base says, the sample for the basis, what the adapter says
 * with the keys. */
MUST_CHECK enum status index_run_rows(const struct index_build *b, struct errtext *err);

#endif
