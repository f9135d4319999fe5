/* Start, loop and stop of the two programs that check the worker. They share nothing with it but
 * code: a key, a database, a copy of the archive and nodes of their own. */
#include "chain_client/settle/guard.h"
#include "chain_client/eth/addr.h"
#include "chain_client/eth/keystore.h"
#include "chain_client/settle/roles.h"
#include "chain_client/settle/serve.h"
#include "chain_client/settle/trouble.h"
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
#include <string.h>

#define WAIT_MS_MAX 30000

static volatile sig_atomic_t guard_stopping;

static void on_stop(int sig)
{
    (void)sig;
    guard_stopping = 1;
}

bool guard_is_verb(int argc, char **argv)
{
    return argc > 1 && (strcmp(argv[1], "attest") == 0 || strcmp(argv[1], "watch") == 0);
}

/* ---- a batch ---- */

static enum status keep_newest(void *arg, const struct event_commit *e, struct errtext *err)
{
    struct guard_commit *n = arg;
    if (memcmp(e->hash, n->hash, 32) != 0)
        return STATUS_OK; /* dropped since */
    struct batch_lane *lane = mem_try_array(e->lane_count + 1, sizeof(*lane));
    if (!lane)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the lanes of a batch");
    memcpy(lane, e->lane, e->lane_count * sizeof(*lane));
    mem_free(n->lane);
    n->lane = lane;
    n->e = *e;
    n->e.lane = lane;
    return STATUS_OK;
}

enum status guard_commit_read(struct guard *g, uint64_t seq, struct guard_commit *out,
                              struct errtext *err)
{
    struct rpc_block last;
    *out = (struct guard_commit){.lane = NULL};
    enum status st = rpc_block(g->w.rpc, "finalized", &last, err);
    if (!st)
        st = view_batch_hash(&g->w.view, "finalized", seq, out->hash, err);
    struct event_range range = {.from = g->w.dep.start_block, .to = last.number, .number = seq};
    if (!st)
        st = events_commits(&g->w.view, &range, keep_newest, out, err);
    if (!st && !out->lane)
        st =
            err_set(err, STATUS_BUSY, "batch %" PRIu64 ": the node shows no commit of it yet", seq);
    return st;
}

void guard_commit_fini(struct guard_commit *c)
{
    mem_free(c->lane);
}

enum status guard_batch(struct guard *g, uint64_t seq, enum mirror_found *found,
                        struct errtext *err)
{
    struct guard_commit c;
    enum status st = guard_commit_read(g, seq, &c, err);
    if (!st)
        st = mirror_batch(&g->mirror, &c.e, &g->w.view, found, err);
    guard_commit_fini(&c);
    return st;
}

/* ---- start ---- */

static enum status open_guard(struct guard *g, struct errtext *err)
{
    const struct guard_settings *s = g->set;
    struct mirror_config mirror = {.dir = s->mirror_dir,
                                   .source = s->archive,
                                   .lane_url = &s->lane_url,
                                   .lane_key_file = s->lane_key_file};
    g->worker_set = (struct settings){.rpc_url = s->rpc_url,
                                      .rpc_authorization_file = s->rpc_authorization_file,
                                      .rpc_head_age_max_s = s->rpc_head_age_max_s,
                                      .state_dir = s->state_dir,
                                      .archive_dir = s->mirror_dir,
                                      .listen = s->listen,
                                      .bump_seconds = s->bump_seconds,
                                      .fee_max_gwei = s->fee_max_gwei};
    g->w.set = &g->worker_set;
    enum status st = s->log_file ? log_open(s->log_file, err) : STATUS_OK;
    if (!st)
        st = deployment_load(&g->w.dep, s->deployment, err);
    if (!st)
        st = secp_create(&g->w.secp, err);
    if (!st)
        st = keystore_load(g->w.secp, &g->key, s->key_file, s->passphrase_file, err);
    if (!st)
        st = mirror_open(&g->mirror, &mirror, err);
    g->w.sender.signer[SENDER_GUARDIAN] =
        (struct sender_signer){.key = g->key, .present = strcmp(s->verb, "watch") == 0};
    return st ? st : chain_open(&g->w, err);
}

static void close_guard(struct guard *g)
{
    chain_close(&g->w);
    mirror_close(&g->mirror);
    db_close(&g->w.db);
    secp_key_fini(&g->key);
    secp_destroy(g->w.secp);
}

/* ---- the loop ---- */

/* A round of the nodes; at the first, the deployment is compared. */
static enum status meet(struct guard *g, bool *met, struct errtext *err)
{
    enum status st = chain_round(&g->w, err);
    if (!st && !*met)
        st = deployment_check(&g->w.dep, g->w.rpc, err);
    if (!st && !*met)
        st = view_vault(&g->w.view, "latest", &g->w.vault, err);
    if (!st && !*met)
        st = role_alone(&g->w.view, g->key.address,
                        strcmp(g->set->verb, "attest") == 0 ? "ATTESTOR" : "GUARDIAN", err);
    *met = *met || !st;
    return st;
}

static enum status look(struct guard *g, bool *met, struct errtext *err)
{
    enum status st = meet(g, met, err);
    if (st)
        return st;
    return strcmp(g->set->verb, "attest") == 0 ? attest_look(g, err) : watch_look(g, err);
}

static enum status loop(struct guard *g, struct errtext *err)
{
    uint64_t wait_ms = g->set->poll_ms;
    bool met = false;
    notify_ready("watching");
    while (!guard_stopping) {
        enum status st = look(g, &met, err), told = STATUS_OK;
        if (st == STATUS_CONFLICT || g->w.db.failed)
            return st;
        if (st)
            told = trouble_set(&g->w.db, TROUBLE_NODE, 0, err->text, NULL);
        else
            told = trouble_clear(&g->w.db, TROUBLE_NODE, 0, err);
        if (told)
            return told;
        if (g->set->once)
            return st;
        wait_ms = st ? MIN(2 * wait_ms, (uint64_t)WAIT_MS_MAX) : g->set->poll_ms;
        err_clear(err);
        for (uint64_t end = clock_mono_ns() + wait_ms * 1000000ull;
             clock_mono_ns() < end && !guard_stopping;)
            clock_sleep_ms(MIN(g->set->poll_ms, (uint64_t)100));
    }
    return STATUS_OK;
}

static int say(enum status st, enum guard_exit otherwise, const struct errtext *err)
{
    fprintf(stderr, "residual-settle: %s\n", err->text);
    return st == STATUS_CONFLICT ? GUARD_CONFLICT : otherwise;
}

static int guard_run(struct guard *g)
{
    struct serve *http = NULL;
    struct errtext err = ERRTEXT_INIT;
    char account[ADDR_TEXT_BYTES];
    int code = GUARD_FINE;
    enum status st = open_guard(g, &err);
    if (st) {
        code = say(st, GUARD_CONFIG, &err);
    } else if ((st = db_open(&g->w.db, g->set->state_dir, &err)) != STATUS_OK) {
        code = say(st, st == STATUS_BUSY ? GUARD_LOCKED : GUARD_START, &err);
    } else if (g->set->listen &&
               (st = serve_start(&http, &g->worker_set, &g->w.dep, &err)) != STATUS_OK) {
        code = say(st, GUARD_START, &err);
    } else {
        addr_format(account, g->key.address);
        log_info("guard", "%s on chain %" PRIu64 " as %s", g->set->verb, g->w.dep.chain_id,
                 account);
        st = loop(g, &err);
        code = st ? say(st, GUARD_FAILED, &err) : g->refused ? GUARD_REFUSED : GUARD_FINE;
    }
    notify_stopping("stopping");
    serve_stop(http);
    close_guard(g);
    return code;
}

int guard_main(int argc, char **argv)
{
    struct guard_settings s;
    struct errtext err = ERRTEXT_INIT;
    struct sigaction act = {.sa_handler = on_stop};
    int code = GUARD_FINE;
    sigaction(SIGTERM, &act, NULL);
    sigaction(SIGINT, &act, NULL);
    signal(SIGPIPE, SIG_IGN);
    enum status st = guard_settings_load(&s, argc, argv, &err);
    if (!st)
        st = log_set_level_text(s.log_level, &err);
    if (st)
        code = say(st, GUARD_CONFIG, &err);
    else if (s.help)
        guard_settings_print_help();
    else if (sodium_init() < 0)
        code = GUARD_START;
    else
        code = guard_run(&(struct guard){.set = &s, .w = {.db = {.lock_fd = -1}}});
    guard_settings_fini(&s);
    return code;
}
