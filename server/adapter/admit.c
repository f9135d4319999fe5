/* Facts first (peft.h), then the limits, then every value; what lies beside the adapter last. The
 * datanet's file is the one that publish.json names, datanet.json if it names none and there is
 * one. */
#include "server/adapter/admit.h"
#include "server/adapter/kept.h"
#include "server/base/mem.h"

#include <string.h>

enum status admit_ranks(const struct peft_adapter *a, const struct admit_limits *limits,
                        struct errtext *err)
{
    for (uint32_t i = 0; i < a->module_count; i++) {
        if (a->module[i].rank > limits->rank_max)
            return err_set(err, STATUS_UNSUPPORTED,
                           "layer %u: rank %u, at most %u is accepted (adapter_rank_max)",
                           a->module[i].layer, a->module[i].rank, limits->rank_max);
    }
    return STATUS_OK;
}

enum status admit_adapter(const struct peft_adapter *a, const struct admit_limits *limits,
                          struct errtext *err)
{
    enum status st = admit_ranks(a, limits, err);
    return st ? st : peft_check_values(a, err);
}

/* NULL: none. */
static enum status datanet_file(const json_t *publish, const char **name, bool *named,
                                struct errtext *err)
{
    const json_t *v = json_object_get(publish, "datanet");
    *named = v != NULL;
    *name = v ? json_string_value(v) : "datanet.json";
    if (v && !json_is_null(v) && (!*name || !**name || strchr(*name, '/') || !strcmp(*name, "..")))
        return err_set(err, STATUS_INVALID, "publish.json: datanet: expected a file beside it");
    return STATUS_OK;
}

static enum status read_datanet(struct manifest *m, const char *dir, const struct file_roots *roots,
                                const json_t *publish, struct errtext *err)
{
    json_t *datanet = NULL;
    const char *name;
    bool named;
    enum status st = datanet_file(publish, &name, &named, err);
    if (st || !name)
        return st;
    st = kept_read_json(&datanet, dir, roots, name, err);
    if (!st && !datanet && named)
        st = err_set(err, STATUS_NOT_FOUND, "publish.json: datanet: %s is not there", name);
    if (!st && datanet) {
        st = manifest_parse_datanet(m, datanet, err);
        if (!st)
            st = documents_check_files(m->documents, dir, roots, err);
        if (st)
            err_prefix(err, "%s", name);
    }
    json_decref(datanet);
    return st;
}

static enum status read_manifest(struct manifest **out, const char *dir,
                                 const struct file_roots *roots, struct errtext *err)
{
    json_t *publish = NULL;
    enum status st = kept_read_json(&publish, dir, roots, "publish.json", err);
    *out = NULL;
    if (st || !publish)
        return st;
    struct manifest *m = mem_alloc(sizeof(*m));
    st = manifest_parse_local(m, publish, err);
    if (st)
        err_prefix(err, "publish.json");
    else
        st = read_datanet(m, dir, roots, publish, err);
    json_decref(publish);
    if (st) {
        manifest_fini(m);
        mem_free(m);
    } else {
        *out = m;
    }
    return st;
}

enum status admit_folder_read(struct admit_folder *out, const char *dir,
                              const struct file_roots *roots, const struct model_config *base,
                              const struct admit_limits *limits, struct errtext *err)
{
    memset(out, 0, sizeof(*out));
    enum status st = peft_read_dir(&out->a, dir, roots, base, limits->bytes_max, err);
    if (st)
        return st;
    st = admit_adapter(&out->a, limits, err);
    if (!st)
        st = read_manifest(&out->manifest, dir, roots, err);
    if (!st)
        st = chat_own_read(&out->chat, dir, roots, err);
    if (st) {
        err_prefix(err, "adapter %s", dir);
        admit_folder_fini(out);
    }
    return st;
}

void admit_folder_fini(struct admit_folder *f)
{
    peft_fini(&f->a);
    chat_own_release(f->chat);
    if (f->manifest)
        manifest_fini(f->manifest);
    mem_free(f->manifest);
    f->manifest = NULL;
    f->chat = NULL;
}
