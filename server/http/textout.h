/* The text of one sequence as it grows. Ids go in as the engine publishes them; text comes out when
 * it can no longer change: whole characters only, and nothing that may still become a stop string
 * or a stop token. One owner; reads the sequence's published part. */
#ifndef RS_HTTP_TEXTOUT_H
#define RS_HTTP_TEXTOUT_H

#include "server/engine/stop.h"
#include "server/model/model.h"
#include "server/text/tokenizer.h"

#define TEXTOUT_BYTES_MAX (64u << 20)

struct textout_rules {
    const struct model *model;
    const struct request_params *params;
    bool include_stop, skip_special;
};

struct textout {
    struct detok detok;
    struct stop_match match;
    struct stop_hit hit;
    bool has_hit, ended;
    uint32_t hit_tokens; /* tokens consumed when the hit was seen */
    uint32_t consumed;   /* tokens taken from the sequence */
    uint64_t passed;     /* bytes handed out */
    struct buf pending;  /* text after those */
};

void textout_init(struct textout *t, const struct textout_rules *rules);
void textout_fini(struct textout *t);
/* Take what is new in s and append the text that is final to out. */
void textout_pull(struct textout *t, const struct textout_rules *rules, const struct request_seq *s,
                  struct buf *out);

#endif
