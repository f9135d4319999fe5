/* Two hash tables of the tokenizer: token text -> id, and pair of ids -> merge. Open addressing,
 * filled once at load, read-only after. The hash is keyed with a random value per process, so that
 * a crafted file cannot make the tables slow. Keys of the text table point into memory the caller
 * keeps alive. Thread: one while filling, any after. */
#ifndef RS_TEXT_VOCAB_H
#define RS_TEXT_VOCAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct vocab_slot {
    const char *key;
    uint32_t len;
    int32_t id; /* -1: empty slot */
};

struct vocab {
    struct vocab_slot *slots;
    size_t mask;
    size_t count;
};

struct merge_slot {
    uint64_t pair; /* left id << 32 | right id */
    uint32_t rank;
    int32_t id; /* result; -1: empty slot */
};

struct merges {
    struct merge_slot *slots;
    size_t mask;
};

/* Room for count_max keys; false without memory. */
bool vocab_init(struct vocab *v, size_t count_max);
void vocab_fini(struct vocab *v);
/* Insert or replace. */
void vocab_set(struct vocab *v, const char *key, size_t len, int32_t id);
int32_t vocab_get(const struct vocab *v, const char *key, size_t len); /* -1 */

bool merges_init(struct merges *m, size_t count_max);
void merges_fini(struct merges *m);
/* Insert or replace (a later line of the file wins). */
void merges_set(struct merges *m, int32_t left, int32_t right, uint32_t rank, int32_t id);
/* NULL when the pair does not merge. */
const struct merge_slot *merges_get(const struct merges *m, int32_t left, int32_t right);

#endif
