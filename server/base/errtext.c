/* The first error is kept: who called whom is added in front, never over it. */
#include "server/base/errtext.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void set_text(struct errtext *err, const char *param, const char *fmt, va_list ap)
{
    if (!err || err->text[0])
        return;
    vsnprintf(err->text, sizeof(err->text), fmt, ap);
    snprintf(err->param, sizeof(err->param), "%s", param);
}

enum status err_set(struct errtext *err, enum status st, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    set_text(err, "", fmt, ap);
    va_end(ap);
    return st;
}

enum status err_param(struct errtext *err, enum status st, const char *param, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    set_text(err, param, fmt, ap);
    va_end(ap);
    return st;
}

enum status err_coded(struct errtext *err, enum status st, const char *code, const char *param,
                      const char *fmt, ...)
{
    va_list ap;
    if (err && !err->text[0])
        err->code = code;
    va_start(ap, fmt);
    set_text(err, param, fmt, ap);
    va_end(ap);
    return st;
}

void err_prefix(struct errtext *err, const char *fmt, ...)
{
    if (!err)
        return;
    char head[sizeof(err->text)];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(head, sizeof(head), fmt, ap);
    va_end(ap);
    if (n < 0)
        return;
    size_t used = strlen(head);
    snprintf(head + used, sizeof(head) - used, "%s%s", err->text[0] ? ": " : "", err->text);
    memcpy(err->text, head, sizeof(head));
}

void err_clear(struct errtext *err)
{
    if (!err)
        return;
    err->text[0] = err->param[0] = '\0';
    err->code = NULL;
}
