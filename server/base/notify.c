/* libsystemd's sd_notify in the few lines that a service needs, without the library. */
#include "server/base/notify.h"
#include "server/base/clock.h"
#include "server/base/env.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void tell(const char *text)
{
    const char *name = env_get("NOTIFY_SOCKET");
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    size_t len = name ? strlen(name) : 0;
    if (!name || (name[0] != '/' && name[0] != '@') || len < 2 || len >= sizeof(at.sun_path))
        return;
    memcpy(at.sun_path, name, len);
    if (name[0] == '@')
        at.sun_path[0] = '\0';
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return;
    socklen_t bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len);
    (void)!sendto(fd, text, strlen(text), MSG_NOSIGNAL, (const struct sockaddr *)&at, bytes);
    close(fd);
}

void notify_ready(const char *status)
{
    char text[512];
    snprintf(text, sizeof(text), "READY=1\nSTATUS=%s\nMAINPID=%ld", status, (long)getpid());
    tell(text);
}

void notify_reloading(void)
{
    char text[128];
    snprintf(text, sizeof(text), "RELOADING=1\nMONOTONIC_USEC=%" PRIu64, clock_mono_ns() / 1000);
    tell(text);
}

void notify_stopping(const char *status)
{
    char text[512];
    snprintf(text, sizeof(text), "STOPPING=1\nSTATUS=%s", status);
    tell(text);
}
