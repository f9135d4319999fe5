/* The scheduler of emulated threads and the arithmetic of warp operations. Compiled without
 * sanitizers: it reads and writes lanes' operands while they wait, which is no race. */
#include "tests/emulation/emu_runtime.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#if EMU_TSAN
extern "C" {
void *__tsan_get_current_fiber(void);
void *__tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void *fiber, unsigned flags);
void __tsan_acquire(void *at);
void __tsan_release(void *at);
}
#else
static inline void __tsan_acquire(void *)
{
}
static inline void __tsan_release(void *)
{
}
#endif

#define THREADS_MAX    1024
#define WARPS_MAX      (THREADS_MAX / 32)
#define STACK_BYTES    (256u << 10)
#define SWITCH_NO_SYNC 1
/* Blocks alternate between two sets of threads, so that neighbours are strangers to the race
 * detector: two blocks that write one place are reported. */
#define SETS (EMU_TSAN ? 2 : 1)

#define COPIES_MAX 128
struct copy { /* a cp.async under way */
    void *smem;
    const void *gmem;
    uint32_t group;
};

struct fiber {
    struct emu_thread thread;
    struct copy copy[COPIES_MAX]; /* a ring */
    uint32_t group, copy_first, copy_count;
    void *sp, *stack, *tsan;
    struct emu_op *op;
};

/* Lane sets are bit masks. A lane is in one of: ready (or running), in_op, in_barrier, or gone. */
struct warp {
    uint32_t alive, ready, in_op, in_barrier, sync_count;
};

/* Addresses that stand for the orders barriers make, of barrier k and of k+1: one who is still
 * leaving k must not be ordered after those who have come to k+1. A block has its own. */
struct orders {
    char barrier[2], warp[WARPS_MAX][2];
};

static struct {
    struct fiber *fiber; /* [THREADS_MAX] of the set in use, made as needed */
    struct fiber *set[SETS];
    struct warp warp[WARPS_MAX];
    uint32_t fiber_count[SETS], set_idx, warp_count, warps_ready;
    uint32_t alive, in_barrier, barrier_count;
    int barrier_line;
    bool descending;
    uint64_t rng, switches;
    const std::function<void()> *body;
    void *main_sp, *main_tsan;
    struct orders *orders;
    char begin, end, fence;
} emu = {};

struct emu_thread *emu_self;
struct emu_block emu_now;

static uint32_t draw(void)
{
    emu.rng ^= emu.rng << 13;
    emu.rng ^= emu.rng >> 7;
    emu.rng ^= emu.rng << 17;
    return (uint32_t)(emu.rng >> 32);
}

void emu_set_seed(uint64_t seed)
{
    emu.rng = seed * 0x9e3779b97f4a7c15ull + 0x1234567;
}

uint64_t emu_switches(void)
{
    return emu.switches;
}

void emu_fault(int line, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    fprintf(stderr, "emulation: ");
    vfprintf(stderr, fmt, args);
    va_end(args);
    if (emu_self)
        fprintf(stderr, "; line %d, thread %u of block (%u, %u, %u)", line,
                emu_self->warp * 32 + emu_self->lane, emu_now.bid.x, emu_now.bid.y, emu_now.bid.z);
    fprintf(stderr, "\n");
    abort();
}

void emu_check_smem(const void *p, size_t bytes, int line)
{
    const char *at = (const char *)p;
    if ((uintptr_t)at % bytes)
        emu_fault(line, "shared memory address %p is not %zu-byte aligned", p, bytes);
    if (at < emu_now.smem || at + bytes > emu_now.smem + emu_now.smem_bytes)
        emu_fault(line, "address %p is not in the block's %zu bytes of shared memory", p,
                  emu_now.smem_bytes);
}

void emu_fence(void)
{
    __tsan_release(&emu.fence);
    __tsan_acquire(&emu.fence);
}

/* ---- switching ---- */

#if defined(__x86_64__) && !defined(EMU_UCONTEXT)
extern "C" void emu_switch(void **save, void *to);
asm(".text\n.globl emu_switch\n.type emu_switch,@function\nemu_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n"
    ".size emu_switch,.-emu_switch\n");

static void *new_context(char *top, void (*entry)(void))
{
    void **sp = (void **)((uintptr_t)top & ~(uintptr_t)15);
    *--sp = NULL; /* entry sees a stack as after a call */
    *--sp = (void *)entry;
    for (int i = 0; i < 6; i++)
        *--sp = NULL;
    return sp;
}
#else
#include <ucontext.h>
static void emu_switch(void **save, void *to)
{
    ucontext_t here;
    *save = &here; /* lives on the stack that is left */
    swapcontext(&here, (ucontext_t *)to);
}

static void *new_context(char *top, void (*entry)(void))
{
    ucontext_t *u = (ucontext_t *)((uintptr_t)(top - sizeof(ucontext_t)) & ~(uintptr_t)63);
    getcontext(u);
    u->uc_stack.ss_sp = top - STACK_BYTES / 2;
    u->uc_stack.ss_size = (size_t)((char *)u - (top - STACK_BYTES / 2));
    u->uc_link = NULL;
    makecontext(u, entry, 0);
    return u;
}
#endif

static struct fiber *self(void)
{
    return (struct fiber *)(void *)emu_self;
}

void emu_copy_begin(void *smem, const void *gmem, int line)
{
    struct fiber *f = self();
    if (f->copy_count == COPIES_MAX)
        emu_fault(line, "more than %d copies under way in one thread", COPIES_MAX);
    f->copy[(f->copy_first + f->copy_count++) % COPIES_MAX] = {smem, gmem, f->group};
}

void emu_copy_commit(void)
{
    self()->group++;
}

void *emu_copy_next(uint32_t n, const void **gmem)
{
    struct fiber *f = self();
    struct copy *c = &f->copy[f->copy_first];
    if (f->copy_count == 0 || c->group + n >= f->group)
        return NULL;
    f->copy_first = (f->copy_first + 1) % COPIES_MAX;
    f->copy_count--;
    *gmem = c->gmem;
    return c->smem;
}

static void run_fiber(void **save, uint32_t idx)
{
    struct fiber *f = &emu.fiber[idx];
    emu_self = &f->thread;
    emu.switches++;
#if EMU_TSAN
    __tsan_switch_to_fiber(f->tsan, SWITCH_NO_SYNC);
#endif
    emu_switch(save, f->sp);
}

/* The next thread that can run: of this warp first, else of a warp drawn by lot. */
static uint32_t pick(void)
{
    uint32_t w = emu_self ? emu_self->warp : 0;
    if (!emu_self || !emu.warp[w].ready) {
        uint32_t set = emu.warps_ready;
        if (!set)
            return UINT32_MAX;
        uint32_t skip = draw() % (uint32_t)__builtin_popcount(set);
        while (skip--)
            set &= set - 1;
        w = (uint32_t)__builtin_ctz(set);
    }
    struct warp *warp = &emu.warp[w];
    uint32_t lane = emu.descending ? 31u - (uint32_t)__builtin_clz(warp->ready)
                                   : (uint32_t)__builtin_ctz(warp->ready);
    warp->ready &= ~(1u << lane);
    if (!warp->ready)
        emu.warps_ready &= ~(1u << w);
    return w * 32 + lane;
}

static void make_ready(uint32_t w, uint32_t lanes)
{
    emu.warp[w].ready |= lanes;
    if (emu.warp[w].ready)
        emu.warps_ready |= 1u << w;
}

[[noreturn]] static void deadlock(void)
{
    fprintf(stderr,
            "emulation: divergent barrier in block (%u, %u, %u): %u of %u threads wait at line "
            "%d\n",
            emu_now.bid.x, emu_now.bid.y, emu_now.bid.z, emu.in_barrier, emu.alive,
            emu.barrier_line);
    for (uint32_t w = 0; w < emu.warp_count; w++) {
        struct warp *p = &emu.warp[w];
        if (p->in_op)
            fprintf(stderr,
                    "  warp %u: lanes %08x at the barrier, %08x in a warp operation, line %d\n", w,
                    p->in_barrier, p->in_op,
                    emu.fiber[w * 32 + (uint32_t)__builtin_ctz(p->in_op)].op->line);
    }
    abort();
}

static void wait_here(void)
{
    uint32_t next = pick();
    if (next == UINT32_MAX)
        deadlock();
    run_fiber(&self()->sp, next);
}

static void release_barrier(void)
{
    for (uint32_t w = 0; w < emu.warp_count; w++) {
        make_ready(w, emu.warp[w].in_barrier);
        emu.warp[w].in_barrier = 0;
    }
    emu.in_barrier = 0;
    emu.barrier_count++;
}

void emu_block_sync(int line)
{
    struct warp *w = &emu.warp[emu_self->warp];
    char *order = &emu.orders->barrier[emu.barrier_count & 1];
    if (emu.in_barrier == 0)
        emu.barrier_line = line;
    else if (emu.barrier_line != line)
        emu_fault(line, "divergent barrier: others of the block wait at line %d", emu.barrier_line);
    __tsan_release(order);
    if (emu.in_barrier + 1 == emu.alive) {
        release_barrier();
    } else {
        emu.in_barrier++;
        w->in_barrier |= 1u << emu_self->lane;
        wait_here();
    }
    __tsan_acquire(order);
}

/* ---- warp operations: done by the last lane to arrive, on the operands of all ---- */

static float as_float(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static uint32_t as_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static uint16_t half_of(const uint32_t *words, uint32_t i)
{
    return (uint16_t)(words[i / 2] >> (i % 2 ? 16 : 0));
}

/* The fragment layout is in kernels/cuda/device_mma.cuh. */
static void do_mma(struct emu_op **op)
{
    float a[16][16], b[16][8], c[16][8] = {};
    for (uint32_t l = 0; l < 32; l++) {
        uint32_t g = l / 4, t = l % 4 * 2;
        for (uint32_t i = 0; i < 8; i++)
            a[g + i / 2 % 2 * 8][t + i % 2 + i / 4 * 8] =
                as_float((uint32_t)half_of(op[l]->in, i) << 16);
        for (uint32_t i = 0; i < 4; i++)
            b[t + i % 2 + i / 2 * 8][g] = as_float((uint32_t)half_of(op[l]->in + 4, i) << 16);
    }
    for (uint32_t i = 0; i < 16; i++)
        for (uint32_t k = 0; k < 16; k++)
            for (uint32_t j = 0; j < 8; j++)
                c[i][j] += a[i][k] * b[k][j];
    for (uint32_t l = 0; l < 32; l++) {
        uint32_t g = l / 4, t = l % 4 * 2;
        for (uint32_t i = 0; i < 4; i++)
            op[l]->d[i] += c[g + i / 2 * 8][t + i % 2];
    }
}

static void do_matrix(struct emu_op **op, bool transposed)
{
    for (uint32_t m = 0; m < op[0]->count; m++)
        for (uint32_t l = 0; l < 32; l++) {
            uint32_t g = l / 4, t = l % 4 * 2;
            uint32_t lo =
                transposed ? half_of(op[m * 8 + t]->in, g) : half_of(op[m * 8 + g]->in, t);
            uint32_t hi =
                transposed ? half_of(op[m * 8 + t + 1]->in, g) : half_of(op[m * 8 + g]->in, t + 1);
            op[l]->out[m] = lo | hi << 16;
        }
}

static void do_movmatrix(struct emu_op **op)
{
    for (uint32_t l = 0; l < 32; l++) {
        uint32_t g = l / 4, t = l % 4 * 2;
        uint32_t lo = half_of(op[t * 4 + g / 2]->in, g % 2);
        uint32_t hi = half_of(op[(t + 1) * 4 + g / 2]->in, g % 2);
        op[l]->out[0] = lo | hi << 16;
    }
}

static void do_reduce(struct emu_op **op, uint32_t lanes, bool sum)
{
    float v[32], other[32];
    if (lanes != UINT32_MAX)
        emu_fault(0, "a warp reduction with lanes %08x only", lanes);
    for (uint32_t l = 0; l < 32; l++)
        v[l] = as_float(op[l]->in[0]);
    for (uint32_t m = 16; m; m /= 2) {
        memcpy(other, v, sizeof(v));
        for (uint32_t l = 0; l < 32; l++)
            v[l] = sum ? v[l] + other[l ^ m] : fmaxf(v[l], other[l ^ m]);
    }
    for (uint32_t l = 0; l < 32; l++)
        op[l]->out[0] = as_bits(v[l]);
}

static void do_exchange(struct emu_op **op, uint32_t lanes, enum emu_kind kind)
{
    uint32_t ballot = 0;
    for (uint32_t l = 0; l < 32; l++)
        ballot |= lanes >> l & 1 ? op[l]->in[0] << l : 0;
    for (uint32_t l = 0; l < 32; l++) {
        if (!(lanes >> l & 1))
            continue;
        uint32_t from = kind == EMU_SHFL ? op[l]->count : l ^ op[l]->count;
        if (kind == EMU_BALLOT)
            op[l]->out[0] = ballot;
        else /* from a lane that is gone: anything */
            op[l]->out[0] = from < 32 && lanes >> from & 1 ? op[from]->in[0] : UINT32_MAX;
    }
}

static void finish_op(uint32_t w)
{
    struct emu_op *op[32] = {};
    uint32_t lanes = emu.warp[w].in_op;
    for (uint32_t l = 0; l < 32; l++)
        if (lanes >> l & 1)
            op[l] = emu.fiber[w * 32 + l].op;
    enum emu_kind kind = op[__builtin_ctz(lanes)]->kind;
    if (kind >= EMU_MMA && lanes != UINT32_MAX)
        emu_fault(op[__builtin_ctz(lanes)]->line, "a matrix operation with lanes %08x only", lanes);
    switch (kind) {
    case EMU_SYNC:
        emu.warp[w].sync_count++;
        break;
    case EMU_MMA:
        do_mma(op);
        break;
    case EMU_MATRIX:
    case EMU_MATRIX_TRANS:
        do_matrix(op, kind == EMU_MATRIX_TRANS);
        break;
    case EMU_MOVMATRIX:
        do_movmatrix(op);
        break;
    case EMU_SUM:
    case EMU_MAX:
        do_reduce(op, lanes, kind == EMU_SUM);
        break;
    case EMU_SHFL:
    case EMU_SHFL_XOR:
    case EMU_BALLOT:
        do_exchange(op, lanes, kind);
        break;
    }
    emu.warp[w].in_op = 0;
}

void emu_warp_op(struct emu_op *op)
{
    uint32_t idx = emu_self->warp, bit = 1u << emu_self->lane;
    struct warp *w = &emu.warp[idx];
    char *order = &emu.orders->warp[idx][w->sync_count & 1];
    if (w->in_op) {
        struct emu_op *other = emu.fiber[idx * 32 + (uint32_t)__builtin_ctz(w->in_op)].op;
        if (other->kind != op->kind || other->line != op->line)
            emu_fault(op->line, "divergent warp operation: lanes %08x wait at line %d", w->in_op,
                      other->line);
    }
    self()->op = op;
    w->in_op |= bit;
    if (op->kind == EMU_SYNC)
        __tsan_release(order);
    if (w->in_op == w->alive) {
        uint32_t others = w->in_op & ~bit;
        finish_op(idx);
        make_ready(idx, others);
    } else {
        wait_here();
    }
    if (op->kind == EMU_SYNC)
        __tsan_acquire(order);
}

/* ---- blocks ---- */

/* A thread has returned from the kernel: who waited for the others waits for it no longer. */
static void leave(void)
{
    struct warp *w = &emu.warp[emu_self->warp];
    w->alive &= ~(1u << emu_self->lane);
    emu.alive--;
    if (w->in_op && w->in_op == w->alive) {
        uint32_t lanes = w->in_op;
        finish_op(emu_self->warp);
        make_ready(emu_self->warp, lanes);
    }
    if (emu.in_barrier && emu.in_barrier == emu.alive)
        release_barrier();
}

static void thread_main(void)
{
    __tsan_acquire(&emu.begin);
    (*emu.body)();
    if (emu_now.dependent && !emu_self->waited)
        emu_fault(0, "a thread of a dependent launch ends without pdl_wait: what follows could "
                     "start before what came before has ended");
    emu_now.triggered |= emu_self->triggered;
    leave();
    __tsan_release(&emu.end);
    uint32_t next = pick();
    void *unused;
    if (next != UINT32_MAX)
        run_fiber(&unused, next);
    if (emu.alive)
        deadlock();
#if EMU_TSAN
    __tsan_switch_to_fiber(emu.main_tsan, SWITCH_NO_SYNC);
#endif
    emu_switch(&unused, emu.main_sp);
    __builtin_unreachable();
}

static void need_fibers(uint32_t count)
{
    uint32_t set = emu.set_idx = (emu.set_idx + 1) % SETS;
    if (!emu.set[set])
        emu.set[set] = (struct fiber *)calloc(THREADS_MAX, sizeof(struct fiber));
    emu.fiber = emu.set[set];
    for (; emu.fiber_count[set] < count; emu.fiber_count[set]++) {
        struct fiber *f = &emu.fiber[emu.fiber_count[set]];
        f->stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (f->stack == MAP_FAILED)
            emu_fault(0, "no memory for the stack of a thread");
#if EMU_TSAN
        f->tsan = __tsan_create_fiber(0);
#endif
    }
}

static void reset_thread(uint32_t i)
{
    struct fiber *f = &emu.fiber[i];
    dim3 d = emu_now.bdim;
    f->thread = {};
    f->thread.tid = dim3(i % d.x, i / d.x % d.y, i / (d.x * d.y));
    f->thread.lane = i % 32;
    f->thread.warp = i / 32;
    f->group = f->copy_first = f->copy_count = 0;
    /* tops a few cache lines apart: aligned alike, all stacks would share the same few sets */
    f->sp = new_context((char *)f->stack + STACK_BYTES - i % 61 * 320, thread_main);
}

void emu_run_block(const std::function<void()> *body)
{
    uint32_t n = emu_now.bdim.x * emu_now.bdim.y * emu_now.bdim.z;
    need_fibers(n);
    emu.body = body;
    emu.alive = n;
    emu.warp_count = (n + 31) / 32;
    emu.in_barrier = emu.barrier_count = emu.warps_ready = 0;
    emu.descending = draw() & 1;
    emu.orders = (struct orders *)malloc(sizeof(*emu.orders));
    for (uint32_t i = 0; i < n; i++)
        reset_thread(i);
    for (uint32_t w = 0; w < emu.warp_count; w++) {
        uint32_t lanes = n - w * 32 >= 32 ? UINT32_MAX : (1u << (n - w * 32)) - 1;
        emu.warp[w].alive = lanes;
        emu.warp[w].ready = emu.warp[w].in_op = emu.warp[w].in_barrier = 0;
        make_ready(w, lanes);
    }
    __tsan_release(&emu.begin);
#if EMU_TSAN
    emu.main_tsan = __tsan_get_current_fiber();
#endif
    emu_self = NULL;
    run_fiber(&emu.main_sp, pick());
    emu_self = NULL;
    free(emu.orders);
}

/* Blocks of a grid in an order drawn by lot: a random start and a random stride. */
uint32_t emu_permute_begin(uint32_t count, uint32_t *stride)
{
    *stride = 1;
    for (uint32_t tries = 0; tries < 16 && count > 1; tries++) {
        uint32_t s = 1 + draw() % (count - 1), a = s, b = count;
        while (b) {
            uint32_t r = a % b;
            a = b;
            b = r;
        }
        if (a == 1) {
            *stride = s;
            break;
        }
    }
    return draw() % count;
}

void emu_launch_end(void)
{
    __tsan_acquire(&emu.end);
}
