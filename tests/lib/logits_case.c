/* The bars, in units of the reference's logit standard deviation: f32 max 2e-4 and 64 equal greedy
 * tokens; bf16 rms 1.5e-2, max 8e-2, argmax equal wherever the reference's margin exceeds 0.15. */
#include "tests/lib/logits_case.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/mem.h"

#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define F32_MAX     2e-4
#define BF16_RMS    1.5e-2
#define BF16_MAX    8e-2
#define BF16_MARGIN 0.15

struct loaded_case {
    json_t *root;
    char *bytes;
    size_t len;
    struct st_file file;
    int32_t *prompt;
    uint32_t n_prompt;
    double std;
};

static enum status case_open(struct loaded_case *c, const char *dir, struct errtext *err)
{
    char path[PATH_MAX], *text;
    size_t len;
    memset(c, 0, sizeof(*c));
    snprintf(path, sizeof(path), "%s/expected.json", dir);
    enum status st = file_read(path, 1u << 24, &text, &len, err);
    if (st)
        return st;
    c->root = json_loadb(text, len, 0, NULL);
    mem_free(text);
    snprintf(path, sizeof(path), "%s/expected.safetensors", dir);
    st = file_read(path, 1u << 28, &c->bytes, &c->len, err);
    if (!st)
        st = safetensors_parse(&c->file, c->bytes, c->len, c->len, 1u << 20, err);
    if (st)
        return st;
    const json_t *prompt = json_object_get(c->root, "prompt");
    c->n_prompt = (uint32_t)json_array_size(prompt);
    c->prompt = mem_array(c->n_prompt + 1, sizeof(*c->prompt));
    for (uint32_t i = 0; i < c->n_prompt; i++)
        c->prompt[i] = (int32_t)json_integer_value(json_array_get(prompt, i));
    c->std = json_number_value(json_object_get(c->root, "logit_std"));
    return c->n_prompt && c->std > 0 ? STATUS_OK : err_set(err, STATUS_CORRUPT, "%s: no case", dir);
}

static void case_close(struct loaded_case *c)
{
    json_decref(c->root);
    safetensors_fini(&c->file);
    mem_free(c->bytes);
    mem_free(c->prompt);
}

struct distance {
    double max, rms;
    uint32_t argmax_wrong; /* where the reference is sure */
};

static uint32_t argmax(const float *x, uint32_t n, double *margin)
{
    uint32_t best = 0;
    float second = -INFINITY;
    for (uint32_t i = 1; i < n; i++) {
        if (x[i] > x[best]) {
            second = x[best];
            best = i;
        } else if (x[i] > second) {
            second = x[i];
        }
    }
    if (margin)
        *margin = (double)x[best] - (double)second;
    return best;
}

static struct distance compare(const float *got, const float *want, uint32_t rows, uint32_t n_vocab,
                               double std)
{
    struct distance d = {0};
    double sum = 0;
    for (size_t i = 0; i < (size_t)rows * n_vocab; i++) {
        double e = fabs((double)got[i] - (double)want[i]) / std;
        d.max = e > d.max || isnan(e) ? e : d.max;
        sum += e * e;
    }
    d.rms = sqrt(sum / ((double)rows * n_vocab));
    for (uint32_t t = 0; t < rows; t++) {
        double margin;
        uint32_t best = argmax(want + (size_t)t * n_vocab, n_vocab, &margin);
        d.argmax_wrong +=
            margin > BF16_MARGIN * std && argmax(got + (size_t)t * n_vocab, n_vocab, NULL) != best;
    }
    return d;
}

struct setting {
    const char *name;
    struct lora_part part[2];
    uint32_t part_count;
    const json_t *greedy;
};

static struct setting read_setting(const json_t *item)
{
    struct setting s = {.name = json_string_value(json_object_get(item, "name")),
                        .greedy = json_object_get(item, "greedy")};
    const json_t *list = json_object_get(item, "adapters");
    s.part_count = (uint32_t)json_array_size(list);
    CHECK(s.part_count <= 2);
    for (uint32_t i = 0; i < s.part_count; i++) {
        const json_t *part = json_array_get(list, i);
        const char *dir = json_string_value(json_object_get(part, "dir"));
        s.part[i].slot = (uint32_t)(dir[0] - 'a');
        s.part[i].weight_q16 = (int32_t)json_integer_value(json_object_get(part, "weight_q16"));
    }
    return s;
}

/* Tokens that differ from the reference's greedy continuation. */
static enum status greedy_wrong(struct logits_rig *r, const struct loaded_case *c,
                                const struct setting *s, const float *last, uint32_t *wrong)
{
    uint32_t n_vocab = r->model->config.n_vocab, n = c->n_prompt;
    uint32_t count = (uint32_t)json_array_size(s->greedy);
    int32_t *ids = mem_array(n + count, sizeof(*ids));
    float *row = mem_array(n_vocab, sizeof(*row));
    enum status st = STATUS_OK;
    memcpy(ids, c->prompt, n * sizeof(*ids));
    memcpy(row, last, n_vocab * sizeof(*row));
    *wrong = 0;
    for (uint32_t i = 0; !st && i < count; i++) {
        ids[n + i] = (int32_t)argmax(row, n_vocab, NULL);
        *wrong += ids[n + i] != json_integer_value(json_array_get(s->greedy, i));
        st = logits_rig_run(r, s->part, s->part_count, ids, n + i, n + i + 1, row, NULL);
    }
    mem_free(ids);
    mem_free(row);
    return st;
}

static enum status judge(struct logits_rig *r, const struct loaded_case *c, const struct setting *s,
                         const struct logits_case_options *opt, struct errtext *err)
{
    uint32_t n_vocab = r->model->config.n_vocab, wrong = 0;
    const struct st_tensor *t = safetensors_find(&c->file, s->name);
    char line[256];
    CHECK(t && t->dim[0] == c->n_prompt && t->dim[1] == n_vocab);
    size_t bytes = (size_t)c->n_prompt * n_vocab * sizeof(float);
    float *got = mem_alloc(bytes), *want = mem_alloc(bytes);
    double norm2[2] = {0, 0};
    memcpy(want, c->bytes + t->begin, bytes);
    enum status st =
        logits_rig_run(r, s->part, s->part_count, c->prompt, 0, c->n_prompt, got, norm2);
    struct distance d = compare(got, want, c->n_prompt, n_vocab, c->std);
    bool is_f32 = opt->dtype == DTYPE_CHOICE_F32;
    if (!st && is_f32)
        st = greedy_wrong(r, c, s, got + (size_t)(c->n_prompt - 1) * n_vocab, &wrong);
    mem_free(got);
    mem_free(want);
    if (st)
        return err_set(err, st, "forward failed");
    snprintf(line, sizeof(line), "%s %s %-5s max %.1e rms %.1e argmax wrong %u greedy wrong %u",
             opt->backend, is_f32 ? "f32" : "bf16", s->name, d.max, d.rms, d.argmax_wrong, wrong);
    if (opt->report)
        opt->report(opt->report_arg, line);
    bool ok = is_f32 ? d.max <= F32_MAX && wrong == 0
                     : d.rms <= BF16_RMS && d.max <= BF16_MAX && d.argmax_wrong == 0;
    bool norms_ok = (s->part_count > 0) == (norm2[0] > 0) && norm2[1] >= 0 && isfinite(norm2[0]);
    if (!ok || !norms_ok)
        return err_set(err, STATUS_CONFLICT, "%s%s", line, norms_ok ? "" : " (norms wrong)");
    return STATUS_OK;
}

static enum status check_open_case(const struct loaded_case *c, const char *dir,
                                   const struct logits_case_options *opt, struct errtext *err)
{
    char model_dir[PATH_MAX], adapter[PATH_MAX];
    struct logits_rig r;
    snprintf(model_dir, sizeof(model_dir), "%s/model", dir);
    if (opt->dtype == DTYPE_CHOICE_BF16 && !json_is_true(json_object_get(c->root, "bf16")))
        return err_set(err, STATUS_UNSUPPORTED, "%s: has no bf16 bar", dir);
    struct logits_rig_options ro = {.model_dir = model_dir,
                                    .backend = opt->backend,
                                    .dtype = opt->dtype,
                                    .thread_count = opt->thread_count,
                                    .chunk = opt->chunk,
                                    .context_max = 128};
    enum status st = logits_rig_open(&r, &ro, err);
    if (st)
        return st;
    for (int i = 0; !st && i < 2; i++) {
        snprintf(adapter, sizeof(adapter), "%s/%c", dir, 'a' + i);
        st = logits_rig_add(&r, adapter, err);
    }
    const json_t *settings = json_object_get(c->root, "settings");
    for (size_t i = 0; !st && i < json_array_size(settings); i++) {
        struct setting s = read_setting(json_array_get(settings, i));
        st = judge(&r, c, &s, opt, err);
    }
    logits_rig_close(&r);
    return st;
}

enum status logits_case_check(const char *dir, const struct logits_case_options *opt,
                              struct errtext *err)
{
    struct loaded_case c;
    enum status st = case_open(&c, dir, err);
    if (!st)
        st = check_open_case(&c, dir, opt, err);
    case_close(&c);
    return st;
}
