/* Merging. Symbols form a linked list over an array; the heap holds merges that were possible when
 * they were pushed. A popped candidate is dropped when its left symbol is gone or when its pair now
 * makes another token; like the reference, the rank is not compared again. The heap never holds
 * more than two entries per symbol: one merge takes one out and puts at most two in. */
#include "server/text/bpe.h"
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/text/utf8.h"

#include <string.h>

void bpe_work_fini(struct bpe_work *w)
{
    mem_free(w->symbols);
    mem_free(w->heap);
    *w = (struct bpe_work){0};
}

enum status token_list_add(struct token_list *list, int32_t id, struct errtext *err)
{
    size_t n_max = list->n_max ? list->n_max : TOKENIZE_TEXT_BYTES_MAX;
    if (list->n >= n_max)
        return err_set(err, STATUS_TOO_LARGE, "the text is more than %zu tokens", n_max);
    if (list->n == list->cap) {
        size_t cap = list->cap ? list->cap * 2 : 64;
        int32_t *ids = mem_try_realloc(list->ids, cap * sizeof(*ids));
        if (!ids)
            return err_set(err, STATUS_NO_MEMORY, "no memory for %zu tokens", cap);
        list->ids = ids;
        list->cap = cap;
    }
    list->ids[list->n++] = id;
    return STATUS_OK;
}

static bool work_reserve(struct bpe_work *w, size_t n_symbols)
{
    if (n_symbols <= w->symbols_cap)
        return true;
    size_t cap = w->symbols_cap ? w->symbols_cap : 64;
    while (cap < n_symbols)
        cap *= 2;
    struct bpe_symbol *symbols = mem_try_realloc(w->symbols, cap * sizeof(*symbols));
    if (!symbols)
        return false;
    w->symbols = symbols;
    struct bpe_candidate *heap = mem_try_realloc(w->heap, 2 * cap * sizeof(*heap));
    if (!heap)
        return false;
    w->heap = heap;
    w->heap_cap = 2 * cap;
    w->symbols_cap = cap;
    return true;
}

static void heap_push(struct bpe_work *w, struct bpe_candidate c)
{
    VERIFY(w->heap_n < w->heap_cap);
    size_t i = w->heap_n++;
    while (i > 0 && w->heap[(i - 1) / 2].order > c.order) {
        w->heap[i] = w->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    w->heap[i] = c;
}

static struct bpe_candidate heap_pop(struct bpe_work *w)
{
    struct bpe_candidate top = w->heap[0];
    struct bpe_candidate last = w->heap[--w->heap_n];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= w->heap_n)
            break;
        if (child + 1 < w->heap_n && w->heap[child + 1].order < w->heap[child].order)
            child++;
        if (w->heap[child].order >= last.order)
            break;
        w->heap[i] = w->heap[child];
        i = child;
    }
    w->heap[i] = last;
    return top;
}

static void push_pair(const struct bpe *b, struct bpe_work *w, int32_t left)
{
    if (left < 0 || w->symbols[left].next < 0)
        return;
    const struct merge_slot *m =
        merges_get(&b->merges, w->symbols[left].id, w->symbols[w->symbols[left].next].id);
    if (m)
        heap_push(w, (struct bpe_candidate){.order = (uint64_t)m->rank << 32 | (uint32_t)left,
                                            .id = m->id});
}

static void merge_all(const struct bpe *b, struct bpe_work *w, size_t n)
{
    w->heap_n = 0;
    for (size_t i = 0; i + 1 < n; i++)
        push_pair(b, w, (int32_t)i);
    while (w->heap_n) {
        struct bpe_candidate top = heap_pop(w);
        int32_t at = (int32_t)(uint32_t)top.order;
        struct bpe_symbol *left = &w->symbols[at];
        if (left->id < 0 || left->next < 0)
            continue;
        struct bpe_symbol *right = &w->symbols[left->next];
        const struct merge_slot *m = merges_get(&b->merges, left->id, right->id);
        if (!m || m->id != top.id)
            continue;
        left->id = top.id;
        left->next = right->next;
        right->id = -1;
        if (left->next >= 0)
            w->symbols[left->next].prev = at;
        push_pair(b, w, left->prev);
        push_pair(b, w, at);
    }
}

static void add_symbol(struct bpe_work *w, size_t *n, int32_t id)
{
    VERIFY(*n < w->symbols_cap);
    w->symbols[*n] = (struct bpe_symbol){.id = id, .prev = (int32_t)*n - 1, .next = -1};
    if (*n > 0)
        w->symbols[*n - 1].next = (int32_t)*n;
    (*n)++;
}

static int32_t char_id(const struct bpe *b, const char *s, size_t len, uint32_t cp)
{
    return cp < BPE_SHORT_CP_MAX ? b->short_ids[cp] : vocab_get(&b->vocab, s, len);
}

static bool add_bytes(const struct bpe *b, struct bpe_work *w, size_t *n, const char *s, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (b->byte_ids[(unsigned char)s[i]] < 0)
            return false;
    }
    for (size_t i = 0; i < len; i++)
        add_symbol(w, n, b->byte_ids[(unsigned char)s[i]]);
    return true;
}

/* Characters to symbols. An unknown character waits in `pending` until a known one comes, as in the
 * reference, so that a run of unknowns can be fused. At most one symbol per byte of text. */
static enum status split_chars(const struct bpe *b, struct bpe_work *w, const char *text,
                               size_t len, size_t *n, struct errtext *err)
{
    int32_t pending = -1;
    for (size_t i = 0, step; i < len; i += step) {
        uint32_t cp = utf8_next(text + i, len - i, &step);
        int32_t id = char_id(b, text + i, step, cp);
        if (id >= 0) {
            if (pending >= 0)
                add_symbol(w, n, pending);
            pending = -1;
            add_symbol(w, n, id);
            continue;
        }
        if (b->byte_fallback && add_bytes(b, w, n, text + i, step))
            continue;
        if (!b->unk_token)
            continue;
        if (pending >= 0 && !b->fuse_unk)
            add_symbol(w, n, pending);
        pending = vocab_get(&b->vocab, b->unk_token, b->unk_len);
        if (pending < 0)
            return err_set(err, STATUS_INVALID,
                           "the tokenizer's unk_token \"%.64s\" is not in its vocabulary",
                           b->unk_token);
    }
    if (pending >= 0)
        add_symbol(w, n, pending);
    return STATUS_OK;
}

enum status bpe_encode(const struct bpe *b, struct bpe_work *w, const char *text, size_t len,
                       struct token_list *out, struct errtext *err)
{
    if (len == 0)
        return STATUS_OK;
    if (b->ignore_merges) {
        int32_t whole = vocab_get(&b->vocab, text, len);
        if (whole >= 0)
            return token_list_add(out, whole, err);
    }
    if (len > INT32_MAX / 4)
        return err_set(err, STATUS_TOO_LARGE, "a word of %zu bytes", len);
    if (!work_reserve(w, len))
        return err_set(err, STATUS_NO_MEMORY, "no memory to tokenize a word of %zu bytes", len);
    size_t n = 0;
    enum status st = split_chars(b, w, text, len, &n, err);
    if (st)
        return st;
    merge_all(b, w, n);
    for (size_t i = 0; !st && i < n; i++) {
        if (w->symbols[i].id >= 0)
            st = token_list_add(out, w->symbols[i].id, err);
    }
    return st;
}
