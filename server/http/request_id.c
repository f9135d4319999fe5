/* An x-request-id that a client chose is looked for only where the text is no id of ours that the
 * recorder knows: a client may well send 64 hexadecimal digits of its own. */
#include "server/http/request_id.h"
#include "server/base/check.h"
#include "server/base/hex.h"
#include "server/http/state.h"

#include <sodium.h>
#include <string.h>

static void make_tail(const char *text, uint64_t fair_key, uint8_t tail[RECORDER_ID_TAIL_BYTES])
{
    crypto_generichash_state h;
    crypto_generichash_init(&h, NULL, 0, RECORDER_ID_TAIL_BYTES);
    crypto_generichash_update(&h, (const uint8_t *)&fair_key, sizeof(fair_key));
    crypto_generichash_update(&h, (const uint8_t *)text, strlen(text));
    crypto_generichash_final(&h, tail, RECORDER_ID_TAIL_BYTES);
}

void request_id_make(const struct exchange *x, uint8_t id[32])
{
    if (!x->request_id_given) {
        CHECK(hex_decode(id, 32, x->request_id));
        return;
    }
    randombytes_buf(id, 32);
    make_tail(x->request_id, x->fair_key, id + 32 - RECORDER_ID_TAIL_BYTES);
}

bool request_id_read(const struct exchange *x, const char *text, uint8_t id[32])
{
    struct recorder *r = x->server->deps.recorder;
    const char *hex = text;
    uint8_t tail[RECORDER_ID_TAIL_BYTES];
    if (strncmp(text, "chatcmpl-", 9) == 0)
        hex += 9;
    else if (strncmp(text, "cmpl-", 5) == 0)
        hex += 5;
    make_tail(text, x->fair_key, tail);
    return recorder_find_id(r, tail, id) || hex_decode(id, 32, hex);
}
