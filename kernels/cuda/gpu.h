/* The host's side of one GPU, free of CUDA types: the device and its properties, one arena of
 * device memory, pinned host memory, streams, events, recorded graphs. Errors become enum status at
 * once; the first of a kind is logged with the call that met it. After STATUS_IO the device is lost
 * for this process.
 *
 * Use       gpu_open -> gpu_alloc ... launches on gpu_stream ... -> gpu_close
 * Thread    any for copies on a stream of one's own and for pinned memory; else the engine's. */
#ifndef RS_KERNELS_CUDA_GPU_H
#define RS_KERNELS_CUDA_GPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#include "server/base/errtext.h"

struct gpu;

struct gpu_properties {
    char name[64];
    uint32_t sm_count, cc_major, cc_minor;
    uint64_t bytes_total, bytes_free; /* of the device, before the arena was taken */
    uint64_t arena_bytes;
    uint32_t smem_bytes_max; /* dynamic shared memory of a block */
};

#define GPU_CC_MIN 90 /* what the kernels are compiled for: sm_90 */

struct gpu_arena {
    uint64_t bytes;   /* 0: percent */
    uint32_t percent; /* of the free memory */
    bool background;  /* its stream yields to those of others */
};
/* Errors: UNSUPPORTED no device, a driver older than the runtime, compute capability below 9.0;
 * TOO_LARGE more than the device has free. Each says what was found and what to change. */
MUST_CHECK enum status gpu_open(struct gpu **out, uint32_t device, const struct gpu_arena *arena,
                                struct errtext *err);
void gpu_close(struct gpu *g);
/* A gpu of arena_bytes without a device: memory is counted and never touched, work vanishes. It
 * belongs to the thread that opens it, whose other calls of this header count too until gpu_close;
 * opened inside another's life it leaves that one as it is. */
MUST_CHECK enum status gpu_open_counting(struct gpu **out, uint64_t arena_bytes,
                                         struct errtext *err);
/* Page-locked memory that this thread has asked for since gpu_open_counting, with what gpu_open
 * takes. */
uint64_t gpu_pinned_counted(const struct gpu *g);
const struct gpu_properties *gpu_properties(const struct gpu *g);

/* The calling thread launches on g from now on: each thread once, the one that opened it has. */
enum status gpu_use(const struct gpu *g);
/* Kernels that take more shared memory than the 48 KB that all may have. Once for a device; a
 * launch that was not allowed fails. */
struct gpu_smem {
    const void *kernel;
    size_t bytes;
};
enum status gpu_smem_allow(const struct gpu_smem *list, size_t count);

/* A device error as a status; code is a cudaError_t. */
enum status gpu_status(int code, const char *what);
/* What the last call of this thread that failed said. */
const char *gpu_reason(void);
/* After LAUNCH: whether the launches of this thread so far were accepted. */
enum status gpu_launched(const char *what);

/* ---- memory ---- */

/* From the arena: first fit, 256-byte aligned, contents undefined. NULL: no such run is free. */
void *gpu_alloc(struct gpu *g, size_t bytes);
void gpu_free(struct gpu *g, void *p);
uint64_t gpu_bytes_free(const struct gpu *g);

/* Page-locked host memory, not counted against the arena. NULL: the system refused. */
void *gpu_pinned_alloc(size_t bytes);
void gpu_pinned_free(void *p);

/* Copies in stream order; host must be pinned and stay as it is until the stream has come by. */
enum status gpu_copy_in(void *stream, void *dev, const void *pinned, size_t bytes);
enum status gpu_copy_out(void *stream, void *pinned, const void *dev, size_t bytes);
enum status gpu_copy_within(void *stream, void *to, const void *from, size_t bytes);
enum status gpu_fill(void *stream, void *dev, uint8_t byte, size_t bytes);

/* Any host memory, through the gpu's own staging; these wait. Engine thread. */
enum status gpu_write(struct gpu *g, void *dev, const void *host, size_t bytes);
enum status gpu_read(struct gpu *g, void *host, const void *dev, size_t bytes);

/* ---- order ---- */

void *gpu_stream(const struct gpu *g); /* the one that ops run on */
/* background: the device takes up its work where no other stream has any. */
enum status gpu_stream_create(void **stream, bool background);
void gpu_stream_destroy(void *stream);
enum status gpu_stream_sync(void *stream);
/* Work given to `stream` from now on waits for the event. */
enum status gpu_stream_wait(void *stream, void *event);

enum status gpu_event_create(void **event, bool timed);
void gpu_event_destroy(void *event);
enum status gpu_event_record(void *event, void *stream);
enum status gpu_event_sync(void *event);
/* *done: the event has come by. */
enum status gpu_event_poll(void *event, bool *done);
enum status gpu_event_ms(float *ms, void *from, void *to);

/* ---- graphs ---- */

/* A failure of these two leaves no error behind: the stream takes work as before. */
enum status gpu_capture_begin(void *stream);
/* The work given to the stream since then, not run. On failure *graph is NULL. */
enum status gpu_capture_end(void *stream, void **graph);
enum status gpu_graph_launch(void *graph, void *stream);
void gpu_graph_destroy(void *graph);

#ifdef __cplusplus
}
#endif

#endif
