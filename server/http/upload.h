/* Publishing over HTTP: bounded bodies are staged, then one call checks and registers them.
 *
 *   PUT  /v1/uploads/NAME/adapter_config.json
 *   PUT  /v1/uploads/NAME/adapter_model.safetensors
 *   PUT  /v1/uploads/NAME/training.json                  where there is one
 *   POST /v1/adapters {"name": NAME, "manifest": {...}, "replace": false, "dry_run": false}
 *
 * Staged bytes live in unnamed files (O_TMPFILE): nothing is left after a crash, no path is ever
 * made from a client's name. They belong to the API key that sent them, count against its quota,
 * and expire. Archives are never unpacked. Thread: any; one lock for the table, none while bytes
 * are written. */
#ifndef RS_HTTP_UPLOAD_H
#define RS_HTTP_UPLOAD_H

#include "server/http/exchange.h"
#include "server/http/multipart.h"
#include "server/train/file_store.h"

#include <pthread.h>

#define UPLOADS_MAX             128
#define UPLOADS_PER_KEY_MAX     16
#define UPLOAD_CONFIG_BYTES_MAX PEFT_CONFIG_BYTES_MAX
#define UPLOAD_TTL_NS           (3600ull * 1000000000)

enum upload_part { UPLOAD_CONFIG, UPLOAD_TENSORS, UPLOAD_TRAINING, UPLOAD_PART_COUNT };

/* A file in a form, and what stands around it. */
#define UPLOAD_FORM_BYTES_MAX (FILE_STORE_BYTES_MAX + (64u << 10))

/* One body on its way in. Owned by its exchange until it is stored. */
struct upload {
    enum upload_part part;
    char name[CATALOG_NAME_MAX + 1];
    int fd;
    uint64_t bytes;
    char boundary[MULTIPART_BOUNDARY_MAX + 1]; /* of a form */
};

struct upload_slot { /* staged bodies of one (key, name) */
    bool used, busy; /* busy: being published */
    uint64_t fair_key;
    char name[CATALOG_NAME_MAX + 1];
    int fd[UPLOAD_PART_COUNT]; /* -1: absent */
    uint64_t bytes[UPLOAD_PART_COUNT];
    uint64_t touched_ns;
};

struct uploads {
    pthread_mutex_t lock;
    struct upload_slot slot[UPLOADS_MAX];
};

void uploads_init(struct uploads *u);
void uploads_fini(struct uploads *u);
/* From the headers: open the staging file, or leave a refusal in x. */
void upload_stage(struct exchange *x);
/* The same for one text, which its handler takes out of x->upload. */
void upload_stage_text(struct exchange *x);
/* The same of a form; content_type: the header, or NULL. */
void upload_stage_form(struct exchange *x, const char *content_type);
void upload_write(struct exchange *x, const char *data, size_t len);
/* Most bytes this body may have. */
uint64_t upload_bytes_max(const struct exchange *x);
/* Drop a body that was never stored. */
void uploads_detach(struct exchange *x);

#endif
