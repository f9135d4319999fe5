/* Survey and repair walk the same way: file by file, from one whole frame to the next, and what
 * lies between them is a loss. A file with a loss is written anew in pieces; the pieces behind its
 * first get their names before it does, so that an interruption never hides what is readable. */
#include "server/spool/repair.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/spool/spool_impl.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PIECE_BYTES (16u << 20)
#define PIECES_MAX  4096u
#define VOIDS_MAX   (1u << 24)

struct seq_range {
    uint64_t first, last;
};

struct loss_walk {
    const struct spool_repair *r;
    struct spool_survey *found; /* survey: filled here */
    uint64_t segment;           /* of the file that is walked; 0: none */
    /* repair: written here, NULL in the survey */
    struct buf *out, entry;
    uint64_t piece[PIECES_MAX];
    size_t piece_count;
    uint64_t begin; /* numbers before it are left out */
};

/* ---- survey: what a loss is ---- */

static enum status note_loss(struct loss_walk *w, struct spool_loss loss, struct errtext *err)
{
    struct spool_survey *f = w->found;
    loss.segment = w->segment;
    if (loss.first <= f->final && loss.last > f->final) {
        struct spool_loss head = loss;
        head.last = f->final;
        enum status st = note_loss(w, head, err);
        if (st)
            return st;
        loss.first = f->final + 1;
    }
    if (loss.last <= f->final) {
        loss.kind = SPOOL_LOSS_FINAL;
        f->first = MAX(f->first, loss.last + 1);
    } else {
        f->lost += loss.last - loss.first + 1;
    }
    if (f->loss_count == SPOOL_LOSSES_MAX || f->lost > VOIDS_MAX)
        return err_set(err, STATUS_TOO_LARGE,
                       "spool %s: more than %u places or %u records are lost, up to record %" PRIu64
                       ": restore a copy",
                       w->r->dir, SPOOL_LOSSES_MAX, VOIDS_MAX, loss.last);
    f->loss[f->loss_count++] = loss;
    return STATUS_OK;
}

/* ---- repair: what is written ---- */

static void piece_path(const char *dir, uint64_t first, char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "%s/new-%020" PRIu64 ".log", dir, first);
}

/* With a footer when another piece follows. */
static enum status end_piece(struct loss_walk *w, uint64_t last, struct errtext *err)
{
    char path[PATH_MAX];
    uint8_t footer[SPOOL_FOOTER_BYTES];
    if (w->out->len == 0)
        return STATUS_OK;
    spool_footer_put(footer, last, w->out->len);
    buf_put(w->out, footer, sizeof(footer));
    if (w->out->failed)
        return err_set(err, STATUS_NO_MEMORY, "spool %s: no memory for a segment", w->r->dir);
    piece_path(w->r->dir, w->piece[w->piece_count - 1], path);
    enum status st = file_write_atomic(path, w->out->data, w->out->len, 0600, err);
    buf_clear(w->out);
    return st;
}

static enum status put_entry(struct loss_walk *w, uint64_t seq, const void *entry, size_t len,
                             struct errtext *err)
{
    enum status st = STATUS_OK;
    if (seq < w->begin)
        return STATUS_OK;
    if (w->out->len + len > PIECE_BYTES)
        st = end_piece(w, seq - 1, err);
    if (!st && w->out->len == 0 && w->piece_count == PIECES_MAX)
        st = err_set(err, STATUS_TOO_LARGE, "spool %s: more than %u files in one gap", w->r->dir,
                     PIECES_MAX);
    if (st)
        return st;
    if (w->out->len == 0)
        w->piece[w->piece_count++] = seq;
    spool_frame_put(w->out, seq, entry, len);
    return STATUS_OK;
}

static enum status fill_loss(struct loss_walk *w, const struct spool_loss *loss,
                             struct errtext *err)
{
    enum status st = STATUS_OK;
    for (uint64_t seq = MAX(loss->first, w->begin); !st && seq <= loss->last; seq++) {
        buf_clear(&w->entry);
        st = w->r->fill(w->r->arg, seq, loss->kind, &w->entry, err);
        if (!st)
            st = put_entry(w, seq, w->entry.data, w->entry.len, err);
    }
    return st;
}

/* ---- both ---- */

static enum status take_loss(struct loss_walk *w, struct seq_range range, enum spool_loss_kind kind,
                             size_t offset, struct errtext *err)
{
    struct spool_loss loss = {
        .first = range.first, .last = range.last, .kind = kind, .offset = offset};
    if (range.first > range.last)
        return STATUS_OK;
    return w->out ? fill_loss(w, &loss, err) : note_loss(w, loss, err);
}

static enum status take_record(struct loss_walk *w, uint64_t seq, const uint8_t *body, size_t len,
                               struct errtext *err)
{
    if (!w->r->is_own(w->r->arg, seq, body, len))
        return err_set(err, STATUS_DENIED,
                       "spool %s: record %" PRIu64 " is whole, but not of this lane: the folder's "
                       "keys and its spool do not belong together",
                       w->r->dir, seq);
    if (!w->out)
        w->found->readable++;
    return w->out ? put_entry(w, seq, body, len, err) : STATUS_OK;
}

/* The file's records within range, range.last is raised when it is open (0). */
static enum status walk_bytes(struct loss_walk *w, const uint8_t *data, size_t len,
                              struct seq_range *range, struct errtext *err)
{
    const uint8_t *body;
    size_t at = 0, body_len, end = len;
    uint64_t next = range->first, seq, last, bytes;
    uint64_t limit = range->last ? range->last : UINT64_MAX;
    enum status st = STATUS_OK;
    if (len >= SPOOL_FOOTER_BYTES &&
        spool_footer_parse(data + len - SPOOL_FOOTER_BYTES, &last, &bytes))
        end = len - SPOOL_FOOTER_BYTES;
    while (!st && next <= limit) {
        size_t found = spool_find_frame(data, end, at, next, &seq);
        if (found == end || seq > limit)
            break;
        if (seq > next)
            st = take_loss(w, (struct seq_range){next, seq - 1}, SPOOL_LOSS_DAMAGED, at, err);
        size_t n = spool_frame_parse(data + found, end - found, &seq, &body, &body_len);
        CHECK(n > 0);
        if (!st)
            st = take_record(w, seq, body, body_len, err);
        at = found + n;
        next = seq + 1;
    }
    uint64_t least = range->last ? range->last : MAX(w->found->used, w->r->upto);
    if (!st)
        st = take_loss(w, (struct seq_range){next, least},
                       at < end ? SPOOL_LOSS_DAMAGED : SPOOL_LOSS_GONE, at, err);
    range->last = MAX(least, next - 1);
    return st;
}

static enum status walk_file(struct loss_walk *w, uint64_t first, struct seq_range *range,
                             struct errtext *err)
{
    char path[PATH_MAX], *data;
    size_t len;
    spool_segment_path(w->r->dir, first, path);
    enum status st = file_read(path, SPOOL_SEGMENT_READ_MAX, &data, &len, err);
    if (st)
        return st;
    w->segment = first;
    st = walk_bytes(w, (const uint8_t *)data, len, range, err);
    mem_free(data);
    return st;
}

/* The numbers of file i: up to where the next begins; open (last 0) for the newest. */
static struct seq_range range_of(const uint64_t *first, size_t count, size_t i)
{
    return (struct seq_range){first[i], i + 1 < count ? first[i + 1] - 1 : 0};
}

static bool is_settled(const struct loss_walk *w, struct seq_range range, uint64_t *last)
{
    uint64_t bytes;
    return spool_footer_read(w->r->dir, range.first, last, &bytes) &&
           (range.last == 0 || range.last == *last) && *last <= w->found->final;
}

static enum status survey_files(struct loss_walk *w, const uint64_t *first, size_t count,
                                struct errtext *err)
{
    struct spool_survey *f = w->found;
    enum status st = STATUS_OK;
    f->last = MAX(f->used, w->r->upto);
    if (count == 0)
        return take_loss(w, (struct seq_range){f->first, f->last}, SPOOL_LOSS_GONE, 0, err);
    f->first = MIN(f->first, first[0]); /* said to be trimmed, but still there */
    st = take_loss(w, (struct seq_range){f->first, first[0] - 1}, SPOOL_LOSS_GONE, 0, err);
    for (size_t i = 0; !st && i < count; i++) {
        struct seq_range range = range_of(first, count, i);
        uint64_t last;
        if (i + 1 < count && is_settled(w, range, &last))
            f->readable += last - range.first + 1;
        else
            st = walk_file(w, first[i], &range, err);
        if (i + 1 == count)
            f->last = range.last;
    }
    return st;
}

enum status spool_find_losses(const struct spool_repair *r, struct spool_survey *out,
                              struct errtext *err)
{
    struct spool_promise p;
    uint64_t *first;
    size_t count;
    int fd;
    *out = (struct spool_survey){.first = 0};
    enum status st = spool_mark_open(r->dir, &fd, &p, NULL);
    if (fd >= 0)
        close(fd);
    if (st && st != STATUS_NOT_FOUND)
        return err_set(err, st, "spool %s: its mark cannot be read", r->dir);
    out->has_mark = !st;
    out->used = p.used;
    out->final = p.final;
    st = spool_list(r->dir, &first, &count, err);
    if (st)
        return st;
    out->first = MAX(p.first, 1);
    if (!out->has_mark && count > 0)
        out->first = first[0];
    struct loss_walk *w = mem_alloc(sizeof(*w));
    w->r = r;
    w->found = out;
    st = survey_files(w, first, count, err);
    mem_free(w);
    mem_free(first);
    return st;
}

/* ---- repair ---- */

/* Pieces take their names, the newest first; the file they came from is kept beside them. */
static enum status name_pieces(const struct loss_walk *w, struct errtext *err)
{
    char from[PATH_MAX], to[PATH_MAX], kept[PATH_MAX + 16];
    if (w->segment) {
        spool_segment_path(w->r->dir, w->segment, from);
        snprintf(kept, sizeof(kept), "%s.damaged", from);
        if (link(from, kept) != 0 && errno != EEXIST)
            return spool_io_error(kept, "link", err);
    }
    for (size_t i = w->piece_count; i-- > 0;) {
        piece_path(w->r->dir, w->piece[i], from);
        spool_segment_path(w->r->dir, w->piece[i], to);
        if (rename(from, to) != 0)
            return spool_io_error(to, "rename", err);
    }
    if (w->segment && (w->piece_count == 0 || w->piece[0] != w->segment)) {
        spool_segment_path(w->r->dir, w->segment, from);
        if (unlink(from) != 0)
            return spool_io_error(from, "delete", err);
    }
    return STATUS_OK;
}

static bool has_loss(const struct spool_survey *f, uint64_t segment)
{
    for (size_t i = 0; i < f->loss_count; i++) {
        if (f->loss[i].segment == segment)
            return true;
    }
    return false;
}

/* One file anew, or what no file holds (segment 0). */
static enum status rewrite(struct loss_walk *w, uint64_t segment, struct seq_range range,
                           struct errtext *err)
{
    enum status st;
    w->segment = segment;
    w->piece_count = 0;
    buf_clear(w->out);
    if (segment)
        st = walk_file(w, segment, &range, err);
    else
        st = take_loss(w, range, SPOOL_LOSS_GONE, 0, err);
    if (!st)
        st = end_piece(w, range.last, err);
    return st ? st : name_pieces(w, err);
}

static enum status repair_files(struct loss_walk *w, const uint64_t *first, size_t count,
                                struct errtext *err)
{
    const struct spool_survey *f = w->found;
    enum status st = STATUS_OK;
    for (size_t i = count; !st && i-- > 0;) {
        struct seq_range range = range_of(first, count, i);
        bool is_before = range.last && range.last < f->first;
        if (is_before || has_loss(f, first[i]) || (first[i] < f->first && range.last == 0))
            st = rewrite(w, first[i], range, err);
    }
    struct seq_range missing = {f->first, count ? first[0] - 1 : f->last};
    if (!st && missing.first <= missing.last)
        st = rewrite(w, 0, missing, err);
    return st;
}

enum status spool_fill_losses(const struct spool_repair *r, const struct spool_survey *found,
                              struct errtext *err)
{
    struct spool_survey copy = *found;
    struct spool_promise p = {.used = found->last, .final = found->final, .first = found->first};
    struct loss_walk *w = mem_alloc(sizeof(*w));
    struct buf out;
    uint64_t *first;
    size_t count;
    int fd = -1;
    enum status st = spool_list(r->dir, &first, &count, err);
    w->r = r;
    w->found = &copy;
    w->out = &out;
    w->begin = found->first;
    buf_init(&out, SPOOL_SEGMENT_READ_MAX);
    buf_init(&w->entry, SPOOL_BODY_BYTES_MAX);
    if (!st)
        st = repair_files(w, first, count, err);
    if (!st)
        st = spool_mark_create(r->dir, &fd, &p, err);
    if (fd >= 0)
        close(fd);
    buf_fini(&w->entry);
    buf_fini(&out);
    mem_free(first);
    mem_free(w);
    return st;
}
