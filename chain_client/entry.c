/* Server and settlement worker read the same entries, one from its own disk and one from Redis:
 * both ask here. */
#include "chain_client/entry.h"
#include "server/base/hex.h"

#include <inttypes.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FINAL_WORD "residual.final.1"

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

static void final_tag(uint8_t tag[ENTRY_TAG_BYTES], const uint8_t key[32], uint32_t lane,
                      uint64_t seq)
{
    uint8_t said[sizeof(FINAL_WORD) - 1 + 4 + 8] = FINAL_WORD;
    be_put(said + sizeof(FINAL_WORD) - 1, lane, 4);
    be_put(said + sizeof(FINAL_WORD) + 3, seq, 8);
    entry_tag(tag, key, said, sizeof(said));
}

void entry_final_format(char text[ENTRY_FINAL_BYTES], const uint8_t key[32], uint32_t lane,
                        uint64_t seq)
{
    uint8_t tag[ENTRY_TAG_BYTES];
    final_tag(tag, key, lane, seq);
    int n = snprintf(text, ENTRY_FINAL_BYTES, "%" PRIu64 " ", seq);
    hex_encode(text + n, tag, sizeof(tag));
}

uint64_t entry_final_parse(const char *text, const uint8_t key[32], uint32_t lane)
{
    char *end;
    uint8_t given[ENTRY_TAG_BYTES], tag[ENTRY_TAG_BYTES];
    uint64_t seq = strtoull(text, &end, 10);
    if (*end != ' ' || !hex_decode(given, sizeof(given), end + 1))
        return 0;
    final_tag(tag, key, lane, seq);
    return sodium_memcmp(tag, given, sizeof(tag)) == 0 ? seq : 0;
}
