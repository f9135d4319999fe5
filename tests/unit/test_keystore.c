/* Key files: the Web3 Secret Storage test vectors (scrypt and PBKDF2), wrong passphrases, hostile
 * costs and fields, raw files, modes, and never overwriting. */
#include "chain_client/eth/keystore.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "server/base/file.h"
#include "server/base/hex.h"

static struct secp *ctx;
static char dir[] = "/tmp/rs_keystore_XXXXXX";

#define SECRET "7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d"

/* The specification's two vectors, passphrase "testpassword". */
static const char pbkdf2_file[] =
    "{\"crypto\":{\"cipher\":\"aes-128-ctr\",\"cipherparams\":{\"iv\":"
    "\"6087dab2f9fdbbfaddc31a909735c1e6\"},\"ciphertext\":"
    "\"5318b4d5bcd28de64ee5559e671353e16f075ecae9f99c7a79a38af5f869aa46\",\"kdf\":\"pbkdf2\","
    "\"kdfparams\":{\"c\":262144,\"dklen\":32,\"prf\":\"hmac-sha256\",\"salt\":"
    "\"ae3cd4e7013836a3df6bd7241b12db061dbe2c6785853cce422d148a624ce0bd\"},\"mac\":"
    "\"517ead924a9d0dc3124507e3393d175ce3ff7c1e96529c6c555ce9e51205e9b2\"},\"id\":"
    "\"3198bc9c-6672-5ab3-d995-4942343ae5b6\",\"version\":3}";
#define SCRYPT_FILE(n)                                                                             \
    "{\"crypto\":{\"cipher\":\"aes-128-ctr\",\"cipherparams\":{\"iv\":"                            \
    "\"83dbcc02d8ccb40e466191a123791e0e\"},\"ciphertext\":"                                        \
    "\"d172bf743a674da9cdad04534d56926ef8358534d458fffccd4e6ad2fbde479c\",\"kdf\":\"scrypt\","     \
    "\"kdfparams\":{\"dklen\":32,\"n\":" n ",\"r\":1,\"p\":8,\"salt\":"                            \
    "\"ab0c7876052600dd703518d6fc3fe8984592145b591fc8fb5c6d43190334ba19\"},\"mac\":"               \
    "\"2103ac29920d71da29f15d75b4a16dbe95cfd7ff8faea1056c33131d846e3097\"},\"version\":3}"
static const char scrypt_file[] = SCRYPT_FILE("262144");

static int setup(void **state)
{
    return !mkdtemp(dir) || secp_create(&ctx, NULL);
}

static int teardown(void **state)
{
    char command[64];
    secp_destroy(ctx);
    snprintf(command, sizeof(command), "rm -r %s", dir);
    return system(command);
}

static const char *path_of(const char *name)
{
    static char path[2][96];
    static unsigned turn;
    turn ^= 1;
    snprintf(path[turn], sizeof(path[turn]), "%s/%s", dir, name);
    return path[turn];
}

static const char *put(const char *name, const char *text, unsigned mode)
{
    const char *path = path_of(name);
    assert_int_equal(file_write_atomic(path, text, strlen(text), mode, NULL), STATUS_OK);
    assert_int_equal(chmod(path, mode), 0);
    return path;
}

static enum status decrypt(const char *json, const char *passphrase, uint8_t secret[32],
                           struct errtext *err)
{
    return keystore_decrypt(secret, json, strlen(json), passphrase, err);
}

static void test_vectors(void **state)
{
    uint8_t secret[32], expected[32];
    assert_true(hex_decode(expected, 32, SECRET));
    assert_int_equal(decrypt(pbkdf2_file, "testpassword", secret, NULL), STATUS_OK);
    assert_memory_equal(secret, expected, 32);
    assert_int_equal(decrypt(scrypt_file, "testpassword", secret, NULL), STATUS_OK);
    assert_memory_equal(secret, expected, 32);
}

static void test_wrong_passphrase_gives_nothing(void **state)
{
    static const uint8_t zero[32];
    uint8_t secret[32] = {1};
    struct errtext err = ERRTEXT_INIT;
    assert_int_equal(decrypt(pbkdf2_file, "testpasswore", secret, &err), STATUS_DENIED);
    assert_memory_equal(secret, zero, 32);
    assert_non_null(strstr(err.text, "passphrase"));
}

/* Replace what by with in the PBKDF2 vector and expect st with param. */
static void expect(const char *what, const char *with, enum status st, const char *param)
{
    char text[2048];
    uint8_t secret[32];
    struct errtext err = ERRTEXT_INIT;
    const char *at = strstr(pbkdf2_file, what);
    assert_non_null(at);
    snprintf(text, sizeof(text), "%.*s%s%s", (int)(at - pbkdf2_file), pbkdf2_file, with,
             at + strlen(what));
    assert_int_equal(decrypt(text, "testpassword", secret, &err), st);
    assert_string_equal(err.param, param);
}

static void test_fields_are_checked_by_name(void **state)
{
    uint8_t secret[32];
    expect("\"version\":3", "\"version\":4", STATUS_UNSUPPORTED, "version");
    expect("aes-128-ctr", "aes-128-cbc", STATUS_UNSUPPORTED, "cipher");
    expect("\"pbkdf2\"", "\"argon2\"", STATUS_UNSUPPORTED, "kdf");
    expect("hmac-sha256", "hmac-sha512", STATUS_UNSUPPORTED, "prf");
    expect("\"dklen\":32", "\"dklen\":16", STATUS_UNSUPPORTED, "dklen");
    expect("\"c\":262144", "\"c\":99999999", STATUS_TOO_LARGE, "c");
    expect("\"c\":262144", "\"c\":0", STATUS_TOO_LARGE, "c");
    expect("\"5318b4d5", "\"5318b4", STATUS_INVALID, "ciphertext");
    expect("\"6087dab2", "\"zz87dab2", STATUS_INVALID, "iv");
    expect("\"517ead92", "\"0x7ead92", STATUS_INVALID, "mac");
    expect("\"ae3cd4e7", "\"ae3", STATUS_INVALID, "salt");
    assert_int_equal(decrypt(SCRYPT_FILE("1073741824"), "x", secret, NULL), STATUS_TOO_LARGE);
    assert_int_equal(decrypt(SCRYPT_FILE("262143"), "x", secret, NULL), STATUS_INVALID);
    assert_int_equal(decrypt("{}", "x", secret, NULL), STATUS_UNSUPPORTED);
    assert_int_equal(decrypt("", "x", secret, NULL), STATUS_INVALID);
    assert_int_equal(decrypt("{\"version\":3}", "x", secret, NULL), STATUS_UNSUPPORTED);
    for (size_t len = 0; len < sizeof(pbkdf2_file) - 1; len++)
        assert_int_equal(keystore_decrypt(secret, pbkdf2_file, len, "x", NULL), STATUS_INVALID);
}

static void test_files(void **state)
{
    struct secp_key key, again;
    struct errtext err = ERRTEXT_INIT;
    const char *json = put("v3.json", pbkdf2_file, 0644);
    const char *pass = put("pass", "testpassword\n", 0600);
    assert_int_equal(keystore_load(ctx, &key, json, pass, NULL), STATUS_OK);
    assert_int_equal(keystore_load(ctx, &again, put("raw", SECRET "\n", 0600), NULL, NULL),
                     STATUS_OK);
    assert_memory_equal(key.address, again.address, 20);
    assert_int_equal(keystore_load(ctx, &key, put("open", SECRET, 0644), NULL, &err),
                     STATUS_DENIED);
    assert_null(strstr(err.text, SECRET));
    err_clear(&err);
    assert_int_equal(keystore_load(ctx, &key, put("v3b", pbkdf2_file, 0600), NULL, &err),
                     STATUS_INVALID);
    assert_non_null(strstr(err.text, "passphrase file"));
    /* a bare key where a version 3 file is expected: it is not quoted */
    err_clear(&err);
    assert_int_equal(keystore_load(ctx, &key, put("bare", SECRET, 0600), pass, &err),
                     STATUS_INVALID);
    assert_null(strstr(err.text, "7a28"));
    assert_int_equal(keystore_load(ctx, &key, put("zero", "00", 0600), NULL, NULL), STATUS_INVALID);
    assert_int_equal(keystore_load(ctx, &key, path_of("none"), NULL, NULL), STATUS_NOT_FOUND);
}

static void test_create_never_overwrites(void **state)
{
    struct secp_key key, again;
    struct stat info;
    const char *path = path_of("fresh");
    struct errtext err = ERRTEXT_INIT;
    assert_int_equal(keystore_create(ctx, &key, path, NULL), STATUS_OK);
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
    assert_int_equal(keystore_load(ctx, &again, path, NULL, NULL), STATUS_OK);
    assert_memory_equal(key.secret, again.secret, 32);
    assert_int_equal(keystore_create(ctx, &key, path, &err), STATUS_EXISTS);
    assert_int_equal(keystore_load(ctx, &key, path, NULL, NULL), STATUS_OK);
    assert_memory_equal(key.secret, again.secret, 32);
    assert_int_equal(keystore_create(ctx, &key, "/nonexistent/key", NULL), STATUS_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vectors),
        cmocka_unit_test(test_wrong_passphrase_gives_nothing),
        cmocka_unit_test(test_fields_are_checked_by_name),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_create_never_overwrites),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
