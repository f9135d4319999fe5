/* Strict reading of the deployment file, and the three comparisons every program makes before it
 * believes a node. */
#include "chain_client/settle/deployment.h"
#include "chain_client/eth/addr.h"
#include "chain_client/eth/keccak.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/mem.h"

#include <jansson.h>
#include <string.h>

#define FILE_BYTES_MAX (1u << 20)
#define CODE_BYTES_MAX (1u << 17)

static enum status read_hash(uint8_t out[32], const json_t *root, const char *name,
                             struct errtext *err)
{
    const char *text = json_string_value(json_object_get(root, name));
    if (!text || strncmp(text, "0x", 2) != 0 || !hex_decode(out, 32, text))
        return err_param(err, STATUS_INVALID, name, "%s: expected 0x and 64 hex digits", name);
    return STATUS_OK;
}

static enum status read_address(uint8_t out[20], const json_t *root, const char *name,
                                struct errtext *err)
{
    const char *text = json_string_value(json_object_get(root, name));
    if (!text)
        return err_param(err, STATUS_INVALID, name, "%s: expected an address", name);
    enum status st = addr_parse(out, text, err);
    if (st)
        err_prefix(err, "%s", name);
    return st;
}

static enum status read_number(uint64_t *out, const json_t *root, const char *name,
                               struct errtext *err)
{
    const json_t *v = json_object_get(root, name);
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return err_param(err, STATUS_INVALID, name, "%s: expected a whole number", name);
    *out = (uint64_t)json_integer_value(v);
    return STATUS_OK;
}

static enum status read_all(struct deployment *d, const json_t *root, struct errtext *err)
{
    const json_t *code = json_object_get(root, "code_hash");
    const struct {
        uint8_t *to;
        const char *name;
    } address[] = {{d->registry, "registry"},
                   {d->ledger, "ledger"},
                   {d->vault, "vault"},
                   {d->token, "token"}},
      hash[] = {
          {d->registry_code, "registry"}, {d->ledger_code, "ledger"}, {d->vault_code, "vault"}};
    enum status st = read_number(&d->chain_id, root, "chain_id", err);
    if (!st)
        st = read_number(&d->start_block, root, "start_block", err);
    if (!st)
        st = read_hash(d->genesis_hash, root, "genesis_hash", err);
    for (size_t i = 0; i < ARRAY_COUNT(address) && !st; i++)
        st = read_address(address[i].to, root, address[i].name, err);
    for (size_t i = 0; i < ARRAY_COUNT(hash) && !st; i++) {
        st = read_hash(hash[i].to, code, hash[i].name, err);
        if (st)
            err_prefix(err, "code_hash");
    }
    return st;
}

enum status deployment_parse(struct deployment *d, const char *json, size_t len,
                             struct errtext *err)
{
    json_error_t je;
    json_t *root = json_loadb(json, len, JSON_REJECT_DUPLICATES, &je);
    *d = (struct deployment){0};
    enum status st =
        json_is_object(root)
            ? read_all(d, root, err)
            : err_set(err, STATUS_INVALID, "line %d: expected one JSON object", root ? 1 : je.line);
    json_decref(root);
    return st;
}

enum status deployment_load(struct deployment *d, const char *path, struct errtext *err)
{
    char *text;
    size_t len;
    enum status st = file_read(path, FILE_BYTES_MAX, &text, &len, err);
    if (st)
        return st;
    st = deployment_parse(d, text, len, err);
    if (st)
        err_prefix(err, "%s", path);
    mem_free(text);
    return st;
}

static enum status check_code(struct rpc *rpc, const char *name, const uint8_t address[20],
                              const uint8_t expected[32], struct errtext *err)
{
    struct buf code;
    uint8_t hash[32];
    char text[ADDR_TEXT_BYTES];
    addr_format(text, address);
    buf_init(&code, CODE_BYTES_MAX);
    enum status st = rpc_code(rpc, address, "latest", &code, err);
    keccak_256(hash, code.data, code.len);
    if (!st && !code.len)
        st = err_set(err, STATUS_CONFLICT, "%s %s: the node has no contract there", name, text);
    else if (!st && memcmp(hash, expected, 32) != 0)
        st = err_set(err, STATUS_CONFLICT,
                     "%s %s: the deployed code is not the one the deployment file names", name,
                     text);
    buf_fini(&code);
    return st;
}

enum status deployment_check(const struct deployment *d, struct rpc *rpc, struct errtext *err)
{
    uint64_t chain_id;
    struct rpc_block genesis;
    enum status st = rpc_chain_id(rpc, &chain_id, err);
    if (!st && chain_id != d->chain_id)
        st = err_set(err, STATUS_CONFLICT, "chain id: the node says %llu, the deployment %llu",
                     (unsigned long long)chain_id, (unsigned long long)d->chain_id);
    if (!st)
        st = rpc_block(rpc, "earliest", &genesis, err);
    if (!st && memcmp(genesis.hash, d->genesis_hash, 32) != 0)
        st = err_set(err, STATUS_CONFLICT,
                     "genesis hash: the node serves another chain than the deployment names");
    if (!st)
        st = check_code(rpc, "registry", d->registry, d->registry_code, err);
    if (!st)
        st = check_code(rpc, "ledger", d->ledger, d->ledger_code, err);
    if (!st)
        st = check_code(rpc, "vault", d->vault, d->vault_code, err);
    return st;
}
