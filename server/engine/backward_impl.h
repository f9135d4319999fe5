/* The state of a backward pass, shared by backward.c and backward_create.c. */
#ifndef RS_ENGINE_BACKWARD_IMPL_H
#define RS_ENGINE_BACKWARD_IMPL_H

#include "server/engine/backward.h"
#include "server/engine/kv.h"

struct backward {
    const struct model *model;
    struct backend *backend;
    struct forward *forward;
    struct forward_options fo;
    struct backward_options opt;
    struct forward_keep_layer *keep; /* [n_layer] */
    struct forward_keep_layer full;  /* with recompute: of the layer under way */
    float **input;                   /* with recompute: [n_layer] the layers' inputs */
    struct kv_cache kv;
    uint32_t *seq, *pos, *page_table, *rows; /* host */
    uint32_t page_stride, n_out;
    /* in the backend's memory */
    void *hidden, *drop;
    float *h, *rstd, *logits, *dh, *dn, *dy, *wide, *drop_dx, *ds, *weight, *logprob;
    int32_t *target;
    uint32_t *dev_rows, *dev_pos;
    float *host_weight, *host_logprob; /* [rows_max] of the rows with a target */
    int32_t *host_target;
    struct backward_batch batch;
    /* what comes next: forward layers, rows of the head, layers back */
    uint32_t forward_done, head_done, back_left;
    bool trains; /* a gradient is wanted */
};

/* Rows of a tile of the head; pages of the one layer's cache. */
uint32_t backward_head_rows(const struct model_config *c, const struct forward_options *fo,
                            const struct backward_options *opt);
uint32_t backward_pages(const struct forward_options *fo);

#endif
