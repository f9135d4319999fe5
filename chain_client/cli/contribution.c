/* The signature covers digest, licence, terms and consent: whoever changes one of them on the way
 * has an entry that is not signed. */
#include "chain_client/cli/contribution.h"
#include "chain_client/eth/addr.h"
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/datanet/spdx.h"

#include <string.h>

#define ENTRY_BYTES_MAX     (64u << 10)
#define SIGNATURE_BYTES_MAX 4096

/* ---- what is said of it ---- */

static enum status check_claim(struct contribution_claim *claim, const char *kind,
                               struct errtext *err)
{
    claim->has_kind = kind != NULL;
    if (kind && !rows_kind_parse(&claim->kind, kind))
        return err_set(err, STATUS_INVALID,
                       "kind: found '%s', expected text, markdown, rows or chats", kind);
    enum status st = spdx_check(claim->licence, err);
    return st ? st : terms_check(claim->terms, err);
}

enum status contribution_claim_options(struct contribution_claim *claim, const struct cli *c,
                                       const uint8_t *owner, struct errtext *err)
{
    *claim = (struct contribution_claim){.licence = c->value[OPT_LICENCE],
                                         .terms = cli_has(c, OPT_TERMS) ? c->value[OPT_TERMS] : "",
                                         .display = cli_has(c, OPT_DISPLAY)};
    if (!cli_has(c, OPT_LICENCE))
        return err_set(err, STATUS_INVALID,
                       "--licence SPDX is missing: under which licence may the documents be used?");
    if (owner) {
        memcpy(claim->owner, owner, 20);
    } else if (!cli_has(c, OPT_OWNER)) {
        return err_set(err, STATUS_INVALID,
                       "--owner 0xADDRESS is missing: who is paid for the documents?");
    } else if (addr_parse(claim->owner, c->value[OPT_OWNER], err)) {
        err_prefix(err, "--owner");
        return STATUS_INVALID;
    }
    return check_claim(claim, c->value[OPT_KIND], err);
}

/* ---- the text ---- */

static enum status see_row(void *arg, size_t offset, size_t bytes, struct errtext *err)
{
    (void)arg;
    (void)offset;
    (void)bytes;
    (void)err;
    return STATUS_OK;
}

enum status contribution_read(struct contribution *out, const struct contribution_claim *claim,
                              const char *file, struct errtext *err)
{
    char *text = NULL;
    size_t len;
    *out = (struct contribution){0};
    buf_init(&out->text, 4 * (size_t)DOCUMENT_BYTES_MAX);
    enum status st = file_read(file, DOCUMENT_BYTES_MAX, &text, &len, err);
    if (st)
        return st;
    st = document_normal(&out->text, text, len, err);
    mem_free(text);
    if (!st) {
        document_digest(out->digest, &out->text);
        out->kind =
            claim->has_kind ? claim->kind : rows_kind_guess(file, out->text.data, out->text.len);
        st = rows_each(out->kind, out->text.data, out->text.len, see_row, NULL, err);
    }
    if (st) {
        err_prefix(err, "%s", file);
        contribution_fini(out);
    }
    return st;
}

void contribution_fini(struct contribution *c)
{
    buf_fini(&c->text);
}

void contribution_put(json_t *doc, const struct contribution_claim *claim,
                      const struct contribution *c, const json_t *signed_entry)
{
    char who[ADDR_TEXT_BYTES];
    addr_format(who, claim->owner);
    json_object_set_new(doc, "owner", json_string(who));
    json_object_set_new(doc, "licence", json_string(claim->licence));
    if (claim->terms[0])
        json_object_set_new(doc, "terms", json_string(claim->terms));
    if (claim->display)
        json_object_set_new(doc, "display", json_true());
    json_object_set_new(doc, "kind", json_string(rows_kind_name(c->kind)));
    json_object_set_new(doc, "bytes", json_integer((json_int_t)c->text.len));
    json_object_set_new(doc, "digest", sign_hex_json(c->digest, 32));
    if (signed_entry)
        json_object_set(doc, "ownerSignature", json_object_get(signed_entry, "ownerSignature"));
}

/* ---- signed ---- */

static struct manifest_licence licence_of(const struct contribution_claim *claim,
                                          const uint8_t datanet_id[32], const uint8_t digest[32])
{
    struct manifest_licence l = {
        .licence = claim->licence, .terms = claim->terms, .display = claim->display};
    memcpy(l.datanet_id, datanet_id, 32);
    memcpy(l.digest, digest, 32);
    return l;
}

enum status contribution_sign(json_t **out, const struct contribution_claim *claim,
                              const struct contribution *c, const struct contribution_place *place,
                              const struct sign_keys *keys, struct errtext *err)
{
    struct manifest_licence l = licence_of(claim, place->datanet_id, c->digest);
    uint8_t digest[32], signature[SECP_SIGNATURE_BYTES];
    manifest_licence_digest(digest, &l, place->d->chain_id, place->d->registry);
    enum status st = secp_sign(keys->secp, signature, keys->owner, digest, err);
    if (st)
        return st;
    *out = json_pack("{s:o, s:I, s:o}", "datanetId", sign_hex_json(place->datanet_id, 32),
                     "chainId", (json_int_t)place->d->chain_id, "registry",
                     sign_hex_json(place->d->registry, 20));
    contribution_put(*out, claim, c, NULL);
    json_object_set_new(*out, "ownerSignature", sign_hex_json(signature, sizeof(signature)));
    return STATUS_OK;
}

static enum status check_signature(const struct contribution_claim *claim, struct json_reader *r)
{
    uint8_t id[32], registry[20], text[32], digest[32], signature[SIGNATURE_BYTES_MAX];
    const char *hex = json_need_string(r, "ownerSignature");
    uint64_t chain_id = (uint64_t)json_need_int(r, "chainId", (struct json_range){0, INT64_MAX});
    size_t len = (strlen(hex) - (strncmp(hex, "0x", 2) ? 0 : 2)) / 2;
    struct secp *secp;
    json_need_hex(r, "datanetId", id, 32);
    json_need_hex(r, "registry", registry, 20);
    json_need_hex(r, "digest", text, 32);
    if (!r->st && (!len || len > sizeof(signature) || !hex_decode(signature, len, hex)))
        json_fail(r, STATUS_INVALID, "ownerSignature", "expected hex");
    if (r->st || len != SECP_SIGNATURE_BYTES)
        return r->st;
    struct manifest_licence l = licence_of(claim, id, text);
    manifest_licence_digest(digest, &l, chain_id, registry);
    enum status st = secp_create(&secp, r->err);
    if (st)
        return st;
    if (secp_verify(secp, signature, digest, claim->owner, NULL))
        st = err_set(r->err, STATUS_DENIED,
                     "%s: ownerSignature is not the owner's over this digest, licence, terms and "
                     "consent: its owner signs it again with residual datanet sign",
                     r->where);
    secp_destroy(secp);
    return st;
}

enum status contribution_load(json_t **out, struct contribution_claim *claim, const char *path,
                              struct errtext *err)
{
    enum status st = json_doc_load(out, path, ENTRY_BYTES_MAX, 0, err);
    struct json_reader r = {.obj = *out, .where = path, .st = st, .err = err};
    const char *terms = json_read_string(&r, "terms");
    *claim = (struct contribution_claim){.licence = json_need_string(&r, "licence"),
                                         .terms = terms ? terms : "",
                                         .display = json_read_bool(&r, "display", false)};
    addr_need(claim->owner, &r, "owner");
    const char *kind = json_need_string(&r, "kind");
    st = r.st ? r.st : check_claim(claim, kind, err);
    return st ? st : check_signature(claim, &r);
}

enum status contribution_match(const json_t *signed_entry, const struct contribution *c,
                               const char *file, struct errtext *err)
{
    uint8_t digest[32];
    const char *hex = json_string_value(json_object_get(signed_entry, "digest"));
    if (hex && hex_decode(digest, 32, hex) && memcmp(digest, c->digest, 32) == 0)
        return STATUS_OK;
    return err_set(err, STATUS_INVALID,
                   "%s: it is not the text that was signed (another digest); ask its owner for "
                   "the text, or for an entry of this one",
                   file);
}

enum status contribution_check_datanet(const json_t *signed_entry, json_t *datanet,
                                       struct errtext *err)
{
    uint8_t want[32], found[32];
    const json_t *id = json_object_get(signed_entry, "datanetId");
    const char *own = json_string_value(json_object_get(datanet, "datanetId"));
    if (!own) {
        json_object_set(datanet, "datanetId", (json_t *)(uintptr_t)id);
        return STATUS_OK;
    }
    if (hex_decode(want, 32, own) && hex_decode(found, 32, json_string_value(id)) &&
        memcmp(want, found, 32) == 0)
        return STATUS_OK;
    return err_set(err, STATUS_CONFLICT,
                   "the entry is signed for datanet %s, this one is %s: its owner signs for this "
                   "one with --datanet-id",
                   json_string_value(id), own);
}
