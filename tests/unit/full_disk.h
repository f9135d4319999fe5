/* A file system without room: link the test with -Wl,--wrap=statvfs and say when. */
#ifndef RS_TESTS_FULL_DISK_H
#define RS_TESTS_FULL_DISK_H

#include <stdbool.h>
#include <sys/statvfs.h>

static bool disk_is_full; /* but for one block less than is left to records */

int __real_statvfs(const char *path, struct statvfs *v);
int __wrap_statvfs(const char *path, struct statvfs *v);
int __wrap_statvfs(const char *path, struct statvfs *v)
{
    int result = __real_statvfs(path, v);
    if (!result && disk_is_full) {
        v->f_frsize = 4096;
        v->f_blocks = 8 << 10;
        v->f_bavail = (1 << 10) - 1;
    }
    return result;
}

#endif
