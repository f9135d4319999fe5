/* Each round fills every node's head and final block; the rest is arithmetic on them. An endpoint
 * that failed waits before it is asked again, twice as long each time: one that hangs costs its
 * timeout rarely. */
#include "chain_client/eth/nodes.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define WAIT_MS_FIRST 1000u
#define WAIT_MS_MAX   30000u
#define NS_PER_S      1000000000ull

void nodes_init(struct nodes *n, const struct nodes_config *config)
{
    *n = (struct nodes){.config = *config, .agree_min = 1};
}

enum status nodes_add(struct nodes *n, struct rpc *rpc, struct errtext *err)
{
    if (n->count == NODES_MAX) {
        rpc_close(rpc);
        return err_set(err, STATUS_FULL, "more than %d chain nodes", NODES_MAX);
    }
    n->endpoint[n->count++] = (struct endpoint){.rpc = rpc};
    n->agree_min = n->count > 1 ? 2 : 1;
    return STATUS_OK;
}

void nodes_fini(struct nodes *n)
{
    for (uint32_t i = 0; i < n->count; i++)
        rpc_close(n->endpoint[i].rpc);
    *n = (struct nodes){0};
}

struct rpc *nodes_rpc(struct nodes *n)
{
    return n->endpoint[n->first].rpc;
}

void nodes_remember(struct nodes *n, uint64_t number, const uint8_t hash[32])
{
    n->has_final = true;
    n->final = (struct rpc_block){.number = number};
    memcpy(n->final.hash, hash, 32);
}

/* ---- one endpoint ---- */

static void refuse(struct nodes *n, struct endpoint *k, const char *why)
{
    if (strcmp(k->why, why) != 0)
        log_warn("nodes", "endpoint %u of %u is left out: %s", (unsigned)(k - n->endpoint) + 1,
                 n->count, why);
    snprintf(k->why, sizeof(k->why), "%s", why);
    k->is_good = false;
    k->wait_ms = MIN(MAX(2 * k->wait_ms, WAIT_MS_FIRST), WAIT_MS_MAX);
    k->retry_ns = clock_mono_ns() + k->wait_ms * 1000000ull;
}

/* Chain id and genesis: once, and again after each time it was left out. */
static enum status check_chain(struct nodes *n, struct endpoint *k, struct errtext *err)
{
    uint64_t chain_id = 0;
    struct rpc_block genesis = {0};
    enum status st = rpc_chain_id(k->rpc, &chain_id, err);
    k->is_other = false;
    if (!st)
        st = rpc_block(k->rpc, "earliest", &genesis, err);
    if (st)
        return st;
    k->is_other = true;
    if (chain_id != n->config.chain_id)
        return err_set(err, STATUS_CONFLICT,
                       "chain id: the node says %" PRIu64 ", the deployment %" PRIu64, chain_id,
                       n->config.chain_id);
    if (memcmp(genesis.hash, n->config.genesis_hash, 32) != 0)
        return err_set(err, STATUS_CONFLICT,
                       "genesis hash: the node serves another chain than the deployment names");
    k->is_other = false;
    k->is_known = true;
    return STATUS_OK;
}

static void ask(struct nodes *n, struct endpoint *k)
{
    struct errtext why = ERRTEXT_INIT;
    enum status st = k->is_good && k->is_known ? STATUS_OK : check_chain(n, k, &why);
    k->is_known = k->is_known && st != STATUS_CONFLICT;
    rpc_pin_finalized(k->rpc, NULL);
    if (!st)
        st = rpc_block(k->rpc, "latest", &k->head, &why);
    if (!st)
        st = rpc_block(k->rpc, "finalized", &k->final, &why);
    if (!st && k->final.number > k->head.number)
        st = err_set(&why, STATUS_CORRUPT, "its finalized block is newer than its latest");
    if (st)
        refuse(n, k, why.text);
    else
        k->is_good = true;
}

/* ---- freshness ---- */

/* A head that is old by our clock, but goes on second by second for as long as it may be old: then
 * our clock is wrong, not the node. */
static bool is_steady(struct nodes *n, struct endpoint *k)
{
    uint64_t now = clock_mono_ns(), watched_s = (now - k->watch_ns) / NS_PER_S;
    uint64_t age_max = n->config.head_age_max_s, went = k->head.timestamp - k->watch_time;
    if (!k->watch_ns || k->head.timestamp < k->watch_time || went > watched_s + age_max / 2) {
        k->watch_ns = now;
        k->watch_time = k->head.timestamp;
        return false;
    }
    if (watched_s < age_max)
        return false;
    if (went + age_max / 2 < watched_s) { /* it stands still or falls behind */
        k->watch_ns = now;
        k->watch_time = k->head.timestamp;
        return false;
    }
    return true;
}

static void check_fresh(struct nodes *n)
{
    uint64_t newest = 0, now = clock_wall_ms() / 1000, age_max = n->config.head_age_max_s;
    char why[NODES_WHY_BYTES];
    for (uint32_t i = 0; i < n->count; i++)
        if (n->endpoint[i].is_good)
            newest = MAX(newest, n->endpoint[i].head.timestamp);
    for (uint32_t i = 0; i < n->count; i++) {
        struct endpoint *k = &n->endpoint[i];
        uint64_t at = k->head.timestamp;
        bool is_old = at + age_max < now, is_behind = at + age_max < newest;
        if (!k->is_good)
            continue;
        if (!is_old)
            k->watch_ns = 0;
        if (is_behind || (is_old && !is_steady(n, k))) {
            snprintf(why, sizeof(why),
                     "its head is more than %" PRIu64 " s old (block %" PRIu64 "): it lags or has "
                     "stopped",
                     age_max, k->head.number);
            refuse(n, k, why);
            k->wait_ms = k->wait_ms / 2; /* it answers: asking costs little */
            k->retry_ns = clock_mono_ns() + NS_PER_S;
        }
    }
}

/* ---- agreement ---- */

/* k's block of a number that it has; one that cannot say is left out of this round. */
static bool block_of(struct nodes *n, struct endpoint *k, uint64_t number, struct rpc_block *b)
{
    char tag[RPC_TAG_BYTES];
    struct errtext why = ERRTEXT_INIT;
    if (k->final.number == number) {
        *b = k->final;
        return true;
    }
    rpc_tag(tag, number);
    enum status st = rpc_block(k->rpc, tag, b, &why);
    if (!st && b->number != number)
        st = err_set(&why, STATUS_CORRUPT, "it answered another block than it was asked for");
    if (st)
        refuse(n, k, why.text);
    return !st;
}

/* The newest number that agree_min good endpoints call final. */
static bool candidate_number(const struct nodes *n, uint64_t *number)
{
    for (uint32_t i = 0; i < n->count; i++) {
        uint32_t as_far = 0;
        uint64_t at = n->endpoint[i].final.number;
        for (uint32_t j = 0; j < n->count; j++)
            as_far += n->endpoint[j].is_good && n->endpoint[j].final.number >= at;
        if (n->endpoint[i].is_good && as_far >= n->agree_min)
            *number = MAX(*number, at + 1);
    }
    return (*number)-- != 0;
}

static enum nodes_verdict hold(struct nodes *n, const char *why)
{
    snprintf(n->held, sizeof(n->held), "%s", why);
    return NODES_HELD;
}

/* The block of that number which agree_min endpoints show, and more than any other. Who shows
 * another then is left out. False: they do not agree. */
static bool agreed_block(struct nodes *n, uint64_t number, struct rpc_block *out)
{
    struct rpc_block b[NODES_MAX];
    bool has[NODES_MAX] = {0};
    uint32_t most = 0, second = 0, best = 0;
    for (uint32_t i = 0; i < n->count; i++) {
        struct endpoint *k = &n->endpoint[i];
        has[i] = k->is_good && k->final.number >= number && block_of(n, k, number, &b[i]);
    }
    for (uint32_t i = 0; i < n->count; i++) {
        uint32_t same = 0, earlier = 0;
        for (uint32_t j = 0; j < n->count && has[i]; j++) {
            bool is_same = has[j] && memcmp(b[i].hash, b[j].hash, 32) == 0;
            same += is_same;
            earlier += is_same && j < i;
        }
        if (earlier)
            continue; /* counted under the first of its group */
        second = MAX(second, MIN(same, most));
        if (same > most) {
            most = same;
            best = i;
        }
    }
    if (most < n->agree_min || most == second)
        return false;
    *out = b[best];
    for (uint32_t i = 0; i < n->count; i++)
        if (has[i] && memcmp(b[i].hash, out->hash, 32) != 0)
            refuse(n, &n->endpoint[i], "its finalized block is not the other endpoints'");
    return true;
}

/* What agree_min endpoints show at the number that was final: *same, or another block. False:
 * nobody can say (they are not there yet, or do not agree). */
static bool look_back(struct nodes *n, bool *same)
{
    struct rpc_block b;
    uint32_t kept = 0, gone = 0;
    for (uint32_t i = 0; i < n->count; i++) {
        struct endpoint *k = &n->endpoint[i];
        if (!k->is_good || k->head.number < n->final.number || !block_of(n, k, n->final.number, &b))
            continue;
        if (memcmp(b.hash, n->final.hash, 32) == 0)
            kept++;
        else
            gone++;
    }
    *same = kept > 0;
    return (kept >= n->agree_min && !gone) || (gone >= n->agree_min && !kept);
}

static enum nodes_verdict agree(struct nodes *n)
{
    char why[NODES_WHY_BYTES];
    struct rpc_block b;
    uint64_t number = 0;
    bool same = true;
    uint32_t good = 0;
    for (uint32_t i = 0; i < n->count; i++)
        good += n->endpoint[i].is_good;
    if (!candidate_number(n, &number)) {
        snprintf(why, sizeof(why),
                 "%u of %u endpoints answer, and %u must agree on what is final: bring one back, or"
                 " name another with --rpc-url",
                 good, n->count, n->agree_min);
        return hold(n, why);
    }
    if (!agreed_block(n, number, &b)) {
        snprintf(why, sizeof(why),
                 "the endpoints show different blocks of number %" PRIu64
                 ", which is final: one of them lies or serves a fork; find out which and take it"
                 " away",
                 number);
        return hold(n, why);
    }
    if (n->has_final && !look_back(n, &same))
        return hold(n, "the endpoints are behind the block that was final, or do not agree on it");
    if (!same) {
        n->other = b;
        return NODES_REORG;
    }
    n->held[0] = '\0';
    if (!n->has_final || number > n->final.number)
        n->final = b;
    n->has_final = true;
    return NODES_AGREED;
}

static void pin(struct nodes *n)
{
    for (uint32_t i = 0; i < n->count; i++)
        rpc_pin_finalized(n->endpoint[i].rpc, n->has_final ? &n->final.number : NULL);
}

/* What is read of the final block, another that has it confirms, while they agree. */
static void choose_witness(struct nodes *n, bool agreed)
{
    struct rpc *witness = NULL;
    for (uint32_t i = 0; i < n->count; i++) {
        struct endpoint *k = &n->endpoint[i];
        rpc_confirm_with(k->rpc, NULL);
        if (agreed && !witness && i != n->first && k->is_good && k->final.number >= n->final.number)
            witness = k->rpc;
    }
    rpc_confirm_with(n->endpoint[n->first].rpc, witness);
}

void nodes_moved(struct nodes *n)
{
    n->final = n->other;
    n->has_final = true;
    pin(n);
}

/* ---- a round ---- */

static enum status choose_first(struct nodes *n, struct errtext *err)
{
    uint32_t others = 0, at = n->count;
    for (uint32_t i = n->count; i > 0; i--) {
        const struct endpoint *k = &n->endpoint[i - 1];
        others += k->is_other;
        if (k->is_good && (!n->has_final || k->head.number >= n->final.number))
            at = i - 1;
    }
    if (at == n->count && others == n->count && n->count)
        return err_set(err, STATUS_CONFLICT, "%s", n->endpoint[0].why);
    if (at == n->count) {
        const struct endpoint *k = &n->endpoint[n->count > 1 && n->endpoint[0].is_good ? 1 : 0];
        return err_set(err, STATUS_BUSY, "no chain node can be used: %s%s", n->endpoint[0].why,
                       k->why[0] && k != &n->endpoint[0] ? k->why : "");
    }
    if (at != n->first)
        log_info("nodes", "reading endpoint %u of %u now", at + 1, n->count);
    n->first = at;
    return STATUS_OK;
}

enum status nodes_refresh(struct nodes *n, enum nodes_verdict *verdict, struct errtext *err)
{
    bool was_good[NODES_MAX];
    for (uint32_t i = 0; i < n->count; i++) {
        struct endpoint *k = &n->endpoint[i];
        was_good[i] = k->is_good;
        if (k->is_good || clock_mono_ns() >= k->retry_ns)
            ask(n, k);
    }
    check_fresh(n);
    *verdict = agree(n);
    pin(n);
    for (uint32_t i = 0; i < n->count; i++) {
        struct endpoint *k = &n->endpoint[i];
        if (k->is_good && k->why[0])
            log_info("nodes", "endpoint %u of %u is good again", i + 1, n->count);
        if (k->is_good) {
            k->why[0] = '\0';
            k->wait_ms = was_good[i] ? 0 : k->wait_ms;
        }
    }
    enum status st = choose_first(n, err);
    choose_witness(n, !st && *verdict == NODES_AGREED);
    if (!st && !n->has_final)
        st = err_set(err, STATUS_BUSY, "%s", n->held);
    return st;
}

/* ---- questions to all ---- */

enum status nodes_send(struct nodes *n, const void *raw, size_t len, const uint8_t hash[32],
                       struct errtext *err)
{
    enum status st = STATUS_BUSY;
    bool taken = false;
    for (uint32_t i = 0; i < n->count; i++) {
        struct endpoint *k = &n->endpoint[i];
        struct errtext why = ERRTEXT_INIT;
        if (!k->is_known || (!k->is_good && clock_mono_ns() < k->retry_ns))
            continue;
        st = rpc_send_raw(k->rpc, raw, len, hash, &why);
        taken = taken || !st;
        if (st) {
            err_clear(err);
            err_set(err, st, "%s", why.text);
        }
    }
    return taken ? STATUS_OK : st;
}

enum status nodes_receipt(struct nodes *n, const uint8_t hash[32], struct rpc_receipt *receipt,
                          enum nodes_sight *sight, struct errtext *err)
{
    uint32_t seen = 0, none = 0, unsure = 0;
    for (uint32_t i = 0; i < n->count; i++) {
        struct endpoint *k = &n->endpoint[i];
        struct rpc_receipt r;
        struct errtext why = ERRTEXT_INIT;
        if (!k->is_good)
            continue;
        enum status st = rpc_receipt(k->rpc, hash, &r, &why);
        bool same = !st && seen && memcmp(r.block_hash, receipt->block_hash, 32) == 0 &&
                    r.succeeded == receipt->succeeded && r.block_number == receipt->block_number;
        if (st == STATUS_NOT_FOUND && k->head.number >= n->final.number)
            none++;
        else if (st || (seen && !same))
            unsure++;
        else
            seen++;
        if (!st && !same && seen == 1)
            *receipt = r;
        if (st && st != STATUS_NOT_FOUND && st != STATUS_INVALID)
            refuse(n, k, why.text);
    }
    *sight = seen ? NODES_GLIMPSED : NODES_UNSURE;
    if (seen >= n->agree_min && !none && !unsure)
        *sight = NODES_SEEN;
    else if (none >= n->agree_min && !seen && !unsure)
        *sight = NODES_NONE;
    if (!n->endpoint[n->first].is_good) /* the next round reads another */
        return err_set(err, STATUS_BUSY, "endpoint %u: %s", n->first + 1,
                       n->endpoint[n->first].why);
    return STATUS_OK;
}

enum status nodes_final_nonce(struct nodes *n, const uint8_t address[20], uint64_t *nonce,
                              struct errtext *err)
{
    uint32_t answers = 0;
    struct errtext why = ERRTEXT_INIT;
    *nonce = UINT64_MAX;
    for (uint32_t i = 0; i < n->count; i++) {
        uint64_t used;
        if (!n->endpoint[i].is_good ||
            rpc_transaction_count(n->endpoint[i].rpc, address, "finalized", &used, &why))
            continue;
        answers++;
        *nonce = MIN(*nonce, used);
    }
    if (answers >= n->agree_min)
        return STATUS_OK;
    *nonce = 0; /* nothing is known to be used */
    return n->count == 1 ? err_set(err, STATUS_BUSY, "%s", why.text) : STATUS_OK;
}

enum status nodes_latest_nonce(struct nodes *n, const uint8_t address[20], uint64_t *nonce,
                               struct errtext *err)
{
    struct errtext why = ERRTEXT_INIT;
    bool any = false;
    *nonce = 0;
    for (uint32_t i = 0; i < n->count; i++) {
        uint64_t used;
        if (!n->endpoint[i].is_good ||
            rpc_transaction_count(n->endpoint[i].rpc, address, "latest", &used, &why))
            continue;
        *nonce = MAX(*nonce, used);
        any = true;
    }
    return any ? STATUS_OK : err_set(err, STATUS_BUSY, "%s", why.text);
}

enum status nodes_has_block(struct nodes *n, uint64_t number, const uint8_t hash[32], bool *has,
                            struct errtext *err)
{
    struct rpc_block b;
    uint32_t same = 0, other = 0;
    for (uint32_t i = 0; i < n->count; i++) {
        struct endpoint *k = &n->endpoint[i];
        if (!k->is_good || k->head.number < number || !block_of(n, k, number, &b))
            continue;
        if (memcmp(b.hash, hash, 32) == 0)
            same++;
        else
            other++;
    }
    *has = same > 0;
    if ((same >= n->agree_min && !other) || (other >= n->agree_min && !same))
        return STATUS_OK;
    return err_set(err, STATUS_BUSY, "the endpoints do not agree on block %" PRIu64, number);
}
