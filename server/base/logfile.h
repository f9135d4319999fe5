/* A file that lines are added to, and that may be moved away (logrotate) and reopened. The
 * descriptor's number stays, so writers need no lock: a line is one write(2) to a file opened for
 * appending. Thread: write any; open, reopen and close main. */
#ifndef RS_BASE_LOGFILE_H
#define RS_BASE_LOGFILE_H

#include "server/base/errtext.h"

#include <stddef.h>

struct logfile {
    char *path; /* NULL: standard output or error, which nobody can reopen */
    int fd;
};

#define LOGFILE_STDERR                                                                             \
    (struct logfile)                                                                               \
    {                                                                                              \
        .path = NULL, .fd = 2                                                                      \
    }

/* path "-": standard output; a relative one lies in LOGS_DIRECTORY, if there is one. Created with
 * mode 0640. */
MUST_CHECK enum status logfile_open(struct logfile *out, const char *path, struct errtext *err);
/* On an error the old file stays in use. */
MUST_CHECK enum status logfile_reopen(struct logfile *f, struct errtext *err);
void logfile_write(const struct logfile *f, const char *line, size_t len);
void logfile_close(struct logfile *f);

#endif
