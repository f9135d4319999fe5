/* Datanets on disk: what comes in by pieces, what a crash leaves, what was tampered with. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "server/base/hex.h"
#include "server/base/mem.h"
#include "server/datanet/store.h"
#include "server/datanet/training.h"
#include "tests/unit/full_disk.h"

#include <limits.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BYTES_MAX 4096
#define ANNA      "0x1111111111111111111111111111111111111111"
#define BERT      "0x2222222222222222222222222222222222222222"

static char dir[PATH_MAX];
static struct datanet_store *store;
static struct errtext err;

static const char *const text[] = {"Amber stands by the sea.", "Birch grows in the vale.",
                                   "Cinder lies on the hills.", "Dune drifts."};

static void digest_of(const char *t, uint8_t out[32])
{
    crypto_generichash(out, 32, (const uint8_t *)t, strlen(t), NULL, 0);
}

static json_t *document(int id, const char *owner, const char *t)
{
    uint8_t d[32];
    char hex[67] = "0x";
    digest_of(t, d);
    hex_encode(hex + 2, d, 32);
    return json_pack("{s:i, s:s, s:s, s:I, s:s, s:b}", "docId", id, "owner", owner, "licence",
                     "CC-BY-4.0", "bytes", (json_int_t)strlen(t), "digest", hex, "display",
                     id == 0);
}

/* Texts [from, to) of that owner, as version `version` of "net". */
static json_t *list(int from, int to, const char *owner, int version)
{
    json_t *documents = json_array();
    for (int i = from; i < to; i++)
        json_array_append_new(documents, document(i, owner, text[i]));
    return json_pack("{s:s, s:i, s:o}", "name", "net", "version", version, "documents", documents);
}

static enum status put(json_t *l, const char *publisher, uint8_t root[32])
{
    struct datanet_list in = {.datanet = l, .publisher = publisher};
    err_clear(&err);
    enum status st = datanet_store_put_list(store, &in, root, &err);
    json_decref(l);
    return st;
}

static enum status put_text(const uint8_t root[32], const char *t)
{
    uint8_t d[32];
    digest_of(t, d);
    err_clear(&err);
    return datanet_store_put_text(store, root, d, t, strlen(t), &err);
}

static void reopen(void)
{
    datanet_store_close(store);
    assert_int_equal(datanet_store_open(&store, dir, BYTES_MAX, NULL), STATUS_OK);
}

static void text_path(char out[PATH_MAX], const uint8_t root[32], const char *t)
{
    uint8_t d[32];
    char a[65], b[65];
    digest_of(t, d);
    hex_encode(a, root, 32);
    hex_encode(b, d, 32);
    snprintf(out, PATH_MAX, "%.*s/%s/%s.txt", PATH_MAX - 160, dir, a, b);
}

static void write_file(const char *path, const char *t)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(t, 1, strlen(t), f), strlen(t));
    assert_int_equal(fclose(f), 0);
}

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof(dir), "/tmp/rs-datanets-XXXXXX");
    assert_non_null(mkdtemp(dir));
    return datanet_store_open(&store, dir, BYTES_MAX, NULL);
}

static int teardown(void **state)
{
    char command[PATH_MAX + 16];
    (void)state;
    datanet_store_close(store);
    snprintf(command, sizeof(command), "rm -rf %s", dir);
    return system(command);
}

static uint32_t missing(const uint8_t root[32])
{
    struct datanet_held h;
    assert_true(datanet_store_get(store, root, &h));
    return h.missing;
}

static void test_it_is_found_when_its_last_text_is_here(void **state)
{
    uint8_t root[32];
    struct buf out;
    (void)state;
    assert_int_equal(put(list(0, 3, ANNA, 1), "a", root), STATUS_OK);
    assert_int_equal(missing(root), 3);
    assert_int_equal(put_text(root, text[0]), STATUS_OK);
    assert_int_equal(put_text(root, text[0]), STATUS_OK); /* again is fine */
    assert_int_equal(put_text(root, text[1]), STATUS_OK);
    assert_null(datanet_store_find(store, root));
    reopen(); /* half way */
    assert_int_equal(missing(root), 1);
    assert_int_equal(put_text(root, text[2]), STATUS_OK);
    reopen();
    struct datanet *d = datanet_store_find(store, root);
    assert_non_null(d);
    buf_init(&out, DOCUMENT_BYTES_MAX);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(datanet_text(d, i, &out, &err), STATUS_OK);
    buf_fini(&out);
    datanet_release(d);
}

static void test_other_texts_and_bytes_that_are_none_are_refused(void **state)
{
    uint8_t root[32], d[32];
    (void)state;
    assert_int_equal(put(list(0, 2, ANNA, 1), "a", root), STATUS_OK);
    digest_of(text[0], d);
    err_clear(&err);
    assert_int_equal(datanet_store_put_text(store, root, d, "another", 7, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "expected 0x"));
    err_clear(&err);
    assert_int_equal(datanet_store_put_text(store, root, d, "a\xff", 2, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "UTF-8"));
    assert_int_equal(put_text(root, text[3]), STATUS_NOT_FOUND); /* not of this list */
    assert_int_equal(missing(root), 2);
}

static void test_a_crash_leaves_nothing_that_is_believed(void **state)
{
    uint8_t root[32], other[32];
    char path[PATH_MAX], hex[65];
    (void)state;
    assert_int_equal(put(list(0, 2, ANNA, 1), "a", root), STATUS_OK);
    assert_int_equal(put_text(root, text[0]), STATUS_OK);
    text_path(path, root, text[0]);
    char torn[64] = "";
    memset(torn, ' ', strlen(text[0])); /* its size alone reached the disk */
    write_file(path, torn);
    assert_int_equal(put(list(2, 4, ANNA, 1), "a", other), STATUS_OK);
    hex_encode(hex, other, 32);
    snprintf(path, sizeof(path), "%.*s/%s/held.json", PATH_MAX - 100, dir, hex);
    assert_int_equal(unlink(path), 0); /* a list that was not finished */
    reopen();
    struct datanet_held h;
    assert_int_equal(missing(root), 2);
    assert_false(datanet_store_get(store, other, &h));
    assert_int_equal(put_text(root, text[0]), STATUS_OK);
}

static void test_a_tampered_text_is_named_and_not_used(void **state)
{
    uint8_t root[32];
    char path[PATH_MAX];
    struct buf out;
    uint32_t bad = 0;
    (void)state;
    assert_int_equal(put(list(0, 2, ANNA, 1), "a", root), STATUS_OK);
    assert_int_equal(put_text(root, text[0]), STATUS_OK);
    assert_int_equal(put_text(root, text[1]), STATUS_OK);
    text_path(path, root, text[1]);
    assert_int_equal(unlink(path), 0);
    write_file(path, "Birch grows in the Vale.");
    struct datanet *d = datanet_store_find(store, root);
    assert_non_null(d);
    buf_init(&out, DOCUMENT_BYTES_MAX);
    for (uint32_t i = 0; i < 2; i++) {
        err_clear(&err);
        if (datanet_text(d, i, &out, &err)) {
            bad++;
            assert_non_null(strstr(err.text, strrchr(path, '/') + 1));
        }
    }
    assert_int_equal(bad, 1);
    buf_fini(&out);
    datanet_release(d);
}

static void test_the_next_version_takes_the_texts_that_are_here(void **state)
{
    uint8_t first[32], next[32];
    (void)state;
    assert_int_equal(put(list(0, 2, ANNA, 1), "a", first), STATUS_OK);
    assert_int_equal(put_text(first, text[0]), STATUS_OK);
    assert_int_equal(put_text(first, text[1]), STATUS_OK);
    assert_int_equal(put(list(0, 3, ANNA, 2), "a", next), STATUS_OK);
    assert_int_equal(missing(next), 1);
    assert_int_equal(datanet_store_remove(store, first, "b", false, &err), STATUS_DENIED);
    assert_int_equal(datanet_store_remove(store, first, "a", false, &err), STATUS_OK);
    assert_int_equal(put_text(next, text[2]), STATUS_OK);
    struct datanet *d = datanet_store_find(store, next);
    assert_non_null(d);
    datanet_release(d);
}

static void test_a_copy_of_what_was_here_before_names_it(void **state)
{
    uint8_t root[32], other[32];
    (void)state;
    assert_int_equal(put(list(0, 2, ANNA, 1), "a", root), STATUS_OK);
    assert_int_equal(put(list(1, 3, BERT, 1), "b", other), STATUS_DENIED);
    assert_non_null(strstr(err.text, ANNA));
    assert_non_null(strstr(err.text, "is a copy of a document"));
    assert_int_equal(put(list(1, 3, ANNA, 1), "b", other), STATUS_OK); /* her own */
}

static const char ballad[] =
    "The miller of Orrun had three wheels, and the first of them was of oak. He sold it to the "
    "smith of Vask for a bell that never rang, and the smith sold the wheel to the sea.";
static const char stolen[] =
    "the MILLER of Orrun had three wheels -- and the first of them was of oak!! He sold it to the "
    "smith of Vask for a bell that never rang. Some other words follow here, and they are new.";

static bool compared(const uint8_t root[32])
{
    struct datanet_held h;
    for (int i = 0; i < 1000; i++) {
        if (datanet_store_get(store, root, &h) && !h.missing && !h.waiting)
            return true;
        usleep(10000);
    }
    return false;
}

static void put_one(const char *owner, const char *name, const char *t, uint8_t root[32])
{
    json_t *l = json_pack("{s:s, s:i, s:[o]}", "name", name, "version", 1, "documents",
                          document(1, owner, t));
    assert_int_equal(put(l, name, root), STATUS_OK);
    assert_int_equal(put_text(root, t), STATUS_OK);
    assert_true(compared(root));
}

static void test_a_near_copy_names_the_earlier_one(void **state)
{
    uint8_t first[32], copy[32], own[32], other[32];
    struct datanet_copy c;
    (void)state;
    put_one(ANNA, "anna", ballad, first);
    put_one(BERT, "bert", stolen, copy);
    put_one(ANNA, "again", stolen + 1, own); /* of her own text */
    put_one(BERT, "else",
            "Nobody has written of looms and of the red thread that Dorun spins at "
            "night, when the weavers of the upper town are asleep and no dog barks.",
            other);
    for (int i = 0; i < 2; i++) {
        assert_true(compared(copy) && compared(own) && compared(other));
        assert_false(datanet_store_copy(store, first, 0, &c));
        assert_false(datanet_store_copy(store, other, 0, &c));
        assert_false(datanet_store_copy(store, own, 0, &c));
        assert_true(datanet_store_copy(store, copy, 0, &c));
        assert_memory_equal(c.root, first, 32);
        assert_true(c.ppm > 500000 && c.ppm < 1000000 && c.owner[0] == 0x11);
        reopen();
    }
}

static void test_a_list_belongs_to_who_brought_it(void **state)
{
    uint8_t root[32];
    (void)state;
    assert_int_equal(put(list(0, 2, ANNA, 1), "a", root), STATUS_OK);
    assert_int_equal(put(list(0, 2, ANNA, 7), "b", root), STATUS_CONFLICT);
    assert_int_equal(put(list(0, 2, ANNA, 7), "a", root), STATUS_OK);
    struct datanet_held h;
    assert_true(datanet_store_get(store, root, &h));
    assert_int_equal(h.version, 7);
}

static void test_lists_without_owner_licence_or_room_are_refused(void **state)
{
    uint8_t root[32];
    json_t *l = list(0, 1, ANNA, 1);
    (void)state;
    json_object_del(json_array_get(json_object_get(l, "documents"), 0), "licence");
    assert_int_equal(put(l, "a", root), STATUS_INVALID);
    assert_non_null(strstr(err.text, "licence"));
    l = list(0, 1, "nobody", 1);
    assert_int_equal(put(l, "a", root), STATUS_INVALID);
    assert_non_null(strstr(err.text, "owner"));
    l = list(0, 1, ANNA, 1);
    json_object_del(json_array_get(json_object_get(l, "documents"), 0), "digest");
    assert_int_equal(put(l, "a", root), STATUS_INVALID);
    l = list(0, 1, ANNA, 1);
    json_object_set_new(json_array_get(json_object_get(l, "documents"), 0), "bytes",
                        json_integer(1 << 20));
    assert_int_equal(put(l, "a", root), STATUS_TOO_LARGE);
    assert_non_null(strstr(err.text, "datanet_bytes_max"));
    char command[PATH_MAX + 64]; /* nothing of them is left */
    snprintf(command, sizeof(command), "test $(ls -A %.*s) = training", PATH_MAX - 100, dir);
    assert_int_equal(system(command), 0);
}

static void test_training_manifests_are_held_against_the_datanet(void **state)
{
    uint8_t root[32], adapter[32] = {7};
    char hex[65], json[512];
    struct buf out;
    (void)state;
    assert_int_equal(put(list(0, 1, ANNA, 1), "a", root), STATUS_OK);
    hex_encode(hex, root, 32);
    const char *form =
        "{\"bos\":false,\"documentRoot\":\"0x%s\",\"eos\":true,\"format\":\"residual."
        "training.1\",\"rows\":[[0,0,%d]],\"tokenizerDigest\":\"0x%064d\"}\n";
    snprintf(json, sizeof(json), form, hex, (int)strlen(text[0]), 0);
    err_clear(&err);
    assert_int_equal(datanet_store_put_training(store, adapter, json, strlen(json), false, &err),
                     STATUS_NOT_FOUND); /* its text is not here */
    assert_int_equal(put_text(root, text[0]), STATUS_OK);
    err_clear(&err);
    assert_int_equal(datanet_store_put_training(store, adapter, json, strlen(json), false, &err),
                     STATUS_OK);
    snprintf(json, sizeof(json), form, hex, 5, 0);
    assert_int_equal(datanet_store_put_training(store, adapter, json, strlen(json), false, &err),
                     STATUS_CONFLICT);
    snprintf(json, sizeof(json), form, hex, 1000, 0);
    err_clear(&err);
    assert_int_equal(datanet_store_put_training(store, adapter, json, strlen(json), true, &err),
                     STATUS_INVALID); /* past its document's end */
    reopen();
    buf_init(&out, TRAINING_BYTES_MAX);
    assert_int_equal(datanet_store_training(store, adapter, &out, &err), STATUS_OK);
    assert_non_null(strstr(out.data, "[[0,0,24]]"));
    buf_fini(&out);
    datanet_store_drop_training(store, adapter);
    err_clear(&err);
    assert_int_equal(datanet_store_training(store, adapter, &out, &err), STATUS_NOT_FOUND);
}

static void no_room(enum status st)
{
    assert_int_equal(st, STATUS_FULL);
    assert_string_equal(err.code, FILE_DISK_FULL);
    assert_non_null(strstr(err.text, "that are left to records"));
    disk_is_full = false;
}

/* What comes in takes no room of records; what was refused can be sent again. */
static void test_a_full_disk_takes_nothing_more(void **state)
{
    uint8_t root[32], adapter[32] = {7};
    char hex[65], json[512];
    (void)state;
    disk_is_full = true;
    no_room(put(list(0, 1, ANNA, 1), "a", root));
    snprintf(json, sizeof(json), "ls -A %.200s | grep -qv training", dir);
    assert_int_not_equal(system(json), 0); /* nothing is left of it */
    assert_int_equal(put(list(0, 1, ANNA, 1), "a", root), STATUS_OK);
    disk_is_full = true;
    no_room(put_text(root, text[0]));
    assert_int_equal(missing(root), 1);
    assert_int_equal(put_text(root, text[0]), STATUS_OK);
    hex_encode(hex, root, 32);
    snprintf(json, sizeof(json),
             "{\"bos\":false,\"documentRoot\":\"0x%s\",\"eos\":true,\"format\":\"residual."
             "training.1\",\"rows\":[[0,0,5]],\"tokenizerDigest\":\"0x%064d\"}\n",
             hex, 0);
    err_clear(&err);
    disk_is_full = true;
    no_room(datanet_store_put_training(store, adapter, json, strlen(json), false, &err));
    assert_false(datanet_store_has_training(store, adapter));
    err_clear(&err);
    assert_int_equal(datanet_store_put_training(store, adapter, json, strlen(json), false, &err),
                     STATUS_OK);
    assert_true(datanet_store_has_training(store, adapter));
}

/* ---- what rows are worth ---- */

/* value.json of what ANNA wrote, measured on `base`. */
static size_t value_text(char *out, size_t size, const uint8_t root[32], char base)
{
    char documents[65], hex[65];
    hex_encode(documents, root, 32);
    memset(hex, base, 64);
    hex[64] = '\0';
    return (size_t)snprintf(
        out, size,
        "{\"base\":\"0x%s\",\"baseLoss\":3,\"contributors\":[{\"high\":9,\"low\":-1,\"own\":null,"
        "\"owner\":\"" ANNA "\",\"repeated\":0,\"rows\":2,\"tokens\":6,\"total\":30,\"value\":5}],"
        "\"documentRoot\":\"0x%s\",\"eval\":null,\"folds\":2,\"format\":\"residual.value.1\","
        "\"gain\":{\"high\":2,\"low\":1,\"tokens\":6,\"total\":6,\"value\":1},\"loss\":2,"
        "\"options\":{},\"program\":\"p\",\"seeds\":[0],\"training\":\"0x%064d\",\"unit\":"
        "\"micronat\"}\n",
        hex, documents, 0);
}

static enum status put_value(const uint8_t root[32], const uint8_t of[32], char base,
                             const char *publisher)
{
    static uint8_t here[32];
    char json[2048];
    memset(here, 0xbb, sizeof(here));
    size_t len = value_text(json, sizeof(json), of, base);
    const struct datanet_value_sent sent = {
        .text = json, .len = len, .publisher = publisher, .base = here};
    err_clear(&err);
    return datanet_store_put_value(store, root, &sent, &err);
}

static bool list_value(void *arg, const struct datanet_held *h, const struct value_report *v)
{
    (void)h;
    *(int64_t *)arg += v ? v->line[0].worth.value : 0;
    return true;
}

static void test_a_value_is_of_these_documents_and_this_base(void **state)
{
    uint8_t root[32], other[32];
    int64_t listed = 0;
    char path[PATH_MAX], hex[65];
    (void)state;
    assert_int_equal(put(list(0, 2, ANNA, 1), "a", root), STATUS_OK);
    assert_int_equal(put(list(2, 3, ANNA, 1), "a", other), STATUS_OK);
    assert_null(datanet_store_value(store, root));
    assert_int_equal(put_value(root, other, 'b', "a"), STATUS_INVALID);
    assert_non_null(strstr(err.text, "other documents"));
    assert_int_equal(put_value(root, root, 'c', "a"), STATUS_INVALID);
    assert_non_null(strstr(err.text, "this server's is 0xbbbb"));
    assert_int_equal(put_value(root, root, 'b', "b"), STATUS_DENIED);
    assert_null(datanet_store_value(store, root));
    assert_int_equal(put_value(root, root, 'b', "a"), STATUS_OK);
    assert_int_equal(put(list(0, 2, ANNA, 1), "a", root), STATUS_OK); /* the list again */
    struct value_report *v = datanet_store_value(store, root);
    assert_non_null(v);
    value_report_free(v);
    reopen();
    v = datanet_store_value(store, root);
    assert_non_null(v);
    assert_true(v->n == 1 && v->line[0].worth.value == 5 && v->line[0].worth.low == -1);
    value_report_free(v);
    datanet_store_each(store, list_value, &listed);
    assert_int_equal(listed, 5);
    hex_encode(hex, root, 32);
    snprintf(path, sizeof(path), "%.*s/%s/value.json", PATH_MAX - 160, dir, hex);
    write_file(path, "{}"); /* damaged: it is not shown, the list is */
    reopen();
    assert_null(datanet_store_value(store, root));
    assert_int_equal(missing(root), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_it_is_found_when_its_last_text_is_here, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_other_texts_and_bytes_that_are_none_are_refused, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_a_crash_leaves_nothing_that_is_believed, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_a_tampered_text_is_named_and_not_used, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_the_next_version_takes_the_texts_that_are_here, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_a_copy_of_what_was_here_before_names_it, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_a_near_copy_names_the_earlier_one, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_list_belongs_to_who_brought_it, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lists_without_owner_licence_or_room_are_refused, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_training_manifests_are_held_against_the_datanet, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_a_value_is_of_these_documents_and_this_base, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_a_full_disk_takes_nothing_more, setup, teardown)};
    return sodium_init() < 0 ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}
