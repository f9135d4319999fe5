/* Spool recovery over arbitrary bytes: frames are accepted only whole, and a parse never reads past
 * its input. */
#include "server/spool/spool.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t at = 0;
    for (;;) {
        uint64_t seq;
        const uint8_t *body;
        size_t body_len;
        size_t n = spool_frame_parse(data + at, size - at, &seq, &body, &body_len);
        if (n == 0)
            return 0;
        if (body + body_len != data + at + n)
            abort();
        at += n;
    }
}
