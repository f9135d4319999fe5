/* Web3 Secret Storage version 3: the passphrase is stretched to 32 bytes (scrypt or PBKDF2); the
 * last 16 of them with the ciphertext give the MAC (Keccak-256), the first 16 are the AES-128-CTR
 * key of the secret. The MAC is compared in constant time before anything is decrypted. Costs are
 * bounded, since the file names them: without a bound a hostile file takes all memory. */
#include "chain_client/eth/keystore.h"
#include "chain_client/eth/keccak.h"
#include "server/base/buf.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/hex.h"
#include "server/base/json.h"
#include "server/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILE_BYTES_MAX    16384
#define SALT_BYTES_MAX    256
#define SCRYPT_BYTES_MAX  (1u << 30) /* 128 * N * r */
#define SCRYPT_N_MAX      (1u << 22)
#define PBKDF2_ROUNDS_MAX 10000000
#define NEW_SCRYPT_N      262144 /* what wallets write */
#define NEW_SCRYPT_R      8

struct sealed {
    uint8_t salt[SALT_BYTES_MAX], cipher[32], iv[16], mac[32];
    size_t salt_len;
};

/* A string of hex digits of any even length up to max. */
static bool read_hex(const json_t *v, uint8_t *out, size_t bytes_max, size_t *len)
{
    const char *s = json_string_value(v);
    size_t digits = s ? strlen(s) : 0;
    if (!digits || digits % 2 || digits / 2 > bytes_max || s[1] == 'x')
        return false;
    *len = digits / 2;
    return hex_decode(out, *len, s);
}

static bool is_text(const json_t *object, const char *key, const char *expected)
{
    const char *s = json_string_value(json_object_get(object, key));
    return s && strcmp(s, expected) == 0;
}

static enum status read_sealed(struct sealed *out, const json_t *crypto, struct errtext *err)
{
    size_t len = 0;
    const json_t *kdf = json_object_get(crypto, "kdfparams");
    if (!is_text(crypto, "cipher", "aes-128-ctr"))
        return err_param(err, STATUS_UNSUPPORTED, "cipher", "key file: cipher is not aes-128-ctr");
    if (!read_hex(json_object_get(crypto, "ciphertext"), out->cipher, 32, &len) || len != 32)
        return err_param(err, STATUS_INVALID, "ciphertext",
                         "key file: ciphertext: expected 32 bytes of hex");
    if (!read_hex(json_object_get(crypto, "mac"), out->mac, 32, &len) || len != 32)
        return err_param(err, STATUS_INVALID, "mac", "key file: mac: expected 32 bytes of hex");
    if (!read_hex(json_object_get(json_object_get(crypto, "cipherparams"), "iv"), out->iv, 16,
                  &len) ||
        len != 16)
        return err_param(err, STATUS_INVALID, "iv", "key file: iv: expected 16 bytes of hex");
    if (!read_hex(json_object_get(kdf, "salt"), out->salt, SALT_BYTES_MAX, &out->salt_len))
        return err_param(err, STATUS_INVALID, "salt", "key file: salt: expected hex");
    if (json_integer_value(json_object_get(kdf, "dklen")) != 32)
        return err_param(err, STATUS_UNSUPPORTED, "dklen", "key file: dklen: expected 32");
    return STATUS_OK;
}

static enum status stretch_scrypt(uint8_t out[32], const struct sealed *s, const json_t *kdf,
                                  const char *passphrase, struct errtext *err)
{
    json_int_t n = json_integer_value(json_object_get(kdf, "n"));
    json_int_t r = json_integer_value(json_object_get(kdf, "r"));
    json_int_t p = json_integer_value(json_object_get(kdf, "p"));
    if (n < 2 || (n & (n - 1)) || r < 1 || p < 1)
        return err_param(err, STATUS_INVALID, "kdfparams",
                         "key file: scrypt: n must be a power of two above 1, r and p above 0");
    if (n > SCRYPT_N_MAX || r > 64 || p > 16 || (uint64_t)n * (uint64_t)r * 128 > SCRYPT_BYTES_MAX)
        return err_param(err, STATUS_TOO_LARGE, "kdfparams",
                         "key file: scrypt needs more than %u MiB, or p above 16",
                         SCRYPT_BYTES_MAX >> 20);
    if (crypto_pwhash_scryptsalsa208sha256_ll((const uint8_t *)passphrase, strlen(passphrase),
                                              s->salt, s->salt_len, (uint64_t)n, (uint32_t)r,
                                              (uint32_t)p, out, 32) != 0)
        return err_set(err, STATUS_NO_MEMORY, "key file: no memory for scrypt");
    return STATUS_OK;
}

static enum status stretch_pbkdf2(uint8_t out[32], const struct sealed *s, const json_t *kdf,
                                  const char *passphrase, struct errtext *err)
{
    json_int_t rounds = json_integer_value(json_object_get(kdf, "c"));
    if (!is_text(kdf, "prf", "hmac-sha256"))
        return err_param(err, STATUS_UNSUPPORTED, "prf", "key file: prf is not hmac-sha256");
    if (rounds < 1 || rounds > PBKDF2_ROUNDS_MAX)
        return err_param(err, STATUS_TOO_LARGE, "c", "key file: c: expected 1 to %d rounds",
                         PBKDF2_ROUNDS_MAX);
    if (PKCS5_PBKDF2_HMAC(passphrase, (int)strlen(passphrase), s->salt, (int)s->salt_len,
                          (int)rounds, EVP_sha256(), 32, out) != 1)
        return err_set(err, STATUS_NO_MEMORY, "key file: PBKDF2 failed");
    return STATUS_OK;
}

static enum status open_sealed(uint8_t secret[32], const struct sealed *s, const uint8_t key[32],
                               struct errtext *err)
{
    uint8_t bytes[48], mac[32];
    int len = 0;
    memcpy(bytes, key + 16, 16);
    memcpy(bytes + 16, s->cipher, 32);
    keccak_256(mac, bytes, sizeof(bytes));
    mem_wipe(bytes, sizeof(bytes));
    if (sodium_memcmp(mac, s->mac, 32) != 0)
        return err_set(err, STATUS_DENIED, "key file: the passphrase is wrong");
    EVP_CIPHER_CTX *aes = EVP_CIPHER_CTX_new();
    bool ok = aes && EVP_DecryptInit_ex(aes, EVP_aes_128_ctr(), NULL, key, s->iv) == 1 &&
              EVP_DecryptUpdate(aes, secret, &len, s->cipher, 32) == 1 && len == 32;
    EVP_CIPHER_CTX_free(aes);
    return ok ? STATUS_OK : err_set(err, STATUS_NO_MEMORY, "key file: AES failed");
}

enum status keystore_decrypt(uint8_t secret[32], const char *json, size_t json_len,
                             const char *passphrase, struct errtext *err)
{
    struct sealed sealed;
    uint8_t key[32] = {0};
    json_t *all; /* the parser's own text quotes the file, which may be a bare key: not shown */
    bool is_object = !json_doc_parse(&all, "key file", json, json_len, 0, NULL);
    const json_t *crypto = json_object_get(all, "crypto"), *kdf = NULL;
    enum status st = STATUS_OK;
    memset(secret, 0, 32);
    if (!is_object)
        st = err_set(err, STATUS_INVALID, "key file: found no JSON object, expected version 3");
    else if (json_integer_value(json_object_get(all, "version")) != 3)
        st = err_param(err, STATUS_UNSUPPORTED, "version", "key file: version: expected 3");
    if (!crypto)
        crypto = json_object_get(all, "Crypto"); /* early files wrote it so */
    kdf = json_object_get(crypto, "kdfparams");
    if (!st)
        st = read_sealed(&sealed, crypto, err);
    if (!st && is_text(crypto, "kdf", "scrypt"))
        st = stretch_scrypt(key, &sealed, kdf, passphrase, err);
    else if (!st && is_text(crypto, "kdf", "pbkdf2"))
        st = stretch_pbkdf2(key, &sealed, kdf, passphrase, err);
    else if (!st)
        st = err_param(err, STATUS_UNSUPPORTED, "kdf", "key file: kdf: expected scrypt or pbkdf2");
    if (!st)
        st = open_sealed(secret, &sealed, key, err);
    mem_wipe(key, sizeof(key));
    json_decref(all);
    return st;
}

static void wipe_text(char *text, size_t len)
{
    if (text)
        mem_wipe(text, len);
    mem_free(text);
}

static enum status load_raw(uint8_t secret[32], const char *path, struct errtext *err)
{
    char *text = NULL;
    size_t len = 0;
    enum status st = file_read_secret(path, FILE_BYTES_MAX, &text, &len, err);
    if (!st && !hex_decode(secret, 32, text))
        st = err_set(err, STATUS_INVALID,
                     "%s is not a private key (expected 64 hex digits; a version 3 file needs its "
                     "passphrase file)",
                     path);
    wipe_text(text, len);
    return st;
}

static enum status load_sealed(uint8_t secret[32], const char *path, const char *passphrase,
                               struct errtext *err)
{
    char *json;
    size_t json_len;
    enum status st = file_read(path, FILE_BYTES_MAX, &json, &json_len, err);
    if (st)
        return st;
    st = keystore_decrypt(secret, json, json_len, passphrase, err);
    if (st)
        err_prefix(err, "%s", path);
    mem_free(json);
    return st;
}

static enum status load_v3(uint8_t secret[32], const char *path, const char *passphrase_path,
                           struct errtext *err)
{
    char *passphrase = NULL;
    size_t passphrase_len = 0;
    enum status st =
        file_read_secret(passphrase_path, FILE_BYTES_MAX, &passphrase, &passphrase_len, err);
    if (!st)
        st = load_sealed(secret, path, passphrase, err);
    wipe_text(passphrase, passphrase_len);
    return st;
}

enum status keystore_load(const struct secp *c, struct secp_key *key, const char *path,
                          const char *passphrase_path, struct errtext *err)
{
    uint8_t secret[32] = {0};
    memset(key, 0, sizeof(*key));
    enum status st =
        passphrase_path ? load_v3(secret, path, passphrase_path, err) : load_raw(secret, path, err);
    if (!st)
        st = secp_key_init(c, key, secret, err);
    mem_wipe(secret, sizeof(secret));
    return st;
}

enum status keystore_load_sealed(const struct secp *c, struct secp_key *key, const char *path,
                                 const char *passphrase, struct errtext *err)
{
    uint8_t secret[32] = {0};
    memset(key, 0, sizeof(*key));
    enum status st = load_sealed(secret, path, passphrase, err);
    if (!st)
        st = secp_key_init(c, key, secret, err);
    mem_wipe(secret, sizeof(secret));
    return st;
}

/* O_EXCL, not a rename: two starts at once must not both think they made the key. */
static enum status write_new(const char *path, const char *text, size_t len, struct errtext *err)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_set(err, errno == EEXIST ? STATUS_EXISTS : STATUS_IO, "%s: %s", path,
                       errno == EEXIST ? "there already; a key is never overwritten"
                                       : strerror(errno));
    bool ok = write(fd, text, len) == (ssize_t)len && fsync(fd) == 0;
    int saved = errno;
    ok = close(fd) == 0 && ok;
    if (ok)
        return STATUS_OK;
    unlink(path);
    return err_set(err, STATUS_IO, "%s: %s", path, strerror(saved));
}

enum status keystore_create(const struct secp *c, struct secp_key *key, const char *path,
                            struct errtext *err)
{
    char text[66];
    enum status st = secp_key_random(c, key, err);
    if (st)
        return st;
    hex_encode(text, key->secret, 32);
    text[64] = '\n';
    st = write_new(path, text, 65, err);
    mem_wipe(text, sizeof(text));
    if (st)
        secp_key_fini(key);
    return st;
}

/* ---- a new sealed file ---- */

static void put_field(struct buf *out, const char *before, const uint8_t *data, size_t len)
{
    char hex[2 * 32 + 1];
    hex_encode(hex, data, len);
    buf_printf(out, "%s%s\"", before, hex);
}

/* ciphertext and MAC of secret under the stretched key. */
static bool seal(struct sealed *s, const uint8_t secret[32], const uint8_t key[32])
{
    uint8_t bytes[48];
    int len = 0;
    EVP_CIPHER_CTX *aes = EVP_CIPHER_CTX_new();
    bool ok = aes && EVP_EncryptInit_ex(aes, EVP_aes_128_ctr(), NULL, key, s->iv) == 1 &&
              EVP_EncryptUpdate(aes, s->cipher, &len, secret, 32) == 1 && len == 32;
    EVP_CIPHER_CTX_free(aes);
    memcpy(bytes, key + 16, 16);
    memcpy(bytes + 16, s->cipher, 32);
    keccak_256(s->mac, bytes, sizeof(bytes));
    mem_wipe(bytes, sizeof(bytes));
    return ok;
}

static void put_sealed(struct buf *out, const struct sealed *s, const uint8_t address[20])
{
    uint8_t id[16];
    char hex[33];
    randombytes_buf(id, sizeof(id));
    id[6] = (uint8_t)((id[6] & 0x0f) | 0x40); /* a random UUID */
    id[8] = (uint8_t)((id[8] & 0x3f) | 0x80);
    hex_encode(hex, id, 16);
    put_field(out, "{\"address\":\"", address, 20);
    put_field(out, ",\"crypto\":{\"cipher\":\"aes-128-ctr\",\"ciphertext\":\"", s->cipher, 32);
    put_field(out, ",\"cipherparams\":{\"iv\":\"", s->iv, 16);
    buf_printf(out, "},\"kdf\":\"scrypt\",\"kdfparams\":{\"dklen\":32,\"n\":%d,\"p\":1,\"r\":%d",
               NEW_SCRYPT_N, NEW_SCRYPT_R);
    put_field(out, ",\"salt\":\"", s->salt, s->salt_len);
    put_field(out, "},\"mac\":\"", s->mac, 32);
    buf_printf(out, "},\"id\":\"%.8s-%.4s-%.4s-%.4s-%.12s\",\"version\":3}\n", hex, hex + 8,
               hex + 12, hex + 16, hex + 20);
}

enum status keystore_create_sealed(const struct secp *c, struct secp_key *key, const char *path,
                                   const char *passphrase, struct errtext *err)
{
    struct sealed s = {.salt_len = 32};
    struct buf out;
    uint8_t stretched[32];
    enum status st = secp_key_random(c, key, err);
    if (st)
        return st;
    randombytes_buf(s.salt, s.salt_len);
    randombytes_buf(s.iv, sizeof(s.iv));
    buf_init(&out, FILE_BYTES_MAX);
    if (crypto_pwhash_scryptsalsa208sha256_ll((const uint8_t *)passphrase, strlen(passphrase),
                                              s.salt, s.salt_len, NEW_SCRYPT_N, NEW_SCRYPT_R, 1,
                                              stretched, 32) != 0 ||
        !seal(&s, key->secret, stretched))
        st = err_set(err, STATUS_NO_MEMORY, "%s: no memory to seal the key", path);
    mem_wipe(stretched, sizeof(stretched));
    put_sealed(&out, &s, key->address);
    if (!st && out.failed)
        st = err_set(err, STATUS_NO_MEMORY, "%s: no memory for its text", path);
    if (!st)
        st = write_new(path, out.data, out.len, err);
    buf_fini(&out);
    if (st)
        secp_key_fini(key);
    return st;
}
