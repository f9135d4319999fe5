/* Private to audit.c and audit_batch.c: what one audit carries from batch to batch. */
#ifndef RS_SETTLE_AUDIT_IMPL_H
#define RS_SETTLE_AUDIT_IMPL_H

#include "chain_client/settle/archive.h"
#include "chain_client/settle/audit.h"
#include "chain_client/settle/crew.h"
#include "chain_client/settle/lane_keys.h"

/* What a later record may point at, per sequence number of a lane. */
struct audit_item {
    uint8_t digest[32];
    uint8_t type, adapters, has_evidence;
};

struct audit_lane {
    uint32_t lane;
    uint64_t next;           /* what the next batch must begin with; 0: any */
    uint64_t base;           /* item[0] is this sequence number */
    struct audit_item *item; /* [next - base] */
    size_t item_cap;
};

struct audit {
    const struct audit_options *opt;
    struct audit_report *report;
    struct view view;
    struct secp *secp;
    struct crew *crew;
    uint8_t domain[32], log_dom[32];
    struct archive_batch prev; /* the batch before; seq 0: none */
    struct audit_lane *lane;
    size_t lane_count, lane_cap;
    struct lane_keys keys; /* of the current batch */
    uint8_t (*request_id)[32];
    size_t request_count, request_cap;
    bool is_partial; /* begins in the middle: where a lane goes on is not known */
};

void audit_finding(struct audit *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The same, of what a lane signed: a fault of its server, whoever committed it, which changes no
 * figure (SPEC 2). */
void audit_fault(struct audit *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* A damaged or missing file is a finding; what is left is an error of the audit itself. */
enum status audit_file_finding(struct audit *a, enum status st, struct errtext *err);
bool audit_grow(void **items, size_t count, size_t *cap, size_t item_bytes);

/* ---- audit_sign.c ---- */
MUST_CHECK enum status audit_crew(struct audit *a, struct errtext *err);
/* A record of records.bin: its digest, and whether the key that a->keys has of its lane and number
 * signed it. */
struct audit_signed {
    struct canon_bytes body;
    uint8_t digest[32];
    bool is_signed;
};
/* The first count_max of them, in a fresh block (mem_free). */
MUST_CHECK enum status audit_signatures(struct audit *a, const struct canon_bytes *records,
                                        size_t count_max, struct audit_signed **out, size_t *count,
                                        struct errtext *err);

/* One batch after the one before; deep reads its records too. */
enum status audit_one_batch(struct audit *a, uint64_t seq, bool deep, struct errtext *err);

#endif
