/* residual lane show DATA_DIR: lane.json of every lane in a server's data folder; keys are not
 * opened. residual lane void LANE_DIR: the way out of a damaged spool (server/spool/repair.h). */
#include "chain_client/cli/cli.h"
#include "chain_client/entry.h"
#include "chain_client/eth/addr.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/json.h"
#include "server/base/mem.h"
#include "server/record/lane.h"
#include "server/spool/repair.h"
#include "server/spool/stream_read.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

/* ---- lane void ---- */

/* The lane of a folder, under its server's lock. */
struct closed_lane {
    struct lane lane;
    char spool[PATH_MAX];
    int lock_fd;
    bool has_stream;
    struct stream_reader *stream;
    uint64_t taken; /* of what is lost: the stream has it */
};

static enum status read_identity(const char *dir, struct lane_options *opt, struct errtext *err)
{
    json_t *facts;
    enum status st = read_facts(dir, &facts, err);
    if (st)
        return st;
    opt->lane = (uint32_t)json_integer_value(json_object_get(facts, "lane"));
    opt->chain_id = (uint64_t)json_integer_value(json_object_get(facts, "chainId"));
    const char *ledger = json_string_value(json_object_get(facts, "ledger"));
    st = addr_parse(opt->ledger, ledger ? ledger : "", err);
    json_decref(facts);
    return st;
}

static enum status need_file(const char *dir, const char *name, struct errtext *err)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    return file_exists(path) ? STATUS_OK
                             : err_set(err, STATUS_NOT_FOUND, "%s: there is no such file", path);
}

static enum status open_closed(struct closed_lane *c, const char *folder, struct errtext *err)
{
    char dir[PATH_MAX], data_dir[PATH_MAX];
    struct lane_options opt = {.data_dir = data_dir};
    *c = (struct closed_lane){.lock_fd = -1};
    if (!realpath(folder, dir))
        return err_set(err, STATUS_NOT_FOUND, "%s: %s; expected a lane's folder", folder,
                       strerror(errno));
    snprintf(data_dir, sizeof(data_dir), "%s", dir);
    dirname(dirname(data_dir));
    enum status st = read_identity(dir, &opt, err);
    if (!st)
        st = need_file(dir, "lane.key", err);
    if (!st)
        st = need_file(dir, "transport.key", err);
    if (!st)
        st = need_file(dir, "spool", err);
    if (!st)
        st = lane_lock(data_dir, &c->lock_fd, err);
    if (!st)
        st = lane_open(&c->lane, &opt, err);
    if (!st && strcmp(c->lane.dir, dir) != 0)
        st = err_set(err, STATUS_CONFLICT, "%s: its lane.json names the lane of %s", dir,
                     c->lane.dir);
    snprintf(c->spool, sizeof(c->spool), "%s/spool", dir);
    return st;
}

static void close_closed(struct closed_lane *c)
{
    if (c->lane.secp)
        lane_close(&c->lane);
    if (c->has_stream)
        stream_reader_close(c->stream);
    mem_free(c->stream);
    if (c->lock_fd >= 0)
        close(c->lock_fd);
}

/* *upto is raised to what the stream knows. */
static enum status open_stream(const struct cli *c, struct closed_lane *lane, uint64_t *upto,
                               struct errtext *err)
{
    const char *url = c->value[OPT_REDIS_URL];
    uint64_t last;
    if (!url && lane->lane.bound && cli_has(c, OPT_YES))
        return err_set(
            err, STATUS_INVALID,
            "the lane is bound: --redis-url URL names the Redis that may still hold what "
            "the spool lost, --redis-url none says that there is none");
    if (!url || !strcmp(url, "none"))
        return STATUS_OK;
    lane->has_stream = true;
    lane->stream = mem_alloc(sizeof(*lane->stream));
    enum status st = stream_reader_open(lane->stream, url, c->value[OPT_REDIS_PASSWORD_FILE],
                                        lane->lane.id, err);
    if (!st)
        st = stream_reader_last(lane->stream, &last, err);
    if (!st)
        *upto = MAX(*upto, last);
    return st;
}

/* NOT_FOUND: the stream has no record of the lane under that number. */
static enum status take_back(const struct closed_lane *c, uint64_t seq, struct buf *entry,
                             struct errtext *err)
{
    if (!c->has_stream)
        return STATUS_NOT_FOUND;
    enum status st = stream_reader_take(c->stream, seq, entry, err);
    if (st || lane_is_own(&c->lane, seq, entry->data, entry->len))
        return st;
    buf_clear(entry);
    return STATUS_NOT_FOUND;
}

static enum status sign_void(const struct lane *l, uint64_t seq, enum spool_loss_kind why,
                             struct buf *entry, struct errtext *err)
{
    uint8_t digest[32], body[CANON_VOID_BYTES + SECP_SIGNATURE_BYTES], tag[ENTRY_TAG_BYTES];
    size_t len;
    union record r = {
        .voided = {.prefix = {CANON_SPEC, RECORD_VOID, l->id, seq},
                   .reason = why == SPOOL_LOSS_DAMAGED ? RECORD_VOID_DAMAGED : RECORD_VOID_LOST}};
    enum status st = canon_sign(&r, digest, l->domain, l->secp, &l->key, err);
    if (!st)
        st = canon_encode(body, &len, &r, err);
    if (st)
        return st;
    entry_tag(tag, l->transport_key, body, len);
    buf_put(entry, body, len);
    buf_put(entry, tag, sizeof(tag));
    return STATUS_OK;
}

static enum status fill_one(const void *arg, uint64_t seq, enum spool_loss_kind why,
                            struct buf *entry, struct errtext *err)
{
    const struct closed_lane *c = arg;
    enum status st = take_back(c, seq, entry, err);
    return st == STATUS_NOT_FOUND ? sign_void(&c->lane, seq, why, entry, err) : st;
}

static bool is_own(const void *arg, uint64_t seq, const void *entry, size_t len)
{
    const struct closed_lane *c = arg;
    return lane_is_own(&c->lane, seq, entry, len);
}

static enum status count_taken(struct closed_lane *c, const struct spool_survey *f,
                               struct errtext *err)
{
    struct buf entry;
    enum status st = STATUS_OK;
    buf_init(&entry, ENTRY_WHOLE_BYTES_MAX);
    for (size_t i = 0; !st && c->has_stream && i < f->loss_count; i++) {
        const struct spool_loss *l = &f->loss[i];
        for (uint64_t seq = l->first; !st && l->kind != SPOOL_LOSS_FINAL && seq <= l->last; seq++) {
            buf_clear(&entry);
            st = take_back(c, seq, &entry, err);
            c->taken += !st;
            st = st == STATUS_NOT_FOUND ? STATUS_OK : st;
        }
    }
    buf_fini(&entry);
    return st;
}

static const char *const kinds[] = {[SPOOL_LOSS_GONE] = "lost",
                                    [SPOOL_LOSS_DAMAGED] = "damaged",
                                    [SPOOL_LOSS_FINAL] = "settled, not needed"};

static void put_losses(struct buf *out, const struct closed_lane *c, const struct spool_survey *f,
                       bool done)
{
    buf_printf(out,
               "lane %" PRIu32 "%s: %s\n  records  %" PRIu64 " can be read, %" PRIu64 " cannot\n",
               c->lane.id, c->lane.bound ? "" : " (unbound)", c->spool, f->readable, f->lost);
    if (c->has_stream)
        buf_printf(out, "  stream   %" PRIu64 " of them are there and are taken back\n", c->taken);
    if (!f->has_mark)
        buf_printf(out,
                   "  mark     missing: what was signed after record %" PRIu64
                   " is not known; --upto N says it\n",
                   f->last);
    for (size_t i = 0; i < f->loss_count; i++) {
        const struct spool_loss *l = &f->loss[i];
        buf_printf(out, "  %" PRIu64 " to %" PRIu64 "  %s", l->first, l->last, kinds[l->kind]);
        if (l->segment)
            buf_printf(out, " (seg-%020" PRIu64 ".log, byte %" PRIu64 ")", l->segment, l->offset);
        buf_putc(out, '\n');
    }
    if (done)
        buf_printf(
            out, "%" PRIu64 " void records signed; the spool holds records %" PRIu64 " to %" PRIu64,
            f->lost - c->taken, f->first, f->last);
    else if (f->loss_count || !f->has_mark)
        buf_puts(out, "nothing was changed; with --yes void records are signed for what is lost: "
                      "their answers are not paid");
    else
        buf_puts(out, "nothing is lost");
}

static void put_losses_json(struct buf *out, const struct closed_lane *c,
                            const struct spool_survey *f, bool done)
{
    buf_printf(out,
               "{\"ok\":true,\"lane\":%" PRIu32 ",\"done\":%s,\"mark\":%s,\"readable\":%" PRIu64
               ",\"lost\":%" PRIu64 ",\"in_stream\":%" PRIu64 ",\"first\":%" PRIu64
               ",\"last\":%" PRIu64 ",\"losses\":[",
               c->lane.id, done ? "true" : "false", f->has_mark ? "true" : "false", f->readable,
               f->lost, c->taken, f->first, f->last);
    for (size_t i = 0; i < f->loss_count; i++)
        buf_printf(out, "%s{\"first\":%" PRIu64 ",\"last\":%" PRIu64 ",\"kind\":\"%s\"}",
                   i ? "," : "", f->loss[i].first, f->loss[i].last, kinds[f->loss[i].kind]);
    buf_puts(out, "]}");
}

/* What the server learnt of records that are voids now: it reads the spool again. */
static enum status fill(const struct closed_lane *c, const struct spool_repair *r,
                        const struct spool_survey *f, struct errtext *err)
{
    char path[PATH_MAX + 16];
    enum status st = spool_fill_losses(r, f, err);
    snprintf(path, sizeof(path), "%s/" LANE_CHECKPOINT, c->lane.dir);
    if (!st && unlink(path) != 0 && errno != ENOENT)
        st = err_set(err, STATUS_IO, "%s: %s", path, strerror(errno));
    return st;
}

static enum status judge(const struct cli *c, struct closed_lane *lane, struct buf *out,
                         bool *is_whole, struct errtext *err)
{
    uint64_t upto = 0;
    struct spool_survey *f = mem_alloc(sizeof(*f));
    enum status st = args_number(c, OPT_UPTO, (uint64_t[]){1, UINT64_MAX / 2}, 0, &upto, err);
    if (!st)
        st = open_stream(c, lane, &upto, err);
    const struct spool_repair r = {
        .dir = lane->spool, .upto = upto, .is_own = is_own, .fill = fill_one, .arg = lane};
    if (!st)
        st = spool_find_losses(&r, f, err);
    if (!st)
        st = count_taken(lane, f, err);
    *is_whole = f->has_mark && f->loss_count == 0;
    bool done = !st && cli_has(c, OPT_YES) && !*is_whole;
    if (done)
        st = fill(lane, &r, f, err);
    if (!st && cli_has(c, OPT_JSON))
        put_losses_json(out, lane, f, done);
    else if (!st)
        put_losses(out, lane, f, done);
    *is_whole |= done;
    mem_free(f);
    return st;
}

int verb_lane_void(struct cli *c)
{
    struct errtext err = ERRTEXT_INIT;
    struct closed_lane lane;
    struct buf out;
    bool is_whole = false;
    buf_init(&out, 1u << 20);
    enum status st = open_closed(&lane, c->operand[0], &err);
    if (!st)
        st = judge(c, &lane, &out, &is_whole, &err);
    int code = st ? cli_fail(c, st, &err, NULL) : cli_print(&out, is_whole ? CLI_FINE : CLI_WRONG);
    close_closed(&lane);
    buf_fini(&out);
    return code;
}
