/* Tinker's forward_backward: a body that its SDK wrote, bodies that are none, and the losses of its
 * documentation. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "server/base/check.h"
#include "server/base/hex.h"
#include "server/base/proto.h"
#include "server/train/tinker_batch.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* tinker 0.38.0: two datums of ppo, the first with spans of a row and of a sampled sequence,
 * clip_low_threshold .9, forward only. */
static const char sdk_body[] =
    "0a09733a747261696e3a3010031ab9010a0c0a0a0a0805000000060000000a080a060a040700000012210a0a6164"
    "76616e746167657312130a0c000000000000c03f000080bf1801220103121f0a086c6f6770726f627312130a0c00"
    "0080bf000000c0000000bf180122010312300a0d7461726765745f746f6b656e73121f0a18060000000000000007"
    "00000000000000080000000000000018022201031a0b0a090a05726f772f3118021a0d120b0a057365712d391004"
    "1801220d0a0b0a05726f772f31100118031a600a080a060a040900000012190a0a616476616e7461676573120b0a"
    "0400000040180122010112170a086c6f6770726f6273120b0a04000080bf180122010112200a0d7461726765745f"
    "746f6b656e73120f0a0803000000000000001802220101220370706f2a1d0a12636c69705f6c6f775f7468726573"
    "686f6c6411cdccccccccccec3f30013a1f0a12636c69705f6c6f775f7468726573686f6c64120909cdcccccccccc"
    "ec3f";

static void the_sdks_body_is_read(void **state)
{
    uint8_t body[(sizeof(sdk_body) - 1) / 2];
    struct tinker_batch b;
    struct errtext err = ERRTEXT_INIT;
    (void)state;
    assert_true(hex_decode(body, sizeof(body), sdk_body));
    assert_int_equal(tinker_batch_parse(&b, body, sizeof(body), &err), STATUS_OK);
    assert_string_equal(b.model_id, "s:train:0");
    assert_int_equal(b.seq_id, 3);
    assert_int_equal(b.loss, TINKER_PPO);
    assert_true(b.forward_only && b.clip_low == 0.9 && b.clip_high == TINKER_CLIP_HIGH);
    assert_int_equal(b.n, 2);
    const struct tinker_datum *d = &b.datum[0];
    assert_int_equal(d->n, 3);
    assert_memory_equal(d->ids, ((int32_t[]){5, 6, 7}), 12);
    assert_memory_equal(d->target, ((int32_t[]){6, 7, 8}), 12);
    assert_memory_equal(d->sampled, ((float[]){-1, -2, -.5F}), 12);
    assert_memory_equal(d->advantage, ((float[]){0, 1.5F, -1}), 12);
    assert_int_equal(d->n_span, 2);
    assert_string_equal(d->span[0].sequence_id, "row/1");
    assert_true(!d->span[0].sampled && d->span[0].offset == 0 && d->span[0].length == 2);
    assert_string_equal(d->span[1].sequence_id, "seq-9");
    assert_true(d->span[1].sampled && d->span[1].offset == 4 && d->span[1].length == 1);
    assert_int_equal(b.datum[1].n, 1);
    assert_int_equal(b.datum[1].n_span, 0);
    tinker_batch_fini(&b);
    for (size_t cut = 0; cut < sizeof(body); cut++) {
        err_clear(&err);
        if (tinker_batch_parse(&b, body, cut, &err))
            assert_true(err.text[0]);
        else
            tinker_batch_fini(&b); /* what is left at a border between fields is a message */
    }
}

/* ---- bodies made here ---- */

struct made {
    const char *loss, *input, *config;
    int input_type;
    uint32_t tokens, targets;
    uint64_t target, span; /* span: its length, 0 none */
    bool image, sparse, flat;
};

static void put_tensor(struct buf *b, const char *name, const void *data, size_t len, int type,
                       const struct made *m)
{
    size_t entry = proto_begin(b, 2);
    proto_put_text(b, 1, name);
    size_t tensor = proto_begin(b, 2);
    proto_put_bytes(b, m->sparse ? 2 : 1, data, len);
    proto_put_int(b, 3, (uint64_t)type);
    proto_put_bytes(b, 4, "\2\1", m->flat ? 2 : 1);
    proto_end(b, tensor);
    proto_end(b, entry);
}

static void put_datum(struct buf *b, const struct made *m)
{
    static const float ones[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    int32_t ids[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    uint64_t target[8];
    for (int i = 0; i < 8; i++)
        target[i] = m->target;
    size_t datum = proto_begin(b, 3), chunk = proto_begin(b, 1);
    size_t text = proto_begin(b, m->image ? 2 : 1);
    proto_put_bytes(b, 1, ids, m->tokens * sizeof(ids[0]));
    proto_end(b, text);
    proto_end(b, chunk);
    put_tensor(b, "target_tokens", target, m->targets * sizeof(target[0]), 2, m);
    if (m->input)
        put_tensor(b, m->input, ones, m->tokens * sizeof(ones[0]), m->input_type, m);
    if (m->span) {
        size_t span = proto_begin(b, 3), arm = proto_begin(b, 1);
        proto_put_text(b, 1, "a");
        proto_put_int(b, 3, m->span);
        proto_end(b, arm);
        proto_end(b, span);
    }
    proto_end(b, datum);
}

static enum status parse_made(const struct made *m, struct errtext *err)
{
    struct tinker_batch batch;
    struct buf b;
    buf_init(&b, 1u << 16);
    proto_put_text(&b, 1, "m");
    put_datum(&b, m);
    proto_put_text(&b, 4, m->loss);
    if (m->config) {
        size_t entry = proto_begin(&b, 5);
        proto_put_text(&b, 1, m->config);
        proto_put_double(&b, 2, 2);
        proto_end(&b, entry);
    }
    err_clear(err);
    enum status st = tinker_batch_parse(&batch, b.data, b.len, err);
    if (!st) {
        for (uint32_t i = 0; i < m->tokens; i++)
            assert_true(batch.datum[0].weight[i] == 1 &&
                        (uint64_t)batch.datum[0].target[i] == m->target);
        tinker_batch_fini(&batch);
    }
    buf_fini(&b);
    return st;
}

static void bodies_that_are_none(void **state)
{
    static const struct {
        struct made m;
        enum status st;
        const char *says;
    } row[] = {
        {{.loss = "cross_entropy", .tokens = 3, .targets = 3, .span = 3}, STATUS_OK, ""},
        {{"cross_entropy", "weights", .input_type = 1, .tokens = 3, .targets = 3}, STATUS_OK, ""},
        {{.loss = "dro", .tokens = 3, .targets = 3}, STATUS_UNSUPPORTED, "\"dro\""},
        {{.loss = "cross_entropy", .targets = 3}, STATUS_INVALID, "model_input"},
        {{.loss = "cross_entropy", .tokens = 3, .targets = 2}, STATUS_INVALID, "expected 3 i64"},
        {{.loss = "cross_entropy", .tokens = 3, .targets = 3, .target = 1ull << 32},
         STATUS_INVALID,
         "no token"},
        {{.loss = "cross_entropy", .tokens = 3, .targets = 3, .span = 2}, STATUS_INVALID, "cover"},
        {{.loss = "cross_entropy", .tokens = 3, .targets = 3, .span = 4}, STATUS_INVALID, "span 0"},
        {{.loss = "cross_entropy", .tokens = 3, .targets = 3, .image = true},
         STATUS_UNSUPPORTED,
         "an image"},
        {{.loss = "cross_entropy", .tokens = 3, .targets = 3, .sparse = true},
         STATUS_UNSUPPORTED,
         "sparse"},
        {{.loss = "cross_entropy", .tokens = 3, .targets = 3, .flat = true},
         STATUS_UNSUPPORTED,
         "dimensions"},
        {{"cross_entropy", "advantages", .input_type = 1, .tokens = 3, .targets = 3},
         STATUS_UNSUPPORTED,
         "does not use"},
        {{"cross_entropy", "weights", .input_type = 2, .tokens = 3, .targets = 3},
         STATUS_INVALID,
         "expected 3 f32"},
        {{"ppo", "logprobs", .input_type = 1, .tokens = 3, .targets = 3},
         STATUS_INVALID,
         "advantages"},
        {{"ppo", NULL, "clip_low_threshold", .tokens = 3, .targets = 3},
         STATUS_INVALID,
         "logprobs"},
        {{"cross_entropy", NULL, "clip_low_threshold", .tokens = 3, .targets = 3},
         STATUS_UNSUPPORTED,
         "no such setting"},
    };
    struct errtext err;
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(row); i++) {
        enum status st = parse_made(&row[i].m, &err);
        if (st != row[i].st || !strstr(err.text, row[i].says))
            fail_msg("row %zu: %s: %s", i, status_name(st), err.text);
    }
}

/* ---- the losses ---- */

static double plain(enum tinker_loss_kind kind, float *back)
{
    static const float sampled[] = {-1, -1, -1, -1, -1, 900},
                       logprob[] = {-1, -.5F, -2, -.5F, -2, 0};
    static const float advantage[] = {2, 1, 1, -1, -1, 0}, weights[] = {1, 0, .5F, 2, 1, 0};
    const struct tinker_loss l = {kind, .8, 1.2, 6, weights, sampled, advantage};
    return tinker_loss_of(&l, logprob, back);
}

static void the_losses_are_the_documented_ones(void **state)
{
    const double up = exp(.5), down = exp(-1);
    float back[6];
    (void)state;
    assert_float_equal(plain(TINKER_CROSS_ENTROPY, back), 1 + 1 + 1 + 2, 1e-6);
    assert_memory_equal(back, ((float[]){1, 0, .5F, 2, 1, 0}), sizeof(back));
    assert_float_equal(plain(TINKER_IMPORTANCE_SAMPLING, back), -(2 + up + down - up - down), 1e-6);
    const double want[] = {2, up, down, -up, -down, 0};
    for (int i = 0; i < 6; i++)
        assert_float_equal(back[i], want[i], 1e-6);
    /* min: of a gain the smaller ratio, of a loss the larger */
    assert_float_equal(plain(TINKER_PPO, back), -(2 + 1.2 + down - up - .8), 1e-6);
    const double kept[] = {2, 0, down, -up, 0, 0};
    for (int i = 0; i < 6; i++)
        assert_float_equal(back[i], kept[i], 1e-6);
}

static void what_is_not_finite_has_no_gradient(void **state)
{
    static const float sampled[] = {-1, -1e30F}, logprob[] = {-1, 0}, advantage[] = {1, 1};
    const struct tinker_loss l = {TINKER_IMPORTANCE_SAMPLING, .8, 1.2, 2, NULL, sampled, advantage};
    float back[2] = {5, 5};
    (void)state;
    assert_true(isnan(tinker_loss_of(&l, logprob, back)));
    assert_true(back[0] == 0 && back[1] == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_sdks_body_is_read),
        cmocka_unit_test(bodies_that_are_none),
        cmocka_unit_test(the_losses_are_the_documented_ones),
        cmocka_unit_test(what_is_not_finite_has_no_gradient),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
