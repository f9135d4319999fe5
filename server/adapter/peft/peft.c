/* From two byte blocks to checked facts. Tensor names decide which modules are adapted, tensor
 * shapes at which rank; the config must agree with both, module by module, in both directions: a
 * tensor that target_modules does not select would be ignored by peft, and a selected module
 * without tensors would silently be the base. Either is refused. */
#include "server/adapter/peft/peft.h"
#include "server/adapter/peft/config.h"
#include "server/adapter/peft/id.h"
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/model/convert.h"

#include <inttypes.h>
#include <math.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char prefix[] = "base_model.model.";

/* ---- tensor names ---- */

static const char *path_of(const struct peft_adapter *a, uint32_t layer, uint32_t module)
{
    return a->path[layer * LORA_MODULE_COUNT + module];
}

static enum status make_paths(struct peft_adapter *a, uint32_t n_layer, struct errtext *err)
{
    a->path = mem_try_array((size_t)n_layer * LORA_MODULE_COUNT, sizeof(*a->path));
    if (!a->path)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the paths of %u layers", n_layer);
    for (uint32_t i = 0; i < n_layer * LORA_MODULE_COUNT; i++)
        model_module_path(i / LORA_MODULE_COUNT, (enum lora_module)(i % LORA_MODULE_COUNT),
                          a->path[i], sizeof(a->path[i]));
    return STATUS_OK;
}

/* "model.layers.<n>.<leaf>" in its canonical spelling. */
static bool parse_path(const struct peft_adapter *a, const char *path, size_t len, uint32_t n_layer,
                       struct peft_module *found)
{
    static const char head[] = "model.layers.";
    size_t at = sizeof(head) - 1;
    if (len <= at || strncmp(path, head, at) != 0)
        return false;
    uint32_t n = 0;
    for (; at < len && path[at] >= '0' && path[at] <= '9' && n <= MODEL_LAYERS_MAX; at++)
        n = n * 10 + (uint32_t)(path[at] - '0');
    if (n >= n_layer)
        return false;
    for (uint32_t m = 0; m < LORA_MODULE_COUNT; m++) {
        const char *want = path_of(a, n, m);
        if (strncmp(want, path, len) == 0 && want[len] == '\0') {
            *found = (struct peft_module){.path = want, .layer = n, .module = (enum lora_module)m};
            return true;
        }
    }
    return false;
}

static enum status refuse_tensor(const char *name, uint32_t n_layer, struct errtext *err)
{
    const char *why = "expected lora_A.weight or lora_B.weight of a q, k, v, o, gate, up or down "
                      "projection";
    if (strstr(name, "lora_magnitude_vector"))
        why =
            "DoRA is not served: merge the adapter into its base (merge_and_unload) and serve that";
    else if (strstr(name, "lora_embedding_"))
        why = "an adapted embedding is not served: merge the adapter into its base "
              "(merge_and_unload) and serve that, or train it on the projections alone";
    else if (strstr(name, "lora_B.bias"))
        why = "lora_bias is not served";
    else if (strstr(name, "trainable_tokens"))
        why = "trained tokens are not served: merge the adapter into its base (merge_and_unload) "
              "and serve that";
    else if (strstr(name, "lm_head.lora_"))
        why = "an adapted output head is not served: merge the adapter into its base "
              "(merge_and_unload) and serve that, or train it on the projections alone";
    else if (!strstr(name, "lora_"))
        why = "a full weight beside the LoRA matrices (modules_to_save) is not served: merge the "
              "adapter into its base (merge_and_unload) and serve that";
    else if (strstr(name, "model.layers."))
        return err_set(err, STATUS_UNSUPPORTED,
                       "adapter_model.safetensors: tensor '%.160s': not a module of this base (%u "
                       "layers), or %s",
                       name, n_layer, "its name is not spelled as peft saves it");
    return err_set(err, STATUS_UNSUPPORTED, "adapter_model.safetensors: tensor '%.160s': %s", name,
                   why);
}

static struct peft_module *module_slot(struct peft_adapter *a, const struct peft_module *found)
{
    for (uint32_t i = 0; i < a->module_count; i++) {
        if (a->module[i].path == found->path)
            return &a->module[i];
    }
    a->module[a->module_count] = *found;
    return &a->module[a->module_count++];
}

static enum status collect_tensor(struct peft_adapter *a, const struct st_tensor *t,
                                  uint32_t n_layer, struct errtext *err)
{
    static const char suffix_a[] = ".lora_A.weight", suffix_b[] = ".lora_B.weight";
    const char *path = t->name;
    size_t len = strlen(path), n = sizeof(suffix_a) - 1;
    struct peft_module found;
    if (!strncmp(path, prefix, sizeof(prefix) - 1)) {
        path += sizeof(prefix) - 1;
        len -= sizeof(prefix) - 1;
    }
    bool is_a = len > n && !strcmp(path + len - n, suffix_a);
    bool is_b = len > n && !strcmp(path + len - n, suffix_b);
    if (!(is_a || is_b) || !parse_path(a, path, len - n, n_layer, &found))
        return refuse_tensor(t->name, n_layer, err);
    struct peft_module *m = module_slot(a, &found);
    if (is_a ? m->a != NULL : m->b != NULL)
        return err_set(
            err, STATUS_CORRUPT,
            "adapter_model.safetensors: tensor '%.160s' is there twice, with and without "
            "the prefix '%s'",
            t->name, prefix);
    if (is_a)
        m->a = t;
    else
        m->b = t;
    return STATUS_OK;
}

/* ---- module by module ---- */

static enum status check_matrix(const struct st_tensor *t, uint64_t rows, uint64_t columns,
                                struct errtext *err)
{
    enum dtype dtype;
    if (t->rank != 2 || t->dim[0] != rows || t->dim[1] != columns)
        return err_set(err, STATUS_INVALID,
                       "adapter_model.safetensors: tensor '%.160s': found shape [%" PRIu64
                       ", %" PRIu64 "] (%u dimensions), this base and rank need [%" PRIu64
                       ", %" PRIu64 "]: is it for another base model?",
                       t->name, t->rank > 0 ? t->dim[0] : 0, t->rank > 1 ? t->dim[1] : 0, t->rank,
                       rows, columns);
    if (!convert_dtype(t->dtype, &dtype))
        return err_set(err, STATUS_UNSUPPORTED,
                       "adapter_model.safetensors: tensor '%.160s': found dtype %s, expected F32, "
                       "BF16 or F16",
                       t->name, st_dtype_name(t->dtype));
    return STATUS_OK;
}

static enum status check_module(struct peft_adapter *a, struct peft_module *m,
                                struct peft_rules *rules, const struct model_config *base,
                                struct errtext *err)
{
    const char *path = m->path;
    uint32_t d_out, d_in, rank_said;
    bool selected;
    model_module_shape(base, m->module, &d_out, &d_in);
    if (!m->a || !m->b)
        return err_set(err, STATUS_INVALID,
                       "adapter_model.safetensors: %s has lora_%s but no lora_%s", path,
                       m->a ? "A" : "B", m->a ? "B" : "A");
    if (m->a->rank != 2 || m->a->dim[0] == 0 || m->a->dim[0] > PEFT_RANK_MAX)
        return err_set(
            err, STATUS_INVALID,
            "adapter_model.safetensors: tensor '%.160s': expected [rank, %u] with a rank "
            "from 1 to %d",
            m->a->name, d_in, PEFT_RANK_MAX);
    m->rank = (uint32_t)m->a->dim[0];
    enum status st = check_matrix(m->a, m->rank, d_in, err);
    if (!st)
        st = check_matrix(m->b, d_out, m->rank, err);
    if (!st)
        st = peft_rules_selects(rules, path, true, &selected, err);
    if (st)
        return st;
    if (!selected)
        return err_param(err, STATUS_INVALID, "target_modules",
                         "adapter_model.safetensors adapts %s, but target_modules, exclude_modules "
                         "or layers_to_transform of adapter_config.json leave it out",
                         path);
    st = peft_rules_rank(rules, path, &rank_said, &m->scale, err);
    if (!st && rank_said != m->rank)
        st = err_param(err, STATUS_INVALID, "r",
                       "%s: adapter_config.json says rank %u, lora_A has rank %u", path, rank_said,
                       m->rank);
    a->rank_max = MAX(a->rank_max, m->rank);
    return st;
}

/* Every module that the config selects must have come with tensors. */
static enum status check_coverage(struct peft_adapter *a, struct peft_rules *rules,
                                  const struct model_config *base, struct errtext *err)
{
    static const char *const ends[] = {"lm_head", "model.embed_tokens"};
    uint8_t *seen = mem_try_array(base->n_layer, 1);
    bool selected;
    enum status st = seen ? STATUS_OK : err_set(err, STATUS_NO_MEMORY, "no memory");
    for (uint32_t i = 0; !st && i < a->module_count; i++)
        seen[a->module[i].layer] |= (uint8_t)(1u << a->module[i].module);
    for (uint32_t i = 0; !st && i < base->n_layer * LORA_MODULE_COUNT; i++) {
        uint32_t layer = i / LORA_MODULE_COUNT, m = i % LORA_MODULE_COUNT;
        if (seen[layer] >> m & 1)
            continue;
        const char *path = path_of(a, layer, m);
        st = peft_rules_selects(rules, path, false, &selected, err);
        if (!st && selected)
            st = err_param(err, STATUS_INVALID, "target_modules",
                           "adapter_config.json: target_modules selects %s, but "
                           "adapter_model.safetensors has no weights for it",
                           path);
    }
    for (size_t i = 0; !st && i < ARRAY_COUNT(ends); i++) {
        st = peft_rules_selects(rules, ends[i], false, &selected, err);
        if (!st && selected)
            st = err_param(err, STATUS_UNSUPPORTED, "target_modules",
                           "adapter_config.json: target_modules selects %s, which is not served: "
                           "merge the adapter into its base (merge_and_unload) and serve that, or "
                           "train it on the projections alone",
                           ends[i]);
    }
    mem_free(seen);
    return st;
}

static int by_path(const void *x, const void *y)
{
    const struct peft_module *a = x, *b = y;
    return strcmp(a->path, b->path);
}

static enum status build_modules(struct peft_adapter *a, struct peft_rules *rules,
                                 const struct model_config *base, struct errtext *err)
{
    if (a->tensors.tensor_count == 0)
        return err_set(err, STATUS_INVALID, "adapter_model.safetensors: no tensors");
    /* two tensors for a module; a wrong name ends the loop before the array can overflow */
    a->module = mem_try_array(a->tensors.tensor_count, sizeof(*a->module));
    if (!a->module)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu modules", a->tensors.tensor_count);
    enum status st = make_paths(a, base->n_layer, err);
    for (size_t i = 0; !st && i < a->tensors.tensor_count; i++)
        st = collect_tensor(a, &a->tensors.tensor[i], base->n_layer, err);
    for (uint32_t i = 0; !st && i < a->module_count; i++)
        st = check_module(a, &a->module[i], rules, base, err);
    if (!st)
        st = check_coverage(a, rules, base, err);
    if (!st)
        qsort(a->module, a->module_count, sizeof(*a->module), by_path);
    return st;
}

static enum status set_base_claim(struct peft_adapter *a, const struct peft_rules *rules,
                                  struct errtext *err)
{
    const char *name = peft_rules_base(rules);
    if (name) {
        a->base_name = mem_try_strndup(name, strlen(name));
        if (!a->base_name)
            return err_set(err, STATUS_NO_MEMORY, "no memory");
        snprintf(a->warning, sizeof(a->warning),
                 "no base fingerprint: checked by shapes only; it says it was made for '%.120s'",
                 name);
    } else {
        snprintf(a->warning, sizeof(a->warning), "no base fingerprint: checked by shapes only");
    }
    return STATUS_OK;
}

enum status peft_from_head(struct peft_adapter *out, const struct peft_head *head,
                           const struct model_config *base, struct errtext *err)
{
    struct peft_rules rules;
    memset(out, 0, sizeof(*out));
    if (head->config_bytes > PEFT_CONFIG_BYTES_MAX)
        return err_set(err, STATUS_TOO_LARGE, "adapter_config.json: %zu bytes, at most %u are read",
                       head->config_bytes, PEFT_CONFIG_BYTES_MAX);
    enum status st = peft_rules_parse(&rules, head->config_json, head->config_bytes, err);
    if (st)
        return st;
    st = safetensors_parse(&out->tensors, head->tensors, head->tensor_bytes, head->file_bytes,
                           PEFT_HEADER_BYTES_MAX, err);
    if (st)
        err_prefix(err, "adapter_model.safetensors");
    if (!st)
        st = build_modules(out, &rules, base, err);
    if (!st)
        st = set_base_claim(out, &rules, err);
    peft_rules_fini(&rules);
    if (st)
        peft_fini(out);
    return st;
}

enum status peft_from_bytes(struct peft_adapter *out, char *config_json, size_t config_bytes,
                            char *tensors, size_t tensor_bytes, const struct model_config *base,
                            struct errtext *err)
{
    struct peft_head head = {.config_json = config_json,
                             .config_bytes = config_bytes,
                             .tensors = tensors,
                             .tensor_bytes = tensor_bytes,
                             .file_bytes = tensor_bytes};
    enum status st = sodium_init() < 0 ? err_set(err, STATUS_IO, "libsodium does not start")
                                       : peft_from_head(out, &head, base, err);
    if (st)
        return st;
    out->config_json = config_json;
    out->config_bytes = config_bytes;
    out->tensor_bytes = tensors;
    out->tensor_file_bytes = tensor_bytes;
    peft_id_compute(out, out->id);
    return STATUS_OK;
}

void peft_fini(struct peft_adapter *a)
{
    safetensors_fini(&a->tensors);
    mem_free(a->module);
    mem_free(a->path);
    mem_free(a->base_name);
    mem_free(a->config_json);
    mem_free(a->tensor_bytes);
    memset(a, 0, sizeof(*a));
}
