/* The book: what the Registry says, as of the newest final block that was read. A thread of its own
 * asks the nodes every few seconds what changed and keeps what it read on disk; a request only
 * looks, and never waits for a chain.
 *
 *   book_terms(book, adapter_id, now_s, &terms, err)     a reference that the request keeps
 *   book_base(book, now_s, &tariff, err)
 *
 * Dead node  a change takes the Registry's notice to come into force, so what was read stays right
 *            for that long, and records may name terms of SPEC 4's last 600 s besides: for the
 *            longer of the two nothing changes, then book_check_age says BUSY to whoever would
 *            charge
 * Bounded    ids_max adapters; past it the one that was asked for longest ago is forgotten and, if
 *            asked for again, read again
 */
#ifndef RS_TERMS_BOOK_H
#define RS_TERMS_BOOK_H

#include "server/terms/owners.h"
#include "server/terms/witness.h"

struct book;

/* Where the answers come from: witness.h; a test scripts its own. The book's thread alone asks. */
struct book_chain {
    void *arg;
    enum status (*head)(void *arg, struct witness_head *head, struct errtext *err);
    enum status (*ask)(void *arg, const struct witness_question *q, uint64_t block,
                       struct buf *answer, struct errtext *err);
    enum status (*changed)(void *arg, uint64_t first_block, uint64_t last_block,
                           void (*each)(void *arg, const uint8_t id[32]), void *each_arg,
                           struct errtext *err);
};

struct book_options {
    const char *dir; /* registry.json and owners/; there already */
    uint64_t chain_id;
    uint8_t registry[20];
    uint32_t lane; /* whose tariff the base has */
    uint8_t model_id[32];
    struct tariff base_wanted; /* what the operator thinks is registered; all 0: says nothing */
    uint32_t ids_max;
    uint32_t poll_ms;
    struct book_chain chain;
};
/* Errors: IO for the folder. A cache file that cannot be used is a line in the log. */
MUST_CHECK enum status book_open(struct book **out, const struct book_options *opt,
                                 struct errtext *err);
void book_close(struct book *b); /* NULL is fine; waits for the question under way */

/* BUSY: not read yet; the id is read next. Else a reference, which may say "not registered". */
MUST_CHECK enum status book_terms(struct book *b, const uint8_t adapter_id[32], uint64_t now_s,
                                  struct terms **out, struct errtext *err);
/* The same, waiting up to wait_ms for the first reading. Not for a thread that serves requests. */
MUST_CHECK enum status book_terms_wait(struct book *b, const uint8_t adapter_id[32], uint64_t now_s,
                                       uint32_t wait_ms, struct terms **out, struct errtext *err);
/* This id will be asked for: read it soon. */
void book_want(struct book *b, const uint8_t adapter_id[32]);
/* The lane's tariff of the base. BUSY: not read yet. */
MUST_CHECK enum status book_base(struct book *b, uint64_t now_s, struct tariff *out,
                                 struct errtext *err);
/* BUSY: what was read is too old to charge by; says since when and why. */
MUST_CHECK enum status book_check_age(struct book *b, uint64_t now_s, struct errtext *err);
/* BUSY: nothing was read yet, or book_check_age. */
MUST_CHECK enum status book_ready(struct book *b, uint64_t now_s, struct errtext *err);

/* Keep an owners' list and use it wherever its root is the registered one. */
MUST_CHECK enum status book_put_owners(struct book *b, const struct datanet_owner *list,
                                       size_t count, uint8_t root[32], struct errtext *err);
/* {"datanet","version","owners":[{"documents","owner"}]} of a version that some adapter here names
 * or named. NOT_FOUND says what is missing. */
MUST_CHECK enum status book_owners_json(struct book *b, const uint8_t datanet_id[32],
                                        uint64_t version, struct buf *out, struct errtext *err);

/* The members of a JSON object that say what holds for an adapter: "registered" and its terms, or
 * why not. b NULL: a lane without a chain. wait_ms: as book_terms_wait, 0 not at all. */
void book_put_json(struct book *b, const uint8_t adapter_id[32], uint64_t now_s, uint32_t wait_ms,
                   struct buf *out);

struct book_stats {
    uint64_t block, time_s; /* read as of; 0: never */
    uint64_t failures;      /* of reading */
    uint32_t ids, unread;
};
void book_get_stats(struct book *b, struct book_stats *out);

#endif
