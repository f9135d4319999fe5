/* How few ids a text can become, without tokenizing it: every id stands for some bytes of the text,
 * and the longest for so many. Nothing bounds it where bytes may vanish on the way: into a
 * normalizer that drops or shortens, a pre-tokenizer that removes, an added token that takes the
 * blanks beside it, an unknown token that covers a run. */
#include "server/base/check.h"
#include "server/text/tokenizer_impl.h"

/* Unicode's normal forms and lower case: four bytes of a mathematical letter become one. */
#define FORM_SHRINK_MAX 4

/* Bytes before for one byte after; 0: without bound. */
static size_t shrink(const struct normalizer *n)
{
    size_t factor = 1;
    for (size_t i = 0; i < n->n; i++) {
        const struct normalize_step *s = &n->steps[i];
        if (s->kind == NORMALIZE_STRIP || s->kind == NORMALIZE_STRIP_ACCENTS ||
            (s->kind == NORMALIZE_REPLACE && (s->regex || s->text_len < s->pattern_len)))
            return 0;
        if (s->kind != NORMALIZE_PREPEND && s->kind != NORMALIZE_REPLACE)
            factor *= FORM_SHRINK_MAX;
    }
    return factor;
}

static bool removes(const struct tokenizer *t)
{
    for (size_t i = 0; i < t->pretokenizer.n; i++) {
        const struct pretokenize_step *s = &t->pretokenizer.steps[i];
        if (s->kind == PRETOKENIZE_WHITESPACE || s->kind == PRETOKENIZE_WHITESPACE_SPLIT ||
            ((s->kind == PRETOKENIZE_SPLIT || s->kind == PRETOKENIZE_PUNCTUATION) &&
             s->behavior == SPLIT_REMOVED))
            return true;
    }
    for (size_t i = 0; i < t->added.n; i++) {
        if (t->added.tokens[i].lstrip || t->added.tokens[i].rstrip)
            return true;
    }
    return false;
}

/* Has every byte an id of its own, so that nothing is unknown? */
static bool knows_all_bytes(const struct tokenizer *t)
{
    bool level = false, fallback = t->bpe.byte_fallback;
    for (size_t i = 0; i < t->pretokenizer.n; i++)
        level = level || t->pretokenizer.steps[i].kind == PRETOKENIZE_BYTE_LEVEL;
    for (uint32_t cp = 0; cp < BPE_SHORT_CP_MAX && level; cp++)
        level = byte_level_byte(cp) < 0 || t->bpe.short_ids[cp] >= 0;
    for (uint32_t b = 0; b < 256 && fallback; b++)
        fallback = t->bpe.byte_ids[b] >= 0;
    return level || fallback;
}

void tokenizer_set_bound(struct tokenizer *t)
{
    size_t longest = 1, factor = shrink(&t->normalizer);
    for (uint32_t id = 0; id < t->n_ids; id++) {
        longest = MAX(longest, t->info[id].content_len);
        longest = MAX(longest, t->info[id].bytes_len);
    }
    bool bounded = factor > 0 && !removes(t) && knows_all_bytes(t);
    t->bytes_per_id_max = bounded ? longest * factor : SIZE_MAX;
}

size_t tokenizer_bytes_per_id_max(const struct tokenizer *t)
{
    return t->bytes_per_id_max;
}
