/* THE loop: receive, admit, plan, run, deliver. In this order because each reads what the one
 * before it settled: cancels and drains give back slots and pages first, then newcomers take them,
 * then rows are shared out among all (preempting if pages ran out), then the device works, then
 * readers get their tokens. On a device they get those of the step before, while it works: see
 * state.h. Nothing here waits except for the device and, when nothing can run, the mailbox. Who
 * else talks to the engine: mail.c. How it is made: setup.c. */
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/engine/steps.h"

static void clock_read(struct engine *e)
{
    e->now_ns = e->opt.clock_ns();
    e->now_ms = e->now_ns / 1000000;
}

static void receive(struct engine *e)
{
    if (store_poll(e->store, e->now_ms))
        e->store_epoch++;
    unload_receive(e);
    job_receive(e);
    if (atomic_load_explicit(&e->draining, memory_order_acquire) &&
        e->now_ms >= atomic_load_explicit(&e->drain_deadline_ms, memory_order_relaxed))
        engine_end_all(e, STATUS_CANCELLED,
                       "the server is draining: the request was ended at the deadline");
}

static void admit(struct engine *e)
{
    admit_requests(e);
    score_admit(e);
}

/* For the report of a panic. Plain reads: the thread that panics is ours or all is lost anyway. */
static void dump(void *arg)
{
    const struct engine *e = arg;
    log_error("engine",
              "step %llu: %u running of %u requests, %u of %u pages free, %u adapters pinned, "
              "batch of %u rows in %u segments",
              (unsigned long long)e->count.steps, e->seqs_running, e->job_live_count,
              kv_free_count(&e->kv), e->kv.page_count, e->pin_count, e->batch.n_tok,
              e->batch.n_seg);
}

/* A broken device serves nobody: everybody is told. Host memory fails no step twice, so the next
 * one tries again; an error of a device stays for as long as the process lives, so the process
 * reports where it stood and ends, and its supervisor starts another. */
static void device_failed(struct engine *e, enum status st)
{
    log_error("engine", "the device failed a step: %s", status_name(st));
    if (e->backend->is_device) {
        dump(e);
        e->device_lost = true;
        atomic_store_explicit(&e->drain_deadline_ms, 0, memory_order_relaxed);
        atomic_store_explicit(&e->draining, true, memory_order_release);
    }
    engine_end_all(e, STATUS_IO, "the device failed while the request ran");
    if (!e->device_lost)
        return;
    if (!e->opt.on_device_lost)
        PANIC("the device is lost");
    e->opt.on_device_lost(e->opt.on_device_lost_arg);
}

static enum status land(struct engine *e, const struct flight *f)
{
    uint64_t before_ns = e->opt.clock_ns();
    enum status st = run_collect(e, f);
    clock_read(e);
    e->device_ns += e->now_ns - before_ns;
    if (st)
        return st;
    pace_learn(&e->pace, f->decodes, f->others, e->now_ns - MAX(f->given_ns, e->landed_ns));
    e->landed_ns = e->now_ns;
    deliver_step(e, f);
    return STATUS_OK;
}

/* Give the planned step, if any, to the backend, then deliver the one before it, then the new one
 * if it is not to fly while the next is planned. */
static enum status fly(struct engine *e, bool any)
{
    struct flight *before = e->flying;
    struct flight *next = before == &e->flight[0] ? &e->flight[1] : &e->flight[0];
    e->flying = NULL;
    uint64_t before_ns = e->opt.clock_ns();
    next->given_ns = before_ns;
    enum status st = any ? run_launch(e, next) : STATUS_OK;
    e->device_ns += e->opt.clock_ns() - before_ns;
    if (!st && before)
        st = land(e, before);
    if (st || !any)
        return st;
    if (!e->overlaps || run_has_waited(next))
        return land(e, next);
    e->flying = next;
    return STATUS_OK;
}

bool engine_step(struct engine *e)
{
    clock_read(e);
    uint64_t begin_ns = e->now_ns;
    e->device_ns = 0;
    receive(e);
    admit(e);
    bool any = !e->device_lost && plan_step(e), had_flight = e->flying != NULL;
    enum status st = any || had_flight ? fly(e, any) : STATUS_OK;
    if (st)
        device_failed(e, st);
    e->count.steps += any;
    uint64_t control_ns = e->opt.clock_ns() - begin_ns - e->device_ns;
    e->count.control_ns_max = MAX(e->count.control_ns_max, control_ns);
    stats_publish(e);
#if RS_CHECKING
    engine_verify(e);
#endif
    return any || had_flight;
}

void engine_end_all(struct engine *e, enum status st, const char *why)
{
    struct errtext err = ERRTEXT_INIT;
    err_set(&err, st, "%s", why);
    do {
        while (e->job_live_count > 0)
            job_fail(e, &e->job[e->job_live[0]], st, &err);
        job_receive(e);
    } while (e->job_live_count > 0);
    score_end_all(e, st);
}

static bool user_work(struct engine *e)
{
    return e->job_live_count > 0 || mailbox_used(&e->mail) > 0;
}

static uint32_t pause_ms(const struct engine *e)
{
    bool waits = e->job_live_count > 0 || e->unloads_open > 0;
    struct store_stats st;
    store_get_stats(e->store, &st);
    if (st.uploading > 0)
        return UPLOAD_WAIT_MS;
    for (uint32_t i = 0; i < SCORE_RUNS_MAX; i++)
        waits = waits || e->score[i].state != SCORE_FREE;
    return waits ? BLOCKED_WAIT_MS : IDLE_WAIT_MS;
}

/* The last messages: whoever pushed before the mailboxes closed gets an answer. */
static void close_down(struct engine *e)
{
    mailbox_close(&e->mail);
    mailbox_close(&e->score_mail);
    mailbox_close(&e->unload_mail);
    clock_read(e);
    job_receive(e);
    engine_end_all(e, STATUS_CANCELLED, "the server is draining: no new work is taken");
    for (uint32_t tries = 0; tries < 5000; tries++) {
        clock_read(e);
        store_poll(e->store, e->now_ms);
        unload_receive(e);
        if (e->unloads_open == 0)
            break;
        clock_sleep_ms(1);
    }
    stats_publish(e);
}

void *engine_main(void *arg)
{
    struct engine *e = arg;
    panic_set_dump(dump, e);
    enum status st = e->backend->ops->enter ? e->backend->ops->enter(e->backend) : STATUS_OK;
    if (st)
        device_failed(e, st);
    mem_seal_thread();
    for (;;) {
        bool ran = engine_step(e);
        if (atomic_load_explicit(&e->draining, memory_order_acquire) && !user_work(e))
            break;
        if (!ran)
            mailbox_wait(&e->mail, pause_ms(e));
    }
    close_down(e);
    panic_set_dump(NULL, NULL);
    return NULL;
}
