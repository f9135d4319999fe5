/* residual lane show DATA_DIR: lane.json of every lane in a server's data folder. Keys are not
 * opened. */
#include "chain_client/cli/cli.h"
#include "server/base/file.h"
#include "server/base/json.h"
#include "server/base/mem.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FACTS_BYTES_MAX 65536

static int is_shown(const struct dirent *e)
{
    return e->d_name[0] != '.';
}

static enum status read_facts(const char *dir, json_t **out, struct errtext *err)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/lane.json", dir);
    enum status st = json_doc_load(out, path, FACTS_BYTES_MAX, 0, err);
    st = st == STATUS_INVALID ? STATUS_CORRUPT : st;
    struct json_reader r = {
        .obj = *out, .where = path, .wrong = STATUS_CORRUPT, .st = st, .err = err};
    (void)json_need_int(&r, "lane", (struct json_range){0, UINT32_MAX});
    (void)json_need_string(&r, "address");
    if (r.st)
        json_decref(*out);
    else
        json_object_set_new(*out, "folder", json_string(dir));
    return r.st;
}

static enum status read_all(const char *data_dir, json_t *list, struct errtext *err)
{
    char dir[PATH_MAX], path[PATH_MAX];
    struct dirent **entry;
    json_t *one;
    enum status st = STATUS_OK;
    snprintf(dir, sizeof(dir), "%s/lane.json", data_dir);
    if (file_exists(dir)) { /* a lane's own folder */
        st = read_facts(data_dir, &one, err);
        if (!st)
            json_array_append_new(list, one);
        return st;
    }
    snprintf(dir, sizeof(dir), "%s/lanes", data_dir);
    int n = scandir(dir, &entry, is_shown, alphasort);
    if (n < 0)
        return err_set(err, errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO,
                       "%s: %s; expected the data_dir of a server that has run once", dir,
                       strerror(errno));
    for (int i = 0; i < n; i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, entry[i]->d_name);
        if (!st)
            st = read_facts(path, &one, err);
        if (!st)
            json_array_append_new(list, one);
        mem_free(entry[i]);
    }
    mem_free(entry);
    return st;
}

static void put_text(struct buf *out, const json_t *list)
{
    size_t i;
    const json_t *l;
    json_array_foreach(list, i, l)
    {
        const char *ledger = json_string_value(json_object_get(l, "ledger"));
        json_int_t chain = json_integer_value(json_object_get(l, "chainId"));
        buf_printf(out, "%slane %lld\n  key      %s\n", i ? "\n" : "",
                   json_integer_value(json_object_get(l, "lane")),
                   json_string_value(json_object_get(l, "address")));
        if (chain)
            buf_printf(out, "  chain    %lld\n  ledger   %s\n", chain, ledger ? ledger : "?");
        else
            buf_puts(out, "  unbound  no chain: its records cannot be settled\n");
        buf_printf(out, "  folder   %s", json_string_value(json_object_get(l, "folder")));
    }
    if (json_array_size(list) == 0)
        buf_puts(out, "no lanes");
}

int verb_lane_show(struct cli *c)
{
    struct errtext err = ERRTEXT_INIT;
    struct buf out;
    json_t *list = json_array();
    enum status st = read_all(c->operand[0], list, &err);
    int code;
    if (st) {
        code = cli_fail(c, st, &err, NULL);
    } else {
        buf_init(&out, 1u << 20);
        if (cli_has(c, OPT_JSON)) {
            char *text = json_dumps(list, JSON_COMPACT);
            buf_printf(&out, "{\"ok\":true,\"lanes\":%s}", text ? text : "[]");
            mem_free(text);
        } else {
            put_text(&out, list);
        }
        code = cli_print(&out, json_array_size(list) ? CLI_FINE : CLI_NOTHING);
        buf_fini(&out);
    }
    json_decref(list);
    return code;
}
