/* Distinct keys of one width out of a stream with many repeats: memory stays in the number of the
 * distinct ones. Keys are compared bytewise, so integers go in big-endian. One owner. */
#ifndef RS_SETTLE_KEYSET_H
#define RS_SETTLE_KEYSET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct keyset {
    size_t width; /* of a key, in bytes; set by the owner */
    uint8_t *key; /* [count][width] */
    size_t count, cap;
};

/* False without memory. */
bool keyset_add(struct keyset *s, const void *key);
/* Ascending and distinct from here to the next keyset_add. */
void keyset_sort(struct keyset *s);
/* Key i of a sorted set. */
const uint8_t *keyset_at(const struct keyset *s, size_t i);
void keyset_fini(struct keyset *s);

#endif
