/* What stands beside tokenizer.json: tokenizer_config.json, special_tokens_map.json and
 * added_tokens.json, read as transformers 5 reads them. Private to server/model. Thread: one. */
#ifndef RS_MODEL_TOKEN_CONFIG_H
#define RS_MODEL_TOKEN_CONFIG_H

#include "server/model/model.h"

#define TEXT_CONFIG_BYTES_MAX (32u << 20)

struct token_config {
    json_t *root; /* tokenizer_config.json with what the older files add; {} where there is none */
    struct tokenizer_extra extra; /* borrows from root and made */
    json_t *made;                 /* tokens that are written as a string, as objects */
    struct model_special *special;
    size_t special_count;
};

/* c is freed by the caller with token_config_fini in every case. Errors name the file. */
MUST_CHECK enum status token_config_load(struct token_config *c, const char *dir,
                                         struct errtext *err);
void token_config_fini(struct token_config *c);
void model_special_free(struct model_special *list, size_t count);

#endif
