/* One name a status, as errors and logs print it. */
#include "server/base/status.h"

const char *status_name(enum status st)
{
    static const char *const names[STATUS_COUNT] = {
        [STATUS_OK] = "ok",
        [STATUS_INVALID] = "invalid",
        [STATUS_NOT_FOUND] = "not found",
        [STATUS_EXISTS] = "exists",
        [STATUS_UNSUPPORTED] = "unsupported",
        [STATUS_DENIED] = "denied",
        [STATUS_TOO_LARGE] = "too large",
        [STATUS_FULL] = "full",
        [STATUS_BUSY] = "busy",
        [STATUS_TIMEOUT] = "timeout",
        [STATUS_CANCELLED] = "cancelled",
        [STATUS_CORRUPT] = "corrupt",
        [STATUS_IO] = "input/output failure",
        [STATUS_NO_MEMORY] = "no memory",
        [STATUS_CONFLICT] = "conflict",
    };
    return (unsigned)st < STATUS_COUNT ? names[st] : "unknown status";
}
