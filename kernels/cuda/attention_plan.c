/* attention_plan.h: the rows are walked three times, each time in the same order. Once to see how
 * much work there is, then, for a cap on the parts of a block, until what they need fits, and last
 * to write each item at its place: a counting sort by length, longest first, so that what is left
 * to the end is small. Everything is a function of the rows and the shape; no array is needed. */
#include "kernels/cuda/attention_plan.h"
#include "server/base/check.h"

#define CHUNK_TILES    (ATTN_CHUNK / ATTN_TILE)
#define LENGTHS        128  /* classes of items by length */
#define LENGTHS_EXACT  64   /* up to so many tiles each length is a class */
#define BLOCKS_PER_SM  2    /* of the split kernel, for the estimate of a block's share */
#define SHARE_DIVISOR  4    /* a first part is at most this fraction of a thread block's share */
#define CHUNKS_DEFAULT 2048 /* of half a million positions */

/* Rows of one sequence with consecutive positions. */
struct attn_run {
    uint32_t row, seq, pos, count;
};

struct attn_block {
    uint32_t row, seq, pos, n_row, n_head, head;
    bool is_split;
};

struct attn_planner {
    const struct attn_shape *s;
    const struct attn_rows *rows;
    uint32_t group;
    uint64_t short_work; /* tiles, if all short runs went to the split list */
    uint32_t lead, cap;  /* chunks of a first part; parts of a block */
    uint32_t page_base;  /* words of the list */
};

struct plan_walk {
    struct attn_run run;
    uint32_t row, head; /* within the run */
    uint32_t next_row;
};

static uint32_t div_up(uint32_t a, uint32_t b)
{
    return (a + b - 1) / b;
}

static bool next_run(const struct attn_rows *rows, uint32_t *at, struct attn_run *r)
{
    while (*at < rows->n_tok && rows->seq[*at] == UINT32_MAX)
        (*at)++;
    if (*at == rows->n_tok)
        return false;
    *r = (struct attn_run){*at, rows->seq[*at], rows->pos[*at], 0};
    while (*at < rows->n_tok && rows->seq[*at] == r->seq && rows->pos[*at] == r->pos + r->count) {
        r->count++;
        (*at)++;
    }
    return true;
}

static uint32_t first_pos(const struct attn_planner *p, uint32_t pos)
{
    uint32_t window = p->s->window;
    return window && pos + 1 > window ? pos + 1 - window : 0;
}

static uint32_t run_tiles(const struct attn_planner *p, const struct attn_run *r)
{
    return (r->pos + r->count - 1) / ATTN_TILE - first_pos(p, r->pos) / ATTN_TILE + 1;
}

static uint32_t split_rows(const struct attn_planner *p)
{
    return p->group < ATTN_COLS ? ATTN_COLS / p->group : 1;
}

/* More than one split block, but not more than a block of the prefill kernel. */
static bool run_is_short(const struct attn_planner *p, const struct attn_run *r)
{
    uint64_t pairs = (uint64_t)r->count * p->group;
    return pairs > ATTN_COLS && pairs <= ATTN_PAIRS_MAX;
}

static uint64_t split_work(const struct attn_planner *p, const struct attn_run *r)
{
    return (uint64_t)div_up(r->count, split_rows(p)) * div_up(p->group, ATTN_COLS) *
           run_tiles(p, r) * p->s->n_kv_head;
}

/* A run with few rows and a long past would keep a few SMs for the length of its past while the
 * others idle: it is split if splitting all the short runs takes the machine less time than that.
 */
static bool run_is_split(const struct attn_planner *p, const struct attn_run *r)
{
    if (p->rows->n_tok <= ATTN_SPLIT_ROWS || p->group > attn_prefill_pairs(p->s->d_head))
        return true;
    if (r->count * (uint64_t)p->group <= ATTN_COLS)
        return true;
    return run_is_short(p, r) && p->short_work < (uint64_t)run_tiles(p, r) * p->s->sm_count;
}

/* The blocks of all runs, in order of rows. */
static bool next_block(const struct attn_planner *p, struct plan_walk *w, struct attn_block *b)
{
    if (w->row == w->run.count) {
        if (!next_run(p->rows, &w->next_row, &w->run))
            return false;
        w->row = w->head = 0;
    }
    *b = (struct attn_block){.row = w->run.row + w->row,
                             .seq = w->run.seq,
                             .pos = w->run.pos + w->row,
                             .head = w->head,
                             .is_split = run_is_split(p, &w->run)};
    uint32_t most = b->is_split ? split_rows(p) : attn_prefill_pairs(p->s->d_head) / p->group;
    b->n_row = MIN(w->run.count - w->row, most);
    b->n_head = b->is_split ? MIN(p->group - w->head, (uint32_t)ATTN_COLS) : p->group;
    w->head += b->n_head;
    if (w->head == p->group) {
        w->head = 0;
        w->row += b->n_row;
    }
    return true;
}

static uint32_t chunk_first(const struct attn_planner *p, const struct attn_block *b)
{
    return first_pos(p, b->pos) / ATTN_CHUNK;
}

static uint32_t chunk_end(const struct attn_block *b)
{
    return (b->pos + b->n_row - 1) / ATTN_CHUNK + 1;
}

static uint32_t part_count(const struct attn_planner *p, const struct attn_block *b)
{
    uint32_t n = chunk_end(b) - chunk_first(p, b);
    if (!b->is_split || n <= p->lead)
        return 1;
    return MIN(1 + n - p->lead, p->cap);
}

/* ---- how finely to cut ---- */

struct attn_need {
    uint64_t blocks, items, slots, tiles;
    uint32_t parts_most;
};

static struct attn_need count_need(const struct attn_planner *p)
{
    struct attn_need n = {0};
    struct plan_walk w = {0};
    struct attn_block b;
    while (next_block(p, &w, &b)) {
        uint32_t parts = part_count(p, &b);
        n.blocks++;
        n.items += parts;
        n.slots += parts > 1 ? (uint64_t)parts * b.n_row * b.n_head : 0;
        n.parts_most = MAX(n.parts_most, parts);
        if (b.is_split)
            n.tiles += (b.pos + b.n_row - 1) / ATTN_TILE - first_pos(p, b.pos) / ATTN_TILE + 1;
    }
    return n;
}

static uint64_t blocks_max(const struct attn_shape *s)
{
    return (uint64_t)s->rows_max * div_up(s->n_head / s->n_kv_head, ATTN_COLS);
}

/* Parts beyond the first of a block; each takes a slot for every pair of its block. */
static uint64_t extra_items_max(const struct attn_shape *s)
{
    return s->slots_max / MIN(s->n_head / s->n_kv_head, (uint32_t)ATTN_COLS);
}

static bool need_fits(const struct attn_planner *p, const struct attn_need *n)
{
    return n->slots <= p->s->slots_max && n->items <= blocks_max(p->s) + extra_items_max(p->s);
}

static void choose_cut(struct attn_planner *p)
{
    p->lead = 1;
    p->cap = UINT32_MAX;
    struct attn_need n = count_need(p);
    uint64_t share = n.tiles * p->s->n_kv_head / ((uint64_t)p->s->sm_count * BLOCKS_PER_SM);
    uint64_t lead = share / (SHARE_DIVISOR * CHUNK_TILES);
    if (lead > 1) {
        p->lead = (uint32_t)MIN(lead, UINT16_MAX);
        n = count_need(p);
    }
    if (need_fits(p, &n))
        return;
    uint32_t fits = 1, most = n.parts_most - 1; /* one part a block needs no slot */
    while (fits < most) {
        p->cap = fits + (most - fits + 1) / 2;
        n = count_need(p);
        if (need_fits(p, &n))
            fits = p->cap;
        else
            most = p->cap - 1;
    }
    p->cap = fits;
}

/* ---- writing ---- */

static uint32_t length_class(uint32_t tiles)
{
    if (tiles < LENGTHS_EXACT)
        return tiles;
    return MIN(LENGTHS_EXACT + (tiles - LENGTHS_EXACT) / LENGTHS_EXACT, LENGTHS - 1u);
}

/* Part i of the block: the first takes what the others, of one chunk each, leave. */
static struct attn_item item_make(const struct attn_planner *p, const struct attn_block *b,
                                  uint32_t parts, uint32_t part)
{
    uint32_t end = chunk_end(b) - (parts - 1 - part);
    return (struct attn_item){
        .row = b->row,
        .pos = b->pos,
        .page = p->page_base + p->rows->page_begin[b->seq],
        .n_row = (uint8_t)b->n_row,
        .n_head = (uint8_t)b->n_head,
        .head = (uint16_t)b->head,
        .part = (uint16_t)part,
        .n_part = (uint16_t)parts,
        .chunk_begin = (uint16_t)(part ? end - 1 : chunk_first(p, b)),
        .chunk_end = (uint16_t)end,
    };
}

static uint32_t item_class(const struct attn_planner *p, const struct attn_item *i)
{
    uint32_t last = MIN(i->pos + i->n_row - 1, i->chunk_end * (uint32_t)ATTN_CHUNK - 1);
    uint32_t first = MAX(first_pos(p, i->pos), i->chunk_begin * (uint32_t)ATTN_CHUNK);
    return length_class(last / ATTN_TILE - first / ATTN_TILE + 1);
}

/* One walk over all items. at [2][LENGTHS]: where the next item of a list and class goes; items
 * NULL: count them instead. */
static void each_item(const struct attn_planner *p, uint32_t at[2][LENGTHS],
                      struct attn_item *items)
{
    struct plan_walk w = {0};
    struct attn_block b;
    uint32_t slot = 0, block = 0;
    while (next_block(p, &w, &b)) {
        uint32_t parts = part_count(p, &b);
        for (uint32_t i = 0; i < parts; i++) {
            struct attn_item item = item_make(p, &b, parts, i);
            item.slot = slot;
            item.block = block;
            uint32_t *place = &at[!b.is_split][item_class(p, &item)];
            if (items)
                items[*place] = item;
            (*place)++;
        }
        if (parts > 1) {
            slot += parts * b.n_row * b.n_head;
            block++;
        }
    }
}

size_t attn_plan(const struct attn_shape *s, const struct attn_rows *rows, struct attn_list *out)
{
    struct attn_planner p = {.s = s, .rows = rows, .group = s->n_head / s->n_kv_head};
    uint32_t at[2][LENGTHS] = {{0}}, begin[3] = {0}, row = 0;
    struct attn_run r;
    CHECK(rows->n_tok <= s->rows_max && p.group >= 1 && p.group <= ATTN_GROUP_MAX);
    while (next_run(rows, &row, &r)) {
        CHECK(r.pos + r.count <= (uint32_t)UINT16_MAX * ATTN_CHUNK);
        p.short_work += run_is_short(&p, &r) ? split_work(&p, &r) : 0;
    }
    choose_cut(&p);
    each_item(&p, at, NULL);
    for (uint32_t list = 0, sum = 0; list < 2; list++) {
        for (uint32_t c = LENGTHS; c-- > 0;) {
            uint32_t count = at[list][c];
            at[list][c] = sum;
            sum += count;
        }
        begin[list + 1] = sum;
    }
    CHECK(begin[2] <= blocks_max(s) + extra_items_max(s));
    size_t bytes = sizeof(*out) + begin[2] * sizeof(struct attn_item);
    p.page_base = (uint32_t)(bytes / sizeof(uint32_t));
    each_item(&p, at, (struct attn_item *)(out + 1));
    *out = (struct attn_list){.n_split = begin[1], .n_prefill = begin[2] - begin[1]};
    return bytes;
}

/* ---- sizes ---- */

size_t attn_list_bytes_max(const struct attn_shape *s)
{
    return sizeof(struct attn_list) +
           (blocks_max(s) + extra_items_max(s)) * sizeof(struct attn_item);
}

size_t attn_part_bytes(const struct attn_shape *s)
{
    return (size_t)s->slots_max * s->n_kv_head * (s->d_head + 2) * sizeof(float);
}

size_t attn_count_bytes(const struct attn_shape *s)
{
    return blocks_max(s) * s->n_kv_head * sizeof(uint32_t);
}

uint32_t attn_slots_default(const struct attn_shape *s)
{
    uint32_t pairs = MIN(s->n_head / s->n_kv_head, (uint32_t)ATTN_COLS);
    return MIN((uint32_t)CHUNKS_DEFAULT, s->chunks_max) * pairs;
}
