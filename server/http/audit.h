/* Who did what: one line in the log for each admin action and each refused key, at every log level.
 * A key is named by its configured name and the first bytes of its digest, never by its text.
 *
 *   audit http: load adapter 'a' by key 'ops' (1f0c9a2e) at 127.0.0.1: done
 *   audit http: delete adapter 'a' by key 'ci' (77b1d003) at 10.0.0.7: refused: 'a' was ...
 *   audit http: GET /v1/models by key 5b1d22f0 at 10.0.0.7: refused 401: the API key is ...
 *
 * Refusals of unknown keys are counted past a few each second: a flood fills no disk. */
#ifndef RS_HTTP_AUDIT_H
#define RS_HTTP_AUDIT_H

#include "server/http/exchange.h"

struct audit_log {
    pthread_mutex_t lock;
    uint64_t second; /* the one that is counted */
    uint32_t said, left_out;
};

void audit_init(struct audit_log *a);
void audit_fini(struct audit_log *a);
/* action: "load adapter"; name may be NULL when the request does not say; err: why not. */
void audit_action(const struct exchange *x, const char *action, const char *name, enum status st,
                  const struct errtext *err);
/* The request was refused before its handler ran. authorization: the header, or NULL. */
void audit_refusal(const struct exchange *x, int code, const char *authorization,
                   const struct errtext *err);

#endif
