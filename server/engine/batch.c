/* Rows are appended, segments grow at their end. Two runs join by what they compute (slots and
 * weights), not by whose they are: different compositions may hold the same adapters. */
#include "server/engine/batch.h"
#include "server/base/check.h"

void batch_clear(struct batch *b)
{
    b->n_tok = 0;
    b->n_seg = 0;
    b->n_out = 0;
    b->any_lora = false;
}

static bool same_segment(const struct lora_seg *s, const struct batch_run *run)
{
    if (s->part_count != run->comp->n)
        return false;
    for (uint32_t i = 0; i < s->part_count; i++) {
        if (s->part[i].slot != run->lora_slot[i] ||
            s->part[i].weight_q16 != run->comp->part[i].weight_q16)
            return false;
    }
    return true;
}

static void add_segment(struct batch *b, const struct batch_run *run)
{
    CHECK(b->n_seg < b->segs_max);
    struct lora_seg *s = &b->seg[b->n_seg++];
    s->tok_begin = b->n_tok;
    s->tok_count = 0;
    s->part_count = run->comp->n;
    CHECK(s->part_count <= LORA_PARTS_MAX);
    for (uint32_t i = 0; i < s->part_count; i++) {
        s->part[i].slot = run->lora_slot[i];
        s->part[i].weight_q16 = run->comp->part[i].weight_q16;
        b->any_lora = true;
    }
}

uint32_t batch_add(struct batch *b, const struct batch_run *run)
{
    uint32_t first_row = b->n_tok;
    CHECK(run->count > 0);
    CHECK(run->count <= b->rows_max - b->n_tok);
    if (b->n_seg == 0 || !same_segment(&b->seg[b->n_seg - 1], run))
        add_segment(b, run);
    for (uint32_t i = 0; i < run->count; i++) {
        uint32_t pos = run->first + i, row = first_row + i;
        if (pos >= run->n_known)
            b->ids[row] = ~(int32_t)run->slot;
        else
            b->ids[row] = pos < run->n_prompt ? run->prompt[pos] : run->output[pos - run->n_prompt];
        b->seq[row] = run->slot;
        b->pos[row] = pos;
    }
    b->n_tok += run->count;
    b->seg[b->n_seg - 1].tok_count += run->count;
    return first_row;
}

void batch_want(struct batch *b, uint32_t row)
{
    CHECK(row < b->n_tok);
    CHECK(b->n_out < b->rows_max);
    b->out_row[b->n_out] = row;
    b->out[b->n_out] = (struct batch_out){.slot = b->seq[row], .pos = b->pos[row]};
    b->n_out++;
}

void batch_verify(const struct batch *b, uint32_t n_vocab, uint32_t pos_max)
{
    uint32_t covered = 0;
    for (uint32_t i = 0; i < b->n_seg; i++) {
        CHECK(b->seg[i].tok_begin == covered);
        CHECK(b->seg[i].tok_count > 0);
        covered += b->seg[i].tok_count;
    }
    CHECK(covered == b->n_tok);
    for (uint32_t t = 0; t < b->n_tok; t++) {
        CHECK(b->ids[t] >= 0 ? (uint32_t)b->ids[t] < n_vocab : (uint32_t)~b->ids[t] == b->seq[t]);
        CHECK(b->pos[t] < pos_max);
    }
}
