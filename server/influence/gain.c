/* Gains and shares from rows of Q8 log-probabilities. Every division is LR (chain_client/lr.h), so
 * gains and shares sum to E9 exactly and a replay gives the same integers. */
#include "server/influence/gain.h"
#include "chain_client/commit.h"
#include "chain_client/eth/keccak.h"
#include "chain_client/lr.h"
#include "server/base/check.h"

#include <stdlib.h>
#include <string.h>

uint32_t gain_row_count(const struct job *j)
{
    return j->adapter_count >= 2 ? 1 + j->adapter_count : 1;
}

static const int32_t *solo_row(const struct job *j, const struct gain_seq *seq, uint32_t s,
                               uint32_t k)
{
    return j->adapter_count >= 2 ? seq[s].row[1 + k] : j->seq[s].set_q8;
}

static uint64_t solo_gain(const struct job *j, const struct gain_seq *seq, uint32_t k)
{
    uint64_t sum = 0;
    for (uint32_t s = 0; s < j->seq_count; s++) {
        const int32_t *own = solo_row(j, seq, s, k), *base = seq[s].row[0];
        for (uint32_t t = 0; t < j->seq[s].n_out; t++) {
            int64_t gained = (int64_t)own[t] - base[t];
            sum += gained > 0 ? (uint64_t)gained : 0;
        }
    }
    return sum;
}

static uint64_t total_move(const struct job *j, const struct gain_seq *seq)
{
    uint64_t sum = 0;
    for (uint32_t s = 0; s < j->seq_count; s++) {
        for (uint32_t t = 0; t < j->seq[s].n_out; t++)
            sum += (uint64_t)llabs((int64_t)j->seq[s].set_q8[t] - seq[s].row[0][t]);
    }
    return sum;
}

static void split_gain(struct gain_result *out, const struct job *j)
{
    u128 part[LORA_PARTS_MAX];
    struct u256 weight[LORA_PARTS_MAX];
    bool any = false;
    for (uint32_t k = 0; k < j->adapter_count; k++)
        any |= out->solo_q8[k] != 0;
    for (uint32_t k = 0; k < j->adapter_count; k++)
        weight[k] =
            u256_from(any ? out->solo_q8[k] : (u128)llabs((int64_t)j->adapter[k].weight_q16));
    CHECK(lr_split(part, TAIL_E9, weight, j->adapter_count) ==
          STATUS_OK); /* weights are never all zero */
    for (uint32_t k = 0; k < j->adapter_count; k++)
        out->influence.adapter[k].gain = (uint32_t)part[k];
}

static void split_shares(struct tail_credit *credit, const struct job_adapter *a, bool earned)
{
    static const uint8_t zeros[32];
    u128 part[TERMS_CONTRIB_MAX];
    uint32_t weight[TERMS_CONTRIB_MAX];
    if (memcmp(a->datanet_root, zeros, 32) == 0)
        return;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < a->contributor_count; i++)
        weight[i] = a->contributor[i].document_count;
    if (!earned || a->contributor_count == 0 ||
        lr_split_small(part, TAIL_E9, weight, a->contributor_count)) {
        credit->share_count = 1;
        credit->share[0] = (struct tail_share){.ppb = TAIL_E9}; /* TREASURY */
        return;
    }
    for (uint32_t i = 0; i < a->contributor_count; i++) {
        if (part[i] == 0)
            continue;
        memcpy(credit->share[kept].payee, a->contributor[i].payee, 20);
        credit->share[kept++].ppb = (uint32_t)part[i];
    }
    credit->share_count = kept;
}

void gain_compute(struct gain_result *out, const struct job *j, const struct gain_seq *seq)
{
    memset(out, 0, sizeof(*out));
    out->influence.count = j->adapter_count;
    out->moved_q8 = total_move(j, seq);
    for (uint32_t k = 0; k < j->adapter_count; k++)
        out->solo_q8[k] = solo_gain(j, seq, k);
    split_gain(out, j);
    for (uint32_t k = 0; k < j->adapter_count; k++)
        split_shares(&out->influence.adapter[k], &j->adapter[k], out->solo_q8[k] > 0);
}

static void hash_row(struct keccak *k, const int32_t *row, uint32_t n)
{
    for (uint32_t t = 0; t < n; t++) {
        uint8_t v[4];
        be_put(v, (uint32_t)row[t], 4);
        commit_bytes(k, v, 4);
    }
}

void gain_inputs_digest(uint8_t out[32], const struct job *j, const struct gain_seq *seq)
{
    struct keccak k;
    commit_begin(&k, j->salt, COMMIT_INPUTS);
    for (uint32_t s = 0; s < j->seq_count; s++) {
        hash_row(&k, j->seq[s].set_q8, j->seq[s].n_out);
        for (uint32_t r = 0; r < gain_row_count(j); r++)
            hash_row(&k, seq[s].row[r], j->seq[s].n_out);
    }
    commit_end(&k, out);
}

void gain_index_hash(uint8_t out[32], const struct job *j)
{
    static const uint8_t zeros[32];
    struct keccak k;
    bool any = false;
    keccak_init(&k);
    for (uint32_t i = 0; i < j->adapter_count; i++) {
        any |= memcmp(j->adapter[i].datanet_root, zeros, 32) != 0;
        keccak_update(&k, j->adapter[i].datanet_root, 32);
    }
    if (any)
        keccak_final(&k, out);
    else
        memset(out, 0, 32);
}
