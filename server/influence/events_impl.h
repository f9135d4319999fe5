/* Inside of the event index, for the files events*.c: where the sections of a file lie, and the dot
 * products of its key blocks. */
#ifndef RS_INFLUENCE_EVENTS_IMPL_H
#define RS_INFLUENCE_EVENTS_IMPL_H

#include "server/influence/events.h"

#include <stdatomic.h>

#define EVENTS_LANES    16
#define EVENTS_BLOCK    (EVENTS_LANES * EVENTS_HALF) /* bytes of one half of 16 events */
#define EVENTS_HALF_DOT 16129                        /* 127^2: of a half with itself */
#define EVENTS_DOT      (2 * EVENTS_HALF_DOT)
#define EVENTS_C_ONE    (1u << 30)
#define EVENTS_ROOT     32

struct events_list {
    uint32_t target, begin;
};

enum events_section {
    EVENTS_SECTION_HEAD,
    EVENTS_SECTION_W,
    EVENTS_SECTION_BIAS,
    EVENTS_SECTION_CONTEXT_W,
    EVENTS_SECTION_CONTEXT_BIAS,
    EVENTS_SECTION_SURPRISE,
    EVENTS_SECTION_DOCUMENTS,
    EVENTS_SECTION_OWNERS,
    EVENTS_SECTION_ROWS,
    EVENTS_SECTION_LISTS,
    EVENTS_SECTION_EVENT_ROW,
    EVENTS_SECTION_LEARNED,
    EVENTS_SECTION_KEY1,
    EVENTS_SECTION_KEY2,
    EVENTS_SECTION_ROOT,
    EVENTS_SECTIONS
};

struct events {
    atomic_uint refs;
    void *map;
    size_t bytes;
    const struct events_head *head;
    const uint16_t *basis_w, *context_w;
    const float *basis_bias, *context_bias;
    const uint16_t *surprise;
    const uint8_t *document;
    const struct events_owner *owner;
    const struct events_row *row;
    const struct events_list *list;
    const uint32_t *event_row;
    const uint16_t *learned;
    const int8_t *key1, *key2;
    const uint8_t *root;
    uint32_t *power;    /* [EVENTS_DOT + 1]: c of a dot product of both halves */
    float *context_w_t; /* [d_model][64] */
};

/* Offsets of the sections and of their end; from counts within the limits of events.h. */
void events_layout(const struct events_head *h, uint64_t at[EVENTS_SECTIONS + 1]);
/* Point e's members into the image of a whole file. */
void events_bind(struct events *e, const uint8_t *image);
/* c of all dot products up to dot_max (D of the rule). */
void events_power_fill(uint32_t *power, uint32_t dot_max, uint32_t squarings);
/* Events [begin, end) of a target: part 0 learned, part 1 the rest. Empty when it has none. */
void events_target_range(const struct events *e, uint32_t part, int32_t target, uint32_t *begin,
                         uint32_t *end);
/* One event's half from its blocks. */
void events_key_gather(int8_t out[EVENTS_HALF], const int8_t *blocks, uint32_t event);
/* The first event of [begin, end), all of one target, whose row is not below row. */
uint32_t events_row_bound(const struct events *e, uint32_t begin, uint32_t end, uint64_t row);
void events_root_of(uint8_t out[EVENTS_ROOT], const uint8_t *file, size_t bytes_before);

#define EVENTS_TILE 8 /* queries at a time */
/* dot1[q][lane] of k1 with a query's first 64 bytes, dot[q][lane] of both halves (k2 NULL: the same
 * as dot1), and the bits of the lanes with dot >= min[q] or dot1 >= min1[q]. */
struct events_dots {
    const int8_t *query[EVENTS_TILE]; /* [128], or [64]; no byte is -128 */
    int32_t shift[EVENTS_TILE][2];    /* -128 times the sum of a half; set by events_dots_query */
    int32_t min[EVENTS_TILE], min1[EVENTS_TILE];
    uint32_t n;
    int32_t dot1[EVENTS_TILE][EVENTS_LANES], dot[EVENTS_TILE][EVENTS_LANES];
    uint16_t over[EVENTS_TILE];
};
void events_dots_query(struct events_dots *t, uint32_t q, const int8_t *query, bool both);
typedef void (*events_dots_fn)(struct events_dots *t, const int8_t *k1, const int8_t *k2);
struct events_dots_path {
    const char *name;
    events_dots_fn run;
};
/* The paths this processor can run, fastest first; all give the same integers. */
uint32_t events_dots_paths(struct events_dots_path out[3]);

/* events_score as the builder asks an index about itself: without a row (EVENTS_NONE: with all),
 * and by half 2 alone (D = 127^2). */
struct events_held {
    uint32_t row;
    bool half_two;
};
struct events_scores;
struct events_query;
MUST_CHECK enum status events_score_held(struct events_scores **out, const struct events *e,
                                         const struct events_query *q, uint32_t n_query,
                                         struct events_held held, struct errtext *err);

#endif
