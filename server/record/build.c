/* Tails first, then their hashes, then the signature: what canon.h encodes is filled here from a
 * request, and nowhere else. */
#include "server/record/build.h"
#include "chain_client/commit.h"
#include "chain_client/fee.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void build_token_counts(const struct request *r, uint64_t *tokens_in, uint64_t *tokens_out)
{
    *tokens_in = *tokens_out = 0;
    for (uint32_t i = 0; i < r->prompt_count; i++)
        *tokens_in += r->prompt[i].n_ids;
    for (uint32_t i = 0; i < r->seq_count; i++)
        *tokens_out += atomic_load_explicit(&r->seq[i].n_out, memory_order_acquire);
}

uint8_t build_record_status(const struct request *r)
{
    uint64_t in, out;
    bool cancelled = false, failed = false;
    build_token_counts(r, &in, &out);
    for (uint32_t i = 0; i < r->seq_count; i++) {
        uint32_t finish = atomic_load_explicit(&r->seq[i].finish, memory_order_acquire);
        cancelled |= finish == FINISH_CANCELLED;
        failed |= finish == FINISH_ERROR || finish == FINISH_NONE;
    }
    if ((cancelled || failed) && out == 0)
        return 0;
    return failed      ? RECORD_STATUS_FAILED
           : cancelled ? RECORD_STATUS_CLIENT_LEFT
                       : RECORD_STATUS_COMPLETE;
}

void build_tariff(struct tail_tariff *out, const struct request *r)
{
    out->count = 1 + r->comp.n;
    out->price[0] = (struct tail_price){.in = r->base_tariff.in, .out = r->base_tariff.out};
    for (uint32_t i = 0; i < r->comp.n; i++) {
        struct tariff t = terms_tariff(r->terms[i]);
        out->price[1 + i] = (struct tail_price){.in = t.in, .out = t.out};
    }
}

bool build_is_priced(const struct request *r)
{
    struct tail_tariff t;
    u128 sum = 0;
    build_tariff(&t, r);
    for (uint32_t i = 0; i < t.count; i++)
        sum += t.price[i].in + t.price[i].out;
    return sum > 0;
}

static void stop_hash(uint8_t out[32], const struct request_params *p)
{
    const char *text[REQUEST_STOPS_MAX];
    size_t text_len[REQUEST_STOPS_MAX];
    uint32_t token[REQUEST_STOP_IDS_MAX];
    for (uint32_t i = 0; i < p->stop_count; i++) {
        text[i] = p->stop[i].text;
        text_len[i] = p->stop[i].len;
    }
    for (uint32_t i = 0; i < p->stop_id_count; i++)
        token[i] = (uint32_t)p->stop_id[i];
    struct commit_stop stop = {.text = text,
                               .text_len = text_len,
                               .text_count = p->stop_count,
                               .token = token,
                               .token_count = p->stop_id_count};
    commit_stop_hash(out, &stop);
}

static int compare_bias(const void *a, const void *b)
{
    int32_t x = ((const struct sample_bias *)a)->id, y = ((const struct sample_bias *)b)->id;
    return x < y ? -1 : x > y;
}

static void bias_hash(uint8_t out[32], const struct request_params *p)
{
    size_t n = p->bias_count;
    struct sample_bias *sorted = mem_array(n ? n : 1, sizeof(*sorted));
    uint32_t *ids = mem_array(n ? n : 1, sizeof(*ids));
    float *bias = mem_array(n ? n : 1, sizeof(*bias));
    memcpy(sorted, p->bias ? p->bias : sorted, n * sizeof(*sorted));
    qsort(sorted, n, sizeof(*sorted), compare_bias);
    uint32_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        if (kept > 0 && ids[kept - 1] == (uint32_t)sorted[i].id) {
            bias[kept - 1] += sorted[i].bias; /* entries of one id add up, as in sampling */
            continue;
        }
        ids[kept] = (uint32_t)sorted[i].id;
        bias[kept++] = sorted[i].bias;
    }
    commit_bias_hash(out, ids, bias, kept);
    mem_free(bias);
    mem_free(ids);
    mem_free(sorted);
}

static float positive_zero(float v)
{
    return v == 0 ? 0.0f : v;
}

static void fill_params(struct tail_params *out, const struct request *r)
{
    const struct request_params *p = &r->params;
    *out = (struct tail_params){.n = (uint16_t)p->n,
                                .max_tokens = p->max_tokens,
                                .min_tokens = p->min_tokens,
                                .temperature = positive_zero(p->temperature),
                                .top_p = positive_zero(p->top_p),
                                .top_k = p->top_k > 0 ? (uint32_t)p->top_k : 0,
                                .min_p = positive_zero(p->min_p),
                                .presence_penalty = positive_zero(p->presence),
                                .frequency_penalty = positive_zero(p->frequency),
                                .repetition_penalty = positive_zero(p->repetition),
                                .seed = p->seed,
                                .flags = (uint8_t)((p->ignore_eos ? TAIL_PARAMS_IGNORE_EOS : 0) |
                                                   (p->has_seed ? TAIL_PARAMS_SEED_GIVEN : 0))};
    stop_hash(out->stop_hash, p);
    bias_hash(out->bias_hash, p);
    memcpy(out->template_digest, r->template_digest, 32);
}

static void fill_commits(struct record_inference *inf, const struct request *r,
                         const uint8_t salt[32])
{
    struct keccak k;
    commit_app(inf->app_commit, salt, r->payer);
    commit_begin(&k, salt, COMMIT_PROMPT);
    for (uint32_t i = 0; i < r->prompt_count; i++)
        commit_ids(&k, (const uint32_t *)r->prompt[i].ids, r->prompt[i].n_ids);
    commit_end(&k, inf->prompt_commit);
    commit_begin(&k, salt, COMMIT_OUTPUT);
    for (uint32_t i = 0; i < r->seq_count; i++) {
        uint32_t n = atomic_load_explicit(&r->seq[i].n_out, memory_order_acquire);
        commit_choice(&k, (const uint32_t *)r->seq[i].out_id, n);
    }
    commit_end(&k, inf->output_commit);
}

/* Sign, encode, copy what the receipt carries. */
static enum status finish_record(struct built_record *out, const struct build_context *c,
                                 union record *rec, struct errtext *err)
{
    canon_fill_hashes(rec);
    enum status st =
        canon_sign(rec, out->digest, c->lane->domain, c->lane->secp, &c->lane->key, err);
    if (!st)
        st = canon_encode(out->bytes, &out->len, rec, err);
    if (!st)
        memcpy(out->signature, out->bytes + out->len - SECP_SIGNATURE_BYTES, SECP_SIGNATURE_BYTES);
    return st;
}

static enum status
encode_tails(struct record_inference *inf, const struct request *r, uint8_t set[TAIL_SET_BYTES_MAX],
             uint8_t tariff[TAIL_TARIFF_BYTES_MAX],
             uint8_t params[TAIL_PARAMS_BYTES], /* lint: waive parameters - three caller buffers */
             struct errtext *err)
{
    struct tail_set s = {.count = r->comp.n};
    struct tail_tariff t;
    struct tail_params p;
    for (uint32_t i = 0; i < r->comp.n; i++) {
        memcpy(s.adapter[i].id, r->comp.part[i].adapter, 32);
        s.adapter[i].weight = r->comp.part[i].weight_q16;
    }
    build_tariff(&t, r);
    fill_params(&p, r);
    enum status st = tail_set_encode(set, &inf->set.len, &s, err);
    if (!st)
        st = tail_tariff_encode(tariff, &inf->tariff.len, &t, err);
    if (!st)
        st = tail_params_encode(params, &p, err);
    inf->set.data = set;
    inf->tariff.data = tariff;
    inf->params = (struct canon_bytes){.data = params, .len = TAIL_PARAMS_BYTES};
    inf->fee =
        inf->status == RECORD_STATUS_FAILED ? 0 : fee_of(&t, inf->tokens_in, inf->tokens_out);
    return st;
}

enum status build_inference(struct built_record *out, const struct build_context *c,
                            const struct request *r, uint64_t seq, const uint8_t salt[32],
                            struct errtext *err)
{
    uint8_t set[TAIL_SET_BYTES_MAX], tariff[TAIL_TARIFF_BYTES_MAX], params[TAIL_PARAMS_BYTES];
    union record rec;
    memset(&rec, 0, sizeof(rec));
    struct record_inference *inf = &rec.inference;
    uint64_t tokens_in, tokens_out;
    build_token_counts(r, &tokens_in, &tokens_out);
    inf->prefix = (struct record_prefix){CANON_SPEC, RECORD_INFERENCE, c->lane->id, seq};
    memcpy(inf->request_id, r->id, 32);
    memcpy(inf->model_id, c->model->id, 32);
    memcpy(inf->engine_id, c->engine_id, 32);
    inf->tokens_in = (uint32_t)MIN(tokens_in, UINT32_MAX);
    inf->tokens_out = (uint32_t)MIN(tokens_out, UINT32_MAX);
    inf->start_ms = r->arrive_wall_ms;
    inf->end_ms = MAX(r->finish_wall_ms, r->arrive_wall_ms);
    inf->status = build_record_status(r);
    fill_commits(inf, r, salt);
    enum status st = encode_tails(inf, r, set, tariff, params, err);
    if (!st)
        st = finish_record(out, c, &rec, err);
    out->fee = inf->fee;
    return st;
}

enum status build_attribution(struct built_record *out, const struct build_context *c,
                              const struct build_attribution_args *a, struct errtext *err)
{
    uint8_t *influence = mem_alloc(TAIL_INFLUENCE_BYTES_MAX);
    union record rec;
    memset(&rec, 0, sizeof(rec));
    struct record_attribution *att = &rec.attribution;
    att->prefix = (struct record_prefix){CANON_SPEC, RECORD_ATTRIBUTION, c->lane->id, a->seq};
    att->inf_seq = a->job->inf_seq;
    memcpy(att->inf_digest, a->job->inf_digest, 32);
    keccak_256(att->method_hash, GAIN_METHOD, strlen(GAIN_METHOD));
    att->outcome = a->outcome;
    enum status st = STATUS_OK;
    if (a->scored) {
        memcpy(att->inputs_digest, a->inputs_digest, 32);
        memcpy(att->index_hash, a->index_hash, 32);
        att->influence.data = influence;
        st = tail_influence_encode(influence, &att->influence.len, &a->scored->influence, err);
    }
    if (!st)
        st = finish_record(out, c, &rec, err);
    out->fee = 0;
    mem_free(influence);
    return st;
}
