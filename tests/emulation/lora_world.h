/* A model's width, a handful of adapters and a batch, on kernels/ref and on the emulated device:
 * the tests of shrink and of the finishes run every op of a layer on both and compare.
 *
 * Use       lw_open -> lw_segment ... -> lw_run_ref / lw_run_cuda -> compare
 * A run of the rows t0 .. t0+n-1 is a step of its own: other rows, segments and launches are not
 * there, so that a row alone can be held against the same row in a batch. */
#ifndef RS_TESTS_EMULATION_LORA_WORLD_H
#define RS_TESTS_EMULATION_LORA_WORLD_H

#include "kernels/cuda/lora_pack.h"
#include "tests/emulation/fixture.h"

#define LW_LAYERS  2
#define LW_SLOTS   6
#define LW_LAYOUTS 3
#define LW_SEGS    64

struct lw_shape {
    uint32_t n_head, n_kv, d_head, d_model, d_ff;
};

enum lw_tensor { /* what a run leaves, by rows */
                 LW_AX_QKV,
                 LW_AX_O,
                 LW_AX_MLP,
                 LW_AX_DOWN,
                 LW_Q,
                 LW_K,
                 LW_V,
                 LW_H,
                 LW_MLP,
                 LW_GATE,
                 LW_UP,
                 LW_TENSORS
};
extern const char *const lw_names[LW_TENSORS];

struct lw_out {
    float *t[LW_TENSORS]; /* [n][width] */
    float *kv;            /* the whole cache, or NULL */
    double *norm2;        /* [n][2] */
    uint32_t n;
};

struct lw {
    struct ec e;
    struct lw_shape shape;
    struct lora_dims dims;
    uint32_t rows_max, n_tok, n_seg;
    uint32_t x_stride, y_stride, s_stride, pos_max, pages, n_page, layer;
    bool has_bias, has_norm, has_table; /* table: false, no adapters exist */
    bool decodes;                       /* of segments to come: each row is a sequence's only one */
    bool telemetry, keep, read_kv;
    struct lora_entry entry[LW_LAYOUTS][LW_LAYERS * LORA_MODULE_COUNT];
    struct lora_entry packed[LW_LAYOUTS][LW_LAYERS * LORA_MODULE_COUNT];
    struct lora_layout layout[LW_LAYOUTS], packed_layout[LW_LAYOUTS];
    struct lora_slot slot[LW_SLOTS], packed_slot[LW_SLOTS]; /* host row-major; device packed */
    struct lora_table table, packed_table;
    struct lora_seg seg[LW_SEGS];
    float *x, *y, *h, *bias, *gain, *cos, *sin; /* host */
    void *dx;
    float *dy, *dbias, *dgain, *dcos, *dsin; /* the same on the device */
    uint32_t *pos, *seq, *page_table;
    uint16_t *kv_host;
    void *kv_dev;
};

/* rank(layout, layer, module): what every entry has. sm_count of the device to pretend. */
typedef uint32_t lw_rank_fn(uint32_t layout, uint32_t layer, uint32_t module);
uint32_t lw_rank_mixed(uint32_t layout, uint32_t layer, uint32_t module);
void lw_open(struct lw *w, const struct lw_shape *shape, uint32_t rows_max, lw_rank_fn *rank);
void lw_close(struct lw *w);

/* Rows more, of one composition: slots first .. first+parts-1, weights random; parts 0: base. They
 * are prompts of at most 40 rows, or they decode. */
void lw_segment(struct lw *w, uint32_t rows, uint32_t first, uint32_t parts);
void lw_clear(struct lw *w);

uint32_t lw_width(const struct lw *w, enum lw_tensor t);
size_t lw_kv_elems(const struct lw *w);
void lw_run_ref(struct lw *w, struct lw_out *out);
/* pad: rows launched beyond n; they must stay as they were. The cache is kept between runs. */
void lw_run_cuda(struct lw *w, uint32_t t0, uint32_t n, uint32_t pad, struct lw_out *out);
void lw_cache_reset(struct lw *w);
void lw_free(struct lw_out *out);

/* got ~ want by norm, NaN where NaN. */
void lw_near(const struct lw *w, const struct lw_out *got, const struct lw_out *want);
/* Rows of part, which begin at row t0 of all, have the same bits. */
void lw_same_bits(const struct lw *w, const struct lw_out *part, const struct lw_out *all,
                  uint32_t t0);

#endif
