/* A base model directory (HF layout): config.json, generation_config.json, *.safetensors (+ index),
 * tokenizer.json, tokenizer_config.json, chat template, loaded once at start and const afterwards.
 * Weights stay mapped where the stored dtype is what we compute in, else they are converted into
 * owned memory. Thread: load on one thread; then any (read only). */
#ifndef RS_MODEL_MODEL_H
#define RS_MODEL_MODEL_H

#include "kernels/args.h"
#include "server/model/config.h"
#include "server/text/chat.h"
#include "server/text/tokenizer.h"

struct model_layer {
    const float *attn_norm, *mlp_norm; /* [d_model] f32 */
    const float *q_norm, *k_norm;      /* [d_head] or NULL */
    const float *bias_q, *bias_k, *bias_v, *bias_o, *bias_gate, *bias_up,
        *bias_down; /* f32 or NULL */
    struct weight q, k, v, o, gate, up, down;
};

/* A special token by its name: "bos_token" is "<s>". */
struct model_special {
    char *name, *text;
};

struct model {
    struct model_config config;
    enum dtype dtype; /* what products are computed in: F32 or BF16 */
    struct weight embed, lm_head;
    const float *final_norm;
    struct model_layer *layer; /* [n_layer] */
    struct tokenizer *tokenizer;
    struct chat_template *chat;       /* NULL: chat requests are refused by name */
    char *chat_refusal;               /* why the template there is cannot be used, or NULL */
    struct chat_template *chat_tools; /* the named tool_use template, or NULL */
    char *chat_text;                  /* the default template's text, or NULL */
    char *tokenizer_info;             /* tokenizer_config.json as GET /tokenizer_info shows it */
    struct model_special *special;    /* as templates get them */
    size_t special_count;
    bool add_bos;                 /* tokenizer adds BOS by itself (post-processor) */
    uint8_t id[32];               /* modelId, SPEC 1 */
    uint8_t tokenizer_digest[32]; /* BLAKE2b-256 of tokenizer.json */
    uint64_t weight_bytes;        /* bytes a decode step reads */
    struct model_store *store;    /* mappings and owned memory */
};

enum dtype_choice { DTYPE_CHOICE_AUTO, DTYPE_CHOICE_F32, DTYPE_CHOICE_BF16 };

struct model_options {
    enum dtype_choice dtype;
    bool cpu_has_bf16; /* what auto asks */
    bool strict;       /* refuse a chat template that cannot be used, instead of serving no chat */
    /* called with done/total bytes while loading and digesting; may be NULL */
    void (*progress)(void *arg, const char *what, uint64_t done, uint64_t total);
    void *progress_arg;
    const char *id_cache_dir; /* where the modelId is cached by size, mtime, inode; NULL: beside the
                                 model if writable; "": not at all */
};

MUST_CHECK enum status model_load(struct model **out, const char *dir,
                                  const struct model_options *opt, struct errtext *err);
void model_free(struct model *m);
/* The text of the special token of that name, or NULL. */
const char *model_special_text(const struct model *m, const char *name);

#endif
