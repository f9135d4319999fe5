/* A binary heap of indexes over somebody's array: the first in an order without sorting all. What
 * is first is said by before(of, a, b); it is inlined. The memory is the caller's. */
#ifndef RS_BASE_HEAP_H
#define RS_BASE_HEAP_H

#include <stdbool.h>
#include <stdint.h>

typedef bool heap_before(const void *of, uint32_t a, uint32_t b);

/* The item at `at` may have to move back. */
static inline __attribute__((always_inline)) void
heap_sink(uint32_t *heap, uint32_t count, uint32_t at, heap_before *before, const void *of)
{
    uint32_t item = heap[at];
    for (uint32_t next; (next = 2 * at + 1) < count; at = next) {
        if (next + 1 < count && before(of, heap[next + 1], heap[next]))
            next++;
        if (!before(of, heap[next], item))
            break;
        heap[at] = heap[next];
    }
    heap[at] = item;
}

static inline __attribute__((always_inline)) void heap_make(uint32_t *heap, uint32_t count,
                                                            heap_before *before, const void *of)
{
    for (uint32_t at = count / 2; at-- > 0;)
        heap_sink(heap, count, at, before, of);
}

static inline __attribute__((always_inline)) void
heap_push(uint32_t *heap, uint32_t *count, uint32_t item, heap_before *before, const void *of)
{
    uint32_t at = (*count)++;
    while (at > 0 && before(of, item, heap[(at - 1) / 2])) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = item;
}

/* The first; count must be above 0. */
static inline __attribute__((always_inline)) uint32_t heap_pop(uint32_t *heap, uint32_t *count,
                                                               heap_before *before, const void *of)
{
    uint32_t first = heap[0];
    heap[0] = heap[--*count];
    if (*count > 0)
        heap_sink(heap, *count, 0, before, of);
    return first;
}

/* All items, the first in order at the begin. */
static inline __attribute__((always_inline)) void heap_sort(uint32_t *item, uint32_t count,
                                                            heap_before *before, const void *of)
{
    heap_make(item, count, before, of);
    for (uint32_t left = count; left > 1;) {
        uint32_t first = heap_pop(item, &left, before, of);
        item[left] = first;
    }
    for (uint32_t i = 0; i < count / 2; i++) {
        uint32_t swap = item[i];
        item[i] = item[count - 1 - i];
        item[count - 1 - i] = swap;
    }
}

#endif
