/* Registering on chain what a manifest declares. Each call looks first and does only what is
 * missing, so that a repeat goes on where the last one stopped. */
#ifndef RS_CLI_REGISTRY_H
#define RS_CLI_REGISTRY_H

#include "chain_client/cli/node.h"
#include "chain_client/cli/sign.h"

struct registry_job {
    struct node *node;
    const struct cli *cli;
    const struct secp *secp;
    const struct secp_key *owner;
    const uint8_t *consent; /* SECP_SIGNATURE_BYTES of the datanet's owner, or NULL */
    uint32_t tx_count;      /* sent so far */
};

/* The id under which the owner's datanet of this salt is, or will be. */
void registry_datanet_id(uint8_t id[32], const struct deployment *d, const uint8_t owner[20],
                         const uint8_t salt[32]);
/* s->m.datanet_id, owned by the owner, with s's roots: registered, brought to s's version, or found
 * so; of another owner, who consented: found so. CONFLICT when other documents are registered under
 * the same version, DENIED for another's without consent. */
MUST_CHECK enum status registry_datanet(struct registry_job *j, const struct sign_source *s,
                                        struct errtext *err);
/* Commit, wait, register; or update when an older version of the same owner is registered. CONFLICT
 * for another owner, or another manifest under the same version. */
MUST_CHECK enum status registry_adapter(struct registry_job *j, const struct manifest_publish *p,
                                        const uint8_t owner_signature[SECP_SIGNATURE_BYTES],
                                        struct errtext *err);

#endif
