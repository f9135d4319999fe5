/* The salt of a commitment is derived from a signature that only the owner can make and nobody has
 * seen: it is secret until `register` reveals it, and a repeated command finds its commitment. */
#include "chain_client/cli/registry.h"
#include "chain_client/eth/abi.h"
#include "chain_client/eth/addr.h"
#include "chain_client/eth/keccak.h"
#include "chain_client/registry/views.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>

#define CALL_BYTES_MAX  (1u << 14)
#define PUBLISH_ABI     "(bytes32,bytes32,bytes32,uint64,address,uint128,uint128,uint64)"
#define LISTS_ABI       "(address,uint8,uint16)[],(bytes32,uint16)[]" /* split, parents */
#define POLL_MS         250
#define COMMITMENT_SALT "residual.commitment.salt.1"

void registry_datanet_id(uint8_t id[32], const struct deployment *d, const uint8_t owner[20],
                         const uint8_t salt[32])
{
    struct manifest_datanet m = {.chain_id = d->chain_id};
    memcpy(m.registry, d->registry, 20);
    memcpy(m.owner, owner, 20);
    memcpy(m.salt, salt, 32);
    manifest_datanet_id(id, &m);
}

/* ---- views ---- */

/* A view of one bytes32, beside those of registry/views.h. */
static enum status ask(struct registry_job *j, const char *signature, const uint8_t arg[32],
                       struct abi_reader *r, struct errtext *err)
{
    struct buf data;
    struct abi_tuple t;
    buf_init(&data, 256);
    abi_put_selector(&data, signature);
    abi_begin(&t, &data, 1);
    abi_bytes32(&t, arg);
    abi_end(&t);
    enum status st = node_ask(j->node, j->node->d.registry, &data, r, err);
    buf_fini(&data);
    return st;
}

static enum status send(struct registry_job *j, const struct buf *data, const char *what,
                        struct errtext *err)
{
    struct node_sent sent;
    struct node_tx tx = {
        .secp = j->secp, .from = j->owner, .to = j->node->d.registry, .data = data, .what = what};
    j->tx_count++;
    return node_send(j->node, j->cli, &tx, &sent, err);
}

static enum status not_owner(const char *what, const uint8_t id[32], const uint8_t found[20],
                             const uint8_t expected[20], struct errtext *err)
{
    char hex[65], a[ADDR_TEXT_BYTES], b[ADDR_TEXT_BYTES];
    hex_encode(hex, id, 32);
    addr_format(a, found);
    addr_format(b, expected);
    return err_set(err, STATUS_CONFLICT, "%s 0x%s is registered to %s, not to %s", what, hex, a, b);
}

/* ---- datanets ---- */

static enum status put_datanet(struct registry_job *j, const struct sign_source *s, bool is_new,
                               struct errtext *err)
{
    struct buf data;
    struct abi_tuple t;
    if (sodium_is_zero(s->tokenizer_digest, 32))
        return err_set(err, STATUS_INVALID,
                       "%s: tokenizerDigest is missing: residual datanet build DIR --model BASE "
                       "writes it and the rows",
                       s->datanet_path);
    buf_init(&data, CALL_BYTES_MAX);
    if (is_new) {
        abi_put_selector(&data, "registerDatanet(bytes32,bytes32,bytes32,uint32,uint32,bytes32)");
        abi_begin(&t, &data, 6);
        abi_bytes32(&t, s->salt);
    } else {
        abi_put_selector(&data, "setDatanet(bytes32,uint64,bytes32,bytes32,uint32,uint32,bytes32)");
        abi_begin(&t, &data, 7);
        abi_bytes32(&t, s->m.datanet_id);
        abi_uint(&t, s->datanet_version);
    }
    abi_bytes32(&t, s->document_root);
    abi_bytes32(&t, s->owner_root);
    abi_uint(&t, s->m.documents->count);
    abi_uint(&t, s->m.documents->owner_count);
    abi_bytes32(&t, s->tokenizer_digest);
    abi_end(&t);
    enum status st = send(j, &data, is_new ? "registerDatanet" : "setDatanet", err);
    buf_fini(&data);
    return st;
}

static enum status wrong_version(uint64_t registered, const struct sign_source *s,
                                 struct errtext *err)
{
    return err_set(err, STATUS_CONFLICT,
                   "datanet: these documents are version %" PRIu64
                   " on this chain; datanet.json says version %" PRIu64 ": set it to %" PRIu64,
                   registered, s->datanet_version, registered);
}

/* The newest registered version against s. */
static enum status refresh_datanet(struct registry_job *j, const struct sign_source *s,
                                   struct errtext *err)
{
    struct registry_datanet d;
    enum status st = registry_datanet_at(&j->node->view.registry, "latest", s->m.datanet_id,
                                         UINT64_MAX, &d, err);
    if (st)
        return st;
    uint64_t version = d.version;
    bool same = memcmp(d.document_root, s->document_root, 32) == 0 &&
                memcmp(d.owner_root, s->owner_root, 32) == 0 &&
                memcmp(d.tokenizer_digest, s->tokenizer_digest, 32) == 0;
    if (same)
        return version == s->datanet_version ? STATUS_OK : wrong_version(version, s, err);
    if (version >= s->datanet_version)
        return err_set(err, STATUS_CONFLICT,
                       "datanet: other documents are registered as version %" PRIu64
                       "; raise the version of datanet.json (now %" PRIu64 ") above it",
                       version, s->datanet_version);
    return put_datanet(j, s, false, err);
}

/* A datanet of somebody else: nothing is registered, the version must have these documents. */
static enum status match_datanet(struct registry_job *j, const struct sign_source *s,
                                 const uint8_t owner[20], struct errtext *err)
{
    struct registry_reader r;
    struct registry_datanet d;
    char who[ADDR_TEXT_BYTES];
    addr_format(who, owner);
    if (!j->consent)
        return err_set(err, STATUS_DENIED,
                       "the datanet is owned by %s, who must agree: residual datanet consent makes "
                       "what publish.json holds as datanetConsent",
                       who);
    registry_open(&r, j->node->rpc, j->node->d.registry);
    enum status st =
        registry_datanet_version(&r, "latest", s->m.datanet_id, s->datanet_version, &d, err);
    registry_close(&r);
    if (!st && (!d.registered || memcmp(d.document_root, s->document_root, 32) != 0 ||
                memcmp(d.owner_root, s->owner_root, 32) != 0))
        st = err_set(err, STATUS_CONFLICT,
                     "datanet: version %" PRIu64 " on this chain has other documents than %s",
                     s->datanet_version, s->datanet_path);
    return st;
}

enum status registry_datanet(struct registry_job *j, const struct sign_source *s,
                             struct errtext *err)
{
    struct abi_reader r;
    uint8_t owner[20];
    enum status st = ask(j, "datanets(bytes32)", s->m.datanet_id, &r, err);
    if (!st)
        st = abi_read_address(&r, 0, owner, "datanets.owner", err);
    if (st)
        return st;
    if (!addr_is_zero(owner)) {
        return memcmp(owner, j->owner->address, 20) == 0 ? refresh_datanet(j, s, err)
                                                         : match_datanet(j, s, owner, err);
    }
    uint8_t own[32];
    registry_datanet_id(own, &j->node->d, j->owner->address, s->salt);
    if (memcmp(own, s->m.datanet_id, 32) != 0)
        return err_set(err, STATUS_NOT_FOUND, "--datanet-id is not registered on this chain");
    if (s->datanet_version != 1) /* the Registry counts from 1 */
        return wrong_version(1, s, err);
    return put_datanet(j, s, true, err);
}

/* ---- adapters ---- */

struct registered {
    uint8_t owner[20], digest[32];
    uint64_t version;
};

static enum status look_up(struct registry_job *j, const uint8_t id[32], struct registered *out,
                           struct errtext *err)
{
    struct abi_reader r;
    enum status st = ask(j, "adapters(bytes32)", id, &r, err);
    if (!st)
        st = abi_read_address(&r, 0, out->owner, "adapters.owner", err);
    if (!st)
        st = abi_read_u64(&r, 3, &out->version, "adapters.version", err);
    return st ? st : abi_read_bytes32(&r, 6, out->digest, "adapters.manifestHash", err);
}

static void put_publish(struct abi_tuple *t, const struct manifest_publish *p)
{
    abi_bytes32(t, p->adapter_id);
    abi_bytes32(t, p->model_id);
    abi_bytes32(t, p->datanet_id);
    abi_uint(t, p->datanet_version);
    abi_address(t, p->owner);
    abi_uint(t, p->price_in);
    abi_uint(t, p->price_out);
    abi_uint(t, p->version);
}

static void put_split(struct buf *data, const struct reward_split *split)
{
    struct abi_tuple t;
    abi_count(data, split->count);
    abi_begin(&t, data, 3 * split->count);
    for (size_t i = 0; i < split->count; i++) {
        abi_address(&t, split->entry[i].payee);
        abi_uint(&t, split->entry[i].role);
        abi_uint(&t, split->entry[i].bps);
    }
    abi_end(&t);
}

static void put_parents(struct buf *data, const struct manifest_publish *p)
{
    struct abi_tuple t;
    abi_count(data, p->parent_count);
    abi_begin(&t, data, 2 * p->parent_count);
    for (size_t i = 0; i < p->parent_count; i++) {
        abi_bytes32(&t, p->parent[i].adapter_id);
        abi_uint(&t, p->parent[i].bps);
    }
    abi_end(&t);
}

/* register when salt is given, update otherwise. The consent is empty where the sender owns the
 * datanet. */
static enum status put_adapter(struct registry_job *j, const struct manifest_publish *p,
                               const uint8_t *salt, const uint8_t *signature, struct errtext *err)
{
    struct buf data;
    struct abi_tuple t;
    buf_init(&data, CALL_BYTES_MAX);
    abi_put_selector(&data, salt ? "register(" PUBLISH_ABI "," LISTS_ABI ",bytes32,bytes,bytes)"
                                 : "update(" PUBLISH_ABI "," LISTS_ABI ",bytes,bytes)");
    abi_begin(&t, &data, salt ? 13 : 12);
    put_publish(&t, p);
    abi_dynamic(&t);
    put_split(&data, &p->split);
    abi_dynamic(&t);
    put_parents(&data, p);
    if (salt)
        abi_bytes32(&t, salt);
    abi_dynamic(&t);
    abi_bytes_tail(&data, signature, SECP_SIGNATURE_BYTES);
    abi_dynamic(&t);
    abi_bytes_tail(&data, j->consent, j->consent ? SECP_SIGNATURE_BYTES : 0);
    abi_end(&t);
    enum status st = send(j, &data, salt ? "register" : "update", err);
    buf_fini(&data);
    return st;
}

static enum status make_salt(struct registry_job *j, uint8_t salt[32], const uint8_t id[32],
                             struct errtext *err)
{
    uint8_t digest[32], signature[SECP_SIGNATURE_BYTES];
    struct keccak k;
    keccak_init(&k);
    keccak_update(&k, COMMITMENT_SALT, sizeof(COMMITMENT_SALT) - 1);
    keccak_update(&k, id, 32);
    keccak_update(&k, j->node->d.registry, 20);
    keccak_final(&k, digest);
    enum status st = secp_sign(j->secp, signature, j->owner, digest, err);
    keccak_256(salt, signature, sizeof(signature));
    mem_wipe(signature, sizeof(signature));
    return st;
}

static enum status committed_at(struct registry_job *j, const uint8_t commitment[32], uint64_t *at,
                                struct errtext *err)
{
    struct abi_reader r;
    enum status st = ask(j, "committedAt(bytes32)", commitment, &r, err);
    return st ? st : abi_read_u64(&r, 0, at, "committedAt", err);
}

static enum status commit(struct registry_job *j, const uint8_t commitment[32], struct errtext *err)
{
    struct buf data;
    struct abi_tuple t;
    buf_init(&data, CALL_BYTES_MAX);
    abi_put_selector(&data, "commitAdapter(bytes32)");
    abi_begin(&t, &data, 1);
    abi_bytes32(&t, commitment);
    abi_end(&t);
    enum status st = send(j, &data, "commitAdapter", err);
    buf_fini(&data);
    return st;
}

/* Until the chain's clock has passed the commitment's minimum age. */
static enum status wait_age(struct registry_job *j, uint64_t since, struct errtext *err)
{
    struct buf data;
    struct abi_reader r;
    struct rpc_block head = {0};
    uint64_t age = 0;
    buf_init(&data, 64);
    abi_put_selector(&data, "commitAgeMin()");
    enum status st = node_ask(j->node, j->node->d.registry, &data, &r, err);
    buf_fini(&data);
    if (!st)
        st = abi_read_u64(&r, 0, &age, "commitAgeMin", err);
    uint64_t end_ns = clock_mono_ns() + (age + j->node->wait_s) * 1000000000u;
    bool told = false;
    while (!st) {
        st = rpc_block(j->node->rpc, "latest", &head, err);
        if (st || head.timestamp >= since + age)
            return st;
        if (!told)
            cli_note(j->cli, "register: the commitment must be %" PRIu64 " s old; waiting", age);
        told = true;
        if (clock_mono_ns() > end_ns)
            return err_set(err, STATUS_TIMEOUT,
                           "register: the chain's clock has not passed second %" PRIu64
                           " yet; run the command again",
                           since + age);
        clock_sleep_ms(POLL_MS);
    }
    return st;
}

static enum status register_new(struct registry_job *j, const struct manifest_publish *p,
                                const uint8_t *signature, struct errtext *err)
{
    uint8_t salt[32], commitment[32];
    uint64_t since = 0;
    enum status st = make_salt(j, salt, p->adapter_id, err);
    manifest_commitment(commitment, p->adapter_id, p->owner, salt);
    if (!st)
        st = committed_at(j, commitment, &since, err);
    if (!st && !since) {
        st = commit(j, commitment, err);
        if (!st)
            st = committed_at(j, commitment, &since, err);
    }
    if (!st)
        st = wait_age(j, since, err);
    return st ? st : put_adapter(j, p, salt, signature, err);
}

enum status registry_adapter(struct registry_job *j, const struct manifest_publish *p,
                             const uint8_t owner_signature[SECP_SIGNATURE_BYTES],
                             struct errtext *err)
{
    struct registered now;
    uint8_t digest[32];
    enum status st = look_up(j, p->adapter_id, &now, err);
    if (st)
        return st;
    manifest_publish_digest(digest, p, j->node->d.chain_id, j->node->d.registry);
    if (addr_is_zero(now.owner))
        return register_new(j, p, owner_signature, err);
    if (memcmp(now.owner, p->owner, 20) != 0)
        return not_owner("adapter", p->adapter_id, now.owner, p->owner, err);
    if (memcmp(now.digest, digest, 32) == 0)
        return STATUS_OK;
    if (now.version >= p->version)
        return err_set(err, STATUS_CONFLICT,
                       "another manifest is registered as version %" PRIu64
                       "; raise the version of publish.json (now %" PRIu64 ") above it",
                       now.version, p->version);
    return put_adapter(j, p, NULL, owner_signature, err);
}
