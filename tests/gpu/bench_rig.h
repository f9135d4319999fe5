/* What bench_cuda's modes share: a backend on the device, shapes, memory full of random numbers, a
 * set of adapters with a step that uses them, and medians of replayed graphs. Tests only: a failed
 * call ends the program with its name. */
#ifndef RS_TESTS_GPU_BENCH_RIG_H
#define RS_TESTS_GPU_BENCH_RIG_H

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/lora_pack.h"

struct shape {
    const char *name;
    uint32_t n_layer, d_model, d_ff, n_head, n_kv_head, d_head, n_vocab;
};
const struct shape *shape_find(const char *name);

enum group { GROUP_QKV, GROUP_O, GROUP_GATE_UP, GROUP_DOWN, GROUP_COUNT };
extern const char *const group_name[GROUP_COUNT];
struct group_dims {
    uint32_t d_in, d_out; /* d_out: of all modules, side by side */
    enum lora_module first;
    uint32_t module_count;
    uint32_t width[3]; /* of each module */
};
struct group_dims group_dims(const struct shape *s, enum group g);

#define RIG_TAKEN_MAX  4096
#define RIG_ROWS_MAX   8192
#define RIG_LAYOUT_MAX 8

struct rig {
    struct backend *b;
    struct cuda_backend *c;
    struct shape shape;
    struct backend_limits lim;
    bool eager; /* run everything once, measure nothing: for profilers */
    uint32_t repeats;
    char *noise, *noise_f32; /* device: blocks of random bf16 and f32, copied from */
    size_t noise_bytes;
    void *taken[RIG_TAKEN_MAX];
    size_t taken_bytes[RIG_TAKEN_MAX];
    uint32_t taken_count;
};

struct rig_options {
    const char *shape;
    uint64_t device_bytes;
    bool deterministic, eager;
    uint32_t repeats;
};

/* Ends the program if a call failed. */
void must(enum status st, const char *what);

void rig_open(struct rig *r, const struct rig_options *opt);
/* Limits of this shape; give it once for all cells, since libraries choose their algorithms then.
 */
struct backend_limits rig_limits(const struct rig *r);
void rig_prepare(struct rig *r, const struct backend_limits *lim);
void rig_close(struct rig *r);

/* Device memory until rig_release(mark); random bf16, random f32, or zeros. NULL: does not fit. */
void *rig_bf16(struct rig *r, size_t count);
void *rig_f32(struct rig *r, size_t count);
void *rig_zero(struct rig *r, size_t bytes);
uint32_t rig_mark(const struct rig *r);
void rig_release(struct rig *r, uint32_t mark);

/* ---- adapters ---- */

struct adapters {
    uint32_t count;
    struct lora_slot *slot; /* [count] */
    struct lora_layout layout[RIG_LAYOUT_MAX];
    uint32_t layout_rank[RIG_LAYOUT_MAX], layout_count;
    struct lora_table table;
    uint64_t bytes;        /* of all blobs */
    uint32_t rank_sum_max; /* of a group */
};

/* rank: a number, or "mix" (8..128 in the proportions 40, 30, 15, 10, 5 %). only: the modules of
 * one group, or GROUP_COUNT for all. Random contents, the padding of a rank too: only time is
 * measured. false: they do not fit. */
bool adapters_make(struct rig *r, struct adapters *a, uint32_t count, const char *rank,
                   uint32_t n_layer, enum group only);
void adapters_free(struct adapters *a);
/* The largest rank that a rank's text means; 0: not understood. */
uint32_t rank_max_of(const char *rank);
uint32_t adapter_rank(const struct adapters *a, uint32_t i);
/* What the weights of adapter i's group weigh in one layer, true rank. */
uint64_t adapter_group_bytes(const struct rig *r, const struct adapters *a, uint32_t i,
                             enum group g);

/* ---- time ---- */

typedef enum status run_fn(void *arg, uint32_t layer);

struct timing {
    double us;     /* median, per layer */
    double spread; /* of the medians of the two halves of the repeats, relative */
};
/* Records fn(arg, 0..layers-1) as one graph and replays it. */
struct timing rig_time(struct rig *r, run_fn *fn, void *arg, uint32_t layers);
/* The same for calls that cannot be recorded: events around each. */
struct timing rig_time_calls(struct rig *r, run_fn *fn, void *arg);
double median_of(double *v, uint32_t n); /* sorts v */

/* ---- results ---- */

/* Host memory for what an op that begins finds. Taken when the next call begins, as the engine
 * does: the stream has work meanwhile. */
struct rig_result {
    void *host;
    uint32_t ticket;
    bool pending;
};
/* What is pending, waiting for it. */
void rig_take(struct rig *r, struct rig_result *x);
/* The op began with this ticket: the one before it is taken. */
void rig_began(struct rig *r, struct rig_result *x, uint32_t ticket);

#endif
