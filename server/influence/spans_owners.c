/* What is done with a hit: where it stands, and what it says of each owner. A span that stands
 * more than SPANS_RANKS_MAX times says nothing of anybody; of its places as many are shown, spread
 * evenly over its ranks. */
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/influence/spans_impl.h"

#include <string.h>

/* log2 by squaring: each squaring of a number in [1, 2) yields one more bit. */
uint32_t spans_log2(uint64_t x)
{
    uint32_t whole = 63 - (uint32_t)__builtin_clzll(x), out = whole << 16;
    uint64_t m = x << (63 - whole) >> 32; /* [1, 2) as Q31 */
    for (uint32_t bit = 1u << 15; bit > 0; bit >>= 1) {
        m = m * m >> 31;
        if (m >> 32) {
            m >>= 1;
            out |= bit;
        }
    }
    return out;
}

static uint32_t bits_q8(uint64_t of, uint64_t part)
{
    return (spans_log2(of) - spans_log2(part) + 128) >> 8;
}

static void count_tokens(const struct spans_part *part, uint64_t *count)
{
    const struct spans_segment *g = part->seg;
    if (!part->live.bit) {
        for (uint32_t v = 0; v < g->h->n_vocab; v++)
            count[v] += g->first[v + 2] - g->first[v + 1];
        return;
    }
    for (uint32_t d = 0; d < g->h->n_document; d++) {
        if (part->document[d] == UINT32_MAX)
            continue;
        for (uint32_t pos = g->document[d].begin; spans_tok(g, pos) != 0; pos++)
            count[spans_tok(g, pos) - 1]++;
    }
}

enum status spans_surprise(struct spans *s, struct errtext *err)
{
    uint64_t *count = mem_try_array(s->head.n_vocab, sizeof(*count)), sum = 0;
    s->surprise = mem_try_array(s->head.n_vocab, sizeof(*s->surprise));
    if (!count || !s->surprise) {
        mem_free(count);
        return err_set(err, STATUS_NO_MEMORY, "spans: no memory for %u ids", s->head.n_vocab);
    }
    for (uint32_t i = 0; i < s->head.n_segment; i++)
        count_tokens(&s->part[i], count);
    for (uint32_t v = 0; v < s->head.n_vocab; v++)
        sum += count[v];
    for (uint32_t v = 0; v < s->head.n_vocab; v++)
        s->surprise[v] = count[v] ? (uint16_t)bits_q8(sum, count[v]) : 0;
    mem_free(count);
    return STATUS_OK;
}

struct cursor { /* over the ranks of a hit that are looked at */
    const struct spans *s;
    const struct spans_hit *hit;
    uint64_t at, step; /* in all ranks of all segments, one after the other, Q0 */
    uint32_t part;
    uint64_t before; /* ranks of the parts before */
};

static struct cursor cursor_of(const struct spans *s, const struct spans_hit *hit)
{
    uint64_t ranks = 0;
    for (uint32_t i = 0; i < s->head.n_segment; i++)
        ranks += hit->in[i].count;
    bool all = hit->count <= SPANS_RANKS_MAX; /* those listed, however many are not */
    return (struct cursor){
        .s = s, .hit = hit, .step = all ? 1 : (ranks + SPANS_RANKS_MAX - 1) / SPANS_RANKS_MAX};
}

/* The next that is in a listed document. */
static bool cursor_next(struct cursor *c, uint32_t *part, uint32_t *document, uint32_t *pos)
{
    for (; c->part < c->s->head.n_segment; c->before += c->hit->in[c->part++].count) {
        const struct spans_part *p = &c->s->part[c->part];
        const struct spans_range *r = &c->hit->in[c->part];
        if (c->at >= c->before + r->count)
            continue;
        uint32_t rank = r->first + (uint32_t)(c->at - c->before), end = r->first + r->count;
        if (p->live.bit)
            rank = spans_live_next(&p->live, rank, end);
        c->at = c->before + (rank - r->first);
        if (rank == end)
            continue;
        c->at += c->step;
        *pos = p->seg->sa[rank];
        *document = spans_document_at(p->seg, *pos);
        *part = c->part;
        return true;
    }
    return false;
}

/* Insert, or replace a later place of the same document; n places are ascending by document. */
static uint32_t put_place(struct spans_place *place, uint32_t n, uint32_t max,
                          const struct spans_place *p)
{
    uint32_t i = n;
    while (i > 0 && place[i - 1].document > p->document)
        i--;
    if (i > 0 && place[i - 1].document == p->document) {
        struct spans_place *q = &place[i - 1];
        if (p->offset != q->offset ? p->offset < q->offset : p->bytes < q->bytes)
            *q = *p;
        return n;
    }
    if (i == max)
        return n;
    n = MIN(n + 1, max);
    memmove(&place[i + 1], &place[i], (n - 1 - i) * sizeof(*place));
    place[i] = *p;
    return n;
}

uint32_t spans_places(const struct spans *s, const struct spans_hit *hit, struct spans_place *place,
                      uint32_t max)
{
    struct cursor c = cursor_of(s, hit);
    uint32_t n = 0, part, d, pos;
    while (cursor_next(&c, &part, &d, &pos)) {
        const struct spans_segment *g = s->part[part].seg;
        const uint32_t *listed = s->part[part].document;
        struct spans_place p = {.document = listed ? listed[d] : d};
        if (n == max && (max == 0 || place[n - 1].document < p.document))
            continue;
        p.offset = spans_offset_at(g, d, pos);
        p.bytes = spans_offset_at(g, d, pos + hit->n_tok) - p.offset;
        n = put_place(place, n, max, &p);
    }
    return n;
}

struct weigh {
    const struct spans *s;
    uint32_t *stamp; /* [n_owner]: the last look at a hit that met this owner */
    uint32_t *owner; /* of the hit at hand */
    uint32_t looks;
    uint64_t *w;    /* [n_hit] info x icf */
    uint32_t *won;  /* [n_hit] output tokens over which it is the heaviest */
    uint32_t *best; /* [output tokens]: that hit + 1 */
};

static uint32_t owners_of(struct weigh *g, const struct spans_hit *hit)
{
    struct cursor c = cursor_of(g->s, hit);
    uint32_t n = 0, part, d, pos, look = ++g->looks;
    while (cursor_next(&c, &part, &d, &pos)) {
        const struct spans_part *p = &g->s->part[part];
        uint32_t o = g->s->owner ? g->s->owner[p->document[d]] : p->seg->document[d].owner;
        if (g->stamp[o] == look)
            continue;
        g->stamp[o] = look;
        g->owner[n++] = o;
    }
    return n;
}

/* Every output token goes to the heaviest hit over it. */
static void divide_tokens(struct weigh *g, const struct spans_hit *hit, uint32_t n_hit,
                          uint32_t n_prompt)
{
    for (uint32_t i = 0; i < n_hit; i++) {
        uint64_t owners = hit[i].count <= SPANS_RANKS_MAX ? owners_of(g, &hit[i]) : 0;
        if (owners == 0)
            continue;
        g->w[i] = (uint64_t)hit[i].info_q8 * MAX(bits_q8(g->s->head.n_owner, owners), 1);
        for (uint32_t t = MAX(hit[i].begin, n_prompt); t < hit[i].begin + hit[i].n_tok; t++) {
            uint32_t *best = &g->best[t - n_prompt];
            if (*best == 0 || g->w[*best - 1] < g->w[i])
                *best = i + 1;
        }
    }
}

enum status spans_owner_weights(const struct spans *s, const struct spans_hit *hit, uint32_t n_hit,
                                uint32_t n_prompt, uint64_t *weight)
{
    struct weigh g = {.s = s};
    uint32_t end = n_prompt;
    memset(weight, 0, s->head.n_owner * sizeof(*weight));
    for (uint32_t i = 0; i < n_hit; i++)
        end = MAX(end, hit[i].begin + hit[i].n_tok);
    if (end == n_prompt)
        return STATUS_OK;
    g.stamp = mem_try_array(s->head.n_owner, sizeof(*g.stamp));
    g.owner = mem_try_array(s->head.n_owner, sizeof(*g.owner));
    g.w = mem_try_array(n_hit, sizeof(*g.w));
    g.won = mem_try_array(n_hit, sizeof(*g.won));
    g.best = mem_try_array(end - n_prompt, sizeof(*g.best));
    enum status st = STATUS_OK;
    if (!g.stamp || !g.owner || !g.w || !g.won || !g.best) {
        st = STATUS_NO_MEMORY;
    } else {
        divide_tokens(&g, hit, n_hit, n_prompt);
        for (uint32_t t = 0; t < end - n_prompt; t++) {
            if (g.best[t])
                g.won[g.best[t] - 1]++;
        }
        for (uint32_t i = 0; i < n_hit; i++) {
            uint32_t owners = g.won[i] ? owners_of(&g, &hit[i]) : 0;
            for (uint32_t o = 0; o < owners; o++)
                weight[g.owner[o]] += g.won[i] * (g.w[i] / owners);
        }
    }
    mem_free(g.stamp);
    mem_free(g.owner);
    mem_free(g.w);
    mem_free(g.won);
    mem_free(g.best);
    return st;
}
