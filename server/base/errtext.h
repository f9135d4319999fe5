/* Text for people, at the edges only: what was wrong, with the field, the found and the expected
 * value. Caller's storage; err may be NULL everywhere. The first error wins: a later err_set on a
 * filled text is ignored, so the innermost cause is what the user reads; err_prefix adds where it
 * happened. */
#ifndef RS_BASE_ERRTEXT_H
#define RS_BASE_ERRTEXT_H

#include "server/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

struct errtext {
    char text[512];
    char param[96];   /* the request field or config key at fault, or "" */
    const char *code; /* for programs: a static word ("model_not_found"), or NULL */
};

#define ERRTEXT_INIT                                                                               \
    {                                                                                              \
        .text = "", .param = "", .code = NULL                                                      \
    }

/* Set the text (printf style, truncated) and return st, so that `return err_set(err,
 * STATUS_INVALID, ...)` reads well. */
enum status err_set(struct errtext *err, enum status st, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Same, and name the field at fault (an OpenAI `param`, a config key). */
enum status err_param(struct errtext *err, enum status st, const char *param, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* Same, with a code: programs that read an answer go by it, never by the text. */
enum status err_coded(struct errtext *err, enum status st, const char *code, const char *param,
                      const char *fmt, ...) __attribute__((format(printf, 5, 6)));

/* Put "prefix: " before the text. */
void err_prefix(struct errtext *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

void err_clear(struct errtext *err);

#ifdef __cplusplus
}
#endif

#endif
