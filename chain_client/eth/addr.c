/* EIP-55: digit i of the lower-case hex is written in upper case when digit i of the Keccak-256 of
 * that lower-case text (without 0x) is 8 or more. A mistyped address with mixed case is thus caught
 * with probability 0.9998. */
#include "chain_client/eth/addr.h"
#include "chain_client/eth/keccak.h"
#include "server/base/hex.h"

#include <ctype.h>
#include <string.h>

void addr_format(char out[ADDR_TEXT_BYTES], const uint8_t address[20])
{
    uint8_t hash[32];
    out[0] = '0';
    out[1] = 'x';
    hex_encode(out + 2, address, 20);
    keccak_256(hash, out + 2, 40);
    for (size_t i = 0; i < 40; i++) {
        unsigned digit = i % 2 ? hash[i / 2] & 15u : hash[i / 2] >> 4;
        if (digit >= 8)
            out[2 + i] = (char)toupper((unsigned char)out[2 + i]);
    }
}

enum status addr_parse(uint8_t address[20], const char *text, struct errtext *err)
{
    char expected[ADDR_TEXT_BYTES];
    bool lower = false, upper = false;
    if (text[0] != '0' || text[1] != 'x' || strlen(text) != 42 || !hex_decode(address, 20, text))
        return err_set(err, STATUS_INVALID,
                       "\"%.60s\" is not an address (expected 0x and 40 hex digits)", text);
    for (const char *p = text + 2; *p; p++) {
        lower |= islower((unsigned char)*p) != 0;
        upper |= isupper((unsigned char)*p) != 0;
    }
    addr_format(expected, address);
    if (lower && upper && strcmp(expected, text) != 0)
        return err_set(err, STATUS_INVALID,
                       "address %s fails its EIP-55 checksum: a digit is mistyped", text);
    return STATUS_OK;
}

void addr_need(uint8_t address[20], struct json_reader *r, const char *key)
{
    struct errtext why = ERRTEXT_INIT;
    const char *text = json_need_string(r, key);
    memset(address, 0, 20);
    if (r->st || addr_parse(address, text, &why) == STATUS_OK)
        return;
    memset(address, 0, 20);
    json_fail(r, STATUS_INVALID, key, "%s", why.text);
}

bool addr_is_zero(const uint8_t address[20])
{
    static const uint8_t zero[20];
    return memcmp(address, zero, 20) == 0;
}
