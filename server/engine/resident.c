/* The base's weights where the ops compute: on a CPU the mapped files themselves, with packed
 * copies of the matrices beside them where the backend reads such faster; on a device one block,
 * filled by one walk. The same walk without a target only counts, so the plan's line and the copy
 * cannot disagree. Matrices that one product reads together (q, k, v; gate, up) lie one behind
 * the other. */
#include "server/engine/resident.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"

#include <inttypes.h>

#define BLOCK_ALIGN 256
#define ROW_ALIGN   16
#define PIECE_BYTES ((uint64_t)64 << 20) /* between two looks at the clock */
#define REPORT_NS   2000000000u

struct resident {
    struct model model;        /* borrows all but layer */
    struct model_layer *layer; /* NULL: the model's own */
    void *own;                 /* packed copies that are its own */
    uint64_t own_bytes;
};

/* One walk over the weights serves the sum of their bytes and the upload. */
struct resident_walk {
    struct backend *b; /* NULL: only count */
    char *block;
    uint64_t at, total;
    uint64_t reported_ns;
    enum status st;
};

static void report(struct resident_walk *w, uint64_t done)
{
    uint64_t now = clock_mono_ns();
    if (now - w->reported_ns < REPORT_NS)
        return;
    w->reported_ns = now;
    log_info("engine", "base to the device: %" PRIu64 " of %" PRIu64 " MiB", done >> 20,
             w->total >> 20);
}

static const void *put(struct resident_walk *w, const void *data, uint64_t bytes, uint64_t align)
{
    if (!data)
        return NULL;
    w->at = (w->at + align - 1) / align * align;
    char *to = w->block + w->at;
    for (uint64_t done = 0; w->b && !w->st && done < bytes; done += PIECE_BYTES) {
        uint64_t n = bytes - done < PIECE_BYTES ? bytes - done : PIECE_BYTES;
        w->st = w->b->ops->mem_write(w->b, to + done, (const char *)data + done, (size_t)n);
        report(w, w->at + done + n);
    }
    w->at += bytes;
    return w->b ? to : data;
}

static void put_weight(struct resident_walk *w, struct weight *m, uint64_t align)
{
    m->data = put(w, m->data, (uint64_t)m->d_out * m->d_in * dtype_bytes(m->dtype), align);
}

static void put_vector(struct resident_walk *w, const float **v, uint32_t n)
{
    *v = put(w, *v, (uint64_t)n * sizeof(float), BLOCK_ALIGN);
}

static void put_layer(struct resident_walk *w, const struct model_config *c, struct model_layer *l)
{
    put_vector(w, &l->attn_norm, c->d_model);
    put_vector(w, &l->mlp_norm, c->d_model);
    put_vector(w, &l->q_norm, c->d_head);
    put_vector(w, &l->k_norm, c->d_head);
    put_vector(w, &l->bias_q, l->q.d_out);
    put_vector(w, &l->bias_k, l->k.d_out);
    put_vector(w, &l->bias_v, l->v.d_out);
    put_vector(w, &l->bias_o, l->o.d_out);
    put_vector(w, &l->bias_gate, l->gate.d_out);
    put_vector(w, &l->bias_up, l->up.d_out);
    put_vector(w, &l->bias_down, l->down.d_out);
    put_weight(w, &l->q, BLOCK_ALIGN);
    put_weight(w, &l->k, ROW_ALIGN);
    put_weight(w, &l->v, ROW_ALIGN);
    put_weight(w, &l->o, BLOCK_ALIGN);
    put_weight(w, &l->gate, BLOCK_ALIGN);
    put_weight(w, &l->up, ROW_ALIGN);
    put_weight(w, &l->down, BLOCK_ALIGN);
}

/* layer: where the layers' new places are kept; NULL: nowhere. */
static void put_model(struct resident_walk *w, struct model *m, struct model_layer *layer)
{
    bool tied = m->lm_head.data == m->embed.data;
    put_weight(w, &m->embed, BLOCK_ALIGN);
    if (tied)
        m->lm_head = m->embed;
    else
        put_weight(w, &m->lm_head, BLOCK_ALIGN);
    put_vector(w, &m->final_norm, m->config.d_model);
    for (uint32_t i = 0; i < m->config.n_layer; i++) {
        struct model_layer l = m->layer[i];
        put_layer(w, &m->config, &l);
        if (layer)
            layer[i] = l;
    }
}

uint64_t resident_bytes(const struct model *m)
{
    struct resident_walk w = {0};
    struct model copy = *m;
    put_model(&w, &copy, NULL);
    return (w.at + BLOCK_ALIGN - 1) / BLOCK_ALIGN * BLOCK_ALIGN;
}

/* ---- packed copies ---- */

struct pack_walk {
    struct backend *b;
    char *block; /* NULL: only count */
    uint64_t at;
};

static void pack_weight(struct pack_walk *w, struct weight *m)
{
    size_t bytes = w->b->ops->pack_bytes(w->b, m);
    if (bytes > 0 && w->block) {
        w->b->ops->pack(w->b, w->block + w->at, m);
        m->packed = w->block + w->at;
    }
    w->at += bytes;
}

/* layer: where the layers' copies are kept; NULL: nowhere. */
static void pack_model(struct pack_walk *w, struct model *m, struct model_layer *layer)
{
    for (uint32_t i = 0; i < m->config.n_layer; i++) {
        struct model_layer l = m->layer[i];
        struct weight *each[] = {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down};
        for (size_t k = 0; k < ARRAY_COUNT(each); k++)
            pack_weight(w, each[k]);
        if (layer)
            layer[i] = l;
    }
    pack_weight(w, &m->lm_head);
}

uint64_t resident_packed_bytes(const struct model *m, struct backend *b)
{
    struct pack_walk w = {.b = b};
    struct model copy = *m;
    if (b->is_device || !b->ops->pack)
        return 0;
    pack_model(&w, &copy, NULL);
    return w.at;
}

static void pack(struct resident *r, const struct model *m, struct backend *b, void *block)
{
    uint64_t began = clock_mono_ns();
    struct pack_walk w = {.b = b, .block = block};
    r->layer = mem_array(m->config.n_layer, sizeof(*r->layer));
    pack_model(&w, &r->model, r->layer);
    r->model.layer = r->layer;
    log_info("engine", "base packed for products: %" PRIu64 " MiB in %" PRIu64 " ms", w.at >> 20,
             (clock_mono_ns() - began) / 1000000);
}

enum status resident_create(struct resident **out, const struct model *m, struct backend *b,
                            void *block, struct errtext *err)
{
    struct resident *r = mem_alloc(sizeof(*r));
    *out = NULL;
    r->model = *m;
    if (!b->is_device) {
        if (block)
            pack(r, m, b, block);
        *out = r;
        return STATUS_OK;
    }
    struct resident_walk w = {
        .b = b, .block = block, .total = resident_bytes(m), .reported_ns = clock_mono_ns()};
    r->layer = mem_array(m->config.n_layer, sizeof(*r->layer));
    put_model(&w, &r->model, r->layer);
    r->model.layer = r->layer;
    if (w.st) {
        resident_destroy(r);
        return err_set(err, w.st, "the base's weights: the device failed while they were copied");
    }
    *out = r;
    return STATUS_OK;
}

struct resident *resident_create_own(const struct model *m, struct backend *b)
{
    struct resident *r = mem_alloc(sizeof(*r));
    uint64_t need = resident_packed_bytes(m, b), most = mem_available_bytes() / 2;
    CHECK(!b->is_device);
    r->model = *m;
    if (need > most)
        log_warn("engine",
                 "base not packed for products: a copy needs %" PRIu64 " MiB, half of what is "
                 "available is %" PRIu64
                 " MiB; products read the mapped files, slower, same results",
                 need >> 20, most >> 20);
    else if (need > 0) {
        r->own = mem_alloc_aligned(need);
        r->own_bytes = need;
        pack(r, m, b, r->own);
    }
    return r;
}

const struct model *resident_model(const struct resident *r)
{
    return &r->model;
}

void resident_destroy(struct resident *r)
{
    if (!r)
        return;
    if (r->own)
        mem_free_aligned(r->own, r->own_bytes);
    mem_free(r->layer);
    mem_free(r);
}
