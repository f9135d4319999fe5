/* Ethereum addresses as text, with the EIP-55 checksum in the letters' case. Pure. Thread: any. */
#ifndef RS_CHAIN_ETH_ADDR_H
#define RS_CHAIN_ETH_ADDR_H

#include "server/base/json.h"

#include <stdbool.h>
#include <stdint.h>

#define ADDR_TEXT_BYTES 43 /* 0x, 40 digits, NUL */

/* "0x" and 40 digits, case as EIP-55 says. */
void addr_format(char out[ADDR_TEXT_BYTES], const uint8_t address[20]);
/* Exactly 0x and 40 hex digits. All lower or all upper case is taken as is; a mix must carry the
 * right checksum. INVALID otherwise, naming what is wrong. */
MUST_CHECK enum status addr_parse(uint8_t address[20], const char *text, struct errtext *err);
/* The address that r's object must hold at key; zeros after a fault. */
void addr_need(uint8_t address[20], struct json_reader *r, const char *key);
bool addr_is_zero(const uint8_t address[20]);

#endif
