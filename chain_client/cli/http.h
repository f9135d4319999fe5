/* HTTP to a serving server or a settlement worker: one request, one bounded JSON answer. No
 * redirects, no proxy from the environment, no retries. Errors are sentences: what the server said
 * (its error.message), or why it was not reached. One thread. */
#ifndef RS_CLI_HTTP_H
#define RS_CLI_HTTP_H

#include "chain_client/cli/cli.h"

#include <jansson.h>

struct http;
/* base_url without a trailing slash; api_key_file NULL: no key. what: "server" or "settlement
 * worker", for errors. DENIED for a key file that others may read, INVALID for a URL. */
MUST_CHECK enum status http_open(struct http **out, const char *base_url, const char *api_key_file,
                                 const char *what, struct errtext *err);
void http_close(struct http *h); /* NULL is fine */

struct http_body { /* of a request: text, or a file */
    const char *text;
    size_t len;
    const char *file_path;
};
/* method GET, PUT, POST or DELETE. *answer (json_decref) is the answer of 2xx, an object.
 *
 * Errors  INVALID 400/422, DENIED 401/403, NOT_FOUND 404, EXISTS 409, TOO_LARGE 413, BUSY 429/503,
 *         IO and TIMEOUT: unreachable or 5xx, CORRUPT: not JSON
 */
MUST_CHECK enum status http_call(struct http *h, const char *method, const char *path,
                                 const struct http_body *body, json_t **answer,
                                 struct errtext *err);
struct fetch_file;
/* GET of bytes as they are, into a file. Errors as http_call; TOO_LARGE, IO as fetch_perform. */
MUST_CHECK enum status http_call_file(struct http *h, const char *path,
                                      const struct fetch_file *into, struct errtext *err);
/* Did the last answer say something in JSON: is it one of our programs? */
bool http_answered_json(const struct http *h);
/* The hint that fits the last error of http_call, or NULL. */
const char *http_hint(enum status st);

#endif
