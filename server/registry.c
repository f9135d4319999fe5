/* Three calls of witness.h under the names that the book has for them. */
#include "server/registry.h"
#include "server/base/check.h"
#include "server/base/log.h"
#include "server/record/lane.h"

#include <string.h>

#define POLL_MS 1500u /* a final block comes every few seconds at most */

/* A bound lane charges what the Registry says, so it must be able to ask. */
enum status registry_check(const struct config *c, struct errtext *err)
{
    if (c->registry_rpc_url.count > WITNESS_MAX)
        return err_param(err, STATUS_TOO_LARGE, "registry_rpc_url",
                         "registry_rpc_url: %u nodes, at most %d", c->registry_rpc_url.count,
                         WITNESS_MAX);
    if (!c->chain_id)
        return STATUS_OK;
    if (!c->registry)
        return err_param(
            err, STATUS_INVALID, "registry",
            "registry: missing; a lane bound to a ledger needs the Registry's address: "
            "it says who is paid");
    if (!c->registry_rpc_url.count)
        return err_param(err, STATUS_INVALID, "registry_rpc_url",
                         "registry_rpc_url: missing; prices and owners of a lane bound to a ledger "
                         "are read from the Registry: name a chain node, --registry-rpc-url URL");
    return STATUS_OK;
}

static enum status witness_head_of(void *nodes, struct witness_head *head, struct errtext *err)
{
    return witness_head(nodes, head, err);
}

static enum status witness_answer(void *nodes, const struct witness_question *q, uint64_t block,
                                  struct buf *answer, struct errtext *err)
{
    return witness_ask(nodes, q, block, answer, err);
}

static enum status witness_events(void *nodes, uint64_t first_block, uint64_t last_block,
                                  void (*each)(void *arg, const uint8_t id[32]), void *arg,
                                  struct errtext *err)
{
    return witness_changed(nodes, first_block, last_block, each, arg, err);
}

static uint32_t lane_of(const struct config *c)
{
    return c->lane ? (uint32_t)c->lane : LANE_FIRST;
}

enum status registry_begin(struct registry_from *r, const struct config *c,
                           const uint8_t address[20], const uint8_t model_id[32],
                           const struct tariff *base, struct errtext *err)
{
    struct witness_options nodes = {.url = (const char *const *)c->registry_rpc_url.item,
                                    .url_count = c->registry_rpc_url.count,
                                    .authorization_file = c->registry_rpc_authorization_file,
                                    .chain_id = c->chain_id};
    struct book_options opt = {.dir = c->data_dir,
                               .chain_id = c->chain_id,
                               .lane = lane_of(c),
                               .base_wanted = *base,
                               .ids_max = (uint32_t)c->adapters_registered_max,
                               .poll_ms = POLL_MS};
    memcpy(nodes.registry, address, 20);
    memcpy(opt.registry, address, 20);
    memcpy(opt.model_id, model_id, 32);
    CHECK(pthread_mutex_init(&r->door_lock, NULL) == 0);
    enum status st = witness_open(&r->nodes, &nodes, err);
    if (!st)
        st = witness_open(&r->door, &nodes, err);
    opt.chain = (struct book_chain){r->nodes, witness_head_of, witness_answer, witness_events};
    return st ? st : book_open(&r->book, &opt, err);
}

uint64_t registry_lane_used(struct registry_from *r, const struct config *c,
                            const uint8_t ledger[20])
{
    struct errtext err = ERRTEXT_INIT;
    uint64_t next = 0;
    if (witness_lane_next(r->door, ledger, lane_of(c), &next, &err) == STATUS_OK)
        return next ? next - 1 : 0;
    log_warn("records",
             "no node says which records of lane %u the ledger holds (%s); the lane's own mark and "
             "its stream are asked",
             lane_of(c), err.text);
    return 0;
}

void registry_end(struct registry_from *r)
{
    book_close(r->book);
    if (r->nodes)
        pthread_mutex_destroy(&r->door_lock);
    witness_close(r->nodes);
    witness_close(r->door);
}

enum status registry_ask_1271(void *arg, const uint8_t account[20], const uint8_t digest[32],
                              const void *signature, size_t len, bool *yes, struct errtext *err)
{
    struct registry_from *r = arg;
    pthread_mutex_lock(&r->door_lock);
    enum status st = witness_signed_by(r->door, account, digest, signature, len, yes, err);
    pthread_mutex_unlock(&r->door_lock);
    return st;
}
