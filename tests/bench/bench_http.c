/* What a streamed token costs the HTTP side in CPU time:
 *
 *     bench_http [streams] [step_ms] [seconds]        (1000, 40, 4)
 *
 * The server of residuald runs over an engine that only says tokens (http_double.h), one a stream
 * and step; a child process reads every stream. All threads of this process but the engine's and
 * this one are the HTTP side: their clocks in /proc/self/task are read at the beginning and end of
 * a span in which every stream runs. */
#include "server/base/mem.h"
#include "tests/unit/http_client.h"
#include "tests/unit/http_double.h"

#include <dirent.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#define TOKENS_MAX    470 /* of the double's context of 512 */
#define READ_PAUSE_MS 100

static struct world w;

static long arg_at(int argc, char **argv, int i, long fallback)
{
    return argc > i ? strtol(argv[i], NULL, 10) : fallback;
}

/* The clients: open every stream, then read what has come, with pauses: a client on another
 * machine takes no time of the server's to be woken either. Counts events. */
static void run_clients(int port_fd, long streams, _Atomic uint64_t *events)
{
    static char part[65536];
    char body[160];
    uint16_t port = 0;
    int *fd = mem_array((size_t)streams, sizeof(*fd));
    if (read(port_fd, &port, sizeof(port)) != sizeof(port))
        _exit(1);
    int len = snprintf(body, sizeof(body),
                       "{\"model\":\"base\",\"prompt\":\"a\",\"max_tokens\":%d,"
                       "\"ignore_eos\":true,\"stream\":true}",
                       TOKENS_MAX);
    for (long i = 0; i < streams; i++) {
        fd[i] = client_connect(port);
        client_request(fd[i], "POST /v1/completions", NULL, body, (size_t)len);
    }
    for (;;) {
        for (long i = 0; i < streams; i++) {
            ssize_t n = recv(fd[i], part, sizeof(part), MSG_DONTWAIT);
            for (ssize_t k = 0; k + 6 <= n; k++)
                *events += memcmp(part + k, "data: ", 6) == 0;
        }
        clock_sleep_ms(READ_PAUSE_MS);
    }
}

/* CPU nanoseconds of all threads but these two. */
static uint64_t http_cpu_ns(pid_t own, pid_t engine)
{
    DIR *d = opendir("/proc/self/task");
    uint64_t total = 0;
    struct dirent *e;
    while (d && (e = readdir(d))) {
        char path[64], text[64] = "";
        long tid = strtol(e->d_name, NULL, 10);
        if (tid == 0 || tid == own || tid == engine)
            continue;
        snprintf(path, sizeof(path), "/proc/self/task/%ld/schedstat", tid);
        FILE *f = fopen(path, "re");
        if (f && fgets(text, sizeof(text), f))
            total += strtoull(text, NULL, 10);
        if (f)
            fclose(f);
    }
    if (d)
        closedir(d);
    return total;
}

static uint64_t tokens_said(struct engine *e)
{
    uint64_t n = 0;
    pthread_mutex_lock(&e->lock);
    for (uint32_t i = 0; i < e->count; i++)
        n += atomic_load(&e->running[i]->seq[0].n_out);
    pthread_mutex_unlock(&e->lock);
    return n;
}

static uint32_t running(struct engine *e)
{
    pthread_mutex_lock(&e->lock);
    uint32_t n = e->count;
    pthread_mutex_unlock(&e->lock);
    return n;
}

static pid_t newest_thread(void)
{
    DIR *d = opendir("/proc/self/task");
    long newest = 0;
    struct dirent *e;
    while (d && (e = readdir(d)))
        newest = MAX(newest, strtol(e->d_name, NULL, 10));
    if (d)
        closedir(d);
    return (pid_t)newest;
}

int main(int argc, char **argv)
{
    long streams = arg_at(argc, argv, 1, 1000), step_ms = arg_at(argc, argv, 2, 40);
    long seconds = arg_at(argc, argv, 3, 4);
    struct rlimit lim = {.rlim_cur = 4096, .rlim_max = 4096};
    int at[2];
    (void)setrlimit(RLIMIT_NOFILE, &lim);
    if (streams < 1 || streams > DOUBLE_RUNNING_MAX || pipe(at))
        return 2;
    _Atomic uint64_t *events =
        mmap(NULL, sizeof(*events), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (events == MAP_FAILED)
        return 2;
    pid_t child = fork();
    if (child == 0)
        run_clients(at[0], streams, events);
    world_init(&w);
    pid_t engine = newest_thread(); /* the last that was started */
    atomic_store(&w.engine.step_ms, (unsigned)step_ms);
    w.opt.connections_per_ip_max = w.opt.connections_max;
    world_serve(&w);
    uint16_t port = http_port(w.server);
    if (write(at[1], &port, sizeof(port)) != sizeof(port))
        return 2;
    while (running(&w.engine) < (uint32_t)streams)
        clock_sleep_ms(5);
    clock_sleep_ms(200);
    uint64_t cpu = http_cpu_ns(getpid(), engine), said = tokens_said(&w.engine);
    uint64_t seen = atomic_load(events);
    uint64_t wall_ns = clock_mono_ns();
    clock_sleep_ms((uint32_t)seconds * 1000);
    bool all = running(&w.engine) == (uint32_t)streams;
    cpu = http_cpu_ns(getpid(), engine) - cpu;
    said = tokens_said(&w.engine) - said;
    seen = atomic_load(events) - seen;
    wall_ns = clock_mono_ns() - wall_ns;
    printf("%ld streams, %.0f tokens/s: %.2f us of HTTP threads a token, %.2f tokens an event%s\n",
           streams, (double)said / ((double)wall_ns * 1e-9), (double)cpu * 1e-3 / (double)said,
           (double)said / (double)seen,
           all ? "" : " (some streams ended within the span: not a measurement)");
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    world_fini(&w);
    return all ? 0 : 1;
}
