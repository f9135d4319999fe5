/* systemd gives folders as a list separated by colons: the first is ours. */
#include "server/base/env.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *env_get(const char *name)
{
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

static const char *absolute(const char *name)
{
    const char *value = env_get(name);
    return value && value[0] == '/' ? value : NULL;
}

bool env_service_dir(char *out, size_t out_bytes, const char *name)
{
    const char *value = absolute(name);
    snprintf(out, out_bytes, "%.*s", value ? (int)strcspn(value, ":") : 0, value ? value : "");
    return value != NULL;
}

void env_state_dir(char *out, size_t out_bytes, const char *name)
{
    const char *xdg = absolute("XDG_STATE_HOME"), *home = absolute("HOME");
    if (env_service_dir(out, out_bytes, "STATE_DIRECTORY"))
        return;
    if (xdg)
        snprintf(out, out_bytes, "%s/%s", xdg, name);
    else if (home)
        snprintf(out, out_bytes, "%s/.local/state/%s", home, name);
    else
        snprintf(out, out_bytes, "%s-data", name);
}

void env_log_path(char *out, size_t out_bytes, const char *path)
{
    char dir[4096];
    if (path[0] != '/' && env_service_dir(dir, sizeof(dir), "LOGS_DIRECTORY"))
        snprintf(out, out_bytes, "%s/%s", dir, path);
    else
        snprintf(out, out_bytes, "%s", path);
}
