/* A JSON body of /v1/completions or /v1/chat/completions -> a struct request the engine can run,
 * and a gen_spec of how to answer. What a client may ask for is limited here, by the constants
 * below and those of engine/request.h; the engine adds only what nobody else knows. Absent and null
 * are the same; fields nobody defines are ignored; fields that somebody defines and that we do not
 * do are refused by name. Pure but for catalog references; thread: any. */
#ifndef RS_HTTP_REQUEST_PARSE_H
#define RS_HTTP_REQUEST_PARSE_H

#include "server/engine/request.h"
#include "server/http/server.h"
#include "server/text/messages.h"

#include <jansson.h>

#define REQUEST_TEXT_BYTES_MAX            CHAT_TEXT_BYTES_MAX /* one prompt, or a rendered chat */
#define REQUEST_BAD_WORDS_MAX             64
#define REQUEST_WEIGHT_MAX                16.0
#define REQUEST_TEMPERATURE_MAX           2.0
#define REQUEST_COMPLETION_TOKENS_DEFAULT 16
#define REQUEST_SALT_BYTES_MAX            256
/* Output slots of one request: prompts x n x max_tokens (each costs 8 bytes, 176 with logprobs). */
#define REQUEST_OUTPUT_TOKENS_MAX (4u << 20)

struct parse_env {
    const struct model *model;
    struct catalog *catalog;
    const char *model_name; /* the base's */
    const uint8_t *chat_digest;
    /* what renders messages: the base's template, or an adapter's own; target_chat sets both */
    const struct chat_template *chat_template; /* NULL: none can be used */
    const char *chat_refusal;                  /* why there is none, or NULL */
    uint32_t n_max, context_max;
    const struct http_key *key;
    unsigned roles;
    bool chat;
};

struct gen_text {
    char *data;
    size_t len;
    bool sent; /* as the client wrote it; else decoded from ids */
};

/* How to answer; what the engine need not know. */
struct gen_spec {
    bool chat, stream, include_usage, continuous_usage;
    bool echo, include_stop, tokens_as_ids, return_token_ids;
    int32_t prompt_logprobs;              /* -1: not asked */
    char model[2 * CATALOG_NAME_MAX + 2]; /* as the client wrote it */
    char adapter[CATALOG_NAME_MAX + 1];   /* the adapter `model` named, or "" */
    struct gen_text *echo_text;           /* [prompt_count] with echo, else NULL; owned */
    uint32_t echo_count;
};
void gen_spec_fini(struct gen_spec *spec);

/* On OK *out is a request with both references, ids of its prompts filled; id, wake, payer and
 * on_finish are the caller's to set. Errors (param names the field): INVALID, UNSUPPORTED,
 * NOT_FOUND (model), DENIED (adapter not allowed for the key), NO_MEMORY. */
MUST_CHECK enum status request_parse(const struct parse_env *env, const char *body, size_t len,
                                     struct gen_spec *spec, struct request **out,
                                     struct errtext *err);
/* Free a request that was never submitted. */
void request_discard(struct request *r);

#endif
