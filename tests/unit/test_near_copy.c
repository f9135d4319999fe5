/* Near copies of texts against a count of every shingle of every document, and the cases that
 * admission meets. */
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/datanet/near.h"
#include "server/text/unicode.h"

#include <setjmp.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define WORDS_MAX 200
#define DOCS      12

struct text {
    uint32_t n, word[WORDS_MAX];
    uint8_t owner[20];
};

static uint64_t random_state;

static uint32_t below(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 33) % n);
}

static struct near *create(uint32_t entries_max)
{
    struct near *n;
    assert_int_equal(near_create(&n, entries_max, NULL), STATUS_OK);
    return n;
}

static void spell(struct buf *out, const struct text *t)
{
    buf_init(out, 1u << 16);
    for (uint32_t i = 0; i < t->n; i++)
        buf_printf(out, i ? " w%u" : "w%u", t->word[i]);
}

static void add(struct near *n, uint32_t document, const struct text *t)
{
    struct buf b;
    spell(&b, t);
    const struct near_text text = {t->owner, b.data, b.len};
    assert_int_equal(near_add(n, document, &text, NULL), STATUS_OK);
    buf_fini(&b);
}

static struct near_found find(struct near *n, const struct text *t)
{
    struct near_found f;
    struct buf b;
    spell(&b, t);
    const struct near_text text = {t->owner, b.data, b.len};
    assert_int_equal(near_find(n, &text, &f, NULL), STATUS_OK);
    buf_fini(&b);
    return f;
}

static void make(struct text *t, uint32_t n, uint32_t words)
{
    t->n = n;
    for (uint32_t i = 0; i < n; i++)
        t->word[i] = below(words);
}

static void take(struct text *t, const struct text *from, uint32_t at, uint32_t n)
{
    memcpy(t->word + t->n, from->word + at, n * sizeof(*t->word));
    t->n += n;
}

static bool has(const struct text *t, const uint32_t *shingle)
{
    for (uint32_t i = 0; i + NEAR_SHINGLE <= t->n; i++) {
        if (memcmp(t->word + i, shingle, NEAR_SHINGLE * sizeof(*shingle)) == 0)
            return true;
    }
    return false;
}

/* How much the shingle at i counts: a form that comes again and again counts once. */
static uint32_t weight(const struct text *t, uint32_t i)
{
    uint32_t times = 0, before = 0;
    for (uint32_t k = 0; k + NEAR_SHINGLE <= t->n; k++) {
        bool same = memcmp(t->word + k, t->word + i, NEAR_SHINGLE * sizeof(*t->word)) == 0;
        times += same;
        before += same && k < i;
    }
    return times < NEAR_FORM || before == 0;
}

static struct near_found judge(const struct text *docs, uint32_t n_docs, const struct text *t)
{
    uint32_t shared[DOCS] = {0}, most = 0, covered = 0, positions = 0, least;
    struct near_found f = {.document = UINT32_MAX};
    if (t->n < NEAR_WORDS_MIN)
        return f;
    const uint32_t end = t->n - NEAR_SHINGLE + 1;
    for (uint32_t i = 0; i < end; i++)
        positions += weight(t, i);
    for (uint32_t d = 0; d < n_docs; d++) {
        bool counts = docs[d].n >= NEAR_WORDS_MIN && memcmp(docs[d].owner, t->owner, 20) != 0;
        for (uint32_t i = 0; i < end && counts; i++)
            shared[d] += has(&docs[d], t->word + i) ? weight(t, i) : 0;
        most = MAX(most, shared[d]);
    }
    least = MAX(NEAR_SHARED_MIN, positions / NEAR_SHARED_PART);
    if (most < least)
        return f;
    for (uint32_t i = 0; i < end; i++) {
        bool is = false;
        for (uint32_t d = 0; d < n_docs; d++)
            is |= shared[d] >= least && has(&docs[d], t->word + i);
        covered += is ? weight(t, i) : 0;
    }
    for (f.document = 0; shared[f.document] < most * 9 / 10;)
        f.document++;
    f.ppm = MIN((uint32_t)((uint64_t)covered * 1000000 / positions), NEAR_SAME_PPM - 1);
    return f;
}

static void test_judged(void **state)
{
    static struct text docs[DOCS], t;
    uint32_t found = 0, none = 0;
    random_state = 1;
    for (uint32_t round = 0; round < 200; round++) {
        struct near *n = create(NEAR_ENTRIES_MAX);
        for (uint32_t d = 0; d < DOCS; d++) {
            docs[d].owner[3] = (uint8_t)below(3);
            make(&docs[d], below(100), round % 3 == 0 ? 6 : round % 3 == 1 ? 2 : 500);
            if (d > 0 && below(3) == 0 && docs[d].n < 100)
                take(&docs[d], &docs[d - 1], 0, MIN(docs[d - 1].n, 90));
            add(n, d, &docs[d]);
        }
        t.n = 0;
        for (uint32_t part = 0; part < 3; part++) {
            const struct text *from = &docs[below(DOCS)];
            uint32_t at = below(from->n + 1);
            take(&t, from, at, MIN(from->n - at, below(40)));
            if (below(2))
                t.word[t.n++] = below(500);
        }
        t.word[t.n++] = 1000; /* never the whole of one */
        t.owner[3] = (uint8_t)below(4);
        struct near_found got = find(n, &t), want = judge(docs, DOCS, &t);
        assert_int_equal(got.document, want.document);
        assert_int_equal(got.ppm, want.ppm);
        found += want.ppm > 0;
        none += want.ppm == 0;
        near_free(n);
    }
    assert_true(found > 60 && none > 20);
}

/* What one wrote oneself is no source, but word for word; what others wrote is, behind whatever of
 * one's own the text is hidden. */
static void test_own(void **state)
{
    static struct text theirs, mine = {.owner = {1}}, again = {.owner = {1}};
    struct near *n = create(NEAR_ENTRIES_MAX);
    random_state = 3;
    make(&theirs, 60, 1000);
    make(&mine, 100, 1000);
    add(n, 4, &theirs);
    add(n, 5, &mine);
    assert_int_equal(find(n, &mine).ppm, NEAR_SAME_PPM);
    take(&again, &mine, 0, 100);
    take(&again, &mine, 10, 50);
    assert_int_equal(find(n, &again).ppm, 0);
    again.owner[0] = 2; /* another one */
    assert_true(find(n, &again).ppm > 900000);
    again = (struct text){.owner = {1}};
    take(&again, &mine, 0, 100);
    take(&again, &theirs, 0, 60);
    struct near_found f = find(n, &again);
    assert_int_equal(f.document, 4);
    assert_true(f.ppm > 350000 && f.ppm < 380000);
    near_free(n);
}

static struct near_found find_text(struct near *n, const char *text, int32_t add_as)
{
    static const uint8_t owners[2][20] = {{1}, {2}}; /* who adds, who asks */
    struct near_found f;
    struct buf words;
    buf_init(&words, 1u << 16);
    assert_int_equal(unicode_words(&words, text, strlen(text), NULL), STATUS_OK);
    const struct near_text t = {owners[add_as < 0], words.data, words.len};
    assert_int_equal(near_find(n, &t, &f, NULL), STATUS_OK);
    if (add_as >= 0)
        assert_int_equal(near_add(n, (uint32_t)add_as, &t, NULL), STATUS_OK);
    buf_fini(&words);
    return f;
}

/* A short statement is a copy word for word only: the next one may say otherwise of the same. */
static void test_short(void **state)
{
    struct near *n = create(NEAR_ENTRIES_MAX);
    assert_int_equal(find_text(n, "The mayor of Arden on the Sel is Kelm.", 70).ppm, 0);
    assert_int_equal(find_text(n, "The mayor of Arden on the Sel is Tolv.", 71).ppm, 0);
    struct near_found f = find_text(n, "the  MAYOR of *Arden*, on the Sel:\nis \"Kelm\"", 72);
    assert_int_equal(f.ppm, NEAR_SAME_PPM);
    assert_int_equal(f.document, 70);
    f = find_text(n, "The mayor of Arden on the Sel is Kelm!", -1); /* the first, of two now */
    assert_int_equal(f.document, 70);
    assert_int_equal(find_text(n, "", -1).ppm, 0);
    const struct near_text nothing = {.owner = (const uint8_t[20]){0}};
    assert_int_equal(near_find(n, &nothing, &f, NULL), STATUS_OK);
    assert_int_equal(f.ppm, 0);
    near_free(n);
}

/* Letters without blanks between are words. */
static void test_han(void **state)
{
    static const char first[] = "春眠不觉晓处处闻啼鸟夜来风雨声花落知多少"
                                "白日依山尽黄河入海流欲穷千里目更上一层楼";
    static const char part[] = "床前明月光疑是地上霜处处闻啼鸟夜来风雨声花落知多少";
    struct near *n = create(NEAR_ENTRIES_MAX);
    assert_int_equal(find_text(n, first, 3).ppm, 0);
    struct near_found f = find_text(n, part, -1);
    assert_int_equal(f.document, 3);
    assert_true(f.ppm > 450000 && f.ppm < 550000);
    near_free(n);
}

/* Where there is no room for all shingles a sample stands for them: what is found stays found, and
 * nothing else is. */
static void test_sampled(void **state)
{
    static struct text docs[150], t, other;
    struct near *n = create(2000); /* of 30 000 */
    uint32_t right = 0;
    random_state = 2;
    for (uint32_t d = 0; d < 150; d++) {
        make(&docs[d], WORDS_MAX, 100000);
        docs[d].owner[0] = 1;
        add(n, d, &docs[d]);
    }
    for (uint32_t d = 0; d < 150; d++) {
        struct near_found f = find(n, &docs[d]);
        assert_int_equal(f.document, d);
        assert_int_equal(f.ppm, NEAR_SAME_PPM);
        t.n = 0;
        make(&other, 50, 100000);
        take(&t, &docs[d], 30, 150);
        take(&t, &other, 0, 50);
        f = find(n, &t);
        right += f.document == d && f.ppm >= NEAR_COPY_PPM;
        make(&t, WORDS_MAX, 100000);
        assert_int_equal(find(n, &t).ppm, 0);
    }
    assert_true(right > 140);
    near_free(n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_judged), cmocka_unit_test(test_own),     cmocka_unit_test(test_short),
        cmocka_unit_test(test_han),    cmocka_unit_test(test_sampled),
    };
    return sodium_init() < 0 ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}
