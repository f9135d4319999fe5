/* RLP and transaction decoding of arbitrary bytes. What decodes as one item must encode back to the
 * same bytes: the decoder accepts canonical RLP only. */
#include "chain_client/eth/rlp.h"
#include "chain_client/eth/tx.h"
#include "server/base/check.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static bool rebuild(struct buf *out, struct rlp_reader r, int depth)
{
    while (r.len) {
        struct rlp_item item;
        if (depth > 16 || rlp_next(&r, &item, NULL))
            return false;
        if (!item.is_list) {
            rlp_put_bytes(out, item.data, item.len);
            continue;
        }
        size_t list = rlp_list_begin(out);
        if (!rebuild(out, (struct rlp_reader){item.data, item.len}, depth + 1))
            return false;
        rlp_list_end(out, list);
    }
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static struct secp *ctx;
    struct buf out;
    struct tx tx;
    uint8_t sender[20];
    if (!ctx)
        CHECK(secp_create(&ctx, NULL) == STATUS_OK);
    buf_init(&out, 1 << 20);
    if (rebuild(&out, (struct rlp_reader){data, len}, 0) && !out.failed) {
        CHECK(out.len == len);
        CHECK(len == 0 || memcmp(out.data, data, len) == 0);
    }
    buf_fini(&out);
    enum status st = tx_decode(ctx, &tx, sender, data, len, NULL);
    return st == STATUS_COUNT; /* always 0: only crashes matter */
}
