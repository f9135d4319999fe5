/* The archive's texts have one form each: what is read back equals what was written, and a file
 * that differs in any byte is refused or says something else that a hash then catches. */
#include "chain_client/eth/keccak.h"
#include "chain_client/settle/archive.h"
#include "server/base/file.h"
#include "server/base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char dir[64];

static int setup(void **state)
{
    snprintf(dir, sizeof(dir), "/tmp/rs-archive-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    char cmd[128];
    snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
    return system(cmd);
}

static struct batch_lane lanes[2] = {{1, 1, 3}, {7, 5, 5}};

static struct archive_batch sample(void)
{
    struct archive_batch b = {.place = {.chain_id = 31337},
                              .header = {.seq = 2,
                                         .spec = 1,
                                         .leaf_count = 4,
                                         .inferences = 2,
                                         .fee_sum = (u128)1 << 70,
                                         .cum_fee = ((u128)1 << 70) + 9,
                                         .closed_at = 1700000000},
                              .lane = lanes,
                              .lane_count = 2};
    memset(b.place.ledger, 0xab, 20);
    memset(b.header.prev_hash, 1, 32);
    memset(b.header.log_root, 2, 32);
    return b;
}

static void put_files(struct archive_batch *b, const struct archive_file *extra, bool replace,
                      enum status expected)
{
    struct buf header, manifest, records;
    char name[ARCHIVE_NAME_BYTES];
    buf_init(&header, 1u << 16);
    buf_init(&manifest, 1u << 16);
    buf_init(&records, 1u << 16);
    archive_put_record(&records, "first", 5);
    archive_put_record(&records, "", 0);
    if (extra)
        archive_put_record(&records, extra->data, extra->len);
    b->records = (struct canon_bytes){(uint8_t *)records.data, records.len};
    archive_put_batch_manifest(&manifest, b, extra ? 3 : 2, &b->records);
    keccak_256(b->header.manifest, manifest.data, manifest.len);
    assert_int_equal(archive_batch_seal(b, NULL), STATUS_OK);
    archive_put_header(&header, b);
    struct archive_file file[] = {{"header.json", header.data, header.len},
                                  {"manifest.json", manifest.data, manifest.len},
                                  {"records.bin", records.data, records.len}};
    archive_batch_name(name, b->header.seq);
    struct archive_folder f = {dir, name, file, 3, replace};
    assert_int_equal(archive_publish(&f, NULL), expected);
    buf_fini(&header);
    buf_fini(&manifest);
    buf_fini(&records);
    b->records = (struct canon_bytes){NULL, 0};
}

static void test_batch_comes_back(void **state)
{
    struct archive_batch b = sample(), got;
    struct canon_bytes body;
    size_t offset = 0;
    put_files(&b, NULL, false, STATUS_OK);
    assert_int_equal(archive_batch_read(&got, dir, 2, NULL), STATUS_OK);
    assert_memory_equal(got.hash, b.hash, 32);
    assert_true(got.header.cum_fee == b.header.cum_fee && got.lane_count == 2);
    assert_int_equal(archive_batch_records(&got, dir, NULL), STATUS_OK);
    assert_int_equal(archive_next_record(&got.records, &offset, &body, NULL), STATUS_OK);
    assert_int_equal(body.len, 5);
    assert_memory_equal(body.data, "first", 5);
    assert_int_equal(archive_next_record(&got.records, &offset, &body, NULL), STATUS_OK);
    assert_int_equal(body.len, 0);
    assert_int_equal(archive_next_record(&got.records, &offset, &body, NULL), STATUS_NOT_FOUND);
    archive_batch_fini(&got);
    struct errtext err = ERRTEXT_INIT;
    assert_int_equal(archive_batch_read(&got, dir, 3, &err), STATUS_NOT_FOUND);
}

static void test_publish_again(void **state)
{
    struct archive_batch b = sample();
    struct archive_file more = {"", "more", 4};
    put_files(&b, NULL, false, STATUS_OK);
    put_files(&b, NULL, false, STATUS_OK);
    put_files(&b, &more, false, STATUS_CONFLICT); /* what was published stays */
    put_files(&b, NULL, false, STATUS_OK);
    put_files(&b, &more, true, STATUS_OK);
    put_files(&b, NULL, false, STATUS_CONFLICT);
}

/* Flip one bit in every byte of a file of batch 2. */
static void flip_all(const char *file, enum status (*read)(void))
{
    char path[128], *data;
    size_t len;
    snprintf(path, sizeof(path), "%s/batch-00000002/%s", dir, file);
    assert_int_equal(file_read(path, 1u << 20, &data, &len, NULL), STATUS_OK);
    for (size_t i = 0; i < len; i++) {
        data[i] ^= (char)(1 << (i % 8));
        assert_int_equal(file_write_atomic(path, data, len, 0644, NULL), STATUS_OK);
        if (read() != STATUS_CORRUPT)
            fail_msg("%s: byte %zu changed and was not noticed", file, i);
        data[i] ^= (char)(1 << (i % 8));
    }
    assert_int_equal(file_write_atomic(path, data, len - 1, 0644, NULL), STATUS_OK);
    assert_int_equal(read(), STATUS_CORRUPT);
    assert_int_equal(file_write_atomic(path, data, len, 0644, NULL), STATUS_OK);
    assert_int_equal(read(), STATUS_OK);
    mem_free(data);
}

static enum status read_all(void)
{
    struct archive_batch got;
    struct errtext err = ERRTEXT_INIT;
    enum status st = archive_batch_read(&got, dir, 2, &err);
    if (!st)
        st = archive_batch_records(&got, dir, &err);
    if (st)
        assert_true(err.text[0] != '\0');
    archive_batch_fini(&got);
    return st;
}

static void test_every_byte_counts(void **state)
{
    struct archive_batch b = sample();
    put_files(&b, NULL, false, STATUS_OK);
    flip_all("header.json", read_all);
    flip_all("manifest.json", read_all);
    flip_all("records.bin", read_all);
}

static void test_record_lengths(void **state)
{
    static const uint8_t torn[] = {0, 0, 0, 9, 1, 2}, shorter[] = {0, 0, 0};
    struct canon_bytes body, file = {torn, sizeof(torn)};
    size_t offset = 0;
    assert_int_equal(archive_next_record(&file, &offset, &body, NULL), STATUS_CORRUPT);
    file = (struct canon_bytes){shorter, sizeof(shorter)};
    assert_int_equal(archive_next_record(&file, &offset, &body, NULL), STATUS_CORRUPT);
    assert_int_equal(offset, 0);
}

static void test_accounts(void **state)
{
    struct reward_account list[2] = {{.cumulative = 5}, {.cumulative = (u128)-1}};
    struct archive_accounts got;
    struct buf text;
    memset(list[0].payee, 0x11, 20);
    memset(list[1].payee, 0x22, 20);
    buf_init(&text, 1u << 16);
    archive_put_accounts(&text, 3, list, 2);
    struct archive_file file = {"accounts.json", text.data, text.len};
    struct archive_folder f = {dir, "epoch-00000003", &file, 1, false};
    assert_int_equal(archive_publish(&f, NULL), STATUS_OK);
    assert_int_equal(archive_accounts_read(&got, dir, 3, NULL), STATUS_OK);
    assert_int_equal(got.count, 2);
    assert_true(got.account[1].cumulative == list[1].cumulative);
    assert_memory_equal(got.account[1].payee, list[1].payee, 20);
    archive_accounts_fini(&got);
    text.data[2] = ' '; /* {" accounts": well-formed, not canonical */
    f.may_replace = true;
    assert_int_equal(archive_publish(&f, NULL), STATUS_OK);
    assert_int_equal(archive_accounts_read(&got, dir, 3, NULL), STATUS_CORRUPT);
    buf_fini(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_batch_comes_back, setup, teardown),
        cmocka_unit_test_setup_teardown(test_publish_again, setup, teardown),
        cmocka_unit_test_setup_teardown(test_every_byte_counts, setup, teardown),
        cmocka_unit_test(test_record_lengths),
        cmocka_unit_test_setup_teardown(test_accounts, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
