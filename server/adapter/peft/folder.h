/* The files of an adapter's folder, which may be links: huggingface_hub keeps a snapshot as
 *
 *     models--ORG--NAME/snapshots/REVISION/adapter_config.json -> ../../blobs/DIGEST
 *
 * A link is followed when it leads to a regular file beneath the folder itself, beneath the cache
 * repository (models--ORG--NAME as a whole) that the folder is a snapshot of, or beneath a root
 * that the operator allows. Thread: any. */
#ifndef RS_ADAPTER_PEFT_FOLDER_H
#define RS_ADAPTER_PEFT_FOLDER_H

#include "server/base/file.h"

/* roots: the operator's, or NULL. At most FILE_ROOTS_MAX - 1. Errors: as file_open_within;
 * NOT_FOUND for the folder too. */
MUST_CHECK enum status peft_folder_open(const char *dir, const struct file_roots *roots,
                                        const char *name, int *fd, struct errtext *err);

#endif
