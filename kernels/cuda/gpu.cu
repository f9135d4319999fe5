/* The arena is one cudaMalloc with a table of runs in address order, first fit,
 * neighbours joined when freed: allocations happen at start and when an adapter moves, a few
 * hundred in all. Under emulation runs keep a gap between them that the sanitizer guards. */
#include "kernels/cuda/gpu.h"

#include <cuda_runtime.h>
#include <stdio.h>
#include <string.h>

extern "C" {
#include "server/base/mem.h"
}

#ifdef RS_EMULATION
#include RS_EMULATION
#define GUARD_BYTES         256
#define GUARD_RUN(p, bytes) emu_guard(p, bytes) /* of nobody */
#define OPEN_RUN(p, bytes)  emu_open(p, bytes)  /* garbage, may be used */
#else
#define GUARD_BYTES         0
#define GUARD_RUN(p, bytes) ((void)0)
#define OPEN_RUN(p, bytes)  ((void)0)
#endif

#define RUNS_MAX      8192
#define ALIGN_BYTES   256
#define STAGING_BYTES ((size_t)4 << 20)

struct arena_run {
    size_t at, bytes; /* of the arena, gap included */
    bool used;
};

/* Of this thread: how many counting gpus are open. */
static __thread uint32_t counting;
static __thread uint64_t counted_pinned; /* bytes asked for meanwhile, ever growing */

struct gpu {
    struct gpu_properties prop;
    uint32_t device;
    bool is_counting;
    uint64_t pinned_before; /* counted_pinned when it was opened */
    char *arena;
    struct arena_run *run; /* [RUNS_MAX], ascending, without holes */
    uint32_t run_count;
    uint64_t bytes_free;
    void *stream;
    char *staging; /* pinned */
};

/* ---- errors ---- */

static __thread int last_code;

const char *gpu_reason(void)
{
    return cudaGetErrorString((cudaError_t)last_code);
}

enum status gpu_status(int code, const char *what)
{
    static bool logged;
    if (code == cudaSuccess)
        return STATUS_OK;
    last_code = code;
    if (code == cudaErrorMemoryAllocation)
        return STATUS_NO_MEMORY;
    if (!logged) {
        logged = true;
        fprintf(stderr, "gpu: %s: %s (%s)\n", what, cudaGetErrorString((cudaError_t)code),
                cudaGetErrorName((cudaError_t)code));
    }
    return STATUS_IO;
}

enum status gpu_launched(const char *what)
{
    return gpu_status(cudaGetLastError(), what);
}

static enum status no_device(cudaError_t code, int count, uint32_t device, struct errtext *err)
{
    int driver = 0, runtime = 0;
    (void)cudaDriverGetVersion(&driver);
    (void)cudaRuntimeGetVersion(&runtime);
    (void)cudaGetLastError();
    if (driver == 0)
        return err_param(err, STATUS_UNSUPPORTED, "backend",
                         "backend \"cuda\": no NVIDIA driver is loaded here; install one for CUDA "
                         "%d.%d, or set \"backend\": \"cpu\"",
                         runtime / 1000, runtime % 1000 / 10);
    if (code == cudaErrorInsufficientDriver || driver < runtime / 1000 * 1000)
        return err_param(err, STATUS_UNSUPPORTED, "backend",
                         "backend \"cuda\": the driver is for CUDA %d.%d, this build needs %d.%d; "
                         "update the NVIDIA driver, or set \"backend\": \"cpu\"",
                         driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    if (code == cudaErrorNoDevice || count == 0)
        return err_param(err, STATUS_UNSUPPORTED, "backend",
                         "backend \"cuda\": the driver finds no device; check nvidia-smi and "
                         "CUDA_VISIBLE_DEVICES, or set \"backend\": \"cpu\"");
    if (code == cudaSuccess)
        return err_param(err, STATUS_UNSUPPORTED, "device",
                         "backend \"cuda\": device %u was asked for, this machine has 0 to %d",
                         device, count - 1);
    return err_param(err, STATUS_UNSUPPORTED, "backend", "backend \"cuda\": %s (%s)",
                     cudaGetErrorString(code), cudaGetErrorName(code));
}

/* ---- opening ---- */

static enum status probe(struct gpu_properties *p, uint32_t device, struct errtext *err)
{
    int count = 0;
    struct cudaDeviceProp d;
    size_t bytes_free = 0, bytes_total = 0;
    cudaError_t code = cudaGetDeviceCount(&count);
    if (code != cudaSuccess || device >= (uint32_t)count)
        return no_device(code, count, device, err);
    code = cudaGetDeviceProperties(&d, (int)device);
    if (code != cudaSuccess)
        return no_device(code, count, device, err);
    if (d.major * 10 + d.minor < GPU_CC_MIN)
        return err_param(err, STATUS_UNSUPPORTED, "device",
                         "backend \"cuda\": device %u is a %s of compute capability %d.%d; the "
                         "kernels need %d.%d (H100, H200) or newer: choose another device, or set "
                         "\"backend\": \"cpu\"",
                         device, d.name, d.major, d.minor, GPU_CC_MIN / 10, GPU_CC_MIN % 10);
    code = cudaSetDevice((int)device);
    if (code == cudaSuccess)
        code = cudaMemGetInfo(&bytes_free, &bytes_total);
    if (code != cudaSuccess)
        return no_device(code, count, device, err);
    snprintf(p->name, sizeof(p->name), "%.63s", d.name);
    p->sm_count = (uint32_t)d.multiProcessorCount;
    p->cc_major = (uint32_t)d.major;
    p->cc_minor = (uint32_t)d.minor;
    p->bytes_total = bytes_total;
    p->bytes_free = bytes_free;
    p->smem_bytes_max = (uint32_t)d.sharedMemPerBlockOptin;
    return STATUS_OK;
}

static enum status take_arena(struct gpu *g, const struct gpu_arena *want, struct errtext *err)
{
    struct gpu_properties *p = &g->prop;
    void *arena = NULL;
    uint64_t bytes = want->bytes ? want->bytes : p->bytes_free / 100 * want->percent;
    p->arena_bytes = bytes / ALIGN_BYTES * ALIGN_BYTES;
    cudaError_t code = p->arena_bytes ? cudaMalloc(&arena, p->arena_bytes) : cudaSuccess;
    if (!arena) {
        (void)cudaGetLastError();
        return err_param(err, STATUS_TOO_LARGE, "device_bytes",
                         "backend \"cuda\": %.0f MiB of device memory were asked for, %.0f of "
                         "%.0f MiB are free on %s (%s); lower device_bytes, or stop what else "
                         "uses the GPU",
                         (double)p->arena_bytes / 1048576.0, (double)p->bytes_free / 1048576.0,
                         (double)p->bytes_total / 1048576.0, p->name, cudaGetErrorString(code));
    }
    g->arena = (char *)arena;
    g->run = (struct arena_run *)mem_array(RUNS_MAX, sizeof(*g->run));
    g->run[0].bytes = g->bytes_free = p->arena_bytes;
    g->run_count = 1;
    GUARD_RUN(g->arena, p->arena_bytes);
    return STATUS_OK;
}

enum status gpu_open(struct gpu **out, uint32_t device, const struct gpu_arena *arena,
                     struct errtext *err)
{
    *out = NULL;
    struct gpu *g = (struct gpu *)mem_alloc(sizeof(*g));
    g->device = device;
    enum status st = probe(&g->prop, device, err);
    if (!st)
        st = take_arena(g, arena, err);
    if (!st)
        st = gpu_stream_create(&g->stream, arena->background);
    if (!st) {
        g->staging = (char *)gpu_pinned_alloc(STAGING_BYTES);
        if (!g->staging)
            st = err_set(err, STATUS_NO_MEMORY,
                         "backend \"cuda\": the system refused %zu MiB of page-locked host memory; "
                         "raise the locked-memory limit (ulimit -l)",
                         STAGING_BYTES >> 20);
    }
    if (st) {
        gpu_close(g);
        return st;
    }
    *out = g;
    return STATUS_OK;
}

enum status gpu_open_counting(struct gpu **out, uint64_t arena_bytes, struct errtext *err)
{
    struct gpu *g = (struct gpu *)mem_alloc(sizeof(*g));
    *out = NULL;
    if (arena_bytes < ALIGN_BYTES) {
        mem_free(g);
        return err_param(err, STATUS_INVALID, "device_bytes",
                         "device_bytes: a plan without a device needs the bytes of its memory "
                         "(--device-bytes 141g)");
    }
    counting++;
    g->pinned_before = counted_pinned;
    counted_pinned += STAGING_BYTES;
    g->is_counting = true;
    snprintf(g->prop.name, sizeof(g->prop.name), "no device: a plan");
    g->prop.sm_count = 132; /* H200: partial results are as many */
    g->prop.cc_major = GPU_CC_MIN / 10;
    g->prop.smem_bytes_max = 227 * 1024;
    g->prop.arena_bytes = arena_bytes / ALIGN_BYTES * ALIGN_BYTES;
    g->prop.bytes_total = g->prop.bytes_free = g->prop.arena_bytes;
    g->arena = (char *)(uintptr_t)ALIGN_BYTES; /* addresses that are never used */
    g->run = (struct arena_run *)mem_array(RUNS_MAX, sizeof(*g->run));
    g->run[0].bytes = g->bytes_free = g->prop.arena_bytes;
    g->run_count = 1;
    *out = g;
    return STATUS_OK;
}

void gpu_close(struct gpu *g)
{
    if (!g)
        return;
    if (g->is_counting) {
        counting--;
        mem_free(g->run);
        mem_free(g);
        return;
    }
    gpu_stream_destroy(g->stream);
    gpu_pinned_free(g->staging);
    (void)cudaFree(g->arena);
    mem_free(g->run);
    mem_free(g);
}

const struct gpu_properties *gpu_properties(const struct gpu *g)
{
    return &g->prop;
}

enum status gpu_use(const struct gpu *g)
{
    if (g->is_counting)
        return STATUS_OK;
    return gpu_status(cudaSetDevice((int)g->device), "device of a thread");
}

enum status gpu_smem_allow(const struct gpu_smem *list, size_t count)
{
    enum status st = STATUS_OK;
    for (size_t i = 0; i < count && !st && !counting; i++)
        st = gpu_status(cudaFuncSetAttribute(list[i].kernel,
                                             cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             (int)list[i].bytes),
                        "shared memory of a kernel");
    if (st)
        (void)cudaGetLastError(); /* not the next launch's */
    return st;
}

/* ---- the arena ---- */

static void run_insert(struct gpu *g, uint32_t at, struct arena_run r)
{
    memmove(&g->run[at + 1], &g->run[at], (g->run_count - at) * sizeof(g->run[0]));
    g->run[at] = r;
    g->run_count++;
}

static void run_remove(struct gpu *g, uint32_t at)
{
    g->run_count--;
    memmove(&g->run[at], &g->run[at + 1], (g->run_count - at) * sizeof(g->run[0]));
}

void *gpu_alloc(struct gpu *g, size_t bytes)
{
    size_t want = bytes ? bytes : 1;
    want = (want + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
    if (want < bytes || want > SIZE_MAX - GUARD_BYTES)
        return NULL;
    want += GUARD_BYTES;
    for (uint32_t i = 0; i < g->run_count; i++) {
        struct arena_run *r = &g->run[i];
        if (r->used || r->bytes < want)
            continue;
        if (r->bytes > want) {
            if (g->run_count == RUNS_MAX)
                return NULL;
            struct arena_run rest = {r->at + want, r->bytes - want, false};
            run_insert(g, i + 1, rest);
        }
        r->bytes = want;
        r->used = true;
        g->bytes_free -= want;
        if (!g->is_counting)
            OPEN_RUN(g->arena + r->at, bytes);
        return g->arena + r->at;
    }
    return NULL;
}

void gpu_free(struct gpu *g, void *p)
{
    if (!p)
        return;
    size_t at = (size_t)((char *)p - g->arena);
    uint32_t lo = 0, hi = g->run_count;
    while (hi - lo > 1) {
        uint32_t mid = (lo + hi) / 2;
        if (g->run[mid].at <= at)
            lo = mid;
        else
            hi = mid;
    }
    struct arena_run *r = &g->run[lo];
    if (r->at != at || !r->used) {
        fprintf(stderr, "gpu_free: %p is not an allocation of the arena\n", p);
        return;
    }
    r->used = false;
    g->bytes_free += r->bytes;
    if (!g->is_counting)
        GUARD_RUN(g->arena + r->at, r->bytes);
    if (lo + 1 < g->run_count && !g->run[lo + 1].used) {
        r->bytes += g->run[lo + 1].bytes;
        run_remove(g, lo + 1);
    }
    if (lo > 0 && !g->run[lo - 1].used) {
        g->run[lo - 1].bytes += r->bytes;
        run_remove(g, lo);
    }
}

uint64_t gpu_pinned_counted(const struct gpu *g)
{
    return counted_pinned - g->pinned_before;
}

uint64_t gpu_bytes_free(const struct gpu *g)
{
    return g->bytes_free;
}

void *gpu_pinned_alloc(size_t bytes)
{
    void *p = NULL;
    if (counting) {
        counted_pinned += bytes;
        return mem_try_alloc(bytes);
    }
    if (bytes == 0 || cudaHostAlloc(&p, bytes, cudaHostAllocDefault) != cudaSuccess) {
        (void)cudaGetLastError();
        return NULL;
    }
    memset(p, 0, bytes);
    return p;
}

void gpu_pinned_free(void *p)
{
    if (counting)
        mem_free(p);
    else if (p)
        (void)cudaFreeHost(p);
}

/* ---- copies ---- */

static enum status copy(void *stream, void *to, const void *from, size_t bytes,
                        enum cudaMemcpyKind kind)
{
    if (bytes == 0 || counting)
        return STATUS_OK;
    return gpu_status(cudaMemcpyAsync(to, from, bytes, kind, (cudaStream_t)stream), "copy");
}

enum status gpu_copy_in(void *stream, void *dev, const void *pinned, size_t bytes)
{
    return copy(stream, dev, pinned, bytes, cudaMemcpyHostToDevice);
}

enum status gpu_copy_out(void *stream, void *pinned, const void *dev, size_t bytes)
{
    return copy(stream, pinned, dev, bytes, cudaMemcpyDeviceToHost);
}

enum status gpu_copy_within(void *stream, void *to, const void *from, size_t bytes)
{
    return copy(stream, to, from, bytes, cudaMemcpyDeviceToDevice);
}

enum status gpu_fill(void *stream, void *dev, uint8_t byte, size_t bytes)
{
    if (bytes == 0 || counting)
        return STATUS_OK;
    return gpu_status(cudaMemsetAsync(dev, byte, bytes, (cudaStream_t)stream), "fill");
}

enum status gpu_write(struct gpu *g, void *dev, const void *host, size_t bytes)
{
    enum status st = STATUS_OK;
    for (size_t at = 0; at < bytes && !st && !g->is_counting; at += STAGING_BYTES) {
        size_t n = bytes - at < STAGING_BYTES ? bytes - at : STAGING_BYTES;
        memcpy(g->staging, (const char *)host + at, n);
        st = gpu_copy_in(g->stream, (char *)dev + at, g->staging, n);
        if (!st)
            st = gpu_stream_sync(g->stream);
    }
    return st;
}

enum status gpu_read(struct gpu *g, void *host, const void *dev, size_t bytes)
{
    enum status st = STATUS_OK;
    for (size_t at = 0; at < bytes && !st && !g->is_counting; at += STAGING_BYTES) {
        size_t n = bytes - at < STAGING_BYTES ? bytes - at : STAGING_BYTES;
        st = gpu_copy_out(g->stream, g->staging, (const char *)dev + at, n);
        if (!st)
            st = gpu_stream_sync(g->stream);
        if (!st)
            memcpy((char *)host + at, g->staging, n);
    }
    return st;
}

/* ---- order ---- */

void *gpu_stream(const struct gpu *g)
{
    return g->stream;
}

/* A stream without a priority has the lowest: those that serve take the highest. */
enum status gpu_stream_create(void **stream, bool background)
{
    cudaStream_t s = NULL;
    int least = 0, greatest = 0;
    *stream = NULL;
    if (counting)
        return STATUS_OK;
    enum status st = gpu_status(cudaDeviceGetStreamPriorityRange(&least, &greatest), "stream");
    if (!st)
        st = gpu_status(
            cudaStreamCreateWithPriority(&s, cudaStreamNonBlocking, background ? least : greatest),
            "stream");
    *stream = s;
    return st;
}

void gpu_stream_destroy(void *stream)
{
    if (stream)
        (void)cudaStreamDestroy((cudaStream_t)stream);
}

enum status gpu_stream_sync(void *stream)
{
    if (counting)
        return STATUS_OK;
    return gpu_status(cudaStreamSynchronize((cudaStream_t)stream), "work on the device");
}

enum status gpu_stream_wait(void *stream, void *event)
{
    if (counting)
        return STATUS_OK;
    return gpu_status(cudaStreamWaitEvent((cudaStream_t)stream, (cudaEvent_t)event, 0),
                      "wait for an event");
}

enum status gpu_event_create(void **event, bool timed)
{
    cudaEvent_t e = NULL;
    *event = NULL;
    if (counting)
        return STATUS_OK;
    enum status st = gpu_status(
        cudaEventCreateWithFlags(&e, timed ? cudaEventDefault : cudaEventDisableTiming), "event");
    *event = e;
    return st;
}

void gpu_event_destroy(void *event)
{
    if (event)
        (void)cudaEventDestroy((cudaEvent_t)event);
}

enum status gpu_event_record(void *event, void *stream)
{
    if (counting)
        return STATUS_OK;
    return gpu_status(cudaEventRecord((cudaEvent_t)event, (cudaStream_t)stream), "event");
}

enum status gpu_event_sync(void *event)
{
    if (counting)
        return STATUS_OK;
    return gpu_status(cudaEventSynchronize((cudaEvent_t)event), "work before an event");
}

enum status gpu_event_poll(void *event, bool *done)
{
    cudaError_t code = cudaEventQuery((cudaEvent_t)event);
    *done = code == cudaSuccess;
    return code == cudaErrorNotReady ? STATUS_OK : gpu_status(code, "work before an event");
}

enum status gpu_event_ms(float *ms, void *from, void *to)
{
    return gpu_status(cudaEventElapsedTime(ms, (cudaEvent_t)from, (cudaEvent_t)to), "event times");
}

/* ---- graphs ---- */

enum status gpu_capture_begin(void *stream)
{
    enum status st = gpu_status(
        cudaStreamBeginCapture((cudaStream_t)stream, cudaStreamCaptureModeThreadLocal), "capture");
    if (st)
        (void)cudaGetLastError();
    return st;
}

enum status gpu_capture_end(void *stream, void **graph)
{
    cudaGraph_t g = NULL;
    cudaGraphExec_t exec = NULL;
    *graph = NULL;
    enum status st = gpu_status(cudaStreamEndCapture((cudaStream_t)stream, &g), "capture");
    if (!st)
        st = gpu_status(cudaGraphInstantiate(&exec, g, 0), "graph");
    if (g)
        (void)cudaGraphDestroy(g);
    if (st)
        (void)cudaGetLastError();
    *graph = exec;
    return st;
}

enum status gpu_graph_launch(void *graph, void *stream)
{
    return gpu_status(cudaGraphLaunch((cudaGraphExec_t)graph, (cudaStream_t)stream), "graph");
}

void gpu_graph_destroy(void *graph)
{
    if (graph)
        (void)cudaGraphExecDestroy((cudaGraphExec_t)graph);
}
