/* A PEFT adapter directory as `peft` saves it -> checked facts, and then a packed blob for the
 * device. Fail-closed: what we cannot honour is refused by name (config field, tensor, found,
 * expected). Tensor shapes are the truth; the config supplies alpha, patterns and flags. Bytes are
 * read into owned memory, never mapped. Thread: loader or HTTP; no shared state. */
#ifndef RS_ADAPTER_PEFT_PEFT_H
#define RS_ADAPTER_PEFT_PEFT_H

#include "kernels/args.h"
#include "server/adapter/peft/folder.h"
#include "server/adapter/peft/seal.h"
#include "server/model/config.h"
#include "server/model/safetensors.h"

#define PEFT_CONFIG_BYTES_MAX (1u << 20)
#define PEFT_HEADER_BYTES_MAX (1u << 20)
#define PEFT_PATH_BYTES       64

struct peft_module {  /* one adapted (layer, module) */
    const char *path; /* "model.layers.0.self_attn.q_proj" */
    uint32_t layer;
    enum lora_module module;
    uint32_t rank;
    double scale;
    const struct st_tensor *a, *b; /* A [rank, d_in], B [d_out, rank] in the file */
};

struct peft_adapter {
    char *config_json; /* as read */
    size_t config_bytes;
    char *tensor_bytes; /* the whole safetensors file, owned */
    size_t tensor_file_bytes;
    struct st_file tensors;
    char (*path)[PEFT_PATH_BYTES]; /* [n_layer][LORA_MODULE_COUNT], of the base */
    struct peft_module *module;    /* in bytewise order of their paths */
    uint32_t module_count;
    uint32_t rank_max;
    uint8_t id[32];    /* adapterId, SPEC 1 */
    struct seal seal;  /* of the directory that id was computed from, if it may be trusted */
    char *base_name;   /* base_model_name_or_path: a claim, or NULL */
    char warning[256]; /* what a listing should say, or "" */
};

/* From a directory (links as folder.h follows them), or from two byte blocks (ownership passes on
 * success only). */
MUST_CHECK enum status peft_read_dir(struct peft_adapter *out, const char *dir,
                                     const struct file_roots *roots,
                                     const struct model_config *base, uint64_t bytes_max,
                                     struct errtext *err);
MUST_CHECK enum status peft_from_bytes(struct peft_adapter *out, char *config_json,
                                       size_t config_bytes, char *tensors, size_t tensor_bytes,
                                       const struct model_config *base, struct errtext *err);
/* Facts alone, of the first bytes of a file: no tensor bytes, no id; owns neither block. */
struct peft_head {
    const char *config_json, *tensors; /* tensors: the length prefix and the header, or more */
    size_t config_bytes, tensor_bytes;
    uint64_t file_bytes;
};
MUST_CHECK enum status peft_from_head(struct peft_adapter *out, const struct peft_head *head,
                                      const struct model_config *base, struct errtext *err);
void peft_fini(struct peft_adapter *a);

/* Admission beyond shapes: every value finite, not all B zero ("adapter would change nothing").
 * Errors name the tensor and index. */
MUST_CHECK enum status peft_check_values(const struct peft_adapter *a, struct errtext *err);

/* Where the matrices of an entry's rank stand in a blob, behind *at: 64-byte aligned, A first. */
void peft_place(struct lora_entry *e, uint64_t *at, uint64_t d_in, uint64_t d_out,
                enum dtype dtype);
/* Device form: layout entries [n_layer][LORA_MODULE_COUNT] and the blob (A as stored, B transposed,
 * converted to dtype). blob: blob_bytes bytes, 64-byte aligned, every one of which is written. */
void peft_layout(const struct peft_adapter *a, uint32_t n_layer, enum dtype dtype,
                 struct lora_entry *entry, uint64_t *blob_bytes);
void peft_pack(const struct peft_adapter *a, uint32_t n_layer, enum dtype dtype,
               const struct lora_entry *entry, void *blob);

#endif
