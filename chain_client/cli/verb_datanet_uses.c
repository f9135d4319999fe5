/* residual datanet uses DIR DOC_ID: which adapters used a document, in which epochs. The folder
 * says which versions have the document; each published epoch says which version the adapters that
 * its paid answers named were registered with (SPEC 8, snapshot.json). */
#include "chain_client/cli/datanet_dir.h"
#include "chain_client/cli/http.h"
#include "chain_client/settle/archive.h"
#include "server/base/check.h"
#include "server/base/json.h"
#include "server/base/mem.h"
#include "server/datanet/datanet.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EPOCH_GAP_MAX    16 /* numbers that nobody published, one after another: the end */
#define VERSIONS_MAX     65536
#define OUTPUT_BYTES_MAX (256u << 20)

struct uses {
    const struct cli *c;
    struct http *http; /* --settle, or NULL: --archive */
    uint8_t datanet_id[32], digest[32];
    uint64_t *version; /* that have the document, any order */
    uint32_t versions;
    uint64_t epochs; /* read */
    uint32_t found;
    struct buf out;
};

/* ---- which versions ---- */

static bool has_document(const json_t *list, const uint8_t digest[32])
{
    size_t i;
    const json_t *doc;
    uint8_t d[32];
    json_array_foreach(json_object_get(list, "documents"), i, doc)
    {
        const char *hex = json_string_value(json_object_get(doc, "digest"));
        if (hex && hex_decode(d, 32, hex) && memcmp(d, digest, 32) == 0)
            return true;
    }
    return false;
}

static void note_version(struct uses *u, const json_t *list)
{
    json_int_t version = json_integer_value(json_object_get(list, "version"));
    if (version > 0 && u->versions < VERSIONS_MAX && has_document(list, u->digest))
        u->version[u->versions++] = (uint64_t)version;
}

static int is_list(const struct dirent *e)
{
    size_t digits = strspn(e->d_name, "0123456789");
    return digits >= 4 && strcmp(e->d_name + digits, ".json") == 0;
}

static enum status read_old_lists(struct uses *u, const char *dir, struct errtext *err)
{
    char path[PATH_MAX];
    struct dirent **name;
    json_t *list;
    enum status st = STATUS_OK;
    snprintf(path, sizeof(path), "%.*s/versions", PATH_MAX - 300, dir);
    int n = scandir(path, &name, is_list, alphasort);
    for (int i = 0; i < n; i++) {
        snprintf(path, sizeof(path), "%.*s/versions/%s", PATH_MAX - 300, dir, name[i]->d_name);
        list = NULL;
        if (!st)
            st = json_doc_load(&list, path, DATANET_JSON_BYTES, 0, err);
        note_version(u, list);
        json_decref(list);
        free(name[i]); /* lint: waive banned - scandir's memory */
    }
    if (n >= 0)
        free(name); /* lint: waive banned - scandir's memory */
    return st;
}

/* The document: a docId of the present list, or a digest of any. */
static enum status find_document(struct uses *u, const struct datanet_dir *d, struct errtext *err)
{
    char *end;
    const char *named = u->c->operand[1];
    uint64_t id = strtoull(named, &end, 10);
    if (hex_decode(u->digest, 32, named))
        return STATUS_OK;
    size_t place = *named && !*end ? datanet_dir_find(d, id) : SIZE_MAX;
    const char *hex =
        place == SIZE_MAX
            ? NULL
            : json_string_value(json_object_get(json_array_get(d->documents, place), "digest"));
    return hex && hex_decode(u->digest, 32, hex)
               ? STATUS_OK
               : err_set(err, STATUS_NOT_FOUND,
                         "%s has no document %.80s; one that was withdrawn is named by its digest",
                         d->path, named);
}

static enum status find_versions(struct uses *u, struct errtext *err)
{
    struct datanet_dir d;
    enum status st = datanet_dir_load(&d, u->c->operand[0], err);
    if (st)
        return st;
    const char *id = json_string_value(json_object_get(d.json, "datanetId"));
    if (!id || !hex_decode(u->datanet_id, 32, id))
        st = err_set(err, STATUS_INVALID, "%s has no datanetId: it was never on a chain", d.path);
    if (!st)
        st = find_document(u, &d, err);
    if (!st)
        note_version(u, d.json);
    if (!st)
        st = read_old_lists(u, u->c->operand[0], err);
    datanet_dir_fini(&d);
    return st;
}

/* ---- which epochs ---- */

static enum status read_snapshot(struct uses *u, uint64_t epoch, json_t **out, struct errtext *err)
{
    char folder[ARCHIVE_NAME_BYTES], url[128];
    struct canon_bytes text;
    archive_epoch_name(folder, epoch);
    snprintf(url, sizeof(url), "/v1/archive/%s/snapshot.json", folder);
    if (u->http)
        return http_call(u->http, "GET", url, NULL, out, err);
    enum status st = archive_read(u->c->value[OPT_ARCHIVE], folder, "snapshot.json",
                                  ARCHIVE_TEXT_BYTES_MAX, &text, err);
    if (st)
        return st;
    st = json_doc_parse(out, "snapshot.json", (const char *)text.data, text.len, 0, err);
    mem_free((void *)(uintptr_t)text.data);
    return st;
}

static bool has_version(const struct uses *u, uint64_t version)
{
    for (uint32_t i = 0; i < u->versions; i++) {
        if (u->version[i] == version)
            return true;
    }
    return false;
}

static void put_use(struct uses *u, uint64_t epoch, const uint8_t adapter[32], uint64_t version)
{
    bool json = cli_has(u->c, OPT_JSON);
    if (json)
        buf_printf(&u->out, "%s{\"epoch\":%" PRIu64 ",\"version\":%" PRIu64 ",",
                   u->found ? "," : "", epoch, version);
    else
        buf_printf(&u->out, "%sepoch %" PRIu64 "  version %" PRIu64 "  adapter ",
                   u->found ? "\n" : "", epoch, version);
    if (json) {
        buf_put_json_hex(&u->out, "adapter", adapter, 32);
        buf_putc(&u->out, '}');
    } else {
        buf_put_hex(&u->out, adapter, 32);
    }
    u->found++;
}

/* One line a version: terms that only change a price repeat it. */
static enum status read_adapter(struct uses *u, uint64_t epoch, struct json_reader *a)
{
    uint8_t id[32], datanet[32];
    json_need_hex(a, "id", id, 32);
    json_need_hex(a, "datanet", datanet, 32);
    const json_t *terms = json_need_list(a, "terms", VERSIONS_MAX);
    uint64_t last = 0;
    for (size_t i = 0; i < json_array_size(terms) && !a->st; i++) {
        struct json_reader t = json_enter_item(a, "terms", i, json_array_get(terms, i));
        uint64_t version =
            (uint64_t)json_need_int(&t, "datanet_version", (struct json_range){0, INT64_MAX});
        if (memcmp(datanet, u->datanet_id, 32) == 0 && version != last && has_version(u, version))
            put_use(u, epoch, id, version);
        last = version;
    }
    return a->st;
}

static enum status read_epoch(struct uses *u, uint64_t epoch, struct errtext *err)
{
    json_t *snapshot = NULL;
    enum status st = read_snapshot(u, epoch, &snapshot, err);
    if (st)
        return st;
    struct json_reader r = {.obj = snapshot, .where = "snapshot.json", .err = err};
    const json_t *list = json_need_list(&r, "adapters", 1u << 20);
    for (size_t i = 0; i < json_array_size(list) && !r.st; i++) {
        struct json_reader a = json_enter_item(&r, "adapters", i, json_array_get(list, i));
        (void)read_adapter(u, epoch, &a);
    }
    json_decref(snapshot);
    u->epochs += !r.st;
    return r.st;
}

static enum status read_epochs(struct uses *u, struct errtext *err)
{
    uint32_t gap = 0;
    for (uint64_t epoch = 1; gap < EPOCH_GAP_MAX; epoch++) {
        enum status st = read_epoch(u, epoch, err);
        if (st && st != STATUS_NOT_FOUND)
            return st;
        gap = st ? gap + 1 : 0;
        err_clear(err);
    }
    return u->epochs ? STATUS_OK : err_set(err, STATUS_NOT_FOUND, "no epoch is published there");
}

static enum status open_source(struct uses *u, struct errtext *err)
{
    const struct cli *c = u->c;
    if (cli_has(c, OPT_ARCHIVE) == cli_has(c, OPT_SETTLE))
        return err_set(err, STATUS_INVALID,
                       "where are the epochs? give --archive DIR or --settle URL");
    return cli_has(c, OPT_SETTLE)
               ? http_open(&u->http, c->value[OPT_SETTLE], NULL, "settlement worker", err)
               : STATUS_OK;
}

static int print_uses(struct uses *u)
{
    struct buf all;
    buf_init(&all, OUTPUT_BYTES_MAX);
    if (cli_has(u->c, OPT_JSON)) {
        buf_puts(&all, "{\"ok\":true,");
        buf_put_json_hex(&all, "digest", u->digest, 32);
        buf_printf(&all, ",\"epochs\":%" PRIu64 ",\"versions\":%u,\"uses\":[", u->epochs,
                   u->versions);
        buf_put(&all, u->out.data, u->out.len);
        buf_puts(&all, "]}");
    } else if (u->found) {
        buf_put(&all, u->out.data, u->out.len);
    } else {
        buf_printf(&all, "no adapter of the %" PRIu64 " published epochs used it", u->epochs);
    }
    int code = cli_print(&all, u->found ? CLI_FINE : CLI_NOTHING);
    buf_fini(&all);
    return code;
}

int verb_datanet_uses(struct cli *c)
{
    struct uses u = {.c = c, .version = mem_array(VERSIONS_MAX, sizeof(uint64_t))};
    struct errtext err = ERRTEXT_INIT;
    buf_init(&u.out, OUTPUT_BYTES_MAX);
    enum status st = open_source(&u, &err);
    if (!st)
        st = find_versions(&u, &err);
    if (!st)
        st = read_epochs(&u, &err);
    int code = st ? cli_fail(c, st, &err, u.http ? http_hint(st) : NULL) : print_uses(&u);
    http_close(u.http);
    buf_fini(&u.out);
    mem_free(u.version);
    return code;
}
