/* The segments of one tokenizer in a folder, kept from version to version of datanets: what a
 * version shares with earlier ones is not sorted again, and what it left out is not found.
 *
 *   <dir>/<document root>-<tokenizer digest>.spans      32 hex digits of each
 *
 * Thread: one for a folder; blocks on disk. */
#ifndef RS_INFLUENCE_SPANS_FOLDER_H
#define RS_INFLUENCE_SPANS_FOLDER_H

#include "server/influence/spans.h"

struct spans_folder {
    const char *dir;
    const uint8_t *document_root, *tokenizer_digest; /* 32 bytes each */
    const struct spans_list *list;                   /* of that version */
    uint32_t n_vocab;
    /* Document `place` of the list, as spans_source asks for it; its owner is the list's. */
    enum status (*document)(void *arg, uint32_t place, struct spans_document *out,
                            struct errtext *err);
    void *arg;
    /* How it went. */
    uint32_t built;   /* documents that were sorted; 0: all were there */
    uint32_t corrupt; /* files that failed their check and were removed, each in the log */
};
/* The spans of the version: from the segments that are there, and one built of what is in none of
 * them; of everything, where less than half is there or too many would be needed. Errors: those of
 * spans_build, spans_open and spans_join. */
MUST_CHECK enum status spans_folder_open(struct spans **out, struct spans_folder *f,
                                         struct errtext *err);

#endif
