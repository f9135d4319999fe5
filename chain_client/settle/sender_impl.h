/* Inside the sender: sender.c follows intents, sender_rows.c holds their rows, sender_tx.c makes
 * and sends attempts. */
#ifndef RS_SETTLE_SENDER_IMPL_H
#define RS_SETTLE_SENDER_IMPL_H

#include "chain_client/eth/tx.h"
#include "chain_client/settle/sender.h"
#include "chain_client/settle/states.h"

struct intent {
    uint64_t id, key, nonce, gas, generation;
    bool is_seen; /* a person says that its nonce is another's */
    enum sender_role role;
    char kind[16];
    uint8_t to[20], sender[20];
    struct buf data;
    u128 value;
};

struct attempt {
    uint64_t n;
    uint8_t hash[32];
    struct buf raw;
    u128 tip, cap;
    uint64_t first_sent_ms, last_sent_ms;
};

/* ---- sender_rows.c ---- */
/* The oldest open intent of a role. NOT_FOUND without one. The caller frees t->data. */
MUST_CHECK enum status sender_load_open(struct sender *s, struct intent *t, enum sender_role role,
                                        struct errtext *err);
/* The bound intent that follows (sender, nonce) of `after`, or the first of all. */
MUST_CHECK enum status sender_load_bound(struct sender *s, struct intent *t,
                                         const struct intent *after, struct errtext *err);
MUST_CHECK enum status sender_load_attempt(struct sender *s, struct attempt *a, uint64_t intent,
                                           uint64_t n, struct errtext *err);
MUST_CHECK enum status sender_count_bound(struct sender *s, const uint8_t address[20],
                                          uint64_t *count, struct errtext *err);
struct sender_end {
    enum intent_state state;
    const uint8_t *mined; /* [32], or NULL */
    uint64_t block;
    const uint8_t *block_hash; /* [32] */
    u128 cost;
};
MUST_CHECK enum status sender_end_intent(struct sender *s, const struct intent *t,
                                         const struct sender_end *end, struct errtext *err);

/* ---- sender_tx.c ---- */
/* Is there a fee below our maximum at which this could be mined? */
MUST_CHECK enum status sender_fees(struct sender *s, u128 *tip, u128 *cap, bool *too_high,
                                   struct errtext *err);
MUST_CHECK enum status sender_first_attempt(struct sender *s, const struct intent *t,
                                            struct errtext *err);
/* Send the newest attempt again, or a dearer one when it is time. */
MUST_CHECK enum status sender_push(struct sender *s, const struct intent *t, uint64_t attempts,
                                   struct errtext *err);
/* A line about what waits, once a minute. */
void sender_note(struct sender *s, const struct intent *t, const char *what, const char *why);
/* The contract's error by name, or the node's own words. */
const char *sender_refusal(struct sender *s);

#endif
