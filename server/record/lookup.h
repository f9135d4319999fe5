/* Which record belongs to which request id, for GET /v1/receipts and /v1/attribution: the newest
 * LOOKUP_MAX answers, with who may see them and the salt that opens their commitments. Kept beside
 * the lane in a private log, never shipped, so that a restart still answers. Thread: any; one lock
 * inside. */
#ifndef RS_RECORD_LOOKUP_H
#define RS_RECORD_LOOKUP_H

#include "server/base/errtext.h"
#include "server/engine/request.h"

#define LOOKUP_MAX 65536

enum lookup_state {
    LOOKUP_NOT_SCORED,   /* no adapter, or not drawn */
    LOOKUP_PENDING,      /* a job waits */
    LOOKUP_PREVIEW_WAIT, /* scored without a record */
    LOOKUP_PREVIEW,      /* unsigned result below */
    LOOKUP_RECORDED,     /* att_seq holds the signed attribution */
};

struct lookup_entry {
    uint8_t request_id[32], salt[32];
    uint64_t fair_key, seq, att_seq;
    uint8_t account[20]; /* of the key that asked; zero: it has none */
    uint8_t state;       /* enum lookup_state */
    uint8_t adapter_count;
    uint32_t gain[LORA_PARTS_MAX]; /* preview, of E9 */
    uint64_t solo_q8[LORA_PARTS_MAX], moved_q8;
};

struct lookup;
MUST_CHECK enum status lookup_open(struct lookup **out, const char *dir, struct errtext *err);
void lookup_close(struct lookup *l);
/* Remember, in rising order of seq; the oldest is forgotten past LOOKUP_MAX. Also appended to the
 * private log (best effort). */
void lookup_put(struct lookup *l, const struct lookup_entry *e);
/* What was appended to the log is written: a kill does not forget it. */
void lookup_flush(struct lookup *l);
bool lookup_get(struct lookup *l, const uint8_t request_id[32], struct lookup_entry *out);
/* The newest request id whose last tail_bytes are these. */
bool lookup_find_tail(struct lookup *l, const uint8_t *tail, size_t tail_bytes, uint8_t id[32]);
/* Replace the entry of the same request id, if it is still known. */
void lookup_update(struct lookup *l, const struct lookup_entry *e);
/* The attribution of inference seq is record att_seq; into the log too, unless it was known. */
void lookup_mark_recorded(struct lookup *l, uint64_t seq, uint64_t att_seq);

#endif
