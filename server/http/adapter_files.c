/* GET /v1/adapters/NAME/files/FILE: what an adapter is made of, for who published it, or an admin:
 * a publisher takes what was trained here, checks it, and registers it. */
#include "server/http/adapter_files.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/http/adapters.h"
#include "server/http/state.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#define FILES_PART    "/files/"
#define TRAINING_PART "training.json"

static const char *const part_name[] = {"adapter_config.json", "adapter_model.safetensors",
                                        TRAINING_PART};

const char *adapter_files_find(const char *tail, char name[CATALOG_NAME_MAX + 1])
{
    size_t len = strlen(tail);
    for (size_t i = 0; i < ARRAY_COUNT(part_name); i++) {
        size_t end = strlen(FILES_PART) + strlen(part_name[i]);
        if (len <= end || len - end > CATALOG_NAME_MAX ||
            strncmp(tail + len - end, FILES_PART, strlen(FILES_PART)) != 0 ||
            strcmp(tail + len - strlen(part_name[i]), part_name[i]) != 0)
            continue;
        snprintf(name, CATALOG_NAME_MAX + 1, "%.*s", (int)(len - end), tail);
        return part_name[i];
    }
    return NULL;
}

static enum status read_part(struct exchange *x, const struct adapter_entry *e, const char *part,
                             struct errtext *err)
{
    char path[PATH_MAX], *data;
    size_t len;
    if (strcmp(part, TRAINING_PART) == 0)
        return datanet_store_training(x->server->deps.datanets, e->id, &x->out, err);
    snprintf(path, sizeof(path), "%s/%s", e->dir, part);
    enum status st = file_read(path, x->out.bytes_max, &data, &len, err);
    if (st)
        return st;
    buf_put(&x->out, data, len);
    mem_free(data);
    return STATUS_OK;
}

void adapter_files_send(struct exchange *x, const struct adapter_entry *e, const char *part)
{
    struct errtext err = ERRTEXT_INIT;
    enum status st = adapters_may_dispose(x, e)
                         ? read_part(x, e, part, &err)
                         : err_param(&err, STATUS_DENIED, "name",
                                     "'%s' was published with another key; only that key or an "
                                     "admin may have its files",
                                     e->name);
    if (!st && x->out.failed)
        st = err_set(&err, STATUS_TOO_LARGE,
                     "%s is larger than a reply may be: it lies in data_dir/adapters", part);
    if (st) {
        exchange_fail(x, st, &err);
        return;
    }
    x->content_type = "application/octet-stream";
    x->code = 200;
}
