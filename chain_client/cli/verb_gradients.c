/* residual gradients DIR --model BASE: the third signal of attribution of an adapter that stands in
 * its datanet's folder, and in --out what anybody needs to compute it again. The file is
 * safetensors:
 *
 *   rows.gradient     f32 [rows][width]  of -log p of what is learned of a row, matrix by matrix
 *   answers.gradient  f32 [answers][width]
 *   rows.logprob      f32 [rows], answers.logprob f32 [answers]
 *   blocks            i32 [matrices][6]  layer, module (q k v o gate up down), 0 A or 1 B
 *                     transposed, rank, length, columns: rank * columns numbers each, in order
 *   scores            f64 [answers][rows] server/influence/gradients.h
 *
 * and, as strings, format, adapterId, trainingDigest, damping, project, mask. Columns
 * fewer than length: place l is taken times +-1/sqrt(columns), + where bit j of Philox4x32-10 of
 * the counter (l, matrix, 0x70726f6a, 0) under the adapterId's first eight bytes (little-endian) is
 * set. */
#include "chain_client/cli/train_setup.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/influence/gradients.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

#define ASKED_BYTES_MAX (64u << 20)
#define DAMPING         0.01
#define HEADER_MAX      (1u << 16)
#define BLOCK_NUMBERS   6
#define PARTS_MAX       7

struct gradients_run {
    struct cli *c;
    struct train_setup setup;
    struct train_source source;
    struct train_lora lora;
    struct training_rows asked;
    struct gradient_blocks blocks;
    struct gradients_taken row, answer;
    double damping, *score; /* [asked.n][rows.n] */
    uint32_t project;
};

/* ---- what is asked ---- */

static enum status read_asked(struct gradients_run *g, struct errtext *err)
{
    const char *path = g->c->value[OPT_ASKED];
    const struct training *t = g->source.training;
    const struct row_form form = {g->setup.model, g->setup.model->chat, t->bos, t->eos};
    char *text;
    size_t len;
    enum status st = path ? file_read(path, ASKED_BYTES_MAX, &text, &len, err) : STATUS_OK;
    if (st || !path)
        return st;
    st = training_rows_lines(&g->asked, &form, ROW_MASK_COMPLETION, text, len, err);
    if (st)
        err_prefix(err, "%s", path);
    mem_free(text);
    return st;
}

static enum status prepare(struct gradients_run *g, struct errtext *err)
{
    uint64_t most[2] = {0, GRADIENTS_PROJECT_MAX}, project, seed;
    g->damping = DAMPING;
    enum status st = args_number(g->c, OPT_PROJECT, most, 0, &project, err);
    if (!st)
        st = args_real(g->c, OPT_DAMPING, 1e9, &g->damping, err);
    if (!st && !(g->damping > 0))
        st = err_set(err, STATUS_INVALID, "--damping: found 0, expected more");
    if (!st)
        st = train_setup_options(&g->setup, err);
    if (!st)
        st = train_setup_base(&g->setup, err);
    if (!st)
        st = train_source_open(&g->source, &g->setup, g->c->operand[0], err);
    if (!st)
        st = train_lora_read(&g->lora, g->c->operand[0], &g->setup.model->config, err);
    if (!st)
        st = read_asked(g, err);
    if (st)
        return st;
    g->project = (uint32_t)project;
    memcpy(&seed, g->lora.from, sizeof(seed));
    gradient_blocks_make(&g->blocks, &g->lora, g->project, seed);
    return STATUS_OK;
}

/* ---- gradients and scores ---- */

static enum status take(struct gradients_run *g, struct errtext *err)
{
    struct train_source asked = {.rows = g->asked};
    uint32_t longest = train_source_longest(&g->source), other = train_source_longest(&asked);
    enum status st = train_setup_tokens(&g->setup, MAX(longest, other), err);
    const struct gradients_job job = {.base = g->setup.base,
                                      .lora = &g->lora,
                                      .blocks = &g->blocks,
                                      .tokens = g->setup.opt.tokens};
    if (!st && MAX(longest, other) > job.tokens)
        st = err_set(err, STATUS_INVALID, "--tokens: found %u, a row has %u", job.tokens,
                     MAX(longest, other));
    cli_note(g->c, "%u rows, %u answers, %u matrices, %" PRIu64 " numbers of each",
             g->source.rows.n, g->asked.n, g->blocks.n, g->blocks.width);
    if (!st)
        st = gradients_take(&job, &g->source.rows, &g->row, err);
    if (!st && g->asked.n)
        st = gradients_take(&job, &g->asked, &g->answer, err);
    return st;
}

static enum status score(struct gradients_run *g, struct errtext *err)
{
    const struct gradients_asked a = {.row = g->row.gradient,
                                      .answer = g->answer.gradient,
                                      .n_row = g->source.rows.n,
                                      .n_answer = g->asked.n,
                                      .damping = g->damping};
    if (!a.n_answer)
        return STATUS_OK;
    g->score = mem_try_array((size_t)a.n_answer * a.n_row, sizeof(*g->score));
    return g->score ? gradients_score(&g->blocks, &a, g->score, err)
                    : err_set(err, STATUS_NO_MEMORY, "no memory for the scores");
}

/* ---- the file ---- */

struct gradients_tensor {
    const char *name, *dtype;
    uint64_t rows, columns; /* 0: one dimension */
    const void *data;
    uint32_t item;
};

static uint64_t tensor_bytes(const struct gradients_tensor *t)
{
    return t->rows * MAX(t->columns, 1u) * t->item;
}

static void put_metadata(const struct gradients_run *g, struct buf *out)
{
    buf_puts(out, "{\"__metadata__\":{\"format\":\"residual.gradients.1\",");
    buf_put_json_hex(out, "adapterId", g->lora.from, 32);
    buf_putc(out, ',');
    buf_put_json_hex(out, "trainingDigest", g->source.training->digest, 32);
    buf_printf(out, ",\"damping\":\"%.17g\",\"project\":\"%u\",\"mask\":\"%s\"}", g->damping,
               g->project, row_mask_name(g->source.rows.mask));
}

static void put_header(const struct gradients_run *g, const struct gradients_tensor *t, uint32_t n,
                       struct buf *out)
{
    uint64_t at = 0;
    buf_put(out, "\0\0\0\0\0\0\0\0", 8);
    put_metadata(g, out);
    for (uint32_t i = 0; i < n; at += tensor_bytes(&t[i++])) {
        buf_printf(out, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%" PRIu64, t[i].name, t[i].dtype,
                   t[i].rows);
        if (t[i].columns)
            buf_printf(out, ",%" PRIu64, t[i].columns);
        buf_printf(out, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", at,
                   at + tensor_bytes(&t[i]));
    }
    buf_putc(out, '}');
    while (out->len % 8)
        buf_putc(out, ' ');
    uint64_t header = out->len - 8;
    if (!out->failed)
        memcpy(out->data, &header, sizeof(header));
}

static int32_t *list_blocks(const struct gradient_blocks *b)
{
    int32_t *out = mem_array((size_t)b->n * BLOCK_NUMBERS, sizeof(*out));
    for (uint32_t i = 0; i < b->n; i++) {
        const struct gradient_block *k = &b->block[i];
        const uint32_t number[BLOCK_NUMBERS] = {k->layer, k->module, k->is_b,
                                                k->rank,  k->length, k->columns};
        for (uint32_t j = 0; j < BLOCK_NUMBERS; j++)
            out[i * BLOCK_NUMBERS + j] = (int32_t)number[j];
    }
    return out;
}

static enum status write_file(const struct gradients_run *g, const char *path, struct errtext *err)
{
    int32_t *blocks = list_blocks(&g->blocks);
    uint64_t n = g->source.rows.n, q = g->asked.n, width = g->blocks.width;
    const struct gradients_tensor t[] = {
        /* the widest first: each stands at a whole multiple of its item */
        {"scores", "F64", q, n, g->score, 8},
        {"rows.gradient", "F32", n, width, g->row.gradient, 4},
        {"answers.gradient", "F32", q, width, g->answer.gradient, 4},
        {"rows.logprob", "F32", n, 0, g->row.logprob, 4},
        {"answers.logprob", "F32", q, 0, g->answer.logprob, 4},
        {"blocks", "I32", g->blocks.n, BLOCK_NUMBERS, blocks, 4}};
    struct file_part part[PARTS_MAX];
    struct buf header;
    static_assert(ARRAY_COUNT(t) + 1 == PARTS_MAX, "a part each");
    buf_init(&header, HEADER_MAX);
    put_header(g, t, ARRAY_COUNT(t), &header);
    part[0] = (struct file_part){header.data, header.len};
    for (uint32_t i = 0; i < ARRAY_COUNT(t); i++)
        part[i + 1] = (struct file_part){t[i].data, tensor_bytes(&t[i])};
    enum status st = header.failed ? err_set(err, STATUS_NO_MEMORY, "no memory for a header")
                                   : file_write_parts(path, part, PARTS_MAX, 0644, err);
    buf_fini(&header);
    mem_free(blocks);
    return st;
}

static void put_result(const struct gradients_run *g, struct buf *out)
{
    double rows = 0, answers = 0;
    for (uint32_t i = 0; i < g->source.rows.n; i++)
        rows += (double)g->row.logprob[i];
    for (uint32_t i = 0; i < g->asked.n; i++)
        answers += (double)g->answer.logprob[i];
    const bool json = cli_has(g->c, OPT_JSON);
    buf_printf(out,
               json ? "{\"rows\":%u,\"answers\":%u,\"matrices\":%u,\"width\":%" PRIu64
                      ",\"rows_logprob\":%.6g,\"answers_logprob\":%.6g,\"ok\":true}"
                    : "%u rows, %u answers: %u matrices, %" PRIu64
                      " numbers of each; log p of all rows %.6g, of all answers %.6g",
               g->source.rows.n, g->asked.n, g->blocks.n, g->blocks.width, rows, answers);
}

int verb_gradients(struct cli *c)
{
    struct gradients_run g = {.c = c, .setup = {.c = c}};
    struct errtext err = ERRTEXT_INIT;
    struct buf out;
    buf_init(&out, 1u << 12);
    enum status st = prepare(&g, &err);
    if (!st)
        st = take(&g, &err);
    if (!st)
        st = score(&g, &err);
    if (!st && cli_has(c, OPT_OUT))
        st = write_file(&g, c->value[OPT_OUT], &err);
    if (!st)
        put_result(&g, &out);
    int code = st ? cli_fail(c, st, &err, NULL) : cli_print(&out, 0);
    mem_free(g.score);
    gradients_taken_fini(&g.row);
    gradients_taken_fini(&g.answer);
    gradient_blocks_fini(&g.blocks);
    training_rows_fini(&g.asked);
    train_lora_fini(&g.lora);
    train_source_close(&g.source);
    train_setup_fini(&g.setup);
    buf_fini(&out);
    return code;
}
