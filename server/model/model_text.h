/* The text side of a model directory: tokenizer.json, tokenizer_config.json, chat templates. */
#ifndef RS_MODEL_MODEL_TEXT_H
#define RS_MODEL_MODEL_TEXT_H

#include "server/model/model.h"

struct model_text {
    char *tokenizer_json; /* as read, for the model id */
    size_t tokenizer_bytes;
};

/* Fills the tokenizer, chat and special token fields of m, which stay m's on errors too, and adds
 * the tokenizer's end token to those of the config. A chat template that cannot be used is an error
 * when strict, else the reason in m->chat_refusal and a warning. text is freed by the caller with
 * model_text_fini in every case. */
MUST_CHECK enum status model_text_load(struct model *m, struct model_text *text, const char *dir,
                                       bool strict, struct errtext *err);
void model_text_fini(struct model_text *text);
/* Free what model_text_load filled of m: for one who reads the text side alone. */
void model_text_drop(struct model *m);

#endif
