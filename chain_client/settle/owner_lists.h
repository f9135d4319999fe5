/* The owners' lists of the datanet versions that an epoch names (SPEC 4): whom evidence may pay.
 * A list is content: its root, and nothing else, says that it is the right one, so it may come from
 * anywhere. Thread: any. */
#ifndef RS_SETTLE_OWNER_LISTS_H
#define RS_SETTLE_OWNER_LISTS_H

#include "chain_client/settle/snapshot.h"

struct owner_lists {
    struct reward_owners *list; /* [count], one for each version of the snapshot, in its order */
    size_t count;
};

/* An empty list of a version that has owners: the publisher's word that nobody has it any more.
 * Such a version has no owners (SPEC 4); a fault wherever it is read. */
bool owner_list_is_absent(const struct snapshot_version *v, size_t count);

/* owner_lists_read - a list for every version of s.
 *
 * read() puts the owners of one version into a fresh block (mem_free). A version that the Registry
 * does not have has none and is not asked for.
 * Errors  read's; CORRUPT, naming the version, when a list is neither what the Registry says nor
 *         absent
 */
struct owner_lists_source {
    enum status (*read)(void *arg, const struct snapshot_version *v, struct datanet_owner **owner,
                        size_t *count, struct errtext *err);
    void *arg;
};
MUST_CHECK enum status owner_lists_read(struct owner_lists *o, const struct snapshot *s,
                                        const struct owner_lists_source *source,
                                        struct errtext *err);
/* CORRUPT, naming the version, unless the list has the Registry's root and counts. */
MUST_CHECK enum status owner_list_check(const struct snapshot_version *v,
                                        const struct datanet_owner *owner, size_t count,
                                        struct errtext *err);
/* v's list out of any published epoch's owners.json, checked; NOT_FOUND, or what is wrong there. */
MUST_CHECK enum status owner_list_find(struct datanet_owner **owner, size_t *count,
                                       const struct snapshot_version *v, const char *dir,
                                       uint64_t epoch);
/* From owners.json of a published epoch, which must be of s and in its one form. */
MUST_CHECK enum status owner_lists_archive(struct owner_lists *o, const struct snapshot *s,
                                           const char *dir, uint64_t epoch, struct errtext *err);
void owner_lists_fini(struct owner_lists *o);

/* owners.json */
void owner_lists_put(struct buf *out, const struct owner_lists *o, uint64_t epoch);
/* One version's list as a server or a file has it: {"datanet", "version", "owners": [{"owner",
 * "documents"}]}. CORRUPT for another version or another shape. */
MUST_CHECK enum status owner_list_parse(struct datanet_owner **owner, size_t *count,
                                        const struct snapshot_version *v, const char *where,
                                        const struct canon_bytes *text, struct errtext *err);
/* "0x.. version 3", for people. */
#define OWNER_LIST_NAME_BYTES 96
void owner_list_name(char out[OWNER_LIST_NAME_BYTES], const struct snapshot_version *v);

#endif
