/* The text has one form, so it is read by holding it against that form, character by character: a
 * reader of JSON in general would need twenty times the memory of the rows. */
#include "server/datanet/training.h"
#include "server/base/hex.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#define FORMAT "residual.training.1"

struct scan {
    const char *at, *end;
    const char *begin;
    const struct datanet *d;
    struct training *t;
    uint32_t room;
    struct errtext *err;
};

/* ---- the text ---- */

static enum status wrong(const struct scan *s, const char *expected)
{
    size_t left = (size_t)(s->end - s->at);
    return err_set(s->err, STATUS_INVALID,
                   TRAINING_FILE ": byte %zu: found \"%.*s\", expected %s; residual datanet build "
                                 "writes this file",
                   (size_t)(s->at - s->begin), (int)(left < 20 ? left : 20), s->at, expected);
}

static bool eat(struct scan *s, const char *text)
{
    size_t n = strlen(text);
    if ((size_t)(s->end - s->at) < n || memcmp(s->at, text, n) != 0)
        return false;
    s->at += n;
    return true;
}

static enum status need(struct scan *s, const char *text)
{
    return eat(s, text) ? STATUS_OK : wrong(s, text);
}

static enum status need_bool(struct scan *s, const char *key, bool *out)
{
    enum status st = need(s, key);
    if (st)
        return st;
    *out = eat(s, "true");
    return *out || eat(s, "false") ? STATUS_OK : wrong(s, "true or false");
}

static enum status need_digest(struct scan *s, const char *key, uint8_t out[32])
{
    char hex[65];
    enum status st = need(s, key);
    if (st)
        return st;
    if (s->end - s->at < 65)
        return wrong(s, "64 hex digits");
    memcpy(hex, s->at, 64);
    hex[64] = '\0';
    if (strspn(hex, "0123456789abcdef") != 64 || !hex_decode(out, 32, hex))
        return wrong(s, "64 hex digits in lower case");
    s->at += 64;
    return need(s, "\"");
}

static enum status need_number(struct scan *s, uint64_t most, uint64_t *out)
{
    const char *begin = s->at;
    *out = 0;
    for (; s->at < s->end && *s->at >= '0' && *s->at <= '9'; s->at++) {
        uint64_t digit = (uint64_t)(*s->at - '0');
        if (*out > (most - digit) / 10)
            return wrong(s, "a smaller number");
        *out = *out * 10 + digit;
    }
    return s->at > begin && (*begin != '0' || s->at == begin + 1) ? STATUS_OK
                                                                  : wrong(s, "a whole number");
}

/* ---- rows ---- */

static enum status no_document(const struct scan *s, uint64_t id, uint32_t place)
{
    if (place == UINT32_MAX)
        return err_set(s->err, STATUS_INVALID,
                       TRAINING_FILE ": row %u: the datanet has no document %" PRIu64, s->t->n, id);
    return err_set(s->err, STATUS_INVALID,
                   TRAINING_FILE ": row %u: document %" PRIu64
                                 " is a copy of an earlier one; its rows are not trained on: "
                                 "leave it out",
                   s->t->n, id);
}

static enum status grow(struct scan *s)
{
    uint32_t room = s->room ? 2 * s->room : 1024;
    void *more =
        s->room < TRAINING_ROWS_MAX ? mem_try_realloc(s->t->row, room * sizeof(*s->t->row)) : NULL;
    if (!more)
        return err_set(s->err, s->room < TRAINING_ROWS_MAX ? STATUS_NO_MEMORY : STATUS_TOO_LARGE,
                       TRAINING_FILE ": more than %u rows", s->room);
    s->t->row = more;
    s->room = room;
    return STATUS_OK;
}

static enum status add_row(struct scan *s, uint32_t place, uint64_t offset, uint64_t bytes)
{
    enum status st = s->t->n == s->room ? grow(s) : STATUS_OK;
    if (!st)
        s->t->row[s->t->n++] = (struct training_row){place, (uint32_t)offset, (uint32_t)bytes};
    return st;
}

static enum status read_row(struct scan *s)
{
    uint64_t id, offset, bytes;
    enum status st = need(s, "[");
    if (!st)
        st = need_number(s, INT64_MAX, &id);
    if (!st)
        st = need(s, ",");
    if (!st)
        st = need_number(s, DOCUMENT_BYTES_MAX, &offset);
    if (!st)
        st = need(s, ",");
    if (!st)
        st = need_number(s, DOCUMENT_BYTES_MAX, &bytes);
    if (!st)
        st = need(s, "]");
    if (st)
        return st;
    uint32_t place = documents_find(datanet_documents(s->d), id);
    if (place == UINT32_MAX || place >= datanet_head(s->d)->n)
        return no_document(s, id, place);
    uint64_t has = datanet_document(s->d, place)->bytes;
    if (!bytes || offset + bytes > has)
        return err_set(s->err, STATUS_INVALID,
                       TRAINING_FILE ": row %u: bytes %" PRIu64 " to %" PRIu64 ", document %" PRIu64
                                     " has %" PRIu64,
                       s->t->n, offset, offset + bytes, id, has);
    return add_row(s, place, offset, bytes);
}

static int by_place(const void *a, const void *b)
{
    const struct training_row *x = a, *y = b;
    if (x->document != y->document)
        return x->document < y->document ? -1 : 1;
    return (x->offset > y->offset) - (x->offset < y->offset);
}

static enum status check_apart(const struct scan *s)
{
    const struct training *t = s->t;
    struct training_row *sorted = mem_try_array(t->n, sizeof(*sorted));
    enum status st = STATUS_OK;
    if (!sorted)
        return err_set(s->err, STATUS_NO_MEMORY, "no memory for %u rows", t->n);
    memcpy(sorted, t->row, t->n * sizeof(*sorted));
    qsort(sorted, t->n, sizeof(*sorted), by_place);
    for (uint32_t i = 1; i < t->n && !st; i++) {
        const struct training_row *a = &sorted[i - 1], *b = &sorted[i];
        if (a->document == b->document && a->offset + a->bytes > b->offset)
            st = err_set(s->err, STATUS_INVALID,
                         TRAINING_FILE ": document %" PRIu64
                                       ": the rows at %u and %u share bytes; a row counts once",
                         datanet_facts(s->d, a->document)->doc_id, a->offset, b->offset);
    }
    mem_free(sorted);
    return st;
}

/* ---- the whole file ---- */

static enum status check_root(const struct scan *s, const uint8_t root[32])
{
    char found[65], want[65];
    if (memcmp(root, datanet_head(s->d)->document_root, 32) == 0)
        return STATUS_OK;
    hex_encode(found, root, 32);
    hex_encode(want, datanet_head(s->d)->document_root, 32);
    return err_set(s->err, STATUS_INVALID,
                   TRAINING_FILE ": documentRoot: found 0x%s, the datanet beside it is 0x%s; "
                                 "residual datanet build makes it anew",
                   found, want);
}

static enum status scan_file(struct scan *s)
{
    uint8_t root[32];
    enum status st = need_bool(s, "{\"bos\":", &s->t->bos);
    if (!st)
        st = need_digest(s, ",\"documentRoot\":\"0x", root);
    if (!st)
        st = check_root(s, root);
    if (!st)
        st = need_bool(s, ",\"eos\":", &s->t->eos);
    if (!st)
        st = need(s, ",\"format\":\"" FORMAT "\",\"rows\":[");
    while (!st) {
        st = read_row(s);
        if (!st && !eat(s, ","))
            break;
    }
    if (!st)
        st = need_digest(s, "],\"tokenizerDigest\":\"0x", s->t->tokenizer_digest);
    if (!st)
        st = need(s, "}\n");
    if (!st && s->at < s->end)
        st = wrong(s, "the end");
    return st ? st : check_apart(s);
}

enum status training_parse(struct training **out, const char *text, size_t len,
                           const struct datanet *d, struct errtext *err)
{
    struct scan s = {.at = text, .begin = text, .end = text + len, .d = d, .err = err};
    s.t = mem_alloc(sizeof(*s.t));
    enum status st = scan_file(&s);
    crypto_generichash(s.t->digest, 32, (const uint8_t *)text, len, NULL, 0);
    if (st)
        training_free(s.t);
    *out = st ? NULL : s.t;
    return st;
}

enum status training_load(struct training **out, const struct datanet *d, struct errtext *err)
{
    return training_load_as(out, d, TRAINING_FILE, err);
}

enum status training_load_as(struct training **out, const struct datanet *d, const char *name,
                             struct errtext *err)
{
    char *text = NULL;
    size_t len;
    *out = NULL;
    enum status st = datanet_read(d, name, TRAINING_BYTES_MAX, &text, &len, err);
    if (!st)
        st = training_parse(out, text, len, d, err);
    mem_free(text);
    return st;
}

void training_free(struct training *t)
{
    if (!t)
        return;
    mem_free(t->row);
    mem_free(t);
}

static void put_digest(struct buf *out, const char *key, const uint8_t digest[32])
{
    char hex[65];
    hex_encode(hex, digest, 32);
    buf_printf(out, "%s0x%s\"", key, hex);
}

enum status training_render(struct buf *out, const struct training *t, const struct datanet *d,
                            struct errtext *err)
{
    buf_printf(out, "{\"bos\":%s", t->bos ? "true" : "false");
    put_digest(out, ",\"documentRoot\":\"", datanet_head(d)->document_root);
    buf_printf(out, ",\"eos\":%s,\"format\":\"" FORMAT "\",\"rows\":[", t->eos ? "true" : "false");
    for (uint32_t i = 0; i < t->n; i++)
        buf_printf(out, "%s[%" PRIu64 ",%u,%u]", i ? "," : "",
                   datanet_facts(d, t->row[i].document)->doc_id, t->row[i].offset, t->row[i].bytes);
    put_digest(out, "],\"tokenizerDigest\":\"", t->tokenizer_digest);
    buf_puts(out, "}\n");
    return out->failed
               ? err_set(err, STATUS_TOO_LARGE, TRAINING_FILE ": %u rows do not fit %zu bytes",
                         t->n, out->bytes_max)
               : STATUS_OK;
}

enum status training_seal(struct training *t, const struct datanet *d, struct errtext *err)
{
    struct buf file;
    buf_init(&file, TRAINING_BYTES_MAX);
    enum status st = training_render(&file, t, d, err);
    if (!st)
        crypto_generichash(t->digest, 32, (const uint8_t *)file.data, file.len, NULL, 0);
    buf_fini(&file);
    return st;
}

/* ---- making one ---- */

struct building {
    struct scan s;
    uint32_t place;
};

static enum status take_row(void *arg, size_t offset, size_t bytes, struct errtext *err)
{
    struct building *b = arg;
    (void)err; /* the scan has it */
    return add_row(&b->s, b->place, offset, bytes);
}

static enum status build_rows(struct building *b, struct buf *text)
{
    const struct documents *list = datanet_documents(b->s.d);
    enum status st = STATUS_OK;
    for (uint32_t i = 0; i < list->listed && !st; i++) {
        b->place = list->by_id[i];
        if (b->place >= list->count)
            continue;
        st = datanet_text(b->s.d, b->place, text, b->s.err);
        if (!st)
            st =
                rows_each(list->facts[b->place].kind, text->data, text->len, take_row, b, b->s.err);
        if (st)
            err_prefix(b->s.err, "document %" PRIu64, list->facts[b->place].doc_id);
    }
    return st;
}

enum status training_build(struct training **out, const struct datanet *d, bool bos, bool eos,
                           const uint8_t tokenizer_digest[32], struct errtext *err)
{
    struct building b = {.s = {.d = d, .err = err}};
    struct buf text;
    struct training *t = b.s.t = mem_alloc(sizeof(*t));
    buf_init(&text, 4 * (size_t)DOCUMENT_BYTES_MAX);
    t->bos = bos;
    t->eos = eos;
    memcpy(t->tokenizer_digest, tokenizer_digest, 32);
    enum status st = build_rows(&b, &text);
    if (!st)
        st = training_seal(t, d, err);
    buf_fini(&text);
    if (st)
        training_free(t);
    *out = st ? NULL : t;
    return st;
}
