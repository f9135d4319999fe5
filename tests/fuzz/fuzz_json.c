/* Numbers are written again only where they refuse a document, and nothing else changes. jansson
 * alone is the oracle: what it takes we take with the same value; what it refuses for anything but
 * a number's size, or for our bound on nesting, we refuse. */
#include "server/base/json.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct errtext err = ERRTEXT_INIT;
    json_error_t why;
    json_t *ours;
    const char *text = (const char *)data;
    enum status st = json_doc_parse(&ours, "doc", text, len, 0, &err);
    if (!st != (ours != NULL) || (st && !err.text[0]))
        abort();
    bool has_mark = len >= 3 && memcmp(data, "\xEF\xBB\xBF", 3) == 0;
    json_t *plain = len ? json_loadb(text, len, JSON_REJECT_DUPLICATES, &why) : NULL;
    if (plain && json_is_object(plain) &&
        (st ? !strstr(err.text, "deep") : !json_equal(plain, ours)))
        abort();
    if (!plain && !st && !has_mark && json_error_code(&why) != json_error_numeric_overflow)
        abort();
    json_decref(plain);
    json_decref(ours);
    return 0;
}
