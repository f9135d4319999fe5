/* Scoring. Events of a target lie side by side, so the answer's tokens are grouped by target and a
 * group meets its events in pieces that a cache holds: a piece is a range of rows, all tokens of
 * the group pass over it eight at a time, and what is added to a row's score is the best of the
 * piece's events of the row, which are all its events of this target. The fallback's tokens pass
 * over every learned event together. The power of the cosine is a table over the dot product, and
 * one too small to count even with the most an event can have learned is not looked at. */
#include "server/influence/events_score.h"
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/influence/events_impl.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static_assert(EVENTS_FALLBACK_MAX <= EVENTS_TILE, "the fallback's tokens pass together");

#define PIECE_EVENTS 1024 /* of a part: 128 KiB of keys */

struct scored_token {
    uint32_t target, index; /* index: over all choices */
    uint32_t gain;          /* Q8, 0 to 65535 */
    bool in_prompt, fallback;
    const int8_t *key;
};

struct scored_row {
    uint64_t score, best; /* best: the largest that one token added */
    uint64_t cluster;     /* of the row as a cluster */
    uint32_t best_token;
    uint32_t pass, slot; /* where this pass keeps its maxima, if pass is the current one */
};

struct token_best {
    uint64_t v;
    uint32_t row;
};

struct row_slot {
    uint32_t row;
    uint64_t v[EVENTS_TILE];
};

struct events_scores {
    uint32_t n_tokens, n_rows, n_hit, n_cluster;
    struct scored_row *row; /* [n_rows]; untouched pages stay unmapped */
    uint32_t *hit;          /* rows with a score */
    uint32_t *cluster;      /* clusters with one */
    struct token_best *token;
    u128 *owner; /* [EVENTS_SUBS][n_owners] */
    u128 rows_sum;
    uint64_t compared;
    uint32_t n_owners;
};

struct scoring {
    const struct events *e;
    struct events_scores *out;
    struct scored_token *token; /* by target, then index; the fallback's last */
    struct row_slot *slot;      /* [n_rows] at most used */
    uint32_t n_slot, pass;
    uint32_t *power_half;
    events_dots_fn dots;
    struct events_held held;
    /* the pass */
    struct events_dots tile;
    const struct scored_token *of[EVENTS_TILE];
};

static void credit_slot(struct scoring *s, uint32_t row, uint32_t q, uint64_t v)
{
    struct scored_row *sum = &s->out->row[row];
    if (sum->pass != s->pass) {
        sum->pass = s->pass;
        sum->slot = s->n_slot++;
        memset(&s->slot[sum->slot], 0, sizeof(struct row_slot));
        s->slot[sum->slot].row = row;
    }
    uint64_t *best = &s->slot[sum->slot].v[q];
    *best = MAX(*best, v);
}

/* c of one of the tile's dot products. */
static uint64_t cosine_of(const struct scoring *s, uint32_t q, uint32_t lane, bool half)
{
    int32_t dot1 = MIN(s->tile.dot1[q][lane], EVENTS_HALF_DOT);
    uint64_t c1 = s->power_half[MAX(dot1, 0)];
    if (half)
        return c1;
    int32_t dot = MIN(s->tile.dot[q][lane], EVENTS_DOT);
    return MAX(s->e->power[MAX(dot, 0)], (c1 * s->e->head->method.half1_part) >> 8);
}

/* The events of a block that count for query q: their v, into their rows. */
static void credit_block(struct scoring *s, uint32_t first, uint32_t lanes, uint32_t q, bool half)
{
    const struct events *e = s->e;
    uint64_t gain = (uint64_t)s->of[q]->gain + e->head->method.gain_floor;
    for (uint32_t over = s->tile.over[q] & lanes; over; over &= over - 1) {
        uint32_t lane = (uint32_t)__builtin_ctz(over), event = first + lane;
        uint64_t learned = (uint64_t)e->learned[event] + e->head->method.learned_floor;
        uint64_t v = (gain * learned * cosine_of(s, q, lane, half)) >> 16;
        if (v && e->event_row[event] != s->held.row)
            credit_slot(s, e->event_row[event], q, v);
    }
}

/* The events of the block at `first` that lie in [begin, end), as bits. */
static uint32_t lanes_of(uint32_t first, uint32_t begin, uint32_t end)
{
    uint32_t lanes = first < begin ? 0xffffu << (begin - first) & 0xffffu : 0xffffu;
    return end - first < EVENTS_LANES ? lanes & 0xffffu >> (EVENTS_LANES - (end - first)) : lanes;
}

/* All queries of the tile over the events [begin, end); half: by half 2 alone. */
static void scan_events(struct scoring *s, uint32_t begin, uint32_t end, bool half)
{
    const struct events *e = s->e;
    for (uint32_t first = begin - begin % EVENTS_LANES; first < end; first += EVENTS_LANES) {
        size_t at = (size_t)(first / EVENTS_LANES) * EVENTS_BLOCK;
        uint32_t lanes = lanes_of(first, begin, end);
        s->dots(&s->tile, (half ? e->key2 : e->key1) + at, half ? NULL : e->key2 + at);
        for (uint32_t q = 0; q < s->tile.n; q++) {
            if (s->tile.over[q] & lanes)
                credit_block(s, first, lanes, q, half);
        }
    }
    s->out->compared += (uint64_t)(end - begin) * s->tile.n;
}

/* The smallest dot product whose power, of which `part` of 256 counts, gives an event v > 0. */
static int32_t least_dot(const uint32_t *power, uint32_t dot_max, uint64_t factor, uint64_t part)
{
    uint32_t low = 1, high = dot_max + 1;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if ((factor * ((power[mid] * part) >> 8)) >> 16)
            high = mid;
        else
            low = mid + 1;
    }
    return low > dot_max ? INT32_MAX : (int32_t)low;
}

static void pass_begin(struct scoring *s, const struct scored_token *first, uint32_t n, bool half)
{
    s->pass++;
    s->n_slot = 0;
    s->tile.n = n;
    for (uint32_t q = 0; q < n; q++) {
        s->of[q] = &first[q];
        events_dots_query(&s->tile, q, first[q].key + (half ? EVENTS_HALF : 0), !half);
    }
}

/* What the tile's queries look at, among events that learned `most` at the most. */
static void pass_min(struct scoring *s, uint64_t most, bool half)
{
    const struct events_method *m = &s->e->head->method;
    for (uint32_t q = 0; q < s->tile.n; q++) {
        uint64_t factor = ((uint64_t)s->of[q]->gain + m->gain_floor) * (most + m->learned_floor);
        s->tile.min1[q] =
            least_dot(s->power_half, EVENTS_HALF_DOT, factor, half ? 256 : m->half1_part);
        s->tile.min[q] = half ? INT32_MAX : least_dot(s->e->power, EVENTS_DOT, factor, 256);
    }
}

static void flush_one(struct scoring *s, const struct row_slot *slot, uint32_t q)
{
    struct scored_row *sum = &s->out->row[slot->row];
    uint32_t token = s->of[q]->index;
    uint64_t v = slot->v[q];
    struct token_best *best = &s->out->token[token];
    if (sum->score == 0)
        s->out->hit[s->out->n_hit++] = slot->row;
    sum->score = MIN(sum->score + v, EVENTS_SCORE_MAX);
    if (v > sum->best || (v == sum->best && token < sum->best_token)) {
        sum->best = v;
        sum->best_token = token;
    }
    if (v > best->v || (v == best->v && slot->row < best->row))
        *best = (struct token_best){.v = v, .row = slot->row};
}

static void pass_end(struct scoring *s)
{
    for (uint32_t i = 0; i < s->n_slot; i++) {
        for (uint32_t q = 0; q < s->tile.n; q++) {
            if (s->slot[i].v[q])
                flush_one(s, &s->slot[i], q);
        }
    }
}

struct target_group {
    uint32_t at[2], end[2]; /* events not yet met, of the two parts */
};

/* The row before which the next piece of the group's events ends. */
static uint64_t piece_end(const struct events *e, const struct target_group *g)
{
    uint64_t row = UINT64_MAX, first = UINT64_MAX;
    for (uint32_t part = 0; part < 2; part++) {
        if (g->at[part] == g->end[part])
            continue;
        first = MIN(first, (uint64_t)e->event_row[g->at[part]]);
        if (g->end[part] - g->at[part] > PIECE_EVENTS)
            row = MIN(row, (uint64_t)e->event_row[g->at[part] + PIECE_EVENTS]);
    }
    return MAX(row, first + 1);
}

static void meet_piece(struct scoring *s, const struct target_group *g, const uint32_t stop[2],
                       const struct scored_token *first, uint32_t n)
{
    bool half = s->held.half_two;
    for (uint32_t i = 0; i < n; i += EVENTS_TILE) {
        pass_begin(s, first + i, MIN(n - i, (uint32_t)EVENTS_TILE), half);
        for (uint32_t part = 0; part < 2; part++) {
            if (g->at[part] == stop[part])
                continue;
            pass_min(s, part ? s->e->head->method.learned_min - 1 : UINT16_MAX, half);
            scan_events(s, g->at[part], stop[part], half);
        }
        pass_end(s);
    }
}

/* n tokens of one target. */
static void meet_target(struct scoring *s, const struct scored_token *first, uint32_t n)
{
    const struct events *e = s->e;
    struct target_group g;
    for (uint32_t part = 0; part < 2; part++)
        events_target_range(e, part, (int32_t)first->target, &g.at[part], &g.end[part]);
    while (g.at[0] < g.end[0] || g.at[1] < g.end[1]) {
        uint64_t row = piece_end(e, &g);
        uint32_t stop[2];
        for (uint32_t part = 0; part < 2; part++)
            stop[part] = events_row_bound(e, g.at[part], g.end[part], row);
        meet_piece(s, &g, stop, first, n);
        for (uint32_t part = 0; part < 2; part++)
            g.at[part] = stop[part];
    }
}

/* The fallback's tokens: every learned event by half 2. */
static void meet_all_learned(struct scoring *s, const struct scored_token *first, uint32_t n)
{
    pass_begin(s, first, n, true);
    pass_min(s, UINT16_MAX, true);
    scan_events(s, 0, s->e->head->n_learned, true);
    pass_end(s);
}

static int by_gain(const void *a, const void *b)
{
    const struct scored_token *x = a, *y = b;
    if (x->gain != y->gain)
        return x->gain > y->gain ? -1 : 1;
    return (x->index > y->index) - (x->index < y->index);
}

static int by_target(const void *a, const void *b)
{
    const struct scored_token *x = a, *y = b;
    if (x->fallback != y->fallback)
        return x->fallback ? 1 : -1;
    if (x->target != y->target)
        return x->target < y->target ? -1 : 1;
    return (x->index > y->index) - (x->index < y->index);
}

/* Has a learned event of the target, of a row that is not held back? */
static bool anyone_learned(const struct scoring *s, uint32_t target)
{
    uint32_t begin, end;
    events_target_range(s->e, 0, (int32_t)target, &begin, &end);
    while (begin < end && s->e->event_row[begin] == s->held.row)
        begin++;
    return begin < end;
}

/* Marks the tokens that meet all learned events and sorts them to the end; returns how many. */
static uint32_t choose_fallback(struct scoring *s, uint32_t n)
{
    const struct events_method *m = &s->e->head->method;
    uint32_t chosen = 0;
    qsort(s->token, n, sizeof(*s->token), by_gain);
    for (uint32_t i = 0; i < n && chosen < m->fallback_tokens; i++) {
        if (s->token[i].gain < m->learned_min)
            break;
        s->token[i].fallback = !anyone_learned(s, s->token[i].target);
        chosen += s->token[i].fallback;
    }
    qsort(s->token, n, sizeof(*s->token), by_target);
    return chosen;
}

/* Drops the tokens that the prompt gave, if one that it did not give gained; returns how many are
 * left. */
static uint32_t mute_tokens(struct scoring *s)
{
    uint32_t n = s->out->n_tokens, kept = 0;
    bool gained = false;
    for (uint32_t i = 0; i < n; i++)
        gained |= !s->token[i].in_prompt && s->token[i].gain >= s->e->head->method.learned_min;
    for (uint32_t i = 0; i < n; i++) {
        if (!gained || !s->token[i].in_prompt)
            s->token[kept++] = s->token[i];
    }
    return kept;
}

static void meet_tokens(struct scoring *s)
{
    uint32_t n = mute_tokens(s), fallback = choose_fallback(s, n);
    uint32_t usual = n - fallback;
    for (uint32_t i = 0; i < usual;) {
        uint32_t same = 1;
        while (i + same < usual && s->token[i + same].target == s->token[i].target)
            same++;
        if (anyone_learned(s, s->token[i].target))
            meet_target(s, s->token + i, same);
        i += same;
    }
    if (fallback)
        meet_all_learned(s, s->token + usual, fallback);
}

/* C_k, then O_o, whole and in the four sub-indexes. */
static void sum_owners(struct events_scores *out, const struct events *e)
{
    for (uint32_t i = 0; i < out->n_hit; i++) {
        uint64_t score = out->row[out->hit[i]].score;
        uint32_t k = e->row[out->hit[i]].cluster;
        uint64_t *best = &out->row[k].cluster;
        if (*best == 0)
            out->cluster[out->n_cluster++] = k;
        *best = MAX(*best, score);
        out->rows_sum += score;
    }
    for (uint32_t i = 0; i < out->n_cluster; i++) {
        uint32_t k = out->cluster[i], owner = e->row[k].owner;
        u128 square = (u128)out->row[k].cluster * out->row[k].cluster;
        for (uint32_t sub = 0; sub < EVENTS_SUBS; sub++) {
            if (sub == 0 || k % 4 != sub - 1)
                out->owner[(size_t)sub * out->n_owners + owner] += square;
        }
    }
}

static enum status take_tokens(struct scoring *s, const struct events_query *q, uint32_t n_query,
                               struct errtext *err)
{
    uint32_t at = 0;
    for (uint32_t i = 0; i < n_query; i++) {
        if (q[i].n && memchr(q[i].key, 0x80, (size_t)q[i].n * EVENTS_KEY))
            return err_set(err, STATUS_INVALID,
                           "choice %u: a key's byte is -128, expected -127 to 127", i);
        for (uint32_t t = 0; t < q[i].n; t++, at++)
            s->token[at] = (struct scored_token){
                .target = (uint32_t)q[i].target[t],
                .index = at,
                .gain = (uint32_t)MIN(MAX(q[i].gain_q8[t], 0), UINT16_MAX),
                .key = q[i].key + (size_t)t * EVENTS_KEY,
                .in_prompt = q[i].in_prompt && q[i].in_prompt[t],
            };
    }
    return STATUS_OK;
}

static enum status scoring_begin(struct scoring *s, const struct events *e,
                                 const struct events_query *q, uint32_t n_query,
                                 struct errtext *err)
{
    struct events_dots_path path[3];
    struct events_scores *out = s->out;
    uint64_t tokens = 0;
    for (uint32_t i = 0; i < n_query; i++)
        tokens += q[i].n;
    if (tokens > EVENTS_QUERY_MAX)
        return err_set(err, STATUS_TOO_LARGE, "%llu tokens of an answer, at most %u are scored",
                       (unsigned long long)tokens, EVENTS_QUERY_MAX);
    (void)events_dots_paths(path);
    s->dots = path[0].run;
    s->e = e;
    out->n_tokens = (uint32_t)tokens;
    out->n_rows = e->head->n_rows;
    out->n_owners = e->head->n_owners;
    s->token = mem_try_array(tokens + 1, sizeof(*s->token));
    s->slot = mem_try_array((size_t)out->n_rows + 1, sizeof(*s->slot));
    s->power_half = mem_try_array(EVENTS_HALF_DOT + 1, sizeof(*s->power_half));
    out->token = mem_try_array(tokens + 1, sizeof(*out->token));
    out->row = mem_try_array((size_t)out->n_rows + 1, sizeof(*out->row));
    out->hit = mem_try_array((size_t)out->n_rows + 1, sizeof(*out->hit));
    out->cluster = mem_try_array((size_t)out->n_rows + 1, sizeof(*out->cluster));
    out->owner = mem_try_array((size_t)out->n_owners + 1, EVENTS_SUBS * sizeof(*out->owner));
    if (!s->token || !s->slot || !s->power_half || !out->token || !out->row || !out->hit ||
        !out->cluster || !out->owner)
        return err_set(err, STATUS_NO_MEMORY, "no memory to score %llu tokens over %u rows",
                       (unsigned long long)tokens, out->n_rows);
    events_power_fill(s->power_half, EVENTS_HALF_DOT, e->head->method.squarings);
    for (uint32_t t = 0; t < out->n_tokens; t++)
        out->token[t].row = EVENTS_NONE;
    return take_tokens(s, q, n_query, err);
}

enum status events_score_held(struct events_scores **out, const struct events *e,
                              const struct events_query *q, uint32_t n_query,
                              struct events_held held, struct errtext *err)
{
    struct scoring s = {.out = mem_try_alloc(sizeof(*s.out)), .held = held};
    *out = NULL;
    if (!s.out)
        return err_set(err, STATUS_NO_MEMORY, "no memory for scores");
    enum status st = scoring_begin(&s, e, q, n_query, err);
    if (!st) {
        meet_tokens(&s);
        sum_owners(s.out, e);
        *out = s.out;
    } else {
        events_scores_free(s.out);
    }
    mem_free(s.token);
    mem_free(s.slot);
    mem_free(s.power_half);
    return st;
}

enum status events_score(struct events_scores **out, const struct events *e,
                         const struct events_query *q, uint32_t n_query, struct errtext *err)
{
    const struct events_held none = {.row = EVENTS_NONE};
    return events_score_held(out, e, q, n_query, none, err);
}

void events_scores_free(struct events_scores *s)
{
    if (!s)
        return;
    mem_free(s->row);
    mem_free(s->hit);
    mem_free(s->cluster);
    mem_free(s->token);
    mem_free(s->owner);
    mem_free(s);
}

const u128 *events_scores_owner(const struct events_scores *s, uint32_t sub)
{
    CHECK(sub < EVENTS_SUBS);
    return s->owner + (size_t)sub * s->n_owners;
}

static bool top_before(const struct events_top *a, const struct events_top *b)
{
    return a->score != b->score ? a->score > b->score : a->row < b->row;
}

uint32_t events_scores_top(const struct events_scores *s, struct events_top *out, uint32_t max)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_hit; i++) {
        const struct scored_row *sum = &s->row[s->hit[i]];
        struct events_top top = {
            .row = s->hit[i], .best_token = sum->best_token, .score = sum->score};
        uint32_t at = n < max ? n++ : max;
        for (; at > 0 && top_before(&top, &out[at - 1]); at--) {
            if (at < max)
                out[at] = out[at - 1];
        }
        if (at < max)
            out[at] = top;
    }
    return n;
}

u128 events_scores_rows_sum(const struct events_scores *s)
{
    return s->rows_sum;
}

uint32_t events_scores_token_row(const struct events_scores *s, uint32_t token)
{
    CHECK(token < s->n_tokens);
    return s->token[token].row;
}

uint64_t events_scores_compared(const struct events_scores *s)
{
    return s->compared;
}
