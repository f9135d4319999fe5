/* Datanets over HTTP: a list comes first, then each text that it says is missing; both can be
 * repeated. What anybody may see is what the chain's roots commit to, and of texts those whose
 * owners consented to display. Everything here waits for a disk, so it runs on that lane. */
#include "chain_client/eth/addr.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/hex.h"
#include "server/base/json.h"
#include "server/base/mem.h"
#include "server/datanet/store.h"
#include "server/http/audit.h"
#include "server/http/auth.h"
#include "server/http/handlers.h"
#include "server/http/reply.h"
#include "server/http/state.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PAGE_DOCUMENTS_MAX 1000u /* of one answer, unless ?first= and ?last= ask for less */

/* ---- paths ---- */

enum datanet_part { PART_NONE, PART_SHOW, PART_OWNERS, PART_VALUE, PART_TEXT };

struct datanet_path { /* ROOT | ID/VERSION, then "", /owners, /value or /documents/DIGEST */
    uint8_t id[32];   /* or the root */
    uint64_t version; /* 0: id is a root */
    uint8_t digest[32];
    enum datanet_part part;
};

/* 64 digits with or without 0x at *at, which moves behind them. */
static bool take_hex(const char **at, uint8_t out[32])
{
    char hex[67];
    size_t len = strcspn(*at, "/");
    snprintf(hex, sizeof(hex), "%.*s", (int)MIN(len, sizeof(hex) - 1), *at);
    if (len >= sizeof(hex) || !hex_decode(out, 32, hex))
        return false;
    *at += len;
    return true;
}

static bool take_version(const char **at, uint64_t *version)
{
    char *end = NULL;
    if ((*at)[0] != '/' || (*at)[1] < '1' || (*at)[1] > '9')
        return false;
    errno = 0;
    *version = strtoull(*at + 1, &end, 10);
    if (errno || *version > INT64_MAX || (*end && *end != '/'))
        return false;
    *at = end;
    return true;
}

static struct datanet_path read_path(const char *tail)
{
    struct datanet_path p = {.part = PART_NONE};
    const char *at = tail;
    if (!take_hex(&at, p.id))
        return p;
    (void)take_version(&at, &p.version);
    if (!*at) {
        p.part = PART_SHOW;
    } else if (strcmp(at, "/owners") == 0 && p.version) {
        p.part = PART_OWNERS;
    } else if (strcmp(at, "/value") == 0) {
        p.part = PART_VALUE;
    } else if (strncmp(at, "/documents/", 11) == 0) {
        at += 11;
        p.part = take_hex(&at, p.digest) && !*at ? PART_TEXT : PART_NONE;
    }
    return p;
}

static bool find_held(struct exchange *x, const struct datanet_path *p, struct datanet_held *h)
{
    struct datanet_store *s = x->server->deps.datanets;
    return p->version ? datanet_store_by_id(s, p->id, p->version, h)
                      : datanet_store_get(s, p->id, h);
}

static enum status not_held(struct errtext *err)
{
    return err_param(err, STATUS_NOT_FOUND, "id",
                     "this server holds no such datanet; GET /v1/datanets lists those it holds");
}

/* ---- reading ---- */

#define VALUE_LISTED_MAX 16u /* contributors of a datanet in the list of all: the worthiest */

static void put_hex(struct buf *out, const char *key, const uint8_t value[32])
{
    buf_put_json_hex(out, key, value, 32);
    buf_putc(out, ',');
}

static void put_held(struct buf *out, const struct datanet_held *h)
{
    static const uint8_t none[32];
    buf_puts(out, "{\"object\":\"datanet\",");
    put_hex(out, "document_root", h->root);
    if (memcmp(h->id, none, 32) != 0)
        put_hex(out, "datanet", h->id);
    buf_puts(out, "\"name\":");
    buf_put_json_string(out, h->name, strlen(h->name));
    buf_printf(out,
               ",\"version\":%" PRIu64 ",\"documents\":%u,\"bytes\":%" PRIu64
               ",\"missing\":%u,\"comparing\":%u,\"copies\":%u,\"created\":%" PRId64,
               h->version, h->documents, h->bytes, h->missing, h->waiting, h->copies,
               h->created_ms / 1000);
}

static void put_figure(struct buf *out, const char *key, const struct value_figure *f)
{
    buf_printf(out,
               "\"%s\":{\"nats_per_token\":%.6f,\"low\":%.6f,\"high\":%.6f,\"nats\":%.6f,"
               "\"tokens\":%" PRIu64 "}",
               key, (double)f->value * 1e-6, (double)f->low * 1e-6, (double)f->high * 1e-6,
               (double)f->total * 1e-6, f->tokens);
}

static void put_worth(struct buf *out, const struct value_line *l)
{
    char owner[ADDR_TEXT_BYTES];
    addr_format(owner, l->owner);
    buf_printf(out, "{\"owner\":\"%s\",\"rows\":%u,\"repeated\":%u,", owner, l->rows, l->repeated);
    put_figure(out, "worth", &l->worth);
    buf_putc(out, '}');
}

/* Its publisher's claim, with the recipe at /value: not where it was measured on another base. */
static void put_value(struct exchange *x, const struct datanet_held *h,
                      const struct value_report *v, uint32_t most)
{
    struct buf *out = &x->out;
    const char *by = h->own ? h->publisher : "operator";
    if (!v || memcmp(v->base, x->server->deps.model->id, 32) != 0)
        return;
    buf_puts(out, ",\"value\":{\"measured_by\":");
    buf_put_json_string(out, by, strlen(by));
    buf_puts(out, ",\"claim\":true,");
    put_hex(out, "digest", v->digest);
    put_hex(out, "base", v->base);
    buf_printf(out, "\"judged_by\":\"%s\",\"seeds\":%u,\"parts\":%u,",
               v->has_eval ? "eval" : "rows", v->seeds, v->folds);
    put_figure(out, "gain", &v->gain);
    buf_printf(out, ",\"contributors_count\":%u,\"contributors\":[", v->n);
    for (uint32_t i = 0; i < MIN(v->n, most); i++) {
        buf_puts(out, i ? "," : "");
        put_worth(out, &v->line[i]);
    }
    buf_puts(out, "]}");
}

struct datanet_lines {
    struct exchange *x;
    uint32_t count;
};

static bool list_one(void *arg, const struct datanet_held *h, const struct value_report *value)
{
    struct datanet_lines *l = arg;
    struct buf *out = &l->x->out;
    buf_puts(out, l->count++ ? "," : "");
    put_held(out, h);
    put_value(l->x, h, value, VALUE_LISTED_MAX);
    buf_putc(out, '}');
    return !out->failed;
}

void handle_datanets_list(struct exchange *x)
{
    struct datanet_lines l = {.x = x};
    buf_puts(&x->out, "{\"object\":\"list\",\"data\":[");
    datanet_store_each(x->server->deps.datanets, list_one, &l);
    buf_printf(&x->out, "],\"count\":%u}", l.count);
    exchange_json(x, 200);
}

static void put_document(struct buf *out, const struct datanet_document *e,
                         const struct documents_facts *f)
{
    char owner[ADDR_TEXT_BYTES];
    addr_format(owner, e->owner);
    buf_putc(out, '{');
    put_hex(out, "digest", e->digest);
    buf_printf(out,
               "\"docId\":%" PRIu64 ",\"owner\":\"%s\",\"bytes\":%" PRIu64 ",\"since\":%" PRIu64
               ",\"kind\":\"%s\",\"display\":%s,\"licence\":",
               f->doc_id, owner, e->bytes, f->since, rows_kind_name(f->kind),
               f->display ? "true" : "false");
    buf_put_json_string(out, f->licence, strlen(f->licence));
    buf_puts(out, ",\"terms\":");
    if (*f->terms)
        buf_put_json_string(out, f->terms, strlen(f->terms));
    else
        buf_puts(out, "null");
}

/* The earlier document, of somebody else, that it says (nearly) the same as. */
static void put_copy(struct exchange *x, const uint8_t root[32], uint32_t place)
{
    char owner[ADDR_TEXT_BYTES];
    struct datanet_copy c;
    if (datanet_store_copy(x->server->deps.datanets, root, place, &c)) {
        addr_format(owner, c.owner);
        buf_puts(&x->out, ",\"copy_of\":{");
        put_hex(&x->out, "document_root", c.root);
        put_hex(&x->out, "digest", c.digest);
        buf_printf(&x->out, "\"owner\":\"%s\",\"ppm\":%u}", owner, c.ppm);
    }
    buf_putc(&x->out, '}');
}

/* A number of the query, `absent` if there is none. */
static bool read_number(const char *text, uint64_t absent, uint64_t *out)
{
    char *end = NULL;
    *out = absent;
    if (!*text)
        return true;
    errno = 0;
    *out = strtoull(text, &end, 10);
    return *text >= '0' && *text <= '9' && !*end && !errno;
}

static enum status show(struct exchange *x, const struct datanet_path *p, struct errtext *err)
{
    struct datanet_held h;
    uint64_t first, last;
    if (!find_held(x, p, &h))
        return not_held(err);
    struct datanet *d = datanet_store_peek(x->server->deps.datanets, h.root);
    if (!d)
        return err_set(err, STATUS_CORRUPT,
                       "its list cannot be read now; the server's log says "
                       "why");
    const struct datanet_head *head = datanet_head(d);
    bool good = read_number(x->query_first, 0, &first) &&
                read_number(x->query_last, first + PAGE_DOCUMENTS_MAX - 1, &last);
    if (!good || first > last) {
        datanet_release(d);
        return err_param(err, STATUS_INVALID, "first",
                         "give the range of documents as ?first=N&last=M with N <= M, from 0");
    }
    last = MIN(last, MIN(first + PAGE_DOCUMENTS_MAX - 1, (uint64_t)head->n - 1));
    put_held(&x->out, &h);
    struct value_report *value = datanet_store_value(x->server->deps.datanets, h.root);
    put_value(x, &h, value, VALUE_CONTRIBUTORS_MAX);
    value_report_free(value);
    buf_putc(&x->out, ',');
    put_hex(&x->out, "owner_root", head->owner_root);
    put_hex(&x->out, "tokenizer", head->tokenizer_digest);
    buf_printf(&x->out, "\"first\":%" PRIu64 ",\"data\":[", first);
    for (uint64_t i = first; i <= last; i++) {
        buf_puts(&x->out, i > first ? "," : "");
        put_document(&x->out, datanet_document(d, (uint32_t)i), datanet_facts(d, (uint32_t)i));
        put_copy(x, h.root, (uint32_t)i);
    }
    buf_puts(&x->out, "]}");
    datanet_release(d);
    return STATUS_OK;
}

static int by_digest(const void *digest, const void *document)
{
    return memcmp(digest, ((const struct datanet_document *)document)->digest, 32);
}

static enum status read_text(const struct datanet *d, const struct datanet_path *p, struct buf *out,
                             struct errtext *err)
{
    const struct datanet_document *all = datanet_document(d, 0);
    const struct datanet_document *found =
        bsearch(p->digest, all, datanet_head(d)->n, sizeof(*all), by_digest);
    if (!found)
        return err_param(err, STATUS_NOT_FOUND, "digest", "the datanet has no such document");
    const struct documents_facts *f = datanet_facts(d, (uint32_t)(found - all));
    return f->display ? datanet_text(d, (uint32_t)(found - all), out, err)
                      : err_param(err, STATUS_DENIED, "digest",
                                  "its owner has not consented to display (licence %.64s%s%.200s)",
                                  f->licence, *f->terms ? ", " : "", f->terms);
}

static enum status show_text(struct exchange *x, const struct datanet_path *p, struct errtext *err)
{
    struct datanet_held h;
    if (!find_held(x, p, &h))
        return not_held(err);
    struct datanet *d = datanet_store_peek(x->server->deps.datanets, h.root);
    if (!d)
        return not_held(err);
    struct buf text;
    buf_init(&text, 4 * (size_t)DOCUMENT_BYTES_MAX);
    enum status st = read_text(d, p, &text, err);
    if (!st)
        buf_put(&x->out, text.data, text.len);
    buf_fini(&text);
    datanet_release(d);
    return st;
}

static enum status show_value(struct exchange *x, const struct datanet_path *p, struct errtext *err)
{
    struct datanet_held h;
    return find_held(x, p, &h)
               ? datanet_store_value_file(x->server->deps.datanets, h.root, &x->out, err)
               : not_held(err);
}

/* Public: whoever settles or audits needs the list, and its root is on the chain. */
static enum status show_owners(struct exchange *x, const struct datanet_path *p,
                               struct errtext *err)
{
    struct buf list;
    struct book *book = x->server->deps.book;
    if (!book)
        return err_set(err, STATUS_NOT_FOUND, "this server's lane is bound to no chain");
    buf_init(&list, OWNERS_JSON_MAX + 256);
    enum status st = book_owners_json(book, p->id, p->version, &list, err);
    if (!st)
        buf_put(&x->out, list.data, list.len);
    if (!st && x->out.failed)
        st = err_set(err, STATUS_TOO_LARGE, "the owners' list has %zu bytes, more than a reply",
                     list.len);
    buf_fini(&list);
    return st;
}

void handle_datanet_get(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    struct datanet_path p = read_path(x->tail);
    enum status st;
    switch (p.part) {
    case PART_SHOW:
        st = show(x, &p, &err);
        break;
    case PART_OWNERS:
        st = show_owners(x, &p, &err);
        break;
    case PART_VALUE:
        st = show_value(x, &p, &err);
        break;
    case PART_TEXT:
        st = show_text(x, &p, &err);
        break;
    default:
        st = err_param(&err, STATUS_NOT_FOUND, "id",
                       "expected /v1/datanets/ROOT or /v1/datanets/ID/VERSION (64 hex digits, a "
                       "number), and /owners, /value or /documents/DIGEST behind it");
    }
    if (st) {
        exchange_fail(x, st, &err);
        return;
    }
    exchange_json(x, 200);
    if (p.part == PART_TEXT)
        x->content_type = "text/plain; charset=utf-8";
}

/* ---- what comes in ---- */

static void fail_put(struct exchange *x, enum status st, const struct errtext *err)
{
    bool disk = err->code && strcmp(err->code, FILE_DISK_FULL) == 0;
    if (st == STATUS_FULL && !disk) /* waiting does not help */
        exchange_fail_as(x, 507, err);
    else
        exchange_fail(x, st, err);
}

static void put_missing(void *arg, const uint8_t digest[32])
{
    struct datanet_lines *l = arg;
    char hex[65];
    hex_encode(hex, digest, 32);
    buf_printf(&l->x->out, "%s\"0x%s\"", l->count++ ? "," : "", hex);
}

static enum status check_licences(void *arg, const struct datanet *d, struct errtext *err)
{
    struct exchange *x = arg;
    return publisher_check_licences(x->server->deps.publisher, datanet_head(d)->id,
                                    datanet_documents(d), err);
}

static enum status take_list(struct exchange *x, const json_t *root, uint8_t document_root[32],
                             struct errtext *err)
{
    struct datanet_list l = {.datanet = root,
                             .publisher = auth_key_name(x->key),
                             .admin = (x->roles & HTTP_ROLE_ADMIN) != 0,
                             .check = check_licences,
                             .arg = x};
    return datanet_store_put_list(x->server->deps.datanets, &l, document_root, err);
}

void handle_datanet_publish(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    struct datanet_held h;
    struct datanet_lines missing = {.x = x};
    uint8_t document_root[32];
    char name[67] = "";
    json_t *root = NULL;
    enum status st = json_doc_parse(&root, "the body", x->body.data, x->body.len, 0, &err);
    exchange_drop_body(x);
    if (!st)
        st = take_list(x, root, document_root, &err);
    json_decref(root);
    if (!st)
        hex_encode(name, document_root, 32);
    audit_action(x, "publish datanet", st ? NULL : name, st, &err);
    if (!st && !datanet_store_get(x->server->deps.datanets, document_root, &h))
        st = err_set(&err, STATUS_CONFLICT, "it was removed meanwhile");
    if (st) {
        fail_put(x, st, &err);
        return;
    }
    put_held(&x->out, &h);
    buf_puts(&x->out, ",\"texts\":[");
    datanet_store_missing(x->server->deps.datanets, document_root, put_missing, &missing);
    buf_puts(&x->out, "]}");
    exchange_json(x, 201);
}

static enum status read_upload(struct exchange *x, const char *what, size_t most, char **text,
                               size_t *len, struct errtext *err)
{
    if (lseek(x->upload->fd, 0, SEEK_SET) != 0)
        return err_set(err, STATUS_IO, "%s cannot be read: %s", what, strerror(errno));
    return file_read_fd(x->upload->fd, what, most, text, len, err);
}

static enum status take_text(struct exchange *x, const struct datanet_path *p, struct errtext *err)
{
    char *text;
    size_t len;
    enum status st = read_upload(x, "the text", DOCUMENT_BYTES_MAX, &text, &len, err);
    if (st)
        return st;
    st = datanet_store_put_text(x->server->deps.datanets, p->id, p->digest, text, len, err);
    mem_free(text);
    return st;
}

static enum status take_value(struct exchange *x, const struct datanet_path *p, struct errtext *err)
{
    struct datanet_value_sent v = {.publisher = auth_key_name(x->key),
                                   .admin = (x->roles & HTTP_ROLE_ADMIN) != 0,
                                   .base = x->server->deps.model->id};
    char *text;
    enum status st = read_upload(x, VALUE_FILE, VALUE_BYTES_MAX, &text, &v.len, err);
    if (st)
        return st;
    v.text = text;
    st = datanet_store_put_value(x->server->deps.datanets, p->id, &v, err);
    mem_free(text);
    return st;
}

void handle_datanet_put(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    struct datanet_held h = {0};
    struct datanet_path p = read_path(x->tail);
    CHECK(x->upload);
    enum status st =
        p.version || (p.part != PART_TEXT && p.part != PART_VALUE)
            ? err_param(&err, STATUS_NOT_FOUND, "id",
                        "PUT a text to /v1/datanets/ROOT/documents/DIGEST, or " VALUE_FILE
                        " to /v1/datanets/ROOT/value")
        : p.part == PART_TEXT ? take_text(x, &p, &err)
                              : take_value(x, &p, &err);
    uploads_detach(x);
    if (p.part == PART_VALUE)
        audit_action(x, "publish value", x->tail, st, &err);
    if (st) {
        fail_put(x, st, &err);
        return;
    }
    (void)datanet_store_get(x->server->deps.datanets, p.id, &h);
    if (p.part == PART_TEXT) {
        buf_putc(&x->out, '{');
        put_hex(&x->out, "digest", p.digest);
        buf_printf(&x->out, "\"missing\":%u}", h.missing);
    } else {
        struct value_report *value = datanet_store_value(x->server->deps.datanets, p.id);
        put_held(&x->out, &h);
        put_value(x, &h, value, VALUE_CONTRIBUTORS_MAX);
        value_report_free(value);
        buf_putc(&x->out, '}');
    }
    exchange_json(x, 201);
}

void handle_datanet_delete(struct exchange *x)
{
    struct errtext err = ERRTEXT_INIT;
    struct datanet_path p = read_path(x->tail);
    bool admin = (x->roles & HTTP_ROLE_ADMIN) != 0;
    enum status st = p.part == PART_SHOW && !p.version
                         ? datanet_store_remove(x->server->deps.datanets, p.id,
                                                auth_key_name(x->key), admin, &err)
                         : err_param(&err, STATUS_NOT_FOUND, "id", "DELETE /v1/datanets/ROOT");
    audit_action(x, "delete datanet", x->tail, st, &err);
    if (st) {
        exchange_fail(x, st, &err);
        return;
    }
    buf_putc(&x->out, '{');
    put_hex(&x->out, "document_root", p.id);
    buf_puts(&x->out, "\"deleted\":true}");
    exchange_json(x, 200);
}
