/* Protocol Buffers' wire format (proto3), read and written by hand: a message is fields, each a
 * number, a wire type and a value. Unknown fields are the reader's to skip; a field that stands
 * twice is two fields. Groups, which proto3 has not, are refused. Pure. Thread: any. */
#ifndef RS_BASE_PROTO_H
#define RS_BASE_PROTO_H

#include "server/base/buf.h"
#include "server/base/errtext.h"

enum proto_wire { PROTO_VARINT = 0, PROTO_64 = 1, PROTO_BYTES = 2, PROTO_32 = 5 };

struct proto_field {
    uint32_t number;
    enum proto_wire wire;
    uint64_t value;      /* of VARINT, 64 and 32, as it stands */
    const uint8_t *data; /* of BYTES: a string, a message, packed numbers */
    size_t len;
};
/* A message. The first fault stays: then there are no more fields. */
struct proto_reader {
    const uint8_t *at, *end;
    const char *where; /* begins the error text */
    enum status st;
    struct errtext *err;
};
struct proto_reader proto_open(const char *where, const void *data, size_t len,
                               struct errtext *err);
/* false: the end, or a fault (r->st). */
MUST_CHECK bool proto_next(struct proto_reader *r, struct proto_field *f);
/* Has f this wire type? If not it is a fault. */
MUST_CHECK bool proto_is(struct proto_reader *r, const struct proto_field *f, enum proto_wire wire);
/* f as a message of its own; its faults are to be asked of it. */
struct proto_reader proto_enter(const struct proto_reader *r, const struct proto_field *f);
double proto_double(const struct proto_field *f); /* of wire type 64 */

void proto_put_int(struct buf *out, uint32_t number, uint64_t value); /* a varint */
void proto_put_bytes(struct buf *out, uint32_t number, const void *data, size_t len);
void proto_put_text(struct buf *out, uint32_t number, const char *text);
void proto_put_double(struct buf *out, uint32_t number, double value);
/* What comes until proto_end is the message at `number`. The mark is proto_end's. */
size_t proto_begin(struct buf *out, uint32_t number);
void proto_end(struct buf *out, size_t mark);

#endif
