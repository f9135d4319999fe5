/* Bytes of a reply that are written past the library, while its connection is suspended.
 *
 * A token through libmicrohttpd costs a resume (a lock, an eventfd), a turn of its polling loop, a
 * send, a setsockopt and a suspend: 10 us. Here it is one send by the watch thread. The library
 * writes the head and the first chunk, then suspends for good (`flows`); it comes back for what is
 * left when the stream ends or the client is gone.
 *
 * Safe because a suspended connection has nothing half-written: the library asks for more only when
 * the last chunk is out. Thread: any, with the exchange's lock held while it is parked. */
#ifndef RS_HTTP_FLOW_H
#define RS_HTTP_FLOW_H

#include "server/http/exchange.h"

enum flow_next {
    FLOW_STAY,  /* nothing more to do now */
    FLOW_WRITE, /* the socket is full: come back when it can be written */
    FLOW_RESUME /* the library goes on: the end, an error, or not a stream */
};

enum flow_next flow_push(struct exchange *x);
/* A client that has ended its side has either left or waits for its answer, and only a write tells
 * which: one that has left answers with a reset. False: its answer cannot be sent any more. */
MUST_CHECK bool flow_probe(struct exchange *x);

#endif
