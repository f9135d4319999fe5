/* Rows to index arrays and segments. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "server/engine/batch.h"

#define ROWS 32

struct fixture {
    struct batch b;
    int32_t ids[ROWS];
    uint32_t seq[ROWS], pos[ROWS], out_row[ROWS];
    struct batch_out out[ROWS];
    struct lora_seg seg[8];
};

static void fixture_init(struct fixture *f)
{
    f->b = (struct batch){.ids = f->ids,
                          .seq = f->seq,
                          .pos = f->pos,
                          .out_row = f->out_row,
                          .out = f->out,
                          .seg = f->seg,
                          .rows_max = ROWS,
                          .segs_max = 8};
    batch_clear(&f->b);
}

static const int32_t prompt[] = {10, 11, 12, 13}, output[] = {20, 21, 22};
static const struct composition base = {.n = 0};
static const struct composition one = {.n = 1, .part = {{.weight_q16 = 65536}}};
static const struct composition half = {.n = 1, .part = {{.weight_q16 = 32768}}};
static const struct composition two = {.n = 2, .part = {{.weight_q16 = 1}, {.weight_q16 = 2}}};

static struct batch_run run(uint32_t slot, const struct composition *c, const uint32_t *lora_slot,
                            uint32_t first, uint32_t count)
{
    return (struct batch_run){.slot = slot,
                              .comp = c,
                              .lora_slot = lora_slot,
                              .prompt = prompt,
                              .output = output,
                              .n_prompt = 4,
                              .n_known = 6,
                              .first = first,
                              .count = count};
}

static void test_batch_rows_walk_from_prompt_into_output(void **state)
{
    struct fixture f;
    fixture_init(&f);
    struct batch_run r = run(5, &base, NULL, 2, 4);
    assert_int_equal(batch_add(&f.b, &r), 0);
    const int32_t want[] = {12, 13, 20, 21};
    for (uint32_t i = 0; i < 4; i++) {
        assert_int_equal(f.ids[i], want[i]);
        assert_int_equal(f.pos[i], 2 + i);
        assert_int_equal(f.seq[i], 5);
    }
    r = run(3, &base, NULL, 6, 1); /* a token that only the device has */
    assert_int_equal(batch_add(&f.b, &r), 4);
    assert_int_equal(f.ids[4], ~3);
    assert_false(f.b.any_lora);
    batch_verify(&f.b, 100, 100);
}

static void test_batch_segments_join_what_computes_the_same(void **state)
{
    struct fixture f;
    const uint32_t s3[] = {3}, s4[] = {4}, s34[] = {3, 4};
    struct batch_run r[7] = {run(0, &base, NULL, 0, 1), run(1, &base, NULL, 0, 2),
                             run(2, &one, s3, 0, 1),    run(3, &one, s3, 1, 3),
                             run(4, &half, s3, 0, 1),   run(5, &half, s4, 0, 1),
                             run(6, &two, s34, 0, 2)};
    const uint32_t begin[] = {0, 3, 7, 8, 9}, count[] = {3, 4, 1, 1, 2}, parts[] = {0, 1, 1, 1, 2};
    fixture_init(&f);
    for (uint32_t i = 0; i < 7; i++)
        batch_add(&f.b, &r[i]);
    assert_int_equal(f.b.n_seg, 5);
    for (uint32_t i = 0; i < 5; i++) {
        assert_int_equal(f.seg[i].tok_begin, begin[i]);
        assert_int_equal(f.seg[i].tok_count, count[i]);
        assert_int_equal(f.seg[i].part_count, parts[i]);
    }
    assert_int_equal(f.seg[4].part[1].slot, 4);
    assert_int_equal(f.seg[4].part[1].weight_q16, 2);
    assert_true(f.b.any_lora);
    batch_verify(&f.b, 100, 100);
    batch_clear(&f.b);
    assert_false(f.b.any_lora);
    assert_int_equal(f.b.n_tok, 0);
}

static void test_batch_want_names_sequence_and_position(void **state)
{
    struct fixture f;
    fixture_init(&f);
    struct batch_run a = run(2, &base, NULL, 1, 3), b = run(7, &base, NULL, 5, 1);
    batch_add(&f.b, &a);
    batch_add(&f.b, &b);
    batch_want(&f.b, 3);
    batch_want(&f.b, 0);
    assert_int_equal(f.b.n_out, 2);
    assert_int_equal(f.out_row[0], 3);
    assert_int_equal(f.out[0].slot, 7);
    assert_int_equal(f.out[0].pos, 5);
    assert_int_equal(f.out[1].slot, 2);
    assert_int_equal(f.out[1].pos, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batch_rows_walk_from_prompt_into_output),
        cmocka_unit_test(test_batch_segments_join_what_computes_the_same),
        cmocka_unit_test(test_batch_want_names_sequence_and_position),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
