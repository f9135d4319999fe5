/* residual adapter check, list, show, delete. */
#include "chain_client/cli/facts.h"
#include "chain_client/cli/upload.h"
#include "chain_client/eth/fetch.h"
#include "server/adapter/admit.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/datanet/training.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* ---- check ---- */

static const char *last_part(const char *dir)
{
    const char *end = dir + strlen(dir);
    while (end > dir && end[-1] == '/')
        end--;
    while (end > dir && end[-1] != '/')
        end--;
    return end;
}

/* A refusal is an answer: exit code 1. Outages and wrong input keep theirs. */
static int print_refused(const struct cli *c, enum status st, const struct errtext *err)
{
    struct buf out;
    int code = cli_exit_code(st);
    if (code == CLI_OUTAGE || st == STATUS_NOT_FOUND)
        return cli_fail(c, st, err, NULL);
    buf_init(&out, 1u << 14);
    if (cli_has(c, OPT_JSON)) {
        buf_puts(&out, "{\"ok\":false,\"admitted\":false,\"reason\":");
        buf_put_json_string(&out, err->text, strlen(err->text));
        buf_putc(&out, '}');
    } else {
        buf_printf(&out, "refused: %s", err->text);
    }
    code = cli_print(&out, CLI_WRONG);
    buf_fini(&out);
    return code;
}

static int print_facts(const struct cli *c, const struct facts *f)
{
    struct buf out;
    buf_init(&out, 1u << 14);
    if (cli_has(c, OPT_JSON)) {
        buf_puts(&out, "{\"ok\":true,\"admitted\":true,");
        buf_put_json_hex(&out, "id", f->id, 32);
        buf_printf(&out,
                   ",\"rank_max\":%u,\"modules\":%u,\"file_bytes\":%" PRIu64 ",\"base_name\":",
                   f->rank_max, f->module_count, f->file_bytes);
        buf_put_json_string(&out, f->base_name, strlen(f->base_name));
        buf_puts(&out, ",\"warning\":");
        buf_put_json_string(&out, f->warning, strlen(f->warning));
        buf_putc(&out, '}');
    } else {
        buf_puts(&out, "would be admitted\n  id        ");
        buf_put_hex(&out, f->id, 32);
        buf_printf(&out, "\n  rank      %u at most, %u modules\n  bytes     %" PRIu64, f->rank_max,
                   f->module_count, f->file_bytes);
        if (f->base_name[0])
            buf_printf(&out, "\n  made for  %s", f->base_name);
        if (f->warning[0])
            buf_printf(&out, "\n  warning   %s", f->warning);
    }
    int code = cli_print(&out, CLI_FINE);
    buf_fini(&out);
    return code;
}

static int check_here(struct cli *c)
{
    struct facts f;
    struct errtext err = ERRTEXT_INIT;
    bool base_is_bad = false;
    uint64_t ranks[2] = {1, 512}, bytes[2] = {1 << 12, 1ull << 40}, rank_max;
    struct admit_limits limits;
    enum status st =
        args_number(c, OPT_ADAPTER_RANK_MAX, ranks, ADMIT_RANK_MAX_STANDARD, &rank_max, &err);
    if (!st)
        st = args_number(c, OPT_ADAPTER_BYTES_MAX, bytes, ADMIT_BYTES_MAX_STANDARD,
                         &limits.bytes_max, &err);
    if (st)
        return cli_fail(c, st, &err, NULL);
    limits.rank_max = (uint32_t)rank_max;
    st = facts_read(&f, c->operand[0], c->value[OPT_MODEL], &limits, &base_is_bad, &err);
    if (!st)
        return print_facts(c, &f);
    return base_is_bad ? cli_fail(c, st, &err, "--model names the folder of the base model.")
                       : print_refused(c, st, &err);
}

static int print_report(const struct cli *c, json_t *report)
{
    struct buf out;
    buf_init(&out, 1u << 20);
    if (cli_has(c, OPT_JSON)) {
        json_object_set_new(report, "ok", json_true());
        char *text = json_dumps(report, JSON_COMPACT);
        buf_puts(&out, text ? text : "");
        mem_free(text);
    } else {
        const char *id = json_string_value(json_object_get(report, "id"));
        const char *warning = json_string_value(json_object_get(report, "warning"));
        buf_printf(&out,
                   "the server would admit it\n  id        %s\n  rank      %lld at most, %lld "
                   "modules\n  bytes     %lld",
                   id ? id : "?", json_integer_value(json_object_get(report, "rank_max")),
                   json_integer_value(json_object_get(report, "modules")),
                   json_integer_value(json_object_get(report, "file_bytes")));
        if (warning && *warning)
            buf_printf(&out, "\n  warning   %s", warning);
    }
    int code = cli_print(&out, CLI_FINE);
    buf_fini(&out);
    return code;
}

static int check_there(struct cli *c)
{
    struct errtext err = ERRTEXT_INIT;
    struct http *h;
    json_t *report = NULL;
    bool asked = false;
    struct upload_call u = {.name =
                                c->value[OPT_NAME] ? c->value[OPT_NAME] : last_part(c->operand[0]),
                            .dir = c->operand[0],
                            .replace = true,
                            .dry_run = true};
    char name[256];
    snprintf(name, sizeof(name), "%.*s", (int)strcspn(u.name, cli_has(c, OPT_NAME) ? "" : "/"),
             u.name);
    u.name = name;
    enum status st =
        http_open(&h, c->value[OPT_SERVER], c->value[OPT_API_KEY_FILE], "server", &err);
    if (!st)
        st = upload_check_name(u.name, &err);
    if (!st)
        st = upload_files(h, u.name, c->operand[0], &err);
    if (!st) {
        asked = true;
        st = upload_publish(h, &u, &report, &err);
    }
    int code;
    if (!st)
        code = print_report(c, report);
    else if (asked && st == STATUS_INVALID)
        code = print_refused(c, st, &err);
    else
        code = cli_fail(c, st, &err, http_hint(st));
    json_decref(report);
    http_close(h);
    return code;
}

int verb_adapter_check(struct cli *c)
{
    struct errtext err = ERRTEXT_INIT;
    if (cli_has(c, OPT_MODEL) == cli_has(c, OPT_SERVER)) {
        (void)err_set(&err, STATUS_INVALID,
                      "give either --model DIR (check here) or --server URL (check there)");
        return cli_fail(c, STATUS_INVALID, &err, NULL);
    }
    return cli_has(c, OPT_MODEL) ? check_here(c) : check_there(c);
}

/* ---- list, show, delete ---- */

static const char *text_of(const json_t *v, const char *key)
{
    const char *s = json_string_value(json_object_get(v, key));
    return s ? s : "";
}

static void put_row(struct buf *out, const json_t *e)
{
    const json_t *price = json_object_get(e, "price_per_1000_tokens");
    if (!strcmp(text_of(e, "state"), "refused")) {
        buf_printf(out, "\n%-24s %-12s  refused: %s", text_of(e, "name"), "-", text_of(e, "error"));
        return;
    }
    buf_printf(
        out, "\n%-24s %.12s  %-9s %4lld %10lld %8lld  %s", text_of(e, "name"), text_of(e, "id"),
        text_of(e, "state"), json_integer_value(json_object_get(e, "rank_max")),
        json_integer_value(json_object_get(e, "bytes")),
        json_integer_value(json_object_get(e, "requests")), price ? text_of(price, "out") : "-");
}

static void put_list(struct buf *out, const json_t *answer)
{
    size_t i;
    const json_t *e, *data = json_object_get(answer, "data");
    buf_printf(out, "%-24s %-12s  %-9s %4s %10s %8s  %s", "name", "id", "state", "rank", "bytes",
               "requests", "price out / 1000 tokens");
    json_array_foreach(data, i, e) put_row(out, e);
    buf_printf(out, "\n%lld adapters, %lld refused",
               json_integer_value(json_object_get(answer, "count")),
               json_integer_value(json_object_get(answer, "refused")));
}

static int remote(struct cli *c, const char *method, const char *path,
                  void (*show)(struct buf *out, const json_t *answer))
{
    struct errtext err = ERRTEXT_INIT;
    struct http *h;
    struct buf out;
    json_t *answer = NULL;
    enum status st =
        http_open(&h, c->value[OPT_SERVER], c->value[OPT_API_KEY_FILE], "server", &err);
    if (!st)
        st = http_call(h, method, path, NULL, &answer, &err);
    http_close(h);
    if (st)
        return cli_fail(c, st, &err, http_hint(st));
    buf_init(&out, 256u << 20);
    if (show && !cli_has(c, OPT_JSON)) {
        show(&out, answer);
    } else {
        char *text = json_dumps(answer, cli_has(c, OPT_JSON) ? JSON_COMPACT : JSON_INDENT(2));
        buf_puts(&out, text ? text : "");
        mem_free(text);
    }
    int code = cli_print(&out, CLI_FINE);
    buf_fini(&out);
    json_decref(answer);
    return code;
}

int verb_adapter_list(struct cli *c)
{
    return remote(c, "GET", "/v1/adapters", put_list);
}

static void put_deleted(struct buf *out, const json_t *answer)
{
    buf_printf(out, "deleted %s", text_of(answer, "name"));
}

static int one(struct cli *c, const char *method, void (*show)(struct buf *, const json_t *))
{
    char path[256];
    struct errtext err = ERRTEXT_INIT;
    enum status st = upload_check_name(c->operand[0], &err);
    if (st)
        return cli_fail(c, st, &err, NULL);
    snprintf(path, sizeof(path), "/v1/adapters/%s", c->operand[0]);
    return remote(c, method, path, show);
}

int verb_adapter_show(struct cli *c)
{
    return one(c, "GET", NULL);
}

int verb_adapter_delete(struct cli *c)
{
    return one(c, "DELETE", put_deleted);
}

/* ---- fetch ---- */

static enum status fetch_part(struct http *h, const struct cli *c, const char *part,
                              struct errtext *err)
{
    char path[PATH_MAX], url[512];
    snprintf(path, sizeof(path), "%s/%s", c->operand[1], part);
    snprintf(url, sizeof(url), "/v1/adapters/%s/files/%s", c->operand[0], part);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0)
        return err_set(err, errno == EEXIST ? STATUS_CONFLICT : STATUS_IO, "%s: %s", path,
                       errno == EEXIST ? "is there already" : strerror(errno));
    const struct fetch_file into = {fd, path, ADMIT_BYTES_MAX_STANDARD};
    enum status st = http_call_file(h, url, &into, err);
    if (close(fd) && !st)
        st = err_set(err, STATUS_IO, "%s: %s", path, strerror(errno));
    if (st)
        (void)unlink(path);
    return st;
}

int verb_adapter_fetch(struct cli *c)
{
    static const char *const part[] = {"adapter_config.json", "adapter_model.safetensors",
                                       TRAINING_FILE};
    struct errtext err = ERRTEXT_INIT;
    struct http *h = NULL;
    struct buf out;
    uint32_t got = 0;
    buf_init(&out, 1u << 16);
    enum status st = upload_check_name(c->operand[0], &err);
    if (!st)
        st = http_open(&h, c->value[OPT_SERVER], c->value[OPT_API_KEY_FILE], "server", &err);
    if (!st)
        st = file_mkdirs(c->operand[1], 0755, &err);
    for (uint32_t i = 0; i < ARRAY_COUNT(part) && !st; i++) {
        st = fetch_part(h, c, part[i], &err);
        got += !st;
        if (st == STATUS_NOT_FOUND && i + 1 == ARRAY_COUNT(part)) { /* not every adapter has one */
            st = STATUS_OK;
            err_clear(&err);
        }
    }
    if (cli_has(c, OPT_JSON))
        buf_printf(&out, "{\"files\":%u,\"ok\":true}", got);
    else
        buf_printf(&out, "%s: %u files of %s", c->operand[1], got, c->operand[0]);
    int code = st ? cli_fail(c, st, &err, http_hint(st)) : cli_print(&out, CLI_FINE);
    http_close(h);
    buf_fini(&out);
    return code;
}
