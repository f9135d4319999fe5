/* Logits of a model directory from the command line, by one straight forward pass.
 *
 *   logits_tool check CASE [options]       judge a case folder of logits_golden.py; exit 1 on a
 * miss logits_tool dump --model DIR --ids 1,2,3 --out FILE [--adapter DIR[:WEIGHT]]... [options]
 *                                          write f32 logits [n_ids, n_vocab], little-endian
 *   options: --backend ref|cpu|cpu:PATH  --dtype f32|bf16|auto  --threads N  --chunk N */
#include "server/base/file.h"
#include "server/base/mem.h"
#include "tests/lib/logits_case.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct args {
    const char *model, *ids, *out, *case_dir, *adapter[RIG_ADAPTERS_MAX];
    uint32_t adapter_count;
    struct logits_case_options opt;
};

static int usage(const char *wrong)
{
    fprintf(stderr,
            "%s%slogits_tool check CASE [options]\n"
            "logits_tool dump --model DIR --ids 1,2,3 --out FILE [--adapter DIR[:WEIGHT]]... "
            "[options]\n"
            "options: --backend ref|cpu|cpu:PATH --dtype f32|bf16|auto --threads N --chunk N\n",
            wrong, *wrong ? ": not understood\n" : "");
    return 2;
}

static bool parse_option(struct args *a, const char *key, const char *value)
{
    if (!strcmp(key, "--backend"))
        a->opt.backend = value;
    else if (!strcmp(key, "--dtype"))
        a->opt.dtype = !strcmp(value, "bf16")   ? DTYPE_CHOICE_BF16
                       : !strcmp(value, "auto") ? DTYPE_CHOICE_AUTO
                                                : DTYPE_CHOICE_F32;
    else if (!strcmp(key, "--threads"))
        a->opt.thread_count = (uint32_t)strtoul(value, NULL, 10);
    else if (!strcmp(key, "--chunk"))
        a->opt.chunk = (uint32_t)strtoul(value, NULL, 10);
    else if (!strcmp(key, "--model"))
        a->model = value;
    else if (!strcmp(key, "--ids"))
        a->ids = value;
    else if (!strcmp(key, "--out"))
        a->out = value;
    else if (!strcmp(key, "--adapter") && a->adapter_count < RIG_ADAPTERS_MAX)
        a->adapter[a->adapter_count++] = value;
    else
        return false;
    return true;
}

static void print_line(void *arg, const char *line)
{
    printf("%s\n", line);
}

static int check(const struct args *a)
{
    struct errtext err = ERRTEXT_INIT;
    enum status st = logits_case_check(a->case_dir, &a->opt, &err);
    if (st)
        fprintf(stderr, "%s: %s\n", a->case_dir, err.text);
    return st == STATUS_UNSUPPORTED ? 3 : st ? 1 : 0;
}

static int32_t *parse_ids(const char *text, uint32_t *count)
{
    int32_t *ids = mem_array(strlen(text) / 2 + 1, sizeof(*ids));
    char *end;
    *count = 0;
    for (const char *p = text; *p; p = *end ? end + 1 : end) {
        ids[(*count)++] = (int32_t)strtol(p, &end, 10);
        if (end == p || (*end && *end != ','))
            exit(usage(text));
    }
    return ids;
}

static enum status add_adapters(struct logits_rig *r, const struct args *a, struct lora_part *part,
                                struct errtext *err)
{
    enum status st = STATUS_OK;
    for (uint32_t i = 0; !st && i < a->adapter_count; i++) {
        char dir[4096];
        snprintf(dir, sizeof(dir), "%s", a->adapter[i]);
        char *colon = strrchr(dir, ':');
        double weight = colon ? strtod(colon + 1, NULL) : 1;
        if (colon)
            *colon = '\0';
        part[i] = (struct lora_part){.slot = i, .weight_q16 = (int32_t)(weight * 65536)};
        st = logits_rig_add(r, dir, err);
    }
    return st;
}

static int dump(const struct args *a)
{
    struct errtext err = ERRTEXT_INIT;
    struct logits_rig r;
    struct lora_part part[RIG_ADAPTERS_MAX];
    uint32_t n;
    int32_t *ids = parse_ids(a->ids, &n);
    struct logits_rig_options ro = {.model_dir = a->model,
                                    .backend = a->opt.backend,
                                    .dtype = a->opt.dtype,
                                    .thread_count = a->opt.thread_count,
                                    .chunk = a->opt.chunk,
                                    .context_max = n};
    enum status st = logits_rig_open(&r, &ro, &err);
    if (!st) {
        size_t bytes = (size_t)n * r.model->config.n_vocab * sizeof(float);
        float *logits = mem_alloc(bytes);
        st = add_adapters(&r, a, part, &err);
        if (!st)
            st = logits_rig_run(&r, part, a->adapter_count, ids, 0, n, logits, NULL);
        if (!st)
            st = file_write_atomic(a->out, logits, bytes, 0644, &err);
        mem_free(logits);
        logits_rig_close(&r);
    }
    mem_free(ids);
    if (st)
        fprintf(stderr, "%s\n", err.text);
    return st ? 1 : 0;
}

int main(int argc, char **argv)
{
    struct args a = {.opt = {.backend = "cpu",
                             .dtype = DTYPE_CHOICE_F32,
                             .thread_count = 1,
                             .chunk = 16,
                             .report = print_line}};
    bool is_check = argc >= 3 && !strcmp(argv[1], "check");
    if (!is_check && (argc < 3 || strcmp(argv[1], "dump")))
        return usage("");
    if (is_check)
        a.case_dir = argv[2];
    for (int i = is_check ? 3 : 2; i < argc; i += 2) {
        if (i + 1 >= argc || !parse_option(&a, argv[i], argv[i + 1]))
            return usage(argv[i]);
    }
    if (a.opt.chunk == 0 || (!is_check && (!a.model || !a.ids || !a.out)))
        return usage("");
    return is_check ? check(&a) : dump(&a);
}
