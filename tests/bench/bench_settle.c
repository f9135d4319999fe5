/* What a record costs the settlement worker, from Redis to a built and archived batch:
 *
 *     bench_settle [inferences]
 *
 * A lane of `inferences` (65536) with their attributions, signed by lane_tool, goes into a Redis
 * that this program starts, is read by the worker's own ingest with one thread, and becomes batches
 * of 131 072. Beside each figure stands what its parts cost alone in the same run: the raw
 * signature check, Keccak-256, and SQLite rows of the same bytes. Times are the process's
 * processor time, so that other work of the machine does not count. */
#include "chain_client/eth/addr.h"
#include "chain_client/eth/keccak.h"
#include "chain_client/settle/batches_impl.h"
#include "chain_client/tree.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/file.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/spool/spool.h"

#include <hiredis/hiredis.h>
#include <inttypes.h>
#include <signal.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHAIN      "31337"
#define LEDGER     "0x00000000000000000000000000000000000000aa"
#define START      "1700000000"
#define BATCH      131072u
#define RAW_HASHES 2000000
#define RAW_ROWS   131072

static char dir[64];
static struct worker w;
static struct settle_lane lane = {.id = 1};
static struct settings set;
static char *frames;
static size_t frames_len;
static uint64_t records;
static pid_t redis_pid;

static double cpu_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void need(enum status st, const struct errtext *err)
{
    if (st)
        PANIC("%s", err->text);
}

static void say_processor(void)
{
    char line[256], *name = NULL;
    FILE *f = fopen("/proc/cpuinfo", "re");
    while (f && fgets(line, sizeof(line), f))
        if (strncmp(line, "model name", 10) == 0 && (name = strchr(line, ':')) != NULL)
            break;
    printf("processor: %s", name ? name + 2 : "unknown\n");
    if (f)
        fclose(f);
}

static void say(const char *what, double count, double seconds, const char *wanted)
{
    printf("%-52s %10.0f /s  %7.2f us  %s\n", what, count / seconds, seconds / count * 1e6, wanted);
}

/* ---- the world ---- */

static pid_t start(const char *const argv[])
{
    pid_t pid = fork();
    if (pid == 0) { /* lane_tool's and Redis' words are not ours */
        if (!freopen("/dev/null", "w", stdout))
            _exit(126);
        execvp(argv[0], (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    CHECK(pid > 0);
    return pid;
}

static void make_lane(const char *inferences)
{
    char folder[128], segment[192], key[192], *text;
    size_t len;
    int status = 0;
    struct errtext err = ERRTEXT_INIT;
    struct secp_key signer;
    uint8_t secret[32], ledger[20];
    snprintf(folder, sizeof(folder), "%s/lane", dir);
    const char *argv[] = {RS_LANE_TOOL, "records",  folder, "1", CHAIN,
                          LEDGER,       inferences, START,  NULL};
    CHECK(waitpid(start(argv), &status, 0) > 0 && status == 0);
    snprintf(segment, sizeof(segment), "%s/spool/seg-00000000000000000001.log", folder);
    need(file_read(segment, 1u << 30, &frames, &frames_len, &err), &err);
    snprintf(key, sizeof(key), "%s/transport.key", folder);
    need(file_read(key, 64, &text, &len, &err), &err);
    CHECK(hex_decode(lane.transport_key, 32, text));
    mem_free(text);
    snprintf(key, sizeof(key), "%s/lane.key", folder);
    need(file_read(key, 64, &text, &len, &err), &err);
    CHECK(hex_decode(secret, 32, text));
    mem_free(text);
    need(secp_key_init(w.secp, &signer, secret, &err), &err);
    memcpy(lane.key, signer.address, 20);
    need(addr_parse(ledger, LEDGER, &err), &err);
    w.dep.chain_id = strtoull(CHAIN, NULL, 10);
    memcpy(w.dep.ledger, ledger, 20);
    canon_domain(w.domain, w.dep.chain_id, ledger);
    tree_log_domain(w.log_dom, w.dep.chain_id, ledger);
}

static redisContext *start_redis(void)
{
    char socket[128];
    snprintf(socket, sizeof(socket), "%s/redis.sock", dir);
    const char *argv[] = {"redis-server", "--port", "0", "--unixsocket", socket, "--save", "",
                          "--dir",        dir,      NULL};
    redis_pid = start(argv);
    for (int i = 0; i < 100; i++) {
        redisContext *c = redisConnectUnix(socket);
        if (c && !c->err)
            return c;
        if (c)
            redisFree(c);
        clock_sleep_ms(50);
    }
    PANIC("redis-server does not answer");
}

/* As the server ships it. */
static void ship(redisContext *c)
{
    const char *at = frames;
    size_t left = frames_len;
    while (left) {
        uint64_t seq;
        const uint8_t *body;
        size_t len, used = spool_frame_parse(at, left, &seq, &body, &len);
        CHECK(used);
        redisAppendCommand(c, "XADD residual:lane:1 %llu-0 r %b", (unsigned long long)seq, body,
                           len);
        at += used;
        left -= used;
        records++;
    }
    for (uint64_t i = 0; i < records; i++) {
        void *reply = NULL;
        CHECK(redisGetReply(c, &reply) == REDIS_OK);
        freeReplyObject(reply);
    }
    redisFree(c);
}

static void open_worker(void)
{
    static char url[128], archive[128];
    struct errtext err = ERRTEXT_INIT;
    snprintf(url, sizeof(url), "unix:%s/redis.sock", dir);
    snprintf(archive, sizeof(archive), "%s/archive", dir);
    set = (struct settings){
        .redis_url = url, .archive_dir = archive, .read_count = 4096, .batch_seconds_max = 1800};
    w = (struct worker){.set = &set, .lane = &lane, .lane_count = 1};
    need(secp_create(&w.secp, &err), &err);
    need(crew_create(&w.crew, 1, &err), &err);
    need(db_open(&w.db, dir, &err), &err);
    need(lanes_load(&w, &err), &err);
}

/* ---- figures ---- */

/* What is judged of each record, one part after the other; returns the seconds of all signature
 * checks. */
static double bench_parts(void)
{
    uint8_t(*digest)[32] = mem_array(records, 32), hash[32], leaf[93] = {0}, signer[20];
    const uint8_t **sig = mem_array(records, sizeof(*sig));
    const char *at = frames;
    size_t left = frames_len, used, len;
    struct errtext err = ERRTEXT_INIT;
    double begin = cpu_s();
    for (uint64_t seq, i = 0; left; at += used, left -= used, i++) {
        const uint8_t *body;
        union record r;
        used = spool_frame_parse(at, left, &seq, &body, &len);
        CHECK(used && entry_has_tag(lane.transport_key, body, len));
        need(entry_decode(&r, 1, seq, body, len, &err), &err);
        canon_digest(digest[i], &r, w.domain);
        sig[i] = body + len - ENTRY_TAG_BYTES - SECP_SIGNATURE_BYTES;
    }
    say("frame, tag, decoding and digest alone, a core", (double)records, cpu_s() - begin, "");
    begin = cpu_s();
    for (uint64_t i = 0; i < records; i++)
        need(secp_recover(w.secp, signer, sig[i], digest[i], &err), &err);
    double checks = cpu_s() - begin;
    say("signatures alone, a core", (double)records, checks, "wanted 25 000 /s");
    begin = cpu_s();
    for (int i = 0; i < RAW_HASHES; i++) {
        keccak_256(hash, leaf, sizeof(leaf));
        leaf[0] = hash[0];
    }
    say("raw: Keccak-256 of 93 bytes, a core", RAW_HASHES, cpu_s() - begin, "");
    mem_free(digest);
    mem_free(sig);
    return checks;
}

static void bench_rows(void)
{
    struct errtext err = ERRTEXT_INIT;
    size_t bytes = frames_len / records;
    uint8_t *body = mem_alloc(bytes);
    need(db_run(&w.db, &err, "CREATE TABLE raw (seq INTEGER PRIMARY KEY, body BLOB)", ""), &err);
    double begin = cpu_s();
    for (uint64_t i = 0; i < RAW_ROWS; i++) {
        if (i % 1024 == 0)
            need(db_begin(&w.db, &err), &err);
        need(db_run(&w.db, &err, "INSERT INTO raw VALUES (?, ?)", "ub", i, body, bytes), &err);
        if (i % 1024 == 1023)
            need(db_end(&w.db, STATUS_OK, &err), &err);
    }
    say("raw: SQLite rows of a record's bytes, a core", RAW_ROWS, cpu_s() - begin, "");
    need(db_run(&w.db, &err, "DROP TABLE raw", ""), &err);
    mem_free(body);
}

static double bench_ingest(void)
{
    struct errtext err = ERRTEXT_INIT;
    bool busy;
    double begin = cpu_s();
    uint64_t wall = clock_mono_ns();
    while (lane.ingested < records) {
        uint64_t before = lane.ingested;
        need(ingest_step(&w, 1, &busy, &err), &err);
        CHECK(lane.ingested > before || clock_mono_ns() < wall + 600000000000u);
    }
    double s = cpu_s() - begin;
    say("Redis to database, signatures included, a core", (double)records, s, "");
    printf("%-52s %10.0f /s\n", "  by the clock on the wall",
           (double)records / ((double)(clock_mono_ns() - wall) * 1e-9));
    return s;
}

static double bench_build(void)
{
    struct errtext err = ERRTEXT_INIT;
    double begin = cpu_s();
    uint64_t seq = 1;
    for (uint64_t first = 1; first <= records; first += BATCH, seq++) {
        uint64_t last = MIN(first + BATCH - 1, records);
        need(db_run(&w.db, &err, "INSERT INTO batches (seq, state, closed_at) VALUES (?, ?, 1)",
                    "ut", seq, batch_state_name(BATCH_CLOSED)),
             &err);
        need(db_run(&w.db, &err, "INSERT INTO batch_lanes VALUES (?, 1, ?, ?)", "uuu", seq, first,
                    last),
             &err);
        need(batches_make(&w, seq, BATCH_CLOSED, &err), &err);
    }
    double s = cpu_s() - begin;
    say("database to built, archived and read back, a core", (double)records, s, "");
    return s;
}

/* What stays of a final record: everything but bodies, packed as SQLite packs it. */
static void bench_bytes(void)
{
    struct errtext err = ERRTEXT_INIT;
    uint64_t pages = 0, spare = 0, page = 0;
    need(records_drop_bodies(&w.db, 1, records, &err), &err);
    need(db_value(&w.db, &pages, 0, &err, "PRAGMA page_count", ""), &err);
    need(db_value(&w.db, &spare, 0, &err, "PRAGMA freelist_count", ""), &err);
    need(db_value(&w.db, &page, 0, &err, "PRAGMA page_size", ""), &err);
    printf("%-52s %10.1f bytes, wanted at most 200\n", "database a final record",
           (double)((pages - spare) * page) / (double)records);
}

int main(int argc, char **argv)
{
    char cmd[96];
    snprintf(dir, sizeof(dir), "/tmp/rs-bench-settle-XXXXXX");
    struct errtext err = ERRTEXT_INIT;
    CHECK(sodium_init() >= 0 && mkdtemp(dir));
    need(log_set_level_text("error", &err), &err);
    open_worker();
    make_lane(argc > 1 ? argv[1] : "65536");
    ship(start_redis());
    need(ingest_open(&w, &err), &err);
    say_processor();
    printf("%" PRIu64 " records of %zu bytes\n", records, frames_len / records);
    double checks = bench_parts();
    bench_rows();
    double ingest = bench_ingest(), build = bench_build();
    say("Redis to built batch, all, a core", (double)records, ingest + build, "was 176 us");
    say("Redis to built batch, beside signatures, a core", (double)records, ingest + build - checks,
        "wanted 100 000 /s");
    bench_bytes();
    ingest_close(&w);
    db_close(&w.db);
    crew_destroy(w.crew);
    secp_destroy(w.secp);
    mem_free(frames);
    kill(redis_pid, SIGTERM);
    waitpid(redis_pid, NULL, 0);
    snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
    return system(cmd);
}
