/* residual datanet sign DIR: an owner of documents agrees that they are in this datanet, under the
 * licence that the list names. The list goes from owner to owner; a server bound to a chain takes
 * it when every document is signed. residual datanet consent: the datanet's owner agrees to an
 * adapter of somebody else. */
#include "chain_client/cli/place.h"
#include "chain_client/cli/registry.h"
#include "chain_client/eth/addr.h"
#include "chain_client/eth/keystore.h"
#include "server/base/file.h"
#include "server/base/mem.h"

#include <stdio.h>
#include <string.h>

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
    char path[PATH_MAX];
    const char *given = s->c->value[OPT_DATANET_ID];
    struct manifest *m = &s->source.m;
    snprintf(path, sizeof(path), "%s/publish.json", s->c->operand[0]);
    enum status st = sign_source_load(&s->source, path, err);
    if (!st && !s->source.datanet)
        st = err_set(err, STATUS_NOT_FOUND, "%s: there is no datanet.json beside it", path);
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
    char hex[67] = "0x";
    hex_encode(hex + 2, s->source.m.datanet_id, 32);
    json_object_set_new(s->source.datanet, "datanetId", json_string(hex));
    char *text = json_dumps(s->source.datanet, JSON_INDENT(2));
    enum status st = text ? file_write_atomic(s->source.datanet_path, text, strlen(text), 0644, err)
                          : err_set(err, STATUS_NO_MEMORY, "no memory for the list");
    mem_free(text);
    return st;
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
    enum status st = sign_documents(list, &s->source.m, &keys, &s->unsigned_count, err);
    return st ? st : write_list(s, err);
}

static int print_signed(const struct datanet_sign *s)
{
    struct buf out;
    buf_init(&out, 4096);
    if (cli_has(s->c, OPT_JSON)) {
        buf_puts(&out, "{\"ok\":true,");
        cli_put_json_hex(&out, "datanet", s->source.m.datanet_id, 32);
        buf_printf(&out, ",\"signed\":%u,\"unsigned\":%u}", s->mine, s->unsigned_count);
    } else {
        buf_printf(&out, "signed %u documents of datanet ", s->mine);
        cli_put_hex(&out, s->source.m.datanet_id, 32);
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
        cli_put_json_hex(&out, "datanetConsent", signature, sizeof(signature));
        buf_putc(&out, '}');
    } else if (!st) {
        cli_put_hex(&out, signature, sizeof(signature));
    }
    int code = st ? cli_fail(c, st, &err, NULL) : cli_print(&out, CLI_FINE);
    buf_fini(&out);
    secp_key_fini(&s.owner);
    secp_destroy(s.secp);
    return code;
}

int verb_datanet_sign(struct cli *c)
{
    struct datanet_sign s = {.c = c};
    struct errtext err = ERRTEXT_INIT;
    enum status st = place_deployment(&s.d, c, &err);
    if (!st)
        st = secp_create(&s.secp, &err);
    if (!st)
        st = keystore_load(s.secp, &s.owner, c->value[OPT_OWNER_KEY_FILE],
                           c->value[OPT_OWNER_PASSPHRASE_FILE], &err);
    if (!st)
        st = load_list(&s, &err);
    if (!st)
        st = sign(&s, &err);
    int code = st ? cli_fail(c, st, &err, NULL) : print_signed(&s);
    sign_source_fini(&s.source);
    secp_key_fini(&s.owner);
    secp_destroy(s.secp);
    return code;
}
