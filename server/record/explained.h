/* The evidence of one answer as it is shown: read back, with the texts that may be shown. */
#ifndef RS_RECORD_EXPLAINED_H
#define RS_RECORD_EXPLAINED_H

#include "chain_client/tail.h"
#include "server/record/recorder_impl.h"

#include <jansson.h>

struct explained {
    struct buf evidence;
    json_t *shown; /* {"adapters": [...], "choices": [...]} */
    const char *inputs;
    size_t inputs_len;
};
/* NOT_FOUND: none is kept. */
MUST_CHECK enum status explained_load(struct explained *out, struct recorder *r, uint64_t inf_seq,
                                      struct errtext *err);
void explained_fini(struct explained *e);

/* Gains and nats of an answer that the lookup has forgotten with a restart. */
void explained_fill(const struct explained *e, struct lookup_entry *entry);
/* `"contributors":[...]` of adapter k: of the credit (NULL: what the evidence says), with what the
 * evidence (NULL: none) adds to each. */
void explained_put_contributors(struct buf *out, const struct explained *e, uint32_t k,
                                const struct tail_credit *credit);
/* `,"index":{...},"rows":[...],"spans":[...]` of adapter k. */
void explained_put_sources(struct buf *out, const struct explained *e, uint32_t k);
/* `"choices":[...],` */
void explained_put_choices(struct buf *out, const struct explained *e);

#endif
