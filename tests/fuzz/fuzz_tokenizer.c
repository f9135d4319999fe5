/* tokenizer.json, then (after the first zero byte) a text: what loads must encode and decode
 * without a fault, and the stream must agree with the whole-text decoder where no byte-fallback
 * run is involved. */
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/text/tokenizer.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void use(const struct tokenizer *t, const char *text, size_t len, unsigned flags)
{
    struct errtext err = ERRTEXT_INIT;
    struct token_list ids = {.n_max = 1 << 16};
    struct buf whole, stream;
    struct detok d;
    buf_init(&whole, 1 << 24);
    buf_init(&stream, 1 << 24);
    if (!tokenizer_encode(t, text, len, flags, &ids, &err) &&
        !tokenizer_decode(t, ids.ids, ids.n, true, &whole, &err)) {
        detok_init(&d, t, true);
        for (size_t i = 0; i < ids.n; i++) {
            CHECK(ids.ids[i] >= 0 && (uint32_t)ids.ids[i] < tokenizer_vocab_size(t));
            detok_push(&d, ids.ids[i], &stream);
        }
        detok_finish(&d, &stream);
        buf_put_json_string(&whole, stream.data ? stream.data : "", stream.len);
    } else {
        CHECK(err.text[0] != '\0');
    }
    mem_free(ids.ids);
    buf_fini(&whole);
    buf_fini(&stream);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct errtext err = ERRTEXT_INIT;
    struct tokenizer *t = NULL;
    const char *json = (const char *)data;
    size_t len = strnlen(json, size);
    const char *text = len < size ? json + len + 1 : "Hello  w\xC3\xB6rld 123<s>";
    size_t text_len = len < size ? size - len - 1 : strlen(text);
    if (tokenizer_load(&t, json, len, &err)) {
        CHECK(err.text[0] != '\0' && !t);
        return 0;
    }
    use(t, text, text_len, 0);
    use(t, text, text_len, TOKENIZE_ADD_SPECIAL | TOKENIZE_PARSE_SPECIAL);
    tokenizer_free(t);
    return 0;
}
