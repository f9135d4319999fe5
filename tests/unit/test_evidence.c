/* The evidence of the newest answers: kept, found, bounded, unreadable without the key. */
#include "server/influence/evidence.h"
#include "tests/unit/influence_fixture.h"

static const uint8_t key[32] = {7};

static char *evidence_dir(const char *name)
{
    static char dir[128];
    snprintf(dir, sizeof(dir), "%s/%s", test_dir, name);
    return dir;
}

static enum status get(struct evidence *e, uint64_t seq, char *text, size_t n)
{
    struct buf out;
    buf_init(&out, 1 << 20);
    enum status st = evidence_get(e, seq, &out, NULL);
    snprintf(text, n, "%s", st ? "" : out.data);
    buf_fini(&out);
    return st;
}

static void test_keep(void **state)
{
    struct evidence *e;
    char text[64];
    assert_int_equal(evidence_open(&e, evidence_dir("keep"), key, 1 << 20, NULL), STATUS_OK);
    assert_int_equal(get(e, 5, text, sizeof(text)), STATUS_NOT_FOUND);
    assert_int_equal(evidence_put(e, 5, "five", 4, NULL), STATUS_OK);
    assert_int_equal(evidence_put(e, 3, "three", 5, NULL), STATUS_OK); /* in any order */
    assert_int_equal(get(e, 5, text, sizeof(text)), STATUS_OK);
    assert_string_equal(text, "five");
    evidence_close(e);
    assert_int_equal(evidence_open(&e, evidence_dir("keep"), key, 1 << 20, NULL), STATUS_OK);
    assert_int_equal(get(e, 3, text, sizeof(text)), STATUS_OK);
    assert_string_equal(text, "three");
    assert_int_equal(evidence_put(e, 7, "seven", 5, NULL), STATUS_OK); /* behind what was there */
    assert_int_equal(get(e, 7, text, sizeof(text)), STATUS_OK);
    assert_int_equal(get(e, 5, text, sizeof(text)), STATUS_OK);
    assert_string_equal(text, "five");
    evidence_close(e);
    (void)state;
}

static void test_bounded(void **state)
{
    struct evidence *e;
    char body[1000], text[64];
    memset(body, 'x', sizeof(body));
    assert_int_equal(evidence_open(&e, evidence_dir("bound"), key, 32 << 10, NULL), STATUS_OK);
    for (uint64_t seq = 1; seq <= 200; seq++) {
        assert_int_equal(evidence_put(e, seq, body, sizeof(body), NULL), STATUS_OK);
        uint64_t bytes, dropped;
        evidence_get_stats(e, &bytes, &dropped);
        assert_true(bytes <= 32 << 10 && dropped == 0);
    }
    assert_int_equal(get(e, 1, text, sizeof(text)), STATUS_NOT_FOUND);
    for (uint64_t seq = 180; seq <= 200; seq++)
        assert_int_equal(get(e, seq, text, sizeof(text)), STATUS_OK);
    assert_int_equal(evidence_put(e, 201, body, sizeof(body), NULL), STATUS_OK);
    char *large = calloc(1, 5000);
    assert_int_equal(evidence_put(e, 202, large, 5000, NULL), STATUS_TOO_LARGE);
    free(large);
    evidence_close(e);
    assert_int_equal(evidence_open(&e, evidence_dir("none"), key, 0, NULL), STATUS_OK);
    assert_int_equal(evidence_put(e, 1, "x", 1, NULL), STATUS_TOO_LARGE); /* off */
    evidence_close(e);
    (void)state;
}

/* Another key reads nothing; a changed byte is noticed; a torn tail is cut and written over. */
static void test_damage(void **state)
{
    static const uint8_t other[32] = {8};
    struct evidence *e;
    char text[64], path[256];
    assert_int_equal(evidence_open(&e, evidence_dir("dam"), key, 1 << 20, NULL), STATUS_OK);
    assert_int_equal(evidence_put(e, 1, "secret words", 12, NULL), STATUS_OK);
    evidence_close(e);
    assert_int_equal(evidence_open(&e, evidence_dir("dam"), other, 1 << 20, NULL), STATUS_OK);
    assert_int_equal(get(e, 1, text, sizeof(text)), STATUS_CORRUPT);
    evidence_close(e);
    snprintf(path, sizeof(path), "%s/evidence-0000000001.bin", evidence_dir("dam"));
    char *data;
    size_t len;
    assert_int_equal(file_read(path, 1 << 20, &data, &len, NULL), STATUS_OK);
    assert_null(memmem(data, len, "secret", 6));
    mem_free(data);
    FILE *f = fopen(path, "ab");
    assert_int_equal(fwrite("torn", 1, 4, f), 4);
    fclose(f);
    assert_int_equal(evidence_open(&e, evidence_dir("dam"), key, 1 << 20, NULL), STATUS_OK);
    assert_int_equal(evidence_put(e, 2, "after", 5, NULL), STATUS_OK);
    evidence_close(e);
    assert_int_equal(evidence_open(&e, evidence_dir("dam"), key, 1 << 20, NULL), STATUS_OK);
    assert_int_equal(get(e, 2, text, sizeof(text)), STATUS_OK);
    assert_string_equal(text, "after");
    evidence_close(e);
    (void)state;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keep),
        cmocka_unit_test(test_bounded),
        cmocka_unit_test(test_damage),
    };
    return cmocka_run_group_tests(tests, make_dir, drop_dir);
}
