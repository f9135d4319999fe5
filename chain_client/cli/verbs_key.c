/* residual wallet new; key new, address, hash. A private key is never printed. */
#include "chain_client/cli/prompt.h"
#include "chain_client/cli/sign.h"
#include "chain_client/eth/addr.h"
#include "chain_client/eth/keystore.h"
#include "chain_client/ids.h"
#include "server/base/file.h"
#include "server/base/mem.h"

#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define API_KEY_BYTES 24
#define FILE_BYTES    4096

static int print_chain(const struct cli *c, const uint8_t address[20])
{
    struct buf out;
    char text[ADDR_TEXT_BYTES];
    addr_format(text, address);
    buf_init(&out, 512);
    if (cli_has(c, OPT_JSON))
        buf_printf(&out, "{\"ok\":true,\"type\":\"chain\",\"address\":\"%s\"}", text);
    else
        buf_puts(&out, text);
    int code = cli_print(&out, CLI_FINE);
    buf_fini(&out);
    return code;
}

static int print_hex(const struct cli *c, const char *type, const char *field, const uint8_t v[32])
{
    struct buf out;
    buf_init(&out, 512);
    if (cli_has(c, OPT_JSON)) {
        buf_printf(&out, "{\"ok\":true,\"type\":\"%s\",", type);
        buf_put_json_hex(&out, field, v, 32);
        buf_putc(&out, '}');
    } else {
        buf_put_hex(&out, v, 32);
    }
    int code = cli_print(&out, CLI_FINE);
    buf_fini(&out);
    return code;
}

/* ---- new ---- */

static int new_chain(const struct cli *c)
{
    struct errtext err = ERRTEXT_INIT;
    struct secp *secp;
    struct secp_key key = {0};
    enum status st = secp_create(&secp, &err);
    if (!st)
        st = keystore_create(secp, &key, c->operand[0], &err);
    int code = st ? cli_fail(c, st, &err, NULL) : print_chain(c, key.address);
    secp_key_fini(&key);
    secp_destroy(secp);
    return code;
}

static int new_publisher(const struct cli *c)
{
    struct errtext err = ERRTEXT_INIT;
    struct sign_publisher key;
    enum status st = sign_publisher_new(c->operand[0], &key, &err);
    int code =
        st ? cli_fail(c, st, &err, NULL) : print_hex(c, "publisher", "public_key", key.public);
    sign_publisher_fini(&key);
    return code;
}

/* Prints the digest for the server's config; the key itself is only in the file. */
static int new_api(const struct cli *c)
{
    struct errtext err = ERRTEXT_INIT;
    uint8_t random[API_KEY_BYTES], digest[32];
    char text[3 + 2 * API_KEY_BYTES + 2] = "rs-";
    randombytes_buf(random, sizeof(random));
    hex_encode(text + 3, random, sizeof(random));
    size_t len = strlen(text);
    ids_hash(digest, text, len);
    text[len] = '\n';
    enum status st =
        file_exists(c->operand[0])
            ? err_set(&err, STATUS_EXISTS, "%s exists; a key is never overwritten", c->operand[0])
            : file_write_atomic(c->operand[0], text, len + 1, 0600, &err);
    mem_wipe(random, sizeof(random));
    mem_wipe(text, sizeof(text));
    return st ? cli_fail(c, st, &err, NULL) : print_hex(c, "api", "digest", digest);
}

int verb_key_new(struct cli *c)
{
    struct errtext err = ERRTEXT_INIT;
    const char *type = c->value[OPT_TYPE];
    if (strcmp(type, "chain") == 0)
        return new_chain(c);
    if (strcmp(type, "publisher") == 0)
        return new_publisher(c);
    if (strcmp(type, "api") == 0)
        return new_api(c);
    (void)err_set(&err, STATUS_INVALID, "--type: found '%s', expected chain, publisher or api",
                  type);
    return cli_fail(c, STATUS_INVALID, &err, NULL);
}

int verb_wallet_new(struct cli *c)
{
    struct errtext err = ERRTEXT_INIT;
    struct secp *secp = NULL;
    struct secp_key key = {0};
    char passphrase[PROMPT_BYTES_MAX] = "";
    enum status st = STATUS_OK;
    if (file_exists(c->operand[0]))
        st = err_set(&err, STATUS_EXISTS, "%s exists; a key is never overwritten", c->operand[0]);
    if (!st)
        st = prompt_new_passphrase(passphrase, c, OPT_PASSPHRASE_FILE, &err);
    if (!st)
        st = secp_create(&secp, &err);
    if (!st)
        st = keystore_create_sealed(secp, &key, c->operand[0], passphrase, &err);
    mem_wipe(passphrase, sizeof(passphrase));
    int code = st ? cli_fail(c, st, &err, NULL) : print_chain(c, key.address);
    secp_key_fini(&key);
    secp_destroy(secp);
    return code;
}

/* ---- address, hash ---- */

int verb_key_address(struct cli *c)
{
    struct errtext err = ERRTEXT_INIT;
    struct secp *secp = NULL;
    struct secp_key key = {0};
    struct sign_publisher publisher;
    enum status st = sign_publisher_load(c->operand[0], &publisher, &err);
    if (!st) {
        int code = print_hex(c, "publisher", "public_key", publisher.public);
        sign_publisher_fini(&publisher);
        return code;
    }
    if (st == STATUS_UNSUPPORTED || cli_has(c, OPT_PASSPHRASE_FILE)) { /* not a publisher key */
        err_clear(&err);
        st = secp_create(&secp, &err);
        if (!st)
            st = keystore_load(secp, &key, c->operand[0], c->value[OPT_PASSPHRASE_FILE], &err);
    }
    int code = st ? cli_fail(c, st, &err, NULL) : print_chain(c, key.address);
    secp_key_fini(&key);
    secp_destroy(secp);
    return code;
}

/* From stdin up to the first line break, or the file's text. */
static enum status read_api_key(const char *path, char **text, size_t *len, struct errtext *err)
{
    if (strcmp(path, "-") != 0)
        return file_read_secret(path, FILE_BYTES, text, len, err);
    *text = mem_alloc(FILE_BYTES + 1);
    *len = fread(*text, 1, FILE_BYTES, stdin);
    *len = strcspn(*text, "\r\n");
    mem_wipe(*text + *len, FILE_BYTES - *len);
    return STATUS_OK;
}

int verb_key_hash(struct cli *c)
{
    struct errtext err = ERRTEXT_INIT;
    uint8_t digest[32];
    char *text = NULL;
    size_t len = 0;
    enum status st = read_api_key(c->operand[0], &text, &len, &err);
    if (!st && (len == 0 || strpbrk(text, "\r\n")))
        st = err_set(&err, STATUS_INVALID, "%s: expected one API key on one line", c->operand[0]);
    ids_hash(digest, text ? text : "", len);
    if (text)
        mem_wipe(text, len);
    mem_free(text);
    return st ? cli_fail(c, st, &err, NULL) : print_hex(c, "api", "digest", digest);
}
