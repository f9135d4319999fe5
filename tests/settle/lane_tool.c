/* Writes a lane's folder as a server leaves it, for tests: lane.key, transport.key, and a spool
 * segment with signed records. Deterministic: the same arguments give the same bytes.
 *
 *   lane_tool keys DIR LANE                      makes the keys, prints the lane's address
 *   lane_tool records DIR LANE CHAIN LEDGER N START   N inferences with their attributions, as
 *                                                frames; the first began at second START
 *
 * Inference i (from 0) uses i % 5: 0 the base, 1 adapter 0, 2 adapter 1, 3 a mix of 0, 1 and 3, 4
 * adapter 3. Its attribution follows three records later, so that some end in another batch. Of
 * every 40 one has lost its inputs and one is never scored. Adapter k is keccak("adapter k"), payee
 * k keccak("payee k")'s first 20 bytes, the base keccak("base"). Per 1 000 tokens the base costs
 * 1 000 000 and 3 000 000, adapter k 7 (k + 1) and 11 (k + 1) more. */
#include "chain_client/canon.h"
#include "chain_client/eth/addr.h"
#include "chain_client/eth/keccak.h"
#include "chain_client/fee.h"
#include "server/base/buf.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/spool/spool.h"

#include <inttypes.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LAG     3
#define WAITING 64

static void name_hash(uint8_t out[32], const char *kind, uint64_t n)
{
    char text[64];
    int len = snprintf(text, sizeof(text), "%s %" PRIu64, kind, n);
    keccak_256(out, text, (size_t)len);
}

struct made {
    uint64_t seq, idx;
    uint8_t digest[32];
    struct tail_set set;
};

struct tool {
    uint32_t lane;
    uint8_t domain[32], transport[32];
    struct secp *secp;
    struct secp_key key;
    struct buf frames;
    uint64_t seq, start_s;
    u128 fees;
};

static void emit(struct tool *t, union record *r, uint8_t digest[32])
{
    struct errtext err = ERRTEXT_INIT;
    uint8_t body[CANON_RECORD_BYTES_MAX + 32];
    size_t len;
    CHECK(canon_sign(r, digest, t->domain, t->secp, &t->key, &err) == 0);
    if (canon_encode(body, &len, r, &err))
        PANIC("%s", err.text);
    crypto_generichash(body + len, 32, body, len, t->transport, 32);
    spool_frame_put(&t->frames, r->prefix.seq, body, len + 32);
}

static void choose_set(struct tail_set *set, struct tail_tariff *prices, uint64_t i)
{
    static const struct {
        uint32_t count;
        uint64_t adapter[3];
        int32_t weight[3];
    } sets[] = {{0, {0}, {0}},
                {1, {0}, {65536}},
                {1, {1}, {65536}},
                {3, {0, 1, 3}, {65536, -32768, 20000}},
                {1, {3}, {65536}}};
    *set = (struct tail_set){.count = sets[i % 5].count};
    *prices = (struct tail_tariff){.price = {{1000000, 3000000}}, .count = 1 + set->count};
    for (uint32_t k = 0; k < set->count; k++) {
        struct tail_adapter a = {.weight = sets[i % 5].weight[k]};
        uint64_t n = 1 + sets[i % 5].adapter[k];
        uint32_t at = k;
        name_hash(a.id, "adapter", n - 1);
        while (at > 0 && memcmp(set->adapter[at - 1].id, a.id, 32) > 0) {
            set->adapter[at] = set->adapter[at - 1];
            prices->price[1 + at] = prices->price[at];
            at--;
        }
        set->adapter[at] = a;
        prices->price[1 + at] = (struct tail_price){1000000 + 7 * n, 3000000 + 11 * n};
    }
}

static void infer(struct tool *t, uint64_t i, struct made *m)
{
    uint8_t set[TAIL_SET_BYTES_MAX], tariff[TAIL_TARIFF_BYTES_MAX], params[TAIL_PARAMS_BYTES];
    size_t set_len, tariff_len;
    struct tail_tariff prices;
    struct tail_params p = {
        .n = 1, .max_tokens = 128, .temperature = 1, .top_p = 1, .repetition_penalty = 1};
    union record r = {.inference = {.prefix = {CANON_SPEC, RECORD_INFERENCE, t->lane, ++t->seq}}};
    struct record_inference *inf = &r.inference;
    *m = (struct made){.seq = t->seq, .idx = i};
    choose_set(&m->set, &prices, i);
    CHECK(tail_set_encode(set, &set_len, &m->set, NULL) == 0);
    CHECK(tail_tariff_encode(tariff, &tariff_len, &prices, NULL) == 0);
    CHECK(tail_params_encode(params, &p, NULL) == 0);
    inf->set = (struct canon_bytes){set, set_len};
    inf->tariff = (struct canon_bytes){tariff, tariff_len};
    inf->params = (struct canon_bytes){params, sizeof(params)};
    name_hash(inf->request_id, "request", (uint64_t)t->lane << 40 | i);
    name_hash(inf->app_commit, "app", i);
    keccak_256(inf->model_id, "base", 4);
    name_hash(inf->engine_id, "engine", 0);
    name_hash(inf->prompt_commit, "prompt", i);
    name_hash(inf->output_commit, "output", i);
    inf->tokens_in = (uint32_t)(20 + i % 300);
    inf->tokens_out = (uint32_t)(1 + i * 7 % 128);
    inf->status = RECORD_STATUS_COMPLETE;
    inf->start_ms = t->start_s * 1000 + i % 1000;
    inf->end_ms = inf->start_ms + 5;
    inf->fee = fee_of(&prices, inf->tokens_in, inf->tokens_out);
    t->fees += inf->fee;
    canon_fill_hashes(&r);
    emit(t, &r, m->digest);
}

static void share(struct tail_credit *c, uint64_t i, const uint8_t adapter[32])
{
    uint8_t plain[32], last[32];
    name_hash(plain, "adapter", 3); /* has no datanet */
    if (memcmp(adapter, plain, 32) == 0)
        return;
    c->share_count = 2 + i % 2;
    for (uint32_t s = 0; s < c->share_count; s++) {
        struct tail_share one = {.ppb = TAIL_E9 / c->share_count};
        uint32_t at = s;
        if (s == 0)
            one.ppb = TAIL_E9 - (c->share_count - 1) * (TAIL_E9 / c->share_count);
        name_hash(last, "payee", (i + s) % 4);
        memcpy(one.payee, last, 20);
        while (at > 0 && memcmp(c->share[at - 1].payee, one.payee, 20) > 0) {
            c->share[at] = c->share[at - 1];
            at--;
        }
        c->share[at] = one;
    }
}

static void score(struct tool *t, const struct made *m)
{
    static struct tail_influence influence;
    static uint8_t tail[TAIL_INFLUENCE_BYTES_MAX];
    size_t len = 0;
    uint8_t digest[32];
    union record r = {.attribution = {.prefix = {CANON_SPEC, RECORD_ATTRIBUTION, t->lane, 0}}};
    struct record_attribution *att = &r.attribution;
    if (m->set.count == 0 || m->idx % 40 == 23) /* nothing to score; never scored */
        return;
    att->prefix.seq = ++t->seq;
    att->inf_seq = m->seq;
    memcpy(att->inf_digest, m->digest, 32);
    keccak_256(att->method_hash, "residual.method.s0-s1-s2.2", 26);
    name_hash(att->inputs_digest, "inputs", m->idx);
    att->outcome = m->idx % 40 == 13 ? RECORD_OUTCOME_INPUTS_LOST : RECORD_OUTCOME_SCORED;
    if (att->outcome == RECORD_OUTCOME_SCORED) {
        memset(&influence, 0, sizeof(influence));
        influence.count = m->set.count;
        for (uint32_t k = 0; k < m->set.count; k++) {
            influence.adapter[k].gain =
                k ? TAIL_E9 / 5 : TAIL_E9 - (m->set.count - 1) * (TAIL_E9 / 5);
            share(&influence.adapter[k], m->idx + k, m->set.adapter[k].id);
        }
        if (tail_influence_encode(tail, &len, &influence, NULL))
            PANIC("influence of %" PRIu64, m->idx);
    }
    att->influence = (struct canon_bytes){tail, len};
    canon_fill_hashes(&r);
    emit(t, &r, digest);
}

static void write_file(const char *dir, const char *name, const void *data, size_t len)
{
    char path[1024];
    struct errtext err = ERRTEXT_INIT;
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    if (file_write_atomic(path, data, len, 0600, &err))
        PANIC("%s", err.text);
}

static void make_keys(struct tool *t, const char *dir)
{
    uint8_t secret[32];
    char hex[65], address[ADDR_TEXT_BYTES], spool[1024];
    struct errtext err = ERRTEXT_INIT;
    snprintf(spool, sizeof(spool), "%s/spool", dir);
    CHECK(file_mkdirs(spool, 0700, &err) == 0);
    name_hash(secret, "lane key", t->lane);
    CHECK(secp_key_init(t->secp, &t->key, secret, &err) == 0);
    hex_encode(hex, secret, 32);
    write_file(dir, "lane.key", hex, 64);
    name_hash(t->transport, "transport key", t->lane);
    hex_encode(hex, t->transport, 32);
    write_file(dir, "transport.key", hex, 64);
    addr_format(address, t->key.address);
    printf("%s\n", address);
}

static void make_records(struct tool *t, const char *dir, uint64_t count)
{
    struct made made[WAITING];
    char fees[40];
    for (uint64_t i = 0; i < count + LAG; i++) {
        if (i >= LAG)
            score(t, &made[(i - LAG) % WAITING]);
        if (i < count)
            infer(t, i, &made[i % WAITING]);
    }
    CHECK(!t->frames.failed);
    write_file(dir, "spool/seg-00000000000000000001.log", t->frames.data, t->frames.len);
    u128_format(fees, t->fees);
    printf("%" PRIu64 " %s\n", t->seq, fees);
}

int main(int argc, char **argv)
{
    struct tool t = {0};
    struct errtext err = ERRTEXT_INIT;
    uint8_t ledger[20];
    CHECK(sodium_init() >= 0 && argc >= 4);
    CHECK(secp_create(&t.secp, &err) == 0);
    t.lane = (uint32_t)strtoul(argv[3], NULL, 10);
    buf_init(&t.frames, 1u << 30);
    make_keys(&t, argv[2]);
    if (strcmp(argv[1], "records") == 0) {
        CHECK(argc == 8 && addr_parse(ledger, argv[5], &err) == 0);
        canon_domain(t.domain, strtoull(argv[4], NULL, 10), ledger);
        t.start_s = strtoull(argv[7], NULL, 10);
        make_records(&t, argv[2], strtoull(argv[6], NULL, 10));
    }
    buf_fini(&t.frames);
    secp_key_fini(&t.key);
    secp_destroy(t.secp);
    return 0;
}
