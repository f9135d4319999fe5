/* A chain inside the test program: it takes the place of the JSON-RPC client and of the clock, so
 * the sender and the endpoints' agreement run as they are, on a time that the test moves.
 *
 * Two endpoints over one chain. Each has its own pool and may be down, behind, lose what is sent to
 * it, or lose its answer. Blocks hold what the pools offer, by nonce; a reorganisation takes blocks
 * away and gives back some of what was in them. A program is killed by letting every call of the
 * chain and every statement of its database fail from one moment on. */
#ifndef RS_TEST_CHAIN_SIM_H
#define RS_TEST_CHAIN_SIM_H

#include "chain_client/eth/rpc.h"
#include "chain_client/eth/tx.h"
#include "server/base/check.h"

#include <sqlite3.h>

#define SIM_NODES    2
#define SIM_ACCOUNTS 8
#define SIM_STRANGER (SIM_ACCOUNTS - 1) /* no key of ours */
#define SIM_KEYS     16                 /* batches and payments, each numbered from 1 */
#define SIM_TXS      1024
#define SIM_BLOCKS   2048
#define SIM_IN_BLOCK 16
#define SIM_DEPTH    6 /* a block under so many is final */
#define SIM_GAS      100000u
#define SIM_COINS    ((u128)1000000000000000000u)
#define SIM_CHAIN_ID 31337

struct rpc { /* an endpoint, as the client that the code under test holds */
    uint32_t node;
    bool is_pinned;
    uint64_t pin;
    struct rpc *witness;
    struct rpc_fault fault;
};

/* The contract: commit(k) only after commit(k-1), pay(k) always. */
struct sim_state {
    uint64_t nonce[SIM_ACCOUNTS];
    u128 balance[SIM_ACCOUNTS];
    uint64_t head;
    uint32_t paid[SIM_KEYS + 1];
};

struct sim_tx {
    uint8_t hash[32];
    uint32_t account;
    uint64_t nonce, key;
    u128 tip, cap, value;
    char kind; /* 'c' commit, 'p' pay, 'x' another program's */
    bool in_pool[SIM_NODES];
    uint64_t block; /* 0: not mined */
    bool succeeded;
};

struct sim_block {
    uint8_t hash[32], parent[32];
    uint64_t time;
    uint32_t tx[SIM_IN_BLOCK], tx_count;
    struct sim_state after;
};

struct sim_node {
    uint64_t down_until_ms, behind; /* blocks */
    bool no_receipts;               /* it knows of none, whatever was mined */
    bool is_forked;                 /* it shows other hashes than the chain has */
    uint64_t chain_id;
    enum status fails; /* what every call ends in, or OK */
};

struct sim {
    uint64_t now_ms, random, height, fork;
    u128 base_fee, tip; /* what a node suggests, per gas */
    uint8_t account[SIM_ACCOUNTS][20];
    struct sim_node node[SIM_NODES];
    struct sim_tx tx[SIM_TXS];
    uint32_t tx_count;
    struct sim_block block[SIM_BLOCKS];
    /* what goes wrong, of 1 000 */
    uint32_t lost_send, lost_ack, dropped, empty_block;
    uint64_t ops, crash_at; /* 0: no crash is near */
    bool is_dead;
    const char *refuses; /* what every estimate is refused with, or NULL */
    u128 allowance;      /* what eth_call answers: of the token, by the funder to the vault */
    /* what went wrong, and what it cost */
    uint32_t crashes, reorgs, lost_sends, lost_acks, drops, reverted;
    struct secp *secp;
};
extern struct sim sim;

void sim_init(uint64_t seed);
uint64_t sim_random(uint64_t below);
bool sim_chance(uint32_t of_1000);
/* One moment at which the program may be killed. True: it is dead. */
bool sim_tick(void);
/* Every statement and every commit is such a moment, and a dead program commits nothing. */
void sim_watch(sqlite3 *db);
void sim_mine(void);
/* The newest blocks are gone; some of what they held is in the pools again. */
void sim_reorg(uint64_t depth);
/* Another program uses the account's next nonce. */
void sim_foreign(uint32_t account, char kind, uint64_t key);
/* The state that an endpoint shows at a tag. */
enum status sim_state_at(struct rpc *r, const char *tag, const struct sim_state **out,
                         struct errtext *err);

#endif
