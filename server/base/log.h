/* One line per event, to stderr or a file: time, level, area, text. Levels: error (a person must
 * look), warn, info, debug; and audit (who did what), which no level leaves out. Never log prompts,
 * outputs, keys or tokens. Control characters become blanks. Thread: any; a line is one write(2).
 */
#ifndef RS_BASE_LOG_H
#define RS_BASE_LOG_H

#include "server/base/errtext.h"

enum log_level {
    LOG_LEVEL_AUDIT,
    LOG_LEVEL_ERROR,
    LOG_LEVEL_WARN,
    LOG_LEVEL_INFO,
    LOG_LEVEL_DEBUG
};

void log_set_level(enum log_level level);
/* By its name, as the key log_level gives it. INVALID for another text. */
MUST_CHECK enum status log_set_level_text(const char *name, struct errtext *err);
/* Lines go to this file from now on; thread: main, before there are others. */
MUST_CHECK enum status log_open(const char *path, struct errtext *err);
/* The file was moved away: begin a new one. Nothing to do for stderr. */
MUST_CHECK enum status log_reopen(struct errtext *err);
void log_line(enum log_level level, const char *area, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#define log_audit(area, ...) log_line(LOG_LEVEL_AUDIT, area, __VA_ARGS__)
#define log_error(area, ...) log_line(LOG_LEVEL_ERROR, area, __VA_ARGS__)
#define log_warn(area, ...)  log_line(LOG_LEVEL_WARN, area, __VA_ARGS__)
#define log_info(area, ...)  log_line(LOG_LEVEL_INFO, area, __VA_ARGS__)
#define log_debug(area, ...) log_line(LOG_LEVEL_DEBUG, area, __VA_ARGS__)

#endif
