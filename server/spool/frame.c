/* Frames and footers as bytes. Pure. */
#include "server/spool/crc32c.h"
#include "server/spool/spool_impl.h"

#include <string.h>

void spool_le_put(uint8_t *out, uint64_t v, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (uint8_t)(v >> (8 * i));
}

uint64_t spool_le_get(const uint8_t *in, size_t n)
{
    uint64_t v = 0;
    for (size_t i = 0; i < n; i++)
        v |= (uint64_t)in[i] << (8 * i);
    return v;
}

uint32_t spool_head_crc(const uint8_t head[SPOOL_FRAME_HEAD_BYTES], const void *body, size_t len)
{
    return crc32c(crc32c(0, head + 4, 12), body, len);
}

static void put_head(uint8_t head[SPOOL_FRAME_HEAD_BYTES], uint32_t magic, uint64_t seq,
                     const void *body, size_t len)
{
    spool_le_put(head, magic, 4);
    spool_le_put(head + 4, len, 4);
    spool_le_put(head + 8, seq, 8);
    spool_le_put(head + 16, spool_head_crc(head, body, len), 4);
}

size_t spool_head_body_len(const uint8_t head[SPOOL_FRAME_HEAD_BYTES])
{
    size_t len = (size_t)spool_le_get(head + 4, 4);
    return spool_le_get(head, 4) == SPOOL_MAGIC && len <= SPOOL_BODY_BYTES_MAX ? len : SIZE_MAX;
}

size_t spool_frame_parse(const void *data, size_t len, uint64_t *seq, const uint8_t **body,
                         size_t *body_len)
{
    const uint8_t *p = data;
    if (len < SPOOL_FRAME_HEAD_BYTES)
        return 0;
    size_t n = spool_head_body_len(p);
    if (n == SIZE_MAX || n > len - SPOOL_FRAME_HEAD_BYTES)
        return 0;
    if (spool_le_get(p + 16, 4) != spool_head_crc(p, p + SPOOL_FRAME_HEAD_BYTES, n))
        return 0;
    *seq = spool_le_get(p + 8, 8);
    *body = p + SPOOL_FRAME_HEAD_BYTES;
    *body_len = n;
    return SPOOL_FRAME_HEAD_BYTES + n;
}

void spool_frame_put(struct buf *out, uint64_t seq, const void *body, size_t len)
{
    uint8_t head[SPOOL_FRAME_HEAD_BYTES];
    put_head(head, SPOOL_MAGIC, seq, body, len);
    buf_put(out, head, sizeof(head));
    buf_put(out, body, len);
}

void spool_footer_put(uint8_t out[SPOOL_FOOTER_BYTES], uint64_t last_seq, uint64_t bytes)
{
    spool_le_put(out + SPOOL_FRAME_HEAD_BYTES, bytes, 8);
    put_head(out, SPOOL_FOOTER_MAGIC, last_seq, out + SPOOL_FRAME_HEAD_BYTES, 8);
}

bool spool_footer_parse(const uint8_t data[SPOOL_FOOTER_BYTES], uint64_t *last_seq, uint64_t *bytes)
{
    *last_seq = spool_le_get(data + 8, 8);
    *bytes = spool_le_get(data + SPOOL_FRAME_HEAD_BYTES, 8);
    return spool_le_get(data, 4) == SPOOL_FOOTER_MAGIC && spool_le_get(data + 4, 4) == 8 &&
           spool_le_get(data + 16, 4) == spool_head_crc(data, data + SPOOL_FRAME_HEAD_BYTES, 8);
}

size_t spool_find_frame(const uint8_t *data, size_t len, size_t at, uint64_t seq_min, uint64_t *seq)
{
    const uint8_t *body;
    size_t body_len;
    for (; at + SPOOL_FRAME_HEAD_BYTES <= len; at++) {
        const uint8_t *p = memchr(data + at, (int)(SPOOL_MAGIC & 255), len - at);
        if (!p)
            break;
        at = (size_t)(p - data);
        if (spool_frame_parse(p, len - at, seq, &body, &body_len) && *seq >= seq_min)
            return at;
    }
    return len;
}
