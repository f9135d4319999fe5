/* The layout scratch of a finished load stays with its job until the engine has
 * copied it and the job is used again: one allocation per job slot, made here at start. */
#include "server/adapter/loader.h"
#include "server/adapter/device_form.h"
#include "server/adapter/peft/reader.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/base/thread.h"

#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Beside busy workers about a tenth of a core, which 20 loads a second of 18 MB need: a load waits,
 * but not without bound. Measured there, priorities from 0 to SCHED_IDLE trouble the workers alike.
 */
#define LOADER_NICE 10

struct loader {
    struct store_options opt;
    struct mailbox in, out;
    pthread_t thread;
    /* The blob evicted last, for the load that follows: fresh pages cost as much time as the rest
     * of a load. One at most, so that memory exceeds the budget by one adapter. */
    void *spare;
    uint64_t spare_bytes;
    char *piece;                            /* PEFT_PIECE_BYTES: what a load reads through */
    const struct backend_adapter_ops *form; /* the device's, or NULL: blobs are row-major */
    struct lora_entry *plain;               /* form: a load's row-major layout */
    void *plain_blob;                       /* form: what is packed; the largest so far */
    uint64_t plain_bytes;
};

static uint64_t thread_cpu_ns(void)
{
    struct timespec t;
    return clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) == 0
               ? (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec
               : 0;
}

static void set_state(struct adapter_entry *e, enum adapter_state s)
{
    atomic_store_explicit(&e->state, s, memory_order_relaxed);
}

/* peft_pack writes every byte, so a dirty one will do. */
static void *take_blob(struct loader *l, uint64_t bytes)
{
    void *blob = l->spare;
    if (!blob || l->spare_bytes != bytes)
        return mem_try_alloc_aligned(bytes);
    l->spare = NULL;
    return blob;
}

static void keep_spare(struct loader *l, void *blob, uint64_t bytes)
{
    mem_free_aligned(l->spare, l->spare_bytes);
    l->spare = blob;
    l->spare_bytes = bytes;
}

/* An unload is waited for and gives its pages back; an eviction makes room for a load. */
static void free_blob(struct loader *l, const struct loader_job *job)
{
    bool waited_for = job->waiter != UINT32_MAX;
    keep_spare(l, waited_for ? NULL : job->blob, job->blob_bytes);
    if (waited_for)
        mem_free_aligned(job->blob, job->blob_bytes);
}

static enum status grow_plain(struct loader *l, struct loader_job *job, uint64_t bytes)
{
    if (bytes <= l->plain_bytes)
        return STATUS_OK;
    mem_free_aligned(l->plain_blob, l->plain_bytes);
    l->plain_blob = mem_try_alloc_aligned(bytes);
    l->plain_bytes = l->plain_blob ? bytes : 0;
    return l->plain_blob
               ? STATUS_OK
               : err_set(&job->err, STATUS_NO_MEMORY, "adapter '%s': no memory for %llu bytes",
                         job->entry->name, (unsigned long long)bytes);
}

static enum status make_blob(struct loader *l, struct loader_job *job, const struct peft_adapter *a)
{
    uint64_t bytes, plain;
    peft_layout(a, l->opt.model->n_layer, l->opt.dtype, l->form ? l->plain : job->layout, &bytes);
    plain = bytes;
    if (l->form)
        bytes = device_form_layout(l->form, l->opt.model, job->layout, l->plain);
    if (bytes != job->entry->blob_bytes)
        return err_set(&job->err, STATUS_CORRUPT,
                       "adapter '%s': packs to %llu bytes, registered with %llu", job->entry->name,
                       (unsigned long long)bytes, (unsigned long long)job->entry->blob_bytes);
    if (l->form)
        return grow_plain(l, job, plain);
    job->blob = take_blob(l, bytes);
    if (!job->blob)
        return err_set(&job->err, STATUS_NO_MEMORY, "adapter '%s': no memory for %llu bytes",
                       job->entry->name, (unsigned long long)bytes);
    job->blob_bytes = bytes;
    return STATUS_OK;
}

static enum status fill_blob(struct loader *l, struct loader_job *job, struct peft_reader *r)
{
    struct peft_target to = {.dtype = l->opt.dtype,
                             .n_layer = l->opt.model->n_layer,
                             .entry = l->form ? l->plain : job->layout,
                             .blob = l->form ? l->plain_blob : job->blob};
    struct peft_proof proof = {.id = job->entry->id, .seal = &job->entry->seal};
    enum status st = peft_reader_fill(r, &to, l->piece, &proof, &job->err);
    job->hashed = proof.hashed;
    if (st)
        err_prefix(&job->err, "adapter '%s'", job->entry->name);
    if (l->form) {
        if (!st)
            device_form_pack(l->form, l->opt.model, job->blob, job->layout, l->plain_blob,
                             l->plain);
        return st;
    }
    if (st) {
        keep_spare(l, job->blob, job->blob_bytes);
        job->blob = NULL;
    }
    return st;
}

static enum status load(struct loader *l, struct loader_job *job)
{
    struct peft_reader r;
    set_state(job->entry, ADAPTER_FETCHING);
    enum status st =
        peft_reader_open(&r, job->entry->dir, l->opt.roots, l->opt.model, UINT64_MAX, &job->err);
    if (st) {
        err_prefix(&job->err, "adapter '%s'", job->entry->name);
        return st;
    }
    set_state(job->entry, ADAPTER_VERIFYING);
    st = make_blob(l, job, &r.a);
    if (!st)
        st = fill_blob(l, job, &r);
    peft_reader_close(&r);
    return st;
}

static void run_job(struct loader *l, struct loader_job *job)
{
    uint64_t begin = clock_mono_ns(), cpu_begin = thread_cpu_ns();
    job->hashed = false;
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
    job->load_cpu_ns = thread_cpu_ns() - cpu_begin;
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
    struct loader *l = mem_alloc(sizeof(*l));
    l->opt = *opt;
    l->piece = mem_alloc_aligned(PEFT_PIECE_BYTES);
    if (opt->backend && opt->backend->is_device) {
        l->form = opt->backend->ops->adapters;
        l->plain = mem_array((size_t)opt->model->n_layer * LORA_MODULE_COUNT, sizeof(*l->plain));
    }
    mailbox_init(&l->in, jobs_max);
    mailbox_init(&l->out, jobs_max);
    CHECK(thread_start(&l->thread, "rs-loader", loader_main, l, NULL) == STATUS_OK);
    return l;
}

void loader_destroy(struct loader *l)
{
    struct loader_job *job;
    mailbox_close(&l->in);
    pthread_join(l->thread, NULL);
    while ((job = mailbox_pop(&l->out))) {
        if (!l->form)
            mem_free_aligned(job->blob, job->blob_bytes);
        catalog_release(job->entry);
    }
    mem_free_aligned(l->plain_blob, l->plain_bytes);
    mem_free(l->plain);
    mem_free_aligned(l->spare, l->spare_bytes);
    mem_free_aligned(l->piece, PEFT_PIECE_BYTES);
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
