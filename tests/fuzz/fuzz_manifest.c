/* Publish manifests come from strangers: whatever the JSON, signed or of a directory, parsing
 * answers, and what it accepts keeps its own rules. */
#include "server/adapter/manifest.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void check(const struct manifest *m)
{
    uint32_t bps = 0;
    for (uint32_t i = 0; i < m->split_count; i++)
        bps += m->split[i].bps;
    for (uint32_t i = 1; m->documents && i < m->documents->owner_count; i++) {
        if (memcmp(m->documents->owner[i - 1].owner, m->documents->owner[i].owner, 20) >= 0)
            abort();
    }
    if (bps != 10000 || m->split_count > REWARD_ENTRIES_MAX)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static struct manifest m;
    static const uint8_t zeros[32];
    struct errtext err = ERRTEXT_INIT;
    struct manifest_expect x = {.adapter_id = zeros, .model_id = zeros, .registry = zeros};
    json_t *json = json_loadb((const char *)data, len, JSON_REJECT_DUPLICATES, NULL);
    if (!json)
        return 0;
    if (manifest_parse_signed(&m, json, &x, &err) == STATUS_OK)
        check(&m);
    else if (!err.text[0])
        abort();
    manifest_fini(&m);
    if (manifest_parse_local(&m, json, NULL) == STATUS_OK &&
        manifest_parse_datanet(&m, json, NULL) == STATUS_OK)
        check(&m);
    manifest_fini(&m);
    json_decref(json);
    return 0;
}
