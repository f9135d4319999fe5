/* See loader.h. The layout scratch of a finished load stays with its job until the engine has
 * copied it and the job is used again: one allocation per job slot, made here at start. */
#include "server/adapter/loader.h"
#include "server/adapter/peft.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"

#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOADER_NICE                                                                                \
    10 /* about a tenth of a core beside busy workers: enough for tens of loads a second */

struct loader {
    struct store_options opt;
    struct mailbox in, out;
    pthread_t thread;
    /* The blob evicted last, for the load that follows: fresh pages cost as much time as the rest
     * of a load. One at most, so that memory exceeds the budget by one adapter. */
    void *spare;
    uint64_t spare_bytes;
};

static void set_state(struct adapter_entry *e, enum adapter_state s)
{
    atomic_store_explicit(&e->state, s, memory_order_relaxed);
}

static void *take_blob(struct loader *l, uint64_t bytes)
{
    void *blob = l->spare;
    if (!blob || l->spare_bytes != bytes)
        return mem_try_alloc_aligned(bytes);
    l->spare = NULL;
    memset(blob, 0, bytes);
    return blob;
}

/* An unload is waited for and gives its pages back; an eviction makes room for a load. */
static void free_blob(struct loader *l, const struct loader_job *job)
{
    mem_free_aligned(l->spare, l->spare_bytes);
    l->spare = job->waiter == UINT32_MAX ? job->blob : NULL;
    l->spare_bytes = job->blob_bytes;
    if (!l->spare)
        mem_free_aligned(job->blob, job->blob_bytes);
}

static enum status pack(struct loader *l, struct loader_job *job, const struct peft_adapter *a)
{
    uint64_t bytes;
    peft_layout(a, l->opt.model->n_layer, l->opt.dtype, job->layout, &bytes);
    if (bytes != job->entry->blob_bytes)
        return err_set(&job->err, STATUS_CORRUPT,
                       "adapter '%s': packs to %llu bytes, registered with %llu", job->entry->name,
                       (unsigned long long)bytes, (unsigned long long)job->entry->blob_bytes);
    job->blob = take_blob(l, bytes);
    if (!job->blob)
        return err_set(&job->err, STATUS_NO_MEMORY, "adapter '%s': no memory for %llu bytes",
                       job->entry->name, (unsigned long long)bytes);
    job->blob_bytes = bytes;
    peft_pack(a, l->opt.model->n_layer, l->opt.dtype, job->layout, job->blob);
    return STATUS_OK;
}

static enum status load(struct loader *l, struct loader_job *job)
{
    struct peft_adapter a;
    set_state(job->entry, ADAPTER_FETCHING);
    enum status st = peft_read_dir(&a, job->entry->dir, l->opt.model, UINT64_MAX, &job->err);
    if (st) {
        err_prefix(&job->err, "adapter '%s'", job->entry->name);
        return st;
    }
    set_state(job->entry, ADAPTER_VERIFYING);
    if (memcmp(a.id, job->entry->id, 32) != 0)
        st = err_set(&job->err, STATUS_CORRUPT,
                     "adapter '%s': its files changed since it was registered (content id "
                     "differs); load it again "
                     "in place to serve the new content",
                     job->entry->name);
    else
        st = pack(l, job, &a);
    peft_fini(&a);
    return st;
}

static void run_job(struct loader *l, struct loader_job *job)
{
    uint64_t begin = clock_mono_ns();
    if (job->op == LOADER_LOAD) {
        job->status = load(l, job);
        if (job->status)
            log_warn("loader", "%s", job->err.text);
    } else {
        free_blob(l, job);
        job->blob = NULL;
        catalog_release(job->entry);
        job->entry = NULL;
        job->status = STATUS_OK;
    }
    job->load_ns = clock_mono_ns() - begin;
}

static void *loader_main(void *arg)
{
    struct loader *l = arg;
    (void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), LOADER_NICE);
    for (;;) {
        struct loader_job *job = mailbox_pop(&l->in);
        if (!job) {
            if (mailbox_is_closed(&l->in))
                return NULL;
            mailbox_wait(&l->in, 1000);
            continue;
        }
        run_job(l, job);
        CHECK(mailbox_push(&l->out, job) == STATUS_OK);
        if (l->opt.wake)
            l->opt.wake(l->opt.wake_arg);
    }
}

struct loader *loader_create(const struct store_options *opt, uint32_t jobs_max)
{
    struct loader *l = mem_alloc(sizeof *l);
    l->opt = *opt;
    mailbox_init(&l->in, jobs_max);
    mailbox_init(&l->out, jobs_max);
    CHECK(pthread_create(&l->thread, NULL, loader_main, l) == 0);
    return l;
}

void loader_destroy(struct loader *l)
{
    struct loader_job *job;
    mailbox_close(&l->in);
    pthread_join(l->thread, NULL);
    while ((job = mailbox_pop(&l->out))) {
        mem_free_aligned(job->blob, job->blob_bytes);
        catalog_release(job->entry);
    }
    mem_free_aligned(l->spare, l->spare_bytes);
    mailbox_fini(&l->in);
    mailbox_fini(&l->out);
    mem_free(l);
}

void loader_submit(struct loader *l, struct loader_job *job)
{
    CHECK(mailbox_push(&l->in, job) == STATUS_OK);
}

struct loader_job *loader_take(struct loader *l)
{
    return mailbox_pop(&l->out);
}
