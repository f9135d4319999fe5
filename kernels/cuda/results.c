/* Results on their way to the host: page-locked buffers, each with the event that its copy has come
 * by. As many as the engine can have under way: it gives the next pass before it takes what the one
 * before it found, and an op that waits takes one more. */
#include "kernels/cuda/tables.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <string.h>

struct result {
    char *pinned;
    void *event;
    size_t bytes; /* under way, or not yet taken; 0: free */
};

struct cuda_results {
    struct result *result;
    uint32_t count;
    size_t bytes_max;
};

/* The largest of: what a call of sample finds, sketches, scores or telemetry of a pass. */
static size_t bytes_of(const struct backend_limits *lim)
{
    size_t sampled = lim->logits_rows_max * sizeof(struct sample_out);
    size_t row = MAX((size_t)SKETCH_DIM, 2 * sizeof(double));
    return MAX(sampled, lim->rows_max * row);
}

enum status cuda_results_prepare(struct cuda_backend *c, struct errtext *err)
{
    const struct backend_limits *lim = &c->limits;
    uint32_t calls = lim->seqs_max / MAX(lim->logits_rows_max, 1) + 1;
    struct cuda_results *r = c->results = mem_alloc(sizeof(*r));
    r->count = 2 * (calls + 3) + 1;
    r->bytes_max = bytes_of(lim);
    r->result = mem_array(r->count, sizeof(r->result[0]));
    for (uint32_t i = 0; i < r->count; i++) {
        r->result[i].pinned = gpu_pinned_alloc(r->bytes_max);
        if (!r->result[i].pinned)
            return err_set(err, STATUS_NO_MEMORY,
                           "results: the system refused %zu KiB of page-locked host memory; raise "
                           "the locked-memory limit (ulimit -l)",
                           r->bytes_max >> 10);
        enum status st = gpu_event_create(&r->result[i].event, false);
        if (st)
            return err_set(err, st, "backend \"cuda\": the device gives no event");
    }
    return STATUS_OK;
}

void cuda_results_release(struct cuda_backend *c)
{
    struct cuda_results *r = c->results;
    if (!r)
        return;
    for (uint32_t i = 0; i < r->count; i++) {
        gpu_pinned_free(r->result[i].pinned);
        gpu_event_destroy(r->result[i].event);
    }
    mem_free(r->result);
    mem_free(r);
    c->results = NULL;
}

enum status cuda_read_begin(struct backend *b, const void *from, size_t bytes, uint32_t *ticket)
{
    struct cuda_backend *c = cuda_of(b);
    struct cuda_results *r = c->results;
    uint32_t i = 0;
    while (i < r->count && r->result[i].bytes > 0)
        i++;
    CHECK(i < r->count);
    CHECK(bytes > 0 && bytes <= r->bytes_max);
    enum status st = gpu_copy_out(c->stream, r->result[i].pinned, from, bytes);
    if (!st)
        st = gpu_event_record(r->result[i].event, c->stream);
    if (!st)
        r->result[i].bytes = bytes;
    *ticket = i;
    return st;
}

enum status cuda_read_end(struct backend *b, uint32_t ticket, void *host)
{
    struct cuda_results *r = cuda_of(b)->results;
    CHECK(ticket < r->count && r->result[ticket].bytes > 0);
    enum status st = gpu_event_sync(r->result[ticket].event);
    if (!st)
        memcpy(host, r->result[ticket].pinned, r->result[ticket].bytes);
    r->result[ticket].bytes = 0;
    return st;
}
