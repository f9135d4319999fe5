/* The length of a nested message stands before it and is known behind it: it is written in four
 * bytes of a varint with its high bits set, which readers must take (a varint may be longer than it
 * need be), so that nothing is moved. */
#include "server/base/proto.h"
#include "server/base/check.h"

#include <string.h>

#define LENGTH_BYTES 4
#define LENGTH_MAX   ((1u << 7 * LENGTH_BYTES) - 1)

struct proto_reader proto_open(const char *where, const void *data, size_t len, struct errtext *err)
{
    const uint8_t *at = data;
    return (struct proto_reader){.at = at, .end = len ? at + len : at, .where = where, .err = err};
}

static bool fault(struct proto_reader *r, const char *what)
{
    if (!r->st)
        r->st = err_set(r->err, STATUS_INVALID, "%s: %s", r->where, what);
    return false;
}

static bool varint(struct proto_reader *r, uint64_t *out)
{
    *out = 0;
    for (unsigned shift = 0; shift < 64 && r->at < r->end; shift += 7) {
        uint8_t byte = *r->at++;
        *out |= (uint64_t)(byte & 0x7F) << shift;
        if (!(byte & 0x80))
            return true;
    }
    return fault(r, "a number of a protobuf message is cut off or longer than 10 bytes");
}

static bool fixed(struct proto_reader *r, size_t bytes, uint64_t *out)
{
    *out = 0;
    if ((size_t)(r->end - r->at) < bytes)
        return fault(r, "a protobuf message ends inside of a number");
    for (size_t i = 0; i < bytes; i++)
        *out |= (uint64_t)r->at[i] << (8 * i);
    r->at += bytes;
    return true;
}

static bool bytes(struct proto_reader *r, struct proto_field *f)
{
    uint64_t len;
    if (!varint(r, &len))
        return false;
    if (len > (uint64_t)(r->end - r->at))
        return fault(r, "a field of a protobuf message is longer than the message");
    f->data = r->at;
    f->len = (size_t)len;
    r->at += len;
    return true;
}

bool proto_next(struct proto_reader *r, struct proto_field *f)
{
    uint64_t tag;
    if (r->st || r->at == r->end || !varint(r, &tag))
        return false;
    *f = (struct proto_field){.number = (uint32_t)(tag >> 3), .wire = (enum proto_wire)(tag & 7)};
    if (tag >> 3 == 0 || tag >> 3 > 0x1FFFFFFF)
        return fault(r, "a field of a protobuf message has no valid number");
    switch (f->wire) {
    case PROTO_VARINT:
        return varint(r, &f->value);
    case PROTO_64:
        return fixed(r, 8, &f->value);
    case PROTO_32:
        return fixed(r, 4, &f->value);
    case PROTO_BYTES:
        return bytes(r, f);
    default:
        return fault(r, "a field of a protobuf message has a wire type that proto3 has not");
    }
}

bool proto_is(struct proto_reader *r, const struct proto_field *f, enum proto_wire wire)
{
    if (f->wire == wire)
        return true;
    if (!r->st)
        r->st = err_set(r->err, STATUS_INVALID, "%s: field %u has wire type %u, expected %u",
                        r->where, f->number, (unsigned)f->wire, (unsigned)wire);
    return false;
}

struct proto_reader proto_enter(const struct proto_reader *r, const struct proto_field *f)
{
    return proto_open(r->where, f->data, f->len, r->err);
}

double proto_double(const struct proto_field *f)
{
    double v;
    _Static_assert(sizeof(v) == sizeof(f->value), "a double has 64 bits");
    memcpy(&v, &f->value, sizeof(v));
    return v;
}

static void put_varint(struct buf *out, uint64_t v)
{
    for (; v >= 0x80; v >>= 7)
        buf_putc(out, (char)(v | 0x80));
    buf_putc(out, (char)v);
}

static void put_tag(struct buf *out, uint32_t number, enum proto_wire wire)
{
    put_varint(out, (uint64_t)number << 3 | wire);
}

void proto_put_int(struct buf *out, uint32_t number, uint64_t value)
{
    put_tag(out, number, PROTO_VARINT);
    put_varint(out, value);
}

void proto_put_bytes(struct buf *out, uint32_t number, const void *data, size_t len)
{
    put_tag(out, number, PROTO_BYTES);
    put_varint(out, len);
    buf_put(out, data, len);
}

void proto_put_text(struct buf *out, uint32_t number, const char *text)
{
    proto_put_bytes(out, number, text, strlen(text));
}

void proto_put_double(struct buf *out, uint32_t number, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof(bits));
    put_tag(out, number, PROTO_64);
    for (int i = 0; i < 8; i++)
        buf_putc(out, (char)(bits >> (8 * i)));
}

size_t proto_begin(struct buf *out, uint32_t number)
{
    static const char room[LENGTH_BYTES];
    put_tag(out, number, PROTO_BYTES);
    buf_put(out, room, sizeof(room));
    return out->len;
}

void proto_end(struct buf *out, size_t mark)
{
    if (out->failed)
        return;
    size_t len = out->len - mark;
    CHECK(len <= LENGTH_MAX);
    for (int i = 0; i < LENGTH_BYTES; i++) {
        uint8_t more = i + 1 < LENGTH_BYTES ? 0x80 : 0;
        out->data[mark - LENGTH_BYTES + i] = (char)((len >> (7 * i) & 0x7F) | more);
    }
}
