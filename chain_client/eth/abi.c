/* The ABI writer reserves a tuple's head and fills it word by word, while dynamic values are
 * appended to the same buffer, so an offset is simply the buffer's length minus the head's start.
 * The reader never trusts an offset or a count: each is bounded by what lies behind it before it is
 * used, so hostile return data ends in INVALID. */
#include "chain_client/eth/abi.h"
#include "chain_client/eth/keccak.h"
#include "server/base/check.h"

#include <string.h>

static const uint8_t zero_word[ABI_WORD_BYTES];

void abi_begin(struct abi_tuple *t, struct buf *out, size_t word_count)
{
    *t = (struct abi_tuple){.out = out, .start = out->len, .word_count = word_count};
    for (size_t i = 0; i < word_count && !out->failed; i++)
        buf_put(out, zero_word, sizeof(zero_word));
}

void abi_end(const struct abi_tuple *t)
{
    CHECK(t->word_idx == t->word_count);
}

/* The next head word, or NULL when the buffer has failed. */
static uint8_t *next_word(struct abi_tuple *t)
{
    CHECK(t->word_idx < t->word_count);
    size_t at = t->start + ABI_WORD_BYTES * t->word_idx++;
    return t->out->failed ? NULL : (uint8_t *)t->out->data + at;
}

void abi_uint(struct abi_tuple *t, u128 v)
{
    uint8_t *word = next_word(t);
    if (word)
        be_put(word, v, ABI_WORD_BYTES);
}

void abi_bool(struct abi_tuple *t, bool v)
{
    abi_uint(t, v ? 1 : 0);
}

void abi_bytes32(struct abi_tuple *t, const uint8_t v[32])
{
    uint8_t *word = next_word(t);
    if (word)
        memcpy(word, v, 32);
}

void abi_address(struct abi_tuple *t, const uint8_t v[20])
{
    uint8_t *word = next_word(t);
    if (word)
        memcpy(word + 12, v, 20);
}

void abi_dynamic(struct abi_tuple *t)
{
    abi_uint(t, t->out->len - t->start);
}

void abi_count(struct buf *out, size_t count)
{
    uint8_t word[ABI_WORD_BYTES];
    be_put(word, count, sizeof(word));
    buf_put(out, word, sizeof(word));
}

void abi_bytes_tail(struct buf *out, const void *data, size_t len)
{
    abi_count(out, len);
    if (len)
        buf_put(out, data, len);
    if (len % ABI_WORD_BYTES)
        buf_put(out, zero_word, ABI_WORD_BYTES - len % ABI_WORD_BYTES);
}

void abi_topic(uint8_t out[32], const char *signature)
{
    keccak_256(out, signature, strlen(signature));
}

void abi_selector(uint8_t out[4], const char *signature)
{
    uint8_t hash[32];
    abi_topic(hash, signature);
    memcpy(out, hash, 4);
}

void abi_put_selector(struct buf *out, const char *signature)
{
    uint8_t selector[4];
    abi_selector(selector, signature);
    buf_put(out, selector, sizeof(selector));
}

static enum status word_at(const struct abi_reader *r, size_t word_idx, const uint8_t **word,
                           const char *name, struct errtext *err)
{
    if (word_idx >= r->len / ABI_WORD_BYTES)
        return err_param(err, STATUS_INVALID, name,
                         "%s: word %zu is missing, the data has %zu bytes", name, word_idx, r->len);
    *word = r->data + ABI_WORD_BYTES * word_idx;
    return STATUS_OK;
}

/* The word must be zero but for its last `bytes` bytes. */
static enum status narrow_word(const struct abi_reader *r, size_t word_idx, size_t bytes,
                               const uint8_t **value, const char *name, struct errtext *err)
{
    const uint8_t *word = NULL;
    enum status st = word_at(r, word_idx, &word, name, err);
    if (st)
        return st;
    if (memcmp(word, zero_word, ABI_WORD_BYTES - bytes) != 0)
        return err_param(err, STATUS_INVALID, name, "%s: does not fit %zu bytes", name, bytes);
    *value = word + ABI_WORD_BYTES - bytes;
    return STATUS_OK;
}

enum status abi_read_uint(const struct abi_reader *r, size_t word_idx, size_t bytes, u128 *v,
                          const char *name, struct errtext *err)
{
    const uint8_t *value = NULL;
    CHECK(bytes >= 1 && bytes <= 16);
    enum status st = narrow_word(r, word_idx, bytes, &value, name, err);
    if (!st)
        *v = be_get(value, bytes);
    return st;
}

enum status abi_read_u64(const struct abi_reader *r, size_t word_idx, uint64_t *v, const char *name,
                         struct errtext *err)
{
    u128 wide = 0;
    enum status st = abi_read_uint(r, word_idx, 8, &wide, name, err);
    *v = (uint64_t)wide;
    return st;
}

enum status abi_read_bool(const struct abi_reader *r, size_t word_idx, bool *v, const char *name,
                          struct errtext *err)
{
    u128 wide = 0;
    enum status st = abi_read_uint(r, word_idx, 1, &wide, name, err);
    if (!st && wide > 1)
        st = err_param(err, STATUS_INVALID, name, "%s: found %u, expected 0 or 1", name,
                       (unsigned)wide);
    *v = wide == 1;
    return st;
}

enum status abi_read_bytes32(const struct abi_reader *r, size_t word_idx, uint8_t v[32],
                             const char *name, struct errtext *err)
{
    const uint8_t *word = NULL;
    enum status st = word_at(r, word_idx, &word, name, err);
    if (!st)
        memcpy(v, word, 32);
    return st;
}

enum status abi_read_address(const struct abi_reader *r, size_t word_idx, uint8_t v[20],
                             const char *name, struct errtext *err)
{
    const uint8_t *value = NULL;
    enum status st = narrow_word(r, word_idx, 20, &value, name, err);
    if (!st)
        memcpy(v, value, 20);
    return st;
}

enum status abi_read_tuple(const struct abi_reader *r, size_t word_idx, struct abi_reader *inner,
                           const char *name, struct errtext *err)
{
    u128 offset = 0;
    enum status st = abi_read_uint(r, word_idx, 16, &offset, name, err);
    if (st)
        return st;
    if (offset % ABI_WORD_BYTES || offset > r->len)
        return err_param(err, STATUS_INVALID, name, "%s: bad offset into %zu bytes", name, r->len);
    *inner = (struct abi_reader){.data = r->data + offset, .len = r->len - (size_t)offset};
    return STATUS_OK;
}

enum status abi_read_bytes(const struct abi_reader *r, size_t word_idx, const uint8_t **data,
                           size_t *len, const char *name, struct errtext *err)
{
    struct abi_reader inner;
    u128 count = 0;
    enum status st = abi_read_tuple(r, word_idx, &inner, name, err);
    if (!st)
        st = abi_read_uint(&inner, 0, 16, &count, name, err);
    if (st)
        return st;
    if (count > inner.len - ABI_WORD_BYTES)
        return err_param(err, STATUS_INVALID, name, "%s: longer than the %zu bytes that follow",
                         name, inner.len - ABI_WORD_BYTES);
    *data = inner.data + ABI_WORD_BYTES;
    *len = (size_t)count;
    return STATUS_OK;
}

enum status abi_read_array(const struct abi_reader *r, size_t word_idx, size_t element_words,
                           struct abi_array *array, const char *name, struct errtext *err)
{
    struct abi_reader inner;
    u128 found = 0;
    CHECK(element_words >= 1);
    enum status st = abi_read_tuple(r, word_idx, &inner, name, err);
    if (!st)
        st = abi_read_uint(&inner, 0, 16, &found, name, err);
    if (st)
        return st;
    size_t room = (inner.len - ABI_WORD_BYTES) / (ABI_WORD_BYTES * element_words);
    if (found > room)
        return err_param(err, STATUS_INVALID, name, "%s: more elements than the data holds (%zu)",
                         name, room);
    array->items.data = inner.data + ABI_WORD_BYTES;
    array->items.len = inner.len - ABI_WORD_BYTES;
    array->count = (size_t)found;
    return STATUS_OK;
}
