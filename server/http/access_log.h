/* One line for each answered request, if access_log asks for it: the combined log format of Apache
 * and nginx, then seconds and request id.
 *
 *   127.0.0.1 - ops [30/Nov/2026:15:41:41 +0000] "POST /v1/completions HTTP/1.1" 200 512 "-"
 *   "openai-python/2.1" 0.123 8f2c...        (one line)
 *
 * The user is the key's name. Query strings, bodies and keys are never written. Status 499: the
 * client left before its answer. */
#ifndef RS_HTTP_ACCESS_LOG_H
#define RS_HTTP_ACCESS_LOG_H

#include "server/base/logfile.h"
#include "server/http/exchange.h"

/* user_agent may be NULL; ns: from arrival to now. Thread: any. */
void access_log_write(const struct logfile *f, const struct exchange *x, const char *user_agent,
                      uint64_t ns);

#endif
