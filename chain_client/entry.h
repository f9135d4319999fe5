/* An entry: how a record travels in the spool and in a Redis Stream (SPEC 3).
 *
 *   entry = record ‖ tag       tag: keyed BLAKE2b-256 of the record under the lane's transport key
 *
 * The tag says that the lane's own server wrote the bytes; that they stand under their own number
 * is a check of its own, for an old entry has a right tag too. Pure. Thread: any. */
#ifndef RS_CHAIN_ENTRY_H
#define RS_CHAIN_ENTRY_H

#include "chain_client/canon.h"

#define ENTRY_TAG_BYTES       32
#define ENTRY_WHOLE_BYTES_MAX (CANON_RECORD_BYTES_MAX + ENTRY_TAG_BYTES)

void entry_tag(uint8_t tag[ENTRY_TAG_BYTES], const uint8_t key[32], const void *record, size_t len);
bool entry_has_tag(const uint8_t key[32], const void *entry, size_t len);
/* The record of an entry whose tag is right: decoded, and of this lane and number. INVALID with the
 * reason. r points into entry. */
MUST_CHECK enum status entry_decode(union record *r, uint32_t lane, uint64_t seq, const void *entry,
                                    size_t len, struct errtext *err);

/* The worker's word that a lane's records up to seq are final, under residual:lane:<lane>:final:
 * "<seq> <64 hex digits>", the tag of "residual.final.1" ‖ lane u32 ‖ seq u64. The server deletes
 * by it, so it is believed only with the lane's tag. */
#define ENTRY_FINAL_BYTES 96
void entry_final_format(char text[ENTRY_FINAL_BYTES], const uint8_t key[32], uint32_t lane,
                        uint64_t seq);
/* 0: not the word of who holds the key. */
uint64_t entry_final_parse(const char *text, const uint8_t key[32], uint32_t lane);

#endif
