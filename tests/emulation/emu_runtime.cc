/* The CUDA runtime without a device. A stream is a queue of closures that run in order when
 * somebody waits for the stream or for an event on it: host code that forgets to wait, or that
 * changes a buffer whose copy is under way, computes nonsense here as it would there. A captured
 * graph is a list of closures with their arguments by value. One lock: host threads take turns.
 * Device memory is mapped without access but while a stream works: a host that reads or writes it
 * dies at that instruction, as it would there. */
#include "tests/emulation/emu_runtime.h"
#include "tests/emulation/emu_control.h"
#include "tests/emulation/include/cuda_runtime.h"

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <vector>

typedef std::function<void()> work;

struct emu_graph {
    std::vector<work> node;
    uint32_t refs, open_branches;
};
struct emu_stream {
    std::deque<work> queue;
    uint64_t pushed, done;
    struct emu_graph *capture;
    bool is_branch; /* joined a capture through an event */
    int priority; /* the lower the earlier */
    int device;
};
struct emu_event {
    struct emu_stream *stream;
    uint64_t at; /* entries of the stream that come before it */
    int device;
    struct emu_graph *capture;
    std::shared_ptr<double> time_ms; /* when the stream came by */
};

struct emu_device emu_device = EMU_DEVICE_INIT;

static std::recursive_mutex lock;
static std::vector<emu_stream *> streams;
static std::map<const char *, size_t> pinned, device_blocks;
static size_t device_used;
static thread_local int device_now;                                 /* what the thread has set */
static std::map<std::pair<int, const void *>, size_t> smem_allowed; /* of a kernel on a device */
static cudaError_t last_error, sticky;
#define SMEM_BYTES_DEFAULT (48 * 1024) /* what a kernel may have unasked */
#define LOCKED             std::lock_guard<std::recursive_mutex> guard(lock)

static cudaError_t fail(cudaError_t e)
{
    if (e != cudaSuccess && e != cudaErrorNotReady)
        last_error = e;
    return e;
}

void emu_break_device(void)
{
    LOCKED;
    sticky = cudaErrorIllegalAddress;
}

void emu_reset(void)
{
    LOCKED;
    emu_device = EMU_DEVICE_INIT;
    sticky = last_error = cudaSuccess;
}

bool emu_is_tsan(void)
{
    return EMU_TSAN;
}

/* ---- the door to device memory ---- */

static uint32_t working; /* openings under way, one within another */

static void set_door(int protection)
{
    for (auto &block : device_blocks)
        if (mprotect((void *)block.first, block.second, protection) != 0)
            emu_fault(__LINE__, "mprotect refuses %zu bytes", block.second);
}

/* While one lives, device memory may be touched. Under the lock. */
struct opening {
    opening()
    {
        if (working++ == 0)
            set_door(PROT_READ | PROT_WRITE);
    }
    ~opening()
    {
        if (--working == 0)
            set_door(PROT_NONE);
    }
};

/* ---- grids ---- */

#if EMU_TSAN
/* Fresh addresses for each block: mapping and unmapping clear the race detector's memory of them.
 */
static char *smem_take(size_t bytes)
{
    return (char *)mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}
static void smem_drop(char *p, size_t bytes)
{
    munmap(p, bytes);
}
#else
static char *smem_take(size_t bytes)
{
    void *p = NULL; /* exactly: the sanitizer guards both ends */
    return posix_memalign(&p, 128, bytes) == 0 ? (char *)p : NULL;
}
static void smem_drop(char *p, size_t)
{
    free(p);
}
#endif

/* The device's clock: a thread of a launch takes 0.1 us, a launch 1 us, an event a tick, whatever
 * the machine does beside. */
static double clock_us;

void emu_spend_us(double us)
{
    clock_us += us;
}

static uint64_t late_launches;

uint64_t emu_late_launches(void)
{
    LOCKED;
    return late_launches;
}

static void run_grid(const struct emu_grid &g, const work *body)
{
    dim3 grid = g.grid, block = g.block;
    uint32_t count = grid.x * grid.y * grid.z, stride;
    uint32_t at = emu_permute_begin(count, &stride);
    bool triggered = true;
    for (uint32_t i = 0; i < count; i++, at = (uint32_t)(((uint64_t)at + stride) % count)) {
        emu_now = {};
        emu_now.bid = dim3(at % grid.x, at / grid.x % grid.y, at / (grid.x * grid.y));
        emu_now.bdim = block;
        emu_now.gdim = grid;
        emu_now.dependent = g.dependent;
        emu_now.smem_bytes = g.smem_bytes;
        emu_now.smem = g.smem_bytes ? smem_take(g.smem_bytes) : NULL;
        if (g.smem_bytes)
            memset(emu_now.smem, 0xff, g.smem_bytes);
        emu_run_block(body);
        if (g.smem_bytes)
            smem_drop(emu_now.smem, g.smem_bytes);
        triggered = triggered && emu_now.triggered;
    }
    emu_launch_end();
    late_launches += !triggered;
    emu_spend_us(1 + 0.1 * count * (block.x * block.y * block.z));
}

static void push(emu_stream *s, work w)
{
    if (s->capture) {
        s->capture->node.push_back(std::move(w));
        return;
    }
    s->queue.push_back(std::move(w));
    s->pushed++;
}

static void run_until(emu_stream *s, uint64_t at)
{
    if (s->done >= at)
        return;
    opening door;
    while (s->done < at) {
        work w = std::move(s->queue.front());
        s->queue.pop_front();
        s->done++;
        w();
    }
}

void emu_launch(const void *kernel, const struct emu_grid *g, void *stream, work body)
{
    LOCKED;
    const struct emu_grid copy = *g;
    emu_stream *s = (emu_stream *)stream;
    auto allowed = smem_allowed.find({device_now, kernel});
    size_t smem_max = allowed == smem_allowed.end() ? SMEM_BYTES_DEFAULT : allowed->second;
    uint32_t threads = g->block.x * g->block.y * g->block.z;
    if (g->grid.x * g->grid.y * g->grid.z == 0 || threads == 0 || threads > 1024 ||
        g->grid.y > 65535 || g->grid.z > 65535 || g->smem_bytes > smem_max) {
        fail(cudaErrorInvalidValue);
        return;
    }
    if (s->device != device_now) {
        fail(cudaErrorInvalidResourceHandle);
        return;
    }
    push(s, [=] { run_grid(copy, &body); });
}

/* ---- device ---- */

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = emu_device.driver_version;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = 13000;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int *count)
{
    LOCKED;
    *count = emu_device.count;
    if (emu_device.driver_version < 13000)
        return fail(cudaErrorInsufficientDriver);
    return emu_device.count > 0 ? cudaSuccess : fail(cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int device)
{
    LOCKED;
    if (device >= emu_device.count)
        return fail(cudaErrorInvalidDevice);
    device_now = device;
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute, int value)
{
    LOCKED;
    if (value < 0 || (size_t)value > emu_device.smem_bytes_max)
        return fail(cudaErrorInvalidValue);
    smem_allowed[{device_now, kernel}] = (size_t)value;
    return sticky;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int)
{
    memset(p, 0, sizeof(*p));
    snprintf(p->name, sizeof(p->name), "emulated device");
    p->totalGlobalMem = emu_device.bytes;
    p->sharedMemPerBlockOptin = emu_device.smem_bytes_max;
    p->major = emu_device.major;
    p->minor = emu_device.minor;
    p->multiProcessorCount = emu_device.sm_count;
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    *total_bytes = emu_device.bytes;
    *free_bytes = emu_device.bytes - device_used;
    return sticky;
}
cudaError_t cudaGetLastError(void)
{
    LOCKED;
    cudaError_t e = sticky != cudaSuccess ? sticky : last_error;
    last_error = cudaSuccess;
    return e;
}
cudaError_t cudaPeekAtLastError(void)
{
    return sticky != cudaSuccess ? sticky : last_error;
}
const char *cudaGetErrorString(cudaError_t e)
{
    switch (e) {
    case cudaSuccess:
        return "no error";
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorInsufficientDriver:
        return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice:
        return "no CUDA-capable device is detected";
    case cudaErrorIllegalAddress:
        return "an illegal memory access was encountered";
    default:
        return "emulated error";
    }
}
const char *cudaGetErrorName(cudaError_t e)
{
    return cudaGetErrorString(e);
}

/* ---- memory ---- */

#if EMU_ASAN
extern "C" void __asan_poison_memory_region(void const volatile *p, size_t bytes);
extern "C" void __asan_unpoison_memory_region(void const volatile *p, size_t bytes);
#else
#define __asan_poison_memory_region(p, bytes)   ((void)0)
#define __asan_unpoison_memory_region(p, bytes) ((void)0)
#endif

void emu_guard(void *p, size_t bytes)
{
    __asan_poison_memory_region(p, bytes);
}
void emu_open(void *p, size_t bytes)
{
    LOCKED;
    opening door;
    __asan_unpoison_memory_region(p, bytes);
    memset(p, 0xff, bytes);
}

void emu_peek(void *to, const void *device, size_t bytes)
{
    LOCKED;
    opening door;
    memcpy(to, device, bytes);
}

cudaError_t cudaMalloc(void **p, size_t bytes)
{
    LOCKED;
    if (bytes == 0 || bytes > emu_device.bytes - device_used)
        return fail(cudaErrorMemoryAllocation);
    void *at = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED)
        return fail(cudaErrorMemoryAllocation);
    madvise(at, bytes, MADV_HUGEPAGE); /* doors turn faster */
    *p = at;
    device_blocks[(char *)*p] = bytes;
    device_used += bytes;
    return cudaSuccess;
}
cudaError_t cudaFree(void *p)
{
    LOCKED;
    if (!p)
        return cudaSuccess;
    cudaDeviceSynchronize();
    size_t bytes = device_blocks.at((char *)p);
    device_used -= bytes;
    device_blocks.erase((char *)p);
    __asan_unpoison_memory_region(p, bytes); /* the addresses may be given out again */
    munmap(p, bytes);
    return sticky;
}
cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned)
{
    LOCKED;
    if (bytes == 0 || emu_device.refuse_pinned)
        return fail(cudaErrorMemoryAllocation);
    if (posix_memalign(p, 64, bytes))
        return fail(cudaErrorMemoryAllocation);
    pinned[(char *)*p] = bytes;
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void *p)
{
    LOCKED;
    if (!p)
        return cudaSuccess;
    pinned.erase((char *)p);
    free(p);
    return cudaSuccess;
}

static bool is_pinned(const void *p, size_t bytes)
{
    auto at = pinned.upper_bound((const char *)p);
    if (at == pinned.begin())
        return false;
    --at;
    return (const char *)p + bytes <= at->first + at->second;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t s)
{
    LOCKED;
    if (sticky)
        return sticky;
    const void *host = kind == cudaMemcpyHostToDevice   ? from
                       : kind == cudaMemcpyDeviceToHost ? to
                                                        : NULL;
    if (host && !is_pinned(host, bytes)) {
        fprintf(stderr, "emulation: an asynchronous copy of pageable memory (%zu bytes)\n", bytes);
        abort();
    }
    push(s, [=] { memcpy(to, from, bytes); });
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t s)
{
    LOCKED;
    push(s, [=] { memset(to, value, bytes); });
    return sticky;
}

/* ---- streams and events ---- */

cudaError_t cudaDeviceSynchronize(void)
{
    LOCKED;
    for (emu_stream *s : streams)
        run_until(s, s->pushed);
    return sticky;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}
int emu_stream_priority(const void *stream)
{
    return ((const emu_stream *)stream)->priority;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned, int priority)
{
    LOCKED;
    *s = new emu_stream();
    (*s)->device = device_now;
    (*s)->priority = priority;
    streams.push_back(*s);
    return sticky;
}
cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    LOCKED;
    run_until(s, s->pushed);
    for (size_t i = 0; i < streams.size(); i++)
        if (streams[i] == s)
            streams.erase(streams.begin() + (long)i);
    delete s;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    LOCKED;
    if (s->capture)
        return fail(cudaErrorStreamCaptureUnsupported);
    run_until(s, s->pushed);
    return sticky;
}
cudaError_t cudaStreamQuery(cudaStream_t s)
{
    return cudaStreamSynchronize(s);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned)
{
    LOCKED;
    if (e->capture) { /* a branch begins, or comes back */
        if (!s->capture) {
            s->capture = e->capture;
            s->is_branch = true;
            s->capture->open_branches++;
        } else if (!s->is_branch && e->stream->is_branch) {
            s->capture->open_branches--;
            e->stream->is_branch = false;
            e->stream->capture = NULL;
        }
        return sticky;
    }
    emu_stream *from = e->stream;
    uint64_t at = e->at;
    if (from && from != s)
        push(s, [=] { run_until(from, at); });
    return sticky;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned)
{
    *e = new emu_event();
    (*e)->device = device_now;
    return sticky;
}
cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    LOCKED;
    delete e;
    return cudaSuccess;
}
/* The time is taken when the stream gets there. */
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    LOCKED;
    if (e->device != s->device)
        return fail(cudaErrorInvalidResourceHandle);
    std::shared_ptr<double> time_ms = e->time_ms = std::make_shared<double>(0);
    if (!s->capture)
        push(s, [time_ms] {
            emu_spend_us(0.001);
            *time_ms = clock_us * 1e-3;
        });
    e->stream = s;
    e->at = s->pushed;
    e->capture = s->capture;
    return sticky;
}
cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    LOCKED;
    if (e->stream && !e->capture)
        run_until(e->stream, e->at);
    return sticky;
}
cudaError_t cudaEventQuery(cudaEvent_t e)
{
    return cudaEventSynchronize(e);
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to)
{
    if (!from->time_ms || !to->time_ms)
        return fail(cudaErrorInvalidValue);
    *ms = (float)(*to->time_ms - *from->time_ms);
    return sticky;
}

/* ---- graphs ---- */

static void graph_drop(emu_graph *g)
{
    if (g && --g->refs == 0)
        delete g;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode)
{
    LOCKED;
    if (s->capture || emu_device.refuse_capture == 1)
        return fail(cudaErrorStreamCaptureUnsupported);
    s->capture = new emu_graph();
    s->capture->refs = 1;
    return sticky;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g)
{
    LOCKED;
    *g = s->capture;
    s->capture = NULL;
    if (*g && ((*g)->open_branches || emu_device.refuse_capture == 2)) {
        bool unjoined = (*g)->open_branches > 0;
        graph_drop(*g);
        *g = NULL;
        return fail(unjoined ? cudaErrorStreamCaptureUnjoined : cudaErrorStreamCaptureInvalidated);
    }
    return *g ? sticky : fail(cudaErrorStreamCaptureInvalidated);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t g, unsigned long long)
{
    LOCKED;
    if (emu_device.refuse_capture == 3)
        return fail(cudaErrorMemoryAllocation);
    g->refs++;
    *exec = g;
    return sticky;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s)
{
    LOCKED;
    if (sticky)
        return sticky;
    exec->refs++;
    push(s, [=] {
        for (const work &w : exec->node)
            w();
        graph_drop(exec);
    });
    return sticky;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    LOCKED;
    graph_drop(exec);
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t g)
{
    LOCKED;
    graph_drop(g);
    return cudaSuccess;
}
