/* RLP by its five head forms:
 *   00..7f  the byte itself            80..b7  string of 0..55 bytes   b8..bf  long string
 *   c0..f7  list of 0..55 bytes        f8..ff  long list
 * A long head carries the length in 1..8 big-endian bytes without a leading zero and only for 56
 * bytes or more; a single byte below 0x80 never has a head. The decoder refuses the rest, so a
 * value has one encoding and a hash of encoded bytes is an identity. */
#include "chain_client/eth/rlp.h"
#include "server/base/check.h"

#include <string.h>

#define SHORT_MAX 55

/* Head for a payload of len bytes; base is 0x80 or 0xc0. out has room for 9. */
static size_t head_encode(uint8_t *out, size_t len, uint8_t base)
{
    if (len <= SHORT_MAX) {
        out[0] = (uint8_t)(base + len);
        return 1;
    }
    size_t width = 0;
    for (size_t v = len; v; v >>= 8)
        width++;
    out[0] = (uint8_t)(base + SHORT_MAX + width);
    be_put(out + 1, len, width);
    return 1 + width;
}

void rlp_put_bytes(struct buf *out, const void *data, size_t len)
{
    const uint8_t *p = data;
    uint8_t head[9];
    if (len != 1 || p[0] >= 0x80)
        buf_put(out, head, head_encode(head, len, 0x80));
    if (len)
        buf_put(out, data, len);
}

void rlp_put_uint_bytes(struct buf *out, const uint8_t *data, size_t len)
{
    while (len && !data[0]) {
        data++;
        len--;
    }
    rlp_put_bytes(out, data, len);
}

void rlp_put_uint(struct buf *out, u128 v)
{
    uint8_t word[16];
    be_put(word, v, sizeof(word));
    rlp_put_uint_bytes(out, word, sizeof(word));
}

size_t rlp_list_begin(struct buf *out)
{
    return out->len;
}

void rlp_list_end(struct buf *out, size_t begin)
{
    uint8_t head[9];
    if (out->failed)
        return;
    CHECK(begin <= out->len);
    size_t len = out->len - begin;
    size_t head_len = head_encode(head, len, 0xc0);
    buf_put(out, head, head_len); /* makes the room, then the payload moves up */
    if (out->failed)
        return;
    memmove(out->data + begin + head_len, out->data + begin, len);
    memcpy(out->data + begin, head, head_len);
}

/* The length behind a long head of `width` bytes. */
static enum status long_length(struct rlp_reader *r, size_t width, size_t *len, struct errtext *err)
{
    if (width > r->len)
        return err_set(err, STATUS_INVALID, "RLP: the data ends inside a length");
    if (!r->data[0])
        return err_set(err, STATUS_INVALID, "RLP: a length has a leading zero");
    *len = (size_t)be_get(r->data, width);
    if (*len <= SHORT_MAX)
        return err_set(err, STATUS_INVALID, "RLP: length %zu has a long head (expected short)",
                       *len);
    r->data += width;
    r->len -= width;
    return STATUS_OK;
}

enum status rlp_next(struct rlp_reader *r, struct rlp_item *item, struct errtext *err)
{
    if (!r->len)
        return err_set(err, STATUS_INVALID, "RLP: an item is missing at the end");
    uint8_t head = r->data[0];
    size_t len = 1;
    enum status st = STATUS_OK;
    item->is_list = head >= 0xc0;
    if (head >= 0x80) {
        size_t form = head - (item->is_list ? 0xc0u : 0x80u);
        r->data++;
        r->len--;
        len = form;
        if (form > SHORT_MAX)
            st = long_length(r, form - SHORT_MAX, &len, err);
    }
    if (st)
        return st;
    if (len > r->len)
        return err_set(err, STATUS_INVALID, "RLP: an item of %zu bytes, but %zu are left", len,
                       r->len);
    if (head == 0x81 && r->data[0] < 0x80)
        return err_set(err, STATUS_INVALID, "RLP: the byte 0x%02x has a head (expected none)",
                       r->data[0]);
    item->data = r->data;
    item->len = len;
    r->data += len;
    r->len -= len;
    return STATUS_OK;
}

enum status rlp_next_list(struct rlp_reader *r, struct rlp_reader *inner, struct errtext *err)
{
    struct rlp_item item;
    enum status st = rlp_next(r, &item, err);
    if (st)
        return st;
    if (!item.is_list)
        return err_set(err, STATUS_INVALID, "RLP: found a string where a list is expected");
    *inner = (struct rlp_reader){.data = item.data, .len = item.len};
    return STATUS_OK;
}

static enum status next_string(struct rlp_reader *r, struct rlp_item *item, const char *name,
                               struct errtext *err)
{
    enum status st = rlp_next(r, item, err);
    if (!st && item->is_list)
        st = err_param(err, STATUS_INVALID, name, "%s: found a list, expected a string", name);
    return st;
}

enum status rlp_next_uint(struct rlp_reader *r, u128 *v, size_t bytes_max, const char *name,
                          struct errtext *err)
{
    struct rlp_item item;
    CHECK(bytes_max >= 1 && bytes_max <= 16);
    enum status st = next_string(r, &item, name, err);
    if (st)
        return st;
    if (item.len > bytes_max)
        return err_param(err, STATUS_INVALID, name, "%s: %zu bytes, expected at most %zu", name,
                         item.len, bytes_max);
    if (item.len && !item.data[0])
        return err_param(err, STATUS_INVALID, name, "%s: an integer has a leading zero", name);
    *v = be_get(item.data, item.len);
    return STATUS_OK;
}

enum status rlp_next_bytes(struct rlp_reader *r, uint8_t *out, size_t len, const char *name,
                           struct errtext *err)
{
    struct rlp_item item;
    enum status st = next_string(r, &item, name, err);
    if (st)
        return st;
    if (item.len != len)
        return err_param(err, STATUS_INVALID, name, "%s: %zu bytes, expected %zu", name, item.len,
                         len);
    memcpy(out, item.data, len);
    return STATUS_OK;
}

enum status rlp_end(const struct rlp_reader *r, struct errtext *err)
{
    if (r->len)
        return err_set(err, STATUS_INVALID, "RLP: %zu bytes follow the last item", r->len);
    return STATUS_OK;
}
