/* A document as its owner hands it in: the text, and what he says of it. And the same signed, as a
 * file that goes to the publisher of a datanet beside the text, so that the owner needs nothing of
 * the publisher but the datanet's id:
 *
 * {"datanetId", "chainId", "registry", "owner", "licence", "terms"?, "display"?, "kind", "bytes",
 * "digest", "ownerSignature"}
 *
 * One thread. */
#ifndef RS_CLI_CONTRIBUTION_H
#define RS_CLI_CONTRIBUTION_H

#include "chain_client/cli/cli.h"
#include "chain_client/cli/sign.h"
#include "chain_client/settle/deployment.h"

struct contribution_claim {
    uint8_t owner[20];
    const char *licence, *terms; /* terms "": none */
    bool display, has_kind;
    enum rows_kind kind; /* has_kind false: by the file's name */
};
struct contribution {
    struct buf text; /* normalised */
    uint8_t digest[32];
    enum rows_kind kind;
};

/* Of --owner (NULL: or of the key that signs), --licence, --terms, --display, --kind. INVALID. */
MUST_CHECK enum status contribution_claim_options(struct contribution_claim *claim,
                                                  const struct cli *c, const uint8_t *owner,
                                                  struct errtext *err);
/* The file, held to what a document is: UTF-8, a text, no control characters, rows of its kind.
 * Errors name the file and the line. */
MUST_CHECK enum status contribution_read(struct contribution *out,
                                         const struct contribution_claim *claim, const char *file,
                                         struct errtext *err);
void contribution_fini(struct contribution *c);
/* Into an entry of the list; its signature from signed_entry, if not NULL. */
void contribution_put(json_t *doc, const struct contribution_claim *claim,
                      const struct contribution *c, const json_t *signed_entry);

struct contribution_place { /* what is signed for */
    uint8_t datanet_id[32];
    const struct deployment *d;
};
/* The signed entry (json_decref). */
MUST_CHECK enum status contribution_sign(json_t **out, const struct contribution_claim *claim,
                                         const struct contribution *c,
                                         const struct contribution_place *place,
                                         const struct sign_keys *keys, struct errtext *err);
/* A signed entry's file; the claim borrows from it. DENIED: not signed by its owner (65 bytes; what
 * a contract signed only a chain can check). */
MUST_CHECK enum status contribution_load(json_t **out, struct contribution_claim *claim,
                                         const char *path, struct errtext *err);
/* It is of this text. */
MUST_CHECK enum status contribution_match(const json_t *signed_entry, const struct contribution *c,
                                          const char *file, struct errtext *err);
/* It is for this datanet, which takes the id if it has none. */
MUST_CHECK enum status contribution_check_datanet(const json_t *signed_entry, json_t *datanet,
                                                  struct errtext *err);

#endif
