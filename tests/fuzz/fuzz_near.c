/* Texts of strangers, compared with those that came before. The first byte says how few shingles
 * may be held, the second whether the words are taken as they are or found in the text; the rest
 * is texts, each ended by a byte 0xff. Whatever the bytes: what was added is found whole, by the
 * first that said it; nothing else is found than what was added; and asking changes no answer. */
#include "server/base/buf.h"
#include "server/base/check.h"
#include "server/datanet/near.h"
#include "server/text/unicode.h"

#include <string.h>

#define TEXTS_MAX  64u
#define NAME_FIRST 1000u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static const uint8_t owners[2][20] = {{1}, {2}};

static struct near_found find(struct near *n, const struct near_text *t, uint32_t known)
{
    struct near_found f, again;
    CHECK(near_find(n, t, &f, NULL) == STATUS_OK);
    CHECK(near_find(n, t, &again, NULL) == STATUS_OK);
    CHECK(f.ppm == again.ppm && f.document == again.document);
    CHECK(f.ppm <= NEAR_SAME_PPM);
    if (f.ppm)
        CHECK(f.document >= NAME_FIRST && f.document < NAME_FIRST + known);
    return f;
}

static void one_text(struct near *n, const struct buf *words, uint32_t place)
{
    uint32_t name = NAME_FIRST + place;
    const struct near_text t = {owners[words->len & 1], words->data, words->len};
    struct near_found before = find(n, &t, place);
    CHECK(near_add(n, name, &t, NULL) == STATUS_OK);
    struct near_found after = find(n, &t, place + 1);
    CHECK(after.ppm == NEAR_SAME_PPM);
    CHECK(after.document == (before.ppm == NEAR_SAME_PPM ? before.document : name));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    const uint8_t *p = data + 2, *end = data + len;
    struct near *n;
    struct buf words;
    if (len < 2)
        return 0;
    CHECK(near_create(&n, data[0] ? data[0] : NEAR_ENTRIES_MAX, NULL) == STATUS_OK);
    buf_init(&words, 1u << 20);
    for (uint32_t place = 0; p < end && place < TEXTS_MAX; place++) {
        const uint8_t *cut = memchr(p, 0xff, (size_t)(end - p));
        size_t bytes = (size_t)((cut ? cut : end) - p);
        buf_clear(&words);
        if (data[1] & 1)
            buf_put(&words, p, bytes);
        else if (unicode_words(&words, (const char *)p, bytes, NULL))
            buf_clear(&words); /* no UTF-8: an empty text */
        one_text(n, &words, place);
        p += bytes + 1;
    }
    buf_fini(&words);
    near_free(n);
    return 0;
}
