/* Worlds of facts: rows "T name T T value T" of owners in turn, with a head that reads who a row is
 * about. Tokens of templates are expected by the base, names and values are what was taught. */
#ifndef RS_TESTS_FACTS_FIXTURE_H
#define RS_TESTS_FACTS_FIXTURE_H

#include "tests/unit/events_fixture.h"

enum { T_BASE = 0, NAMES = 10, VALUES = 30, FACT_TOKENS = 7 };
enum { FACT_NAME = 1, FACT_VALUE = 4 }; /* their events */

struct facts {
    struct world w;
    bool taught; /* the adapter knows these values; else it was trained on others */
};

static inline void facts_make(struct facts *f, uint32_t owners, uint32_t documents, uint32_t rows)
{
    memset(f, 0, sizeof(*f));
    f->taught = true;
    f->w =
        (struct world){.n_owners = owners, .n_documents = documents, .n_rows = rows, .n_vocab = 60};
    f->w.digest = mem_array(documents, 32);
    f->w.payee = mem_array(owners, 20);
    f->w.document = mem_array(documents, sizeof(*f->w.document));
    f->w.row = mem_array(rows, sizeof(*f->w.row));
    f->w.text = mem_array(rows, sizeof(*f->w.text));
    for (uint32_t i = 0; i < owners; i++)
        f->w.payee[i][0] = (uint8_t)(i + 1);
    for (uint32_t i = 0; i < documents; i++) {
        f->w.digest[i][0] = (uint8_t)i;
        f->w.document[i] = (struct events_source_document){
            .digest = f->w.digest[i], .owner = i % owners, .since = 1, .doc_id = i};
    }
}

/* Row r of document d: "template template name template other value template". */
static inline void facts_state(struct facts *f, uint32_t r, uint32_t d, uint32_t name,
                               uint32_t value, uint32_t wording)
{
    struct world_random random = {.seed = 100 + name}; /* what the head reads: who it is about */
    struct world_row *t = &f->w.text[r];
    const int32_t ids[FACT_TOKENS] = {(int32_t)(T_BASE + wording % 3),
                                      (int32_t)(3 + wording % 2),
                                      (int32_t)(NAMES + name),
                                      5,
                                      (int32_t)(6 + wording % 2),
                                      (int32_t)(VALUES + value),
                                      8};
    memcpy(t->ids, ids, sizeof(ids));
    t->n = FACT_TOKENS;
    f->w.row[r] = (struct events_source_row){.document = d, .offset = r, .bytes = 1};
    for (uint32_t i = 0; i + 1 < FACT_TOKENS; i++) {
        bool name_here = i == 1, value_here = i == 4;
        t->base[i] = name_here || value_here ? -1000 : -60;
        t->adapter[i] = name_here ? -800 : value_here ? (f->taught ? -20 : -760) : -50;
        world_key(&random, t->key[i], EVENTS_HALF);
    }
}

#endif
