/* Each place is asked in turn until one has a list with the Registry's root: a wrong one is passed
 * over like a missing one, and what was wrong with the last is said when none is left. */
#include "chain_client/settle/owner_fetch.h"
#include "chain_client/eth/fetch.h"
#include "server/base/file.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define LIST_BYTES_MAX (128u << 20)
#define FETCH_MS_MAX   30000

struct places {
    struct worker *w;
    uint64_t previous;
};

static void free_list(struct datanet_owner **owner, size_t *count)
{
    mem_free(*owner);
    *owner = NULL;
    *count = 0;
}

/* A person's word alone may be that nobody has the list. */
static enum status from_text(struct datanet_owner **owner, size_t *count,
                             const struct snapshot_version *v, const char *where,
                             const struct canon_bytes *text, bool is_a_persons, struct errtext *why)
{
    enum status st = owner_list_parse(owner, count, v, where, text, why);
    if (st || (is_a_persons && owner_list_is_absent(v, *count)))
        return st;
    return owner_list_check(v, *owner, *count, why);
}

static enum status from_file(struct datanet_owner **owner, size_t *count,
                             const struct snapshot_version *v, const char *dir, struct errtext *why)
{
    char path[PATH_MAX], hex[65], *data = NULL;
    struct canon_bytes text = {NULL, 0};
    hex_encode(hex, v->datanet_id, 32);
    snprintf(path, sizeof(path), "%s/datanet-0x%s-%" PRIu64 ".json", dir, hex, v->version);
    enum status st = file_read(path, LIST_BYTES_MAX, &data, &text.len, why);
    text.data = (uint8_t *)data;
    if (!st)
        st = from_text(owner, count, v, path, &text, true, why);
    mem_free(data);
    return st;
}

static enum status from_server(struct datanet_owner **owner, size_t *count,
                               const struct snapshot_version *v, const struct settle_lane *l,
                               const char *authorization, struct errtext *why)
{
    char path[160], hex[65];
    struct fetch *f;
    const struct fetch_config config = {.base = l->refetch_url,
                                        .authorization = authorization,
                                        .what = "server",
                                        .timeout_ms = FETCH_MS_MAX,
                                        .answer_bytes_max = LIST_BYTES_MAX};
    hex_encode(hex, v->datanet_id, 32);
    snprintf(path, sizeof(path), "/v1/datanets/0x%s/%" PRIu64 "/owners", hex, v->version);
    enum status st = fetch_open(&f, &config, why);
    if (!st)
        st = fetch_perform(f, &(struct fetch_request){.method = "GET", .path = path}, why);
    const struct fetch_answer *a = f ? fetch_answer(f) : NULL;
    if (!st && a->code != 200)
        st = err_set(why, STATUS_NOT_FOUND, "%s%s: HTTP status %ld, expected 200", l->refetch_url,
                     path, a->code);
    if (!st) {
        struct canon_bytes text = {(const uint8_t *)a->body.data, a->body.len};
        st = from_text(owner, count, v, l->refetch_url, &text, false, why);
    }
    fetch_close(f);
    return st;
}

static enum status read_list(void *arg, const struct snapshot_version *v,
                             struct datanet_owner **owner, size_t *count, struct errtext *err)
{
    const struct places *p = arg;
    const struct settings *set = p->w->set;
    struct errtext why = ERRTEXT_INIT;
    char name[OWNER_LIST_NAME_BYTES];
    enum status st = STATUS_NOT_FOUND;
    owner_list_name(name, v);
    if (set->owners_dir)
        st = from_file(owner, count, v, set->owners_dir, &why);
    if (st && p->previous)
        st = owner_list_find(owner, count, v, set->archive_dir, p->previous);
    for (uint32_t i = 0; i < p->w->lane_count && st && st != STATUS_NO_MEMORY; i++) {
        const struct settle_lane *l = &p->w->lane[i];
        free_list(owner, count);
        if (!l->refetch_url)
            continue;
        err_clear(&why);
        st = from_server(owner, count, v, l, p->w->refetch_authorization, &why);
    }
    if (!st)
        return STATUS_OK;
    free_list(owner, count);
    return err_set(
        err, STATUS_BUSY,
        "the epoch waits for the owners of %s: put any copy into --owners-dir, or name "
        "a server that has one with --refetch-url; its root is checked. An empty list in a "
        "file there says that nobody has them: their evidence counts for nothing%s%.190s",
        name, why.text[0] ? ": " : "", why.text);
}

enum status owner_lists_fetch(struct owner_lists *o, struct worker *w, const struct snapshot *s,
                              uint64_t previous, struct errtext *err)
{
    struct places p = {w, previous};
    struct owner_lists_source source = {read_list, &p};
    return owner_lists_read(o, s, &source, err);
}
