/* What a settlement worker's books say of an account beyond what the chain proves: pending amounts,
 * sources by adapter and datanet, and epochs. Shown as the worker's word. */
#ifndef RS_CLI_BOOKS_H
#define RS_CLI_BOOKS_H

#include "chain_client/cli/cli.h"

#include <jansson.h>

struct books {
    json_t *reward;  /* /v1/rewards/{account}, or NULL: the worker knows nothing of it */
    json_t *sources; /* list, of all pages up to BOOKS_PAGES_MAX */
    json_t *epochs;  /* list, newest first, one page */
    bool more;       /* sources or epochs were left out */
};

/* From --settle. Errors: http_call's; CORRUPT for an answer of another form. */
MUST_CHECK enum status books_read(struct books *b, const struct cli *c, const uint8_t account[20],
                                  struct errtext *err);
void books_fini(struct books *b); /* a zeroed one is fine */

/* ,"pending":..,"undivided":..,"sources":[..],"epochs":[..] */
void books_put_json(struct buf *out, const struct books *b);
void books_put_text(struct buf *out, const struct books *b);

#endif
