/* Spans against a search that tries every position of every document, on random texts, periodic
 * ones and borders; segments seen through a list against one segment of that list's documents;
 * files that are not what they say. */
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/influence/spans_folder.h"
#include "server/influence/spans_impl.h"

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/golden_json.h"

#define DOCUMENTS_MAX 24
#define TOKENS_MAX    80
#define HITS_MAX      256
#define PLACES_MAX    4

static char dir[64];

struct text {
    uint8_t digest[32];
    uint32_t owner, n;
    int32_t ids[TOKENS_MAX];
    uint32_t offset[TOKENS_MAX + 1];
};
struct world {
    uint32_t n, n_owner, n_vocab;
    struct text text[DOCUMENTS_MAX];
    uint32_t pick[DOCUMENTS_MAX]; /* which of them a source names, in order */
    uint32_t n_pick;
};

static uint64_t random_state;

static uint32_t below(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 33) % n);
}

static const char *path_of(uint32_t i)
{
    static char path[SPANS_SEGMENTS_MAX + 2][96];
    snprintf(path[i], sizeof(path[i]), "%s/%u.spans", dir, i);
    return path[i];
}

static enum status give(void *arg, uint32_t i, struct spans_document *out, struct errtext *err)
{
    const struct world *w = arg;
    const struct text *t = &w->text[w->pick[i]];
    *out = (struct spans_document){
        .digest = t->digest, .owner = t->owner, .n = t->n, .ids = t->ids, .offset = t->offset};
    return STATUS_OK;
}

static struct spans *build(struct world *w, uint32_t file)
{
    static const uint8_t root[32] = {1}, tokenizer[32] = {2};
    const struct spans_source src = {.document_root = root,
                                     .tokenizer_digest = tokenizer,
                                     .n_document = w->n_pick,
                                     .n_owner = w->n_owner,
                                     .n_vocab = w->n_vocab,
                                     .document = give,
                                     .arg = w};
    struct errtext err = ERRTEXT_INIT;
    struct spans *s = NULL;
    if (spans_build(path_of(file), &src, &err) || spans_open(&s, path_of(file), NULL, &err))
        fail_msg("%s", err.text);
    return s;
}

static void pick_all(struct world *w)
{
    w->n_pick = w->n;
    for (uint32_t i = 0; i < w->n; i++)
        w->pick[i] = i;
}

/* letters: how many different ids; few make long repeats. */
static void random_world(struct world *w, uint32_t n_vocab, uint32_t letters)
{
    memset(w, 0, sizeof(*w));
    w->n = 1 + below(DOCUMENTS_MAX);
    w->n_owner = 1 + below(6);
    w->n_vocab = n_vocab;
    for (uint32_t d = 0; d < w->n; d++) {
        struct text *t = &w->text[d];
        t->digest[0] = (uint8_t)(d * 7);
        randombytes_buf_deterministic(t->digest + 1, 31, (uint8_t[32]){(uint8_t)d});
        t->owner = below(w->n_owner);
        t->n = below(8) == 0 ? below(2) : below(TOKENS_MAX + 1);
        uint32_t period = below(3) == 0 ? 1 + below(4) : 0;
        t->offset[0] = below(3);
        for (uint32_t i = 0; i < t->n; i++) {
            t->ids[i] = (int32_t)(n_vocab / letters * below(letters));
            if (period && i >= period)
                t->ids[i] = t->ids[i - period];
            t->offset[i + 1] = t->offset[i] + (below(20) == 0 ? 250 + below(600) : 1 + below(8));
        }
        if (d > 0 && below(3) == 0) /* its begin is another's */
            memcpy(t->ids, w->text[d - 1].ids, MIN(t->n, w->text[d - 1].n) * sizeof(int32_t));
    }
    pick_all(w);
}

/* A question of fragments of the documents, random ids, and ids that nobody has. */
static uint32_t random_question(const struct world *w, int32_t *ids, uint32_t max)
{
    uint32_t n = 0, want = below(max + 1);
    while (n < want) {
        const struct text *t = &w->text[below(w->n)];
        uint32_t kind = below(10), len = 1 + below(12);
        if (kind == 0)
            ids[n++] = below(2) ? -1 : (int32_t)w->n_vocab + (int32_t)below(3);
        else if (kind == 1 || t->n == 0)
            ids[n++] = (int32_t)below(w->n_vocab);
        else
            for (uint32_t at = below(t->n); len-- > 0 && at < t->n && n < want; at++)
                ids[n++] = t->ids[at];
    }
    return n;
}

/* ---- the judge */
static bool stands(const struct text *t, uint32_t at, const int32_t *ids, uint32_t n)
{
    return at + n <= t->n && memcmp(t->ids + at, ids, n * sizeof(*ids)) == 0;
}

static uint32_t judge_count(const struct world *w, const int32_t *ids, uint32_t n, bool *owner)
{
    uint32_t count = 0;
    for (uint32_t k = 0; k < w->n_pick; k++) {
        const struct text *t = &w->text[w->pick[k]];
        for (uint32_t at = 0; at < t->n; at++) {
            if (stands(t, at, ids, n)) {
                count++;
                owner[t->owner] = true;
            }
        }
    }
    return count;
}

static uint32_t judge_bits(const struct world *w, int32_t id)
{
    uint32_t all = 0, own = 0;
    for (uint32_t k = 0; k < w->n_pick; k++) {
        const struct text *t = &w->text[w->pick[k]];
        all += t->n;
        for (uint32_t i = 0; i < t->n; i++)
            own += t->ids[i] == id;
    }
    return (spans_log2(all) - spans_log2(own) + 128) >> 8;
}

struct judged {
    uint32_t begin, n_tok, count, owners, info;
    bool owner[DOCUMENTS_MAX];
};

static uint32_t judge(const struct world *w, const int32_t *ids, uint32_t n, uint32_t n_prompt,
                      struct judged *out)
{
    uint32_t n_out = 0, reached = 0;
    for (uint32_t i = 0; i < n; i++) {
        bool none[DOCUMENTS_MAX];
        uint32_t len = 0;
        while (i + len < n && judge_count(w, ids + i, len + 1, none) > 0)
            len++;
        if (i + len <= reached)
            continue;
        reached = i + len;
        struct judged j = {.begin = i, .n_tok = len};
        j.count = judge_count(w, ids + i, len, j.owner);
        for (uint32_t t = i; t < reached; t++)
            j.info += judge_bits(w, ids[t]);
        for (uint32_t o = 0; o < w->n_owner; o++)
            j.owners += j.owner[o];
        if (reached > n_prompt && len >= SPANS_TOKENS_MIN && j.info >= SPANS_INFO_MIN)
            out[n_out++] = j;
    }
    return n_out;
}

static void check_places(const struct world *w, const struct spans *s, const struct spans_hit *h,
                         const int32_t *ids)
{
    struct spans_place place[DOCUMENTS_MAX], few[PLACES_MAX];
    uint32_t n = spans_places(s, h, place, DOCUMENTS_MAX), seen = 0;
    for (uint32_t k = 0; k < w->n_pick; k++) {
        const struct text *t = &w->text[w->pick[k]];
        for (uint32_t at = 0; at < t->n; at++) {
            if (!stands(t, at, ids + h->begin, h->n_tok))
                continue;
            assert_true(seen < n);
            assert_int_equal(place[seen].document, k);
            assert_int_equal(place[seen].offset, t->offset[at]);
            assert_int_equal(place[seen].bytes, t->offset[at + h->n_tok] - t->offset[at]);
            seen++;
            break; /* its first place in this document */
        }
    }
    assert_int_equal(seen, n);
    assert_int_equal(spans_places(s, h, few, PLACES_MAX), MIN(n, PLACES_MAX));
    assert_memory_equal(few, place, MIN(n, PLACES_MAX) * sizeof(*few));
}

static void check_weights(const struct world *w, const struct spans *s, const struct spans_hit *h,
                          const struct judged *j, uint32_t n, uint32_t n_prompt, uint32_t n_ids)
{
    uint64_t weight[DOCUMENTS_MAX], want[DOCUMENTS_MAX] = {0};
    assert_int_equal(spans_owner_weights(s, h, n, n_prompt, weight), STATUS_OK);
    for (uint32_t t = n_prompt; t < n_ids; t++) {
        uint64_t most = 0;
        const struct judged *best = NULL;
        for (uint32_t i = 0; i < n; i++) {
            uint32_t icf = (spans_log2(w->n_owner) - spans_log2(j[i].owners) + 128) >> 8;
            uint64_t x = (uint64_t)h[i].info_q8 * MAX(icf, 1);
            if (j[i].begin <= t && t < j[i].begin + j[i].n_tok && x > most) {
                most = x;
                best = &j[i];
            }
        }
        for (uint32_t o = 0; best && o < w->n_owner; o++)
            want[o] += best->owner[o] ? most / best->owners : 0;
    }
    for (uint32_t o = 0; o < w->n_owner; o++)
        assert_int_equal(weight[o], want[o]);
}

static uint32_t check_question(const struct world *w, const struct spans *s, const int32_t *ids,
                               uint32_t n, uint32_t n_prompt)
{
    static struct spans_hit hit[HITS_MAX];
    static struct judged want[HITS_MAX];
    uint32_t n_hit, n_want = judge(w, ids, n, n_prompt, want);
    assert_int_equal(spans_find(s, ids, n, n_prompt, hit, HITS_MAX, &n_hit), STATUS_OK);
    assert_int_equal(n_hit, n_want);
    for (uint32_t i = 0; i < n_hit; i++) {
        assert_int_equal(hit[i].begin, want[i].begin);
        assert_int_equal(hit[i].n_tok, want[i].n_tok);
        assert_int_equal(hit[i].count, want[i].count);
        assert_int_equal(hit[i].info_q8, want[i].info);
        check_places(w, s, &hit[i], ids);
    }
    check_weights(w, s, hit, want, n_hit, n_prompt, n);
    return n_hit;
}

static void check_world(struct world *w, uint32_t questions, uint32_t *hits)
{
    struct spans *s = build(w, 0);
    for (uint32_t q = 0; q < questions; q++) {
        int32_t ids[96];
        uint32_t n = random_question(w, ids, 96);
        *hits += check_question(w, s, ids, n, below(n + 1));
    }
    spans_release(s);
}

static void test_random(void **state)
{
    static const struct {
        uint32_t n_vocab, letters;
    } shape[] = {{4, 2}, {30, 3}, {400, 40}, {65534, 60}, {65535, 60}, {150000, 200}};
    static struct world w;
    uint32_t hits = 0;
    random_state = 1;
    for (uint32_t i = 0; i < 60; i++) {
        random_world(&w, shape[i % 6].n_vocab, shape[i % 6].letters);
        check_world(&w, 4, &hits);
    }
    assert_true(hits > 500);
}

static void test_borders(void **state)
{
    static struct world w;
    struct spans_hit hit[8];
    uint32_t n, hits = 0;
    random_state = 2;
    random_world(&w, 5000, 50);
    w.n = 1;
    w.n_owner = 1;
    w.text[0].owner = 0;
    w.text[0].n = 60;
    for (uint32_t i = 0; i < 60; i++) {
        w.text[0].ids[i] = (int32_t)below(w.n_vocab);
        w.text[0].offset[i + 1] = w.text[0].offset[i] + 3;
    }
    pick_all(&w);
    check_world(&w, 20, &hits); /* one document, one owner: every icf is the least */
    assert_true(hits > 0);
    struct spans *s = build(&w, 0);
    const int32_t *ids = w.text[0].ids;
    assert_int_equal(spans_find(s, ids, 20, 20, hit, 8, &n), STATUS_OK); /* no output */
    assert_int_equal(n, 0);
    assert_int_equal(spans_find(s, ids, 0, 0, hit, 8, &n), STATUS_OK);
    assert_int_equal(n, 0);
    assert_int_equal(spans_find(s, ids, 1, 0, hit, 8, &n), STATUS_OK); /* one token */
    assert_int_equal(n, 0);
    assert_int_equal(spans_find(s, ids, 20, 19, hit, 8, &n), STATUS_OK); /* one of output */
    assert_int_equal(n, 1);
    assert_int_equal(hit[0].begin, 0);
    assert_int_equal(hit[0].n_tok, 20);
    assert_int_equal(spans_find(s, ids, 20, 19, hit, 0, &n), STATUS_OK);
    assert_int_equal(n, 0);
    spans_release(s);
    for (uint32_t d = 0; d < w.n; d++) /* documents without a token, and no document */
        w.text[d].n = 0;
    check_world(&w, 2, &hits);
    w.n_pick = 0;
    s = build(&w, 0);
    assert_int_equal(spans_find(s, ids, 20, 0, hit, 8, &n), STATUS_OK);
    assert_int_equal(n, 0);
    spans_release(s);
}

/* Of more hits than there is room for, those that say the most stay, in order. */
static void test_most(void **state)
{
    static struct world w;
    static struct spans_hit all[HITS_MAX], few[HITS_MAX];
    uint32_t cut = 0;
    random_state = 3;
    for (uint32_t round = 0; round < 30; round++) {
        int32_t ids[96];
        uint32_t n_all, n_few, max = 1 + below(6);
        random_world(&w, 400, 40);
        struct spans *s = build(&w, 0);
        uint32_t n = random_question(&w, ids, 96);
        assert_int_equal(spans_find(s, ids, n, 0, all, HITS_MAX, &n_all), STATUS_OK);
        assert_int_equal(spans_find(s, ids, n, 0, few, max, &n_few), STATUS_OK);
        assert_int_equal(n_few, MIN(n_all, max));
        uint32_t at = 0;
        for (uint32_t i = 0; i < n_all; i++) {
            uint32_t better = 0;
            for (uint32_t j = 0; j < n_all; j++)
                better +=
                    all[j].info_q8 > all[i].info_q8 || (all[j].info_q8 == all[i].info_q8 && j < i);
            if (better < max)
                assert_memory_equal(&few[at++], &all[i], sizeof(*few));
        }
        cut += n_all > max;
        spans_release(s);
    }
    assert_true(cut > 5);
}

/* Some of a world's documents are listed; segments hold them and others, some twice. */
static void test_joined(void **state)
{
    static struct world w, part;
    static struct spans_hit hit[HITS_MAX];
    uint32_t hits = 0, gaps = 0;
    random_state = 4;
    for (uint32_t round = 0; round < 40; round++) {
        uint8_t digest[DOCUMENTS_MAX][32];
        uint32_t owner[DOCUMENTS_MAX], missing[DOCUMENTS_MAX], n_part = 1 + below(4), n;
        struct spans *seg[SPANS_SEGMENTS_MAX], *s = NULL;
        struct errtext err = ERRTEXT_INIT;
        random_world(&w, round % 3 ? 400 : 70000, 3 + below(40));
        bool listed[DOCUMENTS_MAX];
        w.n_pick = 0;
        for (uint32_t d = 0; d < w.n; d++) {
            listed[d] = below(3) > 0;
            if (listed[d])
                w.pick[w.n_pick++] = d;
        }
        for (uint32_t i = 0; i < w.n_pick; i++) {
            memcpy(digest[i], w.text[w.pick[i]].digest, 32);
            owner[i] = w.text[w.pick[i]].owner;
        }
        const struct spans_list list = {
            .n_document = w.n_pick, .n_owner = w.n_owner, .digest = digest, .owner = owner};
        uint32_t home[DOCUMENTS_MAX];
        for (uint32_t d = 0; d < w.n; d++)
            home[d] = below(n_part);
        for (uint32_t i = 0; i < n_part; i++) {
            part = w;
            part.n_pick = 0;
            part.n_owner = w.n_owner + 3; /* owners of another version */
            for (uint32_t d = 0; d < w.n; d++) {
                part.text[d].owner = below(part.n_owner);
                if (home[d] == i || below(5) == 0)
                    part.pick[part.n_pick++] = d;
            }
            seg[i] = build(&part, i + 1);
        }
        assert_int_equal(spans_missing(seg, n_part, &list, missing), 0);
        if (spans_join(&s, seg, n_part, &list, &err))
            fail_msg("%s", err.text);
        for (uint32_t i = 0; i < n_part; i++) {
            gaps += s->part[i].live.bit != NULL;
            spans_release(seg[i]);
        }
        for (uint32_t q = 0; q < 4; q++) {
            int32_t ids[96];
            n = random_question(&w, ids, 96);
            hits += check_question(&w, s, ids, n, below(n + 1));
        }
        assert_int_equal(spans_find(s, w.text[0].ids, w.text[0].n, 0, hit, HITS_MAX, &n), 0);
        spans_release(s);
    }
    assert_true(hits > 100 && gaps > 20);
}

/* The bitmap's walks, over gaps longer than a word and longer than a word of words. */
static void test_gaps(void **state)
{
    enum { N = 40000 };
    static uint64_t bit[N / 64 + 1], word[N / 4096 + 1];
    struct spans_live live = {.bit = bit, .word = word};
    random_state = 5;
    for (uint32_t round = 0; round < 60; round++) {
        memset(bit, 0, sizeof(bit));
        memset(word, 0, sizeof(word));
        uint32_t set = round % 4 ? 1 + below(12) : below(N);
        for (uint32_t i = 0; i < set; i++) {
            uint32_t r = below(N);
            bit[r / 64] |= 1ull << r % 64;
            word[r / 4096] |= 1ull << r / 64 % 64;
        }
        for (uint32_t i = 0; i < 40; i++) {
            uint32_t begin = below(N), end = begin + below(N - begin + 1);
            uint32_t r = begin + below(end - begin + 1), next = r, before = UINT32_MAX, count = 0;
            while (next < end && !(bit[next / 64] >> next % 64 & 1))
                next++;
            for (uint32_t k = begin; k < end; k++) {
                bool on = bit[k / 64] >> k % 64 & 1;
                before = on && k < r ? k : before;
                count += on;
            }
            assert_int_equal(spans_live_next(&live, r, end), next);
            assert_int_equal(spans_live_before(&live, r, begin), before);
            assert_int_equal(spans_live_count(&live, begin, end), count);
        }
    }
}

static void test_join_refused(void **state)
{
    static struct world w;
    struct errtext err = ERRTEXT_INIT;
    random_state = 6;
    random_world(&w, 400, 40);
    w.n = 3;
    pick_all(&w);
    uint8_t digest[3][32];
    uint32_t owner[3], missing[3];
    for (uint32_t d = 0; d < 3; d++) {
        memcpy(digest[d], w.text[d].digest, 32);
        owner[d] = w.text[d].owner;
    }
    struct spans_list list = {
        .n_document = 3, .n_owner = w.n_owner, .digest = digest, .owner = owner};
    w.pick[1] = 2;
    w.n_pick = 2;
    struct spans *s = build(&w, 0), *joined, *many[SPANS_SEGMENTS_MAX + 1];
    assert_int_equal(spans_missing(&s, 1, &list, missing), 1);
    assert_int_equal(missing[0], 1);
    assert_int_equal(spans_join(&joined, &s, 1, &list, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "1 of 3 documents are in no segment"));
    for (uint32_t i = 0; i <= SPANS_SEGMENTS_MAX; i++)
        many[i] = s;
    assert_int_equal(spans_join(&joined, many, SPANS_SEGMENTS_MAX + 1, &list, NULL),
                     STATUS_INVALID);
    list.n_document = 1;
    owner[0] = w.n_owner;
    assert_int_equal(spans_join(&joined, &s, 1, &list, NULL), STATUS_INVALID);
    owner[0] = 0;
    assert_int_equal(spans_join(&joined, &s, 1, &list, NULL), STATUS_OK);
    struct spans *again;
    assert_int_equal(spans_join(&again, &joined, 1, &list, NULL), STATUS_INVALID);
    spans_release(joined);
    w.n_vocab = 401;
    many[1] = build(&w, 1);
    assert_int_equal(spans_join(&joined, many, 2, &list, NULL), STATUS_INVALID);
    spans_release(many[1]);
    spans_release(s);
}

static void test_build_refused(void **state)
{
    static struct world w;
    struct errtext err = ERRTEXT_INIT;
    static const uint8_t zero[32];
    struct spans_source src = {.document_root = zero,
                               .tokenizer_digest = zero,
                               .n_document = 2,
                               .n_owner = 1,
                               .n_vocab = 50,
                               .document = give,
                               .arg = &w};
    w.text[0] = (struct text){.n = 2, .ids = {1, 2}, .offset = {0, 1, 2}};
    w.text[1] = (struct text){.digest = {1}, .n = 2, .ids = {1, 2}, .offset = {0, 1, 2}};
    w.pick[1] = 1;
    assert_int_equal(spans_build(path_of(0), &src, &err), STATUS_OK);
#define REFUSED(change, restore, say)                                                              \
    err_clear(&err);                                                                               \
    change;                                                                                        \
    assert_int_equal(spans_build(path_of(0), &src, &err), STATUS_INVALID);                         \
    assert_non_null(strstr(err.text, say));                                                        \
    restore
    REFUSED(w.text[1].ids[1] = 50, w.text[1].ids[1] = 2, "document 1: token 1 is 50, not below 50");
    REFUSED(w.text[1].ids[1] = -1, w.text[1].ids[1] = 2, "token 1 is -1");
    REFUSED(w.text[1].owner = 1, w.text[1].owner = 0, "owner 1 of 1");
    REFUSED(w.text[1].offset[1] = 3, w.text[1].offset[1] = 1, "token 1 ends at byte 2");
    REFUSED(w.text[1].digest[0] = 0, w.text[1].digest[0] = 1, "not ascending");
    REFUSED(src.n_vocab = 0, src.n_vocab = 50, "0 ids");
    REFUSED(src.n_owner = SPANS_OWNERS_MAX + 1, src.n_owner = 1, "owners");
#undef REFUSED
}

static void write_with_root(const char *path, char *data, size_t len, bool fitting)
{
    struct spans_header *h = (void *)data;
    if (fitting)
        spans_root(data, len, h->root);
    assert_int_equal(file_write_atomic(path, data, len, 0644, NULL), STATUS_OK);
}

/* Every byte is under the root; with a root that fits, nothing leads outside the file. */
static void test_corrupt(void **state)
{
    static struct world w;
    struct errtext err = ERRTEXT_INIT;
    char *data;
    size_t len;
    struct spans *s;
    random_state = 7;
    do
        random_world(&w, 300, 30);
    while (w.n < 4 || w.n > 6);
    spans_release(build(&w, 0));
    assert_int_equal(file_read(path_of(0), 1u << 20, &data, &len, NULL), STATUS_OK);
    char *again;
    size_t again_len;
    spans_release(build(&w, 1)); /* the same documents, the same bytes */
    assert_int_equal(file_read(path_of(1), 1u << 20, &again, &again_len, NULL), STATUS_OK);
    assert_int_equal(len, again_len);
    assert_memory_equal(data, again, len);
    mem_free(again);
    for (size_t at = 0; at < len; at += at < 200 ? 1 : 1 + below(60)) {
        char was = data[at];
        data[at] = (char)(was ^ (1 << below(8)));
        write_with_root(path_of(1), data, len, false);
        assert_int_equal(spans_open(&s, path_of(1), NULL, NULL), STATUS_CORRUPT);
        write_with_root(path_of(1), data, len, true);
        if (spans_open(&s, path_of(1), NULL, NULL) == STATUS_OK) {
            struct spans_hit hit[8];
            uint32_t n;
            assert_int_equal(spans_find(s, w.text[0].ids, w.text[0].n, 0, hit, 8, &n), 0);
            spans_release(s);
        }
        data[at] = was;
    }
    for (size_t cut = 0; cut < len; cut += 1 + below((uint32_t)len / 20)) {
        assert_int_equal(file_write_atomic(path_of(1), data, cut, 0644, NULL), STATUS_OK);
        assert_int_equal(spans_open(&s, path_of(1), NULL, &err), STATUS_CORRUPT);
        assert_non_null(strstr(err.text, path_of(1)));
    }
    mem_free(data);
    uint8_t other[32] = {9};
    err_clear(&err);
    const struct spans_expect tokenizer = {.tokenizer_digest = other};
    assert_int_equal(spans_open(&s, path_of(0), &tokenizer, &err), STATUS_CORRUPT);
    assert_non_null(strstr(err.text, "tokenizer_digest is 02"));
    const struct spans_expect documents = {.document_root = other};
    assert_int_equal(spans_open(&s, path_of(0), &documents, NULL), STATUS_CORRUPT);
    assert_int_equal(spans_open(&s, path_of(9), NULL, NULL), STATUS_NOT_FOUND);
}

static bool unlink_fails; /* the link sends unlink here */

int __real_unlink(const char *path);
int __wrap_unlink(const char *path);
int __wrap_unlink(const char *path)
{
    errno = EROFS;
    return unlink_fails ? -1 : __real_unlink(path);
}

/* The spans of the documents that the world picks, from a folder; how many were sorted for it.
 * Where a file cannot be removed: why there are none. */
static uint32_t check_folder(struct world *w, uint8_t version, uint32_t corrupt)
{
    uint8_t digest[DOCUMENTS_MAX][32], root[32] = {version};
    static const uint8_t tokenizer[32] = {2};
    uint32_t owner[DOCUMENTS_MAX];
    struct errtext err = ERRTEXT_INIT;
    struct spans *s;
    for (uint32_t i = 0; i < w->n_pick; i++) {
        memcpy(digest[i], w->text[w->pick[i]].digest, 32);
        owner[i] = w->text[w->pick[i]].owner;
    }
    const struct spans_list list = {
        .n_document = w->n_pick, .n_owner = w->n_owner, .digest = digest, .owner = owner};
    struct spans_folder f = {.dir = dir,
                             .document_root = root,
                             .tokenizer_digest = tokenizer,
                             .list = &list,
                             .n_vocab = w->n_vocab,
                             .document = give,
                             .arg = w};
    enum status st = spans_folder_open(&s, &f, &err);
    assert_int_equal(f.corrupt, corrupt);
    if (unlink_fails) {
        assert_int_equal(st, STATUS_IO);
        assert_non_null(strstr(err.text, "it cannot be removed: Read-only file system"));
        return 0;
    }
    if (st)
        fail_msg("%s", err.text);
    for (uint32_t q = 0; q < 10; q++) {
        int32_t ids[96];
        uint32_t n = random_question(w, ids, 96);
        (void)check_question(w, s, ids, n, below(n + 1));
    }
    spans_release(s);
    return f.built;
}

static const char *segment_of(uint8_t version)
{
    static char path[128];
    snprintf(path, sizeof(path), "%s/%02x%030x-02%030x.spans", dir, version, 0, 0);
    return path;
}

/* What a person reads of a damaged file is what became of it. */
static void check_log(const char *damaged)
{
    char *text, log[96], want[256];
    size_t len;
    snprintf(log, sizeof(log), "%s/log", dir);
    assert_int_equal(file_read(log, 1u << 16, &text, &len, NULL), STATUS_OK);
    snprintf(want, sizeof(want), "%s: root is ", damaged);
    assert_non_null(strstr(text, want));
    assert_non_null(strstr(text, "; it was removed, what is needed of it is built again\n"));
    assert_ptr_equal(strchr(text, '\n'), text + len - 1); /* one line */
    mem_free(text);
}

/* A version sorts what no earlier one has; what was left out of it is not found. */
static void test_folder(void **state)
{
    static struct world w;
    random_state = 9;
    do
        random_world(&w, 400, 40);
    while (w.n < 12);
    w.n = 12;
    w.n_pick = 10;
    for (uint32_t i = 0; i < 10; i++)
        w.pick[i] = i;
    assert_int_equal(check_folder(&w, 1, 0), 10);
    assert_int_equal(check_folder(&w, 1, 0), 0);
    for (uint32_t i = 0; i < 10; i++) /* 0 and 1 withdrawn, 10 and 11 added */
        w.pick[i] = i + 2;
    assert_int_equal(check_folder(&w, 2, 0), 2);
    assert_int_equal(check_folder(&w, 2, 0), 0);
    w.n_pick = 9; /* 11 withdrawn: nothing to sort */
    assert_int_equal(check_folder(&w, 3, 0), 0);
    assert_int_not_equal(access(segment_of(3), F_OK), 0);
    w.n_pick = 2; /* of both files more than half is withdrawn, or it has none of these */
    w.pick[0] = 0;
    w.pick[1] = 5;
    assert_int_equal(check_folder(&w, 4, 0), 2);
    char *data;
    size_t len;
    assert_int_equal(file_read(segment_of(1), 1u << 20, &data, &len, NULL), STATUS_OK);
    data[len / 2] ^= 1;
    assert_int_equal(file_write_atomic(segment_of(1), data, len, 0644, NULL), STATUS_OK);
    mem_free(data);
    w.n_pick = 10;
    for (uint32_t i = 0; i < 10; i++)
        w.pick[i] = i + 2;
    char log[96];
    snprintf(log, sizeof(log), "%s/log", dir);
    assert_int_equal(log_open(log, NULL), STATUS_OK);
    unlink_fails = true;
    assert_int_equal(check_folder(&w, 2, 1), 0);
    unlink_fails = false;
    assert_int_equal(check_folder(&w, 2, 1), 10); /* its own two are not enough: all anew */
    assert_int_not_equal(access(segment_of(1), F_OK), 0);
    check_log(segment_of(1));
    assert_int_equal(unlink(log), 0);
    assert_int_equal(check_folder(&w, 2, 0), 0);
    for (uint8_t v = 2; v <= 4; v += 2)
        assert_int_equal(unlink(segment_of(v)), 0);
}

/* What stands everywhere is nobody's. */
static void test_everywhere(void **state)
{
    static struct world w;
    struct spans_hit hit[2];
    uint64_t weight[6];
    uint32_t n;
    random_state = 10;
    do
        random_world(&w, 60000, 6000);
    while (w.text[0].n < 20 || w.text[0].owner != 0);
    struct spans *s = build(&w, 0);
    assert_int_equal(spans_find(s, w.text[0].ids, 20, 4, hit, 2, &n), STATUS_OK);
    for (uint32_t i = 0; i < 2; i++) {
        hit[0].count = SPANS_RANKS_MAX + i;
        assert_int_equal(spans_owner_weights(s, hit, 1, 4, weight), STATUS_OK);
        assert_true((weight[0] > 0) == (i == 0));
    }
    spans_release(s);
}

/* ---- against weights that were worked out from SPEC 10 (tests/attribution/spans_golden.py) */

struct golden_documents {
    const json_t *list;
    int32_t *ids; /* of the one given last */
    uint32_t *offset;
    uint8_t digest[32];
};

static int32_t *golden_ids(const json_t *o, uint32_t *n)
{
    uint32_t each = (uint32_t)json_array_size(get(o, "ids"));
    uint32_t times = json_object_get(o, "times") ? (uint32_t)num(o, "times") : 1;
    int32_t *ids = mem_array((size_t)each * times + 1, sizeof(*ids));
    *n = each * times;
    for (uint32_t i = 0; i < *n; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(get(o, "ids"), i % each));
    return ids;
}

static enum status give_golden(void *arg, uint32_t i, struct spans_document *out,
                               struct errtext *err)
{
    struct golden_documents *g = arg;
    const json_t *o = json_array_get(g->list, i);
    uint32_t n;
    mem_free(g->ids);
    mem_free(g->offset);
    g->ids = golden_ids(o, &n);
    g->offset = mem_array(n + 1, sizeof(*g->offset));
    g->digest[0] = (uint8_t)i;
    *out = (struct spans_document){.digest = g->digest,
                                   .owner = (uint32_t)num(o, "owner"),
                                   .n = n,
                                   .ids = g->ids,
                                   .offset = g->offset};
    return STATUS_OK;
}

static void check_golden(const json_t *world)
{
    static const uint8_t any[32];
    uint64_t sum[DOCUMENTS_MAX] = {0}, weight[DOCUMENTS_MAX];
    struct spans_hit hit[SPANS_COUNTED_MAX];
    struct golden_documents documents = {.list = get(world, "documents")};
    struct errtext err = ERRTEXT_INIT;
    struct spans *s;
    uint32_t n, n_hit;
    const struct spans_source src = {.document_root = any,
                                     .tokenizer_digest = any,
                                     .n_document = (uint32_t)json_array_size(documents.list),
                                     .n_owner = (uint32_t)num(world, "owners"),
                                     .n_vocab = (uint32_t)num(world, "vocab"),
                                     .document = give_golden,
                                     .arg = &documents};
    if (spans_build(path_of(0), &src, &err) || spans_open(&s, path_of(0), NULL, &err))
        fail_msg("%s", err.text);
    mem_free(documents.ids);
    mem_free(documents.offset);
    for (size_t c = 0; c < json_array_size(get(world, "choices")); c++) {
        const json_t *choice = json_array_get(get(world, "choices"), c);
        int32_t *ids = golden_ids(choice, &n);
        uint32_t n_prompt = (uint32_t)num(choice, "prompt");
        assert_int_equal(spans_find(s, ids, n, n_prompt, hit, ARRAY_COUNT(hit), &n_hit), STATUS_OK);
        assert_int_equal(spans_owner_weights(s, hit, n_hit, n_prompt, weight), STATUS_OK);
        for (uint32_t o = 0; o < src.n_owner; o++)
            sum[o] += weight[o];
        mem_free(ids);
    }
    for (uint32_t o = 0; o < src.n_owner; o++)
        assert_int_equal(sum[o], number(json_array_get(get(world, "weights"), o)));
    spans_release(s);
}

static void test_golden(void **state)
{
    json_error_t e;
    json_t *worlds = json_load_file(RS_TEST_ROOT "/tests/data/spans_golden.json", 0, &e);
    assert_non_null(worlds);
    assert_true(json_array_size(worlds) > 60);
    for (size_t i = 0; i < json_array_size(worlds); i++)
        check_golden(json_array_get(worlds, i));
    json_decref(worlds);
}

static void test_log2(void **state)
{
    assert_int_equal(spans_log2(1), 0);
    assert_int_equal(spans_log2(1ull << 40), 40u << 16);
    random_state = 8;
    for (uint32_t i = 0; i < 20000; i++) {
        uint64_t x = ((uint64_t)below(1u << 31) << 20 | below(1u << 20)) >> below(50);
        double want = log2((double)MAX(x, 1)) * 65536;
        assert_true(fabs((double)spans_log2(MAX(x, 1)) - want) < 4);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),        cmocka_unit_test(test_borders),
        cmocka_unit_test(test_most),          cmocka_unit_test(test_joined),
        cmocka_unit_test(test_gaps),          cmocka_unit_test(test_join_refused),
        cmocka_unit_test(test_build_refused), cmocka_unit_test(test_corrupt),
        cmocka_unit_test(test_folder),        cmocka_unit_test(test_everywhere),
        cmocka_unit_test(test_golden),        cmocka_unit_test(test_log2),
    };
    snprintf(dir, sizeof(dir), "/tmp/test_spans.XXXXXX");
    if (sodium_init() < 0 || !mkdtemp(dir))
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    for (uint32_t i = 0; i < SPANS_SEGMENTS_MAX + 2; i++)
        (void)unlink(path_of(i));
    (void)rmdir(dir);
    return failed;
}
