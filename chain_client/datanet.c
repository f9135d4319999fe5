/* Leaves in order, padded on the right to a power of two. A level is folded into itself, so that
 * memory is one hash a leaf. */
#include "chain_client/datanet.h"
#include "chain_client/eth/keccak.h"
#include "server/base/hex.h"
#include "server/base/mem.h"

#include <string.h>

#define LEAF_OWNER    0x20
#define NODE          0x21
#define PAD           0x22
#define LEAF_DOCUMENT 0x23

static void fold(uint8_t root[32], uint8_t (*hash)[32], size_t count, const uint8_t domain[32])
{
    uint8_t pad[33] = {PAD}, node[65] = {NODE};
    size_t width = 1;
    while (width < count)
        width *= 2;
    memcpy(pad + 1, domain, 32);
    for (size_t i = count; i < width; i++)
        keccak_256(hash[i], pad, sizeof(pad));
    for (; width > 1; width /= 2) {
        for (size_t i = 0; i < width / 2; i++) {
            memcpy(node + 1, hash[2 * i], 64);
            keccak_256(hash[i], node, sizeof(node));
        }
    }
    memcpy(root, hash[0], 32);
}

static enum status room(uint8_t (**hash)[32], size_t count, struct errtext *err)
{
    size_t width = 1;
    if (!count || count > DATANET_DOCUMENTS_MAX)
        return err_set(err, count ? STATUS_TOO_LARGE : STATUS_INVALID,
                       "datanet: %zu entries, expected 1 to %u", count, DATANET_DOCUMENTS_MAX);
    while (width < count)
        width *= 2;
    *hash = mem_try_array(width, 32);
    return *hash ? STATUS_OK : err_set(err, STATUS_NO_MEMORY, "no memory for %zu leaves", width);
}

enum status datanet_owner_root(uint8_t root[32], const struct datanet_owner *list, size_t count,
                               struct errtext *err)
{
    uint8_t(*hash)[32], leaf[61] = {LEAF_OWNER}, domain[32];
    enum status st = room(&hash, count, err);
    if (st)
        return st;
    keccak_256(domain, "residual.owners.1", 17);
    memcpy(leaf + 1, domain, 32);
    for (size_t i = 0; i < count && !st; i++) {
        if (!list[i].documents || (i && memcmp(list[i - 1].owner, list[i].owner, 20) >= 0))
            st = err_set(err, STATUS_INVALID,
                         "datanet: owner %zu has no document, or is not above the one before", i);
        be_put(leaf + 33, i, 4);
        memcpy(leaf + 37, list[i].owner, 20);
        be_put(leaf + 57, list[i].documents, 4);
        keccak_256(hash[i], leaf, sizeof(leaf));
    }
    if (!st)
        fold(root, hash, count, domain);
    mem_free(hash);
    return st;
}

enum status datanet_document_root(uint8_t root[32], const struct datanet_document *list,
                                  size_t count, struct errtext *err)
{
    uint8_t(*hash)[32], leaf[129] = {LEAF_DOCUMENT}, domain[32];
    enum status st = room(&hash, count, err);
    if (st)
        return st;
    keccak_256(domain, "residual.documents.1", 20);
    memcpy(leaf + 1, domain, 32);
    for (size_t i = 0; i < count && !st; i++) {
        if (i && memcmp(list[i - 1].digest, list[i].digest, 32) >= 0)
            st = err_set(err, STATUS_INVALID,
                         "datanet: document %zu is not above the one before, or the same", i);
        be_put(leaf + 33, i, 4);
        memcpy(leaf + 37, list[i].digest, 32);
        memcpy(leaf + 69, list[i].owner, 20);
        be_put(leaf + 89, list[i].bytes, 8);
        memcpy(leaf + 97, list[i].licence_hash, 32);
        keccak_256(hash[i], leaf, sizeof(leaf));
    }
    if (!st)
        fold(root, hash, count, domain);
    mem_free(hash);
    return st;
}
