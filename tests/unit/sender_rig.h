/* The sender as the worker runs it, on the chain of chain_sim.h: a database in a file system in
 * memory, two endpoints, a key a role. rig_round is one turn of the worker's loop; rig_reopen is
 * what a kill and a start leave of it. */
#ifndef RS_TEST_SENDER_RIG_H
#define RS_TEST_SENDER_RIG_H

#include "chain_client/settle/sender.h"
#include "chain_client/settle/states.h"
#include "chain_client/settle/trouble.h"
#include "tests/unit/chain_sim.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

struct rig {
    char dir[64];
    struct db db;
    struct nodes nodes;
    struct rpc rpc[SIM_NODES];
    uint32_t node_count;
    struct sender sender;
    uint64_t commits, payments; /* wanted of each */
};

/* Two endpoints, or one. */
void rig_init(struct rig *r, uint64_t seed, uint32_t node_count);
void rig_fini(struct rig *r);
/* Killed, and started again: nothing is carried over but the files. */
void rig_reopen(struct rig *r);
enum status rig_round(struct rig *r, struct errtext *err);
/* Seconds of the chain's life, a block every two. */
void rig_run(struct rig *r, uint32_t seconds);

/* Intents of a kind and key in a state; rows of a kind of trouble. */
uint64_t rig_count(struct db *db, const char *kind, uint64_t key, enum intent_state state);
uint64_t rig_troubles(struct db *db, const char *kind);

/* The judge: the chain holds what was wanted, each once. */
struct verdict {
    uint32_t lost, doubled;
};
struct verdict rig_judge(uint64_t commits, uint64_t payments);

#endif
