/* The contracts' custom errors in words. Arguments are single words; %s in a sentence is the first
 * one as a number. */
#include "chain_client/cli/node.h"
#include "chain_client/eth/abi.h"
#include "server/base/check.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *signature, *sentence;
} errors[] = {
    {"NothingToClaim(uint128)", "nothing to claim: %s base units were paid already"},
    {"NotActive(uint64)", "epoch %s is not active"},
    {"BadProof()", "the proof does not lead to the root on the chain"},
    {"PaymentRefused(address)", "the recipient refused the payment"},
    {"OverTotal(uint128)", "more than the epoch's total of %s base units would be paid"},
    {"OverDailyCap(uint128)",
     "the vault has paid out today what a day lets (%s base units are left): try again tomorrow"},
    {"Paused()", "claims are paused by the guardian for now"},
    {"AlreadyRegistered(bytes32)", "it is registered already"},
    {"Unknown(bytes32)", "what it names is not registered"},
    {"NotOwner(bytes32)", "the sender is not its owner"},
    {"CommitmentUnknown(bytes32)", "the commitment was not made before"},
    {"CommitmentTooYoung(uint64)", "the commitment is usable from second %s on"},
    {"BadOwnerSignature()", "the owner's signature does not fit the manifest"},
    {"VersionNotRising(uint64)", "the version must be above %s, which is registered"},
    {"BadSplit(uint256)", "split entry %s is not allowed (order, payee, role or bps)"},
    {"BadParent(uint256)",
     "parent %s is not allowed: its registration, order, bps or depth, or all "
     "of them together"},
    {"ParentsFixed()", "other adapters name it as their parent: its own parents cannot change"},
    {"BadDatanetConsent()", "the datanet's owner did not agree to this adapter and version"},
    {"ChangePending(uint64)", "an earlier change is active from second %s on: wait for it"},
    {"NotOperator(uint32)", "the sender is not the operator of lane %s"},
    {"BadValue()", "a value is not allowed: a zero id or owner, or another model or datanet than "
                   "the registered one"},
};

bool reverts_explain(char *out, size_t out_bytes, const uint8_t *data, size_t len)
{
    for (size_t i = 0; i < ARRAY_COUNT(errors) && len >= 4; i++) {
        uint8_t selector[4];
        char number[40] = "?";
        u128 v = 0;
        abi_selector(selector, errors[i].signature);
        if (memcmp(selector, data, 4) != 0)
            continue;
        struct abi_reader r = {data + 4, len - 4};
        if (len >= 36 && abi_read_uint(&r, 0, 16, &v, "argument", NULL) == STATUS_OK)
            u128_format(number, v);
        snprintf(out, out_bytes, errors[i].sentence, number);
        return true;
    }
    return false;
}
