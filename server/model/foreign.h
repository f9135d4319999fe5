/* What people give where a model or an adapter in the Hugging Face layout is expected: a pointer of
 * Git LFS, a GGUF file, a name of the hub, a quantised checkpoint. Recognised so that the refusal
 * says what the thing is and what to do; nothing of it is read beyond that. Pure but for looking at
 * names in a folder. */
#ifndef RS_MODEL_FOREIGN_H
#define RS_MODEL_FOREIGN_H

#include "server/base/errtext.h"

#include <stdbool.h>
#include <stddef.h>

/* The first bytes of a file that cannot be read as what its name says (8 suffice for most): what it
 * is and what to do, or NULL. */
const char *foreign_bytes(const void *head, size_t len);

/* ORG/NAME as the hub spells it. */
bool foreign_is_hub_id(const char *text);

enum foreign_want { FOREIGN_WANT_MODEL, FOREIGN_WANT_ADAPTER };

/* dir cannot be read as what is wanted, and st and err say why so far; where it can be told what
 * dir is, err says that instead. The caller's prefix names dir. Returns st. */
enum status foreign_folder(const char *dir, enum foreign_want want, enum status st,
                           struct errtext *err);

/* The same for a model's folder without tokenizer.json. */
enum status foreign_tokenizer(const char *dir, enum status st, struct errtext *err);

/* What a quantised checkpoint is, by its method ("gptq", NULL: unnamed), and what to do. out:
 * at least 256 bytes. */
void foreign_quantised(const char *method, char *out, size_t out_bytes);

#endif
