/* Published adapters on disk, so that a restart finds them:
 *
 *     <root>/<id hex>/adapter_config.json
 *                     adapter_model.safetensors
 *                     entry-<digest of the name>.json     one per name that points to this content
 *
 * Each file is written beside, synced and renamed. The entry is written last and removed first: a
 * folder without one is unfinished or forgotten, and is swept at the next start. What may be kept,
 * and whose a name is, is publish.h's to say. Thread: any; the caller lets one write at a time. */
#ifndef RS_ADAPTER_KEPT_H
#define RS_ADAPTER_KEPT_H

#include "server/base/errtext.h"
#include "server/base/file.h"

#include <dirent.h>
#include <jansson.h>
#include <limits.h>
#include <stddef.h>
#include <stdint.h>

#define KEPT_JSON_BYTES_MAX (64u << 20)

struct kept_name { /* what the catalog needs after a restart */
    const char *name, *publisher;
    int64_t created_unix;
    const json_t *manifest;    /* an object as it was uploaded, or NULL */
    const char *chat_template; /* its text, or NULL */
};

struct kept_files {
    const char *config_json, *tensors;
    size_t config_bytes, tensor_bytes;
};

void kept_dir(const char *root, const uint8_t id[32], char dir[PATH_MAX]);
/* files NULL: those of dir serve this name too. */
MUST_CHECK enum status kept_write(const char *dir, const struct kept_name *n,
                                  const struct kept_files *files, struct errtext *err);
/* One name of a kept folder; file as scandir found it with kept_is_name. What *n points to is
 * *root's, a reference the caller drops whatever was returned. */
MUST_CHECK enum status kept_read(struct kept_name *n, json_t **root, const char *dir,
                                 const char *file, struct errtext *err);
int kept_is_name(const struct dirent *d);
/* The name is gone; the files too once no other name points to them. */
void kept_forget(const char *root, const uint8_t id[32], const char *name);
/* Remove a kept folder that no name points to; any other stays. */
void kept_sweep(const char *dir);
/* A JSON file of dir, links as peft/folder.h follows them. *out NULL: there is none. */
MUST_CHECK enum status kept_read_json(json_t **out, const char *dir, const struct file_roots *roots,
                                      const char *name, struct errtext *err);

#endif
