/* A chat template, then (after the first zero byte) a JSON context: it renders or it is refused
 * with a sentence, inside its budgets. */
#include "server/base/check.h"
#include "server/text/chat.h"

#include <jansson.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char usual[] =
    "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\",\"content\":"
    "null,\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":{\"a\":[1,2.5,true]}}}]}],"
    "\"tools\":[{\"type\":\"function\"}],\"add_generation_prompt\":true,\"bos_token\":\"<s>\"}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct errtext err = ERRTEXT_INIT;
    struct chat_template *t = NULL;
    const char *text = (const char *)data;
    size_t len = strnlen(text, size);
    json_error_t why;
    json_t *context = NULL;
    if (len < size)
        context = json_loadb(text + len + 1, size - len - 1, JSON_ALLOW_NUL, &why);
    if (!context)
        context = json_loads(usual, 0, &why);
    CHECK(context != NULL);
    enum status st = chat_template_parse(&t, text, len, &err);
    if (!st) {
        struct buf out;
        buf_init(&out, 1 << 20);
        st = chat_template_render(t, context, &out, &err);
        CHECK(st != STATUS_OK || !out.failed);
        buf_fini(&out);
    }
    chat_template_free(t);
    json_decref(context);
    return 0;
}
