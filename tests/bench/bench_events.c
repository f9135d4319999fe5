/* What the token-event index costs: build, open, and an answer of 512 tokens scored over a million
 * events on one core, eight of its tokens falling back to all learned events. Three worlds:
 *   words     targets as frequent as words are (Zipf)
 *   frequent  twenty targets, each 5 % of all events, and of all tokens of the answer
 *   rows      as words, but the events of four million rows (with --rows)
 * Usage: bench_events [--rows] [EVENTS]      exits 1 when `words` takes more than the bound. */
#include "server/base/clock.h"
#include "server/base/hex.h"
#include "server/base/mem.h"
#include "server/base/philox.h"
#include "server/influence/events_build.h"
#include "server/influence/events_impl.h"
#include "server/influence/events_score.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BOUND_MS 10.0
#define VOCAB    49152
#define D        64
#define TOKENS   512
#define ROUNDS   21
#define FACES    2000 /* distinct places that a head input can be near */

enum world { WORDS, FREQUENT };

struct bench {
    enum world world;
    uint32_t n_rows, row_tokens, n_owners;
    uint32_t at;
    struct events_source_document *document;
    uint8_t (*digest)[32], (*payee)[20];
    struct events_source_row *row;
};

static uint32_t draw(struct bench *b, uint32_t below)
{
    uint32_t out[4], ctr[4] = {b->at++, 0, 0, 0};
    philox4x32(out, ctr, 1);
    return (uint32_t)((uint64_t)out[0] * below >> 32);
}

static int32_t draw_target(struct bench *b)
{
    if (b->world == FREQUENT)
        return (int32_t)draw(b, 20);
    double u = (draw(b, 1u << 30) + 1.0) / (1u << 30); /* P(rank > r) falls as 1 / r */
    return (int32_t)fmin(VOCAB - 20, 10 * (pow(VOCAB / 10.0, u) - 1) + 20 * u);
}

static void embed(void *arg, int32_t id, float *out)
{
    for (uint32_t i = 0; i < D; i += 4) {
        uint32_t word[4], ctr[4] = {(uint32_t)id, i, 0, 0};
        philox4x32(word, ctr, 2);
        for (uint32_t k = 0; k < 4; k++)
            out[i + k] = (float)(philox_unit(word[k]) - 0.5);
    }
}

/* A key near one of FACES places: cosine about .8 with its own, about 0 with the others. */
static void draw_key(struct bench *b, int8_t *key)
{
    uint32_t face = draw(b, FACES);
    for (uint32_t i = 0; i < EVENTS_HALF; i += 4) {
        uint32_t word[4], ctr[4] = {face, i, 0, 0};
        philox4x32(word, ctr, 3);
        for (uint32_t k = 0; k < 4; k++)
            key[i + k] = (int8_t)((int32_t)(word[k] >> 8) % 41 - 20 + (int32_t)draw(b, 15) - 7);
    }
}

static void make_lists(struct bench *b)
{
    uint32_t n_documents = b->n_rows / 20 + b->n_owners;
    b->digest = mem_array(n_documents, 32);
    b->document = mem_array(n_documents, sizeof(*b->document));
    b->payee = mem_array(b->n_owners, 20);
    b->row = mem_array(b->n_rows, sizeof(*b->row));
    for (uint32_t i = 0; i < b->n_owners; i++)
        be_put(b->payee[i], i + 1, 20);
    for (uint32_t i = 0; i < n_documents; i++) {
        be_put(b->digest[i], i, 32);
        b->document[i] = (struct events_source_document){
            .digest = b->digest[i], .owner = i % b->n_owners, .since = 1, .doc_id = i};
    }
    for (uint32_t r = 0; r < b->n_rows; r++)
        b->row[r] = (struct events_source_row){.document = r / 20, .offset = r, .bytes = 1};
}

static void fill_row(struct bench *b, uint32_t row, int32_t *ids, int32_t *base, int32_t *adapter)
{
    b->at = row * 4096;
    for (uint32_t i = 0; i <= b->row_tokens; i++) {
        ids[i] = draw_target(b);
        base[i] = -(int32_t)draw(b, 1200);
        adapter[i] = -(int32_t)draw(b, 600);
    }
}

static enum status pass_row(struct bench *b, struct events_builder *w, uint32_t pass, uint32_t row,
                            struct errtext *err)
{
    static int32_t ids[64], base[64], adapter[64];
    static int8_t key[64][EVENTS_HALF];
    static float hidden[64 * D];
    const struct events_row_tokens t = {.row = row, .ids = ids, .n = b->row_tokens + 1};
    if (pass == 1 && !events_builder_wants_hidden(w, row))
        return STATUS_OK;
    fill_row(b, row, ids, base, adapter);
    if (pass == 0)
        return events_builder_base(w, &t, base, err);
    if (pass == 1) {
        for (uint32_t i = 0; i < b->row_tokens; i++)
            embed(NULL, ids[i], hidden + (size_t)i * D);
        return events_builder_hidden(w, &t, hidden, err);
    }
    for (uint32_t i = 0; i < b->row_tokens; i++)
        draw_key(b, key[i]);
    return events_builder_row(w, &t, adapter, key[0], err);
}

static enum status build(struct bench *b, const char *path, struct errtext *err)
{
    static const uint8_t id[32];
    const struct events_source src = {.adapter_id = id,
                                      .model_id = id,
                                      .document_root = id,
                                      .owner_root = id,
                                      .training_digest = id,
                                      .tokenizer_digest = id,
                                      .document = b->document,
                                      .payee = (const uint8_t(*)[20])b->payee,
                                      .row = b->row,
                                      .n_documents = b->n_rows / 20 + b->n_owners,
                                      .n_owners = b->n_owners,
                                      .n_rows = b->n_rows,
                                      .n_vocab = VOCAB,
                                      .d_model = D,
                                      .embed = embed};
    struct events_builder *w;
    enum status st = events_builder_create(&w, &src, err);
    for (uint32_t pass = 0; !st && pass < 3; pass++) {
        for (uint32_t r = 0; !st && r < b->n_rows; r++)
            st = pass_row(b, w, pass, r, err);
        if (!st && pass == 1)
            st = events_builder_basis(w, err);
    }
    if (!st)
        st = events_builder_finish(w, path, err);
    events_builder_free(w);
    return st;
}

struct answer {
    int32_t target[TOKENS], gain[TOKENS];
    int8_t key[TOKENS][EVENTS_KEY];
};

/* Tokens as the rows have them, each with the key of some event; eight that no event has. */
static void make_answer(struct bench *b, const struct events *e, struct answer *a)
{
    b->at = 3000000000u;
    for (uint32_t t = 0; t < TOKENS; t++) {
        uint32_t event = draw(b, e->head->n_events);
        a->target[t] = t % 64 == 0 ? VOCAB - 1 - (int32_t)(t / 64) : draw_target(b);
        a->gain[t] = (int32_t)draw(b, 800);
        events_key_gather(a->key[t], e->key1, event);
        events_key_gather(a->key[t] + EVENTS_HALF, e->key2, event);
    }
}

/* The core's time for this thread, whoever else runs. */
static double thread_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double score_median(const struct events *e, const struct answer *a, uint64_t *compared,
                           uint32_t *rows)
{
    double ms[ROUNDS];
    const struct events_query q = {
        .target = a->target, .gain_q8 = a->gain, .key = a->key[0], .n = TOKENS};
    for (uint32_t i = 0; i < ROUNDS; i++) {
        struct events_scores *s;
        static struct events_top top[64];
        double began = thread_ms();
        if (events_score(&s, e, &q, 1, NULL))
            return -1;
        *rows = events_scores_top(s, top, 64);
        ms[i] = thread_ms() - began;
        *compared = events_scores_compared(s);
        events_scores_free(s);
    }
    qsort(ms, ROUNDS, sizeof(*ms), by_value);
    return ms[ROUNDS / 2];
}

static double run(const char *name, struct bench *b)
{
    char path[64];
    struct errtext err = ERRTEXT_INIT;
    struct events *e = NULL;
    static struct answer a;
    uint64_t compared = 0;
    uint32_t rows = 0;
    snprintf(path, sizeof(path), "/tmp/bench-events-%d", (int)getpid());
    make_lists(b);
    uint64_t began = clock_mono_ns();
    enum status st = build(b, path, &err);
    uint64_t built = clock_mono_ns();
    if (!st)
        st = events_open(&e, path, NULL, &err);
    uint64_t opened = clock_mono_ns();
    (void)unlink(path);
    if (st) {
        fprintf(stderr, "%s: %s\n", name, err.text);
        exit(2);
    }
    make_answer(b, e, &a);
    double ms = score_median(e, &a, &compared, &rows);
    double basis = (double)D * EVENTS_HALF * 4 + VOCAB * 2.0;
    printf("%-9s %8u events %8u rows  %.1f bytes an event (at most 144)  build %.1f s"
           "  open %.2f s  score %.2f ms (bound %.0f)  %llu compared  %u joined  lambda %.3f\n",
           name, e->head->n_events, e->head->n_rows,
           ((double)events_file_bytes(e) - basis) / e->head->n_events,
           (double)(built - began) / 1e9, (double)(opened - built) / 1e9, ms, BOUND_MS,
           (unsigned long long)compared, e->head->n_joined, e->head->trust.lambda / 1e9);
    events_release(e);
    mem_free(b->digest);
    mem_free(b->document);
    mem_free(b->payee);
    mem_free(b->row);
    return ms;
}

int main(int argc, char **argv)
{
    bool many = argc > 1 && strcmp(argv[1], "--rows") == 0;
    uint32_t events = argc > 1 + many ? (uint32_t)strtoul(argv[1 + many], NULL, 10) : 1000000;
    struct events_dots_path path[3];
    (void)events_dots_paths(path);
    printf("%u query tokens, %s, one thread's own time, median of %d\n", TOKENS, path[0].name,
           ROUNDS);
    struct bench words = {.world = WORDS, .n_rows = events / 20, .row_tokens = 20, .n_owners = 50};
    struct bench frequent = words, rows = words;
    frequent.world = FREQUENT;
    rows.n_rows = 4000000;
    rows.row_tokens = 1;
    rows.n_owners = 100000;
    double ms = run("words", &words);
    (void)run("frequent", &frequent);
    if (many)
        (void)run("rows", &rows);
    return ms > BOUND_MS;
}
