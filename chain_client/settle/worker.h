/* The worker's state: one thread, one database, the chain's nodes, a key a role. The order of work
 * is in main.c; each module advances its own rows by one transition per transaction. */
#ifndef RS_SETTLE_WORKER_H
#define RS_SETTLE_WORKER_H

#include "chain_client/entry.h"
#include "chain_client/settle/archive.h"
#include "chain_client/settle/crew.h"
#include "chain_client/settle/db.h"
#include "chain_client/settle/records.h"
#include "chain_client/settle/sender.h"
#include "chain_client/settle/settings.h"
#include "chain_client/settle/states.h"
#include "chain_client/settle/store.h"
#include "chain_client/settle/trouble.h"
#include "chain_client/settle/view.h"

struct redis; /* ingest.c */

#define LANES_AHEAD_MAX (1u << 20) /* records past a gap */

struct settle_lane {
    uint32_t id;
    uint8_t transport_key[32];
    const char *spool_dir, *refetch_url; /* where missing records are read again, or NULL */
    uint64_t ingested;                   /* 1 .. ingested are all in the database */
    uint64_t top;                        /* highest number seen: above ingested there is a gap */
    uint64_t closed;                     /* in batches up to here */
    uint64_t final;                      /* final on the chain up to here */
    uint8_t key[20];                     /* last key the ledger named; zero: unknown */
    struct view_seal seal;
    bool stopped;     /* contradicts itself: a person decides */
    bool has_pending; /* read our unacknowledged entries first */
    bool is_warned;   /* a hold was logged */
    bool
        met_foreign; /* an entry was refused: the server may take the stream's end back behind it */
    uint64_t due_ns; /* its oldest record outside of batches goes into one now */
    uint64_t refetch_ns;
    uint32_t refetch_wait_ms;
    uint64_t trimmed;
    uint64_t look_ns;    /* its stream's end is looked at again then */
    uint64_t read_after; /* the group was taken back to before this number */
};

struct worker {
    const struct settings *set;
    struct deployment dep;
    struct db db;
    struct nodes nodes;
    struct rpc *rpc; /* the endpoint that is read in this round */
    struct view view;
    struct view_vault vault;
    struct secp *secp;
    struct sender sender;
    uint8_t domain[32], log_dom[32];
    struct settle_lane *lane;
    uint32_t lane_count;
    struct redis *redis;
    struct depot *store[STORES_MAX]; /* beside the archive's folder */
    uint32_t store_count;
    uint64_t scrub_seq, scrub_epoch, scrub_ns; /* what was read again last; the next one then */
    struct crew *crew;
    char *refetch_authorization;
    uint64_t epoch_note_ns;               /* what waits says so once a minute */
    uint64_t quorum_ns;                   /* when the attestors are read again */
    uint64_t unsigned_epoch, unsigned_ns; /* since when it waits for signatures */
    uint64_t forget_ns;                   /* old records are looked for again then */
    uint64_t foreign_batch;               /* the first on the ledger that is not ours; 0: none */
    uint64_t chain_s;                     /* time of the newest block seen */
    int64_t clock_base_s; /* wall less monotonic time, when the clock agreed with the chain */
    bool is_held;         /* the endpoints do not agree on what is final: nothing becomes so */
    bool remembered;      /* what was final in the life before */
};

struct settle_lane *worker_lane(struct worker *w, uint32_t lane);

/* ---- lanes.c: what arrives ---- */
enum lanes_verdict {
    LANES_TAKEN, /* in the database, now or before, or in quarantine: acknowledge */
    LANES_HOLD,  /* cannot be judged now: leave it where it is */
};
/* Rows of `lanes` into w->lane; meets the ledger's cursors later. */
MUST_CHECK enum status lanes_load(struct worker *w, struct errtext *err);
/* Ask the ledger for keys and seals. */
MUST_CHECK enum status lanes_refresh(struct worker *w, struct errtext *err);
/* An entry (record ‖ tag) that claims number seq, and what became of it. */
struct lanes_entry {
    uint64_t seq;
    struct canon_bytes bytes;
    enum lanes_verdict verdict;
    /* lanes.c's: what the bytes say by themselves */
    enum { LANES_BAD_TAG, LANES_BAD_RECORD, LANES_SIGNED } is;
    struct records_row row;
    uint8_t signer[20]; /* zero: the signature is none */
};
/* Judge entries, on all threads, and store what is good; inside a transaction. */
MUST_CHECK enum status lanes_take(struct worker *w, struct settle_lane *l,
                                  struct lanes_entry *entry, size_t count, struct errtext *err);
/* Move `ingested` over what is contiguous; inside the same transaction. */
MUST_CHECK enum status lanes_advance(struct worker *w, struct settle_lane *l, struct errtext *err);
/* Records up to `last` are in batches: the age of the next one counts from now. */
void lanes_closed(const struct worker *w, struct settle_lane *l, uint64_t last);
MUST_CHECK enum status lanes_stop(struct worker *w, struct settle_lane *l, const char *reason,
                                  struct errtext *err);

/* ---- refetch.c: what did not arrive ---- */
/* Try to fill the lanes' gaps from spool or server; a failure is logged and tried again later. */
MUST_CHECK enum status refetch_step(struct worker *w, struct errtext *err);

/* The records first..last as records.bin has them, appended to out. NOT_FOUND: not all are to be
 * had. */
MUST_CHECK enum status refetch_bodies(struct worker *w, struct settle_lane *l, uint64_t first,
                                      uint64_t last, struct buf *out, struct errtext *err);

/* ---- ingest.c: Redis ---- */
MUST_CHECK enum status ingest_open(struct worker *w, struct errtext *err);
void ingest_close(struct worker *w);
/* Read once, waiting at most wait_ms; a Redis that is away is logged and tried again. *busy: more
 * is waiting. Errors are the database's. */
MUST_CHECK enum status ingest_step(struct worker *w, uint32_t wait_ms, bool *busy,
                                   struct errtext *err);

/* ---- batches.c ---- */
MUST_CHECK enum status batches_step(struct worker *w, struct errtext *err);
/* A closed or built batch, up to where the archive has it. */
MUST_CHECK enum status batches_make(struct worker *w, uint64_t seq, enum batch_state state,
                                    struct errtext *err);

/* ---- foreign.c ---- */
/* Says what is on the ledger and neither ours nor in the archive. */
MUST_CHECK enum status foreign_batches(struct worker *w, struct errtext *err);

/* ---- stores.c ---- */
MUST_CHECK enum status stores_open(struct worker *w, struct errtext *err);
void stores_close(struct worker *w);
/* To every store; hash names the folder's content. */
MUST_CHECK enum status stores_publish(struct worker *w, const struct archive_folder *f,
                                      const uint8_t hash[32], struct errtext *err);
/* Does every store have this file of the folder? The one that is put last answers for the rest. */
bool stores_have(struct worker *w, const char *folder, const uint8_t hash[32],
                 const struct archive_file *last);
/* Into the archive, checked. NOT_FOUND: no store has it. */
MUST_CHECK enum status stores_fetch_batch(struct worker *w, uint64_t seq, const uint8_t hash[32],
                                          struct errtext *err);
MUST_CHECK enum status stores_fetch_epoch(struct worker *w, uint64_t epoch,
                                          const uint8_t manifest[32], struct errtext *err);

/* ---- scrub.c ---- */
/* Read one final batch of the archive again, or the next epoch, at the set pace, and mend it if it
 * is damaged. */
MUST_CHECK enum status scrub_step(struct worker *w, struct errtext *err);
/* The batches first..last, now: a reader found something wrong. */
MUST_CHECK enum status scrub_range(struct worker *w, uint64_t first, uint64_t last,
                                   struct errtext *err);

/* ---- adopt.c ---- */
MUST_CHECK enum status batches_adopt(struct worker *w, struct errtext *err);

/* ---- epochs.c ---- */
MUST_CHECK enum status epochs_adopt(struct worker *w, struct errtext *err);
MUST_CHECK enum status epochs_step(struct worker *w, struct errtext *err);

/* ---- chain.c: keys, endpoints, rounds ---- */
/* Keys of the roles, and clients of the endpoints. */
MUST_CHECK enum status chain_open(struct worker *w, struct errtext *err);
/* A client of the i-th rpc_url, with its authorization. */
MUST_CHECK enum status chain_rpc_open(struct rpc **out, const struct settings *s, uint32_t i,
                                      struct errtext *err);
/* Ask every endpoint; w->rpc and w->view read a good one afterwards, and "finalized" is what they
 * agree on. A reorganisation below that is undone in the state first. */
MUST_CHECK enum status chain_round(struct worker *w, struct errtext *err);
/* No key of ours holds another's role on the contracts. */
MUST_CHECK enum status chain_keys_apart(struct worker *w, struct errtext *err);
void chain_close(struct worker *w);

/* ---- walkback.c ---- */
/* Batches that were final and are not on the ledger any more, by a reorganisation or because a
 * guardian dropped them, are archived again and will be committed again. Likewise epochs, where the
 * chain was `reorganised`. */
MUST_CHECK enum status walk_back(struct worker *w, bool reorganised, struct errtext *err);
/* A person's decision: from batch seq on, ours are forgotten, and their records are free for the
 * ledger's batches or new ones. NOT_FOUND without such a batch. */
MUST_CHECK enum status walk_back_forget(struct db *db, uint64_t seq, struct errtext *err);
/* The same inside a transaction, and there may be none. */
MUST_CHECK enum status walk_back_rows(struct db *db, uint64_t seq, struct errtext *err);

/* ---- funding.c ---- */
/* fundTo(cumFee(paid)), the operator's debt: total is what the vault must have been given in all.
 * *ready once it has that at `latest`. Without a funder key it is only said. */
struct funding {
    uint64_t paid;
    u128 total, funded;
};
MUST_CHECK enum status funding_step(struct worker *w, const struct funding *f, bool *ready,
                                    struct errtext *err);
/* Where a token is paid with: an allowance that is left over goes back to 0. */
MUST_CHECK enum status funding_reset(struct worker *w, uint64_t paid, struct errtext *err);

#endif
