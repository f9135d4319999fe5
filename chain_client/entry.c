/* Server and settlement worker read the same entries, one from its own disk and one from Redis:
 * both ask here. */
#include "chain_client/entry.h"

#include <inttypes.h>
#include <sodium.h>

void entry_tag(uint8_t tag[ENTRY_TAG_BYTES], const uint8_t key[32], const void *record, size_t len)
{
    crypto_generichash(tag, ENTRY_TAG_BYTES, record, len, key, 32);
}

bool entry_has_tag(const uint8_t key[32], const void *entry, size_t len)
{
    uint8_t tag[ENTRY_TAG_BYTES];
    if (len <= ENTRY_TAG_BYTES || len > ENTRY_WHOLE_BYTES_MAX)
        return false;
    entry_tag(tag, key, entry, len - ENTRY_TAG_BYTES);
    return sodium_memcmp(tag, (const uint8_t *)entry + len - ENTRY_TAG_BYTES, sizeof(tag)) == 0;
}

enum status entry_decode(union record *r, uint32_t lane, uint64_t seq, const void *entry,
                         size_t len, struct errtext *err)
{
    enum status st = canon_decode(r, entry, len - ENTRY_TAG_BYTES, err);
    if (st || (r->prefix.lane == lane && r->prefix.seq == seq))
        return st;
    return err_set(err, STATUS_INVALID,
                   "found record %" PRIu64 " of lane %" PRIu32 ", expected record %" PRIu64
                   " of lane %" PRIu32,
                   r->prefix.seq, r->prefix.lane, seq, lane);
}
