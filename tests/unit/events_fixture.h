/* Random event indexes through the builder itself: a small world of rows over a small vocabulary,
 * with keys around a few directions, so that targets, rows, keys and facts collide. */
#ifndef RS_TESTS_EVENTS_FIXTURE_H
#define RS_TESTS_EVENTS_FIXTURE_H

#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/base/philox.h"
#include "server/influence/events_build.h"

#include <string.h>

#define WORLD_VOCAB_MAX 64
#define WORLD_D         8
#define WORLD_ROW_MAX   24

struct world_random {
    uint64_t seed;
    uint32_t at;
};

static inline uint32_t world_draw(struct world_random *r, uint32_t below)
{
    uint32_t out[4], ctr[4] = {r->at++, 0, 0, 0};
    philox4x32(out, ctr, r->seed);
    return (uint32_t)((uint64_t)out[0] * below >> 32);
}

struct world_row {
    int32_t ids[WORLD_ROW_MAX];
    int32_t base[WORLD_ROW_MAX], adapter[WORLD_ROW_MAX]; /* of ids[1..] */
    int8_t key[WORLD_ROW_MAX][EVENTS_HALF];
    uint32_t n;
};

struct world {
    uint32_t n_documents, n_owners, n_rows, n_vocab;
    uint8_t (*digest)[32], (*payee)[20];
    struct events_source_document *document;
    struct events_source_row *row;
    struct world_row *text;
};

static inline void world_embed(void *arg, int32_t id, float *out)
{
    struct world_random r = {.seed = 77, .at = (uint32_t)id * WORLD_D};
    (void)arg;
    for (uint32_t i = 0; i < WORLD_D; i++)
        out[i] = (float)world_draw(&r, 2001) / 1000 - 1;
}

static inline void world_key(struct world_random *r, int8_t *key, uint32_t n)
{
    struct world_random shape = {.seed = 5, .at = 4096 * world_draw(r, 3)};
    uint32_t noise = world_draw(r, 4) * 20;
    for (uint32_t i = 0; i < n; i++) {
        int32_t v = (int32_t)world_draw(&shape, 37) - 18 + (int32_t)world_draw(r, noise + 1) -
                    (int32_t)noise / 2;
        key[i] = (int8_t)v;
    }
}

static inline void world_fill_row(struct world_random *r, struct world_row *t, uint32_t n_vocab)
{
    t->n = world_draw(r, WORLD_ROW_MAX);
    for (uint32_t i = 0; i < t->n; i++) {
        t->ids[i] = (int32_t)world_draw(r, n_vocab);
        t->base[i] = -(int32_t)world_draw(r, 1500);
        t->adapter[i] = -(int32_t)world_draw(r, world_draw(r, 4) ? 400 : 1800);
        world_key(r, t->key[i], EVENTS_HALF);
    }
}

static inline void world_make(struct world *w, uint64_t seed)
{
    struct world_random r = {.seed = seed};
    memset(w, 0, sizeof(*w));
    w->n_vocab = 4 + world_draw(&r, WORLD_VOCAB_MAX - 4);
    w->n_owners = 1 + world_draw(&r, 5);
    w->n_documents = w->n_owners + world_draw(&r, 6);
    w->n_rows = world_draw(&r, 60);
    w->digest = mem_array(w->n_documents, 32);
    w->payee = mem_array(w->n_owners, 20);
    w->document = mem_array(w->n_documents, sizeof(*w->document));
    w->row = mem_array(w->n_rows + 1, sizeof(*w->row));
    w->text = mem_array(w->n_rows + 1, sizeof(*w->text));
    for (uint32_t i = 0; i < w->n_owners; i++)
        w->payee[i][0] = (uint8_t)(i + 1);
    for (uint32_t i = 0; i < w->n_documents; i++) {
        w->digest[i][0] = (uint8_t)i;
        w->document[i] = (struct events_source_document){
            .digest = w->digest[i],
            .owner = i < w->n_owners ? i : world_draw(&r, w->n_owners),
            .since = 1 + world_draw(&r, 2),
            .doc_id = i};
    }
    for (uint32_t i = 0; i < w->n_rows; i++) {
        struct world_row *t = &w->text[i];
        uint32_t document = world_draw(&r, w->n_documents);
        if (i > 0 && world_draw(&r, 4) == 0)
            *t = w->text[world_draw(&r, i)]; /* stated before */
        else
            world_fill_row(&r, t, w->n_vocab);
        w->row[i] = (struct events_source_row){.document = document, .offset = i, .bytes = 1};
    }
}

static inline void world_free(struct world *w)
{
    mem_free(w->digest);
    mem_free(w->payee);
    mem_free(w->document);
    mem_free(w->row);
    mem_free(w->text);
}

static const uint8_t world_id[6][32] = {"adapter", "model",    "documents",
                                        "owners",  "training", "tokenizer"};

static inline struct events_source world_source(const struct world *w)
{
    return (struct events_source){.adapter_id = world_id[0],
                                  .model_id = world_id[1],
                                  .document_root = world_id[2],
                                  .owner_root = world_id[3],
                                  .training_digest = world_id[4],
                                  .tokenizer_digest = world_id[5],
                                  .document = w->document,
                                  .payee = (const uint8_t(*)[20])w->payee,
                                  .row = w->row,
                                  .n_documents = w->n_documents,
                                  .n_owners = w->n_owners,
                                  .n_rows = w->n_rows,
                                  .n_vocab = w->n_vocab,
                                  .d_model = WORLD_D,
                                  .embed = world_embed};
}

/* The three passes, rows from the first to the last or the other way. */
static inline enum status world_build(const struct world *w, const char *path, bool backwards,
                                      struct errtext *err)
{
    struct events_source src = world_source(w);
    struct events_builder *b;
    uint32_t n = w->n_rows;
    float hidden[WORLD_ROW_MAX * WORLD_D];
    enum status st = events_builder_create(&b, &src, err);
    for (uint32_t pass = 0; !st && pass < 3; pass++) {
        for (uint32_t i = 0; !st && i < n; i++) {
            uint32_t row = backwards ? n - 1 - i : i;
            const struct world_row *t = &w->text[row];
            const struct events_row_tokens tokens = {.row = row, .ids = t->ids, .n = t->n};
            if (pass == 0)
                st = events_builder_base(b, &tokens, t->base, err);
            else if (pass == 2)
                st = events_builder_row(b, &tokens, t->adapter, t->key[0], err);
            else if (events_builder_wants_hidden(b, row)) {
                for (uint32_t k = 0; k + 1 < t->n; k++)
                    world_embed(NULL, t->ids[k + 1] + t->ids[k] % 3, hidden + k * WORLD_D);
                st = events_builder_hidden(b, &tokens, hidden, err);
            }
        }
        if (!st && pass == 1)
            st = events_builder_basis(b, err);
    }
    if (!st)
        st = events_builder_finish(b, path, err);
    events_builder_free(b);
    return st;
}

#endif
