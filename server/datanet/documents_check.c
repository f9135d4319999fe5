/* What a list of documents claims, held against the texts and against the owners' signatures. */
#include "chain_client/eth/addr.h"
#include "chain_client/eth/secp.h"
#include "chain_client/manifest.h"
#include "server/adapter/peft/folder.h"
#include "server/base/mem.h"
#include "server/datanet/documents.h"
#include "server/text/unicode.h"
#include "server/text/utf8.h"

#include <sodium.h>
#include <string.h>
#include <unistd.h>

#define CONTRACTS_MAX       64
#define SIGNATURE_BYTES_MAX 4096

/* ---- texts ---- */

static uint32_t line_of(const char *text, size_t at)
{
    uint32_t line = 1;
    for (const char *p = text; (p = memchr(p, '\n', at - (size_t)(p - text))) != NULL; p++)
        line++;
    return line;
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* C0 and C1 in valid UTF-8; the latter are C2 80 to C2 9F. */
static bool is_control(const char *s)
{
    uint8_t a = (uint8_t)s[0];
    return (a < 0x20 && !is_blank(s[0])) || a == 0x7f || (a == 0xc2 && (uint8_t)s[1] < 0xa0);
}

static enum status check_characters(const char *text, size_t len, struct errtext *err)
{
    size_t valid = utf8_valid_prefix(text, len), ink = 0;
    if (valid < len)
        return err_set(err, STATUS_INVALID,
                       "line %u: byte 0x%02x is not UTF-8; save the text as UTF-8",
                       line_of(text, valid), (uint8_t)text[valid]);
    for (size_t i = 0; i < len; i++) {
        if (is_control(text + i))
            return err_set(err, STATUS_INVALID,
                           "line %u: control character U+%04X; a document has none but tabs and "
                           "line ends: remove it",
                           line_of(text, i), utf8_next(text + i, len - i, &(size_t){0}));
    }
    while (ink < len && is_blank(text[ink]))
        ink++;
    return ink < len ? STATUS_OK
                     : err_set(err, STATUS_INVALID, "it is empty, expected a text of 1 to %u bytes",
                               DOCUMENT_BYTES_MAX);
}

enum status document_normal(struct buf *out, const char *text, size_t len, struct errtext *err)
{
    if (len > DOCUMENT_BYTES_MAX)
        return err_set(err, STATUS_TOO_LARGE, "%zu bytes, a document has at most %u; split it", len,
                       DOCUMENT_BYTES_MAX);
    enum status st = check_characters(len ? text : "", len, err);
    if (!st)
        st = unicode_nfc(out, text, len, err);
    return st || out->len <= DOCUMENT_BYTES_MAX
               ? st
               : err_set(err, STATUS_TOO_LARGE, "%zu bytes in normal form C, at most %u", out->len,
                         DOCUMENT_BYTES_MAX);
}

void document_digest(uint8_t digest[32], const struct buf *normal)
{
    crypto_generichash(digest, 32, (const uint8_t *)normal->data, normal->len, NULL, 0);
}

static enum status check_text(const struct datanet_document *want, const char *text, size_t len,
                              struct buf *out, struct errtext *err)
{
    uint8_t digest[32];
    enum status st = document_normal(out, text, len, err);
    if (st)
        return st;
    document_digest(digest, out);
    if (out->len != want->bytes)
        return err_set(err, STATUS_INVALID, "%zu bytes, the list says %llu", out->len,
                       (unsigned long long)want->bytes);
    if (memcmp(digest, want->digest, 32) != 0)
        return err_set(err, STATUS_INVALID, "it has another digest than the list says");
    return STATUS_OK;
}

enum status documents_text(const struct documents *d, uint32_t place, const char *dir,
                           const struct file_roots *roots, struct buf *out, struct errtext *err)
{
    const char *file = d->facts[place].file;
    char *text;
    size_t len;
    int fd;
    buf_clear(out);
    if (!file)
        return err_set(err, STATUS_NOT_FOUND, "document %llu: the list names no file for its text",
                       (unsigned long long)d->facts[place].doc_id);
    enum status st = peft_folder_open(dir, roots, file, &fd, err);
    if (st)
        return st;
    st = file_read_fd(fd, file, DOCUMENT_BYTES_MAX, &text, &len, err);
    close(fd);
    if (st)
        return st;
    st = check_text(&d->item[place], text, len, out, err);
    if (st)
        err_prefix(err, "%s", file);
    mem_free(text);
    return st;
}

enum status documents_check_files(const struct documents *d, const char *dir,
                                  const struct file_roots *roots, struct errtext *err)
{
    struct buf text;
    enum status st = STATUS_OK;
    buf_init(&text, 4 * (size_t)DOCUMENT_BYTES_MAX);
    for (uint32_t i = 0; i < d->count && !st; i++) {
        if (d->facts[i].file)
            st = documents_text(d, i, dir, roots, &text, err);
    }
    buf_fini(&text);
    return st;
}

/* ---- licences ---- */

static enum status unsigned_document(const struct documents *d, uint32_t place, const char *why,
                                     struct errtext *err)
{
    char text[ADDR_TEXT_BYTES];
    addr_format(text, d->item[place].owner);
    return err_param(err, STATUS_DENIED, "documents",
                     "documents: document %llu: %s of its owner %s; its owner signs it with "
                     "residual datanet sign",
                     (unsigned long long)d->facts[place].doc_id, why, text);
}

enum status documents_check_licence(const struct documents *d, uint32_t place,
                                    const struct documents_licensed *l, const struct secp *secp,
                                    struct errtext *err)
{
    const struct documents_facts *f = &d->facts[place];
    const uint8_t *owner = d->item[place].owner;
    struct manifest_licence m = {.licence = f->licence, .terms = f->terms, .display = f->display};
    uint8_t digest[32], signature[SIGNATURE_BYTES_MAX];
    const char *hex = f->signature;
    bool yes = false;
    size_t len = hex ? (strlen(hex) - (strncmp(hex, "0x", 2) ? 0 : 2)) / 2 : 0;
    if (!hex || !len || len > sizeof(signature) || !hex_decode(signature, len, hex))
        return unsigned_document(d, place, "ownerSignature is missing, the signature", err);
    memcpy(m.datanet_id, l->datanet_id, 32);
    memcpy(m.digest, d->item[place].digest, 32);
    manifest_licence_digest(digest, &m, l->chain_id, l->registry);
    if (len == SECP_SIGNATURE_BYTES && !secp_verify(secp, signature, digest, owner, NULL))
        return STATUS_OK;
    enum status st =
        l->ask ? l->ask(l->ask_arg, owner, digest, signature, len, &yes, err) : STATUS_OK;
    return st || yes ? st : unsigned_document(d, place, "the signature is not that", err);
}

/* The contracts that may still be asked. */
struct asking {
    const struct documents_licensed *l;
    uint32_t left;
};

static enum status ask_some(void *arg, const uint8_t account[20], const uint8_t digest[32],
                            const void *signature, size_t len, bool *yes, struct errtext *err)
{
    struct asking *a = arg;
    if (!a->left)
        return STATUS_OK;
    a->left--;
    return a->l->ask(a->l->ask_arg, account, digest, signature, len, yes, err);
}

enum status documents_check_licences(const struct documents *d, const struct documents_licensed *l,
                                     struct errtext *err)
{
    struct asking asking = {.l = l, .left = CONTRACTS_MAX};
    struct documents_licensed bounded = *l;
    struct secp *secp;
    enum status st = secp_create(&secp, err);
    if (st)
        return st;
    bounded.ask = l->ask ? ask_some : NULL;
    bounded.ask_arg = &asking;
    for (uint32_t i = 0; i < d->count && !st; i++)
        st = documents_check_licence(d, i, &bounded, secp, err);
    secp_destroy(secp);
    return st;
}
