/* An adapter folder is read as the server would read it: what is signed is what is served. */
#include "chain_client/cli/facts.h"
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/model/config.h"
#include "server/model/foreign.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#define BASE_BYTES_MAX (16u << 20)

static enum status read_base(struct model_config *base, const char *model_dir, struct errtext *err)
{
    char path[PATH_MAX], *text;
    size_t len;
    snprintf(path, sizeof(path), "%s/config.json", model_dir);
    enum status st = file_read(path, BASE_BYTES_MAX, &text, &len, err);
    if (st) {
        st = foreign_folder(model_dir, FOREIGN_WANT_MODEL, st, err);
        err_prefix(err, "--model %s", model_dir);
        return st;
    }
    st = model_config_parse(base, text, len, NULL, 0, err);
    if (st)
        err_prefix(err, "%s", path);
    mem_free(text);
    return st;
}

enum status facts_read(struct facts *f, const char *adapter_dir, const char *model_dir,
                       const struct admit_limits *limits, bool *base_is_bad, struct errtext *err)
{
    struct admit_folder a;
    struct model_config *base = mem_alloc(sizeof(*base));
    *f = (struct facts){0};
    enum status st = read_base(base, model_dir, err);
    *base_is_bad = st != STATUS_OK;
    if (!st)
        st = admit_folder_read(&a, adapter_dir, NULL, base, limits, err);
    if (!st) {
        memcpy(f->id, a.a.id, 32);
        f->rank_max = a.a.rank_max;
        f->module_count = a.a.module_count;
        f->file_bytes = a.a.tensor_file_bytes;
        snprintf(f->base_name, sizeof(f->base_name), "%s", a.a.base_name ? a.a.base_name : "");
        bool no_chat = a.chat && a.chat->refusal;
        snprintf(f->warning, sizeof(f->warning), "%s%s%s", a.a.warning,
                 no_chat ? "; no chat is served with it, its chat template cannot be used: " : "",
                 no_chat ? a.chat->refusal : "");
        admit_folder_fini(&a);
    }
    mem_free(base);
    return st;
}
