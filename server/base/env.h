/* The environment: the one place that reads it. What systemd tells its services, and where a user's
 * state lives without it. Thread: main, at start. */
#ifndef RS_BASE_ENV_H
#define RS_BASE_ENV_H

#include <stdbool.h>
#include <stddef.h>

/* A variable's value; NULL when it is not set, or empty. */
const char *env_get(const char *name);
/* The first folder of a variable that systemd sets (STATE_DIRECTORY, LOGS_DIRECTORY); false: it is
 * not set, or not absolute, and out is empty. */
bool env_service_dir(char *out, size_t out_bytes, const char *name);
/* The first folder of STATE_DIRECTORY (StateDirectory=), else XDG_STATE_HOME/name, else
 * ~/.local/state/name, else "name-data". */
void env_state_dir(char *out, size_t out_bytes, const char *name);
/* A log file's path: a relative one lies in LOGS_DIRECTORY (LogsDirectory=), if there is one. */
void env_log_path(char *out, size_t out_bytes, const char *path);

#endif
