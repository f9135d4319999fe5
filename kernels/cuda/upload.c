/* Adapters on their way to the device: a stream of their own, whose copies run beside the ops of
 * the other. A copy begins after the ops given before it, since they may still read what lies in
 * its place, and goes in pieces, so that what the ops copy gets between. Each lane has an event
 * behind its last piece; the host looks whether it has come by and never waits. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/lora_pack.h"
#include "kernels/cuda/tables.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#define PIECE_BYTES ((size_t)4 << 20)

struct cuda_uploads {
    void *stream;
    void *before;                       /* event: the ops given so far */
    void *landed[BACKEND_UPLOAD_LANES]; /* events */
};

enum status cuda_uploads_create(struct cuda_backend *c, struct errtext *err)
{
    struct cuda_uploads *u = c->uploads = mem_alloc(sizeof(*u));
    enum status st = gpu_stream_create(&u->stream, false);
    if (!st)
        st = gpu_event_create(&u->before, false);
    for (uint32_t i = 0; i < BACKEND_UPLOAD_LANES && !st; i++)
        st = gpu_event_create(&u->landed[i], false);
    return st ? err_set(err, st, "backend \"cuda\": the device gives no stream for copies") : st;
}

void cuda_uploads_release(struct cuda_backend *c)
{
    struct cuda_uploads *u = c->uploads;
    if (!u)
        return;
    (void)gpu_stream_sync(u->stream);
    for (uint32_t i = 0; i < BACKEND_UPLOAD_LANES; i++)
        gpu_event_destroy(u->landed[i]);
    gpu_event_destroy(u->before);
    gpu_stream_destroy(u->stream);
    mem_free(u);
    c->uploads = NULL;
}

static enum status lane_begin(struct backend *b, uint32_t lane, void *to, const void *pinned,
                              size_t bytes)
{
    struct cuda_backend *c = cuda_of(b);
    struct cuda_uploads *u = c->uploads;
    CHECK(lane < BACKEND_UPLOAD_LANES);
    enum status st = gpu_event_record(u->before, c->stream);
    if (!st)
        st = gpu_stream_wait(u->stream, u->before);
    for (size_t at = 0; at < bytes && !st; at += PIECE_BYTES)
        st = gpu_copy_in(u->stream, (char *)to + at, (const char *)pinned + at,
                         MIN(PIECE_BYTES, bytes - at));
    return st ? st : gpu_event_record(u->landed[lane], u->stream);
}

static enum status lane_poll(struct backend *b, uint32_t lane, bool *done)
{
    CHECK(lane < BACKEND_UPLOAD_LANES);
    return gpu_event_poll(cuda_of(b)->uploads->landed[lane], done);
}

const struct backend_adapter_ops cuda_adapter_ops = {
    .layout = lora_pack_layout,
    .pack = lora_pack_blob,
    .train_up = lora_train_up,
    .train_down = lora_train_down,
    .pinned_alloc = gpu_pinned_alloc,
    .pinned_free = gpu_pinned_free,
    .upload_begin = lane_begin,
    .upload_poll = lane_poll,
};
