/* Every division is LR (chain_client/lr.h), so gains and shares sum to E9 exactly. The spread over
 * sub-indexes is made beside the shares and never enters them. */
#include "server/influence/gain.h"
#include "chain_client/commit.h"
#include "chain_client/eth/keccak.h"
#include "chain_client/lr.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <stdlib.h>
#include <string.h>

#define GAIN_TOKEN_MAX 65535 /* of one token, Q8 nats */

uint32_t gain_row_count(uint32_t adapter_count)
{
    return adapter_count <= 1 ? 1 : adapter_count == 2 ? 3 : 1 + 2 * adapter_count;
}

/* Under the set without adapter k: the base, or the other one alone, where that is all of it. */
static const int32_t *row_without(const struct gain_in *in, const struct gain_choice *c, uint32_t k)
{
    uint32_t n = in->adapter_count;
    return c->row[n <= 1 ? 0 : n == 2 ? 2 - k : 1 + n + k];
}

static int64_t moved_at(const struct gain_in *in, uint32_t choice, uint32_t k, uint32_t t)
{
    const struct gain_choice *c = &in->choice[choice];
    const int32_t *own = in->adapter_count >= 2 ? c->row[1 + k] : c->set;
    return (int64_t)own[t] - c->row[0][t];
}

int32_t gain_at(const struct gain_in *in, uint32_t choice, uint32_t k, uint32_t t)
{
    int64_t moved = moved_at(in, choice, k, t);
    return (int32_t)MIN(MAX(moved, 0), GAIN_TOKEN_MAX);
}

/* Signed sums over all tokens; each is below 2^32 x tokens, and an answer has fewer than 2^24. */
struct moves {
    int64_t set, both[TAIL_ADAPTERS_MAX], sum; /* S, S_k + V_k, and the sum of these */
    bool moves[TAIL_ADAPTERS_MAX];
    uint32_t movers;
};

static void add_moves(struct moves *m, struct gain_result *out, const struct gain_in *in,
                      uint32_t k)
{
    for (uint32_t s = 0; s < in->choice_count; s++) {
        const int32_t *without = row_without(in, &in->choice[s], k);
        for (uint32_t t = 0; t < in->choice[s].n; t++) {
            int64_t first = moved_at(in, s, k, t),
                    last = (int64_t)in->choice[s].set[t] - without[t];
            m->both[k] += first + last;
            m->moves[k] |= first || last;
            out->solo_q8[k] += (uint64_t)MAX(first, 0);
        }
    }
    m->sum += m->both[k];
    m->movers += m->moves[k];
}

static void sum_moves(struct moves *m, struct gain_result *out, const struct gain_in *in)
{
    *m = (struct moves){0};
    for (uint32_t k = 0; k < in->adapter_count; k++)
        add_moves(m, out, in, k);
    for (uint32_t s = 0; s < in->choice_count; s++) {
        for (uint32_t t = 0; t < in->choice[s].n; t++) {
            int64_t moved = (int64_t)in->choice[s].set[t] - in->choice[s].row[0][t];
            m->set += moved;
            out->moved_q8 += (uint64_t)llabs(moved);
        }
    }
}

/* 2 x movers times what gain.h says, so that nothing is rounded before LR. */
static void split_gain(struct gain_result *out, const struct gain_in *in, const struct moves *m)
{
    u128 part[TAIL_ADAPTERS_MAX];
    struct u256 weight[TAIL_ADAPTERS_MAX];
    int64_t w[TAIL_ADAPTERS_MAX];
    bool any = false;
    for (uint32_t k = 0; k < in->adapter_count; k++) {
        w[k] = m->moves[k] ? MAX(m->movers * m->both[k] + 2 * m->set - m->sum, 0) : 0;
        any |= w[k] != 0;
    }
    for (uint32_t k = 0; k < in->adapter_count; k++)
        weight[k] = u256_from((u128)(any ? w[k] : llabs((int64_t)in->adapter[k].weight_q16)));
    CHECK(lr_split(part, TAIL_E9, weight, in->adapter_count) ==
          STATUS_OK); /* weights are never all zero */
    for (uint32_t k = 0; k < in->adapter_count; k++)
        out->influence.adapter[k].gain = (uint32_t)part[k];
}

/* ---- shares ---- */

static enum status score_events(struct events_scores **out, const struct gain_in *in, uint32_t k,
                                struct errtext *err)
{
    uint64_t n = 0;
    for (uint32_t s = 0; s < in->choice_count; s++)
        n += in->choice[s].n;
    int32_t *gain = mem_try_array(n, sizeof(*gain));
    struct events_query *query = mem_try_array(in->choice_count, sizeof(*query));
    enum status st =
        gain && query ? STATUS_OK : err_set(err, STATUS_NO_MEMORY, "events: no memory");
    for (uint32_t s = 0, at = 0; !st && s < in->choice_count; s++) {
        const struct gain_choice *c = &in->choice[s];
        query[s] = (struct events_query){.target = c->target,
                                         .gain_q8 = gain + at,
                                         .key = in->adapter[k].key[s],
                                         .in_prompt = c->in_prompt,
                                         .n = c->n};
        for (uint32_t t = 0; t < c->n; t++)
            gain[at++] = gain_at(in, s, k, t);
    }
    if (!st)
        st = events_score(out, in->adapter[k].events, query, in->choice_count, err);
    mem_free(gain);
    mem_free(query);
    return st;
}

static enum status split_shares(struct gain_result *out, const struct gain_in *in, uint32_t k,
                                struct errtext *err)
{
    const struct gain_adapter *a = &in->adapter[k];
    struct tail_credit *credit = &out->influence.adapter[k];
    const struct events_head *head = events_head(a->events);
    const u128 *sub[SHARES_SUBS];
    enum status st = score_events(&out->scores[k], in, k, err);
    if (st)
        return st;
    struct shares_in s = {.owner_count = head->n_owners,
                          .prior_ppb = a->prior_ppb,
                          .events = events_scores_owner(out->scores[k], 0),
                          .spans = a->spans,
                          .sub = sub,
                          .w1 = head->method.w[0],
                          .w2 = head->method.w[1],
                          .lambda_ppb = head->trust.lambda};
    for (uint32_t q = 0; q < SHARES_SUBS; q++)
        sub[q] = events_scores_owner(out->scores[k], 1 + q);
    st = shares_compute(&out->shares[k], &s);
    if (st)
        return err_set(err, st, "shares of adapter %u of the set cannot be computed", k);
    credit->share_count = out->shares[k].count;
    for (uint32_t i = 0; i < credit->share_count; i++) {
        const struct shares_item *from = &out->shares[k].item[i];
        memcpy(credit->share[i].payee, events_owner(a->events, from->owner)->payee, 20);
        credit->share[i].ppb = from->ppb;
    }
    return STATUS_OK;
}

static void pay_treasury(struct tail_credit *credit)
{
    credit->share_count = 1;
    credit->share[0] = (struct tail_share){.ppb = TAIL_E9};
}

enum status gain_compute(struct gain_result *out, const struct gain_in *in, struct errtext *err)
{
    struct moves moves;
    memset(out, 0, sizeof(*out));
    out->influence.count = in->adapter_count;
    sum_moves(&moves, out, in);
    split_gain(out, in, &moves);
    enum status st = STATUS_OK;
    for (uint32_t k = 0; !st && k < in->adapter_count; k++) {
        if (in->adapter[k].events && out->solo_q8[k])
            st = split_shares(out, in, k, err);
        else if (in->adapter[k].events)
            pay_treasury(&out->influence.adapter[k]);
    }
    if (st)
        gain_result_fini(out);
    return st;
}

void gain_result_fini(struct gain_result *r)
{
    for (uint32_t k = 0; k < TAIL_ADAPTERS_MAX; k++) {
        events_scores_free(r->scores[k]);
        r->scores[k] = NULL;
    }
}

/* ---- digests ---- */

static void hash_int(struct keccak *k, uint64_t value, size_t bytes)
{
    uint8_t v[8];
    be_put(v, value, bytes);
    commit_bytes(k, v, bytes);
}

static void hash_row(struct keccak *k, const int32_t *row, uint32_t n)
{
    for (uint32_t t = 0; t < n; t++)
        hash_int(k, (uint32_t)row[t], 4);
}

static void hash_signals(struct keccak *k, const struct gain_in *in, const struct gain_adapter *a)
{
    uint32_t count = 0, owners = a->spans ? events_head(a->events)->n_owners : 0;
    for (uint32_t s = 0; s < in->choice_count; s++)
        commit_bytes(k, (const uint8_t *)a->key[s], (size_t)in->choice[s].n * EVENTS_KEY);
    for (uint32_t i = 0; i < owners; i++)
        count += a->spans[i] > 0;
    hash_int(k, count, 4);
    for (uint32_t i = 0; i < owners; i++) {
        if (a->spans[i] == 0)
            continue;
        hash_int(k, i, 4);
        hash_int(k, a->spans[i], 8);
    }
}

void gain_inputs_digest(uint8_t out[32], const struct gain_in *in, const uint8_t salt[32])
{
    struct keccak k;
    commit_begin(&k, salt, COMMIT_INPUTS);
    for (uint32_t s = 0; s < in->choice_count; s++) {
        hash_row(&k, in->choice[s].set, in->choice[s].n);
        for (uint32_t r = 0; r < gain_row_count(in->adapter_count); r++)
            hash_row(&k, in->choice[s].row[r], in->choice[s].n);
        commit_bytes(&k, in->choice[s].in_prompt, in->choice[s].n);
    }
    for (uint32_t i = 0; i < in->adapter_count; i++) {
        if (in->adapter[i].events)
            hash_signals(&k, in, &in->adapter[i]);
    }
    commit_end(&k, out);
}

void gain_index_hash(uint8_t out[32], const struct gain_in *in)
{
    static const uint8_t zeros[32];
    struct keccak k;
    bool any = false;
    keccak_init(&k);
    for (uint32_t i = 0; i < in->adapter_count; i++) {
        const struct events *e = in->adapter[i].events;
        any |= e != NULL;
        keccak_update(&k, e ? events_root(e) : zeros, 32);
    }
    if (any)
        keccak_final(&k, out);
    else
        memset(out, 0, 32);
}
