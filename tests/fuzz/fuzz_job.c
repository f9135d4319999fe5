/* Scoring jobs are read back from disk: whatever the bytes, job_decode answers, and what it accepts
 * has one encoding. */
#include "server/influence/job.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct job *j;
    struct buf out;
    if (job_decode(&j, data, len, NULL))
        return 0;
    buf_init(&out, JOB_BYTES_MAX);
    job_encode(j, &out);
    if (out.failed || out.len != len || memcmp(out.data, data, len) != 0)
        abort();
    buf_fini(&out);
    job_free(j);
    return 0;
}
