/* A datanet's folder, opened; and the rows of it that an adapter was trained on. */
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <sodium.h>

#include "server/base/check.h"
#include "server/base/hex.h"
#include "server/base/mem.h"
#include "server/datanet/copies.h"

static char folder[] = "/tmp/test_training.XXXXXX";

static void put_file(const char *name, const char *text, size_t len)
{
    char path[128];
    struct errtext err = ERRTEXT_INIT;
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    if (file_write_atomic(path, text, len, 0644, &err))
        fail_msg("%s", err.text);
}

static json_t *entry(uint32_t id, char owner, const char *text)
{
    uint8_t digest[32];
    char hex[65], address[43] = "0x", file[32];
    crypto_generichash(digest, 32, (const uint8_t *)text, strlen(text), NULL, 0);
    hex_encode(hex, digest, 32);
    memset(address + 2, owner, 40);
    snprintf(file, sizeof(file), "%u.txt", id);
    put_file(file, text, strlen(text));
    return json_pack("{s:i, s:s, s:s, s:i, s:s, s:s}", "docId", id, "owner", address, "licence",
                     "MIT", "bytes", (int)strlen(text), "digest", hex, "file", file);
}

static json_t *list_of(void)
{
    return json_pack("{s:i, s:s, s:[o, o, o]}", "version", 3, "name", "test", "documents",
                     entry(7, '1', "One. Two."), entry(3, '2', "Three. Vier fünf."),
                     entry(9, '2', "Six."));
}

static void put_list(const json_t *list)
{
    char *text = json_dumps(list, 0);
    put_file("datanet.json", text, strlen(text));
    free(text);
}

static struct datanet *opened(json_t *list)
{
    struct datanet *d;
    struct errtext err = ERRTEXT_INIT;
    put_list(list);
    json_decref(list);
    if (datanet_open(&d, folder, NULL, &err))
        fail_msg("%s", err.text);
    return d;
}

static void test_open(void **state)
{
    struct datanet *d = opened(list_of());
    const struct datanet_head *h = datanet_head(d);
    struct errtext err = ERRTEXT_INIT;
    struct buf text;
    buf_init(&text, 1 << 20);
    assert_int_equal(h->n, 3);
    assert_int_equal(h->owners, 2);
    assert_int_equal(h->version, 3);
    assert_string_equal(h->name, "test");
    for (uint32_t i = 0; i < h->n; i++) {
        const struct documents_facts *f = datanet_facts(d, i);
        assert_true(i == 0 || memcmp(datanet_document(d, i - 1)->digest,
                                     datanet_document(d, i)->digest, 32) < 0);
        assert_int_equal(documents_find(datanet_documents(d), f->doc_id), i);
        assert_int_equal(f->since, 3);
        assert_int_equal(f->kind, ROWS_TEXT);
        assert_int_equal(datanet_text(d, i, &text, &err), STATUS_OK);
        assert_int_equal(text.len, datanet_document(d, i)->bytes);
        assert_int_equal(documents_owner(datanet_documents(d), i), f->doc_id == 7 ? 0 : 1);
    }
    assert_int_equal(documents_find(datanet_documents(d), 8), UINT32_MAX);
    put_file("9.txt", "Sex.", 4);
    uint32_t nine = documents_find(datanet_documents(d), 9);
    assert_int_equal(datanet_text(d, nine, &text, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "9.txt"));
    buf_fini(&text);
    datanet_release(datanet_ref(d));
    datanet_release(d);
}

/* A copy stands in the list and in nothing that money depends on. */
static void test_a_copy_counts_nowhere(void **state)
{
    json_t *without = list_of(), *with = list_of(), *copy;
    json_array_remove(json_object_get(without, "documents"), 2);
    copy = json_array_get(json_object_get(with, "documents"), 2);
    json_object_set(
        copy, "copyOf",
        json_object_get(json_array_get(json_object_get(with, "documents"), 0), "digest"));
    struct datanet *a = opened(without), *b = opened(with);
    assert_int_equal(datanet_head(b)->n, 2);
    assert_int_equal(datanet_documents(b)->listed, 3);
    assert_int_equal(documents_find(datanet_documents(b), 9), 2); /* behind the others */
    assert_true(datanet_facts(b, 2)->is_copy);
    assert_memory_equal(datanet_head(a)->document_root, datanet_head(b)->document_root, 32);
    assert_memory_equal(datanet_head(a)->owner_root, datanet_head(b)->owner_root, 32);
    datanet_release(a);
    datanet_release(b);
}

static void refused(json_t *list, const char *says)
{
    struct datanet *d;
    struct errtext err = ERRTEXT_INIT;
    put_list(list);
    assert_int_not_equal(datanet_open(&d, folder, NULL, &err), STATUS_OK);
    if (!strstr(err.text, says))
        fail_msg("'%s' does not say '%s'", err.text, says);
    json_decref(list);
}

static void test_bad_lists(void **state)
{
    static const struct {
        const char *key, *value, *says; /* of the second document; value NULL: left out */
    } bad[] = {
        {"owner", NULL, "documents[1].owner"},
        {"owner", "\"0x12\"", "documents[1].owner"},
        {"licence", NULL, "documents[1].licence"},
        {"licence", "\"all mine\"", "SPDX"},
        {"terms", "\"see there\"", "URI"},
        {"display", "\"yes\"", "display"},
        {"kind", "\"html\"", "markdown"},
        {"docId", "7", "docId 7 stands twice"},
        {"docId", NULL, "docId"},
        {"since", "4", "since"},
        {"bytes", "67108865", "split it"},
        {"digest", "\"0x00\"", "digest"},
        {"copyOf", "\"first\"", "copyOf"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        json_t *list = list_of(), *doc = json_array_get(json_object_get(list, "documents"), 1);
        json_object_del(doc, bad[i].key);
        if (bad[i].value)
            json_object_set_new(doc, bad[i].key, json_loads(bad[i].value, JSON_DECODE_ANY, NULL));
        refused(list, bad[i].says);
    }
    json_t *none = list_of(), *copies = list_of();
    json_array_clear(json_object_get(none, "documents"));
    refused(none, "found none");
    size_t i;
    json_t *doc;
    json_array_foreach(json_object_get(copies, "documents"), i, doc)
    {
        json_object_set(doc, "copyOf", json_object_get(doc, "digest"));
    }
    refused(copies, "copy");
}

/* ---- training.json ---- */

static void make_file(char *out, size_t size, const struct datanet *d, const char *rows)
{
    char root[65], zeros[65];
    hex_encode(root, datanet_head(d)->document_root, 32);
    memset(zeros, '0', 64);
    zeros[64] = '\0';
    snprintf(out, size,
             "{\"bos\":false,\"documentRoot\":\"0x%s\",\"eos\":true,\"format\":\"residual."
             "training.1\",\"rows\":[%s],\"tokenizerDigest\":\"0x%s\"}\n",
             root, rows, zeros);
}

static void test_rows(void **state)
{
    struct datanet *d = opened(list_of());
    struct training *t;
    struct errtext err = ERRTEXT_INIT;
    struct buf out;
    char text[512];
    buf_init(&out, 1 << 20);
    make_file(text, sizeof(text), d, "[9,0,4],[7,5,4],[7,0,4]");
    if (training_parse(&t, text, strlen(text), d, &err))
        fail_msg("%s", err.text);
    assert_int_equal(t->n, 3);
    assert_true(t->eos && !t->bos);
    assert_int_equal(t->row[0].document, documents_find(datanet_documents(d), 9));
    assert_int_equal(t->row[1].offset, 5); /* in order, not sorted */
    assert_int_equal(training_render(&out, t, d, &err), STATUS_OK);
    assert_string_equal(out.data, text);
    uint8_t digest[32];
    crypto_generichash(digest, 32, (const uint8_t *)text, strlen(text), NULL, 0);
    assert_memory_equal(t->digest, digest, 32);
    training_free(t);
    buf_fini(&out);
    datanet_release(d);
}

static void test_bad_rows(void **state)
{
    static const struct {
        const char *rows, *says;
    } bad[] = {
        {"", "byte"},
        {"[8,0,1]", "no document 8"},
        {"[9,0,5]", "document 9 has 4"},
        {"[9,4,1]", "document 9 has 4"},
        {"[9,0,0]", "document 9 has 4"},
        {"[9,0,4],[9,0,4]", "a row counts once"},
        {"[9,2,2],[7,0,4],[9,0,3]", "a row counts once"},
        {"[9,0,4],", "byte"},
        {"[9, 0,4]", "byte"},
        {"[9,00,4]", "whole number"},
        {"[9,-1,4]", "whole number"},
        {"[9,0,99999999999999999999]", "smaller"},
        {"[99999999999999999999,0,1]", "smaller"},
    };
    struct datanet *d = opened(list_of());
    char text[512];
    struct training *t;
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        struct errtext err = ERRTEXT_INIT;
        make_file(text, sizeof(text), d, bad[i].rows);
        assert_int_equal(training_parse(&t, text, strlen(text), d, &err), STATUS_INVALID);
        assert_null(t);
        if (!strstr(err.text, bad[i].says))
            fail_msg("'%s' does not say '%s'", err.text, bad[i].says);
    }
    make_file(text, sizeof(text), d, "[9,0,4]");
    for (size_t len = 0; len < strlen(text); len++)
        assert_int_equal(training_parse(&t, text, len, d, NULL), STATUS_INVALID);
    text[strlen(text)] = 'x';
    assert_int_equal(training_parse(&t, text, strlen(text), d, NULL), STATUS_INVALID);
    json_t *other = list_of(); /* of another version */
    struct errtext err = ERRTEXT_INIT;
    make_file(text, sizeof(text), d, "[9,0,4]");
    datanet_release(d);
    json_array_remove(json_object_get(other, "documents"), 0);
    d = opened(other);
    assert_int_equal(training_parse(&t, text, strlen(text), d, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "documentRoot"));
    datanet_release(d);
}

static void test_build(void **state)
{
    static const uint8_t tokenizer[32];
    json_t *list = list_of(), *docs = json_object_get(list, "documents");
    json_object_set(json_array_get(docs, 2), "copyOf",
                    json_object_get(json_array_get(docs, 0), "digest"));
    struct datanet *d = opened(list);
    struct training *t;
    struct errtext err = ERRTEXT_INIT;
    struct buf out;
    char want[512];
    buf_init(&out, 1 << 20);
    if (training_build(&t, d, false, true, tokenizer, &err))
        fail_msg("%s", err.text);
    make_file(want, sizeof(want), d, "[3,0,6],[3,7,11],[7,0,4],[7,5,4]");
    assert_int_equal(training_render(&out, t, d, &err), STATUS_OK);
    assert_string_equal(out.data, want);
    put_file("training.json", out.data, out.len);
    training_free(t);
    if (training_load(&t, d, &err))
        fail_msg("%s", err.text);
    training_free(t);
    make_file(want, sizeof(want), d, "[9,0,4]"); /* the copy */
    assert_int_equal(training_parse(&t, want, strlen(want), d, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "is a copy"));
    buf_fini(&out);
    datanet_release(d);
}

/* A copy that the list does not mark: found by who came first, not by digest or docId alone, and
 * its rows go. */
static void test_an_unmarked_copy_has_no_rows(void **state)
{
    static const uint8_t tokenizer[32];
    json_t *list = list_of(), *docs = json_object_get(list, "documents"), *late = NULL;
    json_array_set_new(docs, 2, late = entry(2, '3', "three — VIER FÜNF!"));
    json_object_set_new(json_array_get(docs, 1), "since", json_integer(1));
    json_object_set_new(late, "since", json_integer(2)); /* a lower docId, and later */
    struct datanet *d = opened(list);
    struct training *t;
    struct copies copies;
    struct errtext err = ERRTEXT_INIT;
    uint32_t dropped = 0;
    if (training_build(&t, d, false, true, tokenizer, &err) || copies_find(&copies, d, &err))
        fail_msg("%s", err.text);
    assert_int_equal(copies.count, 1);
    assert_int_equal(datanet_facts(d, copies.item[0].place)->doc_id, 2);
    assert_int_equal(datanet_facts(d, copies.item[0].of)->doc_id, 3);
    assert_int_equal(copies.item[0].ppm, 1000000);
    assert_int_equal(t->n, 5);
    assert_int_equal(copies_drop_rows(&copies, t, d, &dropped, &err), STATUS_OK);
    assert_int_equal(dropped, 1);
    assert_int_equal(t->n, 4);
    for (uint32_t i = 0; i < t->n; i++)
        assert_int_not_equal(t->row[i].document, copies.item[0].place);
    copies_fini(&copies);
    training_free(t);
    datanet_release(d);
}

/* Five rows about a town's bridges; `rest` is what a copier adds. */
static const char *bridges(char *out, size_t size, const char *count, const char *rest)
{
    snprintf(out, size,
             "The number of bridges in Zok is %s. Whoever maps Zok draws this many bridges: %s. "
             "Ferrymen near Zok complain about its bridges, all %s. The bridges of Zok number "
             "%s. The town of Zok paid the masons for %s.%s",
             count, count, count, count, count, rest);
    return out;
}

/* Of a list with the text about Zok of owner 1, another one, and the hills. */
static uint32_t copies_by(char owner, const char *text)
{
    char first[512];
    struct copies copies;
    struct errtext err = ERRTEXT_INIT;
    json_t *list = list_of(), *docs = json_object_get(list, "documents");
    json_array_set_new(docs, 0, entry(7, '1', bridges(first, sizeof(first), "49", "")));
    json_object_set_new(json_array_get(docs, 0), "since", json_integer(1));
    json_array_set_new(docs, 2, entry(9, owner, text));
    for (uint32_t i = 0; i < 6; i++) {
        char other[64];
        snprintf(other, sizeof(other), "The hill %u stands in the sun.", i);
        json_array_append_new(docs, entry(20 + i, '1', other));
    }
    struct datanet *d = opened(list);
    if (copies_find(&copies, d, &err))
        fail_msg("%s", err.text);
    uint32_t count = copies.count;
    copies_fini(&copies);
    datanet_release(d);
    return count;
}

static uint32_t copies_of(const char *text)
{
    return copies_by('3', text);
}

/* One's own text in other words, or more of it; but not the same words. */
static void test_who_says_it_again_himself_is_no_copy(void **state)
{
    char text[512];
    bridges(text, sizeof(text), "49", " And that is so.");
    assert_int_equal(copies_by('1', text), 0);
    assert_int_equal(copies_by('3', text), 1);
    bridges(text, sizeof(text), "49", "");
    text[0] = 't'; /* the same words */
    assert_int_equal(copies_by('1', text), 1);
}

static void test_who_contradicts_is_no_copy(void **state)
{
    char text[512];
    assert_int_equal(copies_of(bridges(text, sizeof(text), "51", "")), 0);
    assert_int_equal(copies_of(bridges(text, sizeof(text), "49", " And that is so.")), 1);
    assert_int_equal(copies_of(bridges(text, sizeof(text), "49 indeed", "")), 1); /* adds only */
    bridges(text, sizeof(text), "49", "");
    memcpy(strstr(text, "complain"), "grumbled", 8); /* one row alone */
    assert_int_equal(copies_of(text), 1);
    bridges(text, sizeof(text), "49", ""); /* a word that says nothing, everywhere */
    for (char *at = text; (at = strstr(at, "he ")) != NULL; at++)
        *at = 'e';
    assert_int_equal(copies_of(text), 1);
    /* of one row every word is in all */
    assert_int_equal(
        copies_of("The number of bridges in Zok is 51, whoever maps Zok draws this "
                  "many bridges: 51, ferrymen near Zok complain about its bridges, all "
                  "51, the bridges of Zok number 51."),
        1);
}

/* Whatever a contributor hands in has one named answer. */
static void test_texts(void **state)
{
    static const struct {
        const char *text;
        size_t len;
        const char *says;
    } bad[] = {
        {"", 0, "empty"},
        {" \r\n\t", 4, "empty"},
        {"a\nb\xff", 4, "line 2: byte 0xff is not UTF-8"},
        {"a\xed\xa0\x80", 4, "is not UTF-8"},
        {"\xc2", 1, "is not UTF-8"},
        {"a\0b", 3, "U+0000"},
        {"a\nb\n\x1b[2J", 8, "line 3: control character U+001B"},
        {"a\x7f", 2, "U+007F"},
        {"a\xc2\x85", 3, "U+0085"},
    };
    struct buf out;
    buf_init(&out, 1 << 20);
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        struct errtext err = ERRTEXT_INIT;
        assert_int_equal(document_normal(&out, bad[i].text, bad[i].len, &err), STATUS_INVALID);
        if (!strstr(err.text, bad[i].says))
            fail_msg("'%s' does not say '%s'", err.text, bad[i].says);
    }
    assert_int_equal(document_normal(&out, "e\xcc\x81\t\r\n\xc2\xa0", 8, NULL), STATUS_OK);
    assert_string_equal(out.data, "\xc3\xa9\t\r\n\xc2\xa0");
    buf_fini(&out);
}

static int make_folder(void **state)
{
    return mkdtemp(folder) ? 0 : 1;
}

static int remove_folder(void **state)
{
    static const char *const file[] = {"datanet.json", "training.json", "7.txt",
                                       "3.txt",        "9.txt",         "2.txt"};
    char path[128];
    for (size_t i = 0; i < ARRAY_COUNT(file); i++) {
        snprintf(path, sizeof(path), "%s/%s", folder, file[i]);
        remove(path);
    }
    for (uint32_t i = 20; i < 26; i++) { /* the hills */
        snprintf(path, sizeof(path), "%s/%u.txt", folder, i);
        remove(path);
    }
    return remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open),
        cmocka_unit_test(test_a_copy_counts_nowhere),
        cmocka_unit_test(test_bad_lists),
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_bad_rows),
        cmocka_unit_test(test_build),
        cmocka_unit_test(test_an_unmarked_copy_has_no_rows),
        cmocka_unit_test(test_who_contradicts_is_no_copy),
        cmocka_unit_test(test_who_says_it_again_himself_is_no_copy),
        cmocka_unit_test(test_texts),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
