/* One layer's worth of a step: rows with sequences, pages, segments and buffers, and the op calls
 * of each family on them, so that modes of bench_cuda differ in what they record only. */
#ifndef RS_TESTS_GPU_BENCH_CELL_H
#define RS_TESTS_GPU_BENCH_CELL_H

#include "tests/gpu/bench_rig.h"

#define PAGE_TOK 16

struct cell {
    struct rig *rig;
    struct adapters *adapters; /* NULL: no adapters */
    uint32_t n_tok, n_seq, context, copies, mark;
    /* host */
    int32_t *ids;
    uint32_t *seq, *pos, *page, *out_rows;
    struct lora_seg *seg;
    uint32_t n_seg, page_stride;
    /* device */
    void *x, *act, *q, *attn, *s, *w;
    float *y, *h;
    struct rope_table rope;
    struct kv_cache kv;
    size_t kv_bytes_layer;
    enum group group;
    struct group_dims dims;
};

/* kv_layers 0: all layers share one (it is written, not read). False: does not fit. The segments
 * give each adapter an equal share of the rows. With adapters the backend is prepared for this cell
 * (its layers are the copies); without, rig_prepare must have been. */
struct cell_options {
    uint32_t n_tok, n_seq, context, copies, kv_layers;
    enum group group; /* GROUP_COUNT: none, x is d_model wide */
    struct adapters *adapters;
};
bool cell_open(struct cell *c, struct rig *r, const struct cell_options *opt);
void cell_close(struct cell *c);
/* Uploads the tables; with_adapters false: every row is base only. */
void cell_step(struct cell *c, bool with_adapters);

enum status cell_shrink(void *cell, uint32_t layer);
enum status cell_finish(void *cell, uint32_t layer);
enum status cell_pair(void *cell, uint32_t layer);
enum status cell_gemm(void *cell, uint32_t layer); /* weights of layer in c->w */
enum status cell_attention(void *cell, uint32_t layer);

#endif
