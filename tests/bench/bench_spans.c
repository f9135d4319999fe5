/* Spans at size: building a segment, opening it, and questions of 512 tokens against it.
 *
 *     bench_spans DIR [tokens] [questions]        (10000000, 1000)
 *
 * The text is made, from a fixed seed: word frequencies as in language (rank^-1.07 over 49 152
 * ids), and one draw in eight begins a passage of 3 to 40 tokens that stood before, so that spans
 * of every length repeat. A question is fragments of 1 to 16 tokens of the text, one after the
 * other: more spans than an answer has. DIR keeps corpus.u16, documents.u64, questions.i32 and the
 * answers, spans.i32, for spans_peer.py, which asks infini-gram the same. Times are processor times
 * of one thread, and of the clock on the wall. */
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/mem.h"
#include "server/influence/spans.h"

#include <inttypes.h>
#include <math.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define VOCAB        49152u
#define OWNERS       1000u
#define QUESTION     512u
#define PROMPT       64u
#define DOCUMENT_MAX 700u
#define HITS_MAX     256u
#define SEPARATOR    0xffffu /* the peer's */
#define PLACES       10u

struct corpus {
    uint16_t *tok;
    uint32_t n, n_document;
    uint32_t *begin; /* [n_document + 1] */
    uint8_t (*digest)[32];
    int32_t ids[DOCUMENT_MAX];
    uint32_t offset[DOCUMENT_MAX + 1];
};

static uint64_t random_state = 10;

static uint64_t draw(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state * 2685821657736338717u >> 20;
}

static uint64_t cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void make_tokens(struct corpus *c)
{
    double *sum = mem_array(VOCAB, sizeof(*sum)), all = 0;
    for (uint32_t v = 0; v < VOCAB; v++)
        sum[v] = all += pow(v + 2.7, -1.07);
    for (uint32_t i = 0; i < c->n;) {
        if (i > 100 && draw() % 8 == 0) {
            uint32_t from = (uint32_t)(draw() % (i - 40)), len = 3 + (uint32_t)(draw() % 38);
            while (len-- > 0 && i < c->n)
                c->tok[i++] = c->tok[from++];
            continue;
        }
        double at = (double)(draw() % (1u << 30)) / (1u << 30) * all;
        uint32_t lo = 0, hi = VOCAB - 1;
        while (lo < hi) {
            uint32_t mid = (lo + hi) / 2;
            if (sum[mid] <= at)
                lo = mid + 1;
            else
                hi = mid;
        }
        c->tok[i++] = (uint16_t)lo;
    }
    mem_free(sum);
}

static int by_digest(const void *a, const void *b)
{
    return memcmp(a, b, 32);
}

static void make_corpus(struct corpus *c, uint32_t n)
{
    c->n = n;
    c->tok = mem_array(n, sizeof(*c->tok));
    c->begin = mem_array(n / 100 + 2, sizeof(*c->begin));
    make_tokens(c);
    for (uint32_t at = 0; at < n; at += 100 + (uint32_t)(draw() % (DOCUMENT_MAX - 100)))
        c->begin[c->n_document++] = at;
    c->begin[c->n_document] = n;
    c->digest = mem_array(c->n_document, sizeof(*c->digest));
    for (uint32_t d = 0; d < c->n_document; d++)
        for (uint32_t i = 0; i < 32; i += 8)
            memcpy(c->digest[d] + i, &(uint64_t){draw()}, 8);
    qsort(c->digest, c->n_document, 32, by_digest);
    for (uint32_t i = 0; i <= DOCUMENT_MAX; i++)
        c->offset[i] = 4 * i;
}

static enum status give(void *arg, uint32_t i, struct spans_document *out, struct errtext *err)
{
    struct corpus *c = arg;
    uint32_t n = c->begin[i + 1] - c->begin[i];
    for (uint32_t t = 0; t < n; t++)
        c->ids[t] = c->tok[c->begin[i] + t];
    *out = (struct spans_document){
        .digest = c->digest[i], .owner = i % OWNERS, .n = n, .ids = c->ids, .offset = c->offset};
    return STATUS_OK;
}

static void make_question(const struct corpus *c, int32_t *ids)
{
    for (uint32_t i = 0; i < QUESTION;) {
        uint32_t len = 1 + (uint32_t)(draw() % 16), from = (uint32_t)(draw() % (c->n - 16));
        while (len-- > 0 && i < QUESTION)
            ids[i++] = c->tok[from++];
    }
}

static FILE *create(const char *dir, const char *name)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    if (!f)
        PANIC("%s cannot be created", path);
    return f;
}

/* As infini-gram keeps them: every document behind a separator, and where each begins, in bytes. */
static void write_peer(const struct corpus *c, const char *dir, const int32_t *ids, uint32_t n)
{
    FILE *tok = create(dir, "corpus.u16"), *at = create(dir, "documents.u64");
    FILE *question = create(dir, "questions.i32");
    for (uint32_t d = 0; d < c->n_document; d++) {
        uint64_t begin = 2 * ((uint64_t)c->begin[d] + d);
        uint16_t separator = SEPARATOR;
        uint32_t len = c->begin[d + 1] - c->begin[d];
        CHECK(fwrite(&begin, sizeof(begin), 1, at) == 1 && fwrite(&separator, 2, 1, tok) == 1);
        CHECK(fwrite(c->tok + c->begin[d], 2, len, tok) == len);
    }
    CHECK(fwrite(ids, sizeof(*ids) * QUESTION, n, question) == n);
    CHECK(fclose(tok) == 0 && fclose(at) == 0 && fclose(question) == 0);
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void say(const char *what, uint64_t *ns, uint32_t n)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += ns[i];
    qsort(ns, n, sizeof(*ns), compare);
    printf("%-34s mean %.3f ms   p50 %.3f ms   p99 %.3f ms   max %.3f ms\n", what,
           (double)sum / n * 1e-6, (double)ns[n / 2] * 1e-6, (double)ns[n * 99 / 100] * 1e-6,
           (double)ns[n - 1] * 1e-6);
}

/* Answers as (question, begin, tokens, occurrences). */
static void write_hits(FILE *to, uint32_t question, const struct spans_hit *hit, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t row[4] = {question, hit[i].begin, hit[i].n_tok, hit[i].count};
        CHECK(fwrite(row, sizeof(row), 1, to) == 1);
    }
}

static void ask(const struct spans *s, const int32_t *ids, uint32_t n, FILE *answers)
{
    static struct spans_hit hit[HITS_MAX];
    static uint64_t weight[OWNERS];
    struct spans_place place[PLACES];
    uint64_t *find = mem_array(n, sizeof(*find)), *wall = mem_array(n, sizeof(*wall));
    uint64_t *weigh = mem_array(n, sizeof(*weigh)), *where = mem_array(n, sizeof(*where));
    uint64_t hits = 0, found;
    for (uint32_t i = 0; i < n; i++) {
        const int32_t *q = ids + (size_t)i * QUESTION;
        uint32_t n_hit, shown;
        uint64_t w0 = clock_mono_ns(), t0 = cpu_ns();
        CHECK(spans_find(s, q, QUESTION, PROMPT, hit, HITS_MAX, &n_hit) == STATUS_OK);
        uint64_t t1 = cpu_ns();
        wall[i] = clock_mono_ns() - w0;
        CHECK(spans_owner_weights(s, hit, n_hit, PROMPT, weight) == STATUS_OK);
        uint64_t t2 = cpu_ns();
        for (found = shown = 0; shown < n_hit && shown < 16; shown++)
            found += spans_places(s, &hit[shown], place, PLACES);
        where[i] = cpu_ns() - t2;
        weigh[i] = t2 - t1;
        find[i] = t1 - t0;
        hits += n_hit;
        write_hits(answers, i, hit, n_hit);
    }
    printf("%u questions of %u tokens, %u of them prompt: %.1f spans each\n", n, QUESTION, PROMPT,
           (double)hits / n);
    say("find", find, n);
    say("find, on the wall", wall, n);
    say("owners' weights", weigh, n);
    say("places of 16 spans", where, n);
    mem_free(find);
    mem_free(wall);
    mem_free(weigh);
    mem_free(where);
}

int main(int argc, char **argv)
{
    static struct corpus c;
    struct errtext err = ERRTEXT_INIT;
    struct spans *s;
    static const uint8_t zero[32];
    char path[512];
    if (argc < 2 || sodium_init() < 0)
        PANIC("usage: bench_spans DIR [tokens] [questions]");
    uint32_t n = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 10000000u;
    uint32_t questions = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 1000u;
    CHECK(n >= 10000 && questions > 0);
    make_corpus(&c, n);
    int32_t *ids = mem_array((size_t)questions * QUESTION, sizeof(*ids));
    for (uint32_t i = 0; i < questions; i++)
        make_question(&c, ids + (size_t)i * QUESTION);
    write_peer(&c, argv[1], ids, questions);
    const struct spans_source src = {.document_root = zero,
                                     .tokenizer_digest = zero,
                                     .n_document = c.n_document,
                                     .n_owner = OWNERS,
                                     .n_vocab = VOCAB,
                                     .document = give,
                                     .arg = &c};
    snprintf(path, sizeof(path), "%s/segment.spans", argv[1]);
    uint64_t wall = clock_mono_ns(), cpu = cpu_ns();
    if (spans_build(path, &src, &err))
        PANIC("%s", err.text);
    double sec = (double)(cpu_ns() - cpu) * 1e-9;
    printf("%u tokens, %u documents: built in %.2f s of processor (%.2f on the wall), "
           "%.2f M tokens/s\n",
           n, c.n_document, sec, (double)(clock_mono_ns() - wall) * 1e-9, n / sec * 1e-6);
    cpu = cpu_ns();
    if (spans_open(&s, path, NULL, &err))
        PANIC("%s", err.text);
    printf("opened and verified in %.3f s; %.2f bytes a token\n", (double)(cpu_ns() - cpu) * 1e-9,
           (double)spans_head(s)->bytes / n);
    FILE *answers = create(argv[1], "spans.i32");
    ask(s, ids, questions, answers);
    CHECK(fclose(answers) == 0);
    spans_release(s);
    mem_free(ids);
    mem_free(c.tok);
    mem_free(c.begin);
    mem_free(c.digest);
    return 0;
}
