/* Record decoding of arbitrary bytes. What decodes must encode to the same bytes. The tail hashes
 * are put right first, or no input would get past them. */
#include "chain_client/canon.h"
#include "chain_client/eth/keccak.h"
#include "server/base/check.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

#define INPUT_BYTES_MAX 32768

/* Write each tail's Keccak-256 into its field, as far as the lengths allow. */
static void repair(uint8_t *data, size_t len)
{
    static const uint16_t inference[] = {110, 166, 198}, attribution[] = {151};
    const struct canon_layout *l = len > 1 ? canon_layout(data[1]) : NULL;
    if (!l || len < l->fixed_bytes)
        return;
    const uint16_t *field = data[1] == RECORD_INFERENCE ? inference : attribution;
    size_t at = l->fixed_bytes;
    for (size_t i = 0; i < l->tail_count && len - at >= 4; i++) {
        size_t tail = (size_t)be_get(data + at, 4);
        if (tail > len - at - 4)
            return;
        keccak_256(data + field[i], data + at + 4, tail);
        at += 4 + tail;
    }
}

static void check(const uint8_t *data, size_t len)
{
    static uint8_t out[CANON_RECORD_BYTES_MAX];
    size_t out_len = 0;
    union record r;
    struct errtext err = ERRTEXT_INIT;
    if (canon_decode(&r, data, len, &err)) {
        CHECK(err.text[0] && err.param[0]);
        return;
    }
    CHECK(canon_encode(out, &out_len, &r, NULL) == STATUS_OK);
    CHECK(out_len == len);
    CHECK(memcmp(out, data, len) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static uint8_t copy[INPUT_BYTES_MAX];
    check(data, len);
    if (len > sizeof(copy))
        return 0;
    if (len)
        memcpy(copy, data, len);
    repair(copy, len);
    check(copy, len);
    return 0;
}
