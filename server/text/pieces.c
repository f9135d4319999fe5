/* Storage of pieces: one growing text, one growing array of ranges. The text maximum leaves room
 * for the growth of byte-level mapping (2x) and of normalization, and keeps offsets in 32 bits. */
#include "server/text/pieces.h"
#include "server/base/mem.h"

#define PIECES_TEXT_BYTES_MAX ((size_t)1 << 30)

void pieces_init(struct pieces *p)
{
    *p = (struct pieces){0};
    buf_init(&p->text, PIECES_TEXT_BYTES_MAX);
}

void pieces_fini(struct pieces *p)
{
    buf_fini(&p->text);
    mem_free(p->items);
    p->items = NULL;
    p->n = p->cap = 0;
}

void pieces_clear(struct pieces *p)
{
    buf_clear(&p->text);
    p->n = 0;
    p->failed = false;
}

static void push(struct pieces *p, struct piece item)
{
    if (p->text.failed)
        p->failed = true;
    if (p->failed)
        return;
    if (p->n == p->cap) {
        size_t cap = p->cap ? p->cap * 2 : 32;
        struct piece *items = mem_try_realloc(p->items, cap * sizeof(*items));
        if (!items) {
            p->failed = true;
            return;
        }
        p->items = items;
        p->cap = cap;
    }
    p->items[p->n++] = item;
}

void pieces_close(struct pieces *p, size_t start, int32_t id, bool at_start)
{
    size_t len = p->text.len - start;
    if (len == 0 && id < 0 && !p->text.failed)
        return;
    push(p, (struct piece){
                .start = (uint32_t)start, .len = (uint32_t)len, .id = id, .at_start = at_start});
}

void pieces_add(struct pieces *p, const char *text, size_t len, int32_t id, bool at_start)
{
    size_t start = p->text.len;
    buf_put(&p->text, text, len);
    pieces_close(p, start, id, at_start);
}

void pieces_add_always(struct pieces *p, const char *text, size_t len)
{
    size_t start = p->text.len;
    buf_put(&p->text, text, len);
    push(p, (struct piece){.start = (uint32_t)start, .len = (uint32_t)len, .id = -1});
}
