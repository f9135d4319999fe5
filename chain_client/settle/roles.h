/* Who may do what on the contracts: AccessControl's roles. A role's holders are found by its
 * RoleGranted events, and each is asked again with hasRole, so a revoked one does not count.
 * Thread: the view's. */
#ifndef RS_SETTLE_ROLES_H
#define RS_SETTLE_ROLES_H

#include "chain_client/settle/view.h"

#define ROLE_HOLDERS_MAX 64
#define ROLE_ADMIN       "" /* DEFAULT_ADMIN_ROLE */

/* role: "ATTESTOR", "PROPOSER", ...: the constant is keccak of the name. */
MUST_CHECK enum status role_has(struct view *v, const uint8_t contract[20], const char *role,
                                const uint8_t account[20], bool *has, struct errtext *err);

/* Keys lie apart: account holds no role but `own` ("": none) on ledger and vault. CONFLICT. */
MUST_CHECK enum status role_alone(struct view *v, const uint8_t account[20], const char *own,
                                  struct errtext *err);

struct role_holders {
    uint8_t account[ROLE_HOLDERS_MAX][20]; /* ascending */
    size_t count;
};
/* At `latest`. TOO_LARGE past ROLE_HOLDERS_MAX accounts. */
MUST_CHECK enum status role_list(struct view *v, const uint8_t contract[20], const char *role,
                                 struct role_holders *out, struct errtext *err);

#endif
