/* residuald: start order, signals, stop order. A table of contents.
 *
 * Threads   engine      owns device, KV, batch, residency            engine/engine.c
 *           workers     share one op at a time, park when idle       kernels/cpu/pool.c
 *           loader      adapter files -> blobs, low priority         adapter/loader.c
 *           http (n)    parse, tokenize, stream                      http/listen.c
 *           recorder    records, jobs, receipts; owns the spool      record/recorder.c
 *           computing   keys, spans and shares of scored answers     influence/score_compute.c
 *           indexer     attribution indexes, through the engine      influence/indexes.c
 *           shipper     spool -> Redis Streams                       spool/ship.c
 *           main        waits for signals; SIGHUP reloads keys and log files
 * They talk by messages in bounded mailboxes (base/mailbox.h). Stop order: readiness off, drain,
 * engine, recorder, http. */
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/notify.h"
#include "server/base/thread.h"
#include "server/config.h"
#include "server/start.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum exit_code { EXIT_FINE = 0, EXIT_FAILED = 1, EXIT_CONFIG = 2, EXIT_START = 3 };

static sigset_t stop_signals, all_signals; /* SIGTERM, SIGINT; and SIGHUP */

static void block_signals(void)
{
    sigemptyset(&stop_signals);
    sigaddset(&stop_signals, SIGTERM);
    sigaddset(&stop_signals, SIGINT);
    all_signals = stop_signals;
    sigaddset(&all_signals, SIGHUP);
    sigprocmask(SIG_BLOCK, &all_signals, NULL);
    signal(SIGPIPE, SIG_IGN);
}

/* Until one says stop; SIGHUP, also one that came during the start, reloads. */
static int wait_for_stop(struct server *s)
{
    char status[256];
    int sig;
    server_describe(s, status, sizeof(status));
    notify_ready(status);
    while (sigwait(&all_signals, &sig) == 0 && sig == SIGHUP) {
        notify_reloading();
        server_reload(s);
        notify_ready(status);
    }
    return sig;
}

/* A second signal means now. */
static void *second_signal(void *arg)
{
    int sig;
    sigwait(&stop_signals, &sig);
    log_warn("main", "second signal: stopping now");
    _exit(EXIT_FAILED);
    return NULL;
}

static int serve(const struct config *c)
{
    struct errtext err = ERRTEXT_INIT;
    struct server *s;
    pthread_t watcher;
    int sig;
    if (c->log_file && log_open(c->log_file, &err)) {
        fprintf(stderr, "residuald: %s\n", err.text);
        return EXIT_START;
    }
    if (server_start(&s, c, &err)) {
        fprintf(stderr, "residuald: %s\n", err.text);
        return EXIT_START;
    }
    sig = wait_for_stop(s);
    notify_stopping("draining");
    log_info("main", "%s: draining, at most %llu s", strsignal(sig),
             (unsigned long long)c->drain_s);
    if (thread_start(&watcher, "rs-signals", second_signal, NULL, NULL) == STATUS_OK)
        pthread_detach(watcher);
    bool failed = server_failed(s);
    server_stop(s);
    log_info("main", "stopped%s", failed ? ": the device was lost" : "");
    return failed ? EXIT_FAILED : EXIT_FINE;
}

int main(int argc, char **argv)
{
    struct config c;
    struct errtext err = ERRTEXT_INIT;
    block_signals();
    int code = EXIT_FINE;
    enum status st = config_load(&c, argc, argv, &err);
    if (!st)
        st = log_set_level_text(c.log_level, &err);
    if (st) {
        fprintf(stderr, "residuald: %s\n", err.text);
        code = EXIT_CONFIG;
    } else if (c.help) {
        config_print_help();
    } else if (c.version) {
        puts("residuald " RS_VERSION);
    } else if (c.plan) {
        code = server_print_plan(&c) ? EXIT_START : EXIT_FINE;
    } else {
        code = serve(&c);
    }
    config_fini(&c);
    return code;
}
