/* Admission of adapters from outside: what a dry run checks and what a publish keeps.
 *
 * Sources: two uploaded bodies (config, safetensors), a directory beneath an allow-listed root, or
 * one that the operator names. Archives are never unpacked; a link is followed only to where
 * peft/folder.h allows. Fail-closed; the report says what was checked.
 *
 * Thread: HTTP's; one publisher's bytes are bounded by its quota. */
#ifndef RS_ADAPTER_PUBLISH_H
#define RS_ADAPTER_PUBLISH_H

#include "kernels/backend.h"
#include "server/adapter/admit.h"
#include "server/adapter/catalog.h"
#include "server/base/buf.h"
#include "server/terms/book.h"

#include <jansson.h>

#define PUBLISH_ROOTS_MAX (FILE_ROOTS_MAX - 2)

struct publish_options {
    const struct model_config *model;
    enum dtype dtype;                       /* of packed blobs */
    const struct backend_adapter_ops *form; /* of resident blobs on a device; NULL: row-major */
    uint8_t model_id[32];
    const char *adapters_dir;            /* where published adapters are kept: <id hex>/ */
    const char *root[PUBLISH_ROOTS_MAX]; /* allow-list for load_lora_adapter and --adapter-dir */
    uint32_t root_count;
    struct admit_limits limits;
    uint64_t publisher_bytes_max; /* all of one API key's */
    uint32_t adapters_max;        /* known at a time */
    const char *chat_text;        /* the base's template, or NULL */
    uint64_t chain_id;            /* of manifests; 0 accepts 0 only */
    uint8_t registry[20];
    struct book *book;            /* NULL: a lane without a chain */
    documents_ask_1271 *ask_1271; /* with book */
    void *ask_1271_arg;
};

struct publisher;
MUST_CHECK enum status publisher_create(struct publisher **out, const struct publish_options *opt,
                                        struct catalog *c, struct errtext *err);
void publisher_destroy(struct publisher *p);
/* The allow-list as it was found at the start: links in an adapter's folder may lead there too. */
const struct file_roots *publisher_roots(const struct publisher *p);

/* Register a directory under a name (start-up flags, vLLM's load route): path absolute and beneath
 * an allowed root, or trusted = true for the operator's own command line. A manifest (publish.json)
 * in the directory is honoured. */
MUST_CHECK enum status publisher_load_dir(struct publisher *p, const char *name, const char *path,
                                          bool trusted, bool replace, struct errtext *err);
/* Every sub-directory of dir that holds an adapter's config or weights, named as the directory. One
 * that cannot be registered is a refusal in the catalog and a line in the log, and the others are
 * served; strict: it is the error. Returns the number registered. */
MUST_CHECK enum status publisher_load_all(struct publisher *p, const char *dir, bool strict,
                                          uint32_t *count, struct errtext *err);
/* Adapters published earlier and kept in adapters_dir. */
MUST_CHECK enum status publisher_recover(struct publisher *p, uint32_t *count, struct errtext *err);

/* One upload: bytes are checked, stored under the content id (atomically), registered under name.
 * manifest: the publish manifest object of SPEC 6 with both signatures, or NULL where the policy
 * allows none. dry_run: check only. report: JSON {id, rank, modules, bytes, checks: [...], warning,
 * registered, ...} on success. config and tensors stay the caller's. */
struct publish_upload {
    const char *name;
    const char *key_name; /* API key, for quota and ownership of the name */
    uint64_t quota_bytes; /* of this key; 0: publisher_bytes_max */
    const char *config_json;
    size_t config_bytes;
    const char *tensors;
    size_t tensor_bytes;
    const json_t *manifest;
    const char *chat_template; /* the adapter's own, or NULL */
    const char *training; /* what it was trained on, checked (server/datanet/store.h), or NULL */
    size_t training_bytes;
    const uint8_t *training_root; /* the document root that it names, with training */
    uint8_t *id;                  /* [32], the content's, set on success */
    bool replace, dry_run;
};
MUST_CHECK enum status publisher_upload(struct publisher *p, const struct publish_upload *u,
                                        struct buf *report, struct errtext *err);
/* On a bound lane every document carries its owner's signature for this datanet, this Registry. */
MUST_CHECK enum status publisher_check_licences(const struct publisher *p,
                                                const uint8_t datanet_id[32],
                                                const struct documents *documents,
                                                struct errtext *err);
/* The name of a published adapter is gone: forget it on disk too, and the files once no other name
 * points to them. Does nothing for an operator's directory. */
void publisher_forget(struct publisher *p, const struct adapter_entry *e);

#endif
