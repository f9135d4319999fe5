/* Loaded before a program (LD_PRELOAD): its wall clock is off by the seconds that the file named
 * by RS_CLOCK_SHIFT holds at the moment. The monotonic clock is left alone, as setting a clock
 * does. */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *out)
{
    long rc = syscall(SYS_clock_gettime, clock, out);
    const char *path = getenv("RS_CLOCK_SHIFT");
    char text[32] = {0};
    if (rc != 0 || clock != CLOCK_REALTIME || !path)
        return (int)rc;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, text, sizeof(text) - 1) < 0)
        text[0] = '\0';
    if (fd >= 0)
        close(fd);
    out->tv_sec += strtol(text, NULL, 10);
    return 0;
}
