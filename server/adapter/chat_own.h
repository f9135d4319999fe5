/* An adapter's own chat template: chat_template.jinja of its folder, else chat_template of its
 * tokenizer_config.json, as the base's is found. Thousands of adapters bring the same text, so a
 * parsed template is shared by reference count; a text that equals the base's is none.
 *
 * One that cannot be used costs chat with that adapter, with its reason, and nothing else: never is
 * another template used in its place. Immutable once made; thread: any. */
#ifndef RS_ADAPTER_CHAT_OWN_H
#define RS_ADAPTER_CHAT_OWN_H

#include "server/base/file.h"
#include "server/text/chat.h"

#include <stdatomic.h>
#include <stdint.h>

struct chat_own {
    struct chat_template *chat; /* NULL: see refusal */
    char *text, *refusal;
    uint8_t digest[32]; /* BLAKE2b-256 of text, as receipts carry it */
    _Atomic uint32_t refs;
};

/* *out NULL: the folder brings none. */
MUST_CHECK enum status chat_own_read(struct chat_own **out, const char *dir,
                                     const struct file_roots *roots, struct errtext *err);
/* where names the file in a refusal. Errors: NO_MEMORY alone. */
MUST_CHECK enum status chat_own_make(struct chat_own **out, const char *text, size_t len,
                                     const char *where, struct errtext *err);
struct chat_own *chat_own_ref(struct chat_own *c); /* NULL stays NULL */
void chat_own_release(struct chat_own *c);

#endif
