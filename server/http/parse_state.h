/* What the parts of the request parser pass along: request_parse.c drives, params.c reads
 * sampling fields, target.c the model and adapters, prompt.c the prompts. Private to them. */
#ifndef RS_HTTP_PARSE_STATE_H
#define RS_HTTP_PARSE_STATE_H

#include "server/base/json.h"
#include "server/http/request_parse.h"

struct parse_state {
    const struct parse_env *env; /* env_own */
    struct parse_env env_own;
    const json_t *root;
    struct json_reader in; /* root's getters */
    struct gen_spec *spec;
    struct errtext *err;
    /* owned until moved into the request */
    struct request_params params;
    struct composition comp;
    struct adapter_entry *entry[LORA_PARTS_MAX];
    struct token_list prompt[REQUEST_PROMPTS_MAX];
    bool truncated[REQUEST_PROMPTS_MAX];
    uint32_t prompt_count;
    bool has_max_tokens;
};

/* target.c: `model`, `adapters`, `adapter_id`, `lora_path` -> spec.model, comp, entry. */
MUST_CHECK enum status parse_target(struct parse_state *p);
/* The name is not registered: NOT_FOUND, and why if it was refused. c NULL: the key may not know.
 */
MUST_CHECK enum status target_unknown(struct catalog *c, const char *param, const char *name,
                                      struct errtext *err);
/* Choose the template of a chat with these adapters: the own one of those that bring any, which
 * must be one, else the base's. Also /tokenize. */
MUST_CHECK enum status target_chat(struct parse_env *env, struct adapter_entry *const *entry,
                                   uint32_t count, struct errtext *err);
/* params.c: everything but prompts and max_tokens' default. */
MUST_CHECK enum status parse_refusals(struct parse_state *p);
MUST_CHECK enum status parse_params(struct parse_state *p);
/* prompt.c */
MUST_CHECK enum status parse_prompts(struct parse_state *p);
MUST_CHECK enum status parse_messages(struct parse_state *p);
/* prompt.c. Before a text is tokenized: INVALID if it cannot fit into the context, by its bytes
 * alone. */
MUST_CHECK enum status prompt_check_bytes(const struct parse_state *p, size_t len);
/* One text -> ids; flags as tokenizer_encode. param names the field in errors. Also /tokenize. */
MUST_CHECK enum status prompt_encode(const struct parse_env *env, const char *text, size_t len,
                                     unsigned flags, struct token_list *out, struct errtext *err);
/* Render messages of root with the model's template into text. Also /tokenize. */
MUST_CHECK enum status prompt_render_chat(const struct parse_env *env, const json_t *root,
                                          struct buf *text, struct errtext *err);

#endif
