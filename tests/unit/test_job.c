/* Jobs: one encoding, bounds that hold, hostile bytes refused. */
#include "tests/unit/influence_fixture.h"

#include <math.h>

static struct job *make_job(uint32_t adapters, uint32_t n, uint32_t n_out)
{
    struct adapter_entry *e[2] = {make_adapter("a", 1, true), make_adapter("b", 2, false)};
    struct request *r = make_request(e, adapters, n, n_out);
    struct job *j = job_from_request(r, true);
    assert_non_null(j);
    j->inf_seq = 42;
    memset(j->inf_digest, 7, 32);
    memset(j->salt, 9, 32);
    catalog_release(e[0]);
    catalog_release(e[1]);
    drop_request(r);
    return j;
}

static void test_q8(void **state)
{
    assert_int_equal(job_q8(0), 0);
    assert_int_equal(job_q8(-1), -256);
    assert_int_equal(job_q8(-1.0f / 512), 0);  /* half to even */
    assert_int_equal(job_q8(-3.0f / 512), -2); /* half to even */
    assert_int_equal(job_q8(2.501f / 256), 3);
    assert_int_equal(job_q8(-INFINITY), INT32_MIN + 1);
    assert_int_equal(job_q8(NAN), INT32_MIN + 1);
    assert_int_equal(job_q8(1e30f), INT32_MAX);
}

static void test_round_trip(void **state)
{
    struct job *j = make_job(2, 3, 4), *back;
    struct buf a, b;
    struct errtext err = ERRTEXT_INIT;
    buf_init(&a, JOB_BYTES_MAX);
    buf_init(&b, JOB_BYTES_MAX);
    job_encode(j, &a);
    if (job_decode(&back, (const uint8_t *)a.data, a.len, &err))
        fail_msg("%s", err.text);
    job_encode(back, &b);
    assert_int_equal(a.len, b.len);
    assert_memory_equal(a.data, b.data, a.len);
    assert_int_equal(back->inf_seq, 42);
    assert_int_equal(back->adapter_count, 2);
    assert_int_equal(back->adapter[0].index, JOB_INDEX_REGISTERED);
    assert_int_equal(back->adapter[0].document_root[31], 0xd1);
    assert_int_equal(back->adapter[1].index, JOB_INDEX_NONE);
    assert_int_equal(back->cache_salt[15], 0x3c);
    assert_int_equal(back->adapter[1].weight_q16, 2 * COMPOSITION_WEIGHT_ONE);
    assert_int_equal(back->seq_count, 3);
    assert_int_equal(back->seq[2].ids[3], 223);
    assert_int_equal(back->seq[2].set_q8[3], -256);
    assert_int_equal(back->prompt[0].ids[4], 104);
    assert_true(a.len <= job_bytes_for(5, 12));
    job_free(back);
    job_free(j);
    buf_fini(&a);
    buf_fini(&b);
}

/* The reservation covers the largest request there can be, the store's own bytes included. */
static void test_bound(void **state)
{
    struct adapter_entry *e[8];
    struct job *j = mem_alloc(sizeof(*j));
    struct buf out;
    for (uint32_t i = 0; i < 8; i++) {
        e[i] = make_adapter("x", (uint8_t)(i + 1), true);
        j->adapter[i].weight_q16 = 1;
        catalog_release(e[i]);
    }
    j->adapter_count = 8;
    j->prompt_count = REQUEST_PROMPTS_MAX;
    j->prompt = mem_array(j->prompt_count, sizeof(*j->prompt));
    j->seq_count = REQUEST_SEQS_MAX;
    j->seq = mem_array(j->seq_count, sizeof(*j->seq));
    for (uint32_t i = 0; i < j->prompt_count; i++) {
        j->prompt[i].n_ids = 3;
        j->prompt[i].ids = mem_array(3, sizeof(int32_t));
    }
    for (uint32_t i = 0; i < j->seq_count; i++) {
        j->seq[i].n_out = 2;
        j->seq[i].ids = mem_array(2, sizeof(int32_t));
        j->seq[i].set_q8 = mem_array(2, sizeof(int32_t));
    }
    buf_init(&out, JOB_BYTES_MAX);
    job_encode(j, &out);
    assert_true(out.len + 52 <= job_bytes_for(3 * REQUEST_PROMPTS_MAX, 2 * REQUEST_SEQS_MAX));
    buf_fini(&out);
    job_free(j);
}

/* Every prefix and every one-byte change either fails or decodes to what encodes to the same. */
static void test_hostile(void **state)
{
    struct job *j = make_job(1, 2, 3), *back;
    struct buf a, again;
    buf_init(&a, JOB_BYTES_MAX);
    buf_init(&again, JOB_BYTES_MAX);
    job_encode(j, &a);
    for (size_t len = 0; len < a.len; len++) {
        uint8_t *cut = mem_alloc(len ? len : 1); /* exact size: a read past it is seen */
        memcpy(cut, a.data, len);
        assert_int_equal(job_decode(&back, cut, len, NULL), STATUS_CORRUPT);
        assert_null(back);
        mem_free(cut);
    }
    for (size_t at = 0; at < a.len; at++) {
        for (int bit = 0; bit < 8; bit++) {
            a.data[at] ^= (char)(1 << bit);
            if (job_decode(&back, (const uint8_t *)a.data, a.len, NULL) == STATUS_OK) {
                buf_clear(&again);
                job_encode(back, &again);
                assert_int_equal(again.len, a.len);
                assert_memory_equal(again.data, a.data, a.len);
                job_free(back);
            }
            a.data[at] ^= (char)(1 << bit);
        }
    }
    buf_putc(&a, 0);
    assert_int_equal(job_decode(&back, (const uint8_t *)a.data, a.len, NULL), STATUS_CORRUPT);
    buf_fini(&a);
    buf_fini(&again);
    job_free(j);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_q8),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_bound),
        cmocka_unit_test(test_hostile),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
