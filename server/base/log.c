/* A line is put together on the stack and leaves in one write(2): lines of threads never mix. */
#include "server/base/log.h"
#include "server/base/check.h"
#include "server/base/logfile.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static const char *const level_names[] = {"audit", "error", "warn", "info", "debug"};
static struct logfile log_out = LOGFILE_STDERR;
static _Atomic int level_max = LOG_LEVEL_INFO; /* relaxed: a late change of level is harmless */

void log_set_level(enum log_level level)
{
    atomic_store_explicit(&level_max, (int)level, memory_order_relaxed);
}

enum status log_set_level_text(const char *name, struct errtext *err)
{
    for (size_t i = LOG_LEVEL_ERROR; i < ARRAY_COUNT(level_names); i++) {
        if (strcmp(level_names[i], name) == 0) {
            log_set_level((enum log_level)i);
            return STATUS_OK;
        }
    }
    return err_param(err, STATUS_INVALID, "log_level",
                     "log_level: found '%.40s', expected error, warn, info or debug", name);
}

enum status log_open(const char *path, struct errtext *err)
{
    struct logfile f;
    enum status st = logfile_open(&f, path, err);
    if (!st)
        log_out = f;
    return st;
}

enum status log_reopen(struct errtext *err)
{
    return logfile_reopen(&log_out, err);
}

void log_line(enum log_level level, const char *area, const char *fmt, ...)
{
    if ((int)level > atomic_load_explicit(&level_max, memory_order_relaxed))
        return;
    char line[1024];
    struct timespec ts;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &ts);
    gmtime_r(&ts.tv_sec, &tm);
    size_t n = strftime(line, sizeof(line), "%Y-%m-%dT%H:%M:%S", &tm);
    n += (size_t)snprintf(line + n, sizeof(line) - n, ".%03ldZ %s %s: ", ts.tv_nsec / 1000000,
                          level_names[level], area);
    va_list ap;
    va_start(ap, fmt);
    int body = vsnprintf(line + n, sizeof(line) - n - 1, fmt, ap);
    va_end(ap);
    if (body > 0)
        n += (size_t)body < sizeof(line) - n - 1 ? (size_t)body : sizeof(line) - n - 2;
    for (char *p = line; p < line + n; p++) {
        if ((unsigned char)*p < 0x20 || *p == 0x7F)
            *p = ' ';
    }
    line[n++] = '\n';
    logfile_write(&log_out, line, n);
}
