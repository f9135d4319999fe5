/* What the durable log costs, and what a start costs behind many settled records:
 *
 *     bench_spool DIR [groups] [depth] [settled]        (6000, 64, 10000000)
 *
 * `depth` records wait for one sync, as requests that finish together do: a record's latency is its
 * group's, from the first append to the durable mark. The bound is written in turn with it, group
 * by group: the same bytes by one write and one fdatasync into a file of its own. */
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/mem.h"
#include "server/spool/spool.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BODY_BYTES 736u /* an inference record of one adapter, with its tag */
#define SEGMENT    (16u << 20)

static uint8_t body[BODY_BYTES];

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void say(const char *what, uint64_t *ns, uint64_t groups, uint64_t depth)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < groups; i++)
        sum += ns[i];
    qsort(ns, groups, sizeof(*ns), compare);
    printf("%-28s %9.0f records/s   p50 %.3f ms   p99 %.3f ms   max %.3f ms\n", what,
           (double)(groups * depth) * 1e9 / (double)sum, (double)ns[groups / 2] * 1e-6,
           (double)ns[groups * 99 / 100] * 1e-6, (double)ns[groups - 1] * 1e-6);
}

static struct spool *open_at(const char *dir)
{
    struct errtext err = ERRTEXT_INIT;
    struct spool *s;
    const struct spool_options opt = {
        .dir = dir, .segment_bytes_max = SEGMENT, .bytes_max = UINT64_MAX};
    if (spool_open(&s, &opt, &err))
        PANIC("%s", err.text);
    return s;
}

static void append_group(struct spool *s, uint64_t depth)
{
    for (uint64_t i = 0; i < depth; i++)
        CHECK(spool_append(s, spool_next_seq(s), body, sizeof(body), NULL) == STATUS_OK);
}

static void bench_append(const char *dir, uint64_t groups, uint64_t depth)
{
    char path[4096];
    uint64_t *ours = mem_array(groups, sizeof(*ours)), *bound = mem_array(groups, sizeof(*bound));
    size_t bytes = depth * (BODY_BYTES + SPOOL_FRAME_HEAD_BYTES);
    char *raw = mem_alloc(bytes);
    struct spool *s = open_at(dir);
    snprintf(path, sizeof(path), "%s/raw", dir);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600);
    CHECK(fd >= 0);
    for (uint64_t i = 0; i < groups; i++) {
        uint64_t begin = clock_mono_ns();
        append_group(s, depth);
        CHECK(spool_sync(s, NULL) == STATUS_OK);
        ours[i] = clock_mono_ns() - begin;
        begin = clock_mono_ns();
        CHECK(write(fd, raw, bytes) == (ssize_t)bytes && fdatasync(fd) == 0);
        bound[i] = clock_mono_ns() - begin;
    }
    say("spool, frames and mark", ours, groups, depth);
    say("bound: write and fdatasync", bound, groups, depth);
    close(fd);
    unlink(path);
    spool_close(s);
    mem_free(raw);
    mem_free(ours);
    mem_free(bound);
}

static void bench_start(const char *dir, uint64_t settled)
{
    const uint64_t group = 4096;
    struct spool *s = open_at(dir);
    while (spool_next_seq(s) <= settled) {
        append_group(s, group);
        CHECK(spool_sync(s, NULL) == STATUS_OK);
    }
    spool_note_final(s, spool_durable_seq(s));
    append_group(s, 1); /* the mark carries what is final */
    CHECK(spool_sync(s, NULL) == STATUS_OK);
    spool_close(s);
    for (int i = 0; i < 2; i++) {
        uint64_t begin = clock_mono_ns();
        s = open_at(dir);
        printf("start at %" PRIu64 " settled records, %.1f GB: %.3f s\n", spool_durable_seq(s),
               (double)spool_bytes(s) * 1e-9, (double)(clock_mono_ns() - begin) * 1e-9);
        spool_close(s);
    }
}

int main(int argc, char **argv)
{
    char dir[4000], cmd[4096];
    CHECK(argc >= 2);
    uint64_t groups = argc > 2 ? strtoull(argv[2], NULL, 10) : 6000;
    uint64_t depth = argc > 3 ? strtoull(argv[3], NULL, 10) : 64;
    uint64_t settled = argc > 4 ? strtoull(argv[4], NULL, 10) : 10000000;
    for (size_t i = 0; i < sizeof(body); i++)
        body[i] = (uint8_t)(i * 31);
    snprintf(dir, sizeof(dir), "%s/bench-spool-XXXXXX", argv[1]);
    CHECK(groups > 0 && depth > 0 && mkdtemp(dir));
    bench_append(dir, groups, depth);
    fflush(stdout);
    bench_start(dir, settled);
    snprintf(cmd, sizeof(cmd), "rm -r %s", dir);
    return system(cmd);
}
