/* Planted faults: each runs in a process of its own, which must fail in the way named here; without
 * the fault the same kernel must pass. What only a sanitizer can see is asked of the build that has
 * it; what the emulation itself sees, or what shows in the numbers, is asked of every build. */
#include "tests/emulation/fixture.h"
#include "tests/emulation/vocabulary.h"

#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

#define EXIT_NUMBERS 3 /* the child's results are wrong */

/* NUMBERS: the results, in every build. NUMBERS_RACE: the results, and in a build that looks for
 * races a report. RACE, ADDRESS: only the build that looks for it. DOOR: the host dies of touching
 * device memory, in every build. */
enum seen_by { EVERY_BUILD, NUMBERS, NUMBERS_RACE, RACE, ADDRESS, DOOR };

static const struct plant {
    const char *name, *kernel;
    enum fault fault;
    enum seen_by seen_by;
    const char *text; /* in the report, if it is the emulation's */
} plants[] = {
    {"no_fault", "mirror", FAULT_NONE, EVERY_BUILD, NULL},
    {"no_fault_in_warp", "neighbours", FAULT_NONE, EVERY_BUILD, NULL},
    {"no_fault_in_pipeline", "pipeline", FAULT_NONE, EVERY_BUILD, NULL},
    {"no_fault_in_merge", "last_block", FAULT_NONE, EVERY_BUILD, NULL},
    {"no_fault_in_replay", "listed", FAULT_NONE, EVERY_BUILD, NULL},
    {"no_fault_from_host", "host", FAULT_NONE, EVERY_BUILD, NULL},
    {"host_reads_device", "host", FAULT_HOST_READS, DOOR, NULL},
    {"host_writes_device", "host", FAULT_HOST_WRITES, DOOR, NULL},
    {"list_longer_at_replay", "listed", FAULT_COUNT_BY_VALUE, NUMBERS, NULL},
    {"stale_table_at_replay", "listed", FAULT_TABLE_BY_VALUE, NUMBERS, NULL},
    {"missing_barrier", "mirror", FAULT_NO_BARRIER, NUMBERS_RACE, NULL},
    {"missing_warp_sync", "neighbours", FAULT_NO_WARP_SYNC, NUMBERS_RACE, NULL},
    {"missing_copy_wait", "pipeline", FAULT_NO_WAIT, NUMBERS, NULL},
    {"stage_reused_early", "pipeline", FAULT_STAGE_REUSED, NUMBERS_RACE, NULL},
    {"missing_fence", "last_block", FAULT_NO_FENCE, RACE, NULL},
    {"blocks_collide", "mirror", FAULT_BLOCKS_COLLIDE, NUMBERS_RACE, NULL},
    {"out_of_bounds", "mirror", FAULT_BOUNDS, ADDRESS, NULL},
    {"shared_out_of_bounds", "mirror", FAULT_SMEM_BOUNDS, ADDRESS, NULL},
    {"divergent_barrier", "mirror", FAULT_DIVERGENT_BARRIER, EVERY_BUILD, "divergent barrier"},
    {"lonely_barrier", "mirror", FAULT_LONELY_BARRIER, EVERY_BUILD, "divergent barrier"},
    {"divergent_operation", "mirror", FAULT_DIVERGENT_OP, EVERY_BUILD, "divergent warp operation"},
};

/* ---- the child ---- */

static bool is_right(const struct plant *p, const float *in, const float *got)
{
    float sum = 0;
    for (uint32_t t = 0; t < 32; t++) {
        if (strcmp(p->kernel, "neighbours") == 0 && got[t] != in[(t + 1) % 32])
            return false;
        float want = 0;
        for (uint32_t i = 0; i < 4; i++)
            want += in[(i * 32 + 31 - t) * 4];
        if (strcmp(p->kernel, "pipeline") == 0 && got[t] != want)
            return false;
    }
    for (uint32_t i = 0; i < 256; i++) {
        if (strcmp(p->kernel, "mirror") == 0 && got[i] != in[i / 128 * 128 + 127 - i % 128])
            return false;
        sum += (float)(i / 64 + i % 64);
    }
    return strcmp(p->kernel, "last_block") != 0 || got[0] == sum;
}

static int child_replay(const struct plant *p);

/* After the device has worked: its memory is its own again. */
static int child_host(const struct plant *p)
{
    struct ec e;
    float one = 1, seen = 0;
    ec_open(&e);
    volatile float *device = ec_put(&e, &one, sizeof(one));
    if (p->fault == FAULT_HOST_READS)
        seen = *device;
    else if (p->fault == FAULT_HOST_WRITES)
        *device = seen;
    ec_get(&e, &seen, (const void *)(uintptr_t)device, sizeof(seen));
    ec_close(&e);
    return seen == 1 ? 0 : EXIT_NUMBERS;
}

static int child(const struct plant *p, uint64_t seed)
{
    if (strcmp(p->kernel, "listed") == 0)
        return child_replay(p);
    if (strcmp(p->kernel, "host") == 0)
        return child_host(p);
    struct ec e;
    uint32_t zero = 0;
    bool one_block = strcmp(p->kernel, "neighbours") == 0 || strcmp(p->kernel, "pipeline") == 0;
    bool merge = strcmp(p->kernel, "last_block") == 0;
    ec_open(&e);
    emu_set_seed(seed);
    float *in = fx_floats(512, 1);
    void *dev_in = ec_put(&e, in, 2048), *words = ec_put(&e, &zero, 4);
    void *out = ec_alloc(&e, merge ? 257 * 4 : 256 * 4);
    struct vocabulary v = {.in = dev_in,
                           .out = out,
                           .words = words,
                           .smem_bytes = one_block ? 1024 : 512,
                           .fault = p->fault};
    vocabulary_launch(p->kernel,
                      one_block ? 1
                      : merge   ? 4
                                : 2,
                      one_block ? 32
                      : merge   ? 64
                                : 128,
                      cuda_of(e.cuda)->stream, v);
    float *got = ec_get_floats(&e, out, one_block ? 32 : 256);
    bool right = is_right(p, in, got);
    mem_free(got);
    mem_free(in);
    ec_close(&e);
    return right ? 0 : EXIT_NUMBERS;
}

/* A launch is recorded; the list grows and moves; the record is replayed. */
static int child_replay(const struct plant *p)
{
    struct ec e;
    ec_open(&e);
    struct gpu *gpu = cuda_of(e.cuda)->gpu;
    void *stream = cuda_of(e.cuda)->stream, *graph;
    float *in = fx_floats(128, 1);
    void *lists = ec_put(&e, in, 128 * 4), *out = ec_alloc(&e, 64 * 4);
    const void *at = lists;
    uint32_t count = 40;
    void *words = ec_put(&e, &count, 4), *table = ec_put(&e, &at, sizeof(at));
    struct vocabulary v = {
        .in = lists, .out = out, .words = words, .count = count, .table = table, .fault = p->fault};
    assert_int_equal(gpu_capture_begin(stream), STATUS_OK);
    vocabulary_launch("listed", 1, 32, stream, v);
    assert_int_equal(gpu_capture_end(stream, &graph), STATUS_OK);
    count = 64;
    at = (const float *)lists + 64;
    assert_int_equal(gpu_write(gpu, words, &count, 4), STATUS_OK);
    assert_int_equal(gpu_write(gpu, table, &at, sizeof(at)), STATUS_OK);
    assert_int_equal(gpu_graph_launch(graph, stream), STATUS_OK);
    float *got = ec_get_floats(&e, out, 64);
    bool right = memcmp(got, in + 64, 64 * 4) == 0;
    gpu_graph_destroy(graph);
    mem_free(got);
    mem_free(in);
    ec_close(&e);
    return right ? 0 : EXIT_NUMBERS;
}

/* ---- the parent ---- */

static int run(const char *self, const char *name, uint64_t seed, char *text, size_t text_bytes)
{
    int out[2], status = 0;
    char digits[24];
    pid_t pid;
    size_t len = 0;
    posix_spawn_file_actions_t fa;
    snprintf(digits, sizeof(digits), "%llu", (unsigned long long)seed);
    char *argv[] = {(char *)(uintptr_t)self, (char *)(uintptr_t)name, digits, NULL};
    assert_int_equal(pipe(out), 0);
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_adddup2(&fa, out[1], 2);
    posix_spawn_file_actions_addclose(&fa, out[0]);
    assert_int_equal(posix_spawn(&pid, self, &fa, NULL, argv, environ), 0);
    posix_spawn_file_actions_destroy(&fa);
    close(out[1]);
    for (;;) {
        char rest[4096];
        bool full = len + 1 >= text_bytes;
        ssize_t n =
            read(out[0], full ? rest : text + len, full ? sizeof(rest) : text_bytes - 1 - len);
        if (n <= 0 && errno != EINTR)
            break;
        len += full || n < 0 ? 0 : (size_t)n;
    }
    text[len] = 0;
    close(out[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

#if defined(__SANITIZE_ADDRESS__)
#define HAS_ADDRESS true
#else
#define HAS_ADDRESS false
#endif

static bool is_found(const struct plant *p, int status, const char *text)
{
    bool failed = !WIFEXITED(status) || WEXITSTATUS(status) != 0;
    bool numbers = WIFEXITED(status) && WEXITSTATUS(status) == EXIT_NUMBERS;
    if (p->fault == FAULT_NONE)
        return !failed;
    if (p->text)
        return failed && strstr(text, p->text) != NULL;
    if (p->seen_by == DOOR) /* a sanitizer tells of the signal */
        return (WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV) || strstr(text, ": SEGV on ");
    if (p->seen_by == ADDRESS)
        return failed && strstr(text, "AddressSanitizer") && strstr(text, "vocabulary.cu");
    if (emu_is_tsan() && p->seen_by != NUMBERS)
        return failed && strstr(text, "data race") && strstr(text, "vocabulary.cu");
    return numbers;
}

static void faults_are_found(void **state)
{
    const char *self = *state;
    static char text[1 << 16];
    for (size_t i = 0; i < ARRAY_COUNT(plants); i++) {
        const struct plant *p = &plants[i];
        if ((p->seen_by == ADDRESS && !HAS_ADDRESS) || (p->seen_by == RACE && !emu_is_tsan()))
            continue;
        for (uint64_t seed = 1; seed <= 2; seed++) {
            int status = run(self, p->name, seed, text, sizeof(text));
            if (!is_found(p, status, text)) {
                print_error("%s, seed %llu: wait status %x\n%.2000s\n", p->name,
                            (unsigned long long)seed, (unsigned)status, text);
                fail();
            }
        }
    }
}

int main(int argc, char **argv)
{
    for (size_t i = 0; argc == 3 && i < ARRAY_COUNT(plants); i++)
        if (strcmp(plants[i].name, argv[1]) == 0)
            return child(&plants[i], strtoull(argv[2], NULL, 10));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(faults_are_found, argv[0]),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
