/* residual datanet sign: an owner of documents agrees that they are in this datanet, under the
 * licence, the terms and the consent to display that stand there. Either he signs in the list,
 * which goes from owner to owner, or he signs one text and sends the publisher the signed entry. A
 * server bound to a chain takes a list when every document is signed. residual datanet consent: the
 * datanet's owner agrees to an adapter of somebody else. */
#include "chain_client/cli/contribution.h"
#include "chain_client/cli/datanet_dir.h"
#include "chain_client/cli/place.h"
#include "chain_client/cli/registry.h"
#include "chain_client/eth/addr.h"
#include "chain_client/eth/keystore.h"
#include "server/base/file.h"
#include "server/base/mem.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

struct datanet_sign {
    const struct cli *c;
    struct deployment d;
    struct secp *secp;
    struct secp_key owner;
    struct sign_source source;
    uint32_t mine, unsigned_count;
};

static enum status load_list(struct datanet_sign *s, struct errtext *err)
{
    const char *given = s->c->value[OPT_DATANET_ID];
    struct manifest *m = &s->source.m;
    enum status st = sign_source_load_list(&s->source, s->c->operand[0], err);
    if (st)
        return st;
    m->chain_id = s->d.chain_id;
    memcpy(m->registry, s->d.registry, 20);
    registry_datanet_id(m->datanet_id, &s->d, m->owner, s->source.salt);
    return !given || hex_decode(m->datanet_id, 32, given)
               ? STATUS_OK
               : err_set(err, STATUS_INVALID, "--datanet-id: expected 64 hex digits");
}

static void count_mine(struct datanet_sign *s)
{
    for (uint32_t i = 0; i < s->source.m.documents->count; i++)
        s->mine += memcmp(s->source.m.documents->item[i].owner, s->owner.address, 20) == 0;
}

static enum status write_list(struct datanet_sign *s, struct errtext *err)
{
    struct datanet_dir d = {.dir = s->c->operand[0], .json = s->source.datanet};
    datanet_dir_path(d.path, &d, "datanet.json");
    json_object_set_new(s->source.datanet, "datanetId", sign_hex_json(s->source.m.datanet_id, 32));
    return datanet_dir_save(&d, err);
}

static enum status sign(struct datanet_sign *s, struct errtext *err)
{
    char who[ADDR_TEXT_BYTES];
    struct sign_keys keys = {.secp = s->secp, .owner = &s->owner};
    json_t *list = json_object_get(s->source.datanet, "documents");
    count_mine(s);
    addr_format(who, s->owner.address);
    if (!s->mine)
        return err_set(err, STATUS_NOT_FOUND, "%s: no document is owned by %s",
                       s->source.datanet_path, who);
    enum status st = sign_documents(list, &s->source.m, &keys, err);
    s->unsigned_count = sign_missing(list);
    return st ? st : write_list(s, err);
}

static int print_signed(const struct datanet_sign *s)
{
    struct buf out;
    buf_init(&out, 4096);
    if (cli_has(s->c, OPT_JSON)) {
        buf_puts(&out, "{\"ok\":true,");
        buf_put_json_hex(&out, "datanet", s->source.m.datanet_id, 32);
        buf_printf(&out, ",\"signed\":%u,\"unsigned\":%u}", s->mine, s->unsigned_count);
    } else {
        buf_printf(&out, "signed %u documents of datanet ", s->mine);
        buf_put_hex(&out, s->source.m.datanet_id, 32);
        if (s->unsigned_count)
            buf_printf(&out, "\n%u of other owners are not signed yet: pass %s on to them",
                       s->unsigned_count, s->source.datanet_path);
        else
            buf_puts(&out, "\nevery document is signed");
    }
    int code = cli_print(&out, CLI_FINE);
    buf_fini(&out);
    return code;
}

/* ---- consent ---- */

static enum status read_ids(struct manifest_publish *p, const struct cli *c, struct errtext *err)
{
    u128 version = 0;
    if (!hex_decode(p->adapter_id, 32, c->operand[0]) || !u128_parse(&version, c->operand[1]) ||
        !version || version > INT64_MAX)
        return err_set(err, STATUS_INVALID,
                       "expected an adapter's id (64 hex digits) and a version of the datanet");
    p->datanet_version = (uint64_t)version;
    return hex_decode(p->datanet_id, 32, c->value[OPT_DATANET_ID])
               ? STATUS_OK
               : err_set(err, STATUS_INVALID, "--datanet-id: expected 64 hex digits");
}

/* The datanet's owner agrees that this adapter names this version of it. */
int verb_datanet_consent(struct cli *c)
{
    struct datanet_sign s = {.c = c};
    struct manifest_publish p = {0};
    struct errtext err = ERRTEXT_INIT;
    struct buf out;
    uint8_t digest[32], signature[SECP_SIGNATURE_BYTES];
    enum status st = place_deployment(&s.d, c, &err);
    if (!st)
        st = read_ids(&p, c, &err);
    if (!st)
        st = secp_create(&s.secp, &err);
    if (!st)
        st = keystore_load(s.secp, &s.owner, c->value[OPT_OWNER_KEY_FILE],
                           c->value[OPT_OWNER_PASSPHRASE_FILE], &err);
    manifest_consent_digest(digest, &p, s.d.chain_id, s.d.registry);
    if (!st)
        st = secp_sign(s.secp, signature, &s.owner, digest, &err);
    buf_init(&out, 4096);
    if (!st && cli_has(c, OPT_JSON)) {
        buf_puts(&out, "{\"ok\":true,");
        buf_put_json_hex(&out, "datanetConsent", signature, sizeof(signature));
        buf_putc(&out, '}');
    } else if (!st) {
        buf_put_hex(&out, signature, sizeof(signature));
    }
    int code = st ? cli_fail(c, st, &err, NULL) : cli_print(&out, CLI_FINE);
    buf_fini(&out);
    secp_key_fini(&s.owner);
    secp_destroy(s.secp);
    return code;
}

/* ---- sign ---- */

static int print_entry(const struct cli *c, const json_t *entry)
{
    struct buf out;
    struct errtext err = ERRTEXT_INIT;
    const char *path = c->value[OPT_ENTRY];
    char *text = json_dumps(entry, JSON_INDENT(2));
    buf_init(&out, 1u << 20);
    buf_puts(&out, text ? text : "");
    if (path)
        buf_putc(&out, '\n');
    enum status st =
        text && !out.failed ? STATUS_OK : err_set(&err, STATUS_NO_MEMORY, "no memory to print it");
    if (!st && path)
        st = file_write_atomic(path, out.data, out.len, 0644, &err);
    if (!st && path) {
        buf_clear(&out);
        if (cli_has(c, OPT_JSON))
            buf_puts(&out, "{\"ok\":true}");
        else
            buf_printf(&out, "%s is signed: pass it on to the datanet's publisher, with %s", path,
                       c->operand[0]);
    }
    int code = st ? cli_fail(c, st, &err, NULL) : cli_print(&out, CLI_FINE);
    buf_fini(&out);
    mem_free(text);
    return code;
}

/* One text of the key's owner, for a datanet of which he knows the id alone. */
static enum status sign_file(struct datanet_sign *s, json_t **entry, struct errtext *err)
{
    struct contribution_claim claim;
    struct contribution text;
    struct contribution_place place = {.d = &s->d};
    struct sign_keys keys = {.secp = s->secp, .owner = &s->owner};
    const char *id = s->c->value[OPT_DATANET_ID];
    if (!id || !hex_decode(place.datanet_id, 32, id))
        return err_set(err, STATUS_INVALID,
                       "--datanet-id 0xID of 64 hex digits is %s: the datanet that the document "
                       "goes to; its publisher has it from residual datanet sign or new",
                       id ? "expected" : "missing");
    enum status st = contribution_claim_options(&claim, s->c, s->owner.address, err);
    if (!st)
        st = contribution_read(&text, &claim, s->c->operand[0], err);
    if (st)
        return st;
    st = contribution_sign(entry, &claim, &text, &place, &keys, err);
    contribution_fini(&text);
    return st;
}

static bool is_folder(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* What only goes with a file. */
static enum status check_options(const struct cli *c, bool folder, struct errtext *err)
{
    bool claims = cli_has(c, OPT_LICENCE) || cli_has(c, OPT_TERMS) || cli_has(c, OPT_DISPLAY) ||
                  cli_has(c, OPT_KIND) || cli_has(c, OPT_ENTRY);
    return folder && claims
               ? err_set(err, STATUS_INVALID,
                         "--licence, --terms, --display, --kind and --entry go with a FILE; of a "
                         "folder the list says them")
               : STATUS_OK;
}

int verb_datanet_sign(struct cli *c)
{
    struct datanet_sign s = {.c = c};
    struct errtext err = ERRTEXT_INIT;
    json_t *entry = NULL;
    bool folder = is_folder(c->operand[0]);
    enum status st = check_options(c, folder, &err);
    if (!st)
        st = place_deployment(&s.d, c, &err);
    if (!st)
        st = secp_create(&s.secp, &err);
    if (!st)
        st = keystore_load(s.secp, &s.owner, c->value[OPT_OWNER_KEY_FILE],
                           c->value[OPT_OWNER_PASSPHRASE_FILE], &err);
    if (!st && !folder)
        st = sign_file(&s, &entry, &err);
    if (!st && folder)
        st = load_list(&s, &err);
    if (!st && folder)
        st = sign(&s, &err);
    int code = st ? cli_fail(c, st, &err, NULL) : folder ? print_signed(&s) : print_entry(c, entry);
    json_decref(entry);
    sign_source_fini(&s.source);
    secp_key_fini(&s.owner);
    secp_destroy(s.secp);
    return code;
}
