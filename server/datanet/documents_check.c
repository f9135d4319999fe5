/* What a list of documents claims, held against the texts and against the owners' signatures. */
#include "chain_client/eth/addr.h"
#include "chain_client/eth/secp.h"
#include "chain_client/manifest.h"
#include "server/datanet/documents.h"
#include "server/adapter/peft/folder.h"
#include "server/base/mem.h"
#include "server/text/unicode.h"

#include <sodium.h>
#include <string.h>
#include <unistd.h>

#define TEXT_BYTES_MAX      (64u << 20)
#define CONTRACTS_MAX       64
#define SIGNATURE_BYTES_MAX 4096

/* ---- files ---- */

static enum status check_text(struct json_reader *doc, const char *file, const char *text,
                              size_t len, struct errtext *err)
{
    uint8_t want[32], digest[32];
    struct buf normal;
    buf_init(&normal, 4 * (size_t)TEXT_BYTES_MAX);
    uint64_t bytes = (uint64_t)json_need_int(doc, "bytes", (struct json_range){0, INT64_MAX});
    json_need_hex(doc, "digest", want, 32);
    enum status st = doc->st ? doc->st : unicode_nfc(&normal, text, len, err);
    if (!st) {
        crypto_generichash(digest, 32, (const uint8_t *)normal.data, normal.len, NULL, 0);
        if (normal.len != bytes)
            st = err_set(err, STATUS_INVALID, "%zu bytes, the list says %llu", normal.len,
                         (unsigned long long)bytes);
        else if (memcmp(digest, want, 32) != 0)
            st = err_set(err, STATUS_INVALID, "it has another digest than the list says");
    }
    if (st && !doc->st)
        err_prefix(err, "%s", file);
    buf_fini(&normal);
    return st;
}

static enum status check_file(struct json_reader *doc, const char *file, const char *dir,
                              const struct file_roots *roots, struct errtext *err)
{
    char *text;
    size_t len;
    int fd;
    enum status st = peft_folder_open(dir, roots, file, &fd, err);
    if (st)
        return st;
    st = file_read_fd(fd, file, TEXT_BYTES_MAX, &text, &len, err);
    close(fd);
    if (st)
        return st;
    st = check_text(doc, file, text, len, err);
    mem_free(text);
    return st;
}

enum status documents_check_files(const struct documents *d, const char *dir,
                                  const struct file_roots *roots, struct errtext *err)
{
    struct json_reader r = {.err = err};
    enum status st = STATUS_OK;
    for (size_t i = 0; i < d->count && !st; i++) {
        struct json_reader doc = json_enter_item(&r, "documents", i, json_array_get(d->list, i));
        const char *file = json_read_string(&doc, "file");
        st = r.st;
        if (!st && file)
            st = check_file(&doc, file, dir, roots, err);
    }
    return st;
}

/* ---- licences ---- */

struct licence_check {
    const struct documents_licensed *l;
    struct secp *secp;
    uint32_t contracts; /* asked so far */
};

static enum status unsigned_document(struct json_reader *doc, const uint8_t owner[20],
                                     const char *why, struct errtext *err)
{
    char text[ADDR_TEXT_BYTES];
    json_int_t id = json_integer_value(json_field(doc->obj, "docId"));
    addr_format(text, owner);
    return err_param(err, STATUS_DENIED, "documents",
                     "documents: document %lld: %s of its owner %s; its owner signs it with "
                     "residual datanet sign",
                     (long long)id, why, text);
}

static enum status ask_contract(struct licence_check *c, struct json_reader *doc,
                                const uint8_t owner[20], const uint8_t digest[32],
                                const uint8_t *signature, size_t len, struct errtext *err)
{
    bool yes = false;
    enum status st = STATUS_OK;
    if (c->l->ask && c->contracts++ < CONTRACTS_MAX)
        st = c->l->ask(c->l->ask_arg, owner, digest, signature, len, &yes, err);
    return st || yes ? st : unsigned_document(doc, owner, "the signature is not that", err);
}

static enum status check_licence(struct licence_check *c, struct json_reader *doc,
                                 struct errtext *err)
{
    uint8_t owner[20], digest[32], signature[SIGNATURE_BYTES_MAX];
    struct manifest_licence l = {.licence = json_need_string(doc, "licence")};
    const char *hex = json_read_string(doc, "ownerSignature");
    addr_need(owner, doc, "owner");
    json_need_hex(doc, "digest", l.digest, 32);
    if (doc->st)
        return doc->st;
    size_t len = hex ? (strlen(hex) - (strncmp(hex, "0x", 2) ? 0 : 2)) / 2 : 0;
    if (!hex || !len || len > sizeof(signature) || !hex_decode(signature, len, hex))
        return unsigned_document(doc, owner, "ownerSignature is missing, the signature", err);
    memcpy(l.datanet_id, c->l->datanet_id, 32);
    manifest_licence_digest(digest, &l, c->l->chain_id, c->l->registry);
    if (len == SECP_SIGNATURE_BYTES && !secp_verify(c->secp, signature, digest, owner, NULL))
        return STATUS_OK;
    return ask_contract(c, doc, owner, digest, signature, len, err);
}

enum status documents_check_licences(const struct documents *d, const struct documents_licensed *l,
                                     struct errtext *err)
{
    struct licence_check c = {.l = l};
    struct json_reader r = {.err = err};
    enum status st = secp_create(&c.secp, err);
    if (st)
        return st;
    for (size_t i = 0; i < d->count && !st; i++) {
        struct json_reader doc = json_enter_item(&r, "documents", i, json_array_get(d->list, i));
        st = check_licence(&c, &doc, err);
    }
    secp_destroy(c.secp);
    return st;
}
