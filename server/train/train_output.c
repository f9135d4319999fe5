/* See train_output.h. The weights go last, so that a folder with them has the rest too. */
#include "server/train/train_output.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/hex.h"
#include "server/base/mem.h"
#include "server/datanet/training_split.h"
#include "server/train/train_options.h"

#include <float.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>

#define TEXT_BYTES_MAX ((size_t)64 << 20)
#define PLOT_W         720
#define PLOT_H         320
#define PLOT_EDGE      48
#define PLOT_POINTS    600
#define LOSSES_MAX     100000

static void put_hex(struct buf *out, const char *key, const uint8_t v[32])
{
    buf_put_json_hex(out, key, v, 32);
    buf_putc(out, ',');
}

/* What fixes the result. */
static void put_recipe(struct buf *out, const struct train_report *r)
{
    put_hex(out, "base", r->model->id);
    buf_printf(out, "\"computedIn\":\"%s\",", r->model->dtype == DTYPE_BF16 ? "bf16" : "f32");
    put_hex(out, "documentRoot", datanet_head(r->datanet)->document_root);
    if (!sodium_is_zero(r->lora->from, 32))
        put_hex(out, "from", r->lora->from);
    train_options_put(out, r->options);
    buf_putc(out, ',');
    if (r->eval) {
        buf_printf(out, "\"evaluation\":{\"every\":%u,", r->eval->every);
        put_hex(out, "documentRoot", datanet_head(r->held_of)->document_root);
        put_hex(out, "rows", r->held->digest);
        buf_printf(out, "\"patience\":%u},", r->eval->patience);
    }
    put_hex(out, "training", r->training->digest);
}

void train_what(uint8_t what[32], const struct train_report *r)
{
    struct buf text;
    buf_init(&text, TEXT_BYTES_MAX);
    put_recipe(&text, r);
    buf_put(&text, r->lora->config_json, r->lora->config_bytes);
    CHECK(!text.failed);
    crypto_generichash(what, 32, (const uint8_t *)text.data, text.len, NULL, 0);
    buf_fini(&text);
}

static enum status write_file(const char *dir, const char *name, const struct buf *text,
                              struct errtext *err)
{
    char path[PATH_MAX];
    if (text->failed)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for it", name);
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    return file_write_atomic(path, text->data, text->len, 0644, err);
}

/* ---- the curve ---- */

static float loss_between(const float *loss, uint32_t from, uint32_t to)
{
    double sum = 0;
    for (uint32_t i = from; i < to; i++)
        sum += (double)loss[i];
    return (float)(sum / MAX(to - from, 1u));
}

static void put_label(struct buf *out, double x, double y, const char *anchor, const char *text)
{
    buf_printf(out,
               "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" font-family=\"sans-serif\" "
               "font-size=\"12\" fill=\"#555\">%s</text>\n",
               x, y, anchor, text);
}

static double plot_y(float loss, float most)
{
    return PLOT_H - PLOT_EDGE - (PLOT_H - 2 * PLOT_EDGE) * (double)(MIN(loss, most) / most);
}

/* The losses of held-out rows, over the steps that were made by then. */
static void put_eval_curve(struct buf *out, const struct trainer *t, float most)
{
    uint32_t n, steps = trainer_done(t);
    const struct train_eval *e = trainer_evals(t, &n);
    const struct train_eval *best = trainer_best(t);
    char text[64];
    if (!n)
        return;
    buf_puts(out, "<polyline fill=\"none\" stroke=\"#c60\" stroke-width=\"1.5\" points=\"");
    for (uint32_t i = 0; i < n; i += n / PLOT_POINTS + 1)
        buf_printf(out, "%.1f,%.1f ",
                   PLOT_EDGE + (PLOT_W - 2.0 * PLOT_EDGE) * (e[i].step - 1) / MAX(steps - 1, 1u),
                   plot_y(e[i].loss, most));
    buf_puts(out, "\"/>\n");
    snprintf(text, sizeof(text), "held out, at least %.3f (step %u)", (double)best->loss,
             best->step);
    put_label(out, PLOT_W - PLOT_EDGE, PLOT_EDGE - 12, "end", text);
}

static float most_of(const struct trainer *t)
{
    const float *loss = trainer_losses(t);
    uint32_t n;
    const struct train_eval *e = trainer_evals(t, &n);
    float most = 0;
    for (uint32_t i = 0; i < trainer_done(t); i++)
        most = MAX(most, loss[i]);
    for (uint32_t i = 0; i < n; i++)
        most = e[i].loss < FLT_MAX ? MAX(most, e[i].loss) : most;
    return most > 0 ? most : 1;
}

static void put_curve(struct buf *out, const struct trainer *t)
{
    const float *loss = trainer_losses(t);
    uint32_t n = trainer_done(t), points = MIN(n, (uint32_t)PLOT_POINTS);
    float most = most_of(t);
    char text[48];
    double w = PLOT_W - 2 * PLOT_EDGE;
    buf_printf(out,
               "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" role=\"img\" "
               "aria-label=\"loss by step\">\n<rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n"
               "<path d=\"M%d %dV%dH%d\" fill=\"none\" stroke=\"#888\"/>\n<polyline fill=\"none\" "
               "stroke=\"#1a6\" stroke-width=\"1.5\" points=\"",
               PLOT_W, PLOT_H, PLOT_W, PLOT_H, PLOT_EDGE, PLOT_EDGE, PLOT_H - PLOT_EDGE,
               PLOT_W - PLOT_EDGE);
    for (uint32_t i = 0; i < points; i++) {
        uint32_t from = (uint32_t)((uint64_t)n * i / points);
        uint32_t to = (uint32_t)((uint64_t)n * (i + 1) / points);
        double x = PLOT_EDGE + w * (points > 1 ? (double)i / (points - 1) : 0);
        buf_printf(out, "%.1f,%.1f ", x, plot_y(loss_between(loss, from, to), most));
    }
    buf_puts(out, "\"/>\n");
    snprintf(text, sizeof(text), "loss, at most %.3f", (double)most);
    put_label(out, PLOT_EDGE, PLOT_EDGE - 12, "start", text);
    snprintf(text, sizeof(text), "%u steps", n);
    put_label(out, PLOT_W - PLOT_EDGE, PLOT_H - PLOT_EDGE + 18, "end", text);
    put_eval_curve(out, t, most);
    buf_puts(out, "</svg>\n");
}

/* ---- all ---- */

/* Of every step, or of every so manieth. */
static void put_losses(struct buf *out, const float *loss, uint32_t n)
{
    uint32_t every = n / LOSSES_MAX + 1;
    buf_printf(out, "\"lossEvery\":%u,\"losses\":[", every);
    for (uint32_t i = 0; i < n; i += every)
        buf_printf(out, "%s%.9g", i ? "," : "", (double)loss[i]);
    buf_puts(out, "],");
}

static void put_evals(struct buf *out, const struct train_report *r)
{
    uint32_t n;
    const struct train_eval *e = trainer_evals(r->trainer, &n), *best = trainer_best(r->trainer);
    if (!best)
        return;
    buf_printf(out, "\"evaluated\":{\"best\":{\"loss\":%.9g,\"step\":%u},\"kept\":%u,",
               (double)best->loss, best->step,
               r->eval->patience ? best->step : trainer_done(r->trainer));
    buf_puts(out, "\"losses\":[");
    for (uint32_t i = 0; i < n; i += n / LOSSES_MAX + 1)
        buf_printf(out, "%s[%u,%.9g]", i ? "," : "", e[i].step, (double)e[i].loss);
    buf_printf(out, "],\"rows\":%u,\"stoppedEarly\":%s},", r->held->n,
               trainer_done(r->trainer) < trainer_steps(r->trainer) ? "true" : "false");
}

/* How full the passes were, since the program began or went on; with others in them too. */
static void put_packing(struct buf *out, const struct train_report *r)
{
    if (!r->pass)
        return;
    const struct train_pass_stats s = train_pass_stats(r->pass);
    buf_printf(out,
               "\"packing\":{\"passes\":%" PRIu64 ",\"rowsPerPass\":%.2f,\"tokenShare\":%.4f},",
               s.passes, (double)s.sequences / (double)MAX(s.passes, 1u),
               (double)s.tokens / (double)MAX(s.room, 1u));
}

static void put_report(struct buf *out, const struct train_report *r, const uint8_t id[32])
{
    const float *loss = trainer_losses(r->trainer);
    uint32_t n = trainer_done(r->trainer);
    buf_putc(out, '{');
    put_hex(out, "adapterId", id);
    put_recipe(out, r);
    buf_puts(out, "\"format\":\"residual.train.1\",");
    put_losses(out, loss, n);
    put_evals(out, r);
    put_packing(out, r);
    buf_printf(out, "\"program\":\"residual %s\",\"rows\":%u,\"steps\":%u}\n", r->version,
               r->training->n, n);
}

static enum status adapter_id(const struct train_lora *lora, const struct buf *weights,
                              uint8_t id[32], struct errtext *err)
{
    struct peft_adapter a;
    char *config = mem_alloc(lora->config_bytes + 1), *tensors = mem_alloc(weights->len + 1);
    memcpy(config, lora->config_json, lora->config_bytes);
    memcpy(tensors, weights->data, weights->len);
    enum status st =
        peft_from_bytes(&a, config, lora->config_bytes, tensors, weights->len, lora->base, err);
    if (st) {
        mem_free(config);
        mem_free(tensors);
        return st;
    }
    memcpy(id, a.id, 32);
    peft_fini(&a);
    return STATUS_OK;
}

static enum status write_manifest(const char *dir, const char *name, const struct training *t,
                                  const struct datanet *d, struct errtext *err)
{
    struct buf text;
    buf_init(&text, TRAINING_BYTES_MAX);
    enum status st = training_render(&text, t, d, err);
    if (!st)
        st = write_file(dir, name, &text, err);
    buf_fini(&text);
    return st;
}

/* training.json is to say which rows were learned: not those that were held out of it. */
static enum status write_held(const char *dir, const struct train_report *r, struct errtext *err)
{
    if (!r->held || r->held_of != r->datanet)
        return STATUS_OK;
    enum status st = write_manifest(dir, TRAINING_HELD_FILE, r->held, r->datanet, err);
    return st ? st : write_manifest(dir, TRAINING_FILE, r->training, r->datanet, err);
}

enum status train_output_report(const char *dir, const struct train_report *r,
                                const struct buf *weights, uint8_t id[32], struct errtext *err)
{
    struct buf text;
    buf_init(&text, TEXT_BYTES_MAX);
    enum status st = adapter_id(r->lora, weights, id, err);
    if (!st) {
        put_report(&text, r, id);
        st = write_file(dir, TRAIN_REPORT_FILE, &text, err);
    }
    if (!st) {
        buf_clear(&text);
        put_curve(&text, r->trainer);
        st = write_file(dir, TRAIN_LOSS_FILE, &text, err);
    }
    buf_fini(&text);
    return st;
}

enum status train_output(const char *dir, const struct train_report *r, uint8_t id[32],
                         struct errtext *err)
{
    const struct train_lora *lora = r->lora;
    struct buf weights, text;
    buf_init(&weights, SIZE_MAX / 2);
    buf_init(&text, TEXT_BYTES_MAX);
    enum status st = train_lora_render(lora, &weights, err);
    if (!st)
        st = train_output_report(dir, r, &weights, id, err);
    if (!st) {
        buf_put(&text, lora->config_json, lora->config_bytes);
        st = write_file(dir, "adapter_config.json", &text, err);
    }
    if (!st)
        st = write_held(dir, r, err);
    if (!st)
        st = write_file(dir, "adapter_model.safetensors", &weights, err);
    buf_fini(&weights);
    buf_fini(&text);
    return st;
}
