/* The one admission of adapters: what a server asks at its start, of a load and of an upload, and
 * what `residual adapter check` asks before any of these. Thread: any. */
#ifndef RS_ADAPTER_ADMIT_H
#define RS_ADAPTER_ADMIT_H

#include "server/adapter/chat_own.h"
#include "server/adapter/manifest.h"
#include "server/adapter/peft/peft.h"

/* What a server that was told nothing else accepts: adapter_rank_max, adapter_bytes_max. */
#define ADMIT_RANK_MAX_STANDARD  128
#define ADMIT_BYTES_MAX_STANDARD (1ull << 30)

struct admit_limits {
    uint64_t bytes_max; /* of one adapter's safetensors */
    uint32_t rank_max;  /* of one module */
};

/* The ranks alone: for content that was admitted before, under limits that may have changed. */
MUST_CHECK enum status admit_ranks(const struct peft_adapter *a, const struct admit_limits *limits,
                                   struct errtext *err);
/* Ranks and values. The file's size is its reader's to check. */
MUST_CHECK enum status admit_adapter(const struct peft_adapter *a,
                                     const struct admit_limits *limits, struct errtext *err);

/* A folder and all that is honoured in it. */
struct admit_folder {
    struct peft_adapter a;
    struct manifest *manifest; /* publish.json and its datanet, or NULL */
    struct chat_own *chat;     /* its own template, or NULL */
};
/* Errors name the file. On errors there is nothing to free. */
MUST_CHECK enum status admit_folder_read(struct admit_folder *out, const char *dir,
                                         const struct file_roots *roots,
                                         const struct model_config *base,
                                         const struct admit_limits *limits, struct errtext *err);
void admit_folder_fini(struct admit_folder *f);

#endif
