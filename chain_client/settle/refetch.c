/* Records that Redis did not bring: read again from the lane's spool folder (read only: the server
 * owns it) or from its server, in the spool's frames, and judged like any other. One attempt per
 * lane, then a pause that doubles. */
#include "chain_client/eth/fetch.h"
#include "chain_client/settle/worker.h"
#include "server/base/buf.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/file.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/spool/spool.h"

#include <dirent.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SEGMENT_BYTES_MAX (1u << 30)
#define WAIT_MS_MIN       500
#define WAIT_MS_MAX       60000
#define WAIT_MS_TOLD      8000 /* after 15 s of tries a person is told */
#define FETCH_MS_MAX      10000
#define FRAMES_MAX        1024 /* judged in one transaction */

/* What is asked for, and where it goes: to be judged like any other record, or its bodies into a
 * buffer. */
struct range {
    uint64_t first, last;
    struct collected *into; /* NULL: judged */
};
struct collected {
    struct buf *out;
    uint64_t next;
};

static void collect_frames(const struct settle_lane *l, const struct range *gap, const char *data,
                           size_t len)
{
    struct collected *c = gap->into;
    while (len && c->next <= gap->last) {
        uint64_t seq;
        const uint8_t *body;
        size_t body_len, used = spool_frame_parse(data, len, &seq, &body, &body_len);
        if (!used)
            return;
        if (seq == c->next && entry_has_tag(l->transport_key, body, body_len)) {
            archive_put_record(c->out, body, body_len - ENTRY_TAG_BYTES);
            c->next++;
        }
        data += used;
        len -= used;
    }
}

/* *data and *len move over the frames that were read; entry [FRAMES_MAX] gets those of the gap. */
static size_t read_frames(struct lanes_entry *entry, const struct range *gap, const char **data,
                          size_t *len)
{
    size_t count = 0;
    while (*len && count < FRAMES_MAX) {
        uint64_t seq;
        const uint8_t *body;
        size_t body_len, used = spool_frame_parse(*data, *len, &seq, &body, &body_len);
        if (!used) { /* a torn end, or damage: the next attempt reads again */
            *len = 0;
            break;
        }
        if (seq >= gap->first && seq <= gap->last)
            entry[count++] = (struct lanes_entry){.seq = seq, .bytes = {body, body_len}};
        *data += used;
        *len -= used;
    }
    return count;
}

static enum status take_frames(struct worker *w, struct settle_lane *l, const struct range *gap,
                               const char *data, size_t len, struct errtext *err)
{
    if (gap->into) {
        collect_frames(l, gap, data, len);
        return STATUS_OK;
    }
    struct lanes_entry *entry = mem_array(FRAMES_MAX, sizeof(*entry));
    enum status st = STATUS_OK;
    while (!st && len) {
        size_t count = read_frames(entry, gap, &data, &len);
        st = db_begin(&w->db, err);
        if (st)
            break;
        st = lanes_take(w, l, entry, count, err);
        if (!st)
            st = lanes_advance(w, l, err);
        st = db_end(&w->db, st, err);
    }
    mem_free(entry);
    return st;
}

/* ---- the spool's folder ---- */

static int order_names(const void *a, const void *b)
{
    return strcmp(a, b);
}

static enum status from_segment(struct worker *w, struct settle_lane *l, const struct range *gap,
                                const char *name, struct errtext *err)
{
    char path[PATH_MAX], *data;
    size_t len;
    struct errtext why = ERRTEXT_INIT;
    snprintf(path, sizeof(path), "%s/%s", l->spool_dir, name);
    enum status st = file_read(path, SEGMENT_BYTES_MAX, &data, &len, &why);
    if (st == STATUS_CORRUPT || st == STATUS_NOT_FOUND) /* it grew, or was trimmed, while read */
        return STATUS_OK;
    if (st) {
        log_warn("refetch", "%s", why.text);
        return STATUS_OK;
    }
    st = take_frames(w, l, gap, data, len, err);
    mem_free(data);
    return st;
}

/* Segments are named by their first number: those that begin past the gap are not read, nor those
 * that end before it. */
static enum status from_spool(struct worker *w, struct settle_lane *l, const struct range *gap,
                              struct errtext *err)
{
    char(*name)[64] = NULL;
    size_t count = 0, cap = 0;
    DIR *d = opendir(l->spool_dir);
    if (!d) {
        log_warn("refetch", "lane %" PRIu32 ": %s cannot be read", l->id, l->spool_dir);
        return STATUS_OK;
    }
    for (struct dirent *e; (e = readdir(d));) {
        if (strncmp(e->d_name, "seg-", 4) != 0 || strlen(e->d_name) != 28)
            continue;
        if (count == cap) {
            cap = cap ? 2 * cap : 64;
            void *more = mem_try_realloc(name, cap * sizeof(*name));
            if (!more)
                break;
            name = more;
        }
        snprintf(name[count++], sizeof(*name), "%s", e->d_name);
    }
    closedir(d);
    if (count)
        qsort(name, count, sizeof(*name), order_names);
    enum status st = STATUS_OK;
    for (size_t i = 0; i < count && !st; i++) {
        uint64_t first = strtoull(name[i] + 4, NULL, 10);
        uint64_t next = i + 1 < count ? strtoull(name[i + 1] + 4, NULL, 10) : UINT64_MAX;
        if (first <= gap->last && next > gap->first)
            st = from_segment(w, l, gap, name[i], err);
    }
    mem_free(name);
    return st;
}

/* ---- the server ---- */

static enum status from_server(struct worker *w, struct settle_lane *l, const struct range *gap,
                               struct errtext *err)
{
    char path[128];
    struct fetch *f;
    struct errtext why = ERRTEXT_INIT;
    const struct fetch_config config = {.base = l->refetch_url,
                                        .authorization = w->refetch_authorization,
                                        .what = "server",
                                        .timeout_ms = FETCH_MS_MAX};
    snprintf(path, sizeof(path), "/v1/lane/range?first=%" PRIu64 "&last=%" PRIu64, gap->first,
             gap->last);
    enum status st = fetch_open(&f, &config, &why), took = STATUS_OK;
    if (!st)
        st = fetch_perform(f, &(struct fetch_request){.method = "GET", .path = path}, &why);
    const struct fetch_answer *a = f ? fetch_answer(f) : NULL;
    /* An answer cut at its maximum still holds whole frames. */
    if (st && st != STATUS_TOO_LARGE)
        log_warn("refetch", "lane %" PRIu32 ": %s: %s", l->id, l->refetch_url, why.text);
    else if (a->code != 200)
        log_warn("refetch", "lane %" PRIu32 ": %s: HTTP status %ld, expected 200", l->id,
                 l->refetch_url, a->code);
    else if (a->body.len)
        took = take_frames(w, l, gap, a->body.data, a->body.len, err);
    fetch_close(f);
    return took;
}

enum status refetch_bodies(struct worker *w, struct settle_lane *l, uint64_t first, uint64_t last,
                           struct buf *out, struct errtext *err)
{
    struct collected c = {out, first};
    struct range gap = {first, last, &c};
    enum status st = l->spool_dir ? from_spool(w, l, &gap, err) : STATUS_OK;
    for (uint64_t before = 0; !st && l->refetch_url && c.next <= last && c.next != before;) {
        before = c.next; /* an answer is bounded: ask for the rest */
        gap.first = c.next;
        st = from_server(w, l, &gap, err);
    }
    if (st || c.next > last)
        return st;
    return err_set(err, STATUS_NOT_FOUND,
                   "lane %" PRIu32 " record %" PRIu64 ": neither its spool nor its server has it",
                   l->id, c.next);
}

/* ---- gaps ---- */

static enum status find_gap(struct worker *w, const struct settle_lane *l, struct range *gap,
                            struct errtext *err)
{
    uint64_t next;
    gap->first = l->ingested + 1;
    enum status st = records_next(&w->db, l->id, l->ingested, l->top + 1, &next, err);
    gap->last = next - 1;
    return st;
}

static enum status say_gap(struct worker *w, const struct settle_lane *l, const struct range *gap,
                           struct errtext *err)
{
    char text[512];
    const char *way = l->spool_dir || l->refetch_url
                          ? "neither spool_dir nor refetch_url has them: is the server up, and is "
                            "the key of refetch_key_file a worker's? If its disk lost them for "
                            "good, `residual lane void` fills their numbers"
                          : "neither spool_dir nor refetch_url is set for it: name one of them";
    snprintf(text, sizeof(text),
             "lane %" PRIu32 " holds at record %" PRIu64 ": records %" PRIu64 " to %" PRIu64
             " are missing; %s",
             l->id, l->ingested, gap->first, gap->last, way);
    return trouble_set(&w->db, TROUBLE_GAP, l->id, text, err);
}

static enum status fill(struct worker *w, struct settle_lane *l, struct errtext *err)
{
    struct range gap = {.into = NULL};
    enum status st = find_gap(w, l, &gap, err);
    if (st || gap.last < gap.first)
        return st;
    if (!l->refetch_wait_ms)
        log_warn("refetch", "lane %" PRIu32 ": records %" PRIu64 " to %" PRIu64 " are missing",
                 l->id, gap.first, gap.last);
    if (l->spool_dir)
        st = from_spool(w, l, &gap, err);
    if (!st && l->refetch_url && l->ingested < gap.last)
        st = from_server(w, l, &gap, err);
    if (l->ingested >= gap.last)
        log_info("refetch", "lane %" PRIu32 ": records up to %" PRIu64 " are here", l->id,
                 l->ingested);
    if (st || l->ingested >= gap.last)
        return st ? st : trouble_clear(&w->db, TROUBLE_GAP, l->id, err);
    if (l->refetch_wait_ms >= WAIT_MS_TOLD || (!l->spool_dir && !l->refetch_url))
        st = say_gap(w, l, &gap, err);
    l->refetch_wait_ms =
        l->refetch_wait_ms ? MIN(2 * l->refetch_wait_ms, (uint32_t)WAIT_MS_MAX) : WAIT_MS_MIN;
    l->refetch_ns = clock_mono_ns() + l->refetch_wait_ms * 1000000ull;
    return st;
}

/* Others filled it. */
static enum status forget_gap(struct worker *w, struct settle_lane *l, struct errtext *err)
{
    l->refetch_wait_ms = 0;
    return trouble_clear(&w->db, TROUBLE_GAP, l->id, err);
}

enum status refetch_step(struct worker *w, struct errtext *err)
{
    enum status st = STATUS_OK;
    for (uint32_t i = 0; i < w->lane_count && !st; i++) {
        struct settle_lane *l = &w->lane[i];
        if (!l->stopped && l->top > l->ingested && clock_mono_ns() >= l->refetch_ns)
            st = fill(w, l, err);
        else if (l->top <= l->ingested && l->refetch_wait_ms)
            st = forget_gap(w, l, err);
    }
    return st;
}
