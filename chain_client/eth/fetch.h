/* HTTP as a client: one request, one bounded answer. The only user of libcurl. No redirects, no
 * proxy and no credential from the environment, no retries: the caller owns those. Only http and
 * https are spoken. One client keeps its connection, and is used by one thread at a time.
 *
 *   fetch_open(&f, &(struct fetch_config){.base = "http://host:1", .what = "chain node"}, err);
 *   st = fetch_perform(f, &(struct fetch_request){.method = "GET", .path = "/health"}, err);
 *   ... fetch_answer(f)->code, ->body ...
 *   fetch_close(f);
 */
#ifndef RS_CHAIN_ETH_FETCH_H
#define RS_CHAIN_ETH_FETCH_H

#include "server/base/buf.h"
#include "server/base/errtext.h"

#include <stddef.h>
#include <stdint.h>

#define FETCH_URL_BYTES_MAX 2048
#define FETCH_KEY_BYTES_MAX 4096
#define FETCH_BEARER_BYTES  (FETCH_KEY_BYTES_MAX + 16)

struct fetch;

struct fetch_config {
    const char *base;          /* http://... or https://..., copied; slashes at its end go */
    const char *authorization; /* value of that header, or NULL; copied, wiped, never logged */
    const char *sigv4;         /* "aws:amz:REGION:s3": each request is signed (AWS, version 4) */
    const char *credential;    /* "ID:SECRET" for sigv4; copied, wiped, never logged */
    const char *what;          /* who is asked, for errors ("chain node"); copied. Errors never show
                                  base: a node's URL may hold a key */
    uint32_t timeout_ms;       /* of a whole request; 0: 10 000 */
    uint32_t connect_ms;       /* 0: as timeout_ms */
    uint32_t stall_s;          /* without a byte for so long: given up; 0: never */
    size_t answer_bytes_max;   /* 0: 16 MiB */
};

/* Errors  INVALID: base is no such URL, or authorization is too long or has a line break */
MUST_CHECK enum status fetch_open(struct fetch **out, const struct fetch_config *config,
                                  struct errtext *err);
void fetch_close(struct fetch *f); /* NULL is fine */

/* "Bearer KEY" from a file of one key on one line that only its owner may read; the caller wipes
 * out. key_bytes_max is at most FETCH_KEY_BYTES_MAX.
 *
 * Errors  DENIED for the file's mode, INVALID for no key or several lines, else as file_read_secret
 */
MUST_CHECK enum status fetch_bearer(char out[FETCH_BEARER_BYTES], const char *key_path,
                                    size_t key_bytes_max, struct errtext *err);

struct fetch_file {
    int fd;
    const char *name; /* for errors */
    uint64_t bytes_max;
};
struct fetch_request {
    const char *method;            /* GET, PUT, POST or DELETE */
    const char *path;              /* behind base, "" for base itself */
    const void *body;              /* sent as application/json, or NULL */
    size_t body_bytes;             /* of body */
    const char *file_path;         /* a file to upload instead of body, or NULL */
    const char *header;            /* one more line, "name: value", or NULL */
    const struct fetch_file *into; /* where the body of a 2xx goes instead of fetch_answer; NULL */
};
struct fetch_answer {
    long code;              /* HTTP status, 0 before an answer */
    uint32_t retry_after_s; /* of that header in seconds, 0 without */
    struct buf body;        /* ends in a NUL beyond len once it holds anything */
};

/* After   OK: an answer of any HTTP status is in fetch_answer
 * Errors  TOO_LARGE  longer than answer_bytes_max; fetch_answer holds what came before;
 *                    or longer than into's
 *         TIMEOUT    a deadline passed: the other side may have acted
 *         IO         no connection, or it broke; into cannot be written
 *         INVALID    the URL is too long
 *         NOT_FOUND  file_path is not there
 */
MUST_CHECK enum status fetch_perform(struct fetch *f, const struct fetch_request *request,
                                     struct errtext *err);
/* Valid until the next call. */
const struct fetch_answer *fetch_answer(const struct fetch *f);

#endif
