/* See pass_device.h. The room is one block, given out from its beginning, anew for each pass. */
#include "server/train/pass_device.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <inttypes.h>

#define ALIGN_BYTES 256
#define SPARE_BYTES ((uint64_t)64 << 10) /* what an allocation may take beside its bytes */

struct place {
    const struct train_lora *lora;
    struct lora_entry *packed; /* [n_layer][LORA_MODULE_COUNT] */
    uint64_t bytes, at;        /* of the packed weights; where in the room they are */
};

struct pass_device {
    struct backend *backend;
    struct lora_dims dims;
    char *room;
    uint64_t room_bytes, used;
    struct place *place; /* [adapters_max] */
    uint32_t n, adapters_max;
};

static struct lora_dims dims_of(const struct model_config *c)
{
    struct lora_dims dims = {.n_layer = c->n_layer};
    for (uint32_t m = 0; m < LORA_MODULE_COUNT; m++)
        model_module_shape(c, (enum lora_module)m, &dims.d_out[m], &dims.d_in[m]);
    return dims;
}

enum status pass_device_create(struct pass_device **out, struct backend *b,
                               const struct model_config *c, uint32_t adapters_max,
                               struct errtext *err)
{
    uint64_t total, left;
    *out = NULL;
    if (!b->is_device)
        return STATUS_OK;
    struct pass_device *d = mem_alloc(sizeof(*d));
    d->backend = b;
    d->adapters_max = adapters_max;
    d->place = mem_array(adapters_max, sizeof(*d->place));
    d->dims = dims_of(c);
    for (uint32_t i = 0; i < adapters_max; i++)
        d->place[i].packed =
            mem_array((size_t)c->n_layer * LORA_MODULE_COUNT, sizeof(struct lora_entry));
    b->ops->mem_room(b, &total, &left);
    d->room_bytes = left > SPARE_BYTES ? left - SPARE_BYTES : 0;
    d->room = d->room_bytes ? b->ops->mem_alloc(b, d->room_bytes) : NULL;
    if (d->room) {
        *out = d;
        return STATUS_OK;
    }
    pass_device_free(d);
    return err_set(err, STATUS_NO_MEMORY,
                   "training: passes leave %" PRIu64 " of %" PRIu64 " bytes of the device's memory "
                   "to adapters; raise train_bytes_max or lower train_tokens",
                   left, total);
}

void pass_device_free(struct pass_device *d)
{
    if (!d)
        return;
    d->backend->ops->mem_free(d->backend, d->room, d->room_bytes);
    for (uint32_t i = 0; i < d->adapters_max; i++)
        mem_free(d->place[i].packed);
    mem_free(d->place);
    mem_free(d);
}

static uint64_t align_up(uint64_t n)
{
    return (n + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
}

/* Weights of 2 bytes each, then as many gradients of 4. */
static uint64_t place_bytes(uint64_t packed_bytes)
{
    return align_up(packed_bytes) + align_up(2 * packed_bytes);
}

uint64_t pass_device_bytes(const struct backend *b, const struct model_config *c,
                           const struct train_lora *lora)
{
    const struct lora_dims dims = dims_of(c);
    struct lora_entry *packed = mem_array((size_t)c->n_layer * LORA_MODULE_COUNT, sizeof(*packed));
    uint64_t bytes = b->ops->adapters->layout(packed, lora->entry, &dims);
    mem_free(packed);
    return place_bytes(bytes);
}

bool pass_device_take(struct pass_device *d, const struct train_lora *lora)
{
    CHECK(d->n < d->adapters_max);
    struct place *p = &d->place[d->n];
    p->lora = lora;
    p->bytes = d->backend->ops->adapters->layout(p->packed, lora->entry, &d->dims);
    p->at = d->used;
    if (place_bytes(p->bytes) > d->room_bytes - d->used)
        return false;
    d->used += place_bytes(p->bytes);
    d->n++;
    return true;
}

static struct lora_train_form form_of(const struct pass_device *d, const struct place *p)
{
    return (struct lora_train_form){.entry = p->lora->entry,
                                    .packed = p->packed,
                                    .dims = &d->dims,
                                    .weights = p->lora->blob,
                                    .packed_bytes = p->bytes};
}

static float *grad_of(const struct pass_device *d, const struct place *p)
{
    return (float *)(void *)(d->room + p->at + align_up(p->bytes));
}

enum status pass_device_up(struct pass_device *d, uint32_t i, const float *grad,
                           const struct pass_device_at *at)
{
    const struct backend_ops *ops = d->backend->ops;
    const struct place *p = &d->place[i];
    struct lora_train_form f = form_of(d, p);
    char *up = mem_try_array(3 * p->bytes, 1);
    if (!up)
        return STATUS_NO_MEMORY;
    f.packed_weights = (uint16_t *)(void *)up;
    f.packed_grad = grad ? (float *)(void *)(up + p->bytes) : NULL;
    ops->adapters->train_up(&f, grad);
    enum status st = ops->mem_write(d->backend, d->room + p->at, up, p->bytes);
    if (!st && grad)
        st = ops->mem_write(d->backend, grad_of(d, p), f.packed_grad, 2 * p->bytes);
    mem_free(up);
    *at->slot = (struct lora_slot){.blob = d->room + p->at, .layout = i};
    *at->layout = (struct lora_layout){.entry = p->packed, .blob_bytes = p->bytes};
    *at->grad = grad ? grad_of(d, p) : NULL;
    return st;
}

enum status pass_device_down(struct pass_device *d, uint32_t i, float *grad)
{
    const struct place *p = &d->place[i];
    struct lora_train_form f = form_of(d, p);
    f.packed_grad = mem_try_array(p->bytes / 2, sizeof(float));
    if (!f.packed_grad)
        return STATUS_NO_MEMORY;
    enum status st =
        d->backend->ops->mem_read(d->backend, f.packed_grad, grad_of(d, p), 2 * p->bytes);
    if (!st)
        d->backend->ops->adapters->train_down(&f, grad);
    mem_free(f.packed_grad);
    return st;
}

void pass_device_clear(struct pass_device *d)
{
    d->n = 0;
    d->used = 0;
}
