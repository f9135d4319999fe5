/* The text of one sequence as it grows, and where its tokens stand in it: the one assembler of
 * answers, streamed or whole. Ids go in as the engine publishes them; text comes out when it can no
 * longer change: whole characters only, and nothing that may still become a stop string. A token is
 * handed out with the last of its text, so that its place in the text is final too. One owner;
 * reads the sequence's published part. */
#ifndef RS_HTTP_TEXTOUT_H
#define RS_HTTP_TEXTOUT_H

#include "server/engine/stop.h"
#include "server/model/model.h"
#include "server/text/tokenizer.h"

#define TEXTOUT_BYTES_MAX (64u << 20)

struct textout_rules {
    const struct model *model;
    const struct request_params *params;
    bool include_stop;
};

struct textout {
    struct detok detok;
    bool ended;
    uint32_t consumed;    /* tokens taken from the sequence */
    uint32_t given;       /* tokens handed out */
    uint32_t run_first;   /* the token where a byte-fallback run began */
    uint64_t characters;  /* of all text so far */
    uint64_t bytes_given; /* text handed out */
    uint64_t characters_given;
    struct buf pending; /* text after those */
    struct buf places;  /* struct textout_place of the tokens not handed out */
};

void textout_init(struct textout *t, const struct textout_rules *rules);
void textout_fini(struct textout *t);
/* Take what is new in s; append the text that is final to out and, for each token handed out, the
 * character where its text begins, a uint32_t, to offsets (NULL: not wanted). When memory ends, out
 * turns failed. */
void textout_pull(struct textout *t, const struct textout_rules *rules, const struct request_seq *s,
                  struct buf *out, struct buf *offsets);

/* Where the tokens of an echoed prompt stand in the echo: n uint32_t to offsets. sent: the echo is
 * the text that was sent, so it has the special tokens that were written in it and no others. */
struct textout_echo {
    const char *text;
    size_t len;
    bool sent;
};
bool textout_prompt_offsets(const struct textout_rules *rules, const int32_t *ids, uint32_t n,
                            const struct textout_echo *echo, struct buf *offsets);

#endif
