/* Times the CUDA backend on this GPU. Cells are read from stdin, one line each; each prints one
 * JSON line, in order, as soon as it is known; a cell that does not fit prints its "error" instead.
 *
 *   bench_cuda pair   [options] < lines   GROUP BATCH ADAPTERS RANK COPIES: shrink and finish of
 * one layer's group (qkv, o, gate_up, down) bench_cuda kernel [options] < lines   gemm GROUP ROWS |
 * attention BATCH CONTEXT | prefill ROWS CONTEXT | norm ROWS | embed ROWS | logits ROWS | sample
 * ROWS MODE | score ROWS bench_cuda step   [options] < lines   BATCH CONTEXT LORA RANK ADAPTERS
 * SEED: a decode step of the whole model (bench_step.c) bench_cuda swap   [options] < lines   RANK
 * BATCH: adapters from host memory to use (bench_swap.c) options: --shape NAME --repeats N
 * --device-bytes N --deterministic 0|1 --eager
 *
 * Every time is a median over replays of a CUDA graph that walks over as many layers' own weights
 * as leave none in the cache, divided by the layers. "bytes" are those of the weights and the KV,
 * each once; "flops" are given where they can be the bound. With --eager nothing is timed: every
 * kernel runs once, for a profiler. */
#include "server/base/check.h"
#include "server/base/mem.h"
#include "tests/gpu/bench_cell.h"
#include "tests/gpu/bench_modes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define L2_TIMES_3 ((uint64_t)180 << 20)

static int by_name(const char *name)
{
    for (int g = 0; g < GROUP_COUNT; g++)
        if (strcmp(group_name[g], name) == 0)
            return g;
    return GROUP_COUNT;
}

/* ---- pair ---- */

static void print_pair(struct cell *c, const char *rank, uint32_t count)
{
    struct rig *r = c->rig;
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < count; i++)
        bytes += adapter_group_bytes(r, c->adapters, i, c->group);
    cell_step(c, true);
    struct timing pair = rig_time(r, cell_pair, c, c->copies);
    struct timing shrink = rig_time(r, cell_shrink, c, c->copies);
    struct timing finish = rig_time(r, cell_finish, c, c->copies);
    cell_step(c, false);
    struct timing base = rig_time(r, cell_finish, c, c->copies);
    printf("{\"cell\": \"%s b%u a%u r%s\", \"copies\": %u, \"us\": %.3f, \"shrink_us\": %.3f, "
           "\"finish_us\": %.3f, \"base_us\": %.3f, \"spread\": %.3f, \"bytes\": %llu}\n",
           group_name[c->group], c->n_tok, count, rank, c->copies, pair.us, shrink.us, finish.us,
           base.us, pair.spread, (unsigned long long)bytes);
}

struct pair_cell {
    char group[16], rank[8];
    uint32_t batch, count, copies;
};

static bool pair_parse(struct pair_cell *p, const char *line)
{
    return sscanf(line, "%15s %u %u %7s %u", p->group, &p->batch, &p->count, p->rank, &p->copies) ==
               5 &&
           by_name(p->group) != GROUP_COUNT && p->count > 0 && p->count <= p->batch &&
           p->copies > 0 && rank_max_of(p->rank) > 0;
}

static bool pair_first(struct rig *r, char line[][LINE_BYTES], uint32_t n, uint32_t *bad)
{
    struct pair_cell p;
    (void)r;
    for (*bad = 0; *bad < n; (*bad)++)
        if (!pair_parse(&p, line[*bad]))
            return false;
    return true;
}

static void pair_line(struct rig *r, const char *line)
{
    struct pair_cell p;
    struct adapters a;
    struct cell c;
    uint32_t mark = rig_mark(r);
    CHECK(pair_parse(&p, line));
    struct cell_options o = {.n_tok = p.batch,
                             .n_seq = p.batch,
                             .context = 1,
                             .copies = p.copies,
                             .group = (enum group)by_name(p.group),
                             .adapters = &a};
    if (!adapters_make(r, &a, p.count, p.rank, p.copies, o.group) || !cell_open(&c, r, &o)) {
        printf("{\"cell\": \"%s b%u a%u r%s\", \"error\": \"does not fit\"}\n", p.group, p.batch,
               p.count, p.rank);
    } else {
        print_pair(&c, p.rank, p.count);
        cell_close(&c);
    }
    adapters_free(&a);
    rig_release(r, mark);
}

/* ---- single kernels ---- */

struct kernel_row {
    const char *line;
    struct timing t;
    uint64_t bytes, flops;
};

static void print_kernel(const struct kernel_row *k)
{
    printf(
        "{\"kernel\": \"%s\", \"us\": %.3f, \"spread\": %.3f, \"bytes\": %llu, \"flops\": %llu}\n",
        k->line, k->t.us, k->t.spread, (unsigned long long)k->bytes, (unsigned long long)k->flops);
}

static uint32_t copies_for(uint64_t bytes)
{
    uint64_t n = L2_TIMES_3 / MAX(bytes, (uint64_t)1) + 1;
    return (uint32_t)MAX((uint64_t)2, MIN(n, (uint64_t)64));
}

static bool time_gemm(struct rig *r, const char *group, uint32_t rows, struct kernel_row *k)
{
    struct cell c;
    int g = by_name(group);
    if (g == GROUP_COUNT)
        return false;
    struct group_dims d = group_dims(&r->shape, (enum group)g);
    uint64_t weights = (uint64_t)d.d_in * d.d_out * 2;
    k->bytes = weights + (uint64_t)rows * (2ull * d.d_in + 4ull * d.d_out);
    k->flops = 2ull * rows * d.d_in * d.d_out;
    struct cell_options o = {.n_tok = rows,
                             .n_seq = 1,
                             .context = rows,
                             .copies = copies_for(weights),
                             .group = (enum group)g};
    if (!cell_open(&c, r, &o))
        return false;
    c.w = rig_bf16(r, weights / 2 * o.copies);
    if (c.w) {
        cell_step(&c, false);
        k->t = rig_time(r, cell_gemm, &c, o.copies);
    }
    cell_close(&c);
    return true;
}

static bool time_attention(struct rig *r, uint32_t n_tok, uint32_t n_seq, uint32_t context,
                           struct kernel_row *k)
{
    const struct shape *s = &r->shape;
    struct cell c;
    uint64_t layer = 4ull * s->n_kv_head * s->d_head * context * n_seq; /* keys and values, bf16 */
    double walked = (double)n_tok * (context - (double)(n_tok / n_seq - 1) / 2);
    k->bytes = layer;
    k->flops = (uint64_t)(4.0 * s->n_head * s->d_head * walked);
    uint32_t copies = n_tok == n_seq ? copies_for(layer) : 4;
    struct cell_options o = {.n_tok = n_tok,
                             .n_seq = n_seq,
                             .context = context,
                             .copies = copies,
                             .kv_layers = copies,
                             .group = GROUP_COUNT};
    if (n_tok > context * n_seq || !cell_open(&c, r, &o))
        return false;
    cell_step(&c, false);
    k->t = rig_time(r, cell_attention, &c, copies);
    cell_close(&c);
    return true;
}

struct rows_bench {
    struct cell *c;
    void *w, *gain, *scratch;
    struct rig_result found; /* of sample or score */
    float *logits;
    int32_t *target;
    struct sample_row *row;
};

static enum status run_norm(void *arg, uint32_t layer)
{
    struct rows_bench *b = arg;
    struct rig *r = b->c->rig;
    (void)layer;
    struct norm_args a = {.out = b->c->x,
                          .x = b->c->h,
                          .gain = b->gain,
                          .eps = 1e-5f,
                          .n_tok = b->c->n_tok,
                          .d_model = r->shape.d_model};
    return r->b->ops->norm(r->b, &a);
}

static enum status run_embed(void *arg, uint32_t layer)
{
    struct rows_bench *b = arg;
    struct rig *r = b->c->rig;
    (void)layer;
    struct embed_args a = {.out = b->c->h,
                           .table = {b->w, DTYPE_BF16, r->shape.n_vocab, r->shape.d_model, NULL},
                           .ids = b->c->ids,
                           .n_tok = b->c->n_tok};
    return r->b->ops->embed(r->b, &a);
}

static enum status run_logits(void *arg, uint32_t layer)
{
    struct rows_bench *b = arg;
    struct rig *r = b->c->rig;
    (void)layer;
    struct logits_args a = {.out = b->logits,
                            .x = b->c->x,
                            .w = {b->w, DTYPE_BF16, r->shape.n_vocab, r->shape.d_model, NULL},
                            .n_row = b->c->n_tok};
    return r->b->ops->logits(r->b, &a);
}

static enum status run_sample(void *arg, uint32_t layer)
{
    struct rows_bench *b = arg;
    struct rig *r = b->c->rig;
    (void)layer;
    uint32_t ticket;
    struct sample_args a = {.logits = b->logits,
                            .row = b->row,
                            .scratch = b->scratch,
                            .n_row = b->c->n_tok,
                            .n_vocab = r->shape.n_vocab};
    enum status st = r->b->ops->sample_begin(r->b, &a, &ticket);
    if (!st)
        rig_began(r, &b->found, ticket);
    return st;
}

static enum status run_score(void *arg, uint32_t layer)
{
    struct rows_bench *b = arg;
    struct rig *r = b->c->rig;
    (void)layer;
    uint32_t ticket;
    struct score_args a = {.x = b->c->x,
                           .w = {b->w, DTYPE_BF16, r->shape.n_vocab, r->shape.d_model, NULL},
                           .target = b->target,
                           .scratch = b->scratch,
                           .n_row = b->c->n_tok};
    enum status st = r->b->ops->score_begin(r->b, &a, &ticket);
    if (!st)
        rig_began(r, &b->found, ticket);
    return st;
}

static bool sample_rows(struct rows_bench *b, const char *mode)
{
    struct sample_row row = {.top_p = 1, .repetition = 1};
    if (strcmp(mode, "greedy") != 0)
        row.temperature = 1;
    if (strcmp(mode, "top_p") == 0) {
        row.top_p = 0.9f;
        row.top_k = 50;
    } else if (strcmp(mode, "temperature") != 0 && strcmp(mode, "greedy") != 0) {
        return false;
    }
    for (uint32_t i = 0; i < b->c->n_tok; i++) {
        b->row[i] = row;
        b->row[i].seed = i;
        b->row[i].slot = i;
    }
    return true;
}

/* Ops on whole rows of the head. */
static bool time_rows(struct rig *r, const char *what, const char *mode, uint32_t rows,
                      struct kernel_row *k)
{
    const struct shape *s = &r->shape;
    struct cell c;
    struct cell_options o = {
        .n_tok = rows, .n_seq = rows, .context = 1, .copies = 1, .group = GROUP_COUNT};
    if (!cell_open(&c, r, &o))
        return false;
    struct rows_bench b = {.c = &c};
    uint64_t head = 2ull * s->n_vocab * s->d_model, logit_bytes = 4ull * rows * s->n_vocab;
    size_t scratch = backend_sample_scratch_bytes(r->b, s->n_vocab);
    b.w = rig_bf16(r, head / 2);
    b.gain = rig_f32(r, s->d_model);
    b.logits = rig_f32(r, (size_t)rows * s->n_vocab);
    b.scratch = rig_zero(r, MAX(scratch, (size_t)rows * SCORE_TILE * sizeof(float)));
    b.found.host = mem_array(rows, sizeof(struct sample_out));
    b.target = mem_array(rows, sizeof(*b.target));
    b.row = mem_array(rows, sizeof(*b.row));
    bool known = b.w && b.gain && b.logits && b.scratch;
    cell_step(&c, false);
    if (known && strcmp(what, "norm") == 0) {
        k->bytes = 6ull * rows * s->d_model;
        k->t = rig_time(r, run_norm, &b, 64);
    } else if (known && strcmp(what, "embed") == 0) {
        k->bytes = 6ull * rows * s->d_model;
        k->t = rig_time(r, run_embed, &b, 64);
    } else if (known && strcmp(what, "logits") == 0) {
        k->bytes = head + logit_bytes;
        k->flops = head * rows;
        k->t = rig_time(r, run_logits, &b, 2);
    } else if (known && strcmp(what, "sample") == 0) {
        k->bytes = logit_bytes;
        known = sample_rows(&b, mode);
        if (known)
            k->t = rig_time_calls(r, run_sample, &b);
    } else if (known && strcmp(what, "score") == 0) {
        k->bytes = head;
        k->flops = head * rows;
        k->t = rig_time_calls(r, run_score, &b);
    } else {
        known = false;
    }
    rig_take(r, &b.found);
    mem_free(b.found.host);
    mem_free(b.target);
    mem_free(b.row);
    cell_close(&c);
    return known;
}

struct kernel_cell {
    char what[16], word[16];
    uint32_t n, context;
};

static bool kernel_parse(struct kernel_cell *k, const char *line)
{
    static const char *const whole_rows[] = {"norm", "embed", "logits", "sample", "score"};
    memset(k, 0, sizeof(*k));
    k->context = 1;
    if (sscanf(line, "gemm %15s %u", k->word, &k->n) == 2) {
        snprintf(k->what, sizeof(k->what), "gemm");
        return by_name(k->word) != GROUP_COUNT && k->n > 0 && k->n <= RIG_ROWS_MAX;
    }
    bool attends = sscanf(line, "attention %u %u", &k->n, &k->context) == 2;
    if (attends || sscanf(line, "prefill %u %u", &k->n, &k->context) == 2) {
        snprintf(k->what, sizeof(k->what), attends ? "attention" : "prefill");
        return k->n > 0 && k->n <= RIG_ROWS_MAX && k->context > 0 &&
               (attends || k->context >= k->n);
    }
    if (sscanf(line, "%15s %u %15s", k->what, &k->n, k->word) < 2)
        return false;
    for (size_t i = 0; i < ARRAY_COUNT(whole_rows); i++)
        if (strcmp(k->what, whole_rows[i]) == 0)
            return k->n > 0 && k->n <= 256;
    return false;
}

static bool kernel_first(struct rig *r, char line[][LINE_BYTES], uint32_t n, uint32_t *bad)
{
    struct kernel_cell k;
    struct backend_limits lim = rig_limits(r);
    for (*bad = 0; *bad < n; (*bad)++) {
        if (!kernel_parse(&k, line[*bad]))
            return false;
        bool one_seq = strcmp(k.what, "gemm") == 0 || strcmp(k.what, "prefill") == 0;
        uint32_t context = strcmp(k.what, "gemm") == 0 ? k.n : k.context;
        lim.rows_max = MAX(lim.rows_max, k.n);
        lim.seqs_max = MAX(lim.seqs_max, one_seq ? 1 : k.n);
        lim.page_stride = MAX(lim.page_stride, (context + PAGE_TOK - 1) / PAGE_TOK);
        lim.logits_rows_max = MAX(lim.logits_rows_max, MIN(k.n, 256u));
    }
    rig_prepare(r, &lim);
    return true;
}

static void kernel_line(struct rig *r, const char *line)
{
    struct kernel_cell c;
    struct kernel_row k = {.line = line};
    bool ok;
    CHECK(kernel_parse(&c, line));
    if (strcmp(c.what, "gemm") == 0)
        ok = time_gemm(r, c.word, c.n, &k);
    else if (strcmp(c.what, "attention") == 0)
        ok = time_attention(r, c.n, c.n, c.context, &k);
    else if (strcmp(c.what, "prefill") == 0)
        ok = time_attention(r, c.n, 1, c.context, &k);
    else
        ok = time_rows(r, c.what, c.word, c.n, &k);
    if (ok)
        print_kernel(&k);
    else
        printf("{\"kernel\": \"%s\", \"error\": \"not understood, or does not fit\"}\n", line);
}

/* ---- the command line ---- */

static int usage(const char *wrong)
{
    fprintf(stderr,
            "%s%sbench_cuda pair|kernel|step|swap [--shape NAME] [--repeats N] [--device-bytes N] "
            "[--deterministic 0|1] [--eager] < lines\n",
            wrong, *wrong ? ": not understood\n" : "");
    return 2;
}

static bool parse(struct rig_options *o, int argc, char **argv, const char **wrong)
{
    *o = (struct rig_options){.shape = "llama-3.1-8b", .repeats = 20};
    for (int i = 2; i < argc; i++) {
        *wrong = argv[i];
        if (strcmp(argv[i], "--eager") == 0) {
            o->eager = true;
            continue;
        }
        if (i + 1 >= argc)
            return false;
        const char *value = argv[i + 1];
        if (strcmp(argv[i], "--shape") == 0)
            o->shape = value;
        else if (strcmp(argv[i], "--repeats") == 0)
            o->repeats = (uint32_t)strtoul(value, NULL, 10);
        else if (strcmp(argv[i], "--device-bytes") == 0)
            o->device_bytes = strtoull(value, NULL, 10);
        else if (strcmp(argv[i], "--deterministic") == 0)
            o->deterministic = value[0] == '1';
        else
            return false;
        i++;
    }
    return true;
}

/* What a mode is: see bench_modes.h. */
static const struct mode {
    const char *name;
    mode_first *first;
    mode_line *line;
    mode_end *end;
} modes[] = {
    {"pair", pair_first, pair_line, NULL},
    {"kernel", kernel_first, kernel_line, NULL},
    {"step", step_first, step_line, step_end},
    {"swap", swap_first, swap_line, swap_end},
};

static uint32_t read_lines(char line[][LINE_BYTES])
{
    uint32_t n = 0;
    while (n < LINES_MAX && fgets(line[n], LINE_BYTES, stdin)) {
        line[n][strcspn(line[n], "\n")] = '\0';
        n += line[n][0] != '\0';
    }
    return n;
}

int main(int argc, char **argv)
{
    static char line[LINES_MAX][LINE_BYTES];
    struct rig_options o;
    struct rig r;
    const char *wrong = argc > 1 ? argv[1] : "";
    uint32_t bad = 0;
    size_t m = 0;
    while (m < ARRAY_COUNT(modes) && strcmp(modes[m].name, wrong) != 0)
        m++;
    if (m == ARRAY_COUNT(modes) || !parse(&o, argc, argv, &wrong))
        return usage(wrong);
    uint32_t n = read_lines(line);
    rig_open(&r, &o);
    if (!modes[m].first(&r, line, n, &bad)) {
        fprintf(stderr, "bench_cuda: line not understood: %s\n", line[bad]);
        return 2;
    }
    for (uint32_t i = 0; i < n; i++) {
        modes[m].line(&r, line[i]);
        fflush(stdout);
    }
    if (modes[m].end)
        modes[m].end(&r);
    rig_close(&r);
    return 0;
}
