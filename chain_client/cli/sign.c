/* The salt of a datanet's id is the Keccak-256 of its name under a label, so that the same owner
 * and name find the same datanet again. A "salt" in datanet.json wins. */
#include "chain_client/cli/sign.h"
#include "chain_client/cli/cli.h"
#include "chain_client/eth/addr.h"
#include "chain_client/eth/keccak.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/json.h"
#include "server/base/mem.h"

#include <fcntl.h>
#include <limits.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TEXT_BYTES_MAX (256u << 20)
#define KEY_PREFIX     "ed25519:"
#define KEY_PREFIX_LEN 8
#define DATANET_SALT   "residual.datanet.salt.1"
#define DOCUMENTS_TEXT "documents"

/* ---- publisher keys ---- */

static void from_seed(struct sign_publisher *key, const uint8_t seed[32])
{
    crypto_sign_seed_keypair(key->public, key->secret, seed);
}

enum status sign_publisher_new(const char *path, struct sign_publisher *key, struct errtext *err)
{
    uint8_t seed[32];
    char text[KEY_PREFIX_LEN + 64 + 2] = KEY_PREFIX;
    randombytes_buf(seed, sizeof(seed));
    from_seed(key, seed);
    hex_encode(text + KEY_PREFIX_LEN, seed, 32);
    text[KEY_PREFIX_LEN + 64] = '\n';
    enum status st =
        file_exists(path)
            ? err_set(err, STATUS_EXISTS, "%s exists; a key is never overwritten", path)
            : file_write_atomic(path, text, KEY_PREFIX_LEN + 65, 0600, err);
    mem_wipe(seed, sizeof(seed));
    mem_wipe(text, sizeof(text));
    return st;
}

enum status sign_publisher_load(const char *path, struct sign_publisher *key, struct errtext *err)
{
    char *text;
    size_t len;
    uint8_t seed[32];
    enum status st = file_read_secret(path, 16384, &text, &len, err);
    if (st)
        return st;
    if (strncmp(text, KEY_PREFIX, KEY_PREFIX_LEN) != 0 ||
        !hex_decode(seed, 32, text + KEY_PREFIX_LEN))
        st = err_set(err, STATUS_UNSUPPORTED,
                     "%s: expected a publisher key (ed25519: and 64 hex digits); make one with "
                     "residual key new --type publisher FILE",
                     path);
    else
        from_seed(key, seed);
    mem_wipe(seed, sizeof(seed));
    mem_wipe(text, len);
    mem_free(text);
    return st;
}

void sign_publisher_fini(struct sign_publisher *key)
{
    mem_wipe(key, sizeof(*key));
}

/* ---- what the owner declares ---- */

/* `name` beside the file at path. */
static void beside(char out[PATH_MAX], const char *path, const char *name)
{
    const char *slash = strrchr(path, '/');
    int n = slash ? (int)(slash - path + 1) : 0;
    snprintf(out, PATH_MAX, "%.*s%s", n, path, name);
}

void sign_datanet_salt(uint8_t salt[32], const char *name)
{
    struct keccak k;
    keccak_init(&k);
    keccak_update(&k, DATANET_SALT, sizeof(DATANET_SALT) - 1);
    keccak_update(&k, name, strlen(name));
    keccak_final(&k, salt);
}

static enum status read_datanet(struct sign_source *s, const char *path, struct errtext *err)
{
    enum status st = json_doc_load(&s->datanet, path, TEXT_BYTES_MAX, 0, err);
    struct json_reader r = {.obj = s->datanet, .where = path, .st = st, .err = err};
    if (json_has(&r, "tokenizerDigest"))
        json_need_hex(&r, "tokenizerDigest", s->tokenizer_digest, 32);
    s->datanet_version = (uint64_t)json_need_int(&r, "version", (struct json_range){1, INT64_MAX});
    if (json_has(&r, "salt")) {
        json_need_hex(&r, "salt", s->salt, 32);
        return r.st;
    }
    const char *name = json_need_string(&r, "name");
    if (!*name)
        json_fail(&r, STATUS_INVALID, "name", "found \"\", expected a text (or give a salt)");
    if (!r.st)
        sign_datanet_salt(s->salt, name);
    return r.st;
}

static void take_roots(struct sign_source *s)
{
    s->m.datanet_version = s->datanet_version;
    memcpy(s->document_root, s->m.documents->document_root, 32);
    memcpy(s->owner_root, s->m.documents->owner_root, 32);
}

static enum status find_datanet(struct sign_source *s, const char *path, struct errtext *err)
{
    char file[PATH_MAX];
    const json_t *named = json_object_get(s->publish, "datanet");
    const char *name = named && json_is_string(named) ? json_string_value(named) : "datanet.json";
    if (named && !json_is_string(named) && !json_is_null(named))
        return err_set(err, STATUS_INVALID, "%s: datanet: expected a file name", path);
    if (strchr(name, '/') || strcmp(name, "..") == 0)
        return err_set(err, STATUS_INVALID, "%s: datanet: expected a file beside this one", path);
    beside(file, path, name);
    if (!named && !file_exists(file))
        return STATUS_OK;
    if (named && json_is_null(named))
        return STATUS_OK;
    snprintf(s->datanet_path, sizeof(s->datanet_path), "%s", file);
    return read_datanet(s, file, err);
}

enum status sign_source_load(struct sign_source *s, const char *path, struct errtext *err)
{
    memset(s, 0, sizeof(*s));
    enum status st = json_doc_load(&s->publish, path, TEXT_BYTES_MAX, 0, err);
    if (!st)
        s->is_signed = json_object_get(s->publish, "ownerSignature") &&
                       json_object_get(s->publish, "publisherSignature");
    if (!st && !s->is_signed)
        st = find_datanet(s, path, err);
    if (!st && !s->is_signed) {
        st = manifest_parse_local(&s->m, s->publish, err);
        if (st)
            err_prefix(err, "%s", path);
        if (!st && s->datanet) {
            st = manifest_parse_datanet(&s->m, s->datanet, err);
            if (st)
                err_prefix(err, "%s", s->datanet_path);
        }
        s->has_consent = json_field(s->publish, "datanetConsent") != NULL;
        struct json_reader r = {.obj = s->publish, .where = path, .st = st, .err = err};
        if (s->has_consent)
            json_need_hex(&r, "datanetConsent", s->consent, sizeof(s->consent));
        st = r.st;
        s->m.datanet_version = s->datanet_version;
        if (!st && s->datanet) {
            take_roots(s);
            memcpy(s->m.datanet_id, s->document_root, 32);
        }
    }
    if (st)
        sign_source_fini(s);
    return st;
}

enum status sign_source_load_list(struct sign_source *s, const char *dir, struct errtext *err)
{
    char path[PATH_MAX];
    memset(s, 0, sizeof(*s));
    snprintf(s->datanet_path, sizeof(s->datanet_path), "%s/datanet.json", dir);
    snprintf(path, sizeof(path), "%s/publish.json", dir);
    enum status st = read_datanet(s, s->datanet_path, err);
    bool has_owner = !st && json_field(s->datanet, "owner");
    if (!st && !has_owner)
        st = json_doc_load(&s->publish, path, TEXT_BYTES_MAX, 0, err);
    if (!st) {
        struct json_reader r = {.obj = has_owner ? s->datanet : s->publish,
                                .where = has_owner ? s->datanet_path : path,
                                .err = err};
        addr_need(s->m.owner, &r, "owner");
        st = r.st ? r.st : manifest_parse_datanet(&s->m, s->datanet, err);
        if (st && !r.st)
            err_prefix(err, "%s", s->datanet_path);
    }
    if (st)
        sign_source_fini(s);
    else
        take_roots(s);
    return st;
}

void sign_source_fini(struct sign_source *s)
{
    json_decref(s->publish);
    json_decref(s->datanet);
    manifest_fini(&s->m);
    s->publish = s->datanet = NULL;
}

/* ---- the signed object ---- */

enum status sign_as_publish(struct manifest_publish *p, struct reward_entry *entry,
                            const struct manifest *m, struct errtext *err)
{
    if (m->split_count > REWARD_ENTRIES_MAX)
        return err_set(err, STATUS_INVALID, "split: %u entries, the registry takes at most %d",
                       m->split_count, REWARD_ENTRIES_MAX);
    for (uint32_t i = 0; i < m->split_count; i++) {
        memcpy(entry[i].payee, m->split[i].payee, 20);
        entry[i].role = m->split[i].role;
        entry[i].bps = m->split[i].bps;
    }
    *p = (struct manifest_publish){.price_in = m->tariff.in,
                                   .price_out = m->tariff.out,
                                   .split = {entry, m->split_count},
                                   .datanet_version = m->datanet_version,
                                   .parent = m->parent,
                                   .parent_count = m->parent_count,
                                   .version = m->version};
    memcpy(p->adapter_id, m->adapter_id, 32);
    memcpy(p->model_id, m->model_id, 32);
    memcpy(p->datanet_id, m->datanet_id, 32);
    memcpy(p->owner, m->owner, 20);
    return manifest_publish_check(p, err);
}

json_t *sign_hex_json(const uint8_t *data, size_t n)
{
    char text[2 + 2 * SECP_SIGNATURE_BYTES + 1] = "0x";
    CHECK(n <= SECP_SIGNATURE_BYTES);
    hex_encode(text + 2, data, n);
    return json_string(text);
}

static json_t *address_json(const uint8_t address[20])
{
    char text[ADDR_TEXT_BYTES];
    addr_format(text, address);
    return json_string(text);
}

static json_t *amount_json(u128 v)
{
    char text[40];
    u128_format(text, v);
    return json_string(text);
}

static json_t *split_json(const struct manifest *m)
{
    static const char *const role[] = {"", "author", "data", "other"};
    json_t *list = json_array();
    for (uint32_t i = 0; i < m->split_count; i++)
        json_array_append_new(list,
                              json_pack("{s:o, s:s, s:i}", "payee", address_json(m->split[i].payee),
                                        "role", role[m->split[i].role], "bps", m->split[i].bps));
    return list;
}

/* The licence signature of a document that the signer owns. */
static enum status sign_document(json_t *doc, const struct manifest *m,
                                 const struct sign_keys *keys, struct errtext *err)
{
    struct manifest_licence l = {0};
    uint8_t owner[20], digest[32], signature[SECP_SIGNATURE_BYTES];
    const char *payee = json_string_value(json_object_get(doc, "owner"));
    const char *hash = json_string_value(json_object_get(doc, "digest"));
    const char *terms = json_string_value(json_object_get(doc, "terms"));
    l.licence = json_string_value(json_object_get(doc, "licence"));
    l.terms = terms ? terms : "";
    l.display = json_is_true(json_object_get(doc, "display"));
    if (!payee || addr_parse(owner, payee, NULL) || !hash || !hex_decode(l.digest, 32, hash) ||
        !l.licence)
        return err_set(err, STATUS_INVALID,
                       "datanet documents: expected {docId, owner, licence, bytes, digest}");
    if (memcmp(owner, keys->owner->address, 20) != 0)
        return STATUS_OK;
    memcpy(l.datanet_id, m->datanet_id, 32);
    manifest_licence_digest(digest, &l, m->chain_id, m->registry);
    enum status st = secp_sign(keys->secp, signature, keys->owner, digest, err);
    if (!st)
        json_object_set_new(doc, "ownerSignature", sign_hex_json(signature, sizeof(signature)));
    return st;
}

enum status sign_documents(json_t *list, const struct manifest *m, const struct sign_keys *keys,
                           struct errtext *err)
{
    size_t i;
    json_t *doc;
    enum status st = STATUS_OK;
    json_array_foreach(list, i, doc)
    {
        st = sign_document(doc, m, keys, err);
        if (st)
            break;
    }
    return st;
}

uint32_t sign_missing(const json_t *list)
{
    size_t i;
    const json_t *doc;
    uint32_t missing = 0;
    json_array_foreach(list, i, doc)
    {
        missing += !json_field(doc, "ownerSignature") && !json_field(doc, "copyOf");
    }
    return missing;
}

enum status sign_need_all(const json_t *list, const char *list_path, const char *dir,
                          struct errtext *err)
{
    uint32_t missing = sign_missing(list);
    return !missing ? STATUS_OK
                    : err_set(err, STATUS_DENIED,
                              "%s: %u documents lack their owner's signature: each owner runs "
                              "residual datanet sign %s",
                              list_path, missing, dir);
}

static enum status put_documents(json_t *root, const struct sign_source *s,
                                 const struct sign_keys *keys, struct errtext *err)
{
    size_t i;
    json_t *doc, *list = json_deep_copy(json_object_get(s->datanet, DOCUMENTS_TEXT));
    enum status st = sign_documents(list, &s->m, keys, err);
    json_array_foreach(list, i, doc) json_object_del(doc, "file"); /* a path of this machine */
    if (st)
        json_decref(list);
    else
        json_object_set_new(root, DOCUMENTS_TEXT, list);
    return st;
}

static json_t *parents_json(const struct manifest *m)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < m->parent_count; i++)
        json_array_append_new(list, json_pack("{s:o, s:i}", "adapterId",
                                              sign_hex_json(m->parent[i].adapter_id, 32), "bps",
                                              m->parent[i].bps));
    return list;
}

static json_t *facts_json(const struct manifest *m)
{
    return json_pack("{s:I, s:o, s:o, s:o, s:I, s:o, s:{s:o, s:o}, s:o, s:o, s:I, s:o}", "version",
                     (json_int_t)m->version, "adapterId", sign_hex_json(m->adapter_id, 32),
                     "modelId", sign_hex_json(m->model_id, 32), "datanetId",
                     sign_hex_json(m->datanet_id, 32), "datanetVersion",
                     (json_int_t)m->datanet_version, "owner", address_json(m->owner), "prices",
                     "in", amount_json(m->tariff.in), "out", amount_json(m->tariff.out), "split",
                     split_json(m), "parents", parents_json(m), "chainId", (json_int_t)m->chain_id,
                     "registry", address_json(m->registry));
}

enum status sign_manifest(json_t **out, const struct sign_source *s, const struct sign_keys *keys,
                          uint8_t owner_signature[SECP_SIGNATURE_BYTES], struct errtext *err)
{
    uint8_t digest[32], publisher[64];
    json_t *root = facts_json(&s->m);
    *out = NULL;
    if (!root)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the manifest");
    manifest_digest(digest, &s->m);
    enum status st = secp_sign(keys->secp, owner_signature, keys->owner, digest, err);
    if (!st && s->datanet)
        st = put_documents(root, s, keys, err);
    if (!st) {
        crypto_sign_detached(publisher, NULL, digest, sizeof(digest), keys->publisher->secret);
        json_object_set_new(root, "publisherKey", sign_hex_json(keys->publisher->public, 32));
        json_object_set_new(root, "publisherSignature",
                            sign_hex_json(publisher, sizeof(publisher)));
        json_object_set_new(root, "ownerSignature",
                            sign_hex_json(owner_signature, SECP_SIGNATURE_BYTES));
        *out = root;
    } else {
        json_decref(root);
    }
    return st;
}
