/* residual datanet new, add, withdraw, show: the folder of a datanet, one version after another.
 * Every text is checked before the list changes, and the list is written once, at the end. */
#include "chain_client/cli/contribution.h"
#include "chain_client/cli/datanet_dir.h"
#include "chain_client/cli/datanet_remote.h"
#include "chain_client/cli/place.h"
#include "chain_client/cli/registry.h"
#include "chain_client/eth/addr.h"
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/datanet/training.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define OUTPUT_BYTES_MAX ((size_t)1 << 30)

/* ---- new ---- */

/* The id that the datanet will have on this deployment's chain. */
static enum status put_id(json_t *json, const struct cli *c, const uint8_t owner[20],
                          struct errtext *err)
{
    struct deployment d;
    uint8_t id[32], salt[32];
    char hex[67] = "0x";
    if (!cli_has(c, OPT_DEPLOYMENT))
        return STATUS_OK;
    enum status st = place_deployment(&d, c, err);
    if (st)
        return st;
    sign_datanet_salt(salt, c->value[OPT_NAME]);
    registry_datanet_id(id, &d, owner, salt);
    hex_encode(hex + 2, id, 32);
    json_object_set_new(json, "datanetId", json_string(hex));
    return STATUS_OK;
}

static enum status make_folder(const struct cli *c, struct errtext *err)
{
    struct datanet_dir d = {.dir = c->operand[0]};
    uint8_t owner[20];
    char who[ADDR_TEXT_BYTES];
    const char *name = c->value[OPT_NAME];
    enum status st = addr_parse(owner, c->value[OPT_OWNER], err);
    if (st)
        err_prefix(err, "--owner");
    if (!st && strlen(name) > DATANET_NAME_BYTES)
        st = err_set(err, STATUS_INVALID, "--name: %zu bytes, at most %d", strlen(name),
                     DATANET_NAME_BYTES);
    datanet_dir_path(d.path, &d, DATANET_FILE);
    if (!st && file_exists(d.path))
        st = err_set(err, STATUS_EXISTS, "%s is there already; residual datanet add adds to it",
                     d.path);
    if (st)
        return st;
    addr_format(who, owner);
    d.json =
        json_pack("{s:i, s:s, s:s, s:[]}", "version", 1, "name", name, "owner", who, "documents");
    if (!d.json)
        return err_set(err, STATUS_INVALID, "--name: expected UTF-8");
    st = put_id(d.json, c, owner, err);
    if (!st)
        st = file_mkdirs(d.dir, 0755, err);
    if (!st)
        st = datanet_dir_save(&d, err);
    datanet_dir_fini(&d);
    return st;
}

static int print_done(const struct cli *c, const struct buf *text, const struct buf *json)
{
    return cli_print(cli_has(c, OPT_JSON) ? json : text, CLI_FINE);
}

int verb_datanet_new(struct cli *c)
{
    struct errtext err = ERRTEXT_INIT;
    struct buf text, json;
    enum status st = make_folder(c, &err);
    if (st)
        return cli_fail(c, st, &err, NULL);
    buf_init(&text, PATH_MAX + 256);
    buf_init(&json, PATH_MAX + 256);
    buf_printf(&text,
               "%s/" DATANET_FILE ": version 1, no documents yet; residual datanet add %s "
               "FILE... adds them",
               c->operand[0], c->operand[0]);
    buf_puts(&json, "{\"ok\":true,\"version\":1}");
    int code = print_done(c, &text, &json);
    buf_fini(&text);
    buf_fini(&json);
    return code;
}

/* ---- add ---- */

struct adding {
    const struct cli *c;
    struct datanet_dir d;
    struct contribution_claim claim;
    json_t *known;        /* digest -> docId */
    json_t *signed_entry; /* --entry, or NULL */
    uint32_t added;
    uint64_t first_id;
};

static enum status note_known(struct adding *a, struct errtext *err)
{
    size_t i;
    json_t *doc;
    a->known = json_object();
    json_array_foreach(a->d.documents, i, doc)
    {
        char hex[65];
        uint8_t digest[32];
        const char *text = json_string_value(json_object_get(doc, "digest"));
        if (!text || !hex_decode(digest, 32, text))
            return err_set(err, STATUS_INVALID, "%s: documents[%zu].digest: expected 64 hex digits",
                           a->d.path, i);
        hex_encode(hex, digest, 32);
        json_object_set(a->known, hex, json_object_get(doc, "docId"));
    }
    return STATUS_OK;
}

static const char *ending(enum rows_kind kind)
{
    return kind == ROWS_TEXT ? "txt" : kind == ROWS_MARKDOWN ? "md" : "jsonl";
}

static enum status put_text(const struct adding *a, json_t *doc, const struct contribution *e,
                            uint64_t id, struct errtext *err)
{
    char name[64];
    snprintf(name, sizeof(name), "documents/%04" PRIu64 ".%s", id, ending(e->kind));
    json_object_set_new(doc, "file", json_string(name));
    return datanet_dir_put_text(&a->d, name, e->text.data, e->text.len, err);
}

static enum status add_one(struct adding *a, const char *file, struct errtext *err)
{
    struct contribution e;
    char hex[65];
    enum status st = contribution_read(&e, &a->claim, file, err);
    if (st)
        return st;
    hex_encode(hex, e.digest, 32);
    const json_t *same = json_object_get(a->known, hex);
    uint64_t id = a->d.id_max + 1;
    if (same)
        st = err_set(err, STATUS_EXISTS,
                     "%s: it is document %" JSON_INTEGER_FORMAT " already, word for word", file,
                     json_integer_value(same));
    if (!st && a->signed_entry)
        st = contribution_match(a->signed_entry, &e, file, err);
    json_t *doc =
        json_pack("{s:I, s:I}", "docId", (json_int_t)id, "since", (json_int_t)a->d.version);
    if (!st)
        contribution_put(doc, &a->claim, &e, a->signed_entry);
    if (!st)
        st = put_text(a, doc, &e, id, err);
    if (!st) {
        json_object_set_new(a->known, hex, json_integer((json_int_t)id));
        json_array_append(a->d.documents, doc);
        a->d.id_max = id;
        a->added++;
    }
    json_decref(doc);
    contribution_fini(&e);
    return st;
}

static enum status read_claim(struct adding *a, struct errtext *err)
{
    const struct cli *c = a->c;
    if (!cli_has(c, OPT_ENTRY))
        return contribution_claim_options(&a->claim, c, NULL, err);
    if (c->operand_count != 2 || cli_has(c, OPT_LICENCE) || cli_has(c, OPT_OWNER) ||
        cli_has(c, OPT_TERMS) || cli_has(c, OPT_DISPLAY) || cli_has(c, OPT_KIND))
        return err_set(err, STATUS_INVALID,
                       "--entry says owner, licence, terms, display and kind of one document: give "
                       "one FILE, its text, and none of these");
    enum status st = contribution_load(&a->signed_entry, &a->claim, c->value[OPT_ENTRY], err);
    return st ? st : contribution_check_datanet(a->signed_entry, a->d.json, err);
}

static enum status add_all(struct adding *a, struct errtext *err)
{
    char path[PATH_MAX];
    enum status st = datanet_dir_load(&a->d, a->c->operand[0], err);
    if (!st)
        st = read_claim(a, err);
    if (!st)
        st = note_known(a, err);
    datanet_dir_path(path, &a->d, "documents");
    if (!st)
        st = file_mkdirs(path, 0755, err);
    if (!st)
        st = datanet_dir_next(&a->d, false, err);
    a->first_id = a->d.id_max + 1;
    for (uint32_t i = 1; i < a->c->operand_count && !st; i++)
        st = add_one(a, a->c->operand[i], err);
    return st ? st : datanet_dir_save(&a->d, err);
}

int verb_datanet_add(struct cli *c)
{
    struct adding a = {.c = c};
    struct errtext err = ERRTEXT_INIT;
    struct buf text, json;
    buf_init(&text, 1024);
    buf_init(&json, 1024);
    enum status st = add_all(&a, &err);
    buf_printf(&text, "added %u documents (%" PRIu64 " to %" PRIu64 ") to version %" PRIu64,
               a.added, a.first_id, a.d.id_max, a.d.version);
    buf_printf(&json, "{\"ok\":true,\"added\":%u,\"first\":%" PRIu64 ",\"version\":%" PRIu64 "}",
               a.added, a.first_id, a.d.version);
    int code = st ? cli_fail(c, st, &err, NULL) : print_done(c, &text, &json);
    buf_fini(&text);
    buf_fini(&json);
    json_decref(a.known);
    json_decref(a.signed_entry);
    datanet_dir_fini(&a.d);
    return code;
}

/* ---- withdraw ---- */

static enum status withdraw_one(struct datanet_dir *d, const char *word, struct errtext *err)
{
    u128 id;
    char path[PATH_MAX];
    if (!u128_parse(&id, word) || id > INT64_MAX)
        return err_set(err, STATUS_INVALID, "'%s': expected a docId", word);
    size_t at = datanet_dir_find(d, (uint64_t)id);
    if (at == SIZE_MAX)
        return err_set(err, STATUS_NOT_FOUND, "%s has no document %s", d->path, word);
    const json_t *doc = json_array_get(d->documents, at);
    const char *file = json_string_value(json_object_get(doc, "file"));
    enum status st = STATUS_OK;
    if (file && file[0] != '/' && !strstr(file, "..")) {
        datanet_dir_path(path, d, file);
        if (unlink(path) && errno != ENOENT)
            st = err_set(err, STATUS_IO, "%s: %s", path, strerror(errno));
    }
    json_array_remove(d->documents, at);
    return st;
}

int verb_datanet_withdraw(struct cli *c)
{
    struct datanet_dir d = {0};
    struct errtext err = ERRTEXT_INIT;
    struct buf text, json;
    enum status st = datanet_dir_load(&d, c->operand[0], &err);
    if (!st)
        st = datanet_dir_next(&d, true, &err);
    for (uint32_t i = 1; i < c->operand_count && !st; i++)
        st = withdraw_one(&d, c->operand[i], &err);
    if (!st)
        st = datanet_dir_save(&d, &err);
    buf_init(&text, 1024);
    buf_init(&json, 1024);
    buf_printf(&text,
               "version %" PRIu64 " is without %u documents, their texts are deleted; residual "
               "datanet build makes its rows",
               d.version, c->operand_count - 1);
    buf_printf(&json, "{\"ok\":true,\"version\":%" PRIu64 ",\"withdrawn\":%u}", d.version,
               c->operand_count - 1);
    int code = st ? cli_fail(c, st, &err, NULL) : print_done(c, &text, &json);
    buf_fini(&text);
    buf_fini(&json);
    datanet_dir_fini(&d);
    return code;
}

/* ---- show ---- */

static void show_one(struct buf *out, const struct documents *list, uint32_t place)
{
    const struct documents_facts *f = &list->facts[place];
    char who[ADDR_TEXT_BYTES];
    addr_format(who, list->item[place].owner);
    buf_printf(out, "\n%6" PRIu64 "  %s  %-14s %-8s %9" PRIu64 "%s%s%s", f->doc_id, who, f->licence,
               rows_kind_name(f->kind), list->item[place].bytes, f->display ? "  shown" : "",
               f->signature ? "  signed" : "", f->is_copy ? "  copy of " : "");
    if (f->is_copy)
        buf_put_hex(out, f->copy_of, 32);
}

static void show_text(struct buf *out, const struct datanet *d, const struct training *t)
{
    const struct datanet_head *h = datanet_head(d);
    const struct documents *list = datanet_documents(d);
    buf_printf(out,
               "%s, version %" PRIu64 ": %u documents of %u owners, %u copies, %" PRIu64
               " bytes\ndocument root  ",
               h->name, h->version, h->n, h->owners, list->listed - h->n, h->bytes);
    buf_put_hex(out, h->document_root, 32);
    buf_puts(out, "\nowner root     ");
    buf_put_hex(out, h->owner_root, 32);
    buf_puts(out, "\ntraining       ");
    if (t) {
        buf_put_hex(out, t->digest, 32);
        buf_printf(out, ", %u rows", t->n);
    } else {
        buf_puts(out, "none: residual datanet build makes it");
    }
    for (uint32_t i = 0; i < list->listed; i++)
        show_one(out, list, list->by_id[i]);
}

static void show_json(struct buf *out, const struct datanet *d, const struct training *t)
{
    const struct datanet_head *h = datanet_head(d);
    buf_puts(out, "{\"ok\":true,\"name\":");
    buf_put_json_string(out, h->name, strlen(h->name));
    buf_printf(out,
               ",\"version\":%" PRIu64
               ",\"documents\":%u,\"owners\":%u,\"copies\":%u,\"bytes\":%" PRIu64 ",",
               h->version, h->n, h->owners, datanet_documents(d)->listed - h->n, h->bytes);
    buf_put_json_hex(out, "document_root", h->document_root, 32);
    buf_putc(out, ',');
    buf_put_json_hex(out, "owner_root", h->owner_root, 32);
    if (t) {
        buf_putc(out, ',');
        buf_put_json_hex(out, "training", t->digest, 32);
        buf_printf(out, ",\"rows\":%u", t->n);
    }
    buf_putc(out, '}');
}

int verb_datanet_show(struct cli *c)
{
    struct datanet *d = NULL;
    struct training *t = NULL;
    struct errtext err = ERRTEXT_INIT;
    struct buf out;
    if (cli_has(c, OPT_SERVER) || cli_has(c, OPT_RPC))
        return datanet_remote_show(c);
    buf_init(&out, OUTPUT_BYTES_MAX);
    enum status st = datanet_open(&d, c->operand[0], NULL, &err);
    if (!st)
        st = training_load(&t, d, &err);
    if (st == STATUS_NOT_FOUND && d)
        st = STATUS_OK;
    if (!st && cli_has(c, OPT_JSON))
        show_json(&out, d, t);
    else if (!st)
        show_text(&out, d, t);
    int code = st ? cli_fail(c, st, &err, NULL) : cli_print(&out, CLI_FINE);
    buf_fini(&out);
    training_free(t);
    datanet_release(d);
    return code;
}
