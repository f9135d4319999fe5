/* Strict reading of the deployment file, and the three comparisons every program makes before it
 * believes a node. */
#include "chain_client/settle/deployment.h"
#include "chain_client/eth/addr.h"
#include "chain_client/eth/keccak.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/json.h"
#include "server/base/mem.h"

#include <string.h>

#define FILE_BYTES_MAX (1u << 20)
#define CODE_BYTES_MAX (1u << 17)

static enum status read_all(struct deployment *d, const json_t *root, struct errtext *err)
{
    struct json_reader r = {.obj = root, .err = err}, code = json_enter(&r, "code_hash");
    struct json_range whole = {0, INT64_MAX};
    d->chain_id = (uint64_t)json_need_int(&r, "chain_id", whole);
    d->start_block = (uint64_t)json_need_int(&r, "start_block", whole);
    json_need_hex(&r, "genesis_hash", d->genesis_hash, 32);
    addr_need(d->registry, &r, "registry");
    addr_need(d->ledger, &r, "ledger");
    addr_need(d->vault, &r, "vault");
    addr_need(d->token, &r, "token");
    json_need_hex(&code, "registry", d->registry_code, 32);
    json_need_hex(&code, "ledger", d->ledger_code, 32);
    json_need_hex(&code, "vault", d->vault_code, 32);
    return r.st;
}

enum status deployment_parse(struct deployment *d, const char *json, size_t len,
                             struct errtext *err)
{
    json_t *root;
    *d = (struct deployment){0};
    enum status st = json_doc_parse(&root, "deployment", json, len, 0, err);
    if (!st)
        st = read_all(d, root, err);
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
