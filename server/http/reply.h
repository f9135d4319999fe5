/* Exact shapes: OpenAI error objects, chat and text completions, chunks, logprobs, usage.
 * Everything is appended to a buffer by hand, so key order and number format are ours. Thread: the
 * caller's. */
#ifndef RS_HTTP_REPLY_H
#define RS_HTTP_REPLY_H

#include "server/http/generate.h"

#define REPLY_BYTES_MAX  (256u << 20)
#define REPLY_NO_LOGPROB (-9999.0) /* JSON has no -Infinity */

/* HTTP code of a status; for STATUS_OK 200. */
int reply_code(enum status st);
/* {"error":{...}} for an HTTP code; where err has no code of its own, that of the HTTP code. */
void reply_put_error(struct buf *out, int http_code, const struct errtext *err);
void reply_put_number(struct buf *out, float logprob);
/* "usage" object. tokens so far, of all choices. */
void reply_put_usage(struct buf *out, const struct generation *g);
/* The whole non-stream body. */
void reply_put_completion(struct buf *out, struct generation *g);
/* `,"residual":{...}` */
void reply_put_residual(struct buf *out, const struct generation *g);
/* Take what is new of choice idx into its `ready`, the echoed prompt first, once there is anything
 * to begin with. False: its text did not fit into memory. */
bool reply_pull(struct generation *g, uint32_t idx);
/* What a choice says of the tokens that were pulled and not yet sent, in a chunk or a whole answer:
 * `,"logprobs":...`, and where they are asked for `,"prompt_token_ids":[...]` and
 * `,"token_ids":[...]`. */
void reply_put_logprobs(struct buf *out, struct generation *g, uint32_t idx);
void reply_put_prompt_ids(struct buf *out, const struct generation *g, uint32_t idx);
void reply_put_token_ids(struct buf *out, const struct generation *g, uint32_t idx);
/* chatcmpl-<hex> or cmpl-<hex> */
void reply_put_id(struct buf *out, const struct generation *g);
const char *reply_finish_name(uint32_t finish);
/* `"finish_reason":...,"stop_reason":...` */
void reply_put_finish(struct buf *out, const struct generation *g, const struct request_seq *s);

/* logprobs.c: the `logprobs` value of tokens [from, to) of a choice. */
struct logprob_range {
    uint32_t from, to;
    bool with_prompt; /* completions with echo: the prompt's tokens come first */
};
void logprobs_put_chat(struct buf *out, const struct generation *g, const struct request_seq *s,
                       struct logprob_range range);
void logprobs_put_completion(struct buf *out, struct generation *g, uint32_t idx,
                             struct logprob_range range);
/* vLLM's prompt_logprobs list of a prompt. */
void logprobs_put_prompt(struct buf *out, const struct generation *g,
                         const struct request_prompt *prompt);
void reply_put_ids(struct buf *out, const int32_t *ids, uint32_t n); /* [1,2] */

/* Stop producing when more than this waits to be sent: the rest stays in the request's arrays. */
#define SSE_BACKLOG_BYTES (64u << 10)
/* sse.c: events from the request's present state into x->out; true when the stream is complete. */
bool sse_fill(struct generation *g, struct buf *out);

#endif
