/* Publish manifests (SPEC 6): who owns an adapter, its prices, who shares its money, and its
 * datanet's documents.
 *
 * {"version": n, "adapterId": "0x…", "modelId": "0x…", "datanetId": "0x…" (0: none),
 * "datanetVersion": n (0: none), "owner": "0x…", "prices": {"in": "…", "out": "…"} (base units per
 * 1 000 tokens), "split": [{"payee", "role": author|data|other, "bps"}], "parents": [{"adapterId",
 * "bps"}], "chainId": n, "registry": "0x…", "documents": [{"docId", "owner", "licence", "bytes",
 * "digest"}] (with a datanet), "publisherKey": Ed25519 key, "publisherSignature": over the digest
 * below, "ownerSignature": 65 bytes over the same} digest =
 * EIP-712 of Publish in the registry's domain. An operator's own directory may hold the same facts
 * unsigned, as publish.json and datanet.json: trusted because the operator named the directory.
 * Pure. Thread: any. */
#ifndef RS_ADAPTER_MANIFEST_H
#define RS_ADAPTER_MANIFEST_H

#include "server/datanet/documents.h"
#include "server/terms/terms.h"

struct manifest {
    uint64_t version, chain_id, datanet_version;
    uint8_t adapter_id[32], model_id[32], datanet_id[32], owner[20], registry[20];
    struct tariff tariff;
    struct reward_entry split[REWARD_ENTRIES_MAX];
    uint32_t split_count;
    struct reward_parent parent[REWARD_PARENTS_MAX]; /* ascending by id */
    uint32_t parent_count;
    struct documents *documents; /* with a datanet; manifest_fini */
};
void manifest_fini(struct manifest *m);

/* What a signed manifest must be about. */
struct manifest_expect {
    const uint8_t *adapter_id, *model_id; /* 32 each */
    uint64_t chain_id;
    const uint8_t *registry; /* 20 */
    documents_ask_1271 *ask; /* did the contract that the owner is sign? NULL: only keys can have */
    void *ask_arg;
};

/* A signed manifest: every field, both signatures. Errors name the field, found and expected. */
MUST_CHECK enum status manifest_parse_signed(struct manifest *out, const json_t *json,
                                             const struct manifest_expect *expect,
                                             struct errtext *err);
/* publish.json of a directory; adapter and model ids are not in it. Errors of both name the field;
 * the caller names the file. */
MUST_CHECK enum status manifest_parse_local(struct manifest *out, const json_t *publish,
                                            struct errtext *err);
/* Its datanet's file: the documents and, where `residual datanet sign` has written it, the id that
 * their owners signed for. */
MUST_CHECK enum status manifest_parse_datanet(struct manifest *m, const json_t *datanet,
                                              struct errtext *err);
/* The digest both signatures cover. */
void manifest_digest(uint8_t out[32], const struct manifest *m);

#endif
