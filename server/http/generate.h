/* A generation: one completions or chat request from its body to its last byte. The handler parses,
 * admits with the recorder and submits to the engine; afterwards the transport asks what to do next
 * (generation_poll, generation_stream) each time the engine or the recorder woke the exchange.
 *
 * A reply, or the last chunk with choices, leaves only when the request is done: then its record is
 * durable. Thread: the exchange's owner, but for the calls marked any. */
#ifndef RS_HTTP_GENERATE_H
#define RS_HTTP_GENERATE_H

#include "server/http/exchange.h"
#include "server/http/request_parse.h"
#include "server/http/textout.h"

struct choice { /* one sequence's way out */
    struct textout text;
    struct buf ready;         /* text not yet in a chunk (stream) or all of it (one reply) */
    struct buf offsets;       /* uint32_t of the tokens not yet in one, for completions' logprobs */
    uint32_t sent;            /* tokens in chunks */
    uint64_t echo_characters; /* of the prompt, before the text */
    bool begun, finished;     /* first chunk, finish chunk sent */
    bool echoed;
};

struct generation {
    struct exchange *x;
    struct http_server *server;
    struct gen_spec spec;
    struct textout_rules rules;
    struct request *req;   /* our reference */
    struct choice *choice; /* [choice_count] = [req->seq_count] */
    uint32_t choice_count;
    int64_t created_unix;
    uint32_t begun_count, finished_count;
    bool submitted, keyed; /* keyed: registered under an Idempotency-Key */
    bool streaming, ended, counted;
    atomic_bool drained;           /* the server ended it */
    _Atomic uint64_t last_send_ns; /* streaming: 0 until submitted */
    uint64_t last_wake_ns;         /* engine thread */
};

enum generation_next {
    GENERATION_WAIT,
    GENERATION_REPLY, /* x->code and x->out are set */
    GENERATION_STREAM /* begin (or go on with) the event stream */
};

/* What a request of x is: how its body is read; id, payer, times and record. Its wake is set by who
 * submits. Also tinker_sample.c. */
struct parse_env generation_env(const struct exchange *x, bool chat);
void generation_fill(const struct exchange *x, struct request *r);
/* Recorder, then engine; counts in http_server.active. false: x has its answer. *submitted is set
 * before the engine can wake anybody. */
MUST_CHECK bool generation_submit(struct exchange *x, struct request *r, bool *submitted);

enum generation_next generation_poll(struct generation *g);
/* Append events to x->out. GENERATION_REPLY: that was all. */
enum generation_next generation_stream(struct generation *g);

/* The client is gone, or the drain is over: stop computing. Thread: any. */
void generation_cancel(struct generation *g);
/* The chain has released the request: nothing can call wake any more. Thread: any. */
bool generation_is_over(const struct generation *g);
/* A stream that has sent nothing since then. Thread: any. */
bool generation_is_idle_since(const struct generation *g, uint64_t ns);
/* The connection is finished: release what can be released now. Takes no reference. */
void generation_free(struct generation *g);

#endif
