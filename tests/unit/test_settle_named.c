/* What records ask of the Registry: a walked history has exactly the entries that some t0 names, in
 * few questions; and an owners' list counts only with the Registry's root and counts. */
#include "chain_client/settle/owner_lists.h"
#include "chain_client/settle/snapshot.h"

#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/base/philox.h"

static uint32_t draw_count;

static uint32_t below(uint32_t n)
{
    uint32_t out[4];
    const uint32_t ctr[4] = {draw_count++, 0, 0, 0};
    philox4x32(out, ctr, 20261130);
    return out[0] % n;
}

/* ---- histories ---- */

#define ENTRIES 12
#define SECONDS 8

struct past {
    struct reward_terms entry[ENTRIES]; /* ascending by active_at */
    size_t count, asked;
};

static enum status ask(void *arg, uint64_t t, struct reward_terms *entry, bool *found,
                       struct errtext *err)
{
    struct past *p = arg;
    p->asked++;
    *found = false;
    for (size_t i = 0; i < p->count && p->entry[i].active_at <= t; i++) {
        *entry = p->entry[i];
        *found = true;
    }
    return STATUS_OK;
}

/* In force at some second of [t0 - 600, t0]? */
static bool is_named(const struct past *p, size_t i, uint64_t t0)
{
    uint64_t end = i + 1 < p->count ? p->entry[i + 1].active_at : UINT64_MAX;
    uint64_t from = t0 > 600 ? t0 - 600 : 0;
    return p->entry[i].active_at <= t0 && end > from;
}

static void check_history(struct past *p, const uint64_t *t0, size_t count)
{
    struct snapshot s = {0};
    struct snapshot_run run;
    struct snapshot_asker asker = {ask, p};
    size_t at = 0;
    p->asked = 0;
    assert_int_equal(snapshot_history(&s, &run, &asker, t0, count, NULL), STATUS_OK);
    for (size_t i = 0; i < p->count; i++) {
        bool wanted = false;
        for (size_t k = 0; k < count; k++)
            wanted |= is_named(p, i, t0[k]);
        if (!wanted)
            continue;
        assert_true(at < run.count);
        assert_true(s.terms[run.first + at].active_at == p->entry[i].active_at);
        at++;
    }
    assert_int_equal(at, run.count);
    assert_true(p->asked <= run.count + 1);
    for (size_t k = 0; k < count; k++) { /* and what is left answers as the whole */
        struct reward_history part = {run.count ? s.terms + run.first : NULL, run.count};
        struct reward_history whole = {p->entry, p->count};
        assert_int_equal(reward_is_active(&part, t0[k]), reward_is_active(&whole, t0[k]));
        for (uint64_t price = 0; price <= p->count; price++)
            assert_int_equal(reward_names_price(&part, t0[k], price, price),
                             reward_names_price(&whole, t0[k], price, price));
    }
    snapshot_fini(&s);
}

static void test_a_walked_history_is_what_is_named(void **state)
{
    for (int round = 0; round < 4000; round++) {
        struct past p = {.count = below(ENTRIES + 1)};
        uint64_t t = below(3) ? 0 : below(900), t0[SECONDS];
        size_t count = 1 + below(SECONDS);
        for (size_t i = 0; i < p.count; i++) {
            p.entry[i] = (struct reward_terms){.active_at = t, .price_in = i, .price_out = i};
            t += 1 + (below(2) ? below(40) : below(1300));
        }
        for (size_t k = 0; k < count; k++) {
            t0[k] = below((uint32_t)t + 1500);
            for (size_t i = k; i > 0 && t0[i - 1] > t0[i]; i--) {
                uint64_t swap = t0[i];
                t0[i] = t0[i - 1];
                t0[i - 1] = swap;
            }
        }
        check_history(&p, t0, count);
    }
}

/* ---- owners ---- */

static struct datanet_owner two[2] = {{{0x11}, 3}, {{0x22}, 4}};

static struct snapshot_version version_of(void)
{
    struct snapshot_version v = {.datanet_id = {0xab},
                                 .version = 7,
                                 .found = {.registered = true, .documents = 7, .owners = 2}};
    assert_int_equal(datanet_owner_root(v.found.owner_root, two, 2, NULL), STATUS_OK);
    return v;
}

static void test_a_list_counts_by_its_root(void **state)
{
    struct snapshot_version v = version_of();
    struct datanet_owner list[2] = {two[0], two[1]};
    assert_int_equal(owner_list_check(&v, list, 2, NULL), STATUS_OK);
    assert_int_equal(owner_list_check(&v, list, 1, NULL), STATUS_CORRUPT);
    list[1].owner[19] = 1;
    assert_int_equal(owner_list_check(&v, list, 2, NULL), STATUS_CORRUPT);
    list[1] = two[1];
    list[0].documents = 4;
    list[1].documents = 3; /* the sum is right */
    assert_int_equal(owner_list_check(&v, list, 2, NULL), STATUS_CORRUPT);
    list[0] = two[1];
    list[1] = two[0]; /* and the owners, but for their order */
    assert_int_equal(owner_list_check(&v, list, 2, NULL), STATUS_CORRUPT);
    v.found.documents = 8;
    assert_int_equal(owner_list_check(&v, two, 2, NULL), STATUS_CORRUPT);
}

static enum status parse(struct datanet_owner **owner, size_t *count, const char *text)
{
    struct snapshot_version v = version_of();
    struct canon_bytes bytes = {(const uint8_t *)text, strlen(text)};
    return owner_list_parse(owner, count, &v, "list", &bytes, NULL);
}

#define ID_7                                                                                       \
    "{\"datanet\":\"0xab00000000000000000000000000000000000000000000000000000000000000\","         \
    "\"version\":7"
#define OWNER_1 "{\"owner\":\"0x1100000000000000000000000000000000000000\",\"documents\":3}"

static void test_a_server_s_list(void **state)
{
    static const char *const wrong[] = {
        "",
        "[]",
        "{}",
        ID_7 "}",
        ID_7 ",\"owners\":[{}]}",
        ID_7 ",\"owners\":[" OWNER_1,
        ID_7 ",\"owners\":[{\"owner\":\"0x11\",\"documents\":3}]}",
        ID_7 ",\"owners\":[{\"owner\":\"0x1100000000000000000000000000000000000000\","
             "\"documents\":0}]}",
        "{\"datanet\":\"0xac00000000000000000000000000000000000000000000000000000000000000\","
        "\"version\":7,\"owners\":[" OWNER_1 "]}",
        "{\"datanet\":\"0xab00000000000000000000000000000000000000000000000000000000000000\","
        "\"version\":8,\"owners\":[" OWNER_1 "]}"};
    struct datanet_owner *owner = NULL;
    size_t count = 0;
    assert_int_equal(parse(&owner, &count, ID_7 ",\"owners\":[" OWNER_1 "]}"), STATUS_OK);
    assert_true(count == 1 && owner[0].documents == 3 && owner[0].owner[0] == 0x11);
    mem_free(owner);
    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++) {
        assert_int_equal(parse(&owner, &count, wrong[i]), STATUS_CORRUPT);
        assert_null(owner);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_walked_history_is_what_is_named),
        cmocka_unit_test(test_a_list_counts_by_its_root),
        cmocka_unit_test(test_a_server_s_list),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
