/* Which model answers: `model` is the base's name, an adapter's, or "base:adapter"; `adapters` adds
 * a weighted set beside the base. `adapter_id` and `lora_path` are spellings of other servers,
 * taken as registered names only. A name the key may not use is refused before it is looked up, so
 * that refusals do not tell which names exist. */
#include "server/base/check.h"
#include "server/http/auth.h"
#include "server/http/parse_state.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum status target_unknown(struct catalog *c, const char *param, const char *name,
                           struct errtext *err)
{
    struct catalog_refusal r;
    if (c && catalog_find_refusal(c, name, &r))
        return err_coded(err, STATUS_NOT_FOUND, "model_not_found", param,
                         "The adapter '%.128s' is not served, it was refused at the start: %s",
                         name, r.why.text);
    return err_coded(err, STATUS_NOT_FOUND, "model_not_found", param,
                     "The model '%.128s' does not exist on this server; GET /v1/models lists what "
                     "does.",
                     name);
}

enum status target_chat(struct parse_env *env, struct adapter_entry *const *entry, uint32_t count,
                        struct errtext *err)
{
    const struct adapter_entry *first = NULL;
    env->chat_template = env->model->chat;
    env->chat_refusal = env->model->chat_refusal;
    for (uint32_t i = 0; i < count; i++) {
        if (!entry[i]->chat)
            continue;
        if (first && memcmp(first->chat->digest, entry[i]->chat->digest, 32) != 0)
            return err_coded(err, STATUS_INVALID, "no_chat_template", "adapters",
                             "the adapters '%s' and '%s' bring different chat templates, so there "
                             "is none for both; use /v1/completions",
                             first->name, entry[i]->name);
        first = entry[i];
    }
    if (first) {
        env->chat_template = first->chat->chat;
        env->chat_refusal = first->chat->refusal;
        env->chat_digest = first->chat->digest;
    }
    return STATUS_OK;
}

static enum status add_part(struct parse_state *p, const char *name, const char *param,
                            int32_t weight_q16)
{
    if (!auth_allows_adapter(p->env->key, name))
        return err_param(p->err, STATUS_DENIED, param,
                         "this API key may not use the adapter '%.128s'", name);
    struct adapter_entry *e = catalog_find(p->env->catalog, name);
    if (!e)
        return target_unknown(p->env->catalog, param, name, p->err);
    struct composition_part *part = &p->comp.part[p->comp.n];
    CHECK(p->comp.n < LORA_PARTS_MAX);
    memcpy(part->adapter, e->id, sizeof(part->adapter));
    part->weight_q16 = weight_q16;
    p->entry[p->comp.n++] = e;
    return STATUS_OK;
}

/* The adapter part of `model`, or NULL for the base. */
static const char *adapter_of_model(const struct parse_env *env, const char *model)
{
    size_t base_len = strlen(env->model_name);
    if (strcmp(model, env->model_name) == 0)
        return NULL;
    if (strncmp(model, env->model_name, base_len) == 0 && model[base_len] == ':')
        return model + base_len + 1;
    return model;
}

static int32_t parse_weight(struct json_reader *item)
{
    double w = json_read_num(item, "weight", -REQUEST_WEIGHT_MAX, REQUEST_WEIGHT_MAX, 1.0);
    int32_t weight_q16 = (int32_t)llrint(w * COMPOSITION_WEIGHT_ONE);
    if (weight_q16 == 0)
        json_fail(item, STATUS_INVALID, "weight",
                  "found %g, which is zero in steps of 1/65536; leave the adapter out instead", w);
    return weight_q16;
}

static enum status parse_adapters(struct parse_state *p, const json_t *list)
{
    size_t idx;
    json_t *v;
    if (!json_is_array(list))
        return err_param(p->err, STATUS_INVALID, "adapters",
                         "'adapters' must be a list of {\"model\", \"weight\"} objects");
    if (json_array_size(list) > LORA_PARTS_MAX)
        return err_param(p->err, STATUS_INVALID, "adapters",
                         "'adapters' has %zu items; at most %d are accepted", json_array_size(list),
                         LORA_PARTS_MAX);
    json_array_foreach(list, idx, v)
    {
        char param[48];
        struct json_reader item = json_enter_item(&p->in, "adapters", idx, v);
        const char *name = json_need_string(&item, "model");
        int32_t weight_q16 = parse_weight(&item);
        snprintf(param, sizeof(param), "adapters[%zu].model", idx);
        enum status st = p->in.st;
        if (!st)
            st = add_part(p, name, param, weight_q16);
        if (st)
            return st;
    }
    return STATUS_OK;
}

/* Order entries as composition_seal ordered the parts. */
static void reorder_entries(struct parse_state *p)
{
    struct adapter_entry *sorted[LORA_PARTS_MAX] = {NULL};
    for (uint32_t i = 0; i < p->comp.n; i++) {
        for (uint32_t k = 0; k < p->comp.n; k++) {
            if (p->entry[k] && memcmp(p->entry[k]->id, p->comp.part[i].adapter, 32) == 0) {
                sorted[i] = p->entry[k];
                p->entry[k] = NULL;
                break;
            }
        }
        CHECK(sorted[i]);
    }
    memcpy(p->entry, sorted, sizeof(sorted));
}

/* One adapter by `model` or by another server's field. */
static enum status parse_single(struct parse_state *p, const char *model, const char **name)
{
    static const char *const alias[] = {"adapter_id", "lora_path"};
    *name = adapter_of_model(p->env, model);
    for (size_t i = 0; i < ARRAY_COUNT(alias); i++) {
        const char *other = json_read_string(&p->in, alias[i]);
        if (p->in.st)
            return p->in.st;
        if (!other || !*other)
            continue;
        if (*name && strcmp(*name, other) != 0)
            return err_param(p->err, STATUS_INVALID, alias[i],
                             "'%s' names '%.128s' but the adapter '%.128s' is already named",
                             alias[i], other, *name);
        *name = other;
    }
    return STATUS_OK;
}

enum status parse_target(struct parse_state *p)
{
    const char *model = json_read_string(&p->in, "model"), *name = NULL;
    const json_t *list = json_field(p->root, "adapters");
    enum status st = p->in.st;
    if (st)
        return st;
    if (!model || !*model)
        return err_param(p->err, STATUS_INVALID, "model",
                         "'model' is missing: name the base '%s' or an adapter",
                         p->env->model_name);
    if (strlen(model) >= sizeof(p->spec->model))
        return err_coded(p->err, STATUS_NOT_FOUND, "model_not_found", "model",
                         "'model' is longer than any name on this server");
    snprintf(p->spec->model, sizeof(p->spec->model), "%s", model);
    st = parse_single(p, model, &name);
    if (st)
        return st;
    if (list && json_array_size(list) > 0 && name)
        return err_param(p->err, STATUS_INVALID, "adapters",
                         "with 'adapters', 'model' must name the base '%s', found '%.128s'; put "
                         "that adapter into the list",
                         p->env->model_name, name);
    if (name) {
        st = add_part(p, name, "model", COMPOSITION_WEIGHT_ONE);
        snprintf(p->spec->adapter, sizeof(p->spec->adapter), "%s", name);
    } else if (list) {
        st = parse_adapters(p, list);
    }
    if (!st)
        st = composition_seal(&p->comp, p->err);
    if (!st)
        reorder_entries(p);
    return st;
}
