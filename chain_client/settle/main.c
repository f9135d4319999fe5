/* residual-settle: start order, one loop, stop order.
 *
 * Loop    records from Redis, gaps from spools; then, every poll_ms: keys, batches, epochs, sender
 * Away    Redis: the loop goes on without it. Node: its part of the loop waits, longer each time.
 * Stop    a broken database ends the worker (a restart continues from disk); a chain that
 * contradicts what was settled ends it for a person to look */
#include "chain_client/eth/addr.h"
#include "chain_client/eth/fetch.h"
#include "chain_client/settle/guard.h"
#include "chain_client/settle/serve.h"
#include "chain_client/settle/worker.h"
#include "chain_client/tree.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/file.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/base/notify.h"

#include <inttypes.h>
#include <signal.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REFETCH_KEY_BYTES_MAX 512
#define INGEST_WAIT_MS        200
#define BACKOFF_MS_MAX        30000
#define CLOCK_APART_S         60

enum settle_exit {
    SETTLE_FINE = 0,
    SETTLE_FAILED = 1,
    SETTLE_CONFIG = 2,
    SETTLE_START = 3,
    SETTLE_CONFLICT = 4,
    SETTLE_LOCKED = 5
};

static volatile sig_atomic_t stopping, reloading;

static void on_signal(int sig)
{
    if (sig == SIGHUP)
        reloading = 1;
    else
        stopping = 1;
}

/* SIGHUP: the log file was moved away. */
static void reload_if_asked(const char *status)
{
    struct errtext err = ERRTEXT_INIT;
    if (!reloading)
        return;
    reloading = 0;
    notify_reloading();
    if (log_reopen(&err))
        log_error("main", "reload: %s; the old file stays in use", err.text);
    else
        log_info("main", "reloaded: log file");
    notify_ready(status);
}

/* ---- start ---- */

static enum status open_lanes(struct worker *w, struct errtext *err)
{
    const struct settings *s = w->set;
    enum status st = STATUS_OK;
    w->lane = mem_array(s->lane_key.count, sizeof(*w->lane));
    for (uint32_t i = 0; i < s->lane_key.count && !st; i++) {
        struct settle_lane l = {.id = s->lane_key.item[i].lane};
        char *text;
        size_t len;
        st = file_read_secret(s->lane_key.item[i].text, 256, &text, &len, err);
        if (st)
            break;
        if (!hex_decode(l.transport_key, 32, text))
            st = err_param(err, STATUS_INVALID, "lane_key",
                           "%s: expected 64 hex digits, the lane's transport.key",
                           s->lane_key.item[i].text);
        mem_wipe(text, len);
        mem_free(text);
        uint32_t at = w->lane_count;
        while (at > 0 && w->lane[at - 1].id > l.id) { /* lanes ascend */
            w->lane[at] = w->lane[at - 1];
            at--;
        }
        w->lane[at] = l;
        w->lane_count++;
    }
    return st;
}

static enum status find_sources(struct worker *w, struct errtext *err)
{
    const struct settings *s = w->set;
    const struct settings_lanes *list[] = {&s->spool_dir, &s->refetch_url};
    for (size_t k = 0; k < ARRAY_COUNT(list); k++) {
        for (uint32_t i = 0; i < list[k]->count; i++) {
            struct settle_lane *l = worker_lane(w, list[k]->item[i].lane);
            if (!l)
                return err_set(err, STATUS_INVALID, "%s: lane %" PRIu32 " has no lane_key",
                               k ? "refetch_url" : "spool_dir", list[k]->item[i].lane);
            *(k ? &l->refetch_url : &l->spool_dir) = list[k]->item[i].text;
        }
    }
    if (!s->refetch_key_file)
        return STATUS_OK;
    char bearer[FETCH_BEARER_BYTES];
    enum status st = fetch_bearer(bearer, s->refetch_key_file, REFETCH_KEY_BYTES_MAX, err);
    if (st)
        return st;
    w->refetch_authorization = mem_strdup(bearer);
    mem_wipe(bearer, sizeof(bearer));
    return STATUS_OK;
}

static enum status open_crew(struct worker *w, struct errtext *err)
{
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    uint64_t threads = w->set->threads ? w->set->threads : (uint64_t)MAX(processors, 1);
    return crew_create(&w->crew, (uint32_t)MIN(threads, (uint64_t)CREW_MAX), err);
}

/* What needs neither Redis nor the chain. */
static enum status open_local(struct worker *w, struct errtext *err)
{
    const struct settings *s = w->set;
    enum status st = deployment_load(&w->dep, s->deployment, err);
    if (!st)
        st = secp_create(&w->secp, err);
    if (!st)
        st = chain_open(w, err);
    if (!st)
        st = open_crew(w, err);
    if (!st)
        st = stores_open(w, err);
    if (!st)
        st = open_lanes(w, err);
    if (!st)
        st = find_sources(w, err);
    if (!st)
        st = file_mkdirs(s->archive_dir, 0755, err);
    if (!st)
        st = ingest_open(w, err);
    canon_domain(w->domain, w->dep.chain_id, w->dep.ledger);
    tree_log_domain(w->log_dom, w->dep.chain_id, w->dep.ledger);
    return st;
}

/* One state, one deployment. */
static enum status check_meta(struct worker *w, struct errtext *err)
{
    char ours[256], stored[256], ledger[ADDR_TEXT_BYTES], vault[ADDR_TEXT_BYTES], genesis[65];
    addr_format(ledger, w->dep.ledger);
    addr_format(vault, w->dep.vault);
    hex_encode(genesis, w->dep.genesis_hash, 32);
    snprintf(ours, sizeof(ours), "spec 1 chain %" PRIu64 " genesis %s ledger %s vault %s",
             w->dep.chain_id, genesis, ledger, vault);
    enum status st = db_meta_get(&w->db, "deployment", stored, sizeof(stored), err);
    if (!st && !stored[0])
        return db_meta_set(&w->db, "deployment", ours, err);
    if (!st && strcmp(stored, ours) != 0)
        st = err_set(err, STATUS_CONFLICT,
                     "state_dir belongs to another deployment (%s): name a new one", stored);
    return st;
}

static bool is_outage(const struct worker *w, enum status st)
{
    return !w->db.failed && st != STATUS_CONFLICT;
}

/* The chain is the deployment's, and the state is not behind it. */
static enum status meet_chain(struct worker *w, struct errtext *err)
{
    enum status st = chain_round(w, err);
    if (!st)
        st = deployment_check(&w->dep, w->rpc, err);
    if (!st)
        st = view_vault(&w->view, "latest", &w->vault, err);
    if (!st)
        st = chain_keys_apart(w, err);
    if (!st)
        st = batches_adopt(w, err);
    if (!st)
        st = epochs_adopt(w, err);
    return st ? st : lanes_load(w, err);
}

static enum status wait_for_chain(struct worker *w, struct errtext *err)
{
    uint32_t wait_ms = 250;
    enum status st;
    while ((st = meet_chain(w, err)) != STATUS_OK && is_outage(w, st) && !stopping) {
        log_warn("main", "node: %s; trying again in %u ms", err->text, wait_ms);
        st = trouble_set(&w->db, TROUBLE_NODE, 0, err->text, NULL);
        if (st)
            break;
        notify_ready("waiting for the chain's node");
        reload_if_asked("waiting for the chain's node");
        err_clear(err);
        clock_sleep_ms(wait_ms);
        wait_ms = MIN(2 * wait_ms, 10000u);
    }
    return st;
}

/* ---- the loop ---- */

/* This machine's clock stands in logs and in `since`, and decides nothing: batches close by
 * monotonic age, and closedAt and epochs go by the chain's time. */
static enum status watch_clock(struct worker *w, struct errtext *err)
{
    struct rpc_block last;
    char text[256];
    enum status st = rpc_block(w->rpc, "latest", &last, err);
    if (st)
        return st;
    w->chain_s = MAX(w->chain_s, last.timestamp);
    int64_t now_s = (int64_t)(clock_wall_ms() / 1000),
            base_s = now_s - (int64_t)(clock_mono_ns() / 1000000000);
    int64_t behind_s = (int64_t)last.timestamp - now_s;
    if (!w->clock_base_s || (behind_s > -CLOCK_APART_S && behind_s < CLOCK_APART_S))
        w->clock_base_s = base_s;
    if (behind_s < CLOCK_APART_S && llabs(base_s - w->clock_base_s) < CLOCK_APART_S)
        return trouble_clear(&w->db, TROUBLE_CLOCK, 0, err);
    snprintf(text, sizeof(text),
             "this machine's clock is %" PRId64 " s from the newest block, and moved by %" PRId64
             " s since the start; settling goes by the chain's time, but set the clock right (NTP)",
             -behind_s, base_s - w->clock_base_s);
    return trouble_set(&w->db, TROUBLE_CLOCK, 0, text, err);
}

static enum status chain_step(struct worker *w, struct errtext *err)
{
    enum status st = chain_round(w, err);
    if (!st)
        st = watch_clock(w, err);
    if (!st)
        st = lanes_refresh(w, err);
    if (!st)
        st = batches_adopt(w, err);
    if (!st)
        st = foreign_batches(w, err);
    if (!st)
        st = batches_step(w, err);
    if (!st)
        st = epochs_step(w, err);
    if (!st)
        st = scrub_step(w, err);
    return st ? st : sender_step(&w->sender, err);
}

/* What an outage changes: who looks is told, and the next try is later each time. */
static enum status note_outage(struct worker *w, enum status outage, uint64_t *wait_ms,
                               struct errtext *err)
{
    struct errtext why = *err;
    err_clear(err);
    if (!outage) {
        *wait_ms = w->set->poll_ms;
        return trouble_clear(&w->db, TROUBLE_NODE, 0, err);
    }
    *wait_ms = MIN(2 * *wait_ms, (uint64_t)BACKOFF_MS_MAX);
    log_warn("main", "node or archive: %s; trying again in %" PRIu64 " ms, nothing is lost",
             why.text, *wait_ms);
    return trouble_set(&w->db, TROUBLE_NODE, 0, why.text, err);
}

static enum status run(struct worker *w, struct errtext *err)
{
    uint64_t next_ns = 0, wait_ms = w->set->poll_ms;
    bool busy = false;
    notify_ready("settling");
    while (!stopping) {
        reload_if_asked("settling");
        uint32_t pause = (uint32_t)MIN(w->set->poll_ms, (uint64_t)INGEST_WAIT_MS);
        enum status st = ingest_step(w, pause, &busy, err);
        if (!st)
            st = refetch_step(w, err);
        if (st)
            return st;
        if (clock_mono_ns() < next_ns)
            continue;
        st = chain_step(w, err);
        if (!st || is_outage(w, st))
            st = note_outage(w, st, &wait_ms, err);
        if (st)
            return st;
        next_ns = clock_mono_ns() + wait_ms * 1000000ull;
    }
    return STATUS_OK;
}

static void worker_fini(struct worker *w)
{
    ingest_close(w);
    chain_close(w);
    db_close(&w->db);
    secp_destroy(w->secp);
    crew_destroy(w->crew);
    stores_close(w);
    for (uint32_t i = 0; i < w->lane_count; i++)
        mem_wipe(w->lane[i].transport_key, sizeof(w->lane[i].transport_key));
    mem_free(w->lane);
    if (w->refetch_authorization)
        mem_wipe(w->refetch_authorization, strlen(w->refetch_authorization));
    mem_free(w->refetch_authorization);
}

static int fail(enum status st, enum settle_exit otherwise, const struct errtext *err)
{
    fprintf(stderr, "residual-settle: %s\n", err->text);
    return st == STATUS_CONFLICT ? SETTLE_CONFLICT : otherwise;
}

static int verb_run(const struct settings *s)
{
    struct worker w = {.set = s, .db = {.lock_fd = -1}};
    struct serve *http = NULL;
    struct errtext err = ERRTEXT_INIT;
    char committer[ADDR_TEXT_BYTES], proposer[ADDR_TEXT_BYTES];
    int code = SETTLE_FINE;
    enum status st = s->log_file ? log_open(s->log_file, &err) : STATUS_OK;
    if (!st)
        st = open_local(&w, &err);
    if (st) {
        code = fail(st, SETTLE_CONFIG, &err);
    } else if ((st = db_open(&w.db, s->state_dir, &err)) != STATUS_OK) {
        code = fail(st, st == STATUS_BUSY ? SETTLE_LOCKED : SETTLE_START, &err);
    } else if ((st = check_meta(&w, &err)) != STATUS_OK ||
               (s->listen && (st = serve_start(&http, s, &w.dep, &err)) != STATUS_OK) ||
               (st = wait_for_chain(&w, &err)) != STATUS_OK) {
        code = stopping ? SETTLE_FINE : fail(st, SETTLE_START, &err);
    } else {
        addr_format(committer, w.sender.signer[SENDER_COMMITTER].key.address);
        addr_format(proposer, w.sender.signer[SENDER_PROPOSER].key.address);
        log_info("main",
                 "settling %u lanes on chain %" PRIu64 ", committer %s, proposer %s, %s funder",
                 w.lane_count, w.dep.chain_id, committer, proposer,
                 w.sender.signer[SENDER_FUNDER].present ? "with its" : "without a");
        st = run(&w, &err);
        code = st ? fail(st, SETTLE_FAILED, &err) : SETTLE_FINE;
    }
    notify_stopping("stopping");
    serve_stop(http);
    worker_fini(&w);
    return code;
}

/* ---- the other verbs ---- */

static int verb_status(const struct settings *s)
{
    struct db db;
    struct buf out;
    struct errtext err = ERRTEXT_INIT;
    enum status st = db_open_reader(&db, s->state_dir, &err);
    if (st)
        return fail(st, SETTLE_START, &err);
    buf_init(&out, 4u << 20);
    st = s->json ? serve_status_json(&db, &out, &err) : serve_status_text(&db, &out, &err);
    if (!st)
        printf("%s%s", out.data, s->json ? "\n" : "");
    buf_fini(&out);
    db_close(&db);
    return st ? fail(st, SETTLE_FAILED, &err) : SETTLE_FINE;
}

static enum status resume_lane(struct db *db, uint64_t lane, struct errtext *err)
{
    enum status st =
        db_run(db, err, "UPDATE lanes SET stopped = NULL WHERE lane = ? AND stopped IS NOT NULL",
               "u", lane);
    if (!st && !db_changes(db))
        st = err_set(err, STATUS_NOT_FOUND, "lane %" PRIu64 " is not stopped", lane);
    return st;
}

/* Of the three things that a person may have looked at, the one that is named. */
static int verb_resume(const struct settings *s)
{
    static const struct {
        const char *what;
        enum status (*resume)(struct db *db, uint64_t number, struct errtext *err);
    } kinds[] = {{"lane", resume_lane}, {"nonce", sender_acknowledge}, {"batch", walk_back_forget}};
    const char *given[] = {s->operand, s->nonce, s->batch};
    struct db db;
    struct errtext err = ERRTEXT_INIT;
    size_t kind = ARRAY_COUNT(kinds), count = 0;
    char *end = NULL;
    for (size_t i = 0; i < ARRAY_COUNT(kinds); i++) {
        kind = given[i] ? i : kind;
        count += given[i] != NULL;
    }
    uint64_t number = count == 1 ? strtoull(given[kind], &end, 10) : 0;
    if (count != 1 || end == given[kind] || *end)
        return fail(err_set(&err, STATUS_INVALID,
                            "resume: expected one of LANE, --nonce N and --batch N, a number"),
                    SETTLE_CONFIG, &err);
    enum status st = db_open(&db, s->state_dir, &err);
    if (st)
        return fail(st, st == STATUS_BUSY ? SETTLE_LOCKED : SETTLE_START, &err);
    st = kinds[kind].resume(&db, number, &err);
    db_close(&db);
    if (!st)
        printf("%s %" PRIu64 " goes on when the worker starts\n", kinds[kind].what, number);
    return st ? fail(st, SETTLE_FAILED, &err) : SETTLE_FINE;
}

int main(int argc, char **argv)
{
    struct settings s;
    struct errtext err = ERRTEXT_INIT;
    struct sigaction act = {.sa_handler = on_signal};
    int code = SETTLE_FINE;
    if (guard_is_verb(argc, argv))
        return guard_main(argc, argv);
    sigaction(SIGTERM, &act, NULL);
    sigaction(SIGINT, &act, NULL);
    sigaction(SIGHUP, &act, NULL);
    signal(SIGPIPE, SIG_IGN);
    enum status st = settings_load(&s, argc, argv, &err);
    if (!st)
        st = log_set_level_text(s.log_level, &err);
    if (st)
        code = fail(st, SETTLE_CONFIG, &err);
    else if (s.help)
        settings_print_help();
    else if (s.version)
        puts("residual-settle " RS_VERSION);
    else if (sodium_init() < 0)
        code = SETTLE_START;
    else if (strcmp(s.verb, "status") == 0)
        code = verb_status(&s);
    else if (strcmp(s.verb, "resume") == 0)
        code = verb_resume(&s);
    else
        code = verb_run(&s);
    settings_fini(&s);
    return code;
}
